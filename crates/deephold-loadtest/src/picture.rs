//! A run as a picture: how long answers took, and how many were under way.

use std::fmt::Write;

use crate::report::tpot;
use crate::{Measured, Objective, Outcome, Sorted};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 600.0;
const INK: &str = "#0b5cad";
const GRID: &str = "#e4e4e4";
const WRONG: &str = "#b04a00";

/// A part of the picture, in its units.
struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x_max: f64,
    y_max: f64,
}

impl Panel {
    fn x(&self, v: f64) -> f64 {
        self.left + (v / self.x_max).clamp(0.0, 1.0) * self.width
    }

    fn y(&self, v: f64) -> f64 {
        self.top + self.height - (v / self.y_max).clamp(0.0, 1.0) * self.height
    }

    fn line(&self, svg: &mut String, points: &[(f64, f64)], colour: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let _ = write!(path, "{:.1},{:.1} ", self.x(*x), self.y(*y));
        }
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            path.trim_end()
        );
    }

    fn vertical(&self, svg: &mut String, x: f64, colour: &str) {
        let (at, bottom) = (self.x(x), self.top + self.height);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"{colour}\"/>",
            self.top
        );
    }

    /// The frame, four lines across with their values, four values below.
    fn axes(&self, svg: &mut String, title: &str, x_unit: &str, y_text: &dyn Fn(f64) -> String) {
        let bottom = self.top + self.height;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"14\">{title}</text>",
            self.left,
            self.top - 10.0
        );
        for i in 0..=4 {
            let part = f64::from(i) / 4.0;
            let (y, x) = (self.y(part * self.y_max), self.x(part * self.x_max));
            let _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"{GRID}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                self.left,
                self.left + self.width,
                self.left - 5.0,
                y + 4.0,
                y_text(part * self.y_max),
                bottom + 16.0,
                short(part * self.x_max),
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_unit}</text>",
            self.left + self.width / 2.0,
            bottom + 32.0
        );
    }
}

/// The run as SVG: distributions of the time until the first token, for each token after it and until the end, with their
/// percentiles and the objective; below, requests under way over time. `title` names the run.
pub fn picture(title: &str, outcome: &Outcome, objective: &Objective) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"50\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    let good: Vec<&Measured> = outcome.requests.iter().filter(|r| r.error.is_none()).collect();
    let ms = |v: Option<f64>| v.map(|v| v * 1e3);
    let first: Sorted = good.iter().filter_map(|r| ms(r.first.map(|d| d.as_secs_f64()))).collect();
    let token: Sorted = good.iter().filter_map(|r| ms(tpot(r))).collect();
    let whole: Sorted = good.iter().map(|r| r.whole.as_secs_f64() * 1e3).collect();
    let panels = [
        ("Until the first token", first, objective.ttft_s),
        ("Each token after it", token, objective.tpot_s),
        ("Until the end", whole, objective.e2e_s),
    ];
    for (i, (title, values, limit)) in panels.iter().enumerate() {
        distribution(&mut svg, 50.0 + 310.0 * i as f64, title, values, ms(*limit));
    }
    under_way(&mut svg, outcome);
    svg.push_str("</svg>\n");
    svg
}

fn distribution(svg: &mut String, left: f64, title: &str, values: &Sorted, limit: Option<f64>) {
    let most = values.quantile(0.999).unwrap_or(1.0).max(limit.unwrap_or(0.0) * 1.05);
    let panel = Panel { left, top: 65.0, width: 255.0, height: 190.0, x_max: round_up(most), y_max: 1.0 };
    panel.axes(svg, title, "ms", &|v| format!("{:.0} %", v * 100.0));
    if let Some(limit) = limit {
        panel.vertical(svg, limit, WRONG);
    }
    // As many points as can be seen.
    let points: Vec<(f64, f64)> =
        (0..=250).map(|i| f64::from(i) / 250.0).filter_map(|q| Some((values.quantile(q)?, q))).collect();
    if points.is_empty() {
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"160\">no answers</text>", left + 90.0);
        return;
    }
    panel.line(svg, &points, INK);
    let mut names = Vec::new();
    for (name, q) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        if let Some(v) = values.quantile(q) {
            names.push(format!("{name} {}", short(v)));
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{INK}\"><title>{name}: {} ms</title></circle>",
                panel.x(v),
                panel.y(q),
                short(v)
            );
        }
    }
    let _ = writeln!(svg, "<text x=\"{left:.1}\" y=\"305\">{} ms</text>", names.join(", "));
}

fn under_way(svg: &mut String, outcome: &Outcome) {
    // Ends go before beginnings of the same moment.
    let mut moves: Vec<(f64, i64)> = Vec::with_capacity(outcome.requests.len() * 2);
    for r in &outcome.requests {
        moves.push((r.sent.as_secs_f64(), 1));
        moves.push(((r.sent + r.whole).as_secs_f64(), -1));
    }
    moves.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let wall = outcome.wall.as_secs_f64().max(1e-3);
    let panel = Panel {
        left: 50.0,
        top: 350.0,
        width: 875.0,
        height: 190.0,
        x_max: wall,
        y_max: round_up(outcome.at_once_max.max(4) as f64),
    };
    panel.axes(svg, "Requests under way (marks below: requests that failed)", "s", &short);
    // The largest of every part of the width that can be seen.
    let mut most = [0i64; 876];
    let (mut now, mut at) = (0i64, 0usize);
    for (time, change) in moves {
        let column = ((time / wall * 875.0) as usize).min(875);
        // What stood still until now also stood there.
        while at < column {
            at += 1;
            most[at] = now;
        }
        now += change;
        most[column] = most[column].max(now);
    }
    let points: Vec<(f64, f64)> =
        most.iter().enumerate().map(|(i, n)| (i as f64 / 875.0 * wall, *n as f64)).collect();
    panel.line(svg, &points, INK);
    for r in outcome.requests.iter().filter(|r| r.error.is_some()).take(2000) {
        let at = panel.x((r.sent + r.whole).as_secs_f64());
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"533\" x2=\"{at:.1}\" y2=\"540\" stroke=\"{WRONG}\" stroke-width=\"2\"/>"
        );
    }
}

/// The next of 1, 2, 4 or 8 times a power of ten.
fn round_up(v: f64) -> f64 {
    let decade = 10f64.powf(v.max(1e-3).log10().floor());
    let steps = [1.0, 2.0, 4.0, 8.0, 10.0];
    steps.into_iter().map(|s| s * decade).find(|s| *s >= v).unwrap_or(v)
}

fn short(v: f64) -> String {
    match v {
        0.0 => "0".to_owned(),
        v if v >= 100.0 || v.fract() == 0.0 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.3}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
