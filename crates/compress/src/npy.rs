//! NumPy's `.npy` files: one dense tensor each (format versions 1 to 3).
//!
//! Knows nothing of models. Dtypes that NumPy has no name for (bf16, the 8- and 4-bit floats, strings) are refused.

use infc_ir::{DType, Tensor};

const MAGIC: &[u8] = b"\x93NUMPY";

/// NumPy's names of dtypes, without byte order.
const NAMES: &[(&str, DType)] = &[
    ("f2", DType::F16),
    ("f4", DType::F32),
    ("f8", DType::F64),
    ("i1", DType::I8),
    ("i2", DType::I16),
    ("i4", DType::I32),
    ("i8", DType::I64),
    ("u1", DType::U8),
    ("u2", DType::U16),
    ("u4", DType::U32),
    ("u8", DType::U64),
    ("b1", DType::Bool),
    ("c8", DType::C64),
    ("c16", DType::C128),
];

/// Reads a `.npy` file. The error says what is wrong and, where it matters, at which byte.
pub fn read(file: &[u8]) -> Result<Tensor, String> {
    let rest = file.strip_prefix(MAGIC).ok_or("not a .npy file: it does not start with \\x93NUMPY")?;
    let (header, data_at) = match rest {
        [1, _, a, b, ..] => (10, usize::from(u16::from_le_bytes([*a, *b]))),
        [2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        [v, ..] => return Err(format!("format version {v} of .npy is not known (1 to 3 are)")),
        [] => return Err("ends inside the header".to_owned()),
    };
    let text = file.get(header..).and_then(|r| r.get(..data_at)).ok_or("ends inside the header")?;
    let text = std::str::from_utf8(text).map_err(|_| "the header is no text")?;
    let (dtype, big_endian) = parse_descr(field(text, "descr")?)?;
    let fortran = match field(text, "fortran_order")? {
        t if t.starts_with("True") => true,
        t if t.starts_with("False") => false,
        t => return Err(format!("fortran_order is neither True nor False: {t}")),
    };
    let dims = parse_shape(field(text, "shape")?)?;
    let bytes = dims.iter().try_fold(dtype.bytes(), |n, &d| n.checked_mul(d)).ok_or("the shape is too large")?;
    let data = &file[header + data_at..];
    if data.len() != bytes {
        return Err(format!(
            "{dtype}{dims:?} takes {bytes} bytes, {} follow the header at byte {}",
            data.len(),
            header + data_at
        ));
    }
    let mut data = data.to_vec();
    if big_endian {
        let width = if dtype == DType::C64 || dtype == DType::C128 { dtype.bytes() / 2 } else { dtype.bytes() };
        data.chunks_exact_mut(width).for_each(|e| e.reverse());
    }
    if dtype == DType::Bool {
        data.iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    if fortran && dims.len() > 1 {
        data = to_row_major(&data, &dims, dtype.bytes());
    }
    Ok(Tensor::from_bytes(dtype, dims, data))
}

/// The tensor as a `.npy` file (version 1); `None` for a dtype that NumPy has no name for.
pub fn write(tensor: &Tensor) -> Option<Vec<u8>> {
    let (name, _) = NAMES.iter().find(|(_, d)| *d == tensor.dtype)?;
    let order = if tensor.dtype.bytes() == 1 { '|' } else { '<' };
    let shape: Vec<String> = tensor.dims.iter().map(|d| format!("{d},")).collect();
    let mut text = format!("{{'descr': '{order}{name}', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
    // The data begins at a multiple of 64 bytes; a line feed ends the header.
    while !(MAGIC.len() + 4 + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let mut out = [MAGIC, &[1, 0], &u16::try_from(text.len()).ok()?.to_le_bytes()].concat();
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(tensor.bytes());
    Some(out)
}

/// What follows `'name':` in the header.
fn field<'a>(header: &'a str, name: &str) -> Result<&'a str, String> {
    let key = format!("'{name}':");
    let at = header.find(&key).ok_or_else(|| format!("the header has no '{name}'"))?;
    Ok(header[at + key.len()..].trim_start())
}

fn parse_descr(text: &str) -> Result<(DType, bool), String> {
    let mut quoted = text.split('\'');
    let descr = match (quoted.next(), quoted.next()) {
        (Some(""), Some(d)) => d,
        _ => return Err("record dtypes are not supported".to_owned()),
    };
    let name = descr.trim_start_matches(['<', '>', '|', '=']);
    match NAMES.iter().find(|(n, _)| *n == name) {
        Some(&(_, dtype)) => Ok((dtype, descr.starts_with('>'))),
        None => Err(format!("dtype '{descr}' is not supported")),
    }
}

fn parse_shape(text: &str) -> Result<Vec<usize>, String> {
    let inner = text.strip_prefix('(').and_then(|t| t.split(')').next()).ok_or("the shape is no tuple")?;
    let dims = inner.split(',').map(str::trim).filter(|d| !d.is_empty());
    dims.map(|d| d.parse().map_err(|_| format!("'{d}' is no dim"))).collect()
}

fn to_row_major(data: &[u8], dims: &[usize], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0; dims.len()];
    for _ in 0..data.len() / width {
        let at = index.iter().zip(dims).rev().fold(0, |at, (&i, &d)| at * d + i);
        out.extend_from_slice(&data[at * width..(at + 1) * width]);
        for (i, &d) in index.iter_mut().zip(dims).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let text = format!("{header}\n");
        [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes(), data].concat()
    }

    #[test]
    fn writing_then_reading_is_the_identity() {
        let tensors = [
            Tensor::from_vec([2, 3], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]),
            Tensor::from_vec([], vec![-7i64]),
            Tensor::from_vec([0, 4], Vec::<u16>::new()),
            Tensor::from_bools([3], &[true, false, true]),
        ];
        for t in tensors {
            let bytes = write(&t).unwrap();
            assert_eq!(read(&bytes).unwrap(), t);
            assert_eq!((bytes.len() - t.bytes().len()) % 64, 0);
        }
        assert_eq!(write(&Tensor::zeros(DType::BF16, [1])), None);
    }

    #[test]
    fn reads_column_major_and_big_endian() {
        let f = file("{'descr': '>i2', 'fortran_order': True, 'shape': (2, 2), }", &[0, 1, 0, 2, 0, 3, 0, 4]);
        assert_eq!(read(&f).unwrap(), Tensor::from_vec([2, 2], vec![1i16, 3, 2, 4]));
    }

    #[test]
    fn bad_files_are_errors() {
        let cases: &[(&[u8], &str)] = &[
            (b"PK\x03\x04", "not a .npy file"),
            (b"\x93NUMPY", "inside the header"),
            (b"\x93NUMPY\x09\0\0\0", "version 9"),
            (b"\x93NUMPY\x01\0\xff\0{", "inside the header"),
            (&file("{'descr': '<f4', 'fortran_order': False}", b""), "no 'shape'"),
            (&file("{'descr': '<U3', 'fortran_order': False, 'shape': (1,), }", b""), "'<U3' is not supported"),
            (&file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"1234"), "takes 8 bytes, 4 follow"),
            (&file("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999,), }", b""), "is no dim"),
            (&file("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 99999999999), }", b""), "too large"),
        ];
        for (bytes, want) in cases {
            let got = read(bytes).unwrap_err();
            assert!(got.contains(want), "{got}");
        }
    }
}
