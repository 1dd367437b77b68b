//! Products in tiles of AMX: machine code, the loop interpreter and an obvious loop give the same bits, for every shape and all kinds of numbers.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_llvm::{Llvm, machine};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::{DType, Expr, Scalar, Tensor};
use infc_kernel::backend::Backend;
use infc_kernel::build::{self, Nest, Operand, contract, matrix};
use infc_kernel::loops::verify::verify;
use infc_kernel::loops::{Access, Buffer, Space, interp};
use infc_kernel::plan::{self, Matrix, Plan};
use infc_kernel::target::{Math, TargetDesc};
use proptest::prelude::*;
use support::*;

/// The machine with all tiles, in a mode in which both kinds of 16 bits are taken.
fn target() -> TargetDesc {
    TargetDesc { math: Math::Bf16, ..machine("x86-64-v4-amx-fp16").expect("a machine of this backend") }
}

/// The backend, where this computer can run its code.
fn host() -> Option<Llvm> {
    Some(target()).filter(runs).map(Llvm::new)
}

fn operand(dtype: DType, dims: &[Expr], shift: i64, constant: Option<Tensor>) -> Operand {
    let strides = Buffer::row_major(dims);
    let buffer = Buffer { name: String::new(), dtype, dims: dims.to_vec(), strides, space: Space::Global, access: Access::Read };
    Operand {
        buffer,
        shift: dims.iter().enumerate().map(|(k, _)| if k == 1 || k == 2 { shift } else { 0 }).collect(),
        zeros: vec![],
        constant,
        tf32: false,
        narrow: None,
    }
}

/// A product with its data, and how it is to be computed.
struct Case {
    step: Compute,
    operands: Vec<Operand>,
    sums: DType,
}

/// The plan in tiles and its nest, if there is one.
fn planned(case: &Case) -> Option<(Matrix, Nest)> {
    let target = target();
    let p = contract::plan(&case.step, &case.operands, &target)?;
    let (plan, _) = matrix::fitting(&case.step, &case.operands, &p, &target)?;
    let nest = build::build("tiles", &Step::Compute(case.step.clone()), &Plan::Matrix(plan.clone()), &case.operands, &target);
    assert_eq!(verify(&nest.kernel), Ok(()), "{}", nest.kernel);
    Some((plan, nest))
}

/// The result after the nest ran, compiled or interpreted. Beyond the result lies what must not be touched.
fn ran(nest: &Nest, x: &[u8], out: usize, symbols: &[i64], llvm: Option<&Llvm>) -> Vec<u8> {
    let packed = nest.packed.iter().find(|p| p.source == 1).expect("weights in panels").tensor.bytes().to_vec();
    let mut buffers: Vec<Vec<u8>> = nest.sources.iter().map(|&s| if s == 1 { packed.clone() } else { x.to_vec() }).collect();
    buffers.push(vec![0xa5; out]);
    match llvm {
        Some(llvm) => assert_eq!(run(llvm, &nest.kernel, &mut buffers, symbols), 0),
        None => interp::run(&nest.kernel, symbols, &mut buffers).unwrap_or_else(|e| panic!("{e:?}\n{}", nest.kernel)),
    }
    buffers.pop().expect("the result")
}

/// Runs both ways and compares the words of the result with those wanted; any NaN is as good as another.
fn compare(nest: &Nest, x: &[u8], want: &[u32], sums: DType, symbols: &[i64]) {
    for llvm in [None, host()].iter().take(if host().is_some() { 2 } else { 1 }) {
        let got = ran(nest, x, want.len() * 4, symbols, llvm.as_ref());
        for (at, (g, &w)) in got.chunks_exact(4).zip(want).enumerate() {
            let g = u32::from_le_bytes(g.try_into().expect("four"));
            let nan = |v: u32| sums == DType::F32 && f32::from_bits(v).is_nan();
            assert!(
                g == w || nan(g) && nan(w),
                "element {at}: {g:08x} instead of {w:08x}, compiled: {}\n{}",
                llvm.is_some(),
                nest.kernel
            );
        }
    }
}

/// `out[m, n] = sum over k of x[m, k] * w[k, n]`; `symbolic`: the number of rows is known when it runs.
fn product([m, k, n]: [usize; 3], [x, w]: [DType; 2], weights: &[u8], symbolic: bool) -> Case {
    let sums = if x.is_float() { DType::F32 } else { DType::I32 };
    let rows = if symbolic { Expr::sym("rows") } else { Expr::from(m) };
    let step = Compute::reduce(
        &[rows, Expr::from(n)],
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| Scalar::read_at(x, 0, &[o[0], r[0]]).cast(sums) * Scalar::read_at(w, 1, &[r[0], o[1]]).cast(sums),
        |_, acc| acc,
    );
    let constant = Tensor::from_bytes(w, [k, n], weights.to_vec());
    let dims = [k, n].map(Expr::from);
    let operands = vec![
        operand(x, &[rows, Expr::from(k)], 0, None),
        operand(w, &dims, 0, Some(constant)),
        operand(sums, &[rows, Expr::from(n)], 0, None),
    ];
    Case { step, operands, sums }
}

/// Numbers near one, of any size, and special ones.
fn short() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => (0u16..0x400).prop_map(|v| 0x3e00 + (v & 0x1ff) + ((v >> 9) << 15)),
        1 => any::<u16>(),
        1 => prop::sample::select(vec![0, 0x8000, 1, 0x7f, 0x8001, 0x80, 0x7f80, 0xff80, 0x7fc0, 0x7f7f, 0xff7f, 0x0100, 0x2000]),
    ]
}

/// The same for f16.
fn half() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => (0u16..0x1000).prop_map(|v| 0x3800 + (v & 0x7ff) + ((v >> 11) << 15)),
        1 => any::<u16>(),
        1 => prop::sample::select(vec![0, 0x8000, 1, 0x3ff, 0x8001, 0x400, 0x7c00, 0xfc00, 0x7e00, 0x7bff, 0xfbff]),
    ]
}

fn float(v: u16) -> f32 {
    f32::from_bits(u32::from(v) << 16)
}

/// A sum as Intel's manual has TDPBF16PS, for as many products at a time as an instruction takes.
fn sum_of_pairs(pairs: &[(u16, u16)], products: usize) -> f32 {
    sum_of(pairs, products, &float)
}

/// The same for factors that are so many floats: TDPFP16PS does not count subnormal ones of f16 as zeros, and they are none of f32.
fn sum_of(pairs: &[(u16, u16)], products: usize, float: &dyn Fn(u16) -> f32) -> f32 {
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x };
    let mut sum = 0.0f32;
    for step in pairs.chunks(products) {
        let mut apart = [0.0f32; 2];
        for (k, &(a, b)) in step.iter().enumerate() {
            apart[k % 2] = flush(flush(float(a)).mul_add(flush(float(b)), apart[k % 2]));
        }
        sum = flush(flush(sum) + flush(apart[0] + apart[1]));
    }
    sum
}

fn shorts(v: &[u16]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn config(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases, ..default } }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn sums_of_bf16_are_the_same_bits(
        m in 1usize..70, pairs in 1usize..40, n in 4usize..70, symbolic: bool,
        xs in prop::collection::vec(short(), 5600), ws in prop::collection::vec(short(), 5600),
    ) {
        let k = 2 * pairs;
        let (x, w) = (&xs[..m * k], &ws[..k * n]);
        let case = product([m, k, n], [DType::BF16; 2], &shorts(w), symbolic);
        let Some((p, nest)) = planned(&case) else {
            prop_assert!(k <= 4 || (1..=32).all(|d| d <= 4 || d % 2 != 0 || k % d != 0), "{m} {k} {n}");
            return Ok(());
        };
        // Fewer rows than a tile has are summed up on vectors, pair by pair.
        let few = symbolic && m < p.rows;
        let want: Vec<u32> = (0..m * n).map(|at| {
            let (i, j) = (at / n, at % n);
            let pairs: Vec<(u16, u16)> = (0..k).map(|q| (x[i * k + q], w[q * n + j])).collect();
            if few { dots_of_pairs(&pairs) } else { sum_of_pairs(&pairs, p.products) }.to_bits()
        }).collect();
        compare(&nest, &shorts(x), &want, case.sums, &vec![m as i64; usize::from(symbolic)]);
    }

    /// Whatever the mode: products of f16 are exact in f32.
    #[test]
    fn sums_of_f16_are_the_same_bits(
        m in 1usize..70, pairs in 1usize..40, n in 4usize..70, symbolic: bool,
        xs in prop::collection::vec(half(), 5600), ws in prop::collection::vec(half(), 5600),
    ) {
        let k = 2 * pairs;
        let (x, w) = (&xs[..m * k], &ws[..k * n]);
        let case = product([m, k, n], [DType::F16; 2], &shorts(w), symbolic);
        let Some((p, nest)) = planned(&case) else {
            prop_assert!(k <= 4 || (1..=32).all(|d| d <= 4 || d % 2 != 0 || k % d != 0), "{m} {k} {n}");
            return Ok(());
        };
        // Fewer rows than a tile has are summed up on vectors, one after another.
        let few = symbolic && m < p.rows;
        let value = |v: u16| half::f16::from_bits(v).to_f32();
        let want: Vec<u32> = (0..m * n).map(|at| {
            let (i, j) = (at / n, at % n);
            let pairs: Vec<(u16, u16)> = (0..k).map(|q| (x[i * k + q], w[q * n + j])).collect();
            let chain = || pairs.iter().fold(0f32, |sum, &(a, b)| value(a).mul_add(value(b), sum));
            if few { chain() } else { sum_of(&pairs, p.products, &value) }.to_bits()
        }).collect();
        compare(&nest, &shorts(x), &want, case.sums, &vec![m as i64; usize::from(symbolic)]);
    }

    #[test]
    fn sums_of_bytes_are_exact(
        m in 1usize..70, groups in 1usize..40, n in 4usize..70, symbolic: bool, signed in any::<[bool; 2]>(),
        xs in prop::collection::vec(byte(), 11200), ws in prop::collection::vec(byte(), 11200),
    ) {
        let k = 4 * groups;
        let dtypes = signed.map(|s| if s { DType::I8 } else { DType::U8 });
        let (x, w) = (&xs[..m * k], &ws[..k * n]);
        let case = product([m, k, n], dtypes, w, symbolic);
        let Some((_, nest)) = planned(&case) else {
            prop_assert!((5..=64).all(|d| d % 4 != 0 || k % d != 0), "{m} {k} {n}");
            return Ok(());
        };
        let wide = |v: u8, signed: bool| if signed { i32::from(v as i8) } else { i32::from(v) };
        let want: Vec<u32> = (0..m * n).map(|at| {
            let (i, j) = (at / n, at % n);
            (0..k).map(|q| wide(x[i * k + q], signed[0]) * wide(w[q * n + j], signed[1])).sum::<i32>() as u32
        }).collect();
        compare(&nest, x, &want, case.sums, &vec![m as i64; usize::from(symbolic)]);
    }

    /// Windows over pictures with their channels last and a border: rows of a tile never leave a line of the picture.
    #[test]
    fn convolutions_read_pictures_where_they_lie(
        batch in 1usize..3, h in 1usize..6, w in 1usize..40, groups in 1usize..12, n in 4usize..40, window in 1usize..4, stride in 1usize..3,
        border in 0usize..2, symbolic: bool, xs in prop::collection::vec(byte(), 50000), ws in prop::collection::vec(byte(), 50000),
    ) {
        let c = 4 * groups;
        let [rows, columns] = [h, w].map(|d| (d - 1) * stride + window);
        let [tall, wide] = [rows, columns].map(|d| d + 2 * border);
        prop_assume!(batch * tall * wide * c <= xs.len() && n * c * window * window <= ws.len() && batch * h * w * n * c * window * window < 1 << 22);
        let dim = if symbolic { Expr::sym("batch") } else { Expr::from(batch) };
        let step = Compute::reduce(
            &[dim, Expr::from(h), Expr::from(w), Expr::from(n)],
            &[window, window, c].map(Expr::from),
            Reducer::Sum,
            |o, r| {
                let at = [o[0], o[1] * stride as i64 + r[0], o[2] * stride as i64 + r[1], r[2]];
                let x = Scalar::read_at(DType::U8, 0, &at).cast(DType::I32);
                x * Scalar::read_at(DType::I8, 1, &[o[3], r[2], r[0], r[1]]).cast(DType::I32)
            },
            |_, acc| acc,
        );
        let weights = &ws[..n * c * window * window];
        let constant = Tensor::from_bytes(DType::I8, [n, c, window, window], weights.to_vec());
        let operands = vec![
            operand(DType::U8, &[dim, Expr::from(tall), Expr::from(wide), Expr::from(c)], border as i64, None),
            operand(DType::I8, &[n, c, window, window].map(Expr::from), 0, Some(constant)),
            operand(DType::I32, &[dim, Expr::from(h), Expr::from(w), Expr::from(n)], 0, None),
        ];
        let case = Case { step, operands, sums: DType::I32 };
        let x = &xs[..batch * tall * wide * c];
        let Some((p, nest)) = planned(&case) else {
            prop_assert!(c * window <= 4 || (5..=64).all(|d| d % 4 != 0 || c % d != 0), "{c} {window}");
            return Ok(());
        };
        prop_assert!(p.rows <= 16 && p.products > 4);
        let at = |b: usize, y: usize, q: usize, k: usize| i32::from(x[((b * tall + y + border) * wide + q + border) * c + k]);
        let want: Vec<u32> = (0..batch * h * w * n).map(|e| {
            let (j, q, y, b) = (e % n, e / n % w, e / n / w % h, e / n / w / h);
            let mut sum = 0;
            for (k, (i, l)) in (0..c).flat_map(|k| (0..window).flat_map(move |i| (0..window).map(move |l| (k, (i, l))))) {
                sum += at(b, y * stride + i, q * stride + l, k) * i32::from(weights[((j * c + k) * window + i) * window + l] as i8);
            }
            sum as u32
        }).collect();
        compare(&nest, x, &want, DType::I32, &vec![batch as i64; usize::from(symbolic)]);
    }
}

fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![1 => Just(255), 1 => Just(0), 1 => Just(128), 1 => Just(127), 3 => any::<u8>()]
}

/// The same sum as VDPBF16PS makes it: pair by pair, the odd product first.
fn dots_of_pairs(pairs: &[(u16, u16)]) -> f32 {
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x };
    pairs.chunks(2).fold(0.0, |sum, p| {
        let add = |sum: f32, (a, b): (u16, u16)| flush(flush(float(a)).mul_add(flush(float(b)), sum));
        add(add(flush(sum), p[1]), p[0])
    })
}

/// Long sums are made in passes and wait in memory: the last rows and columns are missing, and there are several tasks.
#[test]
fn passes_go_on_with_the_same_sums() {
    for ([m, k, n], pass, rounds) in [([150, 768, 52], 12, 2), ([150, 384, 20], 12, 1), ([150, 1024, 29], 16, 2)] {
        let mut state = 7u32;
        let mut numbers = |count: usize| -> Vec<u16> {
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                0x3e00 + (state >> 23) as u16 + ((state >> 9 & 1) << 15) as u16
            };
            (0..count).map(next).collect()
        };
        let (x, w) = (numbers(m * k), numbers(k * n));
        let case = product([m, k, n], [DType::BF16; 2], &shorts(&w), false);
        let (p, nest) = planned(&case).expect("it fits");
        assert_eq!(p.pass, (rounds > 1).then_some(pass), "{p:?}");
        let sum = |at: usize| {
            let pairs: Vec<(u16, u16)> = (0..k).map(|q| (x[at / n * k + q], w[q * n + at % n])).collect();
            sum_of_pairs(&pairs, p.products).to_bits()
        };
        let want: Vec<u32> = (0..m * n).map(sum).collect();
        compare(&nest, &shorts(&x), &want, case.sums, &[]);
    }
}

/// Rows that are read while a panel's part stays in L1 leave that alone.
#[test]
fn passes_load_rows_past_l1() {
    let llvm = Llvm::new(target());
    for (k, name) in [(768, "tileloaddt1"), (256, "tileloadd\t")] {
        let case = product([160, k, 64], [DType::BF16; 2], &vec![1; 2 * k * 64], false);
        let (p, nest) = planned(&case).expect("it fits");
        assert_eq!(p.pass.is_some(), k == 768, "{p:?}");
        let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        assert!(asm.contains(name) && (k == 768 || !asm.contains("tileloaddt1")), "{asm}");
    }
}

#[test]
fn the_inner_loop_is_four_products_and_four_loads() {
    let llvm = Llvm::new(target());
    for (dtypes, name) in [
        ([DType::BF16; 2], "tdpbf16ps"),
        ([DType::F16; 2], "tdpfp16ps"),
        ([DType::U8, DType::I8], "tdpbusd"),
        ([DType::I8; 2], "tdpbssd"),
    ] {
        let bytes = dtypes[0].bytes();
        let case = product([64, 256, 64], dtypes, &vec![1; 256 * 64 * bytes], false);
        let (p, nest) = planned(&case).expect("it fits");
        assert_eq!((p.tiles, p.rows, p.products * bytes), ([2, 2], 16, 64), "{p:?}");
        let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        let count = |word: &str| asm.lines().filter(|l| l.trim_start().starts_with(word)).count();
        let all = ["ldtilecfg", "tilerelease", "tilezero", "tileloadd", name, "tilestored"].map(count);
        assert_eq!(all, [1, 1, 4, 4, 4, 4], "{asm}");
    }
}

/// Rows of 7 pixels with a border of one make tiles of 16 across the gaps between them; with steps of two, pixels of the next row are too far away.
#[test]
fn short_rows_of_a_picture_share_tiles() {
    for (stride, rows) in [(1, 16), (2, 7)] {
        let (size, c, n) = (7usize, 64usize, 64usize);
        let whole = (size - 1) * stride + 3;
        let step = Compute::reduce(
            &[size, size, n].map(Expr::from),
            &[3, 3, c].map(Expr::from),
            Reducer::Sum,
            |o, r| {
                let at = [o[0] * stride as i64 + r[0], o[1] * stride as i64 + r[1], r[2]];
                let x = Scalar::read_at(DType::U8, 0, &at).cast(DType::I32);
                x * Scalar::read_at(DType::I8, 1, &[o[2], r[2], r[0], r[1]]).cast(DType::I32)
            },
            |_, acc| acc,
        );
        let constant = Tensor::from_bytes(DType::I8, [n, c, 3, 3], vec![1; n * c * 9]);
        let operands = vec![
            operand(DType::U8, &[whole, whole, c].map(Expr::from), 0, None),
            operand(DType::I8, &[n, c, 3, 3].map(Expr::from), 0, Some(constant)),
            operand(DType::I32, &[size, size, n].map(Expr::from), 0, None),
        ];
        let (p, _) = planned(&Case { step, operands, sums: DType::I32 }).expect("it fits");
        assert_eq!(p.rows, rows, "{p:?}");
    }
}

#[test]
fn tiles_are_for_products_that_are_large_enough() {
    let row = |shape: [usize; 3], dtypes: [DType; 2]| {
        let case = product(shape, dtypes, &vec![1; shape[1] * shape[2] * dtypes[0].bytes()], false);
        match plan::choose(&Step::Compute(case.step), &case.operands, &target()) {
            Plan::Matrix(p) => p.row,
            Plan::Brgemm(p) => p.row,
            other => panic!("{other}"),
        }
    };
    let (bf16, bytes, signed) = ([DType::BF16; 2], [DType::U8, DType::I8], [DType::I8; 2]);
    assert_eq!([bf16, bytes, signed].map(|d| row([64, 256, 64], d)), ["amx_bf16", "amx_u8s8", "amx_s8s8"]);
    let halves = [DType::F16; 2];
    assert_eq!(
        [[64, 256, 64], [1, 1024, 1024], [64, 4, 64], [64, 254, 64]].map(|s| row(s, halves)),
        ["amx_f16", "fma", "fma", "fma"]
    );
    // One row of weights that come from memory, or of those that L2 holds (bf16, as a recurrent net has them).
    assert_eq!([bf16, bytes].map(|d| row([1, 2048, 1024], d)), ["bf16_dot", "byte_dot"]);
    assert_eq!(row([1, 256, 1024], bf16), "amx_bf16");
    // Few neighbours along k.
    assert_eq!([bf16, bytes].map(|d| row([64, 4, 64], d)), ["bf16_dot", "byte_dot"]);
    // 254 is twice a prime: steps would have two products.
    assert_eq!(row([64, 254, 64], bf16), "bf16_dot");
}
