//! Matrix instructions of a warp, by their stated meaning: where each lane holds which elements is that of the PTX ISA manual
//! ("Matrix multiply-accumulate operation using mma instruction").

use crate::arith::Lanes;
use crate::convert::float;
use crate::inst::{Matrix, Ty};

/// `d = a * b + c`: `a` has 4 registers, `b` 2, `c` and the result 4.
pub(crate) fn mma(kind: Matrix, a: &[Lanes], b: &[Lanes], c: &[Lanes]) -> [Lanes; 4] {
    let (depth, per) = match kind {
        Matrix::F16 | Matrix::BF16 => (16usize, 2usize),
        Matrix::TF32 => (8, 1),
        Matrix::I8(..) => (32, 4),
    };
    let width = 32 / per;
    let raw = |x: u64, k: usize| (x >> (k * width)) & if width == 32 { u64::from(u32::MAX) } else { (1 << width) - 1 };
    let value = |x: u64, second: bool| match kind {
        Matrix::F16 => float(x, Ty::F16),
        Matrix::BF16 => float(x, Ty::BF16),
        Matrix::TF32 => float(x & !0x1fff, Ty::F32),
        Matrix::I8(sa, sb) => {
            if if second { sb } else { sa } {
                f64::from(x as u8 as i8)
            } else {
                f64::from(x as u8)
            }
        }
    };
    let mut am = vec![[0f64; 32]; 16];
    let mut bm = vec![[0f64; 8]; 32];
    for lane in 0..32 {
        let (group, tig) = (lane / 4, lane % 4);
        for r in 0..4 {
            for k in 0..per {
                let row = group + if r % 2 == 1 { 8 } else { 0 };
                let col = tig * per + k + if r >= 2 { depth / 2 } else { 0 };
                am[row][col] = value(raw(a[r][lane], k), false);
            }
        }
        for r in 0..2 {
            for k in 0..per {
                bm[tig * per + k + r * depth / 2][group] = value(raw(b[r][lane], k), true);
            }
        }
    }
    let mut out = [[0u64; 32]; 4];
    for lane in 0..32 {
        let (group, tig) = (lane / 4, lane % 4);
        for r in 0..4 {
            let (row, col) = (group + if r >= 2 { 8 } else { 0 }, tig * 2 + r % 2);
            let sum = |start: f64| (0..depth).fold(start, |acc, k| acc + am[row][k] * bm[k][col]);
            out[r][lane] = match kind {
                Matrix::I8(..) => u64::from((c[r][lane] as u32).wrapping_add(sum(0.0) as i64 as u32)),
                _ => u64::from((sum(f64::from(f32::from_bits(c[r][lane] as u32))) as f32).to_bits()),
            };
        }
    }
    out
}
