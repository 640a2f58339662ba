//! `deephold bench`: what llama-bench measures, with the machine's own limits beside it.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use deephold_base::human_bytes;
use deephold_engine::{EngineCore, FinishReason, Request, RequestId, SamplingParams, SchedulerPolicy};
use deephold_kernels::ceilings::{self, Ceilings};
use deephold_models::{ExpectedTensor, expected_tensors};
use deephold_quant::DType;
use serde_json::{Value, json};

use super::doctor::ceilings_json;
use super::print_json;
use crate::cli::BenchArgs;
use crate::console::out;
use crate::fail::{bad_argument, fail};
use crate::loaded::{Loaded, load};
use crate::terminal;

/// One measurement: tokens a second of each run, and the share of the machine's limit that the median reaches.
struct Figure {
    name: String,
    /// Sequences side by side; a prompt has none.
    batch: Option<usize>,
    rates: Vec<f64>,
    limit: f64,
    /// Multiply-adds, and bytes of weights, that a token costs at least.
    macs_per_token: f64,
    bytes_per_token: f64,
}

impl Figure {
    fn median(&self) -> f64 {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        if n == 0 { 0.0 } else { (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0 }
    }

    /// Half the range over the median.
    fn spread(&self) -> f64 {
        let (low, high) = self.rates.iter().fold((f64::MAX, 0f64), |(l, h), r| (l.min(*r), h.max(*r)));
        if self.median() > 0.0 { (high - low) / 2.0 / self.median() } else { 0.0 }
    }

    fn percent(&self) -> f64 {
        100.0 * self.median() / self.limit
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "batch": self.batch,
            "tokens_per_s": self.median(),
            "runs": self.rates,
            "limit_tokens_per_s": self.limit,
            "percent_of_limit": self.percent(),
            "macs_per_token": self.macs_per_token,
            "bytes_per_token": self.bytes_per_token,
        })
    }
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    if args.runs == 0 || args.batch.iter().any(|b| *b == 0 || *b > 4096) {
        return Err(bad_argument("--runs and every size in --batch must be at least 1, sizes at most 4096"));
    }
    let mut engine_args = args.engine.clone();
    if args.depth > 0 && args.batch.iter().any(|b| *b > 64) {
        return Err(bad_argument("--depth is measured for at most 64 sequences at once"));
    }
    let context = (args.prompt_tokens + 1).max(args.depth + args.decode_tokens + 2);
    engine_args.context = engine_args.context.or(Some(context));
    let loaded = load(&args.model, &engine_args)?;
    let first = ceilings::measure(loaded.ops.pool(), loaded.ops.isa());
    let most = args.batch.iter().copied().max().unwrap_or(1);
    let mut core = loaded.engine(&engine_args, most, |c| {
        // A prompt in one piece, as peers are measured.
        c.max_num_batched_tokens = args.prompt_tokens.max(512).max(most);
        // A cached prefix would be no measurement of prompts; what stands at a depth is to be found again.
        c.enable_prefix_cache = args.depth > 0;
        // All of a batch come at once.
        c.max_waiting = c.max_waiting.max(most);
        c.policy = SchedulerPolicy::throughput();
    })?;
    terminal::catch_interrupts();
    let vocab = loaded.model.info().vocab_size;
    let mut bench = Bench { core: &mut core, vocab, requests: 0, depth: args.depth };
    let rounds = (args.runs * (usize::from(args.prompt_tokens > 0) + args.batch.len())) as u64;
    let bar = terminal::step_bar("measuring", rounds);
    let mut prompt = Vec::new();
    let mut decode = vec![Vec::new(); args.batch.len()];
    bench.warm_up(args)?;
    // Interleaved: whatever else the machine does meets all figures alike.
    for _ in 0..args.runs {
        if args.prompt_tokens > 0 {
            prompt.push(bench.prompt(args.prompt_tokens)?);
            bar.inc(1);
        }
        if args.decode_tokens > 0 {
            for (batch, rates) in args.batch.iter().zip(&mut decode) {
                rates.push(bench.decode(*batch, args.decode_tokens)?);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let second = ceilings::measure(loaded.ops.pool(), loaded.ops.isa());
    // Other programs can only lower a measured ceiling.
    let ceilings = Ceilings {
        read_bytes_per_second: first.read_bytes_per_second.max(second.read_bytes_per_second),
        int8_macs_per_second: first.int8_macs_per_second.max(second.int8_macs_per_second),
        f32_flops_per_second: first.f32_flops_per_second.max(second.f32_flops_per_second),
    };
    let work = Work::of(&loaded, engine_args.load_as.map(DType::from))?;
    // Of a prompt only the last token is followed by another; of sequences that are decoded every one.
    let figure = |name: String, batch: Option<usize>, tokens: usize, rates: Vec<f64>| Figure {
        name,
        batch,
        rates,
        limit: tokens as f64 / work.seconds(tokens, batch.unwrap_or(1), &ceilings),
        macs_per_token: work.macs(tokens, batch.unwrap_or(1)) / tokens as f64,
        bytes_per_token: work.bytes(tokens) / tokens as f64,
    };
    let mut figures = Vec::new();
    if !prompt.is_empty() {
        figures.push(figure(format!("prompt {}", args.prompt_tokens), None, args.prompt_tokens, prompt));
    }
    for (batch, rates) in args.batch.iter().zip(decode).filter(|(_, r)| !r.is_empty()) {
        let name = match args.depth {
            0 => format!("decode {} x {batch}", args.decode_tokens),
            depth => format!("decode {} x {batch} at {depth}", args.decode_tokens),
        };
        figures.push(figure(name, Some(*batch), *batch, rates));
    }
    show(args, &loaded, &ceilings, &figures)?;
    Ok(ExitCode::SUCCESS)
}

fn show(args: &BenchArgs, loaded: &Loaded, ceilings: &Ceilings, figures: &[Figure]) -> Result<()> {
    let (threads, isa) = (loaded.ops.pool().threads(), loaded.ops.isa());
    let info = loaded.model.info();
    if args.json {
        return print_json(&json!({
            "model": args.model.display().to_string(),
            "architecture": info.architecture,
            "threads": threads,
            "isa": isa.name(),
            "load_s": loaded.load_time.as_secs_f64(),
            "packed_bytes": info.packed_bytes,
            "ceilings": ceilings_json(ceilings),
            "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
        }));
    }
    out!(
        "{}, {} packed, {threads} threads, {isa}, loaded in {:.2} s",
        info.architecture,
        human_bytes(info.packed_bytes),
        loaded.load_time.as_secs_f64()
    )?;
    out!(
        "limits of this machine: read {:.1} GB/s, int8 {:.1} G multiply-adds/s, f32 {:.1} GFLOP/s",
        ceilings.read_bytes_per_second / 1e9,
        ceilings.int8_macs_per_second / 1e9,
        ceilings.f32_flops_per_second / 1e9
    )?;
    out!("{:16} {:>12} {:>8} {:>12} {:>10}", "", "tokens/s", "spread", "limit", "reached")?;
    for f in figures {
        out!(
            "{:16} {:>12.2} {:>7.1}% {:>12.2} {:>9.1}%",
            f.name,
            f.median(),
            100.0 * f.spread(),
            f.limit,
            f.percent()
        )?;
    }
    out!(
        "limit: the larger of reading the stored weights once and of their multiplications; cache and attention not counted"
    )?;
    Ok(())
}

/// A matrix that takes part in a pass.
struct Matrix {
    bytes: f64,
    elements: f64,
    /// Of all experts those that a row takes.
    share: f64,
    /// Multiplied in int8, otherwise in f32.
    integer: bool,
    /// The vocabulary: only rows that a token follows meet it.
    is_output: bool,
}

/// What one pass must at least do.
struct Work {
    matrices: Vec<Matrix>,
}

impl Work {
    fn of(loaded: &Loaded, load_as: Option<DType>) -> Result<Self> {
        let c = &loaded.checkpoint;
        let tied = c.tensor("lm_head.weight").is_none();
        let one = |t: ExpectedTensor| {
            let view = c.tensor(&t.name)?;
            let is_embedding = t.name == "model.embed_tokens.weight";
            if t.active_share.0 == 0 || t.shape.len() < 2 || (is_embedding && !tied) {
                return None;
            }
            let stored = view.info().dtype;
            let dtype = load_as.unwrap_or(stored);
            let elements = t.elements() as f64;
            let bytes = match load_as {
                Some(d) => elements * d.bits_per_weight() / 8.0,
                None => view.bytes().len() as f64,
            };
            // This one format is multiplied in f32.
            let integer = dtype.is_quantized() && dtype != DType::IQ4XS;
            let share = t.active_share.0 as f64 / t.active_share.1 as f64;
            let is_output = is_embedding || t.name == "lm_head.weight";
            Some(Matrix { bytes, elements, share, integer, is_output })
        };
        Ok(Self { matrices: expected_tensors(c)?.into_iter().filter_map(one).collect() })
    }

    /// Bytes of weights that a pass of `tokens` rows reads. Of E experts a row takes k, so n rows are expected to touch a share
    /// of 1 - (1 - k/E)^n of them.
    fn bytes(&self, tokens: usize) -> f64 {
        let of = |share: f64| 1.0 - (1.0 - share).powf(tokens as f64);
        self.matrices.iter().map(|m| m.bytes * of(m.share)).sum()
    }

    /// Multiply-adds of each matrix in a pass of `tokens` rows, of which `outputs` are followed by a token.
    fn macs_each(&self, tokens: usize, outputs: usize) -> impl Iterator<Item = (&Matrix, f64)> {
        self.matrices.iter().map(move |m| {
            let rows = if m.is_output { outputs } else { tokens };
            (m, m.elements * m.share * rows as f64)
        })
    }

    fn macs(&self, tokens: usize, outputs: usize) -> f64 {
        self.macs_each(tokens, outputs).map(|(_, macs)| macs).sum()
    }

    /// Seconds for such a pass at the measured ceilings.
    fn seconds(&self, tokens: usize, outputs: usize, c: &Ceilings) -> f64 {
        let compute = |(m, macs): (&Matrix, f64)| {
            if m.integer { macs / c.int8_macs_per_second } else { 2.0 * macs / c.f32_flops_per_second }
        };
        let compute = self.macs_each(tokens, outputs).map(compute).sum();
        (self.bytes(tokens) / c.read_bytes_per_second).max(compute)
    }
}

struct Bench<'a> {
    core: &'a mut EngineCore,
    vocab: usize,
    requests: u64,
    depth: usize,
}

impl Bench<'_> {
    fn warm_up(&mut self, args: &BenchArgs) -> Result<()> {
        self.prompt(args.prompt_tokens.clamp(1, 64))?;
        self.decode(1, args.decode_tokens.clamp(1, 4)).map(drop)
    }

    fn add(&mut self, prompt: Vec<u32>, max_tokens: usize) -> Result<()> {
        let params = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
        let request = Request::new(self.requests, prompt, params);
        self.requests += 1;
        Ok(self.core.add_request(request)?)
    }

    /// A prompt that shares no beginning with those of other `salt`s below 500,000.
    fn text(&self, salt: usize, tokens: usize) -> Vec<u32> {
        let begins = [self.token(salt % 500), self.token(salt / 500)];
        begins.into_iter().chain((2..tokens).map(|i| self.token(i))).take(tokens).collect()
    }

    fn token(&self, i: usize) -> u32 {
        ((i * 37 % 1000 + 5) % self.vocab) as u32
    }

    /// Tokens a second of one prompt.
    fn prompt(&mut self, tokens: usize) -> Result<f64> {
        // Never seen before, whatever the cache keeps.
        let salt = self.requests as usize + 4096;
        self.add(self.text(salt, tokens), 1)?;
        let start = Instant::now();
        self.finish()?;
        Ok(tokens as f64 / start.elapsed().as_secs_f64())
    }

    /// Tokens a second of all sequences together, after the first token of each.
    fn decode(&mut self, batch: usize, tokens: usize) -> Result<f64> {
        for i in 0..batch {
            // Each sequence stands on tokens of its own, which all runs share.
            self.add(self.text(i, self.depth + 1), tokens + 1)?;
        }
        // What is not in the cache is computed, and the first token of each has come, before the clock starts.
        let mut begun = HashSet::new();
        while begun.len() < batch && self.core.has_work() {
            begun.extend(self.step()?.into_iter().filter(|(_, tokens)| *tokens > 0).map(|(id, _)| id));
        }
        let start = Instant::now();
        let count = self.finish()?;
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// Runs until nothing is left to do; how many tokens came.
    fn finish(&mut self) -> Result<usize> {
        let mut count = 0;
        while self.core.has_work() {
            if terminal::interrupted() {
                return Err(fail(deephold_base::ErrorCode::Cancelled, "stopped"));
            }
            count += self.step()?.iter().map(|(_, tokens)| tokens).sum::<usize>();
        }
        Ok(count)
    }

    /// How many tokens came for which request.
    fn step(&mut self) -> Result<Vec<(RequestId, usize)>> {
        let mut came = Vec::new();
        for output in self.core.step().outputs {
            came.push((output.id, output.tokens.len()));
            if output.finish_reason == Some(FinishReason::Error) {
                let message = output.message.unwrap_or_else(|| "the engine failed".to_owned());
                return Err(fail(deephold_base::ErrorCode::Internal, message));
            }
        }
        Ok(came)
    }
}
