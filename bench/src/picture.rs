//! The figures of `docs/performance.md` as a picture: how many times infc's time each peer takes, on an axis of equal ratios.

use crate::report::{Engine, Row};
use std::fmt::Write;
use std::time::Duration;

/// Colours of the peers, in their order.
const COLOURS: [&str; 2] = ["#2f6fb5", "#d97a1e"];
/// Room for names, of a panel, between panels, of a row, above the rows.
const NAMES: f64 = 176.0;
const WIDTH: f64 = 400.0;
const GAP: f64 = 36.0;
const ROW: f64 = 14.0;
const TOP: f64 = 64.0;

/// A panel: its title and what it compares.
type Panel = (&'static str, fn(&Engine) -> Duration);

/// The picture; the first engine of each row is infc.
pub fn picture(rows: &[Row]) -> String {
    let panels: [Panel; 2] = [("steady runs", Engine::median), ("from the file to the first output", |e| e.load + e.first)];
    let height = TOP + ROW * rows.len() as f64 + 12.0;
    let width = NAMES + panels.len() as f64 * (WIDTH + GAP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" font-family=\"system-ui,sans-serif\" font-size=\"11\">\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (i, row) in rows.iter().enumerate() {
        let y = TOP + ROW * (i as f64 + 0.5);
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES - 8.0,
            y + 4.0,
            escaped(&row.name)
        );
    }
    let peers = rows.first().map_or(&[][..], |r| &r.engines[1..]);
    let mut x = NAMES;
    for (peer, colour) in peers.iter().zip(COLOURS) {
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.0}\" cy=\"14\" r=\"4\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"18\">{}</text>",
            x + 8.0,
            escaped(peer.name)
        );
        x += 110.0;
    }
    let _ = writeln!(
        out,
        "<text x=\"{x:.0}\" y=\"18\" fill=\"#555\">time as a multiple of infc's: right of the line infc is faster</text>"
    );
    for (p, (title, time)) in panels.iter().enumerate() {
        panel(&mut out, rows, NAMES + p as f64 * (WIDTH + GAP), title, *time);
    }
    out + "</svg>\n"
}

fn panel(out: &mut String, rows: &[Row], left: f64, title: &str, time: fn(&Engine) -> Duration) {
    let ratio = |row: &Row, e: &Engine| time(e).as_secs_f64() / time(&row.engines[0]).as_secs_f64();
    let all = || rows.iter().flat_map(|r| r.engines[1..].iter().filter(|e| !e.wrong).map(move |e| ratio(r, e)));
    // Whole steps of 1, 2, 5 that hold all points and 1.
    let steps: Vec<f64> = (-3..6).flat_map(|power| [1.0, 2.0, 5.0].map(|k| k * 10f64.powi(power))).collect();
    let (least, most) = all().fold((1.0f64, 1.0f64), |(low, high), r| (low.min(r), high.max(r)));
    let low = steps.iter().copied().rfind(|&s| s < least).unwrap_or(least);
    let high = steps.iter().copied().find(|&s| s > most).unwrap_or(most);
    let at = |r: f64| left + WIDTH * (r / low).ln() / (high / low).ln();
    let bottom = TOP + ROW * rows.len() as f64;
    let _ = writeln!(out, "<text x=\"{left:.0}\" y=\"38\" font-weight=\"bold\">{title}</text>");
    for &step in steps.iter().filter(|&&s| low <= s && s <= high) {
        let (colour, thick) = if step == 1.0 { ("#222", 1.5) } else { ("#ddd", 1.0) };
        let x = at(step);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{bottom:.0}\" stroke=\"{colour}\" stroke-width=\"{thick}\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555\" font-size=\"10\">{step}</text>",
            TOP - 4.0,
            TOP - 8.0
        );
    }
    for (i, row) in rows.iter().enumerate() {
        let y = TOP + ROW * (i as f64 + 0.5);
        let _ =
            writeln!(out, "<line x1=\"{left:.0}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#f0f0f0\"/>", left + WIDTH);
        for (peer, colour) in row.engines[1..].iter().zip(COLOURS).filter(|p| !p.0.wrong) {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\" fill-opacity=\"0.85\"/>",
                at(ratio(row, peer))
            );
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
