//! Neighbours in memory that a thread reads and writes with one instruction, where the parameters are aligned for it: elementwise kernels,
//! tiles of shared memory whose elements are computed on the way, and elements of shared memory that rounds of a loop read one after another.

use crate::asm::{Class, Val};
use crate::emit::{Emit, Place, Var};
use crate::layout;
use crate::ops;
use crate::scalars::constant_bits;
use infc_ir::expr::Node;
use infc_ir::scalar::Kind;
use infc_ir::{Expr, Fault, Scalar, fault};
use infc_kernel::loops::{LoopKind, Space, Stmt};
use std::collections::HashSet;

/// Neighbours that become elements of a tile in shared memory.
pub(crate) struct WideTile {
    from: u32,
    from_index: Vec<Scalar>,
    /// Where it does not hold, nothing is read and the element has these bits.
    guard: Option<(Scalar, u64)>,
    to: u32,
    to_index: Vec<Scalar>,
}

/// Neighbours of a parameter that a thread brings into registers.
pub(crate) struct WideLoad {
    from: u32,
    from_index: Vec<Scalar>,
    /// Where it does not hold, nothing is read and elements have these bits.
    guard: Option<(Scalar, u64)>,
    to: u32,
    to_index: Vec<Scalar>,
}

/// What a loop over lanes reads and writes several at once.
pub(crate) struct Wide {
    /// Buffers and indices of reads.
    reads: Vec<(u32, Vec<Scalar>)>,
    /// Those of stores, in their order.
    stores: Vec<(u32, Vec<Scalar>)>,
}

/// The same for numbers of `lane` below `n`, which go beside quotients and remainders that they do not change: those of multiples of `n` by multiples of `n`.
pub(crate) fn beside(e: Expr, lane: u32, n: i64) -> Expr {
    // The lane, and the rest over `n`.
    let parts = |a: Expr, d: Expr| match (a.affine_in(lane)?, d.known()?) {
        ((1, rest), d) if d > 0 && d % n == 0 => Some((rest.div_exact(Expr::int(n))?, Expr::int(d / n))),
        _ => None,
    };
    let (terms, constant) = e.linear();
    terms.into_iter().fold(Expr::int(constant), |sum, (t, c)| {
        let t = match t.node() {
            Node::Div(a, d) => {
                let a = beside(*a, lane, n);
                parts(a, *d).map_or(a.div(*d), |(rest, d)| rest.div(d))
            }
            Node::Mod(a, d) => {
                let a = beside(*a, lane, n);
                parts(a, *d).map_or(a.rem(*d), |(rest, d)| rest.rem(d) * n + Expr::var(lane as usize))
            }
            _ => t,
        };
        sum + t * c
    })
}

/// Elements of 32 bits in a row of shared memory that are read at once.
pub(crate) const SHARED_ROW: i64 = 4;

impl Emit<'_> {
    /// Reads of shared memory in the body of a loop that is written out whose rounds read neighbours, [`SHARED_ROW`] of them from a multiple of as many on: buffers and
    /// indices. None if the body writes shared memory, or may not do what it says.
    pub(crate) fn shared_rows(&self, var: u32, count: i64, body: &[Stmt]) -> Vec<(u32, Vec<Scalar>)> {
        let is_shared = |b: u32| self.kernel.buffers[b as usize].space == Space::Shared;
        let mut values = vec![];
        for s in body {
            match s {
                Stmt::Let { value, .. } => values.push(*value),
                Stmt::Store { buffer, index, value } if !is_shared(*buffer) => {
                    values.extend(index.iter().copied().chain([*value]))
                }
                _ => return vec![],
            }
        }
        if count % SHARED_ROW != 0 || !self.ahead.is_empty() || self.vars.contains_key(&var) {
            return vec![];
        }
        let mut rows: Vec<(u32, Vec<Scalar>)> = vec![];
        for value in values {
            value.visit(&mut |s| {
                if let Kind::Read { source, index, guard: None } = s.kind()
                    && is_shared(*source)
                    && self.kernel.buffers[*source as usize].dtype.bytes() == 4
                    && self.neighbours(*source, index, var, SHARED_ROW)
                    && !rows.iter().any(|r| r.0 == *source && r.1 == *index)
                {
                    rows.push((*source, index.clone()));
                }
            });
        }
        rows
    }

    /// Reads what [`Emit::shared_rows`] found for the rounds from `first` on.
    pub(crate) fn read_shared_rows(&mut self, var: u32, first: i64, rows: &[(u32, Vec<Scalar>)]) -> Result<(), Fault> {
        if !rows.is_empty() {
            self.ahead.clear();
        }
        for (buffer, index) in rows {
            self.vars.insert(var, Var::Const(first));
            let (_, address) = self.address(*buffer as usize, index)?;
            let names: [Val; SHARED_ROW as usize] = std::array::from_fn(|_| self.a.fresh(Class::R));
            let ty = ops::memory_type(self.kernel.buffers[*buffer as usize].dtype)?;
            self.a.line(format_args!("ld.shared.v4.{ty} {{{}, {}, {}, {}}}, {address}", names[0], names[1], names[2], names[3]));
            for (i, v) in names.into_iter().enumerate() {
                self.vars.insert(var, Var::Const(first + i as i64));
                let offset = self.offset(*buffer as usize, index).ok_or_else(|| fault!("an index from data"))?;
                self.ahead.insert((*buffer, offset), v);
            }
        }
        Ok(())
    }

    /// The offset of an element, with numbers for variables that are known.
    pub(crate) fn offset(&self, buffer: usize, index: &[Scalar]) -> Option<Expr> {
        let b = &self.kernel.buffers[buffer];
        let mut offset = Expr::int(0);
        for (i, &stride) in index.iter().zip(&b.strides) {
            offset = offset + self.resolve(i.as_index()?) * stride;
        }
        Some(offset.simplify(&self.ranges))
    }

    /// Do the lanes have neighbours, from a multiple of their number on? Remainders that they do not change are looked through.
    pub(crate) fn neighbours(&self, buffer: u32, index: &[Scalar], lane: u32, n: i64) -> bool {
        let offset = self.offset(buffer as usize, index).map(|o| beside(o, lane, n));
        let start = offset.and_then(|o| o.affine_in(lane));
        start.is_some_and(|(step, start)| step == 1 && start.simplify(&self.ranges).div_exact(Expr::int(n)).is_some())
    }

    /// The accesses of a loop of stores into different parameters, which can be made several at once.
    pub(crate) fn wide_accesses(&self, lane: u32, extent: Expr, body: &[Stmt]) -> Option<Wide> {
        let (mut values, mut stores) = (vec![], vec![]);
        for s in body {
            match s {
                Stmt::Let { value, .. } => values.push(*value),
                Stmt::Store { buffer, index, value } if stores.iter().all(|(b, _)| b != buffer) => {
                    values.push(*value);
                    stores.push((*buffer, index.clone()));
                }
                _ => return None,
            }
        }
        let n = extent.known().filter(|n| matches!(n, 2 | 4))?;
        let fits = |b: u32| {
            let b = &self.kernel.buffers[b as usize];
            b.space == Space::Global && n * b.dtype.bytes() as i64 <= 16
        };
        let good = |(b, i): &(u32, Vec<Scalar>)| fits(*b) && self.neighbours(*b, i, lane, n) && self.aligned.contains_key(b);
        if stores.is_empty() || !stores.iter().all(good) {
            return None;
        }
        let mut reads: Vec<(u32, Vec<Scalar>)> = vec![];
        for value in values {
            value.visit(&mut |s| {
                if let Kind::Read { source, index, guard: None } = s.kind()
                    && fits(*source)
                    && self.neighbours(*source, index, lane, n)
                    && !reads.iter().any(|r| r.0 == *source && r.1 == *index)
                {
                    reads.push((*source, index.clone()));
                }
            });
        }
        Some(Wide { reads, stores })
    }

    /// The loop with such accesses where all parameters are aligned, else as it is.
    pub(crate) fn wide(&mut self, lane: u32, extent: Expr, wide: &Wide, body: &[Stmt]) -> Result<(), Fault> {
        let n = extent.known().unwrap_or(0);
        let mut all: Option<Val> = None;
        for b in wide.reads.iter().chain(&wide.stores).map(|r| r.0) {
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
        // Each lane has put an element for each store.
        let made = self.behind.take().unwrap_or_default();
        for (k, (to, index)) in wide.stores.iter().enumerate() {
            let address = self.address(*to as usize, index)?.1;
            let names: Vec<String> = made.iter().skip(k).step_by(wide.stores.len()).map(Val::to_string).collect();
            let ty = ops::memory_type(self.kernel.buffers[*to as usize].dtype)?.replace('s', "u");
            self.a.line(format_args!("st.global.v{n}.{ty} {address}, {{{}}}", names.join(", ")));
        }
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

    /// A loop that computes neighbours in shared memory, each from one element of a parameter; these are neighbours too.
    pub(crate) fn wide_tile(&self, lane: u32, extent: Expr, body: &[Stmt]) -> Option<WideTile> {
        let [Stmt::Store { buffer: to, index: to_index, value }] = body else { return None };
        let n = extent.known().filter(|n| matches!(n, 2 | 4))?;
        let buffers = &self.kernel.buffers;
        let mut reads = vec![];
        value.visit(&mut |s| {
            if let Kind::Read { source, index, guard } = s.kind()
                && !reads.contains(&(*source, index, guard))
            {
                reads.push((*source, index, guard));
            }
        });
        let [(from, from_index, guard)] = reads[..] else { return None };
        let space = |b: u32| buffers[b as usize].space;
        let bytes = |b: u32| n * buffers[b as usize].dtype.bytes() as i64;
        let spaces = (space(*to), space(from)) == (Space::Shared, Space::Global);
        if !spaces || bytes(*to) > 16 || bytes(from) > 16 || !self.aligned.contains_key(&from) {
            return None;
        }
        if !self.neighbours(*to, to_index, lane, n) || !self.neighbours(from, from_index, lane, n) {
            return None;
        }
        let guard = match guard {
            None => None,
            Some((cond, otherwise)) => {
                let mut moves = false;
                cond.visit(&mut |s| moves |= s.as_index().is_some_and(|e| e.uses_var(lane)));
                if moves {
                    return None;
                }
                Some((*cond, constant_bits(*otherwise)?))
            }
        };
        Some(WideTile { from, from_index: from_index.clone(), guard, to: *to, to_index: to_index.clone() })
    }

    /// Such a loop with one read and one write where the parameter is aligned, else element by element.
    pub(crate) fn compute_tile(&mut self, lane: u32, extent: Expr, tile: &WideTile, body: &[Stmt]) -> Result<(), Fault> {
        let n = extent.known().unwrap_or(0);
        let (from, to) = (&self.kernel.buffers[tile.from as usize], &self.kernel.buffers[tile.to as usize]);
        let aligned = self.aligned.get(&tile.from).copied();
        let aligned = aligned.ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
        let guard = match tile.guard {
            Some((cond, bits)) => Some((self.scalar(cond)?, bits)),
            None => None,
        };
        let (slow, end) = (self.a.label(), self.a.label());
        self.a.line(format_args!("@!{aligned} bra {slow}"));
        self.known.push(std::collections::HashMap::new());
        self.vars.insert(lane, Var::Const(0));
        let address = self.address(tile.from as usize, &tile.from_index)?.1;
        let class = if from.dtype.bytes() == 8 { Class::Q } else { Class::R };
        let raw: Vec<Val> = (0..n).map(|_| self.a.fresh(class)).collect();
        for (i, &v) in raw.iter().enumerate() {
            if let Some((_, bits)) = guard {
                let start = self.a.constant(class, bits);
                self.a.copy(v, start);
            }
            self.vars.insert(lane, Var::Const(i as i64));
            let offset = self.offset(tile.from as usize, &tile.from_index).ok_or_else(|| fault!("an index from data"))?;
            self.ahead.insert((tile.from, offset), v);
        }
        let names = |list: &[Val]| list.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
        let when = guard.map_or(String::new(), |(g, _)| format!("@{g} "));
        let ty = ops::memory_type(from.dtype)?;
        self.a.line(format_args!("{when}ld.global.v{n}.{ty} {{{}}}, {address}", names(&raw)));
        self.behind = Some(vec![]);
        for i in 0..n {
            self.vars.insert(lane, Var::Const(i));
            self.list(body)?;
        }
        self.ahead.clear();
        let made = self.behind.take().unwrap_or_default();
        self.vars.insert(lane, Var::Const(0));
        let address = self.address(tile.to as usize, &tile.to_index)?.1;
        let ty = ops::memory_type(to.dtype)?.replace('s', "u");
        self.a.line(format_args!("st.shared.v{n}.{ty} {address}, {{{}}}", names(&made)));
        self.vars.remove(&lane);
        self.known.pop();
        self.a.line(format_args!("bra {end}"));
        self.a.place(&slow);
        self.by_lanes(lane, extent, body)?;
        self.a.place(&end);
        Ok(())
    }

    /// Does a loop put something into registers?
    pub(crate) fn fills_registers(&self, body: &[Stmt]) -> bool {
        matches!(body, [Stmt::Store { buffer, .. }] if matches!(self.places[*buffer as usize], Place::Registers(_)))
    }

    /// The parameters that loops over lanes read into registers, and the predicate that all of them are aligned; none where they are certain to be.
    pub(crate) fn wide_parameters(&mut self, body: &[Stmt]) -> Result<Option<(HashSet<u32>, Val)>, Fault> {
        let mut found = vec![];
        layout::walk(body, &mut |s| {
            if let Stmt::For { kind: LoopKind::Vector, extent, body, .. } = s
                && self.fills_registers(body)
                && let [Stmt::Store { value, .. }] = &body[..]
                && let Kind::Read { source, guard: None, .. } = value.kind()
                && self.kernel.buffers[*source as usize].space == Space::Global
                && matches!(extent.known(), Some(2 | 4))
            {
                found.push(*source);
            }
        });
        found.sort_unstable();
        found.dedup();
        let mut all: Option<Val> = None;
        for b in &found {
            let Some(&one) = self.aligned.get(b) else { return Ok(None) };
            all = Some(match all {
                None => one,
                Some(all) => self.a.row("and", "pred", &[all, one])?,
            });
        }
        Ok(all.map(|all| (found.into_iter().collect(), all)))
    }

    /// A loop that reads neighbours of a parameter, of 32 bits each, into registers.
    pub(crate) fn wide_load(&self, lane: u32, extent: Expr, body: &[Stmt]) -> Option<WideLoad> {
        let [Stmt::Store { buffer: to, index: to_index, value }] = body else { return None };
        let Kind::Read { source: from, index: from_index, guard } = value.kind() else { return None };
        let n = extent.known().filter(|n| matches!(n, 2 | 4))?;
        let b = &self.kernel.buffers[*from as usize];
        let places = b.space == Space::Global && matches!(self.places[*to as usize], Place::Registers(_));
        let whole = b.dtype.bytes() == 4 && b.dtype == self.kernel.buffers[*to as usize].dtype;
        if !places || !whole || !self.aligned.contains_key(from) || !self.neighbours(*from, from_index, lane, n) {
            return None;
        }
        let guard = match guard {
            None => None,
            Some((cond, otherwise)) => {
                let mut moves = false;
                cond.visit(&mut |s| moves |= s.as_index().is_some_and(|e| e.uses_var(lane)));
                Some((*cond, constant_bits(*otherwise).filter(|_| !moves)?))
            }
        };
        Some(WideLoad { from: *from, from_index: from_index.clone(), guard, to: *to, to_index: to_index.clone() })
    }

    /// Such a loop with one read where the parameter is aligned, else one for each element. It is no branch: reads of other loops can be under way with it.
    pub(crate) fn load_wide(&mut self, lane: u32, extent: Expr, load: &WideLoad) -> Result<(), Fault> {
        let ty = ops::memory_type(self.kernel.buffers[load.from as usize].dtype)?;
        let raw: Vec<Val> = (0..extent.known().unwrap_or(0)).map(|_| self.a.fresh(Class::R)).collect();
        let cond = load.guard.map(|(cond, _)| self.scalar(cond)).transpose()?;
        // When one read happens, and when the others do.
        let (together, apart) = match self.certain.contains(&load.from) {
            true => (cond, None),
            false => {
                let aligned = self.aligned.get(&load.from).copied();
                let aligned = aligned.ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
                let not = self.a.row("not", "pred", &[aligned])?;
                match cond {
                    None => (Some(aligned), Some(not)),
                    Some(cond) => {
                        (Some(self.a.row("and", "pred", &[aligned, cond])?), Some(self.a.row("and", "pred", &[not, cond])?))
                    }
                }
            }
        };
        // What is written under conditions alone would have its registers from the beginning of the kernel on.
        if together.is_some() {
            let bits = load.guard.map_or(0, |(_, bits)| bits);
            for &v in &raw {
                let start = self.a.constant(Class::R, bits);
                self.a.copy(v, start);
            }
        }
        self.vars.insert(lane, Var::Const(0));
        let address = self.address(load.from as usize, &load.from_index)?.1;
        let names = raw.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
        let when = together.map_or(String::new(), |p| format!("@{p} "));
        self.a.line(format_args!("{when}ld.global.v{}.{ty} {{{names}}}, {address}", raw.len()));
        for (i, &v) in raw.iter().enumerate() {
            self.vars.insert(lane, Var::Const(i as i64));
            if let Some(apart) = apart {
                let address = self.address(load.from as usize, &load.from_index)?.1;
                self.a.line(format_args!("@{apart} ld.global.{ty} {v}, {address}"));
            }
            let to = self.register(load.to as usize, &load.to_index)?;
            self.a.copy(to, v);
        }
        self.vars.remove(&lane);
        Ok(())
    }

    /// Does a loop put neighbours into shared memory, of what is in registers?
    pub(crate) fn is_wide_store(&self, lane: u32, extent: Expr, body: &[Stmt]) -> bool {
        let [Stmt::Store { buffer: to, index, value }] = body else { return false };
        let b = &self.kernel.buffers[*to as usize];
        let mut good = b.space == Space::Shared;
        value.visit(&mut |s| {
            if let Kind::Read { source, guard, .. } = s.kind() {
                good &= guard.is_none() && matches!(self.places[*source as usize], Place::Registers(_));
            }
        });
        let n = extent.known().filter(|n| matches!(n, 2 | 4) && n * b.dtype.bytes() as i64 <= 16);
        good && n.is_some_and(|n| self.neighbours(*to, index, lane, n))
    }

    /// Such a loop with one write.
    pub(crate) fn store_wide(&mut self, lane: u32, extent: Expr, body: &[Stmt]) -> Result<(), Fault> {
        let [Stmt::Store { buffer: to, index, .. }] = body else { return Err(fault!("a loop of more than a store")) };
        let n = extent.known().unwrap_or(0);
        self.behind = Some(vec![]);
        for i in 0..n {
            self.vars.insert(lane, Var::Const(i));
            self.list(body)?;
        }
        let names = self.behind.take().unwrap_or_default().iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
        self.vars.insert(lane, Var::Const(0));
        let address = self.address(*to as usize, index)?.1;
        let ty = ops::memory_type(self.kernel.buffers[*to as usize].dtype)?.replace('s', "u");
        self.a.line(format_args!("st.shared.v{n}.{ty} {address}, {{{names}}}"));
        self.vars.remove(&lane);
        Ok(())
    }

    /// A loop over lanes as one over a counter, where it should be short rather than fast.
    pub(crate) fn by_lanes(&mut self, lane: u32, extent: Expr, body: &[Stmt]) -> Result<(), Fault> {
        let (ty, end, zero) = self.extent(extent)?;
        let (counter, more, head) = (self.a.copied(zero), self.a.fresh(Class::P), self.a.label());
        self.a.place(&head);
        self.a.line(format_args!(".pragma \"nounroll\""));
        self.ranges.extent(lane, extent);
        self.vars.insert(lane, Var::Reg(counter));
        self.list(body)?;
        self.vars.remove(&lane);
        self.a.line(format_args!("add.{ty} {counter}, {counter}, 1"));
        self.a.line(format_args!("setp.lt.{ty} {more}, {counter}, {end}"));
        self.a.line(format_args!("@{more} bra {head}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of the lane (variable 0, below `n`) and of variable 1 give the same; the result is the lane and something beside it if `apart`.
    fn check(make: &dyn Fn(Expr, Expr) -> Expr, n: i64, apart: bool) {
        let e = make(Expr::var(0), Expr::var(1));
        let made = beside(e, 0, n);
        for lane in 0..n {
            for other in 0..50 {
                let leaf = |l: Expr| if l == Expr::var(0) { Some(lane) } else { Some(other) };
                assert_eq!(made.eval(&leaf), e.eval(&leaf), "{e} and {made}");
            }
        }
        let start = made.affine_in(0).filter(|(step, start)| *step == 1 && start.div_exact(Expr::int(n)).is_some());
        assert_eq!(start.is_some(), apart, "{e} and {made}");
    }

    #[test]
    fn lanes_go_beside_remainders_that_they_do_not_change() {
        let int = Expr::int;
        check(&|l, x| (l + x * 8).rem(int(16)) + (l + x * 8).div(int(16)) * 64, 8, true);
        check(&|l, x| ((l + x * 8).rem(int(96)) + x * 16).rem(int(32)), 8, true);
        check(&|l, x| (l + x.rem(int(4)) * 8).div(int(48)).rem(int(3)) * 8 + (l + x.rem(int(4)) * 8).rem(int(48)), 8, true);
        // The divisor cuts lanes apart, or they do not begin at one of its multiples.
        check(&|l, x| (l + x * 8).rem(int(12)), 8, false);
        check(&|l, x| (l + x * 8 + 4).rem(int(16)), 8, false);
        check(&|l, x| (l + x * 4).rem(int(16)), 8, false);
        check(&|l, x| (l * 2 + x * 8).rem(int(16)), 4, false);
    }
}
