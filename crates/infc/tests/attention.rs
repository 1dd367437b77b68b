//! Attention as one kernel of strips of queries, beside the interpreter: random shapes, masks, heads and sizes that only a run tells, for every CPU.

use infc::engine::{Backend, prepare};
use infc::{Options, compile, target};
use infc_ir::interp::Item;
use infc_ir::{Graph, Tensor, eval, text};
use infc_kernel::target::{Math, TargetDesc};

/// Sizes of an attention; those that are symbols in the graph are `q` and `k`.
#[derive(Clone, Debug)]
struct Shape {
    dtype: &'static str,
    batch: usize,
    heads: usize,
    /// Query heads that share a key head.
    group: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    columns: usize,
    symbolic: [bool; 2],
    causal: bool,
    /// The dims of the mask, by whether they are those of the scores or 1.
    mask: Option<[bool; 4]>,
}

fn plain() -> Shape {
    Shape {
        dtype: "f32",
        batch: 1,
        heads: 2,
        group: 1,
        queries: 37,
        keys: 53,
        depth: 24,
        columns: 20,
        symbolic: [false; 2],
        causal: false,
        mask: None,
    }
}

impl Shape {
    /// The operator, whose keys lie as queries do.
    fn graph(&self) -> String {
        let Shape { dtype, batch, heads, queries, keys, depth, columns, .. } = self;
        let shared = heads / self.group;
        let [q, k] = [(queries, "q", 0), (keys, "k", 1)].map(|(n, s, i)| if self.symbolic[i] { s.into() } else { n.to_string() });
        let full = [batch.to_string(), heads.to_string(), q.clone(), k.clone()];
        let dims = |m: [bool; 4]| (0..4).map(|i| if m[i] { full[i].clone() } else { "1".into() }).collect::<Vec<_>>().join(", ");
        let mask = self.mask.map_or(String::new(), |m| format!(", %3: {dtype}[{}] \"mask\"", dims(m)));
        let given = if self.mask.is_some() { ", %3" } else { "" };
        let causal = i32::from(self.causal);
        format!(
            "graph \"g\" {{ source 0 \"a\" \"Attention\" 23 region (%0: {dtype}[{batch}, {heads}, {q}, {depth}] \"q\", \
             %1: {dtype}[{batch}, {shared}, {k}, {depth}] \"k\", %2: {dtype}[{batch}, {shared}, {k}, {columns}] \"v\"{mask}) {{ \
             %4: {dtype}[{batch}, {heads}, {q}, {columns}] \"y\" = Attention(%0, %1, %2{given}) {{scale = 0.25, is_causal = {causal}}} \
             from [0] yield %4 }} }}"
        )
    }
    /// The same with 0 in the place of weights that are NaN, as PyTorch writes it; the mask has a dim for all of the scores'.
    fn guarded(&self) -> String {
        let Shape { heads, queries, keys, depth, columns, .. } = self;
        let scores = format!("[1, {heads}, {queries}, {keys}]");
        format!(
            "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"m\" \"Add\" 13 source 2 \"x\" \"Softmax\" 13 source 3 \"n\" \"IsNaN\" 20 \
             source 4 \"w\" \"Where\" 16 source 5 \"o\" \"MatMul\" 13 const %0: f32[] \"zero\" = {{0.0}} \
             region (%1: f32[1, {heads}, {queries}, {depth}] \"q\", %2: f32[1, {heads}, {depth}, {keys}] \"k\", \
             %3: f32[1, {heads}, {keys}, {columns}] \"v\", %4: f32[1, 1, {queries}, {keys}] \"mask\") {{ \
             %5: f32{scores} = MatMul(%1, %2) from [0] %6: f32{scores} = Add(%5, %4) from [1] \
             %7: f32{scores} = Softmax(%6) {{axis = -1}} from [2] %8: bool{scores} = IsNaN(%7) from [3] %9: f32{scores} = Where(%8, %0, %7) from [4] \
             %10: f32[1, {heads}, {queries}, {columns}] \"y\" = MatMul(%9, %3) from [5] yield %10 }} }}"
        )
    }
    /// `softmax(q k / 4 + mask) v` as exporters write it, with keys that lie the other way; heads are merged in the result.
    fn spelled(&self, mask: &str) -> String {
        let Shape { dtype, heads, queries, keys, depth, columns, .. } = self;
        let scores = format!("{dtype}[1, {heads}, {queries}, {keys}]");
        format!(
            "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"s\" \"Mul\" 13 source 2 \"m\" \"Add\" 13 source 3 \"x\" \"Softmax\" 13 \
             source 4 \"o\" \"MatMul\" 13 source 5 \"t\" \"Transpose\" 13 const %0: {dtype}[] \"scale\" = {{0.25}} \
             region (%1: {dtype}[1, {heads}, {queries}, {depth}] \"q\", %2: {dtype}[1, {heads}, {depth}, {keys}] \"k\", \
             %3: {dtype}[1, {heads}, {keys}, {columns}] \"v\", %4: {dtype}[{mask}] \"mask\") {{ \
             %5: {scores} = MatMul(%1, %2) from [0] %6: {scores} = Mul(%5, %0) from [1] %7: {scores} = Add(%6, %4) from [2] \
             %8: {scores} = Softmax(%7) {{axis = -1}} from [3] %9: {dtype}[1, {heads}, {queries}, {columns}] = MatMul(%8, %3) from [4] \
             %10: {dtype}[1, {queries}, {heads}, {columns}] \"y\" = Transpose(%9) {{perm = [0, 2, 1, 3]}} from [5] yield %10 }} }}"
        )
    }
}

fn parse(graph: &str) -> Graph {
    text::parse(graph).unwrap_or_else(|e| panic!("{e}\n{graph}"))
}

/// Numbers between -2 and 2 with a few bits; those of `holes` (by the input and their place in it) are -inf.
fn random(graph: &Graph, shape: &Shape, holes: &dyn Fn(usize, &[usize], usize) -> bool) -> Vec<Item> {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let size = |e: infc_ir::Expr| match e.known() {
        Some(n) => n as usize,
        None if e == infc_ir::Expr::sym("q") => shape.queries,
        None => shape.keys,
    };
    let make = |(n, &v): (usize, &infc_ir::Value)| {
        let ty = graph.ty(v).as_tensor().expect("a tensor");
        let dims: Vec<usize> = ty.dims.iter().map(|&d| size(d)).collect();
        let values: Vec<u64> = (0..dims.iter().product())
            .map(|at| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let x = (seed % 257) as f64 / 64.0 - 2.0;
                if holes(n, &dims, at) { f64::NEG_INFINITY.to_bits() } else { eval::round_float(ty.dtype, x).to_bits() }
            })
            .collect();
        Item::Tensor(Tensor::from_values(ty.dtype, dims, values))
    };
    graph.inputs().iter().enumerate().map(make).collect()
}

fn none(_: usize, _: &[usize], _: usize) -> bool {
    false
}

/// Machines of the backends for CPUs.
fn machines() -> Vec<TargetDesc> {
    let names = [
        "x86-64-v2",
        "x86-64-v3",
        "x86-64-v4",
        "x86-64-v4-vnni",
        "x86-64-v4-bf16",
        "cranelift-x86-64",
        "cranelift-x86-64-v3",
        "c99",
        "c99-simd",
        "c99-vector",
    ];
    names.iter().filter_map(|name| target::find(name).ok()).collect()
}

/// The backends that run a machine's code here.
fn backends(machine: &TargetDesc) -> Vec<Backend> {
    let mut all = vec![Backend::Loops];
    #[cfg(feature = "llvm")]
    if machine.backend == "llvm" && infc_cpu_llvm::supported(machine) {
        all.push(Backend::Llvm);
    }
    #[cfg(feature = "cranelift")]
    if machine.backend == "cranelift" && infc_cpu_cranelift::supported(machine) {
        all.push(Backend::Cranelift);
    }
    if machine.backend == "c" {
        all.push(Backend::C);
    }
    all
}

/// The plans for a machine.
fn plans(graph: &Graph, machine: &TargetDesc) -> Vec<String> {
    let lowered = compile::lower(graph.clone(), &Options::for_target(machine.clone())).unwrap_or_else(|e| panic!("{e}"));
    lowered.plans.iter().flatten().map(ToString::to_string).collect()
}

/// One of the plans is this.
#[track_caller]
fn one_kernel(plans: &[String], words: &str) {
    let found: Vec<&String> = plans.iter().filter(|p| p.starts_with("attention_strips")).collect();
    assert!(matches!(found[..], [p] if p.contains(words)), "no '{words}' in {plans:?}");
    assert!(!plans.iter().any(|p| p.starts_with("brgemm") || p.starts_with("row_reduce")), "{plans:?}");
}

/// All machines give what the interpreter gives, within `limit` of the largest number, by one kernel whose plan has these words.
fn agree(graph: &str, inputs: &[Item], limit: f64, machines: &[TargetDesc], words: Option<&str>) {
    let parsed = parse(graph);
    let native = Options::native().expect("a known machine");
    let run = |b: Backend, options: &Options| {
        let made = prepare(parsed.clone(), b, options).and_then(|mut e| e.run(inputs));
        made.unwrap_or_else(|e| panic!("{} {}: {e}\n{graph}", b.name(), options.target.name))
    };
    let want = run(Backend::Interp, &native);
    let want = want[0].as_tensor().expect("a tensor");
    let most = (0..want.len()).map(|i| want.float(i)).filter(|x| x.is_finite()).fold(0.05, |m, x| x.abs().max(m));
    for machine in machines {
        let plans = plans(&parsed, machine);
        if let Some(words) = words {
            one_kernel(&plans, words);
        }
        let mut bits: Option<Vec<u8>> = None;
        for backend in backends(machine) {
            let got = run(backend, &Options::for_target(machine.clone()));
            let got = got[0].as_tensor().expect("a tensor");
            if machine.math == Math::Bf16 && !want.is_empty() && (0..want.len()).all(|i| !want.float(i).is_nan()) {
                let bytes = got.bytes().to_vec();
                assert!(*bits.get_or_insert_with(|| bytes.clone()) == bytes, "{} differs {plans:?}\n{graph}", backend.name());
            }
            assert_eq!(got.dims, want.dims, "{} {} {graph}", backend.name(), machine.name);
            for i in 0..want.len() {
                let (x, y) = (got.float(i), want.float(i));
                let same = x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= limit * most;
                assert!(same, "{} {}, element {i}: {x} instead of {y} by {plans:?}\n{graph}", backend.name(), machine.name);
            }
        }
    }
}

fn check(s: &Shape, machines: &[TargetDesc], words: &str) {
    let graph = s.graph();
    let limit = if s.dtype == "f32" { 1e-5 } else { 1e-2 };
    // An axis of one key, column or product is none: the steps stay.
    let words = Some(words).filter(|_| (s.keys != 1 || s.symbolic[1]) && s.columns > 1 && s.depth > 1);
    agree(&graph, &random(&parse(&graph), s, &none), limit, machines, words);
}

/// Machines whose code is not compiled by a C compiler.
fn fast() -> Vec<TargetDesc> {
    machines().into_iter().filter(target::is_cpu).collect()
}

/// A machine that takes products in pairs of bf16.
fn in_pairs() -> Vec<TargetDesc> {
    let found = target::find("x86-64-v4-bf16").ok();
    found.into_iter().map(|machine| TargetDesc { math: Math::Bf16, ..machine }).collect()
}

/// Within what rounding the weights to 8 bits may change: numbers that are [`random`] and their products with keys are exact.
const OF_PAIRS: f64 = 8e-3;

#[test]
fn products_in_pairs() {
    let [heads, batch] = [[false, true, true, true], [true, false, true, true]];
    for (queries, keys, depth, columns, mask) in [
        (4, 2, 2, 2, None),
        (37, 53, 24, 20, Some(heads)),
        (64, 70, 40, 90, Some(batch)),
        (197, 197, 64, 64, None),
        (5, 1001, 8, 3, Some([false, false, false, true])),
        (70, 4999, 16, 33, None),
        (20, 31, 21, 16, None),
    ] {
        for causal in [false, true] {
            let s = Shape { queries, keys, depth, columns, mask, causal, batch: 2, heads: 4, group: 2, ..plain() };
            let row = if depth % 2 == 0 { "row=bf16_dot packed=keys packed=values" } else { "row=fma" };
            let graph = s.graph();
            agree(&graph, &random(&parse(&graph), &s, &none), OF_PAIRS, &in_pairs(), Some(row));
        }
    }
    // Sizes that a run tells: single queries stay f32.
    for (queries, keys) in [(1, 200), (2, 0), (3, 150), (4, 65), (33, 300), (40, 0)] {
        let s = Shape { queries, keys, symbolic: [true; 2], mask: Some([false, false, true, true]), ..plain() };
        let graph = s.graph();
        agree(&graph, &random(&parse(&graph), &s, &none), OF_PAIRS, &in_pairs(), Some("alone=3 row=bf16_dot"));
    }
    let spelled = plain().spelled(&format!("1, 1, {}, {}", plain().queries, plain().keys));
    agree(&spelled, &random(&parse(&spelled), &plain(), &holes), OF_PAIRS, &in_pairs(), Some("row=bf16_dot"));
    let single = Shape { queries: 1, ..plain() };
    check(&single, &in_pairs(), "alone=1 row=fma");
    for dtype in ["f16", "bf16"] {
        let s = Shape { dtype, ..plain() };
        let graph = s.graph();
        agree(&graph, &random(&parse(&graph), &s, &none), 1e-2, &in_pairs(), Some("row=bf16_dot"));
    }
}

#[test]
fn random_shapes() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut pick = |of: &[usize]| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        of[(seed % of.len() as u64) as usize]
    };
    for _ in 0..24 {
        let (group, shared) = (pick(&[1, 1, 2, 3]), pick(&[1, 2]));
        let mask = pick(&[0, 1, 2, 3, 4]);
        let s = Shape {
            batch: pick(&[1, 2]),
            heads: group * shared,
            group,
            queries: pick(&[4, 5, 16, 17, 33, 50]),
            keys: pick(&[1, 2, 13, 16, 31, 70, 140]),
            depth: pick(&[1, 3, 8, 16, 21, 40]),
            columns: pick(&[1, 2, 5, 16, 19, 64, 90]),
            causal: pick(&[0, 1]) == 1,
            mask: [
                None,
                Some([false, false, false, true]),
                Some([true; 4]),
                Some([false, true, true, true]),
                Some([true, false, true, true]),
            ][mask],
            ..plain()
        };
        check(&s, &fast(), "whole");
    }
}

#[test]
fn single_queries_are_taken_one_by_one() {
    for (queries, keys, depth, columns) in
        [(1, 1, 4, 5), (1, 70, 24, 20), (2, 257, 64, 64), (3, 33, 37, 150), (1, 9000, 16, 8), (1, 70000, 8, 8)]
    {
        for mask in [None, Some([false, true, true, true])] {
            let s = Shape { queries, keys, depth, columns, mask, ..plain() };
            check(&s, &fast(), &format!("alone={queries}"));
        }
    }
}

#[test]
fn sizes_that_a_run_tells() {
    // A depth of whole vectors lets queries be turned in squares, whose steps a run tells.
    // Up to a vector of queries over up to a tile of keys are a short strip.
    let sizes = [(1, 1), (1, 200), (2, 0), (0, 5), (3, 150), (4, 64), (8, 8), (13, 70), (16, 16), (16, 500), (40, 0), (33, 300)];
    let sizes = sizes.map(|(q, k)| (q, k, 24));
    for (queries, keys, depth) in sizes.into_iter().chain([(33, 300, 32), (64, 150, 48)]) {
        for causal in [false, true] {
            let s =
                Shape { queries, keys, depth, symbolic: [true; 2], causal, mask: Some([false, false, true, true]), ..plain() };
            // Strips of one vector of four lanes are short themselves.
            let (wide, narrow): (Vec<_>, Vec<_>) = fast().into_iter().partition(|m| m.vector_bytes >= 32);
            check(&s, &wide, "short=");
            check(&s, &narrow, "online");
            let s = Shape { symbolic: [queries != 0, true], queries: queries.max(1), group: 2, mask: None, ..s };
            let words = if queries == 0 || queries > 3 || s.symbolic[0] { "online" } else { "alone" };
            check(&s, &fast(), words);
        }
    }
}

#[test]
fn many_keys_are_taken_in_tiles() {
    for (keys, causal) in [(5000, false), (4480, true)] {
        let s = Shape { heads: 1, queries: 20, keys, depth: 8, columns: 9, causal, ..plain() };
        // Strips of the fewer queries that Cranelift's vectors take fit in a cache whole.
        let (large, small): (Vec<_>, Vec<_>) = fast().into_iter().partition(|m| m.backend == "llvm");
        check(&s, &large, "online");
        check(&s, &small, "");
    }
}

#[test]
fn narrow_floats_are_widened_once_for_a_strip() {
    for dtype in ["f16", "bf16"] {
        check(&Shape { dtype, ..plain() }, &fast(), "packed");
        check(&Shape { dtype, queries: 1, ..plain() }, &fast(), "alone=1");
        check(&Shape { dtype, symbolic: [true; 2], keys: 300, ..plain() }, &fast(), "packed");
    }
}

#[test]
fn c_code_has_the_same_plan() {
    let c: Vec<TargetDesc> = machines().into_iter().filter(|m| m.backend == "c").collect();
    check(&Shape { mask: Some([false, false, true, true]), ..plain() }, &c, "whole");
    check(&Shape { queries: 40, keys: 900, columns: 9, causal: true, ..plain() }, &c, "");
    let vectors: Vec<TargetDesc> = c.into_iter().filter(|m| m.lanes(4) >= 4).collect();
    check(&Shape { queries: 1, ..plain() }, &vectors, "alone=1");
}

/// Row 5 has no key, row 6 only the last one, others those up to their own place or after the 40th.
fn holes(n: usize, dims: &[usize], at: usize) -> bool {
    let keys = dims[dims.len() - 1];
    let (row, key) = (at / keys % dims[dims.len() - 2], at % keys);
    n == 3 && (row == 5 || row == 6 && key + 1 < keys || row > 6 && key > row || row < 5 && key < 40)
}

#[test]
fn rows_without_keys_give_what_the_steps_give() {
    let s = plain();
    let spelled = s.spelled(&format!("1, 1, {}, {}", s.queries, s.keys));
    agree(&spelled, &random(&parse(&spelled), &s, &holes), 1e-5, &fast(), Some("whole"));
    let symbolic = Shape { symbolic: [true; 2], mask: Some([false, false, true, true]), ..plain() };
    for s in [Shape { symbolic: [false; 2], ..symbolic.clone() }, symbolic] {
        let graph = s.graph();
        agree(&graph, &random(&parse(&graph), &s, &holes), 1e-5, &fast(), Some(""));
        let want = prepare(parse(&graph), Backend::Interp, &Options::native().expect("a known machine"));
        let want = want.and_then(|mut e| e.run(&random(&parse(&graph), &s, &holes))).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            want[0].as_tensor().expect("a tensor").float(5 * s.columns),
            0.0,
            "a row without keys is what this test is about"
        );
    }
}

#[test]
fn weights_that_are_no_numbers_are_zero_where_that_is_written() {
    // In one tile of keys, and (by code of LLVM) in several.
    for s in [plain(), Shape { heads: 1, queries: 20, keys: 5000, depth: 8, columns: 9, ..plain() }] {
        let graph = s.guarded();
        let words = Some("attention_strips");
        let inputs = random(&parse(&graph), &s, &holes);
        agree(&graph, &inputs, 1e-5, &fast(), words);
        let run = prepare(parse(&graph), Backend::Interp, &Options::native().expect("a known machine"))
            .and_then(|mut e| e.run(&inputs));
        let want = run.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(want[0].as_tensor().expect("a tensor").float(5 * s.columns), 0.0, "a row without keys");
        // A query that is NaN, a score of infinity.
        for (input, value) in [(0, f32::NAN), (1, f32::INFINITY)] {
            let mut inputs = inputs.clone();
            let t = inputs[input].as_tensor().expect("a tensor");
            let mut values: Vec<f32> = (0..t.len()).map(|i| t.float(i) as f32).collect();
            values[s.depth * 3 + 2] = value;
            inputs[input] = Item::Tensor(Tensor::from_vec(t.dims.clone(), values));
            agree(&graph, &inputs, 1e-5, &fast(), words);
        }
    }
}

#[test]
fn what_is_no_number_goes_on() {
    // NaN and infinities among queries, keys and values come out where the steps bring them out.
    let s = Shape { queries: 9, keys: 20, ..plain() };
    let graph = s.graph();
    for (input, value) in [(0, f32::NAN), (1, f32::INFINITY), (2, f32::NAN), (2, f32::NEG_INFINITY), (1, f32::NEG_INFINITY)] {
        let mut inputs = random(&parse(&graph), &s, &none);
        let t = inputs[input].as_tensor().expect("a tensor");
        let mut values: Vec<f32> = (0..t.len()).map(|i| t.float(i) as f32).collect();
        values[s.depth * 3 + 2] = value;
        inputs[input] = Item::Tensor(Tensor::from_vec(t.dims.clone(), values));
        agree(&graph, &inputs, 1e-5, &fast(), Some("whole"));
        agree(&graph, &inputs, OF_PAIRS, &in_pairs(), Some("row=bf16_dot"));
    }
}

#[test]
fn heads_are_read_and_written_where_they_lie() {
    // A product of queries, keys and values together, scaled and taken apart by head, as exporters write it; heads are put together in the result.
    let graph = "graph \"g\" { source 0 \"n\" \"MatMul\" 13 const %0: f32[] \"scale\" = {0.5} const %1: i64[1] \"q\" = {0} const %2: i64[1] \"k\" = {1} \
         const %3: i64[1] \"v\" = {2} const %4: i64[1] \"axis\" = {0} const %5: i64[4] \"parts\" = {30, 3, 2, 16} const %6: i64[2] \"whole\" = {30, 32} \
         const %27: i64[3] \"row\" = {2, 30, 16}
         region (%7: f32[30, 96] \"x\") {
         %8: f32[30, 3, 2, 16] = Reshape(%7, %5) from [0]
         %9: f32[3, 2, 30, 16] = Transpose(%8) {perm = [1, 2, 0, 3]} from [0]
         %10: f32[1, 2, 30, 16] = Gather(%9, %1) {axis = 0} from [0] %11: f32[1, 2, 30, 16] = Gather(%9, %2) {axis = 0} from [0]
         %12: f32[1, 2, 30, 16] = Gather(%9, %3) {axis = 0} from [0]
         %13: f32[1, 2, 16, 30] = Transpose(%11) {perm = [0, 1, 3, 2]} from [0]
         %14: f32[1, 2, 30, 16] = Mul(%10, %0) from [0] %15: f32[1, 2, 16, 30] = Mul(%13, %0) from [0]
         %16: f32[1, 2, 30, 30] = MatMul(%14, %15) from [0] %17: f32[1, 2, 30, 30] = Softmax(%16) {axis = -1} from [0]
         %18: f32[1, 2, 30, 16] = MatMul(%17, %12) from [0] %19: f32[1, 30, 2, 16] = Transpose(%18) {perm = [0, 2, 1, 3]} from [0]
         %20: f32[30, 32] \"y\" = Reshape(%19, %6) from [0] yield %20 } }";
    let s = Shape { queries: 30, keys: 30, ..plain() };
    agree(graph, &random(&parse(graph), &s, &none), 1e-5, &fast(), Some(""));
    let kernels = plans(&parse(graph), &fast()[0]);
    // Nothing is moved before; the result is an alias that is copied to the output.
    assert_eq!(kernels.len(), 2, "{kernels:?}");
    assert!(!kernels[0].contains("packed"), "{kernels:?}");
}

#[test]
fn what_others_read_stays_steps() {
    let s = plain();
    let graph = s.spelled("53").replace("yield %10", "yield %8, %10");
    for machine in fast() {
        let plans = plans(&parse(&graph), &machine);
        assert!(plans.len() > 1 && plans.iter().all(|p| !p.contains("attention")), "{plans:?}");
    }
    // One query and keys that lie along the keys: vectors read them as they lie.
    let graph = Shape { queries: 1, ..plain() }.spelled("53");
    let v4 = target::find("x86-64-v4").expect("a known machine");
    assert!(plans(&parse(&graph), &v4).iter().all(|p| !p.contains("attention")));
}

#[test]
fn plans_are_for_the_shapes() {
    let v4 = target::find("x86-64-v4").expect("a known machine");
    let of = |queries, keys, depth| {
        let s = Shape { heads: 12, queries, keys, depth, columns: depth, ..plain() };
        plans(&parse(&s.graph()), &v4).into_iter().find(|p| p.contains("attention")).expect("a plan")
    };
    assert_eq!(
        [of(197, 197, 64), of(1, 256, 64), of(8192, 8192, 64)],
        [
            "attention_strips m=[2] n=3 queries=32 keys=197 whole scores=11x32 sums=4x64 alone=0 row=fma",
            "attention_strips m=[] n=3 queries=1 keys=256 whole scores=4x1 sums=1x64 alone=1 row=fma",
            "attention_strips m=[2] n=3 queries=48 keys=90 online scores=9x48 sums=6x64 alone=0 row=fma",
        ]
    );
}

#[cfg(feature = "llvm")]
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let s = Shape { heads: 3, queries: 100, keys: 333, symbolic: [true; 2], ..plain() };
    let graph = parse(&s.graph());
    let inputs = random(&graph, &s, &none);
    let artifact = compile::compile(graph, &Options::native().expect("a known machine"))
        .unwrap_or_else(|e| panic!("{e}"))
        .artifact
        .to_bytes();
    let run = |threads| {
        let model = infc_runtime::Model::from_bytes(&artifact).expect("the artifact just made");
        let options = infc_runtime::Options { threads: Some(threads), ..Default::default() };
        let mut engine = infc::engine::Native::new(model, options).unwrap_or_else(|e| panic!("{e}"));
        let out = infc::engine::Engine::run(&mut engine, &inputs).unwrap_or_else(|e| panic!("{e}"));
        out[0].as_tensor().expect("a tensor").bytes().to_vec()
    };
    assert!(run(1) == run(2) && run(1) == run(3));
}
