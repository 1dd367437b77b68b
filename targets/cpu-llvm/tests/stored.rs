//! Narrow weights: machine code gives the bits that the same product gives with its weights in f32, and those of the interpreter.

mod support;

use infc_cpu_llvm::{Llvm, machines, supported};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::{DType, Expr, Scalar, Tensor};
use infc_kernel::backend::Backend;
use infc_kernel::build;
use infc_kernel::loops::interp;
use infc_kernel::plan;
use support::*;

/// The bits of a product by what the machine chooses, and its plan.
fn product(llvm: &Llvm, [m, k, n]: [usize; 3], w: &[f32], x: &[f32], compiled: bool) -> (Vec<u8>, String) {
    let step = Step::Compute(Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| Scalar::read_at(DType::F32, 0, &[o[0], r[0]]) * Scalar::read_at(DType::F32, 1, &[r[0], o[1]]),
        |_, acc| acc,
    ));
    let weights = Tensor::from_vec([k, n], w.to_vec());
    let operands = [operand(&[m, k], None), operand(&[k, n], Some(weights)), operand(&[m, n], None)];
    let plan = plan::choose(&step, &operands, llvm.target());
    let nest = build::build("product", &step, &plan, &operands, llvm.target());
    let packed = |s: usize| nest.packed.iter().find(|p| p.source == s).map(|p| p.tensor.bytes().to_vec());
    let mut memory: Vec<Vec<u8>> = nest.sources.iter().map(|&s| packed(s).unwrap_or_else(|| floats(x))).collect();
    memory.push(vec![0xa5; m * n * 4]);
    match compiled {
        true => assert_eq!(run(llvm, &nest.kernel, &mut memory, &[]), 0),
        false => interp::run(&nest.kernel, &[], &mut memory).unwrap_or_else(|e| panic!("{e:?}")),
    }
    (memory.pop().expect("the result"), plan.to_string())
}

#[test]
fn bits_are_those_of_f32() {
    let hash = |i: usize| (i as u32).wrapping_mul(0x85eb_ca6b).rotate_left(13).wrapping_mul(0xc2b2_ae35) >> 11;
    let forms = ["u2", "u4", "u8", "u4/32", "u8/16", "u4/32+zeros", "u8+zeros", "u4/32+row", "u8+row", "bf16"];
    for (form, m) in forms.into_iter().flat_map(|f| [1usize, 3, 9, 40].map(|m| (f, m))) {
        let [k, n] = [192usize, 75];
        let bits = form[1..].chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().unwrap_or(0);
        let block: usize = form.split(['/', '+']).nth(1).and_then(|b| b.parse().ok()).unwrap_or(k);
        let weight = |i: usize| {
            let (row, column) = (i / n, i % n);
            let long = 0.0137 / (1.0 + (column * 7 + row / block * 3) as f32 * 0.21);
            let scale = if form.ends_with("+zeros") { f32::from_bits(long.to_bits() & !255) } else { long };
            let half = 1i32 << bits.saturating_sub(1);
            let shift = if form.contains('+') { column as i32 % half } else { 0 };
            match form {
                "bf16" => f32::from_bits(((hash(i) % 201) as f32 * scale - 1.0).to_bits() & 0xffff_0000),
                // Each block has its least and its greatest number.
                _ if row % block < 2 => ([-half, half - 1][row % block] - shift) as f32 * scale,
                _ => ((hash(i) >> 3) as i32 % (2 * half) - half - shift) as f32 * scale,
            }
        };
        let w: Vec<f32> = (0..k * n).map(weight).collect();
        let x: Vec<f32> = (0..m * k).map(|i| (hash(i + 77) % 401) as f32 * 0.005 - 1.0).collect();
        for machine in machines().into_iter().filter(supported) {
            let wide = Llvm::new(machine.clone());
            let narrow = Llvm::new(infc_kernel::target::TargetDesc { small: true, ..machine });
            let name = &narrow.target().name;
            let (got, plan) = product(&narrow, [m, k, n], &w, &x, true);
            assert!(plan.ends_with(&format!("stored={form}")), "{form}, {m} rows on {name}: {plan}");
            let (slow, _) = product(&narrow, [m, k, n], &w, &x, false);
            assert_eq!(got, slow, "{form}, {m} rows on {name}: the interpreter");
            // The same row of products, so the same sums.
            let (want, _) = product(&wide, [m, k, n], &w, &x, true);
            assert_eq!(got, want, "{form}, {m} rows on {name}: f32");
        }
    }
}
