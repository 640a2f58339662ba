//! Finds calls in the text of an answer as it streams.

use super::body::{BodyEnd, BodyScan};
use super::{AnswerEvent, Dialect, Marks};
use crate::held::Held;

/// Splits text into content and calls.
pub(super) struct CallScanner {
    dialect: Dialect,
    marks: Marks,
    held: Held,
    state: State,
    /// Whether a call was found.
    any: bool,
}

enum State {
    /// Outside of calls. Of what is held, the first `scanned` bytes hold no mark, and what follows the first `solid` of them is
    /// space.
    Text { scanned: usize, solid: usize },
    /// Inside a section: between calls. `opened` is the open mark and what stood around it, until a call proves that it was
    /// one; the first `space` bytes held are space.
    Section { opened: String, space: usize },
    /// In a call's body, which begins behind `space` and the open mark.
    Body { opened: String, space: usize, scan: BodyScan },
}

impl CallScanner {
    pub(super) fn new(dialect: Dialect, marks: Marks) -> Self {
        let state = State::Text { scanned: 0, solid: 0 };
        Self { dialect, marks, held: Held::default(), state, any: false }
    }

    /// Bytes looked at.
    #[cfg(test)]
    pub(super) fn examined(&self) -> usize {
        self.held.examined
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<AnswerEvent>) {
        self.held.push(text);
        while self.step(out) {}
    }

    pub(super) fn finish(&mut self, out: &mut Vec<AnswerEvent>) {
        let mut rest = match std::mem::replace(&mut self.state, State::Text { scanned: 0, solid: 0 }) {
            State::Text { .. } => String::new(),
            State::Section { opened, .. } | State::Body { opened, .. } => opened,
        };
        rest.push_str(&self.held.take_all());
        if !(self.any && rest.trim().is_empty()) {
            emit(out, &rest);
        }
    }

    /// One move; whether another may follow.
    fn step(&mut self, out: &mut Vec<AnswerEvent>) -> bool {
        match std::mem::replace(&mut self.state, State::Text { scanned: 0, solid: 0 }) {
            State::Text { scanned, solid } => self.in_text(scanned, solid, out),
            State::Section { opened, space } => self.in_section(opened, space, out),
            State::Body { opened, space, scan } => self.in_body(opened, space, scan, out),
        }
    }

    fn in_text(&mut self, scanned: usize, solid: usize, out: &mut Vec<AnswerEvent>) -> bool {
        let section = self.marks.section.map(|s| s.0);
        let marks: Vec<&str> = section.into_iter().chain([self.marks.open]).collect();
        let solid_until = |held: &Held, end: usize| {
            let new = held.rest()[scanned..end].trim_end().len();
            if new > 0 { scanned + new } else { solid }
        };
        if let Some((at, which)) = self.held.find(&marks, scanned) {
            // Space before a mark belongs to the mark.
            let text = solid_until(&self.held, at);
            emit(out, self.held.take(text));
            // A section's mark is taken; a call's own mark is left for the section to find.
            let len = if section.is_some() && which == 0 { marks[0].len() } else { 0 };
            let opened = self.held.take(at - text + len).to_owned();
            self.state = State::Section { opened, space: 0 };
            return true;
        }
        let certain = self.held.certain(&marks).max(scanned);
        let text = solid_until(&self.held, certain);
        emit(out, self.held.take(text));
        self.state = State::Text { scanned: certain - text, solid: 0 };
        false
    }

    /// A call, the section's end, or something that is neither.
    fn in_section(&mut self, opened: String, space: usize, out: &mut Vec<AnswerEvent>) -> bool {
        let rest = &self.held.rest()[space..];
        let space = space + rest.len() - rest.trim_start().len();
        let rest = &self.held.rest()[space..];
        if rest.starts_with(self.marks.open) {
            let scan = BodyScan::new(self.dialect, space + self.marks.open.len());
            self.state = State::Body { opened, space, scan };
            return true;
        }
        let close = self.marks.section.map(|s| s.1);
        if let Some(close) = close.filter(|close| rest.starts_with(close) && opened.is_empty()) {
            self.held.take(space + close.len());
            self.state = State::Text { scanned: 0, solid: 0 };
            return true;
        }
        if self.marks.open.starts_with(rest) || close.is_some_and(|close| close.starts_with(rest)) {
            self.state = State::Section { opened, space };
            return false;
        }
        self.give_up(opened, space, out)
    }

    fn in_body(
        &mut self,
        opened: String,
        space: usize,
        mut scan: BodyScan,
        out: &mut Vec<AnswerEvent>,
    ) -> bool {
        let close = self.marks.close;
        let begin = space + self.marks.open.len();
        let end = match scan.advance(&mut self.held, close) {
            Some(BodyEnd::Whole(end)) => match self.dialect.parse_call(&self.held.rest()[begin..end]) {
                Ok(call) => {
                    out.push(AnswerEvent::ToolCall(call));
                    self.held.take(end + close.len());
                    self.any = true;
                    self.state = match self.marks.section {
                        Some(_) => State::Section { opened: String::new(), space: 0 },
                        None => State::Text { scanned: 0, solid: 0 },
                    };
                    return true;
                }
                Err(_) => end,
            },
            Some(BodyEnd::Malformed(end)) => end,
            None => {
                self.state = State::Body { opened, space, scan };
                return false;
            }
        };
        self.give_up(opened, end + close.len(), out)
    }

    /// What stands up to `end` is text after all.
    fn give_up(&mut self, opened: String, end: usize, out: &mut Vec<AnswerEvent>) -> bool {
        let mut text = opened;
        text.push_str(self.held.take(end));
        emit(out, &text);
        self.state = State::Text { scanned: 0, solid: 0 };
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
