//! Thinking, answer and tool calls in one stream of text, as each model line writes them.
//!
//! | dialect | tool calls |
//! |---|---|
//! | [`Dialect::DeepSeekMarks`] (V3, R1) | `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`, a fenced JSON block, `<｜tool▁call▁end｜>` |
//! | the same (V3.1) | `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>JSON<｜tool▁call▁end｜>` |
//! | [`Dialect::Dsml`] (V3.2, V4) | `<｜DSML｜invoke name="NAME">`, one `<｜DSML｜parameter …>` an argument, `</｜DSML｜invoke>` |
//! | [`Dialect::Qwen`] | `<tool_call>{"name": …, "arguments": …}</tool_call>` |
//!
//! Sources: the models' published chat templates and encodings. A call is given out whole, once its end mark has come and
//! its arguments are valid JSON; anything else in its place is text. What comes out, joined, does not depend on how the
//! text was split.

use serde_json::{Map, Value};

use crate::ChatFormat;
use crate::chat::DeepSeekEncoding;
use crate::reasoning::{ReasoningSplitter, Segment};
use crate::stop::overlap;

const THINK: &str = "<think>";

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
            ChatFormat::Template(template) => Self::of_template(template.source()),
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
            Self::Plain => None,
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
            Self::Plain => &[THINK, "</think>"],
            Self::DeepSeekMarks { .. } => &[
                THINK,
                "</think>",
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            Self::Dsml { .. } => &[THINK, "</think>", "｜DSML｜"],
            Self::Qwen => &[THINK, "</think>", "<tool_call>", "</tool_call>"],
        }
    }

    /// The call in `body`, the text between the open and the close mark.
    fn parse_call(self, body: &str) -> Result<ToolCall, Broken> {
        match self {
            Self::Plain => Err(Broken::Malformed),
            Self::DeepSeekMarks { .. } => parse_marks(body),
            Self::Dsml { .. } => parse_dsml(body),
            Self::Qwen => parse_qwen(body),
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
    calls: Option<CallScanner>,
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
        let calls =
            marks.map(|marks| CallScanner { dialect, marks, held: String::new(), opened: None, any: false });
        Self { reasoning, calls }
    }

    /// Takes the next text, gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<AnswerEvent> {
        let segments = self.reasoning.push(text);
        self.scan(segments)
    }

    /// Whether the stream is inside the thinking.
    pub fn is_reasoning(&self) -> bool {
        self.reasoning.is_reasoning()
    }

    /// The rest, at the end of the stream.
    pub fn finish(&mut self) -> Vec<AnswerEvent> {
        let last = self.reasoning.finish();
        let mut out = self.scan(last.into_iter().collect());
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut out);
        }
        out
    }

    fn scan(&mut self, segments: Vec<Segment>) -> Vec<AnswerEvent> {
        let mut out = Vec::new();
        for segment in segments {
            match (segment, &mut self.calls) {
                (Segment::Reasoning(text), _) => out.push(AnswerEvent::Reasoning(text)),
                (Segment::Content(text), None) => out.push(AnswerEvent::Content(text)),
                (Segment::Content(text), Some(calls)) => calls.push(&text, &mut out),
            }
        }
        out
    }
}

/// Why a body is no call.
enum Broken {
    /// Its JSON ends too early: the close mark may stand inside a string.
    Unfinished,
    Malformed,
}

/// Finds calls in the answer's text.
struct CallScanner {
    dialect: Dialect,
    marks: Marks,
    held: String,
    /// Inside a section: its open mark and what stood around it, until a call proves that it was one.
    opened: Option<String>,
    any: bool,
}

impl CallScanner {
    fn push(&mut self, text: &str, out: &mut Vec<AnswerEvent>) {
        self.held.push_str(text);
        while if self.opened.is_some() { self.in_section(out) } else { self.in_text(out) } {}
    }

    fn finish(&mut self, out: &mut Vec<AnswerEvent>) {
        let mut rest = self.opened.take().unwrap_or_default();
        rest.push_str(&self.held);
        self.held.clear();
        if !(self.any && rest.trim().is_empty()) {
            emit(out, &rest);
        }
    }

    /// One move outside a section; whether another may follow.
    fn in_text(&mut self, out: &mut Vec<AnswerEvent>) -> bool {
        let section =
            self.marks.section.and_then(|(open, _)| self.held.find(open).map(|at| (at, open.len())));
        let call = self.held.find(self.marks.open).map(|at| (at, 0));
        if let Some((at, len)) = [section, call].into_iter().flatten().min() {
            // Space before a mark belongs to the mark.
            let text = self.held[..at].trim_end().len();
            emit(out, &self.held[..text]);
            self.opened = Some(self.held[text..at + len].to_owned());
            self.held.drain(..at + len);
            return true;
        }
        let open = self.marks.section.map_or(0, |(open, _)| overlap(&self.held, open));
        let certain = self.held.len() - open.max(overlap(&self.held, self.marks.open));
        let certain = self.held[..certain].trim_end().len();
        let text: String = self.held.drain(..certain).collect();
        emit(out, &text);
        false
    }

    /// One move inside a section: a call, the section's end, or something that is neither.
    fn in_section(&mut self, out: &mut Vec<AnswerEvent>) -> bool {
        let space = self.held.len() - self.held.trim_start().len();
        let rest = &self.held[space..];
        if let Some(body) = rest.strip_prefix(self.marks.open) {
            let start = space + self.marks.open.len();
            for (at, _) in body.match_indices(self.marks.close) {
                match self.dialect.parse_call(&body[..at]) {
                    Ok(call) => {
                        out.push(AnswerEvent::ToolCall(call));
                        self.held.drain(..start + at + self.marks.close.len());
                        self.any = true;
                        self.opened = self.marks.section.map(|_| String::new());
                        return true;
                    }
                    Err(Broken::Unfinished) => {}
                    Err(Broken::Malformed) => {
                        let end = start + at + self.marks.close.len();
                        return self.give_up(end, out);
                    }
                }
            }
            return false;
        }
        if let Some((_, close)) = self.marks.section {
            if rest.starts_with(close) && self.opened.as_ref().is_some_and(String::is_empty) {
                self.held.drain(..space + close.len());
                self.opened = None;
                return true;
            }
            if close.starts_with(rest) {
                return false;
            }
        }
        if self.marks.open.starts_with(rest) {
            return false;
        }
        self.give_up(space, out)
    }

    /// What stands up to `end` is text after all.
    fn give_up(&mut self, end: usize, out: &mut Vec<AnswerEvent>) -> bool {
        let mut text = self.opened.take().unwrap_or_default();
        text.extend(self.held.drain(..end));
        emit(out, &text);
        true
    }
}

fn emit(out: &mut Vec<AnswerEvent>, text: &str) {
    if text.is_empty() {
        return;
    }
    match out.last_mut() {
        Some(AnswerEvent::Content(last)) => last.push_str(text),
        _ => out.push(AnswerEvent::Content(text.to_owned())),
    }
}

fn json(text: &str) -> Result<Value, Broken> {
    serde_json::from_str(text).map_err(|e| if e.is_eof() { Broken::Unfinished } else { Broken::Malformed })
}

/// Arguments are an object; older templates show them as a string that holds one, and models imitate that.
fn call(name: &str, arguments: Value) -> Result<ToolCall, Broken> {
    let arguments = match arguments {
        Value::String(inner) => serde_json::from_str(&inner).map_err(|_| Broken::Malformed)?,
        Value::Null => Value::Object(Map::new()),
        other => other,
    };
    if name.is_empty() || name.len() > 256 || !arguments.is_object() {
        return Err(Broken::Malformed);
    }
    Ok(ToolCall { name: name.to_owned(), arguments: arguments.to_string() })
}

fn parse_marks(body: &str) -> Result<ToolCall, Broken> {
    let (head, rest) = body.split_once("<｜tool▁sep｜>").ok_or(Broken::Malformed)?;
    let fence = "```json";
    match rest.split_once(fence) {
        Some((name, rest)) if head.trim() == "function" => {
            let inner = rest.trim_end().strip_suffix("```").ok_or(Broken::Unfinished)?;
            call(name.trim(), json(inner)?)
        }
        _ => call(head.trim(), json(rest)?),
    }
}

fn parse_qwen(body: &str) -> Result<ToolCall, Broken> {
    let mut value = json(body)?;
    let arguments = value.get_mut("arguments").map(Value::take).unwrap_or_default();
    let name = value.get("name").and_then(Value::as_str).ok_or(Broken::Malformed)?;
    call(name, arguments)
}

fn parse_dsml(body: &str) -> Result<ToolCall, Broken> {
    const PARAMETER: (&str, &str) = ("<｜DSML｜parameter", "</｜DSML｜parameter>");
    let (name, mut rest) = tag_attributes(body).ok_or(Broken::Malformed)?;
    let name = attribute(name, "name").ok_or(Broken::Malformed)?;
    let mut arguments = Map::new();
    while let Some(parameter) = rest.trim_start().strip_prefix(PARAMETER.0) {
        let (attributes, inner) = tag_attributes(parameter).ok_or(Broken::Malformed)?;
        let (value, after) = inner.split_once(PARAMETER.1).ok_or(Broken::Unfinished)?;
        let key = attribute(attributes, "name").ok_or(Broken::Malformed)?;
        let value = match attribute(attributes, "string") {
            Some("false") => serde_json::from_str(value).map_err(|_| Broken::Malformed)?,
            _ => Value::String(value.to_owned()),
        };
        arguments.insert(key.to_owned(), value);
        rest = after;
    }
    if !rest.trim().is_empty() {
        return Err(Broken::Malformed);
    }
    call(name, Value::Object(arguments))
}

/// The attributes up to the tag's `>`, and what follows it.
fn tag_attributes(text: &str) -> Option<(&str, &str)> {
    let line = text.find('\n').unwrap_or(text.len());
    let end = text[..line].find("\">")? + 1;
    Some((&text[..end], &text[end + 1..]))
}

/// The value of `name="…"`.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = attributes;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        let (value, next) = after.split_once('"')?;
        if key.trim() == name {
            return Some(value);
        }
        rest = next;
    }
}
