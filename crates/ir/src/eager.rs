//! From lazy to eager bodies: guards that say all.
//!
//! A guarded read evaluates its index only where the guard holds, and its fallback only elsewhere; so the reads inside them rely on
//! that guard. Engines that evaluate every node of a body (rows of lanes, machine code without branches) use [`eager`] first:
//! it gives each such read the guard that it relied on.

use crate::dtype::Class;
use crate::scalar::{Binary, Kind, Scalar, Unary};
use std::collections::{HashMap, HashSet};

/// Conditions under which a node is evaluated, outermost first, and whether they hold or not.
type Context = Vec<(Scalar, bool)>;

/// The same value, where every read may be evaluated on its own: it is guarded by all conditions it relied on.
pub fn eager(s: Scalar) -> Scalar {
    let mut order = vec![];
    visit(s, &mut HashSet::new(), &mut order);
    let nested = |n: &Scalar| match n.kind() {
        Kind::Read { index, guard: Some((_, fallback)), .. } => index.iter().chain([fallback]).any(|&o| reads(o)),
        _ => false,
    };
    if !order.iter().any(nested) {
        return s;
    }
    let mut contexts: HashMap<Scalar, Context> = HashMap::from([(s, vec![])]);
    // Users before their operands, so that a node's context is complete when it is passed on.
    for &n in order.iter().rev() {
        let context = contexts[&n].clone();
        let under = |cond: Scalar, holds: bool| [&context[..], &[(cond, holds)]].concat();
        match n.kind() {
            Kind::Read { index, guard: Some((cond, fallback)), .. } => {
                note(&mut contexts, *cond, &context);
                index.iter().for_each(|&i| note(&mut contexts, i, &under(*cond, true)));
                note(&mut contexts, *fallback, &under(*cond, false));
            }
            _ => n.operands().into_iter().for_each(|o| note(&mut contexts, o, &context)),
        }
    }
    let mut done: HashMap<Scalar, Scalar> = HashMap::new();
    for n in order {
        let operands: Vec<Scalar> = n.operands().iter().map(|o| done[o]).collect();
        let new = if operands == n.operands() { n } else { n.rebuild(&operands) };
        let all = contexts[&n]
            .iter()
            .fold(Scalar::always(), |acc, (c, holds)| acc.and(if *holds { done[c] } else { negated(done[c]) }));
        let guarded = match new.kind() {
            Kind::Read { source, index, guard } => {
                let (cond, fallback) = guard.unwrap_or_else(|| (Scalar::always(), zero(new)));
                Scalar::read_if(*source as usize, index.iter().copied(), all.and(cond), fallback)
            }
            _ => new,
        };
        done.insert(n, guarded);
    }
    done[&s]
}

/// Operands first, and conditions before what they guard.
fn visit(s: Scalar, seen: &mut HashSet<Scalar>, order: &mut Vec<Scalar>) {
    if !seen.insert(s) {
        return;
    }
    if let Kind::Read { guard: Some((cond, _)), .. } = s.kind() {
        visit(*cond, seen, order);
    }
    s.operands().into_iter().for_each(|o| visit(o, seen, order));
    order.push(s);
}

fn reads(s: Scalar) -> bool {
    let mut found = false;
    s.visit(&mut |n| found |= matches!(n.kind(), Kind::Read { .. }));
    found
}

/// Adds a use of `n`: its context is what all uses have in common.
fn note(contexts: &mut HashMap<Scalar, Context>, n: Scalar, context: &Context) {
    match contexts.get_mut(&n) {
        None => {
            contexts.insert(n, context.clone());
        }
        Some(known) => {
            let common = known.iter().zip(context).take_while(|(a, b)| a == b).count();
            known.truncate(common);
        }
    }
}

fn zero(s: Scalar) -> Scalar {
    match s.dtype().class() {
        Class::Float => Scalar::float(s.dtype(), 0.0),
        _ => Scalar::raw(s.dtype(), Kind::Const(0)),
    }
}

/// `not cond`; a comparison of integers is turned round.
pub fn negated(cond: Scalar) -> Scalar {
    if let Kind::Binary(op, a, b) = cond.kind()
        && !a.dtype().is_float()
    {
        let other = match op {
            Binary::Lt => Some(Binary::Ge),
            Binary::Le => Some(Binary::Gt),
            Binary::Gt => Some(Binary::Le),
            Binary::Ge => Some(Binary::Lt),
            Binary::Eq => Some(Binary::Ne),
            Binary::Ne => Some(Binary::Eq),
            _ => None,
        };
        if let Some(other) = other {
            return Scalar::binary(other, *a, *b);
        }
    }
    Scalar::unary(Unary::Not, cond)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::expr::Expr;

    #[test]
    fn the_last_part_of_a_concat_is_guarded() {
        let i = Scalar::index(Expr::var(0));
        let last = Scalar::read(DType::F32, 1, [Scalar::index(Expr::var(0) - 3)]);
        let all = Scalar::read_if(0, [i], i.lt(Scalar::index(3)), last);
        assert_eq!(eager(all).to_string(), "b0:f32[i0]?(lt((i0), 3:i64), b1:f32[i0 - 3]?(ge((i0), 3:i64), 0.0:f32))");
        let both = all + last; // a use outside of the guard
        assert_eq!(eager(both), both);
    }
}
