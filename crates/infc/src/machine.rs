//! What this machine can do at most: arithmetic in registers, reading from each level of memory, and what a second thread adds.
//!
//! Small loop nests are compiled by the backend as kernels of models are, and run by the runtime with its clock for steps. They are the limits that
//! `infc profile` compares kernels with. A figure is the best of many short runs.

use crate::compile::Options;
use crate::replay;
use crate::target;
use infc_artifact::program::{self, Place, Program, Size, Step, View};
use infc_ir::{DType, Expr, Problems, Scalar};
use infc_kernel::loops::{Access, Axes, Boxes, Buffer, Kernel, LoopKind, Space, Stmt};
use infc_kernel::rows;
use infc_kernel::target::TargetDesc;
use infc_runtime::{Session, StepTime};
use serde::Serialize;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

/// Measured limits.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// The machine that the code was made for.
    pub target: String,
    /// Floating point: billions of operations a second of one thread in f32, a multiply-add being two.
    pub f32_gflops: f64,
    /// Products of bytes added to i32, if there is an instruction for them: billions of operations a second of one thread.
    pub int8_gops: Option<f64>,
    /// Products of bf16 added to f32, if there is an instruction for them: billions of operations a second of one thread.
    pub bf16_gflops: Option<f64>,
    /// The same for bytes in tiles (AMX), which are loaded from L1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tile_int8_gops: Option<f64>,
    /// The same for bf16 in tiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tile_bf16_gflops: Option<f64>,
    /// Reading, from the nearest memory to the farthest.
    pub read: Vec<Read>,
    /// How many times as fast as one thread all of `threads` do independent work.
    pub scaling: Option<Scaling>,
}

/// How fast one thread reads.
#[derive(Clone, Debug, Serialize)]
pub struct Read {
    /// `L1`, `L2`, `L3` or `memory`.
    pub level: &'static str,
    /// Bytes that are read over and over.
    pub bytes: u64,
    /// Bytes that it holds; `None` for memory.
    pub holds: Option<u64>,
    /// Billions of bytes a second.
    pub gbs: f64,
}

/// Speed of several threads over that of one.
#[derive(Clone, Debug, Serialize)]
pub struct Scaling {
    /// Threads.
    pub threads: usize,
    /// For arithmetic in registers.
    pub arithmetic: f64,
    /// For reading from memory, each thread its own.
    pub memory: f64,
    /// Nanoseconds in which a cache line goes to another thread and comes back; some 50 where threads share a cache, hundreds where they do not.
    pub line_ns: f64,
}

/// Nanoseconds in which a cache line goes to another thread and comes back: the best of many short runs.
fn round_trip(time: Duration) -> f64 {
    #[repr(align(128))]
    struct Line(AtomicU32);
    /// Round trips of a short run.
    const TRIPS: u32 = 1000;
    let (line, stop) = (Line(AtomicU32::new(0)), AtomicBool::new(false));
    // Waits for a value; where both threads have one core, the other one needs it.
    let wait = |value: u32| {
        let mut looks = 0u32;
        while line.0.load(Acquire) != value && !stop.load(Relaxed) {
            looks += 1;
            if looks.is_multiple_of(1 << 14) {
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 1u32;
            while !stop.load(Relaxed) {
                wait(value);
                line.0.store(value.wrapping_add(1), Release);
                value = value.wrapping_add(2);
            }
        });
        let (start, mut best, mut value) = (Instant::now(), f64::INFINITY, 0u32);
        while best.is_infinite() || start.elapsed() < time {
            let begin = Instant::now();
            for _ in 0..TRIPS {
                line.0.store(value.wrapping_add(1), Release);
                value = value.wrapping_add(2);
                wait(value);
            }
            best = best.min(begin.elapsed().as_nanos() as f64 / f64::from(TRIPS));
        }
        stop.store(true, Relaxed);
        best
    })
}

/// A row that adds several products at once: its name, and whether a machine has it.
struct Dot {
    row: &'static str,
    there: fn(&TargetDesc) -> bool,
    /// Dtypes of the broadcast factor, of the one in vectors, and of the sums.
    dtypes: [DType; 3],
}

const DOTS: [Dot; 3] = [
    Dot { row: "byte_dot", there: |t| t.byte_dot, dtypes: [DType::U8, DType::I8, DType::I32] },
    Dot { row: "byte_dot_signed", there: |t| t.byte_dot_signed, dtypes: [DType::I8, DType::I8, DType::I32] },
    Dot { row: "bf16_dot", there: |t| t.bf16_dot, dtypes: [DType::BF16, DType::BF16, DType::F32] },
];

/// Rows for tiles.
const TILES: [Dot; 2] = [
    Dot { row: "amx_u8s8", there: |t| t.tile_bytes, dtypes: [DType::U8, DType::I8, DType::I32] },
    Dot { row: "amx_bf16", there: |t| t.tile_bf16, dtypes: [DType::BF16, DType::BF16, DType::F32] },
];

/// Rows and columns of a tile of sums; four of them are made together, two down and two across.
const TILE: i64 = 16;
/// Rounds of a task of tiles.
const TILE_ROUNDS: i64 = 1 << 12;

/// Chains of sums in registers: enough to hide their latency, few enough for 16 registers.
const CHAINS: i64 = 12;
/// Rounds of a task of arithmetic: some 100 us.
const ROUNDS: i64 = 1 << 15;
/// Bytes that surely lie in no cache.
const FAR: u64 = 64 << 20;

impl Limits {
    /// Measures for about as long as `time`. With several `threads`, also what they do together.
    pub fn measure(target: &TargetDesc, threads: usize, time: Duration) -> Result<Limits, Problems> {
        let levels = [("L1", target.l1_bytes / 2), ("L2", target.l2_bytes / 2), ("L3", target.l3_bytes / 2), ("memory", FAR)];
        let mut kernels = vec![arithmetic(target, None, 1)];
        let dots: Vec<&rows::Row> = DOTS.iter().filter(|d| (d.there)(target)).filter_map(|d| rows::named(d.row)).collect();
        kernels.extend(dots.iter().map(|&row| arithmetic(target, Some(row), 1)));
        let tiles: Vec<&Dot> = TILES.iter().filter(|d| (d.there)(target)).collect();
        let first_tile = kernels.len();
        kernels.extend(tiles.iter().map(|dot| in_tiles(dot)));
        let first = kernels.len();
        kernels.extend(levels.iter().map(|&(_, bytes)| reading(target, bytes, 1)));
        let ns = nanoseconds(target, &kernels, 1, time)?;
        let lanes = target.lanes(4) as f64;
        let sums = CHAINS as f64 * ROUNDS as f64 * lanes;
        let dot = |name: &str| {
            let k = dots.iter().position(|row| row.name == name)?;
            Some(2.0 * dots[k].depth as f64 * sums / ns[1 + k])
        };
        let tile = |name: &str| {
            let k = tiles.iter().position(|dot| dot.row == name)?;
            let products = (4 * TILE * TILE * 64) as f64 / tiles[k].dtypes[0].bytes() as f64;
            Some(2.0 * products * TILE_ROUNDS as f64 / ns[first_tile + k])
        };
        let read = |(k, &(level, bytes)): (usize, &(&'static str, u64))| {
            let read = units(target, bytes) * CHAINS * target.lanes(4) as i64 * 4 * repeats(bytes);
            let holds = match level {
                "memory" => None,
                "L3" => Some(target.l3_bytes.max(l3_bytes())),
                _ => Some(2 * bytes),
            };
            Read { level, bytes, holds, gbs: read as f64 / ns[first + k] }
        };
        let scaling = match threads {
            0 | 1 => None,
            _ => {
                let tasks = threads as i64;
                // Threads that take turns share what each CPU would have.
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                let far = FAR * threads.min(cpus) as u64 / threads as u64;
                let kernels = [arithmetic(target, None, tasks), reading(target, far, tasks)];
                let [one, all] = [1, threads].map(|t| nanoseconds(target, &kernels, t, time / 2));
                let (one, all) = (one?, all?);
                let line_ns = round_trip(time / 20);
                Some(Scaling { threads, arithmetic: one[0] / all[0], memory: one[1] / all[1], line_ns })
            }
        };
        Ok(Limits {
            target: target.name.clone(),
            f32_gflops: 2.0 * sums / ns[0],
            int8_gops: dot("byte_dot").or_else(|| dot("byte_dot_signed")),
            bf16_gflops: dot("bf16_dot"),
            tile_int8_gops: tile("amx_u8s8"),
            tile_bf16_gflops: tile("amx_bf16"),
            read: levels.iter().enumerate().map(read).collect(),
            scaling,
        })
    }

    /// Bytes a second from the nearest memory that holds so many bytes, in billions.
    pub fn gbs_of(&self, bytes: f64) -> f64 {
        let nearest = self.read.iter().find(|r| r.holds.is_none_or(|holds| bytes <= holds as f64));
        nearest.map_or(f64::NAN, |r| r.gbs)
    }

    /// Bytes a second from memory, in billions.
    pub fn memory_gbs(&self) -> f64 {
        self.read.last().map_or(f64::NAN, |r| r.gbs)
    }
}

/// Bytes of this computer's L3, as Linux tells them; 0 where it does not.
fn l3_bytes() -> u64 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
    let kib: Option<u64> = text.trim().strip_suffix('K').and_then(|n| n.parse().ok());
    kib.map_or(0, |kib| kib << 10)
}

/// The CPU's own name; `unknown` where the system does not tell it.
pub fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().filter_map(|l| l.split_once(':')).find(|(key, _)| key.trim() == "model name");
    name.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

/// Vectors of all chains that `bytes` hold.
fn units(target: &TargetDesc, bytes: u64) -> i64 {
    (bytes as i64 / (CHAINS * target.lanes(4) as i64 * 4)).max(1)
}

/// How often a range is read in a task.
fn repeats(bytes: u64) -> i64 {
    ((4 << 20) / bytes.max(1) as i64).max(1)
}

fn buffer(name: &str, dtype: DType, dims: &[i64], space: Space, access: Access) -> Buffer {
    let dims: Vec<Expr> = dims.iter().map(|&d| Expr::int(d)).collect();
    Buffer { name: name.into(), dtype, strides: Buffer::row_major(&dims), dims, space, access }
}

fn each(var: Expr, extent: i64, kind: LoopKind, body: Vec<Stmt>) -> Stmt {
    let var = match var.node() {
        infc_ir::expr::Node::Var(v) => *v,
        _ => unreachable!("a variable"),
    };
    Stmt::For { var, extent: Expr::int(extent), kind, body }
}

/// `next` of the sums of all chains in each round, then their store. Variables: 0 the task, 1 and 2 chain and lane of `next`, 3 and 4 those of the first
/// values, 5 and 6 those of `rounds`, 7 and 8 those of the result.
fn kernel(
    target: &TargetDesc,
    name: &str,
    dtype: DType,
    sources: Vec<Buffer>,
    tasks: i64,
    rounds: &[i64],
    next: Scalar,
) -> Kernel {
    let lanes = target.lanes(4) as i64;
    let (out, acc) = (sources.len() as u32, sources.len() as u32 + 1);
    let mut buffers = sources;
    buffers.push(buffer("out", dtype, &[tasks, CHAINS, lanes], Space::Global, Access::Write));
    buffers.push(buffer("acc", dtype, &[CHAINS, lanes], Space::Reg, Access::ReadWrite));
    let at = |e: &[Expr]| e.iter().map(|&e| Scalar::index(e)).collect::<Vec<_>>();
    let over = |r: Expr, l: Expr, s: Stmt| each(r, CHAINS, LoopKind::Unroll, vec![each(l, lanes, LoopKind::Vector, vec![s])]);
    let [task, r, l, r1, l1, r2, l2] = [0, 1, 2, 3, 4, 7, 8].map(Expr::var);
    let store = |buffer: u32, index: &[Expr], value: Scalar| Stmt::Store { buffer, index: at(index), value };
    let clear = over(r1, l1, store(acc, &[r1, l1], Scalar::number(dtype, 0.0)));
    let mut sum = over(r, l, store(acc, &[r, l], next));
    for (k, &extent) in rounds.iter().enumerate().rev() {
        sum = each(Expr::var(5 + k), extent, LoopKind::Serial, vec![sum]);
    }
    let result = Scalar::read(dtype, acc as usize, at(&[r2, l2]));
    let finish = over(r2, l2, store(out, &[task, r2, l2], result));
    let body = vec![Stmt::Alloc { buffer: acc }, clear, sum, finish];
    Kernel {
        name: name.into(),
        buffers,
        symbols: vec![],
        tasks: Expr::int(tasks),
        task: 0,
        body,
        axes: Axes::default(),
        boxes: Boxes::default(),
    }
}

/// Multiply-adds that never leave registers, by a row or in f32.
fn arithmetic(target: &TargetDesc, row: Option<&rows::Row>, tasks: i64) -> Kernel {
    let [r, l] = [1, 2].map(Expr::var);
    match row {
        None => {
            let x = buffer("x", DType::F32, &[2], Space::Global, Access::Read);
            let number = |k: i64| Scalar::read_at(DType::F32, 0, &[Expr::int(k)]);
            let acc = Scalar::read_at(DType::F32, 2, &[r, l]);
            let next = if target.fma { Scalar::fma(acc, number(0), number(1)) } else { acc * number(0) + number(1) };
            kernel(target, "f32", DType::F32, vec![x], tasks, &[ROUNDS], next)
        }
        Some(row) => {
            let depth = row.depth as i64;
            let dot = DOTS.iter().find(|d| d.row == row.name).expect("a row that adds several products");
            let [left, right, sums] = dot.dtypes;
            let x = buffer("x", left, &[depth], Space::Global, Access::Read);
            let w = buffer("w", right, &[target.lanes(4) as i64, depth], Space::Global, Access::Read);
            let group = |of: &dyn Fn(Expr) -> Scalar| (0..depth).map(|k| of(Expr::int(k)).cast(sums)).collect::<Vec<_>>();
            let a = group(&|k| Scalar::read_at(left, 0, &[k]));
            let b = group(&|k| Scalar::read_at(right, 1, &[l, k]));
            let next = (row.step)(Scalar::read_at(sums, 3, &[r, l]), &a, &b);
            kernel(target, row.name, sums, vec![x, w], tasks, &[ROUNDS], next)
        }
    }
}

/// Products of tiles: in each round two of rows and two of columns are loaded, and all four products are added up.
fn in_tiles(dot: &Dot) -> Kernel {
    let [left, right, sums] = dot.dtypes;
    let products = 64 / left.bytes() as i64;
    let group = 4 / left.bytes() as i64;
    let buffers = vec![
        buffer("x", left, &[2 * TILE, products], Space::Global, Access::Read),
        buffer("w", right, &[products / group, 2 * TILE, group], Space::Global, Access::Read),
        buffer("out", sums, &[2 * TILE, 2 * TILE], Space::Global, Access::Write),
        buffer("acc", sums, &[2, 2, TILE, TILE], Space::Reg, Access::ReadWrite),
    ];
    // Variables: 0 the task, 1 the round, then two for each loop over a tile.
    let mut vars = 2;
    let mut over = |make: &dyn Fn(&[Expr], [Expr; 2]) -> Stmt| -> Vec<Stmt> {
        let each_tile = (0..4).map(|k| {
            let [i, j] = [vars, vars + 1].map(Expr::var);
            vars += 2;
            let tile = [Expr::int(k / 2), Expr::int(k % 2), i, j];
            let whole = [i + k / 2 * TILE, j + k % 2 * TILE];
            each(i, TILE, LoopKind::Matrix, vec![each(j, TILE, LoopKind::Serial, vec![make(&tile, whole)])])
        });
        each_tile.collect()
    };
    let at = |e: &[Expr]| e.iter().map(|&e| Scalar::index(e)).collect::<Vec<_>>();
    let store = |buffer: u32, index: &[Expr], value: Scalar| Stmt::Store { buffer, index: at(index), value };
    let row = rows::named(dot.row).expect("a row of tiles");
    let clear = over(&|tile, _| store(3, tile, Scalar::number(sums, 0.0)));
    let next = over(&|tile, [i, j]| {
        let a: Vec<Scalar> = (0..products).map(|k| Scalar::read_at(left, 0, &[i, Expr::int(k)]).cast(sums)).collect();
        let b = (0..products).map(|k| Scalar::read_at(right, 1, &[Expr::int(k / group), j, Expr::int(k % group)]).cast(sums));
        store(3, tile, (row.step)(Scalar::read_at(sums, 3, tile), &a, &b.collect::<Vec<_>>()))
    });
    let finish = over(&|tile, whole| store(2, &whole, Scalar::read_at(sums, 3, tile)));
    let rounds = each(Expr::var(1), TILE_ROUNDS, LoopKind::Serial, next);
    let body = [vec![Stmt::Alloc { buffer: 3 }], clear, vec![rounds], finish].concat();
    let axes = Axes::default();
    Kernel { name: dot.row.into(), buffers, symbols: vec![], tasks: Expr::int(1), task: 0, body, axes, boxes: Boxes::default() }
}

/// Sums of all of a range, read over and over; each task has a range of its own.
fn reading(target: &TargetDesc, bytes: u64, tasks: i64) -> Kernel {
    let (lanes, units) = (target.lanes(4) as i64, units(target, bytes));
    let [task, r, l] = [0, 1, 2].map(Expr::var);
    let x = buffer("x", DType::F32, &[tasks, units, CHAINS, lanes], Space::Global, Access::Read);
    let next = Scalar::read_at(DType::F32, 2, &[r, l]) + Scalar::read_at(DType::F32, 0, &[task, Expr::var(6), r, l]);
    kernel(target, "read", DType::F32, vec![x], tasks, &[repeats(bytes), units], next)
}

/// Writes ones, so that memory is there when it is read.
fn filling(of: &Buffer) -> Kernel {
    let mut out = of.clone();
    out.access = Access::Write;
    let vars: Vec<Expr> = (1..=out.dims.len()).map(Expr::var).collect();
    let value = Scalar::number(out.dtype, 1.0);
    let mut body = vec![Stmt::Store { buffer: 0, index: vars.iter().map(|&v| Scalar::index(v)).collect(), value }];
    for (&v, d) in vars.iter().zip(&out.dims).rev() {
        body = vec![each(v, d.known().expect("sizes are known"), LoopKind::Serial, body)];
    }
    let axes = Axes::default();
    Kernel {
        name: "fill".into(),
        buffers: vec![out],
        symbols: vec![],
        tasks: Expr::int(1),
        task: 0,
        body,
        axes,
        boxes: Boxes::default(),
    }
}

/// The least time of each kernel.
fn nanoseconds(target: &TargetDesc, kernels: &[Kernel], threads: usize, time: Duration) -> Result<Vec<f64>, Problems> {
    let mut all: Vec<Kernel> = vec![];
    let mut program = Program::default();
    let mut offset = 0u64;
    let mut measured = vec![];
    for kernel in kernels {
        let mut views = vec![];
        for b in kernel.buffers.iter().filter(|b| b.space == Space::Global) {
            let bytes = b.span().known().expect("sizes are known") as u64 * b.dtype.bytes() as u64;
            let view = View { buffer: program.buffers.len() as u32, offset: Size::constant(0) };
            let place = Place::Arena { first: 0, last: u32::MAX - 1, offset: Some(offset) };
            program.buffers.push(program::Buffer { bytes: Size::constant(bytes as i64), place });
            offset += bytes.next_multiple_of(4096);
            if b.access == Access::Read {
                launch(&mut program, &mut all, filling(b), vec![view.clone()]);
            }
            views.push(view);
        }
        measured.push(program.steps.len());
        launch(&mut program, &mut all, kernel.clone(), views);
    }
    let last = program.steps.len() as u32 - 1;
    for b in &mut program.buffers {
        if let Place::Arena { last: l, .. } = &mut b.place {
            *l = last;
        }
    }
    program.arena = Some(offset);
    let code = target::backend(target)?.emit(&all)?;
    replay::place(&mut program, &code);
    let model = replay::load(&program, &code, &[], &Options::for_target(target.clone()))?;
    let options = infc_runtime::Options { threads: Some(threads), profile: true, ..infc_runtime::Options::default() };
    let failed = |e: infc_runtime::Error| Problems::one("measuring this machine", e.to_string(), "");
    let mut session = Session::new(model, options).map_err(failed)?;
    let mut best = vec![f64::INFINITY; kernels.len()];
    let begin = Instant::now();
    let mut before: Vec<StepTime> = vec![];
    let mut runs = 0;
    while runs < 3 || begin.elapsed() < time {
        session.run().map_err(failed)?;
        let now = session.times().to_vec();
        for (best, &step) in best.iter_mut().zip(&measured) {
            let earlier = before.get(step).map_or(0, |t| t.nanoseconds);
            *best = best.min((now[step].nanoseconds - earlier) as f64);
        }
        before = now;
        runs += 1;
    }
    Ok(best)
}

fn launch(program: &mut Program, all: &mut Vec<Kernel>, kernel: Kernel, buffers: Vec<View>) {
    let tasks = Size::constant(kernel.tasks.known().expect("sizes are known"));
    let number = all.len() as u32;
    program.kernels.push(program::Kernel { name: kernel.name.clone(), entry: 0, scratch: 0 });
    program.steps.push(Step::Launch { kernel: number, buffers, extents: vec![], tasks });
    all.push(kernel);
}

#[cfg(test)]
mod tests {
    use super::*;
    use infc_kernel::loops::{interp, verify::verify};

    #[test]
    fn the_nests_are_sound_and_count_what_they_say() {
        let text = "name = \"t\"\nbackend = \"b\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = []\nvector_bytes = 16\nvector_registers = 16\nfma = true\n\
                    byte_dot = true\nbf16_dot = true\nl1_bytes = 4096\nl2_bytes = 8192\nl3_bytes = 16384\n";
        let target = TargetDesc::from_toml(text).expect("a machine file");
        let [bytes, shorts] = ["byte_dot", "bf16_dot"].map(|name| arithmetic(&target, rows::named(name), 2));
        let [tiles, more] = [0, 1].map(|k| in_tiles(&TILES[k]));
        for kernel in [arithmetic(&target, None, 2), bytes, shorts, tiles, more, reading(&target, 2048, 2)] {
            assert_eq!(verify(&kernel), Ok(()), "{}", kernel.name);
        }
        // All of the range, as often as it says: the sums of ones count the elements read.
        let kernel = reading(&target, 2048, 1);
        let ones: Vec<u8> = (0..480).flat_map(|_| 1.0f32.to_le_bytes()).collect();
        let mut memory = vec![ones, vec![0; 48 * 4]];
        assert!(interp::run(&kernel, &[], &mut memory).is_ok());
        let count = (units(&target, 2048) * repeats(2048)) as f32;
        assert!(memory[1].chunks_exact(4).all(|b| b == count.to_le_bytes()), "{count}");
        assert_eq!(units(&target, 2048), 10);
    }
}
