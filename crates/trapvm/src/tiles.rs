//! Tiles of a thread: their configuration, their data, and products of them, as the manual defines TDPBF16PS, TDPFP16PS and TDPBSSD, TDPBSUD, TDPBUSD, TDPBUUD.

use crate::decode::Matrix;
use crate::half;

/// Tiles of palette 1.
pub const COUNT: usize = 8;
/// Rows of the largest tile.
pub const ROWS: usize = 16;
/// Bytes of its rows.
pub const BYTES: usize = 64;

/// All tiles, with their configuration.
pub struct Tiles {
    configured: bool,
    /// Bytes of a row, and rows, of each tile; both are 0 where there is none.
    shapes: [(usize, usize); COUNT],
    data: [[[u8; BYTES]; ROWS]; COUNT],
}

/// What is wrong with the use of an instruction: the CPU would fault.
pub type Wrong = &'static str;

impl Tiles {
    /// As after TILERELEASE.
    pub const NONE: Tiles = Tiles { configured: false, shapes: [(0, 0); COUNT], data: [[[0; BYTES]; ROWS]; COUNT] };

    /// LDTILECFG. All tiles are zero after it.
    pub fn configure(&mut self, bytes: &[u8; 64]) -> Result<(), Wrong> {
        match bytes[0] {
            0 => {
                *self = Tiles::NONE;
                return Ok(());
            }
            1 => {}
            _ => return Err("the palette is neither 0 nor 1"),
        }
        if bytes[1] != 0 {
            return Err("an interrupted load or store (start_row is not 0), which this emulator does not continue");
        }
        if bytes[2..16].iter().chain(&bytes[32..48]).chain(&bytes[56..64]).any(|&b| b != 0) {
            return Err("reserved bytes of the tile configuration are not 0");
        }
        let mut shapes = [(0, 0); COUNT];
        for (t, shape) in shapes.iter_mut().enumerate() {
            let width = usize::from(u16::from_le_bytes([bytes[16 + 2 * t], bytes[17 + 2 * t]]));
            let rows = usize::from(bytes[48 + t]);
            if width > BYTES || rows > ROWS {
                return Err("a tile has more than 16 rows or more than 64 bytes in a row");
            }
            if (width == 0) != (rows == 0) {
                return Err("a tile has rows without bytes or bytes without rows");
            }
            *shape = (width, rows);
        }
        *self = Tiles { configured: true, shapes, ..Tiles::NONE };
        Ok(())
    }

    /// STTILECFG.
    pub fn configuration(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = u8::from(self.configured);
        for (t, &(width, rows)) in self.shapes.iter().enumerate() {
            bytes[16 + 2 * t] = width as u8;
            bytes[48 + t] = rows as u8;
        }
        bytes
    }

    /// The data of all tiles, row after row, as a saved state has it.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.data.as_flattened_mut().as_flattened_mut()
    }

    /// TILERELEASE.
    pub fn release(&mut self) {
        *self = Tiles::NONE;
    }

    fn shape(&self, tile: u8) -> Result<(usize, usize), Wrong> {
        if !self.configured {
            return Err("tiles are used where no tile configuration is loaded");
        }
        match self.shapes[usize::from(tile)] {
            (0, _) => Err("the tile has no shape in the tile configuration"),
            shape => Ok(shape),
        }
    }

    /// TILEZERO.
    pub fn zero(&mut self, tile: u8) -> Result<(), Wrong> {
        self.shape(tile)?;
        self.data[usize::from(tile)] = [[0; BYTES]; ROWS];
        Ok(())
    }

    /// TILELOADD: `read` fills row after row. What the shape leaves out becomes zero.
    pub fn load(&mut self, tile: u8, read: &mut dyn FnMut(usize, &mut [u8])) -> Result<(), Wrong> {
        let (width, rows) = self.shape(tile)?;
        let data = &mut self.data[usize::from(tile)];
        *data = [[0; BYTES]; ROWS];
        data[..rows].iter_mut().enumerate().for_each(|(row, bytes)| read(row, &mut bytes[..width]));
        Ok(())
    }

    /// TILESTORED: `write` gets row after row.
    pub fn store(&self, tile: u8, write: &mut dyn FnMut(usize, &[u8])) -> Result<(), Wrong> {
        let (width, rows) = self.shape(tile)?;
        self.data[usize::from(tile)][..rows].iter().enumerate().for_each(|(row, bytes)| write(row, &bytes[..width]));
        Ok(())
    }

    /// `sums += left * right`, with groups of 4 bytes of `left`'s rows and of `right`'s columns.
    pub fn multiply(&mut self, kind: Matrix, sums: u8, left: u8, right: u8) -> Result<(), Wrong> {
        if sums == left || left == right || sums == right {
            return Err("a product names one tile twice");
        }
        let (columns, rows) = self.shape(sums)?;
        let (depth, left_rows) = self.shape(left)?;
        let (right_columns, right_rows) = self.shape(right)?;
        if [columns, depth, right_columns].iter().any(|w| w % 4 != 0) {
            return Err("a tile of a product has rows that are no multiple of 4 bytes");
        }
        if columns != right_columns {
            return Err("the sums have other columns than the second factor");
        }
        if rows != left_rows {
            return Err("the sums have other rows than the first factor");
        }
        if depth / 4 != right_rows {
            return Err("the second factor has other rows than the first one groups");
        }
        let [a, b] = [left, right].map(|t| self.data[usize::from(t)]);
        let (c, shape) = (&mut self.data[usize::from(sums)], (rows, depth / 4, columns / 4));
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // Safety: the CPU has both.
            unsafe { fast(kind, c, &a, &b, shape) };
            return Ok(());
        }
        product(kind, c, &a, &b, shape);
        Ok(())
    }
}

type Data = [[u8; BYTES]; ROWS];

/// The same code, compiled for vectors and fused multiply-add in hardware: a call of the C library for each product would take most of the time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fast(kind: Matrix, c: &mut Data, a: &Data, b: &Data, shape: (usize, usize, usize)) {
    product(kind, c, a, b, shape);
}

/// `c += a * b` over so many rows, groups along k, and columns.
#[inline(always)]
fn product(kind: Matrix, c: &mut Data, a: &Data, b: &Data, (rows, depth, columns): (usize, usize, usize)) {
    for m in 0..rows {
        match kind {
            Matrix::Bf16 => {
                float_row(&mut c[m], &a[m], b, (depth, columns), &|bits| flushed(f32::from_bits(u32::from(bits) << 16)))
            }
            // Subnormal numbers of f16 count: as f32 they are normal.
            Matrix::F16 => float_row(&mut c[m], &a[m], b, (depth, columns), &|bits| half::value(bits) as f32),
            Matrix::Bytes(left, right) => bytes_row(&mut c[m], &a[m], b, depth, columns, (left, right)),
        }
    }
    c[rows..].fill([0; BYTES]);
}

#[inline(always)]
fn word(row: &[u8; BYTES], k: usize) -> [u8; 4] {
    [row[4 * k], row[4 * k + 1], row[4 * k + 2], row[4 * k + 3]]
}

/// A row of TDPBF16PS or TDPFP16PS, of what the factors' bits stand for: the products of even members of pairs and of odd ones are summed up apart, from zero on, each step with one rounding; then
/// both are added, and then that to the sum before. Subnormal sums count as zeros and become zeros throughout.
#[inline(always)]
fn float_row(sums: &mut [u8; BYTES], a: &[u8; BYTES], b: &Data, (depth, columns): (usize, usize), value: &impl Fn(u16) -> f32) {
    // The two members of a pair, as floats.
    let halves = |[b0, b1, b2, b3]: [u8; 4]| [value(u16::from_le_bytes([b0, b1])), value(u16::from_le_bytes([b2, b3]))];
    // Columns beyond the last one hold zeros, and are left out at the end.
    let mut apart = [[0.0f32; BYTES / 4]; 2];
    for k in 0..depth {
        let left = halves(word(a, k));
        for n in 0..BYTES / 4 {
            let right = halves(word(&b[k], n));
            for j in 0..2 {
                apart[j][n] = flushed(left[j].mul_add(right[j], apart[j][n]));
            }
        }
    }
    for n in 0..columns {
        let both = flushed(apart[0][n] + apart[1][n]);
        let sum = flushed(flushed(f32::from_le_bytes(word(sums, n))) + both);
        sums[4 * n..4 * n + 4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The number, or a zero of its sign where it is subnormal.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

/// A row of the products of bytes, which are exact: sums wrap.
#[inline(always)]
fn bytes_row(
    sums: &mut [u8; BYTES],
    a: &[u8; BYTES],
    b: &[[u8; BYTES]; ROWS],
    depth: usize,
    columns: usize,
    signed: (bool, bool),
) {
    let wide = |byte: u8, signed: bool| if signed { i32::from(byte as i8) } else { i32::from(byte) };
    for n in 0..columns {
        let mut sum = i32::from_le_bytes(word(sums, n));
        for k in 0..depth {
            let (left, right) = (word(a, k), word(&b[k], n));
            for j in 0..4 {
                sum = sum.wrapping_add(wide(left[j], signed.0) * wide(right[j], signed.1));
            }
        }
        sums[4 * n..4 * n + 4].copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration of tiles with these bytes of a row and rows.
    fn config(shapes: &[(u8, u8)]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for (t, &(width, rows)) in shapes.iter().enumerate() {
            (bytes[16 + 2 * t], bytes[48 + t]) = (width, rows);
        }
        bytes
    }

    fn tiles(shapes: &[(u8, u8)]) -> Tiles {
        let mut tiles = Tiles::NONE;
        tiles.configure(&config(shapes)).expect("a good configuration");
        tiles
    }

    fn fill(tiles: &mut Tiles, tile: u8, value: &dyn Fn(usize, usize) -> u8) {
        tiles.load(tile, &mut |row, bytes| bytes.iter_mut().enumerate().for_each(|(k, b)| *b = value(row, k))).expect("a shape");
    }

    fn words(tiles: &Tiles, tile: u8) -> Vec<Vec<u32>> {
        let mut all = vec![];
        let mut keep =
            |_: usize, bytes: &[u8]| all.push(bytes.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
        tiles.store(tile, &mut keep).expect("a shape");
        all
    }

    #[test]
    fn products_of_bytes_take_each_sign() {
        for (left, right) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut t = tiles(&[(12, 3), (20, 3), (12, 5)]);
            let (a, b) = (|m: usize, k: usize| (m * 91 + k * 37 + 100) as u8, |k: usize, n: usize| (k * 53 + n * 29 + 120) as u8);
            fill(&mut t, 0, &|m, n| (m * 4 + n) as u8);
            fill(&mut t, 1, &a);
            fill(&mut t, 2, &b);
            let before = words(&t, 0);
            t.multiply(Matrix::Bytes(left, right), 0, 1, 2).expect("shapes fit");
            let wide = |byte: u8, signed: bool| if signed { i64::from(byte as i8) } else { i64::from(byte) };
            for (m, row) in words(&t, 0).iter().enumerate() {
                for (n, &got) in row.iter().enumerate() {
                    let products = (0..20).map(|k| wide(a(m, k), left) * wide(b(k / 4, 4 * n + k % 4), right));
                    assert_eq!(got as i32, before[m][n] as i32 + products.sum::<i64>() as i32, "{left} {right} {m} {n}");
                }
            }
        }
    }

    /// One sum of TDPBF16PS or TDPFP16PS: the sum before, and pairs of factors as bits.
    fn sum_of(kind: Matrix, before: f32, a: &[u16], b: &[u16]) -> f32 {
        let width = 2 * a.len() as u8;
        let mut t = tiles(&[(4, 1), (width, 1), (4, width / 4)]);
        fill(&mut t, 0, &|_, k| before.to_le_bytes()[k]);
        fill(&mut t, 1, &|_, k| a[k / 2].to_le_bytes()[k % 2]);
        fill(&mut t, 2, &|row, k| b[2 * row + k / 2].to_le_bytes()[k % 2]);
        t.multiply(kind, 0, 1, 2).expect("shapes fit");
        f32::from_bits(words(&t, 0)[0][0])
    }

    fn sum(before: f32, a: &[u16], b: &[u16]) -> f32 {
        sum_of(Matrix::Bf16, before, a, b)
    }

    #[test]
    fn sums_of_f16_are_made_in_the_same_order() {
        const ONE: u16 = 0x3c00;
        let sum = |before: f32, a: &[u16], b: &[u16]| sum_of(Matrix::F16, before, a, b);
        // 32768 * 512 is 2^24; odd members keep their ones.
        assert_eq!(sum(0.0, &[0x7800, ONE, 0xf800, ONE], &[0x6000, ONE, 0x6000, ONE]), 2.0);
        assert_eq!(sum((1 << 24) as f32, &[ONE, ONE, ONE, 0], &[ONE; 4]), (1 << 24) as f32 + 4.0);
        // Subnormal factors count; the sum before is f32, and a zero where it is subnormal.
        let tiny = 2f32.powi(-24);
        assert_eq!(sum(f32::from_bits(1), &[1, 0x8001], &[ONE, 1]), tiny - tiny * tiny);
        assert_eq!(sum(1.0, &[0x7c00, 0], &[ONE, ONE]), f32::INFINITY);
        assert!(sum(1.0, &[0x7c00, 0], &[0, ONE]).is_nan() && sum(0.0, &[0x7e00, 0], &[ONE, 0]).is_nan());
    }

    #[test]
    fn sums_of_bf16_are_made_in_the_order_of_the_manual() {
        const ONE: u16 = 0x3f80;
        const BIG: u16 = 0x4b80; // 2^24
        const MINUS: u16 = 0xcb80;
        let big = (1 << 24) as f32;
        // Even members first among themselves: 2^24 and -2^24 leave nothing behind, and the odd ones keep their ones.
        assert_eq!(sum(0.0, &[BIG, ONE, MINUS, ONE], &[ONE; 4]), 2.0);
        // In one chain 2^24 + 1 would lose the ones before they meet.
        assert_eq!(sum(0.0, &[BIG, ONE, ONE, ONE], &[ONE; 4]), big + 2.0);
        // The sum before comes last, when the ones are a three; 2^24 + 3 rounds to even.
        assert_eq!(sum(big, &[ONE, ONE, ONE, 0], &[ONE; 4]), big + 4.0);
        // Subnormal factors, sums before and steps are zeros of their sign.
        assert_eq!(sum(0.0, &[1, 0], &[0x7f00, 0]).to_bits(), 0);
        assert_eq!(sum(f32::from_bits(1), &[ONE, 0], &[0, 0]).to_bits(), 0);
        assert_eq!(sum(0.0, &[0x0080, 0], &[0x3f00, 0]).to_bits(), 0);
        assert_eq!(sum(-0.0, &[0x8080, 0x8000], &[0x3f00, ONE]).to_bits(), 0); // +0 begins the chain of odd members
        // Infinities and numbers that are none.
        assert_eq!(sum(1.0, &[0x7f80, 0], &[ONE, ONE]), f32::INFINITY);
        assert!(sum(1.0, &[0x7f80, 0], &[0, ONE]).is_nan() && sum(0.0, &[0x7fc0, 0], &[ONE, 0]).is_nan());
        assert!(sum(0.0, &[0x7f80, 0xff80], &[ONE, ONE]).is_nan());
    }

    #[test]
    fn wrong_use_is_told() {
        let mut none = Tiles::NONE;
        assert!(none.zero(0).unwrap_err().contains("no tile configuration"));
        let bad = |change: &dyn Fn(&mut [u8; 64])| {
            let mut bytes = config(&[(64, 16)]);
            change(&mut bytes);
            let mut tiles = Tiles::NONE;
            tiles.configure(&bytes).unwrap_err()
        };
        assert!(bad(&|b| b[0] = 2).contains("palette"));
        assert!(bad(&|b| b[1] = 1).contains("start_row"));
        for at in [2, 15, 32, 47, 56, 63] {
            assert!(bad(&|b| b[at] = 1).contains("reserved"), "{at}");
        }
        assert!(bad(&|b| b[16] = 65).contains("64 bytes") && bad(&|b| b[48] = 17).contains("16 rows"));
        assert!(bad(&|b| b[48] = 0).contains("bytes without rows") && bad(&|b| b[17] = 1).contains("64 bytes"));
        let wrong = |shapes: &[(u8, u8)], of: [u8; 3]| tiles(shapes).multiply(Matrix::Bf16, of[0], of[1], of[2]).unwrap_err();
        let good = [(16, 3), (8, 3), (16, 2)];
        for twice in [[0, 0, 1], [0, 1, 0], [0, 1, 1]] {
            assert!(wrong(&good, twice).contains("twice"));
        }
        assert!(wrong(&good, [0, 1, 3]).contains("no shape"));
        assert!(wrong(&[(16, 3), (6, 3), (16, 2)], [0, 1, 2]).contains("multiple of 4"));
        assert!(wrong(&[(12, 3), (8, 3), (16, 2)], [0, 1, 2]).contains("columns"));
        assert!(wrong(&[(16, 4), (8, 3), (16, 2)], [0, 1, 2]).contains("rows than the first factor"));
        assert!(wrong(&[(16, 3), (8, 3), (16, 3)], [0, 1, 2]).contains("groups"));
        let mut t = tiles(&good);
        assert_eq!(t.configuration(), config(&good));
        assert!(t.multiply(Matrix::Bf16, 0, 1, 2).is_ok());
        t.release();
        assert_eq!(t.configuration(), [0; 64]);
    }
}
