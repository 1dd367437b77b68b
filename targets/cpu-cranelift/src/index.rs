//! Integer expressions as `i64` values, uniform or one for each lane.

use crate::emit::{Emit, LANE, Var};
use crate::values::{Bin, Cast, Elem, Operand, Ty, Val};
use cranelift_codegen::ir::condcodes::IntCC;
use infc_ir::expr::Node;
use infc_ir::{Expr, Fault, fault};

impl Emit<'_, '_> {
    /// The value of a resolved expression that must not depend on the lane.
    pub fn uniform_expr(&mut self, e: Expr) -> Result<Val, Fault> {
        let v = self.expr(e)?;
        if v.uniform() { Ok(v) } else { Err(fault!("{e} differs between the lanes of a vector loop")) }
    }

    /// The value of a resolved expression.
    pub fn expr(&mut self, e: Expr) -> Result<Val, Fault> {
        match e.node() {
            Node::Const(c) => Ok(Val::i64(*c)),
            Node::Sym(s) => self.symbols.get(s).copied().ok_or_else(|| fault!("symbol '{s}' is not in the kernel's list")),
            Node::Var(v) => match (self.vars.get(v), self.lanes) {
                (Some(Var::Value(v)), _) => Ok(*v),
                (None, Some(lanes)) if *v == LANE => Ok(Val { ty: Ty::new(Elem::I64, lanes), op: Operand::Lanes(0, 1) }),
                _ => Err(fault!("i{v} is used outside its loop")),
            },
            Node::Sum { terms, constant } => self.sum(terms, *constant),
            Node::Product(factors) => {
                let mut acc = Val::i64(1);
                for &x in factors {
                    let v = self.expr(x)?;
                    acc = self.f.bin(Bin::Mul, acc, v);
                }
                Ok(acc)
            }
            Node::Div(a, b) => self.divided(*a, *b, true),
            Node::Mod(a, b) => self.divided(*a, *b, false),
            Node::Min(a, b) => {
                let (x, y) = (self.expr(*a)?, self.expr(*b)?);
                Ok(self.f.bin(Bin::SMin, x, y))
            }
            Node::Max(a, b) => {
                let (x, y) = (self.expr(*a)?, self.expr(*b)?);
                Ok(self.f.bin(Bin::SMax, x, y))
            }
        }
    }

    fn sum(&mut self, terms: &[(Expr, i64)], constant: i64) -> Result<Val, Fault> {
        // Uniform terms first; the lane number with its factor and the constant are one constant vector.
        let (mut uniform, mut varying, mut step) = (None, None, 0);
        for &(term, c) in terms {
            if Self::is_lane(term) {
                step = c;
                continue;
            }
            let v = self.expr(term)?;
            let v = self.f.bin(Bin::Mul, v, Val::i64(c));
            let part = if v.uniform() { &mut uniform } else { &mut varying };
            *part = Some(match *part {
                Some(acc) => self.f.bin(Bin::Add, acc, v),
                None => v,
            });
        }
        let mut acc = uniform.unwrap_or(Val::i64(0));
        match (step, self.lanes) {
            (0, _) | (_, None) => acc = self.f.bin(Bin::Add, acc, Val::i64(constant)),
            (_, Some(lanes)) => {
                let offsets = Val { ty: Ty::new(Elem::I64, lanes), op: Operand::Lanes(constant, step) };
                acc = self.f.bin(Bin::Add, acc, offsets);
            }
        }
        Ok(match varying {
            Some(v) => self.f.bin(Bin::Add, v, acc),
            None => acc,
        })
    }

    /// Is it the lane variable itself?
    fn is_lane(e: Expr) -> bool {
        matches!(e.node(), Node::Var(LANE))
    }

    /// Floor division or its remainder; by zero both are 0.
    fn divided(&mut self, a: Expr, b: Expr, quotient: bool) -> Result<Val, Fault> {
        let (ra, rb) = (a.range(&self.ranges), b.range(&self.ranges));
        let (mut x, mut y) = (self.expr(a)?, self.expr(b)?);
        if let Some(d) = y.known().filter(|d| *d > 0) {
            return Ok(self.divided_by(x, d, (ra.lo, ra.hi), quotient));
        }
        if ra.lo >= 0 && rb.lo > 0 {
            let op = if quotient { Bin::UDiv } else { Bin::URem };
            // One lane after another, which takes less in 32 bits.
            if ra.hi < 1 << 31 && rb.hi < 1 << 31 {
                x = self.f.cast(Cast::Trunc, x, Elem::I32);
                y = self.f.cast(Cast::Trunc, y, Elem::I32);
                let r = self.f.bin(op, x, y);
                return Ok(self.f.cast(Cast::Zext, r, Elem::I64));
            }
            return Ok(self.f.bin(op, x, y));
        }
        let zero = Val::i64(0);
        let by_zero = self.f.icmp(IntCC::Equal, y, zero);
        let divisor = self.f.select(by_zero, Val::i64(1), y);
        let q = self.f.bin(Bin::SDiv, x, divisor);
        let product = self.f.bin(Bin::Mul, q, divisor);
        let r = self.f.bin(Bin::Sub, x, product);
        let inexact = self.f.icmp(IntCC::NotEqual, r, zero);
        let signs = self.f.bin(Bin::Xor, x, divisor);
        let differ = self.f.icmp(IntCC::SignedLessThan, signs, zero);
        let fix = self.f.bin(Bin::And, inexact, differ);
        let out = if quotient {
            let less = self.f.bin(Bin::Sub, q, Val::i64(1));
            self.f.select(fix, less, q)
        } else {
            let more = self.f.bin(Bin::Add, r, divisor);
            self.f.select(fix, more, r)
        };
        Ok(self.f.select(by_zero, zero, out))
    }

    /// Floor division of what lies in a range by a positive constant, or its remainder, without a division: Cranelift does not take one out of a loop.
    fn divided_by(&mut self, x: Val, d: i64, (lo, hi): (i64, i64), quotient: bool) -> Val {
        // A shift rounds down, and a mask is what it leaves.
        if d.count_ones() == 1 {
            return match quotient {
                true => self.f.bin(Bin::AShr, x, Val::i64(i64::from(d.trailing_zeros()))),
                false => self.f.bin(Bin::And, x, Val::i64(d - 1)),
            };
        }
        // Of n bits: x / d = x * m >> (n + l) with m = ceil(2^(n + l) / d) and l = ceil(log2(d)), since m * d - 2^(n + l) < d <= 2^l.
        let l = 64 - (d - 1).leading_zeros();
        let factor = |n: u32| Val::i64((1u128 << (n + l)).div_ceil(d as u128) as i64);
        let q = if lo >= 0 && hi < 1 << 31 && d < 1 << 31 {
            let product = self.f.bin(Bin::Mul, x, factor(31));
            self.f.bin(Bin::LShr, product, Val::i64(i64::from(31 + l)))
        } else {
            // The quotient of -1 - x is -1 less that of x.
            let sign = if lo >= 0 { Val::i64(0) } else { self.f.bin(Bin::AShr, x, Val::i64(63)) };
            let y = self.f.bin(Bin::Xor, x, sign);
            let high = self.f.bin(Bin::UMulHi, y, factor(63));
            let q = self.f.bin(Bin::LShr, high, Val::i64(i64::from(l - 1)));
            self.f.bin(Bin::Xor, q, sign)
        };
        if quotient {
            return q;
        }
        let multiple = self.f.bin(Bin::Mul, q, Val::i64(d));
        self.f.bin(Bin::Sub, x, multiple)
    }
}

#[cfg(test)]
mod tests {
    /// The law of `divided_by` on the numbers where it is closest to failing: those below multiples of the divisor.
    #[test]
    fn products_and_shifts_are_quotients() {
        for d in (3i64..70).chain([1000, 45408, (1 << 31) - 1, (1 << 31) + 1, (1 << 62) + 1, i64::MAX]) {
            let l = 64 - (d - 1).leading_zeros();
            for n in [31, 63] {
                let most = ((1u128 << n) - 1) as i64;
                if d > most || d.count_ones() == 1 {
                    continue;
                }
                let m = (1u128 << (n + l)).div_ceil(d as u128);
                assert!(m < 1 << (n + 1), "{d} {n}");
                let tops = [most / d * d, most / d / 2 * d, d, 2 * d.min(most / 2)];
                for x in tops.into_iter().flat_map(|t| [(t - 1).max(0), t, t.saturating_add(1).min(most), most]) {
                    assert_eq!((x as u128 * m) >> (n + l), (x / d) as u128, "{x} / {d}");
                }
            }
        }
    }
}
