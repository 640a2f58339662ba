//! Odd and hostile input against the program: each case ends with the exit code that it should, without a signal, a panic, a
//! control sequence in what is printed, or much memory.
//!
//! The tests run a fixed part of the generated templates; `cargo xtask prove hostile` runs all of them against the released
//! program (`DEEPHOLD_HOSTILE=all`, `DEEPHOLD_PROGRAM=PATH`), each within 5 s.
#![allow(missing_docs, reason = "a test")]

mod common;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{copy_folder, text};
use deephold_testkit::{TempDir, guide_dir, hostile};
use deephold_weights::gguf::{Metadata, TensorPlan, Value as GgufValue, Writer};
use serde_json::{Value, json};

/// What a case may take; a model that fits is part of it.
const MEMORY: u64 = 512 << 20;

fn program() -> PathBuf {
    std::env::var_os("DEEPHOLD_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_deephold").into(), PathBuf::from)
}

fn is_whole() -> bool {
    std::env::var("DEEPHOLD_HOSTILE").is_ok_and(|v| v == "all")
}

struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
    peak: u64,
    took: Duration,
}

/// Runs the program within limits; it is killed beyond them.
fn run(args: &[&str], input: &[u8]) -> Outcome {
    let mut child = Command::new(program())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("stdin");
    let mut stdout = child.stdout.take().expect("stdout");
    let mut stderr = child.stderr.take().expect("stderr");
    // Development builds are slower; what hangs is found all the same.
    let patience = Duration::from_secs(if is_whole() { 5 } else { 60 });
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input)));
        let out = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).expect("output");
            bytes
        });
        let err = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).expect("errors");
            bytes
        });
        let mut peak = 0;
        let status = loop {
            peak = peak.max(resident(&child));
            if let Some(status) = child.try_wait().expect("waited") {
                break status;
            }
            if peak > MEMORY || start.elapsed() > patience {
                child.kill().expect("killed");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let string = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Outcome {
            code: status.code(),
            out: string(out.join().expect("read")),
            err: string(err.join().expect("read")),
            peak,
            took: start.elapsed(),
        }
    })
}

/// The most memory that a process has had so far; 0 once it is gone.
fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Runs a case that must end with one of `codes`, and say `part`.
fn expect(name: &str, args: &[&str], input: &[u8], codes: &[i32], part: &str) -> Outcome {
    let outcome = run(args, input);
    let Outcome { code, out, err, peak, took } = &outcome;
    if is_whole() {
        println!("{name}: {code:?}, {} MiB, {:.2} s", peak >> 20, took.as_secs_f64());
    }
    let shown = |text: &str| text.chars().take(400).collect::<String>();
    let code =
        code.unwrap_or_else(|| panic!("{name}: ended by a signal, {} MiB: {}", peak >> 20, shown(err)));
    assert!(codes.contains(&code), "{name}: {code}: {} {}", shown(err), shown(out));
    assert!(format!("{out}{err}").contains(part), "{name}: no `{part}` in {} {}", shown(err), shown(out));
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!err.contains(steers) && !out.contains(steers), "{name}: {err:?} {out:?}");
    assert!(!err.contains("panicked") && !err.contains("defect of deephold"), "{name}: {}", shown(err));
    assert!(err.len() < 4096, "{name}: an error of {} bytes", err.len());
    outcome
}

/// A guide whose files are changed.
fn changed_guide(dir: &TempDir, name: &str, change: impl FnOnce(&Path)) -> String {
    let folder = dir.join(name);
    copy_folder(&guide_dir(), &folder);
    change(&folder);
    text(&folder).to_owned()
}

fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).expect("file")).expect("JSON");
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("written");
}

fn gguf(path: &Path, pairs: &[(&str, GgufValue)], tensors: &[TensorPlan]) -> String {
    let mut metadata = Metadata::new();
    pairs.iter().for_each(|(key, value)| metadata.set(*key, value.clone()));
    let writer = Writer::begin(Vec::new(), &metadata, tensors).expect("written");
    std::fs::write(path, writer.into_inner()).expect("written");
    text(path).to_owned()
}

#[test]
fn templates() {
    let dir = TempDir::new("hostile-templates");
    for (i, (name, source)) in hostile::templates().into_iter().enumerate() {
        let inside = changed_guide(&dir, "inside", |folder| {
            edit_json(&folder.join("tokenizer_config.json"), |c| c["chat_template"] = source.as_str().into());
        });
        let path = dir.join("template.jinja");
        std::fs::write(&path, &source).expect("written");
        if is_whole() || i % 8 == 0 {
            let args = ["generate", "guide", "-p", "x", "-n", "1", "-c", "64", "--template", text(&path)];
            expect(name, &args, b"", &[0, 65], "");
            expect(name, &["model", "inspect", &inside], b"", &[0, 65], "chat template");
        }
        if is_whole() || i % 32 == 0 {
            expect(name, &["chat", &inside, "-p", "x", "-n", "1"], b"", &[0, 65], "");
            let file = dir.join("inside.gguf");
            let written = ["quantize", &inside, text(&file), "-f", "q8_0", "--force"];
            expect(name, &written, b"", &[0], "");
            expect(name, &["model", "inspect", text(&file)], b"", &[0, 65], "chat template");
        }
    }
    let endless = ["generate", "guide", "-p", "x", "--template", "/dev/zero"];
    expect("endless template", &endless, b"", &[65], "more than 1.0 MiB");
}

#[test]
fn tokenizers() {
    let dir = TempDir::new("hostile-tokenizers");
    let with = |name: &str, change: &dyn Fn(&mut Value)| {
        changed_guide(&dir, name, |folder| edit_json(&folder.join("tokenizer.json"), |t| change(t)))
    };
    let replace = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "a".repeat(1000) });
    let growing = with("growing", &|t| {
        t["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![&replace; 4] })
    });
    expect(
        "a normalizer that grows",
        &["generate", &growing, "-p", "banana"],
        b"",
        &[65],
        "lengthens a text",
    );
    let merges = with("merges", &|t| t["model"]["merges"] = vec!["a b"; 1_000_000].into());
    expect("a million merges", &["model", "inspect", &merges], b"", &[0], "number of merges");
    let template = |ids: usize| {
        let id = json!({ "SpecialToken": { "id": "a", "type_id": 0 } });
        json!({ "type": "TemplateProcessing", "single": vec![id; ids], "pair": [], "special_tokens": {
            "a": { "id": "a", "ids": vec![1; ids], "tokens": vec!["a"; ids] } } })
    };
    let post = with("post", &|t| t["post_processor"] = template(300_000));
    expect("a long post-processor", &["model", "inspect", &post], b"", &[0], "post_processor");
    // As many tokens as the limit allows are not too many for the memory either.
    let many = with("many", &|t| {
        let vocabulary = t["model"]["vocab"].as_object_mut().expect("vocabulary");
        (0..590_000).for_each(|i| drop(vocabulary.insert(format!("Ġz{i}"), (i + 5000).into())));
    });
    expect("590,000 tokens", &["model", "inspect", &many], b"", &[0], "tokens");
    let unknown = with("unknown", &|t| t["model"]["type"] = "Oracle".into());
    let outcome = expect(
        "an unknown model",
        &["generate", &unknown, "-p", "x"],
        b"",
        &[65],
        "`model` is of no known kind",
    );
    assert!(!outcome.err.contains("untagged"), "{}", outcome.err);
    let deep = "[".repeat(100_000);
    let nested = changed_guide(&dir, "nested", |folder| {
        std::fs::write(folder.join("tokenizer.json"), deep.as_bytes()).expect("written");
    });
    expect("a nested tokenizer", &["model", "inspect", &nested], b"", &[0], "unusable");
}

#[test]
fn files() {
    let dir = TempDir::new("hostile-files");
    let pipe = dir.join("pipe.gguf");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    for command in ["inspect", "verify"] {
        expect("a pipe", &["model", command, text(&pipe)], b"", &[65], "a regular file is needed");
        expect("a device", &["model", command, "/dev/zero"], b"", &[65], "a regular file is needed");
    }
    let text_value = GgufValue::text;
    let base = |extra: &[(&'static str, GgufValue)]| {
        let mut pairs = vec![
            ("general.architecture", text_value("llama")),
            ("llama.embedding_length", GgufValue::U32(64)),
        ];
        pairs.extend(extra.iter().cloned());
        pairs
    };
    for number in [f32::NAN, f32::INFINITY] {
        let path =
            gguf(&dir.join("nan.gguf"), &base(&[("llama.rope.freq_base", GgufValue::F32(number))]), &[]);
        expect("freq_base", &["model", "inspect", &path], b"", &[65], "`llama.rope.freq_base` is ");
    }
    let path = gguf(&dir.join("missing.gguf"), &base(&[]), &[]);
    expect("a missing key", &["model", "inspect", &path], b"", &[0], "GGUF metadata: `llama.");
    for shape in [vec![0, 1 << 40, 1 << 40], vec![1 << 40, 1 << 40, 0], vec![1 << 33, 1 << 33]] {
        let tensor = TensorPlan {
            name: "token_embd.weight".into(),
            dtype: deephold_quant::DType::F32,
            shape,
            bytes: 0,
        };
        let path = gguf(&dir.join("dims.gguf"), &base(&[]), &[tensor]);
        for command in ["inspect", "verify"] {
            expect("dimensions", &["model", command, &path], b"", &[65], "overflows");
        }
    }
    let config = changed_guide(&dir, "config", |folder| {
        std::fs::write(folder.join("config.json"), "[".repeat(1 << 20)).expect("written");
    });
    expect("a nested configuration", &["model", "inspect", &config], b"", &[65], "config.json");
    let large = changed_guide(&dir, "large", |folder| {
        std::fs::write(folder.join("config.json"), " ".repeat(17 << 20)).expect("written");
    });
    expect("a large configuration", &["model", "inspect", &large], b"", &[65], "more than 16.0 MiB");
    // Beyond every context, and told so as the size that it is.
    let long = "word ".repeat(2 << 20);
    expect("a long prompt", &["generate", "guide", "-f", "-"], long.as_bytes(), &[65], "more than 8.0 MiB");
    let long = "word ".repeat(1_600_000);
    expect(
        "a long prompt within the limit",
        &["generate", "guide", "-f", "-", "-n", "1"],
        long.as_bytes(),
        &[65],
        "context",
    );
    expect("an endless prompt", &["generate", "guide", "-f", "/dev/zero"], b"", &[65], "more than 8.0 MiB");
    expect(
        "bytes that are no text",
        &["generate", "guide", "-f", "-"],
        b"ab\xff",
        &[65],
        "standard input is not UTF-8: byte 2",
    );
}

/// What a file says about itself reaches the terminal as text.
#[test]
fn names_do_not_steer_the_terminal() {
    let dir = TempDir::new("hostile-names");
    let evil = "\x1b]0;owned\x07\x1b[2J\u{9b}31m\u{202e}x";
    let pairs = [
        ("general.architecture", GgufValue::text(evil)),
        ("general.license", GgufValue::text(evil)),
        ("general.name", GgufValue::text(evil)),
    ];
    let tensor =
        TensorPlan { name: evil.into(), dtype: deephold_quant::DType::F32, shape: vec![0], bytes: 0 };
    let path = gguf(&dir.join("evil.gguf"), &pairs, std::slice::from_ref(&tensor));
    for args in [
        vec!["model", "inspect", &path, "--tensors"],
        vec!["model", "inspect", &path, "--tensors", "--json"],
        vec!["model", "verify", &path],
        vec!["model", "verify", &path, "--json"],
        vec!["generate", &path, "-p", "x"],
        vec!["quantize", &path, "/dev/null/x", "-f", "q8_0"],
    ] {
        expect("a name", &args, b"", &[0, 65, 69, 74], "");
    }
    let evil_config = changed_guide(&dir, "config", |folder| {
        edit_json(&folder.join("config.json"), |c| {
            c["architectures"] = json!([evil]);
            c["model_type"] = evil.into();
        });
    });
    expect("an architecture", &["model", "inspect", &evil_config], b"", &[0, 69], "\\x1b");
    let evil_readme = changed_guide(&dir, "readme", |folder| {
        std::fs::write(folder.join("README.md"), format!("---\nlicense: {evil}\n---\n")).expect("written");
    });
    expect("a licence", &["model", "inspect", &evil_readme], b"", &[0], "\\x1b");
}

/// `quantize` writes regular files alone, keeps what makes text, and says what it did instead of what was asked.
#[test]
fn quantize_replaces_files_only() {
    let dir = TempDir::new("hostile-quantize");
    let out = |name: &str| text(&dir.join(name)).to_owned();
    assert!(Command::new("mkfifo").arg(out("pipe")).status().expect("mkfifo").success());
    std::fs::write(out("file"), "precious").expect("written");
    std::os::unix::fs::symlink(out("file"), out("link")).expect("link");
    std::os::unix::fs::symlink(out("nothing"), out("dangling")).expect("link");
    for name in ["pipe", "link", "dangling"] {
        let path = out(name);
        expect(name, &["quantize", "guide", &path, "-f", "q8_0"], b"", &[73], "--force");
        expect(name, &["quantize", "guide", &path, "-f", "q8_0", "--force"], b"", &[65], "would be lost");
        assert!(!Path::new(&path).symlink_metadata().expect("still there").is_file());
    }
    expect("null", &["quantize", "guide", "/dev/null", "-f", "q8_0", "--force"], b"", &[65], "would be lost");
    assert_eq!(std::fs::read(out("file")).expect("file"), b"precious");
    expect("file", &["quantize", "guide", &out("file"), "-f", "q8_0", "--force"], b"", &[0], "q8_0");
    // The guide in the program has its vocabulary too.
    let answer = |model: &str| {
        let args = ["generate", model, "-p", "What is Deephold?", "--json"];
        let run = expect("guide", &args, b"", &[0], "");
        serde_json::from_str::<Value>(&run.out).expect("JSON")["text"].clone()
    };
    assert_eq!(answer(&out("file")), answer("guide"));
    let small = deephold_testkit::SyntheticModel::random_llama_256(1);
    let folder = dir.join("small");
    std::fs::create_dir(&folder).expect("folder");
    small.write(&folder);
    let notes = |format: &str| {
        expect(
            "notes",
            &["quantize", text(&folder), &out("small.gguf"), "-f", format, "--force"],
            b"",
            &[0],
            "",
        )
        .out
    };
    assert!(!notes("q8_0").contains("not whole blocks"));
    let guide = expect("notes", &["quantize", "guide", &out("q6"), "-f", "q6_k"], b"", &[0], "").out;
    let written = expect("types", &["model", "inspect", &out("q6")], b"", &[0], "").out;
    assert_eq!(
        guide.contains("not whole blocks"),
        written.contains("Q8_0") || written.contains("F16"),
        "{guide} {written}"
    );
}

/// A writer that is told to end leaves nothing.
#[test]
fn a_killed_writer_cleans_up() {
    let dir = TempDir::new("hostile-kill");
    let model = deephold_testkit::SyntheticModel::random_llama_256(1);
    model.write(dir.path());
    let before = names(&dir);
    for (signal, expected) in [("TERM", 130), ("HUP", 130), ("INT", 130)] {
        let mut child = Command::new(program())
            .args(["quantize", text(dir.path()), text(&dir.join("x.gguf")), "-f", "q6_k"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let start = Instant::now();
        let mut is_told = false;
        let code = loop {
            let partial = names(&dir).iter().any(|n| n.ends_with(".partial"));
            // Once: a second signal ends the program at once.
            if partial && !std::mem::replace(&mut is_told, true) {
                let killed =
                    Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
                killed.expect("kill");
            }
            if let Some(status) = child.try_wait().expect("waited") {
                break status.code();
            }
            assert!(start.elapsed() < Duration::from_secs(60));
        };
        // A fast machine may be done before the signal comes.
        assert!(code == Some(expected) || code == Some(0), "{signal}: {code:?}");
        let _ = std::fs::remove_file(dir.join("x.gguf"));
        assert_eq!(names(&dir), before, "{signal}");
    }
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).expect("folder");
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A reader that goes away is no error; a disk that is full is one.
#[test]
fn pipes_and_disks() {
    let dir = TempDir::new("hostile-pipes");
    let q8 = dir.join("guide.gguf");
    expect("guide", &["quantize", "guide", text(&q8), "-f", "q8_0"], b"", &[0], "");
    let file = text(&q8);
    for args in [
        vec!["model", "verify", file],
        vec!["model", "verify", file, "--json"],
        vec!["model", "inspect", file, "--tensors"],
        vec!["model", "inspect", file, "--tensors", "--json"],
        vec!["completions", "bash"],
        vec!["doctor", "--json"],
        vec!["doctor"],
        vec!["config", "reference"],
        vec!["generate", "guide", "-p", "What is Deephold?"],
        vec!["generate", "guide", "-p", "What is Deephold?", "--json"],
        vec!["chat", "-p", "What is Deephold?"],
        vec!["--help"],
        vec!["generate", "--help"],
    ] {
        let to = |stdout: Stdio| {
            let mut child = Command::new(program())
                .args(&args)
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(Stdio::piped())
                .spawn()
                .expect("starts");
            drop(child.stdout.take());
            let output = child.wait_with_output().expect("ends");
            (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
        };
        let (code, err) = to(Stdio::piped());
        assert!(code == Some(0) && !err.contains("error"), "{args:?} | true: {code:?} {err}");
        let is_help = args.contains(&"--help");
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let (code, err) = to(full.into());
        assert!(
            is_help || (code == Some(74) && err.contains("No space left")),
            "{args:?} > /dev/full: {code:?} {err}"
        );
    }
}

/// Each row of the table of exit codes that `deephold help` shows.
#[test]
fn exit_codes_are_those_of_the_table() {
    let dir = TempDir::new("hostile-codes");
    let table = expect("help", &["--help"], b"", &[0], "Exit codes:").out;
    let q8 = text(&dir.join("g.gguf")).to_owned();
    expect("written", &["quantize", "guide", &q8, "-f", "q8_0"], b"", &[0], "");
    let long = "word ".repeat(1200);
    for (args, code, part) in [
        (vec!["generate"], 64, "required"),
        (vec!["generate", "guide", "--nonsense"], 64, "--nonsense"),
        (
            vec!["generate", "guide", "-p", "x", "--top-p", "2"],
            64,
            "--top-p = 2 must be above 0 and at most 1",
        ),
        (
            vec!["generate", "guide", "-p", "x", "--temperature=-1"],
            64,
            "--temperature = -1 must be from 0 to 100",
        ),
        (vec!["generate", "guide", "-p", "x", "-n", "0"], 64, "--max-tokens = 0 must be at least 1"),
        (
            vec!["generate", "guide", "-p", "x", "-n", "2", "--min-tokens", "3"],
            64,
            "--min-tokens = 3 must be at most",
        ),
        (
            vec!["generate", "guide", "-p", "x", "--stop-id", "99999"],
            64,
            "--stop-id 99999 is beyond the vocabulary",
        ),
        (vec!["generate", "guide", "-p", "x", "-c", "1"], 64, "--context is at least 2"),
        (vec!["generate", "guide", "-p", "x", "-c", "100000"], 64, "--context 100000"),
        (
            vec!["generate", "guide", "-p", "x", "--cache-memory", "1KiB"],
            64,
            "--cache-memory = 1.0 KiB holds",
        ),
        (vec!["eval", "perplexity", "guide", "-", "--windows", "0"], 64, "--windows is at least 1"),
        (vec!["eval", "perplexity", "guide", "-", "-c", "3"], 64, "--context is at least 8"),
        (vec!["generate", "guide", "-p", &long], 65, "context"),
        (vec!["generate", "guide", "-p", "some words here", "-c", "4"], 65, "raise the context"),
        (vec!["model", "inspect", "/nowhere/x.gguf"], 66, "/nowhere/x.gguf"),
        (vec!["generate", "guide", "-f", "/nowhere/x.txt"], 66, "/nowhere/x.txt"),
        (vec!["generate", "guide", "-p", "x", "--template", "/nowhere/x.jinja"], 66, "/nowhere/x.jinja"),
        (vec!["eval", "perplexity", "guide", "/nowhere/x.txt"], 66, "/nowhere/x.txt"),
        (vec!["quantize", "guide", "/nowhere/x.gguf", "-f", "q8_0"], 66, "/nowhere"),
        (
            vec![
                "generate",
                "guide",
                "-p",
                "x",
                "--isa",
                if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" },
            ],
            69,
            "does not run",
        ),
        (vec!["quantize", "guide", &q8, "-f", "q8_0"], 73, "--force"),
    ] {
        let row = format!("\n  {code}  ");
        assert!(table.contains(&row), "{code} in {table}");
        expect("a code", &args, b"", &[code], part);
        // The same as JSON, where the command has JSON at all.
        if ["generate", "eval"].contains(&args[0]) && args.len() > 1 {
            let mut as_json = args.clone();
            as_json.push("--json");
            let run = expect("JSON", &as_json, b"", &[code], "");
            let error = &serde_json::from_str::<Value>(&run.out).expect("JSON")["error"];
            assert_eq!(error["exit_code"], code, "{args:?}");
            assert!(error["message"].as_str().is_some_and(|m| m.contains(part)) || code == 64, "{error}");
        }
    }
}

/// A name that other programs fetch models by is told from a path.
#[test]
fn names_of_models_get_a_hint() {
    for name in
        ["deepseek-r1:7b", "deepseek-ai/DeepSeek-V3", "https://huggingface.co/x/y", "llama3", "hf://x/y/z"]
    {
        for command in
            [vec!["generate", name, "-p", "x"], vec!["model", "inspect", name], vec!["chat", name, "-p", "x"]]
        {
            expect(name, &command, b"", &[66], "never fetches a model by name");
        }
    }
    for path in ["./deepseek", "/models/x", "a/b/c", "model.gguf", "~/x"] {
        let run = expect(path, &["model", "inspect", path], b"", &[66], path);
        assert!(!run.err.contains("never fetches"), "{path}: {}", run.err);
    }
}

/// What is piped in and what is asked go together, and `--thinking` leaves the next word alone.
#[test]
fn arguments_mean_what_they_say() {
    let ids = |args: &[&str], input: &[u8]| {
        let run = expect("ids", args, input, &[0], "");
        serde_json::from_str::<Value>(&run.out).expect("JSON")["prompt_ids"].clone()
    };
    let joined = ids(&["generate", "guide", "-p", "What is it?\n\nA house.", "-n", "1", "--json"], b"");
    let dir = TempDir::new("hostile-arguments");
    let about = dir.join("about.txt");
    std::fs::write(&about, "A house.\n").expect("written");
    let both = ["generate", "guide", "-p", "What is it?", "-f", text(&about), "-n", "1", "--json"];
    assert_eq!(ids(&both, b""), joined);
    assert_eq!(
        ids(&["generate", "guide", "-p", "What is it?", "-f", "-", "-n", "1", "--json"], b"A house.\n"),
        joined
    );
    let said = |args: &[&str], input: &[u8]| expect("chat", args, input, &[0], "").out;
    assert_eq!(
        said(&["chat", "guide", "-p", "What is", "-n", "4"], b"Deephold?"),
        said(&["chat", "guide", "-p", "What is\n\nDeephold?", "-n", "4"], b"")
    );
    said(&["chat", "--thinking", "guide", "-p", "x", "-n", "1"], b"");
    said(&["chat", "--thinking=false", "guide", "-p", "x", "-n", "1"], b"");
    expect("guide", &["model", "verify", "guide"], b"", &[0], "sound");
    // More sequences than wait by default.
    let bench = ["bench", "guide", "-b", "1025", "-p", "0", "-n", "1", "--runs", "1", "-c", "64", "--json"];
    expect("bench", &bench, b"", &[0], "figures");
}

/// `generate --json` has all that a script needs.
#[test]
fn answers_as_json_are_whole() {
    let args = ["generate", "guide", "-p", "What is Deephold?", "--temperature", "0.8", "--json"];
    let first: Value = serde_json::from_str(&expect("JSON", &args, b"", &[0], "").out).expect("JSON");
    let seed = first["seed"].as_u64().expect("a seed").to_string();
    let again = [&args[..], &["--seed", &seed]].concat();
    let second: Value = serde_json::from_str(&expect("JSON", &again, b"", &[0], "").out).expect("JSON");
    assert_eq!(first["ids"], second["ids"]);
    let tokens = first["tokens"].as_array().expect("tokens");
    assert_eq!(tokens.len(), first["ids"].as_array().expect("ids").len());
    let joined: String = tokens.iter().filter_map(|t| t["text"].as_str()).collect();
    assert!(joined.starts_with(first["text"].as_str().expect("text")), "{joined}");
    assert_eq!(first["content"], first["text"]);
    assert_eq!(first["reasoning_content"], Value::Null);
}

/// The hint of a manifest that no longer agrees is true.
#[test]
fn a_manifest_can_be_renewed() {
    let dir = TempDir::new("hostile-manifest");
    let model = changed_guide(&dir, "model", |_| ());
    expect("new", &["model", "verify", &model, "--write-manifest"], b"", &[0], "manifest written");
    let config = Path::new(&model).join("generation_config.json");
    edit_json(&config, |c| c["temperature"] = 0.5.into());
    expect("changed", &["model", "verify", &model], b"", &[65], "--write-manifest");
    expect(
        "renewed",
        &["model", "verify", &model, "--write-manifest"],
        b"",
        &[0],
        "the new manifest takes it as it is",
    );
    expect("sound", &["model", "verify", &model], b"", &[0], "digests equal the manifest's");
}
