//! Sorting and selection as steps: what has the size of its bound, a count in front, and symbols set from the counts.

use super::{Id, Item, Lower, Memory, host, tensor_type};
use infc_ir::compute::{Choice, Compute, Filter, Prefix, Reducer, Scatter, Sort, Step};
use infc_ir::graph::Node;
use infc_ir::op::Routine;
use infc_ir::scalar::{Binary, Scalar, Unary};
use infc_ir::{DType, Expr, TensorType};

/// A node under lowering.
struct At<'a> {
    describe: &'a str,
    name: &'static str,
    items: &'a mut Vec<Item>,
}

fn var(n: usize) -> Expr {
    Expr::var(n)
}

fn vars(n: usize) -> Vec<Expr> {
    (0..n).map(Expr::var).collect()
}

fn scalars(index: &[Expr]) -> Vec<Scalar> {
    index.iter().map(|&e| Scalar::index(e)).collect()
}

/// Element `at` of a vector of `i64`.
fn number(source: usize, at: impl Into<Expr>) -> Scalar {
    Scalar::read_at(DType::I64, source, &[at.into()])
}

/// Its value as something that is compared.
fn key(x: Scalar) -> Scalar {
    if x.dtype().is_float() && x.dtype() != DType::F64 { x.cast(DType::F32) } else { x }
}

/// The quotient and remainder of a number that is not negative.
fn divided(x: Scalar, by: Expr) -> (Scalar, Scalar) {
    let by = Scalar::index(by);
    (x / by, Scalar::binary(Binary::Rem, x, by))
}

impl Lower<'_> {
    /// Lowers a routine; maps the results that the node has.
    pub(super) fn routine(&mut self, n: Node, routine: Routine, describe: &str, items: &mut Vec<Item>) -> Result<(), String> {
        let node = self.graph.node(n);
        let outs: Vec<TensorType> = node.outputs.iter().map(|&v| tensor_type(self.graph.ty(v))).collect::<Result<_, _>>()?;
        let inputs: Vec<Option<Id>> = node.inputs.clone().into_iter().map(|v| v.and_then(|v| self.get(v))).collect();
        let mut inputs = inputs;
        let mut table = None;
        if node.inputs.iter().flatten().any(|&v| self.graph.ty(v).dtype() == Some(DType::String)) {
            if !matches!(routine, Routine::Compress { .. } | Routine::Unique { .. }) {
                return Err("of strings has no compiled form; the interpreter runs it".into());
            }
            table = Some(self.as_places(n, &mut inputs, &mut host::At { describe, items })?);
        }
        let operand = |k: usize| inputs.get(k).copied().flatten();
        let x = operand(0).ok_or("its operand is no tensor")?;
        let mut at = At { describe, name: node.op.name(), items };
        let results = match routine {
            Routine::TopK { axis, largest } => {
                let k = operand(1).ok_or("k is no tensor")?;
                self.top_k(x, k, axis, largest, &outs[0], &mut at)?
            }
            Routine::NonZero => vec![self.non_zero(x, &outs[0], &mut at)?],
            Routine::Compress { axis } => {
                let condition = operand(1).ok_or("the condition is no tensor")?;
                vec![self.compress(x, condition, axis, &outs[0], &mut at)?]
            }
            Routine::Unique { axis, sorted } => {
                let by = if table.is_some() { self.ranks(n, at.describe, at.items)? } else { x };
                self.unique([x, by], axis, sorted, &outs[0], &mut at)?
            }
            Routine::NonMaxSuppression { center } => {
                // An empty tensor stands for one that is left out.
                let given = |k: usize| operand(k).filter(|&t| !self.work.tensor(t).ty.dims.iter().any(|d| d.is(0)));
                let limits = [given(2), given(3), given(4)];
                let scores = operand(1).ok_or("the scores are no tensor")?;
                vec![self.non_max_suppression([x, scores], limits, center, &outs[0], &mut at)?]
            }
        };
        for (&v, id) in node.outputs.iter().zip(results) {
            match &table {
                Some((table, _)) if host::flat(self.graph.ty(v)).is_none() => {
                    self.picked_strings(id, table, v, &mut host::At { describe, items })?
                }
                _ => drop(self.map.insert(v, id)),
            }
        }
        Ok(())
    }

    /// Numbers in the order of the strings that operand 0 is.
    fn ranks(&mut self, n: Node, describe: &str, items: &mut Vec<Item>) -> Result<Id, String> {
        let v = self.graph.node(n).inputs[0].ok_or("its operand is missing")?;
        let dims = tensor_type(self.graph.ty(v))?.dims;
        let from = self.arg(v).ok_or("its operand has no value")?;
        let ranks = self.work.add(TensorType::new(DType::I64, dims), Memory::Temp, "");
        self.call(infc_host::Routine::Rank, vec![Some(from)], vec![host::Arg::Tensor(ranks)], &mut host::At { describe, items });
        Ok(ranks)
    }

    fn step(&mut self, at: &mut At, step: Step, sources: &[Id]) -> Result<Id, String> {
        let sources: Vec<Option<Id>> = sources.iter().copied().map(Some).collect();
        self.task(step, &sources, at.name, at.describe, at.items)
    }

    fn map_step(&mut self, at: &mut At, dims: &[Expr], sources: &[Id], value: Scalar) -> Result<Id, String> {
        self.step(at, Step::Compute(Compute { dims: dims.to_vec(), reduction: None, value }), sources)
    }

    /// Sets the symbol that a size is from the count in front of `positions`, which is at most `bound`.
    fn count(&mut self, at: &mut At, size: Expr, positions: Id, bound: Expr) {
        if !self.unknown(&[infc_ir::Type::tensor(DType::I64, [size])]).is_empty() {
            self.bind(size, positions, Expr::int(0), Some(bound), at.items);
        }
    }

    /// All elements in one row.
    fn flat(&mut self, x: Id) -> Id {
        let ty = self.work.tensor(x).ty.clone();
        if ty.rank() == 1 {
            return x;
        }
        let flat = TensorType::new(ty.dtype, [Expr::product(ty.dims.iter().copied())]);
        self.work.add(flat, Memory::Alias { of: x, offset: Expr::int(0) }, "")
    }

    fn top_k(&mut self, x: Id, k: Id, axis: usize, largest: bool, out: &TensorType, at: &mut At) -> Result<Vec<Id>, String> {
        let (ty, k_ty) = (self.work.tensor(x).ty.clone(), self.work.tensor(k).ty.clone());
        if !self.unknown(&[infc_ir::Type::Tensor(out.clone())]).is_empty() {
            let zero = vec![Expr::int(0); k_ty.rank()];
            let value = Scalar::read_at(k_ty.dtype, 0, &zero).cast(DType::I64);
            let asked = self.map_step(at, &[Expr::int(1)], &[k], value)?;
            self.count(at, out.dims[axis], asked, ty.dims[axis]);
        }
        let axes = vars(ty.rank());
        let sort = Sort {
            dims: out.dims.clone(),
            axis,
            extent: ty.dims[axis],
            parts: vec![],
            key: key(Scalar::read_at(ty.dtype, 0, &axes)),
            descending: largest,
        };
        let order = self.step(at, Step::Sort(sort), &[x])?;
        let mut index = scalars(&axes);
        index[axis] = Scalar::read_at(DType::I64, 1, &axes);
        let values = self.map_step(at, &out.dims, &[x, order], Scalar::read(ty.dtype, 0, index))?;
        Ok(vec![values, order])
    }

    fn non_zero(&mut self, x: Id, out: &TensorType, at: &mut At) -> Result<Id, String> {
        let ty = self.work.tensor(x).ty.clone();
        let f = Filter::new(&ty.dims, |axes| {
            let value = Scalar::read_at(ty.dtype, 0, axes);
            Scalar::binary(Binary::Ne, value, Scalar::number(ty.dtype, 0.0))
        });
        let bound = Expr::product(ty.dims.iter().copied());
        let found = self.step(at, Step::Filter(f), &[x])?;
        self.count(at, out.dims[1], found, bound);
        // Coordinates along all axes, of which each row of the result takes one.
        let mut rest = number(0, var(1) + 1);
        let mut rows = vec![];
        for &d in ty.dims.iter().rev() {
            let (outer, inner) = divided(rest, d);
            rows.insert(0, inner);
            rest = outer;
        }
        let last = rows.pop().unwrap_or(Scalar::index(0));
        let value = rows
            .into_iter()
            .enumerate()
            .rfold(last, |other, (k, row)| Scalar::select(Scalar::index(var(0)).eq_to(Scalar::index(k)), row, other));
        self.map_step(at, &out.dims, &[found], value)
    }

    fn compress(&mut self, x: Id, condition: Id, axis: Option<usize>, out: &TensorType, at: &mut At) -> Result<Id, String> {
        let x = if axis.is_none() { self.flat(x) } else { x };
        let (ty, extent, axis) = (self.work.tensor(x).ty.clone(), self.work.tensor(condition).ty.dims[0], axis.unwrap_or(0));
        let f = Filter::new(&[extent], |axes| Scalar::read_at(DType::Bool, 0, axes));
        let found = self.step(at, Step::Filter(f), &[condition])?;
        self.count(at, out.dims[axis], found, extent);
        self.picked(x, axis, found, 1, &ty, out, at)
    }

    /// Slices of `x` along `axis` at the places in the vector `list`, which begins with `skip` others.
    #[allow(clippy::too_many_arguments, reason = "two tensors, and what is done with them")]
    fn picked(
        &mut self,
        x: Id,
        axis: usize,
        list: Id,
        skip: i64,
        ty: &TensorType,
        out: &TensorType,
        at: &mut At,
    ) -> Result<Id, String> {
        let axes = vars(out.rank());
        let mut index = scalars(&axes);
        index[axis] = number(1, axes[axis] + skip);
        self.map_step(at, &out.dims, &[x, list], Scalar::read(ty.dtype, 0, index))
    }

    /// The different slices of `x`, which are compared by the elements of `by`, of the same dims.
    fn unique(
        &mut self,
        [x, by]: [Id; 2],
        axis: Option<usize>,
        sorted: bool,
        out: &TensorType,
        at: &mut At,
    ) -> Result<Vec<Id>, String> {
        let [x, by] = if axis.is_none() { [x, by].map(|t| self.flat(t)) } else { [x, by] };
        let (ty, axis) = (self.work.tensor(by).ty.clone(), axis.unwrap_or(0));
        let extent = ty.dims[axis];
        let parts: Vec<Expr> = ty.dims.iter().enumerate().filter(|&(a, _)| a != axis).map(|(_, &d)| d).collect();
        // The slice that variable 0 numbers, element by element.
        let slice = |e: Scalar| {
            let mut index: Vec<Scalar> = scalars(&(1..ty.rank()).map(var).collect::<Vec<_>>());
            index.insert(axis, e);
            key(Scalar::read(ty.dtype, 0, index))
        };
        let sort = Sort {
            dims: vec![extent],
            axis: 0,
            extent,
            parts: parts.clone(),
            key: slice(Scalar::index(var(0))),
            descending: false,
        };
        let order = self.step(at, Step::Sort(sort), &[by])?;
        // 1 where a run of equal slices begins. The sort is stable: it begins with its first appearance.
        let of = |e: Expr| slice(number(1, e));
        let (this, last) = (of(var(0)), of((var(0) - 1).max(Expr::int(0))));
        let differs = crate::build::sort::below(last, this).cast(DType::I64);
        let first = Scalar::index(Expr::int(1) - var(0).min(Expr::int(1)));
        let starts = match parts.is_empty() {
            true => self.map_step(at, &[extent], &[by, order], first.max(differs))?,
            false => {
                let c = Compute::reduce(&[extent], &parts, Reducer::Max, |_, _| differs, |_, any| first.max(any));
                self.step(at, Step::Compute(c), &[by, order])?
            }
        };
        let list = [extent];
        let running = |combine: Binary, body: Scalar| {
            let (dims, init) = (list.to_vec(), Scalar::index(0));
            Step::Prefix(Prefix { dims, axis: 0, reverse: false, exclusive: false, combine, init, body })
        };
        let put = |dims: Expr, index: Scalar, value: Scalar, combine: Option<Binary>| {
            let (dims, base, updates) = (vec![dims], Scalar::index(0), list.to_vec());
            Step::Scatter(Scatter { dims, base, updates, index: vec![index], value, combine })
        };
        let here = number(0, var(0));
        let count = out.dims[axis];
        let begins = Filter::new(&list, |_| here.eq_to(Scalar::index(1)));
        let (first, inverse);
        if sorted {
            let runs = self.step(at, running(Binary::Add, here), &[starts])?;
            let found = self.step(at, Step::Filter(begins), &[starts])?;
            self.count(at, count, found, extent);
            first = self.map_step(at, &[count], &[order, found], Scalar::read(DType::I64, 0, [number(1, var(0) + 1)]))?;
            let run = number(1, var(0)) - Scalar::index(1);
            inverse = self.step(at, put(extent, here, run, None), &[order, runs])?;
        } else {
            let appears = self.step(at, put(extent, here, number(1, var(0)), None), &[order, starts])?;
            let found = self.step(at, Step::Filter(begins), &[appears])?;
            self.count(at, count, found, extent);
            first = self.map_step(at, &[count], &[found], number(0, var(0) + 1))?;
            let rank = self.step(at, running(Binary::Add, here), &[appears])?;
            let start = running(Binary::Max, here * Scalar::index(var(0)));
            let start = self.step(at, start, &[starts])?;
            // Sorted place, start of its run, element there, its rank.
            let place = |source: usize, at: Scalar| Scalar::read(DType::I64, source, [at]);
            let run = place(1, place(0, number(2, var(0)))) - Scalar::index(1);
            inverse = self.step(at, put(extent, here, run, None), &[order, rank, start])?;
        }
        let counts = self.step(at, put(count, here, Scalar::index(1), Some(Binary::Add)), &[inverse])?;
        let ty = self.work.tensor(x).ty.clone();
        let values = self.picked(x, axis, first, 0, &ty, out, at)?;
        Ok(vec![values, first, inverse, counts])
    }

    fn non_max_suppression(
        &mut self,
        [boxes, scores]: [Id; 2],
        limits: [Option<Id>; 3],
        center: bool,
        out: &TensorType,
        at: &mut At,
    ) -> Result<Id, String> {
        let [b, c, n] = self.work.tensor(scores).ty.dims[..] else { return Err("the scores do not have rank 3".into()) };
        let mut sources = vec![boxes, scores];
        let mut limit = |cx: &mut Self, k: usize| {
            limits[k].map(|id| {
                sources.push(id);
                let ty = &cx.work.tensor(id).ty;
                Scalar::read_at(ty.dtype, sources.len() - 1, &vec![Expr::int(0); ty.rank()])
            })
        };
        let most = limit(self, 0).unwrap_or(Scalar::index(0));
        let threshold = limit(self, 1).unwrap_or(Scalar::float(DType::F32, 0.0));
        let key = Scalar::read_at(DType::F32, 1, &vars(3));
        let cond = limit(self, 2).map_or(Scalar::always(), |least| least.lt(key));
        let corners = |place: usize| {
            let part = |k: i64| Scalar::read_at(DType::F32, 0, &[var(0), var(place), Expr::int(k)]);
            corners([part(0), part(1), part(2), part(3)], center)
        };
        let clash = overlap(corners(3), corners(2), threshold);
        let choice = Choice { dims: vec![b, c, n + 1], most, key, cond, clash };
        let chosen = self.step(at, Step::Choice(choice), &sources)?;
        let taken = Filter::new(&[b, c, n], |axes| {
            Scalar::index(axes[2]).lt(Scalar::read_at(DType::I64, 0, &[axes[0], axes[1], Expr::int(0)]))
        });
        let found = self.step(at, Step::Filter(taken), &[chosen])?;
        self.count(at, out.dims[0], found, b * c * n);
        let (rest, slot) = divided(number(0, var(0) + 1), n);
        let (batch, class) = divided(rest, c);
        let which = Scalar::read(DType::I64, 1, [batch, class, slot + Scalar::index(1)]);
        let column =
            |k: i64, value: Scalar, other: Scalar| Scalar::select(Scalar::index(var(1)).eq_to(Scalar::index(k)), value, other);
        self.map_step(at, &out.dims, &[found, chosen], column(0, batch, column(1, class, which)))
    }
}

/// A box as (y1, x1, y2, x2) with ordered corners.
fn corners([a, b, c, d]: [Scalar; 4], center: bool) -> [Scalar; 4] {
    if center {
        let half = |v: Scalar| v / Scalar::float(DType::F32, 2.0);
        [b - half(d), a - half(c), b + half(d), a + half(c)]
    } else {
        [a.min(c), b.min(d), a.max(c), b.max(d)]
    }
}

/// Do two boxes overlap by more than `threshold` (intersection over union)?
fn overlap(a: [Scalar; 4], b: [Scalar; 4], threshold: Scalar) -> Scalar {
    let zero = Scalar::float(DType::F32, 0.0);
    let area = |c: [Scalar; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let height = a[2].min(b[2]) - a[0].max(b[0]);
    let width = a[3].min(b[3]) - a[1].max(b[1]);
    let nothing = [height, width, area(a), area(b)].into_iter().map(|v| v.le(zero)).reduce(Scalar::or).expect("four");
    let common = height * width;
    let over = threshold.lt(common / (area(a) + area(b) - common));
    Scalar::unary(Unary::Not, nothing).and(over)
}
