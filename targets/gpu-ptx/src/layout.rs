//! Who takes a task - a thread, a warp, a block - and how the elements of a kernel's own buffers are shared out between threads.

use infc_ir::scalar::Kind;
use infc_ir::{Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Buffer, Kernel, LoopKind, Space, Stmt, WARP};
use std::collections::{HashMap, HashSet};

/// Who takes a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A thread.
    Threads,
    /// A warp, whose lanes are those of vector loops of 32 lanes.
    Warps,
    /// A block of so many threads.
    Block(u32),
}

/// Which elements of a buffer in registers a thread has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// All.
    Whole,
    /// Those of its place along the first axis.
    Thread,
    /// Of the place of its warp along the first axis: its part of each tile of the last two axes.
    Fragment,
    /// Those of its lane, which is the last axis.
    Lane,
}

impl Layout {
    /// The axes that are not shared out.
    pub fn kept(self, rank: usize) -> std::ops::Range<usize> {
        match self {
            Layout::Whole => 0..rank,
            Layout::Thread => 1..rank,
            Layout::Fragment => 1..rank - 2,
            Layout::Lane => 0..rank - 1,
        }
    }
    /// Distance of neighbours along the last kept axis.
    pub fn shared_out(self, b: &Buffer) -> i64 {
        let tail = match self {
            Layout::Whole | Layout::Thread => 0,
            Layout::Fragment => 2,
            Layout::Lane => 1,
        };
        b.dims[b.dims.len() - tail..].iter().map(|d| d.known().unwrap_or(1).max(1)).product()
    }
    /// Elements that a thread has.
    pub fn own_elements(self, b: &Buffer) -> Option<i64> {
        let all: Vec<i64> = b.dims.iter().map(|d| d.known()).collect::<Option<_>>()?;
        Some(match self {
            Layout::Whole => b.span().known()?.max(1),
            Layout::Fragment => all[self.kept(all.len())].iter().product::<i64>() * fragment(b)?,
            _ => self.kept(all.len()).map(|a| all[a]).product(),
        })
    }
}

/// Elements that a lane has in a tile of the last two axes.
pub(crate) fn fragment(b: &Buffer) -> Option<i64> {
    let tile = &b.dims[b.dims.len().checked_sub(2)?..];
    Some(tile[0].known()? * tile[1].known()? / WARP)
}

/// A loop over products whose tiles are multiplied by warpgroups, and filled by other threads at the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    /// Its variable.
    pub var: u32,
    /// Threads that fill.
    pub fillers: u32,
    /// Warps that multiply.
    pub warps: u32,
    /// Sums that a thread of them has.
    pub sums: i64,
}

/// Columns of a loop over products by matrix instructions of warpgroups.
fn group_columns(body: &[Stmt]) -> Option<i64> {
    let mut columns = None;
    walk(body, &mut |s| {
        if let Stmt::For { kind: LoopKind::Matrix, body, .. } = s
            && let [Stmt::For { extent, body, .. }] = &body[..]
            && let [Stmt::For { .. }] = &body[..]
        {
            columns = extent.known().filter(|&n| n > 8);
        }
    });
    columns
}

/// Has it matrix instructions of warpgroups?
pub(crate) fn multiplies(body: &[Stmt]) -> bool {
    group_columns(body).is_some()
}

/// The kernel's loop over tiles of warpgroups.
pub(crate) fn ring(kernel: &Kernel) -> Option<Ring> {
    let mut found = None;
    walk(&kernel.body, &mut |s| {
        if let Stmt::For { var, kind: LoopKind::Serial, body, .. } = s
            && let Some(Stmt::For { kind: LoopKind::Warp, extent: warps, body: inner, .. }) = body.last()
            && let Some(Stmt::For { kind: LoopKind::Thread, extent: fillers, .. }) = body.first()
            && let (Some(columns), Some(warps), Some(fillers)) = (group_columns(inner), warps.known(), fillers.known())
        {
            found = Some(Ring { var: *var, fillers: fillers as u32, warps: warps as u32, sums: columns / 2 });
        }
    });
    found
}

/// A loop over products whose tiles the threads of a block fill and then multiply together.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    /// Its variable.
    pub var: u32,
    /// The shared tiles, which nothing else uses.
    pub tiles: Vec<u32>,
}

/// The kernel's loop over tiles that threads fill and multiply, one of which is multiplied while others are filled.
pub(crate) fn pipeline(kernel: &Kernel) -> Option<Pipeline> {
    if ring(kernel).is_some() {
        return None;
    }
    let mut found = None;
    for s in &kernel.body {
        let Stmt::For { var, kind: LoopKind::Serial, body, .. } = s else { continue };
        let together = |s: &Stmt| matches!(s, Stmt::For { kind: LoopKind::Thread | LoopKind::Warp, .. });
        let Some((multiply, fill)) = body.split_last().filter(|(_, fill)| !fill.is_empty() && body.iter().all(together)) else {
            continue;
        };
        let [read, written] = shared(kernel, fill);
        let [used, changed] = shared(kernel, std::slice::from_ref(multiply));
        let elsewhere = kernel.body.iter().filter(|&other| !std::ptr::eq(other, s));
        let others = elsewhere.flat_map(|other| shared(kernel, std::slice::from_ref(other))).flatten().collect::<HashSet<_>>();
        if !read.is_empty() || !changed.is_empty() || written != used || written.is_empty() || !written.is_disjoint(&others) {
            continue;
        }
        let mut tiles: Vec<u32> = written.into_iter().collect();
        tiles.sort_unstable();
        found = Some(Pipeline { var: *var, tiles });
    }
    found
}

/// Calls `see` for each statement, with the kinds of the loops around.
pub(crate) fn walk<'a>(body: &'a [Stmt], see: &mut dyn FnMut(&'a Stmt)) {
    for s in body {
        see(s);
        match s {
            Stmt::For { body, .. } | Stmt::While { body, .. } => walk(body, see),
            Stmt::If { then, otherwise, .. } => {
                walk(then, see);
                walk(otherwise, see);
            }
            Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Alloc { .. } | Stmt::Prefetch { .. } | Stmt::Check { .. } => {}
        }
    }
}

/// Who takes a task of this kernel.
pub(crate) fn mode(kernel: &Kernel) -> Result<Mode, Fault> {
    let (mut block, mut lanes, mut odd) = (None, false, false);
    let ring = ring(kernel);
    walk(&kernel.body, &mut |s| {
        let Stmt::For { extent, kind, .. } = s else { return };
        let threads = match kind {
            LoopKind::Thread => extent.known(),
            LoopKind::Warp => extent.known().map(|n| n * WARP),
            LoopKind::Vector => {
                lanes |= extent.is(WARP);
                return;
            }
            LoopKind::Serial | LoopKind::Parallel | LoopKind::Unroll | LoopKind::Matrix => return,
        };
        // Both kinds of loops have threads of their own.
        let threads = match (ring, kind) {
            (Some(r), LoopKind::Thread) => threads.filter(|&n| n == i64::from(r.fillers)).map(|n| n + i64::from(r.warps) * WARP),
            (Some(r), _) => threads.filter(|&n| n == i64::from(r.warps) * WARP).map(|n| n + i64::from(r.fillers)),
            (None, _) => threads,
        };
        odd |= block.is_some_and(|b| Some(b) != threads) || threads.is_none();
        block = threads.or(block);
    });
    match block {
        Some(n) if odd || !(1..=1024).contains(&n) => Err(fault!("its loops over threads differ, or have more than 1024")),
        Some(n) => Ok(Mode::Block(n as u32)),
        None if odd => Err(fault!("a loop over threads has no constant extent")),
        None if lanes => Ok(Mode::Warps),
        None => Ok(Mode::Threads),
    }
}

/// Is it a loop whose iterations are threads, warps or lanes?
pub(crate) fn is_side_by_side(mode: Mode, kind: LoopKind, extent: Expr) -> bool {
    match mode {
        Mode::Threads => false,
        Mode::Warps => kind == LoopKind::Vector && extent.is(WARP),
        Mode::Block(_) => matches!(kind, LoopKind::Thread | LoopKind::Warp),
    }
}

/// Is there such a loop in a list?
pub(crate) fn has_side_by_side(mode: Mode, body: &[Stmt]) -> bool {
    let mut found = false;
    walk(body, &mut |s| found |= matches!(s, Stmt::For { kind, extent, .. } if is_side_by_side(mode, *kind, *extent)));
    found
}

/// Is there a vector loop?
pub(crate) fn has_lanes(body: &[Stmt]) -> bool {
    let mut found = false;
    walk(body, &mut |s| found |= matches!(s, Stmt::For { kind: LoopKind::Vector, .. }));
    found
}

/// Scalars of a statement itself.
fn scalars(s: &Stmt) -> Vec<Scalar> {
    match s {
        Stmt::While { cond, .. } | Stmt::If { cond, .. } | Stmt::Check { cond, .. } => vec![*cond],
        Stmt::Let { value, .. } => vec![*value],
        Stmt::Store { index, value, .. } => index.iter().copied().chain([*value]).collect(),
        Stmt::For { .. } | Stmt::Alloc { .. } | Stmt::Prefetch { .. } => vec![],
    }
}

/// Does a list read an element of a buffer?
pub(crate) fn reads(body: &[Stmt]) -> bool {
    let mut found = false;
    walk(body, &mut |s| {
        for scalar in scalars(s) {
            scalar.visit(&mut |n| found |= matches!(n.kind(), Kind::Read { .. }));
        }
    });
    found
}

/// Buffers that a list reads.
pub(crate) fn sources(body: &[Stmt]) -> HashSet<u32> {
    let mut out = HashSet::new();
    walk(body, &mut |s| {
        for scalar in scalars(s) {
            scalar.visit(&mut |n| {
                if let Kind::Read { source, .. } = n.kind() {
                    out.insert(*source);
                }
            });
        }
    });
    out
}

/// Shared buffers that a list reads, and those that it writes.
pub(crate) fn shared(kernel: &Kernel, body: &[Stmt]) -> [HashSet<u32>; 2] {
    let mut out = [HashSet::new(), HashSet::new()];
    let is_shared = |b: u32| kernel.buffers[b as usize].space == Space::Shared;
    walk(body, &mut |s| {
        for scalar in scalars(s) {
            scalar.visit(&mut |n| {
                if let Kind::Read { source, .. } = n.kind()
                    && is_shared(*source)
                {
                    out[0].insert(*source);
                }
            });
        }
        if let Stmt::Store { buffer, .. } = s
            && is_shared(*buffer)
        {
            out[1].insert(*buffer);
        }
    });
    out
}

/// All indices by which buffers are accessed.
fn accesses(kernel: &Kernel) -> HashMap<u32, Vec<Vec<Scalar>>> {
    let mut out: HashMap<u32, Vec<Vec<Scalar>>> = HashMap::new();
    walk(&kernel.body, &mut |s| {
        for scalar in scalars(s) {
            scalar.visit(&mut |n| {
                if let Kind::Read { source, index, .. } = n.kind() {
                    out.entry(*source).or_default().push(index.clone());
                }
            });
        }
        if let Stmt::Store { buffer, index, .. } = s {
            out.entry(*buffer).or_default().push(index.clone());
        }
    });
    out
}

/// How the elements of each buffer are shared out.
pub(crate) fn layouts(kernel: &Kernel) -> Vec<Layout> {
    let mut kinds: HashMap<u32, (LoopKind, Expr)> = HashMap::new();
    walk(&kernel.body, &mut |s| {
        if let Stmt::For { var, extent, kind, body } = s {
            // The columns of a matrix loop are marked as well.
            if *kind == LoopKind::Matrix
                && let [Stmt::For { var, extent, .. }] = &body[..]
            {
                kinds.insert(*var, (LoopKind::Matrix, *extent));
            }
            kinds.entry(*var).or_insert((*kind, *extent));
        }
    });
    let of = |s: Option<&Scalar>| s.and_then(|s| variable(*s)).and_then(|v| kinds.get(&v).copied());
    let accesses = accesses(kernel);
    let one = |(k, b): (usize, &Buffer)| {
        let Some(list) = accesses.get(&(k as u32)).filter(|_| b.space == Space::Reg) else { return Layout::Whole };
        let first = |kind: LoopKind| list.iter().all(|i| of(i.first()).is_some_and(|f| f.0 == kind));
        if first(LoopKind::Thread) {
            return Layout::Thread;
        }
        let tile = |i: &Vec<Scalar>| {
            i.len() >= 3 && i[i.len() - 2..].iter().all(|s| of(Some(s)).is_some_and(|f| f.0 == LoopKind::Matrix))
        };
        if first(LoopKind::Warp) && list.iter().all(tile) {
            return Layout::Fragment;
        }
        let lanes = b.dims.last().is_some_and(|d| d.is(WARP))
            && list.iter().any(|i| of(i.last()).is_some_and(|f| f.0 == LoopKind::Vector));
        if lanes && mode(kernel) == Ok(Mode::Warps) { Layout::Lane } else { Layout::Whole }
    };
    kernel.buffers.iter().enumerate().map(one).collect()
}

/// The variable that an index is.
pub(crate) fn variable(s: Scalar) -> Option<u32> {
    match s.as_index()?.node() {
        infc_ir::expr::Node::Var(v) => Some(*v),
        _ => None,
    }
}

/// Buffers with an index that is not known when the kernel is printed, along an axis that is not shared out.
pub(crate) fn indexed_by_unknowns(
    kernel: &Kernel,
    layouts: &[Layout],
    unrolled: &dyn Fn(LoopKind, Expr) -> bool,
) -> HashSet<u32> {
    let mut known = HashSet::new();
    walk(&kernel.body, &mut |s| {
        if let Stmt::For { var, extent, kind, .. } = s
            && unrolled(*kind, *extent)
        {
            known.insert(*var);
        }
    });
    let fixed = |s: &Scalar| {
        s.as_index().is_some_and(|e| {
            let mut all = true;
            e.leaves(&mut |l| all &= matches!(l.node(), infc_ir::expr::Node::Var(v) if known.contains(v)));
            all
        })
    };
    let mut not = HashSet::new();
    for (buffer, list) in accesses(kernel) {
        let kept = |i: &Vec<Scalar>| layouts[buffer as usize].kept(i.len());
        if !list.iter().all(|i| i[kept(i)].iter().all(fixed)) {
            not.insert(buffer);
        }
    }
    not
}
