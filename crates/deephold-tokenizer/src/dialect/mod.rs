//! Thinking, answer and tool calls in one stream of text, as each model line writes them.
//!
//! | dialect | tool calls |
//! |---|---|
//! | [`Dialect::DeepSeekMarks`] (V3, R1) | `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`, a fenced JSON block, `<｜tool▁call▁end｜>` |
//! | the same (V3.1) | `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>JSON<｜tool▁call▁end｜>` |
//! | [`Dialect::Dsml`] (V3.2, V4) | `<｜DSML｜invoke name="NAME">`, one `<｜DSML｜parameter …>` an argument, `</｜DSML｜invoke>` |
//! | [`Dialect::Qwen`] | `<tool_call>{"name": …, "arguments": …}</tool_call>` |
//! | [`Dialect::Llama3`] | the answer is `{"name": …, "parameters": …}` |
//!
//! Sources: the models' published chat templates and encodings. A call is given out whole, once its end mark has come and
//! its arguments are valid JSON; anything else in its place is text. What comes out, joined, does not depend on how the
//! text was split, and the work is linear in the text.

mod body;
mod json;
mod parse;
mod scanner;

use crate::ChatFormat;
use crate::chat::DeepSeekEncoding;
use crate::reasoning::{ReasoningSplitter, Segment, THINK_CLOSE, THINK_OPEN};

use json::JsonCalls;
use parse::Broken;
use scanner::CallScanner;

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// None that we know: everything is text.
    Plain,
    /// DeepSeek's tool call tokens: V3, R1 and V3.1.
    DeepSeekMarks {
        /// V3 and R1 put `function` before the name and a fence around the arguments.
        fenced: bool,
    },
    /// DeepSeek's markup: V3.2 and V4.
    Dsml {
        /// Name of the tag around the calls.
        section: DsmlSection,
    },
    /// Qwen2.5 and Qwen3.
    Qwen,
    /// Llama 3.1 and 3.2: the whole answer is the call, without a mark.
    Llama3,
}

/// The tag around DSML calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsmlSection {
    /// V3.2.
    FunctionCalls,
    /// V4.
    ToolCalls,
}

/// The texts that a dialect's scanner looks for.
struct Marks {
    section: Option<(&'static str, &'static str)>,
    open: &'static str,
    close: &'static str,
}

impl Dialect {
    /// The dialect of a chat format: what its template writes for earlier calls is what the model writes.
    pub fn of(format: &ChatFormat) -> Self {
        match format {
            ChatFormat::DeepSeek(DeepSeekEncoding::V32) => Self::Dsml { section: DsmlSection::FunctionCalls },
            ChatFormat::DeepSeek(DeepSeekEncoding::V4) => Self::Dsml { section: DsmlSection::ToolCalls },
            ChatFormat::Template(template) => template.traits().dialect,
        }
    }

    /// As [`Self::of`], from a template's text.
    pub fn of_template(source: &str) -> Self {
        if source.contains("DSML") {
            let v4 = !source.contains("function_calls");
            Self::Dsml { section: if v4 { DsmlSection::ToolCalls } else { DsmlSection::FunctionCalls } }
        } else if source.contains("<｜tool▁call▁begin｜>") {
            Self::DeepSeekMarks { fenced: source.contains("```json") }
        } else if source.contains("<tool_call>") {
            Self::Qwen
        } else if source.contains("\"parameters\"") && source.contains("ipython") {
            Self::Llama3
        } else {
            Self::Plain
        }
    }

    fn marks(self) -> Option<Marks> {
        let dsml =
            |section| Marks {
                section: Some(section), open: "<｜DSML｜invoke", close: "</｜DSML｜invoke>"
            };
        match self {
            Self::Plain | Self::Llama3 => None,
            Self::DeepSeekMarks { .. } => Some(Marks {
                section: Some(("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")),
                open: "<｜tool▁call▁begin｜>",
                close: "<｜tool▁call▁end｜>",
            }),
            Self::Dsml { section: DsmlSection::FunctionCalls } => {
                Some(dsml(("<｜DSML｜function_calls>", "</｜DSML｜function_calls>")))
            }
            Self::Dsml { section: DsmlSection::ToolCalls } => {
                Some(dsml(("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>")))
            }
            Self::Qwen => Some(Marks { section: None, open: "<tool_call>", close: "</tool_call>" }),
        }
    }

    /// Text whose appearance opens the calls.
    pub fn opening(self) -> Option<&'static str> {
        self.marks().map(|m| m.section.map_or(m.open, |s| s.0))
    }

    /// Special tokens that a detokenizer must show for the parser to work.
    pub fn visible_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[THINK_OPEN, THINK_CLOSE],
            Self::DeepSeekMarks { .. } => &[
                THINK_OPEN,
                THINK_CLOSE,
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            Self::Dsml { .. } => &[THINK_OPEN, THINK_CLOSE, "｜DSML｜"],
            Self::Llama3 => &[THINK_OPEN, THINK_CLOSE, json::PYTHON_TAG],
            Self::Qwen => &[THINK_OPEN, THINK_CLOSE, "<tool_call>", "</tool_call>"],
        }
    }

    /// Whether an answer that is a call in JSON, without any mark, counts: with Llama 3 it is the form; small Qwen models forget the
    /// marks.
    pub fn has_bare_calls(self) -> bool {
        matches!(self, Self::Qwen | Self::Llama3)
    }

    /// The call in `body`, the text between the open and the close mark.
    fn parse_call(self, body: &str) -> Result<ToolCall, Broken> {
        match self {
            Self::Plain | Self::Llama3 => Err(Broken),
            Self::DeepSeekMarks { .. } => parse::marks(body),
            Self::Dsml { .. } => parse::dsml(body),
            Self::Qwen => parse::qwen(body),
        }
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Which function.
    pub name: String,
    /// A JSON object.
    pub arguments: String,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// Thinking.
    Reasoning(String),
    /// Text of the answer.
    Content(String),
    /// A whole call.
    ToolCall(ToolCall),
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParsedAnswer {
    /// Thinking, without its marks.
    pub reasoning: String,
    /// Text of the answer.
    pub content: String,
    /// Calls in their order.
    pub tool_calls: Vec<ToolCall>,
}

impl ParsedAnswer {
    /// Adds a piece.
    pub fn add(&mut self, event: AnswerEvent) {
        match event {
            AnswerEvent::Reasoning(text) => self.reasoning.push_str(&text),
            AnswerEvent::Content(text) => self.content.push_str(&text),
            AnswerEvent::ToolCall(call) => self.tool_calls.push(call),
        }
    }
}

/// Parses a whole answer; `prompt` and `tools` as in [`AnswerParser::new`].
pub fn parse_answer(dialect: Dialect, prompt: &str, tools: bool, text: &str) -> ParsedAnswer {
    let mut parser = AnswerParser::new(dialect, prompt, tools);
    let mut out = ParsedAnswer::default();
    parser.push(text).into_iter().for_each(|e| out.add(e));
    parser.finish().into_iter().for_each(|e| out.add(e));
    out
}

/// Parses an answer as it streams.
pub struct AnswerParser {
    reasoning: ReasoningSplitter,
    /// An answer that is JSON from its first character.
    bare: Option<JsonCalls>,
    marked: Option<CallScanner>,
}

impl AnswerParser {
    /// `prompt` decides whether the answer begins inside the thinking; without `tools` marks of calls are text.
    pub fn new(dialect: Dialect, prompt: &str, tools: bool) -> Self {
        let mut reasoning = ReasoningSplitter::after_prompt(prompt);
        let marks = if tools { dialect.marks() } else { None };
        // Qwen's mark is plain text that thinking may quote; DeepSeek's are tokens that mean what they say.
        if let Some((open, _)) = marks.as_ref().and_then(|m| m.section) {
            reasoning = reasoning.ends_also_at(open);
        }
        let marked = marks.map(|marks| CallScanner::new(dialect, marks));
        let bare = (tools && dialect.has_bare_calls()).then(JsonCalls::default);
        Self { reasoning, bare, marked }
    }

    /// Takes the next text, gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<AnswerEvent> {
        let segments = self.reasoning.push(text);
        self.scan(segments)
    }

    /// Bytes that were looked at, over all parts: at most a small multiple of the stream.
    #[cfg(test)]
    pub(crate) fn examined(&self) -> usize {
        self.reasoning.examined() + self.marked.as_ref().map_or(0, CallScanner::examined)
    }

    /// Whether the stream is inside the thinking.
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.is_reasoning()
    }

    /// The rest, at the end of the stream.
    pub fn finish(&mut self) -> Vec<AnswerEvent> {
        let last = self.reasoning.finish();
        let mut out = self.scan(last.into_iter().collect());
        if let Some(mut bare) = self.bare.take() {
            let mut events = Vec::new();
            bare.finish(&mut events);
            events.into_iter().for_each(|e| self.behind_bare(e, &mut out));
        }
        if let Some(marked) = &mut self.marked {
            marked.finish(&mut out);
        }
        out
    }

    fn scan(&mut self, segments: Vec<Segment>) -> Vec<AnswerEvent> {
        let mut out = Vec::new();
        for segment in segments {
            match (segment, &mut self.bare) {
                (Segment::Reasoning(text), _) => out.push(AnswerEvent::Reasoning(text)),
                (Segment::Content(text), None) => self.behind_bare(AnswerEvent::Content(text), &mut out),
                (Segment::Content(text), Some(bare)) => {
                    let mut events = Vec::new();
                    bare.push(&text, &mut events);
                    events.into_iter().for_each(|e| self.behind_bare(e, &mut out));
                }
            }
        }
        out
    }

    /// What was no call of itself may hold marked ones.
    fn behind_bare(&mut self, event: AnswerEvent, out: &mut Vec<AnswerEvent>) {
        match (event, &mut self.marked) {
            (AnswerEvent::Content(text), Some(marked)) => marked.push(&text, out),
            (event, _) => out.push(event),
        }
    }
}
