//! Integer expressions in C: indices, extents, sizes. They are `int64_t` and do not overflow, but for those of numbers that come from
//! data, which saturate by functions.

use crate::helpers::Helpers;
use crate::text::Text;
use crate::types::integer;
use infc_ir::expr::{Node, Ranges};
use infc_ir::{Expr, Fault};

/// Do the values of `e` and of all that it is computed from fit `int32_t`, in any order of its sums?
pub fn is_narrow(e: Expr, ranges: &Ranges) -> bool {
    most(e, ranges).is_some_and(|m| m <= i128::from(i32::MAX))
}

/// No number in the computation of `e` is further from 0.
fn most(e: Expr, ranges: &Ranges) -> Option<i128> {
    if e.is_wild() {
        return None;
    }
    Some(match e.node() {
        Node::Const(c) => i128::from(*c).abs(),
        Node::Sym(_) | Node::Var(_) => {
            let range = e.range(ranges);
            i128::from(range.lo).abs().max(i128::from(range.hi).abs())
        }
        Node::Sum { terms, constant } => {
            let mut sum = i128::from(*constant).abs();
            for &(t, c) in terms {
                sum = sum.checked_add(most(t, ranges)?.checked_mul(i128::from(c).abs())?)?;
            }
            sum
        }
        Node::Product(factors) => {
            let mut product = 1i128;
            for &f in factors {
                product = product.checked_mul(most(f, ranges)?.max(1))?;
            }
            product
        }
        // Division that rounds up adds the divisor first.
        Node::Div(a, b) | Node::Mod(a, b) => most(*a, ranges)?.checked_add(most(*b, ranges)?)?,
        Node::Min(a, b) | Node::Max(a, b) => most(*a, ranges)?.max(most(*b, ranges)?),
    })
}

/// The text of `e`. `known` gives those of leaves and of subexpressions that have names.
pub fn print(
    e: Expr,
    ranges: &Ranges,
    helpers: &mut Helpers,
    known: &dyn Fn(Expr) -> Option<Result<Text, Fault>>,
) -> Result<Text, Fault> {
    if let Some(text) = known(e) {
        return text;
    }
    Ok(match e.node() {
        Node::Const(c) => Text::number((integer(*c), *c < 0)),
        Node::Sym(_) | Node::Var(_) => return Err(infc_ir::fault!("{e} has no name")),
        Node::Sum { terms, constant } => sum(e, terms, *constant, ranges, helpers, known)?,
        Node::Product(factors) => {
            let wild = e.is_wild();
            let mut acc: Option<Text> = None;
            for &f in factors {
                let f = print(f, ranges, helpers, known)?;
                acc = Some(match acc {
                    None => f,
                    Some(a) if wild => Text::call(&helpers.index("mul_sat"), &[&a, &f]),
                    Some(a) => Text::arithmetic('*', &a, &f),
                });
            }
            acc.unwrap_or(Text::atom("1"))
        }
        Node::Div(a, b) => divide('/', "floor_div", *a, *b, ranges, helpers, known)?,
        Node::Mod(a, b) => divide('%', "floor_mod", *a, *b, ranges, helpers, known)?,
        Node::Min(a, b) => pick("min", *a, *b, ranges, helpers, known)?,
        Node::Max(a, b) => pick("max", *a, *b, ranges, helpers, known)?,
    })
}

type Known<'a> = &'a dyn Fn(Expr) -> Option<Result<Text, Fault>>;

fn sum(
    e: Expr,
    terms: &[(Expr, i64)],
    constant: i64,
    ranges: &Ranges,
    helpers: &mut Helpers,
    known: Known,
) -> Result<Text, Fault> {
    let wild = e.is_wild();
    if wild {
        let mut acc = Text::number((integer(constant), constant < 0));
        for &(t, c) in terms {
            let mut t = print(t, ranges, helpers, known)?;
            if c != 1 {
                t = Text::call(&helpers.index("mul_sat"), &[&t, &Text::atom(integer(c))]);
            }
            acc = Text::call(&helpers.index("add_sat"), &[&acc, &t]);
        }
        return Ok(acc);
    }
    if let Some(text) = rounded_up(terms, constant, ranges, helpers, known)? {
        return Ok(text);
    }
    // Terms with a sign last, so that the text does not begin with one where it need not; outer loops have lower numbers.
    let order = |e: Expr| match e.node() {
        Node::Var(v) => (1, *v),
        _ => (0, 0),
    };
    let mut terms = terms.to_vec();
    terms.sort_by_key(|&(t, c)| (c < 0, order(t)));
    let mut acc: Option<Text> = None;
    for (t, c) in terms {
        let t = print(t, ranges, helpers, known)?;
        let scaled = if c.unsigned_abs() == 1 { t } else { Text::arithmetic('*', &Text::atom(integer(c.saturating_abs())), &t) };
        acc = Some(match acc {
            None if c < 0 && constant > 0 => Text::arithmetic('-', &Text::atom(integer(constant)), &scaled),
            None if c < 0 => Text::minus(&scaled),
            None => scaled,
            Some(a) => Text::arithmetic(if c < 0 { '-' } else { '+' }, &a, &scaled),
        });
    }
    let begins = terms_begin_with_constant(e);
    Ok(match acc {
        None => Text::number((integer(constant), constant < 0)),
        Some(a) if constant == 0 || begins => a,
        Some(a) if constant > 0 => Text::arithmetic('+', &a, &Text::atom(integer(constant))),
        Some(a) => Text::arithmetic('-', &a, &Text::atom(integer(constant.saturating_abs()))),
    })
}

/// `-(-a div b)`, which is `a / b` rounded up: people write it `(a + b - 1) / b`.
fn rounded_up(
    terms: &[(Expr, i64)],
    constant: i64,
    ranges: &Ranges,
    helpers: &mut Helpers,
    known: Known,
) -> Result<Option<Text>, Fault> {
    let &[(quotient, -1)] = terms else { return Ok(None) };
    let Node::Div(a, b) = quotient.node() else { return Ok(None) };
    let a = Expr::int(0) - *a;
    let Some(d) = b.known().filter(|&d| d > 0 && constant == 0 && a.range(ranges).lo >= 0) else { return Ok(None) };
    let above = print(a + (d - 1), ranges, helpers, known)?;
    Ok(Some(Text::arithmetic('/', &above, &Text::atom(integer(d)))))
}

/// All terms are negative and the constant is positive: it stands first.
fn terms_begin_with_constant(e: Expr) -> bool {
    let (terms, constant) = e.linear();
    constant > 0 && terms.iter().all(|t| t.1 < 0)
}

fn divide(op: char, total: &str, a: Expr, b: Expr, ranges: &Ranges, helpers: &mut Helpers, known: Known) -> Result<Text, Fault> {
    let (x, y) = (print(a, ranges, helpers, known)?, print(b, ranges, helpers, known)?);
    if a.range(ranges).lo >= 0 && b.range(ranges).lo > 0 {
        return Ok(Text::arithmetic(op, &x, &y));
    }
    let name = if narrow(&[a, b], ranges, helpers) { helpers.index_i32(total) } else { helpers.index(total) };
    Ok(Text::call(&name, &[&x, &y]))
}

fn pick(op: &str, a: Expr, b: Expr, ranges: &Ranges, helpers: &mut Helpers, known: Known) -> Result<Text, Fault> {
    let (x, y) = (print(a, ranges, helpers, known)?, print(b, ranges, helpers, known)?);
    let dtype = if narrow(&[a, b], ranges, helpers) { infc_ir::DType::I32 } else { infc_ir::DType::I64 };
    Ok(Text::call(&helpers.int_pick(op, dtype), &[&x, &y]))
}

/// Is this arithmetic of `int32_t`?
fn narrow(operands: &[Expr], ranges: &Ranges, helpers: &Helpers) -> bool {
    helpers.style.narrow_index && operands.iter().all(|&e| is_narrow(e, ranges))
}

/// Parts of an expression, for counting what occurs more than once.
pub fn parts(e: Expr) -> Vec<Expr> {
    match e.node() {
        Node::Const(_) | Node::Sym(_) | Node::Var(_) => vec![],
        Node::Sum { terms, .. } => terms.iter().map(|t| t.0).collect(),
        Node::Product(f) => f.clone(),
        Node::Div(a, b) | Node::Mod(a, b) | Node::Min(a, b) | Node::Max(a, b) => vec![*a, *b],
    }
}

/// Is it worth a name where it occurs more than once?
pub fn is_work(e: Expr) -> bool {
    match e.node() {
        Node::Div(..) | Node::Mod(..) | Node::Min(..) | Node::Max(..) => true,
        Node::Sum { terms, .. } => terms.len() > 1 || terms.iter().any(|t| is_work(t.0)),
        Node::Product(_) => true,
        Node::Const(_) | Node::Sym(_) | Node::Var(_) => false,
    }
}
