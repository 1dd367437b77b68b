//! Linear models and support vector machines.

use super::*;

/// Operand 0 as f32 rows `[N, F]`.
fn float_rows(b: &mut Builder, inputs: &[Option<Value>]) -> Result<Value, Fault> {
    let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
    let x = if b.dims(x)?.len() == 1 {
        let axes = b.ints(&[0]);
        b.op(Unsqueeze {}, &[x, axes])?
    } else {
        x
    };
    cast(b, x, DType::F32)
}

/// Rows and columns of operand 0; a vector is one row.
fn matrix(cx: &Ctx) -> Result<[Expr; 2], Fault> {
    match cx.dims(0)? {
        &[f] => Ok([1.into(), f]),
        _ => rows(cx),
    }
}

/// `x W^T`, for `W` of `[count, F]` given row by row.
fn product(b: &mut Builder, x: Value, weights: &[f32], count: usize) -> Result<Value, Fault> {
    let columns = weights.len() / count.max(1);
    let turned = (0..columns * count).map(|i| weights[i % count * columns + i / count]).collect();
    let w = b.constant(Tensor::from_vec([columns, count], turned));
    b.op(MatMul {}, &[x, w])
}

fn plus(b: &mut Builder, v: Value, list: &[f32]) -> Result<Value, Fault> {
    if list.is_empty() {
        return Ok(v);
    }
    let list = b.constant(Tensor::from_vec([list.len()], list.to_vec()));
    b.op(Add {}, &[v, list])
}

/// An error unless `len` values make `count` rows of `columns`.
fn check_table(len: usize, count: usize, columns: Expr, what: &str) -> Result<(), Fault> {
    let fits = count > 0 && len % count == 0 && columns.known().is_none_or(|f| f == (len / count) as i64);
    if fits { Ok(()) } else { Err(fault!("{len} {what} do not make {count} rows of {columns}")) }
}

impl OpDef for LinearRegressor {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, f] = matrix(cx)?;
        let targets = usize::try_from(self.targets).map_err(|_| fault!("targets {} is negative", self.targets))?;
        check_table(self.coefficients.len(), targets, f, "coefficients")?;
        PostTransform::parse(&self.post_transform)?;
        if !self.intercepts.is_empty() && self.intercepts.len() != targets {
            return Err(fault!("{} intercepts for {targets} targets", self.intercepts.len()));
        }
        Ok(vec![Fact::tensor(DType::F32, [n, targets.into()])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (op, post) = (self.clone(), PostTransform::parse(&self.post_transform)?);
        Ok(Meaning::decompose(move |b, inputs| {
            let x = float_rows(b, inputs)?;
            let scores = product(b, x, &op.coefficients, op.targets as usize)?;
            let scores = plus(b, scores, &op.intercepts)?;
            Ok(vec![post.apply_scores(b, scores, op.targets as usize)?])
        }))
    }
}

impl LinearClassifier {
    /// Number of scores that the coefficients give; two classes may have one.
    fn scores(&self) -> usize {
        self.intercepts.len().max(1)
    }
}

/// Label and scores `[N, 2]` of two classes from one score `[N, 1]`, of the second class: `other` gives the first one's score.
fn two_classes(
    b: &mut Builder,
    score: Value,
    labels: &Labels,
    post: PostTransform,
    other: impl FnOnce(&mut Builder, Value) -> Result<Value, Fault>,
) -> Result<Vec<Value>, Fault> {
    let zero = b.number(DType::F32, 0.0);
    let wins = b.op(Greater {}, &[score, zero])?;
    let axes = b.ints(&[1]);
    let index = b.op(Squeeze {}, &[wins, axes])?;
    let index = cast(b, index, DType::I64)?;
    let label = labels.pick(b, index)?;
    let score = if post == PostTransform::Logistic { post.apply(b, score)? } else { score };
    let rest = other(b, score)?;
    Ok(vec![label, b.op(Concat { axis: 1 }, &[rest, score])?])
}

fn one_minus(b: &mut Builder, v: Value) -> Result<Value, Fault> {
    let one = b.number(DType::F32, 1.0);
    b.op(Sub {}, &[one, v])
}

impl OpDef for LinearClassifier {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, f] = matrix(cx)?;
        let labels = Labels::new(&self.classlabels_ints, &self.classlabels_strings)?;
        let scores = self.scores();
        check_table(self.coefficients.len(), scores, f, "coefficients")?;
        PostTransform::parse(&self.post_transform)?;
        let classes = if scores == 1 && labels.count() == 2 { 2 } else { scores };
        if labels.count() < classes {
            return Err(fault!("{} class labels for {classes} scores", labels.count()));
        }
        Ok(vec![Fact::tensor(labels.0.dtype, [n]), Fact::tensor(DType::F32, [n, classes.into()])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (op, post) = (self.clone(), PostTransform::parse(&self.post_transform)?);
        let labels = Labels::new(&self.classlabels_ints, &self.classlabels_strings)?;
        Ok(Meaning::decompose(move |b, inputs| {
            let x = float_rows(b, inputs)?;
            let scores = product(b, x, &op.coefficients, op.scores())?;
            let scores = plus(b, scores, &op.intercepts)?;
            if op.scores() == 1 && labels.count() == 2 {
                return two_classes(b, scores, &labels, post, one_minus);
            }
            let best = b.op(ArgMax { axis: 1, keepdims: false, select_last_index: false }, &[scores])?;
            Ok(vec![labels.pick(b, best)?, post.apply(b, scores)?])
        }))
    }
}

/// The kernel function of a support vector machine.
#[derive(Clone, Debug, PartialEq)]
struct Kernel {
    kind: String,
    gamma: f32,
    offset: f32,
    degree: f32,
}

impl Kernel {
    fn new(kind: &str, params: &[f32]) -> Result<Kernel, Fault> {
        if !matches!(kind, "LINEAR" | "POLY" | "RBF" | "SIGMOID") {
            return Err(fault!("kernel_type '{kind}' is not known"));
        }
        let param = |i: usize| params.get(i).copied().unwrap_or(0.0);
        Ok(Kernel { kind: kind.to_owned(), gamma: param(0), offset: param(1), degree: param(2) })
    }

    /// Kernel values `[N, count]` of rows against `count` vectors.
    fn apply(&self, b: &mut Builder, x: Value, vectors: &[f32], count: usize) -> Result<Value, Fault> {
        let n = |b: &mut Builder, v: f32| b.number(DType::F32, v.into());
        if self.kind == "RBF" {
            let columns = vectors.len() / count.max(1);
            let table = b.constant(Tensor::from_vec([count, columns], vectors.to_vec()));
            let axes = b.ints(&[1]);
            let x = b.op(Unsqueeze {}, &[x, axes])?;
            let difference = b.op(Sub {}, &[x, table])?;
            let axes = b.ints(&[2]);
            let distance = b.op(ReduceSumSquare { keepdims: false, noop_with_empty_axes: false }, &[difference, axes])?;
            let gamma = n(b, -self.gamma);
            let scaled = b.op(Mul {}, &[distance, gamma])?;
            return b.op(Exp {}, &[scaled]);
        }
        let dot = product(b, x, vectors, count)?;
        if self.kind == "LINEAR" {
            return Ok(dot);
        }
        let (gamma, offset) = (n(b, self.gamma), n(b, self.offset));
        let scaled = b.op(Mul {}, &[dot, gamma])?;
        let moved = b.op(Add {}, &[scaled, offset])?;
        if self.kind == "SIGMOID" {
            return b.op(Tanh {}, &[moved]);
        }
        let degree = n(b, self.degree);
        b.op(Pow {}, &[moved, degree])
    }
}

impl OpDef for SVMRegressor {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, f] = matrix(cx)?;
        Kernel::new(&self.kernel_type, &self.kernel_params)?;
        PostTransform::parse(&self.post_transform)?;
        match usize::try_from(self.n_supports) {
            Ok(0) => check_table(self.coefficients.len(), 1, f, "coefficients")?,
            Ok(count) if self.coefficients.len() == count => {
                check_table(self.support_vectors.len(), count, f, "support vectors")?
            }
            _ => return Err(fault!("{} coefficients for {} support vectors", self.coefficients.len(), self.n_supports)),
        }
        if self.rho.len() != 1 {
            return Err(fault!("rho has {} values, one is needed", self.rho.len()));
        }
        Ok(vec![Fact::tensor(DType::F32, [n, 1.into()])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (op, kernel) = (self.clone(), Kernel::new(&self.kernel_type, &self.kernel_params)?);
        let post = PostTransform::parse(&self.post_transform)?;
        Ok(Meaning::decompose(move |b, inputs| {
            let x = float_rows(b, inputs)?;
            let sum = match op.n_supports {
                0 => kernel.apply(b, x, &op.coefficients, 1)?,
                count => {
                    let values = kernel.apply(b, x, &op.support_vectors, count as usize)?;
                    product(b, values, &op.coefficients, 1)?
                }
            };
            let sum = plus(b, sum, &op.rho)?;
            if op.one_class == 0 {
                return Ok(vec![post.apply(b, sum)?]);
            }
            let [zero, plus, minus] = [0.0, 1.0, -1.0].map(|v| b.number(DType::F32, v));
            let inside = b.op(Greater {}, &[sum, zero])?;
            Ok(vec![b.op(Where {}, &[inside, plus, minus])?])
        }))
    }
}

impl SVMClassifier {
    /// Support vectors per class; empty for a linear machine.
    fn per_class(&self) -> Vec<usize> {
        self.vectors_per_class.iter().map(|&n| n.max(0) as usize).collect()
    }

    /// For each pair of classes `i < j` the weights of all support vectors, `[pairs, vectors]`.
    fn pair_weights(&self) -> Vec<f32> {
        let per_class = self.per_class();
        let total: usize = per_class.iter().sum();
        let start = |c: usize| per_class[..c].iter().sum::<usize>();
        let mut all = vec![];
        for (i, j) in pairs(per_class.len()) {
            let mut row = vec![0.0; total];
            // The vectors of class i have their weights against j in row j - 1, those of class j theirs against i in row i.
            let (a, c) = (start(i)..start(i) + per_class[i], start(j)..start(j) + per_class[j]);
            a.for_each(|v| row[v] = self.coefficients[(j - 1) * total + v]);
            c.for_each(|v| row[v] = self.coefficients[i * total + v]);
            all.extend(row);
        }
        all
    }
}

/// All `(i, j)` with `i < j < n`.
fn pairs(n: usize) -> Vec<(usize, usize)> {
    (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j))).collect()
}

impl OpDef for SVMClassifier {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, f] = matrix(cx)?;
        let labels = Labels::new(&self.classlabels_ints, &self.classlabels_strings)?;
        Kernel::new(&self.kernel_type, &self.kernel_params)?;
        PostTransform::parse(&self.post_transform)?;
        let classes = labels.count();
        let per_class = self.per_class();
        let label = Fact::tensor(labels.0.dtype, [n]);
        if per_class.is_empty() {
            check_table(self.coefficients.len(), classes, f, "coefficients")?;
            if self.rho.len() != 1 {
                return Err(fault!("rho has {} values, one is needed", self.rho.len()));
            }
            return Ok(vec![label, Fact::tensor(DType::F32, [n, classes.into()])]);
        }
        let total: usize = per_class.iter().sum();
        let pairs = pairs(classes).len();
        if per_class.len() != classes || self.coefficients.len() != total * (classes - 1) || self.rho.len() != pairs {
            return Err(fault!(
                "{classes} classes, {per_class:?} vectors, {} coefficients and {} rho do not fit",
                self.coefficients.len(),
                self.rho.len()
            ));
        }
        check_table(self.support_vectors.len(), total, f, "support vectors")?;
        if !self.prob_a.is_empty() && classes > 2 {
            return Err(fault!("probabilities of {classes} classes are not supported, only of two"));
        }
        if self.prob_a.len() != self.prob_b.len() {
            return Err(fault!("prob_a and prob_b differ in length"));
        }
        let scores = if classes == 2 { 2 } else { pairs };
        Ok(vec![label, Fact::tensor(DType::F32, [n, scores.into()])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (op, kernel) = (self.clone(), Kernel::new(&self.kernel_type, &self.kernel_params)?);
        let labels = Labels::new(&self.classlabels_ints, &self.classlabels_strings)?;
        let post = PostTransform::parse(&self.post_transform)?;
        Ok(Meaning::decompose(move |b, inputs| {
            let x = float_rows(b, inputs)?;
            let per_class = op.per_class();
            if per_class.is_empty() {
                let scores = kernel.apply(b, x, &op.coefficients, labels.count())?;
                let scores = plus(b, scores, &op.rho)?;
                let best = b.op(ArgMax { axis: 1, keepdims: false, select_last_index: false }, &[scores])?;
                return Ok(vec![labels.pick(b, best)?, post.apply(b, scores)?]);
            }
            let values = kernel.apply(b, x, &op.support_vectors, per_class.iter().sum())?;
            let pairs = pairs(per_class.len());
            let scores = product(b, values, &op.pair_weights(), pairs.len())?;
            let scores = plus(b, scores, &op.rho)?;
            let label = vote(b, scores, &pairs, &labels)?;
            if let (&[a], &[c]) = (&op.prob_a[..], &op.prob_b[..]) {
                // 1 - logistic(a s + c), and its rest.
                let (a, c) = (b.number(DType::F32, a.into()), b.number(DType::F32, c.into()));
                let scaled = b.op(Mul {}, &[scores, a])?;
                let moved = b.op(Add {}, &[scaled, c])?;
                let second = b.op(Sigmoid {}, &[moved])?;
                let first = one_minus(b, second)?;
                return Ok(vec![label, b.op(Concat { axis: 1 }, &[first, second])?]);
            }
            if pairs.len() == 1 {
                // As ONNX Runtime shows the only score.
                let softmax = matches!(post, PostTransform::Softmax | PostTransform::SoftmaxZero);
                let other = if softmax { one_minus(b, scores)? } else { b.op(Neg {}, &[scores])? };
                let both = b.op(Concat { axis: 1 }, &[other, scores])?;
                return Ok(vec![label, if softmax { both } else { post.apply(b, both)? }]);
            }
            Ok(vec![label, post.apply(b, scores)?])
        }))
    }
}

/// The label of the class that wins most of its pairs: a positive score is a vote for the first of the pair.
fn vote(b: &mut Builder, scores: Value, pairs: &[(usize, usize)], labels: &Labels) -> Result<Value, Fault> {
    let classes = labels.count();
    let zero = b.number(DType::F32, 0.0);
    let wins = b.op(Greater {}, &[scores, zero])?;
    let wins = cast(b, wins, DType::F32)?;
    // votes = wins A + (1 - wins) B = wins (A - B) + sum(B)
    let (mut table, mut base) = (vec![0.0f32; pairs.len() * classes], vec![0.0f32; classes]);
    for (p, &(i, j)) in pairs.iter().enumerate() {
        table[i * pairs.len() + p] += 1.0;
        table[j * pairs.len() + p] -= 1.0;
        base[j] += 1.0;
    }
    let votes = product(b, wins, &table, classes)?;
    let votes = plus(b, votes, &base)?;
    let best = b.op(ArgMax { axis: 1, keepdims: false, select_last_index: false }, &[votes])?;
    labels.pick(b, best)
}
