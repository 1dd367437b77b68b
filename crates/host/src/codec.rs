//! Values as bytes: constants and attributes of host steps in an artifact. Decoding takes any bytes: a value or an error.

use crate::Fault;
use crate::fault::fault;
use crate::tensor::{Data, Tensor};
use crate::value::{Key, NESTING, Value};
use bytes::Bytes;

impl Value {
    /// Its bytes: a tag for each kind, numbers as LEB128 varints, little-endian elements.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![];
        put(self, &mut out);
        out
    }

    /// The value that `bytes` stand for.
    pub fn decode(bytes: &[u8]) -> Result<Value, Fault> {
        let mut from = Decoder { rest: bytes };
        let value = from.value(0)?;
        if from.rest.is_empty() { Ok(value) } else { Err(fault!("a value is followed by {} more bytes", from.rest.len())) }
    }
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn text(bytes: &[u8], out: &mut Vec<u8>) {
    number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Tensor(t) => {
            out.extend([0, t.dtype()]);
            number(t.dims().len() as u64, out);
            t.dims().iter().for_each(|&d| number(d as u64, out));
            match t.data() {
                Data::Bytes(b) => out.extend_from_slice(b),
                Data::Strings(s) => s.iter().for_each(|s| text(s, out)),
            }
        }
        Value::Sequence(items) => {
            out.push(1);
            number(items.len() as u64, out);
            items.iter().for_each(|v| put(v, out));
        }
        Value::Optional(None) => out.push(2),
        Value::Optional(Some(v)) => {
            out.push(3);
            put(v, out);
        }
        Value::Map(entries) => {
            out.push(4);
            number(entries.len() as u64, out);
            for (k, v) in entries {
                match k {
                    Key::Int(i) => {
                        out.push(0);
                        out.extend(i.to_le_bytes());
                    }
                    Key::Text(s) => {
                        out.push(1);
                        text(s, out);
                    }
                }
                put(v, out);
            }
        }
    }
}

struct Decoder<'a> {
    rest: &'a [u8],
}

fn early() -> Fault {
    fault!("a value ends early")
}

impl<'a> Decoder<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(early)?;
        self.rest = rest;
        Ok(taken)
    }
    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }
    fn number(&mut self) -> Result<usize, Fault> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return usize::try_from(value).map_err(|_| fault!("a value has a number that is too large"));
            }
        }
        Err(fault!("a value has a number that is too long"))
    }
    /// A count of items that take a byte at least.
    fn count(&mut self) -> Result<usize, Fault> {
        let n = self.number()?;
        if n <= self.rest.len() { Ok(n) } else { Err(early()) }
    }
    fn text(&mut self) -> Result<Bytes, Fault> {
        let n = self.count()?;
        Ok(Bytes::copy_from_slice(self.take(n)?))
    }
    fn value(&mut self, depth: usize) -> Result<Value, Fault> {
        if depth > NESTING {
            return Err(fault!("a value nests too deeply"));
        }
        match self.byte()? {
            0 => self.tensor().map(Value::Tensor),
            1 => {
                let n = self.count()?;
                (0..n).map(|_| self.value(depth + 1)).collect::<Result<_, _>>().map(Value::Sequence)
            }
            2 => Ok(Value::Optional(None)),
            3 => Ok(Value::Optional(Some(Box::new(self.value(depth + 1)?)))),
            4 => {
                let n = self.count()?;
                (0..n).map(|_| Ok((self.key()?, self.value(depth + 1)?))).collect::<Result<_, _>>().map(Value::Map)
            }
            other => Err(fault!("a value has the unknown kind {other}")),
        }
    }
    fn key(&mut self) -> Result<Key, Fault> {
        match self.byte()? {
            0 => Ok(Key::Int(i64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))),
            1 => self.text().map(Key::Text),
            other => Err(fault!("a key has the unknown kind {other}")),
        }
    }
    fn tensor(&mut self) -> Result<Tensor, Fault> {
        let dtype = self.byte()?;
        let width = crate::dtype::width(dtype).ok_or_else(|| fault!("there is no dtype {dtype}"))?;
        let rank = self.count()?;
        let dims = (0..rank).map(|_| self.number()).collect::<Result<Vec<_>, _>>()?;
        let count = crate::tensor::count(&dims).ok_or_else(early)?;
        let data = match dtype {
            crate::dtype::STRING if count > self.rest.len() => return Err(early()),
            crate::dtype::STRING => Data::Strings((0..count).map(|_| self.text()).collect::<Result<_, _>>()?),
            _ => Data::Bytes(Bytes::copy_from_slice(self.take(count.checked_mul(width).ok_or_else(early)?)?)),
        };
        Tensor::new(dtype, dims, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        let text = || vec(any::<u8>(), 0..4).prop_map(Bytes::from);
        let key = prop_oneof![any::<i64>().prop_map(Key::Int), text().prop_map(Key::Text)];
        let tensor = prop_oneof![
            vec(any::<i64>(), 0..5).prop_map(|v| Tensor::from_ints(vec![v.len(), 1], &v).unwrap()),
            vec(text(), 0..5).prop_map(|v| Tensor::from_strings(vec![v.len()], v).unwrap()),
        ];
        let leaf = prop_oneof![tensor.prop_map(Value::Tensor), Just(Value::Optional(None))];
        leaf.prop_recursive(3, 12, 3, move |inner| {
            prop_oneof![
                vec(inner.clone(), 0..3).prop_map(Value::Sequence),
                inner.clone().prop_map(|v| Value::Optional(Some(Box::new(v)))),
                vec((key.clone(), inner), 0..3).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_round_trip(v in value()) {
            let bytes = v.encode();
            prop_assert_eq!(Value::decode(&bytes).unwrap(), v);
            for end in 0..bytes.len() {
                prop_assert!(Value::decode(&bytes[..end]).is_err());
            }
        }
        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in vec(prop_oneof![0u8..9, any::<u8>()], 0..60)) {
            let _ = Value::decode(&bytes);
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        assert_eq!(Value::decode(&[3; 100]).unwrap_err().0, "a value nests too deeply");
    }
}
