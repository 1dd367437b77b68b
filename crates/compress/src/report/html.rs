//! The page of a report: tables and plots, style and pictures inside.

use super::{Cost, Layer, Report, Step, plot};

/// The style of all pages.
pub const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#1b1f24}\
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2em;border-bottom:1px solid #d5dae0}h3{font-size:1.05em;margin-bottom:.3em}\
table{border-collapse:collapse;margin:.6em 0}th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #e5e8ec}\
th:first-child,td:first-child{text-align:left}th{font-weight:600}svg{display:block;max-width:100%;height:auto}\
.hist{display:inline-block;width:15em;margin:.3em .6em .3em 0;font-size:.8em}details{margin:.5em 0}";

/// The page.
pub fn page(r: &Report) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head><body>\
<h1>Compression of {0}</h1><p>Measured on: {1}</p>",
        text(&r.model),
        text(&r.machine)
    );
    for step in &r.steps {
        section(&mut out, step);
    }
    out + "</body></html>\n"
}

fn section(out: &mut String, s: &Step) {
    out.push_str(&format!("<h2>{}</h2>", text(&s.name)));
    let settings: Vec<String> = s.settings.iter().map(|(k, v)| format!("{}: <b>{}</b>", text(k), text(v))).collect();
    out.push_str(&format!("<p>{}</p>", settings.join("; ")));
    costs(out, &s.before, &s.after);
    if let Some((before, after)) = s.accuracy {
        let (a, b, d) = (100.0 * before, 100.0 * after, 100.0 * (before - after));
        out.push_str(&format!("<p>Accuracy: {a:.2} % before, <b>{b:.2} %</b> after ({d:+.2} points lost).</p>"));
    }
    if !s.outputs.is_empty() {
        let rows = s.outputs.iter().map(|d| {
            let numbers = [sig(d.max_abs), db(d.sqnr_db), format!("{:.5}", d.cosine), format!("{:.5}", d.cosine_min)];
            [vec![text(&d.name)], numbers.to_vec(), vec![format!("{:.2} %", 100.0 * d.top1)]].concat()
        });
        let head = ["output", "max |difference|", "SQNR (dB)", "cosine, mean", "cosine, least", "top-1 agreement"];
        out.push_str(&format!("<h3>Outputs, against the model before</h3>{}", table(&head, rows)));
    }
    if s.points.len() > 1 {
        out.push_str(&format!("<h3>Latency and quality of the choices</h3>{}", plot::pareto(&s.points)));
    }
    layers(out, &s.layers);
    if !s.kept.is_empty() {
        let rows = s.kept.iter().map(|(n, why)| vec![text(n), text(why)]);
        out.push_str(&format!("<details open><summary>Left as it was</summary>{}</details>", table(&["layer", "why"], rows)));
    }
    for note in &s.notes {
        out.push_str(&format!("<p>{}</p>", text(note)));
    }
}

fn costs(out: &mut String, a: &Cost, b: &Cost) {
    let ratio = |a: f64, b: f64| if b > 0.0 { format!("{:.2}x", a / b) } else { "".to_owned() };
    let mut rows = vec![];
    let mut row = |name: &str, a: f64, b: f64, show: &dyn Fn(f64) -> String| {
        rows.push(vec![name.to_owned(), show(a), show(b), ratio(a, b)]);
    };
    row("ONNX file (KiB)", a.bytes as f64, b.bytes as f64, &|v| format!("{:.1}", v / 1024.0));
    if let (Some(x), Some(y)) = (a.artifact_bytes, b.artifact_bytes) {
        row("artifact (KiB)", x as f64, y as f64, &|v| format!("{:.1}", v / 1024.0));
    }
    row("MACs (millions)", a.macs as f64, b.macs as f64, &|v| format!("{:.2}", v / 1e6));
    row("of them in float (millions)", a.float_macs as f64, b.float_macs as f64, &|v| format!("{:.2}", v / 1e6));
    if let (Some(x), Some(y)) = (a.latency_ms, b.latency_ms) {
        row("latency (ms)", x, y, &|v| format!("{v:.3}"));
    }
    out.push_str(&table(&["", "before", "after", "smaller by"], rows.into_iter()));
}

fn layers(out: &mut String, layers: &[Layer]) {
    if layers.is_empty() {
        return;
    }
    let bars = |of: &dyn Fn(&Layer) -> Option<f64>| -> Vec<(String, f64)> {
        layers.iter().filter_map(|l| Some((l.name.clone(), of(l)?))).collect()
    };
    for (title, values) in [
        ("Signal to noise of each layer in the whole model (dB, higher is better)", bars(&|l| l.sqnr_db)),
        ("Sensitivity: signal to noise of the outputs if only this layer is changed (dB)", bars(&|l| l.sensitivity_db)),
    ] {
        if !values.is_empty() {
            out.push_str(&format!("<h3>{title}</h3>{}", plot::bars(&values)));
        }
    }
    let rows = layers.iter().map(|l| {
        let shown = |v: Option<f64>| v.map_or(String::new(), db);
        let head = [text(&l.name), text(&l.op), text(&l.form)];
        [&head[..], &[format!("{:.3}", l.macs as f64 / 1e6), shown(l.sqnr_db), shown(l.sensitivity_db)]].concat()
    });
    let head = ["layer", "operator", "form", "MACs (millions)", "SQNR (dB)", "sensitivity (dB)"];
    out.push_str(&format!("<details><summary>Layers as a table</summary>{}</details>", table(&head, rows)));
    let histograms = layers.iter().filter_map(|l| Some((l, l.weights.as_ref()?)));
    let pictures: Vec<String> =
        histograms.map(|(l, (a, b))| format!("<span class=\"hist\">{}{}</span>", plot::histogram(a, b), text(&l.name))).collect();
    if !pictures.is_empty() {
        let legend = "<p>Grey: before; blue: after.</p>";
        out.push_str(&format!("<details><summary>Weights before and after</summary>{legend}{}</details>", pictures.join("")));
    }
}

/// A table: the head, then rows of cells that are markup already.
pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &[String]| cells.iter().map(|c| format!("<{tag}>{c}</{tag}>")).collect::<String>();
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let body: String = rows.map(|r| format!("<tr>{}</tr>", cells("td", &r))).collect();
    format!("<table><tr>{}</tr>{body}</table>", cells("th", &head))
}

/// A ratio in dB for people.
fn db(v: f64) -> String {
    if v.is_finite() { format!("{v:.1}") } else { "exact".to_owned() }
}

/// A number with four significant digits.
fn sig(v: f64) -> String {
    if v != 0.0 && !(1e-3..1e5).contains(&v.abs()) { format!("{v:.3e}") } else { format!("{v:.4}") }
}

/// Text for HTML.
pub fn text(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
