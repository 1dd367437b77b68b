//! FlexAttention of `ai.onnx.preview`: attention whose scores and probabilities may go through graphs of the model. Like a local
//! function it is inlined where it is called.

use crate::import::{Importer, Named, Scope};
use crate::nodes::{Parts, Stop};
use crate::proto::{GraphProto, NodeProto};
use crate::versions::{FLEX_ATTENTION, Raise};
use infc_ir::op::Attr;
use infc_ir::{DType, Fault, Value, fault};

impl Importer<'_> {
    /// The nodes that a FlexAttention stands for; gives its result.
    pub fn flex_attention(&mut self, n: &NodeProto, inputs: &[Option<Value>], mut parts: Parts) -> Result<Vec<Value>, Stop> {
        let [Some(q), Some(k), Some(v)] = *inputs else {
            return Err(fault!("needs the operands Q, K and V, got {}", inputs.len()).into());
        };
        let attr = |r: Option<Attr>, name: &str| match r {
            None => Ok(None),
            Some(Attr::Float(f)) => Ok(Some(f64::from(f))),
            Some(Attr::Int(i)) => Ok(Some(i as f64)),
            Some(_) => Err(fault!("attribute '{name}' must be a number")),
        };
        let scale = attr(parts.attrs.take("scale"), "scale")?;
        let soft = attr(parts.attrs.take("softmax_precision"), "softmax_precision")?;
        if let Some((left, _)) = parts.attrs.0.first() {
            return Err(fault!("attribute '{left}' is not known").into());
        }
        let (mut score_mod, mut prob_mod) = (None, None);
        for (name, g) in &parts.graphs {
            match name.as_str() {
                "score_mod" => score_mod = Some(g),
                "prob_mod" => prob_mod = Some(g),
                other => return Err(fault!("attribute '{other}' is a graph, which this operator cannot have").into()),
            }
        }
        let mut soft_dtype = DType::F32;
        let mut x = self.emit(n, FLEX_ATTENTION, |r| {
            let (t, kt, vt) = (r.builder.tensor(q)?.clone(), r.builder.tensor(k)?.clone(), r.builder.tensor(v)?.clone());
            if [&t, &kt, &vt].iter().any(|t| t.rank() != 4 || !t.dtype.is_float()) {
                return Err(fault!("Q {t}, K {kt} and V {vt} must be floats of rank 4"));
            }
            soft_dtype = match soft {
                None if t.dtype == DType::F64 => DType::F64,
                None => DType::F32,
                Some(d) => {
                    DType::from_onnx(d as i32).filter(|d| d.is_float()).ok_or_else(|| fault!("softmax_precision is no float"))?
                }
            };
            let size = t.dims[3].known().ok_or_else(|| fault!("the head size of Q ({t}) must be known"))?;
            let half = (scale.unwrap_or(1.0 / (size as f64).sqrt()) as f32).sqrt();
            let half = r.builder.number(t.dtype, f64::from(half));
            let keys = grouped(r, k, &t.dims[1], &kt.dims[1])?;
            let q = r.node("Mul", &[], &[q, half])?;
            let keys = r.node("Mul", &[], &[keys, half])?;
            let keys = r.node("Transpose", &[("perm", Attr::Ints(vec![0, 1, 3, 2]))], &[keys])?;
            let scores = r.node("MatMul", &[], &[q, keys])?;
            cast(r, scores, soft_dtype)
        })?;
        if let Some(g) = score_mod {
            x = self.through(g, x)?;
        }
        x = self.emit(n, FLEX_ATTENTION, |r| r.node("Softmax", &[("axis", Attr::Int(-1))], &[x]))?;
        if let Some(g) = prob_mod {
            x = self.through(g, x)?;
        }
        let y = self.emit(n, FLEX_ATTENTION, |r| {
            let (heads, t) = (r.builder.dims(q)?[1], r.builder.tensor(v)?.clone());
            let values = grouped(r, v, &heads, &t.dims[1])?;
            let values = cast(r, values, soft_dtype)?;
            let y = r.node("MatMul", &[], &[x, values])?;
            cast(r, y, t.dtype)
        })?;
        if let Some(name) = n.output.first() {
            self.name_value(y, name);
        }
        Ok(vec![y])
    }

    /// `x` put through a graph with one input and one output, whose nodes go where the call stands.
    fn through(&mut self, g: &GraphProto, x: Value) -> Result<Value, Stop> {
        let [input] = &g.input[..] else {
            return Err(fault!("graph '{}' has {} inputs, 1 is needed", g.name(), g.input.len()).into());
        };
        let region = self.scope().region;
        let mut scope = Scope::new(region, false);
        scope.prefix = format!("{}{}/", self.scope().prefix, g.name());
        scope.names.insert(input.name().to_owned(), Named::Value(x));
        self.scopes.push(scope);
        let results = self.contents(g);
        self.scopes.pop();
        let [y] = results.ok_or(Stop::Unknown)?[..] else {
            return Err(fault!("graph '{}' must have 1 output", g.name()).into());
        };
        let (before, after) = (self.graph.ty(x).clone(), self.graph.ty(y).clone());
        let rank = |t: &infc_ir::Type| t.as_tensor().map(|t| (t.dtype, t.rank()));
        if rank(&before) != rank(&after) {
            return Err(fault!("graph '{}' makes {after} of {before}; the type must stay", g.name()).into());
        }
        Ok(y)
    }
}

fn cast(r: &mut Raise, v: Value, to: DType) -> Result<Value, Fault> {
    if r.builder.tensor(v)?.dtype == to {
        return Ok(v);
    }
    r.node("Cast", &[("to", Attr::Int(i64::from(to.onnx())))], &[v])
}

/// Each head of `v` as often as queries share it.
fn grouped(r: &mut Raise, v: Value, heads: &infc_ir::Expr, own: &infc_ir::Expr) -> Result<Value, Fault> {
    if heads == own {
        return Ok(v);
    }
    let (Some(h), Some(o)) = (heads.known(), own.known()) else {
        return Err(fault!("the numbers of heads must be known: {heads} and {own}"));
    };
    if o < 1 || h % o != 0 {
        return Err(fault!("{o} key heads do not divide {h} query heads"));
    }
    let (axis, times) = (r.builder.ints(&[2]), r.builder.ints(&[1, 1, h / o, 1, 1]));
    let v = r.node("Unsqueeze", &[], &[v, axis])?;
    let v = r.node("Expand", &[], &[v, times])?;
    let size = r.builder.dims(v)?[4].known().ok_or_else(|| fault!("the head size must be known"))?;
    let shape = r.builder.ints(&[0, h, -1, size]);
    r.node("Reshape", &[], &[v, shape])
}
