//! Narrow weights: machine code gives the bits that the same product gives with its weights in f32, and those of the interpreter.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
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

fn hash(i: usize) -> u32 {
    (i as u32).wrapping_mul(0x85eb_ca6b).rotate_left(13).wrapping_mul(0xc2b2_ae35) >> 11
}

/// All machines that run here give the same bits with the weights in that form as in f32, and so does the interpreter.
fn check(form: &str, [m, k, n]: [usize; 3], w: &[f32]) {
    let x: Vec<f32> = (0..m * k).map(|i| (hash(i + 77) % 401) as f32 * 0.005 - 1.0).collect();
    // Which NaN comes out of several is the machine's choice.
    let numbers = |bytes: &[u8]| -> Vec<u32> {
        to_floats(bytes).iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
    };
    for machine in machines().into_iter().filter(supported) {
        let wide = Llvm::new(machine.clone());
        let narrow = Llvm::new(infc_kernel::target::TargetDesc { small: true, ..machine });
        let name = &narrow.target().name;
        let (got, plan) = product(&narrow, [m, k, n], w, &x, true);
        assert!(plan.ends_with(&format!("stored={form}")), "{form}, {m} rows on {name}: {plan}");
        let (slow, _) = product(&narrow, [m, k, n], w, &x, false);
        assert_eq!(numbers(&got), numbers(&slow), "{form}, {m} rows on {name}: the interpreter");
        // The same row of products, so the same sums.
        let (want, _) = product(&wide, [m, k, n], w, &x, true);
        let same = if w.iter().all(|v| v.is_finite()) { got == want } else { numbers(&got) == numbers(&want) };
        assert!(same, "{form}, {m} rows on {name}: f32");
    }
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
        check(form, [m, k, n], &w);
    }
}

#[test]
fn bits_of_narrow_floats_are_those_of_f32() {
    let value = |dtype: DType, bits: u32| f64::from_bits(infc_ir::eval::from_memory(dtype, u64::from(bits))) as f32;
    let (e4, e5) = (DType::F8E4M3FN, DType::F8E5M2);
    // The form, the dtype of the weights, terms of each sum, terms that share a scale, and whether some weights are no numbers.
    let cases = [
        ("e4m3", e4, 200, 200, false),
        ("e4m3", DType::F8E4M3FNUZ, 200, 200, false),
        ("e4m3/128", e4, 384, 128, false),
        ("e5m2", e5, 200, 200, false),
        ("e5m2", DType::F8E5M2FNUZ, 200, 200, false),
        ("f8e4m3fn", e4, 77, 77, true),
        ("f8e5m2", e5, 77, 77, true),
        ("bf16", DType::BF16, 77, 77, true),
        ("bf16", DType::BF16, 76, 76, true),
        ("f16", DType::F16, 77, 77, true),
    ];
    for ((form, dtype, k, block, odd), m) in cases.into_iter().flat_map(|c| [1usize, 3, 9, 40].map(|m| (c, m))) {
        let n = 75;
        let weight = |i: usize| {
            let (row, column) = (i / n, i % n);
            // All codes of 8 bits, subnormal ones of 16 too.
            let mut bits = hash(i) & if dtype.bytes() == 1 { 0xff } else { 0xffff };
            if dtype == DType::F16 && column % 3 == 0 {
                bits &= 0x83ff;
            }
            let mut v = value(dtype, bits);
            let scaled = form.starts_with("e4m3") || form.starts_with("e5m2");
            if scaled && !v.is_finite() {
                v = 0.5;
            }
            match v.is_finite() && v.abs() < 1e6 {
                true if scaled => v * (0.0137 / (1.0 + (column * 7 + row / block * 3) as f32 * 0.21)),
                true => v,
                false if odd && column % 11 == 0 && row == 5 => f32::NAN.copysign(v),
                false if odd && column % 11 == 1 && row == 6 && form != "f8e4m3fn" => f32::INFINITY.copysign(v),
                false => 0.5,
            }
        };
        let mut w: Vec<f32> = (0..k * n).map(weight).collect();
        if odd {
            // One at least of each.
            (w[5 * n], w[5 * n + 11]) = (f32::NAN, -f32::NAN);
            if form != "f8e4m3fn" {
                (w[6 * n + 1], w[6 * n + 12]) = (f32::INFINITY, f32::NEG_INFINITY);
            }
        }
        check(form, [m, k, n], &w);
    }
}
