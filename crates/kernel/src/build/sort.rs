//! The builder of sorting: each line along the axis is a task with a heap in the result, which needs no other memory.
//!
//! The heap holds the best elements met so far as indices, the worst of them at its root; every further element that is better
//! takes the root's place. In the end the roots are taken out from the last place to the first. Equal keys are told apart by index,
//! so the order is the one of a stable sort. Keys of up to 32 bits lie in the heap beside the indices ([`super::heap`]); others, and compound ones,
//! are read whenever two elements are compared.

use super::heap::{self, Heap};
use super::{Cx, for_each};
use crate::fuse;
use crate::loops::{LoopKind, Space, Stmt};
use infc_ir::compute::Sort;
use infc_ir::scalar::{Binary, Scalar, Unary};
use infc_ir::{DType, Expr};

/// True if the keys can lie in the heap.
pub fn packs(s: &Sort) -> bool {
    s.parts.is_empty() && heap::packs(s.key.dtype(), s.extent)
}

/// One task for each line.
pub fn build(cx: &mut Cx, s: &Sort, packed: bool) {
    let others: Vec<usize> = (0..s.dims.len()).filter(|&a| a != s.axis).collect();
    let dims: Vec<Expr> = others.iter().map(|&a| s.dims[a]).collect();
    let chunk = cx.chunked(&dims, 1);
    let mut axes = vec![Expr::int(0); s.dims.len()];
    others.iter().zip(&chunk.values).for_each(|(&a, &v)| axes[a] = v);
    if packed {
        let body = packed_line(cx, s, &axes);
        cx.body = chunk.wrap(body);
        return;
    }
    let register = |cx: &mut Cx, name: &str| cx.scratch(name, DType::I64, &[1], Space::Reg);
    let line = Line { s, axes, place: register(cx, "place"), child: register(cx, "child"), order: register(cx, "order") };
    let k = s.dims[s.axis];
    if k.is(0) {
        return;
    }
    let (fill, make, rest, take) = (cx.var("fill"), cx.var("make"), cx.var("rest"), cx.var("take"));
    let mut body = vec![Stmt::Alloc { buffer: line.place }, Stmt::Alloc { buffer: line.child }];
    if !s.parts.is_empty() {
        body.push(Stmt::Alloc { buffer: line.order });
    }
    let each = |var: Expr, extent: Expr, body: Vec<Stmt>| for_each(var, extent, LoopKind::Serial, body);
    body.push(each(fill, k, vec![line.set(cx, Scalar::index(fill), Scalar::index(fill))]));
    let half = k.div(Expr::int(2));
    let sift = line.sift(cx, half - 1 - make, Scalar::index(k));
    body.push(each(make, half, sift));

    let candidate = Scalar::index(k + rest);
    let (mut further, better) = line.before(cx, candidate, line.get(cx, Scalar::index(0)));
    let mut then = vec![line.set(cx, Scalar::index(0), candidate)];
    then.extend(line.sift(cx, Expr::int(0), Scalar::index(k)));
    further.push(Stmt::If { cond: better, then, otherwise: vec![] });
    // None if nothing is asked for.
    body.push(each(rest, (s.extent - k) * k.min(Expr::int(1)), further));

    let end = k - 1 - take;
    let (first, last) = (cx.local(), cx.local());
    let mut out = vec![
        Stmt::Let { local: first, value: line.get(cx, Scalar::index(0)) },
        Stmt::Let { local: last, value: line.get(cx, Scalar::index(end)) },
        line.set(cx, Scalar::index(0), Scalar::local(DType::I64, last)),
        line.set(cx, Scalar::index(end), Scalar::local(DType::I64, first)),
    ];
    out.extend(line.sift(cx, Expr::int(0), Scalar::index(end)));
    body.push(each(take, k - 1, out));
    cx.body = chunk.wrap(body);
}

/// One line, of packed keys.
fn packed_line(cx: &mut Cx, s: &Sort, axes: &[Expr]) -> Vec<Stmt> {
    let (line, axis): (Vec<Scalar>, usize) = (axes.iter().map(|&e| Scalar::index(e)).collect(), s.axis);
    let slot = move |n: Scalar| {
        let mut index = line.clone();
        index[axis] = n;
        index
    };
    let packed = |element: Expr| {
        let mut at = axes.to_vec();
        at[s.axis] = element;
        heap::pack(s.key.subst(&at), Scalar::index(element), s.descending)
    };
    let (heap, mut body) = Heap::new(cx, false, slot);
    let k = s.dims[s.axis];
    if k.is(0) {
        return vec![];
    }
    let (fill, make, rest, take) = (cx.var("fill"), cx.var("make"), cx.var("rest"), cx.var("take"));
    let each = |var: Expr, extent: Expr, body: Vec<Stmt>| for_each(var, extent, LoopKind::Serial, body);
    let [zero, size] = [Expr::int(0), k].map(Scalar::index);
    body.push(each(fill, k, vec![heap.set(cx, Scalar::index(fill), packed(fill))]));
    let half = k.div(Expr::int(2));
    let place = Scalar::index(half - 1 - make);
    let moved = heap.get(cx, place);
    let sift = heap.sift(cx, place, moved, size);
    body.push(each(make, half, sift));
    // A further element comes in if it is better than the worst of them; none is if nothing is asked for.
    let candidate = cx.local();
    let value = Scalar::local(DType::I64, candidate);
    let root = heap.get(cx, zero);
    let then = heap.sift(cx, zero, value, size);
    let further =
        vec![Stmt::Let { local: candidate, value: packed(k + rest) }, Stmt::If { cond: value.lt(root), then, otherwise: vec![] }];
    body.push(each(rest, (s.extent - k) * k.min(Expr::int(1)), further));
    let end = Scalar::index(k - 1 - take);
    let last = cx.local();
    let mut out = vec![Stmt::Let { local: last, value: heap.get(cx, end) }, heap.set(cx, end, heap::unpack(root))];
    out.extend(heap.sift(cx, zero, Scalar::local(DType::I64, last), end));
    body.push(each(take, k - 1, out));
    let first = heap.set(cx, zero, heap::unpack(root));
    body.push(Stmt::If { cond: zero.lt(size), then: vec![first], otherwise: vec![] });
    body
}

/// What the parts of the nest share.
struct Line<'a> {
    s: &'a Sort,
    /// The line: values of all axes but the one sorted along.
    axes: Vec<Expr>,
    place: u32,
    child: u32,
    /// 0 while the parts of two keys are equal, 1 if the first key comes before, else 2.
    order: u32,
}

impl Line<'_> {
    fn slot(&self, n: Scalar) -> Vec<Scalar> {
        let mut index: Vec<Scalar> = self.axes.iter().map(|&e| Scalar::index(e)).collect();
        index[self.s.axis] = n;
        index
    }
    fn get(&self, cx: &Cx, n: Scalar) -> Scalar {
        Scalar::read(DType::I64, cx.out() as usize, self.slot(n))
    }
    fn set(&self, cx: &Cx, n: Scalar, value: Scalar) -> Stmt {
        Stmt::Store { buffer: cx.out(), index: self.slot(n), value }
    }

    fn key(&self, element: Scalar, parts: &[Expr]) -> Scalar {
        let index: Vec<Scalar> = self.slot(element).into_iter().chain(parts.iter().map(|&e| Scalar::index(e))).collect();
        fuse::at(self.s.key, &index).expect("a key is read at its axes")
    }

    /// Statements, and then whether element `a` comes before `b`.
    fn before(&self, cx: &mut Cx, a: Scalar, b: Scalar) -> (Vec<Stmt>, Scalar) {
        let less = |x: Scalar, y: Scalar| if self.s.descending { below(y, x) } else { below(x, y) };
        let lower = a.lt(b);
        if self.s.parts.is_empty() {
            let (x, y) = (self.key(a, &[]), self.key(b, &[]));
            let not_more = Scalar::unary(Unary::Not, less(y, x));
            return (vec![], less(x, y).or(not_more.and(lower)));
        }
        let at = [Expr::int(0)];
        let number = Scalar::index;
        let parts = cx.vars(&["part"], self.s.parts.len());
        let (x, y) = (self.key(a, &parts), self.key(b, &parts));
        let found = Scalar::select(
            less(x, y),
            number(Expr::int(1)),
            Scalar::select(less(y, x), number(Expr::int(2)), number(Expr::int(0))),
        );
        let open = cx.at(self.order, &at).eq_to(number(Expr::int(0)));
        let mut compare = vec![Stmt::If { cond: open, then: vec![cx.put(self.order, &at, found)], otherwise: vec![] }];
        for (&v, &e) in parts.iter().zip(&self.s.parts).rev() {
            compare = vec![for_each(v, e, LoopKind::Serial, compare)];
        }
        compare.insert(0, cx.put(self.order, &at, number(Expr::int(0))));
        let order = cx.at(self.order, &at);
        (compare, order.eq_to(number(Expr::int(1))).or(order.eq_to(number(Expr::int(0))).and(lower)))
    }

    /// Brings the element at `root` down to where it belongs in a heap of `size`.
    fn sift(&self, cx: &mut Cx, root: Expr, size: Scalar) -> Vec<Stmt> {
        let at = [Expr::int(0)];
        let (place, child) = (cx.at(self.place, &at), cx.at(self.child, &at));
        let (one, two) = (Scalar::index(1), Scalar::index(2));
        let right = child + one;
        let (mut pick, later) = self.before(cx, self.get(cx, child), self.get(cx, right));
        pick.push(Stmt::If { cond: later, then: vec![cx.put(self.child, &at, right)], otherwise: vec![] });
        let (upper, lower) = (cx.local(), cx.local());
        let local = |n: u32| Scalar::local(DType::I64, n);
        let (compare, wrong) = self.before(cx, local(upper), local(lower));
        let swap = vec![
            self.set(cx, place, local(lower)),
            self.set(cx, child, local(upper)),
            cx.put(self.place, &at, child),
            cx.put(self.child, &at, child * two + one),
        ];
        let mut body = vec![
            Stmt::If { cond: right.lt(size), then: pick, otherwise: vec![] },
            Stmt::Let { local: upper, value: self.get(cx, place) },
            Stmt::Let { local: lower, value: self.get(cx, child) },
        ];
        body.extend(compare);
        body.push(Stmt::If { cond: wrong, then: swap, otherwise: vec![cx.put(self.child, &at, size)] });
        vec![
            cx.put(self.place, &at, Scalar::index(root)),
            cx.put(self.child, &at, Scalar::index(root * 2 + 1)),
            Stmt::While { cond: child.lt(size), body },
        ]
    }
}

/// `a < b`, with NaN above all numbers.
pub fn below(a: Scalar, b: Scalar) -> Scalar {
    let less = Scalar::binary(Binary::Lt, a, b);
    if !a.dtype().is_float() {
        return less;
    }
    let (nan, other) = (Scalar::unary(Unary::IsNan, b), Scalar::unary(Unary::IsNan, a));
    less.or(nan.and(Scalar::unary(Unary::Not, other)))
}
