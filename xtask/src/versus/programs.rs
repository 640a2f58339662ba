//! The two programs, and the files that they read.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::divergence::Text;
use super::output;
use super::work::{ModelFile, Row, WORKS, Work};

/// What is installed where no Python is named.
const PACKAGES: [&str; 3] = ["llama-cpp-python==0.3.36", "gguf", "numpy"];

/// How llama.cpp is built for AVX2 alone, on a machine that has more.
const AVX2_ALONE: &str = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF";

/// The program of this checkout.
pub(super) struct Deephold {
    path: PathBuf,
    pub(super) threads: usize,
    /// What it was built from; a long comparison may outlast the next commit.
    pub(super) commit: String,
    isa: String,
    /// The instruction set was asked for, and is not what the program takes by itself.
    forced: bool,
}

impl Deephold {
    /// Builds it; `isa` in place of the best instruction set of this machine.
    pub(super) fn build(root: &Path, threads: usize, isa: Option<&str>) -> Result<Self> {
        let commit = output(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root))?;
        let status = Command::new("cargo")
            .args(["build", "--release", "--locked", "--package", "deephold"])
            .current_dir(root)
            .status()
            .context("cargo")?;
        if !status.success() {
            bail!("cargo build ended with {status}");
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        let path = target.join("release/deephold");
        let doctor: Value = serde_json::from_str(&output(Command::new(&path).args(["doctor", "--json"]))?)?;
        let best = doctor["isa"].as_str().context("doctor names no instruction set")?;
        let isa = isa.unwrap_or(best).to_owned();
        let forced = isa != best;
        Ok(Self { path, threads, commit, isa, forced })
    }

    /// A command of the program over a file, with the threads and the instruction set that are measured.
    fn command(&self, names: &[&str], file: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.args(names).arg(file).args(["--json", "--threads", &self.threads.to_string()]);
        if self.forced {
            command.args(["--isa", &self.isa]);
        }
        command
    }

    pub(super) fn isa(&self) -> &str {
        &self.isa
    }

    /// `runs` runs of everything that `work` asks for, in one process.
    pub(super) fn measure(&self, work: &Work, file: &Path, runs: usize, rows: &mut [Row]) -> Result<()> {
        if work.is_start() {
            return rows.iter_mut().try_for_each(|row| {
                row.ours.push(self.start(work, file)?);
                Ok(())
            });
        }
        let batches: Vec<String> = work.batches().iter().map(usize::to_string).collect();
        let mut command = self.command(&["bench"], file);
        command.args(["--runs", &runs.to_string()]);
        command.args(["-p", &work.prompt.to_string(), "-n", &work.decode.to_string()]);
        command.args(["-d", &work.depth.to_string()]);
        if !batches.is_empty() {
            command.args(["-b", &batches.join(",")]);
        }
        let report: Value = serde_json::from_str(&output(&mut command)?)?;
        let figures = report["figures"].as_array().context("bench reports no figures")?;
        for row in rows {
            let of_row = |f: &&Value| match row.batch {
                0 => f["batch"].is_null(),
                n => f["batch"].as_u64() == Some(n as u64),
            };
            let figure =
                figures.iter().find(of_row).with_context(|| format!("no figure for {}", row.work))?;
            let number =
                |name: &str| figure[name].as_f64().with_context(|| format!("no `{name}` in a figure"));
            let rates = figure["runs"].as_array().context("no `runs` in a figure")?;
            row.ours.extend(rates.iter().filter_map(Value::as_f64));
            row.limits.push(number("limit_tokens_per_s")?);
            let ceiling = |name: &str| report["ceilings"][name].as_f64().context("bench reports no ceilings");
            row.ceilings.0.push(ceiling("read_bytes_per_s")?);
            row.ceilings.1.push(ceiling("int8_macs_per_s")?);
            row.work_per_token = (number("macs_per_token")?, number("bytes_per_token")?);
        }
        Ok(())
    }

    /// What `deephold eval perplexity` says of `file` beside `reference`.
    pub(super) fn divergence(&self, file: &Path, reference: &Path, of: &Text) -> Result<Value> {
        let mut command = self.command(&["eval", "perplexity"], file);
        command.arg(&of.path).arg("--reference").arg(reference);
        command.args(["--context", &of.window.to_string(), "--windows", &of.windows.to_string()]);
        Ok(serde_json::from_str(&output(&mut command)?)?)
    }

    /// Seconds from the program's start to its end behind one token.
    fn start(&self, work: &Work, file: &Path) -> Result<f64> {
        let ids: Vec<String> = (0..work.prompt).map(|i| (i * 37 % 1000 + 5).to_string()).collect();
        let mut command = self.command(&["generate"], file);
        command.args(["--prompt-ids", &ids.join(","), "--max-tokens", &work.decode.to_string()]);
        let begun = Instant::now();
        let report: Value = serde_json::from_str(&output(&mut command)?)?;
        let seconds = begun.elapsed().as_secs_f64();
        let count = report["ids"].as_array().map(Vec::len);
        if count != Some(work.decode) {
            bail!("deephold generate gave another number of tokens: {report}");
        }
        Ok(seconds)
    }
}

/// llama.cpp behind its Python bindings.
pub(super) struct LlamaCpp {
    python: PathBuf,
    /// The folder of the scripts that Python runs.
    scripts: PathBuf,
    threads: usize,
    version: String,
    /// Of its build, in place of this machine's.
    flags: Option<&'static str>,
}

impl LlamaCpp {
    /// Installs it where it is missing; `avx2` alone, on a machine that has more.
    pub(super) fn find(root: &Path, threads: usize, avx2: bool) -> Result<Self> {
        let (name, flags) = if avx2 { ("venv-avx2", Some(AVX2_ALONE)) } else { ("venv", None) };
        let python = match std::env::var_os("DEEPHOLD_PEER_PYTHON") {
            Some(python) => PathBuf::from(python),
            None => install(&root.join("target/versus").join(name), flags)?,
        };
        let ask = "import llama_cpp, gguf, numpy; print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())";
        let said = output(Command::new(&python).args(["-c", ask]))
            .with_context(|| format!("{} lacks one of {}", python.display(), PACKAGES.join(", ")))?;
        let (version, features) = said.split_once(' ').unwrap_or((&said, ""));
        if avx2 && features.contains("AVX512 = 1") {
            bail!("the llama.cpp of {} was built for AVX-512: {features}", python.display());
        }
        Ok(Self { python, scripts: root.join("xtask/peers"), threads, version: version.to_owned(), flags })
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.scripts.join(name));
        command
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "name": "llama.cpp",
            "version": format!("llama-cpp-python {}", self.version),
            "builds": {
                "repacked": match self.flags {
                    Some(flags) => format!("built with {flags}, weights repacked where it can"),
                    None => "as the package builds for this machine, weights repacked where it can".to_owned(),
                },
                "plain": "the same without repacking (use_extra_bufts = false)",
            },
        })
    }

    /// The models' files, written where they are missing; others are deleted first, since memory is short.
    pub(super) fn models(&self, folder: &Path, models: &[ModelFile]) -> Result<Vec<PathBuf>> {
        // By their names: whatever else lies in the folder is somebody's.
        let known = WORKS.iter().flat_map(|w| [Some(w.model), w.beside]).flatten();
        for other in known.filter(|m| !models.contains(m)).map(|m| folder.join(m.file_name())) {
            if other.is_file() {
                std::fs::remove_file(&other).with_context(|| other.display().to_string())?;
            }
        }
        models.iter().map(|model| self.model(folder, *model)).collect()
    }

    fn model(&self, folder: &Path, model: ModelFile) -> Result<PathBuf> {
        let name = model.file_name();
        let path = folder.join(&name);
        if path.is_file() {
            return Ok(path);
        }
        println!("  writing {}", path.display());
        let unfinished = folder.join(format!("{name}.partial"));
        let mut command = self.script("random_gguf.py");
        command.arg(model.shape).arg(&unfinished).args(["--format", model.format]);
        output(&mut command)?;
        std::fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    /// Writes the weights of `file` as f32.
    pub(super) fn dequantise(&self, file: &Path, out: &Path) -> Result<()> {
        output(self.script("dequantised_gguf.py").arg(file).arg(out)).map(|_| ())
    }

    /// As [`Deephold::divergence`], of both ways to hold the weights.
    pub(super) fn divergence(&self, file: &Path, reference: &Path, of: &Text) -> Result<Value> {
        let mut command = self.script("llama_cpp_divergence.py");
        command.arg(file).arg(reference).arg(&of.path);
        command.args(["-c", &of.window.to_string(), "-w", &of.windows.to_string()]);
        command.args(["-t", &self.threads.to_string()]);
        report(&mut command)
    }

    /// As [`Deephold::measure`].
    pub(super) fn measure(
        &self,
        work: &Work,
        file: &Path,
        build: &'static str,
        runs: usize,
        rows: &mut [Row],
    ) -> Result<()> {
        let batches: Vec<String> = work.batches().iter().map(usize::to_string).collect();
        let mut command = self.script("llama_cpp_bench.py");
        command.arg(file).args(["-r", &runs.to_string()]);
        command.args(["-t", &self.threads.to_string()]);
        command.args(["-p", &work.prompt.to_string(), "-n", &work.decode.to_string()]);
        command.args(["-d", &work.depth.to_string()]);
        command.args(["-b", &if batches.is_empty() { "1".to_owned() } else { batches.join(",") }]);
        if build == "plain" {
            command.arg("--plain");
        }
        if work.is_start() {
            command.arg("--start");
        }
        let report = report(&mut command)?;
        for row in rows {
            let figure = match row.batch {
                _ if work.is_start() => &report["start_s"],
                0 => &report["pp_tok_s"][work.prompt.to_string()],
                n => &report["tg_tok_s"][n.to_string()],
            };
            let rates =
                figure.as_array().with_context(|| format!("no figure of llama.cpp for {}", row.work))?;
            row.peer.entry(build).or_default().extend(rates.iter().filter_map(Value::as_f64));
        }
        Ok(())
    }
}

/// The JSON of a script's last line: llama.cpp may print above it.
fn report(command: &mut Command) -> Result<Value> {
    let printed = output(command)?;
    let line = printed.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("llama.cpp printed {line}"))
}

fn install(folder: &Path, flags: Option<&str>) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    if !python.is_file() {
        println!("installing {} into {}", PACKAGES.join(", "), folder.display());
        output(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
        if let Some(flags) = flags {
            // A wheel that was built before, for this machine, would be taken from the cache.
            pip.arg("--no-cache-dir").env("CMAKE_ARGS", flags);
        }
        if let Err(error) = output(&mut pip) {
            // Half an environment would be taken for a whole one the next time.
            let _ = std::fs::remove_dir_all(folder);
            return Err(error);
        }
    }
    Ok(python)
}
