//! The page of `infc profile --html`: timeline, roofline and table, style and pictures inside.

use super::profile::{Line, Products};
use infc::machine::Limits;
use infc_compress::report::html::{STYLE, table, text};

/// The page. `missing` is what an artifact does not say.
pub fn page(model: &str, lines: &[Line], limits: &Limits, missing: Option<&str>) -> String {
    let total: f64 = lines.iter().map(|l| l.nanoseconds).sum();
    let operations: Option<f64> = lines.iter().map(|l| l.operations).sum();
    let work = operations.map_or(String::new(), |all| {
        format!(", {:.2} GFLOP: {:.1} GFLOP/s", all / 1e9, if total > 0.0 { all / total } else { 0.0 })
    });
    let missing = missing.map_or(String::new(), |what| format!("<p><b>Note:</b> {}</p>", text(what)));
    let int8 = limits.int8_gops.map_or(String::new(), |g| format!(", {g:.0} GOP/s for products of bytes"));
    let int8 = int8 + &limits.bf16_gflops.map_or(String::new(), |g| format!(", {g:.0} GFLOP/s for products of bf16"));
    let mut slowest: Vec<&Line> = lines.iter().collect();
    slowest.sort_by(|a, b| b.nanoseconds.total_cmp(&a.nanoseconds));
    let rows = slowest.iter().map(|l| {
        let per = |amount: Option<f64>| match amount.filter(|_| l.nanoseconds > 0.0) {
            Some(amount) => format!("{:.1}", amount / l.nanoseconds),
            None => String::new(),
        };
        let numbers = [format!("{:.1}", l.nanoseconds / 1e3), format!("{:.1}", 100.0 * l.nanoseconds / total.max(1.0))];
        let of_peak = l.share(limits).map_or(String::new(), |s| format!("{:.0}", 100.0 * s));
        let speed = [per(l.operations), per(l.bytes), of_peak];
        let how = format!("{}<br><small>{}<br>{}</small>", text(name(l)), text(&l.kernel), text(plan(l)));
        [vec![how], numbers.to_vec(), speed.to_vec()].concat()
    });
    let head = ["step", "us", "% of run", "GFLOP/s", "GB/s", "% of peak"];
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Profile of {0}</title><style>{STYLE}</style></head><body>\
<h1>Profile of {0}</h1><p>{1} steps in {2:.3} ms{3}. One thread of this machine, with code for {4}, reaches {5:.0} GFLOP/s in \
f32{int8}, and reads {6:.1} GB/s from memory.</p>{missing}<h2>Timeline of a run</h2>{7}<h2>Roofline</h2><p>Each circle is a step, its area the time it takes. A step \
below the slope waits for memory, one below the flat line for arithmetic.</p>{8}<h2>Steps, the slowest first</h2>{9}</body></html>\n",
        text(model),
        lines.len(),
        total / 1e6,
        work,
        text(&limits.target),
        limits.f32_gflops,
        limits.memory_gbs(),
        timeline(lines, total),
        roofline(lines, limits, total),
        table(&head, rows),
    )
}

fn name(l: &Line) -> &str {
    l.node.as_deref().filter(|n| !n.is_empty()).unwrap_or(&l.kernel)
}

fn plan(l: &Line) -> &str {
    l.plan.as_deref().unwrap_or_default()
}

/// A colour for each kind of plan.
fn colour(l: &Line) -> &'static str {
    let much = l.operations.zip(l.bytes).is_some_and(|(operations, bytes)| operations > 8.0 * bytes);
    match plan(l).split(' ').next() {
        Some("brgemm") if l.products == Products::Bytes => "#1a7f64",
        Some("brgemm") if l.products == Products::Bf16 => "#1a8fb0",
        Some("brgemm") => "#2f6fdd",
        Some("elementwise") if much => "#8a5cd0",
        Some("elementwise") => "#e0912f",
        Some("row_reduce") => "#c94f4f",
        _ => "#8a94a0",
    }
}

fn tooltip(l: &Line) -> String {
    let speed = l.operations.filter(|_| l.nanoseconds > 0.0).map(|n| format!(", {:.1} GFLOP/s", n / l.nanoseconds));
    let (speed, us) = (speed.unwrap_or_default(), l.nanoseconds / 1e3);
    format!("<title>{}\n{}\n{us:.1} us{speed}</title>", text(name(l)), text(plan(l)))
}

/// Steps one after another, as wide as they take time.
fn timeline(lines: &[Line], total: f64) -> String {
    const WIDTH: f64 = 960.0;
    let mut out = svg(WIDTH, 66.0);
    let mut x = 0.0;
    for l in lines {
        let width = WIDTH * l.nanoseconds / total.max(1.0);
        out.push_str(&format!(
            "<rect x=\"{x:.2}\" y=\"4\" width=\"{width:.2}\" height=\"40\" fill=\"{}\" stroke=\"#fff\" stroke-width=\"{}\">{}</rect>",
            colour(l),
            if width > 3.0 { 0.6 } else { 0.0 },
            tooltip(l)
        ));
        x += width;
    }
    out + &format!(
        "<text x=\"0\" y=\"60\">0</text><text x=\"{WIDTH}\" y=\"60\" text-anchor=\"end\">{:.3} ms</text></svg>",
        total / 1e6
    )
}

/// Speed over arithmetic for each byte, both as logarithms, under the machine's limits.
fn roofline(lines: &[Line], limits: &Limits, total: f64) -> String {
    const WIDTH: f64 = 960.0;
    const HEIGHT: f64 = 420.0;
    let (x0, x1) = (0.05f64, 2000.0f64);

    let peaks = [Some(limits.f32_gflops), limits.bf16_gflops, limits.int8_gops, limits.tile_bf16_gflops, limits.tile_int8_gops];
    let top = peaks.into_iter().flatten().fold(0.0f64, f64::max) * 2.0;
    let (y0, y1) = ((x0 * limits.memory_gbs()).max(1e-3), top);
    let px = |v: f64| 60.0 + (v.clamp(x0, x1) / x0).ln() / (x1 / x0).ln() * (WIDTH - 80.0);
    let py = |v: f64| HEIGHT - 40.0 - (v.clamp(y0, y1) / y0).ln() / (y1 / y0).ln() * (HEIGHT - 60.0);
    let mut out = svg(WIDTH, HEIGHT);
    for exponent in -1..=3 {
        let v = 10f64.powi(exponent);
        out.push_str(&format!(
            "<path d=\"M{0:.1} 20V{1}\" stroke=\"#e5e8ec\"/><text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\">{v}</text>",
            px(v),
            HEIGHT - 40.0,
            HEIGHT - 24.0
        ));
    }
    let mut level = 1.0;
    while level < y1 {
        if level >= y0 {
            out.push_str(&format!(
                "<path d=\"M60 {0:.1}H{1}\" stroke=\"#e5e8ec\"/><text x=\"56\" y=\"{0:.1}\" text-anchor=\"end\">{level}</text>",
                py(level),
                WIDTH - 20.0
            ));
        }
        level *= 10.0;
    }
    out.push_str(&format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">operations for each byte</text><text x=\"60\" y=\"12\">GFLOP/s</text>",
        WIDTH / 2.0,
        HEIGHT - 6.0
    ));
    for r in &limits.read {
        let (a, b) = (x0, limits.f32_gflops / r.gbs);
        out.push_str(&format!(
            "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#555\" stroke-dasharray=\"4 3\"/><text x=\"{:.1}\" y=\"{:.1}\">{} {:.0} GB/s</text>",
            px(a),
            py(a * r.gbs),
            px(b),
            py(b * r.gbs),
            px(a) + 4.0,
            py(a * r.gbs) - 4.0,
            r.level,
            r.gbs
        ));
    }
    for (label, peak) in ["f32", "bf16", "int8", "bf16 in tiles", "int8 in tiles"].into_iter().zip(peaks) {
        let Some(peak) = peak else { continue };
        let (from, y) = (px(peak / limits.read[0].gbs), py(peak));
        out.push_str(&format!(
            "<path d=\"M{from:.1} {y:.1}H{0}\" stroke=\"#333\"/><text x=\"{0}\" y=\"{1:.1}\" text-anchor=\"end\">{label} {peak:.0}</text>",
            WIDTH - 20.0,
            y - 4.0
        ));
    }
    for l in lines.iter().filter(|l| l.nanoseconds > 0.0) {
        let (Some(operations), Some(bytes)) = (l.operations.filter(|&n| n > 0.0), l.bytes.filter(|&n| n > 0.0)) else { continue };
        let radius = 2.0 + 22.0 * (l.nanoseconds / total.max(1.0)).sqrt();
        out.push_str(&format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\" fill=\"{}\" fill-opacity=\"0.55\">{}</circle>",
            px(operations / bytes),
            py(operations / l.nanoseconds),
            colour(l),
            tooltip(l)
        ));
    }
    out + "</svg>"
}

fn svg(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
font-family=\"system-ui,sans-serif\" font-size=\"11\">"
    )
}
