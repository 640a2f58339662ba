//! `deephold audit replay`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use deephold_audit::{Filter, Reader, Record};
use deephold_base::{ErrorCode, TokenId};
use deephold_engine::{EngineCore, FinishReason, Request, SamplingParams};
use deephold_kernels::Isa;
use deephold_server::{Recorded, Replay};
use serde_json::json;

use super::{print_json, print_table};
use crate::cli::{AuditReplayArgs, CacheType, EngineArgs, LoadAs};
use crate::fail::{fail, invalid};
use crate::input::read_text;
use crate::loaded::{chat_format, digest, load_checkpoint, machine, open};
use crate::state_dir::StateDir;
use crate::{guide, terminal};

pub(crate) fn run(args: &AuditReplayArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let record = find(&Reader::new(&StateDir::of(&args.state)?.log_dir()), &args.id)?;
    let recorded = Recorded::parse(&record.data)?;
    let params = recorded.params()?;
    let body = args.request.as_deref().map(read_text).transpose()?;
    let path = match &args.model {
        Some(path) => path.clone(),
        None if recorded.model == guide::NAME => PathBuf::from(guide::NAME),
        None => return Err(invalid(format!("`{}` answered; give its files as --model", recorded.model))),
    };
    let engine = engine_args(args, &recorded)?;
    let checkpoint = Arc::new(open(&path)?);
    let digest = digest(&checkpoint, &mut terminal::phases());
    if digest != recorded.facts.digest {
        let message = format!(
            "{} is another model than the one that answered: its digest is {digest}, the record's is {}",
            path.display(),
            recorded.facts.digest
        );
        return Err(invalid(message));
    }
    let machine = machine(&engine)?;
    let isa = machine.ops().isa().name().to_owned();
    let loaded = load_checkpoint(checkpoint, &machine, &engine, start, &mut terminal::phases())?;
    let mut core = loaded.engine(&engine, params.n, |_| ())?;
    let (tokenizer, checkpoint, memory) = loaded.into_parts()?;
    core.hold(memory);
    let tokenizer = Arc::new(tokenizer);
    let chat = chat_format(&checkpoint, &tokenizer)?;
    let replay = recorded.replay(body.as_deref().map(str::as_bytes), &tokenizer, chat.as_ref())?;
    let answers = recorded.compare(&compute(&mut core, &replay, &params)?);

    let same = answers.iter().all(|a| a.same);
    let code = if same { ExitCode::SUCCESS } else { ExitCode::from(65) };
    let program = env!("CARGO_PKG_VERSION");
    if args.json {
        print_json(&json!({
            "seq": record.seq, "request_id": recorded.request_id, "model": recorded.model, "digest": digest,
            "program": { "recorded": recorded.program, "now": program },
            "isa": { "recorded": recorded.facts.isa, "now": isa },
            "answers": answers, "same": same,
        }))?;
        return Ok(code);
    }
    let both = |recorded: &str, now: &str| match recorded == now {
        true => now.to_owned(),
        false => format!("{now}; the record's is {recorded}, so other tokens prove nothing"),
    };
    let mut rows = vec![
        ("record", format!("{} of {}, request {}", record.seq, record.time, recorded.request_id)),
        ("model", format!("{} {digest}", recorded.model)),
        ("program", both(&recorded.program, program)),
        ("instructions", both(&recorded.facts.isa, &isa)),
    ];
    rows.extend(answers.iter().map(|a| {
        let verdict = match (a.same, a.differs_at) {
            (true, _) => format!("{} tokens, the same", a.tokens),
            (false, Some(at)) => format!("{} tokens, another one at {at}", a.tokens),
            (false, None) => format!("{} tokens, not the same", a.tokens),
        };
        ("answer", verdict)
    }));
    print_table(&rows)?;
    Ok(code)
}

/// By number, or by the request's id with or without what the API puts before it.
fn find(reader: &Reader, id: &str) -> Result<Record> {
    let found = if let Ok(seq) = id.parse() {
        reader.get(seq)?
    } else {
        let request = id.trim_start_matches("chatcmpl-").trim_start_matches("cmpl-");
        let filter =
            Filter { kind: Some("request".to_owned()), text: Some(request.to_owned()), ..Filter::default() };
        let mut found = None;
        reader.each(&filter, &mut |record, _| {
            let is_it = record.data.get("request_id").and_then(|v| v.as_str()) == Some(request);
            found = is_it.then_some(record);
            !is_it
        })?;
        found
    };
    let found = found.ok_or_else(|| {
        invalid(format!("the log has no record `{id}`; `deephold audit show --kind request` lists them"))
    })?;
    if found.kind == "request" {
        return Ok(found);
    }
    Err(invalid(format!("record {id} is of kind `{}`; only `request` has an answer", found.kind)))
}

/// Everything as the record says, but the threads, which change no result.
fn engine_args(args: &AuditReplayArgs, recorded: &Recorded) -> Result<EngineArgs> {
    let facts = &recorded.facts;
    let unknown = |what: &str| fail(ErrorCode::Unsupported, format!("this program does not know {what}"));
    let recorded_isa = facts.isa.parse::<Isa>().ok().filter(|isa| isa.is_available());
    let load_as = facts.load_as.as_deref().map(|name| LoadAs::from_str(name, false));
    Ok(EngineArgs {
        threads: args.threads,
        pin: false,
        isa: args.isa.or(recorded_isa),
        context: (facts.context > 0).then_some(facts.context),
        cache_type: CacheType::from_str(&facts.cache_type, false)
            .map_err(|_| unknown(&format!("the cache type `{}`", facts.cache_type)))?,
        cache_memory: None,
        load_as: load_as.transpose().map_err(|_| unknown("what the record's model was quantized to"))?,
        ignore_memory: false,
    })
}

/// All answers' ids, those to the first prompt first.
fn compute(core: &mut EngineCore, replay: &Replay, params: &SamplingParams) -> Result<Vec<Vec<TokenId>>> {
    let mut answers = vec![Vec::new(); replay.prompts.len() * params.n];
    let bar = terminal::step_bar("computing", params.max_tokens.saturating_mul(answers.len()) as u64);
    for (id, prompt) in (0..).zip(&replay.prompts) {
        let mut request = Request::new(id, prompt.clone(), params.clone());
        request.constraint.clone_from(&replay.constraint);
        core.add_request(request)?;
    }
    while core.has_work() {
        for output in core.step().outputs {
            if output.finish_reason == Some(FinishReason::Error) {
                let message = output.message.unwrap_or_else(|| "the engine failed".to_owned());
                return Err(fail(ErrorCode::InvalidInput, message));
            }
            bar.inc(output.tokens.len() as u64);
            answers[output.id.0 as usize * params.n + output.seq_idx]
                .extend(output.tokens.iter().map(|t| t.id));
        }
    }
    bar.finish_and_clear();
    Ok(answers)
}
