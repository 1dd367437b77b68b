//! What was measured: a line for people, JSON, and the page `docs/performance.md`.

use std::fmt;
use std::time::Duration;

/// An engine's times.
pub struct Engine {
    /// Its name.
    pub name: &'static str,
    /// From the file to ready.
    pub load: Duration,
    /// The first run.
    pub first: Duration,
    /// Steady runs, sorted.
    pub times: Vec<Duration>,
    /// Its outputs are not those of infc and ONNX Runtime.
    pub wrong: bool,
}

impl Engine {
    /// The median as text, if it is one of the right outputs.
    fn cell(&self) -> String {
        if self.wrong { "wrong".to_owned() } else { short(self.median()) }
    }

    /// The median of the steady runs.
    pub fn median(&self) -> Duration {
        self.times[self.times.len() / 2]
    }
}

/// A model's figures; the first engine is infc.
pub struct Row {
    /// The model's name.
    pub name: String,
    /// Time of the compiler.
    pub compile: Duration,
    /// Bytes of the artifact.
    pub size: u64,
    /// Bytes of its code.
    pub code: u64,
    /// Unique kernels.
    pub kernels: usize,
    /// Largest difference to ONNX Runtime's outputs.
    pub difference: f64,
    /// infc and its peers.
    pub engines: Vec<Engine>,
    /// Runs a second of several sessions side by side, for each engine.
    pub sessions: Vec<(&'static str, f64)>,
    /// From the start of a process to its end with the first output, less the steady median.
    pub cold: Option<Duration>,
    /// With products in bf16.
    pub bf16: Option<Short>,
    /// With convolutions by minimal filtering.
    pub filtered: Option<Filtered>,
}

/// infc with convolutions by minimal filtering, beside its peers.
pub struct Filtered {
    /// Medians of steady runs, infc first.
    pub medians: Vec<Duration>,
    /// Signal-to-noise ratio against plain sums in f32, in dB.
    pub sqnr: f64,
    /// Bytes of the artifact.
    pub size: u64,
}

impl Filtered {
    /// infc's median by that of the best peer with the right outputs; `engines` are those of the row.
    fn ratio(&self, engines: &[Engine]) -> f64 {
        let peers = self.medians.iter().zip(engines).skip(1).filter(|(_, e)| !e.wrong);
        let best = peers.map(|(t, _)| *t).min().unwrap_or_default();
        self.medians[0].as_secs_f64() / best.as_secs_f64()
    }
}

/// infc with products in bf16, and OpenVINO as it runs by itself.
pub struct Short {
    /// Medians of steady runs.
    pub medians: [Duration; 2],
    /// Signal-to-noise ratios against f32, in dB.
    pub sqnr: [f64; 2],
}

impl Short {
    fn ratio(&self) -> f64 {
        self.medians[0].as_secs_f64() / self.medians[1].as_secs_f64()
    }
}

impl Row {
    /// infc's median by the best peer's.
    fn ratio(&self) -> f64 {
        let best = self.engines[1..].iter().filter(|e| !e.wrong).map(Engine::median).min().unwrap_or_default();
        self.engines[0].median().as_secs_f64() / best.as_secs_f64()
    }
}

fn rate(r: f64) -> String {
    if r < 100.0 { format!("{r:.1}") } else { format!("{r:.0}") }
}

fn ms(t: Duration) -> f64 {
    t.as_secs_f64() * 1e3
}

fn short(t: Duration) -> String {
    match ms(t) {
        t if t < 0.1 => format!("{t:.4}"),
        t if t < 10.0 => format!("{t:.2}"),
        t => format!("{t:.1}"),
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:20} {:.2} of the best peer:", self.name, self.ratio())?;
        for e in &self.engines {
            write!(f, "  {} {} ms", e.name, e.cell())?;
        }
        let (compile, difference) = (self.compile.as_secs_f64(), self.difference);
        write!(f, "  (compiled in {compile:.1} s, difference {difference:.1e}")?;
        if let Some(cold) = self.cold {
            write!(f, ", cold start {} ms", short(cold))?;
        }
        if let Some(s) = &self.bf16 {
            write!(f, ", in bf16 {:.2}: {} and {} ms", s.ratio(), short(s.medians[0]), short(s.medians[1]))?;
        }
        if let Some(s) = &self.filtered {
            write!(f, ", by minimal filtering {:.2}: {} ms, {:.0} dB", s.ratio(&self.engines), short(s.medians[0]), s.sqnr)?;
        }
        write!(f, ")")
    }
}

/// All figures.
pub fn json(rows: &[Row], threads: usize) -> serde_json::Value {
    let engine = |e: &Engine| {
        serde_json::json!({
            "name": e.name, "load_ms": ms(e.load), "first_ms": ms(e.first), "min_ms": ms(e.times[0]), "median_ms": ms(e.median()),
            "p99_ms": ms(e.times[(e.times.len() - 1) * 99 / 100]), "runs": e.times.len(), "wrong": e.wrong,
        })
    };
    let row = |r: &Row| {
        serde_json::json!({
            "model": r.name, "ratio": r.ratio(), "compile_ms": ms(r.compile), "artifact_bytes": r.size, "code_bytes": r.code,
            "kernels": r.kernels, "difference": r.difference, "cold_ms": r.cold.map(ms),
            "sessions_per_second": r.sessions.iter().map(|(n, v)| (n.to_string(), (*v).into())).collect::<serde_json::Map<_, _>>(),
            "bf16": r.bf16.as_ref().map(|s| serde_json::json!({
                "ratio": s.ratio(), "median_ms": s.medians.map(ms), "sqnr_db": s.sqnr.map(|x| x.is_finite().then_some(x)),
            })),
            "filtered": r.filtered.as_ref().map(|s| serde_json::json!({
                "ratio": s.ratio(&r.engines), "median_ms": s.medians.iter().copied().map(ms).collect::<Vec<_>>(), "sqnr_db": s.sqnr, "artifact_bytes": s.size,
            })),
            "engines": r.engines.iter().map(engine).collect::<Vec<_>>(),
        })
    };
    serde_json::json!({ "machine": machine(), "date": today(), "threads": threads, "models": rows.iter().map(row).collect::<Vec<_>>() })
}

/// Where the picture of a page is, from its folder.
pub const PICTURE: &str = "pictures/performance.svg";

/// The target that a page was made for.
pub fn target_of(page: &str) -> Option<&str> {
    page.split_once("compiled for ")?.1.split_once(". ").map(|p| p.0)
}

/// The page; made from figures only. `others`: pages of other machines, beside it.
pub fn page(rows: &[Row], threads: usize, others: &[String]) -> String {
    let names: Vec<_> = rows.first().map(|r| r.engines.iter().map(|e| e.name).collect()).unwrap_or_default();
    let head = |n: &[&str]| format!("| {} |\n|---{}|\n", n.join(" | "), "|--:".repeat(n.len() - 1));
    let mut speed = head(&[&["model"], &names[..], &["infc / best peer"]].concat());
    let mut start = head(
        &[&["model"][..], &["artifact KiB", "code KiB", "kernels", "compile s", "cold start ms", "largest difference"]].concat(),
    );
    let mut side = head(&[&["model"], &names[..], &["infc / best peer"]].concat());
    let mut load = head(&[&["model"], &names[..]].concat());
    for r in rows {
        let medians: Vec<_> = r.engines.iter().map(Engine::cell).collect();
        speed += &format!("| {} | {} | {:.2} |\n", r.name, medians.join(" | "), r.ratio());
        let loads: Vec<_> = r.engines.iter().map(|e| short(e.load + e.first)).collect();
        load += &format!("| {} | {} |\n", r.name, loads.join(" | "));
        if let Some((ours, peers)) = r.sessions.split_first() {
            let wrong = |name: &str| r.engines.iter().any(|e| e.name == name && e.wrong);
            let rates: Vec<_> = r.sessions.iter().map(|s| if wrong(s.0) { "wrong".to_owned() } else { rate(s.1) }).collect();
            let best = peers.iter().filter(|p| !wrong(p.0)).map(|p| p.1).fold(f64::MIN, f64::max);
            side += &format!("| {} | {} | {:.2} |\n", r.name, rates.join(" | "), ours.1 / best);
        }
        let cold = r.cold.map_or("-".to_owned(), short);
        let (size, code, compile) = (r.size >> 10, r.code >> 10, r.compile.as_secs_f64());
        start += &format!("| {} | {size} | {code} | {} | {compile:.1} | {cold} | {:.1e} |\n", r.name, r.kernels, r.difference);
    }
    let mut bf16 = String::new();
    for (r, s) in rows.iter().filter_map(|r| Some((r, r.bf16.as_ref()?))) {
        let db = |x: f64| if x.is_finite() { format!("{x:.1}") } else { "equal".to_owned() };
        let ([ours, theirs], [signal, other]) = (s.medians.map(short), s.sqnr.map(db));
        bf16 += &format!("| {} | {ours} | {theirs} | {:.2} | {signal} | {other} |\n", r.name, s.ratio());
    }
    if !bf16.is_empty() {
        let names = head(&["model", "infc, ms", "OpenVINO, ms", "infc / OpenVINO", "infc, dB", "OpenVINO, dB"]);
        bf16 = format!(
            "## Products in bf16\n\ninfc with `--math bf16`, OpenVINO in the precision that it takes by itself (bf16, where it gains); medians of steady runs, and the\n\
             least signal-to-noise ratio of an output against f32 (random weights and inputs are the worst case).\n\n{names}{bf16}\n"
        );
    }
    let mut filtered = String::new();
    for (r, s) in rows.iter().filter_map(|r| Some((r, r.filtered.as_ref()?))) {
        let cell = |(t, e): (&Duration, &Engine)| if e.wrong { "wrong".to_owned() } else { short(*t) };
        let medians: Vec<_> = s.medians.iter().zip(&r.engines).map(cell).collect();
        let larger = s.size as f64 / r.size as f64;
        filtered +=
            &format!("| {} | {} | {:.2} | {:.0} | {larger:.2} |\n", r.name, medians.join(" | "), s.ratio(&r.engines), s.sqnr);
    }
    if !filtered.is_empty() {
        let names = head(&[&["model"], &names[..], &["infc / best peer", "infc, dB", "artifact"]].concat());
        filtered = format!(
            "## Convolutions by minimal filtering\n\ninfc with `--math winograd` (`docs/numerics.md`), the models that have windows of 3 for it; the peers as above. Medians of steady\n\
             runs in ms, the least signal-to-noise ratio of an output against plain sums in f32 (whose own noise is of that size), and how many times as large the artifact is.\n\n{names}{filtered}\n"
        );
    }
    let side = match rows.iter().any(|r| !r.sessions.is_empty()) {
        true => format!("## Sessions side by side, one on each core: runs a second of all together\n\n{side}\n"),
        false => String::new(),
    };
    let others: Vec<String> = others.iter().map(|o| format!("[{o}]({o})")).collect();
    let others = match others.is_empty() {
        true => String::new(),
        false => format!("Other machines, perhaps by earlier versions: {}.\n", others.join(", ")),
    };
    let s = if threads == 1 { "" } else { "s" };
    format!(
        "# Performance\n\nMade by `./x bench` on {}; do not edit. Machine: {}. {threads} thread{s} on pinned cores, batch 1 (or as the name says), f32, random\n\
         inputs; the engines take turns in one process, through their C interfaces, and agree on the outputs (checked\n\
         before timing; int8: 30 dB to ONNX Runtime, 10 dB to OpenVINO; \"wrong\": another result than infc's and ONNX Runtime's).\n\
         Peers: ONNX Runtime {} (all graph optimisations), OpenVINO {} (latency hint, f32).\n{others}\n\
         ![Time of each peer as a multiple of infc's]({PICTURE})\n\n\
         ## Steady runs: median, ms\n\n{speed}\n## From the file to the first output, in a warm process, ms\n\n\
         infc loads an artifact; the peers load and optimise the ONNX file.\n\n{load}\n{filtered}{bf16}{side}## Artifacts\n\n\
         Cold start: a process is started, maps the artifact, runs it once and ends; less the steady median. Largest difference: of any output\n\
         element to ONNX Runtime's.\n\n{start}",
        today(),
        machine(),
        version("INFC_BENCH_ORT"),
        version("INFC_BENCH_OPENVINO"),
    )
}

/// Versions come from `./x bench`, which installs the peers.
fn version(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| "(version unknown)".to_owned())
}

fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(": ")).map_or("unknown", |p| p.1);
    let target = infc::Options::native().map_or_else(|_| String::new(), |o| format!(", compiled for {}", o.target.name));
    format!("{name}{target}")
}

fn today() -> String {
    let output = std::process::Command::new("date").arg("+%Y-%m-%d").output();
    output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}
