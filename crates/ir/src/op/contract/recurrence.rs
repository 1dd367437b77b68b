//! Linear attention: a state updated token by token, as a Scan.

use super::super::common::*;
use super::super::*;

impl LinearAttention {
    fn gated(&self) -> bool {
        matches!(self.update_rule.as_str(), "gated" | "gated_delta")
    }
    fn corrected(&self) -> bool {
        matches!(self.update_rule.as_str(), "delta" | "gated_delta")
    }
    /// Key and value size of a head.
    fn sizes(&self, cx: &Ctx) -> Result<(Expr, Expr), Fault> {
        for i in 0..3 {
            accept(cx, i, Accept::Float)?;
            expect_rank(cx, i, 3)?;
        }
        Ok((cx.dims(0)?[2].div(Expr::int(self.q_num_heads)), cx.dims(2)?[2].div(Expr::int(self.kv_num_heads))))
    }
}

impl OpDef for LinearAttention {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (q, kv) = (self.q_num_heads, self.kv_num_heads);
        if q < 1 || kv < 1 || q % kv != 0 {
            return Err(fault!("q_num_heads {q} must be a positive multiple of kv_num_heads {kv}"));
        }
        if !matches!(self.update_rule.as_str(), "linear" | "gated" | "delta" | "gated_delta") {
            return Err(fault!(
                "attribute 'update_rule' is '{}'; linear, gated, delta or gated_delta is needed",
                self.update_rule
            ));
        }
        for (i, name, needed) in [(4, "decay", self.gated()), (5, "beta", self.corrected())] {
            if cx.has(i) != needed {
                let verb = if needed { "needs" } else { "does not take" };
                return Err(fault!("update rule '{}' {verb} the operand '{name}'", self.update_rule));
            }
            if needed {
                expect_rank(cx, i, 3)?;
            }
        }
        let (d_k, d_v) = self.sizes(cx)?;
        let x = cx.tensor(0)?;
        let state = [x.dims[0], Expr::int(kv), d_k, d_v];
        let state_dtype = if cx.has(3) { cx.dtype(3)? } else { x.dtype };
        Ok(vec![Fact::tensor(x.dtype, [x.dims[0], x.dims[1], d_v * q]), Fact::tensor(state_dtype, state)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (op, state) = (self.clone(), Ctx::out(outs, 1)?.clone());
        let (d_k, _) = self.sizes(cx)?;
        Ok(Meaning::decompose(move |b, v| op.scan(b, v, d_k, &state)))
    }
}

impl LinearAttention {
    /// Operands as `[token, batch, heads, size]` in f32; the state starts at zero if there is none.
    fn scan(&self, b: &mut Builder, v: &[Option<Value>], d_k: Expr, state: &TensorType) -> Result<Vec<Value>, Fault> {
        let dtype = b.tensor(v[0].expect("arity"))?.dtype;
        let unpack = |b: &mut Builder, x: Value, heads: i64| -> Result<Value, Fault> {
            let x = cast_to(b, x, DType::F32)?;
            let x = reshape(b, x, &[0, 0, heads, -1])?;
            b.op(Transpose { perm: vec![1, 0, 2, 3] }, &[x])
        };
        let q = unpack(b, v[0].expect("arity"), self.q_num_heads)?;
        let k = unpack(b, v[1].expect("arity"), self.kv_num_heads)?;
        let value = unpack(b, v[2].expect("arity"), self.kv_num_heads)?;
        let mut sequences = vec![q, k, value];
        if self.gated() {
            let g = unpack(b, v[4].expect("checked by infer"), self.kv_num_heads)?;
            sequences.push(b.op(Exp {}, &[g])?);
        }
        if self.corrected() {
            let beta = v[5].expect("checked by infer");
            let heads = if b.dims(beta)?[2].is(1) { 1 } else { self.kv_num_heads };
            sequences.push(unpack(b, beta, heads)?);
        }
        let start = match v.get(3).copied().flatten() {
            Some(past) => {
                let past = cast_to(b, past, DType::F32)?;
                with_dims(b, past, &state.dims)?
            }
            None => {
                let dims = sizes_of(b, &state.dims)?;
                b.op(ConstantOfShape { value: None }, &[dims])?
            }
        };
        let n = sequences.len();
        let mut types = vec![b.graph.ty(start).clone()];
        for &s in &sequences {
            let mut dims = b.dims(s)?;
            dims.remove(0);
            types.push(Type::tensor(DType::F32, dims));
        }
        let body = b.region("token", &types, |b, params| self.token(b, params[0], &params[1..], d_k, &state.dims))?;
        let scan = Scan {
            captures: 0,
            num_scan_inputs: n as i64,
            scan_input_axes: vec![],
            scan_input_directions: vec![],
            scan_output_axes: vec![],
            scan_output_directions: vec![],
        };
        let operands: Vec<Option<Value>> = [start].iter().chain(&sequences).copied().map(Some).collect();
        let results = b.node(scan, &operands, vec![body], 2)?;
        let y = b.op(Transpose { perm: vec![1, 0, 2, 3] }, &[results[1]])?;
        let y = reshape(b, y, &[0, 0, -1])?;
        Ok(vec![cast_to(b, y, dtype)?, cast_to(b, results[0], state.dtype)?])
    }

    /// One token: decays the state, adds key times (corrected) value, reads it with the query.
    fn token(&self, b: &mut Builder, mut state: Value, tokens: &[Value], d_k: Expr, dims: &[Expr]) -> Result<Vec<Value>, Fault> {
        let einsum =
            |b: &mut Builder, equation: &str, x: Value, y: Value| b.op(Einsum { equation: equation.to_owned() }, &[x, y]);
        let (q, k, mut value) = (tokens[0], tokens[1], tokens[2]);
        let last = b.ints(&[-1]);
        if self.gated() {
            let decay = b.op(Unsqueeze {}, &[tokens[3], last])?;
            state = b.op(Mul {}, &[state, decay])?;
        }
        if self.corrected() {
            let found = einsum(b, "bhdm,bhd->bhm", state, k)?;
            let rest = b.op(Sub {}, &[value, found])?;
            value = b.op(Mul {}, &[tokens[tokens.len() - 1], rest])?;
        }
        let write = einsum(b, "bhd,bhm->bhdm", k, value)?;
        state = b.op(Add {}, &[state, write])?;
        // Operands whose sizes only a run tells to be equal: what is carried keeps one type.
        state = with_dims(b, state, dims)?;
        // Query heads that share a key head: [batch, key heads, group, size].
        let group = self.q_num_heads / self.kv_num_heads;
        let q = reshape(b, q, &[0, self.kv_num_heads, group, -1])?;
        let y = einsum(b, "bhgd,bhdm->bhgm", q, state)?;
        let y = reshape(b, y, &[0, self.q_num_heads, -1])?;
        let scale = match (self.scale, d_k.known()) {
            (0.0, Some(d)) => b.number(DType::F32, 1.0 / (d as f64).sqrt()),
            (0.0, None) => {
                let d = b.op(DimVector { exprs: vec![d_k], dtype: i64::from(DType::I64.onnx()), scalar: true }, &[])?;
                let d = cast_to(b, d, DType::F32)?;
                let root = b.op(Sqrt {}, &[d])?;
                b.op(Reciprocal {}, &[root])?
            }
            (given, _) => b.number(DType::F32, f64::from(given)),
        };
        let y = b.op(Mul {}, &[y, scale])?;
        Ok(vec![state, y])
    }
}
