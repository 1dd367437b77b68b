//! Rows outside of layers: regions of steps on pictures run as loops over bands of rows, so that what one step hands on to the next stays in
//! the caches.
//!
//! Run whole, a step makes its whole map before the next one begins: those of a first block of a network for pictures are several MiB. In a loop, a
//! round makes some rows of the region's result, and of each map between only the rows that these need, in memory of that size. Rows that two
//! rounds need, under windows of more than one row, are computed in both: so rounds are apart from each other. Which regions win follows from an
//! account of the bytes that move and of that arithmetic ([`account`]), for the caches of the machine.
//!
//! The loop is the program's: its steps are those of before on rows of tensors. At the top and the bottom of a picture windows meet the border, and
//! the last rows may be fewer: these rounds stand before and behind the loop, with sizes of their own.
//! Class: exact. A step whose sums would be added up in another order for fewer rows stays outside (but minimal filtering, whose tiles begin with the band: a sum may be made at
//! another place of its tile). Sizes that are symbols stay whole.

use crate::attention::Attentions;
use crate::batch::{same_sums, touch_counts};
use crate::loops::Access;
use crate::program::{declare, prepare};
use crate::target::TargetDesc;
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::Expr;
use infc_ir::compute::Step;
use infc_ir::scalar::{Kind, Scalar};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

mod account;

/// The axis of rows: the first one behind batch and channels.
const ROWS: usize = 2;

/// Puts loops over bands of rows around regions of steps, in all blocks of the work list.
pub fn loops(work: &mut Work, target: &TargetDesc, attentions: &Attentions) {
    if target.block_threads > 0 {
        return;
    }
    let mut items = std::mem::take(&mut work.items);
    let touched = touch_counts(work, &items, attentions);
    Cx { touched, target, attentions, loops: 0 }.walk(work, &mut items);
    work.items = items;
}

/// The rows of a source that row `i` of the result needs: `step * i + low ..= step * i + high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    step: i64,
    low: i64,
    high: i64,
}

/// A step that makes each row from some rows of its sources.
struct Member {
    task: Task,
    /// For each source; `None` if all rows need the same of it.
    spans: Vec<Option<Span>>,
}

/// Rows of a tensor in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rows {
    /// The first one, and the one behind the last.
    first: i64,
    end: i64,
    /// Rows of the border that are needed before and behind them.
    border: (i64, i64),
}

impl Rows {
    fn count(self) -> i64 {
        self.end - self.first
    }
}

/// What a walk over all blocks knows.
struct Cx<'a> {
    /// How often each root is touched.
    touched: HashMap<Id, usize>,
    target: &'a TargetDesc,
    /// Steps that stay as they are.
    attentions: &'a Attentions,
    /// Loops made.
    loops: usize,
}

impl Cx<'_> {
    fn walk(&mut self, work: &mut Work, items: &mut Vec<Item>) {
        let mut out = vec![];
        let mut run = Run::default();
        for mut item in std::mem::take(items) {
            match &mut item {
                Item::Task(t) => {
                    let member = |cx: &Self| (!cx.attentions.contains_key(&t.out)).then(|| member(work, t)).flatten();
                    if let Some(m) = member(self) {
                        if let Some(m) = run.take(work, m) {
                            self.region(work, std::mem::take(&mut run), &mut out);
                            if let Some(m) = run.take(work, m) {
                                out.push(Item::Task(m.task));
                            }
                        }
                        continue;
                    }
                    self.region(work, std::mem::take(&mut run), &mut out);
                }
                other => {
                    self.region(work, std::mem::take(&mut run), &mut out);
                    match other {
                        Item::If { then, otherwise, .. } => {
                            self.walk(work, then);
                            self.walk(work, otherwise);
                        }
                        // Loops over the batch have launches only.
                        Item::Loop { body, apart: false, .. } => self.walk(work, body),
                        Item::Loop { .. } | Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
                    }
                }
            }
            out.push(item);
        }
        self.region(work, run, &mut out);
        *items = out;
    }

    /// Puts out a run, in loops where that pays.
    fn region(&mut self, work: &mut Work, run: Run, out: &mut Vec<Item>) {
        let members = run.members;
        let mut at = 0;
        for part in account::parts(work, &members, &self.touched, self.target) {
            let counter = Expr::sym(&format!("%band{}", self.loops));
            let steps = &members[part.first..part.end];
            let Some(items) = banded(work, steps, &self.touched, part.rows, counter, self.target) else { continue };
            self.loops += 1;
            out.extend(members[at..part.first].iter().map(|m| Item::Task(m.task.clone())));
            out.extend(items);
            at = part.end;
        }
        out.extend(members[at..].iter().map(|m| Item::Task(m.task.clone())));
    }
}

/// Steps one after another that make rows from rows.
#[derive(Default)]
struct Run {
    members: Vec<Member>,
    /// Roots that they make, those that they read whole, and those of which they read rows under another name than that of all of it.
    made: HashSet<Id>,
    whole: HashSet<Id>,
}

impl Run {
    /// Takes in a step, if it may be in one loop with those before: it reads nothing whole that they make, and makes nothing
    /// that they read whole. Else gives it back.
    fn take(&mut self, work: &Work, m: Member) -> Option<Member> {
        let sources = m.task.sources.iter().zip(&m.spans);
        // What is seen under other dims counts as read whole.
        let plain = |id: Id| work.whole(id) == work.root(id);
        let whole: HashSet<Id> = sources.filter(|(s, by)| by.is_none() || !plain(**s)).map(|(s, _)| work.root(*s)).collect();
        let made = work.root(m.task.out);
        if !self.made.is_disjoint(&whole) || self.whole.contains(&made) || whole.contains(&made) {
            return Some(m);
        }
        self.made.insert(made);
        self.whole.extend(whole);
        self.members.push(m);
        None
    }
}

/// Known rows, counted from the first row of what it is a part of.
fn height(work: &Work, id: Id) -> Option<i64> {
    let t = work.tensor(id);
    t.ty.known_dims()?;
    let rows = t.ty.dims.get(ROWS)?.known().filter(|_| t.ty.rank() >= 4)?;
    match &t.memory {
        Memory::Window { of, start } => (start[ROWS].is(0) && height(work, *of)? == rows).then_some(rows),
        Memory::Temp | Memory::Input(_) | Memory::Constant(_) | Memory::Alias { .. } => Some(rows),
    }
}

/// The step as one that makes rows from rows; `None` if it does anything else with them.
fn member(work: &Work, task: &Task) -> Option<Member> {
    let Step::Compute(c) = &task.step else { return None };
    let rows = height(work, task.out)?;
    if !c.dims.get(ROWS)?.is(rows) || work.whole(task.out) != work.root(task.out) {
        return None;
    }
    let (axis, env) = (ROWS as u32, c.ranges());
    let mut spans: Vec<Option<Option<Span>>> = vec![None; task.sources.len()];
    for s in task.step.scalars() {
        let mut good = true;
        let rest = s.rewrite(&mut |n| {
            let Kind::Read { source, index, guard } = n.kind() else { return n };
            let uses = |s: &Scalar| s.as_index().is_some_and(|e| e.uses_var(axis)) || deep(*s);
            let place = index.get(ROWS).filter(|i| uses(i)).map(|i| i.as_index().and_then(|e| e.affine_in(axis)));
            let others = index.iter().enumerate().any(|(k, i)| k != ROWS && uses(i));
            good &= !others && !guard.iter().any(|(c, f)| uses(c) || uses(f));
            let k = *source as usize;
            let span = match place {
                None => None,
                Some(Some((step, rest))) if step >= 1 && height(work, task.sources[k]).is_some() => {
                    let range = rest.range(&env);
                    Some(Span { step, low: range.lo, high: range.hi })
                }
                Some(_) => {
                    good = false;
                    None
                }
            };
            spans[k] = Some(match (spans[k], span) {
                (None, new) => new,
                (Some(Some(a)), Some(b)) => {
                    good &= a.step == b.step;
                    Some(Span { step: a.step, low: a.low.min(b.low), high: a.high.max(b.high) })
                }
                (Some(was), new) => {
                    good &= was == new;
                    was
                }
            });
            // What has been looked at no longer mentions the axis.
            Scalar::number(n.dtype(), 0.0)
        });
        if !good || deep(rest) {
            return None;
        }
    }
    let spans: Vec<Option<Span>> = spans.into_iter().map(Option::flatten).collect();
    let near = |s: &Span| s.low.abs().max(s.high.abs()) <= FARTHEST;
    spans.iter().flatten().all(near).then(|| Member { task: task.clone(), spans })
}

/// Rows farther away make no window.
const FARTHEST: i64 = 1 << 12;

/// Does the axis of rows stand anywhere in it?
fn deep(s: Scalar) -> bool {
    let mut found = false;
    s.visit(&mut |n| found |= matches!(n.kind(), Kind::Index(e) if e.uses_var(ROWS as u32)));
    found
}

/// What a region keeps for itself and what it hands on.
struct Region {
    /// Tensors that only it touches, and first of all writes.
    own: HashSet<Id>,
    /// Tensors that it makes for others; rounds write each row once.
    handed: HashSet<Id>,
}

impl Region {
    fn of(work: &Work, members: &[Member], touched: &HashMap<Id, usize>) -> Region {
        let (mut inside, mut written) = (HashMap::<Id, usize>::new(), HashMap::<Id, bool>::new());
        for m in members {
            for (&id, write) in m.task.sources.iter().map(|s| (s, false)).chain([(&m.task.out, true)]) {
                let root = work.root(id);
                *inside.entry(root).or_default() += 1;
                written.entry(root).or_insert(write);
            }
        }
        let made: HashSet<Id> = members.iter().map(|m| work.root(m.task.out)).collect();
        let own = |id: &Id| matches!(work.tensor(*id).memory, Memory::Temp) && touched.get(id) == inside.get(id) && written[id];
        let (own, handed) = made.into_iter().partition(own);
        Region { own, handed }
    }

    /// The rows of all tensors of which a round needs some, whose result are rows `first..end` of the last step. `None` if that is not
    /// possible with rounds that write each row once, and read none that another one writes.
    fn rows(&self, work: &Work, members: &[Member], (first, end): (i64, i64)) -> Option<HashMap<Id, Rows>> {
        let last = height(work, members.last()?.task.out)?;
        let mut needs: HashMap<Id, (i64, i64)> = HashMap::new();
        let mut out: HashMap<Id, Rows> = HashMap::new();
        for m in members.iter().rev() {
            let made = work.whole(m.task.out);
            let all = height(work, made)?;
            let rows = if self.handed.contains(&made) {
                let times = (all % last == 0).then_some(all / last)?;
                let rows = Rows { first: first * times, end: end * times, border: (0, 0) };
                let need = needs.get(&made).copied().unwrap_or((rows.first, rows.end));
                (need.0 >= rows.first && need.1 <= rows.end).then_some(rows)?
            } else {
                cut(*needs.get(&made)?, all)?
            };
            // All that make a part of a tensor make the same rows of it.
            if out.insert(made, rows).is_some_and(|was| was != rows) {
                return None;
            }
            for (&s, span) in m.task.sources.iter().zip(&m.spans) {
                let Some(span) = span else { continue };
                let need = (span.step * rows.first + span.low, span.step * (rows.end - 1) + span.high + 1);
                let whole = work.whole(s);
                if out.contains_key(&whole) {
                    return None;
                }
                let all = needs.entry(whole).or_insert(need);
                *all = (all.0.min(need.0), all.1.max(need.1));
            }
        }
        for (&id, &need) in &needs {
            if let Entry::Vacant(e) = out.entry(id) {
                e.insert(cut(need, height(work, id)?)?);
            }
        }
        // Rows beyond a tensor are those of its border.
        let has = |id: &Id, r: &Rows| {
            let (before, behind) = work.tensor(*id).halo.get(ROWS).copied().unwrap_or((0, 0));
            r.border.0 <= before && r.border.1 <= behind
        };
        out.iter().all(|(id, r)| has(id, r)).then_some(out)
    }
}

/// The rows that are needed, of a tensor of so many.
fn cut((first, end): (i64, i64), all: i64) -> Option<Rows> {
    let rows = Rows { first: first.max(0), end: end.min(all), border: ((-first).max(0), (end - all).max(0)) };
    (rows.first < rows.end).then_some(rows)
}

/// Rounds that stand before and behind a loop at most.
const MOST_ENDS: usize = 4;

/// The region as a loop over bands of so many rows of its last result, with the rounds at the top and at the bottom of the picture
/// around it. `None` if it cannot be one.
fn banded(
    work: &mut Work,
    members: &[Member],
    touched: &HashMap<Id, usize>,
    rows: i64,
    counter: Expr,
    target: &TargetDesc,
) -> Option<Vec<Item>> {
    let region = Region::of(work, members, touched);
    let all = height(work, members.last()?.task.out)?;
    let starts = (0..all).step_by(usize::try_from(rows).ok()?);
    let rounds: Vec<HashMap<Id, Rows>> =
        starts.map(|s| region.rows(work, members, (s, (s + rows).min(all)))).collect::<Option<_>>()?;
    // The rounds in the middle: of the same sizes, and one as far behind the other as the next.
    let middle = rounds.len() / 2;
    let same = |a: &HashMap<Id, Rows>, b: &HashMap<Id, Rows>| {
        a.iter().all(|(id, r)| b.get(id).is_some_and(|o| r.count() == o.count() && r.border == o.border))
    };
    let begin = (0..middle).rev().take_while(|&k| same(&rounds[k], &rounds[middle])).last().unwrap_or(middle);
    let end = (middle..rounds.len()).take_while(|&k| same(&rounds[k], &rounds[middle])).last()? + 1;
    if end - begin < 2 || rounds.len() - (end - begin) > MOST_ENDS {
        return None;
    }
    let step = |id: &Id| rounds[begin + 1][id].first - rounds[begin][id].first;
    let even = |k: usize| rounds[k].iter().all(|(id, r)| r.first - rounds[begin][id].first == step(id) * (k - begin) as i64);
    if !(begin..end).all(even) {
        return None;
    }
    let before = work.tensors.len();
    let steps: HashMap<Id, i64> = rounds[begin].keys().map(|id| (*id, step(id))).collect();
    let mut out = vec![];
    for (k, round) in rounds.iter().enumerate() {
        if (begin + 1..end).contains(&k) {
            continue;
        }
        let moves = (k == begin).then_some((counter, &steps));
        let Some(tasks) = (Band { work, own: &region.own, rows: round, moves, made: HashMap::new() }).tasks(members, target)
        else {
            work.tensors.truncate(before);
            return None;
        };
        let body: Vec<Item> = tasks.into_iter().map(Item::Task).collect();
        if k == begin {
            let count = Expr::from(end - begin);
            out.push(Item::Loop { counter, count, cond: None, body, apart: true });
        } else {
            out.extend(body);
        }
    }
    Some(out)
}

/// The steps of one round, or of all rounds of a loop.
struct Band<'a> {
    work: &'a mut Work,
    /// Tensors that the region has for itself.
    own: &'a HashSet<Id>,
    /// Rows of each tensor, in the first round.
    rows: &'a HashMap<Id, Rows>,
    /// The counter of the loop, and how many rows of each tensor lie between one round and the next.
    moves: Option<(Expr, &'a HashMap<Id, i64>)>,
    made: HashMap<Id, Id>,
}

impl Band<'_> {
    fn tasks(&mut self, members: &[Member], target: &TargetDesc) -> Option<Vec<Task>> {
        members.iter().map(|m| self.task(m, target)).collect()
    }

    /// The step on the rows of the round; `None` if its sums would be added up in another order.
    fn task(&mut self, m: &Member, target: &TargetDesc) -> Option<Task> {
        let Step::Compute(c) = &m.task.step else { return None };
        let rows = |id: Id| self.rows[&self.work.whole(id)];
        let made = rows(m.task.out);
        // Row `i` of the round is row `i + first` of all.
        let mut c = c.clone();
        c.dims[ROWS] = Expr::int(made.count());
        let by: Vec<Option<i64>> =
            m.task.sources.iter().zip(&m.spans).map(|(&s, by)| by.map(|by| by.step * made.first - rows(s).first)).collect();
        let Step::Compute(c) = Step::Compute(c).map(&mut |s| {
            s.rewrite(&mut |n| match n.kind() {
                Kind::Read { source, index, guard } => {
                    let Some(by) = by[*source as usize] else { return n };
                    let mut index = index.clone();
                    index[ROWS] = Scalar::index(index[ROWS].as_index().expect("checked before") + by);
                    Scalar::raw(n.dtype(), Kind::Read { source: *source, index, guard: *guard })
                }
                _ => n,
            })
        }) else {
            return None;
        };
        let step = Step::Compute(c.simplify());
        let sources: Vec<Id> =
            m.task.sources.iter().zip(&m.spans).map(|(&s, by)| if by.is_some() { self.slice(s) } else { s }).collect();
        let task = Task { step, sources, out: self.slice(m.task.out), name: m.task.name.clone(), node: m.task.node.clone() };
        let plan = |work: &Work, t: &Task| {
            let mut operands: Vec<_> = t.sources.iter().map(|&s| declare(work, s, Access::Read)).collect();
            operands.push(declare(work, t.out, Access::Write));
            prepare(t.step.clone(), operands, target).2
        };
        same_sums(&plan(self.work, &m.task), &plan(self.work, &task)).then_some(task)
    }

    /// The tensor of the round: memory of its rows if the region has it for itself, else a part of the tensor.
    fn slice(&mut self, id: Id) -> Id {
        if let Some(&done) = self.made.get(&id) {
            return done;
        }
        let whole = self.work.whole(id);
        let rows = self.rows[&whole];
        let mut data = self.work.tensor(id).clone();
        data.ty.dims[ROWS] = Expr::int(rows.count());
        if let Some(halo) = data.halo.get_mut(ROWS) {
            *halo = rows.border;
        }
        data.memory = match data.memory {
            Memory::Temp if self.own.contains(&whole) => Memory::Temp,
            Memory::Window { of, start } if self.own.contains(&whole) => Memory::Window { of: self.slice(of), start },
            _ => {
                let mut start = vec![Expr::int(0); data.ty.rank()];
                let moved = self.moves.map_or(Expr::int(0), |(counter, steps)| counter * steps[&whole]);
                start[ROWS] = moved + rows.first;
                Memory::Window { of: id, start }
            }
        };
        self.work.tensors.push(data);
        let made = Id(self.work.tensors.len() as u32 - 1);
        self.made.insert(id, made);
        made
    }
}
