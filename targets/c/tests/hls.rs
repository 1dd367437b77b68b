//! HLS C++ by g++: bit by bit the golden model, with and without limited FIFOs and random stalls.

use infc_c::hls::{self, File, Io, Options, Vectors};
use infc_stream::design::*;
use infc_stream::{Machine, Report, golden};
use std::path::Path;
use std::process::Command;

/// Seeded numbers.
pub struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn within(&mut self, least: i64, most: i64) -> i64 {
        let span = (i128::from(most) - i128::from(least) + 1) as u128;
        (i128::from(least) + (u128::from(self.draw()) % span) as i128) as i64
    }
}

/// Frames of random integers and what the golden model makes of them.
fn vectors(design: &Design, frames: usize, seed: u64) -> Vectors {
    let mut random = Random(seed | 1);
    let frame = |p: &Port, random: &mut Random| {
        let n = design.stream(p.stream).elements();
        (0..n).map(|_| random.within(p.limits[0], p.limits[1])).collect::<Vec<i64>>()
    };
    let inputs: Vec<Vec<Vec<i64>>> = (0..frames).map(|_| design.inputs.iter().map(|p| frame(p, &mut random)).collect()).collect();
    let outputs = inputs.iter().map(|f| golden::run(design, f)).collect();
    Vectors { inputs, outputs }
}

fn blank_report(design: &Design) -> Report {
    Report {
        design: design.name.clone(),
        machine: String::new(),
        part: String::new(),
        clock_ns: 5.0,
        layers: vec![],
        fifos: vec![],
        total: Default::default(),
        available: Default::default(),
        budget: Default::default(),
        interval: 1,
        limiting: String::new(),
        latency: 1,
        fps: 1.0,
        notes: vec![],
    }
}

fn write(folder: &Path, files: &[File]) {
    for f in files {
        let path = folder.join(&f.path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        std::fs::write(path, &f.bytes).expect("writable");
    }
}

/// Prints, compiles without a warning and runs a design; what the testbench says.
#[track_caller]
fn simulate(design: &Design, io: Io, frames: usize) -> String {
    simulated(design, io, &vectors(design, frames, 7), "-O1 -Werror")
}

#[track_caller]
fn simulated(design: &Design, io: Io, vectors: &Vectors, flags: &str) -> String {
    let machine = Machine::find("vu9p").expect("built in");
    let options = Options { io, clock_ns: 5.0, machine: &machine };
    let files = hls::project(design, &blank_report(design), &options, vectors).unwrap_or_else(|p| panic!("{p}"));
    let folder = tempfile::Builder::new().prefix("infc-hls-").tempdir().expect("a folder");
    write(folder.path(), &files);
    let flags = match std::env::var("INFC_AP_TYPES") {
        // The vendor's headers, which are not free of warnings.
        Ok(folder) => format!("-O1 -w -DINFC_VENDOR_TYPES -I{folder}"),
        Err(_) => flags.to_owned(),
    };
    let make = Command::new("make").env("CXXFLAGS", flags).arg("testbench").current_dir(folder.path()).output().expect("make");
    assert!(make.status.success(), "{}", String::from_utf8_lossy(&make.stderr));
    let run = Command::new("./testbench").current_dir(folder.path()).output().expect("it starts");
    String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned()
}

/// A design made by hand.
struct Net(Design);

type Shape = ([usize; 3], Format, usize);

impl Net {
    fn new(name: &str) -> Net {
        Net(Design { name: name.into(), actors: vec![], streams: vec![], inputs: vec![], outputs: vec![] })
    }
    /// Adds an actor; the streams that it makes hold a whole frame if they may wait for another branch.
    fn add(&mut self, name: &str, kind: Kind, inputs: &[StreamId], outs: &[Shape]) -> Vec<StreamId> {
        let id = ActorId(self.0.actors.len() as u32);
        inputs.iter().for_each(|s| self.0.streams[s.index()].to = id);
        let mut outputs = vec![];
        for (k, &(shape, format, lanes)) in outs.iter().enumerate() {
            outputs.push(StreamId(self.0.streams.len() as u32));
            let name = format!("s_{name}_{k}");
            let depth = if outs.len() > 1 { shape.iter().product::<usize>() / lanes } else { 2 };
            self.0.streams.push(Stream { name, format, lanes, shape, scale: None, zero: 0, from: id, to: id, depth, bound: 1 });
        }
        self.0.actors.push(Actor {
            name: name.into(),
            origin: name.into(),
            kind,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
        });
        outputs
    }
    fn one(&mut self, name: &str, kind: Kind, inputs: &[StreamId], out: Shape) -> StreamId {
        self.add(name, kind, inputs, &[out])[0]
    }
    fn port(&self, name: &str, stream: StreamId) -> Port {
        let s = self.0.stream(stream);
        let n = s.elements();
        let limits = [s.format.min(), s.format.max()];
        let dtype = if s.format.signed { infc_ir::DType::I8 } else { infc_ir::DType::U8 };
        Port { name: name.into(), dims: vec![n], dtype, stream, order: vec![(n, 1)], scale: None, zero: 0, limits }
    }
    fn source(&mut self, out: Shape) -> StreamId {
        let n = self.0.inputs.len();
        let s = self.one(&format!("source{n}"), Kind::Source(n), &[], out);
        let port = self.port(&format!("x{n}"), s);
        self.0.inputs.push(port);
        s
    }
    fn sink(&mut self, s: StreamId) {
        let n = self.0.outputs.len();
        self.add(&format!("sink{n}"), Kind::Sink(n), &[s], &[]);
        let port = self.port(&format!("y{n}"), s);
        self.0.outputs.push(port);
    }
}

const U8: Format = Format { signed: false, bits: 8 };
const S8: Format = Format { signed: true, bits: 8 };
const fn signed(bits: u32) -> Format {
    Format { signed: true, bits }
}

/// Multiplications, by channel.
fn scaled(r: &mut Random, channels: usize, out: Format, acc: Format, half_even: bool) -> Option<Requant> {
    let shift = 12;
    let mul: Vec<i64> = (0..channels).map(|_| r.within(20, 400)).collect();
    let add = (0..channels)
        .map(|_| if half_even { r.within(-3, 9) } else { (r.within(-3, 9) << shift) + (1 << (shift - 1)) })
        .collect();
    let form = RequantForm::MultiplyShift { mul, add, shift, wide: signed(acc.bits + 12), half_even };
    Some(Requant { out, min: out.min(), max: out.max() - 1, form, law: None, range: vec![[acc.min(), acc.max()]] })
}

/// Roundings of floats, by channel.
fn rounded(r: &mut Random, channels: usize, out: Format, acc: Format) -> Option<Requant> {
    let mul = (0..channels).map(|_| r.within(1 << 20, (1 << 24) - 1)).collect();
    let shift = (0..channels).map(|_| r.within(26, 31) as u32).collect();
    let form = RequantForm::Float { mul, shift, add: -3, wide: signed(acc.bits + 25) };
    Some(Requant { out, min: out.min(), max: out.max(), form, law: None, range: vec![[acc.min(), acc.max()]] })
}

/// Thresholds, by channel.
fn thresholds(r: &mut Random, channels: usize, out: Format, acc: Format) -> Option<Requant> {
    let list = |r: &mut Random| {
        let mut v: Vec<i64> = (0..out.max() - out.min()).map(|_| r.within(-3000, 3000)).collect();
        v.sort_unstable();
        v
    };
    let form = RequantForm::Thresholds((0..channels).map(|_| list(r)).collect());
    Some(Requant { out, min: out.min(), max: out.max(), form, law: None, range: vec![[acc.min(), acc.max()]] })
}

fn mvu(r: &mut Random, [groups, rows, cols]: [usize; 3], pe: usize, simd: usize, requant: Option<Requant>) -> Kind {
    let weights = (0..groups * rows * cols).map(|_| r.within(-8, 7) as i32).collect();
    let bias = (0..groups * rows).map(|_| r.within(-900, 900)).collect();
    Kind::Mvu(Mvu { groups, rows, cols, pe, simd, weights, weight: signed(4), bias, acc: signed(20), requant })
}

/// Every kind of actor in one design: branches that meet again, folds, lanes that differ.
fn zoo(seed: u64) -> Design {
    let r = &mut Random(seed | 1);
    let mut n = Net::new("zoo");
    let acc = signed(20);
    let x = n.source(([6, 5, 4], U8, 2));
    let x = n.add("fork", Kind::Fork, &[x], &[([6, 5, 4], U8, 2); 2]);
    let padded =
        |n: &mut Net, name: &str, x| n.one(name, Kind::Pad(Pad { border: [1, 1, 1, 1], value: 3 }), &[x], ([8, 7, 4], U8, 2));
    // A convolution, dilated, in two steps of rows.
    let a = padded(&mut n, "pad_a", x[0]);
    let window = |stride, groups, dilation| Window { kernel: [3, 3], stride, dilation, groups, rows: 4 };
    let a = n.one("window_a", Kind::Window(window([1, 1], 1, [1, 1])), &[a], ([6, 5, 36], U8, 2));
    let q = scaled(r, 6, S8, acc, true);
    let a = n.one("mvu_a", mvu(r, [1, 6, 36], 3, 2, q), &[a], ([6, 5, 6], S8, 3));
    // Depthwise, then pointwise in two groups.
    let b = padded(&mut n, "pad_b", x[1]);
    let b = n.one("window_b", Kind::Window(window([1, 1], 2, [1, 1])), &[b], ([6, 5, 36], U8, 2));
    let weights = (0..36).map(|_| r.within(-8, 7) as i32).collect();
    let bias = (0..4).map(|_| r.within(-99, 99)).collect();
    let requant = rounded(r, 4, S8, acc);
    let depthwise = Depthwise { channels: 4, taps: 9, pe: 2, weights, weight: signed(4), bias, acc, requant };
    let b = n.one("depthwise", Kind::Depthwise(depthwise), &[b], ([6, 5, 4], S8, 2));
    let q = thresholds(r, 6, signed(4), acc);
    let b = n.one("mvu_b", mvu(r, [2, 3, 2], 3, 2, q), &[b], ([6, 5, 6], signed(4), 3));
    let requant = scaled(r, 1, S8, acc, false);
    let add = Binary::Add { a_mul: 300, b_mul: -170, offset: 55, acc, requant };
    let y = n.one("add", Kind::Binary(add), &[a, b], ([6, 5, 6], S8, 3));
    // One copy through a table, the other times itself, and both side by side.
    let y = n.add("fork_y", Kind::Fork, &[y], &[([6, 5, 6], S8, 3); 3]);
    let table = (0..256).map(|_| r.within(-128, 127)).collect();
    let t = n.one("lookup", Kind::Lookup(Lookup { table }), &[y[0]], ([6, 5, 6], S8, 3));
    let requant = scaled(r, 6, S8, acc, true).expect("one");
    let times = Binary::Mul { a_zero: 3, b_zero: -7, acc, requant };
    let m = n.one("times", Kind::Binary(times), &[y[1], y[2]], ([6, 5, 6], S8, 3));
    let concat = Concat { repeats: 30, chunks: vec![6, 6] };
    let y = n.one("concat", Kind::Concat(concat), &[t, m], ([6, 5, 12], S8, 3));
    let y = n.one("slice", Kind::Slice(Slice { period: 12, begin: 3, count: 6 }), &[y], ([6, 5, 6], S8, 3));
    // Channels first and back, by blocks of a row.
    let y = n.one("narrow", Kind::Width, &[y], ([6, 5, 6], S8, 1));
    let rows = Rearrange { block: 30, loops: vec![(6, 1), (5, 6)] };
    let y = n.one("transpose", Kind::Rearrange(rows), &[y], ([6, 6, 5], S8, 1));
    let y = n.one("wide", Kind::Width, &[y], ([6, 6, 5], S8, 5));
    let twice = Rearrange { block: 30, loops: vec![(2, 0), (6, 5), (5, 1)] };
    let y = n.one("resize", Kind::Rearrange(twice), &[y], ([12, 6, 5], S8, 5));
    // Pools: rows that no window needs are left over.
    let pool = Window { kernel: [2, 2], stride: [3, 2], dilation: [2, 1], groups: 1, rows: 6 };
    let y = n.one("window_p", Kind::Window(pool), &[y], ([4, 3, 20], S8, 5));
    let most = Pool { op: PoolOp::Max, channels: 5, taps: 4, pe: 5, bias: 0, acc: S8, requant: None };
    let y = n.one("maxpool", Kind::Pool(most), &[y], ([4, 3, 5], S8, 5));
    let requant = scaled(r, 5, S8, acc, false);
    let mean = Pool { op: PoolOp::Sum, channels: 5, taps: 12, pe: 5, bias: -40, acc, requant };
    let y = n.one("mean", Kind::GlobalPool(mean), &[y], ([1, 1, 5], S8, 5));
    let y = n.add("fork_z", Kind::Fork, &[y], &[([1, 1, 5], S8, 5); 2]);
    let z = n.one("mvu_z", mvu(r, [1, 2, 5], 1, 5, None), &[y[0]], ([1, 1, 2], signed(20), 1));
    let z = n.one("requant", Kind::Requantise(rounded(r, 2, signed(5), acc).expect("one")), &[z], ([1, 1, 2], signed(5), 1));
    let pair =
        Softmax { channels: 2, exp: vec![], gain: 0, zero: 0, min: 0, max: 255, pair: Some((0..63).map(|i| i * 4).collect()) };
    let z = n.one("pair", Kind::Softmax(pair), &[z], ([1, 1, 2], U8, 1));
    n.sink(z);
    let exp = (0..256).map(|d| ((f64::from(d) * -0.05).exp() * f64::from((1 << 18) - 1)).round() as i64).collect();
    let softmax = Softmax { channels: 5, exp, gain: 256, zero: 0, min: 0, max: 255, pair: None };
    let y = n.one("softmax", Kind::Softmax(softmax), &[y[1]], ([1, 1, 5], U8, 5));
    n.sink(y);
    // An input of its own, and a table of pairs.
    let u = n.source(([1, 3, 2], signed(3), 2));
    let v = n.source(([1, 3, 2], Format { signed: false, bits: 2 }, 2));
    let table = (0..32).map(|_| r.within(-128, 127)).collect();
    let w = n.one("pairs", Kind::Binary(Binary::Table { table }), &[u, v], ([1, 3, 2], S8, 2));
    n.sink(w);
    n.0
}

#[test]
fn every_kind_of_actor_is_the_golden_model() {
    for (seed, io) in [(11, Io::Stream), (12, Io::Parallel)] {
        let how = if std::env::var("INFC_AP_TYPES").is_ok() { "" } else { ", without limits and with FIFOs and random stalls" };
        assert_eq!(simulate(&zoo(seed), io, 100), format!("ok: 100 frames{how}\n"));
    }
}

/// A convolution and, beside it, what it is added to.
fn residual(skip: usize) -> Design {
    let r = &mut Random(5);
    let mut n = Net::new("residual");
    let x = n.source(([8, 6, 2], U8, 2));
    let x = n.add("fork", Kind::Fork, &[x], &[([8, 6, 2], U8, 2); 2]);
    n.0.streams[x[1].index()].depth = skip;
    let y = n.one("pad", Kind::Pad(Pad { border: [1; 4], value: 0 }), &[x[0]], ([10, 8, 2], U8, 2));
    let window = Window { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], groups: 1, rows: 4 };
    let y = n.one("window", Kind::Window(window), &[y], ([8, 6, 18], U8, 2));
    let q = scaled(r, 2, S8, signed(20), false);
    let y = n.one("mvu", mvu(r, [1, 2, 18], 2, 2, q), &[y], ([8, 6, 2], S8, 2));
    let add = Binary::Add { a_mul: 1, b_mul: 1, offset: 0, acc: signed(20), requant: scaled(r, 1, S8, signed(20), false) };
    let y = n.one("add", Kind::Binary(add), &[y, x[1]], ([8, 6, 2], S8, 2));
    n.sink(y);
    n.0
}

#[test]
fn wrong_results_and_short_fifos_are_told() {
    let mut design = residual(30);
    let mut golden = vectors(&design, 3, 7);
    assert!(simulated(&design, Io::Stream, &golden, "-O1").contains("ok: 3 frames"));
    golden.outputs[1][0][5] += 1;
    let text = simulated(&design, Io::Stream, &golden, "-O1");
    assert!(text.contains("frame 1, output_y0[5]") && text.contains("wrong: 2 elements"), "{text}");
    golden.outputs[1][0][5] -= 1;
    // The first sum needs the first window, whose last beat comes after two rows and more.
    design = residual(6);
    let text = simulated(&design, Io::Stream, &golden, "-O1");
    assert!(text.contains("fork waits for room in 's_fork_1'") && text.contains("add waits for data in 's_mvu_0'"), "{text}");
}
