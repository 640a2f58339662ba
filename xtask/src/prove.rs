//! `cargo xtask prove NAME`: proofs that take too long for every change. Each has a short cut among the tests.
//!
//! They drive the program as it is released, so build it first by `cargo build --release`. `DEEPHOLD_OPENAI_PYTHON` names a Python
//! with the packages that `.ci/run` installs, `DEEPHOLD_TEST_MODELS` the folder of fetched models.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A name, what it shows, and how.
type Proof = (&'static str, &'static str, fn(&Path) -> Result<()>);

/// What there is to prove.
const PROOFS: [Proof; 10] = [
    ("api", "the service is as it describes itself: thousands of requests by schemathesis", api),
    ("schemas", "answers of SmolLM2 fit 40 schemas, as text and as calls: 240 answers", schemas),
    ("tools", "a conversation with tools, as Qwen2.5-Coder 0.5B holds it", tools),
    (
        "clients",
        "LangChain, LiteLLM and the Vercel AI SDK, each with a streamed conversation with a tool",
        clients,
    ),
    ("hostile", "odd and hostile input ends with its exit code, within 512 MiB and 5 s each", hostile),
    ("peer", "the scenarios against Deephold, and what llama.cpp's server does otherwise", peer),
    (
        "day",
        "24 hours of arrivals as Azure saw them, in simulation: all are answered, no later than from a queue",
        day,
    ),
    ("flood", "a tenant that floods moves another's p99 until the first token by less than 20 %", flood),
    (
        "soak",
        "ten minutes of clients that come, cancel and vanish leave memory and descriptors as they were",
        soak,
    ),
    ("harness", "lm-eval's log-likelihoods are the engine's", harness),
];

/// Runs one proof, or lists them.
///
/// # Errors
/// What is missing, or that it failed.
pub(crate) fn prove(root: &Path, name: Option<&str>) -> Result<()> {
    if let Some((_, _, run)) = PROOFS.iter().find(|p| Some(p.0) == name) {
        return run(root);
    }
    for (name, what, _) in PROOFS {
        println!("cargo xtask prove {name:10} {what}");
    }
    bail!("there is no proof `{}`", name.unwrap_or(""))
}

fn api(root: &Path) -> Result<()> {
    // A short context: what matters is how requests are read, not how long answers are.
    let service = Service::start(root, &["--context", "128"])?;
    for seed in ["1", "2", "3"] {
        service.drive(root, "api.py", &service.base, &["guide", "500", seed])?;
    }
    Ok(())
}

fn schemas(root: &Path) -> Result<()> {
    let service =
        Service::start(root, &[&fetched("smollm2-135m-instruct.q4_1.gguf")?, "--cache-memory", "1GiB"])?;
    service.drive(root, "schemas.py", &format!("{}/v1", service.base), &["model", "40", "3"])
}

/// `DEEPHOLD_PEER_PYTHON` names a Python with the package xllamacpp.
fn peer(root: &Path) -> Result<()> {
    let model = fetched("smollm2-135m-instruct.q4_1.gguf")?;
    let service = Service::start(root, &[&model, "--cache-memory", "1GiB", "--context", "1024"])?;
    service.drive(root, "scenarios.py", &service.base, &["model"])?;
    drop(service);
    let python = std::env::var_os("DEEPHOLD_PEER_PYTHON").context("DEEPHOLD_PEER_PYTHON is not set")?;
    let script = root.join("crates/deephold/tests/clients/llama_server.py");
    let report = std::env::temp_dir().join("deephold-peer.json");
    let model = model.trim_start_matches("model=");
    checked(Command::new(python).arg(script).arg(model).arg(&report).stderr(Stdio::null()))?;
    println!("as JSON in {}", report.display());
    Ok(())
}

fn hostile(root: &Path) -> Result<()> {
    let status = Command::new("cargo")
        .current_dir(root)
        .args(["test", "--locked", "--workspace", "--test", "hostile", "--"])
        .args(["--nocapture", "--test-threads", "1"])
        .env("DEEPHOLD_HOSTILE", "all")
        .env("DEEPHOLD_PROGRAM", program(root)?)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("a case failed");
    }
    Ok(())
}

fn soak(root: &Path) -> Result<()> {
    let mut test = Command::new("cargo");
    test.current_dir(root).args(["test", "--locked", "--workspace", "--test", "faults", "--"]);
    test.args(["--nocapture", "churn_leaves_nothing"]).env("DEEPHOLD_PROGRAM", program(root)?);
    checked(test.env("DEEPHOLD_SOAK", "600"))
}

/// SmolLM2: one tenant asks for 0.15 of what the machine holds; another for half of it, or for three times as much, in turns. Quantiles
/// are of all rounds together.
fn flood(root: &Path) -> Result<()> {
    const ROUNDS: usize = 3;
    let program = program(root)?;
    let service = Service::start(root, &[&fetched("smollm2-135m-instruct.q4_1.gguf")?])?;
    let keys = [service.key_file(&program, "measured")?, service.key_file(&program, "flooding")?];
    let table = service.state.join("requests.csv");
    let load = |key: &Path, arrivals: &[&str], seed: usize| {
        let mut command = Command::new(&program);
        command
            .args(["loadtest", &service.base, "-p", "48:12", "-o", "16:4", "--json", "--key-file"])
            .arg(key);
        command.args(["--seed", &seed.to_string(), "--csv"]).arg(&table).args(arrivals);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let mut first_tokens = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for (share, seen) in [0.5, 3.0].into_iter().zip(&mut first_tokens) {
            // Each time: a machine that others share holds more at one time than at another.
            let all = load(&keys[1], &["--arrivals", "at-once", "-n", "150"], 9).output()?;
            let report: Value = serde_json::from_slice(&all.stdout)?;
            let number = |name: &str| report[name].as_f64().context("no figure");
            let capacity = number("succeeded")? / number("duration_s")?;
            let rate = |share: f64| format!("{:.3}", share * capacity);
            // The other tenant begins earlier, and is stopped when the measured one has ended.
            let other = Killed(load(&keys[1], &["-r", &rate(share), "-d", "1800"], round).spawn()?);
            std::thread::sleep(Duration::from_secs(5));
            checked(&mut load(&keys[0], &["-r", &rate(0.15), "-d", "80"], round))?;
            drop(other);
            let text = std::fs::read_to_string(&table)?;
            let rows = text.lines().skip(1).map(|row| row.split(',').nth(3)?.parse::<f64>().ok());
            let rows: Vec<f64> = rows.collect::<Option<_>>().context("a request failed")?;
            println!(
                "the other at {share} of {capacity:.1} requests a second: {} requests, first token after {:.0} ms, p99 {:.0} ms",
                rows.len(),
                1e3 * quantile(&rows, 0.5),
                1e3 * quantile(&rows, 0.99)
            );
            seen.extend(rows);
            // What the other left behind is cancelled.
            std::thread::sleep(Duration::from_secs(2));
        }
    }
    let [fair, flooded] = first_tokens.map(|v| quantile(&v, 0.99));
    let times = flooded / fair;
    println!("p99 over all rounds: {:.0} ms, flooded {:.0} ms: {times:.2} times", 1e3 * fair, 1e3 * flooded);
    if times < 1.2 { Ok(()) } else { bail!("more than 1.2 times") }
}

/// The smallest that at least `q` of the values do not exceed.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A program that ends with its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn day(root: &Path) -> Result<()> {
    let args = [
        "test",
        "--locked",
        "--package",
        "deephold-engine",
        "--lib",
        "--",
        "--nocapture",
        "a_day_of_arrivals",
    ];
    checked(Command::new("cargo").current_dir(root).args(args).env("DEEPHOLD_DAY", "whole"))
}

fn tools(root: &Path) -> Result<()> {
    let model = fetched("qwen2.5-coder-0.5b-instruct.q4_k_m.gguf")?;
    let service = Service::start(root, &[&model, "--cache-memory", "1GiB"])?;
    service.drive(root, "tool_conversation.py", &format!("{}/v1", service.base), &["model"])
}

/// With a Python that has `langchain-openai` and `litellm`, and a folder where npm installed `ai` and `@ai-sdk/openai-compatible`.
fn clients(root: &Path) -> Result<()> {
    let variable = |name: &str| std::env::var_os(name).with_context(|| format!("{name} is not set"));
    let (python, node) = (variable("DEEPHOLD_FRAMEWORKS_PYTHON")?, variable("DEEPHOLD_FRAMEWORKS_NODE")?);
    let service = Service::start(root, &[])?;
    let base = format!("{}/v1", service.base);
    let script = |name: &str| root.join("crates/deephold/tests/clients").join(name);
    checked(Command::new(python).arg(script("frameworks.py")).args([&base, &service.key, "guide"]))?;
    checked(Command::new("node").arg(script("ai_sdk.mjs")).arg(node).args([&base, &service.key, "guide"]))
}

/// With the same Python, which has `lm-eval[api]`, `transformers` and `openai` as well.
fn harness(root: &Path) -> Result<()> {
    let python =
        std::env::var_os("DEEPHOLD_FRAMEWORKS_PYTHON").context("DEEPHOLD_FRAMEWORKS_PYTHON is not set")?;
    let service = Service::start(root, &[])?;
    let base = format!("{}/v1", service.base);
    let script = root.join("crates/deephold/tests/clients/harness.py");
    let guide = root.join("crates/deephold/guide");
    checked(Command::new(python).arg(script).args([&base, &service.key, "guide"]).arg(guide))
}

fn checked(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { bail!("not proved: {status}") }
}

/// A fetched model, as `serve` takes it under the name `model`.
fn fetched(file: &str) -> Result<String> {
    let folder = std::env::var_os("DEEPHOLD_TEST_MODELS").context("DEEPHOLD_TEST_MODELS names no folder")?;
    Ok(format!("model={}", PathBuf::from(folder).join(file).display()))
}

/// The program as it is released.
fn program(root: &Path) -> Result<PathBuf> {
    let program = root.join("target/release/deephold");
    if !program.is_file() {
        bail!("there is no {}; `cargo build --release` makes it", program.display());
    }
    Ok(program)
}

/// A running server with a state of its own.
struct Service {
    child: Child,
    state: PathBuf,
    base: String,
    key: String,
}

impl Service {
    fn start(root: &Path, more: &[&str]) -> Result<Self> {
        let program = program(root)?;
        let state = std::env::temp_dir().join(format!("deephold-prove-{}", std::process::id()));
        let mut child = Command::new(&program)
            .args(["serve", "--bind", "127.0.0.1:0", "--log", "off", "--state"])
            .arg(&state)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut banner = String::new();
        for line in lines {
            banner += &line?;
            banner.push('\n');
            if banner.contains("Ctrl-C stops") {
                break;
            }
        }
        let word = |begin: &str| banner.split_whitespace().find(|w| w.starts_with(begin)).map(str::to_owned);
        let (base, key) = (word("http://"), word("dh_"));
        let mut service = Self { child, state, base: String::new(), key: String::new() };
        (service.base, service.key) = base.zip(key).context("the server did not start")?;
        Ok(service)
    }

    /// A file with a new key of a tenant.
    fn key_file(&self, program: &Path, tenant: &str) -> Result<PathBuf> {
        let mut command = Command::new(program);
        command.args(["key", "create", "--owner", tenant, "--tenant", tenant, "--json", "--state"]);
        let made: Value = serde_json::from_slice(&command.arg(&self.state).output()?.stdout)?;
        let path = self.state.join(tenant);
        std::fs::write(&path, made["secret"].as_str().context("no key")?)?;
        Ok(path)
    }

    fn drive(&self, root: &Path, script: &str, base: &str, more: &[&str]) -> Result<()> {
        let python = std::env::var_os("DEEPHOLD_OPENAI_PYTHON").unwrap_or_else(|| "python3".into());
        let script = root.join("crates/deephold/tests/clients").join(script);
        checked(Command::new(python).arg(script).args([base, &self.key]).args(more))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}
