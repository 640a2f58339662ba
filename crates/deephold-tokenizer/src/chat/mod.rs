//! Messages to prompts.

mod deepseek;
mod program;
mod python;
mod template;
mod words;

use deephold_weights::Checkpoint;
use serde_json::Value;

pub use deepseek::DeepSeekEncoding;
pub use template::ChatTemplate;

use crate::{Dialect, Tokenizer, TokenizerError};

/// What a prompt is made for.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Descriptions of tools, as the OpenAI API writes them.
    pub tools: Option<Value>,
    /// End with the assistant's turn opened.
    pub add_generation_prompt: bool,
    /// Whether the model should think first; `None` leaves it to the format.
    pub thinking: Option<bool>,
    /// More variables for a template.
    pub variables: serde_json::Map<String, Value>,
    /// Seconds since 1970, for templates that write the date.
    pub unix_seconds: u64,
}

/// How a model wants its messages.
#[derive(Debug)]
pub enum ChatFormat {
    /// The model's own template.
    Template(Box<ChatTemplate>),
    /// DeepSeek's published encoding, for models that come without a template.
    DeepSeek(DeepSeekEncoding),
}

impl ChatFormat {
    /// The model's template, else the published encoding of its architecture.
    ///
    /// # Errors
    /// [`TokenizerError::NoTemplate`], or a template that cannot be used.
    pub fn from_checkpoint(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Self, TokenizerError> {
        if let Some(source) = checkpoint.chat_template() {
            return Ok(Self::Template(Box::new(ChatTemplate::new(&source, tokenizer)?)));
        }
        match checkpoint.config().pointer("/architectures/0").and_then(Value::as_str) {
            Some("DeepseekV32ForCausalLM") => Ok(Self::DeepSeek(DeepSeekEncoding::V32)),
            Some("DeepseekV4ForCausalLM") => Ok(Self::DeepSeek(DeepSeekEncoding::V4)),
            _ => Err(TokenizerError::NoTemplate),
        }
    }

    /// How this model writes tool calls: as its template does, else in a form that its prompt is made to describe.
    pub fn tool_dialect(&self) -> Dialect {
        match Dialect::of(self) {
            Dialect::Plain => Dialect::Qwen,
            dialect => dialect,
        }
    }

    /// Whether the format takes the arguments of earlier calls as text; others take them as objects.
    pub fn takes_arguments_as_text(&self) -> bool {
        match self {
            Self::Template(template) => template.traits().takes_arguments_as_text,
            Self::DeepSeek(_) => false,
        }
    }

    /// The prompt for `messages`, an array of objects as the OpenAI API writes them. Tools that the model's template knows
    /// nothing of are described in its system message.
    ///
    /// # Errors
    /// Messages that the format refuses, or a template that fails or does not end.
    pub fn render(&self, messages: &Value, options: &RenderOptions) -> Result<String, TokenizerError> {
        match self {
            Self::Template(template) => {
                let tools = options.tools.as_ref().filter(|t| t.as_array().is_some_and(|t| !t.is_empty()));
                let traits = template.traits();
                let knows_calls = traits.dialect != Dialect::Plain;
                let spelt = (!knows_calls).then(|| words::spell_out(messages));
                let messages = spelt.as_ref().unwrap_or(messages);
                let emptied = (!traits.asks_for_none).then(|| words::without_nulls(messages)).flatten();
                let messages = emptied.as_ref().unwrap_or(messages);
                let described = tools
                    .filter(|_| !(knows_calls && traits.knows_tools))
                    .map(|tools| words::describe(messages, tools, self.tool_dialect()));
                template.render(described.as_ref().unwrap_or(messages), options)
            }
            Self::DeepSeek(encoding) => encoding.render(messages, options),
        }
    }
}
