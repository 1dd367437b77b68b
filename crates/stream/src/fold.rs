//! Folding: how many elements each actor works on at once.
//!
//! For a number of cycles a frame may take, every actor gets the least hardware that keeps it (so intervals are balanced). Under a budget
//! the least number of cycles whose design fits is searched; for a number of frames a second the cycles follow from the clock. Legal are lanes that
//! divide the channels (of a group), `pe` that divides the rows and `simd` the columns of a matrix; behind a [`Kind::Window`] `simd` divides the
//! channels of a group too, since the window comes tap by tap. Where two lanes differ a [`Kind::Width`] converts.

use crate::design::*;
use crate::machine::Machine;
use crate::report::{Fifo, Layer, Report, Resources};
use crate::{estimate, fifo};
use infc_ir::{Problem, Problems};

/// What a design is folded for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Goal {
    /// Clock period in ns; the machine's own without it.
    pub clock_ns: Option<f64>,
    /// Frames a second that must be reached, with as little hardware as that takes. Without it: as many as fit.
    pub target_fps: Option<f64>,
    /// The most multiplier blocks; the machine's share without it.
    pub dsp: Option<u64>,
    /// The most look-up tables.
    pub lut: Option<u64>,
    /// The most block memories of 36 Kbit.
    pub bram: Option<u64>,
}

/// A design with lanes and FIFO depths, and its report.
#[derive(Clone, Debug, PartialEq)]
pub struct Folded {
    /// The design.
    pub design: Design,
    /// What it costs.
    pub report: Report,
}

/// Folds a converted design.
pub fn fold(design: &Design, machine: &Machine, goal: &Goal) -> Result<Folded, Problems> {
    let clock = goal.clock_ns.unwrap_or(machine.clock_ns);
    let budget = budget(machine, goal)?;
    let steps = candidates(design, machine);
    let at = |cycles: u64| finished(apply(design, machine, cycles), machine, clock, budget);
    match goal.target_fps {
        Some(fps) => {
            let cycles = (1e9 / (clock * fps)).floor() as u64;
            too_slow(design, machine, cycles, clock, fps)?;
            let folded = fast(at(cycles), machine);
            if fits(&folded.report.total, &budget) { Ok(folded) } else { Err(too_large(&folded, machine, budget, &steps, &at)) }
        }
        None => best(&steps, &at, machine, budget).ok_or_else(|| too_large(&at(u64::MAX), machine, budget, &[], &at)),
    }
}

/// The fastest folding that fits.
fn best(steps: &[u64], at: &dyn Fn(u64) -> Folded, machine: &Machine, budget: Resources) -> Option<Folded> {
    // Fewer cycles take more hardware: the border is found by halving. Steps ascend.
    let (mut low, mut high) = (0, steps.len());
    while low < high {
        let middle = (low + high) / 2;
        if fits(&at(steps[middle]).report.total, &budget) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    // FIFOs that are deep enough for that speed come on top.
    (low..steps.len()).map(|i| fast(at(steps[i]), machine)).find(|f| fits(&f.report.total, &budget))
}

/// With FIFOs that do not slow it down.
fn fast(folded: Folded, machine: &Machine) -> Folded {
    let Folded { mut design, report: r } = folded;
    fifo::speed(&mut design, r.interval);
    let report = report(&design, machine, r.clock_ns, r.budget);
    Folded { design, report }
}

fn fits(need: &Resources, have: &Resources) -> bool {
    need.dsp <= have.dsp && need.lut <= have.lut && need.ff <= have.ff && need.bram18 <= have.bram18
}

fn budget(m: &Machine, goal: &Goal) -> Result<Resources, Problems> {
    let share = |all: u64| (all as f64 * m.fill) as u64;
    let mut problems = vec![];
    let mut part = |name: &str, asked: Option<u64>, all: u64| {
        if asked.is_some_and(|a| a > all) {
            let message = format!("{name}={} is more than the {all} of {}", asked.unwrap_or(0), m.name);
            problems.push(Problem {
                at: "budget".into(),
                message,
                help: "give at most what the part has, or another machine".into(),
            });
        }
        asked.unwrap_or(share(all))
    };
    let out = Resources {
        dsp: part("dsp", goal.dsp, m.dsp),
        lut: part("lut", goal.lut, m.lut),
        ff: share(m.ff),
        bram18: 2 * part("bram", goal.bram, m.bram),
    };
    let positive = |v: Option<f64>| v.is_none_or(|v| v > 0.0 && v.is_finite());
    if !positive(goal.clock_ns) || !positive(goal.target_fps) {
        let message = "the clock period and the frames a second must be positive".to_owned();
        problems.push(Problem { at: "goal".into(), message, help: "for example 5 ns and 100 frames a second".into() });
    }
    if problems.is_empty() { Ok(out) } else { Err(Problems(problems)) }
}

/// What the budget lacks, in words.
fn compare(need: &Resources, have: &Resources) -> String {
    let parts = [
        ("dsp", need.dsp, have.dsp),
        ("lut", need.lut, have.lut),
        ("ff", need.ff, have.ff),
        ("bram", need.bram18.div_ceil(2), have.bram18 / 2),
    ];
    parts.map(|(name, need, have)| format!("{name} {need} of {have}{}", if need > have { " (too many)" } else { "" })).join(", ")
}

fn too_large(folded: &Folded, machine: &Machine, budget: Resources, steps: &[u64], at: &dyn Fn(u64) -> Folded) -> Problems {
    let r = &folded.report;
    let message = format!("does not fit: at {:.1} frames a second it is estimated to take {}", r.fps, compare(&r.total, &budget));
    let help = match best(steps, at, machine, budget) {
        Some(near) => {
            let r = near.report;
            format!(
                "the nearest folding that fits makes {:.1} frames a second ({} cycles each) with {}",
                r.fps,
                r.interval,
                compare(&r.total, &budget)
            )
        }
        None => {
            "even with one lane everywhere it does not fit: take a larger part, a larger budget, fewer bits or a smaller model"
                .into()
        }
    };
    Problems(vec![Problem { at: format!("design '{}' on {}", r.design, r.machine), message, help }])
}

/// Actors that no folding makes fast enough.
fn too_slow(design: &Design, machine: &Machine, cycles: u64, clock: f64, fps: f64) -> Result<(), Problems> {
    let mut problems = vec![];
    for a in &design.actors {
        let fastest = options(design, machine, a).into_iter().map(|o| o.cycles).min().unwrap_or(0);
        if fastest > cycles {
            let most = 1e9 / (clock * fastest as f64);
            let message = format!("takes {fastest} cycles a frame in its fastest folding, {fps} frames a second leave {cycles}");
            let help = format!("ask for at most {most:.1} frames a second, or a faster clock");
            problems.push(Problem { at: format!("{} ({})", a.name, a.origin), message, help });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// A way to fold an actor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    /// Lanes of the inputs.
    simd: usize,
    /// Lanes of the outputs.
    pe: usize,
    cycles: u64,
    /// Products at once, then storage waste: what is made least.
    cost: u64,
}

fn divisors(n: usize) -> Vec<usize> {
    (1..=n).filter(|d| n % d == 0).collect()
}

/// Numbers of elements that lanes must divide: the channels of the streams, and what the kind adds.
fn unit(d: &Design, a: &Actor) -> usize {
    let c = |s: &Stream| s.shape[2];
    match &a.kind {
        Kind::Source(_) => c(d.output(a, 0)),
        Kind::Window(w) => c(d.input(a, 0)) / if d.actor(d.output(a, 0).to).kind.by_channel() { 1 } else { w.groups },
        Kind::Mvu(m) => m.cols,
        Kind::Depthwise(Depthwise { channels, .. }) => *channels,
        Kind::Pool(p) | Kind::GlobalPool(p) => p.channels,
        Kind::Softmax(s) => s.channels,
        Kind::Concat(c) => c.chunks.iter().fold(0, |g, &n| gcd(g, n)),
        Kind::Slice(s) => gcd(gcd(s.period, s.begin), s.count),
        Kind::Rearrange(r) => match r.loops.last() {
            Some(&(extent, 1)) => r.loops[..r.loops.len() - 1].iter().fold(gcd(extent, r.block), |g, l| gcd(g, l.1)),
            _ => 1,
        },
        Kind::Sink(_) | Kind::Pad(_) | Kind::Binary(_) | Kind::Requantise(_) | Kind::Lookup(_) | Kind::Fork | Kind::Width => {
            c(d.input(a, 0))
        }
    }
}

impl Kind {
    /// Takes windows channel by channel.
    fn by_channel(&self) -> bool {
        matches!(self, Kind::Depthwise(_) | Kind::Pool(_))
    }
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Source(_) => "source",
            Kind::Sink(_) => "sink",
            Kind::Pad(_) => "pad",
            Kind::Window(_) => "window",
            Kind::Mvu(_) => "mvu",
            Kind::Depthwise(_) => "depthwise",
            Kind::Pool(_) => "pool",
            Kind::GlobalPool(_) => "global-pool",
            Kind::Binary(Binary::Add { .. }) => "add",
            Kind::Binary(Binary::Mul { .. }) => "mul",
            Kind::Binary(Binary::Table { .. }) => "pairs",
            Kind::Requantise(_) => "requantise",
            Kind::Lookup(_) => "lookup",
            Kind::Softmax(_) => "softmax",
            Kind::Concat(_) => "concat",
            Kind::Slice(_) => "slice",
            Kind::Fork => "fork",
            Kind::Width => "width",
            Kind::Rearrange(_) => "rearrange",
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// All legal foldings of an actor.
fn options(d: &Design, machine: &Machine, a: &Actor) -> Vec<Choice> {
    let lanes = divisors(unit(d, a).max(1));
    let limit = machine.max_unroll;
    if let Kind::Mvu(m) = &a.kind {
        let before = d.actor(d.input(a, 0).from);
        // Behind a window the lanes are the window's.
        let lanes = if let Kind::Window(_) = before.kind { divisors(unit(d, before)) } else { lanes };
        let vectors = (d.input(a, 0).elements() / m.cols) as u64;
        return divisors(m.rows)
            .into_iter()
            .flat_map(|pe| lanes.iter().map(move |&simd| (pe, simd)))
            .filter(|&(pe, simd)| (pe * simd) as u64 <= limit)
            .map(|(pe, simd)| {
                let cycles = vectors * (m.rows / pe * (m.cols / simd)) as u64;
                // Lanes of results cost requantisation, too.
                Choice { simd, pe, cycles, cost: (pe * simd * 8 + pe * 8 + simd) as u64 }
            })
            .collect();
    }
    lanes
        .into_iter()
        .filter(|&l| l as u64 <= limit)
        .map(|l| {
            let (alone, actor) = alone(d, a, l);
            let cycles = estimate::cycles(&alone, &actor);
            Choice { simd: l, pe: l, cycles, cost: l as u64 }
        })
        .collect()
}

/// A design of one actor with `lanes` on its streams, to ask for its cycles.
fn alone(d: &Design, a: &Actor, lanes: usize) -> (Design, Actor) {
    let ids: Vec<StreamId> = a.inputs.iter().chain(&a.outputs).copied().collect();
    let streams = ids.iter().map(|&s| Stream { lanes, ..d.stream(s).clone() }).collect();
    let inputs = (0..a.inputs.len() as u32).map(StreamId).collect();
    let outputs = (a.inputs.len() as u32..ids.len() as u32).map(StreamId).collect();
    let mut kind = a.kind.clone_light();
    set_lanes(&mut kind, lanes);
    let actor = Actor { name: String::new(), origin: String::new(), kind, inputs, outputs };
    (Design { name: String::new(), actors: vec![], streams, inputs: vec![], outputs: vec![] }, actor)
}

impl Kind {
    /// Without tables and weights.
    fn clone_light(&self) -> Kind {
        match self {
            Kind::Depthwise(d) => {
                let (weights, bias) = (vec![], vec![]);
                let Depthwise { channels, taps, pe, weight, acc, .. } = *d;
                Kind::Depthwise(Depthwise { channels, taps, pe, weights, weight, bias, acc, requant: None })
            }
            Kind::Lookup(_) => Kind::Lookup(Lookup { table: vec![] }),
            Kind::Binary(_) => Kind::Binary(Binary::Table { table: vec![] }),
            other => other.clone(),
        }
    }
}

/// Distinct numbers of cycles that some folding of some actor takes, ascending; below the first nothing gets faster.
fn candidates(d: &Design, machine: &Machine) -> Vec<u64> {
    let all: Vec<Vec<u64>> = d.actors.iter().map(|a| options(d, machine, a).iter().map(|o| o.cycles).collect()).collect();
    let floor = all.iter().filter_map(|o| o.iter().min()).max().copied().unwrap_or(1);
    let mut steps: Vec<u64> = all.into_iter().flatten().filter(|&c| c >= floor).collect();
    steps.sort_unstable();
    steps.dedup();
    steps
}

/// The design folded so that each actor takes at most `cycles`, where it can.
fn apply(design: &Design, machine: &Machine, cycles: u64) -> Design {
    let mut d = design.clone();
    let count = d.actors.len();
    let mut chosen: Vec<Option<Choice>> = vec![None; count];
    let cheapest = |all: &[Choice]| {
        let fast = all.iter().filter(|o| o.cycles <= cycles).min_by_key(|o| (o.cost, o.cycles));
        fast.or_else(|| all.iter().min_by_key(|o| o.cycles)).copied()
    };
    let all: Vec<Vec<Choice>> = design.actors.iter().map(|a| options(design, machine, a)).collect();
    // First what computes, with the windows before it; the rest follows its neighbours.
    for (i, a) in design.actors.iter().enumerate() {
        let computes = matches!(a.kind, Kind::Mvu(_) | Kind::Depthwise(_) | Kind::Pool(_) | Kind::GlobalPool(_));
        if !computes {
            continue;
        }
        let before = design.input(a, 0).from;
        let mut mine = all[i].clone();
        if let Kind::Window(_) = design.actor(before).kind {
            let window = &all[before.index()];
            let needed = window.iter().filter(|w| w.cycles <= cycles).map(|w| w.pe).min().or(window.iter().map(|w| w.pe).max());
            mine.retain(|o| needed.is_none_or(|n| o.simd >= n));
            if mine.is_empty() {
                mine = all[i].clone();
            }
        }
        chosen[i] = cheapest(&mine);
        if let (Kind::Window(_), Some(c)) = (&design.actor(before).kind, chosen[i]) {
            let window = all[before.index()].iter().find(|w| w.pe == c.simd).copied();
            chosen[before.index()] = window;
        }
    }
    for i in (0..count).rev() {
        let a = &design.actors[i];
        if chosen[i].is_some() {
            continue;
        }
        let Some(least) = cheapest(&all[i]) else { continue };
        let after = a.outputs.iter().filter_map(|&s| chosen[design.stream(s).to.index()]).map(|c| c.simd);
        let before = a.inputs.iter().filter_map(|&s| chosen[design.stream(s).from.index()]).map(|c| c.pe);
        let wish = after
            .chain(before)
            .find_map(|l| all[i].iter().find(|o| o.pe == l && o.pe >= least.pe && o.cycles <= least.cycles.max(cycles)));
        chosen[i] = Some(wish.copied().unwrap_or(least));
    }
    for (i, a) in d.actors.iter_mut().enumerate() {
        let Some(c) = chosen[i] else { continue };
        if let Kind::Mvu(m) = &mut a.kind {
            (m.pe, m.simd) = (c.pe, c.simd);
        } else {
            set_lanes(&mut a.kind, c.pe);
        }
        if let Kind::Window(w) = &mut a.kind {
            let to = design.streams[a.outputs[0].index()].to;
            if design.actor(to).kind.by_channel() {
                w.groups = design.input(&design.actors[i], 0).shape[2] / c.pe;
            }
        }
    }
    widths(d, &chosen, cycles)
}

fn set_lanes(kind: &mut Kind, lanes: usize) {
    match kind {
        Kind::Depthwise(d) => d.pe = lanes,
        Kind::Pool(p) | Kind::GlobalPool(p) => p.pe = lanes,
        _ => {}
    }
}

/// Sets the lanes of all streams, with converters where they differ.
fn widths(d: Design, chosen: &[Option<Choice>], cycles: u64) -> Design {
    let lanes = |a: ActorId| chosen[a.index()];
    let old = d.clone();
    let mut out = Design { actors: vec![], streams: d.streams, ..d };
    let mut place = vec![0u32; old.actors.len()];
    for (i, a) in old.actors.iter().enumerate() {
        place[i] = out.actors.len() as u32;
        out.actors.push(a.clone());
        for &s in &a.outputs {
            let (from, to) = (old.stream(s).from, old.stream(s).to);
            let (w, r) = (lanes(from).map_or(1, |c| c.pe), lanes(to).map_or(1, |c| c.simd));
            let path = path(w, r, old.stream(s).elements(), cycles);
            out.streams[s.index()].lanes = w;
            let mut last = s;
            for (k, &n) in path.iter().enumerate() {
                let id = StreamId(out.streams.len() as u32);
                let name = format!("{}_w{k}", old.stream(s).name);
                out.streams.push(Stream { lanes: n, name: name.clone(), ..old.stream(s).clone() });
                let origin = a.origin.clone();
                out.actors.push(Actor {
                    name: format!("{name}_width"),
                    origin,
                    kind: Kind::Width,
                    inputs: vec![last],
                    outputs: vec![id],
                });
                last = id;
            }
        }
    }
    rewire(&mut out, &old, &place);
    out
}

/// Lanes on the way from `w` to `r`.
fn path(w: usize, r: usize, elements: usize, cycles: u64) -> Vec<usize> {
    if w == r {
        return vec![];
    }
    if w % r == 0 || r % w == 0 {
        return vec![r];
    }
    let narrow = gcd(w, r);
    // Over the common divisor, if that is fast enough; else over the common multiple.
    if (elements / narrow) as u64 <= cycles { vec![narrow, r] } else { vec![w / narrow * r, r] }
}

/// Readers and writers of all streams after converters were put in.
fn rewire(out: &mut Design, old: &Design, place: &[u32]) {
    // What an original actor read may now come from the last converter behind that stream.
    let mut end: Vec<StreamId> = (0..old.streams.len() as u32).map(StreamId).collect();
    for a in &out.actors {
        if let (Kind::Width, [from], [to]) = (&a.kind, &a.inputs[..], &a.outputs[..]) {
            let start = (0..end.len()).find(|&s| end[s] == *from);
            if let Some(s) = start {
                end[s] = *to;
            }
        }
    }
    for (i, a) in old.actors.iter().enumerate() {
        out.actors[place[i] as usize].inputs = a.inputs.iter().map(|s| end[s.index()]).collect();
    }
    for i in 0..out.actors.len() {
        let a = out.actors[i].clone();
        let id = ActorId(i as u32);
        a.inputs.iter().for_each(|s| out.streams[s.index()].to = id);
        a.outputs.iter().for_each(|s| out.streams[s.index()].from = id);
        match a.kind {
            Kind::Source(k) => out.inputs[k].stream = a.outputs.first().copied().unwrap_or(StreamId(u32::MAX)),
            Kind::Sink(k) => out.outputs[k].stream = a.inputs[0],
            _ => {}
        }
    }
}

/// FIFO depths and the report.
fn finished(mut design: Design, machine: &Machine, clock_ns: f64, budget: Resources) -> Folded {
    fifo::size(&mut design);
    let report = report(&design, machine, clock_ns, budget);
    Folded { design, report }
}

/// The report of a folded design.
pub fn report(d: &Design, machine: &Machine, clock_ns: f64, budget: Resources) -> Report {
    let layers: Vec<Layer> = d.actors.iter().map(|a| layer(d, machine, a)).collect();
    let fifos: Vec<Fifo> = d
        .streams
        .iter()
        .map(|s| Fifo { name: s.name.clone(), width: s.width(), depth: s.depth, bound: s.bound, resources: estimate::fifo(s) })
        .collect();
    let slowest = layers.iter().max_by_key(|l| l.cycles);
    let (interval, limiting) = slowest.map_or((0, String::new()), |l| (l.cycles, l.name.clone()));
    let total = layers.iter().map(|l| l.resources).chain(fifos.iter().map(|f| f.resources)).sum();
    let available = Resources { dsp: machine.dsp, lut: machine.lut, ff: machine.ff, bram18: 2 * machine.bram };
    let mut notes = vec!["estimates by formulas; no synthesis was run".to_owned()];
    for a in &d.actors {
        if let Kind::Softmax(Softmax { pair: None, channels, .. }) = &a.kind {
            notes.push(format!("{}: softmax over {channels} channels in fixed point, within one step of the real one", a.name));
        }
    }
    Report {
        design: d.name.clone(),
        machine: machine.name.clone(),
        part: machine.part.clone(),
        clock_ns,
        latency: path_latency(d) + interval,
        layers,
        fifos,
        total,
        available,
        budget,
        interval,
        limiting,
        fps: 1e9 / (clock_ns * interval.max(1) as f64),
        notes,
    }
}

fn layer(d: &Design, machine: &Machine, a: &Actor) -> Layer {
    let (pe, simd) = match &a.kind {
        Kind::Mvu(m) => (m.pe, m.simd),
        _ => (a.outputs.first().map_or(1, |&s| d.stream(s).lanes), a.inputs.first().map_or(1, |&s| d.stream(s).lanes)),
    };
    let requant = match &a.kind {
        Kind::Mvu(Mvu { requant: Some(r), .. }) | Kind::Depthwise(Depthwise { requant: Some(r), .. }) => r.form.name(),
        Kind::Pool(Pool { requant: Some(r), .. }) | Kind::GlobalPool(Pool { requant: Some(r), .. }) => r.form.name(),
        Kind::Requantise(r)
        | Kind::Binary(Binary::Add { requant: Some(r), .. })
        | Kind::Binary(Binary::Mul { requant: r, .. }) => r.form.name(),
        _ => "",
    };
    Layer {
        name: a.name.clone(),
        kind: a.kind.name(),
        origin: a.origin.clone(),
        pe,
        simd,
        macs: estimate::macs(d, a),
        cycles: estimate::cycles(d, a),
        requant,
        resources: estimate::actor(machine, d, a),
    }
}

/// Cycles until the last actor has what its first result needs, on the longest way.
fn path_latency(d: &Design) -> u64 {
    let mut at = vec![0u64; d.actors.len()];
    for (i, a) in d.actors.iter().enumerate() {
        let start = a.inputs.iter().map(|&s| at[d.stream(s).from.index()]).max().unwrap_or(0);
        let schedule = crate::schedule::Schedule::of(d, a);
        at[i] = start + schedule.fill() as u64 + estimate::latency(d, a);
    }
    at.into_iter().max().unwrap_or(0)
}
