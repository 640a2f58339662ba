//! Thinking and answer in one stream.

use crate::stop::overlap;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

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
    held: String,
    /// A mark that ends the thinking as well, and belongs to what follows it.
    also_ends: Option<&'static str>,
    /// Line breaks right after `<think>` are dropped until text comes.
    fresh: bool,
}

impl ReasoningSplitter {
    /// `prompt` decides where the answer begins: a template may have opened the thinking, or closed it.
    pub fn after_prompt(prompt: &str) -> Self {
        let tail = prompt.trim_end();
        let state = if tail.ends_with(OPEN) {
            State::Reasoning
        } else if tail.ends_with(CLOSE) {
            State::Content
        } else {
            State::Start
        };
        Self { state, held: String::new(), also_ends: None, fresh: true }
    }

    /// For models that forget `</think>` before a tool call: `mark` ends the thinking and opens the content.
    pub fn ends_also_at(mut self, mark: &'static str) -> Self {
        self.also_ends = Some(mark);
        self
    }

    /// Takes the next text, gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Segment> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// The rest, at the end of the stream.
    pub fn finish(&mut self) -> Option<Segment> {
        let rest = std::mem::take(&mut self.held);
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

    /// One move; whether another may follow.
    fn step(&mut self, out: &mut Vec<Segment>) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::Reasoning;
                    return true;
                }
                if OPEN.starts_with(text) {
                    return false;
                }
                self.state = State::Content;
                true
            }
            State::Reasoning => {
                if std::mem::take(&mut self.fresh) {
                    self.held = self.held.trim_start_matches('\n').to_owned();
                    self.fresh = self.held.is_empty();
                }
                let close = self.held.find(CLOSE).map(|at| (at, CLOSE.len()));
                let other = self.also_ends.and_then(|m| self.held.find(m)).map(|at| (at, 0));
                if let Some((at, mark)) = [close, other].into_iter().flatten().min() {
                    let inside = self.held[..at].trim_end_matches('\n');
                    if !inside.is_empty() {
                        out.push(Segment::Reasoning(inside.to_owned()));
                    }
                    self.held.drain(..at + mark);
                    self.state = State::Gap;
                    return true;
                }
                let other = self.also_ends.map_or(0, |m| overlap(&self.held, m));
                let certain = self.held.len() - overlap(&self.held, CLOSE).max(other);
                // Line breaks may be the last before the marker.
                let certain = self.held[..certain].trim_end_matches('\n').len();
                if certain > 0 {
                    out.push(Segment::Reasoning(self.held.drain(..certain).collect()));
                }
                false
            }
            State::Gap => {
                self.held = self.held.trim_start_matches('\n').to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Content;
                true
            }
            State::Content => {
                if !self.held.is_empty() {
                    out.push(Segment::Content(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }
}
