//! What begins with a slash.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use deephold_base::{human_bytes, human_duration};
use deephold_engine::SamplingParams;
use rustyline::DefaultEditor;
use serde_json::{Value, json};

use super::{Chat, Next};
use crate::console::{out, plain};
use crate::fail::invalid;
use crate::{input, system};

const HELP: &str = "\
/system TEXT      set the instructions; `-` takes them away, without TEXT they are shown
/set KEY VALUE    change how answers are made; `default` as VALUE, and without KEY all are shown
/regen            another answer to the last question
/edit             change the last question and ask again
/clear            forget the conversation
/save FILE        write the conversation as JSON, readable by you alone
/load FILE        go on with a saved conversation
/stats            tokens, speed and memory
/help             this list
/exit             leave; so does Ctrl-D
Ctrl-C stops an answer. What is typed meanwhile is kept. A line that ends with \\ goes on in the next.";

/// The largest conversation that is loaded.
const MAX_CONVERSATION_BYTES: u64 = 64 << 20;

impl Chat<'_> {
    pub(super) fn command(&mut self, text: &str, editor: &mut DefaultEditor) -> Result<Next> {
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        match name {
            "exit" | "quit" | "bye" => return Ok(Next::Leave),
            "help" | "?" => out!("{HELP}")?,
            "clear" => {
                self.messages.clear();
                self.left_out = 0;
                out!("(the conversation is forgotten)")?;
            }
            "system" => self.set_system(rest)?,
            "set" => self.set(rest)?,
            "regen" => {
                let question = self.take_back()?;
                self.reply(&question)?;
            }
            "edit" => self.draft = self.take_back()?,
            "save" | "load" if rest.is_empty() => {
                return Err(invalid(format!("name a file, as in /{name} talk.json")));
            }
            "save" => {
                let path = Path::new(rest);
                if path.exists() {
                    let answer = editor.readline("the file exists; replace it? [y/N] ").unwrap_or_default();
                    if !matches!(answer.trim(), "y" | "Y" | "yes") {
                        out!("(not saved)")?;
                        return Ok(Next::Prompt);
                    }
                }
                self.save(path)?;
                out!("(saved)")?;
            }
            "load" => {
                self.load(Path::new(rest))?;
                out!("({} messages)", self.messages.len())?;
            }
            "stats" => self.stats()?,
            other => return Err(invalid(format!("there is no command /{}; /help lists them", plain(other)))),
        }
        Ok(Next::Prompt)
    }

    fn set_system(&mut self, text: &str) -> Result<()> {
        match text {
            "" => return Ok(out!("{}", self.system.as_deref().unwrap_or("(none)"))?),
            "-" => self.system = None,
            text => self.system = Some(text.to_owned()),
        }
        Ok(out!("(it holds from the next answer on)")?)
    }

    /// The last question, which is taken out of the conversation with its answer.
    fn take_back(&mut self) -> Result<String> {
        let at = self.messages.iter().rposition(|m| m["role"] == "user");
        let at = at.ok_or_else(|| invalid("there is no question yet"))?;
        let question = self.messages[at]["content"].as_str().unwrap_or_default().to_owned();
        self.messages.truncate(at);
        self.left_out = self.left_out.min(at);
        Ok(question)
    }

    fn set(&mut self, text: &str) -> Result<()> {
        let Some((key, value)) = text.split_once(char::is_whitespace) else {
            if text.is_empty() {
                return self.show_settings();
            }
            return Err(invalid(format!("give a value, as in /set {} default", plain(text))));
        };
        let value = value.trim();
        let (mut params, defaults) = (self.params.clone(), &self.defaults);
        fn read<T: FromStr>(value: &str, default: T) -> Result<T> {
            match value {
                "default" => Ok(default),
                text => text.parse().map_err(|_| invalid(format!("`{}` is no such value", plain(text)))),
            }
        }
        match key {
            "temperature" => params.temperature = read(value, defaults.temperature)?,
            "top_p" => params.top_p = read(value, defaults.top_p)?,
            "top_k" => params.top_k = read(value, defaults.top_k)?,
            "min_p" => params.min_p = read(value, defaults.min_p)?,
            "repetition_penalty" => params.repetition_penalty = read(value, defaults.repetition_penalty)?,
            "presence_penalty" => params.presence_penalty = read(value, defaults.presence_penalty)?,
            "frequency_penalty" => params.frequency_penalty = read(value, defaults.frequency_penalty)?,
            "max_tokens" => params.max_tokens = read(value, defaults.max_tokens)?,
            "seed" if value == "default" => params.seed = defaults.seed,
            "seed" => params.seed = Some(read(value, 0)?),
            "thinking" => match value {
                "on" => self.template.thinking = Some(true),
                "off" => self.template.thinking = Some(false),
                "default" => self.template.thinking = None,
                _ => return Err(invalid("thinking is on, off or default")),
            },
            other => return Err(invalid(format!("there is no setting {}; /set shows all", plain(other)))),
        }
        params.validate(self.loaded.model.info().vocab_size)?;
        self.params = params;
        Ok(out!("(it holds from the next answer on)")?)
    }

    fn show_settings(&self) -> Result<()> {
        let SamplingParams { temperature, top_p, top_k, min_p, seed, .. } = &self.params;
        let p = &self.params;
        let limit = if p.max_tokens == usize::MAX { "none".to_owned() } else { p.max_tokens.to_string() };
        let seed = seed.map_or_else(|| "drawn".to_owned(), |s| s.to_string());
        let thinking = match self.template.thinking {
            Some(true) => "on",
            Some(false) => "off",
            None => "default",
        };
        out!("temperature {temperature}  top_p {top_p}  top_k {top_k}  min_p {min_p}")?;
        out!(
            "repetition_penalty {}  presence_penalty {}  frequency_penalty {}",
            p.repetition_penalty,
            p.presence_penalty,
            p.frequency_penalty
        )?;
        Ok(out!("max_tokens {limit}  seed {seed}  thinking {thinking}")?)
    }

    /// Writes the conversation whole or not at all, readable by its owner alone: what people ask may be confidential.
    fn save(&self, path: &Path) -> Result<()> {
        let document = json!({
            "model": self.loaded.checkpoint.path().display().to_string(),
            "system": self.system,
            "messages": self.messages,
        });
        let text = serde_json::to_string_pretty(&document)? + "\n";
        let whole = std::fs::metadata(path).map_or(true, |m| m.is_file());
        if !whole {
            return Err(invalid(format!("{} is not a regular file", plain(&path.display().to_string()))));
        }
        let name = path.file_name().context("a folder is no file")?.to_string_lossy().into_owned();
        let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&partial, path)
        };
        write()
            .inspect_err(|_| drop(std::fs::remove_file(&partial)))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let place = path.display();
        let text = input::read_text_within(path, MAX_CONVERSATION_BYTES)?;
        let document: Value =
            serde_json::from_str(&text).map_err(|e| invalid(format!("{place} is not JSON: {e}")))?;
        let bad = |what: &str| invalid(format!("{place}: {what}; /save writes such a file"));
        let messages = document["messages"].as_array().ok_or_else(|| bad("there are no messages"))?;
        let is_good =
            |m: &Value| matches!(m["role"].as_str(), Some("user" | "assistant")) && m["content"].is_string();
        if !messages.iter().all(is_good) {
            return Err(bad("a message has no text, or is neither the user's nor the assistant's"));
        }
        self.system = match &document["system"] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            _ => return Err(bad("the system's instructions are no text")),
        };
        self.messages.clone_from(messages);
        self.left_out = 0;
        Ok(())
    }

    fn stats(&self) -> Result<()> {
        let s = self.core.stats();
        if let Some(a) = &self.last {
            let rate = a.decode_rate().map_or_else(|| "-".to_owned(), |r| format!("{r:.1} tokens/s"));
            out!("last answer     {} tokens, {rate}", a.tokens.len())?;
            let cached = a.cached_tokens;
            out!(
                "first token     after {}, {cached} prompt tokens from the cache",
                human_duration(a.prompt_time)
            )?;
        }
        let left_out = match self.left_out {
            0 => String::new(),
            n => format!(", the oldest {n} left out"),
        };
        out!("conversation    {} messages{left_out}", self.messages.len())?;
        let bytes = human_bytes(s.cache_bytes as u64);
        out!("cache           {} of {} blocks, {bytes}", s.used_blocks, s.num_blocks)?;
        out!("weights         {}", human_bytes(self.loaded.model.info().packed_bytes))?;
        if let Some(peak) = system::peak_resident() {
            out!("peak memory     {}", human_bytes(peak))?;
        }
        Ok(())
    }
}
