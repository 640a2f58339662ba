//! `deephold generate`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use deephold_base::TokenId;
use deephold_engine::{Request, SamplingParams, sampler};
use deephold_tokenizer::{
    ChatFormat, ChatTemplate, Detokenizer, Dialect, ParsedAnswer, ReasoningSplitter, RenderOptions, Segment,
    Tokenizer, TokenizerError, parse_answer,
};
use serde_json::{Value, json};

use super::print_json;
use crate::answer::{Answer, answer, params};
use crate::cli::{GenerateArgs, TemplateArgs};
use crate::console::{self, AnswerText, out};
use crate::fail::{bad_argument, fail};
use crate::input::{joined, read_text, read_text_within};
use crate::loaded::{Loaded, load, refuse_hopeless};
use crate::{system, terminal};

/// The longest template; DeepSeek-V3.2's has 8 KiB.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

pub(crate) fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let text = prompt_text(args)?;
    let wanted = args.guide.wanted()?;
    let loaded = load(&args.model, &args.engine)?;
    let tools = wanted.as_ref().and_then(|w| w.tools.clone());
    let (prompt, chat) = match (&args.prompt_ids, &text) {
        (Some(ids), _) => (ids.clone(), None),
        (None, Some(text)) => encode(args, &loaded, text, tools)?,
        (None, None) => return Err(bad_argument("give --prompt, --prompt-file or --prompt-ids")),
    };
    // A step is what Ctrl-C waits for.
    let mut core =
        loaded.engine(&args.engine, 1, |c| c.policy.solo_target = Some(Duration::from_millis(250)))?;
    let vocab_size = loaded.model.info().vocab_size;
    let load_time = loaded.load_time;
    let (tokenizer, checkpoint) = (loaded.tokenizer.map(Arc::new), loaded.checkpoint);
    let mut request = Request::new(0, prompt.clone(), SamplingParams::default());
    if let Some(wanted) = &wanted {
        let tokenizer = match &tokenizer {
            Ok(tokenizer) => Arc::clone(tokenizer),
            Err(e) => return Err(fail(e.code(), e.to_string())),
        };
        if wanted.tools.is_some() && chat.is_none() {
            return Err(bad_argument("--tools needs a model with a chat template, and a prompt as text"));
        }
        let dialect = chat.as_ref().map_or(Dialect::Plain, |c| c.dialect);
        let rendered = chat.as_ref().map(|c| c.prompt.as_str());
        request.constraint =
            Some(wanted.constraint(tokenizer, dialect, rendered, args.conversation.thinking)?);
    }
    let tokenizer = tokenizer.as_deref().ok();
    if tokenizer.is_none() && !args.sampling.stop.is_empty() {
        return Err(bad_argument("--stop needs the model's tokenizer; use --stop-id"));
    }
    request.params = params(&args.sampling, SamplingParams::default(), tokenizer, vocab_size, &checkpoint)?;
    // Drawn here, so that it can be told.
    let seed = *request.params.seed.get_or_insert_with(sampler::drawn_seed);
    request.params.logprobs = args.logprobs;
    terminal::catch_interrupts();
    let screen = AnswerText::stdout();
    let has_tools = wanted.as_ref().is_some_and(|w| w.tools.is_some());
    // Calls are told from text once both are whole.
    let streams = !args.json && !has_tools;
    let a = answer(
        &mut core,
        tokenizer,
        request,
        &args.sampling.stop,
        &mut |text| {
            if streams {
                screen.write(text)?;
            }
            Ok(())
        },
        &mut || (),
    )?;
    let parsed = match (tokenizer, &chat) {
        (Some(tokenizer), Some(chat)) if has_tools => Some(parse(&a, tokenizer, &prompt, chat)),
        _ => None,
    };
    let calls = |p: &ParsedAnswer| -> Vec<Value> {
        p.tool_calls.iter().map(|c| json!({ "name": c.name, "arguments": c.arguments })).collect()
    };
    if args.json {
        let mut out = report(&prompt, &a, load_time, tokenizer);
        out["seed"] = seed.into();
        if let Some(chat) = &chat {
            let (thinking, content) = split(chat, &a.text);
            out["reasoning_content"] = json!(thinking);
            out["content"] = content.into();
        }
        if let Some(parsed) = &parsed {
            out["content"] = parsed.content.as_str().into();
            out["tool_calls"] = calls(parsed).into();
        }
        print_json(&out)?;
    } else if let Some(parsed) = &parsed {
        if !parsed.content.trim().is_empty() {
            screen.write(&format!("{}\n", parsed.content))?;
        }
        for call in calls(parsed) {
            out!("{}", console::json_text(&call, false))?;
        }
    } else if tokenizer.is_none() {
        let ids: Vec<String> = a.ids().iter().map(TokenId::to_string).collect();
        out!("{}", ids.join(","))?;
    } else if !a.text.ends_with('\n') {
        out!()?;
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
    let file = args.prompt_file.as_deref().map(read_text).transpose()?;
    Ok(match (&args.prompt, file) {
        // A question and what it is about.
        (Some(prompt), Some(file)) => Some(joined(prompt, &file)),
        (prompt, file) => file.or_else(|| prompt.clone()),
    })
}

fn encode(
    args: &GenerateArgs,
    loaded: &Loaded,
    text: &str,
    tools: Option<Value>,
) -> Result<(Vec<TokenId>, Option<Chat>)> {
    let tokenizer = loaded.tokenizer()?;
    refuse_hopeless(tokenizer, text, loaded.context(&args.engine)?)?;
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

/// What was thought, if anything, and what was answered.
fn split(chat: &Chat, text: &str) -> (Option<String>, String) {
    let (mut thinking, mut content) = (String::new(), String::new());
    let mut splitter = ReasoningSplitter::after_prompt(&chat.prompt);
    let mut segments = splitter.push(text);
    segments.extend(splitter.finish());
    for segment in segments {
        match segment {
            Segment::Reasoning(text) => thinking += &text,
            Segment::Content(text) => content += &text,
        }
    }
    ((!thinking.is_empty()).then_some(thinking), content)
}

fn report(prompt: &[TokenId], a: &Answer, load_time: Duration, tokenizer: Option<&Tokenizer>) -> Value {
    // A token may end within a character; its bytes then say what its text cannot.
    let token = |id: TokenId| match tokenizer.map(|t| t.token_bytes(id)) {
        None => json!({ "id": id }),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!({ "id": id, "text": text }),
            Err(_) => json!({ "id": id, "text": String::from_utf8_lossy(bytes), "bytes": bytes }),
        },
    };
    let tokens: Vec<Value> = a.ids().into_iter().map(token).collect();
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
        "tokens": tokens,
        "text": tokenizer.map(|_| &a.text),
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
