//! Reads that pick from rows in registers: machine code gives the bits that the loop interpreter and plain indexing give, for every length of
//! a row, and sparse products made of them the bits of the interpreter.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_llvm::Llvm;
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::scalar::Binary;
use infc_ir::{DType, Expr, Scalar, Tensor};
use infc_kernel::backend::Backend;
use infc_kernel::build;
use infc_kernel::loops::{Access, Buffer, Kernel, LoopKind, Space, interp};
use infc_kernel::plan::{Form, Plan, Sparse};
use support::*;

/// `y[i, lane] = rows[i, words[i, lane] and mask]` for rows of `width` that begin `lanes` apart.
fn picks(lanes: i64, width: i64, count: i64, mask: i64) -> Kernel {
    let e = Expr::int;
    let (read, write) = (Access::Read, Access::Write);
    let overlapping = vec![e(lanes), e(1)];
    let buffers = vec![
        Buffer { strides: overlapping, ..buffer("rows", DType::F32, &[e(count), e(width)], Space::Global, read) },
        buffer("words", DType::U32, &[e(count), e(lanes)], Space::Global, read),
        buffer("y", DType::F32, &[e(count), e(lanes)], Space::Global, write),
    ];
    let (row, lane) = (Expr::var(0), Expr::var(1));
    let word = Scalar::read_at(DType::U32, 1, &[row, lane]);
    let at = Scalar::binary(Binary::And, word, Scalar::number(DType::U32, mask as f64)).cast(DType::I64);
    let value = Scalar::read(DType::F32, 0, [Scalar::index(row), at]);
    let inner = each(1, lanes, LoopKind::Vector, vec![store(2, &[row, lane], value)]);
    kernel(buffers, &[], vec![each(0, count, LoopKind::Serial, vec![inner])])
}

#[test]
fn rows_of_every_length() {
    let count = 23;
    for (lanes, length) in [8i64, 16].into_iter().flat_map(|l| (0..5).map(move |p| (l, l << p))) {
        // Words with bits beyond the row, which a mask takes away, and words that stay inside without one.
        for mask in [length - 1, 255] {
            let kernel = picks(lanes, length, count, mask);
            let rows: Vec<f32> = (0..(count - 1) * lanes + length).map(|i| (i * 37 % 1009) as f32 - 0.5).collect();
            let words: Vec<u32> = (0..(count * lanes) as u32)
                .map(|i| i.wrapping_mul(0x9e37_79b9) >> 7)
                .map(|w| if mask == 255 { (w % length as u32) | (w & !255) } else { w })
                .collect();
            let want: Vec<f32> = (0..(count * lanes) as usize)
                .map(|i| rows[i / lanes as usize * lanes as usize + (words[i] & mask as u32) as usize])
                .collect();
            let memory = || {
                let words = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                vec![floats(&rows), words, vec![0; (count * lanes * 4) as usize]]
            };
            let mut slow = memory();
            interp::run(&kernel, &[], &mut slow).unwrap_or_else(|e| panic!("{e:?}"));
            assert_eq!(to_floats(&slow[2]), want);
            for llvm in hosts() {
                let mut fast = memory();
                assert_eq!(run(&llvm, &kernel, &mut fast, &[]), 0);
                assert_eq!(fast[2], slow[2], "{length} of {lanes} lanes on {}", llvm.target().name);
            }
        }
    }
}

/// The result of the product by a plan on a machine, compiled and interpreted.
fn both(llvm: &Llvm, m: usize, k: usize, n: usize, w: &[f32], x: &[f32], form: Form) -> [Vec<f32>; 2] {
    let step = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| Scalar::read_at(DType::F32, 0, &[o[0], r[0]]) * Scalar::read_at(DType::F32, 1, &[r[0], o[1]]),
        |_, acc| acc,
    );
    let weights = Tensor::from_vec([k, n], w.to_vec());
    let operands = [operand(&[m, k], None), operand(&[k, n], Some(weights)), operand(&[m, n], None)];
    let plan = Sparse { vector: 1, n: 1, lanes: llvm.target().lanes(4), window: 16, form, bytes: 0 };
    let nest = build::build("product", &Step::Compute(step), &Plan::Sparse(plan), &operands, llvm.target());
    let packed = |s: usize| nest.packed.iter().find(|p| p.source == s).map(|p| p.tensor.bytes().to_vec());
    let sources: Vec<Vec<u8>> = nest.sources.iter().map(|&s| packed(s).unwrap_or_else(|| floats(x))).collect();
    [true, false].map(|compiled| {
        let mut memory = sources.clone();
        memory.push(vec![0xa5; m * n * 4]);
        match compiled {
            true => assert_eq!(run(llvm, &nest.kernel, &mut memory, &[]), 0),
            false => interp::run(&nest.kernel, &[], &mut memory).unwrap_or_else(|e| panic!("{e:?}")),
        }
        to_floats(memory.last().expect("the result"))
    })
}

#[test]
fn sparse_products() {
    // Odd sizes; columns and rows without weights, dense rows, nothing at all.
    for (m, k, n, keep) in [(1usize, 150usize, 70usize, 10u32), (3, 67, 41, 4), (2, 513, 300, 2), (4, 96, 48, 20), (2, 64, 50, 0)]
    {
        let hash = |i: usize| (i as u32).wrapping_mul(0x85eb_ca6b).rotate_left(13).wrapping_mul(0xc2b2_ae35) >> 11;
        let stays = |i: usize| keep > 0 && (hash(i) % keep == 0 || i / n == 5) && (i % n) % 11 != 3 && i / n != 9;
        let w: Vec<f32> = (0..k * n)
            .map(|i| if stays(i) && hash(i + 1) % 100 > 2 { (hash(i) % 201) as f32 * 0.01 - 1.0 } else { 0.0 })
            .collect();
        let x: Vec<f32> = (0..m * k).map(|i| (hash(i + 77) % 401) as f32 * 0.005 - 1.0).collect();
        for llvm in hosts() {
            let lanes = llvm.target().lanes(4);
            let forms = [Form::Blocks, Form::Gather].into_iter().chain((0..4).map(|p| Form::Lookup(lanes << p)));
            for form in forms {
                let [got, want] = both(&llvm, m, k, n, &w, &x, form);
                let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&want), "{form} on {}", llvm.target().name);
                for (at, &y) in got.iter().enumerate() {
                    let exact: f64 = (0..k).map(|q| f64::from(x[at / n * k + q]) * f64::from(w[q * n + at % n])).sum();
                    assert!((f64::from(y) - exact).abs() < 1e-4, "{form} on {}: {y}, want {exact}", llvm.target().name);
                }
            }
        }
    }
}

#[test]
fn numbers_of_four_bits_are_picked() {
    let dims = [Expr::int(48)];
    let buffers = vec![
        buffer("w", DType::U32, &dims, Space::Global, Access::Read),
        buffer("y", DType::F32, &dims, Space::Global, Access::Write),
    ];
    let i = Expr::var(0);
    let number = |n: u32| Scalar::number(DType::U32, f64::from(n));
    let moved = Scalar::binary(Binary::Shr, Scalar::read_at(DType::U32, 0, &[i]), number(20));
    let value = Scalar::binary(Binary::And, moved, number(15)).cast(DType::I32).cast(DType::F32);
    let k = kernel(buffers, &[], vec![each(0, 48, LoopKind::Vector, vec![store(1, &[i], value)])]);
    let words: Vec<u32> = (0..48).map(|i: u32| i.wrapping_mul(0x9e37_79b9).rotate_left(i)).collect();
    let want: Vec<f32> = words.iter().map(|w| (w >> 20 & 15) as f32).collect();
    for llvm in hosts() {
        let mut memories = vec![words.iter().flat_map(|w| w.to_le_bytes()).collect(), vec![0xa5; 48 * 4]];
        assert_eq!(run(&llvm, &k, &mut memories, &[]), 0);
        assert_eq!(to_floats(&memories[1]), want, "{}", llvm.target().name);
        let asm = llvm.emit_text(std::slice::from_ref(&k), "asm").expect("text");
        let picked = ["vpermps", "vpermd"].iter().any(|name| asm.contains(name));
        assert_eq!(picked, llvm.target().vector_bytes == 64, "{}: {asm}", llvm.target().name);
    }
}
