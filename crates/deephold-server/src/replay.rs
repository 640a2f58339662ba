//! A record of an answer, read again: what was asked, so that it can be computed once more, and whether the same came out.

use std::sync::Arc;

use deephold_base::TokenId;
use deephold_engine::{Constraint, SamplingParams};
use deephold_grammar::{GrammarEngine, Guide, Thinking};
use deephold_tokenizer::{ChatFormat, Dialect, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ServerError;
use crate::api::anthropic;
use crate::api::fields::{Fields, token_id, token_ids};
use crate::api::openai::{chat, completions, responses};
use crate::backends::ModelFacts;
use crate::record::{guide_json, guide_sha256, ids_sha256};

/// What a record of kind `request` says.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// As its client got it.
    pub request_id: String,
    /// What the model was called.
    pub model: String,
    /// The version of the program that answered.
    pub program: String,
    /// The model and how it was computed.
    pub facts: ModelFacts,
    endpoint: String,
    params: SamplingParams,
    prompts: Vec<Ids>,
    answers: Vec<Ids>,
    guide: Option<Guided>,
    guide_sha256: Option<String>,
    rendered_at: u64,
}

type Guided = (Guide, Thinking);

/// What is to be computed again.
pub struct Replay {
    /// Ids of each prompt.
    pub prompts: Vec<Vec<TokenId>>,
    /// What the sampler follows for each answer.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// One answer, compared.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Comparison {
    /// Tokens in the record.
    pub tokens: usize,
    /// Whether they are the same.
    pub same: bool,
    /// Where the first other token stands, if the record keeps tokens.
    pub differs_at: Option<usize>,
}

/// Ids as a record keeps them: whole, or their digest.
#[derive(Clone, Debug)]
struct Ids {
    count: usize,
    sha256: String,
    ids: Option<Vec<TokenId>>,
}

fn wrong(what: impl Into<String>) -> ServerError {
    ServerError::Record(what.into())
}

impl Ids {
    fn parse(value: &Value) -> Option<Self> {
        let ids = match value.get("ids") {
            None => None,
            Some(list) => Some(token_ids(list.as_array()?)?),
        };
        let count = usize::try_from(value.get("tokens")?.as_u64()?).ok()?;
        let sha256 = value.get("ids_sha256")?.as_str()?.to_owned();
        let consistent = ids.as_ref().is_none_or(|ids| ids.len() == count && ids_sha256(ids) == sha256);
        consistent.then_some(Self { count, sha256, ids })
    }

    fn compare(&self, got: &[TokenId]) -> Comparison {
        // The run may go on where a stop string, a deadline or the reader ended the recorded answer.
        let got = &got[..got.len().min(self.count)];
        let same = got.len() == self.count && ids_sha256(got) == self.sha256;
        let first_other =
            |ids: &Vec<TokenId>| ids.iter().zip(got).position(|(a, b)| a != b).unwrap_or(got.len());
        let differs_at = self.ids.as_ref().filter(|_| !same).map(first_other);
        Comparison { tokens: self.count, same, differs_at }
    }
}

impl Recorded {
    /// From a record's `data`.
    ///
    /// # Errors
    /// It is no record of an answer.
    pub fn parse(data: &Value) -> Result<Self, ServerError> {
        if data.get("answers").is_some_and(|a| a == &json!([])) {
            return Err(wrong("is of vectors: there is no answer in tokens to compute again"));
        }
        let text = |name: &str| {
            let text = data.get(name).and_then(Value::as_str);
            text.map(str::to_owned).ok_or_else(|| wrong(format!("has no `{name}`")))
        };
        let part = |name: &'static str| data.get(name).ok_or_else(|| wrong(format!("has no `{name}`")));
        let facts = serde_json::from_value(part("facts")?.clone())
            .map_err(|e| wrong(format!("has `facts` that cannot be read: {e}")))?;
        let list = |name: &'static str| {
            let list =
                part(name)?.as_array().and_then(|a| a.iter().map(Ids::parse).collect::<Option<Vec<_>>>());
            list.ok_or_else(|| wrong(format!("has `{name}` that cannot be read")))
        };
        let (prompts, answers) = (list("prompts")?, list("answers")?);
        let params =
            params(part("params")?).filter(|p| p.n.checked_mul(prompts.len()) == Some(answers.len()));
        let guide =
            data.get("guide").map(|g| Guided::deserialize(json!([g.get("guide"), g.get("thinking")])));
        let guide =
            guide.transpose().map_err(|e| wrong(format!("has a `guide` that cannot be read: {e}")))?;
        Ok(Self {
            request_id: text("request_id")?,
            model: text("model")?,
            program: text("program")?,
            endpoint: text("endpoint")?,
            facts,
            params: params.ok_or_else(|| wrong("has `params` that cannot be read"))?,
            prompts,
            answers,
            guide_sha256: match &guide {
                Some(guide) => Some(guide_sha256(&guide_json(guide))),
                None => data.get("guide_sha256").and_then(Value::as_str).map(str::to_owned),
            },
            guide,
            rendered_at: data.get("rendered_at").and_then(Value::as_u64).unwrap_or(0),
        })
    }

    /// What is to be computed again: the record's own, or that of `request`, the body as it was sent.
    ///
    /// # Errors
    /// The record keeps digests alone and no body is given, the body cannot be read, or it is not the one that was answered.
    pub fn replay(
        &self,
        request: Option<&[u8]>,
        tokenizer: &Arc<Tokenizer>,
        chat: Option<&ChatFormat>,
    ) -> Result<Replay, ServerError> {
        let recorded: Option<Vec<_>> = self.prompts.iter().map(|p| p.ids.clone()).collect();
        let (prompts, guide) = match (request, recorded) {
            (None, Some(prompts)) => (prompts, self.guide.clone()),
            (None, None) => {
                return Err(wrong("keeps digests of its prompt alone; give the body as it was sent"));
            }
            (Some(body), _) => self.read(body, tokenizer, chat)?,
        };
        let same = |(ids, recorded): (&Vec<TokenId>, &Ids)| ids_sha256(ids) == recorded.sha256;
        let is_same = prompts.len() == self.prompts.len() && prompts.iter().zip(&self.prompts).all(same);
        let guide_sha256 = guide.as_ref().map(|g| guide_sha256(&guide_json(g)));
        if !is_same || guide_sha256 != self.guide_sha256 {
            return Err(wrong("is of another request: the body gives a prompt with another digest"));
        }
        let Some((guide, thinking)) = guide else { return Ok(Replay { prompts, constraint: None }) };
        let dialect = chat.map_or(Dialect::Plain, ChatFormat::tool_dialect);
        let made =
            GrammarEngine::new(Arc::clone(tokenizer), dialect).and_then(|g| g.constraint(&guide, thinking));
        let constraint = made.map_err(|e| wrong(format!("has a guide that cannot be followed: {e}")))?;
        Ok(Replay { prompts, constraint: Some(constraint) })
    }

    /// Prompts and guide of a body.
    fn read(
        &self,
        body: &[u8],
        tokenizer: &Tokenizer,
        chat: Option<&ChatFormat>,
    ) -> Result<(Vec<Vec<TokenId>>, Option<Guided>), ServerError> {
        let body = serde_json::from_slice(body).map_err(|e| wrong(format!("needs a body in JSON: {e}")))?;
        let read = Fields::of_body(body).and_then(|mut fields| {
            if self.endpoint == "/v1/completions" {
                let prompts = completions::prompts(&mut fields, tokenizer)?;
                return Ok((prompts.into_iter().map(|p| p.ids).collect(), None));
            }
            let asked = match self.endpoint.as_str() {
                "/v1/messages" => anthropic::ask(&mut fields, tokenizer, chat, self.rendered_at)?,
                "/v1/responses" => responses::ask(&mut fields, tokenizer, chat, self.rendered_at)?,
                _ => chat::ask(&mut fields, tokenizer, chat, self.rendered_at)?,
            };
            Ok((vec![asked.ids], asked.guide.map(|(guide, _)| (guide, asked.thinking))))
        });
        read.map_err(|e| wrong(format!("needs another body: {}", e.message)))
    }

    /// The parameters, with as many tokens as the longest recorded answer has.
    ///
    /// # Errors
    /// No token was answered.
    pub fn params(&self) -> Result<SamplingParams, ServerError> {
        match self.answers.iter().map(|a| a.count).max() {
            None | Some(0) => Err(wrong("has no answer: its request ended before the first token")),
            Some(max_tokens) => Ok(SamplingParams { max_tokens, ..self.params.clone() }),
        }
    }

    /// Each answer against what came now.
    pub fn compare(&self, answers: &[Vec<TokenId>]) -> Vec<Comparison> {
        let nothing = Vec::new();
        let all = answers.iter().chain(std::iter::repeat(&nothing));
        self.answers.iter().zip(all).map(|(recorded, got)| recorded.compare(got)).collect()
    }
}

/// The reverse of what a record writes; `None` where it is not that.
fn params(value: &Value) -> Option<SamplingParams> {
    let field = |name: &str| value.get(name).filter(|v| !v.is_null());
    let count = |name: &str| field(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let number = |name: &str| field(name).and_then(Value::as_f64).map(|x| x as f32);
    let pair = |v: &Value| match v.as_array()?.as_slice() {
        [token, bias] => Some((token_id(token)?, bias.as_f64()? as f32)),
        _ => None,
    };
    Some(SamplingParams {
        max_tokens: field("max_tokens").map_or(Some(usize::MAX), |_| count("max_tokens"))?,
        min_tokens: count("min_tokens")?,
        temperature: number("temperature")?,
        top_k: count("top_k")?,
        top_p: number("top_p")?,
        min_p: number("min_p")?,
        repetition_penalty: number("repetition_penalty")?,
        presence_penalty: number("presence_penalty")?,
        frequency_penalty: number("frequency_penalty")?,
        logit_bias: field("logit_bias")?.as_array()?.iter().map(pair).collect::<Option<_>>()?,
        seed: field("seed").and_then(Value::as_u64),
        stop_token_ids: token_ids(field("stop_token_ids")?.as_array()?)?,
        ignore_eos: field("ignore_eos")?.as_bool()?,
        logprobs: None,
        prompt_logprobs: None,
        n: count("n")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Value {
        let ids = |ids: &[TokenId]| json!({ "tokens": ids.len(), "ids_sha256": ids_sha256(ids), "ids": ids });
        json!({
            "request_id": "r-1", "model": "m", "program": "0.1.0", "endpoint": "/v1/completions",
            "facts": { "digest": "sha256:0" }, "prompts": [ids(&[1, 2])], "answers": [ids(&[5, 6, 7])],
            "params": crate::record::params(&SamplingParams {
                temperature: 0.6, top_p: 0.95, seed: Some(u64::MAX), logit_bias: vec![(3, -1.5)],
                stop_token_ids: vec![9], ..SamplingParams::default()
            }, &[]),
        })
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let recorded = Recorded::parse(&record()).expect("a record");
        let params = recorded.params().expect("parameters");
        assert_eq!((params.temperature, params.top_p, params.seed), (0.6, 0.95, Some(u64::MAX)));
        assert_eq!(
            (params.logit_bias, params.stop_token_ids, params.max_tokens),
            (vec![(3, -1.5)], vec![9], 3)
        );
        let compare = |ids: &[TokenId]| recorded.compare(&[ids.to_vec()]).remove(0);
        assert_eq!(compare(&[5, 6, 7, 8]), Comparison { tokens: 3, same: true, differs_at: None });
        assert_eq!(compare(&[5, 9, 7]), Comparison { tokens: 3, same: false, differs_at: Some(1) });
        assert_eq!(compare(&[5, 6]), Comparison { tokens: 3, same: false, differs_at: Some(2) });
        assert_eq!(recorded.compare(&[])[0].differs_at, Some(0));
    }

    #[test]
    fn an_answer_that_only_the_context_limits_has_no_number() {
        let written = crate::record::params(
            &SamplingParams { max_tokens: usize::MAX, ..SamplingParams::default() },
            &[],
        );
        assert_eq!(written["max_tokens"], Value::Null);
        assert_eq!(params(&written).expect("parameters").max_tokens, usize::MAX);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for (path, value) in [
            ("/answers/0/ids/1", json!(8)),
            ("/answers/0/tokens", json!(-3)),
            ("/prompts/0/ids_sha256", json!("")),
            ("/params/n", json!(2)),
            ("/params/max_tokens", json!(-1)),
            ("/params/logit_bias", json!([[3]])),
            ("/facts", json!(3)),
            ("/model", json!(1)),
        ] {
            let mut data = record();
            *data.pointer_mut(path).expect("a field") = value;
            assert!(Recorded::parse(&data).is_err(), "{path}");
        }
    }
}
