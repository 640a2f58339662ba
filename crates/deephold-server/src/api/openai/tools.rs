//! What an answer must be: `tools`, `tool_choice`, `parallel_tool_calls` and `response_format`, as a guide for the sampler.

use deephold_grammar::{Guide, ToolGuide};
use serde_json::{Value, json};

use super::params::Fields;
use crate::api::error::{ApiError, ApiResult};

/// Tools of a request at most.
pub(crate) const TOOLS_MAX: usize = 128;
/// Bytes of a function's name at most.
const NAME_MAX: usize = 64;

/// What was asked for.
pub(crate) struct Wanted {
    /// The tools as templates take them; none where the model shall not know of any.
    pub(crate) tools: Option<Value>,
    /// What the answer must be, and the field that says so.
    pub(crate) guide: Option<(Guide, &'static str)>,
}

pub(crate) enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

/// Reads all four fields.
pub(super) fn wanted(fields: &mut Fields) -> ApiResult<Wanted> {
    let functions = functions(fields)?;
    let choice = choice(fields)?;
    let parallel = fields.bool("parallel_tool_calls")?;
    let format = response_format(fields)?;
    let (list, functions) = match functions {
        None => {
            if parallel.is_some() {
                return Err(ApiError::param("parallel_tool_calls", "is only for requests with `tools`"));
            }
            if matches!(choice, Some(Choice::Auto | Choice::Required | Choice::Named(_))) {
                return Err(ApiError::param("tool_choice", "is only for requests with `tools`"));
            }
            return Ok(Wanted { tools: None, guide: format.map(|f| (f, "response_format")) });
        }
        Some(found) => found,
    };
    tools_wanted(list, functions, choice.unwrap_or(Choice::Auto), parallel, format, "tool_choice")
}

/// Tools, which of them may or must be called, and what the answer is otherwise. `param` is the field of the choice.
pub(crate) fn tools_wanted(
    list: Value,
    mut functions: Functions,
    choice: Choice,
    parallel: Option<bool>,
    format: Option<Guide>,
    param: &'static str,
) -> ApiResult<Wanted> {
    if matches!(choice, Choice::None) {
        return Ok(Wanted { tools: None, guide: format.map(|f| (f, "response_format")) });
    }
    if let Choice::Named(name) = &choice {
        functions.retain(|(function, _)| function == name);
        if functions.is_empty() {
            return Err(ApiError::param(param, format!("names `{name}`, which is not among `tools`")));
        }
    }
    let required = !matches!(choice, Choice::Auto);
    let guide = ToolGuide {
        functions,
        required,
        parallel: parallel.unwrap_or(true) && !matches!(choice, Choice::Named(_)),
        otherwise: match format {
            Some(Guide::JsonObject) if !required => Some(json!({ "type": "object" })),
            Some(Guide::JsonSchema(schema)) if !required => Some(schema),
            _ => None,
        },
    };
    Ok(Wanted { tools: Some(list), guide: Some((Guide::Tools(guide), "tools")) })
}

impl Choice {
    /// As OpenAI's APIs write it.
    pub(crate) fn of_word(word: &str) -> ApiResult<Self> {
        match word {
            "none" => Ok(Self::None),
            "auto" => Ok(Self::Auto),
            "required" => Ok(Self::Required),
            _ => Err(ApiError::param("tool_choice", "must be none, auto, required or a function")),
        }
    }
}

pub(crate) type Functions = Vec<(String, Value)>;

/// The tools as they came, and each function's name and the schema of its arguments.
fn functions(fields: &mut Fields) -> ApiResult<Option<(Value, Functions)>> {
    let Some(list) = fields.array("tools")? else { return Ok(None) };
    if list.is_empty() || list.len() > TOOLS_MAX {
        let problem = format!("has {} entries; 1 to {TOOLS_MAX} are taken", list.len());
        return Err(ApiError::param("tools", problem));
    }
    let mut tools = ToolList::default();
    for (i, tool) in list.into_iter().enumerate() {
        let mut tool = Fields::of(tool, format!("tools[{i}]"))?;
        tool.only("type", &[json!("function")], "must be `function`; this server runs no tools of its own")?;
        let mut function = tool
            .object("function")?
            .ok_or_else(|| ApiError::param(format!("tools[{i}].function"), "is missing"))?;
        tool.finish()?;
        tools.add(&mut function, "parameters")?;
        function.finish()?;
    }
    Ok(Some((tools.list.into(), tools.functions)))
}

/// Tools as they are read, one after the other.
#[derive(Default)]
pub(crate) struct ToolList {
    /// As templates take them.
    pub(crate) list: Vec<Value>,
    pub(crate) functions: Functions,
}

impl ToolList {
    /// Reads a function's name, description and the schema of its arguments, which each API calls otherwise.
    pub(crate) fn add(&mut self, function: &mut Fields, schema_field: &str) -> ApiResult<()> {
        let name = function.need_string("name")?;
        check_name(&name, function.name("name"), &self.functions)?;
        let mut out = json!({ "name": name });
        if let Some(description) = function.string("description")? {
            out["description"] = description.into();
        }
        let place = function.name(schema_field);
        let schema = match function.take(schema_field) {
            None => json!({ "type": "object", "properties": {} }),
            Some(schema @ Value::Object(_)) => schema,
            Some(_) => return Err(ApiError::param(place, "must be a JSON schema")),
        };
        // Calls fit the schema in any case.
        function.bool("strict")?;
        out["parameters"] = schema.clone();
        self.list.push(json!({ "type": "function", "function": out }));
        self.functions.push((name, schema));
        Ok(())
    }
}

/// A function's name, before it joins the others.
fn check_name(name: &str, place: String, others: &Functions) -> ApiResult<()> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(is_good) {
        let problem = format!("must be 1 to {NAME_MAX} letters, digits, `_`, `-` or `.`");
        return Err(ApiError::param(place, problem));
    }
    if others.iter().any(|(other, _)| other == name) {
        return Err(ApiError::param(place, format!("= `{name}` stands there twice")));
    }
    Ok(())
}

fn choice(fields: &mut Fields) -> ApiResult<Option<Choice>> {
    let place = fields.name("tool_choice");
    match fields.take("tool_choice") {
        None => Ok(None),
        Some(Value::String(word)) => Choice::of_word(&word).map(Some),
        Some(value) => {
            let mut choice = Fields::of(value, &place)?;
            choice.only("type", &[json!("function")], "must be `function`")?;
            let mut function = choice
                .object("function")?
                .ok_or_else(|| ApiError::param(format!("{place}.function"), "is missing"))?;
            choice.finish()?;
            let name = function.need_string("name")?;
            function.finish()?;
            Ok(Some(Choice::Named(name)))
        }
    }
}

fn response_format(fields: &mut Fields) -> ApiResult<Option<Guide>> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(None) };
    let kind = format.need_string("type")?;
    let guide = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Guide::JsonObject),
        "json_schema" => {
            let mut inner = format
                .object("json_schema")?
                .ok_or_else(|| ApiError::param("response_format.json_schema", "is missing"))?;
            // A label for people.
            inner.need_string("name")?;
            inner.string("description")?;
            inner.bool("strict")?;
            let place = inner.name("schema");
            let schema = inner.take("schema").ok_or_else(|| ApiError::param(&place, "is missing"))?;
            if !schema.is_object() {
                return Err(ApiError::param(place, "must be a JSON schema"));
            }
            inner.finish()?;
            Some(Guide::JsonSchema(schema))
        }
        _ => {
            let problem = "must be text, json_object or json_schema";
            return Err(ApiError::unsupported(format.name("type"), problem));
        }
    };
    format.finish()?;
    Ok(guide)
}
