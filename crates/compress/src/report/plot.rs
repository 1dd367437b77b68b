//! Plots as SVG: bars, histograms, scatter. Sizes in user units; nothing outside of the picture is needed.

use super::html::text;
use super::{Histogram, Point};

/// Horizontal bars with names, one a row.
pub fn bars(values: &[(String, f64)]) -> String {
    const ROW: usize = 16;
    const LEFT: f64 = 300.0;
    const WIDTH: f64 = 480.0;
    let finite = |v: f64| if v.is_finite() { v } else { 0.0 };
    let most = values.iter().map(|(_, v)| finite(*v)).fold(1.0, f64::max);
    let mut out = svg(LEFT + WIDTH + 70.0, (values.len() * ROW + 6) as f64);
    for (i, (name, v)) in values.iter().enumerate() {
        let (y, exact) = (i * ROW, !v.is_finite());
        let width = if exact { WIDTH } else { (finite(*v) / most).clamp(0.0, 1.0) * WIDTH };
        // Red where little signal is left, green where nearly all is.
        let hue = (finite(*v) * 3.0).clamp(0.0, 130.0);
        let label = if exact { "exact".to_owned() } else { format!("{v:.1}") };
        out.push_str(&format!(
            "<text x=\"{:.0}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"11\" \
fill=\"hsl({hue:.0},55%,50%)\"/><text x=\"{:.1}\" y=\"{}\">{label}</text>",
            LEFT - 6.0,
            y + 12,
            text(&shortened(name, 46)),
            y + 3,
            LEFT + width + 5.0,
            y + 12,
        ));
    }
    out + "</svg>"
}

/// Two histograms over the same range, one over the other.
pub fn histogram(before: &Histogram, after: &Histogram) -> String {
    const WIDTH: f64 = 220.0;
    const HEIGHT: f64 = 80.0;
    let mut out = svg(WIDTH, HEIGHT + 16.0);
    for (h, colour) in [(before, "#9aa3ad"), (after, "#2f6fdd88")] {
        // The root shows bins with few values beside those with many.
        let most = h.counts.iter().copied().max().unwrap_or(0).max(1) as f64;
        let step = WIDTH / h.counts.len().max(1) as f64;
        for (i, &n) in h.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            let height = (n as f64 / most).sqrt() * HEIGHT;
            let (x, y) = (i as f64 * step, HEIGHT - height);
            out.push_str(&format!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{step:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
            ));
        }
    }
    let (low, high) = (before.low, before.high);
    out + &format!(
        "<text x=\"0\" y=\"{0}\">{low:.3}</text><text x=\"{WIDTH}\" y=\"{0}\" text-anchor=\"end\">{high:.3}</text></svg>",
        HEIGHT + 13.0
    )
}

/// Latency to the right, quality upwards; the choices that no other beats in both are joined.
pub fn pareto(points: &[Point]) -> String {
    const WIDTH: f64 = 760.0;
    const HEIGHT: f64 = 320.0;
    let good: Vec<&Point> = points.iter().filter(|p| p.latency_ms.is_finite() && p.quality.is_finite()).collect();
    let range = |of: fn(&Point) -> f64| {
        let (lo, hi) = good.iter().map(|p| of(p)).fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
        let margin = ((hi - lo) * 0.08).max(hi.abs() * 1e-6).max(1e-9);
        (lo - margin, hi + margin)
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.latency_ms), range(|p| p.quality));
    let place = |p: &Point| {
        (60.0 + (p.latency_ms - x0) / (x1 - x0) * (WIDTH - 80.0), 10.0 + (y1 - p.quality) / (y1 - y0) * (HEIGHT - 50.0))
    };
    let mut out = svg(WIDTH, HEIGHT);
    out.push_str(&format!(
        "<path d=\"M60 10V{0}H{1}\" fill=\"none\" stroke=\"#888\"/><text x=\"{2}\" y=\"{3}\" text-anchor=\"middle\">latency \
(ms)</text><text x=\"60\" y=\"{4}\">{x0:.3}</text><text x=\"{1}\" y=\"{4}\" text-anchor=\"end\">{x1:.3}</text><text x=\"56\" y=\"{0}\" \
text-anchor=\"end\">{y0:.3}</text><text x=\"56\" y=\"18\" text-anchor=\"end\">{y1:.3}</text>",
        HEIGHT - 40.0,
        WIDTH - 20.0,
        WIDTH / 2.0,
        HEIGHT - 6.0,
        HEIGHT - 24.0,
    ));
    let beaten = |p: &Point| {
        good.iter().any(|q| {
            q.latency_ms <= p.latency_ms && q.quality >= p.quality && (q.latency_ms < p.latency_ms || q.quality > p.quality)
        })
    };
    let mut front: Vec<&Point> = good.iter().copied().filter(|p| p.measured && !beaten(p)).collect();
    front.sort_by(|a, b| a.latency_ms.total_cmp(&b.latency_ms));
    let line: Vec<String> = front.iter().map(|p| place(p)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    out.push_str(&format!("<polyline points=\"{}\" fill=\"none\" stroke=\"#2f6fdd\"/>", line.join(" ")));
    for p in &good {
        let (x, y) = place(p);
        let fill = if p.measured { "#2f6fdd" } else { "none" };
        let (name, anchor) = (text(&shortened(&p.name, 40)), if x > WIDTH * 0.7 { "end" } else { "start" });
        let dx = if anchor == "end" { -7.0 } else { 7.0 };
        out.push_str(&format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"#2f6fdd\"><title>{name}: {:.3} ms, {:.4}</title>\
</circle><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{name}</text>",
            p.latency_ms,
            p.quality,
            x + dx,
            y - 5.0
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

/// The end of a name tells more than its start.
fn shortened(name: &str, most: usize) -> String {
    let length = name.chars().count();
    if length <= most { name.to_owned() } else { format!("…{}", name.chars().skip(length - most + 1).collect::<String>()) }
}
