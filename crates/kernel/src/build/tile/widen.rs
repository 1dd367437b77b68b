//! Tiles of a narrow constant matrix: its elements become what shared memory wants on the way there.

use super::{Parts, shared_dtype, within};
use crate::build::contract::Factor;
use crate::build::narrow::{self, Narrow, Taken};
use crate::build::stored::Stored;
use crate::build::{Cx, Operand, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::Tile;
use crate::tf32;
use infc_ir::compute::Compute;
use infc_ir::scalar::Scalar;
use infc_ir::{DType, Expr};
use std::sync::Arc;

/// Elements that are written at once.
const WRITTEN: usize = 4;
/// Products that a thread widens at a time, if a word has no more.
const WIDENED: usize = 8;

/// A matrix that a factor takes narrow.
pub(in crate::build) struct Widened {
    matrix: Arc<Narrow>,
    taken: Taken,
}

/// Products that a thread widens at a time.
fn together(stored: Stored) -> usize {
    stored.per_word().max(WIDENED)
}

/// The factor of a plan that is brought into shared memory from a narrow matrix, if that has fewer bits than there.
pub(super) fn stored(c: &Compute, f: &[Factor; 2], operands: &[Operand], p: &Tile) -> Option<(usize, Stored)> {
    let (k, matrix, taken) = narrow::factor(c, f, operands)?;
    let (side, stored) = (usize::from(k != p.rows_of), matrix.stored);
    let alone = [&p.m, &p.n][side].as_slice() == [taken.n];
    let fewer = stored.bits() < 8 * shared_dtype(&f[k], p.row).bytes();
    let whole = taken.at_multiple(together(stored)) && p.block[2].is_multiple_of(together(stored));
    (alone && fewer && whole).then_some((k, stored))
}

/// The matrix of such a factor, in the place of the constant.
pub(super) fn take(cx: &mut Cx, c: &Compute, f: &[Factor; 2], p: &Tile) -> [Option<Widened>; 2] {
    let Some((k, _)) = p.stored else { return [None, None] };
    let (_, matrix, taken) = narrow::factor(c, f, cx.operands).expect("checked by the plan");
    let matrix = Arc::new(matrix.clone());
    cx.pack(f[k].source, matrix.words.clone());
    let made = Some(Widened { matrix, taken });
    if k == p.rows_of { [made, None] } else { [None, made] }
}

impl Parts<'_> {
    /// Brings a tile of the matrix into shared memory: a thread reads a word or more of a column, whose products are side by side there.
    pub(super) fn stage_widened(&self, cx: &mut Cx, (side, widened): (usize, &Widened), step: Expr) -> Stmt {
        let (matrix, stored, source) = (&widened.matrix, widened.matrix.stored, self.f[side].source);
        let (_, size, first) = self.lines[side];
        let (lines, bk) = (self.p.block[side], self.p.block[2]);
        let dtype = shared_dtype(self.f[side], self.p.row);
        let count = together(stored);
        let words = count / stored.per_word();
        let (thread, pieces) = (cx.var("thread"), Expr::from(bk / count));
        // Of a part of what a thread does: its number among those of all, its line, and its first product in the tile.
        let place = |part: Expr| {
            let flat = part * self.threads as i64 + thread;
            (flat, flat.div(pieces), flat.rem(pieces) * count as i64)
        };
        let part = cx.var("part");
        let (_, line, piece) = place(part);
        let here = step * bk as i64 + piece;
        let inside = within(first + line, size, lines as i64).and(match self.depth.known() {
            Some(depth) if depth % bk as i64 == 0 => Scalar::always(),
            _ => Scalar::index(here).lt(Scalar::index(self.depth)),
        });
        let (column, k) = (first + line, widened.taken.start.subst(&self.axes) + here);
        let per_vector = Expr::from(stored.per_vector());
        let read = |at: Expr| Scalar::read_if(source, [Scalar::index(at)], inside, Scalar::number(DType::U32, 0.0));
        let all = lines * bk / count;
        let (parts, rows) = (all.div_ceil(self.threads), stored.head());
        let raw = cx.scratch("words", DType::U32, &[self.threads, parts, words], Space::Reg);
        let wide = cx.scratch("wide", DType::F32, &[self.threads, count], Space::Reg);
        let heads = (rows > 0).then(|| cx.scratch("heads", DType::U32, &[self.threads, parts, rows], Space::Reg));
        cx.body.extend([raw, wide].into_iter().chain(heads).map(|buffer| Stmt::Alloc { buffer }));
        // What is read comes first, all of it: it can be under way while something else is done.
        let lane = cx.var("lane");
        let word = k.div(Expr::from(count)).rem(Expr::from(stored.per_vector() / count)) * words as i64;
        let word = read(matrix.word(column, k.div(per_vector), word + lane));
        let mut reads = vec![for_each(lane, Expr::from(words), LoopKind::Vector, vec![cx.put(raw, &[thread, part, lane], word)])];
        for (row, heads) in (0..rows).zip(heads.iter().cycle()) {
            let word = read(matrix.head_at(column, matrix.block_of(k), row));
            reads.push(cx.put(*heads, &[thread, part, Expr::from(row)], word));
        }
        let (again, mut writes) = (cx.var("part"), vec![]);
        let (_, line, piece) = place(again);
        let head = {
            let of = |(row, &heads): (usize, &u32)| cx.at(heads, &[thread, again, Expr::from(row)]);
            let rows: Vec<Scalar> = (0..rows).zip(heads.iter().cycle()).map(of).collect();
            let mut name = |value: Scalar| {
                let local = cx.local();
                writes.push(Stmt::Let { local, value });
                Scalar::local(value.dtype(), local)
            };
            matrix.head(&|row| rows[row], &mut name)
        };
        for w in 0..words {
            let (local, value) = (cx.local(), cx.at(raw, &[thread, again, Expr::from(w)]));
            writes.push(Stmt::Let { local, value });
            for j in 0..stored.per_word() {
                let value = matrix.member(Scalar::local(DType::U32, local), j, &head);
                let value = if self.p.row.ends_with("mma_tf32") { tf32::round(value) } else { value };
                writes.push(cx.put(wide, &[thread, Expr::from(w * stored.per_word() + j)], value));
            }
        }
        for at in (0..count).step_by(WRITTEN) {
            let lane = cx.var("lane");
            let value = cx.at(wide, &[thread, lane + at as i64]).cast(dtype);
            let index = self.shared_index(side, line, piece + at as i64 + lane);
            let store = cx.put(self.shared[side], &index, value);
            writes.push(for_each(lane, Expr::from(WRITTEN), LoopKind::Vector, vec![store]));
        }
        let each = |part: Expr, mut body: Vec<Stmt>| {
            if !all.is_multiple_of(self.threads) {
                let cond = Scalar::index(place(part).0).lt(Scalar::index(all));
                body = vec![Stmt::If { cond, then: body, otherwise: vec![] }];
            }
            for_each(part, Expr::from(parts), LoopKind::Unroll, body)
        };
        let body = vec![each(part, reads), each(again, writes)];
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }
}
