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
        // A shift rounds down, and a mask is what it leaves.
        if let Some(k) = y.known().filter(|k| *k > 0 && k.count_ones() == 1) {
            return Ok(match quotient {
                true => self.f.bin(Bin::AShr, x, Val::i64(i64::from(k.trailing_zeros()))),
                false => self.f.bin(Bin::And, x, Val::i64(k - 1)),
            });
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
}
