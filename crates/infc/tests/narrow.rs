//! Narrow constants in artifacts, end to end: how many bytes they take, and the bits of a model that has the same numbers in f32.

#![cfg(feature = "llvm")]

mod tool;

use infc::engine::{Backend, prepare};
use infc::{Options, compile, target};
use infc_ir::interp::{Item, eval_op};
use infc_ir::op::{Cast, DequantizeLinear};
use infc_ir::{DType, Graph, Op, Tensor};
use infc_onnx::proto::NodeProto;
use tool::kit::*;
use tool::*;

fn hash(i: usize) -> u32 {
    (i as u32 ^ 0x5bd1).wrapping_mul(0x85eb_ca6b).rotate_left(13).wrapping_mul(0xc2b2_ae35) >> 9
}

/// All kinds of numbers of a dtype, those that are no numbers among them; 4-bit integers have a byte each.
fn stored(dtype: DType, dims: [usize; 2]) -> Tensor {
    let bytes = (0..dims[0] * dims[1] * dtype.bytes()).map(|i| match dtype.bits() {
        4 if dtype.is_signed() => ((hash(i) % 16) as i8 - 8) as u8,
        4 => (hash(i) % 16) as u8,
        _ => hash(i) as u8,
    });
    Tensor::from_bytes(dtype, dims.to_vec(), bytes.collect::<Vec<u8>>())
}

fn cast() -> Cast {
    Cast { round_mode: "up".into(), saturate: 1, to: i64::from(DType::F32.onnx()) }
}

/// How constant `t` becomes f32 in a model, and the numbers that it is then.
fn widened(t: &Tensor) -> (NodeProto, Vec<Tensor>, Vec<f32>) {
    let (op, node, scale): (Op, _, _) = if t.dtype.is_int() {
        let scale = Tensor::from_vec([t.dims[0]], (0..t.dims[0]).map(|r| 0.01 + r as f32 * 0.003).collect::<Vec<f32>>());
        let op = DequantizeLinear { axis: 0, block_size: 0, output_dtype: 0 };
        (op.into(), node("w = DequantizeLinear(t, s)", [int("axis", 0)]), vec![scale])
    } else {
        (cast().into(), node("w = Cast(t)", [int("to", i64::from(DType::F32.onnx()))]), vec![])
    };
    let inputs: Vec<Option<Tensor>> = [t].into_iter().chain(&scale).cloned().map(Some).collect();
    let values = eval_op(&op, &inputs, 1).expect("it can be computed").remove(0).to_vec::<f32>();
    (node, scale, values)
}

/// Bytes of the constants of a model for a target.
fn constants(graph: &Graph, options: &Options) -> usize {
    compile::lower(graph.clone(), options).unwrap_or_else(|e| panic!("{e}")).constants.len()
}

/// The first output, one NaN like another: which comes of several is the machine's choice.
fn run(graph: &Graph, backend: Backend, options: &Options, input: &Tensor) -> Vec<u32> {
    let mut engine = prepare(graph.clone(), backend, options).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
    let outputs = engine.run(&[Item::Tensor(input.clone())]).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
    let values = outputs[0].as_tensor().expect("a tensor").to_vec::<f32>();
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

const BACKENDS: [Backend; 3] = [Backend::Loops, Backend::Llvm, Backend::C];

#[test]
fn tables_of_lookups_are_as_narrow_as_their_numbers() {
    let rows = 300usize;
    // The dtype, elements of a row, and bytes that a row may take.
    let cases = [
        (DType::I4, 96usize, 48usize),
        (DType::U4, 75, 38),
        (DType::I4, 32, 16),
        (DType::F16, 75, 150),
        (DType::BF16, 33, 66),
        (DType::F8E4M3FN, 64, 64),
        (DType::F8E5M2, 77, 77),
    ];
    let options = Options::native().expect("a known machine");
    for (dtype, row, bytes) in cases {
        let t = stored(dtype, [rows, row]);
        let (wide, scale, mut values) = widened(&t);
        let nodes = |first: Option<NodeProto>| {
            let gather = node("y = Gather(w, ids)", []);
            first.into_iter().chain([gather]).collect::<Vec<_>>()
        };
        let (from, to) = ("ids i64[7]".to_owned(), format!("y f32[7, {row}]"));
        let held = [constant("t", &t)].into_iter().chain(scale.iter().map(|s| constant("s", s))).collect();
        let narrow = import(&model(21, graph(&[&from], nodes(Some(wide)), &[&to], held))).expect("a good model");
        // The twin has one number more, in a row that is not looked up.
        values[0] = 0.1;
        let table = constant("w", &Tensor::from_vec([rows, row], values));
        let twin = import(&model(21, graph(&[&from], nodes(None), &[&to], vec![table]))).expect("a good model");
        let ids = Tensor::from_vec([7], vec![1i64, 299, 17, 1, 255, 128, -1]);
        let most = rows * (bytes + if dtype.is_int() { 4 } else { 0 }) + 512;
        let got = constants(&narrow, &options);
        assert!(got <= most, "{dtype}, rows of {row}: {got} bytes, at most {most} expected");
        assert!(constants(&twin, &options) >= rows * row * 4);
        for backend in BACKENDS {
            let [a, b] = [&narrow, &twin].map(|g| run(g, backend, &options, &ids));
            assert_eq!(a, b, "{dtype}, rows of {row}: {}", backend.name());
        }
    }
}

#[test]
fn factors_are_as_narrow_as_their_numbers_where_a_small_file_is_asked_for() {
    let (k, n) = (96usize, 75usize);
    for (dtype, rows, name) in
        [(DType::F16, 1, "native"), (DType::F8E5M2, 9, "native"), (DType::BF16, 9, "c99"), (DType::F16, 3, "c99")]
    {
        let t = stored(dtype, [k, n]);
        let (wide, _, mut values) = widened(&t);
        let product = || node("y = MatMul(x, w)", []);
        let (from, to) = (format!("x f32[{rows}, {k}]"), format!("y f32[{rows}, {n}]"));
        let narrow = graph(&[&from], vec![wide, product()], &[&to], vec![constant("t", &t)]);
        let narrow = import(&model(21, narrow)).expect("a good model");
        // The number that makes the twin wide is multiplied with 0 below.
        let last = k * n - 1;
        let other = values[last].is_finite();
        values[last] = if other { 0.1 } else { values[last] };
        let twin = graph(&[&from], vec![product()], &[&to], vec![constant("w", &Tensor::from_vec([k, n], values.clone()))]);
        let twin = import(&model(21, twin)).expect("a good model");
        let machine = if name == "native" { target::native().expect("known") } else { target::find(name).expect("known") };
        let small = infc_kernel::target::TargetDesc { small: true, ..machine.clone() };
        let (small, plain) = (Options::for_target(small), Options::for_target(machine));
        let x = (0..rows * k).map(|i| if i % k == k - 1 { 0.0 } else { hash(i) as f32 * 1e-7 }).collect::<Vec<f32>>();
        let x = Tensor::from_vec([rows, k], x);
        // Columns are filled up to whole tiles.
        let most = k * n.next_multiple_of(128) * dtype.bytes() + 512;
        let got = constants(&narrow, &small);
        assert!(got <= most, "{dtype} on {name}: {got} bytes, at most {most} expected");
        assert!(constants(&twin, &plain) >= k * n * 4);
        let backends = if name == "native" { vec![Backend::Loops, Backend::Llvm] } else { vec![Backend::Loops, Backend::C] };
        for backend in backends {
            let [a, b] = [(&narrow, &small), (&twin, &plain)].map(|(g, o)| run(g, backend, o, &x));
            assert_eq!(a, b, "{dtype}, {rows} rows on {name}: {}", backend.name());
        }
    }
}

/// One artifact for a row and for many: the same table, widened in the loop or once a panel.
#[test]
fn factors_are_narrow_where_the_number_of_rows_is_open() {
    let native = target::native().expect("known");
    let small = infc_kernel::target::TargetDesc { small: true, ..native.clone() };
    let c99 = infc_kernel::target::TargetDesc { small: true, ..target::find("c99").expect("known") };
    // Small ones on request; by themselves those that are too many for caches.
    let cases = [
        (DType::I4, [96, 75], &small, 1, vec![Backend::Loops, Backend::Llvm]),
        (DType::F16, [96, 75], &small, 2, vec![Backend::Loops, Backend::Llvm]),
        (DType::I8, [64, 96], &c99, 1, vec![Backend::Loops, Backend::C]),
        (DType::I4, [1024, 800], &native, 1, vec![Backend::Llvm]),
    ];
    for (dtype, [k, n], machine, width, backends) in cases {
        let t = stored(dtype, [n, k]);
        let (wide, _, values) = widened(&t);
        let values: Vec<f32> = values.iter().map(|v| if v.is_finite() { *v } else { 0.5 }).collect();
        let turned = node("v = Transpose(w)", [ints("perm", &[1, 0])]);
        let (from, to) = (format!("x f32[rows, {k}]"), format!("y f32[rows, {n}]"));
        let product = |name: &str| node(&format!("y = MatMul(x, {name})"), []);
        // Numbers that are none would differ in which one comes of several.
        let (narrow, held) = if dtype.is_int() {
            let scale = Tensor::from_vec([n], (0..n).map(|r| 0.01 + r as f32 * 0.003).collect::<Vec<f32>>());
            (vec![wide, turned, product("v")], vec![constant("t", &t), constant("s", &scale)])
        } else {
            let columns = (0..k * n).map(|i| values[i % n * k + i / n]).collect();
            (vec![product("v")], vec![constant("v", &Tensor::from_vec([k, n], columns))])
        };
        let narrow = import(&model(21, graph(&[&from], narrow, &[&to], held))).expect("a good model");
        // The twin has a number that is none of the others; its factor is 0.
        let mut columns: Vec<f32> = (0..k * n).map(|i| values[i % n * k + i / n]).collect();
        columns[k * n - 1] = 0.100_123;
        let twin = vec![constant("w", &Tensor::from_vec([k, n], columns))];
        let twin = import(&model(21, graph(&[&from], vec![product("w")], &[&to], twin))).expect("a good model");
        let options = Options::for_target(machine.clone());
        let most = k * n.next_multiple_of(128) * width + 4096 * width;
        let got = constants(&narrow, &options);
        assert!(got <= most, "{dtype}: {got} bytes, at most {most} expected");
        assert!(constants(&twin, &options) >= k * n * 4);
        for backend in backends {
            for rows in [1usize, 2, 4, 5, 37, 0] {
                let x = (0..rows * k).map(|i| if i % k == k - 1 { 0.0 } else { hash(i) as f32 * 1e-7 }).collect::<Vec<f32>>();
                let x = Tensor::from_vec([rows, k], x);
                let [a, b] = [&narrow, &twin].map(|g| run(g, backend, &options, &x));
                assert_eq!(a, b, "{dtype}, {rows} rows on {}: {}", machine.name, backend.name());
            }
        }
    }
}

/// A product with weights of `bits`, in blocks with scales and perhaps zero points, whose data may be rounded to 8 bits.
fn in_blocks(rows: &str, size: [usize; 2], kind: (usize, usize, bool)) -> Graph {
    of_bits(&format!("2, {rows}"), size, kind, 4)
}

/// The same with another accuracy level.
fn of_bits(rows: &str, [k, n]: [usize; 2], (bits, block, zeros): (usize, usize, bool), level: usize) -> Graph {
    let bytes = |count: usize, salt: usize| (0..count).map(|i| hash(i * 7 + salt) as u8).collect::<Vec<u8>>();
    let blocks = k / block;
    let q = Tensor::from_bytes(DType::U8, vec![n, blocks, block * bits / 8], bytes(n * k * bits / 8, 3));
    let s = Tensor::from_vec([n * blocks], (0..n * blocks).map(|i| 0.003 + (hash(i) % 1000) as f32 * 1e-5).collect::<Vec<f32>>());
    let row = (blocks * bits).div_ceil(8);
    let z = Tensor::from_bytes(DType::U8, vec![n, row], bytes(n * row, 11));
    let text = if zeros { "y = MatMulNBits(x, q, s, z)" } else { "y = MatMulNBits(x, q, s)" };
    let sizes = [("K", k), ("N", n), ("bits", bits), ("block_size", block), ("accuracy_level", level)];
    let product = NodeProto { domain: Some("com.microsoft".into()), ..node(text, sizes.map(|(name, v)| int(name, v as i64))) };
    let bias = Tensor::from_vec([n], (0..n).map(|i| i as f32 * 0.01).collect::<Vec<f32>>());
    // What stands behind a product would hide bits of its sums.
    let alone = level == 0;
    let end = [node("b = Add(y, bias)", []), node("r = Relu(b)", [])];
    let nodes = [product].into_iter().chain(end.into_iter().filter(|_| !alone)).collect();
    let mut held = vec![constant("q", &q), constant("s", &s)];
    held.extend(zeros.then(|| constant("z", &z)));
    held.extend((!alone).then(|| constant("bias", &bias)));
    let (from, to) = (format!("x f32[{rows}, {k}]"), format!("{} f32[{rows}, {n}]", if alone { "y" } else { "r" }));
    let made = graph(&[&from], nodes, &[&to], held);
    let mut whole = model(21, made);
    whole.opset_import.push(infc_onnx::proto::OperatorSetIdProto { domain: Some("com.microsoft".into()), version: Some(1) });
    import(&whole).expect("a good model")
}

/// Sums of bytes in blocks beside the interpreter, with rows of zeros, infinities and NaN.
#[test]
fn data_in_eight_bits_is_multiplied_as_bytes() {
    let cases = [
        ([64usize, 75usize], (4usize, 16usize, false)),
        ([96, 32], (4, 32, true)),
        ([512, 33], (4, 128, false)),
        ([256, 40], (8, 32, false)),
        ([256, 17], (8, 64, true)),
        ([128, 65], (2, 32, true)),
    ];
    let names = ["native", "x86-64-v3", "x86-64-v2", "cranelift-x86-64-v3"];
    for name in names.into_iter().filter(|n| cfg!(feature = "cranelift") || !n.starts_with("cranelift")) {
        let options = Options::for_target(target::find(name).expect("known"));
        for (size, kind) in cases {
            for (dim, counts) in [("rows", &[1usize, 4, 97, 0][..]), ("1", &[1]), ("5", &[5])] {
                let g = in_blocks(dim, size, kind);
                let lowered = compile::lower(g.clone(), &options).unwrap_or_else(|e| panic!("{e}"));
                let planned = lowered.plans.iter().flatten().any(|p| matches!(p, infc_kernel::plan::Plan::ByteBlocks(_)));
                assert!(planned, "{name} {size:?} {kind:?}: no sums of bytes");
                for &rows in counts {
                    let value = |i: usize| match (i / size[0], i % size[0]) {
                        (1, _) => 0.0,
                        (3, 5) => f32::INFINITY,
                        (4, 9) => f32::NAN,
                        (row, _) => (hash(i) as f32 * 1e-6 - 4.0) * (1 + row % 7) as f32,
                    };
                    let x = Tensor::from_vec([2, rows, size[0]], (0..2 * rows * size[0]).map(value).collect());
                    let backend = if name.starts_with("cranelift") { Backend::Cranelift } else { Backend::Llvm };
                    let want = run(&g, Backend::Interp, &options, &x);
                    let loops = (name == "native").then_some(Backend::Loops);
                    for backend in loops.filter(|_| rows < 9).into_iter().chain([backend]) {
                        let got = run(&g, backend, &options, &x);
                        let same = |(a, b): (&u32, &u32)| {
                            let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
                            a.to_bits() == b.to_bits() || (a - b).abs() <= 1e-4 + 1e-4 * b.abs()
                        };
                        let wrong = got.iter().zip(&want).position(|pair| !same(pair));
                        assert!(
                            got.len() == want.len() && wrong.is_none(),
                            "{name} {size:?} {kind:?} {rows} rows, {}: element {wrong:?}",
                            backend.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn targets_that_keep_no_narrow_weights_refuse_to() {
    let dir = Folder::new();
    let file = examples().join("digits_mlp/model.onnx").display().to_string();
    for target in [
        "fpga-hls",
        #[cfg(feature = "ptx")]
        "nvidia-sm80",
    ] {
        let args = ["compile", &file, "--target", target, "--small", "-o", &dir.path("no.infc")];
        check(&args, 2, &["--small", "x86-64-v3", "c99"]);
    }
    check(&["compile", &file, "--target", "c99", "--emit", "c", "--dim", "batch=1", "--small", "-o", &dir.path("c")], 0, &[]);
}

/// Windows over numbers in 16 bits, of all kinds and beyond the border: the largest as integers is the largest.
#[test]
fn the_largest_of_a_window_is_found_among_integers() {
    let pool = "y = MaxPool(x)";
    for (dtype, name) in [(DType::F16, "f16"), (DType::BF16, "bf16")] {
        let attributes = [ints("kernel_shape", &[3, 2]), ints("strides", &[2, 1]), ints("pads", &[1, 1, 1, 0])];
        let (input, output) = (format!("x {name}[2, 40, 9, 7]"), format!("y {name}[2, 40, 5, 7]"));
        let g = import(&model(22, graph(&[&input], vec![node(pool, attributes)], &[&output], vec![]))).expect("a good model");
        let mut bytes: Vec<u8> = (0..2 * 40 * 9 * 7).flat_map(|i| (hash(i) as u16).to_le_bytes()).collect();
        // Most are any bits; some windows have nothing but -infinity, or negative zeros and one that is not.
        let infinity: u16 = if dtype == DType::F16 { 0xfc00 } else { 0xff80 };
        for (i, two) in bytes.chunks_exact_mut(2).enumerate() {
            match i / 63 % 8 {
                6 => two.copy_from_slice(&infinity.to_le_bytes()),
                7 => two.copy_from_slice(&[0, if i % 5 == 0 { 0 } else { 0x80 }]),
                _ => {}
            }
        }
        let x = Tensor::from_bytes(dtype, vec![2, 40, 9, 7], bytes);
        let native = Options::for_target(target::find("native").expect("known"));
        let old = Options::for_target(target::find("x86-64-v3").expect("known"));
        let integers = |options: &Options| {
            let lowered = compile::lower(g.clone(), options).expect("lowers");
            lowered.kernels.iter().flat_map(|k| &k.buffers).any(|b| b.dtype == DType::I16)
        };
        assert!(integers(&native) && integers(&old));
        let all = |backend: Backend, options: &Options| {
            let mut engine = prepare(g.clone(), backend, options).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
            let outputs = engine.run(&[Item::Tensor(x.clone())]).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
            let y = outputs[0].as_tensor().expect("a tensor");
            let number = |i: usize| if y.float(i).is_nan() { f64::NAN.to_bits() } else { y.float(i).to_bits() };
            (0..y.len()).map(number).collect::<Vec<u64>>()
        };
        let want = all(Backend::Interp, &native);
        for (backend, options) in [(Backend::Loops, &native), (Backend::Llvm, &native), (Backend::Llvm, &old), (Backend::C, &old)]
        {
            assert_eq!(all(backend, options), want, "{} {name} {}", backend.name(), options.target.name);
        }
    }
}

/// A product with weights that a model stores narrow.
#[cfg(feature = "ptx")]
struct Weights {
    size: [usize; 2],
    graph: Graph,
    /// Bits of a weight.
    bits: usize,
    /// 32-bit words for each column.
    heads: usize,
}

/// A product with a matrix that a node makes of constants.
#[cfg(feature = "ptx")]
fn made(rows: &str, [k, n]: [usize; 2], nodes: Vec<NodeProto>, held: Vec<infc_onnx::proto::TensorProto>) -> Graph {
    let (from, to) = (format!("x f32[{rows}, {k}]"), format!("y f32[{rows}, {n}]"));
    let nodes = nodes.into_iter().chain([node("y = MatMul(x, w)", [])]).collect();
    import(&model(21, graph(&[&from], nodes, &[&to], held))).expect("a good model")
}

/// Weights of all kinds, in all widths, with sizes that fill no tile.
#[cfg(feature = "ptx")]
fn kinds(rows: &str) -> Vec<Weights> {
    let mut all = vec![];
    for (size, (bits, block, zeros)) in [
        ([128usize, 131usize], (4usize, 16usize, false)),
        ([192, 97], (4, 32, true)),
        ([512, 40], (4, 128, false)),
        ([256, 65], (8, 32, true)),
        ([128, 129], (2, 32, true)),
        ([320, 52], (2, 64, false)),
    ] {
        let heads = size[0] / block * (1 + usize::from(zeros));
        all.push(Weights { size, graph: of_bits(rows, size, (bits, block, zeros), 0), bits, heads });
    }
    // Data that is rounded to 8 bits by steps of its own.
    all.push(Weights { size: [256, 96], graph: of_bits(rows, [256, 96], (4, 32, false), 4), bits: 4, heads: 8 + 1 });
    // By columns, with zero points, over products that fill no words.
    for (dtype, size, zeros) in [
        (DType::I8, [77usize, 213usize], false),
        (DType::U8, [130, 127], true),
        (DType::I4, [65, 256], false),
        (DType::U4, [96, 173], true),
    ] {
        let [_, n] = size;
        let t = stored(dtype, size);
        let scale = Tensor::from_vec([n], (0..n).map(|c| 0.01 + c as f32 * 0.003).collect::<Vec<f32>>());
        let mut held = vec![constant("t", &t), constant("s", &scale)];
        if zeros {
            held.push(constant(
                "z",
                &Tensor::from_bytes(dtype, vec![n], (0..n).map(|c| (c * 7 % 13) as u8).collect::<Vec<u8>>()),
            ));
        }
        let text = if zeros { "w = DequantizeLinear(t, s, z)" } else { "w = DequantizeLinear(t, s)" };
        let graph = made(rows, size, vec![node(text, [int("axis", 1)])], held);
        all.push(Weights { size, graph, bits: dtype.bits() as usize, heads: 1 + usize::from(zeros) });
    }
    for (dtype, size) in
        [(DType::F16, [65usize, 260usize]), (DType::BF16, [96, 171]), (DType::F8E4M3FN, [80, 208]), (DType::F8E5M2, [128, 130])]
    {
        let t = stored(dtype, size);
        let values: Vec<f32> = (widened(&t).2.into_iter()).map(|v| if v.abs() <= 100.0 { v } else { 0.5 }).collect();
        let graph = made(rows, size, vec![], vec![constant("w", &Tensor::from_vec(size, values))]);
        all.push(Weights { size, graph, bits: 8 * dtype.bytes(), heads: 1 });
    }
    all
}

#[cfg(feature = "ptx")]
fn nvidia(arch: &str, math: infc_kernel::target::Math) -> Options {
    let machine = target::find(&format!("nvidia-{arch}")).expect("known");
    Options::for_target(infc_kernel::target::TargetDesc { math, ..machine })
}

/// Rows of the unit matrix, from one on: what a product with them gives are rows of the other factor.
#[cfg(feature = "ptx")]
fn units(rows: usize, first: usize, depth: usize) -> Tensor {
    Tensor::from_vec([rows, depth], (0..rows * depth).map(|i| f32::from(u8::from(i % depth == first + i / depth))).collect())
}

/// On GPUs weights lie as narrow as their numbers are, for any number of rows, and become exactly these.
#[cfg(feature = "ptx")]
#[test]
fn weights_stay_narrow_on_gpus_and_are_the_same_numbers() {
    use infc_kernel::plan::Plan;
    use infc_kernel::target::Math;
    for rows in ["1", "3", "15", "16", "65", "rows"] {
        for (number, w) in kinds(rows).into_iter().enumerate() {
            let [k, n] = w.size;
            let options = nvidia(if number % 2 == 0 { "sm80" } else { "sm90a" }, Math::F32);
            let lowered = compile::lower(w.graph.clone(), &options).unwrap_or_else(|e| panic!("{e}"));
            let plans: Vec<&Plan> = lowered.plans.iter().flatten().collect();
            let what = format!("{rows} rows, {:?}, {} bits: {plans:?}", w.size, w.bits);
            let few = plans.iter().any(|p| matches!(p, Plan::Gemv(_)));
            let many = plans.iter().any(|p| matches!(p, Plan::Tile(t) if t.stored.is_some()));
            assert_eq!((few, many), (rows.len() != 2 || rows == "15", rows.len() != 1 && rows != "15"), "{what}");
            // Whole tiles of columns, and whole vectors of 16 bytes.
            let most = n.next_multiple_of(16) * ((k * w.bits).next_multiple_of(128) / 8 + 4 * w.heads) + 256;
            assert!(lowered.constants.len() <= most, "{} bytes, {most} at most: {what}", lowered.constants.len());
            let counts: &[usize] = if rows == "rows" { &[1, 3, 4, 5, 65, 0] } else { &[rows.parse().expect("a number")] };
            let value = |i: usize| if i % 7 == 3 { 0.0 } else { hash(i) as f32 * 1e-6 - 4.0 };
            for &count in counts {
                let x = Tensor::from_vec([count, k], (0..count * k).map(value).collect());
                let want = run(&w.graph, Backend::Interp, &options, &x);
                for backend in [Backend::Loops, Backend::Ptx] {
                    let got = run(&w.graph, backend, &options, &x);
                    let near = |(a, b): (&u32, &u32)| {
                        let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
                        (a - b).abs() <= 2e-4 + 2e-5 * b.abs()
                    };
                    let wrong = got.iter().zip(&want).position(|pair| !near(pair));
                    assert!(
                        got.len() == want.len() && wrong.is_none(),
                        "{count} rows by {}: element {wrong:?}, {what}",
                        backend.name()
                    );
                }
            }
        }
    }
}

/// The same product as [`made`] of a matrix in f32 that is narrow but for one number, which data of 0 is multiplied with.
#[cfg(feature = "ptx")]
fn twin(rows: &str, size: [usize; 2], mut values: Vec<f32>) -> Graph {
    *values.last_mut().expect("a weight") = 0.100_123;
    made(rows, size, vec![], vec![constant("w", &Tensor::from_vec(size, values))])
}

/// Matrix instructions get the bits that they get of weights in f32, which were rounded when the model was compiled.
#[cfg(feature = "ptx")]
#[test]
fn matrix_instructions_take_the_same_numbers_of_narrow_weights() {
    use infc_kernel::plan::Plan;
    use infc_kernel::target::{Math, TargetDesc};
    for (number, (rows, size)) in
        [("16", [256usize, 67usize]), ("65", [256, 80]), ("130", [128, 136]), ("200", [128, 144]), ("rows", [256, 80])]
            .into_iter()
            .enumerate()
    {
        let [k, n] = size;
        let group = rows == "130" || rows == "200";
        for dtype in [DType::I4, DType::I8, DType::F8E5M2, DType::BF16] {
            let t = stored(dtype, size);
            let scale = |c: usize| 0.01 + c as f32 * 0.003;
            let (nodes, held, values) = if dtype.is_int() {
                let scales = Tensor::from_vec([n], (0..n).map(scale).collect::<Vec<f32>>());
                let values = (0..k * n).map(|i| t.float(i) as f32 * scale(i % n)).collect::<Vec<f32>>();
                (
                    vec![node("w = DequantizeLinear(t, s)", [int("axis", 1)])],
                    vec![constant("t", &t), constant("s", &scales)],
                    values,
                )
            } else {
                let values: Vec<f32> = (widened(&t).2.into_iter()).map(|v| if v.abs() <= 100.0 { v } else { 0.5 }).collect();
                (vec![], vec![constant("w", &Tensor::from_vec(size, values.clone()))], values)
            };
            let (narrow, twin) = (made(rows, size, nodes, held), twin(rows, size, values));
            for math in [Math::Tf32, Math::Bf16, Math::F16] {
                let of = |warpgroups: bool| {
                    let options = nvidia(if warpgroups { "sm90a" } else { "sm80" }, math);
                    Options::for_target(TargetDesc { warpgroup_tiles: u32::from(warpgroups), ..options.target })
                };
                let options = of(group);
                let lowered = compile::lower(narrow.clone(), &options).unwrap_or_else(|e| panic!("{e}"));
                let tiles: Vec<_> =
                    (lowered.plans.iter().flatten()).filter_map(|p| if let Plan::Tile(t) = p { Some(t) } else { None }).collect();
                let what = format!("{rows} rows, {size:?}, {dtype}, {math:?}: {tiles:?}");
                assert_eq!(tiles.iter().all(|t| t.row.starts_with("wgmma")), group, "{what}");
                // Numbers of 16 bits are copied where shared memory wants as many.
                let stays = math == Math::Tf32 || dtype != DType::BF16;
                assert_eq!(tiles.iter().all(|t| t.stored.is_some()), stays, "{what}");
                let count = if rows == "rows" { [9usize, 65][number % 2] } else { rows.parse().expect("a number") };
                let value = |i: usize| if i % k == k - 1 { 0.0 } else { hash(i) as f32 * 1e-6 - 4.0 };
                let x = Tensor::from_vec([count, k], (0..count * k).map(value).collect());
                let [a, b] = [&narrow, &twin].map(|g| run(g, Backend::Ptx, &options, &x));
                assert_eq!(a, b, "{what}");
            }
        }
    }
}

/// Each weight is the number that the model says, to the bit: rows of the unit matrix show them.
#[cfg(feature = "ptx")]
#[test]
fn narrow_weights_become_the_numbers_that_they_were() {
    for rows in ["15", "64"] {
        let count: usize = rows.parse().expect("a number");
        for w in kinds(rows) {
            let options = nvidia("sm80", infc_kernel::target::Math::F32);
            let of = |backend: Backend| prepare(w.graph.clone(), backend, &options).unwrap_or_else(|e| panic!("{e}"));
            let mut engines = [Backend::Ptx, Backend::Interp].map(of);
            for first in (0..w.size[0]).step_by(count) {
                let x = units(count, first, w.size[0]);
                let [got, want] = [0, 1].map(|k| {
                    let outputs = engines[k].run(&[Item::Tensor(x.clone())]).unwrap_or_else(|e| panic!("{e}"));
                    outputs[0].as_tensor().expect("a tensor").to_vec::<f32>().iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
                });
                assert_eq!(got, want, "{rows} rows from {first}, {:?}, {} bits", w.size, w.bits);
            }
        }
    }
}
