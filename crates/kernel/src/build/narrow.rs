//! Constant matrices that stay narrow on machines with many threads: how they lie there, and how their elements become f32.
//!
//! What is narrow, and that it becomes the number that it was, is said in [`super::stored`]. Each column is cut along k in *vectors* of 16 bytes, which a thread reads
//! with one instruction. [`COLUMNS`] neighbouring columns have their vectors side by side, then come the next ones along k: neighbouring threads, which take neighbouring columns, read neighbouring
//! bytes. Behind all vectors lie *heads*, scales of blocks and zero points that have a row of their own, those of neighbouring columns side by side as well. Both are filled up with zeros to whole
//! vectors and columns, and a head of zeros makes zeros.
//!
//! An integer becomes a float without a conversion: its bits are put into the mantissa of a power of two, where they stand for themselves, and the power is subtracted together with
//! the zero point. Both are exact; what is multiplied with the scale is the same whole number as everywhere.

use super::contract::Factor;
use super::stored::{Form, Found, LOW, Stored, Zeros};
use super::{Operand, pack};
use infc_ir::compute::{Compute, Step};
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor};

/// Columns whose vectors are side by side.
pub const COLUMNS: usize = 16;
/// Words of a vector.
pub const WORDS: usize = 4;

/// A constant matrix that is stored narrow.
#[derive(Clone, Debug, PartialEq)]
pub struct Narrow {
    /// How.
    pub stored: Stored,
    /// The dims of the tensor that count columns and products. All others have one element.
    pub dims: [usize; 2],
    /// Products, and vectors of a column.
    depth: usize,
    vectors: usize,
    /// All words.
    pub words: Tensor,
}

impl Stored {
    /// Weights of a word of 32 bits, whatever they are.
    pub fn per_word(self) -> usize {
        32 / self.bits()
    }
    /// Weights of a vector.
    pub fn per_vector(self) -> usize {
        32 * WORDS / self.bits()
    }
}

impl Narrow {
    /// Columns that were found to be narrow, which lie along these dims of their tensor.
    pub fn new(found: &Found, dims: [usize; 2]) -> Narrow {
        let (stored, depth) = (found.stored, found.depth);
        let values = found.columns.to_vec::<f32>();
        let (vectors, columns) = (depth.div_ceil(stored.per_vector()), values.len() / depth.max(1));
        let made = Narrow { stored, dims, depth, vectors, words: Tensor::zeros(DType::U32, [0]) };
        let tiles = columns.div_ceil(COLUMNS);
        let [of_vectors, of_heads] = [vectors * WORDS, made.blocks() * stored.head()].map(|n| n * COLUMNS);
        let mut words = vec![0u32; tiles * (of_vectors + of_heads)];
        let (mut vector_words, mut head_words) = words.split_at_mut(tiles * of_vectors);
        // Columns know nothing of each other. Large models have very many.
        let each = tiles.div_ceil(pack::threads(values.len()).max(1)).max(1);
        std::thread::scope(|scope| {
            for (first, part) in values.chunks((each * COLUMNS * depth).max(1)).enumerate() {
                let count = part.len().div_ceil(COLUMNS * depth);
                let (v, h);
                (v, vector_words) = vector_words.split_at_mut(count * of_vectors);
                (h, head_words) = head_words.split_at_mut(count * of_heads);
                let mut work = move || fill(found, (part, first * each * COLUMNS), vectors, (v, h));
                if count == tiles { work() } else { drop(scope.spawn(work)) }
            }
        });
        Narrow { words: Tensor::from_vec([words.len()], words), ..made }
    }

    /// Blocks of a column, up to the end of its last vector.
    fn blocks(&self) -> usize {
        (self.vectors * self.stored.per_vector()).checked_div(self.stored.block).unwrap_or(1)
    }

    /// Columns, up to whole tiles of them.
    fn columns(&self) -> usize {
        let tile = self.vectors * COLUMNS * WORDS + self.blocks() * self.stored.head() * COLUMNS;
        self.words.len() / tile.max(1) * COLUMNS
    }

    /// The place of a word: number `word` of a vector of a column.
    pub fn word(&self, column: Expr, vector: Expr, word: Expr) -> Expr {
        let columns = Expr::from(COLUMNS);
        let vectors = column.div(columns) * self.vectors as i64 + vector;
        (vectors * COLUMNS as i64 + column.rem(columns)) * WORDS as i64 + word
    }

    /// The place of a word of the head of a block.
    pub fn head_at(&self, column: Expr, block: Expr, row: usize) -> Expr {
        let (columns, blocks) = (Expr::from(COLUMNS), self.blocks() as i64);
        let row = (column.div(columns) * blocks + block) * self.stored.head() as i64 + row as i64;
        row * COLUMNS as i64 + column.rem(columns) + (self.columns() * self.vectors * WORDS) as i64
    }

    /// The block of product `k`.
    pub fn block_of(&self, k: Expr) -> Expr {
        if self.stored.block == 0 { Expr::int(0) } else { k.div(Expr::from(self.stored.block)) }
    }

    /// The head of a block, of its words by their rows. `name` gives a value a name.
    pub fn head(&self, read: &dyn Fn(usize) -> Scalar, name: &mut dyn FnMut(Scalar) -> Scalar) -> Head {
        let mut head = Head { scale: None, zero: None };
        if self.stored.head() == 0 {
            return head;
        }
        let word = name(read(0));
        let integer = matches!(self.stored.form, Form::Int(_));
        let bits = |mask: u32| Scalar::binary(Binary::And, word, number(mask));
        (head.scale, head.zero) = match self.stored.zeros {
            Zeros::WithScales if integer => {
                let zero =
                    Scalar::binary(Binary::Or, bits(LOW), number(power(23).to_bits())).bitcast(DType::F32) - float(power(23));
                (Some(name(bits(!LOW).bitcast(DType::F32))), Some(name(zero)))
            }
            Zeros::Row if integer => {
                let zero = read(1).bitcast(DType::F32);
                (Some(word.bitcast(DType::F32)), Some(name(zero)))
            }
            _ => (Some(word.bitcast(DType::F32)), None),
        };
        head
    }

    /// Member `j` of a word, as f32.
    pub fn member(&self, word: Scalar, j: usize, head: &Head) -> Scalar {
        let (bits, last) = (self.stored.bits(), self.stored.per_word() - 1);
        let and = |s: Scalar, mask: u32| Scalar::binary(Binary::And, s, number(mask));
        let right = |by: usize| if by == 0 { word } else { Scalar::binary(Binary::Shr, word, number(by as u32)) };
        let left = |by: usize| if by == 0 { word } else { Scalar::binary(Binary::Shl, word, number(by as u32)) };
        let scaled = |s: Scalar| head.scale.map_or(s, |scale| s * scale);
        match self.stored.form {
            Form::Int(_) => {
                // As many as fit a mantissa are used where they are.
                let together = 23 / bits;
                let (moved, place) = (right(j / together * together * bits), j % together * bits);
                let one = power(23 - place as i32);
                let whole = Scalar::binary(Binary::Or, and(moved, ((1 << bits) - 1) << place), number(one.to_bits()));
                let zero = match (head.zero, self.stored.middle()) {
                    (Some(zero), _) => float(one) + zero,
                    (None, middle) => float(one + middle.unwrap_or(0.0) as f32),
                };
                scaled(whole.bitcast(DType::F32) - zero)
            }
            Form::Float8(mantissa) => {
                // The sign at its place, exponent and mantissa behind the places that only larger exponents need.
                let by = Scalar::number(DType::I32, f64::from(mantissa + 1));
                let apart = Scalar::binary(Binary::Shr, left(24 - 8 * j).bitcast(DType::I32), by).bitcast(DType::U32);
                scaled(and(apart, 0x8000_0000 | 0x7f << (23 - mantissa)).bitcast(DType::F32))
            }
            Form::Bf16 | Form::Plain(DType::BF16) if j == 0 => left(16).bitcast(DType::F32),
            Form::Bf16 | Form::Plain(DType::BF16) => and(word, 0xffff_0000).bitcast(DType::F32),
            Form::Plain(dtype) => {
                let code = right(bits * j);
                let code = if j == last { code } else { and(code, (1 << bits) - 1) };
                code.cast(if bits == 8 { DType::U8 } else { DType::U16 }).bitcast(dtype).cast(DType::F32)
            }
        }
    }
}

/// Puts columns from number `first` on, where tiles begin, into the words of their vectors and heads.
fn fill(found: &Found, (values, first): (&[f32], usize), vectors: usize, (words, heads): (&mut [u32], &mut [u32])) {
    let (stored, depth) = (found.stored, found.depth);
    let own = if stored.block == 0 { depth } else { stored.block };
    let per_column = heads.len() / values.len().div_ceil(COLUMNS * depth) / COLUMNS;
    for (c, column) in values.chunks(depth).enumerate() {
        let (tile, place) = (c / COLUMNS, c % COLUMNS);
        for (b, part) in column.chunks(own).enumerate() {
            let range = found.range((first + c) * column.len().div_ceil(own) + b);
            for (row, word) in found.head(range).into_iter().take(stored.head()).enumerate() {
                heads[(tile * per_column + b * stored.head() + row) * COLUMNS + place] = word;
            }
            for (k, &v) in part.iter().enumerate() {
                let k = b * own + k;
                let vector = (tile * vectors + k / stored.per_vector()) * COLUMNS + place;
                let word = vector * WORDS + k % stored.per_vector() / stored.per_word();
                words[word] |= found.code(v, range) << (k % stored.per_word() * stored.bits());
            }
        }
    }
}

/// What the weights of a block of a column have in common.
pub struct Head {
    scale: Option<Scalar>,
    /// Their zero point, where that is no constant.
    zero: Option<Scalar>,
}

fn number(n: u32) -> Scalar {
    Scalar::number(DType::U32, f64::from(n))
}

fn float(v: f32) -> Scalar {
    Scalar::float(DType::F32, f64::from(v))
}

fn power(exponent: i32) -> f32 {
    f64::from(exponent).exp2() as f32
}

/// Where a factor of a product takes its elements of a narrow matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// The output axis of its columns, which the other factor has not.
    pub n: usize,
    /// The product at which its sums begin, by axes of the batch.
    pub start: Expr,
}

/// How factor `which` of a contraction takes a matrix with these dims for columns and products, if it does so along all axes of the reduction, one behind the other, with nothing else of the step
/// reading it.
pub(crate) fn taken(c: &Compute, f: &[Factor; 2], which: usize, [columns, products]: [usize; 2]) -> Option<Taken> {
    let (r, rank) = (c.reduction.as_ref()?, c.dims.len());
    let (own, other) = (&f[which], &f[1 - which]);
    let mut reads = 0;
    for s in Step::Compute(c.clone()).scalars() {
        s.visit(&mut |n| reads += usize::from(matches!(n.kind(), Kind::Read { source, .. } if *source as usize == own.source)));
    }
    if own.scalar != own.read || reads != 1 || r.body.dtype() != DType::F32 {
        return None;
    }
    let Node::Var(n) = own.index[columns].node() else { return None };
    let n = *n as usize;
    let moves = |f: &Factor, a: usize| f.index.iter().filter(|e| e.uses_var(a as u32)).count();
    if n >= rank || moves(own, n) != 1 || moves(other, n) != 0 {
        return None;
    }
    // In terms of all products, flattened.
    let flat = Expr::delinearise(Expr::var(rank), &r.axes);
    let map: Vec<Expr> = (0..rank).map(Expr::var).chain(flat).collect();
    let mut ranges = Ranges::of_axes(&c.dims);
    ranges.extent(rank as u32, Expr::product(r.axes.iter().copied()));
    let (step, start) = own.index[products].subst(&map).simplify(&ranges).affine_in(rank as u32)?;
    (step == 1).then_some(Taken { n, start })
}

impl Taken {
    /// Do sums always begin at a multiple of so many products?
    pub fn at_multiple(&self, of: usize) -> bool {
        self.start.div_exact(Expr::from(of)).is_some()
    }
}

/// The factor of a contraction that is a narrow matrix, and how it is taken. What stands behind a sum's last product in a vector is beyond the matrix: a number, and data is 0 there.
pub(crate) fn factor<'a>(c: &Compute, f: &[Factor; 2], operands: &'a [Operand]) -> Option<(usize, &'a Narrow, Taken)> {
    (0..2).find_map(|k| {
        let narrow = operands[f[k].source].narrow.as_deref()?;
        let depth = c.reduction.as_ref()?.axes.iter().map(|e| e.known()).product::<Option<i64>>()? as usize;
        let whole = depth == narrow.depth || depth.is_multiple_of(narrow.stored.per_vector());
        whole.then_some(())?;
        Some((k, narrow, taken(c, f, k, narrow.dims)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(stored: Stored) -> Narrow {
        Narrow { stored, dims: [1, 0], depth: 0, vectors: 0, words: Tensor::zeros(DType::U32, [0]) }
    }

    #[test]
    fn every_integer_at_every_place_is_itself_times_its_scale() {
        let scale = 0.137f32;
        for bits in [2usize, 4, 8] {
            for (zeros, zero) in [(Zeros::Middle, (1 << (bits - 1)) as f32), (Zeros::Row, 3.0), (Zeros::Row, -200.0)] {
                let m = matrix(Stored { form: Form::Int(bits), block: 0, zeros });
                let head = Head { scale: Some(float(scale)), zero: (zeros == Zeros::Row).then(|| float(zero)) };
                for (j, u) in (0..32 / bits).flat_map(|j| (0..1u32 << bits).map(move |u| (j, u))) {
                    // Neighbours have all bits.
                    let word = !(((1 << bits) - 1) << (j * bits)) | u << (j * bits);
                    let got = m.member(number(word), j, &head).as_float().expect("a constant") as f32;
                    assert_eq!(got.to_bits(), ((u as f32 - zero) * scale).to_bits(), "{bits} bits, {u} at {j}");
                }
            }
        }
    }

    #[test]
    fn zero_points_in_scales_are_taken_out() {
        let m = matrix(Stored { form: Form::Int(4), block: 0, zeros: Zeros::WithScales });
        let word = 1.5f32.to_bits() | 9;
        let head = m.head(&|_| number(word), &mut |value| value);
        let value = |s: Option<Scalar>| s.and_then(Scalar::as_float);
        assert_eq!((value(head.scale), value(head.zero)), (Some(1.5), Some(9.0)));
        assert_eq!(m.member(number(0xf0), 1, &head).as_float(), Some(9.0));
    }

    #[test]
    fn floats_of_16_bits_are_themselves() {
        for code in (0..=u16::MAX).step_by(97) {
            let word = number(u32::from(code) << 16 | 0x1234);
            let of = |form: Form| {
                let m = matrix(Stored { form, block: 0, zeros: Zeros::Middle });
                m.member(word, 1, &Head { scale: None, zero: None }).as_float().expect("a constant")
            };
            let same = |got: f64, want: f32| got.is_nan() && want.is_nan() || got == f64::from(want);
            assert!(same(of(Form::Bf16), f32::from_bits(u32::from(code) << 16)), "{code}");
            assert!(same(of(Form::Plain(DType::F16)), half::f16::from_bits(code).to_f32()), "{code}");
        }
    }
}
