//! `deephold model verify`.

use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Result;
use deephold_base::ErrorCode;
use deephold_models::{ModelError, expected_tensors, ignored_tensor};
use deephold_weights::verify::{self, Stage, VerifyOptions};
use deephold_weights::{Checkpoint, Finding, FindingKind};
use serde_json::json;

use super::print_json;
use crate::cli::VerifyArgs;
use crate::terminal::{self, Style};

pub(crate) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let checkpoint = Checkpoint::open_for_verify(&args.path)?;
    terminal::catch_interrupts();
    let expected = expected_tensors(&checkpoint);
    let layers = checkpoint.config().get("num_hidden_layers").and_then(serde_json::Value::as_u64);
    let may_stay = |name: &str| {
        let layers = usize::try_from(layers.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        ignored_tensor(name, layers).map(str::to_owned)
    };
    let options = VerifyOptions {
        finite: !args.quick,
        digests: !args.quick,
        may_stay: Some(&may_stay),
        ..VerifyOptions::default()
    };
    let bar = terminal::byte_bar("verifying", 0);
    let report = verify::check(&checkpoint, expected.as_deref().ok(), options, &mut |p| {
        bar.set_message(match p.stage {
            Stage::Values => "values",
            Stage::Digests => "digests",
        });
        bar.set_length(p.total_bytes);
        bar.set_position(p.done_bytes);
        if terminal::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let mut report = report?;
    if let Err(e) = &expected {
        report.problems.push(config_problem(e));
    }
    let sound = report.is_sound();
    // A manifest of a broken model would certify it.
    let manifest =
        if args.write_manifest && sound { Some(verify::write_manifest(&checkpoint, &report)?) } else { None };
    if args.json {
        let mut out = serde_json::to_value(&report)?;
        out["sound"] = sound.into();
        out["manifest_written"] = json!(manifest.as_ref().map(|m| m.display().to_string()));
        print_json(&out)?;
    } else {
        let style = Style::stdout();
        for p in &report.problems {
            let mark = if p.harmless { "note" } else { "wrong" };
            println!("{}: {}: {}; {}", style.verdict(p.harmless, mark), p.place, p.what, p.hint);
        }
        for f in report.files.iter().filter(|f| f.sha256.is_some()) {
            println!("{}  {}", f.sha256.as_deref().unwrap_or_default(), f.path);
        }
        let compared = match (report.manifest, args.quick) {
            (_, true) => "values and digests not checked",
            (true, false) => "digests equal the manifest's",
            (false, false) => "there is no manifest to compare digests with",
        };
        let verdict = style.verdict(sound, if sound { "sound" } else { "not sound" });
        let compared = if sound { compared } else { "see above" };
        println!("{verdict}: {} tensors, {} values read, {compared}", report.tensors, report.values);
        if let Some(path) = manifest {
            println!("manifest written to {}", path.display());
        }
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(ErrorCode::InvalidInput.exit_code()) })
}

fn config_problem(error: &ModelError) -> Finding {
    Finding {
        kind: FindingKind::Config,
        what: error.to_string(),
        place: "config.json".to_owned(),
        hint: "shapes were not compared".to_owned(),
        harmless: false,
    }
}
