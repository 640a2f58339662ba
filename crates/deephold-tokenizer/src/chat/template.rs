//! Jinja templates as the Transformers library runs them.
//!
//! A template is foreign code: its length, steps, depth and output are bounded, and it sees nothing but its variables.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value as JinjaValue};
use serde_json::Value;

use super::{RenderOptions, python};
use crate::{Dialect, Tokenizer, TokenizerError};

const MAX_SOURCE: usize = 1 << 20;
const MAX_OUTPUT: usize = 64 << 20;

/// Steps of the template's machine; the longest published template takes some hundreds a message.
const FUEL: u64 = 50_000_000;

const NAME: &str = "chat";

/// A compiled template with the tokenizer's markers.
pub struct ChatTemplate {
    environment: Environment<'static>,
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
            let (what, limit) = ("the chat template in bytes", MAX_SOURCE);
            return Err(TokenizerError::TooLarge { what, actual: source.len(), limit });
        }
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TokenizerError::Template(describe(&e)))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(format);
        environment.add_filter("tojson", to_json);
        environment.add_filter("from_json", from_json);
        environment.add_function("raise_exception", raise);
        // `generation` marks the assistant's text for training and prints nothing.
        let plain = without_generation_marks(source);
        environment
            .add_template_owned(NAME.to_owned(), plain)
            .map_err(|e| TokenizerError::Template(describe(&e)))?;
        Ok(Self { environment, source: source.to_owned(), traits: Traits::of(source), bos, eos })
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
    /// What the template raises, a step or output limit.
    pub fn render(&self, messages: &Value, options: &RenderOptions) -> Result<String, TokenizerError> {
        let fail = |e: &Error| TokenizerError::Template(describe(e));
        let template = self.environment.get_template(NAME).map_err(|e| fail(&e))?;
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
        let mut out = Bounded(Vec::new());
        template.render_captured_to(context, &mut out).map_err(|e| fail(&e))?;
        String::from_utf8(out.0).map_err(|_| TokenizerError::Template("it wrote invalid UTF-8".to_owned()))
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}

/// Collects output up to the limit.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("it writes more than {MAX_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints values as Python does.
fn format(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &JinjaValue) -> Result<(), Error> {
    let written = match value.kind() {
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Undefined => Ok(()),
        ValueKind::Map | ValueKind::Seq => out.write_str(&python::repr(value)?),
        _ => write!(out, "{value}"),
    };
    written.map_err(Error::from)
}

fn to_json(value: &JinjaValue, kwargs: Kwargs) -> Result<JinjaValue, Error> {
    let style = python::JsonStyle {
        indent: kwargs.get::<Option<usize>>("indent")?.map(|n| n.min(32)),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: kwargs.get::<Option<Vec<String>>>("separators")?,
    };
    kwargs.assert_all_used()?;
    let tree = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson: not a JSON value").with_source(e))?;
    Ok(JinjaValue::from(python::dumps(&tree, &style)))
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
        out = format!("it did not end within {FUEL} steps");
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
