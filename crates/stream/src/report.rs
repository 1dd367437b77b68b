//! What a folded design costs and how fast it is: estimates, made before any synthesis.

use serde::Serialize;

/// Estimated hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Multiplier blocks.
    pub dsp: u64,
    /// Look-up tables.
    pub lut: u64,
    /// Flip-flops.
    pub ff: u64,
    /// Block memories of 36 Kbit, in halves: 1 is one of 18 Kbit.
    pub bram18: u64,
}

impl std::ops::Add for Resources {
    type Output = Resources;
    fn add(self, o: Resources) -> Resources {
        Resources { dsp: self.dsp + o.dsp, lut: self.lut + o.lut, ff: self.ff + o.ff, bram18: self.bram18 + o.bram18 }
    }
}

impl std::iter::Sum for Resources {
    fn sum<I: Iterator<Item = Resources>>(items: I) -> Resources {
        items.fold(Resources::default(), |a, b| a + b)
    }
}

/// One actor in the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Name of the actor.
    pub name: String,
    /// Kind of the actor, in lower case: `mvu`.
    pub kind: &'static str,
    /// The nodes of the model it stands for.
    pub origin: String,
    /// Output elements at once.
    pub pe: usize,
    /// Products of one output element at once, or lanes.
    pub simd: usize,
    /// Multiplications and additions of a frame.
    pub macs: u64,
    /// Cycles of a frame: the actor's own initiation interval.
    pub cycles: u64,
    /// How requantisation is done: `multiply-shift`, `thresholds`, or empty.
    pub requant: &'static str,
    /// Estimated hardware, without FIFOs.
    pub resources: Resources,
}

/// One FIFO in the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fifo {
    /// Name of the stream.
    pub name: String,
    /// Bits of a beat.
    pub width: usize,
    /// Beats.
    pub depth: usize,
    /// The fewest beats that cannot deadlock.
    pub bound: usize,
    /// Estimated hardware.
    pub resources: Resources,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the design.
    pub design: String,
    /// Name of the machine.
    pub machine: String,
    /// The vendor's part name.
    pub part: String,
    /// Clock period in ns.
    pub clock_ns: f64,
    /// Actors in order.
    pub layers: Vec<Layer>,
    /// FIFOs in order.
    pub fifos: Vec<Fifo>,
    /// All together.
    pub total: Resources,
    /// What the machine has.
    pub available: Resources,
    /// What the design was allowed to take.
    pub budget: Resources,
    /// Cycles between frames: those of the slowest actor.
    pub interval: u64,
    /// The actor that limits it.
    pub limiting: String,
    /// Cycles from the first input beat to the last output beat of one frame, estimated.
    pub latency: u64,
    /// Frames a second.
    pub fps: f64,
    /// What a reader must know: estimates only, which softmax is not proven equal, and the like.
    pub notes: Vec<String>,
}
