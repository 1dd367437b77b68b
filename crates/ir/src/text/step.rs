//! Text form of steps, the compute form of operators.
//!
//! ```text
//! compute[n, 4] = add(b0:f32[i0, i1], b1:f32[i1])
//! compute[n] reduce sum[k] mul(b0:f32[i0, i1], b1:f32[i1]) = t0:f32
//! scatter[n] from 0.0:f32 over [k] at [=b1:i64[i0]] add b2:f32[i0]
//! prefix[n, 4] axis 1 add reverse exclusive from 0.0:f32 of b0:f32[i0, i1]
//! sort[n, 4] axis 1 descending of [m] by [] b0:f32[i0, i1]
//! filter[n + 1] over [n] b0:bool[i0]
//! choice[c, n + 1] most 8:i64 where b0:bool[i0, i1] unless b1:bool[i1, i2]
//! ```

use super::cursor::Cursor;
use super::scalar;
use crate::compute::{Choice, Compute, Filter, Prefix, Reducer, Reduction, Scatter, Sort, Step};
use crate::expr::Expr;
use crate::fault::Problem;
use crate::scalar::{Binary, Scalar};
use std::fmt;

/// Dims in brackets.
struct List<'a>(&'a [Expr]);

fn dims(e: &[Expr]) -> List<'_> {
    List(e)
}

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, e) in self.0.iter().enumerate() {
            write!(f, "{}{e}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "compute{}", dims(&self.dims))?;
        if let Some(r) = &self.reduction {
            write!(f, " reduce {}{} {}", r.kind.name(), dims(&r.axes), r.body)?;
        }
        write!(f, " = {}", self.value)
    }
}

impl fmt::Display for Scatter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scatter{} from {} over {} at [", dims(&self.dims), self.base, dims(&self.updates))?;
        for (i, at) in self.index.iter().enumerate() {
            write!(f, "{}{at}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, "] {} {}", self.combine.map_or("set", Binary::name), self.value)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prefix{} axis {} {}", dims(&self.dims), self.axis, self.combine.name())?;
        f.write_str(if self.reverse { " reverse" } else { "" })?;
        f.write_str(if self.exclusive { " exclusive" } else { "" })?;
        write!(f, " from {} of {}", self.init, self.body)
    }
}

impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.descending { " descending" } else { "" };
        write!(f, "sort{} axis {}{order} of [{}] by {} {}", dims(&self.dims), self.axis, self.extent, dims(&self.parts), self.key)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter{} over {} {}", dims(&self.dims), dims(&self.over), self.cond)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "choice{} most {} by {} where {} unless {}", dims(&self.dims), self.most, self.key, self.cond, self.clash)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Compute(c) => c.fmt(f),
            Step::Scatter(s) => s.fmt(f),
            Step::Prefix(p) => p.fmt(f),
            Step::Sort(s) => s.fmt(f),
            Step::Filter(s) => s.fmt(f),
            Step::Choice(c) => c.fmt(f),
        }
    }
}

/// Parses a step at the cursor.
pub fn parse(c: &mut Cursor) -> Result<Step, Problem> {
    if c.eat("compute") {
        let dims = c.exprs()?;
        let mut reduction = None;
        if c.eat("reduce") {
            let start = c.clone();
            let kind = Reducer::parse(c.word()).ok_or_else(|| start.expected("a reducer"))?;
            reduction = Some(Reduction { axes: c.exprs()?, kind, body: scalar::parse(c)? });
        }
        c.expect("=")?;
        return Ok(Step::Compute(Compute { dims, reduction, value: scalar::parse(c)? }));
    }
    let operator = |c: &mut Cursor| {
        let start = c.clone();
        Binary::parse(c.word()).ok_or_else(|| start.expected("an operator"))
    };
    if c.eat("scatter") {
        let dims = c.exprs()?;
        let base = after(c, "from")?;
        c.expect("over")?;
        let updates = c.exprs()?;
        c.expect("at")?;
        let index = c.list("[", "]", scalar::parse)?;
        let combine = if c.eat("set") { None } else { Some(operator(c)?) };
        return Ok(Step::Scatter(Scatter { dims, base, updates, index, value: scalar::parse(c)?, combine }));
    }
    if c.eat("prefix") {
        let dims = c.exprs()?;
        c.expect("axis")?;
        let axis = c.number("an axis")?;
        let combine = operator(c)?;
        let reverse = c.eat("reverse");
        let exclusive = c.eat("exclusive");
        let init = after(c, "from")?;
        return Ok(Step::Prefix(Prefix { dims, axis, reverse, exclusive, combine, init, body: after(c, "of")? }));
    }
    if c.eat("sort") {
        let dims = c.exprs()?;
        c.expect("axis")?;
        let axis = c.number("an axis")?;
        let descending = c.eat("descending");
        c.expect("of")?;
        let start = c.clone();
        let &[extent] = c.exprs()?.as_slice() else { return Err(start.expected("one extent")) };
        c.expect("by")?;
        return Ok(Step::Sort(Sort { dims, axis, extent, parts: c.exprs()?, key: scalar::parse(c)?, descending }));
    }
    if c.eat("filter") {
        let dims = c.exprs()?;
        c.expect("over")?;
        return Ok(Step::Filter(Filter { dims, over: c.exprs()?, cond: scalar::parse(c)? }));
    }
    if c.eat("choice") {
        let dims = c.exprs()?;
        let most = after(c, "most")?;
        let key = after(c, "by")?;
        let cond = after(c, "where")?;
        return Ok(Step::Choice(Choice { dims, most, key, cond, clash: after(c, "unless")? }));
    }
    Err(c.expected("'compute', 'scatter', 'prefix', 'sort', 'filter' or 'choice'"))
}

fn after(c: &mut Cursor, keyword: &str) -> Result<Scalar, Problem> {
    c.expect(keyword)?;
    scalar::parse(c)
}

impl std::str::FromStr for Step {
    type Err = Problem;
    fn from_str(text: &str) -> Result<Step, Problem> {
        let mut c = Cursor::new(text);
        let step = parse(&mut c)?;
        if c.at_end() { Ok(step) } else { Err(c.expected("the end of the step")) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scalar::tests::any_scalar;
    use super::*;
    use crate::DType;
    use crate::scalar::Kind;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_steps_round_trip(a in any_scalar(), b in any_scalar(), pick in 0usize..7, size in 0i64..6, flag: bool) {
            let dims = vec![Expr::sym("n") + size, Expr::int(size)];
            let cond = Scalar::binary(Binary::Lt, a, b);
            let place = Scalar::raw(DType::I64, Kind::Cast(a));
            let kinds = [Reducer::Sum, Reducer::Prod, Reducer::Min, Reducer::Max, Reducer::ArgMax { last: flag }, Reducer::ArgMin { last: flag }];
            let reduction = flag.then(|| Reduction { axes: dims.clone(), kind: kinds[size as usize], body: a });
            let combine = Binary::Add;
            let step = match pick {
                0 | 1 => Step::Compute(Compute { dims, reduction, value: b }),
                2 => {
                    let index = vec![place, Scalar::index(size)];
                    Step::Scatter(Scatter { updates: vec![dims[0]], dims, base: a, index, value: b, combine: flag.then_some(combine) })
                }
                3 => Step::Prefix(Prefix { dims, axis: 1, reverse: flag, exclusive: !flag, combine, init: b, body: a }),
                4 => Step::Filter(Filter { over: vec![dims[1]], dims, cond }),
                5 => Step::Sort(Sort { parts: vec![dims[1]], extent: dims[0], dims, axis: 0, key: a, descending: flag }),
                _ => Step::Choice(Choice { dims, most: place, key: a, cond, clash: cond }),
            };
            let text = step.to_string();
            prop_assert_eq!(text.parse::<Step>().map_err(|e| format!("{e}: {text}")), Ok(step));
        }
    }

    #[test]
    fn steps_round_trip() {
        for text in [
            "compute[] = 1.0:f32",
            "compute[n, 4] = add(b0:f32[i0, i1], b1:f32[i1])",
            "compute[n] reduce sum[2*k + 1] mul(b0:f32[i0, i1], b1:f32[i1]) = cast(f16, t0:f32)",
            "compute[n] reduce argmax_last[4] b0:i8[i0, i1] = t0:i64",
            "scatter[n] from 0.0:f32 over [k] at [b1:i64[i0]] add b2:f32[i0]",
            "scatter[n] from 0.0:f32 over [k] at [(i0 + 1)] set b2:f32[i0]",
            "prefix[n, 4] axis 1 add reverse exclusive from 0.0:f32 of b0:f32[i0, i1]",
            "prefix[4] axis 0 max from -inf:f32 of b0:f32[i0]",
            "sort[n, 4] axis 1 descending of [m] by [] b0:f32[i0, i1]",
            "sort[n] axis 0 of [n] by [2, 3] b0:f32[i1, i0, i2]",
            "filter[2*n + 1] over [2, n] b0:bool[i1]",
            "choice[c, n + 1] most b2:i64[] by b3:f32[i0, i1] where b0:bool[i0, i1] unless b1:bool[i1, i2]",
        ] {
            assert_eq!(text.parse::<Step>().unwrap_or_else(|e| panic!("{e}: {text}")).to_string(), text);
        }
        assert!("compute[n] reduce most[4] true = true".parse::<Step>().is_err());
    }
}
