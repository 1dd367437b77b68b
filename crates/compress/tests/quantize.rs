//! Quantisation from outside: small networks, all schemes, by the interpreter. What is exported must compute the same bits when it is
//! imported again, and every documented error must come.

use infc_compress::calibrate::{self, Method, Ranges};
use infc_compress::data::{Data, Random, Sample};
use infc_compress::mixed::{self, Budget, Limits};
use infc_compress::quantize::{self, Knowledge, Rounding, Scheme, Settings};
use infc_compress::{Interpreter, compare, layers, npy};
use infc_ir::{DType, Graph, Op, Tensor, interp, text};
use proptest::prelude::*;

/// Random weights as a constant of the text form.
fn constant(id: usize, dims: &[usize], random: &mut Random) -> String {
    let n: usize = dims.iter().product();
    let values: Vec<String> = (0..n).map(|_| format!("{:?}", (random.unit() - 0.5) as f32)).collect();
    let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
    format!("  const %{id}: f32[{}] \"w{id}\" = {{{}}}\n", dims.join(", "), values.join(", "))
}

/// Convolution, depthwise convolution, pooling, a residual, matrix products.
fn network(seed: u64) -> Graph {
    with_residual(seed, true)
}

/// The same, with the residual or without.
fn with_residual(seed: u64, residual: bool) -> Graph {
    let mut r = Random(seed);
    let mut out = "graph \"net\" {\n  opset \"\" 18\n".to_owned();
    for (i, op) in ["Conv", "Conv", "MaxPool", "Conv", "Add", "Reshape", "Gemm", "MatMul", "Add"].iter().enumerate() {
        out += &format!("  source {i} \"{}{i}\" \"{op}\" 18\n", op.to_lowercase());
    }
    for (id, dims) in
        [(0, &[4, 3, 3, 3][..]), (1, &[4]), (2, &[4, 1, 3, 3]), (3, &[4]), (4, &[4, 4, 1, 1]), (5, &[6, 64]), (6, &[6])]
    {
        out += &constant(id, dims, &mut r);
    }
    out += &constant(7, &[6, 5], &mut r);
    out += &constant(8, &[5], &mut r);
    out += "  const %9: i64[2] = {-1, 64}
  region (%10: f32[n, 3, 8, 8] \"x\") {
    %11: f32[n, 4, 8, 8] \"c0\" = Conv(%10, %0, %1) {pads = [1, 1, 1, 1]} @\"conv0\" from [0]
    %12: f32[n, 4, 8, 8] \"r0\" = Relu(%11) from [0]
    %13: f32[n, 4, 8, 8] \"c1\" = Conv(%12, %2, %3) {group = 4, pads = [1, 1, 1, 1]} @\"conv1\" from [1]
    %14: f32[n, 4, 8, 8] \"r1\" = Relu(%13) from [1]
    %15: f32[n, 4, 4, 4] \"p\" = MaxPool(%14) {kernel_shape = [2, 2], strides = [2, 2]} from [2]
    %16: f32[n, 4, 4, 4] \"c3\" = Conv(%15, %4) @\"conv3\" from [3]
    %17: f32[n, 4, 4, 4] \"a\" = Add(%16, %15) from [4]
    %18: f32[n, 64] \"f\" = Reshape(%17, %9) from [5]
    %19: f32[n, 6] \"g\" = Gemm(%18, %5, %6) {transB = 1} @\"gemm6\" from [6]
    %20: f32[n, 5] \"m\" = MatMul(%19, %7) @\"matmul7\" from [7]
    %21: f32[n, 5] \"y\" = Add(%20, %8) from [8]
    yield %21
  }
}
";
    if !residual {
        out = out.replace("Add(%16, %15)", "Add(%16, %16)");
    }
    let g = text::parse(&out).unwrap_or_else(|e| panic!("{e}\n{out}"));
    layers::prepare(&g).unwrap()
}

fn samples(g: &Graph, count: usize, seed: u64) -> Data<'static> {
    let mut r = Random(seed);
    let one = |r: &mut Random, n: usize| {
        let values = (0..n * 192).map(|_| (2.0 * r.unit() - 1.0) as f32).collect::<Vec<f32>>();
        Sample { inputs: vec![Tensor::from_vec([n, 3, 8, 8], values)], label: None }
    };
    let samples = (0..count).map(|i| one(&mut r, 1 + i % 3)).collect();
    Data::of(g, samples)
}

fn quantised(g: &Graph, settings: &Settings, data: &Data) -> quantize::Quantised {
    quantize::quantize(g, settings, &Knowledge::Data(data, &Interpreter), &mut |_, _, _| {}).unwrap()
}

fn sqnr(g: &Graph, q: &Graph, data: &Data) -> f64 {
    compare::graphs(g, q, &Interpreter, data, false).unwrap().outputs[0].sqnr_db
}

fn again(g: &Graph) -> Graph {
    infc_onnx::import_bytes(infc_onnx::export(g).unwrap().into(), None).unwrap()
}

/// The same bits before and after export, as defined and after all passes.
fn same_after_export(q: &Graph, data: &Data) {
    let back = again(q);
    let compiled = |g: &Graph| {
        let mut g = g.clone();
        infc_passes::run(&mut g, &infc_passes::Options::default()).unwrap();
        g
    };
    for (a, b) in [(q.clone(), back.clone()), (compiled(q), compiled(&back))] {
        for i in 0..data.len() {
            let inputs = data.sample(i).unwrap().inputs;
            assert_eq!(interp::run_tensors(&a, &inputs).unwrap(), interp::run_tensors(&b, &inputs).unwrap());
        }
    }
}

#[test]
fn every_scheme_keeps_the_answers() {
    let g = network(1);
    let (data, other) = (samples(&g, 12, 2), samples(&g, 6, 3));
    let with = |scheme| Settings { scheme, ..Settings::default() };
    for (settings, least) in [
        (with(Scheme::Static), 28.0),
        (Settings { symmetric: true, ..with(Scheme::Static) }, 26.0),
        (Settings { smooth: false, bias_correction: false, method: Method::MinMax, ..with(Scheme::Static) }, 25.0),
        (Settings { rounding: Some(Rounding::Reconstruct), ..with(Scheme::Static) }, 28.0),
        (with(Scheme::Dynamic), 35.0),
        (with(Scheme::Int8Weights), 38.0),
        (with(Scheme::Int4Weights), 16.0),
        (with(Scheme::Float(DType::F16)), 60.0),
        (with(Scheme::Float(DType::BF16)), 40.0),
        (with(Scheme::Float(DType::F8E4M3FN)), 22.0),
    ] {
        let q = quantised(&g, &settings, &data);
        let got = sqnr(&g, &q.graph, &other);
        assert!(got >= least, "{settings:?}: {got:.1} dB");
        assert!(got < 120.0, "{settings:?}: nothing was quantised");
        same_after_export(&q.graph, &other);
    }
}

/// After the passes, every contraction works on integers: none is left in float.
#[test]
fn static_contractions_run_on_integers() {
    let g = network(4);
    let data = samples(&g, 8, 5);
    let mut q = quantised(&g, &Settings::default(), &data).graph;
    let inputs = data.sample(0).unwrap().inputs;
    assert!(layers::macs(&q, &inputs).iter().all(|m| m.2), "float contractions are left");
    infc_passes::run(&mut q, &infc_passes::Options::default()).unwrap();
    for &n in &q.region(Graph::MAIN).nodes {
        let op = &q.node(n).op;
        assert!(!matches!(op, Op::Conv(_) | Op::MatMul(_) | Op::Gemm(_)), "{} in float", q.describe(n));
    }
}

/// Two matrix products on what has a few values far larger than all others, in any channel.
fn rare_outliers(seed: u64) -> (Graph, Data<'static>, Data<'static>) {
    let mut r = Random(seed);
    let mut out = "graph \"net\" {\n  opset \"\" 18\n  source 0 \"a\" \"MatMul\" 18\n".to_owned();
    for (id, dims) in [(0, &[16, 12][..]), (1, &[12]), (2, &[16, 8])] {
        out += &constant(id, dims, &mut r);
    }
    out += "  region (%3: f32[n, 16] \"x\") {
    %4: f32[n, 12] \"m\" = MatMul(%3, %0) @\"first\" from [0]
    %5: f32[n, 12] \"y\" = Add(%4, %1) from [0]
    %6: f32[n, 8] \"z\" = MatMul(%3, %2) @\"second\" from [0]
    yield %5, %6
  }
}
";
    let g = layers::prepare(&text::parse(&out).unwrap_or_else(|e| panic!("{e}\n{out}"))).unwrap();
    let mut draw = |count: usize| -> Data<'static> {
        let one = |r: &mut Random| {
            let mut values = (0..16 * 16).map(|_| (2.0 * r.unit() - 0.5) as f32).collect::<Vec<f32>>();
            values[(r.unit() * 255.0) as usize] = 60.0 + 20.0 * r.unit() as f32;
            Sample { inputs: vec![Tensor::from_vec([16, 16], values)], label: None }
        };
        Data::of(&g, (0..count).map(|_| one(&mut r)).collect())
    };
    let (data, other) = (draw(20), draw(6));
    (g, data, other)
}

/// Such values are stored in two parts, whose products are taken on integers with the same stored weights.
#[test]
fn rare_outliers_are_stored_apart() {
    let (g, data, other) = rare_outliers(21);
    let q = quantised(&g, &Settings::default(), &data);
    let whole = quantised(&g, &Settings { split: false, ..Settings::default() }, &data);
    assert!(q.notes.iter().any(|n| n.contains("two parts") && n.contains("'first'") && n.contains("'second'")), "{:?}", q.notes);
    assert!(!whole.notes.iter().any(|n| n.contains("two parts")));
    let products = |g: &Graph| g.region(Graph::MAIN).nodes.iter().filter(|&&n| matches!(g.node(n).op, Op::MatMul(_))).count();
    assert_eq!((products(&q.graph), products(&whole.graph)), (4, 2));
    // Rows without such a value are what gains: the noise of the others hides it in a ratio over all.
    let quiet =
        Data::of(&g, vec![Sample { inputs: vec![Tensor::from_vec([1, 16], [0.3f32, -0.2, 1.1, 0.7].repeat(4))], label: None }]);
    let (fine, coarse) = (sqnr(&g, &q.graph, &quiet), sqnr(&g, &whole.graph, &quiet));
    assert!(fine > coarse + 6.0, "{fine:.1} dB in two parts, {coarse:.1} in one");
    assert!(sqnr(&g, &q.graph, &other) > 30.0);
    let inputs = data.sample(0).unwrap().inputs;
    assert!(layers::macs(&q.graph, &inputs).iter().all(|m| m.2), "float contractions are left");
    same_after_export(&q.graph, &other);
    // A layer that is kept has one product.
    let kept = quantised(&g, &Settings { keep: ["second".to_owned()].into(), ..Settings::default() }, &data);
    assert_eq!(products(&kept.graph), 3);
    same_after_export(&kept.graph, &other);
}

#[test]
fn kept_layers_stay_and_are_listed() {
    let g = network(6);
    let data = samples(&g, 4, 7);
    let settings = Settings { keep: ["conv1".to_owned(), "gemm6".to_owned()].into(), ..Settings::default() };
    let q = quantised(&g, &settings, &data);
    assert!(q.forms.iter().all(|f| f.layer != "conv1" && f.layer != "gemm6"));
    assert!(q.kept.iter().any(|k| k.0 == "conv1") && q.kept.iter().any(|k| k.0 == "gemm6"));
    // Weights of a layer alone: its sums stay in float.
    let settings = Settings { float_sums: ["*conv1".to_owned()].into(), ..Settings::default() };
    let q = quantised(&g, &settings, &data);
    assert!(q.forms.iter().any(|f| f.layer == "conv1" && f.form == "int8 weights"));
    let inputs = data.sample(0).unwrap().inputs;
    let float = layers::macs(&q.graph, &inputs).into_iter().filter(|m| !m.2).count();
    assert_eq!(float, 1, "contractions in float");
    let unknown = Settings { keep: ["nothing".to_owned()].into(), ..Settings::default() };
    let e = quantize::quantize(&g, &unknown, &Knowledge::Data(&data, &Interpreter), &mut |_, _, _| {}).unwrap_err();
    assert!(e.to_string().contains("'nothing'") && e.to_string().contains("conv0"), "{e}");
}

#[test]
fn ranges_go_through_a_file() {
    let g = network(8);
    let data = samples(&g, 6, 9);
    // A file has no data to reconstruct with, nor to settle biases by.
    let settings = Settings { smooth: false, rounding: Some(Rounding::Nearest), ..Settings::default() };
    let taps = quantize::taps(&g, &settings);
    let stats = calibrate::collect(&g, &taps, &data, &Interpreter, &mut |_| {}).unwrap();
    let json = Ranges::of(&g, &taps, &stats, settings.method, false).to_json();
    let ranges = Ranges::from_json(&json, "ranges.json", &g).unwrap();
    let from_file = quantize::quantize(&g, &settings, &Knowledge::Ranges(&ranges), &mut |_, _, _| {}).unwrap();
    let know = Knowledge::Data(&data, &Interpreter);
    let calibration = quantize::calibrate(&g, &settings, &know, &mut |_, _, _| {}).unwrap();
    let from_data = quantize::quantize_layers(&calibration, &settings).unwrap();
    assert_eq!(text::print(&from_file.graph), text::print(&from_data.graph));
    let e = Ranges::from_json(&json, "ranges.json", &network(10)).unwrap_err().to_string();
    assert!(e.contains("ranges.json") && e.contains("another model"), "{e}");
    assert!(Ranges::from_json("{}", "ranges.json", &g).is_err());
    let nothing = quantize::quantize(&g, &settings, &Knowledge::Nothing, &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(nothing.contains("--data"), "{nothing}");
}

#[test]
fn budgets_choose_layers() {
    let g = network(11);
    let data = samples(&g, 6, 12);
    let settings = Settings::default();
    let know = Knowledge::Data(&data, &Interpreter);
    let limits = Limits { float_macs: 1.0, double_macs: 0.0 };
    let find = |budget| mixed::search(&g, &settings, budget, limits, &know, &data, &Interpreter, &mut |_, _, _| {});
    let all = find(Budget::MinSqnr(15.0)).unwrap();
    // More than all layers together keep.
    let least = all.quality + 4.0;
    let some = find(Budget::MinSqnr(least)).unwrap();
    assert!(some.quality >= least && some.model.forms.len() < all.model.forms.len(), "{} layers", some.model.forms.len());
    assert_eq!(all.sensitivity.len(), 5);
    for double_macs in [0.0, 1.0] {
        let limits = Limits { double_macs, ..limits };
        let nothing = Budget::MinSqnr(200.0);
        let e = mixed::search(&g, &settings, nothing, limits, &know, &data, &Interpreter, &mut |_, _, _| {}).err().unwrap();
        let e = e.to_string();
        assert!(e.contains("cannot be met") && e.contains("best found") && e.contains(" dB"), "{e}");
    }
    let e = find(Budget::MaxDrop(0.1)).err().unwrap().to_string();
    assert!(e.contains("labels"), "{e}");
}

/// A budget that some layers in float meet is met by settled biases with no more in float, and sometimes with less; where nothing may be in float, by
/// inputs in two bytes. The twin tries every number of layers in float, in the same order, without either.
#[test]
fn a_budget_is_met_with_less_in_float() {
    let (mut fewer, mut twice) = (0, 0);
    // Ranges that cut much off shift the means of results, which settled biases make up for.
    for (seed, method) in [(51, Method::Mse), (61, Method::Percentile(95.0)), (71, Method::Percentile(95.0))] {
        let g = network(seed);
        let (data, other) = (samples(&g, 12, seed + 1), samples(&g, 6, seed + 2));
        let settings = Settings { smooth: false, method, ..Settings::default() };
        let know = Knowledge::Data(&data, &Interpreter);
        let calibration = quantize::calibrate(&g, &settings, &know, &mut |_, _, _| {}).unwrap();
        let inputs = data.sample(0).unwrap().inputs;
        let sums =
            |q: &Graph, integers: bool| layers::macs(q, &inputs).iter().filter(|m| m.2 == integers).map(|m| m.1).sum::<u64>();
        let total = sums(&g, false);
        let keeping = |float: &[usize]| {
            let keep = float.iter().map(|&i| calibration.layers[i].name.clone()).collect();
            quantize::quantize_layers(&calibration, &Settings { keep, ..settings.clone() }).unwrap().graph
        };
        let base = sqnr(&g, &keeping(&[]), &other);
        // Between what all layers on integers keep with biases as they are and settled, and far above.
        let settled = sqnr(&g, &quantised(&g, &settings, &data).graph, &other);
        for more in [(settled - base) / 2.0, 1.0, 3.0, 6.0].into_iter().filter(|&more| more > 0.005) {
            let budget = Budget::MinSqnr(base + more);
            let find = |limits| mixed::search(&g, &settings, budget, limits, &know, &other, &Interpreter, &mut |_, _, _| {});
            let (all, none) = (Limits { double_macs: 0.0, ..Limits::default() }, Limits { float_macs: 0.0, double_macs: 1.0 });
            let single = find(all).unwrap();
            // The order of layers is that of the search, which lists them as kept.
            let at = |name: &str| calibration.layers.iter().position(|l| l.name == name).unwrap();
            let kept: Vec<usize> = single.model.kept.iter().map(|k| at(&k.0)).collect();
            let keeps = |found: &mixed::Found| {
                let got = sqnr(&g, &found.model.graph, &other);
                assert!(got >= base + more && (got - found.quality).abs() < 1e-9, "{got} dB, {} said", found.quality);
            };
            keeps(&single);
            assert!(sums(&single.model.graph, false) <= total);
            // Without settled biases fewer layers in float do not do, and sometimes as many do not either.
            let plain = (0..=kept.len()).find(|&n| sqnr(&g, &keeping(&kept[..n]), &other) >= base + more);
            fewer += u32::from(plain.is_none());
            assert!(plain.is_none_or(|n| n == kept.len()), "{plain:?} of {} layers would do", kept.len());
            // Twice the products are not always enough: weights have noise too.
            if let Ok(both) = find(none) {
                keeps(&both);
                assert_eq!(sums(&both.model.graph, false), 0);
                let integers = sums(&both.model.graph, true);
                assert!(integers <= 2 * total);
                if integers > total {
                    twice += 1;
                    assert!(both.notes[0].contains("in two bytes"), "{:?}", both.notes);
                    let without = find(Limits { double_macs: 0.0, ..none }).err().unwrap().to_string();
                    assert!(without.contains("cannot be met"), "{without}");
                }
                let again = find(none).unwrap();
                assert_eq!(infc_onnx::export(&both.model.graph).unwrap(), infc_onnx::export(&again.model.graph).unwrap());
            }
        }
    }
    assert!(fewer > 0 && twice > 0, "less in float by settling {fewer} times, by two bytes {twice} times");
}

/// The model with switches answers as the model of each choice does, with all kinds of layers.
#[test]
fn switches_are_the_choices() {
    // No residual: it would read what is moved, which is on integers in the models of the choices only.
    let (net, (rare, outliers, _)) = (with_residual(31, false), rare_outliers(32));
    for (g, data) in [(&net, samples(&net, 6, 33)), (&rare, outliers)] {
        let settings = Settings::default();
        let know = Knowledge::Data(&data, &Interpreter);
        let calibration = quantize::calibrate(g, &settings, &know, &mut |_, _, _| {}).unwrap();
        let switched = quantize::switched(&calibration, &settings).unwrap();
        let count = calibration.layers.len();
        assert_eq!(switched.inputs().len(), g.inputs().len() + count);
        let answers = |g: &Graph, more: &[Tensor]| -> Vec<Tensor> {
            let run = |i| interp::run_tensors(g, &[&data.sample(i).unwrap().inputs[..], more].concat()).unwrap();
            (0..data.len()).flat_map(run).collect()
        };
        let noise = |a: &[Tensor], b: &[Tensor]| {
            let mut sums = compare::Sums::default();
            a.iter().zip(b).filter(|p| p.0.dims == p.1.dims).for_each(|(a, b)| sums.add(a, b).unwrap());
            sums.difference("").sqnr_db
        };
        let float = answers(g, &[]);
        for choice in 0..1u32 << count {
            let keep = (0..count).filter(|k| choice >> k & 1 == 0).map(|k| calibration.layers[k].name.clone()).collect();
            let model = quantize::quantize_layers(&calibration, &Settings { keep, ..settings.clone() }).unwrap().graph;
            let switches: Vec<Tensor> =
                (0..count).map(|k| Tensor::from_values(DType::Bool, [], [u64::from(choice >> k & 1)])).collect();
            let (want, got) = (answers(&model, &[]), answers(&switched, &switches));
            let apart = noise(&want, &got);
            let lost = noise(&float, &want);
            // Sums on integers and in float differ by rounding only, which now and then takes a value over the edge of a step.
            let good = want == got || apart > 50.0 && apart > lost + 10.0;
            assert!(good, "choice {choice:b}: {apart:.1} dB, and {lost:.1} dB from float");
        }
    }
}

/// Where outputs lose too much, a few layers stay in float: those that cost little.
#[test]
fn an_aim_keeps_layers_in_float() {
    let g = network(41);
    // With fewer, those that are fitted to without the ones held out say less than all.
    let (data, other) = (samples(&g, 24, 42), samples(&g, 6, 43));
    let know = Knowledge::Data(&data, &Interpreter);
    let settings = Settings::default();
    let run = |aim| mixed::quantize(&g, &settings, aim, &know, &Interpreter, &mut |_, _, _| {}).unwrap();
    let inputs = data.sample(0).unwrap().inputs;
    let share = |q: &Graph| {
        let macs = layers::macs(q, &inputs);
        let sum = |f: &dyn Fn(bool) -> bool| macs.iter().filter(|m| f(m.2)).map(|m| m.1).sum::<u64>() as f64;
        sum(&|integer| !integer) / sum(&|_| true)
    };
    let plain = run(None);
    assert_eq!(share(&plain.model.graph), 0.0);
    let base = sqnr(&g, &plain.model.graph, &other);
    // More than is kept anyway, also on what was calibrated on.
    let aim = mixed::Aim { sqnr_db: sqnr(&g, &plain.model.graph, &data) + 1.0, double_macs: 0.0, float_macs: 0.5 };
    let some = run(Some(aim));
    let (got, float) = (sqnr(&g, &some.model.graph, &other), share(&some.model.graph));
    assert!(got > base + 0.5, "{base:.1} dB, then {got:.1}");
    assert!(float > 0.0 && float <= 0.5, "{float} in float");
    assert!(some.notes[0].contains("stay in float") && !some.sensitivity.is_empty(), "{:?}", some.notes);
    assert!(some.model.kept.iter().any(|k| k.1.contains("budget")), "{:?}", some.model.kept);
    // The same again, bit for bit; and nothing changes where the aim is met.
    assert_eq!(infc_onnx::export(&some.model.graph).unwrap(), infc_onnx::export(&run(Some(aim)).model.graph).unwrap());
    let met = run(Some(mixed::Aim { sqnr_db: 5.0, ..mixed::Aim::default() }));
    assert_eq!(infc_onnx::export(&met.model.graph).unwrap(), infc_onnx::export(&plain.model.graph).unwrap());
}

/// The mean of each output over the data is that of the model in float, whatever activations lose at the ends of their ranges.
#[test]
fn means_of_outputs_settle() {
    let g = network(61);
    let data = samples(&g, 8, 62);
    let means = |q: &Graph| -> Vec<f64> {
        let (mut sum, mut rows) = (vec![0.0; 5], 0.0);
        for i in 0..data.len() {
            let y = interp::run_tensors(q, &data.sample(i).unwrap().inputs).unwrap()[0].to_vec::<f32>();
            y.chunks_exact(5).for_each(|row| sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v)));
            rows += y.len() as f64 / 5.0;
        }
        sum.iter().map(|s| s / rows).collect()
    };
    let want = means(&g);
    let off = |q: &Graph| means(q).iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    // Ranges that cut much off.
    let settings = Settings { method: Method::Percentile(95.0), smooth: false, ..Settings::default() };
    let calibration = quantize::calibrate(&g, &settings, &Knowledge::Data(&data, &Interpreter), &mut |_, _, _| {}).unwrap();
    let before = off(&quantize::quantize_layers(&calibration, &settings).unwrap().graph);
    let after = off(&quantised(&g, &settings, &data).graph);
    assert!(before > 0.02 && after < 1e-4, "off by {before} before, {after} after");
    let kept = off(&quantised(&g, &Settings { bias_correction: false, ..settings }, &data).graph);
    assert!(kept > 0.02, "without correction off by {kept}");
}

/// With inputs in two bytes, layers have the noise of their weights only, and no sum is taken in float; also where what they read was
/// moved from what others read, and of one value several read. As few layers as the aim needs get them.
#[test]
fn inputs_in_two_bytes_leave_the_noise_of_weights() {
    let g = network(51);
    let (data, other) = (samples(&g, 12, 52), samples(&g, 6, 53));
    // Smoothing would trade noise of weights for that of activations.
    let plain = Settings { smooth: false, ..Settings::default() };
    let one = quantised(&g, &plain, &data);
    let weights = quantised(&g, &Settings { scheme: Scheme::Int8Weights, ..Settings::default() }, &data);
    let with = |names: &[&str]| {
        let two_bytes = names.iter().map(|n| (*n).to_owned()).collect();
        quantised(&g, &Settings { two_bytes, ..plain.clone() }, &data)
    };
    let all = with(&["*"]);
    let [base, fine, best] = [&one, &all, &weights].map(|q| sqnr(&g, &q.graph, &other));
    assert!(fine > base + 6.0 && fine > best - 1.0, "one byte {base:.1} dB, two {fine:.1}, weights alone {best:.1}");
    let inputs = data.sample(0).unwrap().inputs;
    let macs = |q: &Graph| layers::macs(q, &inputs);
    assert!(macs(&all.graph).iter().all(|m| m.2), "sums in float");
    let sum = |q: &Graph| macs(q).iter().map(|m| m.1).sum::<u64>();
    assert_eq!(sum(&all.graph), 2 * sum(&one.graph));
    same_after_export(&all.graph, &other);
    // A layer behind a MaxPool, and one that reads what others read too.
    for name in ["conv3", "conv1", "gemm6"] {
        let q = with(&[name]);
        let form = |f: &&quantize::Form| f.form.contains("two bytes");
        assert_eq!(q.forms.iter().filter(form).map(|f| f.layer.as_str()).collect::<Vec<_>>(), [name]);
        assert!(sum(&q.graph) > sum(&one.graph));
        let got = sqnr(&g, &q.graph, &other);
        assert!(got > base - 0.5, "{name}: {base:.1} dB, then {got:.1}");
        same_after_export(&q.graph, &other);
    }
    // An aim that one byte misses and two meet: some layers, none in float.
    let know = Knowledge::Data(&data, &Interpreter);
    let aim = mixed::Aim { sqnr_db: sqnr(&g, &one.graph, &data) + 1.0, double_macs: 1.0, float_macs: 0.0 };
    let run = || mixed::quantize(&g, &plain, Some(aim), &know, &Interpreter, &mut |_, _, _| {}).unwrap();
    let some = run();
    let got = sqnr(&g, &some.model.graph, &other);
    assert!(got > base + 1.0, "{base:.1} dB, then {got:.1}: {:?}", some.notes);
    assert!(macs(&some.model.graph).iter().all(|m| m.2) && sum(&some.model.graph) <= 2 * sum(&one.graph), "{:?}", some.notes);
    assert!(some.notes[0].contains("in two bytes"), "{:?}", some.notes);
    assert_eq!(infc_onnx::export(&some.model.graph).unwrap(), infc_onnx::export(&run().model.graph).unwrap());
}

#[test]
fn bad_data_is_refused() {
    let g = network(13);
    let dir = tempfile::tempdir().unwrap();
    let none = |_: &std::path::Path, _: &infc_ir::Type| unreachable!("no .pb files here");
    let read = |what: &str, t: Option<Tensor>| -> String {
        let folder = dir.path().join(what);
        std::fs::create_dir(&folder).unwrap();
        if let Some(t) = t {
            std::fs::write(folder.join("x.npy"), npy::write(&t).unwrap()).unwrap();
        }
        let outcome = Data::read(&folder, &g, &none).and_then(|d| d.sample(0).map(|_| ()));
        outcome.err().map_or(String::new(), |e| e.to_string())
    };
    let cube = |v: f32| Tensor::from_vec([1, 3, 8, 8], vec![v; 192]);
    assert_eq!(read("good", Some(cube(0.5))), "");
    assert!(read("nan", Some(cube(f32::NAN))).contains("element 0 is NaN"));
    assert!(read("shape", Some(Tensor::from_vec([2, 3, 8, 7], vec![0.0f32; 336]))).contains("f32[1, 3, 8, 7]"));
    assert!(read("rank", Some(Tensor::from_vec([2, 3], vec![0.0f32; 6]))).contains("rows of it are no input"));
    assert!(read("empty", None).contains("holds no samples"));
    assert!(read("rows", Some(Tensor::from_vec([0, 3, 8, 8], Vec::<f32>::new()))).contains("holds no samples"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    fn random_networks_survive(seed in 1u64..1_000_000, scheme in 0usize..4) {
        let g = network(seed);
        let data = samples(&g, 5, seed ^ 1);
        let scheme = [Scheme::Static, Scheme::Dynamic, Scheme::Int8Weights, Scheme::Int4Weights][scheme];
        let q = quantised(&g, &Settings { scheme, group: 16, ..Settings::default() }, &data);
        prop_assert!(sqnr(&g, &q.graph, &data) > 12.0);
        same_after_export(&q.graph, &data);
    }
}
