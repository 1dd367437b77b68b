//! Products of bytes, four at a time: on every machine the machine code gives what an obvious loop gives, at the ends of both ranges too.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_cranelift::Cranelift;
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::scalar::Binary;
use infc_ir::{DType, Expr, Scalar, Tensor};
use infc_kernel::backend::Backend;
use infc_kernel::build::{self, Nest, Operand};
use infc_kernel::loops::{Access, Buffer, Space};
use infc_kernel::plan::{self, Brgemm, Panels, Plan};
use infc_kernel::target::TargetDesc;
use proptest::prelude::*;
use support::*;

fn operand(dtype: DType, dims: &[usize], constant: Option<Tensor>) -> Operand {
    let dims: Vec<Expr> = dims.iter().map(|&d| Expr::from(d)).collect();
    let strides = Buffer::row_major(&dims);
    let shift = vec![0; dims.len()];
    let buffer = Buffer { name: String::new(), dtype, dims, strides, space: Space::Global, access: Access::Read };
    Operand { buffer, shift, zeros: vec![], constant, tf32: false, narrow: None }
}

/// `out[m, n] = sum over k of i32(x[m, k]) * i32(w[k, n])`, and the row that adds the products up.
fn product(m: usize, k: usize, n: usize, w: &[i8], target: &TargetDesc) -> (Nest, &'static str) {
    let step = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let x = Scalar::read_at(DType::U8, 0, &[o[0], r[0]]).cast(DType::I32);
            x * Scalar::read_at(DType::I8, 1, &[r[0], o[1]]).cast(DType::I32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::I8, [k, n], w.iter().map(|&b| b as u8).collect::<Vec<u8>>());
    let operands =
        [operand(DType::U8, &[m, k], None), operand(DType::I8, &[k, n], Some(weights)), operand(DType::I32, &[m, n], None)];
    let step = Step::Compute(step);
    let plan = plan::choose(&step, &operands, target);
    let row = match &plan {
        Plan::Brgemm(p) => p.row,
        Plan::Matrix(p) => p.row,
        _ => panic!("{plan}"),
    };
    (build::build("product", &step, &plan, &operands, target), row)
}

fn unsigned() -> impl Strategy<Value = u8> {
    prop_oneof![Just(255), Just(0), Just(128), any::<u8>()]
}

fn signed() -> impl Strategy<Value = i8> {
    prop_oneof![Just(-128), Just(127), Just(-1), any::<i8>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn sums_of_bytes(
        m in 1usize..9, groups in 1usize..6, n in 4usize..40, xs in prop::collection::vec(unsigned(), 200), ws in prop::collection::vec(signed(), 800),
    ) {
        let k = 4 * groups;
        let (x, w) = (&xs[..m * k], &ws[..k * n]);
        let sum = |i: usize, j: usize| (0..k).map(|q| i32::from(x[i * k + q]) * i32::from(w[q * n + j])).sum::<i32>();
        let want: Vec<i32> = (0..m * n).map(|at| sum(at / n, at % n)).collect();
        for machine in hosts() {
            let (nest, row) = product(m, k, n, w, machine.target());
            prop_assert!(row == if machine.target().byte_dot { "byte_dot" } else { "byte_pairs" }, "{}", row);
            let packed = nest.packed.iter().find(|p| p.source == 1).expect("weights in panels").tensor.bytes().to_vec();
            let mut buffers = vec![x.to_vec(), packed, vec![0xa5; m * n * 4]];
            prop_assert_eq!(run(&machine, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{}", machine.target().name);
        }
    }
}

/// The nest and the plan of a product in register tiles.
fn register_tiles(step: Compute, operands: &[Operand], target: &TargetDesc) -> (Nest, Brgemm) {
    let step = Step::Compute(step);
    let plan = plan::choose(&step, operands, target);
    let Plan::Brgemm(p) = &plan else { panic!("{plan}") };
    (build::build("bytes", &step, &plan, operands, target), p.clone())
}

/// `out[m, n] = sum over k of i32(w[m, k]) * i32(x[k, n])`: a pointwise convolution whose results lie channels first, with data that does too, or not;
/// of unsigned bytes, or of signed ones with their top bits flipped.
fn pointwise([m, k, n]: [usize; 3], w: &[i8], (last, signed): (bool, bool), target: &TargetDesc) -> (Nest, Brgemm) {
    let dtype = if signed { DType::I8 } else { DType::U8 };
    let step = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let x = Scalar::read_at(dtype, 1, &[r[0], o[1]]);
            let flipped = || Scalar::binary(Binary::Xor, x.bitcast(DType::U8), Scalar::int(DType::U8, 128));
            let x = if signed { flipped() } else { x };
            Scalar::read_at(DType::I8, 0, &[o[0], r[0]]).cast(DType::I32) * x.cast(DType::I32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::I8, [m, k], w.iter().map(|&b| b as u8).collect::<Vec<u8>>());
    let mut data = operand(dtype, &[k, n], None);
    if last {
        data.buffer.strides = Buffer::strides_in_order(&data.buffer.dims, &[1, 0]);
    }
    let operands = [operand(DType::I8, &[m, k], Some(weights)), data, operand(DType::I32, &[m, n], None)];
    register_tiles(step, &operands, target)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn data_is_copied_in_groups(
        m in 1usize..8, k in prop::sample::select(vec![4usize, 24, 48, 52, 5, 6, 7]), n in 9usize..40, last: bool, flip: bool,
        xs in prop::collection::vec(unsigned(), 40 * 52), ws in prop::collection::vec(signed(), 8 * 52),
    ) {
        let (x, w) = (&xs[..k * n], &ws[..m * k]);
        // As they lie in memory: the bits of signed bytes are those of unsigned ones with another top bit.
        let at = |q: usize, j: usize| if last { j * k + q } else { q * n + j };
        let data: Vec<u8> = x.iter().map(|&b| if flip { b ^ 128 } else { b }).collect();
        let sum = |i: usize, j: usize| (0..k).map(|q| i32::from(w[i * k + q]) * i32::from(x[at(q, j)])).sum::<i32>();
        let want: Vec<i32> = (0..m * n).map(|at| sum(at / n, at % n)).collect();
        let weights: Vec<u8> = w.iter().map(|&b| b as u8).collect();
        for machine in hosts() {
            let (nest, p) = pointwise([m, k, n], w, (last, flip), machine.target());
            // Few rows take data that lies in place as it is.
            let (row, enough) = if machine.target().byte_dot { ("byte_dot", 2) } else { ("byte_pairs", 4) };
            let grouped = k % 4 == 0 && (last || m >= enough);
            prop_assert_eq!(p.row, if grouped { row } else { "mul_add" }, "{:?} {} {:?}", (m, k, n, last), machine.target().name, p);
            prop_assert_eq!(!last && p.panels == Panels::Scratch, !last && grouped);
            let w = nest.packed.iter().find(|p| p.source == 0).map_or(weights.clone(), |p| p.tensor.bytes().to_vec());
            let mut buffers = vec![w, data.clone(), vec![0xa5; m * n * 4]];
            prop_assert_eq!(run(&machine, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{} {:?}", machine.target().name, p);
        }
    }
}

/// `out[y, x, o] = sum over k of i32(data[k, y, x]) * i32(w[o, k])`: results lie channels last, data channels first, in lines with a gap behind them. With
/// no height, rows are those of one axis.
fn crosswise([h, w, k, n]: [usize; 4], gap: usize, weights: &[i8], target: &TargetDesc) -> (Nest, Brgemm) {
    let m: Vec<usize> = if h == 0 { vec![w] } else { vec![h, w] };
    let dims: Vec<usize> = m.iter().copied().chain([n]).collect();
    let step = Compute::reduce(
        &dims.iter().map(|&d| Expr::from(d)).collect::<Vec<_>>(),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let at: Vec<Expr> = [r[0]].into_iter().chain(o[..m.len()].iter().copied()).collect();
            let x = Scalar::read_at(DType::U8, 0, &at).cast(DType::I32);
            x * Scalar::read_at(DType::I8, 1, &[o[m.len()], r[0]]).cast(DType::I32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::I8, [n, k], weights.iter().map(|&b| b as u8).collect::<Vec<u8>>());
    let mut lines: Vec<usize> = [k].into_iter().chain(m).collect();
    if let Some(last) = lines.last_mut() {
        *last += gap;
    }
    let operands =
        [operand(DType::U8, &lines, None), operand(DType::I8, &[n, k], Some(weights)), operand(DType::I32, &dims, None)];
    register_tiles(step, &operands, target)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn rows_are_copied_in_groups(
        h in 0usize..8, w in 4usize..40, k in prop::sample::select(vec![4usize, 24, 48, 52, 5, 6, 7]), n in 8usize..40, gap in 0usize..3,
        xs in prop::collection::vec(unsigned(), 8 * 42 * 52), ws in prop::collection::vec(signed(), 40 * 52),
    ) {
        let (lines, wide) = (h.max(1), w + gap);
        let (x, weights) = (&xs[..k * lines * wide], &ws[..n * k]);
        let sum = |row: usize, o: usize| {
            let at = |q: usize| (q * lines + row / w) * wide + row % w;
            (0..k).map(|q| i32::from(x[at(q)]) * i32::from(weights[o * k + q])).sum::<i32>()
        };
        let want: Vec<i32> = (0..lines * w * n).map(|at| sum(at / n, at % n)).collect();
        for machine in hosts() {
            let (nest, p) = crosswise([h, w, k, n], gap, weights, machine.target());
            let row = if machine.target().byte_dot { "byte_dot" } else { "byte_pairs" };
            let grouped = k % 4 == 0 && w >= 8;
            prop_assert_eq!(p.row, if grouped { row } else { "mul_add" }, "{:?} {} {:?}", (h, w, k, n), machine.target().name, p);
            prop_assert_eq!(p.copied, grouped);
            let packed = nest.packed.iter().find(|p| p.source == 1).expect("weights in panels").tensor.bytes().to_vec();
            let mut buffers = vec![x.to_vec(), packed, vec![0xa5; lines * w * n * 4]];
            prop_assert_eq!(run(&machine, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{} {:?}", machine.target().name, p);
        }
    }
}

/// `out[y, c] = sum over k of i32(x[y + k, c]) * i32(w[k, c])`: a depthwise convolution, with channels last.
fn depthwise([h, c, k]: [usize; 3], w: &[i8], target: &TargetDesc) -> (Nest, Option<usize>) {
    let step = Compute::reduce(
        &[h, c].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let x = Scalar::read_at(DType::U8, 0, &[o[0] + r[0], o[1]]).cast(DType::I32);
            x * Scalar::read_at(DType::I8, 1, &[r[0], o[1]]).cast(DType::I32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::I8, [k, c], w.iter().map(|&b| b as u8).collect::<Vec<u8>>());
    let operands = [
        operand(DType::U8, &[h + k - 1, c], None),
        operand(DType::I8, &[k, c], Some(weights)),
        operand(DType::I32, &[h, c], None),
    ];
    let step = Step::Compute(step);
    let plan = plan::choose(&step, &operands, target);
    let Plan::Elementwise(p) = &plan else { panic!("{plan}") };
    (build::build("depthwise", &step, &plan, &operands, target), p.taps)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn windows_of_bytes(
        h in 2usize..12, c in 4usize..40, k in 2usize..9, xs in prop::collection::vec(unsigned(), 20 * 40), ws in prop::collection::vec(signed(), 9 * 40),
    ) {
        let (x, w) = (&xs[..(h + k - 1) * c], &ws[..k * c]);
        let sum = |y: usize, j: usize| (0..k).map(|q| i32::from(x[(y + q) * c + j]) * i32::from(w[q * c + j])).sum::<i32>();
        let want: Vec<i32> = (0..h * c).map(|at| sum(at / c, at % c)).collect();
        for machine in hosts() {
            let (nest, taps) = depthwise([h, c, k], w, machine.target());
            prop_assert_eq!(taps, Some(0), "{}", machine.target().name);
            let packed = nest.packed.iter().find(|p| p.source == 1).expect("weights in groups").tensor.bytes().to_vec();
            let mut buffers = vec![x.to_vec(), packed, vec![0xa5; h * c * 4]];
            prop_assert_eq!(run(&machine, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{}", machine.target().name);
        }
    }
}

#[test]
fn products_become_the_machines_instruction() {
    for (name, word, other) in [
        ("cranelift-x86-64", "pmaddwd", "pdpbusd"),
        ("cranelift-x86-64-v3", "vpmaddwd", "pdpbusd"),
        ("cranelift-x86-64-v3-vnni", "vpdpbusd", "pmaddwd"),
        ("cranelift-aarch64", "smull", "sdot"),
        ("cranelift-aarch64-i8mm", "usdot", "smull"),
    ] {
        let machine = Cranelift::named(name).expect("a machine of this backend");
        let (nest, row) = product(28, 64, 64, &[1; 64 * 64], machine.target());
        let asm = machine.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        let count = |word: &str| asm.lines().filter(|l| l.trim_start().starts_with(word)).count();
        assert_eq!(row, if machine.target().byte_dot { "byte_dot" } else { "byte_pairs" });
        assert!(count(word) >= 8 && !asm.contains(other), "{name}:\n{asm}");
    }
}
