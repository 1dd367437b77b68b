//! Loops over products whose tiles several threads fill and then multiply together: tiles that come later are under way while one is multiplied.
//!
//! The loops say: for each tile along the products, threads fill a tile of each factor, and warps (or threads) multiply them. Each tile has
//! several slots here. In a round the threads wait for the oldest copies and for each other, ask for the tile that is to come after those that are under way, and
//! multiply the oldest one. One barrier in a round is enough: behind it the copies of all threads are there, and nobody multiplies the slot any
//! more that is filled next.

use crate::asm::{Class, Val};
use crate::emit::{Emit, Place, Var};
use crate::layout;
use crate::together::{THREAD, WideCopy};
use infc_ir::{Expr, Fault, Scalar, fault};
use infc_kernel::loops::{LoopKind, Stmt};
use infc_kernel::plan::SLOTS;
use std::collections::{HashMap, HashSet};

/// The most copies of a thread in a round whose addresses are kept in registers.
const MOST_COPIES: i64 = 8;
/// Sums of a thread beside which only copies without a test keep their addresses.
const MANY_SUMS: i64 = 64;
/// The most bytes that an address is in front of what it is written with.
const MOST_OFFSET: i64 = 1 << 20;
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
    /// That of a kernel, if it has one, with as many slots as fit so many bytes of shared memory.
    pub(crate) fn of(kernel: &infc_kernel::loops::Kernel, most: u64) -> Option<Pipeline> {
        let loops = layout::pipeline(kernel)?;
        let span = |k: u32| Some(kernel.buffers[k as usize].span().known()?.max(1) as u64);
        let bytes = |k: &u32| {
            let count = span(*k)?;
            Some((*k, (count * kernel.buffers[*k as usize].dtype.bytes() as u64).next_multiple_of(ALIGN)))
        };
        let bytes: HashMap<u32, u64> = loops.tiles.iter().map(bytes).collect::<Option<_>>()?;
        let slots = (most / bytes.values().sum::<u64>().max(1)).min(SLOTS as u64);
        (slots >= 2).then_some(Pipeline { loops, slots, bytes })
    }
}

/// A loop over threads: variable, extent, body.
type Together<'s> = (u32, Expr, &'s [Stmt]);

/// The variable of rounds where there are none.
const NO_ROUND: u32 = u32::MAX - 12;

fn thread_loop(s: &Stmt) -> Option<Together<'_>> {
    match s {
        Stmt::For { var, extent, kind: LoopKind::Thread, body } => Some((*var, *extent, body)),
        _ => None,
    }
}

/// A copy of 16 bytes in each round: where it comes from and where it goes in a slot, as far as that is the same in all rounds.
struct Lane {
    /// The tile, and the address from the start of its slot.
    to: u32,
    at: Option<Val>,
    at_constant: i64,
    /// The address in memory, and elements to go on from there in a round, with their bytes.
    from: Val,
    from_constant: i64,
    moving: Expr,
    width: i64,
    /// Bytes that are read: 16, or 0 where nothing is; where that does not depend on the round.
    bytes: Option<Val>,
    inside: Option<Scalar>,
}

impl Emit<'_> {
    /// The loop over products.
    pub(crate) fn pipelined(&mut self, pipeline: &Pipeline, extent: Expr, body: &[Stmt]) -> Result<(), Fault> {
        let Some((multiply, fill)) = body.split_last() else { return Err(fault!("a loop over tiles without a body")) };
        self.barrier();
        let parts = std::mem::take(&mut self.parts);
        let of = |this: &Self, &t: &u32| match this.places[t as usize] {
            Place::Memory(_, base) => Ok((t, base)),
            _ => Err(fault!("a tile without memory")),
        };
        let tiles: Vec<(u32, Val)> = pipeline.loops.tiles.iter().map(|t| of(self, t)).collect::<Result<_, _>>()?;
        self.ranges.extent(pipeline.loops.var, extent);
        self.known.push(HashMap::new());
        // What some tiles are made of is read before a tile is multiplied, and put into its slot behind that.
        let (whole, halves): (Vec<&Stmt>, Vec<&Stmt>) = fill.iter().partition(|s| self.in_halves(s).is_none());
        let halves: Vec<[Stmt; 2]> = halves.into_iter().filter_map(|s| self.in_halves(s)).collect();
        let (first, then): (Vec<Stmt>, Vec<Stmt>) = halves.into_iter().map(|[first, then]| (first, then)).unzip();
        self.widens |= !then.is_empty();
        let early: Vec<Stmt> = whole.iter().map(|&s| s.clone()).chain(first.iter().cloned()).collect();
        let loops: Option<Vec<Together>> = whole.into_iter().map(thread_loop).collect();
        let lanes = loops.map_or(Ok(None), |loops| self.lanes_of(pipeline.loops.var, &loops))?;
        let end = self.a.label();
        match lanes {
            Some((lanes, aligned)) => {
                let slow = self.a.label();
                self.a.line(format_args!("@!{aligned} bra {slow}"));
                let mut ask = |this: &mut Self| {
                    this.ask(&lanes)?;
                    this.parallel_parts(&first)
                };
                self.rounds(pipeline, extent, &tiles, (&mut ask, &then), multiply)?;
                self.a.line(format_args!("bra {end}"));
                self.a.place(&slow);
                self.by_elements = true;
                let done = self.rounds(pipeline, extent, &tiles, (&mut |this| this.parallel_parts(&early), &then), multiply);
                self.by_elements = false;
                done?;
            }
            None => self.rounds(pipeline, extent, &tiles, (&mut |this| this.parallel_parts(&early), &then), multiply)?,
        }
        self.known.pop();
        self.a.place(&end);
        for (tile, base) in tiles {
            self.places[tile as usize] = Place::Memory("shared", base);
        }
        self.parts = parts;
        self.copying = false;
        // The last tile may still be multiplied.
        let tiles: HashSet<u32> = pipeline.loops.tiles.iter().copied().collect();
        self.touched = [tiles.clone(), tiles];
        Ok(())
    }

    /// A loop over threads that reads into registers and then, by what it has there, fills a tile: as two.
    fn in_halves(&self, s: &Stmt) -> Option<[Stmt; 2]> {
        let Stmt::For { var, extent, kind: kind @ LoopKind::Thread, body } = s else { return None };
        let [first, then] = &body[..] else { return None };
        let half = |s: &Stmt| Stmt::For { var: *var, extent: *extent, kind: *kind, body: vec![s.clone()] };
        let [_, written] = layout::shared(self.kernel, std::slice::from_ref(first));
        let in_registers = |b: u32| matches!(self.places[b as usize], Place::Registers(_));
        let reads = layout::sources(std::slice::from_ref(then));
        (written.is_empty() && reads.iter().all(|&b| in_registers(b))).then(|| [half(first), half(then)])
    }

    /// All rounds: `fill` asks for a tile, what is said behind it puts into its slot what came for that, `multiply` is the loop that uses one.
    fn rounds(
        &mut self,
        pipeline: &Pipeline,
        extent: Expr,
        first: &[(u32, Val)],
        (fill, then): (&mut dyn FnMut(&mut Self) -> Result<(), Fault>, &[Stmt]),
        multiply: &Stmt,
    ) -> Result<(), Fault> {
        let (var, ahead) = (pipeline.loops.var, pipeline.slots - 1);
        self.known.push(HashMap::new());
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
        self.known.push(HashMap::new());
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
        self.known.push(HashMap::new());
        self.slot(pipeline, first, filled);
        fill(self)?;
        self.known.pop();
        let slots: Vec<Place> = first.iter().map(|&(tile, _)| self.places[tile as usize].clone()).collect();
        self.a.place(&filled_all);
        self.a.line(format_args!("cp.async.commit_group"));
        self.next(pipeline, filled);
        self.a.line(format_args!("add.{ty} {asked}, {asked}, 1"));
        let multiplied = self.a.label();
        self.a.line(format_args!("@{early} bra {multiplied}"));
        self.vars.insert(var, Var::Reg(now));
        self.slot(pipeline, first, used);
        self.parallel_parts(std::slice::from_ref(multiply))?;
        self.next(pipeline, used);
        self.a.place(&multiplied);
        if !then.is_empty() {
            let put = self.a.label();
            self.a.line(format_args!("@{none} bra {put}"));
            self.vars.remove(&var);
            first.iter().zip(slots).for_each(|(&(tile, _), slot)| self.places[tile as usize] = slot);
            self.parallel_parts(then)?;
            self.a.place(&put);
        }
        self.known.pop();
        self.a.line(format_args!("add.{ty} {now}, {now}, 1"));
        let again = self.a.fresh(Class::P);
        self.a.line(format_args!("setp.lt.{ty} {again}, {now}, {end_value}"));
        self.a.line(format_args!("@{again} bra {head}"));
        self.a.place(&end);
        self.known.pop();
        self.vars.remove(&var);
        Ok(())
    }

    /// The copies of a round and the predicate under which parameters are aligned for them, if it has nothing else: what is the same in all rounds is computed
    /// here, before the loop. A thread has few instructions beside those of a tile to hide its arithmetic behind.
    fn lanes_of(&mut self, var: u32, fill: &[Together]) -> Result<Option<(Vec<Lane>, Val)>, Fault> {
        let mut copies: Vec<(WideCopy, Expr, Expr)> = vec![];
        for (thread, threads, body) in fill {
            let [Stmt::For { var: part, extent: count, kind: LoopKind::Unroll, body }] = &body[..] else { return Ok(None) };
            let [Stmt::For { var: lane, extent: lanes, kind: LoopKind::Vector, body }] = &body[..] else { return Ok(None) };
            let Some(count) = count.known().filter(|&n| n <= MOST_COPIES) else { return Ok(None) };
            self.ranges.extent(*thread, *threads);
            self.ranges.extent(THREAD, *threads);
            self.vars.insert(*thread, Var::Expr(Expr::var(THREAD as usize)));
            for k in 0..count {
                self.vars.insert(*part, Var::Const(k));
                let found = self.wide_copy(*lane, *lanes, body).and_then(|mut copy| {
                    self.vars.insert(*lane, Var::Const(0));
                    let to = self.offset(copy.to as usize, &copy.to_index)?;
                    let from = self.offset(copy.from as usize, &copy.from_index)?;
                    copy.inside = copy.inside.map(|c| self.settled(c));
                    Some((copy, to, from))
                });
                self.vars.remove(lane);
                match found.filter(|(_, to, _)| !to.uses_var(var)) {
                    Some(copy) => copies.push(copy),
                    None => {
                        self.vars.remove(part);
                        self.vars.remove(thread);
                        return Ok(None);
                    }
                }
            }
            self.vars.remove(part);
            self.vars.remove(thread);
        }
        // With many sums there are no registers for addresses and tests of each copy.
        let sums = self.kernel.buffers.iter().zip(&self.layouts).filter(|(_, l)| **l == layout::Layout::Fragment);
        let many = sums.filter_map(|(b, l)| l.own_elements(b)).any(|n| n >= MANY_SUMS);
        if many && copies.iter().any(|(copy, ..)| copy.inside.is_some()) {
            return Ok(None);
        }
        let (mut out, mut aligned) = (vec![], None::<Val>);
        for (copy, to, from) in copies {
            let one = self.aligned.get(&copy.from).copied();
            let one = one.ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
            aligned = Some(match aligned {
                None => one,
                Some(all) if all == one => all,
                Some(all) => self.a.row("and", "pred", &[all, one])?,
            });
            let buffers = &self.kernel.buffers;
            let [width, own] = [copy.from, copy.to].map(|b| buffers[b as usize].dtype.bytes() as i64);
            let Place::Memory(_, base) = self.places[copy.from as usize] else {
                return Err(fault!("a parameter without an address"));
            };
            // Terms that a round moves, and those that it does not.
            let (terms, constant) = from.linear();
            let sum_of = |moves: bool| {
                let some = terms.iter().filter(|(t, _)| t.uses_var(var) == moves);
                some.fold(Expr::int(0), |sum, &(t, by)| sum + t * by)
            };
            let near = (constant * width).abs() < MOST_OFFSET;
            let (moving, fixed) = (sum_of(true), sum_of(false) + if near { 0 } else { constant });
            let (fixed, constant) = (fixed * width, if near { constant } else { 0 });
            let from = match fixed.is(0) {
                true => base,
                false => {
                    let offset = self.expr(fixed)?;
                    self.a.row("add", "s64", &[base, offset])?
                }
            };
            let to_constant = (to * own).linear().1;
            let to = to * own - to_constant;
            let at = if to.is(0) { None } else { Some(self.low(to)?) };
            let moves = |c: Scalar| {
                let mut moves = false;
                c.visit(&mut |n| moves |= n.as_index().is_some_and(|e| self.resolve(e).uses_var(var)));
                moves
            };
            let inside = copy.inside.filter(|c| moves(*c));
            let bytes = match copy.inside {
                Some(c) if inside.is_none() => {
                    let (c, bytes) = (self.scalar(c)?, self.a.fresh(Class::R));
                    self.a.line(format_args!("selp.b32 {bytes}, 16, 0, {c}"));
                    Some(bytes)
                }
                _ => None,
            };
            let (to, from_constant) = (copy.to, constant * width);
            out.push(Lane { to, at, at_constant: to_constant, from, from_constant, moving, width, bytes, inside });
        }
        Ok(aligned.map(|aligned| (out, aligned)))
    }

    /// A loop over threads that does nothing but copy 16 bytes at a time, several for each thread: one question about the parameter's alignment is enough for all. Says
    /// whether it is one.
    pub(crate) fn copies(&mut self, thread: u32, threads: Expr, body: &[Stmt]) -> Result<bool, Fault> {
        self.known.push(HashMap::new());
        let lanes = self.lanes_of(NO_ROUND, &[(thread, threads, body)]);
        let done = lanes.and_then(|lanes| {
            let Some((lanes, aligned)) = lanes else { return Ok(false) };
            let (slow, end) = (self.a.label(), self.a.label());
            self.a.line(format_args!("@!{aligned} bra {slow}"));
            self.ask(&lanes)?;
            self.a.line(format_args!("bra {end}"));
            self.a.place(&slow);
            self.vars.insert(thread, Var::Expr(Expr::var(THREAD as usize)));
            (self.by_elements, self.side_by_side) = (true, true);
            let done = self.list(body);
            (self.by_elements, self.side_by_side) = (false, false);
            self.vars.remove(&thread);
            self.a.place(&end);
            self.copying = true;
            done.map(|()| true)
        });
        self.known.pop();
        done
    }

    /// A condition with the variables that have a value or another name now in their places.
    fn settled(&self, cond: Scalar) -> Scalar {
        cond.rewrite(&mut |n| match n.as_index() {
            Some(e) => Scalar::index(self.resolve(e)),
            None => n,
        })
    }

    /// The copies of a round.
    fn ask(&mut self, lanes: &[Lane]) -> Result<(), Fault> {
        for lane in lanes {
            let Place::Memory(_, slot) = self.places[lane.to as usize] else { return Err(fault!("a tile without a slot")) };
            let to = match lane.at {
                Some(at) => self.a.row("add", "u32", &[slot, at])?,
                None => slot,
            };
            let from = match lane.moving.is(0) {
                true => lane.from,
                false => {
                    let offset = self.expr(lane.moving * lane.width)?;
                    self.a.row("add", "s64", &[lane.from, offset])?
                }
            };
            let bytes = match (lane.bytes, lane.inside) {
                (Some(bytes), _) => Some(bytes),
                (None, Some(inside)) => {
                    let (inside, bytes) = (self.scalar(inside)?, self.a.fresh(Class::R));
                    self.a.line(format_args!("selp.b32 {bytes}, 16, 0, {inside}"));
                    Some(bytes)
                }
                (None, None) => None,
            };
            let bytes = bytes.map_or(String::new(), |b| format!(", {b}"));
            let (at, from_at) = (lane.at_constant, lane.from_constant);
            self.a.line(format_args!("cp.async.cg.shared.global [{to}+{at}], [{from}+{from_at}], 16{bytes}"));
        }
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
