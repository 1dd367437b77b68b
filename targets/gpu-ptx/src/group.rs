//! Matrix instructions of warpgroups (`wgmma`), and the ring of shared tiles that feeds them.
//!
//! A loop over products whose body fills tiles (loops over threads) and multiplies them (a loop over warps) is run by two roles at
//! once. The first threads of a block are the warps, four of them a warpgroup; the threads behind them fill. Each tile has several slots; two mbarriers
//! for each slot say that it is full and that it is free again. Both roles go through all tasks of the block, so the next task's tiles come
//! while a task's result is stored.
//!
//! Tiles lie in rows of 128 bytes whose pieces of 16 bytes are exchanged (the swizzle of 128 bytes in the PTX ISA manual): bits 4 to 6
//! of an address are those of the offset, xor bits 7 to 9.
//!
//! Where neighbouring tasks read the same tiles of a factor, two blocks are a cluster: each asks for a half of such a tile, which is copied into the shared memory of both. A
//! slot is free when the warps of both blocks say so.

use crate::Map;
use crate::asm::{Class, Val};
use crate::emit::{Emit, Key, Place, Var};
use crate::layout;
use crate::pairs::NEXT;
use crate::together::{FIRST, Operand, THREAD, WARP_NUMBER};
use crate::wide::beside;
use infc_ir::expr::{Node, Range};
use infc_ir::scalar::Kind;
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{BoxCopy, LoopKind, Space, Stmt};

/// The most shared memory of a block on Hopper.
const MOST_SHARED: u64 = 227 << 10;
/// The most slots of a tile.
const MOST_SLOTS: u64 = 4;
/// The swizzle's pattern begins at multiples of this.
const PATTERN: u64 = 1024;
/// Bytes of a row of a tile.
const ROW: i64 = 128;
/// Registers of a thread that fills and of one that multiplies, where those that all have at the start are too few for its sums: of 128 and 256 threads, as
/// many as 384 threads with 168 have.
const REGISTERS: [u32; 2] = [88, 208];

/// Blocks of a cluster.
pub(crate) const CLUSTER: i64 = 2;

/// Who a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It fills tiles.
    Fills,
    /// It is of a warp that multiplies them.
    Multiplies,
}

/// A tile that lies in memory as it does in shared memory.
pub(crate) struct Bulk {
    to: u32,
    from: u32,
    from_index: Vec<Scalar>,
    bytes: i64,
    /// Variables of the loops that copy it.
    vars: [u32; 3],
}

/// The ring in a kernel that is being printed.
#[derive(Clone)]
pub(crate) struct Ring {
    /// What the kernel's loops say.
    pub loops: layout::Ring,
    /// Tiles and their offsets in a slot.
    tiles: Vec<(u32, u64)>,
    /// Bytes of a slot.
    slot_bytes: u64,
    slots: u64,
    /// Where tiles begin, and mbarriers: those that say full, then those that say free.
    base: Val,
    barriers: Val,
    /// The slot that comes next, and the parity of its phase.
    slot: Val,
    phase: Val,
    /// Tiles that were asked for, and the slot of the first one that was not told to be full.
    asked: Val,
    late: Val,
    /// The first lane of a warp.
    first: Val,
    /// Where all tiles come by bulk copies: holds if all parameters are aligned for them, so that one thread asks for all and the others end.
    alone: Option<Val>,
    /// Where blocks of a cluster bring halves of a tile to each other: that tile.
    both: Option<Both>,
}

/// A tile that both blocks of a cluster read.
#[derive(Clone, Copy)]
struct Both {
    tile: u32,
    /// The block's number in the cluster, with 64 bits.
    rank: Val,
    /// The mask of both blocks.
    mask: Val,
    /// In the first lanes of a warp, one for each block.
    few: Val,
    /// There, mbarriers of that block.
    barriers: Val,
}

/// Which part of a box a block of a cluster brings.
struct Half {
    axes: Vec<u32>,
    count: i64,
    /// The axis that is cut and how far the second half is from the first one, in elements and in bytes of the tile.
    axis: usize,
    elements: i64,
    bytes: i64,
}

/// Half of the boxes of a copy, or of each box; each begins where a pattern does.
fn half(copy: &BoxCopy, width: i64) -> Option<Half> {
    let mut axes: Vec<u32> = copy.axes.iter().map(|a| a.part as u32).collect();
    let one = copy.axes.iter().map(|a| a.part).product::<i64>() * width;
    if copy.count % CLUSTER == 0 {
        let count = copy.count / CLUSTER;
        return Some(Half { axes, count, axis: 0, elements: count * copy.axes[0].part, bytes: count * one });
    }
    let axis = copy.axes.iter().rposition(|a| a.part > 1).filter(|&a| a > 0 && copy.count == 1)?;
    let (part, bytes) = (copy.axes[axis].part, one / CLUSTER);
    axes[axis] = (part / CLUSTER) as u32;
    (part % CLUSTER == 0 && bytes % PATTERN as i64 == 0).then_some(Half { axes, count: 1, axis, elements: part / CLUSTER, bytes })
}

impl Ring {
    /// How many slots are asked for before the first of them has to be there.
    fn ahead(&self) -> u64 {
        self.slots - 2
    }
}

/// What a copy into the shared memory of both blocks has in its name, and behind its operands.
fn multicast(both: Option<Both>) -> [String; 2] {
    both.map_or_else(Default::default, |b| [".multicast::cluster".to_owned(), format!(", {}", b.mask)])
}

impl Emit<'_> {
    /// All tasks of the block, by both roles. Gives the bytes of shared memory that a launch needs.
    pub(crate) fn roles(&mut self, loops: layout::Ring, [task, tasks, stride]: [Val; 3]) -> Result<u64, Fault> {
        let mut checks = false;
        layout::walk(&self.kernel.body, &mut |s| checks |= matches!(s, Stmt::Check { .. }));
        if checks {
            return Err(fault!("a thread that fills or multiplies tiles cannot end alone, as a check would have it"));
        }
        let (mut tiles, mut slot_bytes) = (vec![], 0u64);
        for (k, b) in self.kernel.buffers.iter().enumerate().filter(|(_, b)| b.space == Space::Shared) {
            let count = b.span().known().ok_or_else(|| fault!("buffer '{}' has no constant size", b.name))?;
            tiles.push((k as u32, slot_bytes));
            slot_bytes += (count as u64 * b.dtype.bytes() as u64).next_multiple_of(PATTERN);
        }
        let slots = ((MOST_SHARED - 2 * PATTERN) / slot_bytes.max(1)).min(MOST_SLOTS);
        if slots < 3 {
            return Err(fault!("tiles of {slot_bytes} bytes, of which shared memory has no place for three"));
        }
        let a = &mut self.a;
        let (base, barriers) = (a.fresh(Class::Q), a.fresh(Class::Q));
        // Nothing says that the launch's shared memory begins at a multiple of the pattern.
        a.line(format_args!("mov.u64 {base}, ring"));
        a.line(format_args!("add.s64 {base}, {base}, {}", PATTERN - 1));
        a.line(format_args!("and.b64 {base}, {base}, {}", -(PATTERN as i64)));
        a.line(format_args!("add.s64 {barriers}, {base}, {}", slots * slot_bytes));
        let [thread, lane, slot, phase, asked, late] = std::array::from_fn(|_| a.fresh(Class::R));
        let [other, fills, first] = std::array::from_fn(|_| a.fresh(Class::P));
        a.line(format_args!("mov.u32 {thread}, %tid.x"));
        a.line(format_args!("and.b32 {lane}, {thread}, 31"));
        a.line(format_args!("setp.eq.u32 {first}, {lane}, 0"));
        for counter in [slot, phase, asked, late] {
            a.line(format_args!("mov.b32 {counter}, 0"));
        }
        let (made, filler, end) = (a.label(), a.label(), a.label());
        let both = self.read_by_both(loops.var).map(|tile| self.begin_cluster(tile, lane, barriers));
        let (bulks, fills_all) = self.bulks(loops.var);
        let mut alone: Option<Val> = None;
        for from in bulks.iter().filter(|_| fills_all) {
            let one = self.aligned.get(from).copied().ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
            alone = Some(match alone {
                None => one,
                Some(all) => self.a.row("and", "pred", &[all, one])?,
            });
        }
        let a = &mut self.a;
        let bulks = bulks.len() as u32;
        let arrivals = (loops.fillers + bulks).to_string();
        let arrivals = match alone {
            None => arrivals,
            Some(alone) => {
                let count = a.fresh(Class::R);
                a.line(format_args!("selp.b32 {count}, {bulks}, {arrivals}, {alone}"));
                count.to_string()
            }
        };
        a.line(format_args!("setp.ne.u32 {other}, {thread}, 0"));
        a.line(format_args!("@{other} bra {made}"));
        for k in 0..slots {
            a.line(format_args!("mbarrier.init.shared.b64 [{barriers}+{}], {arrivals}", 8 * k));
            let warps = loops.warps * if both.is_some() { CLUSTER as u32 } else { 1 };
            a.line(format_args!("mbarrier.init.shared.b64 [{barriers}+{}], {warps}", 8 * (slots + k)));
        }
        a.line(format_args!("fence.proxy.async.shared::cta"));
        if both.is_some() {
            a.line(format_args!("fence.mbarrier_init.release.cluster"));
        }
        a.place(&made);
        if both.is_some() {
            a.line(format_args!("barrier.cluster.arrive.release.aligned"));
            a.line(format_args!("barrier.cluster.wait.acquire.aligned"));
        } else {
            a.line(format_args!("bar.sync 0"));
        }
        let a = &mut self.a;
        a.line(format_args!("setp.ge.u32 {fills}, {thread}, {}", 32 * loops.warps));
        a.line(format_args!("@{fills} bra {filler}"));
        let many = loops.sums > 64 && (loops.fillers, 32 * loops.warps) == (128, 256);
        let ring = Ring { loops, tiles, slot_bytes, slots, base, barriers, slot, phase, asked, late, first, alone, both };
        self.ring = Some(ring.clone());
        for role in [Role::Multiplies, Role::Fills] {
            self.role = Some(role);
            self.known.push(std::collections::HashMap::new());
            if role == Role::Fills {
                self.a.place(&filler);
                // Fillers count from 0.
                let own = self.a.fresh(Class::R);
                self.a.line(format_args!("sub.u32 {own}, {thread}, {}", 32 * ring.loops.warps));
                self.vars.insert(THREAD, Var::Reg(own));
            }
            if many {
                let (way, count) = if role == Role::Fills { ("dec", REGISTERS[0]) } else { ("inc", REGISTERS[1]) };
                self.a.line(format_args!("setmaxnreg.{way}.sync.aligned.u32 {count}"));
            }
            let (head, over) = (self.a.label(), self.a.fresh(Class::P));
            let done = self.a.label();
            if let (Role::Fills, Some(alone)) = (role, alone) {
                let other = self.a.fresh(Class::P);
                self.a.line(format_args!("setp.ne.u32 {other}, {thread}, {}", 32 * ring.loops.warps));
                self.a.line(format_args!("and.pred {other}, {other}, {alone}"));
                self.a.line(format_args!("@{other} bra {end}"));
            }
            self.a.place(&head);
            self.a.line(format_args!("setp.ge.s64 {over}, {task}, {tasks}"));
            self.a.line(format_args!("@{over} bra {done}"));
            let kernel = self.kernel;
            self.narrow_task(task)?;
            self.list(&kernel.body)?;
            self.a.line(format_args!("add.s64 {task}, {task}, {stride}"));
            self.a.line(format_args!("bra {head}"));
            self.a.place(&done);
            if role == Role::Fills {
                self.tell_the_rest(&ring);
                self.outlive(&ring);
            } else {
                self.a.line(format_args!("bra {end}"));
            }
            self.known.pop();
        }
        self.a.place(&end);
        Ok(slots * slot_bytes + 16 * slots + PATTERN)
    }

    /// A tile that comes by bulk copies in the loop over `var` and that neighbouring tasks, the first of them an even one, read alike.
    fn read_by_both(&self, var: u32) -> Option<u32> {
        let kernel = self.kernel;
        let tasks = kernel.tasks.known().filter(|n| n % CLUSTER == 0)?;
        let mut ranges = self.ranges.clone();
        ranges.vars.insert(NEXT, Range::new(0, CLUSTER - 1));
        ranges.vars.insert(kernel.task, Range::new(0, tasks / CLUSTER - 1));
        let alike = |e: Expr| {
            let one = e.map(&|l| match l.node() {
                Node::Var(v) if *v == kernel.task => l * CLUSTER + Expr::var(NEXT as usize),
                _ => l,
            });
            !beside(one.simplify(&ranges), NEXT, CLUSTER).simplify(&ranges).uses_var(NEXT)
        };
        let mut found = None;
        layout::walk(&kernel.body, &mut |s| {
            let Stmt::For { var: v, body, .. } = s else { return };
            for s in body.iter().filter(|_| *v == var) {
                let Stmt::For { var, extent, body, kind: LoopKind::Thread } = s else { continue };
                if let Some(copy) = self.boxed(*var) {
                    let width = kernel.buffers[copy.from as usize].dtype.bytes() as i64;
                    let same = copy.axes.iter().all(|a| alike(a.at)) && half(copy, width).is_some();
                    found = found.or(same.then_some(copy.to));
                } else if let Some(bulk) = self.bulk(*var, *extent, body) {
                    let same = bulk.from_index.iter().all(|i| i.as_index().is_some_and(alike));
                    let whole = bulk.bytes % (CLUSTER * PATTERN as i64) == 0;
                    found = found.or((same && whole).then_some(bulk.to));
                }
            }
        });
        found
    }

    /// What a block of a cluster knows of the other one.
    fn begin_cluster(&mut self, tile: u32, lane: Val, barriers: Val) -> Both {
        self.cluster = true;
        let a = &mut self.a;
        let [number, rank] = [a.fresh(Class::R), a.fresh(Class::Q)];
        a.line(format_args!("mov.u32 {number}, %cluster_ctarank"));
        a.line(format_args!("cvt.u64.u32 {rank}, {number}"));
        let [few, block, far] = [a.fresh(Class::P), a.fresh(Class::R), a.fresh(Class::Q)];
        a.line(format_args!("setp.lt.u32 {few}, {lane}, {CLUSTER}"));
        a.line(format_args!("and.b32 {block}, {lane}, {}", CLUSTER - 1));
        a.line(format_args!("mapa.shared::cluster.u64 {far}, {barriers}, {block}"));
        let mask = a.constant(Class::H, (1 << CLUSTER) - 1);
        Both { tile, rank, mask, few, barriers: far }
    }

    /// A block of a cluster ends when the other one has told its last slots to be free, since that touches this one's shared memory.
    fn outlive(&mut self, ring: &Ring) {
        if ring.both.is_none() {
            return;
        }
        for _ in 0..ring.slots {
            let (free, parity) = (self.barrier_of(ring, ring.slot, true), self.a.fresh(Class::R));
            self.a.line(format_args!("xor.b32 {parity}, {}, 1", ring.phase));
            self.wait_for(free, parity);
            self.next_slot(ring, ring.slot, Some(ring.phase));
        }
    }

    /// What blocks of a cluster bring to each other of a tile.
    fn both(&self, tile: u32) -> Option<Both> {
        self.ring.as_ref().and_then(|r| r.both).filter(|b| b.tile == tile)
    }

    /// Parameters whose tiles come by bulk copies in the loop over `var`, and whether all tiles do.
    fn bulks(&self, var: u32) -> (Vec<u32>, bool) {
        let (mut from, mut all) = (vec![], true);
        layout::walk(&self.kernel.body, &mut |s| {
            if let Stmt::For { var: v, body, .. } = s
                && *v == var
            {
                for s in body {
                    let Stmt::For { var, extent, body, kind: LoopKind::Thread } = s else { continue };
                    match (self.boxed(*var), self.bulk(*var, *extent, body)) {
                        (Some(copy), _) => from.push(copy.from),
                        (None, Some(bulk)) => from.push(bulk.from),
                        (None, None) => all = false,
                    }
                }
            }
        });
        (from, all)
    }

    /// The loop over threads copies boxes of a tensor.
    pub(crate) fn boxed(&self, thread: u32) -> Option<&'_ BoxCopy> {
        self.kernel.boxes.0.get(&thread).filter(|copy| self.aligned.contains_key(&copy.from))
    }

    /// Such a copy by a tensor map, which is a parameter of the kernel: the first of the threads asks for it. Where the tensor is not aligned, the loop as it is.
    pub(crate) fn box_copy(&mut self, copy: &BoxCopy, body: &[Stmt]) -> Result<(), Fault> {
        let dtype = self.kernel.buffers[copy.from as usize].dtype;
        let width = dtype.bytes() as u64;
        let all = copy.axes.iter().map(|a| a.part).product::<i64>() * width as i64 * copy.count;
        let both = self.both(copy.to);
        let whole =
            Half { axes: copy.axes.iter().map(|a| a.part as u32).collect(), count: copy.count, axis: 0, elements: 0, bytes: 0 };
        let part = match both {
            None => whole,
            Some(_) => half(copy, width as i64).ok_or_else(|| fault!("a tile that cannot be cut for two blocks"))?,
        };
        let axes = copy.axes.iter().zip(&part.axes).map(|(a, &part)| (a.size as u64, a.stride as u64 * width, part)).collect();
        let map = self.map(Map { buffer: copy.from, dtype, offset: copy.offset as u64 * width, axes });
        let bytes = part.axes.iter().map(|&p| i64::from(p)).product::<i64>() * width as i64;
        self.by_one((copy.from, copy.to), all, body, &mut |this, mut to, full| {
            let mut at = copy.axes.iter().map(|a| this.low(a.at)).collect::<Result<Vec<_>, Fault>>()?;
            if let Some(both) = both {
                let low = this.a.row("to_32", "u64", &[both.rank])?;
                let step = this.a.r(part.elements as u32);
                let step = this.a.row("mul", "u32", &[low, step])?;
                at[part.axis] = this.a.row("add", "u32", &[at[part.axis], step])?;
                to = this.half_of(both, to, part.bytes)?;
            }
            for k in 0..part.count {
                let mut at = at.clone();
                if k > 0 {
                    let step = this.a.r((k * copy.axes[0].part) as u32);
                    at[0] = this.a.row("add", "u32", &[at[0], step])?;
                }
                let at = at.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
                let [way, mask] = multicast(both);
                this.a.line(format_args!(
                    "cp.async.bulk.tensor.{}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes{way} [{to}+{}], [{map}, {{{at}}}], [{full}]{mask}",
                    copy.axes.len(),
                    k * bytes
                ));
            }
            Ok(())
        })
    }

    /// The address of this block's half.
    fn half_of(&mut self, both: Both, start: Val, bytes: i64) -> Result<Val, Fault> {
        let bytes = self.a.q(bytes);
        let offset = self.a.row("mul", "s64", &[both.rank, bytes])?;
        self.a.row("add", "s64", &[start, offset])
    }

    /// The generic address of a tensor map, in a register.
    fn map(&mut self, map: Map) -> Val {
        let number = match self.maps.iter().position(|m| *m == map) {
            Some(k) => k,
            None => {
                self.maps.push(map);
                self.maps.len() - 1
            }
        };
        let (at, address) = (self.a.fresh(Class::Q), self.a.fresh(Class::Q));
        self.a.line(format_args!("mov.b64 {at}, {}", self.map_name(number)));
        self.a.line(format_args!("cvta.param.u64 {address}, {at}"));
        address
    }

    /// A loop over threads that copies a whole tile which lies in memory as it does in shared memory.
    pub(crate) fn bulk(&self, thread: u32, threads: Expr, body: &[Stmt]) -> Option<Bulk> {
        let [Stmt::For { var: part, extent: parts, kind: LoopKind::Unroll, body }] = body else { return None };
        let [Stmt::For { var: lane, extent: lanes, kind: LoopKind::Vector, body }] = &body[..] else { return None };
        let [Stmt::Store { buffer: to, index, value }] = &body[..] else { return None };
        let Kind::Read { source: from, index: from_index, guard: None } = value.kind() else { return None };
        let (tile, global) = (&self.kernel.buffers[*to as usize], &self.kernel.buffers[*from as usize]);
        let width = tile.dtype.bytes() as i64;
        let [threads, parts, lanes] = [threads.known()?, parts.known()?, lanes.known()?];
        let bytes = threads * parts * 16;
        if (tile.space, global.space) != (Space::Shared, Space::Global)
            || tile.dtype != global.dtype
            || lanes * width != 16
            || tile.span().known()? * width != bytes
            || !self.aligned.contains_key(from)
        {
            return None;
        }
        let vars = [thread, *part, *lane];
        let own = |e: Expr| vars.iter().any(|&v| e.uses_var(v));
        let number = |e: Expr, t: i64, p: i64| {
            e.eval(&|l| match l.node() {
                Node::Var(v) if *v == thread => Some(t),
                Node::Var(v) if v == part => Some(p),
                Node::Var(v) if v == lane => Some(0),
                _ => None,
            })
        };
        // Where the tile begins in memory does not move with the loops; the rest does with nothing else.
        let (mut there, mut here, mut start) = (Expr::int(0), Expr::int(0), Expr::int(0));
        for (i, &stride) in from_index.iter().zip(&global.strides) {
            let e = i.as_index()?;
            if own(e) { there = there + e * stride } else { start = start + e * stride }
        }
        for (i, &stride) in index.iter().zip(&tile.strides) {
            here = here + i.as_index()? * stride;
        }
        let moves = |e: Expr| e.affine_in(*lane).is_some_and(|(step, _)| step == 1);
        if !moves(there) || !moves(here) || start.div_exact(Expr::int(16 / width)).is_none() {
            return None;
        }
        let mut seen = vec![false; (bytes / 16) as usize];
        for t in 0..threads {
            for p in 0..parts {
                let (there, here) = (number(there, t, p)? * width, number(here, t, p)? * width);
                if there != here ^ (here >> 3 & 0x70) || there % 16 != 0 {
                    return None;
                }
                *seen.get_mut(usize::try_from(there / 16).ok()?)? = true;
            }
        }
        let all = seen.iter().all(|&s| s);
        all.then(|| Bulk { to: *to, from: *from, from_index: from_index.clone(), bytes, vars })
    }

    /// Such a copy: the first of the threads asks for it. Where the parameter is not aligned, the loop as it is.
    pub(crate) fn bulk_copy(&mut self, bulk: &Bulk, body: &[Stmt]) -> Result<(), Fault> {
        self.by_one((bulk.from, bulk.to), bulk.bytes, body, &mut |this, to, full| {
            let outer = bulk.vars.map(|v| this.vars.insert(v, Var::Const(0)));
            let from = this.address(bulk.from as usize, &bulk.from_index);
            for (v, before) in bulk.vars.into_iter().zip(outer) {
                match before {
                    Some(b) => this.vars.insert(v, b),
                    None => this.vars.remove(&v),
                };
            }
            let (mut to, mut from, mut bytes) = (to, from?.1, bulk.bytes);
            let both = this.both(bulk.to);
            if let Some(both) = both {
                bytes /= CLUSTER;
                let start = this.a.fresh(Class::Q);
                // The address as it is written in brackets, with its offset.
                let text = from.trim_matches(['[', ']']);
                let (base, offset) = text.split_once('+').unwrap_or((text, "0"));
                this.a.line(format_args!("add.s64 {start}, {base}, {offset}"));
                from = format!("[{}]", this.half_of(both, start, bytes)?);
                to = this.half_of(both, to, bytes)?;
            }
            let [way, mask] = multicast(both);
            this.a.line(format_args!(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes{way} [{to}], {from}, {bytes}, [{full}]{mask}"
            ));
            Ok(())
        })
    }

    /// Asks for copies of so many bytes by the first of the threads, which the slot's mbarrier counts; `body` by all of them where the parameter is not
    /// aligned to 16 bytes.
    fn by_one(
        &mut self,
        (from, to): (u32, u32),
        bytes: i64,
        body: &[Stmt],
        ask: &mut dyn FnMut(&mut Self, Val, Val) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let full = self.full.ok_or_else(|| fault!("a copy of a tile outside of the loop over tiles"))?;
        let aligned = self.aligned.get(&from).copied();
        let aligned = aligned.ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
        let Place::Memory(_, to) = self.places[to as usize] else { return Err(fault!("a tile without a slot")) };
        let thread = self.low(Expr::var(THREAD as usize))?;
        let (other, slow, end) = (self.a.fresh(Class::P), self.a.label(), self.a.label());
        self.a.line(format_args!("setp.ne.u32 {other}, {thread}, 0"));
        self.a.line(format_args!("@!{aligned} bra {slow}"));
        self.a.line(format_args!("@{other} bra {end}"));
        self.known.push(std::collections::HashMap::new());
        self.a.line(format_args!("mbarrier.arrive.expect_tx.shared.b64 _, [{full}], {bytes}"));
        let asked = ask(self, to, full);
        self.known.pop();
        asked?;
        self.a.line(format_args!("bra {end}"));
        self.a.place(&slow);
        self.by_elements = true;
        let done = self.list(body);
        self.by_elements = false;
        done?;
        self.a.line(format_args!("@!{other} mbarrier.arrive.shared.b64 _, [{full}]"));
        self.a.place(&end);
        Ok(())
    }

    /// The address of an mbarrier of a slot.
    fn barrier_of(&mut self, ring: &Ring, slot: Val, free: bool) -> Val {
        let at = self.a.fresh(Class::Q);
        self.a.line(format_args!("mul.wide.u32 {at}, {slot}, 8"));
        self.a.line(format_args!("add.s64 {at}, {at}, {}", ring.barriers));
        if free {
            self.a.line(format_args!("add.s64 {at}, {at}, {}", 8 * ring.slots));
        }
        at
    }

    fn wait_for(&mut self, barrier: Val, parity: Val) {
        let (again, over) = (self.a.label(), self.a.fresh(Class::P));
        self.a.place(&again);
        self.a.line(format_args!("mbarrier.try_wait.parity.shared.b64 {over}, [{barrier}], {parity}"));
        self.a.line(format_args!("@!{over} bra {again}"));
    }

    /// The next slot; after the last one the first, in the next phase.
    fn next_slot(&mut self, ring: &Ring, slot: Val, phase: Option<Val>) {
        let last = self.a.fresh(Class::P);
        self.a.line(format_args!("add.u32 {slot}, {slot}, 1"));
        self.a.line(format_args!("setp.eq.u32 {last}, {slot}, {}", ring.slots));
        self.a.line(format_args!("selp.b32 {slot}, 0, {slot}, {last}"));
        if let Some(phase) = phase {
            self.a.line(format_args!("@{last} xor.b32 {phase}, {phase}, 1"));
        }
    }

    /// The loop over products, as this thread's role takes part in it.
    pub(crate) fn ring_loop(&mut self, var: u32, extent: Expr, body: &[Stmt]) -> Result<(), Fault> {
        let ring = self.ring.clone().ok_or_else(|| fault!("a loop over tiles without slots for them"))?;
        let role = self.role.ok_or_else(|| fault!("a loop over tiles without a role"))?;
        let (ty, end_value, zero) = self.extent(extent)?;
        let counter = self.a.copied(zero);
        let before = self.a.copied(ring.barriers);
        let (head, end, over) = (self.a.label(), self.a.label(), self.a.fresh(Class::P));
        self.a.place(&head);
        self.a.line(format_args!("setp.ge.{ty} {over}, {counter}, {end_value}"));
        self.a.line(format_args!("@{over} bra {end}"));
        self.known.push(std::collections::HashMap::new());
        self.ranges.extent(var, extent);
        self.vars.insert(var, Var::Reg(counter));
        let (full, free) = (self.barrier_of(&ring, ring.slot, false), self.barrier_of(&ring, ring.slot, true));
        match role {
            Role::Multiplies => self.wait_for(full, ring.phase),
            Role::Fills => {
                // The phase before the first one counts as over.
                let parity = self.a.fresh(Class::R);
                self.a.line(format_args!("xor.b32 {parity}, {}, 1", ring.phase));
                self.wait_for(free, parity);
            }
        }
        let slot = self.a.fresh(Class::Q);
        self.a.line(format_args!("mul.wide.u32 {slot}, {}, {}", ring.slot, ring.slot_bytes));
        self.a.line(format_args!("add.s64 {slot}, {slot}, {}", ring.base));
        for &(tile, offset) in &ring.tiles {
            let at = self.a.fresh(Class::Q);
            self.a.line(format_args!("add.s64 {at}, {slot}, {offset}"));
            self.places[tile as usize] = Place::Memory("shared", at);
        }
        self.copying = false;
        self.full = Some(full);
        self.list(body)?;
        self.full = None;
        match role {
            Role::Multiplies => {
                self.a.line(format_args!("wgmma.wait_group.sync.aligned 1"));
                self.free(&ring, (ty, counter), before);
                match ring.both {
                    None => self.a.copy(before, free),
                    Some(both) => {
                        self.a.line(format_args!("mul.wide.u32 {before}, {}, 8", ring.slot));
                        self.a.line(format_args!("add.s64 {before}, {before}, {}", both.barriers));
                        self.a.line(format_args!("add.s64 {before}, {before}, {}", 8 * ring.slots));
                    }
                }
            }
            Role::Fills => self.tell(&ring, full),
        }
        self.next_slot(&ring, ring.slot, Some(ring.phase));
        self.known.pop();
        self.vars.remove(&var);
        self.a.line(format_args!("add.{ty} {counter}, {counter}, 1"));
        self.a.line(format_args!("bra {head}"));
        self.a.place(&end);
        if role == Role::Multiplies {
            self.a.line(format_args!("wgmma.wait_group.sync.aligned 0"));
            self.free(&ring, (ty, counter), before);
        }
        ring.tiles.iter().for_each(|t| self.places[t.0 as usize] = Place::None);
        Ok(())
    }

    /// The tile before is not read any more, if there was one.
    fn free(&mut self, ring: &Ring, (ty, counter): (&str, Val), before: Val) {
        let some = self.a.fresh(Class::P);
        self.a.line(format_args!("setp.gt.{ty} {some}, {counter}, 0"));
        match ring.both {
            None => {
                self.a.line(format_args!("and.pred {some}, {some}, {}", ring.first));
                self.a.line(format_args!("@{some} mbarrier.arrive.shared.b64 _, [{before}]"));
            }
            Some(both) => {
                // A lane for each block.
                self.a.line(format_args!("and.pred {some}, {some}, {}", both.few));
                self.a.line(format_args!("@{some} mbarrier.arrive.shared::cluster.b64 _, [{before}]"));
            }
        }
    }

    /// What this thread wrote is there: now, or where copies are under way, that of some tiles before.
    fn tell(&mut self, ring: &Ring, full: Val) {
        if !std::mem::take(&mut self.copying) {
            let when = ring.alone.map_or(String::new(), |alone| format!("@!{alone} "));
            self.a.line(format_args!("{when}fence.proxy.async.shared::cta"));
            self.a.line(format_args!("{when}mbarrier.arrive.shared.b64 _, [{full}]"));
            return;
        }
        self.late = true;
        self.a.line(format_args!("cp.async.commit_group"));
        let (few, later) = (self.a.fresh(Class::P), self.a.label());
        self.a.line(format_args!("setp.lt.u32 {few}, {}, {}", ring.asked, ring.ahead()));
        self.a.line(format_args!("add.u32 {0}, {0}, 1", ring.asked));
        self.a.line(format_args!("@{few} bra {later}"));
        self.a.line(format_args!("cp.async.wait_group {}", ring.ahead()));
        self.a.line(format_args!("fence.proxy.async.shared::cta"));
        let full = self.barrier_of(ring, ring.late, false);
        self.a.line(format_args!("mbarrier.arrive.shared.b64 _, [{full}]"));
        self.next_slot(ring, ring.late, None);
        self.a.place(&later);
    }

    /// The tiles that were not told of, after the last task.
    fn tell_the_rest(&mut self, ring: &Ring) {
        if !std::mem::take(&mut self.late) {
            return;
        }
        self.a.line(format_args!("cp.async.wait_all"));
        self.a.line(format_args!("fence.proxy.async.shared::cta"));
        for k in 0..ring.ahead() {
            let some = self.a.fresh(Class::P);
            self.a.line(format_args!("setp.gt.u32 {some}, {}, {k}", ring.asked));
            let full = self.barrier_of(ring, ring.late, false);
            self.a.line(format_args!("@{some} mbarrier.arrive.shared.b64 _, [{full}]"));
            self.next_slot(ring, ring.late, None);
        }
    }

    /// Is it a tile of the ring?
    pub(crate) fn is_swizzled(&self, buffer: usize) -> bool {
        self.ring.is_some() && self.kernel.buffers[buffer].space == Space::Shared
    }

    /// The address in a tile of so many bytes from its start.
    pub(crate) fn swizzled(&mut self, base: Val, offset: Expr) -> Result<String, Fault> {
        let (_, constant) = offset.linear();
        let constant = constant & !(PATTERN as i64 - 1);
        let rest = offset - constant;
        let key = Key::Swizzled(rest);
        let moved = match self.recall(key) {
            Some(v) => v,
            None => {
                let at = self.expr(rest)?;
                let (turn, moved) = (self.a.fresh(Class::Q), self.a.fresh(Class::Q));
                self.a.line(format_args!("shr.u64 {turn}, {at}, 3"));
                self.a.line(format_args!("and.b64 {turn}, {turn}, 112"));
                self.a.line(format_args!("xor.b64 {moved}, {at}, {turn}"));
                self.remember(key, moved);
                moved
            }
        };
        let address = self.a.row("add", "s64", &[base, moved])?;
        Ok(if constant == 0 { format!("[{address}]") } else { format!("[{address}+{constant}]") })
    }

    /// One matrix instruction of a warpgroup: a lane's sums are those that it has in the warp's 16 rows.
    pub(crate) fn multiply_group(
        &mut self,
        (i, j, k): (u32, u32, u32),
        [columns, depth]: [Expr; 2],
        [a, b]: [Operand; 2],
        sum: (usize, &[Scalar]),
    ) -> Result<(), Fault> {
        let buffers = &self.kernel.buffers;
        let (da, db) = (buffers[a.buffer as usize].dtype, buffers[b.buffer as usize].dtype);
        let across = buffers[b.buffer as usize].dims.len() == 3;
        if a.rounds || b.rounds {
            return Err(fault!("a matrix instruction of warpgroups whose factors are rounded where they are read"));
        }
        let types = match (da, db) {
            (DType::F16, DType::F16) => "f32.f16.f16",
            (DType::BF16, DType::BF16) => "f32.bf16.bf16",
            (DType::F32, DType::F32) => "f32.tf32.tf32",
            (DType::I8, DType::I8) => "s32.s8.s8",
            (DType::U8, DType::U8) => "s32.u8.u8",
            (DType::I8, DType::U8) => "s32.s8.u8",
            (DType::U8, DType::I8) => "s32.u8.s8",
            _ => return Err(fault!("there is no matrix instruction of warpgroups for {da} and {db}")),
        };
        self.mixed |= da.is_int() && da != db;
        let products = 32 / da.bytes() as i64;
        let columns = columns.known().filter(|n| n % 16 == 0 && (16..=256).contains(n));
        let (Some(columns), true) = (columns, depth.is(products)) else {
            return Err(fault!("there is no matrix instruction of warpgroups for {da} with {depth} products"));
        };
        if across && da.bytes() != 2 {
            return Err(fault!("a matrix instruction of warpgroups with columns of {db} side by side"));
        }
        // Factors as they are; columns side by side or not.
        let tail = match da.bytes() {
            1 => String::new(),
            2 => format!(", 1, 1, 0, {}", u8::from(across)),
            _ => ", 1, 1".into(),
        };
        let (x, y) = (self.descriptor(a, (i, k), true)?, self.descriptor(b, (j, k), false)?);
        let d: Vec<String> = self.tile(sum.0, sum.1, (i, j))?.iter().map(Val::to_string).collect();
        let d = d.join(", ");
        self.a.line(format_args!("wgmma.mma_async.sync.aligned.m64n{columns}k{products}.{types} {{{d}}}, {x}, {y}, 1{tail}"));
        Ok(())
    }

    /// The descriptor of a factor in a tile: `line` is its row (or column) variable, `k` that of products.
    fn descriptor(&mut self, Operand { buffer, index, .. }: Operand, (line, k): (u32, u32), rows: bool) -> Result<Val, Fault> {
        let b = &self.kernel.buffers[buffer as usize];
        let wrong = || fault!("a factor of a matrix instruction lies in another order: buffer '{}'", b.name);
        let per = ROW / b.dtype.bytes() as i64;
        let offset = self.offset(buffer as usize, index).ok_or_else(wrong)?;
        let (l, p) = (Expr::var(line as usize), Expr::var(k as usize));
        // Rows of products, or blocks of columns side by side with a row for each product.
        let (pattern, leading) = match b.dims[..] {
            [_, _] => (l * per + p, 1),
            [_, bk, _] => {
                let bk = bk.known().ok_or_else(wrong)?;
                (l.div(Expr::int(per)) * (bk * per) + p * per + l.rem(Expr::int(per)), bk * ROW / 16)
            }
            _ => return Err(wrong()),
        };
        let mut start = (offset - pattern).simplify(&self.ranges);
        if start.uses_var(line) || start.uses_var(k) {
            return Err(wrong());
        }
        if rows {
            // A warp has 16 rows; the instruction takes those of four warps from the first one's on.
            match start.affine_in(WARP_NUMBER) {
                Some((step, rest)) if step == 16 * per => start = rest + Expr::var(FIRST as usize) * step,
                _ => return Err(wrong()),
            }
        } else if start.uses_var(WARP_NUMBER) {
            return Err(wrong());
        }
        let bytes = start * b.dtype.bytes() as i64;
        let (_, constant) = bytes.linear();
        let rest = bytes - constant;
        let key = (buffer, rest, rows);
        let first = match self.parts.get(&key) {
            Some(v) => v[0],
            None => {
                let Place::Memory(_, base) = self.places[buffer as usize] else { return Err(wrong()) };
                let mut at = base;
                if !rest.is(0) {
                    let v = self.expr(rest)?;
                    at = self.a.row("add", "s64", &[base, v])?;
                }
                // Swizzle of 128 bytes, 8 rows or products of 128 bytes each.
                let bits = 1u64 << 62 | (PATTERN / 16) << 32 | (leading as u64) << 16;
                let d = self.a.fresh(Class::Q);
                self.a.line(format_args!("shr.u64 {d}, {at}, 4"));
                self.a.line(format_args!("or.b64 {d}, {d}, {bits:#x}"));
                self.parts.insert(key, vec![d]);
                d
            }
        };
        let d = self.a.fresh(Class::Q);
        self.a.line(format_args!("add.s64 {d}, {first}, {}", constant / 16));
        Ok(d)
    }
}
