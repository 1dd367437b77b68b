//! Stores of neighbours: vectors whose lanes alternate in memory become words of one element of each, and one store.
//!
//! Two to four statements in a row of a vector loop may store to `p[n * lane]`, `p[n * lane + 1]` and so on: groups of neighbours that come from
//! several rows. One by one they would be a store for each lane. Three of four leave the last one as it is, where the machine has masks for that. Where the neighbours are copied from neighbours, words are read too.
//! Knows no reason for such statements.

use crate::access::Shape;
use crate::emit::Emit;
use crate::ir::{Elem, Operand, Ty, Val};
use crate::ops::memory_elem;
use infc_ir::scalar::Kind;
use infc_ir::{Fault, Scalar};
use infc_kernel::loops::Stmt;

/// Lanes of 32 bits from which on registers come with masks for bytes.
const MASKS: i64 = 16;

impl Emit<'_> {
    /// Emits the first statements at once if they are stores of neighbours, and says how many they are; else 0.
    pub(crate) fn interleaved(&mut self, list: &[Stmt]) -> Result<usize, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        if lanes < 2 || self.mask.is_some() {
            return Ok(0);
        }
        for count in [4, 3, 2] {
            let Some(group) = list.get(..count).and_then(|list| self.neighbours(list)) else { continue };
            let bits = memory_elem(self.kernel.buffers[group.buffer].dtype)?.bits();
            let members = count.next_power_of_two() as u32;
            let word = match bits * members {
                16 => Elem::I16,
                32 => Elem::I32,
                64 => Elem::I64,
                _ => continue,
            };
            let Shape::Step(at, step) = self.shape(group.buffer, group.first)? else { continue };
            if step != i64::from(members) || count < step as usize && self.width < MASKS {
                continue;
            }
            // A word of fewer elements than it has room for would be read beyond the last one.
            let copied = if count == members as usize { self.copied(&group, word)? } else { None };
            let words = match copied {
                Some(words) => words,
                None => self.joined_bits(&group, word, bits)?,
            };
            debug_assert_eq!(words.ty, Ty::new(word, lanes));
            if count == members as usize {
                self.f.store(words, at, bits / 8);
            } else {
                self.store_some(words, at, (count, members));
            }
            return Ok(count);
        }
        Ok(0)
    }

    /// Stores the first `count` of the `members` elements of each word.
    fn store_some(&mut self, words: Val, at: Val, (count, members): (usize, u32)) {
        let elem = if words.ty.elem.bits() / members == 8 { Elem::I8 } else { Elem::I16 };
        let ty = Ty::new(elem, words.ty.lanes * members);
        let v = self.f.t(words);
        let elements = self.f.inst(ty, format_args!("bitcast {v} to {ty}"));
        let number = Val { ty, op: Operand::Lanes(0, 1) };
        let member = self.f.bin("and", number, Val::int(elem, i64::from(members) - 1));
        let mask = self.f.cmp("icmp ult", member, Val::int(elem, count as i64));
        self.masked_store(elements, at, mask, elem.bits() / 8);
    }

    /// Words of the values of a group.
    fn joined_bits(&mut self, group: &Neighbours, word: Elem, bits: u32) -> Result<Val, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let mut words = Val { ty: Ty::new(word, lanes), op: Operand::Int(0) };
        for (k, &value) in group.values.iter().enumerate() {
            let v = self.bits(group.buffer, value)?;
            let v = self.f.splat(v, lanes);
            let v = self.f.cast("zext", v, word);
            let v = self.f.bin("shl", v, Val::int(word, i64::from(bits) * k as i64));
            words = self.f.bin("or", words, v);
        }
        Ok(words)
    }

    /// The words of a group whose values are read side by side, in each lane at a place of its own; zeros where a guard does not hold.
    fn copied(&mut self, group: &Neighbours, word: Elem) -> Result<Option<Val>, Fault> {
        let part = |s: Scalar| match s.kind() {
            Kind::Read { source, index, guard } => Some((*source as usize, index, *guard)),
            _ => None,
        };
        let Some((source, first, guard)) = part(group.values[0]) else { return Ok(None) };
        for (k, &value) in group.values.iter().enumerate() {
            let same = part(value).filter(|p| p.0 == source && p.2 == guard);
            if same.and_then(|p| self.distance(source, first, p.1)) != Some(k as i64) {
                return Ok(None);
            }
        }
        let lanes = self.lanes.unwrap_or(1);
        // Words of 32 bits are gathered; those of 16 have no instruction.
        let zero = guard.is_none_or(|(_, other)| other.as_int() == Some(0));
        let dtype = self.kernel.buffers[source].dtype;
        if !zero || word != Elem::I32 || !dtype.is_int() || dtype != self.kernel.buffers[group.buffer].dtype {
            return Ok(None);
        }
        let elem = memory_elem(dtype)?;
        let shape = self.shape(source, first)?;
        if !matches!(shape, Shape::Step(..) | Shape::Each(_)) {
            return Ok(None);
        }
        let ptrs = self.addresses(shape, elem, lanes);
        let wanted = match guard {
            Some((c, _)) => self.scalar(c)?,
            None => Val::bool(true),
        };
        let mask = self.f.splat(wanted, lanes);
        let ty = Ty::new(word, lanes);
        let align = Val::int(Elem::I32, i64::from(elem.bits() / 8));
        let zeros = Val { ty, op: Operand::Int(0) };
        Ok(Some(self.f.intrinsic("llvm.masked.gather", &[ty, ptrs.ty], ty, &[ptrs, align, mask, zeros])))
    }

    /// The statements as stores one behind the other of numbers that lie as integers do (those of bf16 too), and that none of them changes.
    fn neighbours<'a>(&self, list: &'a [Stmt]) -> Option<Neighbours<'a>> {
        let Stmt::Store { buffer, index: first, .. } = list.first()? else { return None };
        let at = *buffer as usize;
        if memory_elem(self.kernel.buffers[at].dtype).ok()?.is_float() {
            return None;
        }
        let mut values = vec![];
        for (k, s) in list.iter().enumerate() {
            let Stmt::Store { buffer: same, index, value } = s else { return None };
            let mut changes = false;
            value.visit(&mut |n| changes |= matches!(n.kind(), Kind::Read { source, .. } if source == buffer));
            if same != buffer || changes || self.distance(at, first, index)? != k as i64 {
                return None;
            }
            values.push(*value);
        }
        Some(Neighbours { buffer: at, first, values })
    }
}

/// Stores one behind the other.
struct Neighbours<'a> {
    buffer: usize,
    /// Index of the first.
    first: &'a [Scalar],
    values: Vec<Scalar>,
}
