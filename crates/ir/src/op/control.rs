//! Control flow: If, Loop, Scan.
//!
//! Regions see nothing of the outside. What an ONNX body captures from an outer scope is an operand after the declared
//! ones, and a parameter after the declared ones, in the same order and the same list for all regions of a node:
//! - If: operands `[cond, captured...]`, parameters of both branches `[captured...]`;
//! - Loop: operands `[max_trip_count, cond, carried..., captured...]`, parameters `[iteration, cond, carried..., captured...]`;
//!   the last `captures` operands are the captured ones;
//! - Scan: operands `[state..., scanned..., captured...]`, parameters the same (slices for the scanned); the last `captures`
//!   operands are the captured ones. SequenceMap likewise.
//!
//! Results are ONNX's: captured values are no results. Constants are never captured.

use super::*;

/// This family's operators without an implementation.
pub const GAPS: &[&str] = &[];

/// The type of values that are of type `a` or of type `b`: dims that differ become new ones. `what` names the value in errors.
fn join(what: &str, a: &Type, b: &Type, fresh: &mut dyn FnMut() -> Expr) -> Result<Type, Fault> {
    let ty = a.join(b, &mut |_, _, _| fresh());
    ty.ok_or_else(|| fault!("{what} is {a} or {b}; dtype and rank must be the same"))
}

/// New dims of an operator: `new If.0`, `new If.1`, ...
fn numbered(op: &'static str) -> impl FnMut() -> Expr {
    let mut n = 0;
    move || {
        n += 1;
        new_dim(op, n - 1)
    }
}

/// The one element of a bool operand, if it is constant.
fn known_flag(cx: &Ctx, i: usize) -> Option<bool> {
    let t = cx.known(i).filter(|t| t.len() == 1 && t.dtype.int_range().is_some())?;
    Some(t.to_ints()[0] != 0)
}

fn check_flag(cx: &Ctx, i: usize, what: &str) -> Result<(), Fault> {
    let t = cx.tensor(i)?;
    let one = t.dims.iter().all(|d| d.known().is_none_or(|n| n == 1));
    if t.dtype == DType::Bool && one { Ok(()) } else { Err(fault!("{what} is {t}, one bool is needed")) }
}

fn body<'a>(cx: &Ctx<'a>, i: usize) -> Result<&'a Signature, Fault> {
    cx.regions.get(i).ok_or_else(|| fault!("body {i} is missing"))
}

fn check_params(what: &str, body: &Signature, count: usize) -> Result<(), Fault> {
    let got = body.params.len();
    if got == count { Ok(()) } else { Err(fault!("{what} takes {got} values, {count} are passed")) }
}

/// Inserts `d` into the dims of a slice.
fn stacked(what: &str, slice: &Type, axis: i64, d: Expr) -> Result<Fact, Fault> {
    let t = slice.as_tensor().ok_or_else(|| fault!("{what} is {slice}, a tensor is needed"))?;
    let mut dims = t.dims.clone();
    dims.insert(normal_axis(axis, dims.len() + 1)?, d);
    Ok(Fact::tensor(t.dtype, dims))
}

/// Results are those of the branch that is taken. If the condition is not known, both must agree in dtype and rank.
impl OpDef for If {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        check_flag(cx, 0, "the condition")?;
        let (then, other) = (body(cx, 0)?, body(cx, 1)?);
        if let Some(cond) = known_flag(cx, 0) {
            return Ok(if cond { then.results.clone() } else { other.results.clone() });
        }
        check_params("the then branch", then, cx.inputs.len() - 1)?;
        check_params("the else branch", other, cx.inputs.len() - 1)?;
        let (n, m) = (then.results.len(), other.results.len());
        if n != m {
            return Err(fault!("the branches have {n} and {m} results"));
        }
        let mut fresh = numbered("If");
        let both = then.results.iter().zip(&other.results).enumerate().map(|(k, (a, b))| {
            let ty = join(&format!("result {k} of the branches"), &a.ty, &b.ty, &mut fresh)?;
            let known = a.known.clone().filter(|_| a.known == b.known);
            Ok(Fact { ty, known, ints: a.ints.clone().filter(|_| a.ints == b.ints) })
        });
        both.collect()
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Control)
    }
}

/// Carried values keep dtype and rank; a dim that the body changes is a new one. Scan outputs get a leading axis: the trip count if
/// it is known, else a new dim.
impl OpDef for Loop {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        if cx.has(0) && !cx.dtype(0)?.is_int() {
            return Err(fault!("the trip count is {}, an integer is needed", cx.tensor(0)?));
        }
        if cx.has(1) {
            check_flag(cx, 1, "the condition")?;
        }
        let body = body(cx, 0)?;
        check_params("the body", body, cx.inputs.len())?;
        let states = states(cx, 2 + self.captures)?;
        if body.results.len() < 1 + states {
            return Err(fault!("the body has {} results, {} are needed", body.results.len(), 1 + states));
        }
        let mut fresh = numbered("Loop");
        let mut facts = carried(cx, body, states, 2, 1, &mut fresh)?;
        let goes_on = (!cx.has(1) || known_flag(cx, 1) == Some(true))
            && body.results[0].known.as_ref().is_some_and(|t| t.len() == 1 && t.to_ints()[0] != 0);
        let trips = match cx.ints(0) {
            Ok(n) if goes_on && n.len() == 1 => n[0].max(Expr::int(0)),
            _ => fresh(),
        };
        for (k, f) in body.results.iter().enumerate().skip(1 + states) {
            facts.push(stacked(&format!("scan output {}", k - 1 - states), &f.ty, 0, trips)?);
        }
        Ok(facts)
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Control)
    }
}

/// Number of operands less `others`, which must not be negative.
fn states(cx: &Ctx, others: i64) -> Result<usize, Fault> {
    let others = usize::try_from(others).ok().filter(|&n| n <= cx.inputs.len());
    others.map(|n| cx.inputs.len() - n).ok_or_else(|| fault!("has {} operands, too few", cx.inputs.len()))
}

/// Facts of carried values: operands from `first`, body results from `result`.
fn carried(
    cx: &Ctx,
    body: &Signature,
    states: usize,
    first: usize,
    result: usize,
    fresh: &mut dyn FnMut() -> Expr,
) -> Result<Vec<Fact>, Fault> {
    let one = |k: usize| {
        let what = format!("carried value {k}");
        let next = &body.results[result + k].ty;
        let ty = match (join(&what, &cx.fact(first + k)?.ty, next, fresh)?, next) {
            // An optional at the start that the body makes a value of: the result is the value.
            (Type::Optional(ty), Type::Tensor(_) | Type::Sequence(_) | Type::Map(..)) => *ty,
            (ty, _) => ty,
        };
        // The body must be made for every shape that the value can have.
        if let (Type::Tensor(t), Type::Tensor(p)) = (&ty, &body.params[first + k])
            && let Some((got, fixed)) = t.dims.iter().zip(&p.dims).find(|(d, p)| p.known().is_some() && d != p)
        {
            return Err(fault!(
                "{what} changes its shape: the body is made for {p}, where dim {fixed} may become another ({got})"
            ));
        }
        Ok(Fact::of(ty))
    };
    (0..states).map(one).collect()
}

/// States keep dtype and rank; scan outputs get the scanned extent as a new axis.
impl OpDef for Scan {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let body = body(cx, 0)?;
        check_params("the body", body, cx.inputs.len())?;
        let states = states(cx, self.num_scan_inputs + self.captures)?;
        if body.results.len() < states {
            return Err(fault!("the body has {} results, {states} are needed", body.results.len()));
        }
        let mut trips: Option<Expr> = None;
        for j in 0..self.num_scan_inputs as usize {
            let t = cx.tensor(states + j)?;
            let axis = normal_axis(self.scan_input_axes.get(j).copied().unwrap_or(0), t.rank())?;
            let (d, before) = (t.dims[axis], trips.unwrap_or(t.dims[axis]));
            sizes::must_equal(before, d, &|| format!("scanned operands must have equal lengths: {before} and {d}"));
            if d.known().is_some() && before.known().is_some() && d != before {
                return Err(fault!("scanned operands differ in length: {before} and {d}"));
            }
            trips = Some(if before.known().is_some() { before } else { d });
        }
        let trips = trips.ok_or_else(|| fault!("nothing is scanned"))?;
        let mut facts = carried(cx, body, states, 0, 0, &mut numbered("Scan"))?;
        for (k, f) in body.results.iter().enumerate().skip(states) {
            let axis = self.scan_output_axes.get(k - states).copied().unwrap_or(0);
            facts.push(stacked(&format!("scan output {}", k - states), &f.ty, axis, trips)?);
        }
        Ok(facts)
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &[(DType, &[&str])]) -> Vec<Fact> {
        text.iter().map(|(d, dims)| Fact::tensor(*d, dims.iter().map(|s| s.parse().unwrap()))).collect()
    }
    fn show(op: Op, operands: &[(DType, &[&str])], regions: &[Signature]) -> String {
        let inputs: Vec<_> = facts(operands).into_iter().map(Some).collect();
        match op.infer(&Ctx { inputs: &inputs, regions, outputs: 1 }) {
            Ok(f) => f.iter().map(|f| f.ty.to_string()).collect::<Vec<_>>().join(" "),
            Err(f) => f.0,
        }
    }
    fn signature(params: &[(DType, &[&str])], results: &[(DType, &[&str])]) -> Signature {
        Signature { params: facts(params).into_iter().map(|f| f.ty).collect(), results: facts(results) }
    }
    use DType::{Bool, F32, I64};

    #[test]
    fn branches_agree_or_get_a_new_dim() {
        let branch = |dims: &[&str]| signature(&[], &[(F32, dims)]);
        let of = |a: &[&str], b: &[&str]| show(If {}.into(), &[(Bool, &[])], &[branch(a), branch(b)]);
        assert_eq!(of(&["n", "3"], &["n", "3"]), "f32[n, 3]");
        assert_eq!(of(&["n", "3"], &["n", "4"]), "f32[n, \"new If.0\"]");
        assert!(of(&["n"], &["n", "4"]).contains("dtype and rank must be the same"));
    }

    #[test]
    fn loops_stack_their_scan_outputs() {
        let body = signature(&[(I64, &[]), (Bool, &[]), (F32, &["n"])], &[(Bool, &[]), (F32, &["n"]), (F32, &["2"])]);
        let of =
            |captures| show(Loop { captures }.into(), &[(I64, &[]), (Bool, &[]), (F32, &["n"])], std::slice::from_ref(&body));
        assert_eq!(of(0), "f32[n] f32[\"new Loop.0\", 2]");
        assert!(of(2).contains("too few"));
    }

    #[test]
    fn scans_take_the_scanned_extent() {
        let op = Scan {
            captures: 0,
            num_scan_inputs: 1,
            scan_input_axes: vec![1],
            scan_input_directions: vec![],
            scan_output_axes: vec![-1],
            scan_output_directions: vec![],
        };
        let body = signature(&[(F32, &["2"]), (F32, &["b"])], &[(F32, &["2"]), (F32, &["b"])]);
        assert_eq!(show(op.into(), &[(F32, &["2"]), (F32, &["b", "t"])], &[body]), "f32[2] f32[b, t]");
    }
}
