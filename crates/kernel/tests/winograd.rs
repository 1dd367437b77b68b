//! Minimal filtering: what its nests make beside sums of windows one by one, and which convolutions take it.

mod kit;

use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::scalar::{Binary, Scalar};
use infc_ir::{DType, Expr, Tensor};
use infc_kernel::build::{self, Operand};
use infc_kernel::plan::{self, Plan};
use infc_kernel::target::TargetDesc;
use kit::*;

/// Convolutions by minimal filtering: of pictures and of lines, in any layout, with odd ends, borders and other work behind the sums.
#[test]
fn minimal_filtering_gives_sums_of_windows() {
    use infc_kernel::build::winograd;
    let cases = [
        // Pictures, columns, channels, extents of the result, window.
        (1, 16, 16, [8, 8], [3, 3]),
        (2, 21, 19, [5, 7], [3, 3]),
        (1, 40, 8, [1, 9], [3, 3]),
        (3, 16, 33, [6, 1], [3, 1]),
        (2, 9, 16, [3, 13], [1, 3]),
    ];
    for (k, &(batch, columns, channels, [h, w], [kh, kw])) in cases.iter().enumerate() {
        let step = Compute::reduce(
            &e(&[batch, columns, h, w]),
            &e(&[channels, kh, kw]),
            Reducer::Sum,
            |o, r| {
                read(0, &[o[0], r[0], o[2] + r[1] - (kh / 2) as i64, o[3] + r[2] - (kw / 2) as i64])
                    * read(1, &[o[1], r[0], r[1], r[2]])
            },
            |o, acc| Scalar::binary(Binary::Max, acc + read(2, &[o[1]]), Scalar::float(DType::F32, -20.0)) + read(3, o),
        );
        let tensors = [
            small(&[batch, channels, h, w], 7 + k as u64),
            small(&[columns, channels, kh, kw], 11),
            small(&[columns], 5),
            small(&[batch, columns, h, w], 3),
        ];
        let border = vec![(0, 0), (0, 0), ((kh / 2) as i64, (kh / 2) as i64), ((kw / 2) as i64, (kw / 2) as i64)];
        let last = vec![0, 2, 3, 1];
        for result_first in [false, true] {
            let plain_or_last = if result_first { plain(4) } else { Layout { order: last.clone(), ..plain(4) } };
            let layouts = [
                Layout { order: last.clone(), halo: border.clone() },
                plain(4),
                plain(1),
                Layout { order: last.clone(), ..plain(4) },
                plain_or_last,
            ];
            for target in [target(64, 32, true), target(32, 16, false), target(16, 32, true)] {
                let mut operands: Vec<Operand> =
                    tensors.iter().zip(&layouts).enumerate().map(|(i, (t, l))| operand(t, l, i == 1)).collect();
                let result = Tensor::zeros(DType::F32, [batch, columns, h, w]);
                operands.push(operand(&result, &layouts[4], false));
                let layouts_of = operands.clone();
                let c = build::contract::in_memory_order(step.clone(), &operands);
                let contraction = build::contract::plan(&c, &operands, &target).expect("a contraction");
                let c = Step::Compute(c);
                let Step::Compute(inner) = &c else { unreachable!("a compute") };
                let want = reference(&tensors, [kh, kw]);
                for outputs in winograd::OUTPUTS {
                    let (_, chosen) =
                        winograd::plan_of(inner, &operands, &contraction, outputs, &target).expect("a convolution of this kind");
                    let small_blocks =
                        plan::Winograd { mr: 2, nr: target.lanes(4), mc: 4, nc: target.lanes(4), ..chosen.clone() };
                    for p in [chosen, small_blocks].map(Plan::Winograd) {
                        let (at, got) = run_plan(&c, &operands, &p, &tensors, &layouts_of, &result, &target);
                        for (i, &a) in at.iter().enumerate() {
                            let got = f64::from(f32::from_le_bytes(got[a..a + 4].try_into().expect("four bytes")));
                            // Small integers in quarters are exact; points that are no integers are not.
                            let most = if outputs == 2 { 0.0 } else { 2e-5 * 16.0 * (channels * kh * kw) as f64 };
                            assert!((got - want[i]).abs() <= most, "element {i}: {got}, not {}; plan {p}", want[i]);
                        }
                    }
                }
            }
        }
    }
}

/// Convolutions with a border of zeros, a bias, a lower limit and something that is added, one by one.
fn reference(tensors: &[Tensor], [kh, kw]: [usize; 2]) -> Vec<f64> {
    let [x, weights, bias, added] = tensors else { unreachable!("four tensors") };
    let ([batch, channels, h, w], columns) = ([x.dims[0], x.dims[1], x.dims[2], x.dims[3]], weights.dims[0]);
    let mut all = vec![];
    for place in 0..batch * columns * h * w {
        let (b, n, y, z) = (place / (columns * h * w), place / (h * w) % columns, place / w % h, place % w);
        let mut sum = 0.0;
        for tap in 0..channels * kh * kw {
            let (c, i, j) = (tap / (kh * kw), tap / kw % kh, tap % kw);
            let (Some(y), Some(z)) = ((y + i).checked_sub(kh / 2), (z + j).checked_sub(kw / 2)) else { continue };
            if y < h && z < w {
                sum += x.float(((b * channels + c) * h + y) * w + z) * weights.float(n * channels * kh * kw + tap);
            }
        }
        all.push((sum + bias.float(n)).max(-20.0) + added.float(place));
    }
    all
}

/// Minimal filtering is taken where it is allowed and gains, and by nothing that is no such convolution.
#[test]
fn minimal_filtering_is_for_windows_of_three() {
    use infc_kernel::target::Math;
    let chosen = |math: Math, channels: usize, size: usize, [k, step, apart]: [usize; 3]| {
        let place = move |o: Expr, r: Expr| o * step as i64 + r * apart as i64;
        let c = Compute::reduce(
            &e(&[1, 64, size, size]),
            &e(&[channels, k, k]),
            Reducer::Sum,
            |o, r| read(0, &[o[0], r[0], place(o[2], r[1]), place(o[3], r[2])]) * read(1, &[o[1], r[0], r[1], r[2]]),
            |_, acc| acc,
        );
        let side = (size - 1) * step + (k - 1) * apart + 1;
        let tensors = [small(&[1, channels, side, side], 1), small(&[64, channels, k, k], 2), small(&[1, 64, size, size], 3)];
        let last = Layout { order: vec![0, 2, 3, 1], ..plain(4) };
        let layouts = [last.clone(), plain(4), last];
        let operands: Vec<Operand> = tensors.iter().zip(&layouts).enumerate().map(|(i, (t, l))| operand(t, l, i == 1)).collect();
        let step = Step::Compute(build::contract::in_memory_order(c.simplify(), &operands));
        plan::choose(&step, &operands, &TargetDesc { math, ..target(64, 32, true) })
    };
    let outputs = |plan: Plan| if let Plan::Winograd(p) = plan { Some(p.outputs) } else { None };
    assert_eq!(outputs(chosen(Math::Winograd, 64, 56, [3, 1, 1])), Some(4));
    assert_eq!(outputs(chosen(Math::Winograd, 512, 6, [3, 1, 1])), Some(2), "few places have better use of small tiles");
    assert_eq!(outputs(chosen(Math::F32, 64, 56, [3, 1, 1])), None, "nobody asked for it");
    assert_eq!(outputs(chosen(Math::Winograd, 3, 56, [3, 1, 1])), None, "three channels");
    for shape in [[3, 2, 1], [3, 1, 2], [5, 1, 1], [1, 1, 1], [2, 1, 1]] {
        assert_eq!(outputs(chosen(Math::Winograd, 64, 28, shape)), None, "{shape:?}");
    }
}
