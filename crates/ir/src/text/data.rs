//! Tensors in the text form: short lists, blobs in base64, byte strings, hashes.

use super::cursor::Cursor;
use super::scalar::{parse_float, write_float};
use crate::dtype::{Class, DType};
use crate::fault::Problem;
use crate::tensor::{self, Data, Tensor};
use std::fmt::Write;

/// Tensors of at most this many elements are written out as a list.
const INLINE: usize = 16;
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The elements in braces, if there are few and they read back exactly.
pub(super) fn inline(t: &Tensor) -> Option<String> {
    if t.dtype == DType::String {
        let items: Vec<String> = t.strings().iter().map(|s| format!("\"{}\"", s.escape_ascii())).collect();
        return Some(format!("{{{}}}", items.join(", ")));
    }
    if t.len() > INLINE || t.dtype.class() == Class::Complex {
        return None;
    }
    let mut text = String::from("{");
    for i in 0..t.len() {
        text.push_str(if i > 0 { ", " } else { "" });
        let v = t.value(i);
        match t.dtype.class() {
            Class::Float if t.dtype == DType::F32 && !f64::from_bits(v).is_nan() => {
                write!(text, "{:?}", f64::from_bits(v) as f32).ok()?;
            }
            Class::Float => write_float(&mut text, f64::from_bits(v)).ok()?,
            Class::Unsigned => write!(text, "{v}").ok()?,
            Class::Bool => text.push_str(if v == 0 { "false" } else { "true" }),
            Class::Signed | Class::Complex | Class::Text => write!(text, "{}", v as i64).ok()?,
        }
    }
    text.push('}');
    let back = elements(&mut Cursor::new(&text), t.dtype, &t.dims).ok()?;
    (back == *t).then_some(text)
}

/// Reads a list in braces.
pub(super) fn elements(c: &mut Cursor, dtype: DType, dims: &[usize]) -> Result<Tensor, Problem> {
    let start = c.clone();
    let check = |len: usize| match dims.iter().try_fold(1usize, |a, &d| a.checked_mul(d)) {
        Some(n) if n == len => Ok(()),
        _ => Err(start.error(format!("{len} elements do not fill {dtype}{dims:?}"))),
    };
    if dtype == DType::String {
        let items = c.list("{", "}", byte_string)?;
        check(items.len())?;
        return Ok(Tensor::from_strings(dims, items.into_iter().map(Into::into)));
    }
    let items = c.list("{", "}", |c| match dtype.class() {
        Class::Float if dtype == DType::F32 && !c.rest().starts_with("nan") => {
            c.number::<f32>("a number").map(|v| f64::from(v).to_bits())
        }
        Class::Float => parse_float(c).map(f64::to_bits),
        Class::Unsigned => c.number::<u64>("an unsigned integer"),
        Class::Bool => c.number::<bool>("true or false").map(u64::from),
        Class::Signed => c.number::<i64>("an integer").map(|v| v as u64),
        Class::Complex | Class::Text => Err(c.error(format!("a list of {dtype} is written as a blob"))),
    })?;
    check(items.len())?;
    Ok(Tensor::from_values(dtype, dims, items))
}

/// A quoted string of bytes: printable ASCII and the escapes of `escape_ascii`.
fn byte_string(c: &mut Cursor) -> Result<Vec<u8>, Problem> {
    let start = c.clone();
    c.expect("\"")?;
    let mut out = vec![];
    // The cursor skips blanks between tokens, which a string must not: walk over the rest by hand.
    let mut after = start.clone();
    let text = &after.rest()[1..];
    let mut at = text.bytes().enumerate();
    let end = loop {
        match at.next() {
            None => return Err(start.expected("the end of the string")),
            Some((i, b'"')) => break i,
            Some((_, b'\\')) => match at.next().map(|(_, b)| b) {
                Some(b'n') => out.push(b'\n'),
                Some(b'r') => out.push(b'\r'),
                Some(b't') => out.push(b'\t'),
                Some(b'x') => {
                    let digits = [at.next(), at.next()].map(|d| d.map_or('?', |(_, b)| b as char));
                    let byte = digits.iter().try_fold(0, |a, d| Some(a * 16 + d.to_digit(16)?));
                    out.push(byte.ok_or_else(|| start.error("\\x needs two hexadecimal digits"))? as u8);
                }
                Some(b) => out.push(b),
                None => return Err(start.expected("the end of the string")),
            },
            Some((_, b)) => out.push(b),
        }
    };
    if !text.is_char_boundary(end + 1) {
        return Err(start.error("a byte string holds ASCII and escapes only"));
    }
    c.skip_to(&text[end + 1..]);
    Ok(out)
}

/// Base64 with padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, &b)| w | u32::from(b) << (16 - 8 * i));
        for i in 0..4 {
            out.push(if i <= chunk.len() { DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char } else { '=' });
        }
    }
    out
}

/// Reads [`encode`]d text.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if text.len() % 4 != 0 || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.as_bytes().chunks(4) {
        let mut word = 0u32;
        for (i, &b) in chunk.iter().enumerate() {
            let digit = match b {
                b'A'..=b'Z' => b - b'A',
                b'a'..=b'z' => b - b'a' + 26,
                b'0'..=b'9' => b - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            word |= u32::from(digit) << (18 - 6 * i);
        }
        let count = chunk.len().checked_sub(1).filter(|&n| n > 0)?;
        out.extend_from_slice(&word.to_be_bytes()[1..1 + count]);
    }
    Some(out)
}

/// A tensor of a blob's bytes.
pub(super) fn from_blob(dtype: DType, dims: &[usize], bytes: Vec<u8>) -> Result<Tensor, String> {
    let needed = dims.iter().try_fold(dtype.bytes(), |a, &d| a.checked_mul(d));
    match needed {
        _ if dtype == DType::String => Err("strings are written as a list".to_owned()),
        Some(n) if n == bytes.len() => Ok(Tensor::from_bytes(dtype, dims, bytes)),
        _ => Err(format!("{dtype}{dims:?} does not take {} bytes", bytes.len())),
    }
}

/// A hash of the contents for people: FNV-1a over dtype, dims and bytes.
pub fn short_hash(t: &Tensor) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |bytes: &[u8]| bytes.iter().for_each(|&b| h = (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    eat(t.dtype.name().as_bytes());
    t.dims.iter().for_each(|d| eat(&d.to_le_bytes()));
    match &t.data {
        Data::Bytes(b) => eat(b),
        Data::Strings(s) => s.iter().for_each(|s| eat(s)),
    }
    h
}

/// Number of elements if it is representable.
pub(super) fn is_small(t: &Tensor) -> bool {
    tensor::count(&t.dims) <= INLINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_round_trips() {
        for n in 0..70u8 {
            let bytes: Vec<u8> = (0..n).map(|i| i.wrapping_mul(37) ^ 0xa5).collect();
            assert_eq!(decode(&encode(&bytes)).unwrap(), bytes);
        }
        assert_eq!(encode(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw==");
        assert!(decode("A===").is_none() && decode("AAA").is_none() && decode("A*==").is_none());
    }

    #[test]
    fn lists_round_trip_or_are_not_used() {
        let odd_nan = Tensor::from_vec([2], vec![f32::from_bits(0x7fc0_0001), 1.0]);
        assert_eq!(inline(&odd_nan).as_deref().unwrap_or(""), "{nan(0x7ff8000020000000), 1.0}");
        for &d in DType::ALL {
            if d == DType::String {
                continue;
            }
            let t = Tensor::from_bytes(d, [3], (0..3 * d.bytes()).map(|i| (i * 83) as u8).collect::<Vec<u8>>());
            if let Some(text) = inline(&t) {
                assert_eq!(elements(&mut Cursor::new(&text), d, &[3]).unwrap(), t);
            }
        }
        let strings = Tensor::from_strings([2], [&b"a \"b\"\\ \n\xff\x00"[..], b""].map(bytes::Bytes::from_static));
        assert_eq!(elements(&mut Cursor::new(&inline(&strings).unwrap()), DType::String, &[2]).unwrap(), strings);
    }
}
