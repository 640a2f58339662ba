//! `deephold chat`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use deephold_base::{human_bytes, human_count, human_duration};
use deephold_engine::{EngineCore, Request, SamplingParams};
use deephold_tokenizer::{ChatFormat, ReasoningSplitter, Segment, Tokenizer};
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use super::generate::{chat_format, render};
use crate::answer::{Answer, answer, params, recommended};
use crate::cli::{ChatArgs, TemplateArgs};
use crate::input::read_text;
use crate::loaded::{Loaded, load_checkpoint, machine, open};
use crate::terminal::{self, Style};
use crate::{guide, system};

const HELP: &str = "\
/system TEXT   set the instructions; without TEXT show them
/clear         forget the conversation
/save FILE     write the conversation as JSON
/stats         tokens, speed and memory
/help          this list
/exit          leave; so does Ctrl-D
Ctrl-C stops an answer. A line that ends with \\ goes on in the next.";

pub(crate) fn run(args: &ChatArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let path = args.model.clone().unwrap_or_else(|| guide::NAME.into());
    let loaded = load_checkpoint(
        Arc::new(open(&path)?),
        &machine(&args.engine)?,
        &args.engine,
        start,
        &mut terminal::phases(),
    )?;
    let mut chat = Chat::new(&loaded, args)?;
    terminal::catch_interrupts();
    if let Some(prompt) = &args.prompt {
        return chat.once(prompt);
    }
    if !std::io::stdin().is_terminal() {
        return chat.once(&read_text(Path::new("-"))?);
    }
    if args.model.is_none() {
        println!("{}", guide::BANNER);
    }
    chat.greet();
    chat.talk()
}

struct Chat<'a> {
    loaded: &'a Loaded,
    tokenizer: &'a Tokenizer,
    format: ChatFormat,
    core: EngineCore,
    template: &'a TemplateArgs,
    params: SamplingParams,
    stops: &'a [String],
    system: Option<String>,
    messages: Vec<Value>,
    requests: u64,
    last: Option<Answer>,
}

impl<'a> Chat<'a> {
    fn new(loaded: &'a Loaded, args: &'a ChatArgs) -> Result<Self> {
        let tokenizer = loaded.tokenizer()?;
        let format = chat_format(loaded, tokenizer, &args.conversation)??;
        let defaults = recommended(&loaded.checkpoint);
        Ok(Self {
            loaded,
            tokenizer,
            format,
            core: loaded.engine(&args.engine, 1, |_| ())?,
            template: &args.conversation,
            params: params(&args.sampling, defaults, Some(tokenizer), &loaded.checkpoint),
            stops: &args.sampling.stop,
            system: args.conversation.system.clone(),
            messages: Vec::new(),
            requests: 0,
            last: None,
        })
    }

    fn greet(&self) {
        let info = self.loaded.model.info();
        println!(
            "{}, {} parameters, context {}, loaded in {}. /help lists commands.",
            info.architecture,
            human_count(info.parameters_total),
            self.core.config().max_model_len,
            human_duration(self.loaded.load_time),
        );
        for note in &info.notes {
            println!("note: {note}");
        }
    }

    /// Answers one prompt; only the answer goes to standard output.
    fn once(&mut self, prompt: &str) -> Result<ExitCode> {
        self.reply(prompt.trim_end_matches('\n'))?;
        let aborted = self.last.as_ref().is_some_and(|a| a.finish_reason == "abort");
        Ok(if aborted { ExitCode::from(130) } else { ExitCode::SUCCESS })
    }

    fn talk(&mut self) -> Result<ExitCode> {
        // The history lives in memory alone: what people ask may be confidential.
        let mut editor = rustyline::DefaultEditor::new().context("cannot use the terminal")?;
        loop {
            let line = match read_message(&mut editor) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    println!("(Ctrl-D or /exit leaves)");
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
                Err(e) => return Err(anyhow::Error::new(e).context("cannot read from the terminal")),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let _ = editor.add_history_entry(line);
            if let Some(command) = line.strip_prefix('/') {
                if !self.command(command) {
                    return Ok(ExitCode::SUCCESS);
                }
                continue;
            }
            // One failed question, such as one beyond the context, does not end the conversation.
            if let Err(e) = self.reply(line) {
                println!("error: {e}");
            }
        }
    }

    /// Whether to go on.
    fn command(&mut self, text: &str) -> bool {
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        match name {
            "exit" | "quit" | "bye" => return false,
            "help" | "?" => println!("{HELP}"),
            "clear" => {
                self.messages.clear();
                println!("(the conversation is forgotten)");
            }
            "system" if rest.is_empty() => println!("{}", self.system.as_deref().unwrap_or("(none)")),
            "system" => {
                self.system = Some(rest.to_owned());
                println!("(set; it holds from the next answer on)");
            }
            "save" if rest.is_empty() => println!("error: name a file, as in /save talk.json"),
            "save" => match self.save(Path::new(rest)) {
                Ok(()) => println!("(saved)"),
                Err(e) => println!("error: {e:#}"),
            },
            "stats" => self.stats(),
            other => println!("error: there is no command /{other}; /help lists them"),
        }
        true
    }

    fn reply(&mut self, text: &str) -> Result<()> {
        terminal::clear_interrupt();
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({ "role": "system", "content": system }));
        }
        messages.extend(self.messages.iter().cloned());
        let question = json!({ "role": "user", "content": text });
        messages.push(question.clone());
        let prompt = render(&self.format, &messages, None, self.template)?;
        let request = Request::new(self.requests, self.tokenizer.encode(&prompt)?, self.params.clone());
        self.requests += 1;
        let mut screen = Screen::new(&prompt);
        let a = answer(&mut self.core, Some(self.tokenizer), request, self.stops, &mut |t| screen.show(t))?;
        screen.end()?;
        let mut message = json!({ "role": "assistant", "content": screen.content });
        if !screen.reasoning.is_empty() {
            message["reasoning_content"] = screen.reasoning.into();
        }
        self.messages.extend([question, message]);
        match a.finish_reason {
            "abort" => eprintln!("(stopped)"),
            "length" => eprintln!("(ended at the limit of tokens; /clear frees the context)"),
            _ => {}
        }
        self.last = Some(a);
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let document = json!({
            "model": self.loaded.checkpoint.path().display().to_string(),
            "system": self.system,
            "messages": self.messages,
        });
        let text = serde_json::to_string_pretty(&document)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }

    fn stats(&self) {
        let s = self.core.stats();
        if let Some(a) = &self.last {
            let rate = a.decode_rate().map_or_else(|| "-".to_owned(), |r| format!("{r:.1} tokens/s"));
            println!("last answer     {} tokens, {rate}", a.tokens.len());
            println!(
                "first token     after {}, {} prompt tokens from the cache",
                human_duration(a.prompt_time),
                a.cached_tokens
            );
        }
        println!("conversation    {} messages", self.messages.len());
        println!(
            "cache           {} of {} blocks, {}",
            s.used_blocks,
            s.num_blocks,
            human_bytes(s.cache_bytes as u64)
        );
        println!("weights         {}", human_bytes(self.loaded.model.info().packed_bytes));
        if let Some(peak) = system::peak_resident() {
            println!("peak memory     {}", human_bytes(peak));
        }
    }
}

/// One message; a `\` at the end of a line continues it.
fn read_message(editor: &mut rustyline::DefaultEditor) -> Result<String, ReadlineError> {
    let mut text = editor.readline("> ")?;
    while let Some(begun) = text.strip_suffix('\\') {
        text = format!("{begun}\n{}", editor.readline(". ")?);
    }
    Ok(text)
}

/// Shows an answer as it comes, its thinking dimmed.
struct Screen {
    splitter: ReasoningSplitter,
    style: Style,
    reasoning: String,
    content: String,
    dimmed: bool,
}

impl Screen {
    fn new(prompt: &str) -> Self {
        Self {
            splitter: ReasoningSplitter::after_prompt(prompt),
            style: Style::stdout(),
            reasoning: String::new(),
            content: String::new(),
            dimmed: false,
        }
    }

    fn show(&mut self, text: &str) -> Result<()> {
        for segment in self.splitter.push(text) {
            self.segment(segment)?;
        }
        Ok(std::io::stdout().flush()?)
    }

    fn segment(&mut self, segment: Segment) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let (on, off) = self.style.dim();
        match segment {
            Segment::Reasoning(text) => {
                if !std::mem::replace(&mut self.dimmed, true) {
                    write!(out, "{on}")?;
                }
                write!(out, "{text}")?;
                self.reasoning.push_str(&text);
            }
            Segment::Content(text) => {
                if std::mem::replace(&mut self.dimmed, false) {
                    write!(out, "{off}\n\n")?;
                }
                write!(out, "{text}")?;
                self.content.push_str(&text);
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if let Some(rest) = self.splitter.finish() {
            self.segment(rest)?;
        }
        let off = if self.dimmed { self.style.dim().1 } else { "" };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{off}")?;
        Ok(out.flush()?)
    }
}
