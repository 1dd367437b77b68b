//! Matrix instructions of a warp, by their stated meaning: where each lane holds which elements is that of the PTX ISA manual
//! ("Matrix multiply-accumulate operation using mma instruction").

use crate::arith::Lanes;
use crate::convert::float;
use crate::inst::{Matrix, Ty, Wgmma};
use std::collections::HashMap;

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

/// Where elements of a factor of a warpgroup's instruction lie, by its descriptor ("Matrix descriptor format", "Strides" in the PTX ISA manual).
struct Operand {
    start: u64,
    leading: u64,
    stride: u64,
    /// Bytes of a row of the swizzled pattern; 16 without swizzle.
    width: u64,
    transposed: bool,
}

impl Operand {
    fn read(descriptor: u64, transposed: bool) -> Result<Operand, String> {
        let field = |at: u32| (descriptor >> at & 0x3fff) << 4;
        let width = match descriptor >> 62 {
            0 => 16,
            1 => 128,
            2 => 64,
            _ => 32,
        };
        let operand = Operand { start: field(0), leading: field(16), stride: field(32), width, transposed };
        // Bits 49 to 51 are the phase of a pattern that does not begin at a multiple of its size; that is not used.
        if descriptor & 0x3fff_c000_c000_c000 != 0 {
            return Err(format!("a matrix descriptor with unknown bits: {descriptor:#x}"));
        }
        if width > 16 && operand.start % (8 * width) >= width {
            return Err(format!("a matrix descriptor whose pattern does not begin at a multiple of {} bytes", 8 * width));
        }
        Ok(operand)
    }
    /// The address of an element of so many bytes.
    fn at(&self, line: u64, k: u64, bytes: u64) -> u64 {
        let Operand { start, leading, stride, width, transposed } = *self;
        let per = width / bytes;
        let at = match (transposed, width) {
            (false, 16) => start + line / 8 * stride + k / per * leading + line % 8 * 16 + k % per * bytes,
            (false, _) => start + line / 8 * stride + line % 8 * width + k * bytes,
            (true, 16) => start + line / per * stride + k / 8 * leading + k % 8 * 16 + line % per * bytes,
            (true, _) => start + line / per * leading + k / 8 * stride + k % 8 * width + line % per * bytes,
        };
        // The pattern of 128 bytes has bits 4 to 6 exchanged by bits 7 to 9; smaller ones have fewer of them.
        at ^ (at >> 3 & (width - 1) & 0x70)
    }
}

/// A warp's 16 rows of the tile of a warpgroup's instruction; `sums` are added to. `read` gives 16 bytes of shared memory.
pub(crate) fn wgmma(
    i: Wgmma,
    warp: usize,
    descriptors: [u64; 2],
    sums: Option<&[Lanes]>,
    mut read: impl FnMut(usize) -> Result<[u8; 16], String>,
) -> Result<Vec<Lanes>, String> {
    let bytes = match i.kind {
        Matrix::F16 | Matrix::BF16 => 2u64,
        Matrix::TF32 => 4,
        Matrix::I8(..) => 1,
    };
    let depth = (32 / bytes) as usize;
    let mut known: HashMap<u64, [u8; 16]> = HashMap::new();
    let mut factor = |side: usize, first: usize, lines: usize| -> Result<Vec<f64>, String> {
        let operand = Operand::read(descriptors[side], i.transposed[side])?;
        let mut out = vec![];
        for line in first..first + lines {
            for k in 0..depth {
                let at = operand.at(line as u64, k as u64, bytes);
                let chunk = match known.get(&(at / 16)) {
                    Some(c) => *c,
                    None => {
                        let c = read((at / 16 * 16) as usize)?;
                        known.insert(at / 16, c);
                        c
                    }
                };
                let raw = (0..bytes).rev().fold(0u64, |acc, b| acc << 8 | u64::from(chunk[(at % 16 + b) as usize]));
                let value = match i.kind {
                    Matrix::F16 => float(raw, Ty::F16),
                    Matrix::BF16 => float(raw, Ty::BF16),
                    Matrix::TF32 => float(raw & !0x1fff, Ty::F32),
                    Matrix::I8(a, b) if [a, b][side] => f64::from(raw as u8 as i8),
                    Matrix::I8(..) => f64::from(raw as u8),
                };
                out.push(if i.negated[side] { -value } else { value });
            }
        }
        Ok(out)
    };
    let (a, b) = (factor(0, 16 * warp, 16)?, factor(1, 0, usize::from(i.columns))?);
    let mut out = vec![[0u64; 32]; usize::from(i.columns) / 2];
    for (r, lanes) in out.iter_mut().enumerate() {
        for (lane, to) in lanes.iter_mut().enumerate() {
            let (row, column) = (lane / 4 + r / 2 % 2 * 8, r / 4 * 8 + lane % 4 * 2 + r % 2);
            let sum = |start: f64| (0..depth).fold(start, |acc, k| acc + a[row * depth + k] * b[column * depth + k]);
            let before = sums.map_or(0, |s| s[r][lane] as u32);
            *to = match i.kind {
                Matrix::I8(..) => u64::from(before.wrapping_add(sum(0.0) as i64 as u32)),
                _ => u64::from((sum(f64::from(f32::from_bits(before))) as f32).to_bits()),
            };
        }
    }
    Ok(out)
}
