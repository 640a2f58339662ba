//! Arrivals as real services saw them.
//!
//! Two formats: the Azure LLM inference traces (CSV: `TIMESTAMP,ContextTokens,GeneratedTokens`; Patel et al., Splitwise, ISCA 2024) and
//! Mooncake's (a JSON object a line: `timestamp` in ms, `input_length`, `output_length`, `hash_ids` of prefix blocks of 512 tokens;
//! Qin et al., Mooncake, FAST 2025).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use deephold_base::day_number;
use serde::Deserialize;

use crate::plan::{is_full, too_many};
use crate::{LoadError, Plan, Planned};

/// Tokens of a block in Mooncake's traces.
const MOONCAKE_BLOCK: usize = 512;

/// A line of a trace at most: 64 MiB of hash ids would be a context that no model has.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Tokens of a prompt or an answer at most.
const TOKENS_MAX: usize = 10_000_000;

/// What of a trace is used, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct TraceOptions {
    /// How many times as fast as it was recorded; above 0.
    pub speed: f64,
    /// Requests at most.
    pub count: Option<usize>,
    /// Of the replay, at its speed.
    pub duration: Option<Duration>,
    /// The trace is repeated over 24 hours ([`Plan::over_a_day`]); speed, count and duration are then of that day.
    pub is_day: bool,
    /// What prompts are drawn from.
    pub seed: u64,
}

/// Reads a trace in either format, known by its first byte.
///
/// # Errors
/// A file that cannot be read; a line that is none of its format; more requests than a plan holds; no request at all.
pub fn read_trace(path: &Path, options: &TraceOptions) -> Result<Plan, LoadError> {
    if !(options.speed > 0.0 && options.speed.is_finite()) {
        return Err(LoadError::Plan(format!("a speed of {} is none", options.speed)));
    }
    if options.is_day {
        let whole = TraceOptions { speed: 1.0, count: None, duration: None, is_day: false, ..*options };
        let mut plan = read_trace(path, &whole)?.over_a_day(options.seed)?;
        for r in &mut plan.requests {
            r.at = r.at.div_f64(options.speed);
        }
        plan.requests.retain(|r| options.duration.is_none_or(|d| r.at <= d));
        plan.requests.truncate(options.count.unwrap_or(usize::MAX));
        return Ok(plan);
    }
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let is_json = file.fill_buf().map_err(io)?.first() == Some(&b'{');
    let mut reader = Reader { path, options, start: None, requests: Vec::new() };
    if is_json {
        reader.mooncake(file)?;
    } else {
        reader.azure(file)?;
    }
    let mut requests = reader.requests;
    if requests.is_empty() {
        return Err(LoadError::Plan(format!("{} holds no request", path.display())));
    }
    // A few of Azure's lines are out of order by fractions of a second.
    requests.sort_by_key(|r| r.at);
    Ok(Plan { requests, block_tokens: if is_json { MOONCAKE_BLOCK } else { 0 } })
}

struct Reader<'a> {
    path: &'a Path,
    options: &'a TraceOptions,
    /// The first arrival, in seconds of the trace.
    start: Option<f64>,
    requests: Vec<Planned>,
}

#[derive(Deserialize)]
struct MooncakeLine {
    timestamp: f64,
    input_length: usize,
    output_length: usize,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

impl Reader<'_> {
    fn bad(&self, line: u64, problem: impl Into<String>) -> LoadError {
        LoadError::Trace { path: self.path.to_owned(), line, problem: problem.into() }
    }

    fn mooncake(&mut self, mut file: impl BufRead) -> Result<(), LoadError> {
        let mut text = String::new();
        for line in 1.. {
            text.clear();
            let read = file.by_ref().take(LINE_BYTES_MAX).read_line(&mut text);
            let read = read.map_err(|source| LoadError::Io { path: self.path.to_owned(), source })?;
            if read as u64 == LINE_BYTES_MAX {
                return Err(self.bad(line, format!("is longer than {LINE_BYTES_MAX} bytes")));
            }
            if read == 0 {
                break;
            }
            if text.trim().is_empty() {
                continue;
            }
            let parsed: MooncakeLine = serde_json::from_str(&text).map_err(|e| {
                self.bad(line, format!("is no object with timestamp, input_length, output_length: {e}"))
            })?;
            let lengths = (parsed.input_length, parsed.output_length);
            if !self.add(line, parsed.timestamp / 1e3, lengths, parsed.hash_ids)? {
                break;
            }
        }
        Ok(())
    }

    fn azure(&mut self, file: impl Read) -> Result<(), LoadError> {
        let mut table = csv::ReaderBuilder::new().has_headers(true).flexible(false).from_reader(file);
        let headers = table.headers().map_err(|e| self.bad(1, e.to_string()))?.clone();
        let column = |name: &str| headers.iter().position(|h| h.trim().eq_ignore_ascii_case(name));
        let columns = (column("TIMESTAMP"), column("ContextTokens"), column("GeneratedTokens"));
        let (Some(when), Some(context), Some(generated)) = columns else {
            let problem =
                "is neither the header TIMESTAMP,ContextTokens,GeneratedTokens nor an object of JSON";
            return Err(self.bad(1, problem));
        };
        let mut record = csv::StringRecord::new();
        loop {
            let more = table.read_record(&mut record);
            let bad = |e: csv::Error| self.bad(e.position().map_or(1, csv::Position::line), e.to_string());
            if !more.map_err(bad)? {
                return Ok(());
            }
            let line = record.position().map_or(1, csv::Position::line);
            let field = |i: usize| record.get(i).unwrap_or("").trim();
            let at = seconds(field(when)).ok_or_else(|| {
                self.bad(line, format!("`{}` is no time like 2023-11-16 18:17:03.97", field(when)))
            })?;
            let tokens = |i: usize| {
                let n: Result<usize, _> = field(i).parse();
                n.map_err(|_| self.bad(line, format!("`{}` is no number of tokens", field(i))))
            };
            let lengths = (tokens(context)?, tokens(generated)?);
            if !self.add(line, at, lengths, Vec::new())? {
                return Ok(());
            }
        }
    }

    /// Whether more may come.
    fn add(
        &mut self,
        line: u64,
        at: f64,
        lengths: (usize, usize),
        blocks: Vec<u64>,
    ) -> Result<bool, LoadError> {
        if lengths.0 > TOKENS_MAX || lengths.1 > TOKENS_MAX || !at.is_finite() {
            return Err(self.bad(line, format!("a time, or a length above {TOKENS_MAX} tokens")));
        }
        let from_start = at - *self.start.get_or_insert(at);
        let at = from_start.max(0.0) / self.options.speed;
        let is_over = self.options.duration.is_some_and(|d| at > d.as_secs_f64());
        if is_over || self.options.count.is_some_and(|n| self.requests.len() >= n) {
            return Ok(false);
        }
        if is_full(self.requests.len()) {
            return Err(too_many());
        }
        let at = Duration::try_from_secs_f64(at).map_err(|e| self.bad(line, e.to_string()))?;
        self.requests.push(Planned {
            at,
            prompt_tokens: lengths.0.max(1),
            output_tokens: lengths.1.max(1),
            blocks,
            seed: self.options.seed.wrapping_add(self.requests.len() as u64),
        });
        Ok(true)
    }
}

/// Seconds of `2023-11-16 18:17:03.9799600`, with any number of digits behind the point.
fn seconds(text: &str) -> Option<f64> {
    let (day, time) = text.split_once([' ', 'T'])?;
    let mut parts = time.trim_end_matches('Z').splitn(3, ':');
    let mut whole = |below: u32| {
        let n: u32 = parts.next()?.parse().ok()?;
        (n < below).then_some(f64::from(n))
    };
    let (hour, minute) = (whole(24)?, whole(60)?);
    let second = parts.next().filter(|s| s.bytes().all(|b| b.is_ascii_digit() || b == b'.'))?;
    let second: f64 = second.parse().ok().filter(|s| *s < 61.0)?;
    Some(day_number(day)? as f64 * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}
