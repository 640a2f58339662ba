//! Tool calls as Lark grammars in llguidance's spelling, one form a dialect.

use std::fmt::Write;

use deephold_tokenizer::{Dialect, DsmlSection};
use serde_json::{Map, Value, json};

use crate::ToolGuide;
use crate::schema::compact;

/// The grammar of the calls. Where calls are required it begins with their opening mark; otherwise the mark has come.
pub(crate) fn lark(dialect: Dialect, tools: &ToolGuide) -> String {
    let mut out = String::new();
    let names: Vec<String> = (0..tools.functions.len()).map(|i| format!("f{i}")).collect();
    let any = names.join(" | ");
    let from_the_start = tools.required || tools.otherwise.is_some();
    let opening = dialect.opening().filter(|_| from_the_start).map(literal).unwrap_or_default();
    match &tools.otherwise {
        None if dialect == Dialect::Llama3 && !from_the_start => _ = writeln!(out, "start: calls | words"),
        None => _ = writeln!(out, "start: calls"),
        Some(schema) => {
            _ = writeln!(out, "start: calls | otherwise\notherwise: %json {}", compact(schema.clone()));
        }
    }
    let many = if tools.parallel { "+" } else { "" };
    match dialect {
        Dialect::Qwen => {
            let more = match tools.parallel {
                true => format!("(WS {} call)*", literal("<tool_call>")),
                false => String::new(),
            };
            _ = writeln!(out, "calls: {opening} call {more}");
            _ = writeln!(out, "call: WS ({any}) WS {}", literal("</tool_call>"));
        }
        Dialect::DeepSeekMarks { .. } => {
            _ = writeln!(out, "calls: {opening} call{many} {}", literal("<｜tool▁calls▁end｜>"));
            _ = writeln!(out, "call: WS ({any}) {}", literal("<｜tool▁call▁end｜>"));
        }
        Dialect::Dsml { section } => {
            let close = match section {
                DsmlSection::FunctionCalls => "</｜DSML｜function_calls>",
                DsmlSection::ToolCalls => "</｜DSML｜tool_calls>",
            };
            _ = writeln!(out, "calls: {opening} call{many} WS {}", literal(close));
            _ = writeln!(out, "call: WS ({any}) WS {}", literal("</｜DSML｜invoke>"));
        }
        // Without a mark the first character tells a call from text. More than one call its template cannot tell again.
        Dialect::Llama3 => {
            _ = writeln!(out, "calls: {any}");
            if !from_the_start {
                _ = writeln!(out, "words: /([^{{ \\n](.|\\n)*)?/");
            }
        }
        Dialect::Plain => {}
    }
    for (name, (function, schema)) in names.iter().zip(&tools.functions) {
        self::function(dialect, name, function, schema, &mut out);
    }
    out.push_str("WS: /[ \\n]{0,2}/\n");
    out
}

/// The grammar of one call without its mark.
pub(crate) fn bare_lark(dialect: Dialect, tools: &ToolGuide) -> String {
    let names: Vec<String> = (0..tools.functions.len()).map(|i| format!("f{i}")).collect();
    let mut out = format!("start: {}\n", names.join(" | "));
    for (name, (function, schema)) in names.iter().zip(&tools.functions) {
        self::function(dialect, name, function, schema, &mut out);
    }
    out
}

fn function(dialect: Dialect, rule: &str, name: &str, schema: &Value, out: &mut String) {
    match dialect {
        Dialect::Qwen | Dialect::Llama3 => {
            let arguments = if dialect == Dialect::Qwen { "arguments" } else { "parameters" };
            let call = json!({
                "type": "object",
                "properties": { "name": { "const": name }, arguments: object(schema) },
                "required": ["name", arguments],
                "additionalProperties": false,
            });
            // References of the schema count from its own root, which is now one level down.
            let call = match schema.get("$defs") {
                Some(defs) => with(call, "$defs", defs.clone()),
                None => call,
            };
            _ = writeln!(out, "{rule}: %json {}", compact(call));
        }
        Dialect::DeepSeekMarks { fenced } => {
            let (before, after) = match fenced {
                true => (format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n"), "\n```"),
                false => (format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>"), ""),
            };
            let after = if after.is_empty() { String::new() } else { literal(after) };
            _ = writeln!(out, "{rule}: {} {rule}a {after}", literal(&before));
            _ = writeln!(out, "{rule}a: %json {}", compact(object(schema)));
        }
        Dialect::Dsml { .. } => dsml(rule, name, schema, out),
        Dialect::Plain => {}
    }
}

/// One tag a parameter, in the schema's order; optional ones may be left out.
fn dsml(rule: &str, name: &str, schema: &Value, out: &mut String) {
    let properties = schema.get("properties").and_then(Value::as_object);
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map_or(Vec::new(), |r| r.iter().filter_map(Value::as_str).collect());
    let mut parts = vec![literal(&format!("<｜DSML｜invoke name=\"{name}\">"))];
    for (i, (key, property)) in properties.into_iter().flatten().enumerate() {
        let part = format!("{rule}p{i}");
        let optional = if required.contains(&key.as_str()) { "" } else { "?" };
        parts.push(format!("{part}{optional}"));
        let tag = |string: bool| literal(&format!("<｜DSML｜parameter name=\"{key}\" string=\"{string}\">"));
        let close = literal("</｜DSML｜parameter>");
        let is_string = property.get("type").and_then(Value::as_str) == Some("string");
        match property.get("enum").and_then(Value::as_array) {
            Some(values) if is_string && !values.is_empty() => {
                let values: Vec<String> = values.iter().filter_map(Value::as_str).map(literal).collect();
                _ = writeln!(out, "{part}: WS {} ({}) {close}", tag(true), values.join(" | "));
            }
            _ if is_string => {
                _ = writeln!(out, "{part}: WS {} {part}t", tag(true));
                _ = writeln!(out, "{part}t[suffix={close}]: /(.|\\n)*/");
            }
            _ => {
                let property = match schema.get("$defs") {
                    Some(defs) => with(property.clone(), "$defs", defs.clone()),
                    None => property.clone(),
                };
                _ = writeln!(out, "{part}: WS {} {part}j {close}", tag(false));
                _ = writeln!(out, "{part}j: %json {}", compact(property));
            }
        }
    }
    _ = writeln!(out, "{rule}: {}", parts.join(" "));
}

/// Arguments are an object, whatever the schema forgot to say.
fn object(schema: &Value) -> Value {
    match schema {
        Value::Object(map)
            if map.contains_key("type") || map.contains_key("$ref") || map.contains_key("anyOf") =>
        {
            schema.clone()
        }
        Value::Object(_) => with(schema.clone(), "type", "object".into()),
        _ => Value::Object(Map::from_iter([("type".to_owned(), "object".into())])),
    }
}

fn with(mut value: Value, key: &str, inner: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.to_owned(), inner);
    }
    value
}

/// Text as a Lark string: JSON's escapes are Lark's.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
