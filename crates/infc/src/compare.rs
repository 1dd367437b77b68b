//! When are two outputs the same? The one rule by which every link of the chain is compared.
//!
//! dtype and shape are exact, NaN equals NaN, infinities by sign. Numbers: `|got - want| <= atol + rtol * |want|`. Where that does
//! not hold, an output that a quantiser produced may be one step off in at most 1 % of its elements, and a float output
//! downstream of integer arithmetic must have an SQNR of at least 40 dB and the same top-1. An output that depends on random numbers,
//! whose generator ONNX leaves open, must have the same statistics. Where products of f32 are taken in fewer bits ([`signal_needed`]), a
//! float output must have the SQNR of that precision instead, and a top-1 that is no worse than the noise.

use infc_ir::dtype::Class;
use infc_ir::graph::{Graph, Region, Value};
use infc_ir::interp::Item;
use infc_ir::{DType, Op, Tensor};
use infc_kernel::target::Math;

/// What difference of numbers is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Relative to the expected number.
    pub rtol: f64,
    /// Absolute.
    pub atol: f64,
    /// Where more differs: the SQNR in dB that is enough for any float output. `None`: only for those downstream of integer arithmetic, 40 dB.
    pub sqnr: Option<f64>,
}

/// The SQNR in dB that float outputs need where products of f32 are taken in that precision; `None` where numbers are compared one by one.
///
/// Rounding both factors to bf16 (errors of up to 2^-9 each) leaves a sum of products some 53 dB; layer by layer the noise adds up. Real models on
/// real data keep 28 dB and more, a resnet50 on random inputs 21 dB, just as if the graph itself cast the factors. The other
/// precisions have three bits more, 18 dB.
pub fn signal_needed(math: Math) -> Option<f64> {
    match math {
        Math::F32 | Math::Winograd => None,
        Math::Bf16 => Some(20.0),
        Math::Tf32 | Math::F16 => Some(38.0),
    }
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance { rtol: 1e-3, atol: 1e-4, sqnr: None }
    }
}

/// How an output comes about, as far as the rule cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No integer arithmetic on the way.
    Plain,
    /// A quantiser made it (perhaps moved around since).
    Quantised,
    /// Integer arithmetic is somewhere upstream.
    Downstream,
    /// Random numbers are somewhere upstream.
    Random,
}

/// The largest difference of a comparison, and whether it is allowed.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Outcome {
    /// The largest absolute difference.
    pub error: f64,
    /// Where it is: `logits[0, 7]`. Empty if nothing differs.
    pub at: String,
    /// Why the rule does not hold; `None` if it does.
    pub fault: Option<String>,
    /// That of the float output with the least, where an SQNR is asked for and anything differs; those that it decides count before others.
    pub signal: Option<Signal>,
}

/// How much of an output is signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signal {
    /// Signal over noise (SQNR) in dB.
    pub sqnr: f64,
    /// Whether it decides: numbers one by one differ too much.
    pub decides: bool,
}

impl Outcome {
    fn wrong(fault: String) -> Outcome {
        Outcome { error: f64::INFINITY, at: String::new(), fault: Some(fault), signal: None }
    }
    /// The worse of two.
    pub fn worse(self, other: Outcome) -> Outcome {
        let rank = |o: &Outcome| (o.fault.is_some(), o.error);
        let order = |s: &Signal, t: &Signal| t.decides.cmp(&s.decides).then(s.sqnr.total_cmp(&t.sqnr));
        let signal = self.signal.into_iter().chain(other.signal).min_by(order);
        let worse = if rank(&other) > rank(&self) { other } else { self };
        Outcome { signal, ..worse }
    }
}

/// The kind of each output of a model.
pub fn output_kinds(graph: &Graph) -> Vec<Kind> {
    let mut kinds = vec![Kind::Plain; graph.values.len()];
    mark(graph, Graph::MAIN, &mut kinds);
    graph.outputs().iter().map(|v| kinds[v.index()]).collect()
}

fn mark(graph: &Graph, region: Region, kinds: &mut [Kind]) {
    for &n in &graph.region(region).nodes {
        let node = graph.node(n);
        let inputs: Vec<Value> = node.inputs.iter().flatten().copied().collect();
        for &body in &node.regions {
            mark(graph, body, kinds);
        }
        let of_bodies = node.regions.iter().flat_map(|&r| &graph.region(r).results);
        let mut before = inputs.iter().chain(of_bodies).map(|v| kinds[v.index()]);
        let (random, upstream) = (before.clone().any(|k| k == Kind::Random), before.any(|k| k != Kind::Plain));
        let kind = match &node.op {
            op if random || draws(graph, op, &node.inputs) => Kind::Random,
            op if quantises(op) => Kind::Quantised,
            Op::ConvInteger(_) | Op::MatMulInteger(_) => Kind::Downstream,
            op if moves(op) => inputs.first().map_or(Kind::Plain, |v| kinds[v.index()]),
            _ if upstream => Kind::Downstream,
            _ => Kind::Plain,
        };
        node.outputs.iter().for_each(|v| kinds[v.index()] = kind);
    }
}

/// Does it draw random numbers? Dropout does if it is told to train.
fn draws(graph: &Graph, op: &Op, inputs: &[Option<Value>]) -> bool {
    let training = || inputs.get(2).copied().flatten().map(|v| graph.constant(v).is_none_or(|t| t.to_ints() != [0]));
    match op {
        Op::Dropout(_) => training().unwrap_or(false),
        op => op.info().family == "random",
    }
}

fn quantises(op: &Op) -> bool {
    matches!(
        op,
        Op::QuantizeLinear(_)
            | Op::DynamicQuantizeLinear(_)
            | Op::QLinearConv(_)
            | Op::QLinearMatMul(_)
            | Op::QLinearAdd(_)
            | Op::QLinearMul(_)
            | Op::QLinearSigmoid(_)
            | Op::QLinearLeakyRelu(_)
            | Op::QLinearConcat(_)
            | Op::QLinearSoftmax(_)
            | Op::QLinearWhere(_)
            | Op::QLinearAveragePool(_)
            | Op::QLinearGlobalAveragePool(_)
            | Op::Quant(_)
    )
}

/// Operators that move the elements of operand 0 without changing them.
fn moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Concat(_)
            | Op::DepthToSpace(_)
            | Op::Expand(_)
            | Op::Flatten(_)
            | Op::Gather(_)
            | Op::GatherElements(_)
            | Op::GatherND(_)
            | Op::Identity(_)
            | Op::Reshape(_)
            | Op::Slice(_)
            | Op::SpaceToDepth(_)
            | Op::Split(_)
            | Op::Squeeze(_)
            | Op::Tile(_)
            | Op::Transpose(_)
            | Op::Unsqueeze(_)
    )
}

/// Compares an output named `name` with the expected one.
pub fn compare(name: &str, got: &Item, want: &Item, kind: Kind, tolerance: Tolerance) -> Outcome {
    match (got, want) {
        (Item::Tensor(got), Item::Tensor(want)) => compare_tensors(name, got, want, kind, tolerance),
        (Item::Sequence(got), Item::Sequence(want)) if got.len() == want.len() => {
            let pairs = got.iter().zip(want).enumerate();
            pairs.fold(Outcome::default(), |o, (i, (g, w))| o.worse(compare(&format!("{name}[{i}]"), g, w, kind, tolerance)))
        }
        (Item::Sequence(got), Item::Sequence(want)) => {
            Outcome::wrong(format!("{name}: has {} items instead of {}", got.len(), want.len()))
        }
        (Item::Optional(None), Item::Optional(None)) => Outcome::default(),
        (Item::Optional(Some(got)), Item::Optional(Some(want))) => compare(name, got, want, kind, tolerance),
        (Item::Map(got), Item::Map(want)) if got.len() == want.len() => {
            want.iter().fold(Outcome::default(), |o, (key, w)| match got.iter().find(|(k, _)| k == key) {
                Some((_, g)) => o.worse(compare(&format!("{name}[{key:?}]"), g, w, kind, tolerance)),
                None => Outcome::wrong(format!("{name}: key {key:?} is missing")),
            })
        }
        _ => Outcome::wrong(format!("{name}: is of another kind (tensor, sequence, optional or map), or has another size")),
    }
}

fn compare_tensors(name: &str, got: &Tensor, want: &Tensor, kind: Kind, tolerance: Tolerance) -> Outcome {
    if got.dtype != want.dtype {
        return Outcome::wrong(format!("{name}: dtype is {} instead of {}", got.dtype, want.dtype));
    }
    if got.dims != want.dims {
        return Outcome::wrong(format!("{name}: shape is {:?} instead of {:?}", got.dims, want.dims));
    }
    if want.dtype.class() == Class::Text {
        return match got.strings().iter().zip(want.strings()).position(|(g, w)| g != w) {
            Some(i) => Outcome::wrong(format!(
                "{}: is {:?} instead of {:?}",
                place(name, &want.dims, i),
                String::from_utf8_lossy(&got.strings()[i]),
                String::from_utf8_lossy(&want.strings()[i])
            )),
            None => Outcome::default(),
        };
    }
    let (dtype, parts) = match want.dtype {
        DType::C64 => (DType::F32, 2),
        DType::C128 => (DType::F64, 2),
        d => (d, 1),
    };
    let flat = |t: &Tensor| Tensor::from_bytes(dtype, [t.len() * parts], t.bytes().clone());
    let (g, w) = (flat(got), flat(want));
    let mut outcome = compare_numbers(name, &g, &w, &want.dims, parts, tolerance);
    if tolerance.sqnr.is_some() && kind != Kind::Random && dtype.is_float() && outcome.error > 0.0 {
        outcome.signal = Some(Signal { sqnr: noise(&g, &w).0, decides: outcome.fault.is_some() });
    }
    if outcome.fault.is_some() && (outcome.error.is_finite() || kind == Kind::Random) {
        let excused = match kind {
            Kind::Plain if tolerance.sqnr.is_none() || !dtype.is_float() => None,
            Kind::Random => Some(same_statistics(&g, &w)),
            Kind::Quantised if dtype.is_int() => Some(one_step(&g, &w)),
            Kind::Quantised | Kind::Downstream | Kind::Plain if dtype.is_float() => {
                Some(close_signal(&g, &w, &want.dims, tolerance))
            }
            Kind::Quantised | Kind::Downstream | Kind::Plain => None,
        };
        match excused {
            Some(Ok(())) => outcome.fault = None,
            Some(Err(more)) => outcome.fault = outcome.fault.map(|f| format!("{f}; {more}")),
            None => {}
        }
    }
    outcome
}

/// Element by element, by `atol` and `rtol`.
fn compare_numbers(name: &str, got: &Tensor, want: &Tensor, dims: &[usize], parts: usize, tolerance: Tolerance) -> Outcome {
    let (mut worst, mut first_wrong, mut wrong) = (None, None, 0usize);
    for i in 0..want.len() {
        let error = difference(got, want, i);
        // `>` with a NaN error is false: differences are never NaN.
        if error > tolerance.atol + tolerance.rtol * want.float(i).abs() || error == f64::INFINITY {
            wrong += 1;
            first_wrong.get_or_insert(i);
        }
        if error > worst.map_or(0.0, |(_, e)| e) {
            worst = Some((i, error));
        }
    }
    let Some((at, error)) = worst else { return Outcome::default() };
    let at = place(name, dims, at / parts);
    let fault = first_wrong.map(|i| {
        let (g, w) = (number(got, i), number(want, i));
        let first = place(name, dims, i / parts);
        format!("{first}: is {g} instead of {w} ({wrong} of {} elements differ too much)", want.len())
    });
    Outcome { error, at, fault, signal: None }
}

/// An element as people write it.
fn number(t: &Tensor, i: usize) -> String {
    match t.dtype {
        DType::F32 => (t.float(i) as f32).to_string(),
        d if d.is_float() => t.float(i).to_string(),
        d if d.is_signed() => (t.value(i) as i64).to_string(),
        _ => t.value(i).to_string(),
    }
}

/// `|got - want|` of an element: 0 for equal, NaN and NaN, the same infinity; infinite for any other mix of those with numbers.
fn difference(got: &Tensor, want: &Tensor, i: usize) -> f64 {
    if want.dtype.is_float() {
        let (g, w) = (got.float(i), want.float(i));
        return if g == w || (g.is_nan() && w.is_nan()) {
            0.0
        } else if g.is_finite() && w.is_finite() {
            (g - w).abs()
        } else {
            f64::INFINITY
        };
    }
    let wide = |t: &Tensor| if t.dtype.is_signed() { i128::from(t.value(i) as i64) } else { i128::from(t.value(i)) };
    let d = (wide(got) - wide(want)).abs();
    if want.dtype == DType::Bool && d != 0 { f64::INFINITY } else { d as f64 }
}

fn one_step(got: &Tensor, want: &Tensor) -> Result<(), String> {
    let differences = (0..want.len()).map(|i| difference(got, want, i));
    let (off, more) = differences.fold((0, 0), |(off, more), d| (off + usize::from(d > 0.0), more + usize::from(d > 1.0)));
    if more > 0 {
        return Err(format!("{more} are more than one step off"));
    }
    if off * 100 > want.len() {
        return Err(format!("{off} are one step off, at most 1 % may be"));
    }
    Ok(())
}

/// SQNR in dB, and the root mean square of the differences, of the numbers that are expected to be finite.
fn noise(got: &Tensor, want: &Tensor) -> (f64, f64) {
    let (mut signal, mut noise, mut count) = (0.0, 0.0, 0.0f64);
    for i in 0..want.len() {
        let w = want.float(i);
        if w.is_finite() {
            signal += w * w;
            noise += difference(got, want, i).powi(2);
            count += 1.0;
        }
    }
    (10.0 * (signal / noise).log10(), (noise / count.max(1.0)).sqrt())
}

fn close_signal(got: &Tensor, want: &Tensor, dims: &[usize], tolerance: Tolerance) -> Result<(), String> {
    let (sqnr, error) = noise(got, want);
    let needed = tolerance.sqnr.unwrap_or(40.0);
    if sqnr < needed {
        return Err(format!("SQNR is {sqnr:.1} dB, {needed:.0} dB are needed"));
    }
    // Where all numbers may be noisy, the best two may be closer than the noise.
    let close = tolerance.sqnr.map_or(0.0, |_| 4.0 * error);
    // Top-1 of each item of the batch: of each row for a vector of classes.
    let items = if dims.len() > 1 { dims[0].max(1) } else { 1 };
    let len = want.len() / items;
    for item in 0..items {
        let row = item * len..(item + 1) * len;
        let top = |t: &Tensor| row.clone().max_by(|&a, &b| t.float(a).total_cmp(&t.float(b)));
        if let (Some(g), Some(w)) = (top(got), top(want)) {
            let best = want.float(w);
            if want.float(g) < best - tolerance.atol - tolerance.rtol * best.abs() - close {
                return Err(format!("top-1 of item {item} is {} instead of {}", g - row.start, w - row.start));
            }
        }
    }
    Ok(())
}

/// Mean (and deviation, of many values) within five standard errors. Of at most two values, or of numbers some of which are dropped
/// (are 0), each element must be one of those that are possible.
fn same_statistics(got: &Tensor, want: &Tensor) -> Result<(), String> {
    let values = |t: &Tensor| (0..t.len()).map(|i| t.float(i)).collect::<Vec<f64>>();
    let (g, w) = (values(got), values(want));
    let distinct: std::collections::BTreeSet<u64> = w.iter().map(|v| v.to_bits()).collect();
    let impossible = |(&a, &b): (&f64, &f64)| match distinct.len() {
        0..=2 => !distinct.contains(&a.to_bits()),
        _ if w.contains(&0.0) => a != 0.0 && b != 0.0 && (a - b).abs() > 1e-5 * b.abs(),
        _ => false,
    };
    if let Some(i) = g.iter().zip(&w).position(impossible) {
        return Err(format!("{} is no possible value", g[i]));
    }
    let n = w.len() as f64;
    let moments = |v: &[f64]| {
        let mean = v.iter().sum::<f64>() / n;
        (mean, v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
    };
    let ((mean, var), (want_mean, want_var)) = (moments(&g), moments(&w));
    let error = ((var + want_var) / n).sqrt();
    if (mean - want_mean).abs() > 5.0 * error {
        return Err(format!("the mean is {mean} instead of {want_mean}"));
    }
    if n >= 100.0 && !(0.5..=2.0).contains(&(var / want_var)) {
        return Err(format!("the variance is {var} instead of {want_var}"));
    }
    Ok(())
}

/// `name[i, j]` of the element at `flat`.
fn place(name: &str, dims: &[usize], flat: usize) -> String {
    let mut index = vec![0; dims.len()];
    let mut rest = flat;
    for (i, &d) in index.iter_mut().zip(dims).rev() {
        (*i, rest) = (rest % d.max(1), rest / d.max(1));
    }
    let index: Vec<_> = index.iter().map(usize::to_string).collect();
    if index.is_empty() { name.to_owned() } else { format!("{name}[{}]", index.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(v: &[f32]) -> Item {
        Item::Tensor(Tensor::from_vec([v.len()], v.to_vec()))
    }
    fn u8s(v: &[u8]) -> Item {
        Item::Tensor(Tensor::from_vec([v.len()], v.to_vec()))
    }
    #[track_caller]
    fn check(got: &Item, want: &Item, kind: Kind, fault: &str) {
        let o = compare("y", got, want, kind, Tolerance::default());
        match &o.fault {
            None => assert_eq!(fault, "", "{o:?}"),
            Some(f) => assert!(!fault.is_empty() && f.contains(fault), "{f}"),
        }
    }

    #[test]
    fn the_rule_of_numbers() {
        use Kind::Plain;
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        check(&f32s(&[1.0, nan, inf]), &f32s(&[1.0005, nan, inf]), Plain, "");
        check(&f32s(&[0.00009]), &f32s(&[0.0]), Plain, "");
        check(&f32s(&[0.0002]), &f32s(&[0.0]), Plain, "y[0]: is 0.0002");
        check(&f32s(&[-inf]), &f32s(&[inf]), Plain, "instead of inf");
        check(&f32s(&[nan]), &f32s(&[1.0]), Plain, "is NaN");
        check(&f32s(&[1.0]), &f32s(&[nan]), Plain, "instead of NaN");
        check(&f32s(&[1.0]), &f32s(&[1.0, 2.0]), Plain, "shape is [1] instead of [2]");
        check(&f32s(&[1.0]), &u8s(&[1]), Plain, "dtype is f32 instead of u8");
        let t = |b| Item::Tensor(Tensor::from_bools([1], &[b]));
        check(&t(true), &t(false), Plain, "y[0]");
        check(&Item::Sequence(vec![t(true)]), &Item::Sequence(vec![t(false)]), Plain, "y[0][0]");
        check(&Item::Sequence(vec![]), &Item::Sequence(vec![t(false)]), Plain, "0 items instead of 1");
    }

    #[test]
    fn quantised_outputs_may_be_a_step_off() {
        let want: Vec<u8> = (0..200).collect();
        let off =
            |n: usize, by: u8| u8s(&want.iter().enumerate().map(|(i, &v)| if i < n { v + by } else { v }).collect::<Vec<_>>());
        check(&off(2, 1), &u8s(&want), Kind::Quantised, "");
        check(&off(2, 1), &u8s(&want), Kind::Plain, "2 of 200");
        check(&off(3, 1), &u8s(&want), Kind::Quantised, "at most 1 %");
        check(&off(1, 2), &u8s(&want), Kind::Quantised, "more than one step");
    }

    #[test]
    fn random_outputs_need_the_same_statistics() {
        let want = f32s(&[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
        let got = f32s(&[1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
        check(&got, &want, Kind::Random, "");
        check(&got, &want, Kind::Plain, "differ too much");
        check(&f32s(&[0.5; 10]), &want, Kind::Random, "0.5 is no possible value");
        let coins: Vec<f32> = (0..100).map(|i| (i % 2) as f32).collect();
        check(&f32s(&[0.0; 100]), &f32s(&coins), Kind::Random, "the mean is 0 instead of 0.5");
        let dropped = f32s(&[0.0, 4.0, 6.0]);
        check(&f32s(&[2.0, 0.0, 6.0]), &dropped, Kind::Random, "");
        check(&f32s(&[2.0, 5.0, 6.0]), &dropped, Kind::Random, "5 is no possible value");
    }

    #[test]
    fn rounded_products_need_the_sqnr_of_their_precision() {
        let of = |got: &[f32], want: &[f32], math| {
            let tolerance = Tolerance { sqnr: signal_needed(math), ..Tolerance::default() };
            compare("y", &f32s(got), &f32s(want), Kind::Plain, tolerance)
        };
        let good = of(&[10.1, 1.0], &[10.0, 1.0], Math::Bf16);
        assert!(good.fault.is_none() && good.signal.is_some_and(|s| s.decides && (40.0..40.1).contains(&s.sqnr)), "{good:?}");
        assert!(of(&[10.2, 1.0], &[10.0, 1.0], Math::Tf32).fault.is_some_and(|f| f.contains("38 dB are needed")));
        assert!(of(&[12.0, 1.0], &[10.0, 1.0], Math::Bf16).fault.is_some_and(|f| f.contains("20 dB are needed")));
        // The best two may change places where they are closer than the noise, not else; infinities and NaN never are noise.
        assert_eq!(of(&[10.0, 10.05], &[10.05, 10.0], Math::Bf16).fault, None);
        let far = [vec![100.0; 1000], vec![90.0; 3]].concat();
        let mut other = far.clone();
        other[1000] = 105.0;
        assert!(of(&other, &far, Math::Bf16).fault.is_some_and(|f| f.contains("top-1")));
        assert!(of(&[f32::INFINITY, 1.0], &[3e38, 1.0], Math::Bf16).fault.is_some());
        let exact = of(&[1.0], &[1.0], Math::Bf16);
        assert!(exact.signal.is_none() && exact.fault.is_none());
        let close = of(&[1.00001], &[1.0], Math::Bf16);
        assert!(close.signal.is_some_and(|s| !s.decides) && close.fault.is_none());
        assert!(close.clone().worse(good.clone()).signal == good.signal && good.clone().worse(close).signal == good.signal);
    }

    #[test]
    fn floats_after_integers_need_40_db_and_the_same_top_1() {
        check(&f32s(&[10.05, 1.0]), &f32s(&[10.0, 1.0]), Kind::Downstream, "");
        check(&f32s(&[10.05, 1.0]), &f32s(&[10.0, 1.0]), Kind::Plain, "y[0]");
        check(&f32s(&[10.5, 1.0]), &f32s(&[10.0, 1.0]), Kind::Downstream, "SQNR is 26");
        check(&f32s(&[10.0, 10.05]), &f32s(&[10.05, 10.0]), Kind::Downstream, "top-1 of item 0 is 1");
    }
}
