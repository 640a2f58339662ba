//! Feeds damaged files to everything that reads bytes from outside, on stable Rust.
//!
//! `cargo run --release -p deephold-fuzz -- --seconds 20` mutates good files (from `../shared` and made here) and looks for
//! panics, slowness and allocations that the input's size does not justify. What it finds is written to `fuzz/found/`;
//! once repaired it moves to `fuzz/cases/<target>/`, which every run and `cargo test` replay first. A target is a function on
//! bytes, so that a coverage-guided fuzzer can call it as well.

mod answers;
mod memory;
mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use deephold_testkit::Rng;
use targets::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Slower than this on inputs of some kilobytes is a hang in the making.
const SLOW: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
    /// Where the random numbers start
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    // A panic is reported with its input; the default message of each would only repeat it.
    std::panic::set_hook(Box::new(|_| ()));
    match run(&Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(found) => {
            eprintln!("{found} inputs fail; they are in fuzz/found");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<usize> {
    let mut found = 0;
    for target in TARGETS.iter().filter(|t| options.target.as_ref().is_none_or(|name| name == t.name)) {
        for (path, bytes) in cases(target)? {
            if let Err(what) = check(target, &bytes) {
                eprintln!("{}: {}: {what}", target.name, path.display());
                found += 1;
            }
        }
        let seeds = (target.seeds)();
        anyhow::ensure!(!seeds.is_empty(), "{} has no seeds", target.name);
        anyhow::ensure!(seeds.iter().all(|s| (target.run)(s)), "{} refuses its own seeds", target.name);
        let mut rng = Rng::new(options.seed);
        let (start, mut runs) = (Instant::now(), 0u64);
        while start.elapsed() < Duration::from_secs_f64(options.seconds) {
            let bytes = mutate::mutate(&mut rng, &seeds);
            runs += 1;
            if let Err(what) = check(target, &bytes) {
                let path = save(target, &bytes)?;
                eprintln!("{}: {what}: {}", target.name, path.display());
                found += 1;
                break;
            }
        }
        println!("{}: {runs} inputs in {} s", target.name, options.seconds);
    }
    Ok(found)
}

/// Runs a target on one input; what is wrong, if anything.
fn check(target: &Target, bytes: &[u8]) -> Result<(), String> {
    memory::start();
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| _ = (target.run)(bytes)));
    let (largest, took) = (memory::largest(), start.elapsed());
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        return Err(format!("panics: {}", text.unwrap_or_default()));
    }
    // Tables of a fixed size and growing vectors aside, memory follows the input.
    let limit = target.base_bytes + 256 * bytes.len();
    if largest > limit {
        return Err(format!("allocates {largest} bytes at once for an input of {}", bytes.len()));
    }
    if took > SLOW {
        return Err(format!("takes {took:?}"));
    }
    Ok(())
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Inputs that failed once.
fn cases(target: &Target) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = folder().join("cases").join(target.name);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        out.push((path, bytes));
    }
    out.sort();
    Ok(out)
}

fn save(target: &Target, bytes: &[u8]) -> Result<PathBuf> {
    let folder: &Path = &folder().join("found");
    std::fs::create_dir_all(folder)?;
    // FNV-1a, for a name.
    let hash =
        bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let path = folder.join(format!("{}-{hash:016x}", target.name));
    std::fs::write(&path, bytes)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_once_fails_no_more() {
        for target in &TARGETS {
            for (path, bytes) in cases(target).expect("cases") {
                assert_eq!(check(target, &bytes), Ok(()), "{}", path.display());
            }
        }
    }

    /// A little of what the program does at length; `.ci/run` gives it more time. As a test it is built with the others.
    #[test]
    fn damaged_files_do_no_harm() {
        let seconds = std::env::var("DEEPHOLD_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0.2);
        let options = Options { seconds, target: None, seed: 1 };
        assert_eq!(run(&options).expect("it runs"), 0, "see fuzz/found");
    }

    #[test]
    fn good_files_pass_and_faults_are_seen() {
        for target in &TARGETS {
            for seed in (target.seeds)() {
                assert_eq!(check(target, &seed), Ok(()), "{}", target.name);
                assert!((target.run)(&seed), "{} refuses its own seed", target.name);
            }
        }
        let faulty = |run| Target { name: "faulty", seeds: Vec::new, run, base_bytes: 1 << 16 };
        assert!(check(&faulty(|_| panic!("seen")), b"x").is_err_and(|e| e.contains("seen")));
        assert!(check(&faulty(|_| !std::hint::black_box(vec![1u8; 1 << 20]).is_empty()), b"x").is_err());
    }
}
