//! Elements of AVX-512 FP16. All is computed in f64 and rounded once, to nearest even, as with the default MXCSR: its sums, products, quotients and
//! roots of f16 are so exact that this is the only rounding. Where `a * b + c` has more than the 53 bits of an f64, `c` is far from a tie. Subnormal
//! numbers count, whatever MXCSR says: so the manual has it for f16.

use crate::evex::{Elem, Op};

/// The value of an f16.
pub fn value(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => mantissa * power(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1024.0 + mantissa) * power(e - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// The f16 nearest to a number, the even one of two.
pub fn nearest(v: f64) -> u16 {
    let (sign, size) = (u16::from(v.is_sign_negative()) << 15, v.abs());
    let bits = if v.is_nan() {
        0x7e00
    } else if size >= 65520.0 {
        0x7c00
    } else {
        // The step between neighbours; up to the first power of two that is normal it is that of subnormal numbers.
        let exponent = ((size.to_bits() >> 52) as i32 - 1023).max(-14);
        let steps = (size * power(10 - exponent)).round_ties_even() as i32;
        (((exponent + 14) << 10) + steps) as u16
    };
    sign | bits
}

/// Two to a power, from -1022 to 1023.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The number that an element's bits are.
pub fn number(kind: Elem, bits: u64) -> f64 {
    match kind {
        Elem::Float(2) => value(bits as u16),
        Elem::Float(4) => f64::from(f32::from_bits(bits as u32)),
        Elem::Float(_) => f64::from_bits(bits),
        Elem::Int(2) => f64::from(bits as i16),
        Elem::Int(4) => f64::from(bits as i32),
        // Those of 64 bits lose some, but not where the result is an f16 other than infinity.
        Elem::Int(_) => bits as i64 as f64,
        Elem::Word(_) => bits as f64,
    }
}

/// The bits of the element nearest to a number. What no integer is gives the one that stands for that.
fn bits(kind: Elem, v: f64, truncate: bool) -> u64 {
    let whole = if truncate { v.trunc() } else { v.round_ties_even() };
    match kind {
        Elem::Float(2) => u64::from(nearest(v)),
        Elem::Float(4) => u64::from((v as f32).to_bits()),
        Elem::Float(_) => v.to_bits(),
        Elem::Int(bytes) => {
            let limit = power(8 * bytes as i32 - 1);
            let fits = -limit <= whole && whole < limit;
            let integer = if fits { whole as i64 } else { i64::MIN >> (64 - 8 * bytes) };
            integer as u64 & mask(bytes)
        }
        Elem::Word(bytes) => {
            let fits = 0.0 <= whole && whole < power(8 * bytes as i32);
            if fits { whole as u64 } else { mask(bytes) }
        }
    }
}

fn mask(bytes: usize) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

/// An element of the result, of the bits of the elements that are written over, of the first and of the second operand. Comparisons give 1 or 0.
pub fn element(op: Op, old: u64, first: u64, second: u64) -> u64 {
    let (from, to) = op.elements();
    let [c, a, b] = [old, first, second].map(|x| value(x as u16));
    let v = match op {
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Div => a / b,
        Op::Min => return if a < b { first } else { second },
        Op::Max => return if a > b { first } else { second },
        Op::Sqrt => b.sqrt(),
        Op::Fma { order, minus_product, minus_sum } => {
            let [x, y, z] = order.map(|k| [c, a, b][usize::from(k) - 1]);
            let product = if minus_product { -(x * y) } else { x * y };
            product + if minus_sum { -z } else { z }
        }
        Op::Convert { truncate, .. } => return bits(to, number(from, second), truncate),
        Op::Compare(predicate) => return u64::from(holds(predicate, a, b)),
        Op::Class(classes) => return u64::from(class(second as u16) & classes != 0),
        Op::Round(how) => {
            let scale = power(i32::from(how >> 4));
            let x = b * scale;
            let whole = match how & 7 {
                1 => x.floor(),
                2 => x.ceil(),
                3 => x.trunc(),
                _ => x.round_ties_even(),
            };
            if b.is_infinite() { b } else { whole / scale }
        }
        Op::Move | Op::Store | Op::FromGeneral | Op::ToGeneral | Op::Flags => return second & 0xffff,
    };
    u64::from(nearest(v))
}

/// Flags of a comparison: bit 0 less, 1 equal, 2 greater, 3 not ordered.
pub fn order(a: f64, b: f64) -> u8 {
    match a.partial_cmp(&b) {
        Some(std::cmp::Ordering::Less) => 1,
        Some(std::cmp::Ordering::Equal) => 2,
        Some(std::cmp::Ordering::Greater) => 4,
        None => 8,
    }
}

/// Does a predicate of the manual hold? The upper 16 differ in the faults that they would raise.
fn holds(predicate: u8, a: f64, b: f64) -> bool {
    const TRUE_FOR: [u8; 16] = [2, 1, 3, 8, 13, 14, 12, 7, 10, 9, 11, 0, 5, 6, 4, 15];
    TRUE_FOR[usize::from(predicate & 15)] & order(a, b) != 0
}

/// The manual's classes of a number, a bit each.
fn class(x: u16) -> u8 {
    let (negative, exponent, mantissa) = (x >> 15 == 1, x >> 10 & 31, x & 0x3ff);
    let quiet = mantissa & 0x200 != 0;
    match (exponent, mantissa) {
        (31, 0) => {
            if negative {
                0x10
            } else {
                8
            }
        }
        (31, _) => {
            if quiet {
                1
            } else {
                0x80
            }
        }
        (0, 0) => {
            if negative {
                4
            } else {
                2
            }
        }
        _ => u8::from(exponent == 0) << 5 | u8::from(negative) << 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest of all f16, found by looking at each of one sign: obvious and slow.
    fn looked_up(v: f64) -> u16 {
        let size = v.abs();
        let at = |bits: u16| if bits == 0x7c00 { 65536.0 } else { value(bits) };
        let best = (0..=0x7c00u16).min_by(|&x, &y| {
            let far = |b: u16| (at(b) - size).abs();
            far(x).total_cmp(&far(y)).then((x & 1).cmp(&(y & 1)))
        });
        best.expect("some") | u16::from(v.is_sign_negative()) << 15
    }

    #[test]
    fn rounding_is_to_the_nearest_even_one() {
        for bits in 0..=u16::MAX {
            let v = value(bits);
            assert!(nearest(v) == bits || v.is_nan() && value(nearest(v)).is_nan(), "{bits:04x}");
        }
        for bits in (0u16..0x7c00).step_by(37).chain([0, 1, 0x3fe, 0x3ff, 0x400, 0x7bff]) {
            let (low, high) = (value(bits), if bits == 0x7bff { 65536.0 } else { value(bits + 1) });
            let middle = (low + high) / 2.0;
            for v in [middle, middle * (1.0 - 1e-15), middle * (1.0 + 1e-15), low * 0.75 + high * 0.25] {
                for v in [v, -v] {
                    assert_eq!(nearest(v), looked_up(v), "{v:e}");
                }
            }
        }
        assert_eq!([nearest(1e300), nearest(-65520.0), nearest(65519.9), nearest(-0.0)], [0x7c00, 0xfc00, 0x7bff, 0x8000]);
    }

    #[test]
    fn elements_are_those_of_the_manual() {
        let f = |v: f64| u64::from(nearest(v));
        let fma = |order: [u8; 3], minus_product: bool, minus_sum: bool| Op::Fma { order, minus_product, minus_sum };
        // The old value is operand 1.
        assert_eq!(element(fma([1, 3, 2], false, false), f(2.0), f(5.0), f(7.0)), f(19.0));
        assert_eq!(element(fma([2, 1, 3], false, false), f(2.0), f(5.0), f(7.0)), f(17.0));
        assert_eq!(element(fma([2, 3, 1], true, true), f(2.0), f(5.0), f(7.0)), f(-37.0));
        // One rounding: 1 + 2^-10 squared is 1 + 2^-9 + 2^-20, and what is left is the last term.
        let x = 1.0 + power(-10);
        assert_eq!(element(fma([2, 3, 1], false, true), f(1.0 + power(-9)), f(x), f(x)), f(power(-20)));
        let nan = 0x7e00;
        assert_eq!([element(Op::Min, 0, nan, f(1.0)), element(Op::Max, 0, f(1.0), nan)], [f(1.0), nan]);
        assert_eq!([element(Op::Min, 0, f(0.0), f(-0.0)), element(Op::Max, 0, f(-0.0), f(0.0))], [f(-0.0), f(0.0)]);
        for (predicate, want) in
            [(0, [0, 1, 0, 0]), (1, [1, 0, 0, 0]), (2, [1, 1, 0, 0]), (3, [0, 0, 0, 1]), (4, [1, 0, 1, 1]), (0x1e, [0, 0, 1, 0])]
        {
            let pairs = [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (f64::NAN, 2.0)];
            assert_eq!(pairs.map(|(a, b)| element(Op::Compare(predicate), 0, f(a), f(b))), want, "{predicate}");
        }
        let class = |bits: u64, of: u8| element(Op::Class(of), 0, 0, bits);
        assert_eq!(
            [class(nan, 0x81), class(0x7d00, 0x80), class(0xfc00, 0x18), class(0x8001, 0x60), class(f(1.0), 0xff)],
            [1, 1, 1, 1, 0]
        );
        assert_eq!(
            [element(Op::Round(1), 0, 0, f(-1.5)), element(Op::Round(0), 0, 0, f(2.5)), element(Op::Round(0x13), 0, 0, f(1.75))],
            [f(-2.0), f(2.0), f(1.5)]
        );
        let to =
            |kind: Elem, v: f64, truncate: bool| element(Op::Convert { from: Elem::Float(2), to: kind, truncate }, 0, 0, f(v));
        assert_eq!(
            [to(Elem::Int(4), -2.5, true), to(Elem::Int(4), -2.5, false), to(Elem::Word(2), -1.0, true)],
            [0xffff_fffe, 0xffff_fffe, 0xffff]
        );
        assert_eq!(
            [to(Elem::Int(2), 40000.0, true), to(Elem::Int(4), f64::NAN, true), to(Elem::Int(8), 3.7, true)],
            [0x8000, 0x8000_0000, 3]
        );
        let from = |kind: Elem, bits: u64| element(Op::Convert { from: kind, to: Elem::Float(2), truncate: false }, 0, 0, bits);
        assert_eq!(
            [from(Elem::Int(2), 0xfffd), from(Elem::Word(4), 70000), from(Elem::Float(4), u64::from(1.5f32.to_bits()))],
            [f(-3.0), 0x7c00, f(1.5)]
        );
    }
}
