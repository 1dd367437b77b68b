//! Sizes of plans from outside, as those that were measured to be faster: pure data that planning looks up.
//!
//! A step whose plan may have other sizes with the same results has a key, made of all that its plan follows from: shape, dtypes, layout,
//! what comes after the sums. [`Choices`] has [`Sizes`] by such keys. Sizes are those of register tiles and blocks: each sum stays one sum
//! over k in its order, so that results keep all their bits. (What could change them, as vectors along k, is no size here. Tiles that leave out the
//! border's zeros leave out more or less of them by their height; that can change the sign of a zero.)

use crate::build::contract::Frame;
use crate::build::{Operand, dots};
use crate::plan::{self, Dots, Elementwise, Plan};
use crate::target::TargetDesc;
use infc_artifact::hash::digest;
use infc_ir::Expr;
use infc_ir::compute::{Compute, Step};
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::str::FromStr;

/// Sizes for steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// Sizes of the plans of steps, by their keys.
    pub sizes: BTreeMap<String, Sizes>,
    /// Tell what there is to choose, see [`Tunable`].
    pub list: bool,
    /// Leave factors as they are in memory: kernels round them on the way. It is what tests compare [`crate::rounded::tiles`] with.
    pub staged: bool,
}

/// Kinds of plans that have sizes, with their names.
const KINDS: [(&str, &[&str]); 3] =
    [("brgemm", &["mr", "nr", "mc", "nc"]), ("elementwise", &["lanes", "jam", "chunk"]), ("dots", &["jam", "chunk"])];

/// Sizes of a plan: `brgemm mr=6 nr=32 mc=96 nc=64`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sizes {
    /// Which one of [`KINDS`].
    kind: usize,
    values: Vec<usize>,
}

impl Sizes {
    /// Those of a plan, if it has any.
    pub fn of(plan: &Plan) -> Option<Sizes> {
        let (kind, values) = match plan {
            Plan::Brgemm(p) => (0, vec![p.mr, p.nr, p.mc, p.nc]),
            Plan::Elementwise(p) => (1, vec![p.lanes, p.jam, p.chunk]),
            Plan::Dots(p) => (2, vec![p.jam, p.chunk]),
            _ => return None,
        };
        Some(Sizes { kind, values })
    }
    /// The kind of plan that they are for.
    pub fn kind(&self) -> &'static str {
        KINDS[self.kind].0
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, names) = KINDS[self.kind];
        f.write_str(kind)?;
        names.iter().zip(&self.values).try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl FromStr for Sizes {
    type Err = String;
    fn from_str(text: &str) -> Result<Sizes, String> {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let Some(kind) = KINDS.iter().position(|k| k.0 == name) else {
            let known: Vec<&str> = KINDS.iter().map(|k| k.0).collect();
            return Err(format!("'{name}' is no kind of plan with sizes; there are {}", known.join(", ")));
        };
        let wanted = || {
            let names: Vec<String> = KINDS[kind].1.iter().map(|n| format!("{n}=NUMBER")).collect();
            format!("'{text}' is not {name} {}", names.join(" "))
        };
        let mut values = vec![];
        for name in KINDS[kind].1 {
            let value = words.next().and_then(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
            values.push(value.ok_or_else(wanted)?);
        }
        if words.next().is_some() { Err(wanted()) } else { Ok(Sizes { kind, values }) }
    }
}

/// A step whose plan may have other sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunable {
    /// Its key.
    pub key: String,
    /// What it is, for people: `Conv+Clip f32[1, 96, 112, 112] over [1, 1, 16]`.
    pub what: String,
    /// The sizes that were taken: those that were chosen for it, or else the ones of the analytic plan.
    pub sizes: Sizes,
    /// Sizes of the plan that the cost model takes.
    pub analytic: Sizes,
    /// Others that may be faster than those taken, the likely ones first.
    pub others: Vec<Sizes>,
}

/// What there is to choose for a step.
pub struct Room<'a> {
    c: &'a Compute,
    analytic: &'a Plan,
    target: &'a TargetDesc,
    /// Of a contraction in register tiles.
    frame: Option<Frame>,
}

/// Neighbours that are computed together, as candidates.
const JAMS: [usize; 10] = [4, 6, 7, 8, 5, 3, 2, 10, 12, 14];

/// Most outer positions of a task, as in the plans of the cost model.
const MOST_CHUNK: usize = 4096;

/// As many tasks as there shall be at least, if the analytic plan has as many.
const MANY_TASKS: i64 = 8;

/// The extent, which [`Room::of`] has seen to be known.
fn known(e: Expr) -> i64 {
    e.known().unwrap_or(1)
}

impl<'a> Room<'a> {
    /// `None` for steps without choice. `analytic` is the plan that [`plan::choose`] takes.
    pub fn of(step: &'a Step, operands: &[Operand], target: &'a TargetDesc, analytic: &'a Plan) -> Option<Room<'a>> {
        let Step::Compute(c) = step else { return None };
        let r = c.reduction.as_ref()?;
        if c.dims.iter().chain(&r.axes).any(|e| e.known().is_none_or(|e| e < 1)) {
            return None;
        }
        let frame = match analytic {
            Plan::Brgemm(p) => Some(Frame::of(c, operands, target, Some(p))?),
            Plan::Elementwise(p) if p.jam > 1 => None,
            Plan::Dots(_) => None,
            _ => return None,
        };
        Some(Room { c, analytic, target, frame })
    }

    /// The plan with these sizes; the error says why they make none for this step.
    pub fn take(&self, sizes: &Sizes) -> Result<Plan, String> {
        let within = |name: &str, value: usize, low: usize, high: usize| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(format!("{name}={value} is not from {low} to {high}")),
        };
        match (self.analytic, KINDS[sizes.kind].0, &sizes.values[..]) {
            (Plan::Brgemm(_), "brgemm", &[mr, nr, mc, nc]) => {
                let frame = self.frame.as_ref().expect("a contraction in tiles has a frame");
                frame.check([mr, nr, mc, nc])?;
                Ok(Plan::Brgemm(frame.with([mr, nr, mc, nc])))
            }
            (Plan::Elementwise(p), "elementwise", &[lanes, jam, chunk]) => {
                let most = self.target.lanes(plan::widest(self.c));
                if lanes != p.lanes && !(lanes >= 4 && lanes <= most && lanes.is_power_of_two()) {
                    return Err(format!("lanes={lanes} is no power of two from 4 to {most}"));
                }
                within("jam", jam, 2, JAMS[JAMS.len() - 1])?;
                within("chunk", chunk, 1, MOST_CHUNK.min(self.outer(p).max(1) as usize))?;
                Ok(Plan::Elementwise(Elementwise { lanes, jam, chunk, ..p.clone() }))
            }
            (Plan::Dots(p), "dots", &[jam, chunk]) => {
                within("jam", jam, 1, self.most_rows(p))?;
                within("chunk", chunk, 1, MOST_CHUNK)?;
                Ok(Plan::Dots(Dots { jam, chunk, ..p.clone() }))
            }
            (other, kind, _) => Err(format!("it is no {kind}: its plan is {other}")),
        }
    }

    /// Sizes that may be faster than those of a plan of this step, the likely ones first.
    pub fn others(&self, plan: &Plan) -> Vec<Sizes> {
        let mut found: Vec<Plan> = match plan {
            Plan::Brgemm(p) => {
                let frame = self.frame.as_ref().expect("a contraction in tiles has a frame");
                frame.others(p).into_iter().map(|sizes| Plan::Brgemm(frame.with(sizes))).collect()
            }
            Plan::Elementwise(p) => {
                let line = known(self.c.dims[p.order[p.order.len() - 2]]) as usize;
                let mut jams: Vec<usize> = JAMS.into_iter().filter(|&j| j <= line.max(2)).collect();
                jams.sort_by_key(|j| line.next_multiple_of(*j) - line);
                let with = |lanes: usize, jam: usize, chunk: usize| Elementwise { lanes, jam, chunk, ..p.clone() };
                let own = jams.iter().map(|&jam| with(p.lanes, jam, p.chunk));
                let narrow = jams.iter().take(4).map(|&jam| with(p.lanes / 2, jam, p.chunk)).filter(|n| n.lanes >= 4);
                let outer = self.outer(p);
                let tasks = |chunk: usize| (outer + chunk as i64 - 1) / chunk as i64;
                let enough = |c: &usize| (1..=outer as usize).contains(c) && tasks(*c) >= tasks(p.chunk).min(MANY_TASKS);
                let chunks = [p.chunk / 4, p.chunk * 4].into_iter().filter(enough).map(|chunk| with(p.lanes, p.jam, chunk));
                own.chain(narrow).chain(chunks).map(Plan::Elementwise).collect()
            }
            Plan::Dots(p) => (1..=self.most_rows(p)).map(|jam| Plan::Dots(Dots { jam, ..p.clone() })).collect(),
            _ => vec![],
        };
        found.retain(|p| p != plan);
        found.iter().filter_map(Sizes::of).filter(|sizes| self.take(sizes).is_ok()).collect()
    }

    /// Positions of the outer axes of an elementwise nest with neighbours.
    fn outer(&self, p: &Elementwise) -> i64 {
        p.order.iter().rev().skip(2).map(|&a| known(self.c.dims[a])).product()
    }

    fn most_rows(&self, p: &Dots) -> usize {
        dots::most_rows(p.every.map_or(1, |a| known(self.c.dims[a])), self.target) as usize
    }

    /// The key of the step: a digest of what its plan follows from.
    pub fn key(&self, operands: &[Operand]) -> String {
        let c = self.c;
        let mut text = format!("dims {:?}\n", c.dims.iter().map(Expr::to_string).collect::<Vec<_>>());
        let mut line = |what: String| {
            let _ = writeln!(text, "{what}");
        };
        if let Some(r) = &c.reduction {
            line(format!("{:?} over {:?} of {}", r.kind, r.axes.iter().map(Expr::to_string).collect::<Vec<_>>(), r.body));
        }
        line(format!("value {}", c.value));
        for o in operands {
            let numbers = |of: &[Expr]| of.iter().map(Expr::to_string).collect::<Vec<_>>().join(" ");
            let (dims, strides) = (numbers(&o.buffer.dims), numbers(&o.buffer.strides));
            let constant = o.constant.is_some();
            line(format!("{} [{dims}] [{strides}] {:?} {:?} {constant}", o.buffer.dtype, o.shift, o.zeros));
        }
        // The fixed part of the plan, which can depend on the values of constants.
        let fixed = match self.analytic {
            Plan::Brgemm(p) => {
                let share = self.frame.as_ref().is_some_and(|f| f.share(p.mr) < 1.0);
                let copied = if p.copied { " copied" } else { "" };
                format!("brgemm {} {} {:?} {:?} {} {share}{copied}", p.broadcast, p.n, p.m, p.panels, p.row)
            }
            Plan::Elementwise(p) => format!("elementwise {:?} {:?}", p.order, p.taps),
            Plan::Dots(p) => format!("dots {:?} {} {}", p.every, p.along, p.lanes),
            other => other.to_string(),
        };
        line(fixed);
        digest(text.as_bytes())[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// What the step is, in a line; `name` is that of its kernel.
    pub fn what(&self, name: &str, operands: &[Operand]) -> String {
        let list = |of: &[Expr]| of.iter().map(Expr::to_string).collect::<Vec<_>>().join(", ");
        let out = &operands[operands.len() - 1].buffer.dtype;
        let over = self.c.reduction.as_ref().map_or(String::new(), |r| format!(" over [{}]", list(&r.axes)));
        format!("{name} {out}[{}]{over}", list(&self.c.dims))
    }
}
