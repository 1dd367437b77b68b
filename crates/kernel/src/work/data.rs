//! Sizes that only data tells: where a dim of a result follows from the elements of an operand (a Reshape to a computed shape, a Range
//! with a computed limit), the program computes it as a scalar and sets a symbol from it, before the node itself runs.
//!
//! The elements of such an operand become symbols of their own ([`Expr::datum`]), inference runs again with them, and what it says
//! of the new dims is computed; what it takes for granted of them is checked before. In the node's steps, sizes and factors of indices
//! that are made of such symbols are computed once and become symbols of the program; what is left are reads of the operand.

use super::{Id, Item, Lower, Memory, Task};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::expr::{Node as ExprNode, Ranges};
use infc_ir::graph::{Def, Node, Region, Requirement, Value};
use infc_ir::interp::run_step;
use infc_ir::op::{Ctx, DataDims, Signature, sizes};
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};
use infc_ir::{DType, Expr, Fact, Op, Tensor, TensorType, Type};

/// The most elements of an operand that are followed.
const FOLLOWED: i64 = 64;

/// What an operator says where elements that are data have symbols.
pub(super) struct Told {
    /// Facts of the results.
    facts: Result<Vec<Fact>, String>,
    /// Conditions on elements that are data.
    requires: Vec<Requirement>,
    /// Dims as scalars.
    data: Result<DataDims, String>,
}

impl Told {
    /// Is there something to check?
    pub(super) fn conditions(&self) -> bool {
        !self.requires.is_empty()
    }
}

/// The text of a condition, with words for the symbols that stand for elements.
fn in_words(text: &str) -> String {
    let mut out = String::new();
    let mut parts = text.split("\"~");
    out += parts.next().unwrap_or_default();
    for part in parts {
        match part.split_once('"') {
            Some((symbol, rest)) => out += &format!("element {} of operand {}{rest}", after(symbol), before(symbol)),
            None => out += part,
        }
    }
    out
}

fn before(symbol: &str) -> &str {
    symbol.split('.').next().unwrap_or_default()
}

fn after(symbol: &str) -> &str {
    symbol.split('.').nth(1).unwrap_or_default()
}

impl Lower<'_> {
    /// Takes symbols that stand alone as known.
    pub(super) fn know(&mut self, dims: &[Expr]) {
        self.bound.extend(dims.iter().filter_map(|d| if let ExprNode::Sym(s) = d.node() { Some(*s) } else { None }));
    }

    /// Symbols in types that have no value yet.
    pub(super) fn unknown(&self, types: &[Type]) -> Vec<Expr> {
        let mut out: Vec<Expr> = vec![];
        for t in types.iter().filter_map(Type::as_tensor) {
            for d in &t.dims {
                d.leaves(&mut |l| {
                    if matches!(l.node(), ExprNode::Sym(s) if !self.bound.contains(s)) && !out.contains(&l) {
                        out.push(l);
                    }
                });
            }
        }
        out
    }

    /// What is known of the operands of a node, with symbols for the elements of small integer ones of which nothing is known.
    pub(super) fn data(&self, n: Node) -> Vec<Option<Fact>> {
        let inputs = self.graph.node(n).inputs.iter().enumerate();
        let follow = |(k, v): (usize, &Option<Value>)| {
            let mut f = self.graph.fact((*v)?);
            let t = f.ty.as_tensor().filter(|t| t.dtype.is_int() && f.ints.is_none() && f.known.is_none());
            if let Some(t) = t {
                let count = Expr::product(t.dims.iter().copied()).known().filter(|c| t.rank() <= 1 && *c <= FOLLOWED);
                f.ints = count.map(|c| (0..c).map(|j| Expr::datum(&format!("{k}.{j}"))).collect());
            }
            Some(f)
        };
        inputs.map(follow).collect()
    }

    /// What an operator says of its results, and takes for granted, given symbols for elements that are data.
    pub(super) fn told(&self, n: Node, facts: &[Option<Fact>], regions: &[Signature]) -> Told {
        let node = self.graph.node(n);
        let cx = Ctx { inputs: facts, regions, outputs: node.outputs.len() };
        let (facts, requires) = sizes::noted(|| node.op.infer(&cx));
        let requires = match &facts {
            Ok(_) => requires.into_iter().filter(|r| r.left.has_datum() || r.right.has_datum()).collect(),
            Err(_) => vec![],
        };
        Told { facts: facts.map_err(|f| f.0), requires, data: node.op.data_dims(&cx).map_err(|f| f.0) }
    }

    /// What a node takes for granted of sizes that the program computes itself. What it takes for granted of its inputs the graph lists, but not
    /// in bodies: it has to hold where they run.
    pub(super) fn requirements(&self, n: Node, items: &mut Vec<Item>) {
        for r in sizes::of_node(self.graph, n) {
            let (mut known, mut given) = (true, true);
            for e in [r.left, r.right] {
                e.leaves(&mut |l| {
                    let ExprNode::Sym(s) = l.node() else { return };
                    known &= self.bound.contains(s);
                    given &= self.given.contains(s);
                });
            }
            if known && (!given || self.depth > 0) {
                items.push(Item::Require { left: r.left, right: r.right, or_one: r.or_one, node: r.at, text: r.text });
            }
        }
    }

    /// Checks what a node takes for granted of elements that are data, computes the sizes in the results' types that are not known,
    /// and sets their symbols.
    pub(super) fn sizes(
        &mut self,
        n: Node,
        told: &Told,
        types: &[Type],
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<(), String> {
        let unknown = self.unknown(types);
        self.conditions(n, told, &unknown, describe, items)?;
        if unknown.is_empty() {
            return Ok(());
        }
        let dims = |t: &Type| t.as_tensor().map_or(vec![], |t| t.dims.clone());
        let mut found = vec![];
        for symbol in unknown {
            let place = types.iter().enumerate().find_map(|(k, t)| Some((k, dims(t).iter().position(|&d| d == symbol)?)));
            let data = told.data.as_ref().map_err(String::clone)?;
            let value = match place {
                None => None,
                Some((k, axis)) => match data.dims.iter().find(|d| (d.0, d.1) == (k, axis)) {
                    Some(&(_, _, value)) => Some(value),
                    None => {
                        let facts = told.facts.as_ref().map_err(String::clone)?;
                        facts.get(k).and_then(|f| dims(&f.ty).get(axis).copied()).map_or(Ok(None), |e| self.scalar_of(n, e))?
                    }
                },
            };
            let value = value.ok_or_else(|| {
                format!("the size {symbol} of its result depends on data in a way that compiled code does not follow yet")
            })?;
            found.push((symbol, value));
        }
        self.set_sizes(n, &found, describe, items)?;
        if let Op::Reshape(_) = self.graph.node(n).op {
            let data = self.graph.node(n).inputs.first().copied().flatten();
            let from = data.map_or(Expr::int(0), |v| Expr::product(dims(self.graph.ty(v))));
            let text = "the data has another number of elements than the shape it is given".to_owned();
            let right = Expr::product(dims(&types[0]));
            items.push(Item::Require { left: from, right, or_one: false, node: describe.to_owned(), text });
        }
        Ok(())
    }

    /// Conditions on elements that are data: each side becomes a symbol, or the whole one that is 1 where it holds.
    fn conditions(
        &mut self,
        n: Node,
        told: &Told,
        unknown: &[Expr],
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<(), String> {
        let (mut computed, mut checks) = (vec![], vec![]);
        let mut symbol = |cx: &mut Self, value: Scalar| {
            cx.loops += 1;
            let symbol = Expr::sym(&format!("%check{}", cx.loops));
            computed.push((symbol, value));
            symbol
        };
        let one = Scalar::index(1);
        for r in &told.requires {
            let two = self.scalar_of(n, r.left)?.zip(self.scalar_of(n, r.right)?);
            let (left, right) = two.ok_or_else(|| format!("cannot check at run time that {}", in_words(&r.text)))?;
            let text = in_words(&r.text);
            // Only a size can be a symbol's value.
            let size = |e: Expr| e.range(&Ranges::default()).lo >= 0;
            if size(r.left) && size(r.right) {
                let mut side = |cx: &mut Self, e: Expr, s: Scalar| if e.has_datum() { symbol(cx, s) } else { e };
                let (left, right) = (side(self, r.left, left), side(self, r.right, right));
                checks.push((left, right, r.or_one, text));
            } else {
                let holds = left.eq_to(right);
                let holds = if r.or_one { holds.or(left.eq_to(one)).or(right.eq_to(one)) } else { holds };
                checks.push((symbol(self, holds.cast(DType::I64)), Expr::int(1), false, text));
            }
        }
        // A condition on scalars belongs to sizes that are computed from them.
        let data = told.data.as_ref().ok().filter(|_| !unknown.is_empty());
        for (holds, text) in data.iter().flat_map(|d| &d.checks) {
            checks.push((symbol(self, holds.cast(DType::I64)), Expr::int(1), false, text.clone()));
        }
        if !computed.is_empty() {
            self.set_sizes(n, &computed, describe, items)?;
        }
        for (left, right, or_one, text) in checks {
            items.push(Item::Require { left, right, or_one, node: describe.to_owned(), text });
        }
        Ok(())
    }

    /// Computes these values over the operands of a node, and sets the symbols.
    pub(super) fn set_sizes(
        &mut self,
        n: Node,
        sizes: &[(Expr, Scalar)],
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<(), String> {
        let last = sizes.last().expect("some are unknown").1;
        let dims = vec![Expr::from(sizes.len())];
        let value = sizes[..sizes.len() - 1]
            .iter()
            .enumerate()
            .rfold(last, |other, (k, &(_, v))| Scalar::select(Scalar::index(Expr::var(0)).eq_to(Scalar::index(k)), v, other));
        let step = Step::Compute(Compute { dims, reduction: None, value });
        let sources: Vec<Option<Id>> =
            self.graph.node(n).inputs.clone().into_iter().map(|v| v.and_then(|v| self.get(v))).collect();
        let all = self.task(step, &sources, "sizes", describe, items)?;
        for (k, &(symbol, _)) in sizes.iter().enumerate() {
            self.bind(symbol, all, Expr::from(k), None, items);
        }
        Ok(())
    }

    /// Counts the indices that lie outside of what they index, before a gather or scatter uses them: there must be none.
    pub(super) fn check_indices(
        &mut self,
        n: Node,
        steps: &[Step],
        facts: &[Option<Fact>],
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<(), String> {
        // The tables of trees were checked when they were made.
        if matches!(self.graph.node(n).op, Op::TreeLeaves(_)) {
            return Ok(());
        }
        for step in steps {
            self.check_step(n, step, facts, describe, items)?;
        }
        Ok(())
    }

    /// The check of one step, where its indices follow from operands alone.
    fn check_step(
        &mut self,
        n: Node,
        step: &Step,
        facts: &[Option<Fact>],
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<(), String> {
        let (mut good, mut extents) = (Scalar::always(), step.dims().to_vec());
        let mut inside = |index: &[Scalar], dims: &[Expr]| {
            let open = |i: Scalar, d: Expr| i.as_index().is_none() && !limited(i, d) && of_operands(i, facts.len());
            for (&i, &d) in index.iter().zip(dims).filter(|&(&i, &d)| open(i, d)) {
                good = good.and(i.within(0, d));
            }
        };
        match step {
            Step::Scatter(s) => {
                inside(&s.index, &s.dims);
                extents = s.updates.clone();
            }
            Step::Compute(Compute { reduction: Some(r), .. }) => extents.extend(&r.axes),
            _ => {}
        }
        match step {
            Step::Scatter(_) => {}
            other => other.scalars().iter().for_each(|s| {
                s.visit(&mut |x| {
                    let Kind::Read { source, index, guard: None } = x.kind() else { return };
                    if let Some(t) = facts.get(*source as usize).and_then(|f| f.as_ref()?.ty.as_tensor()) {
                        inside(index, &t.dims);
                    }
                })
            }),
        }
        if good == Scalar::always() || self.constant_inside(n, good, &extents) {
            return Ok(());
        }
        // Only over the axes that the indices depend on.
        let mut used: Vec<usize> = vec![];
        good.visit(&mut |x| {
            if let Kind::Index(e) = x.kind() {
                used.extend((0..extents.len()).filter(|&v| e.uses_var(v as u32)));
            }
        });
        used.sort_unstable();
        used.dedup();
        let place = |v: usize| used.iter().position(|&u| u == v).map_or(Expr::int(0), Expr::var);
        let places: Vec<Expr> = (0..extents.len()).map(place).collect();
        let bad = Scalar::unary(Unary::Not, good.subst(&places)).cast(DType::I64);
        let axes: Vec<Expr> = used.iter().map(|&v| extents[v]).collect();
        let count = Step::Compute(Compute::reduce(&[], &axes, Reducer::Sum, |_, _| bad, |_, sum| sum));
        let sources: Vec<Option<Id>> =
            self.graph.node(n).inputs.clone().into_iter().map(|v| v.and_then(|v| self.get(v))).collect();
        let count = self.task(count, &sources, "check", describe, items)?;
        self.loops += 1;
        let symbol = Expr::sym(&format!("%outside{}", self.loops));
        items.push(Item::Bind { symbol, from: count, bound: Some(Expr::product(axes)) });
        let text = "the number of indices that lie outside of the data must be 0".to_owned();
        items.push(Item::Require { left: symbol, right: Expr::int(0), or_one: false, node: describe.to_owned(), text });
        Ok(())
    }

    /// True if constants alone decide a condition over axes of these extents, and it holds everywhere.
    fn constant_inside(&self, n: Node, good: Scalar, extents: &[Expr]) -> bool {
        let tensors: Vec<Option<Tensor>> = (self.graph.node(n).inputs.iter())
            .map(|v| match v.map(|v| &self.graph.value(v).def) {
                Some(Def::Constant(t)) => Some(t.clone()),
                _ => None,
            })
            .collect();
        let step = Step::Compute(Compute { dims: extents.to_vec(), reduction: None, value: good });
        let known = step.sources().iter().all(|&s| tensors.get(s as usize).is_some_and(|t| t.is_some()));
        let small = Expr::product(extents.iter().copied()).known().is_some_and(|n| n <= 1 << 20);
        let mut sizes = true;
        good.visit(&mut |x| {
            if let Kind::Index(e) = x.kind() {
                e.leaves(&mut |l| sizes &= !matches!(l.node(), ExprNode::Sym(_)));
            }
        });
        known && small && sizes && run_step(&step, &tensors).is_ok_and(|t| t.to_ints().iter().all(|&g| g != 0))
    }

    /// Adds a task whose step reads `sources` by number; gives its result.
    pub(super) fn task(
        &mut self,
        step: Step,
        sources: &[Option<Id>],
        name: &str,
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<Id, String> {
        let used = step.sources();
        let ids: Option<Vec<Id>> = used.iter().map(|&s| sources.get(s as usize).copied().flatten()).collect();
        let ids = ids.ok_or("reads an operand that is no tensor")?;
        let position = |s: u32| used.iter().position(|&u| u == s).expect("listed") as u32;
        let out = self.work.add(TensorType::new(step.dtype(), step.dims().iter().copied()), Memory::Temp, "");
        let step = step.map_sources(&position);
        items.push(Item::Task(Task { step, sources: ids, out, name: name.to_owned(), node: describe.to_owned() }));
        Ok(out)
    }

    /// Sets a symbol from element `at` of an `i64` tensor.
    pub(super) fn bind(&mut self, symbol: Expr, tensor: Id, at: Expr, bound: Option<Expr>, items: &mut Vec<Item>) {
        let from = self.work.add(TensorType::new(DType::I64, []), Memory::Alias { of: tensor, offset: at }, "");
        items.push(Item::Bind { symbol, from, bound });
        self.know(&[symbol]);
    }

    /// At the end of a branch of an If: the sizes of the results where the branches differ.
    pub(super) fn branch_sizes(&mut self, n: Node, r: Region, describe: &str, items: &mut Vec<Item>) -> Result<(), String> {
        let graph = self.graph;
        let pairs = graph.region(r).results.iter().zip(&graph.node(n).outputs);
        let pairs: Vec<_> = pairs.filter_map(|(&i, &o)| Some((graph.ty(o).as_tensor()?, graph.ty(i).as_tensor()?))).collect();
        let own = self.unknown(&graph.node(n).outputs.iter().map(|&v| graph.ty(v).clone()).collect::<Vec<_>>());
        let before = self.bound.clone();
        self.resize(n, &own, &pairs, describe, items)?;
        // The other branch has to do the same.
        self.bound = before;
        Ok(())
    }

    /// Sets those of the symbols `own` that are dims of the first of each two types to the other's dims there.
    pub(super) fn resize(
        &mut self,
        n: Node,
        own: &[Expr],
        pairs: &[(&TensorType, &TensorType)],
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<(), String> {
        let mut found: Vec<(Expr, Scalar)> = vec![];
        for (to, from) in pairs {
            for (&o, &i) in to.dims.iter().zip(&from.dims) {
                if own.contains(&o) && o != i && !found.iter().any(|f| f.0 == o) {
                    found.push((o, Scalar::index(i)));
                }
            }
        }
        if found.is_empty() { Ok(()) } else { self.set_sizes(n, &found, describe, items) }
    }

    /// Is one of the symbols `own` a dim of one of `types`, and another dim of `is`?
    pub(super) fn changes(own: &[Expr], types: &[&TensorType], is: &TensorType) -> bool {
        types.iter().any(|t| t.dims.iter().zip(&is.dims).any(|(&o, &i)| o != i && own.contains(&o)))
    }

    /// The same bytes as a tensor of another type.
    pub(super) fn seen_as(&mut self, of: Id, ty: TensorType) -> Id {
        self.work.add(ty, Memory::Alias { of, offset: Expr::int(0) }, "")
    }

    /// The step with symbols of the program, or reads of operands, in the place of symbols that stand for their elements. `known`: what was
    /// computed for earlier steps of the node.
    pub(super) fn with_data(
        &mut self,
        n: Node,
        step: Step,
        known: &mut Vec<(Expr, Expr)>,
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<Step, String> {
        let mut step = step;
        let mut new = vec![];
        for e in extents(&mut step) {
            if e.has_datum() {
                *e = self.symbol_of(*e, known, &mut new);
            }
        }
        let mut problem = None;
        let step = step.map(&mut |s| {
            s.rewrite(&mut |x| match x.kind() {
                Kind::Index(e) if !e.has_datum() => x,
                Kind::Index(e) if e.has_var() => Scalar::index(self.hoisted(*e, known, &mut new)),
                Kind::Index(e) => match self.scalar_of(n, *e) {
                    Ok(found) => found.unwrap_or(x),
                    Err(p) => {
                        problem = Some(p);
                        x
                    }
                },
                _ => x,
            })
        });
        if let Some(p) = problem {
            return Err(p);
        }
        if !new.is_empty() {
            let value = |&(e, symbol): &(Expr, Expr)| {
                let value = self.scalar_of(n, e)?.ok_or_else(|| format!("the value of {e} is not known"))?;
                Ok((symbol, value))
            };
            let sizes = new.iter().map(value).collect::<Result<Vec<_>, String>>()?;
            self.set_sizes(n, &sizes, describe, items)?;
        }
        Ok(step)
    }

    /// The symbol that has the value of an expression of data, which is never negative.
    fn symbol_of(&mut self, e: Expr, known: &mut Vec<(Expr, Expr)>, new: &mut Vec<(Expr, Expr)>) -> Expr {
        if let Some(&(_, symbol)) = known.iter().find(|k| k.0 == e) {
            return symbol;
        }
        self.loops += 1;
        let symbol = Expr::sym(&format!("%size{}", self.loops));
        known.push((e, symbol));
        new.push((e, symbol));
        symbol
    }

    /// An expression of axes and data, in which all that no axis occurs in is a symbol: computed once, not for each element. A number
    /// that may be negative is the difference of two symbols.
    fn hoisted(&mut self, e: Expr, known: &mut Vec<(Expr, Expr)>, new: &mut Vec<(Expr, Expr)>) -> Expr {
        if !e.has_datum() {
            return e;
        }
        let zero = Expr::int(0);
        if !e.has_var() {
            return match e.range(&Ranges::default()).lo >= 0 {
                true => self.symbol_of(e, known, new),
                false => self.symbol_of(e.max(zero), known, new) - self.symbol_of((-e).max(zero), known, new),
            };
        }
        let mut go = |e: Expr| self.hoisted(e, known, new);
        match e.node() {
            ExprNode::Sum { .. } | ExprNode::Product(_) => {
                // What is multiplied with the same product of axes is one number.
                let (terms, constant) = e.linear();
                let mut parts: Vec<(Expr, Expr)> = vec![(Expr::int(1), constant.into())];
                for (t, c) in terms {
                    let factors = if let ExprNode::Product(f) = t.node() { f.clone() } else { vec![t] };
                    let (axes, rest): (Vec<Expr>, Vec<Expr>) = factors.into_iter().partition(|f| f.has_var());
                    let (axes, rest) = (Expr::product(axes.into_iter().map(&mut go)), Expr::product(rest) * c);
                    match parts.iter_mut().find(|p| p.0 == axes) {
                        Some(part) => part.1 = part.1 + rest,
                        None => parts.push((axes, rest)),
                    }
                }
                parts.into_iter().fold(zero, |sum, (axes, factor)| sum + axes * go(factor))
            }
            ExprNode::Div(a, b) => go(*a).div(go(*b)),
            ExprNode::Mod(a, b) => go(*a).rem(go(*b)),
            ExprNode::Min(a, b) => go(*a).min(go(*b)),
            ExprNode::Max(a, b) => go(*a).max(go(*b)),
            ExprNode::Const(_) | ExprNode::Sym(_) | ExprNode::Var(_) => e,
        }
    }

    /// An expression with symbols for elements of operands as a scalar that reads them; `None` if another symbol in it has no value.
    fn scalar_of(&self, n: Node, e: Expr) -> Result<Option<Scalar>, String> {
        if !e.has_datum() {
            let mut known = true;
            e.leaves(&mut |l| known &= !matches!(l.node(), ExprNode::Sym(s) if !self.bound.contains(s)));
            return Ok(known.then(|| Scalar::index(e)));
        }
        let two = |a: Expr, b: Expr, f: &dyn Fn(Scalar, Scalar) -> Scalar| {
            Ok(self.scalar_of(n, a)?.zip(self.scalar_of(n, b)?).map(|(a, b)| f(a, b)))
        };
        let floor = |a: Scalar, b: Scalar| (a - Scalar::binary(Binary::Mod, a, b)) / b;
        match e.node() {
            ExprNode::Sym(s) => self.element(n, s).map(Some),
            ExprNode::Sum { terms, constant } => {
                let mut sum = None;
                for &(t, c) in terms {
                    let Some(t) = self.scalar_of(n, t)? else { return Ok(None) };
                    let t = if c == 1 { t } else { t * Scalar::index(c) };
                    sum = Some(sum.map_or(t, |s| s + t));
                }
                Ok(sum.map(|s| if *constant == 0 { s } else { s + Scalar::index(*constant) }))
            }
            ExprNode::Product(factors) => {
                let mut product = None;
                for &f in factors {
                    let Some(f) = self.scalar_of(n, f)? else { return Ok(None) };
                    product = Some(product.map_or(f, |p| p * f));
                }
                Ok(product)
            }
            ExprNode::Div(a, b) => two(*a, *b, &floor),
            ExprNode::Mod(a, b) => two(*a, *b, &|a, b| Scalar::binary(Binary::Mod, a, b)),
            ExprNode::Min(a, b) => two(*a, *b, &Scalar::min),
            ExprNode::Max(a, b) => two(*a, *b, &Scalar::max),
            ExprNode::Const(_) | ExprNode::Var(_) => Ok(Some(Scalar::index(e))),
        }
    }

    /// The element of an operand that a symbol of [`Lower::data`] stands for.
    fn element(&self, n: Node, symbol: &str) -> Result<Scalar, String> {
        let number = |t: &str| t.parse::<usize>().ok();
        let place = symbol.get(1..).and_then(|s| s.split_once('.')).and_then(|(k, j)| Some((number(k)?, number(j)?)));
        let (k, j) = place.ok_or_else(|| format!("{symbol} is no element of an operand"))?;
        let v = self.graph.node(n).inputs.get(k).copied().flatten();
        let t = v.and_then(|v| self.graph.ty(v).as_tensor()).ok_or_else(|| format!("operand {k} is no tensor"))?;
        let index: Vec<Expr> = t.dims.iter().map(|_| Expr::from(j)).collect();
        Ok(Scalar::read_at(t.dtype, k, &index).cast(DType::I64))
    }
}

/// Everything in a step that is a size.
fn extents(step: &mut Step) -> Vec<&mut Expr> {
    match step {
        Step::Compute(c) => c.dims.iter_mut().chain(c.reduction.iter_mut().flat_map(|r| &mut r.axes)).collect(),
        Step::Scatter(s) => s.dims.iter_mut().chain(&mut s.updates).collect(),
        Step::Prefix(p) => p.dims.iter_mut().collect(),
        Step::Sort(s) => s.dims.iter_mut().chain(&mut s.parts).chain([&mut s.extent]).collect(),
        Step::Filter(f) => f.dims.iter_mut().chain(&mut f.over).collect(),
        Step::Choice(c) => c.dims.iter_mut().collect(),
    }
}

/// Is an index held between 0 and the last element by its own expression?
fn limited(index: Scalar, dim: Expr) -> bool {
    let two = |s: Scalar, op: Binary| match s.kind() {
        Kind::Binary(o, a, b) if *o == op => Some([*a, *b]),
        _ => None,
    };
    let is = |s: Scalar, e: Expr| s.as_index() == Some(e);
    let [low, high] = [Expr::int(0), dim - 1];
    let inner = |s: Scalar, op: Binary, bound: Expr| two(s, op).is_some_and(|p| p.iter().any(|&s| is(s, bound)));
    let outer = |op: Binary, bound: Expr, then: Binary, other: Expr| {
        two(index, op).is_some_and(|[a, b]| (is(a, bound) && inner(b, then, other)) || (is(b, bound) && inner(a, then, other)))
    };
    outer(Binary::Min, high, Binary::Max, low) || outer(Binary::Max, low, Binary::Min, high)
}

/// Does it read nothing but operands, of which there are `operands`?
fn of_operands(s: Scalar, operands: usize) -> bool {
    let mut all = true;
    s.visit(&mut |x| {
        if let Kind::Read { source, .. } = x.kind() {
            all &= (*source as usize) < operands;
        }
    });
    all
}
