//! Where tensors of a program lie: buffers, constants, and the arena by their lives.

use super::{Emit, declare, key};
use crate::build::Operand;
use crate::loops::Access;
use crate::work::{Id, Memory, SlotMemory};
use infc_artifact::memory;
use infc_artifact::program::{self as art, Place, Size, SlotPlace, View};
use infc_ir::{Expr, Tensor};
use std::collections::HashSet;

impl Emit<'_> {
    pub(super) fn add_buffer(&mut self, id: Id, place: Place) -> u32 {
        let data = self.work.tensor(id);
        let bytes = Expr::product(data.memory_dims()) * Expr::from(data.ty.dtype.bytes());
        let bytes = self.size(bytes);
        self.out.program.buffers.push(art::Buffer { bytes, place });
        let n = self.out.program.buffers.len() as u32 - 1;
        self.buffers.insert(id, n);
        n
    }

    /// The buffer of a constant; equal bytes share one.
    pub(super) fn constant(&mut self, t: &Tensor) -> u32 {
        let bytes = t.bytes();
        let same = self.equal.entry(key(bytes)).or_default();
        if let Some(&i) = same.iter().find(|&&i| self.constants[i].1.bytes() == bytes) {
            return self.constants[i].0;
        }
        let n = self.out.program.buffers.len() as u32;
        same.push(self.constants.len());
        self.constants.push((n, t.clone()));
        self.out.program.buffers.push(art::Buffer { bytes: Size::constant(0), place: Place::Constant(0) });
        n
    }

    /// Lays out the constants that are read as they are; those that only exist in a packed form are left out.
    pub(super) fn lay_out_constants(&mut self) {
        let mut used: HashSet<u32> = self.out.program.outputs.iter().map(|p| p.buffer).collect();
        art::each_view(&self.out.program.steps, &mut |v| {
            used.insert(v.buffer);
        });
        let data = &mut self.out.constants;
        for (b, t) in self.constants.iter().filter(|(b, _)| used.contains(b)) {
            let size = Size::constant(t.bytes().len() as i64);
            self.out.program.buffers[*b as usize] = art::Buffer { bytes: size, place: Place::Constant(data.push(t)) };
        }
        for (slot, made) in self.work.slots.iter().zip(&mut self.out.program.slots) {
            if let SlotMemory::Constant(value) = &slot.memory {
                let value = value.encode();
                let bytes = value.len() as u64;
                made.place = SlotPlace::Constant { offset: data.append(&Tensor::from_vec([value.len()], value)), bytes };
            }
        }
    }

    /// Notes that the step being made touches a buffer.
    pub(super) fn touch(&mut self, buffer: u32) {
        let now = self.position;
        if let Place::Arena { first, last, .. } = &mut self.out.program.buffers[buffer as usize].place {
            *first = (*first).min(now);
            *last = (*last).max(now);
        }
    }

    /// Where a tensor lies: its buffer, and the offset in elements of its first element (of its border, if it has one).
    pub(super) fn locate(&mut self, id: Id) -> (u32, Expr) {
        let work = self.work;
        let data = work.tensor(id);
        match &data.memory {
            Memory::Constant(t) => (self.constant(t), Expr::int(0)),
            Memory::Input(_) | Memory::Temp => {
                let buffer = match self.buffers.get(&id) {
                    Some(&b) => b,
                    None => self.add_buffer(id, Place::Arena { first: u32::MAX, last: 0, offset: None }),
                };
                (buffer, Expr::int(0))
            }
            Memory::Alias { of, offset } => {
                let (buffer, base) = self.locate(*of);
                (buffer, base + *offset)
            }
            Memory::Window { of, start } => {
                let (buffer, base) = self.locate(*of);
                let before = |id: Id, a: usize| work.tensor(id).halo.get(a).map_or(0, |h| h.0);
                let places = start.iter().zip(work.strides(id)).enumerate();
                let at = places.fold(base, |at, (a, (&s, stride))| at + (s + before(*of, a) - before(id, a)) * stride);
                (buffer, at)
            }
        }
    }

    pub(super) fn operand(&mut self, id: Id, access: Access) -> (Operand, u32, Expr) {
        let (buffer, offset) = self.locate(id);
        // A part of what has no elements has none either, and lies nowhere else.
        let whole = self.work.tensor(self.work.root(id));
        let offset = if whole.physical_dims().iter().any(|d| d.is(0)) { Expr::int(0) } else { offset };
        self.touch(buffer);
        (declare(self.work, id, access), buffer, offset * Expr::from(self.work.tensor(id).ty.dtype.bytes()))
    }

    pub(super) fn view(&mut self, id: Id) -> View {
        let (_, buffer, offset) = self.operand(id, Access::Read);
        View { buffer, offset: self.size(offset) }
    }

    /// What crosses the border of a loop lives through all its rounds.
    pub(super) fn widen_over_loops(&mut self) {
        for &(start, end) in &self.loops {
            for b in &mut self.out.program.buffers {
                if let Place::Arena { first, last, .. } = &mut b.place {
                    if (start..=end).contains(first) && *last > end {
                        *first = start;
                    }
                    if *first < start && (start..=end).contains(last) {
                        *last = end;
                    }
                }
            }
        }
    }

    /// Places the arena if all sizes are known, and says whose size is not.
    pub(super) fn arena(&mut self) {
        let mut at = vec![];
        let (mut sizes, mut lives) = (vec![], vec![]);
        for (k, b) in self.out.program.buffers.iter_mut().enumerate() {
            if let Place::Arena { first, last, .. } = &mut b.place {
                *first = (*first).min(*last);
                let Some(bytes) = b.bytes.known() else { return };
                at.push(k);
                sizes.push(bytes.max(0) as u64);
                lives.push((*first, *last));
            }
        }
        let Some((offsets, total)) = memory::place(&sizes, &lives) else {
            self.problem("the model", "its intermediate results do not fit the address space", "give smaller dims with --dim");
            return;
        };
        for (&k, o) in at.iter().zip(offsets) {
            if let Place::Arena { offset, .. } = &mut self.out.program.buffers[k].place {
                *offset = Some(o);
            }
        }
        self.out.program.arena = Some(total);
    }
}
