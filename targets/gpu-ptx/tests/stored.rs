//! Factors that are stored rounded beside the same ones rounded on the way to shared memory: the same bits, for any numbers and shapes; what is stored how;
//! and what of it comes through tensor maps then.

mod tool;

use infc_ir::{DType, Tensor};
use infc_kernel::loops::{Access, Kernel, Space};
use infc_kernel::program::{Lowered, lower_with};
use infc_kernel::target::{Math, TargetDesc};
use infc_kernel::tuning::Choices;
use proptest::prelude::*;

fn machine(math: Math, warpgroups: bool) -> TargetDesc {
    let machine = infc_gpu_ptx::machines().into_iter().find(|m| m.warpgroups == warpgroups).expect("a machine");
    TargetDesc { math, warpgroup_tiles: 1, ..machine }
}

fn lowered(text: &str, target: &TargetDesc, staged: bool) -> Lowered {
    let mut graph = infc_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let choices = Choices { staged, ..Choices::default() };
    lower_with(&graph, target, &vec![], &choices).unwrap_or_else(|e| panic!("{e}"))
}

/// Mostly numbers of some size, with a few that rounding treats in a way of its own: ties, beyond f16, subnormal in f16 and in f32, NaN.
fn numbers(mut seed: u64, special: bool) -> impl FnMut() -> f32 {
    const ODD: [f32; 12] = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        65504.0,
        65520.0,
        -7e4,
        3e-8,
        -1e-6,
        1e-40,
        f32::MAX,
        257.0 / 256.0,
        2049.0 / 2048.0,
    ];
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        match seed % 997 {
            k if special && k < 12 => ODD[k as usize],
            _ => (seed >> 20) as i32 as f32 / 1e9,
        }
    }
}

fn inputs(text: &str, seed: u64, special: bool) -> Vec<Tensor> {
    let graph = infc_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let mut next = numbers(seed | 1, special);
    let dims = |v: infc_ir::Value| -> Vec<usize> {
        let ty = graph.ty(v).as_tensor().expect("a tensor");
        ty.dims.iter().map(|d| d.known().expect("a size") as usize).collect()
    };
    graph
        .inputs()
        .iter()
        .map(|&v| dims(v))
        .map(|d| Tensor::from_vec(d.clone(), (0..d.iter().product()).map(|_| next()).collect()))
        .collect()
}

/// Both ways give the same bits (of a NaN, that it is one), by PTX and by the loop interpreter.
fn same(text: &str, target: &TargetDesc, seed: u64, special: bool) -> Lowered {
    let [stored, staged] = [false, true].map(|staged| lowered(text, target, staged));
    let inputs = inputs(text, seed, special);
    for loops in [false, true] {
        let [got, want] = [&stored, &staged].map(|l| tool::run(l, target, &inputs, loops));
        assert_eq!(got.len(), want.len());
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            for (i, (x, y)) in got.chunks(4).zip(want.chunks(4)).enumerate() {
                let [a, b] = [x, y].map(|c| f32::from_le_bytes(c.try_into().expect("4 bytes")));
                assert!(x == y || a.is_nan() && b.is_nan(), "output {k}, element {i}: {a} instead of {b}, loops {loops}\n{text}");
            }
        }
    }
    stored
}

/// Dtypes of what kernels write, in the order of the kernels, those of a kernel by commas.
fn written(l: &Lowered) -> Vec<String> {
    let of = |k: &Kernel| {
        let all = k.buffers.iter().filter(|b| b.space == Space::Global && b.access != Access::Read);
        all.map(|b| b.dtype.to_string()).collect::<Vec<_>>().join(",")
    };
    l.kernels.iter().map(of).collect()
}

/// `y = relu(x a) b`: two products one after the other, all factors inputs; with a residual, which reads the first one's result too.
fn two_products([m, k, n, o]: [usize; 4], residual: bool, turned: bool) -> String {
    let b = if turned { format!("{o}, {n}") } else { format!("{n}, {o}") };
    let (turn, name) = if turned {
        (format!("%5: f32[{n}, {o}] = Transpose(%2) {{perm = [1, 0]}} from [1] "), "%5")
    } else {
        (String::new(), "%2")
    };
    let end = match residual {
        true => {
            format!("%7: f32[{m}, {o}] = MatMul(%4, {name}) from [0] %8: f32[{m}, {o}] \"y\" = Add(%7, %4) from [3] yield %8")
        }
        false => format!("%7: f32[{m}, {o}] \"y\" = MatMul(%4, {name}) from [0] yield %7"),
    };
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"t\" \"Transpose\" 13 source 2 \"r\" \"Relu\" 13 source 3 \"a\" \"Add\" 13 \
         region (%0: f32[{m}, {k}] \"x\", %1: f32[{k}, {n}] \"a\", %2: f32[{b}] \"b\") {{ \
         %3: f32[{m}, {n}] = MatMul(%0, %1) from [0] %4: f32[{m}, {n}] = Relu(%3) from [2] {turn}{end} }} }}"
    )
}

/// Two convolutions, the second one with a window and a border; with a residual, which reads the first one's result too.
fn two_convolutions([c, m, size, window]: [usize; 4], stride: usize, residual: bool) -> String {
    let pad = window / 2;
    let out = (size + 2 * pad - window) / stride + 1;
    let residual = residual && out == size;
    let tail = match residual {
        true => format!("%7: f32[2, {m}, {out}, {out}] \"y\" = Add(%6, %4) from [2] yield %7"),
        false => "yield %6".to_owned(),
    };
    let name = if residual { "" } else { "\"y\" " };
    format!(
        "graph \"g\" {{ source 0 \"c\" \"Conv\" 13 source 1 \"r\" \"Relu\" 13 source 2 \"a\" \"Add\" 13 \
         region (%0: f32[2, {c}, {size}, {size}] \"x\", %1: f32[{m}, {c}, 1, 1] \"w\", %2: f32[{m}, {m}, {window}, {window}] \"v\") {{ \
         %3: f32[2, {m}, {size}, {size}] = Conv(%0, %1) from [0] %4: f32[2, {m}, {size}, {size}] = Relu(%3) from [1] \
         %6: f32[2, {m}, {out}, {out}] {name}= Conv(%4, %2) {{pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}]}} from [0] {tail} }} }}"
    )
}

/// Queries, keys and values are products, and attention takes them.
fn attention([heads, queries, depth, width]: [usize; 4]) -> String {
    let own = heads * depth;
    let split = |from: usize, to: usize| {
        format!(
            "%{to}: f32[1, {queries}, {heads}, {depth}] = Reshape(%{from}, %9) from [3] \
             %{}: f32[1, {heads}, {queries}, {depth}] = Transpose(%{to}) {{perm = [0, 2, 1, 3]}} from [1] ",
            to + 1
        )
    };
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"t\" \"Transpose\" 13 source 2 \"o\" \"Attention\" 23 source 3 \"s\" \"Reshape\" 13 \
         const %9: i64[4] \"shape\" = {{1, {queries}, {heads}, {depth}}} \
         region (%0: f32[1, {queries}, {width}] \"x\", %1: f32[{width}, {own}] \"q\", %2: f32[{width}, {own}] \"k\", %3: f32[{width}, {own}] \"v\") {{ \
         %4: f32[1, {queries}, {own}] = MatMul(%0, %1) from [0] %5: f32[1, {queries}, {own}] = MatMul(%0, %2) from [0] \
         %6: f32[1, {queries}, {own}] = MatMul(%0, %3) from [0] {}{}{}\
         %20: f32[1, {heads}, {queries}, {depth}] \"y\" = Attention(%11, %13, %15) {{scale = 0.25}} from [2] yield %20 }} }}",
        split(4, 10),
        split(5, 12),
        split(6, 14)
    )
}

const MATHS: [Math; 3] = [Math::Bf16, Math::F16, Math::Tf32];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(36))]

    #[test]
    fn products(
        m in 16usize..80, k in 8usize..70, n in 16usize..80, o in 16usize..80, whole: bool, residual: bool, turned: bool, math in 0usize..3, special: bool, seed: u64,
    ) {
        // Whole vectors of 16 bytes, or any sizes.
        let size = |n: usize| if whole { n.next_multiple_of(8) } else { n };
        let n = size(n);
        let text = two_products([m, size(k), n, if residual { n } else { size(o) }], residual, turned);
        same(&text, &machine(MATHS[math], false), seed, special);
    }

    #[test]
    fn convolutions(
        c in 8usize..20, m in 16usize..40, size in 4usize..9, window in 1usize..4, stride in 1usize..3, residual: bool, math in 0usize..3, special: bool, seed: u64,
    ) {
        let text = two_convolutions([c, m, size, window], stride, residual);
        same(&text, &machine(MATHS[math], false), seed, special);
    }

    #[test]
    fn attentions(heads in 1usize..3, queries in 16usize..50, depth in 8usize..33, width in 8usize..30, math in 0usize..3, special: bool, seed: u64) {
        let text = attention([heads, queries, depth, width]);
        same(&text, &machine(MATHS[math], false), seed, special);
    }
}

#[test]
fn warpgroups_give_the_same_bits() {
    for (k, (size, residual, turned, math)) in [
        ([130, 72, 136, 136], false, false, Math::Bf16),
        ([130, 72, 136, 136], true, true, Math::F16),
        ([129, 67, 131, 133], false, false, Math::F16),
        ([128, 80, 132, 132], true, false, Math::Bf16),
        ([130, 72, 136, 136], false, true, Math::Tf32),
        ([129, 67, 131, 133], false, true, Math::Tf32),
    ]
    .into_iter()
    .enumerate()
    {
        same(&two_products(size, residual, turned), &machine(math, true), 77 + k as u64, k % 2 == 0);
    }
    same(&two_convolutions([16, 136, 8, 3], 1, true), &machine(Math::Bf16, true), 5, true);
    same(&two_convolutions([64, 128, 16, 1], 2, false), &machine(Math::F16, true), 6, true);
    same(&two_convolutions([32, 128, 8, 3], 1, false), &machine(Math::Tf32, true), 7, true);
}

/// The text with one of its inputs as a constant.
fn with_constant(text: &str, number: usize, dims: [usize; 2]) -> String {
    let mut next = numbers(3, false);
    let list: Vec<String> = (0..dims[0] * dims[1]).map(|_| format!("{:?}", next())).collect();
    let start = text.find(&format!("%{number}: f32")).expect("the input");
    let rest = &text[start..];
    let end = rest[1..].find(['%', ')']).expect("an end") + 1;
    let port = rest[..end].trim_end_matches([',', ' ']);
    let made = format!("const {port} = {{{}}} region", list.join(", "));
    let without = format!("{}{}", &text[..start], &rest[end..]).replace(", )", ")");
    without.replacen("region", &made, 1)
}

#[test]
fn who_reads_a_tensor_decides_how_it_is_stored() {
    let target = machine(Math::Bf16, false);
    // Only products read it: rounded alone. The inputs are too small for a step of their own.
    let alone = same(&two_products([64, 32, 64, 64], false, false), &target, 1, true);
    assert_eq!(written(&alone), ["bf16", "f32"]);
    // A residual too, and each element comes into shared memory once: f32. More often: twice.
    let once = same(&two_products([64, 32, 64, 64], true, false), &target, 2, true);
    assert_eq!(written(&once), ["f32", "f32"]);
    let twice = same(&two_products([64, 32, 80, 80], true, false), &target, 3, true);
    assert_eq!(written(&twice), ["f32,bf16", "f32"]);
    // The borders of both, and of the rounded one alone where no other product reads.
    let conv = same(&two_convolutions([16, 32, 6, 3], 1, true), &target, 4, true);
    assert!(written(&conv).contains(&"f32,bf16".to_owned()), "{:?}", written(&conv));
    let borders = conv.kernels.iter().filter(|k| k.name == "border").map(|k| k.buffers[0].dtype);
    assert_eq!(borders.collect::<Vec<_>>(), [DType::BF16]);
    // Queries, keys and values.
    let all = same(&attention([2, 32, 16, 24]), &target, 5, true);
    assert!(written(&all).iter().filter(|w| *w == "bf16").count() == 1 && all.kernels.len() == 2, "{:?}", written(&all));
    // Constants, when they are compiled.
    let text = with_constant(&two_products([64, 32, 64, 64], false, false), 1, [32, 64]);
    let constant = same(&text, &target, 6, true);
    assert_eq!(constant.constants.len(), 32 * 64 * 2);
    let reads: Vec<DType> = constant.kernels[0].buffers[..2].iter().map(|b| b.dtype).collect();
    assert_eq!(reads, [DType::F32, DType::BF16]);
    // None of it in f32, nor twice in tf32, which has as many bytes.
    for math in [Math::F32, Math::Tf32] {
        let other = lowered(&two_products([64, 32, 80, 80], true, false), &machine(math, false), false);
        assert_eq!(written(&other), ["f32", "f32"]);
    }
    let converts = |text: &str, math: Math, staged: bool| {
        let made = lowered(text, &machine(math, false), staged);
        let text = infc_gpu_ptx::module(&made.kernels, &tool::on("sm_80")).unwrap_or_else(|e| panic!("{e}")).text;
        text.matches("cvt.rna.tf32.f32").count()
    };
    // What only products read is rounded by the step that makes it: of both products' factors three are rounded in each warp, of four.
    let text = two_products([64, 32, 64, 64], false, false);
    let [stored, staged] = [false, true].map(|staged| converts(&text, Math::Tf32, staged));
    assert!(stored > 0 && stored < staged, "{stored} of {staged}");
    let constant = with_constant(&with_constant(&text, 2, [64, 64]), 1, [32, 64]);
    assert!(converts(&constant, Math::Tf32, false) < stored);
}

#[test]
fn large_inputs_are_rounded_first() {
    // Each element comes into shared memory 16 times, 4 MiB of them: a step that rounds them pays.
    let text = two_products([1024, 1024, 1024, 1024], false, false);
    let made = lowered(&text, &machine(Math::Bf16, true), false);
    assert_eq!(written(&made), ["bf16", "bf16", "f32"]);
    assert_eq!(made.program.steps.len(), 5);
}

#[test]
fn tensor_maps_bring_what_is_stored_rounded() {
    let maps_in = |text: &str, math: Math, staged: bool| {
        let made = lowered(text, &machine(math, true), staged);
        let text = infc_gpu_ptx::module(&made.kernels, &tool::on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
        text.maps.iter().map(Vec::len).collect::<Vec<_>>()
    };
    let maps = |text: &str, staged: bool| maps_in(text, Math::Bf16, staged);
    // tf32 that is stored rounded, with products side by side.
    let alone = two_products([130, 72, 136, 136], false, true);
    assert_eq!([false, true].map(|staged| maps_in(&alone, Math::Tf32, staged)), [vec![0, 1], vec![0, 0]]);
    let text = two_products([130, 72, 136, 136], true, false);
    assert_eq!([maps(&text, false), maps(&text, true)], [vec![0, 1], vec![0, 0]]);
}

/// A convolution with constant weights, of small integers.
fn convolution([c, m, size, window]: [usize; 4], dtype: &str) -> String {
    let pad = window / 2;
    let out = size + 2 * pad - window + 1;
    let list: Vec<String> = (0..m * c * window * window).map(|i| format!("{}.0", (i * 7 + i / 5) % 5)).collect();
    format!(
        "graph \"g\" {{ source 0 \"c\" \"Conv\" 13 const %0: {dtype}[{m}, {c}, {window}, {window}] \"w\" = {{{}}} \
         region (%1: {dtype}[1, {c}, {size}, {size}] \"x\") {{ \
         %2: {dtype}[1, {m}, {out}, {out}] \"y\" = Conv(%1, %0) {{pads = [{pad}, {pad}, {pad}, {pad}]}} from [0] yield %2 }} }}",
        list.join(", ")
    )
}

#[test]
fn constants_that_lie_across_are_brought_into_tiles() {
    // Whole tiles, and rows, columns and products beyond them; sums in parts, each with weights of its own.
    for (size, math, parts) in [
        ([64, 64, 5, 3], Math::Bf16, true),
        ([16, 70, 6, 3], Math::F16, false),
        ([13, 20, 7, 2], Math::Bf16, false),
        ([96, 40, 6, 3], Math::F16, true),
    ] {
        let text = convolution(size, "f32");
        let graph = infc_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let [c, _, n, _] = size;
        let x = Tensor::from_vec(vec![1, c, n, n], (0..c * n * n).map(|i| ((i * 11 + i / 3) % 7) as f32 - 3.0).collect());
        let want = infc_ir::interp::run_tensors(&graph, std::slice::from_ref(&x)).unwrap_or_else(|e| panic!("{e}"));
        let target = machine(math, false);
        let made = lowered(&text, &target, false);
        let packed = |k: &Kernel| {
            k.buffers.iter().any(|b| b.access == Access::Read && b.dims.len() == 4 && b.dims[2].is(64) && b.dims[3].is(32))
        };
        assert!(made.kernels.iter().any(packed), "{:?}", made.plans);
        assert_eq!(made.plans.iter().flatten().count() > 2, parts, "{:?}", made.plans);
        for loops in [false, true] {
            let got = tool::run(&made, &target, std::slice::from_ref(&x), loops);
            assert!(got[0][..] == want[0].bytes()[..], "{size:?} in {math:?}, loops {loops}");
        }
    }
}
