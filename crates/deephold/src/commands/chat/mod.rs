//! `deephold chat`.

mod commands;
mod screen;
mod typed;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deephold_base::{ErrorCode, human_count, human_duration};
use deephold_engine::{EngineCore, Request, SamplingParams};
use deephold_tokenizer::{ChatFormat, Tokenizer};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use super::generate::{chat_format, render};
use crate::answer::{Answer, answer, params, recommended};
use crate::cli::{ChatArgs, TemplateArgs};
use crate::console::{note, out};
use crate::fail::{self, fail};
use crate::loaded::{Loaded, load_checkpoint, machine, open, refuse_hopeless};
use crate::{guide, input, terminal};
use screen::Screen;
use typed::Typed;

pub(crate) fn run(args: &ChatArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let path = args.model.clone().unwrap_or_else(|| guide::NAME.into());
    // Before the model is loaded: what cannot be read is known at once.
    let prompt = match input::with_stdin(args.prompt.as_deref())? {
        None if !std::io::stdin().is_terminal() => Some(String::new()),
        prompt => prompt,
    };
    let loaded = load_checkpoint(
        Arc::new(open(&path)?),
        &machine(&args.engine)?,
        &args.engine,
        start,
        &mut terminal::phases(),
    )?;
    let mut chat = Chat::new(&loaded, args)?;
    terminal::catch_interrupts();
    if let Some(prompt) = prompt {
        return chat.once(&prompt);
    }
    if args.model.is_none() {
        out!("{}", guide::BANNER)?;
    }
    chat.greet()?;
    chat.talk()
}

struct Chat<'a> {
    loaded: &'a Loaded,
    tokenizer: &'a Tokenizer,
    format: ChatFormat,
    core: EngineCore,
    template: TemplateArgs,
    params: SamplingParams,
    /// What [`Self::params`] were at the beginning.
    defaults: SamplingParams,
    stops: &'a [String],
    system: Option<String>,
    messages: Vec<Value>,
    /// How many of the oldest messages no longer fit the context.
    left_out: usize,
    requests: u64,
    last: Option<Answer>,
    /// `None` where one prompt is answered: what is typed meanwhile is for whoever comes next.
    typed: Option<Typed>,
    /// What the next prompt begins with, for the user to go on with.
    draft: String,
}

/// Whether the conversation goes on.
enum Next {
    Prompt,
    Leave,
}

impl<'a> Chat<'a> {
    fn new(loaded: &'a Loaded, args: &'a ChatArgs) -> Result<Self> {
        let tokenizer = loaded.tokenizer()?;
        let format = chat_format(loaded, tokenizer, &args.conversation)??;
        let vocab_size = loaded.model.info().vocab_size;
        let recommended = recommended(&loaded.checkpoint);
        let params = params(&args.sampling, recommended, Some(tokenizer), vocab_size, &loaded.checkpoint)?;
        params.validate(vocab_size)?;
        Ok(Self {
            loaded,
            tokenizer,
            format,
            // A step is what Ctrl-C waits for.
            core: loaded
                .engine(&args.engine, 1, |c| c.policy.solo_target = Some(Duration::from_millis(250)))?,
            template: args.conversation.clone(),
            defaults: params.clone(),
            params,
            stops: &args.sampling.stop,
            system: args.conversation.system.clone(),
            messages: Vec::new(),
            left_out: 0,
            requests: 0,
            last: None,
            typed: None,
            draft: String::new(),
        })
    }

    fn greet(&self) -> Result<()> {
        let info = self.loaded.model.info();
        out!(
            "{}, {} parameters, context {}, loaded in {}. /help lists commands.",
            info.architecture,
            human_count(info.parameters_total),
            self.core.config().max_model_len,
            human_duration(self.loaded.load_time),
        )?;
        for note in &info.notes {
            out!("note: {note}")?;
        }
        Ok(())
    }

    /// Answers one prompt; only the answer goes to standard output.
    fn once(&mut self, prompt: &str) -> Result<ExitCode> {
        self.reply(prompt.trim_end_matches('\n'))?;
        let aborted = self.last.as_ref().is_some_and(|a| a.finish_reason == "abort");
        Ok(if aborted { ExitCode::from(ErrorCode::Cancelled.exit_code()) } else { ExitCode::SUCCESS })
    }

    fn talk(&mut self) -> Result<ExitCode> {
        // The history lives in memory alone: what people ask may be confidential.
        let mut editor = DefaultEditor::new().context("cannot use the terminal")?;
        self.typed = Some(Typed::default());
        loop {
            let Some(line) = self.next_line(&mut editor)? else { return Ok(ExitCode::SUCCESS) };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let _ = editor.add_history_entry(line);
            let outcome = match line.strip_prefix('/') {
                Some(command) => self.command(command, &mut editor),
                None => self.reply(line).map(|()| Next::Prompt),
            };
            match outcome {
                Ok(Next::Prompt) => {}
                Ok(Next::Leave) => return Ok(ExitCode::SUCCESS),
                Err(e) if fail::is_broken_pipe(&e) => return Err(e),
                // One failed question, such as one beyond the context, does not end the conversation.
                Err(e) => out!("error: {e:#}")?,
            }
        }
    }

    /// What was typed ahead, else what is typed now; `None` at the end of the input.
    fn next_line(&mut self, editor: &mut DefaultEditor) -> Result<Option<String>> {
        if let Some(line) = self.typed.as_mut().and_then(Typed::line) {
            out!("> {line}")?;
            return Ok(Some(line));
        }
        let draft =
            std::mem::take(&mut self.draft) + &self.typed.as_mut().map(Typed::begun).unwrap_or_default();
        terminal::watch_interrupts(false);
        let line = read_message(editor, &draft);
        terminal::watch_interrupts(true);
        match line {
            Ok(line) => Ok(Some(line)),
            Err(ReadlineError::Interrupted) => {
                out!("(Ctrl-D or /exit leaves)")?;
                Ok(Some(String::new()))
            }
            Err(ReadlineError::Eof) => Ok(None),
            Err(e) => Err(anyhow::Error::new(e).context("cannot read from the terminal")),
        }
    }

    fn reply(&mut self, text: &str) -> Result<()> {
        terminal::clear_interrupt();
        let question = json!({ "role": "user", "content": text });
        let (prompt, ids) = self.prompt(&question)?;
        let request = Request::new(self.requests, ids, self.params.clone());
        self.requests += 1;
        let mut screen = Screen::new(&prompt);
        let mut typed = self.typed.as_mut();
        if let Some(typed) = &typed {
            typed.listen();
        }
        let a = answer(
            &mut self.core,
            Some(self.tokenizer),
            request,
            self.stops,
            &mut |t| screen.show(t),
            &mut || {
                if let Some(typed) = &mut typed {
                    typed.take_keys();
                }
            },
        );
        if let Some(typed) = typed {
            typed.stop_listening();
        }
        let a = a?;
        screen.end()?;
        let mut message = json!({ "role": "assistant", "content": screen.content });
        if !screen.reasoning.is_empty() {
            message["reasoning_content"] = screen.reasoning.into();
        }
        self.messages.extend([question, message]);
        match a.finish_reason {
            "abort" => {
                if let Some(typed) = &mut self.typed {
                    typed.clear();
                }
                note!("(stopped)");
            }
            "length" => note!("(ended at the limit of tokens)"),
            _ => {}
        }
        self.last = Some(a);
        Ok(())
    }

    /// The prompt that ends with `question`, and its tokens. Where the conversation has become longer than the context, its
    /// oldest turns are left out, and the system's instructions stay.
    fn prompt(&mut self, question: &Value) -> Result<(String, Vec<u32>)> {
        let most = self.core.config().max_model_len;
        // A quarter is for the answer.
        let room = most - (most / 4).clamp(1, 1024);
        let before = self.left_out;
        loop {
            let mut messages = Vec::new();
            if let Some(system) = &self.system {
                messages.push(json!({ "role": "system", "content": system }));
            }
            messages.extend(self.messages[self.left_out..].iter().cloned());
            messages.push(question.clone());
            let prompt = render(&self.format, &messages, None, &self.template);
            let encoded = prompt.and_then(|prompt| {
                refuse_hopeless(self.tokenizer, &prompt, most)?;
                let ids = self.tokenizer.encode(&prompt)?;
                Ok((prompt, ids))
            });
            let is_last = self.left_out >= self.messages.len();
            match encoded {
                Ok((prompt, ids)) if ids.len() <= room || (is_last && ids.len() < most) => {
                    if self.left_out > before {
                        let now = self.left_out;
                        note!(
                            "(the context is full: the oldest {now} messages are left out from here on; /clear begins anew)"
                        );
                    }
                    return Ok((prompt, ids));
                }
                Ok((_, ids)) if is_last => {
                    self.left_out = before;
                    let tokens = ids.len();
                    let message =
                        format!("the message has {tokens} tokens; the context holds {most} with the answer");
                    return Err(fail(ErrorCode::LimitExceeded, message));
                }
                Err(e) if is_last || !is_too_large(&e) => {
                    self.left_out = before;
                    return Err(e);
                }
                // A question and its answer.
                _ => self.left_out = (self.left_out + 2).min(self.messages.len()),
            }
        }
    }
}

fn is_too_large(error: &anyhow::Error) -> bool {
    fail::code(error) == ErrorCode::LimitExceeded
}

/// One message, which begins with `draft`; a `\` at the end of a line continues it.
fn read_message(editor: &mut DefaultEditor, draft: &str) -> Result<String, ReadlineError> {
    let mut text = editor.readline_with_initial("> ", (draft, ""))?;
    while let Some(begun) = text.strip_suffix('\\') {
        text = format!("{begun}\n{}", editor.readline(". ")?);
    }
    Ok(text)
}
