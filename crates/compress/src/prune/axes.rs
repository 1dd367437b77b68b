//! Which channels go together: the dependency analysis of structured pruning.
//!
//! Every position of every axis of known extent is a *cell*. Operators tie cells: an addition ties channel 3 of both operands and of
//! the result, a convolution ties output channel 3 to row 3 of its weights and input channel 3 to column 3. Cells that are tied
//! stay or go together; such a class is a [`Unit`]. What would change its meaning if a position went (a softmax over the axis, an
//! input or output of the model, an operator that this file does not know) pins its cells. It looks at operators only, at no
//! names and no models: residuals, concatenations, depthwise and grouped convolutions, batch normalisation, attention heads and the
//! width of an MLP follow from the rules of the operators.
//!
//! What makes removal right: everywhere a class ends, it is contracted (a sum of products over the axis, see [`Contraction`]) or
//! dropped by a slice. So the smaller model computes what the whole one computes when the removed positions are 0 at all
//! contractions. The tests hold this against random graphs.

mod rules;

use infc_ir::expr::Expr;
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::op::normal_axis;
use infc_ir::{Op, TensorType};
use std::collections::BTreeMap;

/// An axis of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Axis {
    /// The value.
    pub value: Value,
    /// Number of the axis.
    pub axis: usize,
}

/// A sum of products over an axis of two operands of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contraction {
    /// The node.
    pub node: Node,
    /// Number of the operand that holds the data.
    pub operand: usize,
    /// Its contracted axis.
    pub data: Axis,
}

/// Positions that stay or go together.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Where: positions of axes, sorted.
    pub cells: Vec<(Axis, usize)>,
    /// The number of its group: units that share axes.
    pub group: usize,
}

/// What can be pruned in a graph.
pub struct Analysis {
    /// Positions that can go, as units; every one holds at least one position of a constant.
    pub units: Vec<Unit>,
    /// Number of groups.
    pub groups: usize,
    /// Every place where an axis with cells is summed over.
    pub contractions: Vec<Contraction>,
    /// Nodes that pin axes of weights, with what they say; for reports.
    pub pins: BTreeMap<Node, &'static str>,
}

/// More cells than this are not followed.
const MAX_CELLS: usize = 1 << 26;

struct Cells<'a> {
    g: &'a Graph,
    /// First cell of each axis of each value, where the axis has cells.
    first: Vec<Vec<Option<u32>>>,
    parent: Vec<u32>,
    pinned: Vec<bool>,
    /// Axis number of each first cell, for groups.
    axes: Vec<(Axis, u32, u32)>,
    links: Vec<(Axis, Axis)>,
    contractions: Vec<Contraction>,
    pins: BTreeMap<Node, &'static str>,
    /// For each reshape: which factor of its groups takes the cells, by (node, start of the group). None before that is chosen.
    choice: Option<BTreeMap<(Node, usize), usize>>,
    at: Option<Node>,
}

/// Analyses a graph. Types have to be inferred; axes of symbolic extent are left as they are.
pub fn analyse(g: &Graph) -> Analysis {
    let mut choice = BTreeMap::new();
    // First with every split and merged axis held, to see which factors are free; then with the chosen ones.
    let held = Cells::new(g, None).walk();
    for (key, factors) in held.factors() {
        if let Some(&(_, k)) = factors.iter().max_by_key(|&&(a, k)| (held.independent(a), held.extent(a), std::cmp::Reverse(k))) {
            choice.insert(key, k);
        }
    }
    Cells::new(g, Some(choice)).walk().units()
}

impl<'a> Cells<'a> {
    fn new(g: &'a Graph, choice: Option<BTreeMap<(Node, usize), usize>>) -> Cells<'a> {
        let (mut first, mut axes, mut count) = (vec![], vec![], 0usize);
        let used = g.use_counts();
        for i in 0..g.values.len() {
            let v = Value(i as u32);
            let mut list = vec![];
            let live = used[i] > 0 || !matches!(g.value(v).def, Def::Constant(_));
            for (axis, d) in g.ty(v).as_tensor().filter(|_| live).map_or(&[][..], |t| &t.dims).iter().enumerate() {
                let n = d.known().filter(|&n| n > 1).and_then(|n| usize::try_from(n).ok());
                let n = n.filter(|&n| count + n < MAX_CELLS);
                list.push(n.map(|n| {
                    axes.push((Axis { value: v, axis }, count as u32, n as u32));
                    count += n;
                    (count - n) as u32
                }));
            }
            first.push(list);
        }
        let parent = (0..count as u32).collect();
        Cells {
            g,
            first,
            parent,
            pinned: vec![false; count],
            axes,
            links: vec![],
            contractions: vec![],
            pins: BTreeMap::new(),
            choice,
            at: None,
        }
    }

    fn walk(mut self) -> Cells<'a> {
        let g = self.g;
        for &v in g.inputs().iter().chain(g.outputs()) {
            self.pin_value(v);
        }
        for &n in &g.region(Graph::MAIN).nodes {
            self.at = Some(n);
            self.relate(n);
        }
        self
    }

    // ---- cells ----

    fn tensor(&self, v: Value) -> Option<&'a TensorType> {
        self.g.ty(v).as_tensor()
    }
    fn extent(&self, a: Axis) -> usize {
        let d = self.tensor(a.value).and_then(|t| t.dims.get(a.axis)).and_then(|d| d.known());
        d.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
    }
    fn start(&self, a: Axis) -> Option<u32> {
        self.first[a.value.index()].get(a.axis).copied().flatten()
    }
    fn find(&mut self, mut c: u32) -> u32 {
        while self.parent[c as usize] != c {
            let up = self.parent[self.parent[c as usize] as usize];
            self.parent[c as usize] = up;
            c = up;
        }
        c
    }
    fn root(&self, mut c: u32) -> u32 {
        while self.parent[c as usize] != c {
            c = self.parent[c as usize];
        }
        c
    }
    fn union(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        if a != b {
            self.parent[b.max(a) as usize] = a.min(b);
            self.pinned[a.min(b) as usize] |= self.pinned[a.max(b) as usize];
        }
    }
    fn pin_cell(&mut self, c: u32) {
        let c = self.find(c);
        self.pinned[c as usize] = true;
    }
    fn pin(&mut self, a: Axis) {
        if let Some(first) = self.start(a) {
            (0..self.extent(a) as u32).for_each(|i| self.pin_cell(first + i));
        }
    }
    fn pin_value(&mut self, v: Value) {
        (0..self.first[v.index()].len()).for_each(|axis| self.pin(Axis { value: v, axis }));
    }
    /// Pins an axis because of what the node at hand does along it.
    fn hold(&mut self, a: Axis, why: &'static str) {
        if self.start(a).is_some() {
            self.pins.insert(self.at.expect("a node is at hand"), why);
            self.pin(a);
        }
    }
    fn hold_all(&mut self, n: Node, why: &'static str) {
        let node = self.g.node(n);
        for &v in node.inputs.iter().flatten().chain(&node.outputs) {
            (0..self.first[v.index()].len()).for_each(|axis| self.hold(Axis { value: v, axis }, why));
        }
    }
    /// Ties position `map(i)` of `b` to position `i` of `a`, for all `i` of `a` that it maps.
    fn tie(&mut self, a: Axis, b: Axis, map: impl Fn(usize) -> Option<usize>) {
        match (self.start(a), self.start(b)) {
            (Some(p), Some(q)) => {
                let (n, m) = (self.extent(a), self.extent(b));
                for i in 0..n {
                    if let Some(j) = map(i).filter(|&j| j < m) {
                        self.union(p + i as u32, q + j as u32);
                    }
                }
                self.links.push((a, b));
            }
            (Some(_), None) => self.hold(a, "meets an axis of open extent"),
            (None, Some(_)) => self.hold(b, "meets an axis of open extent"),
            (None, None) => {}
        }
    }
    /// Ties equal positions.
    fn same(&mut self, a: Axis, b: Axis) {
        if self.extent(a) == self.extent(b) || self.start(a).is_none() || self.start(b).is_none() {
            self.tie(a, b, Some);
        } else {
            self.hold(a, "meets an axis of another extent");
            self.hold(b, "meets an axis of another extent");
        }
    }
    fn contract(&mut self, n: Node, operand: usize, data: Axis) {
        if self.start(data).is_some() {
            self.contractions.push(Contraction { node: n, operand, data });
        }
    }
    /// True if the values of the axis are computed independently: it is a batch axis of a product of two computed matrices.
    fn independent(&self, a: Axis) -> bool {
        let Some(first) = self.start(a) else { return false };
        let root = self.root(first);
        self.g.region(Graph::MAIN).nodes.iter().any(|&n| {
            let node = self.g.node(n);
            let computed = node.inputs.iter().flatten().all(|&v| self.g.constant(v).is_none());
            matches!(node.op, Op::MatMul(_)) && computed && {
                let (v, axes) = (node.outputs[0], self.first[node.outputs[0].index()].len());
                let batch = (0..axes.saturating_sub(2)).filter_map(|axis| self.start(Axis { value: v, axis }));
                batch.into_iter().any(|c| self.root(c) == root)
            }
        })
    }
    /// The free factors of each group of reshaped axes.
    fn factors(&self) -> Vec<((Node, usize), Vec<(Axis, usize)>)> {
        let mut out = vec![];
        for &n in &self.g.region(Graph::MAIN).nodes {
            if !is_reshape(&self.g.node(n).op) {
                continue;
            }
            for group in reshape_groups(self.g, n) {
                if let Some((_, many)) = group.split() {
                    let free = |&(_, a): &(usize, Axis)| {
                        let first = self.start(a)?;
                        let all = (0..self.extent(a) as u32).all(|i| !self.pinned_by_others(first + i));
                        all.then_some(a)
                    };
                    let factors = many.iter().enumerate().filter_map(|f| free(&(f.0, *f.1)).map(|a| (a, f.0)));
                    out.push(((n, group.start), factors.collect()));
                }
            }
        }
        out
    }
    fn pinned_by_others(&self, c: u32) -> bool {
        self.pinned[self.root(c) as usize]
    }

    // ---- result ----

    fn units(mut self) -> Analysis {
        let mut group_of: BTreeMap<Axis, usize> = BTreeMap::new();
        let index: BTreeMap<Axis, usize> = self.axes.iter().enumerate().map(|(i, a)| (a.0, i)).collect();
        let mut coarse: Vec<usize> = (0..self.axes.len()).collect();
        fn top(coarse: &mut [usize], mut i: usize) -> usize {
            while coarse[i] != i {
                coarse[i] = coarse[coarse[i]];
                i = coarse[i];
            }
            i
        }
        for (a, b) in std::mem::take(&mut self.links) {
            let (a, b) = (top(&mut coarse, index[&a]), top(&mut coarse, index[&b]));
            coarse[a.max(b)] = a.min(b);
        }
        for (i, a) in self.axes.iter().enumerate() {
            group_of.insert(a.0, top(&mut coarse, i));
        }
        let mut classes: BTreeMap<u32, Vec<(Axis, usize)>> = BTreeMap::new();
        for (a, first, n) in self.axes.clone() {
            for i in 0..n {
                let root = self.find(first + i);
                if !self.pinned[root as usize] {
                    classes.entry(root).or_default().push((a, i as usize));
                }
            }
        }
        let (mut units, mut numbers) = (vec![], BTreeMap::new());
        for (_, cells) in classes {
            if cells.iter().any(|(a, _)| self.g.constant(a.value).is_some()) {
                let next = numbers.len();
                let group = *numbers.entry(group_of[&cells[0].0]).or_insert(next);
                units.push(Unit { cells, group });
            }
        }
        Analysis { units, groups: numbers.len(), contractions: self.contractions, pins: self.pins }
    }
}

/// Axes of operand and result of a reshape whose products are equal; axes of extent 1 are left out.
pub(super) struct ReshapeGroup {
    /// Axis number in the operand where it starts.
    pub start: usize,
    /// Axes of the operand.
    pub from: Vec<Axis>,
    /// Axes of the result.
    pub to: Vec<Axis>,
}

impl ReshapeGroup {
    /// The single axis and its factors, if one side is one axis.
    fn split(&self) -> Option<(Axis, &[Axis])> {
        match (&self.from[..], &self.to[..]) {
            ([one], many) | (many, [one]) if many.len() > 1 => Some((*one, many)),
            _ => None,
        }
    }
}

fn is_reshape(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_))
}

/// The groups of a node that keeps the order of the elements.
pub(super) fn reshape_groups(g: &Graph, n: Node) -> Vec<ReshapeGroup> {
    let node = g.node(n);
    let (Some(x), y) = (node.operand(0), node.outputs[0]) else { return vec![] };
    let axes = |v: Value| -> Vec<(Axis, Expr)> {
        let dims = g.ty(v).as_tensor().map_or(&[][..], |t| &t.dims);
        dims.iter().enumerate().filter(|(_, d)| !d.is(1)).map(|(axis, &d)| (Axis { value: v, axis }, d)).collect()
    };
    let (from, to) = (axes(x), axes(y));
    let product = |list: &[(Axis, Expr)]| Expr::product(list.iter().map(|a| a.1));
    let mut groups = vec![];
    let mut add = |i: usize, p: usize, j: usize, q: usize| {
        let list = |l: &[(Axis, Expr)]| l.iter().map(|a| a.0).collect();
        groups.push(ReshapeGroup { start: i, from: list(&from[i..p]), to: list(&to[j..q]) });
    };
    let smallest = |n: usize, m: usize, fits: &dyn Fn(usize, usize) -> bool| {
        let pairs = (1..=n).flat_map(|p| (1..=m).map(move |q| (p, q)));
        pairs.filter(|&(p, q)| fits(p, q)).min_by_key(|&(p, q)| p + q)
    };
    // Boundaries that both sides share, from the front, then (the products of the rest may be unlike expressions) from the back.
    let (mut i, mut j) = (0, 0);
    while let Some((p, q)) = smallest(from.len() - i, to.len() - j, &|p, q| product(&from[i..i + p]) == product(&to[j..j + q])) {
        add(i, i + p, j, j + q);
        (i, j) = (i + p, j + q);
    }
    let (mut k, mut l) = (from.len(), to.len());
    while let Some((p, q)) = smallest(k - i, l - j, &|p, q| product(&from[k - p..k]) == product(&to[l - q..l])) {
        add(k - p, k, l - q, l);
        (k, l) = (k - p, l - q);
    }
    if i < k || j < l {
        add(i, k, j, l);
    }
    groups
}

/// The dims operand that gives a Reshape a result of these dims (`None` for an axis of symbolic extent), if it can be a constant.
pub(super) fn reshape_dims(g: &Graph, n: Node, dims: &[Option<usize>]) -> Option<Vec<i64>> {
    let node = g.node(n);
    let (x, y) = (g.ty(node.operand(0)?).as_tensor()?, g.ty(node.outputs[0]).as_tensor()?);
    let mut free = 1;
    let dim = |(axis, d): (usize, &Option<usize>)| match d {
        Some(n) => Some(*n as i64),
        None if x.dims.get(axis) == Some(&y.dims[axis]) => Some(0),
        None => {
            free -= 1;
            (free >= 0).then_some(-1)
        }
    };
    dims.iter().enumerate().map(dim).collect()
}

/// For each axis of a Slice with constant bounds: where it starts and its step, `None` for axes that are not cut.
pub(super) fn slice_plan(g: &Graph, n: Node) -> Option<Vec<Option<(usize, i64)>>> {
    let node = g.node(n);
    let ty = g.ty(node.operand(0)?).as_tensor()?;
    let ints = |k: usize| node.operand(k).map(|v| g.constant(v).map(|t| t.to_ints()));
    let starts = ints(1)??;
    let axes = match ints(3) {
        Some(axes) => axes?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match ints(4) {
        Some(steps) => steps?,
        None => vec![1; starts.len()],
    };
    ints(2)??;
    let mut plan = vec![None; ty.rank()];
    for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = normal_axis(axis, ty.rank()).ok()?;
        let out = g.ty(node.outputs[0]).as_tensor()?.dims[axis];
        if step == 1 && out == ty.dims[axis] {
            continue; // all of it
        }
        let Some(extent) = ty.dims[axis].known() else {
            plan[axis] = Some((0, 0));
            continue;
        };
        let start = if start < 0 { start + extent } else { start }.clamp(0, extent);
        plan[axis] = Some((start as usize, step));
    }
    Some(plan)
}
