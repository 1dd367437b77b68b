//! Results of matrix instructions that go to memory several at once. A lane has pairs of neighbouring columns in the tiles of 8 columns that sums come in; four
//! lanes have a row of such a tile. A pair is one access where all parameters are aligned for it, and so is what an epilogue reads beside it; else each element is stored for itself. Of results in 16 bits the four
//! lanes exchange those of four tiles, so that each of them stores 16 bytes of one: a store of two columns would touch half a sector of 32 bytes.

use crate::asm::{Class, Val};
use crate::emit::{Emit, Var};
use crate::ops;
use crate::together::{GROUP, PLACE};
use crate::wide::beside;
use infc_ir::expr::Range;
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Space, Stmt};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

/// The column of a pair, or of the eight that a lane stores.
pub(crate) const NEXT: u32 = u32::MAX - 11;

/// Columns that a lane stores at once after an exchange, and elements that it has in as many tiles as lanes exchange.
const EIGHT: i64 = 8;
const EXCHANGED: i64 = 16;
/// Pairs that are read before those at hand are stored.
const AHEAD: usize = 8;

/// The store of a result.
struct Sink<'b> {
    buffer: u32,
    index: &'b [Scalar],
    dtype: DType,
    /// Lanes exchange it.
    exchanged: bool,
}

/// A pair as memory wants it.
#[derive(Clone, Copy)]
enum Pair {
    /// In a register of 32 bits.
    Packed(Val),
    /// In one register each.
    Two([Val; 2]),
}

/// The predicate under which a pair is inside, and what was read for it.
type Begun = (Option<Val>, HashMap<(u32, Expr), Val>);

/// Rows and columns of a matrix loop's tile: their variables.
type Tile = [u32; 2];

/// What stands before an instruction that is done where a predicate holds.
fn under(p: Option<Val>) -> String {
    p.map_or(String::new(), |p| format!("@{p} "))
}

/// What a list reads, but for what is read under a condition.
fn reads(list: &[Stmt]) -> Vec<(u32, Vec<Scalar>)> {
    fn outermost(s: Scalar, seen: &mut HashSet<Scalar>, out: &mut Vec<(u32, Vec<Scalar>)>) {
        if !seen.insert(s) {
            return;
        }
        match s.kind() {
            Kind::Read { source, index, guard: None } if !out.iter().any(|(b, i)| b == source && i == index) => {
                out.push((*source, index.clone()));
            }
            Kind::Read { .. } => {}
            _ => s.operands().into_iter().for_each(|o| outermost(o, seen, out)),
        }
    }
    let (mut seen, mut out) = (HashSet::new(), vec![]);
    for s in list {
        if let Stmt::Let { value, .. } | Stmt::Store { value, .. } = s {
            outermost(*value, &mut seen, &mut out);
        }
    }
    out
}

impl Emit<'_> {
    /// The elements of a tile of sums by pairs, if the loop does nothing but store values into parameters in which pairs are neighbours. Else nothing is done.
    pub(crate) fn by_pairs(&mut self, tile: Tile, own: i64, body: &[Stmt]) -> Result<bool, Fault> {
        let (cond, list) = match body {
            [Stmt::If { cond, then, otherwise }] if otherwise.is_empty() => (Some(*cond), &then[..]),
            _ => (None, body),
        };
        let Some(mut results) = self.results(list).filter(|_| self.guard.is_none() && own % 2 == 0) else { return Ok(false) };
        let most = if own % EXCHANGED == 0 { EIGHT } else { 2 };
        self.ranges.vars.insert(NEXT, Range::new(0, most - 1));
        let (next, mut fits) = (Expr::var(NEXT as usize), true);
        let reads = reads(list);
        // Parameters that are accessed two elements at a time.
        let mut paired: BTreeSet<u32> = results.iter().map(|r| r.buffer).collect();
        for e in (0..own).step_by(2) {
            self.at(tile, e, 2, next);
            fits &= self.are_neighbours(cond, &results, 2).is_some_and(|all| all.into_iter().all(|one| one));
            paired.extend(self.paired_reads(&reads).into_iter().map(|(buffer, _)| *buffer));
        }
        for first in (0..own).step_by(EXCHANGED as usize).filter(|_| fits && most == EIGHT) {
            self.at(tile, first, EIGHT, next);
            let all = self.are_neighbours(cond, &results, EIGHT);
            for (k, r) in results.iter_mut().enumerate() {
                let halves = matches!(r.dtype, DType::F16 | DType::BF16);
                r.exchanged = halves && all.as_ref().is_some_and(|a| a[k]) && (first == 0 || r.exchanged);
            }
        }
        if fits {
            let mut aligned = None;
            for buffer in paired {
                let one = self.aligned.get(&buffer).copied();
                let one = one.ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
                aligned = Some(match aligned {
                    None => one,
                    Some(all) => self.a.row("and", "pred", &[all, one])?,
                });
            }
            let aligned = aligned.ok_or_else(|| fault!("results without a parameter"))?;
            let (apart, end) = (self.a.label(), self.a.label());
            self.a.line(format_args!("@!{aligned} bra {apart}"));
            self.known.push(Default::default());
            let together = if results.iter().any(|r| r.exchanged) { EXCHANGED } else { 4 };
            let firsts = (0..own).step_by(together as usize).flat_map(|first| [first, first + 2]);
            let all: Vec<Vec<i64>> = firsts.map(|first| (first..first + together).step_by(4).collect()).collect();
            // Loads stand before the stores of pairs before them, which `ptxas` cannot tell to be elsewhere.
            let mut begun = VecDeque::new();
            for (k, elements) in all.iter().enumerate() {
                while begun.len() <= AHEAD / elements.len() && k + begun.len() < all.len() {
                    let next = self.begin(tile, cond, list, &all[k + begun.len()])?;
                    begun.push_back(next);
                }
                let now = begun.pop_front().unwrap_or_default();
                self.pairs(tile, cond, list, &results, elements, now)?;
            }
            self.known.pop();
            self.a.line(format_args!("bra {end}"));
            self.a.place(&apart);
            self.by_elements(tile, own, body)?;
            self.a.place(&end);
        }
        self.fragment = None;
        self.ranges.vars.remove(&NEXT);
        for v in &tile {
            self.vars.remove(v);
        }
        Ok(fits)
    }

    /// The stores of a list that has only such into different parameters, and locals.
    fn results<'b>(&self, list: &'b [Stmt]) -> Option<Vec<Sink<'b>>> {
        let mut out: Vec<Sink<'b>> = vec![];
        for s in list {
            match s {
                Stmt::Let { .. } => {}
                Stmt::Store { buffer, index, .. } => {
                    let b = &self.kernel.buffers[*buffer as usize];
                    let memory = b.space == Space::Global && self.aligned.contains_key(buffer);
                    if !memory || b.dtype.bits() < 8 || out.iter().any(|r| r.buffer == *buffer) {
                        return None;
                    }
                    out.push(Sink { buffer: *buffer, index, dtype: b.dtype, exchanged: false });
                }
                _ => return None,
            }
        }
        (!out.is_empty()).then_some(out)
    }

    /// Row and column of a lane, in the tile that begins with an element: the column is `next` of the `n` that it has.
    fn at(&mut self, [row, column]: Tile, element: i64, n: i64, next: Expr) {
        let var = |v: u32| Expr::var(v as usize);
        self.vars.insert(row, Var::Expr(var(GROUP) + 8 * (element / 2 % 2)));
        self.vars.insert(column, Var::Expr(var(PLACE) * n + 8 * (element / 4) + next));
    }

    /// Are so many columns neighbours, of each result? `None` if the condition may tell them apart.
    fn are_neighbours(&self, cond: Option<Scalar>, results: &[Sink], n: i64) -> Option<Vec<bool>> {
        if cond.is_some_and(|c| !self.same_for_all(self.simplified(c), n)) {
            return None;
        }
        Some(results.iter().map(|r| n * r.dtype.bytes() as i64 <= 16 && self.neighbours(r.buffer, r.index, NEXT, n)).collect())
    }

    /// Does a condition hold for all columns from a multiple of `n` on, or for none?
    fn same_for_all(&self, cond: Scalar, n: i64) -> bool {
        let mut moves = false;
        cond.visit(&mut |s| moves |= s.as_index().is_some_and(|e| e.uses_var(NEXT)));
        if !moves {
            return true;
        }
        match cond.kind() {
            Kind::Binary(Binary::And, a, b) => self.same_for_all(*a, n) && self.same_for_all(*b, n),
            Kind::Binary(Binary::Lt, a, b) => {
                let (Some(a), Some(b)) = (a.as_index(), b.as_index()) else { return false };
                let whole = |e: Expr| e.simplify(&self.ranges).div_exact(Expr::int(n)).is_some();
                !b.uses_var(NEXT) && whole(b) && beside(a, NEXT, n).affine_in(NEXT).is_some_and(|(step, e)| step == 1 && whole(e))
            }
            _ => false,
        }
    }

    /// The pairs that begin with these elements, of one row.
    fn pairs(
        &mut self,
        tile: Tile,
        cond: Option<Scalar>,
        list: &[Stmt],
        results: &[Sink],
        elements: &[i64],
        begun: Vec<Begun>,
    ) -> Result<(), Fault> {
        // For each result its pairs, and for each pair where it goes and whether it does.
        let mut made: Vec<Vec<Pair>> = results.iter().map(|_| vec![]).collect();
        let mut conds = vec![];
        for (&e, (inside, ahead)) in elements.iter().zip(begun) {
            self.known.push(Default::default());
            let pairs = self.pair(tile, e, list, results, (inside, ahead));
            self.known.pop();
            made.iter_mut().zip(pairs?).for_each(|(list, pair)| list.push(pair));
            conds.push(inside);
        }
        for (r, pairs) in results.iter().zip(&made) {
            if r.exchanged {
                self.exchange(tile, cond, r, pairs, elements[0])?;
                continue;
            }
            for ((&e, &pair), &inside) in elements.iter().zip(pairs).zip(&conds) {
                self.at(tile, e, 2, Expr::int(0));
                let (address, when) = (self.address(r.buffer as usize, r.index)?.1, under(inside));
                let ty = ops::memory_type(r.dtype)?.replace('s', "u");
                match pair {
                    Pair::Packed(v) => self.a.line(format_args!("{when}st.global.b32 {address}, {v}")),
                    Pair::Two([low, high]) => {
                        self.a.line(format_args!("{when}st.global.v2.{ty} {address}, {{{low}, {high}}}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether pairs are inside, and what they read.
    fn begin(&mut self, tile: Tile, cond: Option<Scalar>, list: &[Stmt], elements: &[i64]) -> Result<Vec<Begun>, Fault> {
        let mut out = vec![];
        for &e in elements {
            self.at(tile, e, 2, Expr::int(0));
            let inside = self.holds(cond)?;
            self.known.push(Default::default());
            self.guard = inside;
            let done = self.read_pairs(tile, e, list);
            self.guard = None;
            self.known.pop();
            done?;
            out.push((inside, std::mem::take(&mut self.ahead)));
        }
        Ok(out)
    }

    /// The condition of the column at hand.
    fn holds(&mut self, cond: Option<Scalar>) -> Result<Option<Val>, Fault> {
        self.known.push(Default::default());
        let done = match cond.map(|c| self.simplified(c)) {
            None => Ok(None),
            Some(c) if c.as_int() == Some(1) => Ok(None),
            Some(c) => self.scalar(c).map(Some),
        };
        self.known.pop();
        done
    }

    /// A pair of each result. Memory is read under the predicate.
    fn pair(
        &mut self,
        tile: Tile,
        element: i64,
        list: &[Stmt],
        results: &[Sink],
        (inside, ahead): Begun,
    ) -> Result<Vec<Pair>, Fault> {
        (self.guard, self.ahead) = (inside, ahead);
        let mut values: Vec<Vec<Val>> = results.iter().map(|_| vec![]).collect();
        let mut done = Ok(());
        for i in 0..2 {
            self.at(tile, element, 2, Expr::int(i));
            self.fragment = Some((tile[0], tile[1], (element + i) as usize));
            self.known.push(Default::default());
            self.read.clear();
            let one = self.each_result(list, results);
            self.known.pop();
            done = done.and(one.map(|one| values.iter_mut().zip(one).for_each(|(list, v)| list.push(v))));
        }
        self.guard = None;
        self.ahead.clear();
        self.read.clear();
        done?;
        let pack = |this: &mut Self, r: &Sink, v: &[Val]| match r.dtype {
            DType::F16 | DType::BF16 => {
                let (ty, d) = (if r.dtype == DType::F16 { "f16x2" } else { "bf16x2" }, this.a.fresh(Class::R));
                this.a.line(format_args!("cvt.rn.{ty}.f32 {d}, {}, {}", v[1], v[0]));
                Ok(Pair::Packed(d))
            }
            _ => Ok(Pair::Two([ops::to_memory(&mut this.a, r.dtype, v[0])?, ops::to_memory(&mut this.a, r.dtype, v[1])?])),
        };
        values.iter().zip(results).map(|(v, r)| pack(self, r, v)).collect()
    }

    /// The values of one element's results; what is rounded to 16 bits is left to the instruction that packs two of them.
    fn each_result(&mut self, list: &[Stmt], results: &[Sink]) -> Result<Vec<Val>, Fault> {
        let mut out = vec![];
        for s in list {
            match s {
                Stmt::Let { local, value } => {
                    let v = self.scalar(*value)?;
                    self.locals.insert(*local, v);
                }
                Stmt::Store { value, .. } => {
                    let halves = matches!(results[out.len()].dtype, DType::F16 | DType::BF16);
                    out.push(match value.kind() {
                        Kind::Cast(wide) if halves && wide.dtype() == DType::F32 => self.scalar(*wide)?,
                        _ => self.scalar(*value)?,
                    });
                }
                _ => return Err(fault!("a statement among results that stores nothing")),
            }
        }
        Ok(out)
    }

    /// Those of some reads that have neighbours in both columns at hand.
    fn paired_reads<'r>(&self, reads: &'r [(u32, Vec<Scalar>)]) -> Vec<&'r (u32, Vec<Scalar>)> {
        let paired = |(buffer, index): &&(u32, Vec<Scalar>)| {
            let b = &self.kernel.buffers[*buffer as usize];
            let memory = b.space == Space::Global && self.aligned.contains_key(buffer);
            memory && b.dtype.bits() >= 8 && self.neighbours(*buffer, index, NEXT, 2)
        };
        reads.iter().filter(paired).collect()
    }

    /// Reads what values take from parameters for both columns.
    fn read_pairs(&mut self, tile: Tile, element: i64, list: &[Stmt]) -> Result<(), Fault> {
        let reads = reads(list);
        self.at(tile, element, 2, Expr::var(NEXT as usize));
        for (buffer, index) in self.paired_reads(&reads) {
            let dtype = self.kernel.buffers[*buffer as usize].dtype;
            let class = if dtype.bytes() == 8 { Class::Q } else { Class::R };
            let raw = [self.a.fresh(class), self.a.fresh(class)];
            for (i, &v) in raw.iter().enumerate() {
                self.at(tile, element, 2, Expr::from(i));
                let offset = self.offset(*buffer as usize, index).ok_or_else(|| fault!("an index from data"))?;
                self.ahead.insert((*buffer, offset), v);
                // Without a value before a load under a condition the register would be kept from task to task.
                if self.guard.is_some() {
                    let zero = self.a.constant(class, 0);
                    self.a.copy(v, zero);
                }
            }
            self.at(tile, element, 2, Expr::int(0));
            let (address, when) = (self.address(*buffer as usize, index)?.1, under(self.guard));
            let ty = ops::memory_type(dtype)?;
            self.a.line(format_args!("{when}ld.global.v2.{ty} {{{}, {}}}, {address}", raw[0], raw[1]));
        }
        Ok(())
    }

    /// Four lanes have a pair each of a row of four tiles: each of them gets a row of one tile, and stores it.
    fn exchange(&mut self, tile: Tile, cond: Option<Scalar>, r: &Sink, pairs: &[Pair], element: i64) -> Result<(), Fault> {
        let mut v = vec![];
        for p in pairs {
            let Pair::Packed(p) = p else { return Err(fault!("results that lanes exchange are no pairs")) };
            v.push(*p);
        }
        let place = self.low(Expr::var(PLACE as usize))?;
        // The matrix of pairs is turned: its blocks of 2 x 2 first, then each of these.
        for (bit, swaps) in [(2, [(0, 2), (1, 3)]), (1, [(0, 1), (2, 3)])] {
            let (b, upper) = (self.a.fresh(Class::R), self.a.fresh(Class::P));
            self.a.line(format_args!("and.b32 {b}, {place}, {bit}"));
            self.a.line(format_args!("setp.ne.u32 {upper}, {b}, 0"));
            for (i, j) in swaps {
                let [give, got, low, high] = std::array::from_fn(|_| self.a.fresh(Class::R));
                self.a.line(format_args!("selp.b32 {give}, {}, {}, {upper}", v[i], v[j]));
                self.a.line(format_args!("shfl.sync.bfly.b32 {got}, {give}, {bit}, 31, -1"));
                self.a.line(format_args!("selp.b32 {low}, {got}, {}, {upper}", v[i]));
                self.a.line(format_args!("selp.b32 {high}, {}, {got}, {upper}", v[j]));
                (v[i], v[j]) = (low, high);
            }
        }
        self.at(tile, element, EIGHT, Expr::int(0));
        let inside = self.holds(cond)?;
        self.known.push(Default::default());
        let address = self.address(r.buffer as usize, r.index);
        self.known.pop();
        let (address, when) = (address?.1, under(inside));
        let list = v.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
        self.a.line(format_args!("{when}st.global.v4.b32 {address}, {{{list}}}"));
        Ok(())
    }
}
