//! Where a call's body ends. Its close mark may also stand inside an argument, as text; so the body's structure is followed as
//! it comes, and only a close mark outside of strings (or DSML parameters) ends it. Each byte is looked at once.

use super::Dialect;
use super::parse::{FENCE, PARAMETER, SEPARATOR};
use crate::held::Held;

/// Follows one body.
pub(super) struct BodyScan {
    state: State,
    /// Bytes of the body that are followed.
    at: usize,
}

enum State {
    /// Before the separator of DeepSeek's marks; where the head begins.
    Head(usize),
    /// Behind the separator, before the first character that tells a fenced form from a plain one.
    Separated {
        is_function: bool,
    },
    /// In the name of the fenced form.
    Name,
    Json(JsonPrefix),
    Dsml {
        in_parameter: bool,
    },
}

/// What stands at a close mark.
pub(super) enum BodyEnd {
    /// The body's end, so many bytes from the body's begin; it may be a call.
    Whole(usize),
    /// A body that can be no call, up to this close mark.
    Malformed(usize),
}

impl BodyScan {
    /// The body begins `at` bytes into the pending text.
    pub(super) fn new(dialect: Dialect, at: usize) -> Self {
        let state = match dialect {
            Dialect::DeepSeekMarks { .. } => State::Head(at),
            Dialect::Dsml { .. } => State::Dsml { in_parameter: false },
            Dialect::Plain | Dialect::Qwen | Dialect::Llama3 => State::Json(JsonPrefix::default()),
        };
        Self { state, at }
    }

    /// Follows what is held, up to a close mark that ends the body; `None` where more must come.
    pub(super) fn advance(&mut self, held: &mut Held, close: &str) -> Option<BodyEnd> {
        loop {
            // The next text that matters in this state, before or at the next close mark.
            let (found, marks): (_, &[&str]) = match &self.state {
                State::Head(_) => (held.find(&[SEPARATOR, close], self.at), &[SEPARATOR, close]),
                State::Name => (held.find(&[FENCE, close], self.at), &[FENCE, close]),
                State::Dsml { in_parameter: false } => {
                    (held.find(&[PARAMETER.0, close], self.at), &[PARAMETER.0, close])
                }
                State::Dsml { in_parameter: true } => (held.find(&[PARAMETER.1], self.at), &[PARAMETER.1]),
                State::Separated { .. } | State::Json(_) => return self.advance_json(held, close),
            };
            let Some((at, which)) = found else {
                self.at = self.at.max(held.certain(marks));
                return None;
            };
            let mark = marks[which];
            if mark == close {
                return Some(match self.state {
                    State::Dsml { .. } => BodyEnd::Whole(at),
                    _ => BodyEnd::Malformed(at),
                });
            }
            self.at = at + mark.len();
            self.state = match &self.state {
                State::Head(start) => {
                    State::Separated { is_function: held.rest()[*start..at].trim() == "function" }
                }
                State::Dsml { in_parameter } => State::Dsml { in_parameter: !in_parameter },
                _ => State::Json(JsonPrefix::default()),
            };
        }
    }

    fn advance_json(&mut self, held: &mut Held, close: &str) -> Option<BodyEnd> {
        loop {
            let found = held.find(&[close], self.at).map(|f| f.0);
            let end = found.unwrap_or_else(|| self.at.max(held.certain(&[close])));
            if let State::Separated { is_function } = self.state {
                let rest = &held.rest()[self.at..end];
                let begins = rest.trim_start().chars().next();
                match (begins, found) {
                    (Some(c), _) if is_function && c != '{' => {
                        self.state = State::Name;
                        return self.advance(held, close);
                    }
                    (Some(_), _) => self.state = State::Json(JsonPrefix::default()),
                    (None, Some(at)) => return Some(BodyEnd::Malformed(at)),
                    (None, None) => {
                        self.at = end;
                        return None;
                    }
                }
            }
            let State::Json(json) = &mut self.state else { return None };
            json.push(&held.rest().as_bytes()[self.at..end]);
            self.at = end;
            let at = found?;
            if json.is_done() {
                return Some(BodyEnd::Whole(at));
            }
            if !json.in_string() {
                return Some(BodyEnd::Malformed(at));
            }
            // Part of a string.
            json.push(close.as_bytes());
            self.at = at + close.len();
        }
    }
}

/// Deeper JSON is refused, as `serde_json` does.
const DEPTH_MAX: usize = 128;

/// Whether what came so far can begin a JSON value, and whether it is inside a string. Numbers and words are followed
/// loosely: a library judges the whole value in the end.
#[derive(Default)]
struct JsonPrefix {
    /// For each open bracket whether it is an object's.
    open: Vec<bool>,
    next: Next,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Value,
    ValueOrEnd,
    KeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
    String {
        is_key: bool,
    },
    /// Behind a backslash; so many hexadecimal digits are still to come, 0 for the character that says which escape it is.
    Escape {
        is_key: bool,
        digits: u8,
    },
    /// In a number, `true`, `false` or `null`.
    Scalar,
    Done,
    Malformed,
}

impl JsonPrefix {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.next == Next::Scalar
                && !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'E' | b'.' | b'+' | b'-')
            {
                self.next = self.behind_value();
            }
            self.next = self.after(*byte);
        }
    }

    fn in_string(&self) -> bool {
        matches!(self.next, Next::String { .. } | Next::Escape { .. })
    }

    /// Whether a whole value has come; what follows it is for the dialect to judge.
    fn is_done(&self) -> bool {
        self.next == Next::Done || (self.next == Next::Scalar && self.open.is_empty())
    }

    fn behind_value(&self) -> Next {
        if self.open.is_empty() { Next::Done } else { Next::CommaOrEnd }
    }

    fn after(&mut self, byte: u8) -> Next {
        match (self.next, byte) {
            (Next::Malformed | Next::Done, _) => self.next,
            (Next::String { is_key }, _) => match byte {
                b'"' if is_key => Next::Colon,
                b'"' => self.behind_value(),
                b'\\' => Next::Escape { is_key, digits: 0 },
                0..=0x1f => Next::Malformed,
                _ => self.next,
            },
            (Next::Escape { is_key, digits }, _) => match (digits, byte) {
                (0, b'u') => Next::Escape { is_key, digits: 4 },
                (0, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Next::String { is_key },
                (1, _) if byte.is_ascii_hexdigit() => Next::String { is_key },
                (2.., _) if byte.is_ascii_hexdigit() => Next::Escape { is_key, digits: digits - 1 },
                _ => Next::Malformed,
            },
            (_, b' ' | b'\t' | b'\n' | b'\r') => self.next,
            (Next::Value | Next::ValueOrEnd, b'"') => Next::String { is_key: false },
            (Next::Value | Next::ValueOrEnd, b'{') => self.open(true),
            (Next::Value | Next::ValueOrEnd, b'[') => self.open(false),
            (Next::Value | Next::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Next::Scalar,
            (Next::ValueOrEnd, b']') => self.close(false),
            (Next::KeyOrEnd | Next::Key, b'"') => Next::String { is_key: true },
            (Next::KeyOrEnd, b'}') => self.close(true),
            (Next::Colon, b':') => Next::Value,
            (Next::CommaOrEnd, b',') if self.open.last() == Some(&true) => Next::Key,
            (Next::CommaOrEnd, b',') => Next::Value,
            (Next::CommaOrEnd, b'}') => self.close(true),
            (Next::CommaOrEnd, b']') => self.close(false),
            (Next::Scalar, _) => Next::Scalar,
            _ => Next::Malformed,
        }
    }

    fn open(&mut self, is_object: bool) -> Next {
        if self.open.len() >= DEPTH_MAX {
            return Next::Malformed;
        }
        self.open.push(is_object);
        if is_object { Next::KeyOrEnd } else { Next::ValueOrEnd }
    }

    fn close(&mut self, is_object: bool) -> Next {
        match self.open.pop() {
            Some(open) if open == is_object => self.behind_value(),
            _ => Next::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the library: a prefix is malformed where no continuation can help, and done where the value is whole.
    #[test]
    fn prefixes_of_json_are_followed() {
        for text in [
            r#"{"a": "x\"\\\u00e9y", "b": [1, -2.5e+3, true, null, {}, []], "c": {"d": ""}}"#,
            "[]",
            "{}",
            r#""s""#,
            " [ { } , [ ] ] ",
        ] {
            let mut json = JsonPrefix::default();
            for (i, byte) in text.bytes().enumerate() {
                json.push(&[byte]);
                let whole = serde_json::from_str::<serde_json::Value>(&text[..=i]).is_ok();
                assert_eq!(json.is_done(), whole, "{}", &text[..=i]);
                let in_string =
                    text[..=i].replace("\\\\", "").replace("\\\"", "").matches('"').count() % 2 == 1;
                assert_eq!(json.in_string(), in_string, "{}", &text[..=i]);
            }
        }
        for text in [
            "]",
            "{1",
            "{\"a\" 1",
            "[1 2",
            "{\"a\":1]",
            "\"\\x",
            "\"\\u12g",
            "\"a\nb",
            "{,",
            "[,",
            "x",
            "{\"a\":1,}",
        ] {
            let mut json = JsonPrefix::default();
            json.push(text.as_bytes());
            assert!(json.next == Next::Malformed, "{text}: {:?}", json.next);
        }
        let mut deep = JsonPrefix::default();
        deep.push("[".repeat(200).as_bytes());
        assert!(deep.next == Next::Malformed);
    }
}
