//! `cargo xtask versus-llama-cpp`: Deephold and llama.cpp on the same files, in turns on the same machine.
//!
//! Speed by default; `--divergence` instead compares what quantised activations cost, on trained models.
//!
//! By hand, never in CI. `DEEPHOLD_PEER_PYTHON` names a Python with llama-cpp-python, gguf and numpy; without it they are
//! installed below `target/versus`, which builds llama.cpp for this machine (a quarter of an hour on two cores). Models with random
//! weights are written to `DEEPHOLD_VERSUS_DIR`, otherwise to /dev/shm where it has room, otherwise below `target/versus`.

mod divergence;
mod programs;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use divergence::Text;
use programs::{Deephold, LlamaCpp};
use work::{ModelFile, Row, WORKS, Work};

const USAGE: &str = "usage: cargo xtask versus-llama-cpp [--rows NAME,..] [--runs N] [--threads N] [--isa avx2] [--noisy]\n\
                     \x20      cargo xtask versus-llama-cpp --divergence MODEL.gguf,.. --text FILE [--windows N] [--threads N]\n\
                     --rows: these works instead of the default set, into the same file; --noisy: go on above 10 % spread; --isa avx2: both programs without AVX-512\n\
                     --divergence: mean KL from the same weights in f32, of both programs, over N windows of 512 tokens (32)";

/// llama.cpp's two ways to hold weights.
const BUILDS: [&str; 2] = ["repacked", "plain"];

/// Half the range over the median, above which a figure says little.
const SPREAD_MAX: f64 = 0.10;

struct Options {
    works: Vec<&'static Work>,
    /// Files of trained models whose divergence is measured, in place of works.
    divergence: Vec<PathBuf>,
    text: Text,
    runs: usize,
    threads: usize,
    noisy: bool,
    /// Both programs with AVX2 alone, on a machine that has more.
    avx2: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let mut o = Self {
            works: WORKS.iter().filter(|w| w.default).collect(),
            divergence: Vec::new(),
            text: Text { path: PathBuf::new(), window: 512, windows: 32 },
            runs: 5,
            threads: cores,
            noisy: false,
            avx2: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().context(USAGE);
            match arg.as_str() {
                "--rows" => {
                    let find = |name: &str| WORKS.iter().find(|w| w.name == name);
                    let known = || WORKS.map(|w| w.name).join(", ");
                    o.works = value()?
                        .split(',')
                        .map(|name| {
                            find(name).with_context(|| format!("no work `{name}`; there are {}", known()))
                        })
                        .collect::<Result<_>>()?;
                }
                "--divergence" => {
                    o.divergence = value()?.split(',').map(PathBuf::from).collect();
                    o.works.clear();
                }
                "--text" => o.text.path = PathBuf::from(value()?),
                "--windows" => o.text.windows = value()?.parse().context("--windows takes a number")?,
                "--runs" => o.runs = value()?.parse().context("--runs takes a number")?,
                "--threads" => o.threads = value()?.parse().context("--threads takes a number")?,
                "--noisy" => o.noisy = true,
                "--isa" if value()? == "avx2" => o.avx2 = true,
                _ => bail!(USAGE),
            }
        }
        if o.runs == 0 || o.threads == 0 || o.text.windows == 0 {
            bail!("--runs, --threads and --windows must be at least 1");
        }
        if o.divergence.is_empty() != o.text.path.as_os_str().is_empty() {
            bail!("--divergence and --text belong together\n{USAGE}");
        }
        Ok(o)
    }
}

/// Runs what `args` ask for and writes docs/benchmarks/DATE-CPU-ISA-versus-llama-cpp.json after each work.
///
/// # Errors
/// Something is missing or fails, or the machine is too noisy.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    let ours = Deephold::build(root, options.threads, options.avx2.then_some("avx2"))?;
    let peer = LlamaCpp::find(root, options.threads, options.avx2)?;
    let models = models_folder(root)?;
    let date = today()?;
    // Two machines of one day must not meet in one file: each row's machine and instruction set are the file's.
    let name = format!("{date}-{}-{}-versus-llama-cpp.json", slug(&cpu()), ours.isa());
    let path = root.join("docs/benchmarks").join(name);
    let mut report = Report::open(&path, date)?;
    let mut noisy = Vec::new();
    for work in &options.works {
        println!("{}: {} {}", work.name, work.model.shape, work.model.format);
        let used: Vec<ModelFile> = [Some(work.model), work.beside].into_iter().flatten().collect();
        let files = peer.models(&models, &used)?;
        let rows = match &files[..] {
            [file, other] => measure_beside(&options, work, &ours, file, other)?,
            _ => measure(&options, work, &ours, &peer, &files[0], |rows| {
                rows.iter().for_each(|row| report.keep(row.json()));
                report.write(root, &ours, &peer)
            })?,
        };
        for row in rows {
            println!("  {}", row.line());
            if row.spread() > SPREAD_MAX {
                noisy.push(format!("{} ({:.0} %)", row.work, 100.0 * row.spread()));
            }
            report.put(row.json());
        }
        report.write(root, &ours, &peer)?;
        if !(noisy.is_empty() || options.noisy) {
            bail!(
                "the machine is too noisy: {} differ by more than {:.0} % between runs; what was measured is in {}. \
                 Try again on a quiet machine, or with --noisy",
                noisy.join(", "),
                100.0 * SPREAD_MAX,
                path.display()
            );
        }
    }
    for file in &options.divergence {
        let row = divergence::measure(&ours, &peer, &models, file, &options.text)?;
        println!("{}: {}", file.display(), divergence::line(&row));
        report.put(row);
        report.write(root, &ours, &peer)?;
    }
    println!("written: {}; the last model stays in {}", path.display(), models.display());
    Ok(())
}

/// Interleaved runs of both programs; `keep` is given the rows after each round, so that what is cut off is not lost.
fn measure(
    o: &Options,
    work: &Work,
    ours: &Deephold,
    peer: &LlamaCpp,
    file: &Path,
    mut keep: impl FnMut(&[Row]) -> Result<()>,
) -> Result<Vec<Row>> {
    let mut rows = work.rows(ours.isa());
    let mut builds = BUILDS.to_vec();
    if let Some((chosen_by, build)) = chosen_build(work, ours, peer, file)? {
        println!("  chosen by {chosen_by}: llama.cpp ({build})");
        rows.iter_mut().for_each(|row| row.chosen_by = Some(chosen_by.clone()));
        builds = vec![build];
    }
    // A context takes minutes to fill: it is filled once, and decoded from as often as others are run.
    let (rounds, runs) = if work.depth > 0 { (1, o.runs) } else { (o.runs, 1) };
    for round in 0..rounds {
        ours.measure(work, file, runs, &mut rows)?;
        // Told at once: the other program may take an hour, and be cut off.
        rows.iter().for_each(|row| println!("  {}: deephold {:.2?}", row.work, row.ours));
        for build in builds.clone() {
            peer.measure(work, file, build, runs, &mut rows)?;
        }
        // One that is slower in everything is not run again.
        if let (0, &[a, b]) = (round, &builds[..]) {
            let worse =
                |a: &str, b: &str| rows.iter().all(|r| r.is_worse(r.peer_run(a, 0), r.peer_run(b, 0)));
            if worse(b, a) {
                builds = vec![a];
            } else if worse(a, b) {
                builds = vec![b];
            }
        }
        println!("  round {} of {rounds}", round + 1);
        keep(&rows)?;
    }
    Ok(rows)
}

/// The faster of llama.cpp's builds in a long work, and the shorter work that says so: the two differ in how they multiply with
/// weights, which does not depend on the context, and a long one takes up to an hour.
fn chosen_build(
    work: &Work,
    ours: &Deephold,
    peer: &LlamaCpp,
    file: &Path,
) -> Result<Option<(String, &'static str)>> {
    let Some(shorter) = work.shorter() else { return Ok(None) };
    let mut rows = shorter.rows(ours.isa());
    for build in BUILDS {
        peer.measure(&shorter, file, build, 3, &mut rows)?;
    }
    Ok(rows.first().map(|row| (row.work.clone(), row.best_peer().0)))
}

/// Interleaved runs of our own program with two formats of a model.
fn measure_beside(o: &Options, work: &Work, ours: &Deephold, file: &Path, other: &Path) -> Result<Vec<Row>> {
    let mut rows = work.rows(ours.isa());
    for round in 0..o.runs {
        ours.measure(work, file, 1, &mut rows)?;
        let mut beside = work.rows(ours.isa());
        ours.measure(work, other, 1, &mut beside)?;
        rows.iter_mut().zip(beside).for_each(|(row, other)| row.put_beside(other));
        println!("  round {} of {}", round + 1, o.runs);
    }
    Ok(rows)
}

/// Where models with random weights go: large, and read twice.
fn models_folder(root: &Path) -> Result<PathBuf> {
    let folder = match std::env::var_os("DEEPHOLD_VERSUS_DIR") {
        Some(folder) => PathBuf::from(folder),
        None if Path::new("/dev/shm").is_dir() => PathBuf::from("/dev/shm/deephold-versus"),
        None => root.join("target/versus/models"),
    };
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// The JSON file: what other works measured stays in it.
struct Report {
    path: PathBuf,
    /// When the command began: a long one may end on another day.
    date: String,
    rows: BTreeMap<Key, Value>,
}

impl Report {
    fn open(path: &Path, date: String) -> Result<Self> {
        let mut rows = BTreeMap::new();
        if let Ok(text) = std::fs::read_to_string(path) {
            let old: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
            for row in old["rows"].as_array().into_iter().flatten() {
                rows.insert(key(row), row.clone());
            }
        }
        Ok(Self { path: path.to_path_buf(), date, rows })
    }

    fn put(&mut self, row: Value) {
        self.rows.insert(key(&row), row);
    }

    /// Puts a row that may still grow, unless the one of its place has more runs.
    fn keep(&mut self, row: Value) {
        let runs = |row: &Value| row["ours_runs"].as_array().map_or(0, Vec::len);
        if self.rows.get(&key(&row)).is_none_or(|old| runs(old) <= runs(&row)) {
            self.put(row);
        }
    }

    fn write(&self, root: &Path, ours: &Deephold, peer: &LlamaCpp) -> Result<()> {
        let report = json!({
            "machine": { "cpu": cpu(), "threads": ours.threads, "memory_bytes": memory() },
            "isa": ours.isa(),
            "date": self.date,
            "commit": ours.commit,
            "peer": peer.json(),
            "rows": self.rows.values().collect::<Vec<_>>(),
        });
        std::fs::create_dir_all(root.join("docs/benchmarks"))?;
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(&self.path, text).with_context(|| self.path.display().to_string())
    }
}

/// What a row is of, in the order of the works.
pub(crate) type Key = (usize, [String; 3]);

pub(crate) fn key(row: &Value) -> Key {
    (
        work::place(row),
        ["shape", "format", "work"].map(|name| row[name].as_str().unwrap_or_default().to_owned()),
    )
}

/// What a command prints, without the last line's end.
fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn today() -> Result<String> {
    output(Command::new("date").args(["-u", "+%Y-%m-%d"]))
}

/// The first value of `name` in a file of the kernel that has lines of names and values.
fn kernel_value(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn cpu_name() -> String {
    kernel_value("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The processor's name, with the numbers that tell generations apart where a hypervisor shows one name for all.
fn cpu() -> String {
    let number = |name: &str| kernel_value("/proc/cpuinfo", name);
    match (number("cpu family"), number("model\t")) {
        (Some(family), Some(model)) => format!("{} (family {family}, model {model})", cpu_name()),
        _ => cpu_name(),
    }
}

fn memory() -> Option<u64> {
    let value = kernel_value("/proc/meminfo", "MemTotal")?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A name in letters that a file name takes.
fn slug(name: &str) -> String {
    let name = name.to_lowercase();
    let parts: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|p| !p.is_empty()).collect();
    parts.join("-")
}
