//! Squares that are turned: an unrolled loop of as many rounds as a vector has lanes, around a vector loop that reads across what lies along the rounds. One by one each round would gather
//! its lanes; together they are a load for each lane, and shuffles that halve the distance of what has to change places from round to round.

use crate::access::Shape;
use crate::emit::{Emit, LANE, Var};
use crate::ir::{Ty, Val};
use crate::ops::{from_memory, memory_elem};
use infc_ir::scalar::Kind;
use infc_ir::{Expr, Fault, Scalar};
use infc_kernel::loops::{LoopKind, Stmt};

/// Numbers of locals that stand for what is read across.
const MARK: u32 = u32::MAX - 16;

impl Emit<'_> {
    /// Emits the unrolled loop over `var` if it is such a one.
    pub(crate) fn turned(&mut self, var: u32, extent: i64, body: &[Stmt]) -> Result<bool, Fault> {
        let [Stmt::For { var: lane, extent: lanes, kind: LoopKind::Vector, body }] = body else { return Ok(false) };
        let [Stmt::Store { buffer, index, value }] = &body[..] else { return Ok(false) };
        let square = lanes.known() == Some(extent) && extent.count_ones() == 1 && (4..=self.width).contains(&extent);
        if !square || self.lanes.is_some() || self.mask.is_some() {
            return Ok(false);
        }
        let reads = self.across(*value, *buffer, (var, *lane), extent);
        if reads.is_empty() || reads.len() > 4 {
            return Ok(false);
        }
        let mut squares = vec![];
        for &(read, step) in &reads {
            squares.push(self.square(read, step, (var, *lane), extent)?);
        }
        let value = value.rewrite(&mut |n| match reads.iter().position(|r| r.0 == n) {
            Some(k) => Scalar::local(n.dtype(), MARK + k as u32),
            None => n,
        });
        for j in 0..extent {
            for (k, square) in squares.iter().enumerate() {
                self.locals.insert(MARK + k as u32, square[j as usize]);
            }
            self.memo.clear();
            self.with_var(var, Expr::int(extent), Var::Const(j), |e| {
                e.lanes = Some(extent as u32);
                e.ranges.extent(LANE, Expr::int(extent));
                let done = e.with_var(*lane, Expr::int(extent), Var::Lane(0), |e| {
                    let v = e.bits(*buffer as usize, value)?;
                    e.store(*buffer as usize, index, v)
                });
                e.lanes = None;
                done
            })?;
        }
        self.locals.retain(|&local, _| local < MARK);
        Ok(true)
    }

    /// The reads of 32 bits of a value whose neighbours lie along `var`, and lanes further apart than that or as far as a run tells, with their distance in elements.
    fn across(&self, value: Scalar, stored: u32, (var, lane): (u32, u32), extent: i64) -> Vec<(Scalar, Expr)> {
        let mut found: Vec<(Scalar, Expr)> = vec![];
        value.visit(&mut |n| {
            let Kind::Read { source, index, guard: None } = n.kind() else { return };
            let b = &self.kernel.buffers[*source as usize];
            let plain = *source != stored && b.dtype == n.dtype() && b.dtype.bytes() == 4 && index.len() == b.strides.len();
            let offset = index.iter().zip(&b.strides).try_fold(Expr::int(0), |sum, (i, &s)| Some(sum + i.as_index()? * s));
            let Some(offset) = offset.filter(|_| plain) else { return };
            let offset = self.resolve(offset);
            let next = offset.map(&|leaf| if leaf == Expr::var(lane as usize) { leaf + 1 } else { leaf });
            let step = next - offset;
            let apart = !step.has_var() && step.known().is_none_or(|step| step.abs() >= extent);
            if apart && offset.affine_in(var).is_some_and(|(along, _)| along == 1) && !found.iter().any(|f| f.0 == n) {
                found.push((n, step));
            }
        });
        found
    }

    /// What a read gives in each round, a vector each.
    fn square(&mut self, read: Scalar, step: Expr, (var, lane): (u32, u32), extent: i64) -> Result<Vec<Val>, Fault> {
        let Kind::Read { source, index, .. } = read.kind() else { unreachable!("chosen as a read") };
        let elem = memory_elem(read.dtype())?;
        let ty = Ty::new(elem, extent as u32);
        let mut first = None;
        self.memo.clear();
        self.with_var(var, Expr::int(1), Var::Const(0), |e| {
            e.with_var(lane, Expr::int(1), Var::Const(0), |e| {
                first = Some(e.shape(*source as usize, index)?);
                Ok(())
            })
        })?;
        let Some(Shape::One(first)) = first else { unreachable!("one element has one place") };
        let mut rows = vec![];
        for l in 0..extent {
            let distance = self.uniform_expr(step * l)?;
            let at = self.f.gep(first, elem, distance);
            rows.push(self.f.load(ty, at, elem.bits() / 8));
        }
        let mut apart = extent as usize / 2;
        while apart > 0 {
            for i in (0..rows.len()).filter(|i| i & apart == 0) {
                let (near, far) = (rows[i], rows[i + apart]);
                let order = |high: bool| -> String {
                    let from = |k: usize| match (k & apart == 0, high) {
                        (true, false) => k,
                        (true, true) => k + apart,
                        (false, false) => rows.len() + k - apart,
                        (false, true) => rows.len() + k,
                    };
                    (0..rows.len()).map(|k| format!("i32 {}", from(k))).collect::<Vec<_>>().join(", ")
                };
                let (low, high) = (order(false), order(true));
                let (a, b) = (self.f.t(near), self.f.t(far));
                let low = self.f.inst(ty, format_args!("shufflevector {a}, {b}, <{extent} x i32> <{low}>"));
                let high = self.f.inst(ty, format_args!("shufflevector {a}, {b}, <{extent} x i32> <{high}>"));
                (rows[i], rows[i + apart]) = (low, high);
            }
            apart /= 2;
        }
        Ok(rows.into_iter().map(|v| from_memory(&mut self.f, read.dtype(), v)).collect())
    }
}
