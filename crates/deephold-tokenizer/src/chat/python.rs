//! What templates expect of Python: `json.dumps`, `repr`, `strftime`, and methods.

use minijinja::{Error, ErrorKind, State, Value as JinjaValue};
use minijinja_contrib::pycompat;
use serde_json::Value;

/// Options of `json.dumps`.
#[derive(Default)]
pub(super) struct JsonStyle {
    /// Whether the text ends at [`MAX_PRINTED`]: for what a template chose.
    pub(super) limited: bool,
    pub(super) indent: Option<usize>,
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    pub(super) separators: Option<Vec<String>>,
}

/// Bytes that one value may print as: indents, separators and escapes can make much of little.
const MAX_PRINTED: usize = 64 << 20;

/// The text is beyond [`MAX_PRINTED`].
#[derive(Debug)]
pub(super) struct TooLong;

impl From<TooLong> for Error {
    fn from(_: TooLong) -> Self {
        let limit = MAX_PRINTED >> 20;
        Self::new(ErrorKind::InvalidOperation, format!("a value prints as more than {limit} MiB of text"))
    }
}

/// Room for `more` bytes behind `out`.
fn room(out: &str, more: usize, limit: usize) -> Result<(), TooLong> {
    if out.len().saturating_add(more) > limit { Err(TooLong) } else { Ok(()) }
}

/// A value of ours in the default style.
pub(super) fn json(value: &Value) -> String {
    let mut out = String::new();
    // Without a limit it cannot be too long.
    dump(value, &JsonStyle::default(), 0, &mut out).ok();
    out
}

/// `json.dumps`: by default with a space behind comma and colon, and every character as it is.
pub(super) fn dumps(value: &Value, style: &JsonStyle) -> Result<String, TooLong> {
    let mut out = String::new();
    dump(value, style, 0, &mut out)?;
    Ok(out)
}

fn dump(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), TooLong> {
    // A line break, an indent and a separator go with each item.
    let separators = style.separators.as_deref().unwrap_or_default();
    let around = style.indent.unwrap_or(0) * (depth + 1) + separators.iter().map(String::len).sum::<usize>();
    let limit = if style.limited { MAX_PRINTED } else { usize::MAX };
    room(out, around + 64, limit)?;
    let (comma, colon) = match style.separators.as_deref() {
        Some([comma, colon, ..]) => (comma.as_str(), colon.as_str()),
        // With an indent the line break follows the comma, not a space.
        _ => (if style.indent.is_some() { "," } else { ", " }, ": "),
    };
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => string(s, style.ensure_ascii, limit, out)?,
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(comma);
                }
                line(out, depth + 1);
                dump(item, style, depth + 1, out)?;
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|e| e.0);
            }
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push_str(comma);
                }
                line(out, depth + 1);
                string(key, style.ensure_ascii, limit, out)?;
                out.push_str(colon);
                dump(item, style, depth + 1, out)?;
            }
            line(out, depth);
            out.push('}');
        }
    }
    Ok(())
}

/// Python writes exponents with a sign and two digits.
fn number(n: &serde_json::Number) -> String {
    let text = n.to_string();
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent.trim_start_matches('+')),
            };
            let mantissa = mantissa.strip_suffix(".0").unwrap_or(mantissa);
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

fn string(text: &str, ensure_ascii: bool, limit: usize, out: &mut String) -> Result<(), TooLong> {
    room(out, 6 * text.len(), limit)?;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if ensure_ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(())
}

/// `repr` of lists and maps, which templates print where they mean a literal.
pub(super) fn repr(value: &JinjaValue) -> Result<String, Error> {
    let tree = serde_json::to_value(value).map_err(|e| {
        Error::new(ErrorKind::BadSerialization, "a value that cannot be printed").with_source(e)
    })?;
    let mut out = String::new();
    write_repr(&tree, &mut out)?;
    Ok(out)
}

fn write_repr(value: &Value, out: &mut String) -> Result<(), TooLong> {
    room(out, 64, MAX_PRINTED)?;
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => {
            room(out, 4 * s.len(), MAX_PRINTED)?;
            // Python prefers single quotes unless only they occur in the text.
            let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
            out.push(quote);
            for c in s.chars() {
                match c {
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    '\\' => out.push_str("\\\\"),
                    c if c == quote => {
                        out.push('\\');
                        out.push(c);
                    }
                    c if (c as u32) < 0x20 => out.push_str(&format!("\\x{:02x}", c as u32)),
                    c => out.push(c),
                }
            }
            out.push(quote);
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_repr(item, out)?;
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_repr(&Value::String(key.clone()), out)?;
                out.push_str(": ");
                write_repr(item, out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// Python's methods of texts, lists and maps, with what the library does not charge for: the items of a split and the widths
/// and repetitions of a format.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &JinjaValue,
    name: &str,
    args: &[JinjaValue],
) -> Result<JinjaValue, Error> {
    match (value.as_str(), name) {
        (Some(text), "split") => {
            let separator = args.first().and_then(JinjaValue::as_str).filter(|s| !s.is_empty());
            let items =
                separator.map_or_else(|| text.split_whitespace().count(), |s| text.matches(s).count());
            state.consume_fuel(items as u64)?;
        }
        (Some(text), "splitlines") => state.consume_fuel(text.matches('\n').count() as u64)?,
        (Some(text), "format") => {
            let longest = args.iter().filter_map(JinjaValue::as_str).map(str::len).max().unwrap_or(0);
            let fields = text.matches('{').count();
            // A width is a number within the text; one beyond what a number holds is too long in any case.
            let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
            let widths = numbers.map(|n| n.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
            if widths.saturating_add(fields.saturating_mul(longest)) > MAX_PRINTED {
                return Err(TooLong.into());
            }
        }
        _ => {}
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime` in UTC, for the fields of dates and times; others stay as written.
pub(super) fn strftime(format: &str, unix_seconds: u64) -> String {
    let days = unix_seconds / 86_400;
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    let (year, month, day) = civil(days);
    let weekday = (days + 4) % 7;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&format!("{year:04}")),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => out.push_str(MONTHS[month as usize - 1]),
            Some('b') => out.push_str(&MONTHS[month as usize - 1][..3]),
            Some('A') => out.push_str(DAYS[weekday as usize]),
            Some('a') => out.push_str(&DAYS[weekday as usize][..3]),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
fn civil(mut days: u64) -> (u64, u64, u64) {
    // 400 years are 146097 days; beyond some millennia the year no longer matters to anyone.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%d %b %Y %H:%M:%S", 0), "01 Jan 1970 00:00:00");
        assert_eq!(strftime("%A, %B %d, %y %I %p", 1_709_164_800), "Thursday, February 29, 24 12 AM");
        assert_eq!(strftime("100%% %q %", 951_782_400 + 86_399), "100% %q %");
        assert_eq!(strftime("%Y-%m-%d", 4_102_444_800), "2100-01-01");
    }

    #[test]
    fn json_is_python_s() {
        let v = serde_json::json!({"b": [1, 2.5, 1e-7, null], "a": "é\n\u{1}", "e": {}});
        let s = JsonStyle::default();
        assert_eq!(
            dumps(&v, &s).expect("short"),
            "{\"b\": [1, 2.5, 1e-07, null], \"a\": \"é\\n\\u0001\", \"e\": {}}"
        );
        let s = JsonStyle {
            limited: true,
            indent: Some(2),
            sort_keys: true,
            ensure_ascii: true,
            separators: None,
        };
        assert_eq!(
            dumps(&v, &s).expect("short"),
            "{\n  \"a\": \"\\u00e9\\n\\u0001\",\n  \"b\": [\n    1,\n    2.5,\n    1e-07,\n    null\n  ],\n  \"e\": {}\n}"
        );
    }
}
