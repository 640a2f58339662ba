//! Fields that chat and plain completions share. What is not taken is refused by name, so no field is ever ignored.

use std::sync::Arc;
use std::time::Duration;

use deephold_base::TokenId;
use deephold_engine::SamplingParams;
use serde_json::Value;

pub(super) use crate::api::fields::{Fields, token_ids};

use crate::api::error::{ApiError, ApiResult};
use crate::backends::Hosted;
use crate::call::Call;
use crate::generation::with_seed;

/// Stop strings of a request at most.
const STOPS_MAX: usize = 16;
/// Bytes of a stop string at most.
const STOP_BYTES_MAX: usize = 1024;

/// The body as JSON; nesting is bounded by the parser.
pub(super) fn json(body: &[u8]) -> ApiResult<Value> {
    serde_json::from_slice(body).map_err(|e| {
        let message = format!("the body is not valid JSON: {e}");
        ApiError { code: "invalid_json", ..ApiError::bad_request(message) }
    })
}

/// The model that a request names, where its key may use it.
pub(super) fn model(call: &Call, fields: &mut Fields) -> ApiResult<Arc<Hosted>> {
    let name = fields.need_string("model")?;
    let model = call.app.models.find(&name)?;
    if !call.who()?.may_use(&model.name) {
        return Err(ApiError::forbidden(format!("this key may not use the model `{}`", model.name)));
    }
    Ok(model)
}

/// How the answer is sent.
#[derive(Clone, Copy, Default)]
pub(super) struct Streaming {
    pub(super) on: bool,
    pub(super) include_usage: bool,
}

pub(super) fn streaming(fields: &mut Fields) -> ApiResult<Streaming> {
    let on = fields.bool("stream")?.unwrap_or(false);
    let mut out = Streaming { on, include_usage: false };
    if let Some(mut options) = fields.object("stream_options")? {
        if !on {
            return Err(ApiError::param("stream_options", "is only for `stream: true`"));
        }
        out.include_usage = options.bool("include_usage")?.unwrap_or(false);
        options.finish()?;
    }
    Ok(out)
}

/// Sampling fields over the model's own recommendations.
pub(super) fn sampling(fields: &mut Fields, model: &Hosted) -> ApiResult<SamplingParams> {
    let mut p = model.defaults.clone();
    let float = |x: f64| x as f32;
    if let Some(x) = fields.number("temperature", 0.0, 2.0)? {
        p.temperature = float(x);
    }
    if let Some(x) = fields.number("top_p", 0.0, 1.0)? {
        // 0 means the best token alone, as with OpenAI.
        p.top_p = float(x).max(f32::MIN_POSITIVE);
    }
    if let Some(x) = fields.number("min_p", 0.0, 1.0)? {
        p.min_p = float(x);
    }
    if let Some(x) = fields.integer("top_k", -1, 1 << 20)? {
        p.top_k = usize::try_from(x).unwrap_or(0);
    }
    if let Some(x) = fields.number("presence_penalty", -2.0, 2.0)? {
        p.presence_penalty = float(x);
    }
    if let Some(x) = fields.number("frequency_penalty", -2.0, 2.0)? {
        p.frequency_penalty = float(x);
    }
    if let Some(x) = fields.number("repetition_penalty", 0.01, 100.0)? {
        p.repetition_penalty = float(x);
    }
    if let Some(seed) = fields.integer("seed", i64::MIN, i64::MAX)? {
        p.seed = Some(seed as u64);
    }
    if let Some(n) = fields.integer("n", 1, 16)? {
        p.n = n as usize;
    }
    if let Some(max) = fields.integer("max_completion_tokens", 1, i64::from(u32::MAX))? {
        p.max_tokens = max as usize;
    }
    if let Some(bias) = fields.take("logit_bias") {
        p.logit_bias = logit_bias(&bias)?;
    }
    Ok(with_seed(p))
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
