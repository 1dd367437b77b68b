//! What can be said about a [`Size`] without running it: whether it is well-formed, what it can be at most, how it reads.

use crate::program::{Size, SizeOp};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

impl Size {
    /// A symbol.
    pub fn symbol(number: u32) -> Size {
        Size(alloc::vec![SizeOp::Symbol(number)])
    }

    /// The symbols in it.
    pub fn symbols(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().filter_map(|op| match op {
            SizeOp::Symbol(s) => Some(*s),
            _ => None,
        })
    }

    /// What is wrong with it as an expression over `symbols` symbols, if anything is.
    pub fn fault(&self, symbols: usize) -> Option<&'static str> {
        let mut depth = 0;
        for op in &self.0 {
            match op {
                SizeOp::Symbol(s) if *s as usize >= symbols => return Some("a size uses a symbol that does not exist"),
                SizeOp::Const(_) | SizeOp::Symbol(_) => depth += 1,
                _ if depth < 2 => return Some("a size lacks operands"),
                _ => depth -= 1,
            }
            if depth > Size::DEPTH {
                return Some("a size nests too deeply");
            }
        }
        (depth != 1).then_some("a size is not one expression")
    }

    /// The least and largest value while each symbol is within its range (both ends included). Never too narrow; may be too wide.
    pub fn range(&self, symbols: &[(i64, i64)]) -> Option<(i64, i64)> {
        let mut stack = [(0i64, 0i64); Size::DEPTH];
        let mut top = 0;
        for op in &self.0 {
            let value = match *op {
                SizeOp::Const(c) => (c, c),
                SizeOp::Symbol(s) => *symbols.get(s as usize)?,
                _ => {
                    top = usize::checked_sub(top, 2)?;
                    combine(*op, *stack.get(top)?, *stack.get(top + 1)?)
                }
            };
            *stack.get_mut(top)? = value;
            top += 1;
        }
        (top == 1).then_some(stack[0])
    }

    /// It as people write it, with these names for the symbols.
    pub fn text(&self, names: &[&str]) -> String {
        let mut stack: Vec<String> = Vec::new();
        for op in &self.0 {
            let infix = match op {
                SizeOp::Const(c) => {
                    stack.push(format!("{c}"));
                    continue;
                }
                SizeOp::Symbol(s) => {
                    stack.push(names.get(*s as usize).map_or_else(|| format!("${s}"), |n| String::from(*n)));
                    continue;
                }
                SizeOp::Add => " + ",
                SizeOp::Mul => " * ",
                SizeOp::Div => " / ",
                SizeOp::Mod => " % ",
                SizeOp::Min => "min",
                SizeOp::Max => "max",
            };
            let (Some(b), Some(a)) = (stack.pop(), stack.pop()) else { return "<ill-formed>".into() };
            let prefix = matches!(op, SizeOp::Min | SizeOp::Max);
            stack.push(if prefix { format!("{infix}({a}, {b})") } else { format!("({a}{infix}{b})") });
        }
        match (stack.pop(), stack.pop()) {
            (Some(text), None) => {
                text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).filter(|t| balanced(t)).map(Into::into).unwrap_or(text)
            }
            _ => "<ill-formed>".into(),
        }
    }
}

/// No parenthesis closes before it was opened.
fn balanced(text: &str) -> bool {
    let mut depth = 0i32;
    text.chars().all(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth >= 0
    })
}

/// The range of an operation from the ranges of its operands.
fn combine(op: SizeOp, a: (i64, i64), b: (i64, i64)) -> (i64, i64) {
    match op {
        SizeOp::Add => (a.0.saturating_add(b.0), a.1.saturating_add(b.1)),
        SizeOp::Mul => hull([a.0, a.1].into_iter().flat_map(|x| [b.0, b.1].map(|y| x.saturating_mul(y)))),
        SizeOp::Min => (a.0.min(b.0), a.1.min(b.1)),
        SizeOp::Max => (a.0.max(b.0), a.1.max(b.1)),
        SizeOp::Div if a.0 == i64::MIN => (i64::MIN, i64::MAX),
        // Monotone in both operands on each side of zero, so that the corners are enough.
        SizeOp::Div => {
            let divisors = [b.0, b.1, -1, 0, 1].into_iter().filter(|d| b.0 <= *d && *d <= b.1);
            hull(divisors.flat_map(|d| [floor_div(a.0, d), floor_div(a.1, d)]))
        }
        SizeOp::Mod if 0 <= a.0 && a.1 < b.0 => a,
        SizeOp::Mod => {
            let low = b.0.saturating_add(1).min(0);
            let high = b.1.saturating_sub(1).max(0);
            if a.0 >= 0 && b.0 > 0 { (0, high.min(a.1)) } else { (low, high) }
        }
        SizeOp::Const(_) | SizeOp::Symbol(_) => a,
    }
}

fn hull(values: impl Iterator<Item = i64>) -> (i64, i64) {
    values.fold((i64::MAX, i64::MIN), |(low, high), v| (low.min(v), high.max(v)))
}

/// Floor division, zero by zero.
fn floor_div(a: i64, b: i64) -> i64 {
    Size(alloc::vec![SizeOp::Const(a), SizeOp::Const(b), SizeOp::Div]).eval(&[]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn op() -> impl Strategy<Value = SizeOp> {
        prop::sample::select(alloc::vec![SizeOp::Add, SizeOp::Mul, SizeOp::Div, SizeOp::Mod, SizeOp::Min, SizeOp::Max])
    }
    fn size() -> impl Strategy<Value = Size> {
        let constant = prop_oneof![-9i64..9, any::<i64>()].prop_map(Size::constant);
        prop_oneof![constant, (0u32..3).prop_map(Size::symbol)].prop_recursive(5, 20, 2, |inner| {
            (inner.clone(), inner, op()).prop_map(|(a, b, op)| Size(a.0.into_iter().chain(b.0).chain([op]).collect()))
        })
    }

    proptest! {
        #[test]
        fn range_holds_every_value(size in size(), ends in prop::array::uniform3((-20i64..20, 0i64..20)), picks in prop::array::uniform3(0i64..1000)) {
            let ranges = ends.map(|(low, span)| (low, low + span));
            let values: Vec<i64> = (0..3).map(|i| ranges[i].0 + picks[i] % (ends[i].1 + 1)).collect();
            let (low, high) = size.range(&ranges).unwrap();
            let value = size.eval(&values).unwrap();
            prop_assert!(low <= value && value <= high, "{value} not in {low}..={high} for {}", size.text(&[]));
            prop_assert_eq!(size.fault(3), None);
        }
    }

    #[test]
    fn faults_and_text() {
        use SizeOp::*;
        let check = |ops: &[SizeOp]| (Size(ops.to_vec()).fault(1), Size(ops.to_vec()).text(&["n"]));
        assert_eq!(check(&[Symbol(0), Const(2), Add, Const(3), Mul]), (None, "(n + 2) * 3".into()));
        assert_eq!(check(&[Symbol(0), Const(2), Add, Const(3), Symbol(0), Add, Mul]), (None, "(n + 2) * (3 + n)".into()));
        assert_eq!(check(&[Symbol(0), Const(4), Min]), (None, "min(n, 4)".into()));
        assert_eq!(check(&[Add]), (Some("a size lacks operands"), "<ill-formed>".into()));
        assert_eq!(check(&[]).0, Some("a size is not one expression"));
        assert_eq!(check(&[Const(1), Const(1)]).0, Some("a size is not one expression"));
        assert_eq!(check(&[Symbol(1)]).0, Some("a size uses a symbol that does not exist"));
        assert_eq!(check(&[Const(0); 65]).0, Some("a size nests too deeply"));
    }
}
