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
use crate::console::{marked, out, plain};
use crate::fail::bad_argument;
use crate::guide;
use crate::loaded::hinted;
use crate::terminal::{self, Style};

pub(crate) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let is_built_in = guide::is_meant(&args.path);
    if is_built_in && args.write_manifest {
        return Err(bad_argument(
            "the built-in guide is part of the program and has no files to write digests of",
        ));
    }
    let checkpoint = if is_built_in {
        guide::open()?
    } else {
        hinted(Checkpoint::open_for_verify(&args.path), &args.path)?
    };
    terminal::catch_interrupts();
    let expected = expected_tensors(&checkpoint);
    let layers = checkpoint.config().get("num_hidden_layers").and_then(serde_json::Value::as_u64);
    let may_stay = |name: &str| {
        let layers = usize::try_from(layers.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        ignored_tensor(name, layers).map(str::to_owned)
    };
    let options = VerifyOptions {
        finite: !args.quick,
        digests: !args.quick && !is_built_in,
        renew: args.write_manifest,
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
            marked!(
                "{}: {}: {}; {}",
                style.verdict(p.harmless, mark),
                plain(&p.place),
                plain(&p.what),
                plain(&p.hint)
            )?;
        }
        for f in report.files.iter().filter(|f| f.sha256.is_some()) {
            out!("{}  {}", f.sha256.as_deref().unwrap_or_default(), plain(&f.path))?;
        }
        let compared = match (report.manifest, args.quick) {
            _ if is_built_in => "part of the program, without files of its own",
            _ if args.write_manifest => "digests are those of the files now",
            (_, true) => "values and digests not checked",
            (true, false) => "digests equal the manifest's",
            (false, false) => "there is no manifest to compare digests with",
        };
        let verdict = style.verdict(sound, if sound { "sound" } else { "not sound" });
        let compared = if sound { compared } else { "see above" };
        marked!("{verdict}: {} tensors, {} values read, {compared}", report.tensors, report.values)?;
        if let Some(path) = manifest {
            out!("manifest written to {}", plain(&path.display().to_string()))?;
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
