//! A heap in the result of a kernel: places of a line hold packed elements, each one number that has its key above its number in the line.
//! One comparison orders two of them, equal keys by their number.

use super::Cx;
use crate::loops::{Space, Stmt};
use infc_ir::scalar::{Binary, Scalar, Unary};
use infc_ir::{DType, Expr};

/// True if keys of `dtype`, f32 or integers of as many bits, can be packed with the numbers of so many elements. A line of 2^32 elements would have 32 GiB of positions, so a size that only
/// the data tells is taken to be smaller.
pub fn packs(dtype: DType, elements: Expr) -> bool {
    let fits = dtype == DType::F32 || (dtype.int_range().is_some() && dtype.bytes() <= 4);
    fits && elements.known().is_none_or(|n| n < 1 << 32)
}

/// The `element` (i64) with its `key`; what comes first is the least. NaN is above all numbers.
pub fn pack(key: Scalar, element: Scalar, descending: bool) -> Scalar {
    let int = |n: i64| Scalar::int(DType::I64, n);
    let rank = if key.dtype() == DType::F32 {
        // Bits as they are order what is not negative; those of negative numbers fall, and -0 is 0.
        let bits = key.bitcast(DType::I32).cast(DType::I64);
        let number = Scalar::select(bits.lt(int(0)), int(i64::from(i32::MIN)) - bits, bits);
        Scalar::select(Scalar::unary(Unary::IsNan, key), int(i64::from(i32::MAX)), number)
    } else {
        key.cast(DType::I64)
    };
    let rank = if descending { int(-1) - rank } else { rank };
    Scalar::binary(Binary::Shl, rank, int(32)) + element
}

/// The element that was packed.
pub fn unpack(packed: Scalar) -> Scalar {
    Scalar::binary(Binary::And, packed, Scalar::int(DType::I64, u32::MAX.into()))
}

/// A heap whose place `n` is some place of a line of the result.
pub struct Heap {
    /// The index of a place in the result.
    slot: Box<dyn Fn(Scalar) -> Vec<Scalar>>,
    /// Is the least at the root, or the largest?
    least: bool,
    hole: u32,
    child: u32,
}

impl Heap {
    /// A heap, and what allocates its registers.
    pub fn new(cx: &mut Cx, least: bool, slot: impl Fn(Scalar) -> Vec<Scalar> + 'static) -> (Heap, Vec<Stmt>) {
        let mut register = |name: &str| cx.scratch(name, DType::I64, &[1], Space::Reg);
        let (hole, child) = (register("hole"), register("child"));
        (Heap { slot: Box::new(slot), least, hole, child }, [hole, child].map(|buffer| Stmt::Alloc { buffer }).into())
    }
    /// What is at a place.
    pub fn get(&self, cx: &Cx, place: Scalar) -> Scalar {
        Scalar::read(DType::I64, cx.out() as usize, (self.slot)(place))
    }
    /// Puts `value` at a place, whatever the order.
    pub fn set(&self, cx: &Cx, place: Scalar, value: Scalar) -> Stmt {
        Stmt::Store { buffer: cx.out(), index: (self.slot)(place), value }
    }
    /// Does `a` belong above `b`?
    fn above(&self, a: Scalar, b: Scalar) -> Scalar {
        if self.least { a.lt(b) } else { b.lt(a) }
    }
    /// Puts `value`, which is read once, where it belongs below `root` in a heap of `size` places; what is at `root` goes.
    pub fn sift(&self, cx: &mut Cx, root: Scalar, value: Scalar, size: Scalar) -> Vec<Stmt> {
        let at = [Expr::int(0)];
        let (hole, child) = (cx.at(self.hole, &at), cx.at(self.child, &at));
        let [one, two] = [1, 2].map(Scalar::index);
        let [now, left, right, best, pick] = [(); 5].map(|()| cx.local());
        let local = |n: u32| Scalar::local(DType::I64, n);
        let name = |local: u32, value: Scalar| Stmt::Let { local, value };
        let (a, b) = (local(left), local(right));
        // The only child stands for the other one.
        let other = (child + one).min(size - one);
        let down = vec![
            self.set(cx, hole, local(best)),
            cx.put(self.hole, &at, local(pick)),
            cx.put(self.child, &at, local(pick) * two + one),
        ];
        let body = vec![
            name(left, self.get(cx, child)),
            name(right, self.get(cx, other)),
            name(best, if self.least { a.min(b) } else { a.max(b) }),
            name(pick, Scalar::select(self.above(b, a), child + one, child)),
            Stmt::If { cond: self.above(local(best), local(now)), then: down, otherwise: vec![cx.put(self.child, &at, size)] },
        ];
        vec![
            name(now, value),
            cx.put(self.hole, &at, root),
            cx.put(self.child, &at, root * two + one),
            Stmt::While { cond: child.lt(size), body },
            self.set(cx, hole, local(now)),
        ]
    }
}
