//! What is printed: names and texts from outside cannot steer a terminal, and nothing panics where nobody reads.
//!
//! `out!`, `marked!` and `note!` are the only ways to print lines; clippy refuses the standard macros in this crate.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// One line on standard output. A reader that has gone is an error, which ends the program without a message.
macro_rules! out {
    () => { $crate::console::print(format_args!("")) };
    ($($arguments:tt)*) => { $crate::console::print(format_args!($($arguments)*)) };
}

/// As `out!`, with our own marks of colour; texts from outside must be [`plain`].
macro_rules! marked {
    ($($arguments:tt)*) => { $crate::console::print_marked(format_args!($($arguments)*)) };
}

/// One line on standard error, where people look; nothing is lost if they do not.
macro_rules! note {
    ($($arguments:tt)*) => { $crate::console::tell(format_args!($($arguments)*)) };
}

pub(crate) use {marked, note, out};

/// Our own marks of colour, which alone of all control sequences are printed.
pub(crate) const DIM: &str = "\x1b[2m";
pub(crate) const NOT_DIM: &str = "\x1b[22m";
pub(crate) const RED: &str = "\x1b[31m";
pub(crate) const GREEN: &str = "\x1b[32m";
pub(crate) const NO_COLOUR: &str = "\x1b[39m";

/// Whether a terminal would do something else than show it: controls, and what reverses the direction of writing.
fn is_steering(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name or a text from outside within a line: what would steer a terminal is written out.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_steering) { Cow::Owned(written_out(text, |_| false)) } else { Cow::Borrowed(text) }
}

/// As [`plain`], for whole lines of ours: breaks and tabs stay.
fn lines(text: &str) -> Cow<'_, str> {
    let stays = |c: char| matches!(c, '\n' | '\t');
    match text.chars().any(|c| is_steering(c) && !stays(c)) {
        true => Cow::Owned(written_out(text, stays)),
        false => Cow::Borrowed(text),
    }
}

/// As [`lines`], with our own colours.
fn marked_lines(text: &str) -> Cow<'_, str> {
    if !text.contains('\x1b') {
        return lines(text);
    }
    let ours = |rest: &str| [DIM, NOT_DIM, RED, GREEN, NO_COLOUR].into_iter().find(|m| rest.starts_with(m));
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match ours(rest) {
            Some(mark) => {
                out.push_str(mark);
                mark.len()
            }
            None => {
                out.push_str(&lines(&rest[..c.len_utf8()]));
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    Cow::Owned(out)
}

fn written_out(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if stays(c) || !is_steering(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x80 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
        }
    }
    out
}

pub(crate) fn print(arguments: fmt::Arguments<'_>) -> io::Result<()> {
    write(&format!("{}\n", lines(&arguments.to_string())))
}

pub(crate) fn print_marked(arguments: fmt::Arguments<'_>) -> io::Result<()> {
    write(&format!("{}\n", marked_lines(&arguments.to_string())))
}

/// Text as it is, whole.
pub(crate) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

pub(crate) fn tell(arguments: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{}", lines(&arguments.to_string()));
}

/// A JSON document as text: what would steer a terminal is escaped, also where JSON would allow it.
pub(crate) fn json_text(value: &serde_json::Value, pretty: bool) -> String {
    let text = if pretty { format!("{value:#}") } else { value.to_string() };
    // Beyond breaks and indents such characters stand within strings only.
    if !text.chars().any(|c| is_steering(c) && c != '\n') {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if c == '\n' || !is_steering(c) => out.push(c),
            c => out.push_str(&format!("\\u{:04x}", c as u32)),
        }
    }
    out
}

/// The text of an answer: as it is for a file or a pipe; on a terminal without what would steer it.
pub(crate) struct AnswerText {
    is_terminal: bool,
}

impl AnswerText {
    pub(crate) fn stdout() -> Self {
        Self { is_terminal: io::stdout().is_terminal() }
    }

    /// Writes a piece of it.
    pub(crate) fn write(&self, text: &str) -> io::Result<()> {
        write(&self.shown(text))
    }

    fn shown<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let drops = |c: char| is_steering(c) && !matches!(c, '\n' | '\t');
        if !self.is_terminal || !text.chars().any(drops) {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.chars().filter(|c| !drops(*c)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_steers_a_terminal() {
        assert_eq!(plain("层 a b"), "层 a b");
        assert_eq!(
            plain("a\x1b]0;t\x07\n\r\t\u{9b}2J\u{202e}"),
            "a\\x1b]0;t\\x07\\n\\r\\t\\u{9b}2J\\u{202e}"
        );
        assert_eq!(lines("a\n\tb\x1b[31mred\x08"), "a\n\tb\\x1b[31mred\\x08");
        assert_eq!(
            marked_lines("a\n\tb\x1b[31mred\x1b[39m\x1b[2J\x08"),
            "a\n\tb\x1b[31mred\x1b[39m\\x1b[2J\\x08"
        );
        let value = serde_json::json!({ "a\u{9b}": ["\x1b[2J\u{7f}", 1] });
        for pretty in [true, false] {
            let text = json_text(&value, pretty);
            assert!(text.is_ascii() && !text.contains('\x1b'), "{text}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
        }
    }

    #[test]
    fn an_answer_is_filtered_on_a_terminal_only() {
        let text = "a\n\tb\x1b[2J\u{9b}c\r";
        assert_eq!(AnswerText { is_terminal: false }.shown(text), text);
        assert_eq!(AnswerText { is_terminal: true }.shown(text), "a\n\tb[2Jc");
    }
}
