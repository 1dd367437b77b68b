//! `infc compile --target fpga-hls`: a model as a streaming design in HLS C++.

use super::compile::{self, How};
use super::compress::READ_PB;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use clap::ValueEnum;
use infc::fpga::{self, Made, Options};
use infc::native;
use infc_c::hls::Io;
use infc_compress::Data;
use infc_ir::Tensor;
use infc_stream::fixed::Selection;
use infc_stream::{Goal, InputFormat, Machine};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the target.
pub const TARGET: &str = "fpga-hls";

/// The part where none is named.
const PART: &str = "xc7z020";

/// What is asked of a streaming design.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "With --target fpga-hls")]
pub struct Streaming {
    /// The part: a name of `infc targets` or a file [default: xc7z020]
    #[arg(long, value_name = "PART|FILE.toml")]
    machine: Option<String>,
    /// Clock period [default: the part's]
    #[arg(long, value_name = "NS")]
    clock_ns: Option<f64>,
    /// Frames a second to reach with as little hardware as that takes [default: as many as fit]
    #[arg(long, value_name = "N", conflicts_with = "budget")]
    target_fps: Option<f64>,
    /// The most that the design may take: dsp=80,lut=30000,bram=100 [default: the part's share]
    #[arg(long, value_name = "RESOURCE=N,..", value_parser = budget)]
    budget: Option<Goal>,
    /// How inputs and outputs enter: one beat a cycle, or all elements at once [default: stream]
    #[arg(long, value_enum)]
    io: Option<IoKind>,
    /// Inputs for golden vectors, and to choose fixed-point formats of a float model: a folder in ONNX's test layout or of .npy files, or an .npz file
    #[arg(long, value_name = "DIR|FILE.npz")]
    data: Option<PathBuf>,
    /// Frames of golden vectors; made up at random beyond the data [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    vectors: Option<u32>,
    /// Format of an input that the model does not quantise itself: x=u8*0.0039 are unsigned integers of 8 bits, each step 0.0039
    #[arg(long, value_name = "NAME=FORMAT", value_parser = input_format)]
    input_format: Vec<(String, InputFormat)>,
    /// Bits of tensors where formats are chosen for a float model, 2 to 8 [default: 8]
    #[arg(long, value_name = "N")]
    bits: Option<u32>,
    /// Bits of weights where formats are chosen [default: --bits]
    #[arg(long, value_name = "N")]
    weight_bits: Option<u32>,
    /// Least and greatest element of a float model's input, where no data tells: x=-1..1
    #[arg(long, value_name = "NAME=LOW..HIGH", value_parser = range, allow_hyphen_values = true)]
    range: Vec<(String, [f64; 2])>,
    /// Every scale must be a power of two, so that no requantisation multiplies
    #[arg(long)]
    power_of_two: bool,
}

/// `--io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IoKind {
    /// Streams of beats.
    Stream,
    /// Arrays with all elements at once.
    Parallel,
}

/// `dsp=80,lut=30000,bram=100`.
fn budget(text: &str) -> std::result::Result<Goal, String> {
    let mut goal = Goal::default();
    for part in text.split(',') {
        let (name, value) = part.split_once('=').ok_or("write dsp=N, lut=N and bram=N with commas between")?;
        let value = value.trim().parse().map_err(|_| format!("'{value}' is no number of {name}"))?;
        let place = match name.trim() {
            "dsp" => &mut goal.dsp,
            "lut" => &mut goal.lut,
            "bram" => &mut goal.bram,
            other => return Err(format!("'{other}' is no resource; they are dsp, lut and bram")),
        };
        if place.replace(value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    Ok(goal)
}

/// `x=u8*0.0039`.
fn input_format(text: &str) -> std::result::Result<(String, InputFormat), String> {
    const HELP: &str = "write NAME=u8*0.0039 or NAME=s8*0.0078: sign, bits, and what one step is";
    let (name, format) = text.rsplit_once('=').ok_or(HELP)?;
    let (kind, scale) = format.split_once('*').ok_or(HELP)?;
    let signed = match kind.get(..1) {
        Some("s") => true,
        Some("u") => false,
        _ => return Err(HELP.to_owned()),
    };
    let bits = kind[1..].parse().ok().filter(|b| (2..=8).contains(b)).ok_or("inputs have 2 to 8 bits")?;
    let scale = scale.parse().ok().filter(|s: &f32| *s > 0.0 && s.is_finite()).ok_or_else(|| format!("'{scale}' is no step"))?;
    Ok((name.to_owned(), InputFormat { signed, bits, scale }))
}

/// `x=-1..1`.
fn range(text: &str) -> std::result::Result<(String, [f64; 2]), String> {
    const HELP: &str = "write NAME=LOW..HIGH, for example x=-1..1";
    let (name, range) = text.rsplit_once('=').ok_or(HELP)?;
    let (low, high) = range.split_once("..").ok_or(HELP)?;
    let number = |t: &str| t.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| format!("'{t}' is no number; {HELP}"));
    let range = [number(low)?, number(high)?];
    if range[0] < range[1] { Ok((name.to_owned(), range)) } else { Err(format!("{low} is not less than {high}")) }
}

impl Streaming {
    /// The first option that is only for this target.
    pub fn given(&self) -> Option<&'static str> {
        let list = [
            ("--machine", self.machine.is_some()),
            ("--clock-ns", self.clock_ns.is_some()),
            ("--target-fps", self.target_fps.is_some()),
            ("--budget", self.budget.is_some()),
            ("--io", self.io.is_some()),
            ("--data", self.data.is_some()),
            ("--vectors", self.vectors.is_some()),
            ("--input-format", !self.input_format.is_empty()),
            ("--bits", self.bits.is_some()),
            ("--weight-bits", self.weight_bits.is_some()),
            ("--range", !self.range.is_empty()),
            ("--power-of-two", self.power_of_two),
        ];
        list.iter().find(|o| o.1).map(|o| o.0)
    }

    fn options(&self, how: &How) -> Result<Options> {
        let (dims, bounds) = how.given_dims();
        if let Some((name, most)) = bounds.first() {
            let help = format!("give it a size: --dim {name}={most}");
            return Err(Failure::usage(format!("--dim '{name}<={most}': hardware has fixed sizes"), help));
        }
        let machine = Machine::find(self.machine.as_deref().unwrap_or(PART));
        let machine = machine.map_err(|problems| Failure { exit: Exit::Usage, problems })?;
        let goal = Goal { clock_ns: self.clock_ns, target_fps: self.target_fps, ..self.budget.clone().unwrap_or_default() };
        let stream = infc_stream::Options { dims, inputs: self.input_format.clone(), power_of_two: self.power_of_two };
        let io = if self.io == Some(IoKind::Parallel) { Io::Parallel } else { Io::Stream };
        let asked = self.bits.is_some() || self.weight_bits.is_some() || !self.range.is_empty();
        let bits = self.bits.unwrap_or(8);
        let weight_bits = self.weight_bits.unwrap_or(bits);
        let selection = asked.then(|| Selection { bits, weight_bits, ranges: self.range.clone(), ..Selection::default() });
        Ok(Options { selection, machine, goal, io, stream, vectors: self.vectors.unwrap_or(8) as usize })
    }
}

/// Runs it.
pub fn run(args: &Streaming, model: &Path, how: &How, output: Option<&Path>, json: bool) -> Result {
    let options = args.options(how)?;
    let stem = native::identifier(&model.file_stem().unwrap_or_default().to_string_lossy()).to_lowercase();
    let folder = output.map_or_else(|| PathBuf::from(format!("{stem}_hls")), Path::to_owned);
    if folder.is_file() {
        return Err(Failure::io(&folder, &std::io::ErrorKind::NotADirectory.into()));
    }
    let graph = compile::import(model)?;
    let data = match &args.data {
        Some(path) if !path.exists() => return Err(Failure::io(path, &std::io::ErrorKind::NotFound.into())),
        Some(path) => samples(&Data::read(path, &graph, READ_PB)?, options.vectors.max(fpga::CALIBRATION))?,
        None => vec![],
    };
    let spinner = term::spinner(format!("compiling {}", model.display()));
    let made = fpga::make(graph, &options, &stem, &data)?;
    drop(spinner);
    let mut files = vec![];
    for f in &made.files {
        files.push((folder.join(&f.path), f.bytes.clone(), 0o644));
    }
    for inner in [folder.clone(), folder.join("data")] {
        fs::create_dir_all(&inner).map_err(|e| Failure::io(&inner, &e))?;
    }
    compile::write_files(&files)?;
    report(&made, &folder, json);
    Ok(Exit::Ok)
}

fn samples(data: &Data, most: usize) -> Result<Vec<Vec<Tensor>>> {
    Ok((0..data.len().min(most)).map(|i| data.sample(i).map(|s| s.inputs)).collect::<std::result::Result<_, _>>()?)
}

/// Says what was made.
fn report(made: &Made, folder: &Path, json: bool) {
    let r = &made.folded.report;
    let time: Duration = made.times.stages.iter().map(|s| s.1).sum();
    if json {
        say!(
            "{}",
            serde_json::json!({
                "output": folder, "target": TARGET, "machine": r.machine, "files": made.files.len(), "actors": r.layers.len(),
                "interval": r.interval, "latency": r.latency, "fps": r.fps, "limiting": r.limiting, "resources": r.total,
                "compile_ms": time.as_secs_f64() * 1e3, "notes": r.notes,
            })
        );
        return;
    }
    say!(
        "{}: {} actors for {} in {}: {:.0} frames a second at {} ns ({} cycles each, {} limits)",
        folder.display(),
        r.layers.len(),
        r.machine,
        term::time(time),
        r.fps,
        r.clock_ns,
        r.interval,
        r.limiting
    );
    let share = |name: &str, used: u64, all: u64| format!("{name} {used} of {all}");
    say!(
        "estimated, before any synthesis: {}, {}, {}, {}",
        share("DSP", r.total.dsp, r.available.dsp),
        share("LUT", r.total.lut, r.available.lut),
        share("FF", r.total.ff, r.available.ff),
        share("BRAM18", r.total.bram18, r.available.bram18)
    );
    r.notes.iter().for_each(|n| say!("note: {n}"));
    say!("simulate it: make -C {}; the report: {}", folder.display(), folder.join("report.html").display());
}
