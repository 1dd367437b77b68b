//! What each operator ties, contracts and holds.

use super::{Axis, Cells, reshape_dims, reshape_groups, slice_plan};
use infc_ir::graph::{Node, Value};
use infc_ir::op::normal_axis;
use infc_ir::{Op, TensorType};
use std::collections::BTreeMap;

impl Cells<'_> {
    pub(super) fn relate(&mut self, n: Node) {
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
        for &o in &self.g.node(n).outputs.clone() {
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
                continue;
            }
            let chosen = group.split().and_then(|(one, many)| {
                let k = *self.choice.as_ref()?.get(&(n, group.start))?;
                Some((one, many.get(k).copied()?, many[k + 1..].iter().map(|&a| self.extent(a)).product::<usize>()))
            });
            let Some((one, factor, inner)) = chosen else {
                let whole = self.choice.is_none();
                let why = if whole { "" } else { "mixes axes" };
                // The first walk holds none of them, to see which factors others hold.
                let held = if whole && group.split().is_some() { vec![] } else { [group.from, group.to].concat() };
                held.into_iter().for_each(|a| self.hold(a, why));
                continue;
            };
            let n_factor = self.extent(factor);
            self.tie(one, factor, |p| Some((p / inner.max(1)) % n_factor.max(1)));
            let others: Vec<Axis> = group.from.iter().chain(&group.to).copied().filter(|&a| a != one && a != factor).collect();
            others.into_iter().for_each(|a| self.hold(a, "shares an axis with the factor that is pruned"));
        }
    }
}
