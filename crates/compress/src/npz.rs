//! NumPy's `.npz` files: zip archives of `.npy` files, stored or deflated. No encryption, no zip64 beyond what `numpy.savez` writes.

use crate::npy;
use infc_ir::Tensor;

/// The largest array that is unpacked, against files that claim anything.
const MOST: usize = 1 << 34;

/// Reads all arrays, with their names.
pub fn read(file: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    let end = end_record(file).ok_or("not an .npz file: it has no directory of a zip archive")?;
    let count = usize::from(u16_at(file, end + 10)?);
    let mut at = u32_at(file, end + 16)? as usize;
    let mut out = vec![];
    for _ in 0..count {
        if u32_at(file, at)? != 0x0201_4b50 {
            return Err(format!("no entry of the directory at byte {at}"));
        }
        let [method, flags] = [u16_at(file, at + 10)?, u16_at(file, at + 8)?];
        let [packed, full, local] = [20, 24, 42].map(|k| u32_at(file, at + k));
        let [name, extra, comment] = [28, 30, 32].map(|k| u16_at(file, at + k).map(usize::from));
        let (packed, full, local) = (packed? as usize, full? as usize, local? as usize);
        let (name_length, extra, comment) = (name?, extra?, comment?);
        let name = String::from_utf8_lossy(slice(file, at + 46, name_length)?).into_owned();
        at += 46 + name_length + extra + comment;
        if flags & 1 != 0 {
            return Err(format!("'{name}' is encrypted"));
        }
        if packed == u32::MAX as usize || full == u32::MAX as usize || local == u32::MAX as usize || full > MOST {
            return Err(format!("'{name}' is larger than 4 GiB: write it as .npy files in a folder"));
        }
        let start = local + 30 + usize::from(u16_at(file, local + 26)?) + usize::from(u16_at(file, local + 28)?);
        let data = unpack(slice(file, start, packed)?, method, full).map_err(|e| format!("'{name}': {e}"))?;
        if let Some(array) = name.strip_suffix(".npy") {
            out.push((array.to_owned(), npy::read(&data).map_err(|e| format!("'{name}': {e}"))?));
        }
    }
    if out.is_empty() { Err("holds no arrays".to_owned()) } else { Ok(out) }
}

fn unpack(data: &[u8], method: u16, full: usize) -> Result<Vec<u8>, String> {
    let out = match method {
        0 => data.to_vec(),
        8 => miniz_oxide::inflate::decompress_to_vec_with_limit(data, full).map_err(|e| format!("cannot be unpacked: {e}"))?,
        m => return Err(format!("packed by method {m}; write it with numpy.savez or savez_compressed")),
    };
    if out.len() == full { Ok(out) } else { Err(format!("unpacks to {} bytes instead of {full}", out.len())) }
}

/// Where the record at the end is: it may be followed by a comment.
fn end_record(file: &[u8]) -> Option<usize> {
    let last = file.len().checked_sub(22)?;
    (last.saturating_sub(65_535)..=last).rev().find(|&at| file[at..].starts_with(b"PK\x05\x06"))
}

fn slice(file: &[u8], at: usize, length: usize) -> Result<&[u8], String> {
    file.get(at..).and_then(|r| r.get(..length)).ok_or_else(|| format!("ends before byte {}", at.saturating_add(length)))
}

fn u16_at(file: &[u8], at: usize) -> Result<u16, String> {
    slice(file, at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(file: &[u8], at: usize) -> Result<u32, String> {
    slice(file, at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zip archive with one deflated entry, as `numpy.savez_compressed` writes it.
    fn archive(name: &str, data: &[u8], method: u16) -> Vec<u8> {
        let packed = if method == 8 { miniz_oxide::deflate::compress_to_vec(data, 6) } else { data.to_vec() };
        let field = |n: usize| (n as u32).to_le_bytes();
        let (sizes, length) = ([field(packed.len()), field(data.len())].concat(), (name.len() as u16).to_le_bytes());
        let local =
            [b"PK\x03\x04\x14\0\0\0", &method.to_le_bytes()[..], &[0; 8], &sizes, &length, &[0, 0], name.as_bytes()].concat();
        let entry = [b"PK\x01\x02\x14\0\x14\0\0\0", &method.to_le_bytes()[..], &[0; 8], &sizes, &length, &[0; 16]].concat();
        let directory = [&entry[..], name.as_bytes()].concat();
        let at = local.len() + packed.len();
        let end = [b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &field(directory.len())[..], &field(at), &[0, 0]].concat();
        [local, packed, directory, end].concat()
    }

    #[test]
    fn arrays_are_read_stored_and_deflated() {
        let t = Tensor::from_vec([2, 50], (0..100).collect::<Vec<i64>>());
        for method in [0, 8] {
            let file = archive("x.npy", &npy::write(&t).unwrap(), method);
            assert_eq!(read(&file).unwrap(), [("x".to_owned(), t.clone())]);
        }
    }

    #[test]
    fn bad_archives_are_errors() {
        let t = npy::write(&Tensor::from_ints(&[1, 2, 3])).unwrap();
        let good = archive("x.npy", &t, 8);
        for (file, want) in [
            (b"nonsense".to_vec(), "no directory"),
            (archive("x.txt", b"abc", 0), "no arrays"),
            (archive("x.npy", b"abc", 0), "not a .npy file"),
            (archive("x.npy", &t, 12), "method 12"),
        ] {
            let got = read(&file).unwrap_err();
            assert!(got.contains(want), "{got}");
        }
        for cut in 0..good.len() {
            assert!(read(&good[..cut]).is_err());
            let mut broken = good.clone();
            broken[cut] ^= 0x55;
            _ = read(&broken); // anything but a panic
        }
    }
}
