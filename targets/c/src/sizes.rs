//! Sizes of a program as C expressions over its symbols, which are variables of the function that runs it.

use crate::helpers::Helpers;
use crate::text::{Level, Text};
use crate::types::integer;
use infc_artifact::program::{Size, SizeOp};
use infc_ir::{DType, Fault, fault};

/// Values below this can be added and multiplied by each other's neighbours without overflow.
const SAFE: i64 = 1 << 62;

/// The text of a size. `names` are those of the symbols, `ranges` their values. Where a result may overflow it saturates, as [`Size::eval`].
pub fn print(size: &Size, names: &[String], ranges: &[(i64, i64)], h: &mut Helpers) -> Result<Text, Fault> {
    if let Some(value) = size.eval(&[]) {
        return Ok(Text::number((integer(value), value < 0)));
    }
    let mut stack: Vec<(Text, Size)> = vec![];
    for op in &size.0 {
        let next = match op {
            SizeOp::Const(c) => (Text::number((integer(*c), *c < 0)), Size(vec![*op])),
            SizeOp::Symbol(s) => {
                let name = names.get(*s as usize).ok_or_else(|| fault!("a size uses a symbol that does not exist"))?;
                (Text::atom(name), Size(vec![*op]))
            }
            op => {
                let (Some((b, sb)), Some((a, sa))) = (stack.pop(), stack.pop()) else {
                    return Err(fault!("a size lacks operands"));
                };
                let divisor = sb.range(ranges).map_or(0, |r| r.0);
                let dividend = sa.range(ranges).map_or(-1, |r| r.0);
                let whole = Size(sa.0.iter().chain(&sb.0).copied().chain([*op]).collect());
                let safe = whole.range(ranges).is_some_and(|r| r.0 > -SAFE && r.1 < SAFE);
                let zero = |s: &Size, v: i64| s.known() == Some(v);
                let text = match op {
                    SizeOp::Add if zero(&sa, 0) => b,
                    SizeOp::Add if zero(&sb, 0) => a,
                    SizeOp::Mul if zero(&sa, 1) => b,
                    SizeOp::Mul if zero(&sb, 1) => a,
                    SizeOp::Add if safe => match sb.known() {
                        Some(c) if c < 0 && c != i64::MIN => Text::arithmetic('-', &a, &Text::atom(integer(-c))),
                        _ => Text::arithmetic('+', &a, &b),
                    },
                    SizeOp::Mul if safe => Text::arithmetic('*', &a, &b),
                    SizeOp::Add => Text::call(&h.index("add_sat"), &[&a, &b]),
                    SizeOp::Mul => Text::call(&h.index("mul_sat"), &[&a, &b]),
                    SizeOp::Div if dividend >= 0 && divisor > 0 => Text::arithmetic('/', &a, &b),
                    SizeOp::Mod if dividend >= 0 && divisor > 0 => Text::arithmetic('%', &a, &b),
                    SizeOp::Div => Text::call(&h.index("floor_div"), &[&a, &b]),
                    SizeOp::Mod => Text::call(&h.index("floor_mod"), &[&a, &b]),
                    SizeOp::Min => Text::call(&h.int_pick("min", DType::I64), &[&a, &b]),
                    SizeOp::Max => Text::call(&h.int_pick("max", DType::I64), &[&a, &b]),
                    SizeOp::Const(_) | SizeOp::Symbol(_) => unreachable!("not an operation"),
                };
                (text, whole)
            }
        };
        stack.push(next);
    }
    match (stack.pop(), stack.pop()) {
        (Some((text, _)), None) => Ok(text),
        _ => Err(fault!("a size is not one expression")),
    }
}

/// In a comparison.
pub fn compared(t: &Text) -> String {
    t.at(Level::Sum)
}
