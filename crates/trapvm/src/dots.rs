//! Products in lanes of 32 bits: VPDPBUSD, VPDPWSSD and their forms with saturation.

use crate::decode::Vector;

/// The sum of a lane after the instruction, of the sum before and the two factors' 32 bits.
pub fn lane(kind: Vector, sum: i32, left: u32, right: u32) -> i32 {
    let (a, b) = (left.to_le_bytes(), right.to_le_bytes());
    let (products, saturated): (i64, bool) = match kind {
        Vector::Bytes(saturated) => {
            // No product of bytes leaves 16 bits, and they are widened before they are added up.
            ((0..4).map(|k| i64::from(a[k]) * i64::from(b[k] as i8)).sum(), saturated)
        }
        Vector::Words(saturated) => {
            let word = |bytes: [u8; 4], k: usize| i64::from(i16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]));
            ((0..2).map(|k| word(a, k) * word(b, k)).sum(), saturated)
        }
    };
    let exact = i64::from(sum) + products;
    if saturated { exact.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32 } else { exact as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_wrap_or_stay_in_their_range() {
        let (most, least) = (u32::MAX, u32::from_le_bytes([0x80; 4]));
        // 4 * 255 * -128, which 16 bits do not hold.
        assert_eq!(lane(Vector::Bytes(false), 5, most, least), 5 - 4 * 255 * 128);
        assert_eq!(lane(Vector::Bytes(false), i32::MIN, most, least), i32::MIN.wrapping_sub(4 * 255 * 128));
        assert_eq!(lane(Vector::Bytes(true), i32::MIN, most, least), i32::MIN);
        // The left bytes are the unsigned ones.
        assert_eq!(lane(Vector::Bytes(false), 0, 0x0000_0080, 0x0000_007f), 128 * 127);
        assert_eq!(lane(Vector::Bytes(false), 0, 0x0000_007f, 0x0000_0080), -128 * 127);
        assert_eq!(lane(Vector::Words(false), 1, 0x8000_8000, 0x8000_8000), 1i32.wrapping_add(i32::MIN));
        assert_eq!(lane(Vector::Words(true), 1, 0x8000_8000, 0x8000_8000), i32::MAX);
        assert_eq!(lane(Vector::Words(false), -3, 0x0002_fffe, 0x0005_0007), -3 + 10 - 14);
    }
}
