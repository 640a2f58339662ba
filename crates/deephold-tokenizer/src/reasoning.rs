//! Thinking and answer in one stream.

use crate::held::Held;

/// Opens the thinking.
pub const THINK_OPEN: &str = "<think>";
/// Ends it.
pub const THINK_CLOSE: &str = "</think>";

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Between `<think>` and `</think>`.
    Reasoning(String),
    /// Everything else.
    Content(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but space so far: `<think>` may come.
    Start,
    Reasoning,
    /// After `</think>`, before the first character that is not space.
    Gap,
    Content,
}

/// Splits a stream at `<think>` and `</think>` (DeepSeek-R1, V3.1 and later). Line breaks around the markers belong to
/// neither part.
#[derive(Clone, Debug)]
pub struct ReasoningSplitter {
    state: State,
    held: Held,
    /// Of what is held, so many bytes were looked at: space at the start, or thinking without a mark.
    scanned: usize,
    /// A mark that ends the thinking as well, and belongs to what follows it.
    also_ends: Option<&'static str>,
    /// Line breaks right after `<think>` are dropped until text comes.
    fresh: bool,
}

impl ReasoningSplitter {
    /// `prompt` decides where the answer begins: a template may have opened the thinking, or closed it.
    pub fn after_prompt(prompt: &str) -> Self {
        let tail = prompt.trim_end();
        let state = if tail.ends_with(THINK_OPEN) {
            State::Reasoning
        } else if tail.ends_with(THINK_CLOSE) {
            State::Content
        } else {
            State::Start
        };
        Self { state, held: Held::default(), scanned: 0, also_ends: None, fresh: true }
    }

    /// For models that forget `</think>` before a tool call: `mark` ends the thinking and opens the content.
    pub fn ends_also_at(mut self, mark: &'static str) -> Self {
        self.also_ends = Some(mark);
        self
    }

    /// Takes the next text, gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Segment> {
        self.held.push(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// The rest, at the end of the stream.
    pub fn finish(&mut self) -> Option<Segment> {
        let rest = self.held.take_all();
        self.scanned = 0;
        match self.state {
            _ if rest.is_empty() => None,
            State::Reasoning => Some(Segment::Reasoning(rest)),
            State::Gap => None,
            State::Start | State::Content => Some(Segment::Content(rest)),
        }
    }

    /// Whether the stream is inside the thinking.
    pub fn is_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    /// Bytes looked at.
    #[cfg(test)]
    pub(crate) fn examined(&self) -> usize {
        self.held.examined
    }

    /// One move; whether another may follow.
    fn step(&mut self, out: &mut Vec<Segment>) -> bool {
        match self.state {
            State::Start => {
                let rest = &self.held.rest()[self.scanned..];
                let text = rest.trim_start();
                self.scanned += rest.len() - text.len();
                if text.starts_with(THINK_OPEN) {
                    self.held.take(self.scanned + THINK_OPEN.len());
                    self.scanned = 0;
                    self.state = State::Reasoning;
                    return true;
                }
                if THINK_OPEN.starts_with(text) {
                    return false;
                }
                self.state = State::Content;
                true
            }
            State::Reasoning => self.in_reasoning(out),
            State::Gap => {
                self.drop_line_breaks();
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Content;
                true
            }
            State::Content => {
                if !self.held.is_empty() {
                    out.push(Segment::Content(self.held.take_all()));
                }
                false
            }
        }
    }

    fn in_reasoning(&mut self, out: &mut Vec<Segment>) -> bool {
        if std::mem::take(&mut self.fresh) {
            self.drop_line_breaks();
            self.fresh = self.held.is_empty();
        }
        let all = [THINK_CLOSE, self.also_ends.unwrap_or(THINK_CLOSE)];
        let marks = if self.also_ends.is_some() { &all[..] } else { &all[..1] };
        let from = self.scanned;
        let found = self.held.find(marks, from);
        let end = found.map_or_else(|| self.held.certain(marks).max(from), |f| f.0);
        // What was looked at before and is still held is line breaks: they may be the last before the mark.
        let new = self.held.rest()[from..end].trim_end_matches('\n').len();
        let inside = if new > 0 { from + new } else { 0 };
        if inside > 0 {
            out.push(Segment::Reasoning(self.held.take(inside).to_owned()));
        }
        let Some((at, which)) = found else {
            self.scanned = end - inside;
            return false;
        };
        // The closing mark is taken; another mark belongs to what follows.
        self.held.take(at - inside + if which == 0 { THINK_CLOSE.len() } else { 0 });
        self.scanned = 0;
        self.state = State::Gap;
        true
    }

    fn drop_line_breaks(&mut self) {
        let rest = self.held.rest();
        let breaks = rest.len() - rest.trim_start_matches('\n').len();
        self.held.take(breaks);
    }
}
