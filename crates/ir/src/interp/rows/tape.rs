//! Scalar bodies compiled to a tape: a list of operations in order, each either one value for a whole row of lanes or a column.
//!
//! A row runs along one axis, the lane axis. What does not depend on it is computed once for the row; and what depends only on outer
//! loops is computed when those loops step (`depth`). A read whose index is affine in the lane axis is a start and a stride.

use super::Source;
use crate::dtype::{Class, DType};
use crate::expr::{Expr, Node as ExprNode, Ranges};
use crate::fault;
use crate::fault::Fault;
use crate::scalar::{Binary, Kind, Scalar, Unary};
use std::collections::HashMap;

/// The number of an operation on the tape, and of its result.
pub type Reg = usize;

/// An operation. Those of index expressions are on `i64`.
pub enum Op {
    Const(u64),
    Var(u32),
    Affine { terms: Vec<(Reg, i64)>, constant: i64 },
    Product(Vec<Reg>),
    FloorDiv(Reg, Reg),
    FloorMod(Reg, Reg),
    Unary(Unary, Reg),
    Binary(Binary, Reg, Reg),
    Fma(Reg, Reg, Reg),
    Select(Reg, Reg, Reg),
    Cast(Reg),
    Bitcast(Reg),
    Read(Read),
}

/// A read of a source.
pub struct Read {
    pub source: usize,
    pub access: Access,
    pub guard: Option<Guard>,
}

/// Where a row of elements lies.
pub enum Access {
    /// At `start + lane * stride`; `checks` are the indices that are not certain to be inside.
    Row { start: Reg, stride: i64, checks: Vec<Check> },
    /// At one index per lane.
    Scattered(Vec<Reg>),
}

/// The index `rest + lane * step` along an axis of extent `dim`.
pub struct Check {
    pub rest: Reg,
    pub step: i64,
    pub dim: i64,
}

/// Where a read is done: all parts must hold.
pub struct Guard {
    /// Conditions on the row.
    pub uniform: Vec<Reg>,
    /// `lane * .0 + .1 >= 0`.
    pub spans: Vec<(i64, Reg)>,
    /// Conditions on lanes.
    pub masks: Vec<Reg>,
    /// The value elsewhere.
    pub fallback: Reg,
}

/// An operation with what is known of its result.
pub struct Node {
    pub op: Op,
    pub dtype: DType,
    /// Differs between lanes: a column.
    pub varies: bool,
    /// 0, or the number of the innermost loop it depends on, plus 1.
    pub depth: usize,
}

/// A compiled body.
pub struct Tape {
    pub nodes: Vec<Node>,
    pub root: Reg,
}

struct Compiler<'a> {
    nodes: Vec<Node>,
    lane: Option<u32>,
    /// The loop (counted from the outermost) of each variable.
    loops: &'a HashMap<u32, usize>,
    sources: &'a [Option<Source<'a>>],
    env: &'a Ranges,
    scalars: HashMap<Scalar, Reg>,
    exprs: HashMap<Expr, Reg>,
}

/// Compiles `body` for rows along `lane`. `loops` numbers the other variables, `env` has the ranges of all.
pub fn compile(
    body: Scalar,
    lane: Option<u32>,
    loops: &HashMap<u32, usize>,
    sources: &[Option<Source>],
    env: &Ranges,
) -> Result<Tape, Fault> {
    let (scalars, exprs) = (HashMap::new(), HashMap::new());
    let mut c = Compiler { nodes: vec![], lane, loops, sources, env, scalars, exprs };
    let root = c.scalar(body)?;
    Ok(Tape { nodes: c.nodes, root })
}

impl Compiler<'_> {
    fn push(&mut self, dtype: DType, op: Op, operands: &[Reg]) -> Reg {
        let varies = operands.iter().any(|&r| self.nodes[r].varies);
        let depth = operands.iter().map(|&r| self.nodes[r].depth).max().unwrap_or(0);
        self.nodes.push(Node { op, dtype, varies, depth });
        self.nodes.len() - 1
    }

    fn expr(&mut self, e: Expr) -> Result<Reg, Fault> {
        if let Some(&r) = self.exprs.get(&e) {
            return Ok(r);
        }
        let int = DType::I64;
        let r = match e.node() {
            ExprNode::Const(c) => self.push(int, Op::Const(*c as u64), &[]),
            ExprNode::Sym(_) => return Err(fault!("symbol {e} has no value at run time")),
            ExprNode::Var(v) => {
                let r = self.push(int, Op::Var(*v), &[]);
                let place = self.loops.get(v).map(|l| l + 1);
                (self.nodes[r].varies, self.nodes[r].depth) = (Some(*v) == self.lane, place.unwrap_or(0));
                if place.is_none() && Some(*v) != self.lane {
                    return Err(fault!("internal error: axis i{v} is used but does not exist"));
                }
                r
            }
            ExprNode::Sum { terms, constant } => {
                let terms: Vec<_> = terms.iter().map(|&(t, c)| Ok((self.expr(t)?, c))).collect::<Result<_, Fault>>()?;
                let operands: Vec<Reg> = terms.iter().map(|&(r, _)| r).collect();
                self.push(int, Op::Affine { terms, constant: *constant }, &operands)
            }
            ExprNode::Product(factors) => {
                let factors = factors.iter().map(|&f| self.expr(f)).collect::<Result<Vec<_>, _>>()?;
                self.push(int, Op::Product(factors.clone()), &factors)
            }
            ExprNode::Div(a, b) => self.pair(*a, *b, Op::FloorDiv)?,
            ExprNode::Mod(a, b) => self.pair(*a, *b, Op::FloorMod)?,
            ExprNode::Min(a, b) => self.pair(*a, *b, |x, y| Op::Binary(Binary::Min, x, y))?,
            ExprNode::Max(a, b) => self.pair(*a, *b, |x, y| Op::Binary(Binary::Max, x, y))?,
        };
        self.exprs.insert(e, r);
        Ok(r)
    }

    fn pair(&mut self, a: Expr, b: Expr, op: impl Fn(Reg, Reg) -> Op) -> Result<Reg, Fault> {
        let (a, b) = (self.expr(a)?, self.expr(b)?);
        Ok(self.push(DType::I64, op(a, b), &[a, b]))
    }

    fn scalar(&mut self, s: Scalar) -> Result<Reg, Fault> {
        if let Some(&r) = self.scalars.get(&s) {
            return Ok(r);
        }
        let d = s.dtype();
        let r = match s.kind() {
            Kind::Const(c) => self.push(d, Op::Const(*c), &[]),
            Kind::Index(e) => self.expr(*e)?,
            Kind::Read { source, index, guard } => self.read(s, *source as usize, index, guard)?,
            Kind::Local(n) => return Err(fault!("internal error: local t{n} has no value")),
            Kind::Unary(op, a) => {
                let a = self.scalar(*a)?;
                self.push(d, Op::Unary(*op, a), &[a])
            }
            Kind::Binary(op, a, b) => {
                let (a, b) = (self.scalar(*a)?, self.scalar(*b)?);
                self.push(d, Op::Binary(*op, a, b), &[a, b])
            }
            Kind::Fma(a, b, c) => {
                let (a, b, c) = (self.scalar(*a)?, self.scalar(*b)?, self.scalar(*c)?);
                self.push(d, Op::Fma(a, b, c), &[a, b, c])
            }
            Kind::Select(a, b, c) => {
                let (a, b, c) = (self.scalar(*a)?, self.scalar(*b)?, self.scalar(*c)?);
                self.push(d, Op::Select(a, b, c), &[a, b, c])
            }
            Kind::Cast(a) => {
                let a = self.scalar(*a)?;
                self.push(d, Op::Cast(a), &[a])
            }
            Kind::Bitcast(a) => {
                let a = self.scalar(*a)?;
                self.push(d, Op::Bitcast(a), &[a])
            }
        };
        self.scalars.insert(s, r);
        Ok(r)
    }

    fn read(&mut self, s: Scalar, source: usize, index: &[Scalar], guard: &Option<(Scalar, Scalar)>) -> Result<Reg, Fault> {
        let from = self.sources.get(source).and_then(|s| s.as_ref());
        let from = from.ok_or_else(|| fault!("internal error: read of operand {source}, which is missing"))?;
        if from.dtype != s.dtype() {
            return Err(fault!("internal error: operand {source} is {}, it is read as {}", from.dtype, s.dtype()));
        }
        if from.dims.len() != index.len() {
            return Err(fault!("internal error: operand {source} has rank {}, it is read at {index:?}", from.dims.len()));
        }
        let (dims, strides) = (from.dims.clone(), from.strides.clone());
        let mut operands = vec![];
        let guard = guard.as_ref().map(|&(c, f)| self.guard(c, f, &mut operands)).transpose()?;
        let access = self.access(index, &dims, &strides, &mut operands)?;
        let strided = match &access {
            Access::Row { stride, .. } => *stride != 0,
            Access::Scattered(_) => true,
        };
        let spans = guard.as_ref().is_some_and(|g| !g.spans.is_empty());
        let r = self.push(s.dtype(), Op::Read(Read { source, access, guard }), &operands);
        self.nodes[r].varies |= strided || spans;
        Ok(r)
    }

    /// The lane coefficient of an index and the rest of it, which is the same for the whole row.
    fn split(&mut self, index: Scalar) -> Result<Option<(i64, Reg)>, Fault> {
        let affine = match (index.as_index(), self.lane) {
            (Some(e), Some(lane)) => e.affine_in(lane),
            _ => None,
        };
        if let Some((step, rest)) = affine {
            return Ok(Some((step, self.expr(rest)?)));
        }
        let r = self.scalar(index)?;
        Ok((!self.nodes[r].varies).then_some((0, r)))
    }

    fn access(&mut self, index: &[Scalar], dims: &[i64], strides: &[i64], operands: &mut Vec<Reg>) -> Result<Access, Fault> {
        let parts: Vec<_> = index.iter().map(|&i| self.split(i)).collect::<Result<_, _>>()?;
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            let regs: Vec<Reg> = index.iter().map(|&i| self.scalar(i)).collect::<Result<_, _>>()?;
            operands.extend(&regs);
            return Ok(Access::Scattered(regs));
        };
        let stride = parts.iter().zip(strides).map(|(&(step, _), &s)| step * s).sum();
        let mut checks = vec![];
        for ((&i, &(step, rest)), &dim) in index.iter().zip(&parts).zip(dims) {
            let range = i.as_index().map(|e| e.range(self.env));
            if !range.is_some_and(|r| r.lo >= 0 && r.hi < dim) {
                checks.push(Check { rest, step, dim });
                operands.push(rest);
            }
        }
        // All indices in one sum where they are expressions: fewer steps, and common terms meet.
        let exprs: Option<Vec<Expr>> = index.iter().map(|i| i.as_index()).collect();
        let start = match (exprs, self.lane) {
            (Some(exprs), Some(lane)) => {
                let all = exprs.iter().zip(strides).fold(Expr::int(0), |acc, (&e, &s)| acc + e * s);
                all.affine_in(lane).map(|(_, rest)| self.expr(rest)).transpose()?
            }
            _ => None,
        };
        let start = start.unwrap_or_else(|| {
            let terms: Vec<(Reg, i64)> = parts.iter().map(|&(_, r)| r).zip(strides.iter().copied()).collect();
            let regs: Vec<Reg> = terms.iter().map(|t| t.0).collect();
            self.push(DType::I64, Op::Affine { terms, constant: 0 }, &regs)
        });
        operands.push(start);
        Ok(Access::Row { start, stride, checks })
    }

    fn guard(&mut self, cond: Scalar, fallback: Scalar, operands: &mut Vec<Reg>) -> Result<Guard, Fault> {
        let fallback = self.scalar(fallback)?;
        let mut g = Guard { uniform: vec![], spans: vec![], masks: vec![], fallback };
        self.condition(cond, &mut g)?;
        operands.extend(g.uniform.iter().chain(&g.masks).chain(g.spans.iter().map(|(_, r)| r)).chain([&fallback]));
        Ok(g)
    }

    /// Adds the parts of a condition to a guard.
    fn condition(&mut self, cond: Scalar, g: &mut Guard) -> Result<(), Fault> {
        if let Kind::Binary(op, a, b) = cond.kind() {
            if *op == Binary::And {
                self.condition(*a, g)?;
                return self.condition(*b, g);
            }
            if let (Some(x), Some(y), Some(lane)) = (a.as_index(), b.as_index(), self.lane) {
                // The condition as `distance >= 0`.
                let distance = match op {
                    Binary::Lt => Some(y - x - 1),
                    Binary::Le => Some(y - x),
                    Binary::Gt => Some(x - y - 1),
                    Binary::Ge => Some(x - y),
                    _ => None,
                };
                if let Some(distance) = distance {
                    if distance.range(self.env).lo >= 0 {
                        return Ok(()); // always
                    }
                    if let Some((step, rest)) = distance.affine_in(lane)
                        && step != 0
                    {
                        g.spans.push((step, self.expr(rest)?));
                        return Ok(());
                    }
                }
            }
        }
        let r = self.scalar(cond)?;
        if self.nodes[r].varies {
            g.masks.push(r)
        } else {
            g.uniform.push(r)
        }
        Ok(())
    }
}

/// How values of a dtype are kept in columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    F32,
    /// `f64`, and the narrow floats.
    F64,
    /// Everything else, in the 64-bit form of `eval`.
    I64,
}

pub fn kept(dtype: DType) -> Kept {
    match dtype.class() {
        Class::Float if dtype == DType::F32 => Kept::F32,
        Class::Float => Kept::F64,
        Class::Signed | Class::Unsigned | Class::Bool | Class::Complex | Class::Text => Kept::I64,
    }
}
