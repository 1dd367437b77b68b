//! The report of a folded design as JSON and as a page with bar charts that needs nothing else.

use infc_stream::Report;
use infc_stream::report::Resources;
use std::fmt::Write;

/// As JSON.
pub fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("plain data") + "\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:.2rem .5rem;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child,td.t{text-align:left}.bar{display:inline-block;height:.8rem;background:#4878a8;vertical-align:middle}\
.limit .bar{background:#c0504d}.part .bar{background:#70a060}tr.limit{font-weight:600}td.b{width:34%;text-align:left}h2{margin-top:2rem}";

/// As a page.
pub fn html(r: &Report) -> String {
    let mut h = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escaped(&r.design)
    );
    let _ = writeln!(
        h,
        "<p>For {} ({}) at {} ns: {:.0} frames a second, one each {} cycles; a frame takes {} cycles ({:.1} &micro;s). \
         <b>{}</b> limits it. All numbers are estimates; vendor synthesis was not run.</p>",
        escaped(&r.machine),
        escaped(&r.part),
        r.clock_ns,
        r.fps,
        r.interval,
        r.latency,
        r.latency as f64 * r.clock_ns / 1e3,
        escaped(&r.limiting)
    );
    resources(&mut h, r);
    layers(&mut h, r);
    fifos(&mut h, r);
    if !r.notes.is_empty() {
        h += "<h2>Notes</h2>\n<ul>\n";
        r.notes.iter().for_each(|n| h += &format!("<li>{}</li>\n", escaped(n)));
        h += "</ul>\n";
    }
    h + "</body></html>\n"
}

fn bar(value: f64, most: f64) -> String {
    format!("<span class=\"bar\" style=\"width:{:.1}%\"></span>", 100.0 * value / most.max(1e-9))
}

fn resources(h: &mut String, r: &Report) {
    *h += "<h2>Resources</h2>\n<table><tr><th>resource</th><th>design</th><th>budget</th><th>part</th><th>share of the part</th></tr>\n";
    let rows: [(&str, fn(&Resources) -> u64); 4] =
        [("DSP", |r| r.dsp), ("LUT", |r| r.lut), ("FF", |r| r.ff), ("BRAM (18 Kbit)", |r| r.bram18)];
    for (name, get) in rows {
        let (used, budget, part) = (get(&r.total), get(&r.budget), get(&r.available));
        let _ = writeln!(
            h,
            "<tr class=\"part\"><td>{name}</td><td>{used}</td><td>{budget}</td><td>{part}</td><td class=\"b\">{} {:.1} %</td></tr>",
            bar((used as f64).min(part as f64) * 0.8, part as f64),
            100.0 * used as f64 / (part as f64).max(1.0)
        );
    }
    *h += "</table>\n";
}

fn layers(h: &mut String, r: &Report) {
    *h += "<h2>Cycles of a frame</h2>\n<table><tr><th>actor</th><th class=\"t\">stands for</th><th>PE</th><th>SIMD</th><th>MACs</th><th>DSP</th><th>LUT</th><th>FF</th>\
           <th>BRAM18</th><th>cycles</th><th></th></tr>\n";
    let most = r.layers.iter().map(|l| l.cycles).max().unwrap_or(1) as f64;
    for l in &r.layers {
        let class = if l.name == r.limiting { " class=\"limit\"" } else { "" };
        let u = &l.resources;
        let _ = writeln!(
            h,
            "<tr{class}><td>{}</td><td class=\"t\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"b\">{}</td></tr>",
            escaped(&l.name),
            escaped(&l.origin),
            l.pe,
            l.simd,
            l.macs,
            u.dsp,
            u.lut,
            u.ff,
            u.bram18,
            l.cycles,
            bar(l.cycles as f64, most)
        );
    }
    *h += "</table>\n";
}

fn fifos(h: &mut String, r: &Report) {
    *h += "<h2>FIFOs</h2>\n<table><tr><th>stream</th><th>bits</th><th>depth</th><th>fewest without deadlock</th><th>LUT</th><th>BRAM18</th></tr>\n";
    for f in &r.fifos {
        let u = &f.resources;
        let _ = writeln!(
            h,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&f.name),
            f.width,
            f.depth,
            f.bound,
            u.lut,
            u.bram18
        );
    }
    *h += "</table>\n";
}
