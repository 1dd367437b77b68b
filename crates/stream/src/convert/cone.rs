//! Real numbers between streams of integers: what lies between DequantizeLinear and QuantizeLinear.
//!
//! The *cone* of a QuantizeLinear is all that it is computed from, back to streams. Element by element over one stream it is a table; over two
//! a table of pairs, which is a sum or product in integers where such a form is equal for all pairs. The tables are made by the
//! graph's own operators, so they are what every other target computes.

use super::layout::{channels_last, row_major};
use super::*;
use crate::requant::multiplied;
use infc_ir::Tensor;
use infc_ir::interp::eval_op;

/// Widest operand of a table.
const TABLE_BITS: u32 = 12;
/// Largest shift that is tried for sums.
const SHIFTS: u32 = 22;

/// Works element by element.
pub(super) fn is_elementwise(op: &Op) -> bool {
    op.info().family == "elementwise"
}

/// Takes elements of its first operand and changes none.
pub(super) fn is_movement(op: &Op) -> bool {
    match op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Transpose(_) | Op::Identity(_) => true,
        Op::Slice(_) | Op::Split(_) | Op::Gather(_) | Op::DepthToSpace(_) | Op::SpaceToDepth(_) | Op::Expand(_) | Op::Tile(_) => {
            true
        }
        Op::Resize(op) => op.mode == "nearest" && op.coordinate_transformation_mode != "tf_crop_and_resize",
        _ => false,
    }
}

/// What a value is computed from.
#[derive(Default)]
struct Cone {
    /// Streams.
    leaves: Vec<Value>,
    /// Operators in order.
    nodes: Vec<Node>,
}

/// A function of pairs, for all that can occur.
struct Pairs {
    /// Elements of both operands and the result.
    points: Vec<[i64; 3]>,
    min: i64,
    max: i64,
}

impl Converter<'_> {
    /// The cone of `v`, as far as it works element by element. `n` is told of what does not.
    fn cone(&self, n: Node, v: Value, cone: &mut Cone) -> Outcome<()> {
        if self.failed.contains(&v) {
            return Err(None);
        }
        if self.flows.contains_key(&v) {
            if !cone.leaves.contains(&v) {
                cone.leaves.push(v);
            }
            return Ok(());
        }
        if let Some(t) = self.graph.constant(v) {
            if t.len() == 1 {
                return Ok(());
            }
            let message = format!("cannot stream: the constant {}{:?} differs by element", t.dtype, t.dims);
            return Err(self.problem(n, message, "put constants by channel into the weights before, or use one value"));
        }
        let Some(p) = self.producer(v) else {
            let name = &self.graph.value(v).name;
            let message = format!("the model's input '{name}' is real numbers and no QuantizeLinear is the first to read it");
            return Err(self.problem(
                n,
                message,
                "quantise the input in the model, or give its format (--input-format NAME=BITS:SCALE)",
            ));
        };
        let data = self.graph.node(p);
        if !is_elementwise(&data.op) && !matches!(data.op, Op::DequantizeLinear(_) | Op::QuantizeLinear(_)) {
            let (at, help) = (self.graph.describe(p), "put QuantizeLinear and DequantizeLinear behind it");
            return Err(self.problem(n, format!("cannot stream: its operand is real numbers from {at}"), help));
        }
        for &input in data.inputs.iter().flatten() {
            self.cone(n, input, cone)?;
        }
        if !cone.nodes.contains(&p) {
            cone.nodes.push(p);
        }
        Ok(())
    }

    /// Runs a cone and the node that ends it on tensors of the leaves.
    fn run(&self, cone: &Cone, last: Node, leaves: &[Tensor]) -> Result<Vec<i64>, Fault> {
        let mut known: HashMap<Value, Tensor> = cone.leaves.iter().copied().zip(leaves.iter().cloned()).collect();
        for &n in cone.nodes.iter().chain([&last]) {
            let data = self.graph.node(n);
            let operand = |v: &Value| match (known.get(v), self.graph.constant(*v)) {
                (Some(t), _) => Some(t.clone()),
                (None, Some(t)) => Some(if t.len() == 1 { t.reshape([]) } else { t.clone() }),
                (None, None) => None,
            };
            let operands: Vec<Option<Tensor>> = data.inputs.iter().map(|v| v.as_ref().and_then(operand)).collect();
            let results = eval_op(&data.op, &operands, data.outputs.len())?;
            known.extend(data.outputs.iter().copied().zip(results));
        }
        Ok(known[&self.graph.node(last).outputs[0]].to_ints())
    }

    fn as_tensor(&self, v: Value, values: impl Iterator<Item = i64>, dims: &[usize]) -> Tensor {
        Tensor::from_values(self.dtype(v), dims, values.map(|q| q as u64))
    }

    pub(super) fn quantiser(&mut self, n: Node) -> Outcome<()> {
        let v = self.operand(n, 0)?;
        if self.constant(n, 1, "scale")?.len() != 1 {
            return Err(self.problem(
                n,
                "cannot stream: data is quantised with a scale a channel",
                "use one scale for each tensor of data",
            ));
        }
        if !self.dtype(self.graph.node(n).outputs[0]).is_int() {
            let dtype = self.dtype(self.graph.node(n).outputs[0]);
            return Err(self.problem(n, format!("cannot stream: it quantises to {dtype}"), "use integers of up to 8 bits"));
        }
        if self.input(n, v)? || self.accumulated(n, v)? || self.softmax(n, v)? {
            return Ok(());
        }
        if let Some(p) = self.producer(v)
            && matches!(self.graph.node(p).op, Op::GlobalMaxPool(_))
        {
            return self.largest(n, p);
        }
        self.table(n)
    }

    /// The quantiser of a model input: the host does it.
    fn input(&mut self, n: Node, v: Value) -> Outcome<bool> {
        let (mut at, mut clips) = (v, vec![]);
        while let Some(p) = self.producer(at) {
            let data = self.graph.node(p);
            match &data.op {
                Op::Clip(_) => clips.push(p),
                _ => return Ok(false),
            }
            at = self.operand(p, 0)?;
        }
        let Some(i) = self.graph.inputs().iter().position(|&input| input == at) else { return Ok(false) };
        let y = self.graph.node(n).outputs[0];
        let (scale, zero) = (self.constant(n, 1, "scale")?.float(0) as f32, self.zero_point(n, 2)?);
        // The limits that clips leave, as they are stored.
        let mut ends = vec![f32::MIN, f32::MAX];
        for p in clips.into_iter().rev() {
            let limits =
                [1, 2].map(|i| self.graph.node(p).operand(i).and_then(|v| self.graph.constant(v)).map(|t| t.float(0) as f32));
            ends.iter_mut().for_each(|e| *e = e.max(limits[0].unwrap_or(f32::MIN)).min(limits[1].unwrap_or(f32::MAX)));
        }
        let mut operands = vec![Some(Tensor::from_vec([2], ends))];
        for i in 1..self.graph.node(n).inputs.len() {
            operands.push(self.graph.node(n).operand(i).and_then(|v| self.graph.constant(v)).map(|t| t.reshape([])));
        }
        let stored = eval_op(&self.graph.node(n).op, &operands, 1).map_err(|f| self.fault(n, f))?[0].to_ints();
        if self.edges.iter().any(|e| matches!(self.actors[e.from].kind, Kind::Source(k) if k == i))
            || self.inputs[i].scale.is_some()
        {
            return Err(self.problem(n, "cannot stream: the model's input is quantised twice, in two ways", "quantise it once"));
        }
        (self.inputs[i].scale, self.inputs[i].zero) = (Some(scale), zero);
        let flow = self.source(i, [stored[0], stored[1]]);
        self.flows.insert(y, flow);
        Ok(true)
    }

    /// A zero point for a whole tensor; 0 where there is none.
    pub(super) fn zero_point(&self, n: Node, i: usize) -> Outcome<i64> {
        match self.graph.node(n).operand(i) {
            None => Ok(0),
            Some(_) => Ok(self.constant(n, i, "zero point")?.to_ints().first().copied().unwrap_or(0)),
        }
    }

    /// The parts of `[bias +] product of integers`.
    fn integer_product(&self, v: Value) -> Option<(Node, Option<Vec<i64>>)> {
        let p = self.producer(v)?;
        let data = self.graph.node(p);
        match data.op {
            Op::MatMulInteger(_) => Some((p, None)),
            Op::Add(_) => {
                let constant = |i: usize| data.operand(i).and_then(|v| self.graph.constant(v)).map(|t| t.to_ints());
                let (i, bias) = [0, 1].into_iter().find_map(|i| Some((i, constant(i)?)))?;
                let inner = self.producer(data.operand(1 - i)?)?;
                matches!(self.graph.node(inner).op, Op::MatMulInteger(_)).then_some((inner, Some(bias)))
            }
            _ => None,
        }
    }

    /// `Q(f32(integer product + bias) * m)`.
    fn accumulated(&mut self, n: Node, v: Value) -> Outcome<bool> {
        let Some(p) = self.producer(v).filter(|&p| matches!(self.graph.node(p).op, Op::Mul(_))) else { return Ok(false) };
        let (Some(a), Some(m)) = (self.graph.node(p).operand(0), self.graph.node(p).operand(1)) else { return Ok(false) };
        let Some(m) = self.graph.constant(m).cloned() else { return Ok(false) };
        let Some(cast) = self.producer(a).filter(|&c| matches!(self.graph.node(c).op, Op::Cast(_))) else { return Ok(false) };
        let Some((product, bias)) = self.integer_product(self.operand(cast, 0)?) else { return Ok(false) };
        if self.constant(n, 1, "scale")?.float(0) != 1.0 {
            return Ok(false);
        }
        let law = Law { m: (0..m.len()).map(|c| m.float(c) as f32).collect(), zero: self.zero_point(n, 2)? };
        let y = self.graph.node(n).outputs[0];
        self.integer_matrix(n, product, bias, Some(law), y)?;
        Ok(true)
    }

    /// A MatMulInteger as a stream.
    pub(super) fn integer_matrix(
        &mut self,
        n: Node,
        product: Node,
        bias: Option<Vec<i64>>,
        law: Option<Law>,
        y: Value,
    ) -> Outcome<()> {
        let x = self.operand(product, 0)?;
        let w = self.constant(product, 1, "matrix")?.clone();
        let x_zero = self.zero_point(product, 2)?;
        let zeros = match self.graph.node(product).operand(3) {
            None => vec![0],
            Some(_) => self.constant(product, 3, "zero point of the weights")?.to_ints(),
        };
        self.product(n, x, &w, x_zero, &zeros, bias, law, y)
    }

    /// Raw accumulators as an output of the model.
    pub(super) fn raw_accumulators(&mut self, v: Value) -> Outcome<Option<Flow>> {
        let Some((product, bias)) = self.integer_product(v) else { return Ok(None) };
        let n = self.producer(v).expect("has one");
        self.integer_matrix(n, product, bias, None, v)?;
        Ok(self.flows.get(&v).cloned())
    }

    /// Q(GlobalMaxPool(DQ(x))).
    fn largest(&mut self, n: Node, pool: Node) -> Outcome<()> {
        let inner = self.operand(pool, 0)?;
        let dq = self.producer(inner).filter(|&d| matches!(self.graph.node(d).op, Op::DequantizeLinear(_)));
        let Some(dq) = dq else { return self.table(n) };
        let x = self.operand(dq, 0)?;
        let flow = self.flow(n, x)?;
        let made = self.global_max(pool, &flow)?;
        let cone = Cone { leaves: vec![x], nodes: vec![dq] };
        let every = all(made.format);
        let t = self.as_tensor(x, every.iter().copied(), &[every.len()]);
        // The quantiser reads the pool: for one element that is its operand.
        let mut known = self.run_chain(&cone, &t)?;
        let mut operands = vec![Some(known.remove(0))];
        operands
            .extend((1..3).map(|i| self.graph.node(n).operand(i).and_then(|v| self.graph.constant(v)).map(|t| t.reshape([]))));
        let table = eval_op(&self.graph.node(n).op, &operands, 1).map_err(|f| self.fault(n, f))?[0].to_ints();
        self.unary(n, &made, None, table)
    }

    fn run_chain(&self, cone: &Cone, leaf: &Tensor) -> Outcome<Vec<Tensor>> {
        let dq = cone.nodes[0];
        let constants =
            (1..3).map(|i| self.graph.node(dq).operand(i).and_then(|v| self.graph.constant(v)).map(|t| t.reshape([])));
        let operands: Vec<Option<Tensor>> = std::iter::once(Some(leaf.clone())).chain(constants).collect();
        eval_op(&self.graph.node(dq).op, &operands, 1).map_err(|f| self.fault(dq, f))
    }

    /// A node whose cone works element by element, as a table of one stream or a function of two.
    pub(super) fn table(&mut self, n: Node) -> Outcome<()> {
        let mut cone = Cone::default();
        for &v in self.graph.node(n).inputs.clone().iter().flatten() {
            self.cone(n, v, &mut cone)?;
        }
        let y = self.graph.node(n).outputs[0];
        let dims = self.dims(y).unwrap_or_default();
        for &leaf in &cone.leaves {
            let flow = self.flow(n, leaf)?;
            if flow.dims != dims {
                let message = format!("cannot stream: an operand of dims {:?} is broadcast to {dims:?}", flow.dims);
                return Err(self.problem(n, message, "operands that meet must have equal dims"));
            }
            if flow.format.bits > TABLE_BITS {
                let message = format!("cannot stream: a function of {} bits is too large for a table", flow.format.bits);
                return Err(self.problem(n, message, "quantise its operand to 8 bits"));
            }
        }
        match cone.leaves[..] {
            [a] => {
                let flow = self.flow(n, a)?;
                let every = all(flow.format);
                let t = self.as_tensor(a, every.iter().copied(), &[every.len()]);
                let table = self.run(&cone, n, &[t]).map_err(|f| self.fault(n, f))?;
                self.unary(n, &flow, Some(a), table)
            }
            [a, b] => self.binary(n, &cone, a, b),
            [] => Err(self.problem(n, "cannot stream: it depends on no stream", "let constants be folded")),
            _ => {
                let help = "put QuantizeLinear and DequantizeLinear between the operators";
                Err(self.problem(n, format!("cannot stream: {} streams meet in one function", cone.leaves.len()), help))
            }
        }
    }

    /// `table[x]`; limits go to the actor before, where it can take them. `from` is the value that is read.
    fn unary(&mut self, n: Node, flow: &Flow, from: Option<Value>, table: Vec<i64>) -> Outcome<()> {
        let y = self.graph.node(n).outputs[0];
        let (least, [lo, hi]) = (flow.format.min(), flow.range);
        let at = |q: i64| table[(q - least) as usize];
        let values: Vec<i64> = (lo..=hi).map(at).collect();
        let range = [values.iter().min(), values.iter().max()].map(|v| v.copied().unwrap_or(0));
        let (scale, zero) = (self.constant(n, 1, "scale").ok().filter(|t| t.len() == 1).map(|t| t.float(0) as f32), 0);
        let zero = if matches!(self.graph.node(n).op, Op::QuantizeLinear(_)) { self.zero_point(n, 2)? } else { zero };
        let scale = if matches!(self.graph.node(n).op, Op::QuantizeLinear(_)) { scale } else { flow.scale };
        let format = Format::of(range[0], range[1]);
        if (lo..=hi).all(|q| at(q) == q) {
            self.flows.insert(y, Flow { scale, zero, ..flow.clone() });
            return Ok(());
        }
        let limits = (lo..=hi).all(|q| at(q) == q.clamp(range[0], range[1]));
        if limits
            && from.is_some()
            && self.only_reader(flow.actor)
            && let Some(r) = requant_of(&mut self.actors[flow.actor].kind)
        {
            (r.min, r.max) = (r.min.clamp(range[0], range[1]), r.max.clamp(range[0], range[1]));
            r.out = Format::of(r.min, r.max);
            let (range, format) = ([r.min, r.max], r.out);
            self.flows.insert(y, Flow { range, format, scale, zero, ..flow.clone() });
            return Ok(());
        }
        let shape = self.pixels(flow);
        let actor = self.actor(n, "lookup", Kind::Lookup(Lookup { table }), &[(flow, shape)]);
        self.flows.insert(y, Flow { actor, range, format, scale, zero, ..flow.clone() });
        Ok(())
    }

    /// A stream as pixels and channels, where its innermost loop is the channels.
    pub(super) fn pixels(&self, flow: &Flow) -> [usize; 3] {
        let innermost = flow.order.iter().rev().find(|l| l.0 != 1).map_or(1, |l| l.0);
        [1, flow.elements() / innermost, innermost]
    }

    /// Nothing reads the actor yet, and one value at most will.
    fn only_reader(&self, actor: usize) -> bool {
        self.edges.iter().all(|e| e.from != actor)
            && self.flows.iter().filter(|(_, f)| f.actor == actor).all(|(v, _)| self.uses[v.index()] <= 1)
    }

    fn binary(&mut self, n: Node, cone: &Cone, a: Value, b: Value) -> Outcome<()> {
        let (fa, fb) = (self.flow(n, a)?, self.flow(n, b)?);
        let fb = self.reordered(n, fb, &fa.order)?;
        let (all_a, all_b) = (all(fa.format), all(fb.format));
        let count = all_a.len() * all_b.len();
        if fa.format.bits + fb.format.bits > 2 * 8 {
            return Err(self.problem(
                n,
                "cannot stream: its operands are too wide for a function of pairs",
                "quantise them to 8 bits",
            ));
        }
        let ta = self.as_tensor(a, all_a.iter().flat_map(|&x| std::iter::repeat_n(x, all_b.len())), &[count]);
        let tb = self.as_tensor(b, all_a.iter().flat_map(|_| all_b.iter().copied()), &[count]);
        let table = self.run(cone, n, &[ta, tb]).map_err(|f| self.fault(n, f))?;
        let at = |x: i64, y: i64| table[(x - fa.format.min()) as usize * all_b.len() + (y - fb.format.min()) as usize];
        let points: Vec<[i64; 3]> = (fa.range[0]..=fa.range[1])
            .flat_map(|x| (fb.range[0]..=fb.range[1]).map(move |y| (x, y)))
            .map(|(x, y)| [x, y, at(x, y)])
            .collect();
        let (min, max) = points.iter().fold((i64::MAX, i64::MIN), |(l, h), p| (l.min(p[2]), h.max(p[2])));
        let pairs = Pairs { points, min, max };
        let y = self.graph.node(n).outputs[0];
        let quantiser = matches!(self.graph.node(n).op, Op::QuantizeLinear(_));
        let sy = if quantiser { self.constant(n, 1, "scale")?.float(0) } else { 1.0 };
        let zero = if quantiser { self.zero_point(n, 2)? } else { 0 };
        let [(sa, za), (sb, zb)] =
            [(a, &fa), (b, &fb)].map(|(v, f)| self.dequantised(cone, v).unwrap_or((f.scale.unwrap_or(1.0), f.zero)));
        let slopes = [sa, sb].map(f64::from);
        let kind = sum_form(&pairs, slopes.map(|s| s / sy), [za, zb], zero)
            .or_else(|| product_form(&pairs, slopes[0] * slopes[1] / sy, [za, zb]))
            .unwrap_or(Binary::Table { table });
        let (suffix, format) = match &kind {
            Binary::Add { .. } => ("add", Format::of(min, max)),
            Binary::Mul { .. } => ("mul", Format::of(min, max)),
            Binary::Table { table } => {
                let ends = table.iter().fold((0, 0), |(l, h): (i64, i64), &v| (l.min(v), h.max(v)));
                ("pairs", Format::of(ends.0, ends.1))
            }
        };
        let shape = self.pixels(&fa);
        let actor = self.actor(n, suffix, Kind::Binary(kind), &[(&fa, shape), (&fb, shape)]);
        let scale = quantiser.then_some(sy as f32);
        self.flows.insert(y, Flow { actor, range: [min, max], format, scale, zero, ..fa });
        Ok(())
    }

    /// Scale and zero point with which a cone dequantises a stream.
    fn dequantised(&self, cone: &Cone, v: Value) -> Option<(f32, i64)> {
        let dq = cone.nodes.iter().find(|&&n| {
            let data = self.graph.node(n);
            matches!(data.op, Op::DequantizeLinear(_)) && data.operand(0) == Some(v)
        })?;
        let scale = self.graph.constant(self.graph.node(*dq).operand(1)?)?.float(0) as f32;
        Some((scale, self.zero_point(*dq, 2).ok()?))
    }

    /// `Q(softmax(DQ(x)))` along the innermost axis.
    fn softmax(&mut self, n: Node, v: Value) -> Outcome<bool> {
        let Some(p) = self.producer(v) else { return Ok(false) };
        let Op::Softmax(op) = self.graph.node(p).op.clone() else { return Ok(false) };
        let inner = self.operand(p, 0)?;
        let mut cone = Cone::default();
        self.cone(n, inner, &mut cone)?;
        let ([x], [dq]) = (&cone.leaves[..], &cone.nodes[..]) else {
            let help = "put QuantizeLinear and DequantizeLinear right before and behind it";
            return Err(self.problem(p, "cannot stream: its operand is computed in real numbers", help));
        };
        let (x, dq, y) = (*x, *dq, self.graph.node(n).outputs[0]);
        let mut flow = self.flow(n, x)?;
        let rank = flow.dims.len();
        let axis = if op.axis < 0 { op.axis + rank as i64 } else { op.axis } as usize;
        let channels = flow.dims[axis];
        let order = if rank >= 3 && axis == 1 { channels_last(&flow.dims) } else { row_major(&flow.dims) };
        if order.iter().rev().find(|l| l.0 != 1).is_some_and(|l| l.0 != channels) || flow.format.bits > 8 {
            let help = "apply it along the channels or the last axis";
            return Err(self.problem(p, format!("cannot stream: softmax over axis {axis} of dims {:?}", flow.dims), help));
        }
        flow = self.reordered(n, flow, &order)?;
        let dtype = self.dtype(y);
        let (lo, hi) = dtype.int_range().map_or((0, 0), |(l, h)| (l as i64, h as i64));
        let (sx, sy) = (self.constant(dq, 1, "scale")?.float(0), self.constant(n, 1, "scale")?.float(0));
        let zero = self.zero_point(n, 2)?;
        let steps = 1usize << flow.format.bits;
        let power = |d: usize| ((-(d as f64) * sx).exp() * f64::from((1 << 18) - 1)).round_ties_even() as i64;
        let exp = (0..steps).map(power).collect();
        let pair = if channels == 2 { self.pair(n, p, &cone, x, &flow)? } else { None };
        let gain = (1.0 / sy).round_ties_even() as i64;
        let kind = Softmax { channels, exp, gain, zero, min: lo, max: hi, pair };
        let actor = self.actor(p, "softmax", Kind::Softmax(kind), &[(&flow, [1, flow.elements() / channels, channels])]);
        let format = Format { signed: dtype.is_signed(), bits: dtype.bits() };
        self.flows.insert(y, Flow { actor, range: [lo, hi], format, scale: Some(sy as f32), zero, ..flow });
        Ok(true)
    }

    /// Softmax of two numbers by their difference, if it is the same for all pairs.
    fn pair(&self, n: Node, softmax: Node, cone: &Cone, x: Value, flow: &Flow) -> Outcome<Option<Vec<i64>>> {
        let every = all(flow.format);
        let both = every.iter().flat_map(|&a| every.iter().flat_map(move |&b| [a, b]));
        let t = self.as_tensor(x, both, &[every.len() * every.len(), 2]);
        let real = self.run_chain(cone, &t)?;
        let op = infc_ir::op::Softmax { axis: 1 };
        let soft = eval_op(&op.into(), &[Some(real[0].clone())], 1).map_err(|f| self.fault(softmax, f))?;
        let mut operands = vec![Some(soft[0].clone())];
        operands
            .extend((1..3).map(|i| self.graph.node(n).operand(i).and_then(|v| self.graph.constant(v)).map(|t| t.reshape([]))));
        let stored = eval_op(&self.graph.node(n).op, &operands, 1).map_err(|f| self.fault(n, f))?[0].to_ints();
        let middle = every.len() as i64 - 1;
        let mut table: Vec<Option<i64>> = vec![None; 2 * every.len() - 1];
        for (i, pair) in stored.chunks(2).enumerate() {
            let d = (i / every.len()) as i64 - (i % every.len()) as i64;
            for (d, q) in [(d, pair[0]), (-d, pair[1])] {
                let entry = &mut table[(d + middle) as usize];
                if *entry.get_or_insert(q) != q {
                    return Ok(None);
                }
            }
        }
        Ok(table.into_iter().collect())
    }
}

/// All integers of a format.
fn all(f: Format) -> Vec<i64> {
    (f.min()..=f.max()).collect()
}

/// The summand with which `(acc + add) >> shift` is the result for all points `(acc, result)`.
fn summand(points: impl Iterator<Item = (i64, i64)>, shift: u32, min: i64, max: i64) -> Option<i64> {
    let (mut least, mut most) = (i64::MIN, i64::MAX);
    for (acc, k) in points {
        if k > min {
            least = least.max((k << shift) - acc);
        }
        if k < max {
            most = most.min(((k + 1) << shift) - 1 - acc);
        }
        if least > most {
            return None;
        }
    }
    Some(match (least, most) {
        (i64::MIN, i64::MAX) => 0,
        (i64::MIN, most) => most,
        (least, i64::MAX) => least,
        (least, most) => least + (most - least) / 2,
    })
}

/// `(a_mul * a + b_mul * b + offset) >> shift`, if it is equal for all pairs.
fn sum_form(pairs: &Pairs, slopes: [f64; 2], zeros: [i64; 2], zero: i64) -> Option<Binary> {
    let Pairs { points, min, max } = pairs;
    for shift in 0..=SHIFTS {
        let [a, b] = slopes.map(|s| (s * f64::from(1u32 << shift)).round() as i64);
        if a <= 0 || b <= 0 || a > 1 << 24 || b > 1 << 24 {
            continue;
        }
        let offset = -(a * zeros[0] + b * zeros[1]);
        let acc = |p: &[i64; 3]| a * p[0] + b * p[1] + offset;
        let found = summand(points.iter().map(|p| (acc(p), p[2])), shift, *min, *max).map(|add| (add, false)).or_else(|| {
            let equal = points.iter().all(|p| multiplied(acc(p), zero, shift, true).clamp(*min, *max) == p[2]);
            equal.then_some((zero, true))
        });
        let Some((add, half_even)) = found else { continue };
        let ends = points.iter().fold([0, 0], |e: [i64; 2], p| [e[0].min(acc(p)), e[1].max(acc(p))]);
        let half = if shift > 0 { 1 << (shift - 1) } else { 0 };
        let more = if half_even { half } else { add };
        let wide = Format::of(ends[0].min(ends[0] + more), ends[1].max(ends[1] + more));
        let form = RequantForm::MultiplyShift { mul: vec![1], add: vec![add], shift, wide, half_even };
        let out = Format::of(*min, *max);
        let requant = Some(Requant { out, min: *min, max: *max, form, law: None, range: vec![ends] });
        // The accumulator also holds the products of what cannot occur in the formats' range.
        return Some(Binary::Add { a_mul: a, b_mul: b, offset, acc: partial(points, [a, b], offset), requant });
    }
    None
}

/// Holds `a_mul * a`, `b_mul * b`, their sum and the sum with the offset.
fn partial(points: &[[i64; 3]], [a, b]: [i64; 2], offset: i64) -> Format {
    let ends = points.iter().fold([0, 0], |e: [i64; 2], p| {
        let sum = a * p[0] + b * p[1];
        let all = [a * p[0], b * p[1], sum, sum + offset, offset];
        [all.iter().fold(e[0], |l, &v| l.min(v)), all.iter().fold(e[1], |h, &v| h.max(v))]
    });
    Format::of(ends[0], ends[1])
}

/// `((a - a_zero) * (b - b_zero) * mul + add) >> shift`, if it is equal for all pairs.
fn product_form(pairs: &Pairs, slope: f64, [a_zero, b_zero]: [i64; 2]) -> Option<Binary> {
    let Pairs { points, min, max } = pairs;
    let acc = |p: &[i64; 3]| (p[0] - a_zero) * (p[1] - b_zero);
    let ends = points.iter().fold([0, 0], |e: [i64; 2], p| [e[0].min(acc(p)), e[1].max(acc(p))]);
    for shift in 0..=2 * SHIFTS - 8 {
        let near = (slope * (1i64 << shift) as f64).round() as i64;
        if near > 1 << 24 {
            break;
        }
        for mul in (near - 1..=near + 1).filter(|&m| m > 0) {
            let Some(add) = summand(points.iter().map(|p| (acc(p) * mul, p[2])), shift, *min, *max) else { continue };
            let wide = Format::of((ends[0] * mul).min(ends[0] * mul + add), (ends[1] * mul).max(ends[1] * mul + add));
            let form = RequantForm::MultiplyShift { mul: vec![mul], add: vec![add], shift, wide, half_even: false };
            let (out, range) = (Format::of(*min, *max), vec![ends]);
            let requant = Requant { out, min: *min, max: *max, form, law: None, range };
            return Some(Binary::Mul { a_zero, b_zero, acc: Format::of(ends[0], ends[1]), requant });
        }
    }
    None
}
