//! Runs a grid. The lanes of a warp that are at the same instruction run together; of those that are not, the ones that are behind
//! in the text go first, so that all meet again where paths join.

use crate::Fault;
use crate::arith::{self, Lanes};
use crate::convert;
use crate::inst::{Inst, Kernel, Op, Shuffle, Space, Special, Start, Ty};
use crate::matrix;
use crate::memory::Memory;
use crate::parse::PARAMETERS;
use crate::shared::{Bulk, CHUNK, Shared, Source};
use crate::tensor::{MAP_BYTES, TensorMap};

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block along x, y and z.
    pub threads: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub shared: usize,
}

/// The most steps of a warp, so that a kernel that hangs is an error.
const MOST_STEPS: u64 = 1 << 34;

/// Runs a kernel. `parameters` are laid out as [`Kernel::parameter_offsets`] says.
pub fn launch(kernel: &Kernel, grid: Grid, parameters: &[u8], memory: &mut Memory) -> Result<(), Fault> {
    let fail = |what: String| Err(Fault { at: format!("kernel {}", kernel.name), line: 0, what });
    if parameters.len() != kernel.parameters_len() {
        return fail(format!("{} bytes of parameters are given, it takes {}", parameters.len(), kernel.parameters_len()));
    }
    let threads = grid.threads.iter().product::<u32>();
    if !(1..=1024).contains(&threads) {
        return fail(format!("blocks of {threads} threads"));
    }
    if grid.shared > 0 && !kernel.dynamic_shared {
        return fail("shared memory is given to a kernel that takes none".into());
    }
    let cluster = kernel.cluster;
    if cluster > 1 && (!threads.is_multiple_of(128) || !grid.blocks[0].is_multiple_of(cluster)) {
        return fail(format!("{} blocks of {threads} threads in clusters of {cluster} blocks", grid.blocks[0]));
    }
    for z in 0..grid.blocks[2] {
        for y in 0..grid.blocks[1] {
            for x in (0..grid.blocks[0]).step_by(cluster as usize) {
                Block::new(kernel, grid, [x, y, z], parameters, memory).run()?;
            }
        }
    }
    Ok(())
}

/// All copies are waited for, also those of the group that is open.
pub(crate) const ALL: usize = u32::MAX as usize;

/// One copy that has been asked for.
struct Pending {
    to: usize,
    from: u64,
    bytes: usize,
    there: usize,
}

struct Warp {
    first: u32,
    registers: Vec<Lanes>,
    local: Vec<Vec<u8>>,
    pc: [u32; 32],
    /// Lanes that have not ended.
    alive: u32,
    /// Lanes that there are.
    all: u32,
    /// Lanes that wait at a barrier.
    waiting: u32,
    /// Lanes that have come to the barrier of the cluster.
    arrived: u32,
    /// Groups of copies of each lane; the last one is open.
    copies: Vec<Vec<Vec<Pending>>>,
    /// Groups of matrix instructions of the warpgroup; the last one is open.
    matrices: Vec<Flying>,
    /// When each register was written last by another instruction than those, and when the last `wgmma.fence` was.
    written: Vec<u64>,
    fenced: u64,
    /// The matrix instructions so far, which the other warps of the warpgroup must issue as well.
    issued: usize,
    steps: u64,
}

/// What matrix instructions that are not waited for use.
#[derive(Default)]
struct Flying {
    sums: Vec<u32>,
    chunks: Vec<u32>,
}

/// Where shared memory of the first block of a cluster begins in the addresses of all; those of the others are as far apart. A block's own addresses are below.
const WINDOW: u64 = 1 << 24;

/// A block, or the blocks of a cluster together: the warps of each behind those of the one before.
struct Block<'a> {
    kernel: &'a Kernel,
    /// Blocks, warps of each, and bytes of shared memory of each.
    blocks: usize,
    each: usize,
    size: usize,
    memory: &'a mut Memory,
    parameters: &'a [u8],
    shared: Shared,
    warps: Vec<Warp>,
    block: [u32; 3],
    /// A warp waits for an mbarrier and lets others go on.
    yields: bool,
    /// Matrix instructions of each warpgroup: place in the text, both descriptors, whether sums are added to.
    issued: Vec<Vec<(u32, u64, u64, u64)>>,
}

fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |l| mask >> l & 1 == 1)
}

impl<'a> Block<'a> {
    fn new(kernel: &'a Kernel, grid: Grid, block: [u32; 3], parameters: &'a [u8], memory: &'a mut Memory) -> Block<'a> {
        let threads = grid.threads.iter().product::<u32>();
        let (blocks, each) = (kernel.cluster as usize, threads.div_ceil(32));
        let size = if grid.shared > 0 { kernel.dynamic_base() + grid.shared } else { kernel.shared };
        let warp = |w: u32| {
            let (first, rank, own) = (w * 32, w / each, w % each * 32);
            let count = (threads - own).min(32);
            let special = |s: Special, l: u32| {
                let t = own + l;
                let [x, y, _] = grid.threads;
                u64::from(match s {
                    Special::Tid(0) => t % x,
                    Special::Tid(1) => t / x % y,
                    Special::Tid(_) => t / x / y,
                    Special::NTid(k) => grid.threads[k as usize],
                    Special::Cta(0) => block[0] + rank,
                    Special::Cta(k) => block[k as usize],
                    Special::Rank => rank,
                    Special::NCta(k) => grid.blocks[k as usize],
                    Special::Lane => l,
                    Special::Warp => w % each,
                })
            };
            let registers = kernel.registers.iter().map(|start| match start {
                // Nothing that a kernel may count on.
                Start::Plain => [0xa5a5_a5a5_a5a5_a5a5; 32],
                Start::Const(c) => [*c; 32],
                Start::Dynamic => [0; 32],
                Start::Special(s) => std::array::from_fn(|l| special(*s, l as u32)),
            });
            Warp {
                first,
                registers: registers.collect(),
                local: vec![vec![0xa5; kernel.local]; if kernel.local > 0 { count as usize } else { 0 }],
                pc: [0; 32],
                alive: if count == 32 { u32::MAX } else { (1 << count) - 1 },
                all: if count == 32 { u32::MAX } else { (1 << count) - 1 },
                waiting: 0,
                arrived: 0,
                copies: (0..32).map(|_| vec![vec![]]).collect(),
                matrices: vec![Flying::default()],
                written: vec![0; if kernel.asynchronous { kernel.registers.len() } else { 0 }],
                fenced: 0,
                issued: 0,
                steps: 0,
            }
        };
        let warps: Vec<Warp> = (0..each * kernel.cluster).map(warp).collect();
        let issued = vec![vec![]; warps.len().div_ceil(4)];
        // The swizzle of a tile is the same in each block.
        let apart = if blocks > 1 { size.next_multiple_of(1024) } else { size };
        let shared = Shared::new([apart, threads as usize], blocks, kernel.asynchronous);
        Block { kernel, blocks, each: each as usize, size, memory, parameters, shared, warps, block, yields: false, issued }
    }

    fn run(&mut self) -> Result<(), Fault> {
        let mut still = 0;
        loop {
            let events = self.shared.events;
            let mut yields = false;
            for w in 0..self.warps.len() {
                self.yields = false;
                self.warp(w)?;
                yields |= self.yields;
            }
            if yields {
                still = if self.shared.events == events { still + 1 } else { 0 };
                if still > 2 {
                    let (w, l) = (0..self.warps.len())
                        .find_map(|w| lanes_of(self.warps[w].alive & !self.warps[w].waiting).next().map(|l| (w, l)))
                        .unwrap_or((0, 0));
                    return self.fail(w, l, self.warps[w].pc[l], "waits for an mbarrier that nobody completes");
                }
                continue;
            }
            let waiting: u32 = self.warps.iter().map(|w| w.waiting.count_ones()).sum();
            if waiting == 0 {
                return self.end();
            }
            let ended = self.warps.iter().any(|w| w.all != w.waiting);
            let places: Vec<u32> = self.warps.iter().flat_map(|w| lanes_of(w.waiting).map(|l| w.pc[l])).collect();
            let at = places[0];
            if ended || places.iter().any(|&p| p != at) {
                return self.fail(0, 0, at, "a barrier that not all threads of the block reach");
            }
            self.shared.barrier();
            for w in &mut self.warps {
                (w.waiting, w.arrived) = (0, 0);
                w.pc.iter_mut().for_each(|p| *p += 1);
            }
        }
    }

    /// All threads have ended: nothing may be under way.
    fn end(&self) -> Result<(), Fault> {
        for (w, warp) in self.warps.iter().enumerate() {
            let line = self.kernel.code.len() as u32 - 1;
            if warp.matrices.iter().any(|g| !g.sums.is_empty()) {
                return self.fail(w, 0, line, "ends before its matrix instructions do");
            }
            if warp.issued != self.issued[w / 4].len() {
                return self.fail(w, 0, line, "did not issue all matrix instructions of its warpgroup");
            }
        }
        if self.shared.left() {
            return self.fail(0, 0, self.kernel.code.len() as u32 - 1, "the block ends before a bulk copy does");
        }
        Ok(())
    }

    fn fail<T>(&self, warp: usize, lane: usize, pc: u32, what: impl Into<String>) -> Result<T, Fault> {
        let thread = (warp % self.each * 32 + lane) as u32;
        let [x, y, z] = self.block;
        let x = x + (warp / self.each) as u32;
        Err(Fault {
            at: format!("kernel {}, block {x},{y},{z}, thread {thread}", self.kernel.name),
            line: self.kernel.code.get(pc as usize).map_or(0, |i| i.line as usize),
            what: what.into(),
        })
    }

    /// Where `len` bytes of a warp's own shared memory are.
    fn own(&self, w: usize, address: u64, len: usize) -> Option<usize> {
        let at = usize::try_from(address).ok()?;
        (at.checked_add(len)? <= self.size).then(|| w / self.each * (self.shared.bytes.len() / self.blocks) + at)
    }

    /// The same of an address that may be of another block of the cluster.
    fn far(&self, w: usize, address: u64, len: usize) -> Option<usize> {
        match usize::try_from(address / WINDOW).ok()?.checked_sub(1) {
            None => self.own(w, address, len),
            Some(rank) if rank < self.blocks => self.own(rank * self.each, address % WINDOW, len),
            Some(_) => None,
        }
    }

    /// Runs a warp until all its lanes have ended or wait.
    fn warp(&mut self, w: usize) -> Result<(), Fault> {
        loop {
            let warp = &self.warps[w];
            let ready = warp.alive & !warp.waiting;
            if ready == 0 {
                return Ok(());
            }
            let pc = lanes_of(ready).map(|l| warp.pc[l]).min().expect("a lane is ready");
            let (mut group, mut next) = (0u32, u32::MAX);
            for l in lanes_of(ready) {
                if warp.pc[l] == pc { group |= 1 << l } else { next = next.min(warp.pc[l]) }
            }
            self.group(w, group, pc, next)?;
            if self.yields {
                return Ok(());
            }
        }
    }

    /// Runs lanes that are together from `pc` on, until they part, end, wait or come to `stop`, where others are.
    fn group(&mut self, w: usize, group: u32, mut pc: u32, stop: u32) -> Result<(), Fault> {
        let kernel = self.kernel;
        loop {
            if pc == stop {
                break;
            }
            let inst = &kernel.code[pc as usize];
            let mut mask = group;
            if inst.guard != 0 {
                let p = &self.warps[w].registers[((inst.guard - 1) / 2) as usize];
                let negated = u64::from((inst.guard - 1) & 1);
                let mut holds = 0u32;
                for l in 0..32 {
                    holds |= u32::from((p[l] & 1) ^ negated == 1) << l;
                }
                mask &= holds;
            }
            let warp = &mut self.warps[w];
            warp.steps += 1;
            if warp.steps > MOST_STEPS {
                return self.fail(w, 0, pc, "the kernel does not end");
            }
            match inst.op {
                Op::Branch => {
                    let to = inst.imm as u32;
                    if mask == group {
                        if to < pc && stop != u32::MAX {
                            // Others may be behind now.
                            pc = to;
                            break;
                        }
                        pc = to;
                        if pc > stop {
                            break;
                        }
                        continue;
                    }
                    if mask != 0 {
                        for l in lanes_of(group) {
                            warp.pc[l] = if mask >> l & 1 == 1 { to } else { pc + 1 };
                        }
                        return Ok(());
                    }
                }
                Op::Exit => {
                    warp.alive &= !mask;
                    if mask == group {
                        return Ok(());
                    }
                    if mask != 0 {
                        lanes_of(group & !mask).for_each(|l| warp.pc[l] = pc + 1);
                        return Ok(());
                    }
                }
                Op::Barrier if kernel.cluster > 1 => {
                    return self.fail(w, 0, pc, "a barrier of a block in a cluster, which is not done here");
                }
                Op::ClusterArrive => warp.arrived |= mask,
                Op::ClusterWait if mask & !warp.arrived != 0 => {
                    return self.fail(w, 0, pc, "waits at the barrier of the cluster without having come there");
                }
                Op::Barrier | Op::ClusterWait => {
                    lanes_of(group).for_each(|l| warp.pc[l] = pc);
                    warp.waiting |= mask;
                    if mask != group {
                        return self.fail(w, 0, pc, "a barrier under a predicate");
                    }
                    return Ok(());
                }
                _ if mask == 0 => {}
                Op::BarrierTry => {
                    self.wait_for(w, mask, pc, inst)?;
                    if self.yields {
                        lanes_of(group).for_each(|l| self.warps[w].pc[l] = pc + 1);
                        return Ok(());
                    }
                }
                _ => {
                    if kernel.asynchronous {
                        self.not_flying(w, pc, inst)?;
                    }
                    self.plain(w, mask, group, pc, inst)?;
                }
            }
            pc += 1;
        }
        let warp = &mut self.warps[w];
        lanes_of(group).for_each(|l| warp.pc[l] = pc);
        Ok(())
    }

    /// An instruction that is no jump.
    fn plain(&mut self, w: usize, mask: u32, group: u32, pc: u32, i: &Inst) -> Result<(), Fault> {
        let r = &self.warps[w].registers;
        let (a, b, c) = (&r[i.a as usize], &r[i.b as usize], &r[i.c as usize]);
        let result = match i.op {
            Op::Mov(ty) => {
                let keep = if ty.bytes() == 8 { u64::MAX } else { (1u64 << (8 * ty.bytes())) - 1 };
                a.map(|x| x & keep)
            }
            Op::Bin(op, ty) => match arith::binary(op, ty, a, b) {
                Some(r) => r,
                None => return self.fail(w, 0, pc, "there is no such instruction"),
            },
            Op::Un(op, ty) => match arith::unary(op, ty, a) {
                Some(r) => r,
                None => return self.fail(w, 0, pc, "there is no such instruction"),
            },
            Op::Fma(ty) => match arith::fma(ty, a, b, c) {
                Some(r) => r,
                None => return self.fail(w, 0, pc, "there is no such instruction"),
            },
            Op::Mad(ty) => arith::mad(ty, a, b, c),
            Op::Dp4a(x, y) => arith::dp4a((x, y), a, b, c),
            Op::Bfe(ty) => arith::bfe(ty, a, b, c),
            Op::Setp(cmp, ty) => arith::compare(cmp, ty, a, b),
            Op::Selp => std::array::from_fn(|l| if c[l] & 1 == 1 { a[l] } else { b[l] }),
            Op::Cvt { to, from, round } => match convert::convert(to, from, round, a) {
                Some(r) => r,
                None => return self.fail(w, 0, pc, "there is no such conversion"),
            },
            Op::CvtPair(ty) => std::array::from_fn(|l| {
                let half = |x: u64| convert::bits(convert::float(x, Ty::F32), ty);
                half(a[l]) << 16 | half(b[l])
            }),
            Op::Join => {
                let parts: Vec<&Lanes> = i.more.iter().map(|&k| &r[k as usize]).collect();
                let (half, width) = (i.more.len() as u32, i.imm as u32 * 2);
                let part = width / half;
                std::array::from_fn(|l| {
                    parts.iter().enumerate().fold(0, |acc, (k, p)| acc | (p[l] & ((1 << part) - 1)) << (k as u32 * part))
                })
            }
            Op::Split => {
                let x = *a;
                let part = i.imm as u32 * 2 / i.more.len() as u32;
                for (k, &to) in i.more.iter().enumerate() {
                    let v = x.map(|x| x >> (k as u32 * part) & ((1 << part) - 1));
                    self.write(w, mask, to, &v);
                }
                return Ok(());
            }
            Op::Shuffle(mode) => {
                if mask != group || group != self.warps[w].alive {
                    return self.fail(w, 0, pc, "a shuffle without all lanes of the warp");
                }
                let (x, n) = (*a, *b);
                std::array::from_fn(|l| {
                    let n = n[l] as usize & 31;
                    let from = match mode {
                        Shuffle::Butterfly => l ^ n,
                        Shuffle::Down => l + n,
                        Shuffle::Up => l.wrapping_sub(n),
                        Shuffle::Index => n,
                    };
                    if from < 32 && group >> from & 1 == 1 { x[from] } else { x[l] }
                })
            }
            Op::Matrix(kind) => {
                if mask != u32::MAX {
                    return self.fail(w, 0, pc, "a matrix instruction without all lanes of the warp");
                }
                let all: Vec<Lanes> = i.more.iter().map(|&k| r[k as usize]).collect();
                let (d, rest) = i.more.split_at(4);
                debug_assert_eq!(rest.len(), 10);
                let out = matrix::mma(kind, &all[4..8], &all[8..10], &all[10..14]);
                for (k, v) in out.iter().enumerate() {
                    self.write(w, mask, d[k], v);
                }
                return Ok(());
            }
            Op::WarpBarrier if mask != self.warps[w].alive => {
                return self.fail(w, 0, pc, "a warp barrier that not all lanes reach");
            }
            Op::WarpBarrier | Op::Nothing => return Ok(()),
            Op::Load { .. } => return self.load(w, mask, pc, i),
            Op::Store { .. } => return self.store(w, mask, pc, i),
            Op::LoadMatrix { count, transposed } => {
                if mask != u32::MAX {
                    return self.fail(w, 0, pc, "a matrix load without all lanes of the warp");
                }
                return self.load_matrix(w, pc, i, count as usize, transposed);
            }
            Op::CopyAsync { bytes } => return self.copy(w, mask, pc, i, bytes as usize),
            Op::CopyCommit => {
                for l in lanes_of(mask) {
                    self.warps[w].copies[l].push(vec![]);
                }
                return Ok(());
            }
            Op::CopyWait(left) => return self.copy_wait(w, mask, pc, left as usize),
            Op::Cas | Op::AtomicAdd => return self.atomic(w, mask, pc, i),
            Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait(_) => {
                if mask != u32::MAX {
                    return self.fail(w, 0, pc, "a matrix instruction without all lanes of the warp");
                }
                return self.matrices(w, pc, i);
            }
            Op::MapShared => {
                let (address, rank) = (*a, *b);
                if (0..32).any(|l| mask >> l & 1 == 1 && (rank[l] as u32 as usize >= self.blocks || address[l] >= WINDOW)) {
                    return self.fail(w, 0, pc, "an address of shared memory of a block that the cluster has not");
                }
                std::array::from_fn(|l| (rank[l] & 0xffff_ffff).wrapping_add(1).wrapping_mul(WINDOW).wrapping_add(address[l]))
            }
            Op::BarrierInit | Op::BarrierArrive { .. } | Op::BulkCopy | Op::BoxCopy | Op::ProxyFence | Op::BarrierFence => {
                for l in lanes_of(mask) {
                    if let Err(what) = self.asynchronous(w, l, i) {
                        return self.fail(w, l, pc, what);
                    }
                }
                return Ok(());
            }
            Op::Branch | Op::Exit | Op::Barrier | Op::BarrierTry | Op::ClusterArrive | Op::ClusterWait => return Ok(()),
        };
        self.write(w, mask, i.d, &result);
        Ok(())
    }

    fn write(&mut self, w: usize, mask: u32, to: u32, value: &Lanes) {
        let d = &mut self.warps[w].registers[to as usize];
        if mask == u32::MAX {
            *d = *value;
        } else {
            for l in 0..32 {
                if mask >> l & 1 == 1 {
                    d[l] = value[l];
                }
            }
        }
    }

    fn load(&mut self, w: usize, mask: u32, pc: u32, i: &Inst) -> Result<(), Fault> {
        let Op::Load { space, ty, count } = i.op else { return Ok(()) };
        let (width, base) = (ty.bytes(), self.warps[w].registers[i.a as usize]);
        let len = width * count as usize;
        for l in lanes_of(mask) {
            let address = base[l].wrapping_add(i.imm as u64);
            if address % len as u64 != 0 {
                return self.fail(w, l, pc, format!("an access of {len} bytes at {address:#x}, which is not aligned"));
            }
            let mut raw = [0u8; 16];
            self.read(w, l, pc, space, address, &mut raw[..len])?;
            for k in 0..count as usize {
                let mut v = [0u8; 8];
                v[..width].copy_from_slice(&raw[k * width..][..width]);
                let v = u64::from_le_bytes(v);
                // A register that is wider than the type gets the sign.
                let v = if ty.is_signed() && width < 4 { arith::int(v, ty) as u64 & 0xffff_ffff } else { v };
                self.warps[w].registers[i.more[k] as usize][l] = v;
            }
        }
        Ok(())
    }

    fn read(&mut self, w: usize, l: usize, pc: u32, space: Space, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        let len = out.len();
        let at = address as usize;
        let found = match space {
            Space::Global => self.memory.get(address, len),
            Space::Param => at.checked_add(len).and_then(|e| self.parameters.get(at..e)),
            Space::Local => at.checked_add(len).and_then(|e| self.warps[w].local.get(l)?.get(at..e)),
            Space::Shared => {
                let place = self.own(w, address, len);
                if let Some(at) = place {
                    let thread = self.warps[w].first + l as u32;
                    if let Err(what) = self.shared.touch(at, len, thread, false) {
                        return self.fail(w, l, pc, what);
                    }
                }
                place.and_then(|at| self.shared.bytes.get(at..at + len))
            }
        };
        match found {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => self.outside(w, l, pc, space, address, len, "reads"),
        }
    }

    fn outside<T>(&self, w: usize, l: usize, pc: u32, space: Space, address: u64, len: usize, verb: &str) -> Result<T, Fault> {
        let what = match space {
            Space::Global => self.memory.describe(address, len),
            Space::Param => format!("{len} bytes at {address} of the parameters"),
            Space::Local => format!("{len} bytes at {address} of {} bytes of local memory", self.kernel.local),
            Space::Shared => format!("{len} bytes at {address} of {} bytes of shared memory", self.size),
        };
        self.fail(w, l, pc, format!("{verb} {what}"))
    }

    fn put(&mut self, w: usize, l: usize, pc: u32, space: Space, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let (at, len) = (address as usize, bytes.len());
        let found = match space {
            Space::Global => self.memory.get_mut(address, len),
            Space::Local => at.checked_add(len).and_then(|e| self.warps[w].local.get_mut(l)?.get_mut(at..e)),
            Space::Param => None,
            Space::Shared => {
                let place = self.own(w, address, len);
                if let Some(at) = place {
                    let thread = self.warps[w].first + l as u32;
                    if let Err(what) = self.shared.touch(at, len, thread, true) {
                        return self.fail(w, l, pc, what);
                    }
                }
                place.and_then(|at| self.shared.bytes.get_mut(at..at + len))
            }
        };
        match found {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => self.outside(w, l, pc, space, address, len, "writes"),
        }
    }

    fn store(&mut self, w: usize, mask: u32, pc: u32, i: &Inst) -> Result<(), Fault> {
        let Op::Store { space, ty, count } = i.op else { return Ok(()) };
        let (width, base) = (ty.bytes(), self.warps[w].registers[i.a as usize]);
        let len = width * count as usize;
        for l in lanes_of(mask) {
            let address = base[l].wrapping_add(i.imm as u64);
            if address % len as u64 != 0 {
                return self.fail(w, l, pc, format!("an access of {len} bytes at {address:#x}, which is not aligned"));
            }
            let mut raw = [0u8; 16];
            for k in 0..count as usize {
                let v = self.warps[w].registers[i.more[k] as usize][l].to_le_bytes();
                raw[k * width..][..width].copy_from_slice(&v[..width]);
            }
            self.put(w, l, pc, space, address, &raw[..len])?;
        }
        Ok(())
    }

    /// Compare and swap, or addition, of 32 bits of global memory.
    fn atomic(&mut self, w: usize, mask: u32, pc: u32, i: &Inst) -> Result<(), Fault> {
        for l in lanes_of(mask) {
            let r = &self.warps[w].registers;
            let (address, b, c) =
                (r[i.a as usize][l].wrapping_add(i.imm as u64), r[i.b as usize][l] as u32, r[i.c as usize][l] as u32);
            let mut raw = [0; 4];
            self.read(w, l, pc, Space::Global, address, &mut raw)?;
            let old = u32::from_le_bytes(raw);
            let new = match i.op {
                Op::Cas if old == b => c,
                Op::Cas => old,
                _ => old.wrapping_add(b),
            };
            self.put(w, l, pc, Space::Global, address, &new.to_le_bytes())?;
            self.warps[w].registers[i.d as usize][l] = u64::from(old);
        }
        Ok(())
    }

    /// Lane 8 m + r tells where row r of matrix m is: 8 elements of 16 bits.
    fn load_matrix(&mut self, w: usize, pc: u32, i: &Inst, count: usize, transposed: bool) -> Result<(), Fault> {
        let base = self.warps[w].registers[i.a as usize];
        for m in 0..count {
            let mut rows = [[0u8; 16]; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let l = 8 * m + r;
                let address = base[l].wrapping_add(i.imm as u64);
                if address % 16 != 0 {
                    return self.fail(w, l, pc, format!("a row of a matrix at {address:#x}, which is not aligned"));
                }
                self.read(w, l, pc, Space::Shared, address, row)?;
            }
            let element = |r: usize, c: usize| u64::from(u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]));
            let out: Lanes = std::array::from_fn(|l| {
                let (r, c) = (l / 4, l % 4 * 2);
                match transposed {
                    false => element(r, c) | element(r, c + 1) << 16,
                    true => element(c, r) | element(c + 1, r) << 16,
                }
            });
            self.write(w, u32::MAX, i.more[m], &out);
        }
        Ok(())
    }

    /// Notes copies; they happen when somebody waits for them.
    fn copy(&mut self, w: usize, mask: u32, pc: u32, i: &Inst, bytes: usize) -> Result<(), Fault> {
        for l in lanes_of(mask) {
            let r = &self.warps[w].registers;
            let from = r[i.a as usize][l].wrapping_add(r[i.c as usize][l]);
            let (to, there) = (r[i.d as usize][l].wrapping_add(i.imm as u64), r[i.b as usize][l] as usize);
            if !matches!(bytes, 4 | 8 | 16) || to % bytes as u64 != 0 || from % bytes as u64 != 0 || there > bytes {
                return self.fail(w, l, pc, format!("a copy of {bytes} bytes from {from:#x} to {to:#x}"));
            }
            let thread = self.warps[w].first + l as u32;
            if let Some(at) = self.own(w, to, bytes).filter(|_| self.kernel.asynchronous) {
                if let Err(what) = self.shared.not_read(at, bytes, thread) {
                    return self.fail(w, l, pc, what);
                }
                self.shared.pend(at, bytes, true);
            }
            let open = self.warps[w].copies[l].last_mut().expect("there is an open group");
            open.push(Pending { to: to as usize, from, bytes, there });
        }
        Ok(())
    }

    /// Does the copies of all groups but the last `left` ones that were closed.
    fn copy_wait(&mut self, w: usize, mask: u32, pc: u32, left: usize) -> Result<(), Fault> {
        for l in lanes_of(mask) {
            let groups = &mut self.warps[w].copies[l];
            if left == ALL {
                groups.push(vec![]);
            }
            let left = if left == ALL { 0 } else { left };
            let closed = groups.len() - 1;
            let done: Vec<Pending> = groups.drain(..closed.saturating_sub(left)).flatten().collect();
            for p in done {
                let mut raw = [0u8; 16];
                if let Some(at) = self.own(w, p.to as u64, p.bytes) {
                    self.shared.pend(at, p.bytes, false);
                }
                if p.there > 0 {
                    self.read(w, l, pc, Space::Global, p.from, &mut raw[..p.there])?;
                }
                self.put(w, l, pc, Space::Shared, p.to as u64, &raw[..p.bytes])?;
            }
        }
        Ok(())
    }

    /// The registers of an instruction are not in use by matrix instructions that are not waited for. Notes what it writes.
    fn not_flying(&mut self, w: usize, pc: u32, i: &Inst) -> Result<(), Fault> {
        if matches!(i.op, Op::Wgmma(_) | Op::WgmmaFence | Op::WgmmaCommit | Op::WgmmaWait(_)) {
            return Ok(());
        }
        let warp = &mut self.warps[w];
        let all = [i.d, i.a, i.b, i.c];
        if let Some(r) = all.iter().chain(&i.more).find(|r| warp.matrices.iter().any(|g| g.sums.contains(r))) {
            let what = format!("uses register {r}, which a matrix instruction that is not waited for writes");
            return self.fail(w, 0, pc, what);
        }
        warp.written[i.d as usize] = warp.steps;
        if matches!(i.op, Op::Load { .. } | Op::Split | Op::LoadMatrix { .. } | Op::Matrix(_)) {
            i.more.iter().for_each(|&r| warp.written[r as usize] = warp.steps);
        }
        Ok(())
    }

    /// Is the phase of an mbarrier over? Copies that it counts come when somebody asks.
    fn wait_for(&mut self, w: usize, mask: u32, pc: u32, i: &Inst) -> Result<(), Fault> {
        let mut result = [0u64; 32];
        for l in lanes_of(mask) {
            let r = &self.warps[w].registers;
            let (at, parity) = (r[i.a as usize][l].wrapping_add(i.imm as u64), r[i.b as usize][l]);
            let Some(at) = self.own(w, at, 8) else { return self.fail(w, l, pc, format!("no mbarrier at {at}")) };
            let thread = self.warps[w].first + l as u32;
            let mut over = self.shared.over(at, parity, thread);
            if over == Ok(false) {
                for bulk in self.shared.due(at) {
                    let bytes = match &bulk.from {
                        Source::Plain(from) => match self.memory.get(*from, bulk.bytes) {
                            Some(bytes) => bytes.to_vec(),
                            None => return self.outside(w, l, pc, Space::Global, *from, bulk.bytes, "copies"),
                        },
                        Source::Box(map, at) => match map.gather(at, bulk.to, self.memory) {
                            Ok(bytes) => bytes,
                            Err(what) => return self.fail(w, l, pc, what),
                        },
                    };
                    self.shared.come(&bulk, &bytes);
                }
                over = self.shared.over(at, parity, thread);
            }
            match over {
                Ok(over) => {
                    result[l] = u64::from(over);
                    self.yields |= !over;
                }
                Err(what) => return self.fail(w, l, pc, what),
            }
        }
        self.write(w, mask, i.d, &result);
        Ok(())
    }

    /// mbarriers, bulk copies and the fence before them, of one thread.
    fn asynchronous(&mut self, w: usize, l: usize, i: &Inst) -> Result<(), String> {
        let thread = self.warps[w].first + l as u32;
        let r = |k: u32| self.warps[w].registers[k as usize][l];
        let (at, b) = (r(i.a).wrapping_add(i.imm as u64), r(i.b) as u32);
        let missing = || format!("no mbarrier at {at}");
        // Blocks that get a copy: as the mask says, or the own one.
        let getters: Vec<usize> = match i.a {
            0 => vec![w / self.each],
            mask => (0..16).filter(|k| r(mask) >> k & 1 == 1).collect(),
        };
        match i.op {
            Op::BarrierInit => self.shared.init(self.own(w, at, 8).ok_or_else(missing)?, b, thread),
            Op::BarrierArrive { bytes, far } => {
                let place = if far { self.far(w, at, 8) } else { self.own(w, at, 8) };
                if let Some(at) = place {
                    self.lives(at / (self.shared.bytes.len() / self.blocks))?;
                }
                self.shared.arrive(place.ok_or_else(missing)?, if bytes { b } else { 0 }, thread)
            }
            Op::BulkCopy => {
                let sum = |k: usize| r(i.more[2 * k]).wrapping_add(r(i.more[2 * k + 1]));
                let (to, from, barrier, bytes) = (sum(0), sum(1), sum(2), r(i.more[6]) as u32 as usize);
                if bytes % 16 != 0 || to % 16 != 0 || from % 16 != 0 {
                    return Err(format!("a bulk copy of {bytes} bytes from {from:#x} to {to:#x}"));
                }
                self.ask(&getters, (to, bytes, barrier), &|| Source::Plain(from), thread)
            }
            Op::BoxCopy => {
                let sum = |k: usize| r(i.more[2 * k]).wrapping_add(r(i.more[2 * k + 1]));
                let (to, barrier) = (sum(0), sum(1));
                let at = r(i.more[4]).checked_sub(PARAMETERS).map(|a| a as usize).filter(|a| a % 64 == 0);
                let bytes = at.and_then(|a| self.parameters.get(a..a + MAP_BYTES));
                let map = TensorMap::decode(bytes.ok_or("a tensor map that is no parameter at a multiple of 64 bytes")?)?;
                let first: Vec<i32> = i.more[5..].iter().map(|&k| r(k) as u32 as i32).collect();
                let bytes = map.box_bytes();
                if first.len() != map.axes.len() || to % 128 != 0 || bytes % 16 != 0 {
                    return Err(format!("a copy of a box of {bytes} bytes and {} axes at {first:?} to {to:#x}", map.axes.len()));
                }
                self.ask(&getters, (to, bytes, barrier), &|| Source::Box(map.clone(), first.clone()), thread)
            }
            Op::BarrierFence => {
                self.shared.tell(thread);
                Ok(())
            }
            _ => {
                self.shared.fence(thread);
                Ok(())
            }
        }
    }

    /// Asks for a copy into each of some blocks of the cluster, to the same place, which an mbarrier at the same place of each counts.
    fn ask(
        &mut self,
        blocks: &[usize],
        (to, bytes, barrier): (u64, usize, u64),
        from: &dyn Fn() -> Source,
        thread: u32,
    ) -> Result<(), String> {
        if blocks.is_empty() {
            return Err("a copy into no block of the cluster".into());
        }
        for &block in blocks {
            let places = (self.own(block * self.each, to, bytes), self.own(block * self.each, barrier, 8));
            let (Some(to), Some(barrier), true) = (places.0, places.1, block < self.blocks) else {
                return Err(format!("a bulk copy of {bytes} bytes to {to:#x} of block {block} of a cluster of {}", self.blocks));
            };
            self.lives(block)?;
            self.shared.ask(Bulk { to, from: from(), bytes, barrier }, thread)?;
        }
        Ok(())
    }

    /// Shared memory of a block that has ended is nobody's.
    fn lives(&self, block: usize) -> Result<(), String> {
        let ended = self.warps[block * self.each..][..self.each].iter().all(|w| w.alive == 0);
        if ended { Err(format!("uses shared memory of block {block} of the cluster, which has ended")) } else { Ok(()) }
    }

    /// Matrix instructions of a warpgroup, as far as one of its warps sees them.
    fn matrices(&mut self, w: usize, pc: u32, i: &Inst) -> Result<(), Fault> {
        let warp = &mut self.warps[w];
        match i.op {
            Op::WgmmaFence => warp.fenced = warp.steps,
            Op::WgmmaCommit => warp.matrices.push(Flying::default()),
            Op::WgmmaWait(left) => {
                let closed = warp.matrices.len() - 1;
                let done: Vec<Flying> = warp.matrices.drain(..closed.saturating_sub(left as usize)).collect();
                for chunk in done.iter().flat_map(|g| &g.chunks) {
                    self.shared.reader_ends(*chunk, w as u32);
                }
            }
            Op::Wgmma(kind) => {
                let value = |r: u32| warp.registers[r as usize];
                let (a, b, c) = (value(i.a), value(i.b), value(i.c));
                if [a, b].iter().any(|v| v.iter().any(|x| *x != v[0])) || c.iter().any(|x| x & 1 != c[0] & 1) {
                    return self.fail(w, 0, pc, "the threads of a warp have different descriptors");
                }
                if self.warps.len() < w / 4 * 4 + 4 {
                    return self.fail(w, 0, pc, "a matrix instruction of a warpgroup that has not four warps");
                }
                let (a, b, add) = (a[0], b[0], c[0] & 1);
                let own = (pc, a, b, add);
                let (n, list) = (self.warps[w].issued, &mut self.issued[w / 4]);
                match list.get(n) {
                    None => list.push(own),
                    Some(first) if *first == own => {}
                    Some(_) => return self.fail(w, 0, pc, "the warps of a warpgroup issue different matrix instructions"),
                }
                let warp = &mut self.warps[w];
                warp.issued += 1;
                if warp.fenced == 0 {
                    return self.fail(w, 0, pc, "no wgmma.fence stands before");
                }
                if let Some(r) = i.more.iter().find(|&&r| warp.written[r as usize] >= warp.fenced.max(1)) {
                    return self.fail(w, 0, pc, format!("a sum (register {r}) was written and no wgmma.fence stands between"));
                }
                // The other shape's tile would lie elsewhere in the same registers.
                if warp
                    .matrices
                    .iter()
                    .any(|g| !g.sums.is_empty() && g.sums.iter().any(|r| i.more.contains(r)) && g.sums[..] != i.more[..])
                {
                    return self.fail(w, 0, pc, "sums of another matrix instruction that is not waited for");
                }
                let clock = self.shared.common(warp.first..warp.first + 32);
                let sums: Vec<Lanes> = i.more.iter().map(|&r| self.warps[w].registers[r as usize]).collect();
                let mut chunks = vec![];
                let start = w / self.each * (self.shared.bytes.len() / self.blocks);
                if !start.is_multiple_of(CHUNK) {
                    return self.fail(w, 0, pc, "shared memory of a block that is at no multiple of 16 bytes");
                }
                let read = |at: usize| {
                    if at + CHUNK > self.size.next_multiple_of(CHUNK) {
                        return Err(format!("a matrix instruction reads at {at} of {} bytes of shared memory", self.size));
                    }
                    let at = start + at;
                    let chunk = (at / CHUNK) as u32;
                    let bytes = self.shared.read_by_matrix(at / CHUNK * CHUNK, CHUNK, &clock)?;
                    chunks.push(chunk);
                    Ok(<[u8; CHUNK]>::try_from(bytes).unwrap_or_default())
                };
                let out = match matrix::wgmma(kind, w % 4, [a, b], if add == 1 { Some(&sums) } else { None }, read) {
                    Ok(out) => out,
                    Err(what) => return self.fail(w, 0, pc, what),
                };
                for (&r, v) in i.more.iter().zip(&out) {
                    self.warps[w].registers[r as usize] = *v;
                }
                chunks.sort_unstable();
                chunks.dedup();
                chunks.iter().for_each(|&c| self.shared.reader_begins(c, w as u32));
                let open = self.warps[w].matrices.last_mut().expect("there is an open group");
                open.sums = i.more.to_vec();
                open.chunks.extend(chunks);
            }
            _ => {}
        }
        Ok(())
    }
}
