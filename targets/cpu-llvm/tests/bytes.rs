//! Products of bytes, four at a time: on every machine the machine code gives what an obvious loop gives, at the ends of both ranges too.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_llvm::Llvm;
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

/// Do the machine's instructions take signed bytes alone?
fn signed_only(target: &TargetDesc) -> bool {
    target.byte_dot_signed && !target.byte_dot && !target.byte_pairs
}

/// The row that adds up products of bytes in vectors.
fn row_of(target: &TargetDesc) -> &'static str {
    match (target.byte_dot, signed_only(target)) {
        (true, _) => "byte_dot",
        (_, true) => "byte_dot_signed",
        _ => "byte_pairs",
    }
}

/// The dtype in which data lies: that of the instructions, or the one that becomes it when its top bit is flipped.
fn dtype_of(target: &TargetDesc, flip: bool) -> DType {
    if signed_only(target) == flip { DType::U8 } else { DType::I8 }
}

/// A byte of data as the instructions take it.
fn byte(target: &TargetDesc, flip: bool, source: usize, at: &[Expr]) -> Scalar {
    let x = Scalar::read_at(dtype_of(target, flip), source, at);
    let (other, bit) = if signed_only(target) { (DType::I8, -128) } else { (DType::U8, 128) };
    if flip { Scalar::binary(Binary::Xor, x.bitcast(other), Scalar::int(other, bit)) } else { x }
}

/// Data of 0 to 255 as it lies in memory. Where instructions take signed bytes it stands for numbers that are smaller by 128.
fn stored(target: &TargetDesc, flip: bool, xs: &[u8]) -> Vec<u8> {
    xs.iter().map(|&x| if signed_only(target) == flip { x } else { x ^ 128 }).collect()
}

/// `want` less what the smaller numbers make of it: 128 times the sum of the weights, for each element.
fn expected(target: &TargetDesc, want: &[i32], weights: impl Fn(usize) -> i32) -> Vec<i32> {
    let less = if signed_only(target) { 128 } else { 0 };
    want.iter().enumerate().map(|(at, v)| v - less * weights(at)).collect()
}

/// `out[m, n] = sum over k of i32(x[m, k]) * i32(w[k, n])`, and the row that adds the products up.
fn product(m: usize, k: usize, n: usize, w: &[i8], target: &TargetDesc) -> (Nest, &'static str) {
    let step = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let x = byte(target, false, 0, &[o[0], r[0]]).cast(DType::I32);
            x * Scalar::read_at(DType::I8, 1, &[r[0], o[1]]).cast(DType::I32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::I8, [k, n], w.iter().map(|&b| b as u8).collect::<Vec<u8>>());
    let operands = [
        operand(dtype_of(target, false), &[m, k], None),
        operand(DType::I8, &[k, n], Some(weights)),
        operand(DType::I32, &[m, n], None),
    ];
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

/// The machines that add up products of bytes in groups.
fn grouping() -> Vec<Llvm> {
    hosts().into_iter().filter(|l| l.target().groups_bytes()).collect()
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
        for llvm in grouping() {
            let (nest, row) = product(m, k, n, w, llvm.target());
            let tiles = llvm.target().tile_bytes && row == "amx_u8s8";
            prop_assert!(tiles || row == row_of(llvm.target()), "{}", row);
            let packed = nest.packed.iter().find(|p| p.source == 1).expect("weights in panels").tensor.bytes().to_vec();
            let want = expected(llvm.target(), &want, |at| (0..k).map(|q| i32::from(w[q * n + at % n])).sum());
            let mut buffers = vec![stored(llvm.target(), false, x), packed, vec![0xa5; m * n * 4]];
            prop_assert_eq!(run(&llvm, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{}", llvm.target().name);
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
/// of bytes as the instructions take them, or of others with their top bits flipped.
fn pointwise([m, k, n]: [usize; 3], w: &[i8], (last, flip): (bool, bool), target: &TargetDesc) -> (Nest, Brgemm) {
    let dtype = dtype_of(target, flip);
    let step = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let x = byte(target, flip, 1, &[r[0], o[1]]);
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
        let at = |q: usize, j: usize| if last { j * k + q } else { q * n + j };
        let sum = |i: usize, j: usize| (0..k).map(|q| i32::from(w[i * k + q]) * i32::from(x[at(q, j)])).sum::<i32>();
        let want: Vec<i32> = (0..m * n).map(|at| sum(at / n, at % n)).collect();
        let weights: Vec<u8> = w.iter().map(|&b| b as u8).collect();
        for llvm in grouping() {
            let (nest, p) = pointwise([m, k, n], w, (last, flip), llvm.target());
            // Few rows take data that lies in place as it is.
            let (row, target) = (row_of(llvm.target()), llvm.target());
            let enough = if row == "byte_pairs" { 4 } else { 2 };
            let grouped = k % 4 == 0 && (last || m >= enough);
            prop_assert_eq!(p.row, if grouped { row } else { "mul_add" }, "{:?} {} {:?}", (m, k, n, last), llvm.target().name, p);
            prop_assert_eq!(!last && p.panels == Panels::Scratch, !last && grouped);
            let want = expected(target, &want, |at| (0..k).map(|q| i32::from(w[at / n * k + q])).sum());
            let w = nest.packed.iter().find(|p| p.source == 0).map_or(weights.clone(), |p| p.tensor.bytes().to_vec());
            let mut buffers = vec![w, stored(target, flip, x), vec![0xa5; m * n * 4]];
            prop_assert_eq!(run(&llvm, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{} {:?}", llvm.target().name, p);
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
            let x = byte(target, false, 0, &at).cast(DType::I32);
            x * Scalar::read_at(DType::I8, 1, &[o[m.len()], r[0]]).cast(DType::I32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::I8, [n, k], weights.iter().map(|&b| b as u8).collect::<Vec<u8>>());
    let mut lines: Vec<usize> = [k].into_iter().chain(m).collect();
    if let Some(last) = lines.last_mut() {
        *last += gap;
    }
    let operands = [
        operand(dtype_of(target, false), &lines, None),
        operand(DType::I8, &[n, k], Some(weights)),
        operand(DType::I32, &dims, None),
    ];
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
        for llvm in grouping() {
            let (nest, p) = crosswise([h, w, k, n], gap, weights, llvm.target());
            let (row, target) = (row_of(llvm.target()), llvm.target());
            let grouped = k % 4 == 0 && w >= 8;
            prop_assert_eq!(p.row, if grouped { row } else { "mul_add" }, "{:?} {} {:?}", (h, w, k, n), llvm.target().name, p);
            prop_assert_eq!(p.copied, grouped);
            let packed = nest.packed.iter().find(|p| p.source == 1).expect("weights in panels").tensor.bytes().to_vec();
            let want = expected(target, &want, |at| (0..k).map(|q| i32::from(weights[at % n * k + q])).sum());
            let mut buffers = vec![stored(target, false, x), packed, vec![0xa5; lines * w * n * 4]];
            prop_assert_eq!(run(&llvm, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{} {:?}", llvm.target().name, p);
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
            let x = byte(target, false, 0, &[o[0] + r[0], o[1]]).cast(DType::I32);
            x * Scalar::read_at(DType::I8, 1, &[r[0], o[1]]).cast(DType::I32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::I8, [k, c], w.iter().map(|&b| b as u8).collect::<Vec<u8>>());
    let operands = [
        operand(dtype_of(target, false), &[h + k - 1, c], None),
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
        for llvm in grouping() {
            let (nest, taps) = depthwise([h, c, k], w, llvm.target());
            prop_assert_eq!(taps, Some(0), "{}", llvm.target().name);
            let packed = nest.packed.iter().find(|p| p.source == 1).expect("weights in groups").tensor.bytes().to_vec();
            let want = expected(llvm.target(), &want, |at| (0..k).map(|q| i32::from(w[q * c + at % c])).sum());
            let mut buffers = vec![stored(llvm.target(), false, x), packed, vec![0xa5; h * c * 4]];
            prop_assert_eq!(run(&llvm, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[2].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{}", llvm.target().name);
        }
    }
}

#[test]
fn groups_are_copied_as_words() {
    for last in [false, true] {
        let llvm = Llvm::named("x86-64-v4-vnni").expect("a machine of this backend");
        let (nest, p) = pointwise([48, 48, 40], &[1; 48 * 48], (last, false), llvm.target());
        let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        let count = |word: &str| asm.lines().filter(|l| l.contains(word)).count();
        assert!(p.row == "byte_dot" && count("vpdpbusd") >= 8, "{asm}");
        assert_eq!((count("vpextrb"), count("vpinsrb")), (0, 0), "{asm}");
    }
}

#[test]
fn machines_without_the_instruction_multiply_pairs_of_words() {
    for llvm in grouping().into_iter().filter(|l| !l.target().tile_bytes) {
        let (nest, _) = product(28, 64, 64, &[1; 64 * 64], llvm.target());
        let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        let names = |l: &str| l.trim_start().trim_start_matches("{vex}").trim_start().trim_start_matches('v').to_owned();
        let count = |word: &str| asm.lines().filter(|l| names(l).starts_with(word)).count();
        let names = match llvm.target().arch.as_str() {
            "aarch64" => ["smull", "usdot", "sdot"],
            "wasm32" => ["i32x4.dot_i16x8_s", "none", "none"],
            _ => ["pmaddwd", "pdpbusd", "none"],
        };
        let row = row_of(llvm.target());
        assert_eq!(names.map(|n| count(n) > 0), ["byte_pairs", "byte_dot", "byte_dot_signed"].map(|r| r == row), "{asm}");
    }
}

#[test]
fn machines_without_avx512_take_the_short_form() {
    let llvm = Llvm::named("x86-64-v3-vnni").expect("a machine of this backend");
    let (nest, row) = product(28, 64, 64, &[1; 64 * 64], llvm.target());
    let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
    let lines: Vec<&str> = asm.lines().filter(|l| l.contains("vpdpbusd")).collect();
    // LLVM marks the VEX form; the other one would need AVX-512.
    assert!(row == "byte_dot" && lines.len() >= 8 && lines.iter().all(|l| l.contains("{vex}") && l.contains("%ymm")), "{asm}");
}

#[test]
fn machines_without_groups_widen_as_they_multiply() {
    for name in ["riscv64-v", "riscv64-v256", "riscv64-rva23"] {
        let llvm = Llvm::named(name).expect("a machine of this backend");
        let (nest, row) = product(28, 64, 64, &[1; 64 * 64], llvm.target());
        let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        assert_eq!(row, "mul_add");
        let count = asm.lines().filter(|l| l.contains("vwmacc.vx")).count();
        // Earlier ones widen factors to 32 bits, and multiply then.
        let widens = infc_cpu_llvm::llvm().expect("it has made code").version.starts_with("LLVM 22");
        assert!(count >= 8 || !widens, "{asm}");
    }
}
