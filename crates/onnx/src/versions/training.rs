//! One step of gradient descent: the operators of `ai.onnx.preview.training`, as the sums and products that they are.

use super::*;

const fn step(op: &'static [&'static str], what: &'static str, apply: fn(&mut Raise) -> Result<(), Fault>) -> Step {
    Step { domain: "ai.onnx.preview.training", ops: op, below: ALWAYS, what, apply }
}

/// See [`super`].
pub const STEPS: &[Step] = &[
    step(&["Momentum"], "is a sum of products", momentum),
    step(&["Adagrad"], "is a sum of products over a root", adagrad),
    step(&["Adam"], "is a quotient of two moments", adam),
];

/// What the three have in common: rate and step number, then for each tensor one operand of every kind.
struct Descent {
    rate: Value,
    count: Value,
    /// `groups[kind][tensor]`.
    groups: Vec<Vec<Value>>,
    dtype: DType,
    decay: f64,
}

impl Descent {
    /// Reads operands R, T and `kinds` lists of tensors.
    fn new(r: &mut Raise, kinds: usize) -> Result<Descent, Fault> {
        let tensors = r.inputs.len().saturating_sub(2);
        if tensors == 0 || tensors % kinds != 0 {
            return Err(fault!("has {} operands; 2 and {kinds} for each tensor are needed", r.inputs.len()));
        }
        let each = tensors / kinds;
        let group = |k: usize| (0..each).map(|i| r.input(2 + k * each + i)).collect::<Result<Vec<_>, _>>();
        let groups = (0..kinds).map(group).collect::<Result<Vec<_>, _>>()?;
        let (rate, count, dtype) = (r.input(0)?, r.input(1)?, r.tensor(2)?.dtype);
        let decay = f64::from(r.take::<f32>("norm_coefficient")?.unwrap_or(0.0));
        Ok(Descent { rate, count, groups, dtype, decay })
    }
    fn number(&self, r: &mut Raise, value: f64) -> Value {
        r.builder.number(self.dtype, value)
    }
    fn scaled(&self, r: &mut Raise, factor: f64, v: Value) -> Result<Value, Fault> {
        let factor = self.number(r, factor);
        r.node("Mul", &[], &[factor, v])
    }
    /// The gradient with that of the norm: `norm_coefficient * x + g`.
    fn gradient(&self, r: &mut Raise, i: usize) -> Result<Value, Fault> {
        let pull = self.scaled(r, self.decay, self.groups[0][i])?;
        r.node("Add", &[], &[pull, self.groups[1][i]])
    }
    /// `a * x + b * y`.
    fn blend(&self, r: &mut Raise, a: f64, x: Value, b: f64, y: Value) -> Result<Value, Fault> {
        let (x, y) = (self.scaled(r, a, x)?, self.scaled(r, b, y)?);
        r.node("Add", &[], &[x, y])
    }
    /// The step number as a number of the tensors' dtype.
    fn steps(&self, r: &mut Raise) -> Result<Value, Fault> {
        r.node("Cast", &[("to", Attr::Int(i64::from(self.dtype.onnx())))], &[self.count])
    }
    /// `x - rate * direction`.
    fn moved(&self, r: &mut Raise, i: usize, rate: Value, direction: Value) -> Result<Value, Fault> {
        let by = r.node("Mul", &[], &[rate, direction])?;
        r.node("Sub", &[], &[self.groups[0][i], by])
    }
    fn is_first(&self, r: &mut Raise) -> Result<Value, Fault> {
        let zero = r.builder.constant(Tensor::from_vec([], vec![0i64]));
        let later = r.node("Greater", &[], &[self.count, zero])?;
        r.node("Not", &[], &[later])
    }
}

fn momentum(r: &mut Raise) -> Result<(), Fault> {
    let d = Descent::new(r, 3)?;
    let required = |v: Option<f32>, name: &str| v.map(f64::from).ok_or_else(|| fault!("attribute '{name}' is required"));
    let (alpha, beta) = (required(r.take("alpha")?, "alpha")?, required(r.take("beta")?, "beta")?);
    let nesterov = match r.take::<String>("mode")?.as_deref() {
        Some("nesterov") => true,
        Some("standard") => false,
        other => return Err(fault!("attribute 'mode' is {other:?}; 'standard' or 'nesterov' is needed")),
    };
    let (first, one, beta) = (d.is_first(r)?, d.number(r, 1.0), d.number(r, beta));
    let beta = r.node("Where", &[], &[first, one, beta])?;
    let (mut xs, mut vs) = (vec![], vec![]);
    for i in 0..d.groups[0].len() {
        let g = d.gradient(r, i)?;
        let (old, new) = (d.scaled(r, alpha, d.groups[2][i])?, r.node("Mul", &[], &[beta, g])?);
        let v = r.node("Add", &[], &[old, new])?;
        let direction = if nesterov { d.blend(r, 1.0, g, alpha, v)? } else { v };
        xs.push(d.moved(r, i, d.rate, direction)?);
        vs.push(v);
    }
    r.results = Some([xs, vs].concat());
    Ok(())
}

fn adagrad(r: &mut Raise) -> Result<(), Fault> {
    let d = Descent::new(r, 3)?;
    let decay = f64::from(r.take::<f32>("decay_factor")?.unwrap_or(0.0));
    let epsilon = f64::from(r.take::<f32>("epsilon")?.unwrap_or(1e-6));
    let (count, one, epsilon) = (d.steps(r)?, d.number(r, 1.0), d.number(r, epsilon));
    let slower = d.scaled(r, decay, count)?;
    let slower = r.node("Add", &[], &[one, slower])?;
    let rate = r.node("Div", &[], &[d.rate, slower])?;
    let (mut xs, mut hs) = (vec![], vec![]);
    for i in 0..d.groups[0].len() {
        let g = d.gradient(r, i)?;
        let square = r.node("Mul", &[], &[g, g])?;
        let h = r.node("Add", &[], &[d.groups[2][i], square])?;
        let root = r.node("Sqrt", &[], &[h])?;
        let root = r.node("Add", &[], &[root, epsilon])?;
        let direction = r.node("Div", &[], &[g, root])?;
        xs.push(d.moved(r, i, rate, direction)?);
        hs.push(h);
    }
    r.results = Some([xs, hs].concat());
    Ok(())
}

fn adam(r: &mut Raise) -> Result<(), Fault> {
    let d = Descent::new(r, 4)?;
    let mut number = |name: &str, default: f32| Ok::<f64, Fault>(f64::from(r.take::<f32>(name)?.unwrap_or(default)));
    let (alpha, beta) = (number("alpha", 0.9)?, number("beta", 0.999)?);
    let (epsilon, after) = (number("epsilon", 1e-6)?, number("norm_coefficient_post", 0.0)?);
    // rate * sqrt(1 - beta^T) / (1 - alpha^T), from the second step on.
    let (count, one, epsilon) = (d.steps(r)?, d.number(r, 1.0), d.number(r, epsilon));
    let rest = |r: &mut Raise, base: f64| {
        let base = d.number(r, base);
        let power = r.node("Pow", &[], &[base, count])?;
        r.node("Sub", &[], &[one, power])
    };
    let (top, bottom) = (rest(r, beta)?, rest(r, alpha)?);
    let top = r.node("Sqrt", &[], &[top])?;
    let factor = r.node("Div", &[], &[top, bottom])?;
    let first = d.is_first(r)?;
    let factor = r.node("Where", &[], &[first, one, factor])?;
    let rate = r.node("Mul", &[], &[d.rate, factor])?;
    let (mut xs, mut vs, mut hs) = (vec![], vec![], vec![]);
    for i in 0..d.groups[0].len() {
        let g = d.gradient(r, i)?;
        let square = r.node("Mul", &[], &[g, g])?;
        let v = d.blend(r, alpha, d.groups[2][i], 1.0 - alpha, g)?;
        let h = d.blend(r, beta, d.groups[3][i], 1.0 - beta, square)?;
        let root = r.node("Sqrt", &[], &[h])?;
        let root = r.node("Add", &[], &[root, epsilon])?;
        let direction = r.node("Div", &[], &[v, root])?;
        let x = d.moved(r, i, rate, direction)?;
        xs.push(d.scaled(r, 1.0 - after, x)?);
        vs.push(v);
        hs.push(h);
    }
    r.results = Some([xs, vs, hs].concat());
    Ok(())
}
