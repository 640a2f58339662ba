//! `deephold model load | unload | list`: the models of a running server.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use deephold_base::{ErrorCode, human_bytes};
use deephold_server::LoadProgress;
use deephold_server::admin::{self, AdminAnswer, AdminRequest};
use serde_json::json;

use super::print_json;
use super::serve::named;
use crate::cli::{ModelListArgs, ModelLoadArgs, ModelUnloadArgs, StateArgs};
use crate::console::{out, plain};
use crate::fail::{fail, invalid};
use crate::state_dir::StateDir;
use crate::{guide, terminal};

pub(crate) fn load(args: &ModelLoadArgs) -> Result<ExitCode> {
    let (name, path) = named(&args.model)?;
    // The server runs in another folder, maybe.
    let path = match guide::is_meant(Path::new(&path)) {
        true => path,
        false => {
            let whole = std::fs::canonicalize(&path).with_context(|| format!("cannot open {path}"))?;
            whole.to_str().map(str::to_owned).ok_or_else(|| invalid("the model's path is not UTF-8"))?
        }
    };
    let answer = ask(&args.state, &AdminRequest::LoadModel { name: name.clone(), path })?;
    changed(answer, args.json, &json!({ "loaded": name }), &format!("`{name}` answers now"))
}

pub(crate) fn unload(args: &ModelUnloadArgs) -> Result<ExitCode> {
    let answer = ask(&args.state, &AdminRequest::UnloadModel { name: args.name.clone() })?;
    let name = &args.name;
    changed(
        answer,
        args.json,
        &json!({ "unloaded": name }),
        &format!("`{name}` is unloaded; its memory is free"),
    )
}

pub(crate) fn list(args: &ModelListArgs) -> Result<ExitCode> {
    let AdminAnswer::Models(models) = ask(&args.state, &AdminRequest::ListModels)? else {
        return unexpected();
    };
    if args.json {
        return print_json(&serde_json::to_value(&models)?).map(|()| ExitCode::SUCCESS);
    }
    for m in models {
        out!(
            "{}  {}  {} context  {} cache  {} running  {} waiting  {}",
            plain(&m.name),
            plain(&m.facts.architecture),
            m.facts.context,
            human_bytes(m.cache_bytes as u64),
            m.running,
            m.waiting,
            m.facts.digest
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(state: &StateArgs, request: &AdminRequest) -> Result<AdminAnswer> {
    let mut bar = terminal::named_phases();
    let mut progress = |step: LoadProgress| bar(&step.phase, step.done, step.total);
    match admin::ask_server(&StateDir::of(state)?.socket(), request, &mut progress)? {
        Some(AdminAnswer::Refused(why)) => Err(invalid(why)),
        Some(answer) => Ok(answer),
        None => Err(fail(ErrorCode::NotFound, "no server runs on this state; `deephold serve` starts one")),
    }
}

fn changed(answer: AdminAnswer, json: bool, value: &serde_json::Value, words: &str) -> Result<ExitCode> {
    match answer {
        AdminAnswer::ModelChanged if json => print_json(value)?,
        AdminAnswer::ModelChanged => out!("{words}")?,
        _ => return unexpected(),
    }
    Ok(ExitCode::SUCCESS)
}

fn unexpected() -> Result<ExitCode> {
    Err(fail(ErrorCode::Internal, "the server answered another question"))
}
