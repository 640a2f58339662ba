//! What is measured, and how much faster than llama.cpp it has to be.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A file with random weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ModelFile {
    /// As random_gguf.py names it.
    pub(super) shape: &'static str,
    pub(super) format: &'static str,
}

impl ModelFile {
    /// A name that nobody else gives to a model.
    pub(super) fn file_name(self) -> String {
        format!("deephold-versus-{}-{}.gguf", self.shape, self.format)
    }
}

/// A figure of a work, and the least ratio to llama.cpp on AVX2 and on AVX-512.
#[derive(Clone, Copy)]
enum Figure {
    Prompt(f64, f64),
    Decode(usize, f64, f64),
    /// From the start of the program to the first token of a short prompt, and the most seconds that may take.
    Start(f64),
}

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    TokensPerSecond,
    Seconds,
}

/// What one call of each program measures.
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) model: ModelFile,
    /// Tokens of the prompt; 0: none is measured.
    pub(super) prompt: usize,
    /// Tokens decoded by each sequence; 0: none.
    pub(super) decode: usize,
    /// Tokens before what is decoded.
    pub(super) depth: usize,
    /// The same model in another format, beside which our own program is measured, in place of llama.cpp.
    pub(super) beside: Option<ModelFile>,
    /// Whether it belongs to the set that ends within three quarters of an hour.
    pub(super) default: bool,
    figures: &'static [Figure],
}

const Q4: ModelFile = ModelFile { shape: "qwen2-1.5b", format: "q4_k_m" };
const Q8: ModelFile = ModelFile { shape: "qwen2-1.5b", format: "q8_0" };
const SMALL_Q8: ModelFile = ModelFile { shape: "qwen2-0.5b", format: "q8_0" };
const SMALL_F32: ModelFile = ModelFile { shape: "qwen2-0.5b", format: "f32" };
const Q4_7B: ModelFile = ModelFile { shape: "qwen2-7b", format: "q4_k_m" };
const LITE: ModelFile = ModelFile { shape: "v2-lite", format: "q4_k_m" };

const fn work(name: &'static str, model: ModelFile, tokens: [usize; 3], figures: &'static [Figure]) -> Work {
    let [prompt, decode, depth] = tokens;
    Work { name, model, prompt, decode, depth, beside: None, default: true, figures }
}

const fn beside(model: ModelFile, work: Work) -> Work {
    Work { beside: Some(model), ..work }
}

const fn by_hand(work: Work) -> Work {
    Work { default: false, ..work }
}

use Figure::{Decode, Prompt, Start};

/// All there is. A file's works stand together, so that it is written once.
pub(super) const WORKS: [Work; 13] = [
    work("q4", Q4, [512, 32, 0], &[Prompt(2.0, 1.6), Decode(1, 1.2, 1.28), Decode(8, 2.3, 2.0)]),
    work("q4-32", Q4, [0, 16, 0], &[Decode(32, 3.0, 3.0)]),
    work("q4-4k", Q4, [4096, 0, 0], &[Prompt(1.5, 1.5)]),
    work("q4-8k-deep", Q4, [0, 16, 8192], &[Decode(1, 1.3, 1.3)]),
    by_hand(work("q4-16k", Q4, [16_384, 0, 0], &[Prompt(1.5, 1.5)])),
    by_hand(work("q4-32k-deep", Q4, [0, 16, 32_768], &[Decode(1, 1.3, 1.3)])),
    work("q4-start", Q4, [8, 1, 0], &[Start(1.5)]),
    work("q8", Q8, [512, 32, 0], &[Prompt(1.8, 2.6), Decode(1, 1.45, 1.5)]),
    beside(SMALL_F32, work("int8", SMALL_Q8, [512, 32, 0], &[Prompt(1.0, 1.0), Decode(1, 3.4, 3.4)])),
    by_hand(work("7b", Q4_7B, [512, 16, 0], &[Prompt(2.0, 1.6), Decode(1, 1.2, 1.28), Decode(8, 2.3, 2.0)])),
    by_hand(work("lite", LITE, [512, 16, 0], &[Prompt(1.6, 2.0), Decode(1, 1.3, 1.35), Decode(8, 1.6, 1.8)])),
    by_hand(work("lite-8k-deep", LITE, [0, 16, 8192], &[Decode(1, 1.3, 1.3)])),
    by_hand(work("lite-4k", LITE, [4096, 0, 0], &[Prompt(1.5, 1.5)])),
];

impl Work {
    /// Sequences side by side that are measured.
    pub(super) fn batches(&self) -> Vec<usize> {
        let batch = |f: &Figure| match f {
            Prompt(..) | Start(_) => None,
            Decode(batch, ..) => Some(*batch),
        };
        self.figures.iter().filter_map(batch).collect()
    }

    /// Whether starting the program is what is measured.
    pub(super) fn is_start(&self) -> bool {
        matches!(self.figures, [Start(_)])
    }

    /// An eighth of a work that takes tens of minutes: enough to tell which of llama.cpp's builds is the faster one.
    pub(super) fn shorter(&self) -> Option<Self> {
        let long = self.prompt.max(self.depth) >= 8192;
        long.then_some(Self { prompt: self.prompt / 8, depth: self.depth / 8, ..*self })
    }

    /// Empty rows, with the floors of `isa`.
    pub(super) fn rows(&self, isa: &str) -> Vec<Row> {
        let row = |f: &Figure| {
            let (batch, avx2, avx512, unit) = match *f {
                Prompt(a, b) => (0, a, b, Unit::TokensPerSecond),
                Decode(batch, a, b) => (batch, a, b, Unit::TokensPerSecond),
                Start(seconds) => (0, seconds, seconds, Unit::Seconds),
            };
            let name = match (batch, self.depth) {
                _ if unit == Unit::Seconds => "start to first token".to_owned(),
                (0, _) => format!("prompt {}", self.prompt),
                (n, 0) => format!("decode x {n}"),
                (n, depth) => format!("decode x {n} after {depth}"),
            };
            Row {
                work: name,
                model: self.model,
                beside: self.beside,
                chosen_by: None,
                isa: isa.to_owned(),
                batch,
                unit,
                floor: if isa == "avx512" { avx512 } else { avx2 },
                ours: Vec::new(),
                peer: BTreeMap::new(),
                limits: Vec::new(),
                limits_beside: Vec::new(),
                ceilings: Default::default(),
                work_per_token: (0.0, 0.0),
            }
        };
        self.figures.iter().map(row).collect()
    }
}

/// Where a row of a report stands: in the order of [`WORKS`]; what they do not have any more comes last.
pub(super) fn place(row: &Value) -> usize {
    let all = WORKS.iter().flat_map(|w| w.rows(""));
    let is = |name: &str, value: &str| row[name].as_str() == Some(value);
    let same = |r: Row| is("shape", r.model.shape) && is("format", r.model.format) && is("work", &r.work);
    let count = WORKS.iter().map(|w| w.figures.len()).sum();
    all.map(same).position(|same| same).unwrap_or(count)
}

/// A line of the report.
pub(super) struct Row {
    pub(super) work: String,
    model: ModelFile,
    beside: Option<ModelFile>,
    /// The shorter work by which llama.cpp's build was chosen; none: both were run.
    pub(super) chosen_by: Option<String>,
    isa: String,
    /// Sequences side by side; 0: a prompt.
    pub(super) batch: usize,
    unit: Unit,
    /// The least ratio; of seconds, the most of them.
    floor: f64,
    /// Tokens a second, or seconds, of each run.
    pub(super) ours: Vec<f64>,
    /// The same of llama.cpp, by how it holds the weights; or of our own program beside, by the format.
    pub(super) peer: BTreeMap<&'static str, Vec<f64>>,
    /// Tokens a second at which the limits measured in each run would be reached.
    pub(super) limits: Vec<f64>,
    /// The same for the format beside.
    pub(super) limits_beside: Vec<f64>,
    /// Bytes read and multiply-adds in int8 a second that this machine did at most, of each run.
    pub(super) ceilings: (Vec<f64>, Vec<f64>),
    /// Multiply-adds and bytes of weights a token.
    pub(super) work_per_token: (f64, f64),
}

fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

fn spread(runs: &[f64]) -> f64 {
    let (low, high) = runs.iter().fold((f64::MAX, 0f64), |(l, h), r| (l.min(*r), h.max(*r)));
    if runs.is_empty() { 0.0 } else { (high - low) / 2.0 / median(runs) }
}

impl Row {
    pub(super) fn peer_run(&self, build: &str, run: usize) -> f64 {
        self.peer.get(build).and_then(|runs| runs.get(run)).copied().unwrap_or_default()
    }

    /// Whether `a` is no better than `b`.
    pub(super) fn is_worse(&self, a: f64, b: f64) -> bool {
        if self.unit == Unit::Seconds { a >= b } else { a <= b }
    }

    /// The faster way of llama.cpp: its name and runs.
    pub(super) fn best_peer(&self) -> (&'static str, &[f64]) {
        let in_order = |a: &[f64], b: &[f64]| match self.unit {
            Unit::TokensPerSecond => median(a).total_cmp(&median(b)),
            Unit::Seconds => median(b).total_cmp(&median(a)),
        };
        let faster = self.peer.iter().max_by(|a, b| in_order(a.1, b.1));
        faster.map_or(("none", &[][..]), |(name, runs)| (*name, runs))
    }

    /// The larger spread of the two programs.
    pub(super) fn spread(&self) -> f64 {
        spread(&self.ours).max(spread(self.best_peer().1))
    }

    /// How many times as fast as llama.cpp.
    fn ratio(&self) -> f64 {
        let (ours, peer) = (median(&self.ours), median(self.best_peer().1));
        if self.unit == Unit::Seconds { peer / ours } else { ours / peer }
    }

    fn is_held(&self) -> bool {
        match self.unit {
            Unit::TokensPerSecond => self.ratio() >= self.floor,
            Unit::Seconds => median(&self.ours) <= self.floor,
        }
    }

    fn percent(&self) -> f64 {
        100.0 * median(&self.ours) / median(&self.limits)
    }

    /// Takes over what our own program did with the format beside, as a row of the same work.
    pub(super) fn put_beside(&mut self, other: Row) {
        if let Some(model) = self.beside {
            self.peer.entry(model.format).or_default().extend(other.ours);
            self.limits_beside.extend(other.limits);
        }
    }

    fn percent_beside(&self) -> f64 {
        100.0 * median(self.best_peer().1) / median(&self.limits_beside)
    }

    pub(super) fn line(&self) -> String {
        let (build, peer) = self.best_peer();
        let held = if self.is_held() { "held" } else { "MISSED" };
        if self.unit == Unit::Seconds {
            return format!(
                "{:24} {:8.2} s (at most {:.2} s: {held}); llama.cpp ({build}) {:8.2}; {:.2} x; spread {:.0} %",
                self.work,
                median(&self.ours),
                self.floor,
                median(peer),
                self.ratio(),
                100.0 * self.spread()
            );
        }
        let other = match self.beside {
            Some(_) => format!("with {build} ({:.0} % of its limit)", self.percent_beside()),
            None => format!("llama.cpp ({build})"),
        };
        format!(
            "{:24} {:8.2} tokens/s, {:3.0} % of the limit; {other} {:8.2}; {:.2} x (at least {:.2} x: {held}); spread {:.0} %",
            self.work,
            median(&self.ours),
            self.percent(),
            median(peer),
            self.ratio(),
            self.floor,
            100.0 * self.spread()
        )
    }

    pub(super) fn json(&self) -> Value {
        let (build, peer) = self.best_peer();
        let round = |x: f64| (x * 1000.0).round() / 1000.0;
        let runs = |runs: &[f64]| runs.iter().map(|r| round(*r)).collect::<Vec<_>>();
        let mut out = json!({
            "work": self.work,
            "shape": self.model.shape,
            "format": self.model.format,
            "isa": self.isa,
            "ours": round(median(&self.ours)),
            "ours_runs": runs(&self.ours),
            "peer": round(median(peer)),
            "peer_build": build,
            "peer_runs": self.peer.iter().map(|(name, r)| ((*name).to_owned(), runs(r))).collect::<BTreeMap<_, _>>(),
            "ratio": round(self.ratio()),
            "floor": self.floor,
            "spread": round(self.spread()),
        });
        if let Some(shorter) = &self.chosen_by {
            out["peer_build_chosen_by"] = json!(shorter);
        }
        if self.unit == Unit::Seconds {
            out["unit"] = json!("s");
            return out;
        }
        let limits = json!({
            "unit": "tokens/s",
            "percent_of_limit": round(self.percent()),
            "limit": round(median(&self.limits)),
            "read_bytes_per_second": median(&self.ceilings.0),
            "int8_macs_per_second": median(&self.ceilings.1),
            "macs_per_token": self.work_per_token.0,
            "bytes_per_token": self.work_per_token.1,
        });
        if let (Some(out), Value::Object(limits)) = (out.as_object_mut(), limits) {
            out.extend(limits);
            if let Some(beside) = self.beside {
                out.insert("beside".to_owned(), json!(beside.format));
                out.insert("beside_percent_of_limit".to_owned(), json!(round(self.percent_beside())));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_takes_the_faster_build_and_says_what_is_missed() {
        let mut rows = WORKS[0].rows("avx512");
        assert_eq!(
            rows.iter().map(|r| r.work.as_str()).collect::<Vec<_>>(),
            ["prompt 512", "decode x 1", "decode x 8"]
        );
        let row = &mut rows[0];
        row.ours = vec![30.0, 10.0, 20.0];
        row.limits = vec![40.0];
        row.peer.insert("plain", vec![9.0, 10.0, 11.0]);
        row.peer.insert("repacked", vec![8.0]);
        let json = row.json();
        assert_eq!((json["ratio"].as_f64(), json["peer_build"].as_str()), (Some(2.0), Some("plain")));
        assert_eq!((json["percent_of_limit"].as_f64(), json["floor"].as_f64()), (Some(50.0), Some(1.6)));
        assert_eq!(json["spread"].as_f64(), Some(0.5));
        assert!(row.line().contains("held"));
        row.floor = 2.5;
        assert!(row.line().contains("MISSED"));
        assert_eq!(WORKS[0].batches(), [1, 8]);
    }

    #[test]
    fn of_seconds_fewer_are_better() {
        let work = WORKS.iter().find(|w| w.is_start()).expect("a start");
        let mut row = work.rows("avx2").remove(0);
        row.ours = vec![1.0];
        row.peer.insert("plain", vec![2.0]);
        row.peer.insert("repacked", vec![3.0]);
        let json = row.json();
        assert_eq!((json["ratio"].as_f64(), json["peer_build"].as_str()), (Some(2.0), Some("plain")));
        assert_eq!(json["unit"].as_str(), Some("s"));
        assert!(row.line().contains("held"));
        row.ours = vec![1.6];
        assert!(row.line().contains("MISSED") && row.is_worse(2.0, 1.0));
    }

    #[test]
    fn rows_stand_in_the_order_of_the_works() {
        let rows: Vec<Value> = WORKS.iter().flat_map(|w| w.rows("avx2")).map(|row| row.json()).collect();
        let places: Vec<usize> = rows.iter().map(place).collect();
        assert_eq!(places, (0..rows.len()).collect::<Vec<_>>());
        assert_eq!(place(&json!({ "work": "another" })), rows.len());
    }

    #[test]
    fn a_long_work_has_one_figure_by_which_a_build_is_chosen() {
        let long: Vec<Work> = WORKS.iter().filter_map(Work::shorter).collect();
        let rows: Vec<Row> = long.iter().flat_map(|w| w.rows("avx2")).collect();
        let names: Vec<&str> = rows.iter().map(|r| r.work.as_str()).collect();
        let deep = "decode x 1 after 1024";
        assert_eq!(names, [deep, "prompt 2048", "decode x 1 after 4096", deep]);
        assert_eq!(long.len(), rows.len());
    }

    #[test]
    fn names_of_works_are_their_own() {
        let mut names = WORKS.map(|w| w.name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WORKS.len());
    }
}
