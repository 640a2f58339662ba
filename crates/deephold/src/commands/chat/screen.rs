//! An answer on the screen as it comes.

use std::io::Write;

use anyhow::Result;
use deephold_tokenizer::{ReasoningSplitter, Segment};

use crate::console::AnswerText;
use crate::terminal::Style;

/// Shows an answer, its thinking dimmed, and keeps both parts.
pub(super) struct Screen {
    splitter: ReasoningSplitter,
    style: Style,
    text: AnswerText,
    pub(super) reasoning: String,
    pub(super) content: String,
    dimmed: bool,
}

impl Screen {
    pub(super) fn new(prompt: &str) -> Self {
        Self {
            splitter: ReasoningSplitter::after_prompt(prompt),
            style: Style::stdout(),
            text: AnswerText::stdout(),
            reasoning: String::new(),
            content: String::new(),
            dimmed: false,
        }
    }

    pub(super) fn show(&mut self, text: &str) -> Result<()> {
        for segment in self.splitter.push(text) {
            self.segment(segment)?;
        }
        Ok(())
    }

    fn segment(&mut self, segment: Segment) -> Result<()> {
        let (on, off) = self.style.dim();
        match segment {
            Segment::Reasoning(text) => {
                if !std::mem::replace(&mut self.dimmed, true) {
                    write!(std::io::stdout(), "{on}")?;
                }
                self.text.write(&text)?;
                self.reasoning.push_str(&text);
            }
            Segment::Content(text) => {
                if std::mem::replace(&mut self.dimmed, false) {
                    write!(std::io::stdout(), "{off}\n\n")?;
                }
                self.text.write(&text)?;
                self.content.push_str(&text);
            }
        }
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(rest) = self.splitter.finish() {
            self.segment(rest)?;
        }
        let off = if self.dimmed { self.style.dim().1 } else { "" };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{off}")?;
        Ok(out.flush()?)
    }
}
