//! Fields that chat and plain completions share. What is not taken is refused by name, so no field is ever ignored.

use std::time::Duration;

use deephold_base::TokenId;
use deephold_engine::SamplingParams;
use deephold_tokenizer::Tokenizer;
use serde_json::Value;

pub(super) use crate::api::fields::{Fields, token_ids};

use crate::api::error::{ApiError, ApiResult};
use crate::backends::Hosted;
use crate::generation::with_seed;

/// Stop strings of a request at most.
pub(super) const STOPS_MAX: usize = 16;
/// Bytes of a stop string at most.
pub(super) const STOP_BYTES_MAX: usize = 1024;

/// A field that holds a number: where it is read, and where it is described.
pub(super) struct Number {
    pub(super) name: &'static str,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) about: &'static str,
}

const fn number(name: &'static str, low: f64, high: f64, about: &'static str) -> Number {
    Number { name, low, high, about }
}

pub(super) const TEMPERATURE: Number = number(
    "temperature",
    0.0,
    2.0,
    "0 always takes the most probable token; else the model's recommendation",
);
// 0 means the best token alone, as with OpenAI.
pub(super) const TOP_P: Number =
    number("top_p", 0.0, 1.0, "Only the most probable tokens that together reach it");
pub(super) const MIN_P: Number =
    number("min_p", 0.0, 1.0, "Only tokens at least so probable against the best");
pub(super) const PRESENCE: Number =
    number("presence_penalty", -2.0, 2.0, "Taken off the logits of tokens in the answer");
pub(super) const FREQUENCY: Number =
    number("frequency_penalty", -2.0, 2.0, "Taken off for each occurrence in the answer");
pub(super) const REPETITION: Number =
    number("repetition_penalty", 0.01, 100.0, "Divides the logits of tokens that occurred");

/// Every field that [`sampling`] reads as a number with a fraction.
pub(super) const NUMBERS: [&Number; 6] = [&TEMPERATURE, &TOP_P, &MIN_P, &PRESENCE, &FREQUENCY, &REPETITION];

/// A field that holds a whole number.
pub(super) struct Integer {
    pub(super) name: &'static str,
    pub(super) low: i64,
    pub(super) high: i64,
    pub(super) about: &'static str,
}

const fn integer(name: &'static str, low: i64, high: i64, about: &'static str) -> Integer {
    Integer { name, low, high, about }
}

pub(super) const TOP_K: Integer =
    integer("top_k", -1, 1 << 20, "Only the most probable tokens; 0 or -1 for all");
pub(super) const SEED: Integer = integer("seed", i64::MIN, i64::MAX, "Same seed, same answer");
pub(super) const N: Integer = integer("n", 1, 16, "Answers to each prompt");
pub(super) const MIN_TOKENS: Integer =
    integer("min_tokens", 0, u32::MAX as i64, "Tokens of the answer at least; until then it cannot end");
pub(super) const MAX_COMPLETION: Integer =
    integer("max_completion_tokens", 1, u32::MAX as i64, "Tokens of the answer at most");
pub(super) const MAX_TOKENS: Integer = Integer { name: "max_tokens", ..MAX_COMPLETION };
pub(super) const TOP_LOGPROBS: Integer =
    integer("top_logprobs", 0, 20, "Log probabilities of so many of the best tokens; with `logprobs`");

/// Every field that [`sampling`] reads as a whole number.
pub(super) const INTEGERS: [&Integer; 5] = [&TOP_K, &SEED, &N, &MIN_TOKENS, &MAX_COMPLETION];

impl Number {
    pub(super) fn take(&self, fields: &mut Fields) -> ApiResult<Option<f32>> {
        Ok(fields.number(self.name, self.low, self.high)?.map(|x| x as f32))
    }
}

impl Integer {
    pub(super) fn take(&self, fields: &mut Fields) -> ApiResult<Option<i64>> {
        fields.integer(self.name, self.low, self.high)
    }
}

/// How the answer is sent.
#[derive(Clone, Copy, Default)]
pub(super) struct Streaming {
    pub(super) on: bool,
    /// A last event with the tokens of all answers.
    pub(super) include_usage: bool,
    /// Beside it, each event says how many tokens its answer has so far.
    pub(super) continuous_usage: bool,
}

pub(super) fn streaming(fields: &mut Fields) -> ApiResult<Streaming> {
    let on = fields.bool("stream")?.unwrap_or(false);
    let mut out = Streaming { on, ..Streaming::default() };
    if let Some(mut options) = fields.object("stream_options")? {
        if !on {
            return Err(ApiError::param("stream_options", "is only for `stream: true`"));
        }
        out.include_usage = options.bool("include_usage")?.unwrap_or(false);
        out.continuous_usage = options.bool("continuous_usage_stats")?.unwrap_or(false);
        options.finish()?;
    }
    Ok(out)
}

/// Sampling fields over the model's own recommendations.
pub(super) fn sampling(fields: &mut Fields, model: &Hosted) -> ApiResult<SamplingParams> {
    let mut p = model.defaults.clone();
    if let Some(x) = TEMPERATURE.take(fields)? {
        p.temperature = x;
    }
    if let Some(x) = TOP_P.take(fields)? {
        p.top_p = x.max(f32::MIN_POSITIVE);
    }
    if let Some(x) = MIN_P.take(fields)? {
        p.min_p = x;
    }
    if let Some(x) = TOP_K.take(fields)? {
        p.top_k = usize::try_from(x).unwrap_or(0);
    }
    if let Some(x) = PRESENCE.take(fields)? {
        p.presence_penalty = x;
    }
    if let Some(x) = FREQUENCY.take(fields)? {
        p.frequency_penalty = x;
    }
    if let Some(x) = REPETITION.take(fields)? {
        p.repetition_penalty = x;
    }
    if let Some(seed) = SEED.take(fields)? {
        p.seed = Some(seed as u64);
    }
    if let Some(n) = N.take(fields)? {
        p.n = n as usize;
    }
    if let Some(min) = MIN_TOKENS.take(fields)? {
        p.min_tokens = min as usize;
    }
    if let Some(on) = fields.bool("ignore_eos")? {
        p.ignore_eos = on;
    }
    if let Some(max) = MAX_COMPLETION.take(fields)? {
        p.max_tokens = max as usize;
    }
    if let Some(bias) = fields.take("logit_bias") {
        p.logit_bias = logit_bias(&bias)?;
    }
    Ok(with_seed(p))
}

/// Refuses what would go on where a form has ended.
pub(super) fn ends_with_its_form(p: &SamplingParams) -> ApiResult<()> {
    let problem =
        "cannot be combined with `response_format` or `tools`: their form says where the answer ends";
    match (p.ignore_eos, p.min_tokens) {
        (true, _) => Err(ApiError::param("ignore_eos", problem)),
        (false, 0) => Ok(()),
        (false, _) => Err(ApiError::param("min_tokens", problem)),
    }
}

fn logit_bias(value: &Value) -> ApiResult<Vec<(TokenId, f32)>> {
    let Value::Object(map) = value else {
        return Err(ApiError::param("logit_bias", "must be an object of token ids and numbers"));
    };
    let one = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b))?;
        Some((id.parse().ok()?, bias as f32))
    };
    let problem = || ApiError::param("logit_bias", "must map token ids to numbers from -100 to 100");
    map.iter().map(|entry| one(entry).ok_or_else(problem)).collect()
}

pub(super) fn stops(fields: &mut Fields) -> ApiResult<Vec<String>> {
    let value = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if value.len() > STOPS_MAX {
        return Err(ApiError::param("stop", format!("has {} strings; at most {STOPS_MAX}", value.len())));
    }
    let one = |v: Value| match v {
        Value::String(s) if !s.is_empty() && s.len() <= STOP_BYTES_MAX => Ok(s),
        _ => Err(ApiError::param("stop", format!("must be strings of 1 to {STOP_BYTES_MAX} bytes"))),
    };
    value.into_iter().map(one).collect()
}

/// `timeout` in seconds, or the server's limit.
pub(super) fn timeout(fields: &mut Fields, limit: Duration) -> ApiResult<Duration> {
    let seconds = fields.number("timeout", 0.001, limit.as_secs_f64())?;
    Ok(seconds.map_or(limit, Duration::from_secs_f64))
}

/// `user_id`, as DeepSeek has it: cached prefixes are not shared with the tenant's other users.
pub(super) fn cache_salt(fields: &mut Fields) -> ApiResult<Vec<u8>> {
    const LONGEST: usize = 512;
    let user = fields.string("user_id")?.unwrap_or_default();
    if user.len() > LONGEST {
        return Err(ApiError::param("user_id", format!("must have at most {LONGEST} bytes")));
    }
    Ok(user.into_bytes())
}

/// A prompt that is no conversation.
pub(crate) struct Prompt {
    pub(crate) ids: Vec<TokenId>,
    /// As it was given, where it was no list of ids.
    pub(super) text: Option<String>,
}

/// A text, ids, or a list of texts or of lists of ids, at most `most` of them.
pub(super) fn prompts(
    fields: &mut Fields,
    field: &str,
    most: usize,
    tokenizer: &Tokenizer,
) -> ApiResult<Vec<Prompt>> {
    let wrong = || ApiError::param(field, "must be a text, a list of token ids, or a list of either");
    let one = |value: Value| match value {
        Value::String(text) => Ok(Prompt { ids: tokenizer.encode_prompt(&text)?, text: Some(text) }),
        Value::Array(ids) => Ok(Prompt { ids: token_ids(&ids).ok_or_else(wrong)?, text: None }),
        _ => Err(wrong()),
    };
    match fields.take(field) {
        Some(Value::Array(list)) if list.first().is_some_and(|v| !v.is_number()) => {
            if list.len() > most {
                return Err(ApiError::param(
                    field,
                    format!("has {} entries; at most {most} are taken", list.len()),
                ));
            }
            list.into_iter().map(one).collect()
        }
        Some(value) => Ok(vec![one(value)?]),
        None => Err(ApiError::param(field, "is missing")),
    }
}
