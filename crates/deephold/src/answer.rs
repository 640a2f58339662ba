//! One answer from the engine, streamed.

use std::time::{Duration, Instant};

use anyhow::Result;
use deephold_base::{ErrorCode, TokenId};
use deephold_engine::{EngineCore, FinishReason, Request, SampledToken, SamplingParams};
use deephold_tokenizer::{Detokenizer, StopMatcher, Tokenizer};
use deephold_weights::Checkpoint;
use serde_json::Value;

use crate::cli::SamplingArgs;
use crate::fail::{bad_argument, fail};
use crate::terminal;

/// What came, and how long it took.
pub(crate) struct Answer {
    pub(crate) tokens: Vec<SampledToken>,
    /// Without control tokens; empty without a tokenizer.
    pub(crate) text: String,
    pub(crate) finish_reason: &'static str,
    pub(crate) cached_tokens: usize,
    /// Until the first token.
    pub(crate) prompt_time: Duration,
    /// After it.
    pub(crate) decode_time: Duration,
}

impl Answer {
    pub(crate) fn ids(&self) -> Vec<TokenId> {
        self.tokens.iter().map(|t| t.id).collect()
    }

    /// Tokens after the first, a second.
    pub(crate) fn decode_rate(&self) -> Option<f64> {
        let seconds = self.decode_time.as_secs_f64();
        (self.tokens.len() > 1 && seconds > 0.0).then(|| (self.tokens.len() - 1) as f64 / seconds)
    }
}

/// Sampling parameters: the arguments, then `defaults`, then the model's end tokens.
pub(crate) fn params(
    args: &SamplingArgs,
    mut defaults: SamplingParams,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    checkpoint: &Checkpoint,
) -> Result<SamplingParams> {
    if let Some(id) = args.stop_id.iter().find(|id| **id as usize >= vocab_size) {
        let message = format!("--stop-id {id} is beyond the vocabulary of {vocab_size}");
        return Err(bad_argument(message));
    }
    fn set<T: Copy>(value: Option<T>, place: &mut T) {
        if let Some(value) = value {
            *place = value;
        }
    }
    set(args.max_tokens, &mut defaults.max_tokens);
    set(args.temperature, &mut defaults.temperature);
    set(args.top_k, &mut defaults.top_k);
    set(args.top_p, &mut defaults.top_p);
    set(args.min_p, &mut defaults.min_p);
    set(args.repetition_penalty, &mut defaults.repetition_penalty);
    set(args.presence_penalty, &mut defaults.presence_penalty);
    set(args.frequency_penalty, &mut defaults.frequency_penalty);
    defaults.logit_bias.clone_from(&args.logit_bias);
    defaults.seed = args.seed;
    defaults.min_tokens = args.min_tokens;
    defaults.ignore_eos = args.ignore_eos;
    defaults.stop_token_ids = match tokenizer {
        Some(t) => t.stop_ids().to_vec(),
        // Without a tokenizer config.json still names the end.
        None => {
            let eos = checkpoint.config().get("eos_token_id");
            let ids = eos.map_or(&[][..], |v| v.as_array().map_or(std::slice::from_ref(v), Vec::as_slice));
            ids.iter().filter_map(Value::as_u64).filter_map(|id| TokenId::try_from(id).ok()).collect()
        }
    };
    defaults.stop_token_ids.extend(&args.stop_id);
    Ok(defaults)
}

/// What the model's generation_config.json recommends; DeepSeek-R1's recommendation where it is silent.
pub(crate) fn recommended(checkpoint: &Checkpoint) -> SamplingParams {
    let config = checkpoint.generation_config();
    let number = |key: &str| config.and_then(|c| c.get(key)).and_then(Value::as_f64).map(|x| x as f32);
    let greedy = config.and_then(|c| c.get("do_sample")).and_then(Value::as_bool) == Some(false);
    SamplingParams {
        max_tokens: usize::MAX,
        temperature: if greedy { 0.0 } else { number("temperature").unwrap_or(0.6) },
        top_p: number("top_p").unwrap_or(0.95),
        top_k: config.and_then(|c| c.get("top_k")).and_then(Value::as_u64).unwrap_or(0) as usize,
        ..SamplingParams::default()
    }
}

/// Runs `request` to its end, a stop string or Ctrl-C; `sink` gets the text as it becomes certain.
pub(crate) fn answer(
    core: &mut EngineCore,
    tokenizer: Option<&Tokenizer>,
    request: Request,
    stops: &[String],
    sink: &mut dyn FnMut(&str) -> Result<()>,
    between_steps: &mut dyn FnMut(),
) -> Result<Answer> {
    let id = request.id;
    let mut stream = tokenizer.map(|t| Detokenizer::after(t, &request.prompt));
    let mut matcher = StopMatcher::new(stops.iter().cloned());
    let start = Instant::now();
    core.add_request(request)?;
    let mut out = Answer {
        tokens: Vec::new(),
        text: String::new(),
        finish_reason: "abort",
        cached_tokens: 0,
        prompt_time: Duration::ZERO,
        decode_time: Duration::ZERO,
    };
    let mut emit = |text: &str, out: &mut Answer| -> Result<()> {
        out.text.push_str(text);
        if text.is_empty() { Ok(()) } else { sink(text) }
    };
    let mut ended_by_text = false;
    'steps: while core.has_work() {
        if terminal::interrupted() {
            core.abort(id);
            break;
        }
        let step = core.step();
        between_steps();
        for output in step.outputs.into_iter().filter(|o| o.id == id) {
            out.cached_tokens = output.cached_tokens;
            for token in output.tokens {
                if out.tokens.is_empty() {
                    out.prompt_time = start.elapsed();
                }
                // A token that ends the answer is no part of its text.
                let is_end = output.finish_reason == Some(FinishReason::Stop);
                let text = match (&mut stream, tokenizer) {
                    (Some(stream), Some(t)) if !is_end => stream.push(t, token.id),
                    _ => String::new(),
                };
                out.tokens.push(token);
                let found = matcher.push(&text);
                emit(&found.text, &mut out)?;
                if found.stop.is_some() {
                    core.abort(id);
                    out.finish_reason = "stop";
                    ended_by_text = true;
                    break 'steps;
                }
            }
            match output.finish_reason {
                Some(FinishReason::Error) => {
                    let message = output.message.unwrap_or_else(|| "the engine failed".to_owned());
                    return Err(fail(ErrorCode::InvalidInput, message));
                }
                Some(reason) => out.finish_reason = name(reason),
                None => {}
            }
        }
    }
    if !ended_by_text {
        let rest = stream.map(|mut s| s.finish()).unwrap_or_default();
        let found = matcher.push(&rest);
        emit(&found.text, &mut out)?;
        if found.stop.is_none() {
            emit(&matcher.finish(), &mut out)?;
        }
    }
    out.decode_time = start.elapsed().saturating_sub(out.prompt_time);
    Ok(out)
}

fn name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
        FinishReason::Deadline => "deadline",
        FinishReason::SlowReader => "slow_reader",
        FinishReason::Error => "error",
    }
}
