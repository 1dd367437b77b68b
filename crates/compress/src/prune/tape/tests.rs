//! Steps against the interpreter, gradients against slopes.

use super::nets::{self, Net};
use super::*;
use crate::data::Random;
use infc_ir::graph::{Def, Graph};
use infc_ir::op::*;
use infc_ir::{Tensor, interp};

fn window(stride: i64, pads: &[i64]) -> (Vec<i64>, Vec<i64>, Vec<i64>) {
    (vec![3, 2], vec![stride, 1], pads.to_vec())
}

/// Images through all that is followed.
fn image(seed: u64) -> Graph {
    let mut n = Net::new(&[2, 3, 7, 6], seed);
    let x = n.input();
    let w = n.weights(&[8, 3, 3, 2], "strided");
    let (kernel_shape, strides, pads) = window(2, &[1, 0, 2, 1]);
    let conv = Conv { auto_pad: "NOTSET".into(), dilations: vec![1, 2], group: 1, kernel_shape, pads, strides };
    let x = n.op(conv, &[x, w]);
    let x = n.batch_norm(x, "bn");
    let a = n.relu(x);
    let a = n.conv(a, 8, 3, 8, "depthwise");
    let a = n.op(LeakyRelu { alpha: 0.1 }, &[a]);
    let b = n.conv(x, 8, 1, 2, "grouped");
    let b = n.op(Tanh {}, &[b]);
    let both = n.op(Mul {}, &[a, b]);
    let rest = n.op(Sub {}, &[a, b]);
    let x = n.concat(&[both, rest, x], 1);
    let (kernel_shape, strides, pads) = window(1, &[1, 0, 1, 1]);
    let pool =
        MaxPool { auto_pad: "NOTSET".into(), ceil_mode: 0, dilations: vec![], kernel_shape, pads, storage_order: 0, strides };
    let x = n.op(pool, &[x]);
    let (kernel_shape, strides, pads) = window(1, &[1, 0, 0, 1]);
    let mean = AveragePool {
        auto_pad: "NOTSET".into(),
        ceil_mode: 0,
        count_include_pad: false,
        dilations: vec![],
        kernel_shape,
        pads,
        strides,
    };
    let x = n.op(mean, &[x]);
    let x = n.slice(x, 1, 1, 23);
    let (global, axes) = (n.op(GlobalAveragePool {}, &[x]), n.ints(&[2, 3]));
    let mean = n.op(ReduceMean { keepdims: true, noop_with_empty_axes: false }, &[x, axes]);
    let x = n.op(Sigmoid {}, &[global]);
    let x = n.add(x, mean);
    let x = n.op(Flatten { axis: 1 }, &[x]);
    let y = n.gemm(x, 5, "head");
    n.finish(&[y])
}

/// Rows, with a bias that is added.
fn rows(seed: u64) -> Graph {
    let mut n = Net::new(&[2, 3, 6], seed);
    let x = n.input();
    let a = n.linear(x, 8, "a");
    let (low, high) = (n.weights(&[], "low"), n.weights(&[], "high"));
    n.g.values[low.index()].def = Def::Constant(Tensor::from_vec([0usize; 0], vec![-0.5f32]));
    n.g.values[high.index()].def = Def::Constant(Tensor::from_vec([0usize; 0], vec![0.7f32]));
    let b = n.op(Clip {}, &[a, low, high]);
    let t = n.op(Transpose { perm: vec![0, 2, 1] }, &[b]);
    let t = n.reshape(t, &[2, 3, 8]);
    let y = n.linear(t, 4, "b");
    n.finish(&[y, a])
}

/// Steps, constants with the fitted values, and buffers.
fn tape(g: &Graph, inputs: &[Tensor], parameters: &Parameters) -> (Tape, Vec<Vec<f32>>, Buffers) {
    let tape = Tape::new(g, inputs, parameters).unwrap();
    let mut constants = tape.constants();
    tape.fitted.iter().zip(parameters.read(g)).for_each(|(&s, v)| constants[s] = v);
    let buffers = tape.buffers();
    (tape, constants, buffers)
}

#[test]
fn steps_give_what_the_interpreter_gives() {
    for seed in 0..4 {
        for mut g in [image(seed), rows(seed)] {
            let inputs = nets::inputs(&g, &mut Random(seed + 1));
            let parameters = Parameters::of(&g);
            // Other weights than those that the tape was made with, through the graph and through the constants.
            let mut values = parameters.read(&g);
            let (tape, mut constants, mut b) = tape(&g, &inputs, &parameters);
            values.iter_mut().flatten().enumerate().for_each(|(i, v)| *v += 0.1 * ((i % 5) as f32 - 2.0));
            tape.fitted.iter().zip(&values).for_each(|(&s, v)| constants[s].clone_from(v));
            parameters.write(&mut g, &values);
            tape.run(&inputs, &constants, &mut b);
            let want = interp::run_tensors(&g, &inputs).unwrap();
            for (slot, want) in tape.outputs.iter().zip(&want) {
                let got = b.value(slot.unwrap());
                let want = want.to_vec::<f32>();
                assert_eq!(got.len(), want.len());
                got.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a} is not {b}"));
            }
        }
    }
}

#[test]
fn gradients_are_the_slopes() {
    for seed in 0..4 {
        for g in [image(seed), rows(seed)] {
            let inputs = nets::inputs(&g, &mut Random(seed + 1));
            let parameters = Parameters::of(&g);
            let (tape, constants, mut b) = tape(&g, &inputs, &parameters);
            let mut random = Random(seed);
            let mut number = || (random.unit() * 2.0 - 1.0) as f32;
            // The loss is a sum of the outputs with these factors.
            let sizes = tape.outputs.iter().map(|s| tape.sizes[s.unwrap()]);
            let factors: Vec<Vec<f32>> = sizes.map(|n| (0..n).map(|_| number()).collect()).collect();
            tape.run(&inputs, &constants, &mut b);
            b.clear(&tape);
            tape.back(&constants, &mut b, &mut |k, _, d| d.iter_mut().zip(&factors[k]).for_each(|(d, f)| *d += f));
            for &slot in &tape.fitted {
                let direction: Vec<f32> = (0..tape.sizes[slot]).map(|_| number()).collect();
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                let slope = dot(b.gradient(slot), &direction);
                let at = |h: f32| {
                    let mut moved = constants.clone();
                    moved[slot].iter_mut().zip(&direction).for_each(|(v, d)| *v += h * d);
                    let mut other = tape.buffers();
                    tape.run(&inputs, &moved, &mut other);
                    (0..factors.len()).map(|k| dot(other.value(tape.outputs[k].unwrap()), &factors[k])).sum::<f64>()
                };
                let h = 2e-3;
                let measured = (at(h) - at(-h)) / f64::from(2.0 * h);
                let size = dot(b.gradient(slot), b.gradient(slot)).sqrt() * dot(&direction, &direction).sqrt();
                assert!(size > 0.0, "seed {seed}: nothing comes back");
                assert!((slope - measured).abs() < 0.02 * size + 1e-3, "seed {seed}: {slope} is not {measured}");
            }
        }
    }
}

#[test]
fn what_is_not_followed_is_named() {
    let mut n = Net::new(&[2, 3, 6], 0);
    let x = n.input();
    let x = n.linear(x, 8, "a");
    let x = n.norm(x);
    let y = n.linear(x, 4, "b");
    let g = n.finish(&[y]);
    let problem = follows(&g).unwrap_err().to_string();
    assert!(problem.contains("LayerNormalization") && problem.contains("without a derivative"), "{problem}");
}
