//! BLAKE2b-256 (RFC 7693): the digest of headers, sections and constants. Equal to `b2sum -l 256`.

/// A digest.
pub type Digest = [u8; 32];

const IV: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

const SIGMA: [[u8; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/// A digest of bytes that come piece by piece.
#[derive(Clone)]
pub struct Hasher {
    state: [u64; 8],
    block: [u8; 128],
    filled: usize,
    total: u128,
}

impl Default for Hasher {
    fn default() -> Hasher {
        let mut state = IV;
        state[0] ^= 0x0101_0000 ^ 32; // no key, 32 bytes of digest
        Hasher { state, block: [0; 128], filled: 0, total: 0 }
    }
}

impl Hasher {
    /// Takes more bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // The last block is kept until `finish`, which marks it.
            if self.filled == 128 {
                self.total += 128;
                compress(&mut self.state, &self.block, self.total, false);
                self.filled = 0;
            }
            let take = bytes.len().min(128 - self.filled);
            self.block[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
            self.filled += take;
            bytes = &bytes[take..];
        }
    }
    /// The digest of all bytes taken.
    pub fn finish(mut self) -> Digest {
        self.total += self.filled as u128;
        self.block[self.filled..].fill(0);
        compress(&mut self.state, &self.block, self.total, true);
        let mut out = [0; 32];
        for (bytes, word) in out.chunks_exact_mut(8).zip(self.state) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish()
}

fn compress(state: &mut [u64; 8], block: &[u8; 128], total: u128, last: bool) {
    let mut m = [0u64; 16];
    for (word, bytes) in m.iter_mut().zip(block.chunks_exact(8)) {
        *word = u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]);
    }
    let mut v = [0u64; 16];
    v[..8].copy_from_slice(state);
    v[8..].copy_from_slice(&IV);
    v[12] ^= total as u64;
    v[13] ^= (total >> 64) as u64;
    if last {
        v[14] = !v[14];
    }
    for round in 0..12 {
        let s = &SIGMA[round % 10];
        let x = |i: usize| m[s[i] as usize];
        mix(&mut v, 0, 4, 8, 12, x(0), x(1));
        mix(&mut v, 1, 5, 9, 13, x(2), x(3));
        mix(&mut v, 2, 6, 10, 14, x(4), x(5));
        mix(&mut v, 3, 7, 11, 15, x(6), x(7));
        mix(&mut v, 0, 5, 10, 15, x(8), x(9));
        mix(&mut v, 1, 6, 11, 12, x(10), x(11));
        mix(&mut v, 2, 7, 8, 13, x(12), x(13));
        mix(&mut v, 3, 4, 9, 14, x(14), x(15));
    }
    for i in 0..8 {
        state[i] ^= v[i] ^ v[i + 8];
    }
}

#[inline(always)]
fn mix(v: &mut [u64; 16], a: usize, b: usize, c: usize, d: usize, x: u64, y: u64) {
    v[a] = v[a].wrapping_add(v[b]).wrapping_add(x);
    v[d] = (v[d] ^ v[a]).rotate_right(32);
    v[c] = v[c].wrapping_add(v[d]);
    v[b] = (v[b] ^ v[c]).rotate_right(24);
    v[a] = v[a].wrapping_add(v[b]).wrapping_add(y);
    v[d] = (v[d] ^ v[a]).rotate_right(16);
    v[c] = v[c].wrapping_add(v[d]);
    v[b] = (v[b] ^ v[c]).rotate_right(63);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    fn hex(bytes: &[u8]) -> String {
        digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn known_digests() {
        let ramp = |n: usize| (0..n).map(|i| (i % 251) as u8).collect::<Vec<_>>();
        for (input, expected) in [
            (Vec::new(), "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"),
            (b"abc".to_vec(), "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
            (ramp(127), "f2fe67ff342e21b8f45e8f2e0bcd1d9243245d50ee6c78042e9c491388791c72"),
            (ramp(128), "c3582f71ebb2be66fa5dd750f80baae97554f3b015663c8be377cfcb2488c1d1"),
            (ramp(129), "f7f3c46ba2564ff4c4c162da1f5b605f9f1c4aa6a20652a9f9a337c1a2f5b9c9"),
            (ramp(1000), "b372d0608f720c8c3dd41e9c8eecb10143b41abe520b616607e754bf79c08331"),
        ] {
            assert_eq!(hex(&input), expected, "{} bytes", input.len());
        }
    }

    #[test]
    fn pieces_do_not_matter() {
        let bytes: Vec<u8> = (0..700u32).map(|i| (i * 7) as u8).collect();
        for cut in [0, 1, 127, 128, 129, 256, 700] {
            let mut hasher = Hasher::default();
            hasher.update(&bytes[..cut]);
            hasher.update(&bytes[cut..]);
            assert_eq!(hasher.finish(), digest(&bytes));
        }
    }
}
