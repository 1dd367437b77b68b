//! Results that lie in another order than what they are made of: stores of neighbours become words, and vectors of windows follow the data. On every
//! machine the machine code gives what an obvious loop gives.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_llvm::Llvm;
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::{DType, Expr, Scalar};
use infc_kernel::backend::Backend;
use infc_kernel::build::{self, Nest, Operand};
use infc_kernel::loops::{Access, Buffer, Space};
use infc_kernel::plan::{self, Plan};
use infc_kernel::target::TargetDesc;
use proptest::prelude::*;
use support::*;

fn operand(dtype: DType, dims: &[usize], order: &[usize]) -> Operand {
    let dims: Vec<Expr> = dims.iter().map(|&d| Expr::from(d)).collect();
    let strides = Buffer::strides_in_order(&dims, order);
    let shift = vec![0; dims.len()];
    let buffer = Buffer { name: String::new(), dtype, dims, strides, space: Space::Global, access: Access::Read };
    Operand { buffer, shift, zeros: vec![], constant: None, tf32: false, narrow: None }
}

fn nest(step: Compute, operands: &[Operand], target: &TargetDesc) -> (Nest, plan::Elementwise) {
    let step = Step::Compute(step);
    let plan = plan::choose(&step, operands, target);
    let Plan::Elementwise(p) = &plan else { panic!("{plan}") };
    (build::build("orders", &step, &plan, operands, target), p.clone())
}

/// `out[c, y, x] = x[c, y, x] + 1`, from channels first to channels last, in pixels of `room` elements of which the last ones are something else's.
fn colours([c, room, h, w]: [usize; 4], dtype: DType, target: &TargetDesc) -> (Nest, plan::Elementwise) {
    let dims = [c, h, w].map(Expr::from);
    let value = |o: &[Expr]| Scalar::read_at(dtype, 0, o) + Scalar::int(dtype, 1);
    let step = Compute::map(&dims, value);
    nest(step, &[operand(dtype, &[c, h, w], &[0, 1, 2]), operand(dtype, &[room, h, w], &[1, 2, 0])], target)
}

/// `out[c, y, x] = sum over i, j of x[c, s * y + i, s * x + j]` in i32, from channels first to channels last.
fn windows([c, h, w, s]: [usize; 4], target: &TargetDesc) -> (Nest, plan::Elementwise) {
    let at = |o: Expr, k: Expr| o * s as i64 + k;
    let step = Compute::reduce(
        &[c, h, w].map(Expr::from),
        &[3, 3].map(Expr::int),
        Reducer::Sum,
        |o, r| Scalar::read_at(DType::U8, 0, &[o[0], at(o[1], r[0]), at(o[2], r[1])]).cast(DType::I32),
        |_, acc| acc,
    );
    let (tall, wide) = (s * (h - 1) + 3, s * (w - 1) + 3);
    nest(step, &[operand(DType::U8, &[c, tall, wide], &[0, 1, 2]), operand(DType::I32, &[c, h, w], &[1, 2, 0])], target)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn colours_are_stored_side_by_side(
        c in 1usize..6, more in 0usize..3, h in 1usize..4, w in 1usize..70, wide: bool, data in prop::collection::vec(any::<u8>(), 2 * 5 * 3 * 70),
    ) {
        let (dtype, bytes) = if wide { (DType::U16, 2) } else { (DType::U8, 1) };
        let room = c + more;
        let x = &data[..c * h * w * bytes];
        let mut want = vec![0xa5u8; room * h * w * bytes];
        for (at, element) in x.chunks_exact(bytes).enumerate() {
            let (channel, pixel) = (at / (h * w), at % (h * w));
            let next = element.iter().rev().fold(0u16, |v, &b| v << 8 | u16::from(b)).wrapping_add(1).to_le_bytes();
            let to = (pixel * room + channel) * bytes;
            want[to..to + bytes].copy_from_slice(&next[..bytes]);
        }
        for llvm in hosts() {
            let (nest, p) = colours([c, room, h, w], dtype, llvm.target());
            let mut buffers = vec![x.to_vec(), vec![0xa5; want.len()]];
            prop_assert_eq!(run(&llvm, &nest.kernel, &mut buffers, &[]), 0);
            prop_assert_eq!(&buffers[1], &want, "{} {:?}", llvm.target().name, p);
        }
    }

    #[test]
    fn windows_follow_the_data(
        c in 1usize..40, h in 1usize..6, w in 1usize..30, s in 1usize..3, data in prop::collection::vec(any::<u8>(), 40 * 13 * 61),
    ) {
        let (tall, wide) = (s * (h - 1) + 3, s * (w - 1) + 3);
        let x = &data[..c * tall * wide];
        let mut want = vec![0i32; c * h * w];
        for at in 0..want.len() {
            let (channel, y, column) = (at % c, at / c / w, at / c % w);
            let of = |i: usize, j: usize| i32::from(x[(channel * tall + s * y + i) * wide + s * column + j]);
            want[at] = (0..9).map(|k| of(k / 3, k % 3)).sum();
        }
        for llvm in hosts() {
            let (nest, p) = windows([c, h, w, s], llvm.target());
            let mut buffers = vec![x.to_vec(), vec![0xa5; 4 * want.len()]];
            prop_assert_eq!(run(&llvm, &nest.kernel, &mut buffers, &[]), 0);
            let got: Vec<i32> = buffers[1].chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().expect("four"))).collect();
            prop_assert_eq!(&got, &want, "{} {:?}", llvm.target().name, p);
        }
    }
}

#[test]
fn three_colours_of_four_are_stored_with_masks() {
    let llvm = Llvm::named("x86-64-v4").expect("a machine of this backend");
    for (dtype, apart, masked) in [(DType::U8, "vpextrb", "vmovdqu8"), (DType::U16, "vpextrw", "vmovdqu16")] {
        let (nest, p) = colours([3, 4, 8, 64], dtype, llvm.target());
        let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        assert!(p.jam == 3 && !asm.contains(apart) && asm.contains(masked), "{asm}");
    }
}

#[test]
fn vectors_of_windows_run_along_lines() {
    for (w, last) in [(22, 2), (11, 2), (4, 0)] {
        let llvm = Llvm::named("x86-64-v4").expect("a machine of this backend");
        let (nest, p) = windows([48, 22, w, 2], llvm.target());
        assert_eq!(p.order.last(), Some(&last), "{p:?}");
        let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
        assert!(last == 0 || !asm.contains("vpinsrb"), "{asm}");
    }
}
