//! `deephold generate`.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use deephold_base::TokenId;
use deephold_engine::{Request, SamplingParams};
use deephold_tokenizer::{
    ChatFormat, ChatTemplate, Detokenizer, Dialect, ParsedAnswer, RenderOptions, Tokenizer, TokenizerError,
    parse_answer,
};
use serde_json::{Value, json};

use super::print_json;
use crate::answer::{Answer, answer, params};
use crate::cli::{GenerateArgs, TemplateArgs};
use crate::fail::{fail, invalid};
use crate::input::{read_text, read_text_within};
use crate::loaded::{Loaded, load};
use crate::{system, terminal};

/// The longest template; published ones stay below 20 KiB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

pub(crate) fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let text = prompt_text(args)?;
    let wanted = args.guide.wanted()?;
    let loaded = load(&args.model, &args.engine)?;
    let tools = wanted.as_ref().and_then(|w| w.tools.clone());
    let (prompt, chat) = match (&args.prompt_ids, &text) {
        (Some(ids), _) => (ids.clone(), None),
        (None, Some(text)) => encode(args, &loaded, text, tools)?,
        (None, None) => return Err(invalid("give --prompt, --prompt-file or --prompt-ids")),
    };
    let mut core = loaded.engine(&args.engine, 1, |_| ())?;
    let load_time = loaded.load_time;
    let (tokenizer, checkpoint) = (loaded.tokenizer.map(Arc::new), loaded.checkpoint);
    let mut request = Request::new(0, prompt.clone(), SamplingParams::default());
    if let Some(wanted) = &wanted {
        let tokenizer = match &tokenizer {
            Ok(tokenizer) => Arc::clone(tokenizer),
            Err(e) => return Err(fail(e.code(), e.to_string())),
        };
        if wanted.tools.is_some() && chat.is_none() {
            return Err(invalid("--tools needs a model with a chat template, and a prompt as text"));
        }
        let dialect = chat.as_ref().map_or(Dialect::Plain, |c| c.dialect);
        let rendered = chat.as_ref().map(|c| c.prompt.as_str());
        request.constraint =
            Some(wanted.constraint(tokenizer, dialect, rendered, args.conversation.thinking)?);
    }
    let tokenizer = tokenizer.as_deref().ok();
    if tokenizer.is_none() && !args.sampling.stop.is_empty() {
        return Err(invalid("--stop needs the model's tokenizer; use --stop-id"));
    }
    request.params = params(&args.sampling, SamplingParams::default(), tokenizer, &checkpoint);
    request.params.logprobs = args.logprobs;
    terminal::catch_interrupts();
    let mut out = std::io::stdout().lock();
    let has_tools = wanted.as_ref().is_some_and(|w| w.tools.is_some());
    // Calls are told from text once both are whole.
    let streams = !args.json && !has_tools;
    let a = answer(&mut core, tokenizer, request, &args.sampling.stop, &mut |text| {
        if streams {
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    })?;
    drop(out);
    let parsed = match (tokenizer, &chat) {
        (Some(tokenizer), Some(chat)) if has_tools => Some(parse(&a, tokenizer, &prompt, chat)),
        _ => None,
    };
    let calls = |p: &ParsedAnswer| -> Vec<Value> {
        p.tool_calls.iter().map(|c| json!({ "name": c.name, "arguments": c.arguments })).collect()
    };
    if args.json {
        let mut out = report(&prompt, &a, load_time, tokenizer.is_some());
        if let Some(parsed) = &parsed {
            out["content"] = parsed.content.as_str().into();
            out["tool_calls"] = calls(parsed).into();
        }
        print_json(&out)?;
    } else if let Some(parsed) = &parsed {
        if !parsed.content.trim().is_empty() {
            println!("{}", parsed.content);
        }
        calls(parsed).iter().for_each(|call| println!("{call}"));
    } else if tokenizer.is_none() {
        let ids: Vec<String> = a.ids().iter().map(TokenId::to_string).collect();
        println!("{}", ids.join(","));
    } else if !a.text.ends_with('\n') {
        println!();
    }
    Ok(if a.finish_reason == "abort" { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// What a chat's answer is read by.
struct Chat {
    prompt: String,
    dialect: Dialect,
}

/// The answer once more, with the marks that calls are written in.
fn parse(a: &Answer, tokenizer: &Tokenizer, prompt: &[TokenId], chat: &Chat) -> ParsedAnswer {
    let marks = chat.dialect.visible_tokens().iter().filter_map(|mark| tokenizer.token_to_id(mark)).collect();
    let mut detokenizer = Detokenizer::after(tokenizer, prompt).show(marks);
    let mut text: String = a.tokens.iter().map(|t| detokenizer.push(tokenizer, t.id)).collect();
    text += &detokenizer.finish();
    parse_answer(chat.dialect, &chat.prompt, true, &text)
}

fn prompt_text(args: &GenerateArgs) -> Result<Option<String>> {
    if let Some(path) = &args.prompt_file {
        return read_text(path).map(Some);
    }
    Ok(args.prompt.clone())
}

fn encode(
    args: &GenerateArgs,
    loaded: &Loaded,
    text: &str,
    tools: Option<Value>,
) -> Result<(Vec<TokenId>, Option<Chat>)> {
    let tokenizer = loaded.tokenizer()?;
    if args.raw {
        return Ok((tokenizer.encode_prompt(text)?, None));
    }
    match chat_format(loaded, tokenizer, &args.conversation)? {
        Ok(format) => {
            let mut messages = Vec::new();
            if let Some(system) = &args.conversation.system {
                messages.push(json!({ "role": "system", "content": system }));
            }
            messages.push(json!({ "role": "user", "content": text }));
            let prompt = render(&format, &messages, tools, &args.conversation)?;
            let ids = tokenizer.encode(&prompt)?;
            Ok((ids, Some(Chat { prompt, dialect: format.tool_dialect() })))
        }
        // A model that only continues text.
        Err(TokenizerError::NoTemplate) if args.conversation.system.is_none() => {
            Ok((tokenizer.encode_prompt(text)?, None))
        }
        Err(e) => Err(e.into()),
    }
}

/// `--template`, else the model's own way, if it has one.
pub(crate) fn chat_format(
    loaded: &Loaded,
    tokenizer: &Tokenizer,
    args: &TemplateArgs,
) -> Result<Result<ChatFormat, TokenizerError>> {
    let Some(path) = &args.template else {
        return Ok(ChatFormat::from_checkpoint(&loaded.checkpoint, tokenizer));
    };
    let source = read_text_within(path, MAX_TEMPLATE_BYTES)?;
    Ok(Ok(ChatFormat::Template(Box::new(ChatTemplate::new(&source, tokenizer)?))))
}

/// The prompt that asks for the next answer.
pub(crate) fn render(
    format: &ChatFormat,
    messages: &[Value],
    tools: Option<Value>,
    args: &TemplateArgs,
) -> Result<String> {
    let options = RenderOptions {
        tools,
        add_generation_prompt: true,
        thinking: args.thinking,
        unix_seconds: system::unix_seconds(),
        ..RenderOptions::default()
    };
    format.render(&Value::Array(messages.to_vec()), &options).map_err(|e| fail(e.code(), e.to_string()))
}

fn report(prompt: &[TokenId], a: &Answer, load_time: Duration, has_text: bool) -> Value {
    let logprobs: Vec<Value> = a
        .tokens
        .iter()
        .filter_map(|t| {
            let logprob = t.logprob?;
            let top: Vec<Value> =
                t.top.iter().map(|(id, logprob)| json!({ "id": id, "logprob": logprob })).collect();
            Some(json!({ "id": t.id, "logprob": logprob, "top": top }))
        })
        .collect();
    let rate = |tokens: usize, time: Duration| {
        let seconds = time.as_secs_f64();
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    };
    json!({
        "prompt_ids": prompt,
        "ids": a.ids(),
        "text": has_text.then_some(&a.text),
        "finish_reason": a.finish_reason,
        "logprobs": (!logprobs.is_empty()).then_some(logprobs),
        "usage": {
            "prompt_tokens": prompt.len(),
            "completion_tokens": a.tokens.len(),
            "total_tokens": prompt.len() + a.tokens.len(),
            "cached_tokens": a.cached_tokens,
        },
        "timings": {
            "load_s": load_time.as_secs_f64(),
            "prompt_s": a.prompt_time.as_secs_f64(),
            "decode_s": a.decode_time.as_secs_f64(),
            "prompt_tokens_per_s": rate(prompt.len() - a.cached_tokens.min(prompt.len()), a.prompt_time),
            "decode_tokens_per_s": a.decode_rate(),
        },
    })
}
