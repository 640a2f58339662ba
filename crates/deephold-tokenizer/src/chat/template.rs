//! Jinja templates as the Transformers library runs them.
//!
//! A template is foreign code: its length, steps, depth and output are bounded, and it sees nothing but its variables.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value as JinjaValue, machinery};
use serde_json::Value;

use super::program::{self, Program};
use super::{RenderOptions, python};
use crate::{Dialect, Tokenizer, TokenizerError};

const MAX_SOURCE: usize = 1 << 20;

/// Messages and tools as JSON: a context of a million tokens is some 5 MiB of text.
const MAX_INPUT: usize = 8 << 20;

/// Work, of which an instruction is one unit, and so are 64 bytes built, written or read by a filter, and two values visited.
/// The longest published template takes some hundreds a message, and 256 MiB of text over all.
const FUEL: u64 = 4 << 20;

/// More work for long conversations: the template of DeepSeek-V3.2 goes through all messages for each result of a tool.
const FUEL_FOR_EACH_PAIR: u64 = 20;
const MAX_FUEL: u64 = 64 << 20;

pub(super) const NAME: &str = "chat";

/// A compiled template with the tokenizer's markers.
pub struct ChatTemplate {
    environment: Environment<'static>,
    program: Program,
    source: String,
    traits: Traits,
    bos: Option<String>,
    eos: Option<String>,
}

/// What a template's text says of it, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// How it writes calls.
    pub(crate) dialect: Dialect,
    /// Whether it reads the list of tools.
    pub(crate) knows_tools: bool,
    /// Whether it joins the arguments of calls to text as they are, instead of writing them as JSON or asking what they are.
    pub(crate) takes_arguments_as_text: bool,
    /// Whether it tells an absent content from an empty one; others fail on an absent one.
    pub(crate) asks_for_none: bool,
}

impl Traits {
    fn of(source: &str) -> Self {
        let compact: String = source.chars().filter(|c| !c.is_whitespace()).collect();
        let has = |parts: &[&str]| parts.iter().any(|part| compact.contains(part));
        let names = ["arguments", "arguments']", "arguments\"]"];
        let joined = names
            .iter()
            .any(|name| ["+", "}}", "-}}"].iter().any(|next| compact.contains(&format!("{name}{next}"))));
        Self {
            dialect: Dialect::of_template(source),
            knows_tools: reads_tools(source),
            takes_arguments_as_text: joined && !has(&["isstring", "ismapping"]),
            asks_for_none: has(&["contentisnone", "content']isnone", "content\"]isnone"]),
        }
    }
}

/// `tools` as a variable: not part of another name, of a mark or of a text.
fn reads_tools(source: &str) -> bool {
    let is_variable = |c: Option<char>| c.is_some_and(|c| !(c.is_alphanumeric() || "_<>/▁'\"".contains(c)));
    source.match_indices("tools").any(|(at, word)| {
        is_variable(source[..at].chars().next_back()) && is_variable(source[at + word.len()..].chars().next())
    })
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// A template beyond 1 MiB, or with a syntax error.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        let name =
            |id: Option<u32>| id.map(|id| String::from_utf8_lossy(tokenizer.token_bytes(id)).into_owned());
        Self::with_markers(source, name(tokenizer.bos()), name(tokenizer.eos()))
    }

    /// As [`Self::new`], with the markers given.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_markers(
        source: &str,
        bos: Option<String>,
        eos: Option<String>,
    ) -> Result<Self, TokenizerError> {
        if source.len() > MAX_SOURCE {
            let (what, limit) = ("the size of the chat template", MAX_SOURCE);
            return Err(TokenizerError::TooLarge { what, actual: source.len(), limit });
        }
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|e| TokenizerError::Template(describe(&e)))?;
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(format);
        environment.add_filter("tojson", to_json);
        environment.add_filter("from_json", from_json);
        environment.add_function("raise_exception", raise);
        program::add_bounds(&mut environment);
        // `generation` marks the assistant's text for training and prints nothing.
        let program = program::compile(without_generation_marks(source), &syntax)
            .map_err(|e| TokenizerError::Template(describe(&e)))?;
        Ok(Self { environment, program, source: source.to_owned(), traits: Traits::of(source), bos, eos })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// How it writes calls, and what it takes.
    pub(crate) fn traits(&self) -> Traits {
        self.traits
    }

    /// The prompt for `messages`.
    ///
    /// # Errors
    /// What the template raises, messages beyond 8 MiB, or a limit on the work or the values of a template.
    pub fn render(&self, messages: &Value, options: &RenderOptions) -> Result<String, TokenizerError> {
        let fail = |e: &Error| TokenizerError::Template(describe(e));
        let size = text_of(messages) + options.tools.as_ref().map_or(0, text_of);
        if size > MAX_INPUT {
            let what = "the size of the messages";
            return Err(TokenizerError::TooLarge { what, actual: size, limit: MAX_INPUT });
        }
        let mut variables = options.variables.clone();
        let mut set = |key: &str, value: Value| {
            variables.entry(key).or_insert(value);
        };
        set("messages", messages.clone());
        set("tools", options.tools.clone().unwrap_or(Value::Null));
        set("documents", Value::Null);
        set("add_generation_prompt", options.add_generation_prompt.into());
        if let Some(thinking) = options.thinking {
            // DeepSeek's and Qwen's names of one switch.
            set("thinking", thinking.into());
            set("enable_thinking", thinking.into());
        }
        if let Some(bos) = &self.bos {
            set("bos_token", bos.as_str().into());
        }
        if let Some(eos) = &self.eos {
            set("eos_token", eos.as_str().into());
        }
        let now = options.unix_seconds;
        let strftime = JinjaValue::from_function(move |format: &str| python::strftime(format, now));
        let context = minijinja::context! { strftime_now => strftime, ..JinjaValue::from(Serde(variables)) };
        let count = messages.as_array().map_or(0, |m| m.len() as u64);
        let fuel = FUEL.saturating_add(FUEL_FOR_EACH_PAIR.saturating_mul(count * count)).min(MAX_FUEL);
        let mut environment = std::borrow::Cow::Borrowed(&self.environment);
        if count > 100 {
            environment.to_mut().set_fuel(Some(fuel));
        }
        let mut text = String::new();
        self.program
            .with_dependent(|_, code| {
                let out = &mut machinery::make_string_output(&mut text);
                let (code, blocks) = (&code.instructions, &code.blocks);
                machinery::eval(&environment, code, context, blocks, out, AutoEscape::None).map(drop)
            })
            .map_err(|e| fail(&e))?;
        Ok(text)
    }
}

/// Bytes of text in a value.
fn text_of(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len(),
        Value::Array(items) => items.iter().map(text_of).sum(),
        Value::Object(map) => map.iter().map(|(key, item)| key.len() + text_of(item)).sum(),
        _ => 0,
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}

/// Prints values as Python does.
fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &JinjaValue) -> Result<(), Error> {
    let written = match value.kind() {
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Undefined => Ok(()),
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            program::weigh(state, value)?;
            out.write_str(&python::repr(value)?)
        }
        _ => write!(out, "{value}"),
    };
    written.map_err(Error::from)
}

fn to_json(state: &State<'_, '_>, value: &JinjaValue, kwargs: Kwargs) -> Result<JinjaValue, Error> {
    program::weigh(state, value)?;
    let style = python::JsonStyle {
        limited: true,
        indent: kwargs.get::<Option<usize>>("indent")?.map(|n| n.min(32)),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: kwargs.get::<Option<Vec<String>>>("separators")?,
    };
    kwargs.assert_all_used()?;
    let tree = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson: not a JSON value").with_source(e))?;
    Ok(JinjaValue::from(python::dumps(&tree, &style)?))
}

fn from_json(text: &str) -> Result<JinjaValue, Error> {
    let tree: Value = serde_json::from_str(text)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("from_json: {e}")))?;
    Ok(JinjaValue::from(Serde(tree)))
}

fn raise(message: &str) -> Result<JinjaValue, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// One line: what, where.
fn describe(error: &Error) -> String {
    let mut out = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    if error.kind() == ErrorKind::OutOfFuel {
        out = "it takes more steps, or builds more text, than any known template needs".to_owned();
    }
    if let Some(source) = std::error::Error::source(error) {
        out = format!("{out}: {source}");
    }
    match error.line() {
        Some(line) => format!("{out} (line {line})"),
        None => out,
    }
}

/// Blanks `{% generation %}` and `{% endgeneration %}`, whitespace marks included.
fn without_generation_marks(source: &str) -> String {
    if !source.contains("generation") {
        return source.to_owned();
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        // Behind the opening mark: in `{%}` the two overlap.
        let Some(close) = tag[2..].find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(close + 4);
        let inner = &tag[2..tag.len() - 2];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        if word == "generation" || word == "endgeneration" {
            // A comment keeps what the tag did to the space around it.
            let (left, right) = (inner.starts_with('-'), inner.ends_with('-'));
            out.push_str(if left { "{#-" } else { "{#" });
            out.push_str(if right { "-#}" } else { "#}" });
        } else {
            out.push_str(tag);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
