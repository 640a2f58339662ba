//! `--json-schema`, `--regex`, `--grammar` and `--tools`: what an answer of `generate` must be.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use deephold_engine::Constraint;
use deephold_grammar::{GrammarEngine, Guide, Thinking, ToolGuide};
use deephold_tokenizer::{Dialect, THINK_OPEN, Tokenizer};
use serde_json::{Value, json};

use crate::cli::GuideArgs;
use crate::fail::{bad_argument, fail, invalid};
use crate::input::read_text;

/// What was asked for.
pub(crate) struct Wanted {
    guide: Guide,
    /// As templates take them.
    pub(crate) tools: Option<Value>,
}

impl GuideArgs {
    /// Reads the files that are named.
    pub(crate) fn wanted(&self) -> Result<Option<Wanted>> {
        let plain = |guide| Ok(Some(Wanted { guide, tools: None }));
        if let Some(path) = &self.json_schema {
            return plain(Guide::JsonSchema(json_file(path)?));
        }
        if let Some(expression) = &self.regex {
            return plain(Guide::Regex(expression.clone()));
        }
        if let Some(path) = &self.grammar {
            return plain(Guide::Lark(read_text(path)?));
        }
        let Some(path) = &self.tools else { return Ok(None) };
        let (tools, mut functions) = tools(path)?;
        let choice = self.tool_choice.as_deref().unwrap_or("auto");
        let is_named = !["auto", "required"].contains(&choice);
        if is_named {
            functions.retain(|(name, _)| name == choice);
            if functions.is_empty() {
                return Err(bad_argument(format!(
                    "--tool-choice {choice} names no function of {}",
                    path.display()
                )));
            }
        }
        let required = choice != "auto";
        let guide = ToolGuide { functions, required, parallel: !is_named, otherwise: None };
        Ok(Some(Wanted { guide: Guide::Tools(guide), tools: Some(tools) }))
    }
}

impl Wanted {
    /// What the sampler follows. `prompt` is the rendered one, or none where the text goes to the model as it is.
    pub(crate) fn constraint(
        &self,
        tokenizer: Arc<Tokenizer>,
        dialect: Dialect,
        prompt: Option<&str>,
        thinking: Option<bool>,
    ) -> Result<Box<dyn Constraint>> {
        let can_think = tokenizer.token_to_id(THINK_OPEN).is_some() && thinking != Some(false);
        let begins = prompt.map_or(Thinking::Closed, |prompt| Thinking::after_prompt(prompt, can_think));
        let made = GrammarEngine::new(tokenizer, dialect).and_then(|g| g.constraint(&self.guide, begins));
        made.map_err(|e| fail(e.code(), e.to_string()))
    }
}

fn json_file(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?)
        .map_err(|e| invalid(format!("{} is not JSON: {e}", path.display())))
}

type Functions = Vec<(String, Value)>;

/// A list as the API takes it, or of the functions alone.
fn tools(path: &Path) -> Result<(Value, Functions)> {
    let bad = |what: String| invalid(format!("{}: {what}", path.display()));
    let list = json_file(path)?;
    let list =
        list.as_array().filter(|l| !l.is_empty()).ok_or_else(|| bad("it holds no list of tools".into()))?;
    let (mut tools, mut functions) = (Vec::new(), Functions::new());
    for (i, tool) in list.iter().enumerate() {
        let function = tool.get("function").unwrap_or(tool);
        let name = function.get("name").and_then(Value::as_str).filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| bad(format!("tool {i} has no name")))?.to_owned();
        let parameters = function.get("parameters").cloned();
        tools.push(json!({ "type": "function", "function": function }));
        functions.push((name, parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }))));
    }
    Ok((Value::Array(tools), functions))
}
