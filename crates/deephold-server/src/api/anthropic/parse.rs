//! Bodies as Anthropic's clients send them, to conversations.

use deephold_engine::SamplingParams;
use deephold_grammar::Guide;
use deephold_tokenizer::ChatFormat;
use serde_json::{Map, Value, json};

use super::signature;
use crate::api::conversation::{Begun, Conversation, ThinkingWish};
use crate::api::error::{ApiError, ApiResult};
use crate::api::fields::Fields;
use crate::api::openai::tools::{Choice, TOOLS_MAX, ToolList, Wanted, tools_wanted};

/// Messages of a conversation at most.
const MESSAGES_MAX: usize = 4096;
/// Stop sequences at most, and bytes of one.
pub(super) const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 1024;

/// A body, read; fields that nobody took are still to be refused.
pub(super) struct Parsed {
    pub(super) conversation: Conversation,
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: SamplingParams,
    pub(super) stops: Vec<String>,
    pub(super) streaming: bool,
}

pub(super) fn messages(
    fields: &mut Fields,
    format: &ChatFormat,
    defaults: &SamplingParams,
    secret: Option<&[u8; 32]>,
) -> ApiResult<Parsed> {
    let mut reader = Reader { as_text: format.takes_arguments_as_text(), secret, out: Vec::new() };
    if let Some(text) = system(fields)? {
        reader.out.push(json!({ "role": "system", "content": text }));
    }
    let list = fields.array("messages")?.ok_or_else(|| ApiError::param("messages", "is missing"))?;
    if list.is_empty() || list.len() > MESSAGES_MAX {
        let problem = format!("has {} entries; 1 to {MESSAGES_MAX} are taken", list.len());
        return Err(ApiError::param("messages", problem));
    }
    for (i, value) in list.into_iter().enumerate() {
        reader.message(Fields::of(value, format!("messages[{i}]"))?)?;
    }
    let begun = reader.begun();
    let messages = Value::Array(reader.out);
    let form = output_config(fields)?;
    let Wanted { tools, guide } = tools(fields, form)?;
    let thinking = thinking(fields)?;
    // Prefixes are cached in any case.
    fields.object("cache_control")?;
    let max_tokens = fields.integer("max_tokens", 1, i64::from(u32::MAX))?.map(|n| n as usize);
    let mut sampling = defaults.clone();
    if let Some(x) = fields.number("temperature", 0.0, 1.0)? {
        sampling.temperature = x as f32;
    }
    if let Some(x) = fields.number("top_p", 0.0, 1.0)? {
        sampling.top_p = (x as f32).max(f32::MIN_POSITIVE);
    }
    if let Some(x) = fields.integer("top_k", 0, 1 << 20)? {
        sampling.top_k = x as usize;
    }
    let stops = stops(fields)?;
    let streaming = fields.bool("stream")?.unwrap_or(false);
    if let Some(mut metadata) = fields.object("metadata")? {
        // The caller's own name for its user; kept nowhere.
        metadata.string("user_id")?;
        metadata.finish()?;
    }
    fields.only("service_tier", &[json!("auto"), json!("standard_only")], "must be auto or standard_only")?;
    let variables = Map::new();
    let conversation = Conversation { messages, begun, tools, guide, thinking, variables };
    Ok(Parsed { conversation, max_tokens, sampling, stops, streaming })
}

/// A text, or blocks of text.
fn system(fields: &mut Fields) -> ApiResult<Option<String>> {
    match fields.take("system") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(blocks)) => {
            let mut parts = Vec::new();
            for (i, block) in blocks.into_iter().enumerate() {
                let mut block = Fields::of(block, format!("system[{i}]"))?;
                block.only("type", &[json!("text")], "must be `text`")?;
                parts.push(block.need_string("text")?);
                finish(block)?;
            }
            Ok(Some(parts.join("\n\n")))
        }
        Some(_) => Err(ApiError::param("system", "must be a text or a list of text blocks")),
    }
}

/// The end of a block. Prefixes are cached without marks, so one has no effect.
fn finish(mut block: Fields) -> ApiResult<()> {
    block.object("cache_control")?;
    block.finish()
}

struct Reader<'a> {
    /// How the template takes the arguments of calls.
    as_text: bool,
    /// What thinking must be signed with; none where that does not matter.
    secret: Option<&'a [u8; 32]>,
    out: Vec<Value>,
}

impl Reader<'_> {
    fn message(&mut self, mut message: Fields) -> ApiResult<()> {
        let role = message.need_string("role")?;
        let place = message.name("content");
        let blocks = match message.take("content") {
            Some(Value::String(text)) => vec![json!({ "type": "text", "text": text })],
            Some(Value::Array(blocks)) => blocks,
            Some(_) => return Err(ApiError::param(place, "must be a text or a list of blocks")),
            None => return Err(ApiError::param(place, "is missing")),
        };
        let name = message.name("role");
        message.finish()?;
        let blocks = blocks.into_iter().enumerate();
        let blocks = blocks.map(|(i, block)| Fields::of(block, format!("{place}[{i}]")));
        match role.as_str() {
            "user" => self.user(blocks),
            "assistant" => self.assistant(blocks),
            _ => Err(ApiError::param(name, "must be user or assistant")),
        }
    }

    /// Results of calls are messages of their own, before what the user says to them.
    fn user(&mut self, blocks: impl Iterator<Item = ApiResult<Fields>>) -> ApiResult<()> {
        let mut said: Vec<String> = Vec::new();
        for block in blocks {
            let mut block = block?;
            match block.need_string("type")?.as_str() {
                "text" => said.push(block.need_string("text")?),
                "tool_result" => {
                    let id = block.need_string("tool_use_id")?;
                    let text = result_text(&mut block)?;
                    let text = match block.bool("is_error")?.unwrap_or(false) {
                        true => format!("Error: {text}"),
                        false => text,
                    };
                    self.out.push(json!({ "role": "tool", "tool_call_id": id, "content": text }));
                }
                _ => {
                    return Err(ApiError::unsupported(
                        block.name("type"),
                        "must be text or tool_result: this server takes no images or documents",
                    ));
                }
            }
            finish(block)?;
        }
        if !said.is_empty() {
            self.out.push(json!({ "role": "user", "content": said.join("\n\n") }));
        }
        Ok(())
    }

    fn assistant(&mut self, blocks: impl Iterator<Item = ApiResult<Fields>>) -> ApiResult<()> {
        let (mut said, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
        for block in blocks {
            let mut block = block?;
            match block.need_string("type")?.as_str() {
                "text" => said.push_str(&block.need_string("text")?),
                "thinking" => {
                    let thinking = block.need_string("thinking")?;
                    let signed = block.need_string("signature")?;
                    if self.secret.is_some_and(|secret| !signature::verify(secret, &thinking, &signed)) {
                        return Err(ApiError::param(
                            block.name("signature"),
                            "is not this server's for that text",
                        ));
                    }
                    thought.push_str(&thinking);
                }
                "tool_use" => {
                    let (id, name) = (block.need_string("id")?, block.need_string("name")?);
                    let place = block.name("input");
                    let input = block.take("input").unwrap_or_else(|| json!({}));
                    if !input.is_object() {
                        return Err(ApiError::param(place, "must be an object"));
                    }
                    let arguments = if self.as_text { input.to_string().into() } else { input };
                    calls.push(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }));
                }
                _ => {
                    return Err(ApiError::unsupported(
                        block.name("type"),
                        "must be text, thinking or tool_use",
                    ));
                }
            }
            finish(block)?;
        }
        let mut out = json!({ "role": "assistant", "content": said });
        if !thought.is_empty() {
            out["reasoning_content"] = thought.into();
        }
        if !calls.is_empty() {
            if said.is_empty() {
                out["content"] = Value::Null;
            }
            out["tool_calls"] = calls.into();
        }
        self.out.push(out);
        Ok(())
    }

    /// A last message of the assistant is an answer to go on with.
    fn begun(&mut self) -> Option<Begun> {
        let is_begun = |m: &Value| m["role"] == "assistant" && m.get("tool_calls").is_none();
        let last = self.out.pop_if(|m| is_begun(m))?;
        let text = |name: &str| last.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(Begun { reasoning: text("reasoning_content"), content: text("content").unwrap_or_default() })
    }
}

fn result_text(block: &mut Fields) -> ApiResult<String> {
    let place = block.name("content");
    match block.take("content") {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (i, part) in parts.into_iter().enumerate() {
                let mut part = Fields::of(part, format!("{place}[{i}]"))?;
                part.only("type", &[json!("text")], "must be `text`: this server takes no images")?;
                text.push_str(&part.need_string("text")?);
                finish(part)?;
            }
            Ok(text)
        }
        Some(_) => Err(ApiError::param(place, "must be a text or a list of text blocks")),
    }
}

/// What the answer must be. An effort is taken for a wish.
fn output_config(fields: &mut Fields) -> ApiResult<Option<Guide>> {
    let Some(mut config) = fields.object("output_config")? else { return Ok(None) };
    if let Some(effort) = config.string("effort")?
        && !["low", "medium", "high", "xhigh", "max"].contains(&effort.as_str())
    {
        return Err(ApiError::param("output_config.effort", "must be low, medium, high, xhigh or max"));
    }
    let form = config.object("format")?;
    config.finish()?;
    let Some(mut form) = form else { return Ok(None) };
    let (kind, place) = (form.take("type"), form.name("schema"));
    if kind != Some(json!("json_schema")) {
        return Err(ApiError::param(form.name("type"), "must be json_schema"));
    }
    let schema = form.take("schema").filter(Value::is_object);
    let schema = schema.ok_or_else(|| ApiError::param(place, "must be a JSON schema"))?;
    form.finish()?;
    Ok(Some(Guide::JsonSchema(schema)))
}

fn tools(fields: &mut Fields, form: Option<Guide>) -> ApiResult<Wanted> {
    let choice = choice(fields)?;
    let Some(list) = fields.array("tools")?.filter(|list| !list.is_empty()) else {
        return match choice {
            None | Some((Choice::None | Choice::Auto, _)) => {
                Ok(Wanted { tools: None, guide: form.map(|f| (f, "output_config")) })
            }
            Some(_) => Err(ApiError::param("tool_choice", "is only for requests with `tools`")),
        };
    };
    if list.len() > TOOLS_MAX {
        return Err(ApiError::param(
            "tools",
            format!("has {} entries; at most {TOOLS_MAX} are taken", list.len()),
        ));
    }
    let mut tools = ToolList::default();
    for (i, tool) in list.into_iter().enumerate() {
        let mut tool = Fields::of(tool, format!("tools[{i}]"))?;
        tool.only("type", &[json!("custom")], "must be `custom`; this server runs no tools of its own")?;
        tools.add(&mut tool, "input_schema")?;
        finish(tool)?;
    }
    let (kept, functions) = (Value::Array(tools.list), tools.functions);
    let (choice, alone) = choice.unwrap_or((Choice::Auto, false));
    tools_wanted(kept, functions, choice, Some(!alone), form, "tool_choice")
}

/// The choice, and whether calls come one at a time.
fn choice(fields: &mut Fields) -> ApiResult<Option<(Choice, bool)>> {
    let Some(mut choice) = fields.object("tool_choice")? else { return Ok(None) };
    let kind = choice.need_string("type")?;
    let out = match kind.as_str() {
        "auto" => Choice::Auto,
        "any" => Choice::Required,
        "none" => Choice::None,
        "tool" => Choice::Named(choice.need_string("name")?),
        _ => return Err(ApiError::param("tool_choice.type", "must be auto, any, tool or none")),
    };
    let alone = choice.bool("disable_parallel_tool_use")?.unwrap_or(false);
    choice.finish()?;
    Ok(Some((out, alone)))
}

/// A budget is taken for a wish: what bounds the thinking is `max_tokens`, which counts it.
fn thinking(fields: &mut Fields) -> ApiResult<ThinkingWish> {
    let Some(mut switch) = fields.object("thinking")? else { return Ok(None) };
    let wish = match switch.need_string("type")?.as_str() {
        "enabled" => Some((true, "thinking")),
        "disabled" => Some((false, "thinking")),
        "adaptive" => None,
        _ => return Err(ApiError::param("thinking.type", "must be enabled, adaptive or disabled")),
    };
    switch.integer("budget_tokens", 1, i64::from(u32::MAX))?;
    switch.finish()?;
    Ok(wish)
}

fn stops(fields: &mut Fields) -> ApiResult<Vec<String>> {
    let list = fields.array("stop_sequences")?.unwrap_or_default();
    if list.len() > STOPS_MAX {
        let problem = format!("has {} entries; at most {STOPS_MAX} are taken", list.len());
        return Err(ApiError::param("stop_sequences", problem));
    }
    let one = |v: Value| match v {
        Value::String(s) if !s.is_empty() && s.len() <= STOP_BYTES_MAX => Ok(s),
        _ => Err(ApiError::param("stop_sequences", format!("must be texts of 1 to {STOP_BYTES_MAX} bytes"))),
    };
    list.into_iter().map(one).collect()
}
