//! What backends find again in scalars to make it in fewer instructions, each in one place: products of bytes, numbers within bounds, and quantisation.
//! (Steps of pairs and of tiles are in `rows.rs`, beside what they compute.)

use crate::zero_point::byte_read;
use infc_ir::DType;
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};

/// What is limited to 0 and an upper bound that fits the unsigned integers of `to`, of 16 bits at most.
pub fn clamped(s: Scalar, to: DType) -> Option<(Scalar, f64)> {
    let narrow = matches!(to, DType::U8 | DType::U16) && s.dtype() == DType::F32;
    let Kind::Binary(Binary::Min, inner, hi) = s.kind() else { return None };
    let Kind::Binary(Binary::Max, x, lo) = inner.kind() else { return None };
    let (hi, largest) = (hi.as_float()?, to.int_range()?.1 as f64);
    (narrow && lo.as_float()? == 0.0 && (0.0..=largest).contains(&hi)).then_some((*x, hi))
}

/// A value that is quantised to unsigned integers of 16 bits at most.
#[derive(Clone, Copy, Debug)]
pub struct Quantised {
    /// In units of the scale.
    pub x: Scalar,
    /// The zero point, an integer as f32; `None` if it is 0.
    pub zero: Option<Scalar>,
    /// The largest stored value.
    pub hi: f64,
}

impl Quantised {
    /// The quantisation that `cast(to, limited)` is.
    pub fn of(limited: Scalar, to: DType) -> Option<Quantised> {
        let (inner, hi) = clamped(limited, to)?;
        let rounded = |s: Scalar| match s.kind() {
            Kind::Unary(Unary::Round, x) => Some(*x),
            _ => None,
        };
        if hi.fract() != 0.0 {
            return None;
        }
        if let Some(x) = rounded(inner) {
            return Some(Quantised { x, zero: None, hi });
        }
        let Kind::Binary(Binary::Add, a, b) = inner.kind() else { return None };
        let (x, zero) = rounded(*a).map(|x| (x, *b)).or_else(|| rounded(*b).map(|x| (x, *a)))?;
        let small = |d: DType| matches!(d, DType::U8 | DType::I8 | DType::U16 | DType::I16);
        match zero.kind() {
            Kind::Cast(z) if small(z.dtype()) => Some(Quantised { x, zero: Some(zero), hi }),
            Kind::Const(_) if zero.as_float()?.fract() == 0.0 && zero.as_float()?.abs() <= 65535.0 => {
                Some(Quantised { x, zero: (zero.as_float() != Some(0.0)).then_some(zero), hi })
            }
            _ => None,
        }
    }

    /// The quantisation whose result `cast(f32, whole)` takes back, less the same zero point.
    pub fn back(whole: Scalar, to: DType) -> Option<Quantised> {
        if to != DType::F32 || whole.dtype() != DType::I32 {
            return None;
        }
        let wide = |s: Scalar| match s.kind() {
            Kind::Cast(a) => Some(*a),
            _ => None,
        };
        let stored = |s: Scalar| {
            let narrow = wide(s)?;
            Quantised::of(wide(narrow)?, narrow.dtype())
        };
        let Kind::Binary(Binary::Sub, a, b) = whole.kind() else {
            return stored(whole).filter(|q| q.zero.is_none());
        };
        let q = stored(*a)?;
        let same = match (q.zero?.kind(), b.kind()) {
            (Kind::Cast(x), Kind::Cast(y)) => x == y,
            (Kind::Const(_), Kind::Const(_)) => q.zero?.as_float() == b.as_int().map(|z| z as f64),
            _ => false,
        };
        same.then_some(q)
    }
}

/// Which bytes are signed: those on the left and those on the right of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    /// Unsigned on the left, signed on the right.
    UnsignedSigned,
    /// Signed on the left, unsigned on the right.
    SignedUnsigned,
    /// Both signed.
    Signed,
}

/// Byte `t` of a word, as an i32.
pub fn byte_of(word: Scalar, t: usize) -> Scalar {
    let number = |n: f64| Scalar::number(DType::U32, n);
    let moved = if t == 0 { word } else { Scalar::binary(Binary::Shr, word, number(8.0 * t as f64)) };
    Scalar::binary(Binary::And, moved, number(255.0)).cast(DType::I32)
}

/// The word of which these are the four bytes.
fn word_of(bytes: &[Scalar]) -> Option<Scalar> {
    let Kind::Cast(low) = bytes.first()?.kind() else { return None };
    let Kind::Binary(Binary::And, word, _) = low.kind() else { return None };
    (bytes.len() == 4 && bytes.iter().enumerate().all(|(t, &b)| b == byte_of(*word, t))).then_some(*word)
}

/// A step: the sum before, and reads of the bytes.
#[derive(Clone, Debug)]
pub struct Products {
    /// The sum before.
    pub sum: Scalar,
    /// The bytes on the left.
    pub a: Vec<Scalar>,
    /// Those on the right; none where they are those of a word.
    pub b: Vec<Scalar>,
    /// The word whose bytes are on the right, unsigned.
    pub word: Option<Scalar>,
    /// What they are.
    pub kinds: Kinds,
    /// The bytes on the left, and those on the right, are read with the other sign and their top bits flipped.
    pub flips: [bool; 2],
}

impl Products {
    /// The last `count` products that `s` adds up.
    pub fn of(s: Scalar, count: usize) -> Option<Products> {
        let byte = |s: Scalar| match s.kind() {
            Kind::Cast(byte) => byte_read(*byte).map(|(read, flip)| (read, byte.dtype(), flip)),
            _ => None,
        };
        if let Some(found) = Products::of_words(s, count) {
            return Some(found);
        }
        let (mut sum, mut a, mut b, mut kinds) = (s, vec![], vec![], vec![]);
        for _ in 0..count {
            let Kind::Binary(Binary::Add, before, product) = sum.kind() else { return None };
            let Kind::Binary(Binary::Mul, x, y) = product.kind() else { return None };
            let ((x, left, x_flip), (y, right, y_flip)) = byte(*x).zip(byte(*y))?;
            let kind = match (left, right) {
                (DType::U8, DType::I8) => Kinds::UnsignedSigned,
                (DType::I8, DType::U8) => Kinds::SignedUnsigned,
                (DType::I8, DType::I8) => Kinds::Signed,
                _ => return None,
            };
            a.insert(0, x);
            b.insert(0, y);
            kinds.push((kind, [x_flip, y_flip]));
            sum = *before;
        }
        let (of, flips) = kinds[0];
        kinds.iter().all(|&k| k == kinds[0]).then_some(Products { sum, a, b, word: None, kinds: of, flips })
    }

    /// Signed bytes on the left, those of a word on the right.
    fn of_words(s: Scalar, count: usize) -> Option<Products> {
        let (mut sum, mut a, mut bytes) = (s, vec![], vec![]);
        for _ in 0..count {
            let Kind::Binary(Binary::Add, before, product) = sum.kind() else { return None };
            let Kind::Binary(Binary::Mul, x, y) = product.kind() else { return None };
            let Kind::Cast(byte) = x.kind() else { return None };
            let (read, _) = byte_read(*byte).filter(|(read, flip)| read.dtype() == DType::I8 && !flip)?;
            a.insert(0, read);
            bytes.insert(0, *y);
            sum = *before;
        }
        let word = Some(word_of(&bytes)?);
        Some(Products { sum, a, b: vec![], word, kinds: Kinds::SignedUnsigned, flips: [false; 2] })
    }

    /// Are all bytes on the right below 128, so that they may be signed as well?
    pub fn small(&self) -> bool {
        let mask = |word: Scalar| match word.kind() {
            Kind::Binary(Binary::And, _, mask) => mask.as_int(),
            _ => None,
        };
        self.word.and_then(mask).is_some_and(|mask| mask & 0x8080_8080 == 0)
    }

    /// The top bits of the bytes in a word. Where there is no byte, its factor counts nothing: it has to stay zero.
    pub fn top_bits(&self) -> i32 {
        (0..self.a.len()).fold(0u32, |bits, k| bits | 0x80 << (8 * k)) as i32
    }
}
