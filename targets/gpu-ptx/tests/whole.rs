//! Whole graphs through the plans for GPUs and the PTX interpreter, beside the interpreter of graphs: attention in one kernel beside its
//! steps, in tiles and in parts of the keys, long reductions in parts beside whole ones, sorting and scatter by many threads bit by bit.

mod tool;

use infc_ir::eval;
use infc_ir::{Graph, Tensor};
use infc_kernel::program::{Lowered, lower};
use infc_kernel::target::{Math, TargetDesc};

/// Launches of a graph, one after another; by the loop interpreter if `loops`.
fn run(lowered: &Lowered, inputs: &[Tensor], loops: bool) -> Vec<Vec<u8>> {
    tool::run(lowered, &tool::on("sm_80"), inputs, loops)
}

/// Numbers between -2 and 2 with a few bits; those of `holes` (by their place in the tensor) are -inf. Symbols have one size.
fn random(graph: &Graph, symbols: i64, holes: &dyn Fn(usize, &[usize], usize) -> bool) -> Vec<Tensor> {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let inputs = graph.inputs().iter().enumerate();
    let make = |(n, &v): (usize, &infc_ir::Value)| {
        let ty = graph.ty(v).as_tensor().expect("a tensor");
        let dims: Vec<usize> = ty.dims.iter().map(|d| d.eval(&|_| Some(symbols)).expect("a size") as usize).collect();
        let values: Vec<u64> = (0..dims.iter().product())
            .map(|at| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let x = (seed % 257) as f64 / 64.0 - 2.0;
                if holes(n, &dims, at) { f64::NEG_INFINITY.to_bits() } else { eval::round_float(ty.dtype, x).to_bits() }
            })
            .collect();
        Tensor::from_values(ty.dtype, dims, values)
    };
    inputs.map(make).collect()
}

/// Both ways give the same within `limit` of the largest number; all plans are listed.
fn check(text: &str, math: Math, limit: f64, holes: &dyn Fn(usize, &[usize], usize) -> bool) -> Vec<String> {
    check_at(text, 0, math, limit, holes)
}

/// The same where symbols have the size `n`.
fn check_at(text: &str, n: i64, math: Math, limit: f64, holes: &dyn Fn(usize, &[usize], usize) -> bool) -> Vec<String> {
    let mut graph = infc_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let inputs = random(&graph, n, holes);
    let want = infc_ir::interp::run_tensors(&graph, &inputs).unwrap_or_else(|e| panic!("{e}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let target = TargetDesc { math, ..infc_gpu_ptx::default_machine() };
    let lowered = lower(&graph, &target, &vec![]).unwrap_or_else(|e| panic!("{e}"));
    let plans: Vec<String> = lowered.plans.iter().flatten().map(ToString::to_string).collect();
    let got = run(&lowered, &inputs, false);
    assert_eq!(got, run(&lowered, &inputs, false), "the same bits again");
    let by_loops = run(&lowered, &inputs, true);
    for (k, want) in want.iter().enumerate() {
        let width = want.dtype.bytes();
        let number = |raw: &[u8]| {
            f64::from_bits(eval::from_memory(want.dtype, raw.iter().rev().fold(0u64, |a, &b| a << 8 | u64::from(b))))
        };
        let most = (0..want.len()).map(|i| want.float(i)).filter(|x| x.is_finite()).fold(1e-3, |m, x| x.abs().max(m));
        for (who, got) in [("PTX", &got[k]), ("loops", &by_loops[k])] {
            for (i, raw) in got.chunks(width).enumerate() {
                let (x, y) = (number(raw), want.float(i));
                let same = x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= limit * most;
                assert!(same, "{who}: output {k}, element {i}: {x} instead of {y} by {plans:?}\n{text}");
            }
        }
    }
    plans
}

/// Queries, keys, values, a mask, heads, lengths and widths of attention.
struct Shape {
    dtype: &'static str,
    heads: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    columns: usize,
}

fn plain() -> Shape {
    Shape { dtype: "f32", heads: 2, queries: 37, keys: 53, depth: 24, columns: 20 }
}

/// `softmax(q k / 4 + mask) v` as exporters write it; the mask is the fourth input.
fn spelled(s: &Shape, mask: &str) -> String {
    let Shape { dtype, heads, queries, keys, depth, columns } = s;
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"s\" \"Mul\" 13 source 2 \"m\" \"Add\" 13 source 3 \"x\" \"Softmax\" 13 \
         source 4 \"o\" \"MatMul\" 13 const %0: {dtype}[] \"scale\" = {{0.25}} \
         region (%1: {dtype}[1, {heads}, {queries}, {depth}] \"q\", %2: {dtype}[1, {heads}, {depth}, {keys}] \"k\", \
         %3: {dtype}[1, {heads}, {keys}, {columns}] \"v\", %4: {dtype}[{mask}] \"mask\") {{ \
         %5: {dtype}[1, {heads}, {queries}, {keys}] = MatMul(%1, %2) from [0] \
         %6: {dtype}[1, {heads}, {queries}, {keys}] = Mul(%5, %0) from [1] \
         %7: {dtype}[1, {heads}, {queries}, {keys}] = Add(%6, %4) from [2] \
         %8: {dtype}[1, {heads}, {queries}, {keys}] = Softmax(%7) {{axis = -1}} from [3] \
         %9: {dtype}[1, {heads}, {queries}, {columns}] \"y\" = MatMul(%8, %3) from [4] yield %9 }} }}"
    )
}

/// The same as the operator, whose keys lie as queries do.
fn operator(s: &Shape, mask: &str) -> String {
    let Shape { dtype, heads, queries, keys, depth, columns } = s;
    format!(
        "graph \"g\" {{ source 0 \"a\" \"Attention\" 23 \
         region (%0: {dtype}[1, {heads}, {queries}, {depth}] \"q\", %1: {dtype}[1, {heads}, {keys}, {depth}] \"k\", \
         %2: {dtype}[1, {heads}, {keys}, {columns}] \"v\", %3: {dtype}[{mask}] \"mask\") {{ \
         %4: {dtype}[1, {heads}, {queries}, {columns}] \"y\" = Attention(%0, %1, %2, %3) {{scale = 0.25}} from [0] yield %4 }} }}"
    )
}

fn none(_: usize, _: &[usize], _: usize) -> bool {
    false
}

/// All steps are one kernel of this plan; what is done to queries and keys before may be others.
#[track_caller]
fn one_kernel(plans: &[String], words: &str) {
    let (last, before) = plans.split_last().expect("a plan");
    assert!(last.contains("attention") && last.contains(words), "{words}: {plans:?}");
    assert!(before.iter().all(|p| p.starts_with("threads")), "{plans:?}");
}

#[test]
fn large_products_are_right_in_bands_of_tiles() {
    // 12 x 12 tiles, more than are under way at once.
    let graph = "graph \"g\" { source 0 \"p\" \"MatMul\" 13 region (%0: f16[750, 16] \"a\", %1: f16[16, 768] \"b\") { \
         %2: f16[750, 768] \"y\" = MatMul(%0, %1) from [0] yield %2 } }";
    let plans = check(graph, Math::F32, 1e-3, &none);
    assert!(plans[0].contains("block=64x64x32 grid=2x2"), "{plans:?}");
}

#[test]
fn attention_is_one_kernel_in_each_precision() {
    let s = plain();
    let mask = format!("1, 1, {}, {}", s.queries, s.keys);
    for (math, limit, row) in [
        (Math::F32, 1e-5, "row=fma"),
        (Math::Tf32, 3e-3, "row=mma_tf32"),
        (Math::Bf16, 2e-2, "row=mma_bf16"),
        (Math::F16, 3e-3, "row=mma_f16"),
    ] {
        one_kernel(&check(&spelled(&s, &mask), math, limit, &none), row);
        one_kernel(&check(&operator(&s, &mask), math, limit, &none), row);
    }
    for dtype in ["f16", "bf16"] {
        let s = Shape { dtype, ..plain() };
        one_kernel(&check(&spelled(&s, &mask), Math::F32, 3e-2, &none), &format!("row=mma_{dtype}"));
        one_kernel(&check(&operator(&s, &mask), Math::F32, 3e-2, &none), &format!("row=mma_{dtype}"));
    }
}

#[test]
fn attention_is_for_warps_where_there_are_warpgroups() {
    let s = Shape { dtype: "f16", heads: 2, queries: 256, keys: 256, depth: 64, columns: 128 };
    let mut graph = infc_ir::text::parse(&operator(&s, "256")).unwrap_or_else(|e| panic!("{e}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let hopper = infc_gpu_ptx::machines().into_iter().find(|m| m.warpgroups).expect("a machine for Hopper GPUs");
    let lowered = lower(&graph, &hopper, &vec![]).unwrap_or_else(|e| panic!("{e}"));
    one_kernel(&lowered.plans.iter().flatten().map(ToString::to_string).collect::<Vec<_>>(), "row=mma_f16");
}

#[test]
fn attention_in_tiles_of_all_sizes() {
    for (heads, queries, keys, depth, columns) in
        [(1, 16, 3, 8, 8), (1, 70, 66, 16, 16), (2, 64, 33, 64, 64), (1, 33, 70, 128, 100)]
    {
        let s = Shape { dtype: "f32", heads, queries, keys, depth, columns };
        for (math, limit) in [(Math::F32, 1e-5), (Math::F16, 3e-3)] {
            let mask = format!("{keys}");
            one_kernel(&check(&operator(&s, &format!("1, 1, 1, {mask}")), math, limit, &none), "block=");
            one_kernel(&check(&spelled(&s, &mask), math, limit, &none), "block=");
        }
    }
}

#[test]
fn rows_without_keys_give_what_the_steps_give() {
    let s = plain();
    let mask = format!("1, 1, {}, {}", s.queries, s.keys);
    // Row 5 has no key, row 6 only the last one, all others those up to their own place: the first tile of some has none.
    let holes = |n: usize, dims: &[usize], at: usize| {
        let (row, key) = (at / dims[dims.len() - 1] % dims[2], at % dims[dims.len() - 1]);
        n == 3 && (row == 5 || row == 6 && key + 1 < 53 || row > 6 && key > row || row < 5 && key < 40)
    };
    for (math, limit) in [(Math::F32, 1e-5), (Math::Bf16, 2e-2)] {
        one_kernel(&check(&spelled(&s, &mask), math, limit, &holes), "attention");
        one_kernel(&check(&operator(&s, &mask), math, limit, &holes), "attention");
    }
    let ending = |at: &str| {
        let text = if at == "spelled" { spelled(&s, &mask) } else { operator(&s, &mask) };
        let graph = infc_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let want = infc_ir::interp::run_tensors(&graph, &random(&graph, 0, &holes)).unwrap_or_else(|e| panic!("{e}"));
        want[0].float(5 * s.columns)
    };
    assert!(ending("spelled").is_nan() && ending("operator") == 0.0, "a row without keys is what this test is about");
}

#[test]
fn what_others_read_stays_steps() {
    let s = plain();
    // The weights are an output as well.
    let graph = spelled(&s, "1, 1, 37, 53").replace("yield %9", "yield %8, %9");
    let plans = check(&graph, Math::F32, 1e-5, &none);
    assert!(plans.len() > 1 && plans.iter().all(|p| !p.contains("attention")), "{plans:?}");
}

/// Few queries: parts of the keys, and what puts them together if there is more than one.
#[track_caller]
fn in_parts(plans: &[String]) {
    let way: Vec<&String> = plans.iter().filter(|p| !p.starts_with("threads")).collect();
    match way[..] {
        [one] => assert!(one.contains("decode ") && one.contains("parts=1 "), "{plans:?}"),
        [parts, join] => assert!(parts.contains("decode ") && join.contains("decode_join"), "{plans:?}"),
        _ => panic!("{plans:?}"),
    }
}

/// Query heads that share heads of keys and values, and a mask of all.
fn shared_heads(s: &Shape, [batch, share]: [usize; 2], keys: &str) -> String {
    let Shape { dtype, heads, queries, depth, columns, .. } = s;
    let all = heads * share;
    format!(
        "graph \"g\" {{ source 0 \"a\" \"Attention\" 23 \
         region (%0: {dtype}[{batch}, {all}, {queries}, {depth}] \"q\", %1: {dtype}[{batch}, {heads}, {keys}, {depth}] \"k\", \
         %2: {dtype}[{batch}, {heads}, {keys}, {columns}] \"v\", %3: {dtype}[1, 1, {queries}, {keys}] \"mask\") {{ \
         %4: {dtype}[{batch}, {all}, {queries}, {columns}] \"y\" = Attention(%0, %1, %2, %3) {{scale = 0.25}} from [0] yield %4 }} }}"
    )
}

#[test]
fn few_queries_take_parts_of_the_keys() {
    let mut seed = 7u64;
    let mut pick = |from: &[usize]| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[(seed >> 33) as usize % from.len()]
    };
    for round in 0..24 {
        let queries = 1 + round % 15;
        let s = Shape {
            dtype: ["f32", "f32", "f16", "bf16"][pick(&[0, 1, 2, 3])],
            heads: pick(&[1, 2, 3]),
            queries,
            keys: pick(&[2, 3, 31, 64, 65, 100, 257]),
            depth: pick(&[4, 8, 20, 64, 72]),
            columns: pick(&[4, 16, 20, 48, 64, 80]),
        };
        let limit = if s.dtype == "f32" { 1e-5 } else { 3e-2 };
        let (empty, last) = (pick(&[0, 1, 2]), s.keys - 1);
        // A row has no key, or keys up to some place, or all.
        let holes = |n: usize, dims: &[usize], at: usize| {
            let (row, key) = (at / dims[dims.len() - 1] % dims[dims.len() - 2], at % dims[dims.len() - 1]);
            n == 3 && (empty == 1 && row == 0 || empty == 2 && key > last / (row + 1))
        };
        let mask = format!("1, 1, {queries}, {}", s.keys);
        in_parts(&check(&spelled(&s, &mask), Math::F32, limit, &holes));
        in_parts(&check(&operator(&s, &mask), [Math::F32, Math::Bf16][round % 2], limit, &holes));
        let share = pick(&[1, 2, 3, 4]);
        let text = shared_heads(&s, [pick(&[1, 2]), share], &s.keys.to_string());
        let plans = check(&text, Math::F32, limit, &holes);
        // Heads that share one head of keys are queries, and may be enough for tiles.
        if s.heads > 1 || share * queries < 16 {
            in_parts(&plans);
        }
        assert!(s.heads == 1 || share == 1 || plans.iter().any(|p| p.contains(&format!("shared=1:{share}"))), "{plans:?}");
    }
}

#[test]
fn few_queries_with_as_many_keys_as_the_run_has() {
    for (n, queries, share) in [(0, 1, 1), (1, 1, 2), (63, 3, 1), (64, 1, 4), (200, 2, 3), (700, 1, 1)] {
        let s = Shape { heads: 2, queries, ..plain() };
        let holes = |i: usize, dims: &[usize], at: usize| i == 3 && at % dims[dims.len() - 1] > 150;
        in_parts(&check_at(&shared_heads(&s, [1, share], "n"), n, Math::F32, 1e-5, &holes));
    }
    // Keys that were there before, as an input, and the new ones behind them.
    let past = "graph \"g\" { source 0 \"a\" \"Attention\" 23 \
         region (%0: f32[1, 4, 1, 16] \"q\", %1: f32[1, 2, 1, 16] \"k\", %2: f32[1, 2, 1, 24] \"v\", \
         %3: f32[1, 1, 1, n + 1] \"mask\", %4: f32[1, 2, n, 16] \"pk\", %5: f32[1, 2, n, 24] \"pv\") { \
         %6: f32[1, 4, 1, 24] \"y\", %7: f32[1, 2, n + 1, 16] \"nk\", %8: f32[1, 2, n + 1, 24] \"nv\" \
         = Attention(%0, %1, %2, %3, %4, %5) from [0] yield %6, %7, %8 } }";
    for n in [0, 1, 100, 333] {
        let plans = check_at(past, n, Math::F32, 1e-5, &none);
        assert!(plans.iter().any(|p| p.starts_with("decode ")), "{plans:?}");
    }
}

#[test]
fn queries_whose_tiles_do_not_fit_take_parts_of_the_keys() {
    let s = Shape { dtype: "f32", heads: 1, queries: 20, keys: 70, depth: 160, columns: 96 };
    in_parts(&check(&operator(&s, "1, 1, 20, 70"), Math::F32, 1e-5, &none));
    let s = Shape { dtype: "f16", heads: 1, queries: 2, keys: 200, depth: 256, columns: 256 };
    in_parts(&check(&operator(&s, "1, 1, 2, 200"), Math::F32, 3e-2, &none));
    // Many heads, one head of keys: a tile would have the machine for itself.
    let s = Shape { heads: 1, queries: 1, keys: 500, ..plain() };
    in_parts(&check(&shared_heads(&s, [1, 32], "500"), Math::F16, 1e-5, &none));
    // More than shared memory holds: the steps.
    let s = Shape { dtype: "f32", heads: 1, queries: 2, keys: 40, depth: 1000, columns: 16 };
    let plans = check(&operator(&s, "1, 1, 2, 40"), Math::F32, 1e-5, &none);
    assert!(plans.iter().all(|p| !p.contains("decode")), "{plans:?}");
}

fn product(m: usize, k: usize, n: usize) -> String {
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"r\" \"Relu\" 13 region (%0: f32[{m}, {k}] \"a\", %1: f32[{k}, {n}] \"b\") {{ \
         %2: f32[{m}, {n}] = MatMul(%0, %1) from [0] %3: f32[{m}, {n}] \"y\" = Relu(%2) from [1] yield %3 }} }}"
    )
}

#[test]
fn long_sums_with_few_results_are_taken_in_parts() {
    // In tiles, by threads, by warps: two kernels where there is little to share out, one where there is enough or k is short.
    for (graph, kernels) in [
        (product(40, 1024, 50), 2),
        (product(40, 1021, 50), 1),
        (product(1, 512, 70), 2),
        (product(3, 24, 70), 1),
        (product(300, 64, 300), 1),
    ] {
        for math in [Math::F32, Math::F16] {
            let plans = check(&graph, math, if math == Math::F32 { 1e-5 } else { 3e-3 }, &none);
            assert_eq!(plans.len(), kernels, "{plans:?}\n{graph}");
        }
    }
    let sum = |op: &str, n: usize| {
        format!(
            "graph \"g\" {{ source 0 \"s\" \"{op}\" 18 const %0: i64[1] \"axes\" = {{1}} region (%1: f32[3, {n}] \"x\") {{ \
             %2: f32[3, 1] \"y\" = {op}(%1, %0) from [0] yield %2 }} }}"
        )
    };
    // One sum after another, as the interpreter has it, rounds more often than parts do.
    for op in ["ReduceSum", "ReduceMax", "ReduceMean", "ReduceL2"] {
        assert_eq!(check(&sum(op, 8192), Math::F32, 1e-4, &none).len(), 2, "{op}");
        assert_eq!(check(&sum(op, 700), Math::F32, 1e-5, &none).len(), 1, "{op}");
    }
}

/// All outputs have the bits that the interpreter of graphs gives; inputs by their number and place. All plans are listed.
#[track_caller]
fn exact(text: &str, n: i64, input: &dyn Fn(usize, usize) -> f64) -> Vec<String> {
    let mut graph = infc_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let make = |(k, &v): (usize, &infc_ir::Value)| {
        let ty = graph.ty(v).as_tensor().expect("a tensor");
        let dims: Vec<usize> = ty.dims.iter().map(|d| d.eval(&|_| Some(n)).expect("a size") as usize).collect();
        let bits = |at: usize| match ty.dtype.is_float() {
            true => eval::round_float(ty.dtype, input(k, at)).to_bits(),
            false => input(k, at) as i64 as u64,
        };
        Tensor::from_values(ty.dtype, dims.clone(), (0..dims.iter().product()).map(bits))
    };
    let inputs: Vec<Tensor> = graph.inputs().iter().enumerate().map(make).collect();
    let want = infc_ir::interp::run_tensors(&graph, &inputs).unwrap_or_else(|e| panic!("{e}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let lowered = lower(&graph, &infc_gpu_ptx::default_machine(), &vec![]).unwrap_or_else(|e| panic!("{e}"));
    for (who, got) in [("PTX", run(&lowered, &inputs, false)), ("loops", run(&lowered, &inputs, true))] {
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            let (width, float) = (want.dtype.bytes(), want.dtype.is_float());
            let number = |raw: &[u8]| eval::from_memory(want.dtype, raw.iter().rev().fold(0u64, |a, &b| a << 8 | u64::from(b)));
            let nan = |raw: &[u8]| float && f64::from_bits(number(raw)).is_nan();
            let same = |(x, y): (&[u8], &[u8])| x == y || nan(x) && nan(y);
            let wrong = got.chunks(width).zip(want.bytes().chunks(width)).position(|pair| !same(pair));
            assert!(wrong.is_none() && got.len() == want.bytes().len(), "{who}: output {k}, element {wrong:?} of\n{text}");
        }
    }
    lowered.plans.iter().flatten().map(ToString::to_string).collect()
}

/// Numbers without an order, from 0 to 1.
fn scattered(k: usize, at: usize) -> f64 {
    let x = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (k as u64 + 1).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 29).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 40) as f64 / (1u64 << 24) as f64
}

#[test]
fn sorting_takes_a_block_for_each_line() {
    let top = |dtype: &str, dims: &str, out: &str, k: usize, axis: i64, largest: u8| {
        format!(
            "graph \"g\" {{ source 0 \"t\" \"TopK\" 24 const %0: i64[1] \"k\" = {{{k}}} region (%1: {dtype}[{dims}] \"x\") {{ \
             %2: {dtype}[{out}] \"v\", %3: i64[{out}] \"i\" = TopK(%1, %0) {{axis = {axis}, largest = {largest}}} from [0] \
             yield %2, %3 }} }}"
        )
    };
    // Few numbers, so that many are equal; some are none, infinite, or zeros of both signs.
    let input = |_: usize, at: usize| match at % 37 {
        3 => f64::NAN,
        5 => f64::NEG_INFINITY,
        7 => f64::INFINITY,
        8 => -0.0,
        9 => 0.0,
        _ => (scattered(0, at) * 40.0).floor() - 20.0,
    };
    let whole = |_: usize, at: usize| (scattered(0, at) * 40.0).floor();
    for (dtype, largest) in [("f32", 1), ("f32", 0), ("f16", 1), ("f64", 0), ("i64", 1), ("u8", 0), ("i32", 1)] {
        let input: &dyn Fn(usize, usize) -> f64 = if dtype.starts_with('f') { &input } else { &whole };
        for (n, k) in [(64, 64), (100, 7), (100, 100), (1000, 1000), (700, 1)] {
            let plans = exact(&top(dtype, &format!("2, {n}"), &format!("2, {k}"), k, 1, largest), 0, input);
            assert!(plans[0].starts_with("network") && plans[0].ends_with("kept=0"), "{plans:?}");
        }
        let plans = exact(&top(dtype, "130, 3", "5, 3", 5, 0, largest), 0, input);
        assert!(plans[0].starts_with("network"), "{plans:?}");
    }
    // Piece by piece: long lines, and as many elements as the run has.
    for (n, k) in [(9000, 20), (8193, 1024), (70000, 1)] {
        let plans = exact(&top("f32", &n.to_string(), &k.to_string(), k, 0, 1), 0, &input);
        assert!(plans[0] == format!("network size=2048 kept={k}"), "{plans:?}");
    }
    for n in [20, 2028, 2029, 6000] {
        let plans = exact(&top("f32", "2, n", "2, 20", 20, 1, 0), n, &input);
        assert!(plans[0].starts_with("network size=2048"), "{plans:?}");
    }
    // Short lines, and more than shared memory holds: the heap.
    assert!(exact(&top("f32", "3, 10", "3, 4", 4, 1, 1), 0, &input).contains(&"sort packed=true".to_owned()));
    assert!(exact(&top("f32", "5000", "2000", 2000, 0, 1), 0, &input).contains(&"sort packed=true".to_owned()));
}

#[test]
fn updates_come_by_many_threads_in_their_order() {
    let elements = |dtype: &str, data: &str, updates: &str, axis: i64, how: &str| {
        format!(
            "graph \"g\" {{ source 0 \"s\" \"ScatterElements\" 18 region (%0: {dtype}[{data}] \"x\", %1: i64[{updates}] \"i\", \
             %2: {dtype}[{updates}] \"u\") {{ %3: {dtype}[{data}] \"y\" = ScatterElements(%0, %1, %2) \
             {{axis = {axis}, reduction = \"{how}\"}} from [0] yield %3 }} }}"
        )
    };
    let tuples = |dtype: &str, data: &str, index: &str, updates: &str, how: &str| {
        format!(
            "graph \"g\" {{ source 0 \"s\" \"ScatterND\" 18 region (%0: {dtype}[{data}] \"x\", %1: i64[{index}] \"i\", \
             %2: {dtype}[{updates}] \"u\") {{ %3: {dtype}[{data}] \"y\" = ScatterND(%0, %1, %2) \
             {{reduction = \"{how}\"}} from [0] yield %3 }} }}"
        )
    };
    // Indices of both signs, many of them twice.
    let input = |most: i64| {
        move |k: usize, at: usize| match k {
            1 => (scattered(1, at) * 2.0 * most as f64).floor() - most as f64,
            _ => (scattered(k, at) * 1000.0).floor() / 7.0 - 70.0,
        }
    };
    for how in ["none", "add", "mul", "max", "min"] {
        for dtype in ["f32", "f16", "i64", "u8"] {
            let plans = exact(&elements(dtype, "5, 40", "5, 90", 1, how), 0, &input(40));
            assert!(plans.contains(&"updates apart=[0] owners=64".to_owned()), "{plans:?}");
            let plans = exact(&elements(dtype, "9, 30", "20, 17", 0, how), 0, &input(9));
            assert!(plans.contains(&"updates apart=[1] owners=16".to_owned()), "{plans:?}");
            let plans = exact(&tuples(dtype, "6, 8", "3, 70, 2", "3, 70", how), 0, &input(6));
            assert!(plans.contains(&"updates apart=[] owners=128".to_owned()), "{plans:?}");
            let plans = exact(&tuples(dtype, "6, 8", "50, 1", "50, 8", how), 0, &input(6));
            assert!(plans.contains(&"updates apart=[1] owners=32".to_owned()), "{plans:?}");
        }
    }
    exact(&elements("f32", "n, 3", "60, 3", 0, "add"), 11, &input(11));
    exact(&elements("f32", "11, 3", "n, 3", 0, "add"), 0, &input(11));
    // A cache: what is written lies side by side, so nothing meets.
    let cache = "graph \"g\" { source 0 \"t\" \"TensorScatter\" 24 region (%0: f32[2, 3, 12, 4] \"c\", %1: i64[2] \"at\", \
         %2: f32[2, 3, 5, 4] \"u\") { %3: f32[2, 3, 12, 4] \"y\" = TensorScatter(%0, %2, %1) {axis = -2} from [0] yield %3 } }";
    let plans = exact(cache, 0, &|k, at| if k == 1 { [7.0, 0.0][at] } else { scattered(k, at) });
    assert!(plans.contains(&"updates apart=[0, 1, 2, 3] owners=1".to_owned()), "{plans:?}");
    let round = cache.replace("axis = -2", "axis = -2, mode = \"circular\"");
    exact(&round, 0, &|k, at| if k == 1 { [9.0, 3.0][at] } else { scattered(k, at) });
    // Known places: a thread each, where no two are the same.
    for (places, apart) in [("4, 0, 9, 3, 8, 2, 7, 1, 5", "[0]"), ("4, 0, 9, 3, 8, 2, 7, 1, -6", "[]")] {
        let text = format!(
            "graph \"g\" {{ source 0 \"s\" \"ScatterElements\" 18 const %0: i64[9] \"i\" = {{{places}}} region (%1: f32[10] \"x\", \
             %2: f32[9] \"u\") {{ %3: f32[10] \"y\" = ScatterElements(%1, %0, %2) {{axis = 0}} from [0] yield %3 }} }}"
        );
        let plans = exact(&text, 0, &scattered);
        assert!(plans.iter().any(|p| p.starts_with(&format!("updates apart={apart} "))), "{plans:?}");
    }
}

/// A sum that is a result and goes on into a softmax, whose axes are others of one element more; the last axis has so many elements.
fn sum_and_softmax(dtype: &str, rows: &str, length: usize) -> String {
    format!(
        "graph \"g\" {{ source 0 \"a\" \"Add\" 13 source 1 \"r\" \"Unsqueeze\" 13 source 2 \"s\" \"Softmax\" 13 \
         const %0: i64[1] \"axis\" = {{1}} region (%1: {dtype}[{rows}, {length}] \"x\", %2: {dtype}[{length}] \"b\") {{ \
         %3: {dtype}[{rows}, {length}] \"sum\" = Add(%1, %2) from [0] \
         %4: {dtype}[{rows}, 1, {length}] = Unsqueeze(%3, %0) from [1] \
         %5: {dtype}[{rows}, 1, {length}] \"y\" = Softmax(%4) {{axis = -1}} from [2] yield %3, %5 }} }}"
    )
}

#[test]
fn steps_on_the_same_rows_are_one_kernel() {
    for (rows, length) in [("5", 70), ("3", 1024), ("600", 33), ("n", 96)] {
        let plans = check_at(&sum_and_softmax("f32", rows, length), 7, Math::F32, 1e-5, &none);
        assert_eq!(plans, ["chain steps=5"], "{rows} {length}");
    }
    check(&sum_and_softmax("f16", "4", 50), Math::F32, 2e-3, &none);
    // Rows of which a lane cannot keep its elements: what is made of the sums reads them from memory, in a kernel of its own. Short rows are for threads.
    let plans = check(&sum_and_softmax("f32", "3", 1056), Math::F32, 1e-5, &none);
    assert!(plans.len() > 1 && plans.iter().any(|p| p.starts_with("chain")), "{plans:?}");
    let plans = check(&sum_and_softmax("f32", "3", 9), Math::F32, 1e-5, &none);
    assert!(plans.iter().all(|p| p.starts_with("threads")), "{plans:?}");
}

#[test]
fn products_of_one_factor_are_one_product() {
    let list =
        |n: usize, by: usize| (0..n).map(|k| format!("{}", (k * by % 17) as f64 / 8.0 - 1.0)).collect::<Vec<_>>().join(", ");
    let graph = |widths: [usize; 3], other: &str| {
        let (mut constants, mut nodes) = (String::new(), String::new());
        for (k, w) in widths.into_iter().enumerate() {
            let (weight, bias, product) = (3 * k, 3 * k + 1, 11 + 2 * k);
            constants += &format!(
                "const %{weight}: f32[24, {w}] \"w{k}\" = {{{}}} const %{bias}: f32[{w}] \"b{k}\" = {{{}}} ",
                list(24 * w, 5 + k),
                list(w, 3)
            );
            let x = if k == 2 { other } else { "%9" };
            nodes += &format!(
                "%{product}: f32[20, {w}] = MatMul({x}, %{weight}) from [0] %{}: f32[20, {w}] \"y{k}\" = Add(%{product}, %{bias}) from [1] ",
                product + 1
            );
        }
        // What the products make is inside of the model.
        for k in 0..3 {
            nodes +=
                &format!("%{}: f32[20, {w}] \"z{k}\" = Softmax(%{}) {{axis = -1}} from [2] ", 20 + k, 12 + 2 * k, w = widths[k]);
        }
        nodes += "yield %20, %21, %22";
        format!(
            "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"a\" \"Add\" 13 source 2 \"s\" \"Softmax\" 13 {constants} \
             region (%9: f32[20, 24] \"x\", %10: f32[20, 24] \"v\") {{ {nodes} }} }}"
        )
    };
    let tiles = |plans: &[String]| plans.iter().filter(|p| p.starts_with("tile")).count();
    for math in [Math::F32, Math::Bf16] {
        let limit = if math == Math::F32 { 1e-5 } else { 2e-2 };
        assert_eq!(tiles(&check(&graph([16, 40, 20], "%9"), math, limit, &none)), 1, "{math:?}");
        // Another factor is another product.
        assert_eq!(tiles(&check(&graph([16, 40, 20], "%10"), math, limit, &none)), 2, "{math:?}");
    }
}
