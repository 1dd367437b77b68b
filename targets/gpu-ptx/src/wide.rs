//! Neighbours in memory that a thread reads and writes with one instruction, where the parameters are aligned for it.

use crate::asm::{Class, Val};
use crate::emit::{Emit, Var};
use crate::ops;
use infc_ir::scalar::Kind;
use infc_ir::{Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Space, Stmt};

/// What a loop over lanes reads and writes several at once.
pub(crate) struct Wide {
    /// Buffers and indices of reads.
    reads: Vec<(u32, Vec<Scalar>)>,
    /// The store.
    to: u32,
    index: Vec<Scalar>,
}

impl Emit<'_> {
    /// The offset of an element, with numbers for variables that are known.
    pub(crate) fn offset(&self, buffer: usize, index: &[Scalar]) -> Option<Expr> {
        let b = &self.kernel.buffers[buffer];
        let mut offset = Expr::int(0);
        for (i, &stride) in index.iter().zip(&b.strides) {
            offset = offset + self.resolve(i.as_index()?) * stride;
        }
        Some(offset.simplify(&self.ranges))
    }

    /// Do the lanes have neighbours, from a multiple of their number on?
    pub(crate) fn neighbours(&self, buffer: u32, index: &[Scalar], lane: u32, n: i64) -> bool {
        let start = self.offset(buffer as usize, index).and_then(|o| o.affine_in(lane));
        start.is_some_and(|(step, start)| step == 1 && start.simplify(&self.ranges).div_exact(Expr::int(n)).is_some())
    }

    /// The accesses of a loop of one store, which can be made several at once.
    pub(crate) fn wide_accesses(&self, lane: u32, extent: Expr, body: &[Stmt]) -> Option<Wide> {
        let [Stmt::Store { buffer, index, value }] = body else { return None };
        let n = extent.known().filter(|n| matches!(n, 2 | 4))?;
        let fits = |b: u32| {
            let b = &self.kernel.buffers[b as usize];
            b.space == Space::Global && n * b.dtype.bytes() as i64 <= 16
        };
        if !fits(*buffer) || !self.neighbours(*buffer, index, lane, n) || !self.aligned.contains_key(buffer) {
            return None;
        }
        let mut reads: Vec<(u32, Vec<Scalar>)> = vec![];
        value.visit(&mut |s| {
            if let Kind::Read { source, index, guard: None } = s.kind()
                && fits(*source)
                && self.neighbours(*source, index, lane, n)
                && !reads.iter().any(|r| r.0 == *source && r.1 == *index)
            {
                reads.push((*source, index.clone()));
            }
        });
        Some(Wide { reads, to: *buffer, index: index.clone() })
    }

    /// The loop with such accesses where all parameters are aligned, else as it is.
    pub(crate) fn wide(&mut self, lane: u32, extent: Expr, wide: &Wide, body: &[Stmt]) -> Result<(), Fault> {
        let n = extent.known().unwrap_or(0);
        let mut all: Option<Val> = None;
        for b in wide.reads.iter().map(|r| r.0).chain([wide.to]) {
            let one = self.aligned.get(&b).copied().ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
            all = Some(match all {
                None => one,
                Some(a) => self.a.row("and", "pred", &[a, one])?,
            });
        }
        let all = all.ok_or_else(|| fault!("a loop over lanes without memory"))?;
        let (slow, end) = (self.a.label(), self.a.label());
        self.a.line(format_args!("@!{all} bra {slow}"));
        self.known.push(std::collections::HashMap::new());
        for (b, index) in &wide.reads {
            let dtype = self.kernel.buffers[*b as usize].dtype;
            let class = if dtype.bytes() == 8 { Class::Q } else { Class::R };
            self.vars.insert(lane, Var::Const(0));
            let address = self.address(*b as usize, index)?.1;
            let mut names = vec![];
            for i in 0..n {
                self.vars.insert(lane, Var::Const(i));
                let offset = self.offset(*b as usize, index).ok_or_else(|| fault!("an index from data"))?;
                let v = self.a.fresh(class);
                names.push(v.to_string());
                self.ahead.insert((*b, offset), v);
            }
            let ty = ops::memory_type(dtype)?;
            self.a.line(format_args!("ld.global.v{n}.{ty} {{{}}}, {address}", names.join(", ")));
        }
        self.behind = Some(vec![]);
        for i in 0..n {
            self.vars.insert(lane, Var::Const(i));
            self.list(body)?;
        }
        self.vars.insert(lane, Var::Const(0));
        let address = self.address(wide.to as usize, &wide.index)?.1;
        let names: Vec<String> = self.behind.take().unwrap_or_default().iter().map(Val::to_string).collect();
        let ty = ops::memory_type(self.kernel.buffers[wide.to as usize].dtype)?.replace('s', "u");
        self.a.line(format_args!("st.global.v{n}.{ty} {address}, {{{}}}", names.join(", ")));
        self.ahead.clear();
        self.known.pop();
        self.a.line(format_args!("bra {end}"));
        self.a.place(&slow);
        for i in 0..n {
            self.vars.insert(lane, Var::Const(i));
            self.list(body)?;
        }
        self.vars.remove(&lane);
        self.a.place(&end);
        Ok(())
    }
}
