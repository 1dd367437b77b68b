//! Loops over products whose tiles several threads fill and then multiply together: tiles that come later are under way while one is multiplied.
//!
//! The loops say: for each tile along the products, threads fill a tile of each factor, and warps (or threads) multiply them. Each tile has
//! several slots here. In a round the threads wait for the oldest copies and for each other, ask for the tile that is to come after those that are under way, and
//! multiply the oldest one. One barrier in a round is enough: behind it the copies of all threads are there, and nobody multiplies the slot any
//! more that is filled next.

use crate::asm::{Class, Val};
use crate::emit::{Emit, Place, Var};
use crate::layout;
use infc_ir::{Expr, Fault, fault};
use infc_kernel::loops::{LoopKind, Stmt};
use std::collections::{HashMap, HashSet};

/// Shared memory that every GPU has for a block without being asked.
const SHARED: u64 = 48 << 10;
/// The most slots of a tile.
const MOST_SLOTS: u64 = 4;
/// Slots begin at multiples of this.
const ALIGN: u64 = 16;

/// The slots of the tiles of a kernel's loop over products.
#[derive(Clone)]
pub(crate) struct Pipeline {
    /// What the kernel's loops say.
    pub loops: layout::Pipeline,
    /// Slots of each tile.
    pub slots: u64,
    /// Bytes between the slots of each tile.
    pub bytes: HashMap<u32, u64>,
}

impl Pipeline {
    /// That of a kernel, if it has one.
    pub(crate) fn of(kernel: &infc_kernel::loops::Kernel) -> Option<Pipeline> {
        let loops = layout::pipeline(kernel)?;
        let span = |k: u32| Some(kernel.buffers[k as usize].span().known()?.max(1) as u64);
        let bytes = |k: &u32| {
            let count = span(*k)?;
            Some((*k, (count * kernel.buffers[*k as usize].dtype.bytes() as u64).next_multiple_of(ALIGN)))
        };
        let bytes: HashMap<u32, u64> = loops.tiles.iter().map(bytes).collect::<Option<_>>()?;
        let slots = (SHARED / bytes.values().sum::<u64>().max(1)).min(MOST_SLOTS);
        (slots >= 2).then_some(Pipeline { loops, slots, bytes })
    }
}

impl Emit<'_> {
    /// The loop over products.
    pub(crate) fn pipelined(&mut self, pipeline: &Pipeline, extent: Expr, body: &[Stmt]) -> Result<(), Fault> {
        let Some((multiply, fill)) = body.split_last() else { return Err(fault!("a loop over tiles without a body")) };
        let var = pipeline.loops.var;
        let ahead = pipeline.slots - 1;
        self.barrier();
        let parts = std::mem::take(&mut self.parts);
        let first: Vec<(u32, Val)> = pipeline
            .loops
            .tiles
            .iter()
            .map(|&t| match self.places[t as usize] {
                Place::Memory(_, base) => Ok((t, base)),
                _ => Err(fault!("a tile without memory")),
            })
            .collect::<Result<_, _>>()?;
        let (ty, end_value, zero) = self.extent(extent)?;
        // Tiles that were asked for; the one that is multiplied, which begins below 0.
        let (asked, now) = (self.a.copied(zero), self.a.fresh(zero.class));
        let [filled, used] = std::array::from_fn(|_| self.a.fresh(Class::R));
        self.a.line(format_args!("mov.b{} {now}, {}", if ty == "s64" { 64 } else { 32 }, -(ahead as i64)));
        self.a.line(format_args!("mov.b32 {filled}, 0"));
        self.a.line(format_args!("mov.b32 {used}, 0"));
        let (head, end, early) = (self.a.label(), self.a.label(), self.a.fresh(Class::P));
        let over = self.a.fresh(Class::P);
        self.a.line(format_args!("setp.le.{ty} {over}, {end_value}, 0"));
        self.a.line(format_args!("@{over} bra {end}"));
        self.a.place(&head);
        self.ranges.extent(var, extent);
        let (ready, filled_all) = (self.a.label(), self.a.label());
        self.a.line(format_args!("setp.lt.{ty} {early}, {now}, 0"));
        self.a.line(format_args!("@{early} bra {ready}"));
        self.a.line(format_args!("cp.async.wait_group {}", ahead - 1));
        self.a.line(format_args!("bar.sync 0"));
        self.a.place(&ready);
        let none = self.a.fresh(Class::P);
        self.a.line(format_args!("setp.ge.{ty} {none}, {asked}, {end_value}"));
        self.a.line(format_args!("@{none} bra {filled_all}"));
        self.vars.insert(var, Var::Reg(asked));
        self.slot(pipeline, &first, filled);
        self.parallel_parts(fill)?;
        self.a.place(&filled_all);
        self.a.line(format_args!("cp.async.commit_group"));
        self.next(pipeline, filled);
        self.a.line(format_args!("add.{ty} {asked}, {asked}, 1"));
        let multiplied = self.a.label();
        self.a.line(format_args!("@{early} bra {multiplied}"));
        self.vars.insert(var, Var::Reg(now));
        self.slot(pipeline, &first, used);
        self.parallel_parts(std::slice::from_ref(multiply))?;
        self.next(pipeline, used);
        self.a.place(&multiplied);
        self.a.line(format_args!("add.{ty} {now}, {now}, 1"));
        let again = self.a.fresh(Class::P);
        self.a.line(format_args!("setp.lt.{ty} {again}, {now}, {end_value}"));
        self.a.line(format_args!("@{again} bra {head}"));
        self.a.place(&end);
        for (tile, base) in first {
            self.places[tile as usize] = Place::Memory("shared", base);
        }
        self.vars.remove(&var);
        self.parts = parts;
        self.copying = false;
        // The last tile may still be multiplied.
        let tiles: HashSet<u32> = pipeline.loops.tiles.iter().copied().collect();
        self.touched = [tiles.clone(), tiles];
        Ok(())
    }

    /// Loops over threads or warps one after another, with nothing between them.
    fn parallel_parts(&mut self, loops: &[Stmt]) -> Result<(), Fault> {
        self.known.push(HashMap::new());
        for s in loops {
            let Stmt::For { var, extent, kind: kind @ (LoopKind::Thread | LoopKind::Warp), body } = s else {
                return Err(fault!("a loop over tiles with something beside loops over threads"));
            };
            self.read.clear();
            self.side_by_side(*var, *extent, *kind, body)?;
        }
        self.known.pop();
        self.read.clear();
        Ok(())
    }

    /// The tiles are those of a slot.
    fn slot(&mut self, pipeline: &Pipeline, first: &[(u32, Val)], slot: Val) {
        for &(tile, base) in first {
            let at = self.a.fresh(Class::R);
            self.a.line(format_args!("mad.lo.u32 {at}, {slot}, {}, {base}", pipeline.bytes[&tile]));
            self.places[tile as usize] = Place::Memory("shared", at);
        }
    }

    /// The next slot; after the last one the first.
    fn next(&mut self, pipeline: &Pipeline, slot: Val) {
        let last = self.a.fresh(Class::P);
        self.a.line(format_args!("add.u32 {slot}, {slot}, 1"));
        self.a.line(format_args!("setp.eq.u32 {last}, {slot}, {}", pipeline.slots));
        self.a.line(format_args!("selp.b32 {slot}, 0, {slot}, {last}"));
    }
}
