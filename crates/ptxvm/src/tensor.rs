//! Tensor maps: what `cuTensorMapEncodeTiled` makes, in a form of our own, and the boxes that copies take by them.

use crate::Memory;

/// Bytes of a map.
pub const MAP_BYTES: usize = 128;
/// Its beginning.
const MAGIC: u32 = 0x7a31_c05e;
/// The most axes.
const MOST_AXES: usize = 5;

/// A tensor in device memory and the boxes that are copied from it into shared memory, in the swizzle of 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Bytes of an element.
    pub width: usize,
    /// Where the tensor begins.
    pub address: u64,
    /// For each axis, that of neighbours first: extent, distance in bytes, extent of a box.
    pub axes: Vec<(u64, u64, u32)>,
}

impl TensorMap {
    /// The map as bytes, if the rules of the driver's manual hold: addresses and strides of 16 bytes, boxes of at most 256 elements along
    /// an axis and of 128 bytes along the first one.
    pub fn encode(&self) -> Result<[u8; MAP_BYTES], String> {
        let rank = self.axes.len();
        if !(1..=MOST_AXES).contains(&rank) || !matches!(self.width, 1 | 2 | 4 | 8) {
            return Err(format!("a tensor map of {rank} axes and elements of {} bytes", self.width));
        }
        if self.address % 16 != 0 {
            return Err(format!("a tensor map of memory at {:#x}, which is no multiple of 16", self.address));
        }
        for (k, &(size, stride, part)) in self.axes.iter().enumerate() {
            let stride_fits = k == 0 || stride % 16 == 0 && stride > 0 && stride < 1 << 40;
            if !(1..=1 << 32).contains(&size) || !(1..=256).contains(&part) || !stride_fits {
                return Err(format!("axis {k} of a tensor map: {size} elements {stride} bytes apart, boxes of {part}"));
            }
        }
        let row = self.axes[0].2 as usize * self.width;
        if row > 128 || row % 16 != 0 {
            return Err(format!("boxes with rows of {row} bytes in the swizzle of 128 bytes"));
        }
        let mut out = vec![];
        out.extend(MAGIC.to_le_bytes());
        out.extend([self.width as u8, rank as u8, 0, 0]);
        out.extend(self.address.to_le_bytes());
        for k in 0..MOST_AXES {
            let (size, stride, part) = self.axes.get(k).copied().unwrap_or((1, 0, 1));
            out.extend(((size - 1) as u32).to_le_bytes());
            out.extend(&stride.to_le_bytes()[..5]);
            out.push((part - 1) as u8);
        }
        out.resize(MAP_BYTES, 0);
        out.try_into().map_err(|_| "a tensor map that is too long".to_owned())
    }

    /// The map that these bytes are.
    pub fn decode(bytes: &[u8]) -> Result<TensorMap, String> {
        let number =
            |at: usize, len: usize| bytes.get(at..at + len).map(|b| b.iter().rev().fold(0u64, |acc, &x| acc << 8 | u64::from(x)));
        let head = (number(0, 4), number(4, 1), number(5, 1), number(8, 8));
        let (Some(magic), Some(width), Some(rank), Some(address)) = head else {
            return Err("a tensor map that is too short".into());
        };
        if magic != u64::from(MAGIC) || bytes.len() != MAP_BYTES {
            return Err("a copy by a tensor map that nobody encoded".into());
        }
        let axis = |k: usize| {
            let at = 16 + 10 * k;
            Some((number(at, 4)? + 1, number(at + 4, 5)?, number(at + 9, 1)? as u32 + 1))
        };
        let axes = (0..rank as usize).map(axis).collect::<Option<Vec<_>>>().ok_or("a tensor map that is too short")?;
        Ok(TensorMap { width: width as usize, address, axes })
    }

    /// Bytes of a box.
    pub fn box_bytes(&self) -> usize {
        self.axes.iter().map(|a| a.2 as usize).product::<usize>() * self.width
    }

    /// The bytes of the box that begins at `at`, as they lie in shared memory from `to` on: 0 where the tensor has no element.
    pub(crate) fn gather(&self, at: &[i32], to: usize, memory: &Memory) -> Result<Vec<u8>, String> {
        let mut out = vec![0u8; self.box_bytes()];
        let (per, width) = (self.axes[0].2 as usize, self.width);
        for row in 0..out.len() / (per * width) {
            let (mut left, mut start, mut inside) = (row, self.address, true);
            for (&(size, stride, part), &first) in self.axes.iter().zip(at).skip(1) {
                let place = i64::from(first) + (left % part as usize) as i64;
                left /= part as usize;
                inside &= (0..size as i64).contains(&place);
                start = start.wrapping_add((place as u64).wrapping_mul(stride));
            }
            for k in 0..per {
                let place = i64::from(at[0]) + k as i64;
                if !inside || !(0..self.axes[0].0 as i64).contains(&place) {
                    continue;
                }
                let from = start + place as u64 * width as u64;
                let Some(bytes) = memory.get(from, width) else {
                    return Err(format!("a copy by a tensor map reads {}", memory.describe(from, width)));
                };
                // Bits 4 to 6 of the address in shared memory, xor bits 7 to 9.
                let plain = to + (row * per + k) * width;
                let place = (plain ^ (plain >> 3 & 0x70)) - to;
                out[place..place + width].copy_from_slice(bytes);
            }
        }
        Ok(out)
    }
}
