//! The encodings that DeepSeek publishes as programs instead of templates: V3.2 and V4.
//!
//! Both write tool calls in DSML, tags that begin with `｜DSML｜`. V3.2 (`encoding_dsv32.py` beside its weights) returns tool
//! results in `<function_results>`, V4 in the next user turn as `<tool_result>`.

use serde_json::Value;

use super::RenderOptions;
use super::python::json;
use crate::TokenizerError;
use crate::reasoning::{THINK_CLOSE, THINK_OPEN};

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const DSML: &str = "｜DSML｜";

/// Which encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeepSeekEncoding {
    /// DeepSeek-V3.2.
    V32,
    /// DeepSeek-V4.
    V4,
}

struct Encoder<'a> {
    encoding: DeepSeekEncoding,
    messages: Vec<&'a Value>,
    /// The last message of the user's side; thinking before it is dropped.
    last_user: Option<usize>,
    thinking: bool,
    keep_thinking: bool,
    out: String,
}

impl DeepSeekEncoding {
    pub(super) fn render(self, messages: &Value, options: &RenderOptions) -> Result<String, TokenizerError> {
        let Some(messages) = messages.as_array() else {
            return Err(TokenizerError::Template("messages must be a list".to_owned()));
        };
        let mut messages: Vec<&Value> = messages.iter().collect();
        // Tools given beside the messages come as a system message of their own (V3.2) or with the first one (V4).
        let mut first = serde_json::json!({ "role": "system", "content": "" });
        if let Some(tools) = options.tools.as_ref().filter(|t| t.as_array().is_some_and(|t| !t.is_empty())) {
            if self == Self::V4 && messages.first().is_some_and(|m| role(m) == "system") {
                first = messages[0].clone();
                messages.remove(0);
            }
            first["tools"] = tools.clone();
            messages.insert(0, &first);
        }
        let is_user = |m: &&Value| match role(m) {
            "user" | "developer" => true,
            "tool" => self == Self::V4,
            _ => false,
        };
        let last_user = messages.iter().rposition(is_user);
        let has_tools = messages.iter().any(|m| tools(m).next().is_some() || role(m) == "tool");
        let mut encoder = Encoder {
            encoding: self,
            last_user,
            thinking: options.thinking.unwrap_or(true),
            keep_thinking: self == Self::V4 && has_tools,
            out: BOS.to_owned(),
            messages,
        };
        for i in 0..encoder.messages.len() {
            encoder.message(i)?;
        }
        if options.add_generation_prompt {
            encoder.open_answer();
        }
        Ok(encoder.out)
    }
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or("")
}

fn text<'a>(message: &'a Value, key: &str) -> &'a str {
    message.get(key).and_then(Value::as_str).unwrap_or("")
}

/// The functions that a message describes.
fn tools(message: &Value) -> impl Iterator<Item = &Value> {
    let tools = message.get("tools").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    tools.iter().map(|t| t.get("function").unwrap_or(t))
}

impl Encoder<'_> {
    fn message(&mut self, i: usize) -> Result<(), TokenizerError> {
        let message = self.messages[i];
        match (role(message), self.encoding) {
            ("system", _) => {
                self.out.push_str(text(message, "content"));
                self.describe_tools(message);
                self.response_format(message);
            }
            ("developer", DeepSeekEncoding::V32) => {
                self.out.push_str(USER);
                self.describe_tools(message);
                self.response_format(message);
                self.out.push_str("\n\n# The user's message is: ");
                self.out.push_str(text(message, "content"));
                self.close_user(i);
            }
            ("user", DeepSeekEncoding::V32) => {
                self.out.push_str(USER);
                self.out.push_str(text(message, "content"));
                self.close_user(i);
            }
            ("user" | "developer", DeepSeekEncoding::V4) => {
                self.user_turn(i);
                self.out.push_str(text(message, "content"));
                self.describe_tools(message);
                self.response_format(message);
            }
            ("tool", DeepSeekEncoding::V32) => self.tool_result(i)?,
            ("tool", DeepSeekEncoding::V4) => {
                self.user_turn(i);
                self.out.push_str("<tool_result>");
                self.out.push_str(text(message, "content"));
                self.out.push_str("</tool_result>");
            }
            ("assistant", _) => self.assistant(i)?,
            (other, _) => {
                let other: String = other.chars().take(40).collect();
                let problem = format!(
                    "message {i} has the role `{other}`; known: system, developer, user, assistant, tool"
                );
                return Err(TokenizerError::Template(problem));
            }
        }
        Ok(())
    }

    /// V4: neighbours on the user's side share a turn.
    fn user_turn(&mut self, i: usize) {
        let joined = i > 0 && matches!(role(self.messages[i - 1]), "user" | "developer" | "tool");
        self.out.push_str(if joined { "\n\n" } else { USER });
    }

    /// V3.2: a user's turn ends with the assistant's begun.
    fn close_user(&mut self, i: usize) {
        let thinks = self.thinking && Some(i) == self.last_user;
        self.out.push_str(ASSISTANT);
        self.out.push_str(if thinks { THINK_OPEN } else { THINK_CLOSE });
    }

    fn tool_result(&mut self, i: usize) -> Result<(), TokenizerError> {
        let caller = (0..i).rev().find(|j| role(self.messages[*j]) != "tool");
        let calls = caller.map_or(0, |j| calls(self.messages[j]).len());
        let order = caller.map_or(0, |j| i - j);
        if order == 0 || order > calls {
            let problem =
                format!("message {i} is a tool's result, but no call of an assistant is open before it");
            return Err(TokenizerError::Template(problem));
        }
        if order == 1 {
            self.out.push_str("\n\n<function_results>");
        }
        self.out.push_str("\n<result>");
        self.out.push_str(text(self.messages[i], "content"));
        self.out.push_str("</result>");
        if order == calls {
            let thinks = self.thinking && self.last_user.is_none_or(|last| i >= last);
            self.out.push_str("\n</function_results>\n\n");
            self.out.push_str(if thinks { THINK_OPEN } else { THINK_CLOSE });
        }
        Ok(())
    }

    fn assistant(&mut self, i: usize) -> Result<(), TokenizerError> {
        let message = self.messages[i];
        let fresh = self.last_user.is_none_or(|last| i > last);
        let thinks = self.thinking && (fresh || self.keep_thinking);
        match self.encoding {
            // The turn before has opened or closed the thinking.
            DeepSeekEncoding::V32 if thinks => {
                self.out.push_str(text(message, "reasoning_content"));
                self.out.push_str(THINK_CLOSE);
            }
            DeepSeekEncoding::V32 => {}
            DeepSeekEncoding::V4 => {
                self.out.push_str(ASSISTANT);
                if thinks {
                    self.out.push_str(THINK_OPEN);
                    self.out.push_str(text(message, "reasoning_content"));
                }
                self.out.push_str(THINK_CLOSE);
            }
        }
        self.out.push_str(text(message, "content"));
        self.tool_calls(calls(message), i)?;
        self.out.push_str(EOS);
        Ok(())
    }

    fn tool_calls(&mut self, calls: &[Value], i: usize) -> Result<(), TokenizerError> {
        if calls.is_empty() {
            return Ok(());
        }
        let block = self.block();
        let mut parts = Vec::new();
        for call in calls {
            let function = call.get("function").unwrap_or(call);
            let arguments = match function.get("arguments") {
                Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
                Some(Value::String(text)) => serde_json::from_str(text).map_err(|e| {
                    TokenizerError::Template(format!(
                        "the arguments of a tool call in message {i} are not JSON: {e}"
                    ))
                })?,
                Some(other) => other.clone(),
                None => Value::Null,
            };
            let parameters: Vec<String> = arguments
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| match value {
                    Value::String(s) => {
                        format!("<{DSML}parameter name=\"{key}\" string=\"true\">{s}</{DSML}parameter>")
                    }
                    other => {
                        let other = json(other);
                        format!("<{DSML}parameter name=\"{key}\" string=\"false\">{other}</{DSML}parameter>")
                    }
                })
                .collect();
            let name = text(function, "name");
            parts.push(format!("<{DSML}invoke name=\"{name}\">\n{}\n</{DSML}invoke>", parameters.join("\n")));
        }
        self.out.push_str(&format!("\n\n<{DSML}{block}>\n{}\n</{DSML}{block}>", parts.join("\n")));
        Ok(())
    }

    fn block(&self) -> &'static str {
        match self.encoding {
            DeepSeekEncoding::V32 => "function_calls",
            DeepSeekEncoding::V4 => "tool_calls",
        }
    }

    fn describe_tools(&mut self, message: &Value) {
        let schemas: Vec<String> = tools(message).map(json).collect();
        if schemas.is_empty() {
            return;
        }
        let schemas = schemas.join("\n");
        // An empty system message leaves its line breaks, except in V4, where nothing comes before the heading.
        if self.encoding == DeepSeekEncoding::V32 || self.out != BOS {
            self.out.push_str("\n\n");
        }
        self.out.push_str(&match self.encoding {
            DeepSeekEncoding::V32 => tools_v32(&schemas),
            DeepSeekEncoding::V4 => tools_v4(&schemas),
        });
    }

    fn response_format(&mut self, message: &Value) {
        if let Some(schema) = message.get("response_format").filter(|s| !s.is_null()) {
            self.out.push_str(
                "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n",
            );
            self.out.push_str(&json(schema));
        }
    }

    fn open_answer(&mut self) {
        if self.encoding == DeepSeekEncoding::V4 {
            self.out.push_str(ASSISTANT);
            self.out.push_str(if self.thinking { THINK_OPEN } else { THINK_CLOSE });
        } else if self.last_user.is_none() || self.out.ends_with(EOS) {
            // V3.2 opens the answer with the user's turn; after an answer there is nothing to open but a new one.
            self.out.push_str(ASSISTANT);
            self.out.push_str(if self.thinking { THINK_OPEN } else { THINK_CLOSE });
        }
    }
}

fn calls(message: &Value) -> &[Value] {
    message.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The description that V3.2 was trained with, word for word.
fn tools_v32(schemas: &str) -> String {
    format!(
        "## Tools\n\n\
         You have access to a set of tools you can use to answer the user's question.\n\
         You can invoke functions by writing a \"<{DSML}function_calls>\" block like the following as part of your reply to the user:\n\
         <{DSML}function_calls>\n\
         <{DSML}invoke name=\"$FUNCTION_NAME\">\n\
         <{DSML}parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</{DSML}parameter>\n\
         ...\n\
         </{DSML}invoke>\n\
         <{DSML}invoke name=\"$FUNCTION_NAME2\">\n\
         ...\n\
         </{DSML}invoke>\n\
         </{DSML}function_calls>\n\n\
         String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects \
         should use JSON format. The \"string\" attribute should be set to \"true\" for string type parameters and \"false\" \
         for other types (numbers, booleans, arrays, objects).\n\n\
         If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking \
         block. Here is an example:\n\n\
         <{DSML}function_calls>\n...\n</{DSML}function_calls>\n\n\
         <function_results>\n...\n</function_results>\n\n\
         {THINK_OPEN}...thinking about results{THINK_CLOSE}\n\n\
         Here are the functions available in JSONSchema format:\n\
         <functions>\n{schemas}\n</functions>\n"
    )
}

/// The description that V4 was trained with, word for word.
fn tools_v4(schemas: &str) -> String {
    format!(
        "## Tools\n\n\
         You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
         \"<{DSML}tool_calls>\" block like the following:\n\n\
         <{DSML}tool_calls>\n\
         <{DSML}invoke name=\"$TOOL_NAME\">\n\
         <{DSML}parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</{DSML}parameter>\n\
         ...\n\
         </{DSML}invoke>\n\
         <{DSML}invoke name=\"$TOOL_NAME2\">\n\
         ...\n\
         </{DSML}invoke>\n\
         </{DSML}tool_calls>\n\n\
         String parameters should be specified as is and set `string=\"true\"`. For all other types (numbers, booleans, \
         arrays, objects), pass the value in JSON format and set `string=\"false\"`.\n\n\
         If thinking_mode is enabled (triggered by {THINK_OPEN}), you MUST output your complete reasoning inside \
         {THINK_OPEN}...{THINK_CLOSE} BEFORE any tool calls or final response.\n\n\
         Otherwise, output directly after {THINK_CLOSE} with tool calls or final response.\n\n\
         ### Available Tool Schemas\n\n{schemas}\n\n\
         You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"
    )
}
