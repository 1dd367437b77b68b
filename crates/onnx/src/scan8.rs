//! Scan of operator set 8, which had a batch: a Scan over the batch of a Scan over the sequence, in the form of operator set 9.
//!
//! Sequences of different lengths get a mask as one more scanned operand: beyond a sequence's end states stay and outputs are 0.

use crate::import::Importer;
use crate::nodes::{Stop, node_name};
use crate::proto::{GraphProto, NodeProto, ValueInfoProto};
use infc_ir::graph::SourceNode;
use infc_ir::op::{self, Attr, Attrs, Builder, Scan};
use infc_ir::{DType, Fault, Region, Tensor, TensorType, Type, Value, fault};
use std::collections::BTreeSet;

/// The form that the node is raised to.
const VERSION: i64 = 9;

/// What a Scan works on.
struct Operands {
    /// States, then scanned operands, then perhaps the mask.
    values: Vec<Value>,
    states: usize,
    reverse: Vec<i64>,
    masked: bool,
}

impl Importer<'_> {
    /// The results of the node; `inputs` are the lengths of the sequences, states, scanned operands.
    pub fn scan_8(
        &mut self,
        n: &NodeProto,
        inputs: &[Option<Value>],
        mut attrs: Attrs,
        g: &GraphProto,
    ) -> Result<Vec<Value>, Stop> {
        let operands = self.scan_operands(n, inputs, &mut attrs)?;
        let Operands { values, states, reverse, masked } = &operands;
        let mut body = g.clone();
        if *masked {
            body.input.push(ValueInfoProto { name: Some(format!("{} goes on", node_name(n))), ..ValueInfoProto::default() });
        }
        if body.input.len() != values.len() {
            return Err(fault!("has {} operands beside the lengths, its body takes {}", inputs.len() - 1, g.input.len()).into());
        }
        let without = |cx: &Self, k: usize, first: usize| -> Result<Type, Fault> {
            match cx.graph.ty(values[k]) {
                Type::Tensor(t) if t.rank() >= first => Ok(TensorType::new(t.dtype, t.dims[first..].iter().copied()).into()),
                ty => Err(fault!("operand {} is {ty}, it needs a batch and what is scanned a sequence", k + 1)),
            }
        };
        let params = (0..values.len()).map(|k| without(self, k, if k < *states { 1 } else { 2 }));
        let body = self.body(&body, &params.collect::<Result<Vec<_>, _>>()?, &[]).ok_or(Stop::Unknown)?;
        if self.graph.region(body.region).results.len() < *states {
            return Err(fault!("its body has fewer results than states").into());
        }
        if *masked {
            self.mask_results(n, body.region, values.len() - 1, *states)?;
        }
        self.settle(node_name(n), body.region, 0, 0, *states)?;
        // One sequence: a body of the outer Scan with the inner one as its only node.
        let slices = (0..values.len()).map(|k| without(self, k, 1)).collect::<Result<Vec<_>, _>>()?;
        let captured: Vec<Type> = body.captured.iter().map(|&v| self.graph.ty(v).clone()).collect();
        let captures = captured.len() as i64;
        let inner = Scan {
            captures,
            num_scan_inputs: (values.len() - states) as i64,
            scan_input_axes: vec![],
            scan_input_directions: reverse.clone(),
            scan_output_axes: vec![],
            scan_output_directions: vec![],
        };
        let results = self.graph.region(body.region).results.len();
        let origin = self.scan_origin(n);
        let mut b = Builder::new(&mut self.graph, origin);
        let outer = b.region("one of the batch", &[slices, captured].concat(), |b, params| {
            let inputs: Vec<_> = params.iter().copied().map(Some).collect();
            b.node(inner, &inputs, vec![body.region], results)
        })?;
        let inputs = values.iter().chain(&body.captured).copied().map(Some).collect();
        attrs.set("num_scan_inputs", Attr::Int(values.len() as i64));
        if captures > 0 {
            attrs.set("captures", Attr::Int(captures));
        }
        self.apply(n, "", VERSION, inputs, attrs, vec![outer])
    }

    fn scan_origin(&mut self, n: &NodeProto) -> BTreeSet<infc_ir::graph::Source> {
        let source = SourceNode { name: node_name(n).to_owned(), op: "Scan".into(), opset: 8 };
        BTreeSet::from([self.graph.add_source(source)])
    }

    /// Takes the attributes apart; turns sequences of different lengths around and makes the mask.
    fn scan_operands(&mut self, n: &NodeProto, inputs: &[Option<Value>], attrs: &mut Attrs) -> Result<Operands, Stop> {
        let Some(Attr::Int(scans)) = attrs.take("num_scan_inputs") else {
            return Err(fault!("attribute 'num_scan_inputs' is required").into());
        };
        let directions = match attrs.take("directions") {
            Some(Attr::Ints(d)) => d,
            _ => vec![],
        };
        let lengths = inputs.first().copied().flatten();
        let operands: Option<Vec<Value>> = inputs.iter().skip(1).copied().collect();
        let mut values = operands.ok_or_else(|| fault!("an operand is missing"))?;
        let states = usize::try_from(scans).ok().filter(|&s| s > 0).and_then(|s| values.len().checked_sub(s));
        let states = states.ok_or_else(|| fault!("attribute 'num_scan_inputs' is {scans} for {} operands", values.len()))?;
        let Some(lengths) = lengths else {
            return Ok(Operands { values, states, reverse: directions, masked: false });
        };
        let origin = self.scan_origin(n);
        let mut b = Builder::new(&mut self.graph, origin);
        for (k, _) in directions.iter().enumerate().filter(|(_, d)| **d == 1) {
            if let Some(v) = values.get_mut(states + k) {
                *v = b.op(op::ReverseSequence { batch_axis: 0, time_axis: 1 }, &[*v, lengths])?;
            }
        }
        let size = b.op(op::Shape { start: 1, end: Some(2) }, &[values[states]])?;
        let size = b.op(op::Squeeze {}, &[size])?;
        let [zero, one] = [0, 1].map(|v| b.constant(Tensor::from_vec([], vec![v as i64])));
        let positions = b.op(op::Range { stash_type: 1 }, &[zero, size, one])?;
        let column = b.ints(&[1]);
        let lengths = b.op(op::Unsqueeze {}, &[lengths, column])?;
        values.push(b.op(op::Less {}, &[positions, lengths])?);
        let made = b.nodes;
        let region = self.scope().region;
        self.graph.regions[region.index()].nodes.extend(made);
        Ok(Operands { values, states, reverse: vec![], masked: true })
    }

    /// Where parameter `mask` is false, states stay and outputs are 0.
    fn mask_results(&mut self, n: &NodeProto, region: Region, mask: usize, states: usize) -> Result<(), Fault> {
        let (params, results) = (self.graph.region(region).params.clone(), self.graph.region(region).results.clone());
        let origin = self.scan_origin(n);
        let mut b = Builder::new(&mut self.graph, origin);
        let mut masked = vec![];
        for (k, &v) in results.iter().enumerate() {
            let dtype = b.tensor(v)?.dtype;
            let other = match k < states {
                true => params[k],
                false if dtype == DType::Bool => b.constant(Tensor::from_bools([], &[false])),
                false => b.number(dtype, 0.0),
            };
            masked.push(b.op(op::Where {}, &[params[mask], v, other])?);
        }
        let made = b.nodes;
        let data = &mut self.graph.regions[region.index()];
        data.nodes.extend(made);
        data.results = masked;
        Ok(())
    }
}
