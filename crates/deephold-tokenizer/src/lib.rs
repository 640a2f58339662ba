//! From text to token ids and back: tokenizers, chat templates, and what reads an answer as it streams.
//!
//! The binary and the server call it on both sides of the engine, which sees ids alone. It never samples, and never decides
//! what a request may ask.
//!
//! A [`Tokenizer`] comes from tokenizer.json or from the vocabulary inside a GGUF file. A [`ChatFormat`] turns messages
//! into a prompt: the model's own Jinja template, or DeepSeek's published encodings for V3.2 and V4, which have none.
//! Behind the engine, a [`Detokenizer`] turns ids into whole UTF-8, a [`StopMatcher`] ends the text at a stop string, and
//! an [`AnswerParser`] tells thinking, answer and tool calls apart in the model's [`Dialect`].

mod chat;
mod detokenizer;
mod dialect;
mod error;
mod gguf;
mod held;
mod outline;
mod pieces;
mod pre_tokenizer;
mod reasoning;
mod sentencepiece;
mod stop;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use chat::{ChatFormat, ChatTemplate, DeepSeekEncoding, RenderOptions};
pub use detokenizer::Detokenizer;
pub use dialect::{AnswerEvent, AnswerParser, Dialect, DsmlSection, ParsedAnswer, ToolCall, parse_answer};
pub use error::TokenizerError;
pub use reasoning::{ReasoningSplitter, Segment, THINK_CLOSE, THINK_OPEN};
pub use stop::{StopMatcher, Stopped};
pub use tokenizer::Tokenizer;
