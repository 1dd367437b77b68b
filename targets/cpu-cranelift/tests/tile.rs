//! The register tile of matrix products: right, and its sums in registers.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_cranelift::Cranelift;
use infc_ir::{DType, Expr, Scalar};
use infc_kernel::backend::Backend;
use infc_kernel::loops::{Access, Kernel, LoopKind, Space, Stmt};
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

/// The block of the text with the most instructions that start with `word`.
fn hot_block(asm: &str, word: &str) -> Vec<String> {
    let count = |block: &[String]| block.iter().filter(|l| l.starts_with(word)).count();
    let mut blocks: Vec<Vec<String>> = vec![vec![]];
    for line in asm.lines().map(str::trim) {
        if line.ends_with(':') {
            blocks.push(vec![]);
        }
        blocks.last_mut().expect("there is one").push(line.to_owned());
    }
    blocks.into_iter().max_by_key(|b| count(b)).expect("there is one")
}

#[test]
fn a_tile_keeps_its_sums_in_registers() {
    for (machine, word, mr, nr) in [
        ("cranelift-x86-64-v3", "vfmadd", 2, 20),
        ("cranelift-x86-64-v3", "vfmadd", 5, 8),
        ("cranelift-x86-64-v3", "vfmadd", 3, 12),
        ("cranelift-aarch64", "fmla", 6, 16),
    ] {
        let asm = Cranelift::named(machine).unwrap().emit_text(&[tile(mr, nr, true)], "asm").unwrap();
        let hot = hot_block(&asm, word);
        // Several iterations are written out.
        let fma = hot.iter().filter(|l| l.starts_with(word)).count() as i64;
        let tiles = fma / (mr * nr / 4);
        assert!(fma % (mr * nr / 4) == 0 && tiles >= 2, "{machine} {mr}x{nr}:\n{}", hot.join("\n"));
        let spills: Vec<_> = hot.iter().filter(|l| l.contains("rsp") || l.contains("[sp")).collect();
        // The register allocator spills one here and there.
        assert!(spills.len() as i64 * 8 <= fma, "{machine} {mr}x{nr} spills: {spills:?}");
    }
}

#[test]
fn a_tile_computes_the_product() {
    // Whole vectors, half ones, more than there are registers, and depths that the iterations written out divide and do not.
    for (mr, nr) in [(6usize, 16usize), (2, 20), (3, 6), (1, 4), (5, 2), (12, 64)] {
        for depth in [0usize, 1, 3, 4, 37] {
            let value = |i: usize| ((i * 7 + 3) % 11) as f32 - 5.0;
            let (a, b): (Vec<f32>, Vec<f32>) = ((0..mr * depth).map(value).collect(), (0..depth * nr).map(value).collect());
            for machine in hosts() {
                let mut buffers = vec![floats(&a), floats(&b), vec![0; mr * nr * 4]];
                let tile = tile(mr as i64, nr as i64, machine.target().fma);
                assert_eq!(run(&machine, &tile, &mut buffers, &[depth as i64]), 0);
                for (at, got) in to_floats(&buffers[2]).into_iter().enumerate() {
                    let want: f32 = (0..depth).map(|k| a[at / nr * depth + k] * b[k * nr + at % nr]).sum();
                    assert_eq!(got, want.max(0.0), "{mr}x{nr}x{depth} on {}", machine.target().name);
                }
            }
        }
    }
}
