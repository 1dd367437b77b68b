//! Random loop nests with every kind of loop, masks, guarded reads, indices from data and buffers of their own.

use crate::{buffer, each, floats, kernel, memory, store, to_floats};
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Expr, Scalar, eval};
use infc_kernel::loops::{Access, Buffer, Kernel, LoopKind, Space, Stmt, interp};
use proptest::prelude::*;

const ROWS: i64 = 5;
const COLUMNS: i64 = 7;

/// Sources: f32 table, i64 table (also used as indices), u8 table, f16 table, a line of f32; then the result and two buffers of
/// the kernel's own.
const SOURCES: [DType; 4] = [DType::F32, DType::I64, DType::U8, DType::F16];
const LINE: u32 = 4;
/// The result.
pub const OUT: u32 = 5;
const REG: u32 = 6;
const TILE: u32 = 7;

/// The loops of a nest: task, serial, vector, unrolled (variables 0 to 3).
#[derive(Clone, Debug)]
pub struct Nest {
    /// Their extents.
    pub tasks: i64,
    /// Also the value of the kernel's symbol.
    pub serial: i64,
    vector: i64,
    unroll: i64,
    symbol: bool,
    value: Scalar,
    reduced: Scalar,
    cond: Scalar,
    masked: bool,
    data: Vec<i64>,
}

fn index() -> impl Strategy<Value = Expr> {
    let leaf =
        prop_oneof![(0usize..4).prop_map(Expr::var), Just(Expr::var(2)), (-4i64..9).prop_map(Expr::int), Just(Expr::sym("n"))];
    leaf.prop_recursive(2, 8, 2, |inner| {
        (inner.clone(), inner, 0..7, 1i64..5).prop_map(|(a, b, op, k)| match op {
            0 => a + b,
            1 => a - b,
            2 => a * k,
            3 => a.div(Expr::int(k)),
            4 => a.rem(Expr::int(k)),
            5 => a.min(b),
            _ => a.max(b),
        })
    })
}

/// An element of a source at an index that is in bounds; sometimes one that comes from data, sometimes guarded.
fn read() -> impl Strategy<Value = Scalar> {
    (0usize..4, index(), index(), 0..7, -2i64..6).prop_map(|(source, a, b, form, step)| {
        let d = SOURCES[source];
        let row = Scalar::index(a.rem(Expr::int(ROWS)));
        let column = Scalar::index(b.rem(Expr::int(COLUMNS)));
        let from_data = |e: Scalar, n: i64| {
            let v = Scalar::read(DType::I64, 1, [e, column]);
            Scalar::binary(Binary::Mod, v, Scalar::index(n))
        };
        match form {
            // Neighbours, every second element and so on, backwards.
            6 => Scalar::read_at(DType::F32, LINE as usize, &[Expr::var(2) * step + Expr::var(1) + 40]),
            0 => Scalar::read(d, source, [from_data(row, ROWS), column]),
            1 => Scalar::read(d, source, [row, from_data(row, COLUMNS)]),
            2 => {
                // Out of bounds where the guard does not hold.
                let (r, k) = (Scalar::index(a), Scalar::index(b));
                let inside = r.within(0, ROWS).and(k.within(0, COLUMNS));
                Scalar::read_if(source, [r, k], inside, Scalar::number(d, 3.0))
            }
            3 => Scalar::read_if(source, [row, Scalar::index(b)], Scalar::index(b).within(0, COLUMNS), Scalar::number(d, 0.0)),
            _ => Scalar::read(d, source, [row, column]),
        }
    })
}

/// A value of f32.
fn value() -> impl Strategy<Value = Scalar> {
    let leaf = prop_oneof![
        4 => read().prop_map(|s| s.cast(DType::F32)),
        1 => index().prop_map(|e| Scalar::index(e).cast(DType::F32)),
        1 => (-3i64..4).prop_map(|v| Scalar::float(DType::F32, v as f64 * 0.75)),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        (inner.clone(), inner.clone(), inner, 0..12).prop_map(|(a, b, c, op)| match op {
            0 | 1 => a + b,
            2 => a - b,
            3 => a * b,
            4 => a.min(b),
            5 => a.max(b),
            6 => Scalar::select(a.lt(b), b, c),
            7 => Scalar::unary(Unary::Floor, a),
            8 => a.cast(DType::I32).cast(DType::F32),
            9 => a.cast(DType::F16).cast(DType::F32) + b,
            10 => Scalar::unary(Unary::Abs, a),
            _ => a.cast(DType::U8).cast(DType::F32),
        })
    })
}

/// A random nest.
pub fn nest() -> impl Strategy<Value = Nest> {
    let loops = (1i64..4, 0i64..5, 1i64..20, 1i64..4, any::<bool>(), any::<bool>());
    let condition = (index(), index(), value(), value(), 0..3).prop_map(|(a, b, x, y, form)| match form {
        0 => Scalar::index(a).lt(Scalar::index(b)),
        1 => Scalar::index(Expr::var(2) + a).lt(Scalar::index(b + 3)),
        _ => x.lt(y),
    });
    let data = proptest::collection::vec(-40i64..40, (ROWS * COLUMNS) as usize);
    (loops, value(), value(), condition, data).prop_map(
        |((tasks, serial, vector, unroll, symbol, masked), value, reduced, cond, data)| Nest {
            tasks,
            serial,
            vector,
            unroll,
            symbol,
            value,
            reduced,
            cond,
            masked,
            data,
        },
    )
}

/// Its kernel.
pub fn build(nest: &Nest) -> Kernel {
    let table = [Expr::int(ROWS), Expr::int(COLUMNS)];
    let mut buffers: Vec<Buffer> = SOURCES.iter().map(|&d| buffer("in", d, &table, Space::Global, Access::Read)).collect();
    buffers.push(buffer("line", DType::F32, &[Expr::int(160)], Space::Global, Access::Read));
    let out = [nest.tasks, nest.unroll, nest.vector].map(Expr::int);
    buffers.push(buffer("out", DType::F32, &out, Space::Global, Access::ReadWrite));
    buffers.push(buffer("acc", DType::F32, &[Expr::int(nest.vector)], Space::Reg, Access::ReadWrite));
    buffers.push(buffer("tile", DType::F16, &[Expr::int(nest.vector), Expr::int(2)], Space::Tile, Access::ReadWrite));
    let [task, lane, u] = [0, 2, 3].map(Expr::var);
    let acc = Scalar::read_at(DType::F32, REG as usize, &[lane]);
    let tile = Scalar::read_at(DType::F16, TILE as usize, &[lane, u.rem(Expr::int(2))]).cast(DType::F32);
    let mut update = store(REG, &[lane], acc + nest.reduced);
    if nest.masked {
        update = Stmt::If { cond: nest.cond, then: vec![update], otherwise: vec![store(REG, &[lane], acc - tile)] };
    }
    let extent = if nest.symbol { Expr::sym("n") } else { Expr::int(nest.serial) };
    let value = nest.value.map_index(&|e| e.subst(&[task, task + 1, lane, u]));
    let vector = each(
        2,
        nest.vector,
        LoopKind::Vector,
        vec![
            Stmt::Alloc { buffer: REG },
            store(REG, &[lane], Scalar::float(DType::F32, 0.0)),
            store(TILE, &[lane, u.rem(Expr::int(2))], value.cast(DType::F16)),
            each(1, extent, LoopKind::Serial, vec![update]),
            Stmt::Let { local: 0, value: acc + tile },
            Stmt::Check { cond: Scalar::local(DType::F32, 0).lt(Scalar::float(DType::F32, 5000.0)), code: 6 },
            store(OUT, &[task, u, lane], Scalar::local(DType::F32, 0) + value),
        ],
    );
    let body = vec![Stmt::Alloc { buffer: TILE }, each(3, nest.unroll, LoopKind::Unroll, vec![vector])];
    let mut kernel = kernel(buffers, &["n"], body);
    kernel.tasks = Expr::int(nest.tasks);
    kernel.task = 0;
    kernel
}

/// The memory that its kernel runs on.
pub fn buffers(nest: &Nest) -> Vec<Vec<u8>> {
    let mut inputs: Vec<Vec<u8>> = SOURCES
        .iter()
        .map(|&d| {
            let values: Vec<u64> = nest
                .data
                .iter()
                .map(
                    |&v| if d.is_float() { eval::round_float(d, v as f64 * 0.37).to_bits() } else { eval::wrap_int(d, v) as u64 },
                )
                .collect();
            memory(d, &values)
        })
        .collect();
    inputs.push(floats(&(0..160).map(|i| (i * i % 77) as f32 * 0.5).collect::<Vec<_>>()));
    inputs.push(vec![0; (nest.tasks * nest.unroll * nest.vector * 4) as usize]);
    inputs
}

/// What the loop interpreter makes of it: the status that a backend's function gives, and the memory afterwards.
pub fn interpreted(nest: &Nest, kernel: &Kernel) -> (u64, Vec<Vec<u8>>) {
    let mut memory = buffers(nest);
    let status = match interp::run(kernel, &[nest.serial], &mut memory) {
        Ok(()) => 0,
        Err(interp::Stop::Check(code)) => u64::from(code) + 1,
        Err(interp::Stop::Internal(what)) => panic!("{what}"),
    };
    (status, memory)
}

/// The first element of the result that differs, with what it should be.
pub fn difference(got: &[Vec<u8>], want: &[Vec<u8>]) -> Option<String> {
    let pairs = to_floats(&got[OUT as usize]).into_iter().zip(to_floats(&want[OUT as usize])).enumerate();
    pairs.into_iter().find_map(|(at, (g, w))| {
        let equal = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        (!equal).then(|| format!("element {at}: {g}, want {w}"))
    })
}
