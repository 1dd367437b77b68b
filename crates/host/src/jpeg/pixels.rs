//! From coefficients to pixels, with libjpeg's arithmetic: the integer IDCT of Loeffler, Ligtenberg and Moschytz with 13 bits of
//! constants, triangle ("fancy") upsampling, and colours in 16-bit fixed point.

use super::{Component, Frame, Image};
use crate::Fault;
use crate::fault::fault;
use crate::tensor::filled;

/// Samples of a component, row by row.
struct Plane {
    width: usize,
    height: usize,
    samples: Vec<u8>,
}

impl Plane {
    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.width..(y + 1) * self.width]
    }
}

/// The image of a frame whose scans are done.
pub(super) fn assemble(frame: &Frame, ycc: bool) -> Result<Image, Fault> {
    let mut planes = vec![];
    for c in &frame.components {
        planes.push(upsample(frame, c, samples(c)?)?);
    }
    let mut rgb = filled(frame.width * frame.height * 3, 0u8)?;
    for y in 0..frame.height {
        let row = &mut rgb[y * frame.width * 3..(y + 1) * frame.width * 3];
        for (x, out) in row.chunks_exact_mut(3).enumerate() {
            let part = |k: usize| planes[k].samples[y * planes[k].width + x];
            let pixel = match planes.len() {
                1 => [part(0); 3],
                _ if ycc => to_rgb(part(0), part(1), part(2)),
                _ => [part(0), part(1), part(2)],
            };
            out.copy_from_slice(&pixel);
        }
    }
    Ok(Image { width: frame.width, height: frame.height, rgb })
}

fn clamp(v: i32) -> u8 {
    v.clamp(0, 255) as u8
}

/// ITU-R BT.601, as libjpeg rounds it.
fn to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    const HALF: i32 = 1 << 15;
    let r = y + ((91881 * cr + HALF) >> 16);
    let g = y + ((-22554 * cb - 46802 * cr + HALF) >> 16);
    let b = y + ((116130 * cb + HALF) >> 16);
    [clamp(r), clamp(g), clamp(b)]
}

/// All blocks of a component as samples, cut to the image.
fn samples(c: &Component) -> Result<Plane, Fault> {
    let table = c.table.ok_or_else(|| fault!("a JPEG component has no scan, or no quantisation table"))?;
    let mut plane = Plane { width: c.width, height: c.height, samples: filled(c.width * c.height, 0)? };
    let mut block = [0u8; 64];
    for by in 0..c.blocks_high {
        for bx in 0..c.blocks_wide {
            let at = (by * c.stride + bx) * 64;
            idct(&c.coefficients[at..at + 64], &table, &mut block);
            let (x, n) = (bx * 8, (c.width - bx * 8).min(8));
            for (k, row) in block.chunks_exact(8).enumerate().take((c.height - by * 8).min(8)) {
                let start = (by * 8 + k) * c.width + x;
                plane.samples[start..start + n].copy_from_slice(&row[..n]);
            }
        }
    }
    Ok(plane)
}

/// Bits of the constants, and of the fraction that is kept between the two passes.
const CONST_BITS: i32 = 13;
const PASS_BITS: i32 = 2;

/// One pass over 8 numbers, all times `2^CONST_BITS`.
fn idct_1d(i: [i32; 8]) -> [i32; 8] {
    let mul = |a: i32, b: i32| a.wrapping_mul(b);
    let add = |a: i32, b: i32| a.wrapping_add(b);
    let sub = |a: i32, b: i32| a.wrapping_sub(b);
    let z1 = mul(add(i[2], i[6]), 4433);
    let (t2, t3) = (add(z1, mul(i[6], -15137)), add(z1, mul(i[2], 6270)));
    let (t0, t1) = (mul(add(i[0], i[4]), 1 << CONST_BITS), mul(sub(i[0], i[4]), 1 << CONST_BITS));
    let even = [add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3)];
    let z5 = mul(add(add(i[7], i[3]), add(i[5], i[1])), 9633);
    let z1 = mul(add(i[7], i[1]), -7373);
    let z2 = mul(add(i[5], i[3]), -20995);
    let z3 = add(mul(add(i[7], i[3]), -16069), z5);
    let z4 = add(mul(add(i[5], i[1]), -3196), z5);
    let odd = [
        add(mul(i[1], 12299), add(z1, z4)),
        add(mul(i[3], 25172), add(z2, z3)),
        add(mul(i[5], 16819), add(z2, z4)),
        add(mul(i[7], 2446), add(z1, z3)),
    ];
    let mut out = [0; 8];
    for k in 0..4 {
        (out[k], out[7 - k]) = (add(even[k], odd[k]), sub(even[k], odd[k]));
    }
    out
}

/// Rounds away `n` bits.
fn descale(x: i32, n: i32) -> i32 {
    x.wrapping_add(1 << (n - 1)) >> n
}

fn idct(coefficients: &[i16], table: &[u16; 64], out: &mut [u8; 64]) {
    let mut between = [0i32; 64];
    for x in 0..8 {
        let column = idct_1d(std::array::from_fn(|y| i32::from(coefficients[8 * y + x]).wrapping_mul(table[8 * y + x].into())));
        column.iter().enumerate().for_each(|(y, &v)| between[8 * y + x] = descale(v, CONST_BITS - PASS_BITS));
    }
    for y in 0..8 {
        let row = idct_1d(std::array::from_fn(|x| between[8 * y + x]));
        for (x, &v) in row.iter().enumerate() {
            out[8 * y + x] = clamp(descale(v, CONST_BITS + PASS_BITS + 3) + 128);
        }
    }
}

/// A component as large as the image.
fn upsample(frame: &Frame, c: &Component, plane: Plane) -> Result<Plane, Fault> {
    if frame.h_max % c.h != 0 || frame.v_max % c.v != 0 {
        return Err(fault!("a JPEG component has {} x {} samples for {} x {}", c.h, c.v, frame.h_max, frame.v_max));
    }
    let wide = plane.width > 2;
    let (h, v) = (frame.h_max / c.h, frame.v_max / c.v);
    let (width, height) = (plane.width * h, plane.height * v);
    let mut out = Plane { width, height, samples: filled(width * height, 0)? };
    for (y, row) in out.samples.chunks_exact_mut(width).enumerate() {
        let own = plane.row(y / v);
        // The nearer neighbour of this row, above or below.
        let near = match y % v {
            0 => (y / v).saturating_sub(1),
            _ => (y / v + 1).min(plane.height - 1),
        };
        let near = plane.row(near);
        match (h, v) {
            (1, 1) => row.copy_from_slice(own),
            (2, 1) if wide => double(row, own.len(), |x| i32::from(own[x]), 1, 2, 2),
            (1, 2) => {
                let bias = if y % 2 == 0 { 1 } else { 2 };
                for (x, out) in row.iter_mut().enumerate() {
                    *out = ((3 * i32::from(own[x]) + i32::from(near[x]) + bias) >> 2) as u8;
                }
            }
            (2, 2) if wide => double(row, own.len(), |x| 3 * i32::from(own[x]) + i32::from(near[x]), 8, 7, 4),
            _ => row.iter_mut().enumerate().for_each(|(x, out)| *out = own[x / h]),
        }
    }
    Ok(out)
}

/// Twice as many samples along a row: three parts of the nearer one and one of the other; `left` and `right` are what is added before
/// `bits` bits are cut off.
fn double(row: &mut [u8], n: usize, sample: impl Fn(usize) -> i32, left: i32, right: i32, bits: i32) {
    for x in 0..n {
        let this = sample(x);
        let (last, next) = (sample(x.saturating_sub(1)), sample((x + 1).min(n - 1)));
        row[2 * x] = ((3 * this + last + left) >> bits) as u8;
        row[2 * x + 1] = ((3 * this + next + right) >> bits) as u8;
    }
}
