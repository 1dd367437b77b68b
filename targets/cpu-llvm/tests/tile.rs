//! The register tile of matrix products: right, and every accumulator in a register.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_llvm::Llvm;
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::{DType, Expr, Scalar, Tensor};
use infc_kernel::backend::Backend;
use infc_kernel::loops::{Access, Kernel, LoopKind, Space, Stmt};
use infc_kernel::plan::{self, Plan};
use support::*;

/// `out[mr, nr] = a[mr, depth] * b[depth, nr]` for one tile.
fn tile(mr: i64, nr: i64, fma: bool) -> Kernel {
    let (depth, d) = (Expr::sym("depth"), DType::F32);
    let buffers = vec![
        buffer("a", d, &[Expr::int(mr), depth], Space::Global, Access::Read),
        buffer("b", d, &[depth, Expr::int(nr)], Space::Global, Access::Read),
        buffer("out", d, &[Expr::int(mr), Expr::int(nr)], Space::Global, Access::Write),
        buffer("acc", d, &[Expr::int(mr), Expr::int(nr)], Space::Reg, Access::ReadWrite),
    ];
    let at = |base: usize| (Expr::var(base), Expr::var(base + 1));
    let rows = |base: usize, body: Stmt| {
        each(base as u32, mr, LoopKind::Unroll, vec![each(base as u32 + 1, nr, LoopKind::Vector, vec![body])])
    };
    let (i, j) = at(0);
    let clear = rows(0, store(3, &[i, j], Scalar::float(d, 0.0)));
    let (i, j) = at(2);
    let k = Expr::var(6);
    let (a, b) = (Scalar::read_at(d, 0, &[i, k]), Scalar::read_at(d, 1, &[k, j]));
    let acc = Scalar::read_at(d, 3, &[i, j]);
    let next = if fma { Scalar::fma(a, b, acc) } else { acc + a * b };
    let sum = each(6, depth, LoopKind::Serial, vec![rows(2, store(3, &[i, j], next))]);
    let (i, j) = at(4);
    let finish = rows(4, store(2, &[i, j], Scalar::read_at(d, 3, &[i, j]).max(Scalar::float(d, 0.0))));
    kernel(buffers, &["depth"], vec![Stmt::Alloc { buffer: 3 }, clear, sum, finish])
}

/// The lines between the label that a backward jump goes to and that jump, of the innermost loop with the most instructions
/// that match `word`. `jump` begins the names of conditional jumps.
fn hot_loop(asm: &str, word: &str, jump: char) -> Vec<String> {
    let lines: Vec<&str> = asm.lines().map(str::trim).collect();
    let mut best: Vec<String> = vec![];
    let count = |l: &[String]| l.iter().filter(|x| x.starts_with(word)).count();
    for (end, line) in lines.iter().enumerate().filter(|(_, l)| l.starts_with(jump)) {
        let label = format!("{}:", line.split_whitespace().last().unwrap());
        let Some(start) = lines[..end].iter().rposition(|l| l.starts_with(&label)) else { continue };
        let body: Vec<String> = lines[start..end].iter().map(|l| l.replace('\t', " ")).collect();
        let inner = body.iter().filter(|l| l.starts_with(jump)).count() == 0;
        if inner && count(&body) > count(&best) {
            best = body;
        }
    }
    best
}

#[test]
fn a_tile_keeps_its_sums_in_registers() {
    for (machine, mr, nr, vector) in
        [("x86-64-v3", 6, 16, 8), ("x86-64-v3", 4, 24, 8), ("x86-64-v4", 14, 32, 16), ("x86-64-v4", 8, 48, 16)]
    {
        let asm = Llvm::named(machine).unwrap().emit_text(&[tile(mr, nr, true)], "asm").unwrap();
        let hot = hot_loop(&asm, "vfmadd", 'j');
        let fma = hot.iter().filter(|l| l.starts_with("vfmadd")).count() as i64;
        assert_eq!(fma, mr * nr / vector, "{machine} {mr}x{nr}:\n{}", hot.join("\n"));
        let spills: Vec<_> = hot.iter().filter(|l| l.contains("rsp") || l.contains("rbp")).collect();
        assert!(spills.is_empty(), "{machine} {mr}x{nr} spills: {spills:?}");
        let moves = hot.iter().filter(|l| l.starts_with("vmov") && !l.contains('(')).count();
        assert_eq!(moves, 0, "{machine} {mr}x{nr} copies registers:\n{}", hot.join("\n"));
    }
}

#[test]
fn a_tile_computes_the_product() {
    let (mr, nr, depth) = (6usize, 16usize, 37usize);
    let value = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0;
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..mr * depth).map(value).collect(), (0..depth * nr).map(value).collect());
    for llvm in hosts() {
        let mut buffers = vec![floats(&a), floats(&b), vec![0; mr * nr * 4]];
        assert_eq!(run(&llvm, &tile(6, 16, llvm.target().fma), &mut buffers, &[depth as i64]), 0);
        for (at, got) in to_floats(&buffers[2]).into_iter().enumerate() {
            let want: f32 = (0..depth).map(|k| a[at / nr * depth + k] * b[k * nr + at % nr]).sum();
            assert_eq!(got, want.max(0.0));
        }
    }
}

/// A row of 2 or 4 vectors is one multiply-add, whose broadcast factor is in a register of floats; a whole product gets tiles of such rows.
#[test]
fn a_tile_of_riscv_joins_registers() {
    for (machine, mr, nr) in [("riscv64-v", 14, 8), ("riscv64-v", 6, 16), ("riscv64-v256", 14, 16), ("riscv64-rva23", 7, 8)] {
        let asm = Llvm::named(machine).unwrap().emit_text(&[tile(mr, nr, true)], "asm").unwrap();
        let hot = hot_loop(&asm, "vfmacc.vf", 'b');
        let fma = hot.iter().filter(|l| l.starts_with("vfmacc.vf")).count() as i64;
        assert_eq!(fma, mr, "{machine} {mr}x{nr}:\n{}", hot.join("\n"));
        let moved: Vec<_> = hot.iter().filter(|l| l.contains("sp)") || l.starts_with("vmv")).collect();
        assert!(moved.is_empty(), "{machine} {mr}x{nr} spills or copies: {moved:?}");
    }
    let target = Llvm::named("riscv64-v").unwrap().target().clone();
    for (m, n) in [(49, 512), (196, 256), (5, 60), (1, 100), (3136, 24)] {
        let weights = Tensor::from_vec([64, n], vec![1f32; 64 * n]);
        let operands = [operand(&[m, 64], None), operand(&[64, n], Some(weights)), operand(&[m, n], None)];
        let product = Compute::reduce(
            &[m, n].map(Expr::from),
            &[Expr::from(64usize)],
            Reducer::Sum,
            |o, r| Scalar::read_at(DType::F32, 0, &[o[0], r[0]]) * Scalar::read_at(DType::F32, 1, &[r[0], o[1]]),
            |_, acc| acc,
        );
        let Plan::Brgemm(plan) = plan::choose(&Step::Compute(product), &operands, &target) else { panic!("{m} x {n}") };
        assert!((plan.nr / target.lanes(4)).is_power_of_two(), "{m} x {n}: {plan:?}");
    }
}
