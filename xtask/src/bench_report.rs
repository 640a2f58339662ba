//! `cargo xtask bench-report`: tables and roofline pictures from docs/benchmarks/*.json, for docs/performance.md and the READMEs.
//!
//! With `--check` nothing is written, and what would change is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::versus;

const BEGIN: &str = "<!-- begin: cargo xtask bench-report -->";
const END: &str = "<!-- end: cargo xtask bench-report -->";

/// Writes, or reports what is stale.
///
/// # Errors
/// A report or a document cannot be read, or a document lacks its marks.
pub(crate) fn run(root: &Path, check: bool) -> Result<Vec<String>> {
    let measured = gathered(read(&root.join("docs/benchmarks"))?);
    let mut files = Vec::new();
    let mut long = String::new();
    let mut short = String::new();
    for (isa, reports) in &measured {
        let picture = format!("docs/benchmarks/roofline-{isa}.svg");
        long.push_str(&section(isa, reports, &picture.replace("docs/", ""))?);
        short.push_str(&table(&reports[0], false));
        files.push((picture, roofline(isa, &reports[0])?));
    }
    for (document, text) in
        [("docs/performance.md", &long), ("README.md", &short), ("README.zh-CN.md", &short)]
    {
        let old = std::fs::read_to_string(root.join(document)).with_context(|| document.to_owned())?;
        files.push((document.to_owned(), replaced(&old, text).with_context(|| document.to_owned())?));
    }
    let mut stale = Vec::new();
    for (name, text) in files {
        let path = root.join(&name);
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        if check {
            stale.push(format!("{name} is stale: run cargo xtask bench-report"));
        } else {
            std::fs::write(&path, text).with_context(|| name.clone())?;
            println!("written: {name}");
        }
    }
    Ok(stale)
}

/// All reports, oldest first.
fn read(folder: &Path) -> Result<Vec<Value>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.retain(|p| p.to_string_lossy().ends_with("-versus-llama-cpp.json"));
    // Names begin with the date.
    paths.sort();
    let read = |path: &Path| -> Result<Value> {
        let report: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        report["isa"].as_str().context("it names no isa")?;
        Ok(report)
    };
    paths.iter().map(|path| read(path).with_context(|| path.display().to_string())).collect()
}

/// What was measured with each instruction set: of each machine one report with the last run of each work, the machine with the most
/// works first, so that a few works on another one do not take the place of all.
fn gathered(reports: Vec<Value>) -> BTreeMap<String, Vec<Value>> {
    let mut gathered: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for mut report in reports {
        date_rows(&mut report);
        let of_isa = gathered.entry(text(&report, "isa").to_owned()).or_default();
        if let Some(i) = of_isa.iter().position(|older| is_same_machine(older, &report)) {
            add_older(&mut report, &of_isa.remove(i));
        }
        of_isa.insert(0, report);
    }
    gathered.values_mut().for_each(|reports| reports.sort_by_key(|r| std::cmp::Reverse(rows(r).count())));
    gathered
}

/// Gives each row the date of its report.
fn date_rows(report: &mut Value) {
    let date = report["date"].clone();
    for row in report["rows"].as_array_mut().into_iter().flatten() {
        row["date"] = date.clone();
    }
}

/// Whether two reports are of one machine beside one version of llama.cpp.
fn is_same_machine(a: &Value, b: &Value) -> bool {
    let same = |name: &str, part: &str| a[name][part] == b[name][part];
    same("machine", "cpu") && same("machine", "threads") && same("peer", "version")
}

/// Adds the rows of an older report of the same machine that a newer one lacks.
fn add_older(report: &mut Value, older: &Value) {
    let all: BTreeMap<versus::Key, Value> =
        rows(older).chain(rows(report)).map(|row| (versus::key(row), row.clone())).collect();
    report["rows"] = all.into_values().collect();
}

fn replaced(old: &str, text: &str) -> Result<String> {
    let (head, rest) = old.split_once(BEGIN).with_context(|| format!("the mark {BEGIN} is missing"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("the mark {END} is missing"))?;
    Ok(format!("{head}{BEGIN}\n\n{text}{END}{tail}"))
}

fn rows(report: &Value) -> impl Iterator<Item = &Value> {
    report["rows"].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("?")
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or(f64::NAN)
}

/// Whether a row counts seconds, not tokens a second.
fn is_seconds(row: &Value) -> bool {
    text(row, "unit") == "s"
}

/// Whether a row has two formats of a model beside each other, both ours.
fn is_beside(row: &Value) -> bool {
    row["beside"].is_string()
}

/// Whether a row has divergences, not speeds.
fn is_divergence(row: &Value) -> bool {
    text(row, "unit") == "nats"
}

/// The machine in words, and the days on which it was measured.
fn machine(report: &Value) -> String {
    let m = &report["machine"];
    let days: BTreeSet<&str> = rows(report).map(|row| text(row, "date")).collect();
    let days: Vec<&str> = days.into_iter().collect();
    format!(
        "{}, {} threads, {} ({}, {})",
        text(m, "cpu"),
        m["threads"],
        text(report, "isa"),
        days.join(", "),
        text(&report["peer"], "version")
    )
}

fn model(row: &Value) -> String {
    format!("{} {}", text(row, "shape"), text(row, "format").to_uppercase())
}

fn table(report: &Value, whole: bool) -> String {
    let mut out = format!("**{}**; tokens a second, or seconds\n\n", machine(report));
    out.push_str(match whole {
        true => "| model | | deephold | of the limit | spread | llama.cpp | build | ratio | floor | measured |\n|---|---|---:|---:|---:|---:|---|---:|---:|---|\n",
        false => "| model | | deephold | llama.cpp | ratio |\n|---|---|---:|---:|---:|\n",
    });
    for r in rows(report).filter(|r| !is_beside(r) && !is_divergence(r)) {
        let model = model(r);
        let (work, ours, peer) = (text(r, "work"), number(r, "ours"), number(r, "peer"));
        let (ratio, floor) = (number(r, "ratio"), number(r, "floor"));
        let held = if is_seconds(r) { ours <= floor } else { ratio >= floor };
        let (ours, peer, percent, floor) = match is_seconds(r) {
            true => {
                (format!("{ours:.2} s"), format!("{peer:.2} s"), String::new(), format!("at most {floor} s"))
            }
            false => (
                format!("{ours:.1}"),
                format!("{peer:.1}"),
                format!("{:.0} %", number(r, "percent_of_limit")),
                format!("{floor:.2}"),
            ),
        };
        let line = match whole {
            true => format!(
                "| {model} | {work} | {ours} | {percent} | {:.0} % | {peer} | {} | {ratio:.2} | {floor}{} | {} |",
                100.0 * number(r, "spread"),
                text(r, "peer_build"),
                if held { "" } else { ", missed" },
                text(r, "date")
            ),
            false => format!("| {model} | {work} | {ours} | {peer} | {ratio:.2} |"),
        };
        out.push_str(&line);
        out.push('\n');
    }
    out.push('\n');
    out
}

/// Our own program with two formats of a model; nothing where none was measured.
fn table_beside(report: &Value) -> String {
    let mut lines = rows(report).filter(|r| is_beside(r)).peekable();
    let Some(first) = lines.peek() else { return String::new() };
    let mut out = format!(
        "Deephold with {} weights beside Deephold with {} weights of the same model:\n\n\
         | model | | {0} | of the limit | {1} | of the limit | ratio | floor |\n|---|---|---:|---:|---:|---:|---:|---:|\n",
        text(first, "format"),
        text(first, "beside")
    );
    for r in lines {
        let (ratio, floor) = (number(r, "ratio"), number(r, "floor"));
        let cells = [
            text(r, "shape").to_owned(),
            text(r, "work").to_owned(),
            format!("{:.1}", number(r, "ours")),
            format!("{:.0} %", number(r, "percent_of_limit")),
            format!("{:.1}", number(r, "peer")),
            format!("{:.0} %", number(r, "beside_percent_of_limit")),
            format!("{ratio:.2}"),
            format!("{floor:.2}{}", if ratio >= floor { "" } else { ", missed" }),
        ];
        out.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    out.push('\n');
    out
}

/// What quantised activations cost in both programs; nothing where it was not measured.
fn table_divergence(report: &Value) -> String {
    let mut lines = rows(report).filter(|r| is_divergence(r)).peekable();
    if lines.peek().is_none() {
        return String::new();
    }
    let mut out = "Mean KL divergence from the same weights in f32, of trained models on a text, in thousandths of a nat:\n\n\
         | model | text | tokens | deephold | llama.cpp | build | ratio | at most | measured |\n|---|---|---:|---:|---:|---|---:|---:|---|\n"
        .to_owned();
    for r in lines {
        let (ratio, at_most) = (number(r, "ratio"), number(r, "at_most"));
        let kl =
            |name: &str, error: &str| format!("{:.3} ± {:.3}", 1e3 * number(r, name), 1e3 * number(r, error));
        let cells = [
            model(r),
            text(r, "text").to_owned(),
            format!("{:.0}", number(r, "scored_tokens")),
            kl("ours", "ours_standard_error"),
            kl("peer", "peer_standard_error"),
            text(r, "peer_build").to_owned(),
            format!("{ratio:.2}"),
            format!("{at_most:.2}{}", if ratio <= at_most { "" } else { ", missed" }),
            text(r, "date").to_owned(),
        ];
        out.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    out.push('\n');
    out
}

/// Tables of every machine, and the picture of the first.
fn section(isa: &str, reports: &[Value], picture: &str) -> Result<String> {
    let mut out = format!("### {isa}\n\n");
    for (i, report) in reports.iter().enumerate() {
        out.push_str(&table(report, true));
        out.push_str(&table_beside(report));
        out.push_str(&table_divergence(report));
        if i == 0 {
            writeln!(out, "![Roofline, {isa}]({picture})\n")?;
        }
    }
    Ok(out)
}

/// A point of the picture.
struct Point {
    name: String,
    /// Multiply-adds a byte of weights.
    intensity: f64,
    /// Multiply-adds a second.
    ours: f64,
    peer: f64,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
/// Left, right, top, bottom.
const MARGIN: [f64; 4] = [70.0, 20.0, 40.0, 55.0];
const X: (f64, f64) = (1.0, 1e4);

/// The roof that the limits of the runs' machine make, and where each work stands under it; both axes logarithmic.
fn roofline(isa: &str, report: &Value) -> Result<String> {
    // Behind a context attention adds what the roof does not count; seconds have no place under it, nor has f32 under one of int8.
    let shown: Vec<&Value> = rows(report)
        .filter(|r| {
            !text(r, "work").contains("after") && !is_seconds(r) && !is_beside(r) && !is_divergence(r)
        })
        .collect();
    if shown.is_empty() {
        bail!("the report for {isa} has no rows to draw");
    }
    let points: Vec<Point> = shown
        .iter()
        .map(|r| {
            let macs = number(r, "macs_per_token");
            let name = format!("{} {} {}", text(r, "shape"), text(r, "format"), text(r, "work"));
            let intensity = macs / number(r, "bytes_per_token");
            Point { name, intensity, ours: number(r, "ours") * macs, peer: number(r, "peer") * macs }
        })
        .collect();
    let most = |name: &str| shown.iter().map(|r| number(r, name)).fold(0f64, f64::max);
    let (read, peak) = (most("read_bytes_per_second"), most("int8_macs_per_second"));
    let low = points.iter().map(|p| p.ours.min(p.peer)).fold(read, f64::min);
    let y_range = (10f64.powf((low / 2.0).log10().floor()), 10f64.powf((peak * 1.2).log10().ceil()));
    let [left, right, top, bottom] = MARGIN;
    let scale = |v: f64, (a, b): (f64, f64)| (v.log10() - a.log10()) / (b.log10() - a.log10());
    let x = |v: f64| left + scale(v, X) * (WIDTH - left - right);
    let y = |v: f64| HEIGHT - bottom - scale(v, y_range) * (HEIGHT - top - bottom);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{left}\" y=\"22\" font-size=\"15\">Roofline: {}</text>\n",
        escaped(&machine(report))
    );
    for decade in 0..=4 {
        let (v, at) = (10f64.powi(decade), x(10f64.powi(decade)));
        writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#e4e4e4\"/>",
            HEIGHT - bottom
        )?;
        writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{v:.0}</text>",
            HEIGHT - bottom + 18.0
        )?;
    }
    let mut v = y_range.0;
    while v <= y_range.1 * 1.01 {
        let at = y(v);
        writeln!(
            svg,
            "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#e4e4e4\"/>",
            WIDTH - right
        )?;
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            at + 4.0,
            v / 1e9
        )?;
        v *= 10.0;
    }
    let ridge = peak / read;
    let roof = format!(
        "{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}",
        x(X.0.max(y_range.0 / read)),
        y(read * X.0.max(y_range.0 / read)),
        x(ridge),
        y(peak),
        x(X.1),
        y(peak)
    );
    writeln!(svg, "<polyline points=\"{roof}\" fill=\"none\" stroke=\"#333333\" stroke-width=\"2\"/>")?;
    writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">int8 {:.0} G multiply-adds/s, read {:.1} GB/s</text>",
        WIDTH - right - 4.0,
        y(peak) - 8.0,
        peak / 1e9,
        read / 1e9
    )?;
    for p in &points {
        let (at, ours, peer) = (x(p.intensity), y(p.ours), y(p.peer));
        let name = escaped(&p.name);
        writeln!(
            svg,
            "<circle cx=\"{at:.1}\" cy=\"{peer:.1}\" r=\"4\" fill=\"none\" stroke=\"#b04a00\"><title>{name}, llama.cpp: {:.1} G/s</title></circle>",
            p.peer / 1e9
        )?;
        writeln!(
            svg,
            "<circle cx=\"{at:.1}\" cy=\"{ours:.1}\" r=\"5\" fill=\"#0b5cad\"><title>{name}, deephold: {:.1} G/s</title></circle>",
            p.ours / 1e9
        )?;
        let short = p.name.trim_start_matches("qwen2-");
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{}</text>",
            at + 8.0,
            ours + 4.0,
            escaped(short)
        )?;
    }
    writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">multiply-adds a byte of weights</text>",
        (left + WIDTH - right) / 2.0,
        HEIGHT - 18.0
    )?;
    writeln!(
        svg,
        "<text transform=\"translate(18,{:.1}) rotate(-90)\" text-anchor=\"middle\">G multiply-adds a second</text>",
        (top + HEIGHT - bottom) / 2.0
    )?;
    writeln!(
        svg,
        "<circle cx=\"{left}\" cy=\"{:.1}\" r=\"5\" fill=\"#0b5cad\"/><text x=\"{:.1}\" y=\"{:.1}\">deephold</text>\
         <circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"none\" stroke=\"#b04a00\"/><text x=\"{:.1}\" y=\"{:.1}\">llama.cpp</text>\n</svg>",
        HEIGHT - 22.0,
        left + 10.0,
        HEIGHT - 18.0,
        left + 80.0,
        HEIGHT - 22.0,
        left + 90.0,
        HEIGHT - 18.0
    )?;
    Ok(svg)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        let mut report = json!({
            "machine": { "cpu": "A <CPU>", "threads": 2 }, "isa": "avx2", "date": "2026-11-27",
            "peer": { "version": "llama-cpp-python 1" },
            "rows": [{ "work": "decode x 1", "shape": "s", "format": "q4_k_m", "ours": 20.0, "peer": 10.0, "ratio": 2.0,
                "floor": 2.5, "percent_of_limit": 50.0, "spread": 0.01, "peer_build": "plain", "macs_per_token": 1e9,
                "bytes_per_token": 5e8, "read_bytes_per_second": 2e10, "int8_macs_per_second": 1e11 }],
        });
        date_rows(&mut report);
        report
    }

    #[test]
    fn rows_of_an_older_report_stay_unless_measured_again() {
        let mut older = report();
        let mut other = older["rows"][0].clone();
        other["work"] = json!("decode x 8");
        older["rows"].as_array_mut().expect("rows").push(other);
        let mut newer = report();
        newer["date"] = json!("2026-12-01");
        date_rows(&mut newer);
        let mut of_both = newer.clone();
        assert!(is_same_machine(&newer, &older));
        add_older(&mut of_both, &older);
        let dates: Vec<_> = rows(&of_both).map(|row| (text(row, "work"), text(row, "date"))).collect();
        assert_eq!(dates, [("decode x 1", "2026-12-01"), ("decode x 8", "2026-11-27")]);
        assert!(machine(&of_both).contains("2026-11-27, 2026-12-01"));
        older["machine"]["threads"] = json!(4);
        assert!(!is_same_machine(&newer, &older));
    }

    #[test]
    fn a_few_works_on_another_machine_do_not_take_the_place_of_all() {
        let mut many = report();
        let mut other = many["rows"][0].clone();
        other["work"] = json!("decode x 8");
        many["rows"].as_array_mut().expect("rows").push(other);
        let mut few = report();
        few["machine"]["cpu"] = json!("Another");
        let measured = gathered(vec![many, few]);
        let cpus: Vec<_> = measured["avx2"].iter().map(|r| text(&r["machine"], "cpu")).collect();
        assert_eq!(cpus, ["A <CPU>", "Another"]);
        let section = section("avx2", &measured["avx2"], "picture.svg").expect("a section");
        assert!(section.contains("**Another, 2 threads") && section.matches("picture.svg").count() == 1);
    }

    #[test]
    fn tables_say_what_is_missed_and_pictures_are_well_formed() {
        assert!(table(&report(), true).contains("| 2.00 | 2.50, missed | 2026-11-27 |"));
        assert!(table(&report(), false).contains("| s Q4_K_M | decode x 1 | 20.0 | 10.0 | 2.00 |"));
        let svg = roofline("avx2", &report()).expect("a picture");
        assert!(svg.contains("A &lt;CPU&gt;") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"));
    }

    #[test]
    fn a_format_beside_another_has_a_table_of_its_own() {
        let mut report = report();
        assert_eq!(table_beside(&report), "");
        let row = json!({ "work": "decode x 1", "shape": "s", "format": "q8_0", "beside": "f32", "ours": 35.0, "peer": 10.0,
            "ratio": 3.5, "floor": 3.4, "percent_of_limit": 90.0, "beside_percent_of_limit": 95.0 });
        report["rows"].as_array_mut().expect("rows").push(row);
        assert!(
            table_beside(&report).contains("| s | decode x 1 | 35.0 | 90 % | 10.0 | 95 % | 3.50 | 3.40 |")
        );
        assert!(!table(&report, true).contains("35.0"));
        assert!(!roofline("avx2", &report).expect("a picture").contains("NaN"));
    }

    #[test]
    fn divergences_have_a_table_of_their_own() {
        let mut report = report();
        assert_eq!(table_divergence(&report), "");
        let row = json!({ "work": "divergence on t.txt", "shape": "m", "format": "q4_1", "unit": "nats", "text": "t.txt",
            "scored_tokens": 510.0, "ours": 0.00106, "ours_standard_error": 1e-5, "peer": 0.001, "peer_standard_error": 2e-5,
            "peer_build": "plain", "ratio": 1.06, "at_most": 1.05 });
        report["rows"].as_array_mut().expect("rows").push(row);
        date_rows(&mut report);
        let line = "| m Q4_1 | t.txt | 510 | 1.060 ± 0.010 | 1.000 ± 0.020 | plain | 1.06 | 1.05, missed | 2026-11-27 |";
        assert!(table_divergence(&report).contains(line), "{}", table_divergence(&report));
        assert!(!table(&report, true).contains("t.txt"));
        assert!(!roofline("avx2", &report).expect("a picture").contains("NaN"));
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let old = format!("a\n{BEGIN}\nold\n{END}\nz\n");
        let new = replaced(&old, "new\n").expect("marks");
        assert_eq!(new, format!("a\n{BEGIN}\n\nnew\n{END}\nz\n"));
        assert_eq!(replaced(&new, "new\n").expect("marks"), new);
        assert!(replaced("no marks", "x").is_err());
    }
}
