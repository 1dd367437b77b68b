//! What pruning leaves answers as the original as well as it can, and wrong requests are errors.

mod nets;

use infc_compress::data::{Random, Sample};
use infc_compress::distill::{Settings, distill};
use infc_compress::prune::layer::layers;
use infc_compress::prune::{Fit, Kind, Options, Pruned, Widths, prune};
use infc_compress::{Data, Interpreter};
use infc_ir::graph::Graph;
use infc_ir::{Tensor, interp};
use nets::Net;

fn cnn() -> Graph {
    let mut n = Net::new(&[0, 3, 8, 8], 5);
    let x = n.input();
    let a = n.conv(x, 16, 3, 1, "a");
    let a = n.batch_norm(a, "bn");
    let a = n.relu(a);
    let b = n.conv(a, 32, 1, 1, "b");
    let b = n.relu(b);
    let c = n.conv(b, 16, 3, 1, "c");
    let c = n.add(a, c);
    let c = n.relu(c);
    let axes = n.ints(&[2, 3]);
    let m = n.op(infc_ir::op::ReduceMean { keepdims: false, noop_with_empty_axes: false }, &[c, axes]);
    let y = n.gemm(m, 6, "head");
    n.finish(&[y])
}

fn samples(count: usize, seed: u64) -> Vec<Sample> {
    let mut random = Random(seed);
    // Images of few patterns: features are correlated, as those of real data.
    let image = |random: &mut Random| {
        let p: Vec<f64> = (0..4).map(|_| random.unit() * 2.0 - 1.0).collect();
        let at =
            |i: usize| (p[0] * (i as f64 * 0.7).sin() + p[1] * (i as f64 * 0.13).cos() + p[2] * (i % 5) as f64 + p[3]) as f32;
        Tensor::from_vec([1, 3, 8, 8], (0..192).map(at).collect())
    };
    (0..count).map(|_| Sample { inputs: vec![image(&mut random)], label: None }).collect()
}

fn run(g: &Graph, kind: Kind, sparsity: f64, fit: Fit) -> Pruned {
    let options = Options { kind, sparsity, fit, ..Options::default() };
    prune(g, &options, Some(&Data::of(g, samples(48, 1))), &Interpreter).unwrap()
}

/// Relative squared error of the outputs on samples that were not used.
fn error(a: &Graph, b: &Graph) -> f64 {
    let (mut lost, mut all) = (0.0, 0.0);
    for s in samples(16, 2) {
        let want = interp::run_tensors(a, &s.inputs).unwrap()[0].to_vec::<f32>();
        let got = interp::run_tensors(b, &s.inputs).unwrap()[0].to_vec::<f32>();
        lost += want.iter().zip(&got).map(|(w, g)| f64::from(w - g).powi(2)).sum::<f64>();
        all += want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
    }
    lost / all
}

#[test]
fn fitted_channels_answer_better() {
    let g = cnn();
    let made = [Fit::None, Fit::Layer, Fit::Sequential].map(|fit| run(&g, Kind::Channel, 0.5, fit));
    let errors = [0, 1, 2].map(|k| error(&g, &made[k].graph));
    for p in &made {
        assert!(p.after.macs <= 0.5 * p.before.macs && p.after.macs > 0.2 * p.before.macs);
        infc_ir::verify::verify(&p.graph).unwrap();
    }
    assert!(errors[1] < 0.3 * errors[0] && errors[2] < 0.3 * errors[0], "{errors:?}");
    assert!(errors[2] < 0.05, "{errors:?}");
}

/// Fitting all layers together to the outputs loses less than one after the other, on samples that neither saw; and the same bytes come out again.
#[test]
fn layers_fitted_together_answer_better() {
    let g = cnn();
    let run = |fit| {
        let options = Options { kind: Kind::Channel, sparsity: 0.9, fit, steps: 200, ..Options::default() };
        prune(&g, &options, Some(&Data::of(&g, samples(64, 1))), &Interpreter).unwrap()
    };
    let (one, all) = (run(Fit::Sequential), run(Fit::Outputs));
    let (before, after) = (error(&g, &one.graph), error(&g, &all.graph));
    assert_eq!(one.after.macs, all.after.macs);
    assert!(after < 0.8 * before, "error {before} one after the other, {after} together");
    let again = run(Fit::Outputs);
    assert!(infc_ir::text::print(&all.graph) == infc_ir::text::print(&again.graph), "the same data gave other weights");
}

#[test]
fn a_fit_that_is_not_possible_is_told() {
    let mut n = Net::new(&[0, 3, 8, 8], 5);
    let x = n.input();
    let x = n.conv(x, 16, 3, 1, "a");
    let x = n.relu(x);
    let x = n.conv(x, 16, 3, 1, "b");
    let x = n.op(infc_ir::op::Softplus {}, &[x]);
    let axes = n.ints(&[2, 3]);
    let m = n.op(infc_ir::op::ReduceMean { keepdims: false, noop_with_empty_axes: false }, &[x, axes]);
    let y = n.gemm(m, 6, "head");
    let g = n.finish(&[y]);
    let pruned = run(&g, Kind::Channel, 0.5, Fit::Auto);
    let told = |n: &String| n.contains("fitted in order only") && n.contains("Softplus");
    assert!(pruned.fitted.iter().any(told), "{:?}", pruned.fitted);
    let data = Data::of(&g, samples(24, 1));
    let ask = |options: Options, data: Option<&Data>| prune(&g, &options, data, &Interpreter).err().expect("refused").to_string();
    let outputs = Options { fit: Fit::Outputs, ..Options::default() };
    assert!(ask(outputs, Some(&data)).contains("Softplus"));
    assert!(ask(outputs, None).contains("needs data"));
    assert!(ask(Options { kind: Kind::Unstructured, ..outputs }, Some(&data)).contains("not for kind unstructured"));
}

#[test]
fn single_weights_blocks_and_two_of_four_have_their_pattern() {
    let g = cnn();
    for (kind, sparsity) in [(Kind::Unstructured, 0.7), (Kind::Block, 0.5), (Kind::TwoOfFour, 0.5)] {
        let fitted = run(&g, kind, sparsity, Fit::Sequential);
        let plain = run(&g, kind, sparsity, Fit::None);
        let (fit, not) = (error(&g, &fitted.graph), error(&g, &plain.graph));
        assert!(fit < 0.7 * not, "{}: {fit} is not much below {not}", kind.name());
        let l = layers(&fitted.graph).into_iter().find(|l| fitted.graph.value(l.weight).name == "c").unwrap();
        let (w, n) = (l.matrix(&fitted.graph, 0), l.features(&fitted.graph));
        let zeros = w.iter().filter(|v| **v == 0.0).count() as f64 / w.len() as f64;
        assert!((zeros - sparsity).abs() < 0.02, "{}: {zeros}", kind.name());
        match kind {
            Kind::TwoOfFour => assert!(w.chunks(4).all(|four| four.iter().filter(|v| **v == 0.0).count() >= 2)),
            Kind::Block => {
                let column = |j: usize| w.iter().skip(j).step_by(n).filter(|v| **v == 0.0).count();
                assert!((0..n).all(|j| [0, 16].contains(&column(j))));
            }
            Kind::Unstructured | Kind::Channel => {}
        }
    }
}

/// Even widths take the same share of each group, within the one channel that ends it; fitted ones need not.
#[test]
fn even_widths_keep_the_same_share_everywhere() {
    let g = cnn();
    let data = Data::of(&g, samples(48, 1));
    for (sparsity, with_data) in [(0.3, true), (0.5, true), (0.75, true), (0.9, true), (0.75, false)] {
        let shares = |widths: Widths| {
            let options = Options { sparsity, widths, fit: Fit::Sequential, least: 0.05, ..Options::default() };
            let p = prune(&g, &options, with_data.then_some(&data), &Interpreter).unwrap();
            infc_ir::verify::verify(&p.graph).unwrap();
            assert!(p.after.macs <= (1.0 - sparsity) * p.before.macs);
            // What `a` and `b` give; `c` is added to `a`.
            ["a", "b"].map(|name| {
                let outputs = |g: &Graph| {
                    let l = layers(g).into_iter().find(|l| g.value(l.weight).name == name).unwrap();
                    l.outputs(g) as f64
                };
                (outputs(&p.graph), outputs(&g))
            })
        };
        let [a, b] = shares(Widths::Even);
        // One channel of either may be the last.
        assert!((a.0 / a.1 - b.0 / b.1).abs() <= 1.0 / a.1 + 1.0 / b.1 + 1e-9, "{sparsity}: {a:?} and {b:?}");
        if sparsity == 0.75 && with_data {
            let [a, b] = shares(Widths::Fitted);
            assert!((a.0 / a.1 - b.0 / b.1).abs() > 0.15, "the fitted widths are even here, too: {a:?} and {b:?}");
        }
    }
}

#[test]
fn wrong_requests_are_told() {
    let g = cnn();
    let ask = |options: Options, data: Option<&Data>| match prune(&g, &options, data, &Interpreter) {
        Ok(_) => "it was done".to_owned(),
        Err(p) => p.to_string(),
    };
    let with = |sparsity: f64, kind: Kind| Options { sparsity, kind, ..Options::default() };
    let says = |got: String, want: &str| assert!(got.contains(want), "{got}");
    says(ask(with(0.9999, Kind::Channel), None), "cannot be reached");
    says(ask(with(1.0, Kind::Channel), None), "sparsity 1 leaves nothing");
    says(ask(with(f64::NAN, Kind::Unstructured), None), "sparsity NaN");
    says(ask(with(0.7, Kind::TwoOfFour), None), "2:4 has sparsity 0.5");
    let mut bad = samples(3, 1);
    bad[1].inputs[0] = Tensor::from_vec([1, 3, 8, 8], vec![f32::NAN; 192]);
    says(ask(with(0.5, Kind::Channel), Some(&Data::of(&g, bad))), "sample 1, input 'x': element 0 is NaN");
    says(ask(with(0.5, Kind::Channel), Some(&Data::of(&g, vec![]))), "empty");
    let mut n = Net::new(&[1, 4], 0);
    let x = n.input();
    let y = n.relu(x);
    let g = n.finish(&[y]);
    for kind in [Kind::Channel, Kind::Unstructured] {
        let p = prune(&g, &with(0.5, kind), None, &Interpreter).err().expect("nothing to prune").to_string();
        says(p, "has no");
    }
}

#[test]
fn teacher_and_student_belong_together() {
    let g = cnn();
    let settings = Settings { ratio: 0.25, features: 3, temperature: 4.0, prune: Options { steps: 20, ..Options::default() } };
    let data = Data::of(&g, samples(24, 1));
    let made = distill(&g, &settings, Some(&data), &Interpreter).unwrap();
    assert!(made.after.macs <= 0.25 * made.before.macs);
    let names = |g: &Graph| g.outputs().iter().map(|&v| g.value(v).name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&made.teacher), ["y0", "feature.0", "feature.1", "feature.2", "soft.y0"]);
    assert_eq!(names(&made.student), ["y0", "adapted.0", "adapted.1", "adapted.2"]);
    let x = samples(1, 3).remove(0).inputs;
    let (t, s) = (interp::run_tensors(&made.teacher, &x).unwrap(), interp::run_tensors(&made.student, &x).unwrap());
    (1..4).for_each(|k| assert_eq!(t[k].dims, s[k].dims));
    let soft = t[4].to_vec::<f32>();
    assert!((soft.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    // The teacher still answers as the model.
    assert_eq!(t[0], interp::run_tensors(&g, &x).unwrap()[0]);
    assert!(made.module.contains("F.batch_norm(") && made.module.contains("class Student(nn.Module)"));
    assert!(!made.module.contains('@'.to_string().repeat(2).as_str()) && !made.module.contains("@INIT@"));
    assert!(made.teacher_module.contains("class Teacher(nn.Module)") && made.teacher_module.contains("\"soft.y0\""));
    for name in ["adapter.", "bn", "relative_mse", "\"temperature\": 4.0", "\"until\": 1.0", "\"until\": null"] {
        assert!(made.description.contains(name), "{name}");
    }
    for (ratio, temperature) in [(0.0, 4.0), (1.5, 4.0), (0.5, 0.0)] {
        assert!(distill(&g, &Settings { ratio, temperature, ..settings.clone() }, None, &Interpreter).is_err());
    }
}
