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

use infc_ir::expr::Expr;
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::op::normal_axis;
use infc_ir::{Op, TensorType};
use std::collections::{BTreeMap, BTreeSet};

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
    /// Reshapes whose dims change with the units, and the axis of the larger factor list that takes the change.
    pub reshapes: BTreeSet<Node>,
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
    /// For each reshape: which factor of its groups takes the cells, by (node, start of the group).
    choice: BTreeMap<(Node, usize), usize>,
    reshapes: BTreeSet<Node>,
    at: Option<Node>,
}

/// Analyses a graph. Types have to be inferred; axes of symbolic extent are left as they are.
pub fn analyse(g: &Graph) -> Analysis {
    let mut choice = BTreeMap::new();
    // First with every split and merged axis held, to see which factors are free; then with the chosen ones.
    let held = Cells::new(g, BTreeMap::new()).walk();
    for (key, factors) in held.factors() {
        if let Some(&(_, k)) = factors.iter().max_by_key(|&&(a, k)| (held.independent(a), held.extent(a), std::cmp::Reverse(k))) {
            choice.insert(key, k);
        }
    }
    Cells::new(g, choice).walk().units()
}

impl<'a> Cells<'a> {
    fn new(g: &'a Graph, choice: BTreeMap<(Node, usize), usize>) -> Cells<'a> {
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
            reshapes: BTreeSet::new(),
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
        let (contractions, reshapes, pins) = (self.contractions, self.reshapes, self.pins);
        Analysis { units, groups: numbers.len(), contractions, reshapes, pins }
    }

    // ---- rules of the operators ----

    fn relate(&mut self, n: Node) {
        let g = self.g;
        let node = g.node(n);
        let tensors = node.inputs.iter().flatten().chain(&node.outputs).all(|&v| self.tensor(v).is_some());
        if !tensors || !node.regions.is_empty() {
            return self.hold_all(n, "is not followed by pruning");
        }
        let family = node.op.info().family;
        match &node.op {
            Op::BitCast(_) => self.hold_all(n, "changes the width of elements"),
            Op::CastLike(_) => self.broadcast(n, &[0]),
            _ if family == "elementwise" => self.broadcast(n, &(0..node.inputs.len()).collect::<Vec<_>>()),
            Op::Dropout(_) => {
                self.broadcast(n, &[0]);
                self.like_first(n, &[]);
            }
            Op::QuantizeLinear(op) if op.block_size == 0 => self.per_axis_scale(n, op.axis),
            Op::DequantizeLinear(op) if op.block_size == 0 => self.per_axis_scale(n, op.axis),
            Op::Conv(op) => self.conv(n, op.group as usize, false),
            Op::ConvTranspose(op) => self.conv(n, op.group as usize, true),
            Op::Gemm(op) => self.gemm(n, op.transA != 0, op.transB != 0),
            Op::MatMul(_) => self.matmul(n),
            Op::Einsum(op) => self.einsum(n, &op.equation),
            Op::GRU(_) | Op::LSTM(_) | Op::RNN(_) => self.recurrent(n),
            Op::BatchNormalization(op) if !op.training_mode && node.outputs.len() == 1 => self.per_channel(n),
            Op::InstanceNormalization(_) => self.per_channel(n),
            Op::AveragePool(_) | Op::LpPool(_) | Op::GlobalAveragePool(_) | Op::GlobalMaxPool(_) | Op::GlobalLpPool(_) => {
                self.pool(n);
            }
            Op::MaxPool(_) if node.outputs.len() == 1 => self.pool(n),
            Op::Softmax(op) => self.along(n, &[op.axis]),
            Op::LogSoftmax(op) => self.along(n, &[op.axis]),
            Op::Hardmax(op) => self.along(n, &[op.axis]),
            Op::LpNormalization(op) => self.along(n, &[op.axis]),
            Op::LRN(_) => self.along(n, &[1]),
            Op::LayerNormalization(op) => self.trailing(n, op.axis),
            Op::RMSNormalization(op) => self.trailing(n, op.axis),
            Op::ArgMax(op) => self.reduced(n, &[op.axis], op.keepdims),
            Op::ArgMin(op) => self.reduced(n, &[op.axis], op.keepdims),
            Op::ReduceMean(op) => self.reduce(n, op.keepdims, op.noop_with_empty_axes),
            Op::ReduceSum(op) => self.reduce(n, op.keepdims, op.noop_with_empty_axes),
            Op::ReduceMax(op) => self.reduce(n, op.keepdims, op.noop_with_empty_axes),
            Op::ReduceMin(op) => self.reduce(n, op.keepdims, op.noop_with_empty_axes),
            Op::ReduceL1(op) => self.reduce(n, op.keepdims, op.noop_with_empty_axes),
            Op::ReduceL2(op) => self.reduce(n, op.keepdims, op.noop_with_empty_axes),
            Op::ReduceSumSquare(op) => self.reduce(n, op.keepdims, op.noop_with_empty_axes),
            Op::Transpose(op) => self.transpose(n, &op.perm),
            Op::Reshape(_) | Op::Flatten(_) => self.reshape(n),
            Op::Squeeze(_) | Op::Unsqueeze(_) => self.reshape(n),
            Op::Concat(op) => self.concat(n, op.axis),
            Op::Split(op) => self.split(n, op.axis),
            Op::Slice(_) => self.slice(n),
            Op::Pad(_) => self.resized(n),
            Op::Resize(_) => self.resized(n),
            Op::Gather(op) => self.gather(n, op.axis),
            Op::Shape(_) | Op::Size(_) => self.hold_all(n, "asks for the size"),
            _ => self.hold_all(n, "is not followed by pruning"),
        }
    }

    /// Operands from `first` on are settings of the operator (axes, sizes, bounds), not data.
    fn settings(&mut self, n: Node, first: usize) {
        for v in self.g.node(n).inputs.iter().skip(first).flatten() {
            self.pin_value(*v);
        }
    }
    fn axis(&self, n: Node, operand: usize, axis: usize) -> Option<Axis> {
        let value = self.g.node(n).operand(operand)?;
        (axis < self.tensor(value)?.rank()).then_some(Axis { value, axis })
    }
    fn out(&self, n: Node, axis: usize) -> Axis {
        Axis { value: self.g.node(n).outputs[0], axis }
    }
    fn rank(&self, v: Value) -> usize {
        self.tensor(v).map_or(0, TensorType::rank)
    }
    fn rank_in(&self, n: Node, operand: usize) -> usize {
        self.g.node(n).operand(operand).map_or(0, |v| self.rank(v))
    }

    /// Ties axes by the rule of broadcasting.
    fn broadcast(&mut self, n: Node, operands: &[usize]) {
        let rank = self.rank(self.g.node(n).outputs[0]);
        for &k in operands {
            let own = self.rank_in(n, k);
            for axis in 0..own {
                let (a, out) = (self.axis(n, k, axis).expect("in range"), self.out(n, rank - own + axis));
                if self.start(a).is_some() || (self.extent(a) == 0 && self.start(out).is_some()) {
                    self.same(a, out);
                }
            }
        }
    }
    /// All results but the first have the axes of the first, except those in `held`.
    fn like_first(&mut self, n: Node, held: &[usize]) {
        let outputs = &self.g.node(n).outputs;
        for &o in &outputs[1..] {
            for axis in 0..self.rank(o) {
                let (a, b) = (Axis { value: o, axis }, Axis { value: outputs[0], axis });
                if held.contains(&axis) { self.hold(a, "") } else { self.same(a, b) }
            }
        }
    }
    fn per_axis_scale(&mut self, n: Node, axis: i64) {
        self.broadcast(n, &[0]);
        let Ok(axis) = normal_axis(axis, self.rank_in(n, 0)) else { return self.hold_all(n, "has no such axis") };
        for k in 1..3 {
            if let Some(a) = self.axis(n, k, 0) {
                self.same(a, self.out(n, axis));
            }
        }
    }
    /// Weights `[M, C / group, ...]`, transposed `[C, M / group, ...]`.
    fn conv(&mut self, n: Node, group: usize, transposed: bool) {
        let (Some(x), Some(w0), Some(w1)) = (self.axis(n, 0, 1), self.axis(n, 1, 0), self.axis(n, 1, 1)) else {
            return self.hold_all(n, "has too few axes");
        };
        let y = self.out(n, 1);
        if let (Some(a), out) = (self.axis(n, 0, 0), self.out(n, 0)) {
            self.same(a, out);
        }
        for axis in 2..self.rank(y.value) {
            [self.axis(n, 0, axis), self.axis(n, 1, axis), Some(self.out(n, axis))]
                .into_iter()
                .flatten()
                .for_each(|a| self.hold(a, "works on windows of the axis"));
        }
        let (c, m) = (self.extent(x), self.extent(y));
        if group == 0 || c == 0 || m == 0 || c % group != 0 || m % group != 0 {
            return [x, y, w0, w1].into_iter().for_each(|a| self.hold(a, "has channels that groups do not divide"));
        }
        let (per_in, per_out) = (c / group, m / group);
        // Whole groups go where a group is one channel; else the same channels of all groups.
        if group > 1 && per_in == 1 {
            self.tie(y, x, |i| Some(i / per_out));
            if transposed {
                self.same(w0, x);
                self.hold(w1, "is the number of channels that each channel makes");
            } else {
                self.same(w0, y);
            }
        } else {
            let (rows, columns) = if transposed { (w1, w0) } else { (w0, w1) };
            if group > 1 {
                self.tie(x, x, |i| Some(i % per_in));
                self.tie(y, y, |i| Some(i % per_out));
            }
            self.tie(rows, y, Some);
            self.tie(columns, x, |i| Some(if transposed { i } else { i % per_in }));
            self.contract(n, 0, x);
        }
        if let Some(bias) = self.axis(n, 2, 0) {
            self.same(bias, y);
        }
    }
    fn gemm(&mut self, n: Node, trans_a: bool, trans_b: bool) {
        let pick = |t: bool, k: usize| if t { 1 - k } else { k };
        let axes = [(0, pick(trans_a, 0)), (0, pick(trans_a, 1)), (1, pick(trans_b, 0)), (1, pick(trans_b, 1))];
        let [Some(m), Some(k), Some(l), Some(o)] = axes.map(|(operand, axis)| self.axis(n, operand, axis)) else {
            return self.hold_all(n, "has too few axes");
        };
        self.same(k, l);
        self.contract(n, 0, k);
        self.same(m, self.out(n, 0));
        self.same(o, self.out(n, 1));
        self.broadcast(n, &[2]);
    }
    fn matmul(&mut self, n: Node) {
        let (ra, rb) = (self.rank_in(n, 0), self.rank_in(n, 1));
        if ra < 2 || rb < 2 {
            return self.hold_all(n, "multiplies a vector");
        }
        let rank = ra.max(rb);
        let at = |s: &Self, k: usize, axis: usize| s.axis(n, k, axis).expect("in range");
        let (k, l) = (at(self, 0, ra - 1), at(self, 1, rb - 2));
        self.same(k, l);
        self.contract(n, 0, k);
        self.same(at(self, 0, ra - 2), self.out(n, rank - 2));
        self.same(at(self, 1, rb - 1), self.out(n, rank - 1));
        for (operand, own) in [(0, ra), (1, rb)] {
            for axis in 0..own - 2 {
                let (a, out) = (at(self, operand, axis), self.out(n, rank - own + axis));
                if self.start(a).is_some() || (self.extent(a) == 0 && self.start(out).is_some()) {
                    self.same(a, out);
                }
            }
        }
    }
    fn einsum(&mut self, n: Node, equation: &str) {
        let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let Some((left, right)) = text.split_once("->").filter(|_| !text.contains('.')) else {
            return self.hold_all(n, "has an equation that pruning does not follow");
        };
        let mut seen: BTreeMap<char, Axis> = BTreeMap::new();
        let terms: Vec<&str> = left.split(',').collect();
        for (k, term) in terms.iter().enumerate() {
            for (axis, label) in term.chars().enumerate() {
                let Some(a) = self.axis(n, k, axis) else { continue };
                match seen.get(&label) {
                    Some(&b) if self.extent(a) != 1 && self.extent(b) != 1 => self.same(b, a),
                    Some(&b) => [a, b].into_iter().for_each(|a| self.hold(a, "is broadcast in an equation")),
                    None => _ = seen.insert(label, a),
                }
            }
        }
        for (label, a) in seen.clone() {
            match right.chars().position(|c| c == label) {
                Some(axis) => self.same(a, self.out(n, axis)),
                None if terms.iter().filter(|t| t.contains(label)).count() > 1 || terms.len() == 1 => {
                    let k = terms.iter().position(|t| t.contains(label)).expect("seen");
                    self.contract(n, k, a);
                }
                None => self.hold(a, "is summed in an equation"),
            }
        }
    }
    /// The features of the sequence are contracted; everything else of a recurrent layer stays.
    fn recurrent(&mut self, n: Node) {
        let (Some(x), Some(w)) = (self.axis(n, 0, 2), self.axis(n, 1, 2)) else { return self.hold_all(n, "has too few axes") };
        let node = self.g.node(n);
        for &v in node.inputs.iter().flatten().chain(&node.outputs) {
            for axis in 0..self.rank(v) {
                let a = Axis { value: v, axis };
                if a != x && a != w {
                    self.hold(a, "is a state of a recurrent layer");
                }
            }
        }
        self.same(x, w);
        self.contract(n, 0, x);
    }
    fn per_channel(&mut self, n: Node) {
        self.broadcast(n, &[0]);
        for k in 1..self.g.node(n).inputs.len() {
            if let Some(a) = self.axis(n, k, 0) {
                self.same(a, self.out(n, 1));
            }
        }
        if matches!(self.g.node(n).op, Op::InstanceNormalization(_)) {
            (2..self.rank_in(n, 0)).for_each(|axis| self.hold(self.out(n, axis), "normalises over the axis"));
        }
    }
    fn pool(&mut self, n: Node) {
        for axis in 0..self.rank_in(n, 0) {
            let (a, out) = (self.axis(n, 0, axis).expect("in range"), self.out(n, axis));
            if axis < 2 {
                self.same(a, out);
            } else {
                [a, out].into_iter().for_each(|a| self.hold(a, "works on windows of the axis"));
            }
        }
    }
    /// Ties all axes of operand 0 and result; those in `axes` are held.
    fn along(&mut self, n: Node, axes: &[i64]) {
        self.broadcast(n, &[0]);
        for &axis in axes {
            match normal_axis(axis, self.rank_in(n, 0)) {
                Ok(axis) => self.hold(self.out(n, axis), "works along the axis"),
                Err(_) => self.hold_all(n, "has no such axis"),
            }
        }
    }
    fn trailing(&mut self, n: Node, axis: i64) {
        let rank = self.rank_in(n, 0);
        let first = normal_axis(axis, rank).unwrap_or(0);
        self.along(n, &(first as i64..rank as i64).collect::<Vec<_>>());
        for k in 1..self.g.node(n).inputs.len() {
            let own = self.rank_in(n, k);
            for axis in 0..own {
                self.hold(self.axis(n, k, axis).expect("in range"), "normalises over the axis");
            }
        }
        self.like_first_reduced(n, first);
    }
    /// Further results of a normalisation (mean, inverse deviation): leading axes are shared.
    fn like_first_reduced(&mut self, n: Node, first: usize) {
        let held: Vec<usize> = (first..self.rank_in(n, 0)).collect();
        self.like_first(n, &held);
    }
    fn reduce(&mut self, n: Node, keep: bool, noop: bool) {
        self.settings(n, 1);
        let rank = self.rank_in(n, 0);
        match self.g.node(n).operand(1) {
            None if noop => self.broadcast(n, &[0]),
            None => self.reduced(n, &(0..rank as i64).collect::<Vec<_>>(), keep),
            Some(axes) => match self.g.constant(axes).map(|t| t.to_ints()) {
                Some(axes) if axes.is_empty() && noop => self.broadcast(n, &[0]),
                Some(axes) if axes.is_empty() => self.reduced(n, &(0..rank as i64).collect::<Vec<_>>(), keep),
                Some(axes) => self.reduced(n, &axes, keep),
                None => self.hold_all(n, "reduces axes that are data"),
            },
        }
    }
    fn reduced(&mut self, n: Node, axes: &[i64], keep: bool) {
        let rank = self.rank_in(n, 0);
        let axes: Vec<usize> = axes.iter().filter_map(|&a| normal_axis(a, rank).ok()).collect();
        let mut at = 0;
        for axis in 0..rank {
            let a = self.axis(n, 0, axis).expect("in range");
            if axes.contains(&axis) {
                self.hold(a, "reduces the axis");
                at += usize::from(keep);
            } else {
                self.same(a, self.out(n, at));
                at += 1;
            }
        }
    }
    fn transpose(&mut self, n: Node, perm: &[i64]) {
        let rank = self.rank_in(n, 0);
        for k in 0..rank {
            let from = perm.get(k).map_or(rank - 1 - k, |&p| p as usize);
            match self.axis(n, 0, from) {
                Some(a) => self.same(a, self.out(n, k)),
                None => return self.hold_all(n, "has no such axis"),
            }
        }
    }
    fn concat(&mut self, n: Node, axis: i64) {
        let y = self.g.node(n).outputs[0];
        let Ok(axis) = normal_axis(axis, self.rank(y)) else { return self.hold_all(n, "has no such axis") };
        let mut at = Some(0);
        for k in 0..self.g.node(n).inputs.len() {
            for a in 0..self.rank(y) {
                let (x, out) = (self.axis(n, k, a).expect("in range"), Axis { value: y, axis: a });
                match at {
                    _ if a != axis => self.same(x, out),
                    Some(from) if self.start(x).is_some() && self.start(out).is_some() => self.tie(x, out, |i| Some(from + i)),
                    _ => [x, out].into_iter().for_each(|a| self.hold(a, "joins axes of open extent")),
                }
                // A part of one channel has no cells of its own: it stays.
                if a == axis
                    && self.extent(x) == 1
                    && let (Some(from), Some(first)) = (at, self.start(out))
                {
                    self.pin_cell(first + from as u32);
                }
            }
            let size = self.axis(n, k, axis).map_or(0, |a| self.extent(a));
            at = at.filter(|_| size > 0).map(|from| from + size);
        }
    }
    fn split(&mut self, n: Node, axis: i64) {
        self.settings(n, 1);
        let rank = self.rank_in(n, 0);
        let Ok(axis) = normal_axis(axis, rank) else { return self.hold_all(n, "has no such axis") };
        let sizes_known = self.g.node(n).operand(1).is_none_or(|v| self.g.constant(v).is_some());
        let mut from = 0;
        for (k, &o) in self.g.node(n).outputs.clone().iter().enumerate() {
            for a in 0..rank {
                let (x, out) = (self.axis(n, 0, a).expect("in range"), Axis { value: o, axis: a });
                if a != axis {
                    self.same(x, out);
                } else if sizes_known && self.start(x).is_some() && self.start(out).is_some() {
                    self.tie(out, x, |i| Some(from + i));
                } else {
                    [x, out].into_iter().for_each(|a| self.hold(a, "cuts an axis of open extent"));
                }
            }
            from += self.extent(Axis { value: o, axis });
            debug_assert!(k < self.g.node(n).outputs.len());
        }
    }
    fn slice(&mut self, n: Node) {
        self.settings(n, 1);
        let Some(plan) = slice_plan(self.g, n) else { return self.hold_all(n, "cuts by data") };
        for (axis, cut) in plan.into_iter().enumerate() {
            let (x, out) = (self.axis(n, 0, axis).expect("in range"), self.out(n, axis));
            match cut {
                None => self.same(x, out),
                Some((start, 1)) if self.start(x).is_some() && self.start(out).is_some() => self.tie(out, x, |i| Some(start + i)),
                Some(_) => [x, out].into_iter().for_each(|a| self.hold(a, "cuts the axis")),
            }
        }
    }
    /// Axes that keep their extent are tied, others are held. Positions must not move along a tied axis.
    fn resized(&mut self, n: Node) {
        self.settings(n, 1);
        let rank = self.rank_in(n, 0);
        let unpadded: Vec<bool> = match &self.g.node(n).op {
            Op::Pad(_) if self.g.node(n).operand(3).is_some() => return self.hold_all(n, "pads chosen axes"),
            Op::Pad(_) => match self.g.node(n).operand(1).and_then(|v| self.g.constant(v)).map(|t| t.to_ints()) {
                Some(p) if p.len() == 2 * rank => (0..rank).map(|i| p[i] == 0 && p[i + rank] == 0).collect(),
                _ => return self.hold_all(n, "pads by data"),
            },
            // Sampling is the identity where the extent stays, but only channels have no coordinates to transform.
            _ => (0..rank).map(|axis| axis < 2).collect(),
        };
        for axis in 0..rank {
            let (x, out) = (self.axis(n, 0, axis).expect("in range"), self.out(n, axis));
            if unpadded[axis] && self.extent(x) == self.extent(out) {
                self.same(x, out);
            } else {
                [x, out].into_iter().for_each(|a| self.hold(a, "changes the extent of the axis"));
            }
        }
    }
    fn gather(&mut self, n: Node, axis: i64) {
        let (rank, indices) = (self.rank_in(n, 0), self.rank_in(n, 1));
        let Ok(axis) = normal_axis(axis, rank) else { return self.hold_all(n, "has no such axis") };
        for a in 0..rank {
            let x = self.axis(n, 0, a).expect("in range");
            match a.cmp(&axis) {
                std::cmp::Ordering::Less => self.same(x, self.out(n, a)),
                std::cmp::Ordering::Equal => self.hold(x, "is indexed"),
                std::cmp::Ordering::Greater => self.same(x, self.out(n, a + indices - 1)),
            }
        }
        for k in 0..indices {
            let a = self.axis(n, 1, k).expect("in range");
            self.same(a, self.out(n, axis + k));
        }
    }
    fn reshape(&mut self, n: Node) {
        self.settings(n, 1);
        let y = self.tensor(self.g.node(n).outputs[0]).expect("a tensor");
        let dims: Vec<Option<usize>> = y.dims.iter().map(|d| d.known().map(|n| n as usize)).collect();
        if matches!(&self.g.node(n).op, Op::Reshape(op) if op.allowzero) || reshape_dims(self.g, n, &dims).is_none() {
            return self.hold_all(n, "has dims that pruning cannot write anew");
        }
        for group in reshape_groups(self.g, n) {
            if let ([a], [b]) = (&group.from[..], &group.to[..]) {
                self.same(*a, *b);
                self.reshapes.insert(n);
                continue;
            }
            let chosen = group.split().and_then(|(one, many)| {
                let k = *self.choice.get(&(n, group.start))?;
                Some((one, many.get(k).copied()?, many[k + 1..].iter().map(|&a| self.extent(a)).product::<usize>()))
            });
            let Some((one, factor, inner)) = chosen else {
                let why = if self.choice.is_empty() { "" } else { "mixes axes" };
                let whole = self.choice.is_empty();
                // The first walk holds none of them, to see which factors others hold.
                let held = if whole && group.split().is_some() { vec![] } else { [group.from, group.to].concat() };
                held.into_iter().for_each(|a| self.hold(a, why));
                continue;
            };
            let n_factor = self.extent(factor);
            self.tie(one, factor, |p| Some((p / inner.max(1)) % n_factor.max(1)));
            let others: Vec<Axis> = group.from.iter().chain(&group.to).copied().filter(|&a| a != one && a != factor).collect();
            others.into_iter().for_each(|a| self.hold(a, "shares an axis with the factor that is pruned"));
            self.reshapes.insert(n);
        }
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
