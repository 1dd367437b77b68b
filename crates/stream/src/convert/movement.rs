//! Data movement: orders that change for free, elements that come in another order, ranges, concatenation.

use super::layout::{blocks, by_axis, channels_last, factor, joined, positions, row_major, transposed};
use super::*;
use crate::design::nest;
use infc_ir::Tensor;
use infc_ir::interp::eval_op;

impl Converter<'_> {
    /// The stream with its elements in the order of `want`.
    pub(super) fn reordered(&mut self, n: Node, flow: Flow, want: &[(usize, usize)]) -> Outcome<Flow> {
        if flow.ordered(want) {
            return Ok(flow);
        }
        let from = positions(&flow.order);
        let taken: Vec<usize> = nest(want).into_iter().map(|place| from[place]).collect();
        let (dims, order) = (flow.dims.clone(), want.to_vec());
        self.taken(n, &flow, &taken, dims, order)
    }

    /// The elements of a stream at these positions, in this order, as a tensor whose stream has the order `order`.
    fn taken(&mut self, n: Node, flow: &Flow, taken: &[usize], dims: Vec<usize>, order: Loops) -> Outcome<Flow> {
        let elements = flow.elements();
        if taken.iter().copied().eq(0..elements) {
            return Ok(Flow { dims, order, ..flow.clone() });
        }
        let Some((first, loops)) = factor(taken) else {
            let help = "resize by whole factors, take ranges along one axis, transpose or reshape";
            return Err(self.problem(n, "cannot stream: the elements come in an order that is no loop nest", help));
        };
        let range = match joined(&loops)[..] {
            [(count, 1)] => Some((elements, count)),
            [(repeats, period), (count, 1)] if repeats * period == elements => Some((period, count)),
            _ => None,
        };
        let innermost = flow.order.iter().rev().find(|l| l.0 != 1).map_or(1, |l| l.0);
        let shape = [1, elements / innermost, innermost];
        let (block, inner) = blocks(elements, &loops);
        let reach: usize = inner.iter().map(|&(e, d)| (e - 1) * d).sum();
        let kind = match range {
            Some((period, count)) if first + count <= period => Kind::Slice(Slice { period, begin: first, count }),
            _ if first == 0 => Kind::Rearrange(Rearrange { block, loops: inner }),
            // What lies before the first element of each block is cut off, then blocks begin at 0.
            _ if first + reach < block => {
                let count = reach + 1;
                let cut = self.actor(n, "slice", Kind::Slice(Slice { period: block, begin: first, count }), &[(flow, shape)]);
                let rest = Flow { actor: cut, ..flow.clone() };
                let kind = Kind::Rearrange(Rearrange { block: count, loops: inner });
                let actor = self.actor(n, "rearrange", kind, &[(&rest, [1, elements / block, count])]);
                return Ok(Flow { actor, dims, order, ..flow.clone() });
            }
            _ => {
                let help = "take ranges along one axis at a time, from the start or of whole rows or channels";
                return Err(self.problem(n, "cannot stream: it takes a part of several axes at once", help));
            }
        };
        let suffix = if let Kind::Slice(_) = kind { "slice" } else { "rearrange" };
        let actor = self.actor(n, suffix, kind, &[(flow, shape)]);
        Ok(Flow { actor, dims, order, ..flow.clone() })
    }

    /// An operator that only moves elements of its first operand.
    pub(super) fn movement(&mut self, n: Node) -> Outcome<()> {
        let node = self.graph.node(n).clone();
        let x = self.operand(n, 0)?;
        let flow = self.flow(n, x)?;
        match &node.op {
            Op::Transpose(op) => {
                let perm: Vec<usize> = op.perm.iter().map(|&a| a as usize).collect();
                let rank = flow.dims.len();
                let perm = if perm.is_empty() { (0..rank).rev().collect() } else { perm };
                if let Some(order) = transposed(&flow.order, &flow.dims, &perm) {
                    let dims = perm.iter().map(|&a| flow.dims[a]).collect();
                    self.flows.insert(node.outputs[0], Flow { dims, order, ..flow });
                    return Ok(());
                }
            }
            Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Identity(_) => {
                let dims = self.dims(node.outputs[0]).unwrap_or_default();
                self.flows.insert(node.outputs[0], Flow { dims, ..flow });
                return Ok(());
            }
            _ => {}
        }
        // Which elements it takes, by running it on their numbers.
        let numbers = Tensor::from_vec(flow.dims.clone(), (0..flow.elements() as i32).collect());
        let mut operands = vec![Some(numbers)];
        for i in 1..node.inputs.len() {
            operands.push(match node.inputs[i] {
                None => None,
                Some(_) => Some(self.constant(n, i, "shape or range")?.clone()),
            });
        }
        let moved = eval_op(&node.op, &operands, node.outputs.len()).map_err(|f| self.fault(n, f))?;
        let from = positions(&flow.order);
        for (&y, t) in node.outputs.iter().zip(moved) {
            let places = t.to_ints();
            let order = if t.dims.len() >= 3 && flow.ordered(&channels_last(&flow.dims)) {
                channels_last(&t.dims)
            } else {
                row_major(&t.dims)
            };
            let taken: Vec<usize> = nest(&order).into_iter().map(|p| from[places[p] as usize]).collect();
            let made = self.taken(n, &flow, &taken, t.dims, order)?;
            self.flows.insert(y, made);
        }
        Ok(())
    }

    pub(super) fn concat(&mut self, n: Node, axis: i64) -> Outcome<()> {
        let node = self.graph.node(n).clone();
        let mut flows = vec![];
        for &v in node.inputs.iter().flatten() {
            if self.graph.constant(v).is_some() {
                return Err(self.problem(n, "cannot stream: one of its operands is a constant", "concatenate streams only"));
            }
            flows.push(self.flow(n, v)?);
        }
        let rank = flows[0].dims.len();
        let axis = if axis < 0 { axis + rank as i64 } else { axis } as usize;
        // All in one order, in which the axis is one loop.
        let split = |f: &Flow| -> Option<Vec<(usize, usize, usize)>> {
            let loops = by_axis(&joined(&f.order), &f.dims)?;
            let along: Vec<_> = loops.iter().filter(|l| l.0 == axis).collect();
            (f.dims[axis] == 1 || along.len() == 1 && along[0].1 == f.dims[axis]).then_some(loops)
        };
        let outer = |f: &Flow| split(f).map(|loops| loops.into_iter().filter(|l| l.0 != axis).collect::<Vec<_>>());
        let place = |f: &Flow| split(f).and_then(|loops| loops.iter().position(|l| l.0 == axis));
        let first = flows.iter().position(|f| f.dims[axis] != 1).unwrap_or(0);
        let alike = flows.iter().all(|f| {
            outer(f).is_some() && outer(f) == outer(&flows[first]) && (f.dims[axis] == 1 || place(f) == place(&flows[first]))
        }) && (place(&flows[first]).is_some() || flows[0].elements() == 1);
        let dims = self.dims(node.outputs[0]).unwrap_or_default();
        if !alike {
            let standard = |dims: &[usize]| if rank >= 3 && axis == 1 { channels_last(dims) } else { row_major(dims) };
            for f in &mut flows {
                let want = standard(&f.dims);
                *f = self.reordered(n, f.clone(), &want)?;
            }
        }
        // The order of the result: that of the first operand, with the longer axis.
        let along: Vec<usize> = (0..rank).map(|a| dims[a + 1..].iter().product()).collect();
        let (loops, at) = match (split(&flows[first]), place(&flows[first])) {
            (Some(loops), Some(at)) => (loops, at),
            (Some(mut loops), None) => {
                // The axis is 1 in every operand: it goes where row-major order or channels last has it.
                let at = if rank >= 3 && axis == 1 {
                    loops.len()
                } else {
                    loops.iter().position(|l| l.0 > axis).unwrap_or(loops.len())
                };
                loops.insert(at, (axis, 1, 1));
                (loops, at)
            }
            (None, _) => return Err(self.problem(n, "cannot stream: its operands come in orders that do not fit", "")),
        };
        let order: Loops =
            loops.iter().enumerate().map(|(i, &(a, e, s))| (if i == at { dims[axis] } else { e }, s * along[a])).collect();
        let repeats = loops[..at].iter().map(|l| l.1).product();
        let inner: usize = loops[at + 1..].iter().map(|l| l.1).product();
        let chunks = flows.iter().map(|f| f.dims[axis] * inner).collect();
        let range =
            [0, 1].map(|i| flows.iter().map(|f| f.range[i]).reduce(if i == 0 { i64::min } else { i64::max }).unwrap_or(0));
        let format = flows.iter().map(|f| f.format).reduce(wider).expect("has operands");
        let shaped: Vec<(&Flow, [usize; 3])> = flows.iter().map(|f| (f, [1, repeats, f.dims[axis] * inner])).collect();
        let actor = self.actor(n, "concat", Kind::Concat(Concat { repeats, chunks }), &shaped);
        let Flow { scale, zero, .. } = flows[0];
        self.flows.insert(node.outputs[0], Flow { actor, dims, order, range, format, scale, zero });
        Ok(())
    }
}

/// The format that holds both.
fn wider(a: Format, b: Format) -> Format {
    if a == b { a } else { Format::of(a.min().min(b.min()), a.max().max(b.max())) }
}
