//! Items of input to a conversation.

use deephold_grammar::Guide;
use deephold_tokenizer::ChatFormat;
use serde_json::{Map, Value, json};

use crate::api::conversation::{Conversation, ThinkingWish};
use crate::api::error::{ApiError, ApiResult};
use crate::api::fields::Fields;
use crate::api::openai::tools::{Choice, TOOLS_MAX, ToolList, Wanted, tools_wanted};

/// Items of a conversation at most.
const ITEMS_MAX: usize = 4096;

/// A body, read; fields that nobody took are still to be refused.
pub(super) struct Parsed {
    pub(super) conversation: Conversation,
    /// What the answer repeats of the request.
    pub(super) echoed: Value,
}

pub(super) fn parse(fields: &mut Fields, format: &ChatFormat) -> ApiResult<Parsed> {
    let mut reader = Reader { as_text: format.takes_arguments_as_text(), out: Vec::new(), thought: None };
    let instructions = fields.string("instructions")?;
    if let Some(text) = &instructions {
        reader.out.push(json!({ "role": "system", "content": text }));
    }
    match fields.take("input") {
        Some(Value::String(text)) => reader.out.push(json!({ "role": "user", "content": text })),
        Some(Value::Array(items)) if !items.is_empty() && items.len() <= ITEMS_MAX => {
            for (i, item) in items.into_iter().enumerate() {
                reader.item(Fields::of(item, format!("input[{i}]"))?)?;
            }
        }
        Some(_) => {
            return Err(ApiError::param(
                "input",
                format!("must be a text or a list of 1 to {ITEMS_MAX} items"),
            ));
        }
        None => return Err(ApiError::param("input", "is missing")),
    }
    let form = text_format(fields)?;
    let parallel = fields.bool("parallel_tool_calls")?;
    let (wanted, tools) = tools(fields, parallel, form)?;
    let thinking = reasoning(fields)?;
    let why = "is not kept: this server is stateless, so send the whole conversation as `input`";
    for field in ["previous_response_id", "conversation"] {
        fields.only(field, &[], why)?;
    }
    fields.only("store", &[json!(false)], "must be false: answers are kept in the audit log alone")?;
    fields.only("background", &[json!(false)], "is not offered")?;
    fields.only("truncation", &[json!("disabled")], "must be disabled: nothing is left out unasked")?;
    fields.only("include", &[json!([])], "is not offered")?;
    fields.only("metadata", &[json!({})], "is not kept")?;
    let echoed = json!({
        "instructions": instructions, "tools": tools, "parallel_tool_calls": parallel.unwrap_or(true),
        "tool_choice": "auto", "store": false, "metadata": {}, "previous_response_id": null,
        "truncation": "disabled", "error": null, "incomplete_details": null,
    });
    let Wanted { tools, guide } = wanted;
    let (messages, variables) = (Value::Array(reader.out), Map::new());
    let conversation = Conversation { messages, begun: None, tools, guide, thinking, variables };
    Ok(Parsed { conversation, echoed })
}

struct Reader {
    as_text: bool,
    out: Vec<Value>,
    /// Thinking that belongs to what the assistant does next.
    thought: Option<String>,
}

impl Reader {
    fn item(&mut self, mut item: Fields) -> ApiResult<()> {
        let kind = item.string("type")?.unwrap_or_else(|| "message".to_owned());
        item.string("status")?;
        match kind.as_str() {
            "message" => self.message(&mut item)?,
            "reasoning" => {
                item.string("id")?;
                item.array("summary")?;
                item.only("encrypted_content", &[], "is not offered")?;
                let content = parts(&mut item, "content", &["reasoning_text"])?;
                self.thought = Some(content.unwrap_or_default()).filter(|t| !t.is_empty());
            }
            "function_call" => {
                item.string("id")?;
                let (id, name) = (item.need_string("call_id")?, item.need_string("name")?);
                let place = item.name("arguments");
                let text = item.need_string("arguments")?;
                let value: Value = serde_json::from_str(&text).unwrap_or_default();
                if !value.is_object() {
                    return Err(ApiError::param(place, "must be a JSON object in a string"));
                }
                let arguments = if self.as_text { value.to_string().into() } else { value };
                let call = json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
                // Calls of one turn belong to one message.
                match self.out.last_mut().and_then(|m| m.get_mut("tool_calls")?.as_array_mut()) {
                    Some(calls) => calls.push(call),
                    None => {
                        let mut out = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
                        self.think(&mut out);
                        self.out.push(out);
                    }
                }
            }
            "function_call_output" => {
                item.string("id")?;
                let id = item.need_string("call_id")?;
                let place = item.name("output");
                let text = parts(&mut item, "output", &["input_text", "output_text"])?;
                let text = text.ok_or_else(|| ApiError::param(place, "is missing"))?;
                self.out.push(json!({ "role": "tool", "tool_call_id": id, "content": text }));
            }
            _ => {
                let problem = "must be message, reasoning, function_call or function_call_output";
                return Err(ApiError::unsupported(item.name("type"), problem));
            }
        }
        item.finish()
    }

    fn message(&mut self, item: &mut Fields) -> ApiResult<()> {
        item.string("id")?;
        let name = item.name("role");
        let role = match item.need_string("role")?.as_str() {
            "system" | "developer" => "system",
            "user" => "user",
            "assistant" => "assistant",
            _ => return Err(ApiError::param(name, "must be system, developer, user or assistant")),
        };
        let place = item.name("content");
        let text = parts(item, "content", &["input_text", "output_text"])?;
        let text = text.ok_or_else(|| ApiError::param(place, "is missing"))?;
        let mut out = json!({ "role": role, "content": text });
        if role == "assistant" {
            self.think(&mut out);
        }
        self.out.push(out);
        Ok(())
    }

    fn think(&mut self, message: &mut Value) {
        if let Some(thought) = self.thought.take() {
            message["reasoning_content"] = thought.into();
        }
    }
}

/// A text, or parts of these types joined.
fn parts(item: &mut Fields, field: &str, kinds: &[&str]) -> ApiResult<Option<String>> {
    let place = item.name(field);
    match item.take(field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(list)) => {
            let mut text = String::new();
            for (i, part) in list.into_iter().enumerate() {
                let mut part = Fields::of(part, format!("{place}[{i}]"))?;
                if !kinds.contains(&part.need_string("type")?.as_str()) {
                    let problem =
                        format!("must be {}: this server takes no images or files", kinds.join(" or "));
                    return Err(ApiError::unsupported(part.name("type"), problem));
                }
                text.push_str(&part.need_string("text")?);
                // What an answer carries beside its text comes back with it.
                part.array("annotations")?;
                part.array("logprobs")?;
                part.finish()?;
            }
            Ok(Some(text))
        }
        Some(_) => Err(ApiError::param(place, "must be a text or a list of parts")),
    }
}

fn text_format(fields: &mut Fields) -> ApiResult<Option<Guide>> {
    let Some(mut text) = fields.object("text")? else { return Ok(None) };
    text.only("verbosity", &[json!("medium")], "is not offered")?;
    let form = text.object("format")?;
    text.finish()?;
    let Some(mut form) = form else { return Ok(None) };
    let guide = match form.need_string("type")?.as_str() {
        "text" => None,
        "json_object" => Some(Guide::JsonObject),
        "json_schema" => {
            form.need_string("name")?;
            form.string("description")?;
            form.bool("strict")?;
            let place = form.name("schema");
            let schema = form.take("schema").filter(Value::is_object);
            Some(Guide::JsonSchema(schema.ok_or_else(|| ApiError::param(place, "must be a JSON schema"))?))
        }
        _ => {
            return Err(ApiError::unsupported(form.name("type"), "must be text, json_object or json_schema"));
        }
    };
    form.finish()?;
    Ok(guide)
}

/// The tools as they came, too.
fn tools(fields: &mut Fields, parallel: Option<bool>, form: Option<Guide>) -> ApiResult<(Wanted, Value)> {
    let choice = choice(fields)?;
    let list = fields.array("tools")?.unwrap_or_default();
    if list.is_empty() {
        return match choice {
            None | Some(Choice::None | Choice::Auto) => {
                Ok((Wanted { tools: None, guide: form.map(|f| (f, "text")) }, json!([])))
            }
            Some(_) => Err(ApiError::param("tool_choice", "is only for requests with `tools`")),
        };
    }
    if list.len() > TOOLS_MAX {
        return Err(ApiError::param(
            "tools",
            format!("has {} entries; at most {TOOLS_MAX} are taken", list.len()),
        ));
    }
    let echoed = Value::Array(list.clone());
    let mut tools = ToolList::default();
    for (i, tool) in list.into_iter().enumerate() {
        let mut tool = Fields::of(tool, format!("tools[{i}]"))?;
        tool.only("type", &[json!("function")], "must be `function`; this server runs no tools of its own")?;
        tools.add(&mut tool, "parameters")?;
        tool.finish()?;
    }
    let (kept, functions) = (Value::Array(tools.list), tools.functions);
    let wanted =
        tools_wanted(kept, functions, choice.unwrap_or(Choice::Auto), parallel, form, "tool_choice")?;
    Ok((wanted, echoed))
}

fn choice(fields: &mut Fields) -> ApiResult<Option<Choice>> {
    match fields.take("tool_choice") {
        None => Ok(None),
        Some(Value::String(word)) => Choice::of_word(&word).map(Some),
        Some(value) => {
            let mut choice = Fields::of(value, "tool_choice")?;
            choice.only("type", &[json!("function")], "must be `function`")?;
            let name = choice.need_string("name")?;
            choice.finish()?;
            Ok(Some(Choice::Named(name)))
        }
    }
}

fn reasoning(fields: &mut Fields) -> ApiResult<ThinkingWish> {
    let Some(mut wish) = fields.object("reasoning")? else { return Ok(None) };
    let out = match wish.string("effort")?.as_deref() {
        None => None,
        Some("none" | "minimal") => Some((false, "reasoning.effort")),
        Some("low" | "medium" | "high" | "xhigh") => Some((true, "reasoning.effort")),
        Some(_) => {
            return Err(ApiError::param(
                "reasoning.effort",
                "must be none, minimal, low, medium, high or xhigh",
            ));
        }
    };
    wish.only("summary", &[], "is not offered: the thinking itself is given")?;
    wish.finish()?;
    Ok(out)
}
