//! `deephold eval perplexity`: as llama.cpp's tool counts, so that figures compare: windows side by side, of each only
//! the second half is scored.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use deephold_base::{ErrorCode, TokenId};
use deephold_kernels::{AttentionContext, KvCache, Ops, SeqRows, Tensor};
use deephold_models::Model;
use serde_json::json;

use super::{print_json, print_table};
use crate::cli::PerplexityArgs;
use crate::fail::{bad_argument, fail, invalid};
use crate::input::read_text;
use crate::loaded::{Loaded, load};
use crate::terminal;

const WINDOW: usize = 512;
/// Tokens of a window at least.
const SHORTEST: usize = 8;
const BLOCK: usize = 16;
/// Rows of one pass: their logits are all kept, [64, V].
const ROWS: usize = 64;

pub(crate) fn run(args: &PerplexityArgs) -> Result<ExitCode> {
    if args.windows == Some(0) {
        return Err(bad_argument("--windows is at least 1"));
    }
    if args.engine.context.is_some_and(|n| n < SHORTEST) {
        return Err(bad_argument(format!("--context is at least {SHORTEST}: half of a window is scored")));
    }
    let text = read_text(&args.text)?;
    let loaded = load(&args.model, &args.engine)?;
    let tokenizer = loaded.tokenizer()?;
    let ids = tokenizer.encode_prompt(&text)?;
    // The beginning of a sequence stands before every window if it stands before the text.
    let bos = tokenizer.bos().filter(|bos| ids.first() == Some(bos));
    let window = match args.engine.context {
        Some(_) => loaded.context(&args.engine)?,
        None => WINDOW.min(loaded.model.info().max_model_len),
    }
    .min(ids.len());
    if window < SHORTEST {
        let place = if args.text.as_os_str() == "-" {
            "standard input".to_owned()
        } else {
            args.text.display().to_string()
        };
        return Err(invalid(format!("{place} has {} tokens; give at least {SHORTEST}", ids.len())));
    }
    let reference = args.reference.as_ref().map(|path| load(path, &args.engine)).transpose()?;
    if let Some(r) = &reference
        && r.model.info().vocab_size != loaded.model.info().vocab_size
    {
        return Err(invalid("the two models have vocabularies of different sizes and cannot be compared"));
    }
    let mut model = Scorer::new(&loaded, window, args)?;
    let mut other = reference.as_ref().map(|r| Scorer::new(r, window, args)).transpose()?;
    let windows: Vec<&[TokenId]> =
        ids.chunks_exact(window).take(args.windows.unwrap_or(usize::MAX)).collect();
    terminal::catch_interrupts();
    let bar = terminal::step_bar("scoring", windows.len() as u64);
    let mut sums = Sums::default();
    for ids in &windows {
        if terminal::interrupted() {
            return Err(fail(ErrorCode::Cancelled, "stopped"));
        }
        let mut ids = ids.to_vec();
        if let Some(bos) = bos {
            ids[0] = bos;
        }
        score(&mut model, other.as_mut(), &ids, &mut sums)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    report(args, windows.len(), window, &sums, reference.is_some())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Sums {
    scored: usize,
    nll: f64,
    nll_squares: f64,
    reference_nll: f64,
    divergences: Vec<f64>,
    agreements: usize,
}

/// One window through one or both models, some rows at a time.
fn score(model: &mut Scorer, mut other: Option<&mut Scorer>, ids: &[TokenId], sums: &mut Sums) -> Result<()> {
    let first = ids.len() / 2;
    for start in (0..ids.len()).step_by(ROWS) {
        let rows = start..(start + ROWS).min(ids.len());
        let scored: Vec<usize> = rows.clone().filter(|j| *j >= first && j + 1 < ids.len()).collect();
        let logits = model.forward(ids, rows.clone(), &scored)?;
        let reference = other.as_deref_mut().map(|o| o.forward(ids, rows, &scored)).transpose()?;
        for (i, j) in scored.iter().enumerate() {
            let target = ids[j + 1] as usize;
            let p = log_softmax(logits.row(i));
            let nll = -p[target];
            sums.scored += 1;
            sums.nll += nll;
            sums.nll_squares += nll * nll;
            if let Some(reference) = &reference {
                let q = log_softmax(reference.row(i));
                sums.reference_nll -= q[target];
                let kl: f64 =
                    q.iter().zip(&p).filter(|(q, _)| q.is_finite()).map(|(q, p)| q.exp() * (q - p)).sum();
                // Rounding can make a divergence of equal distributions a hair negative.
                sums.divergences.push(kl.max(0.0));
                sums.agreements += usize::from(best(&p) == best(&q));
            }
        }
    }
    Ok(())
}

fn report(args: &PerplexityArgs, windows: usize, window: usize, s: &Sums, compared: bool) -> Result<()> {
    let n = s.scored.max(1) as f64;
    let mean = s.nll / n;
    let perplexity = mean.exp();
    // Of the mean, carried through the exponential.
    let error = ((s.nll_squares / n - mean * mean).max(0.0) / n).sqrt() * perplexity;
    let mut sorted = s.divergences.clone();
    sorted.sort_by(f64::total_cmp);
    let quantile =
        |q: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(0.0);
    let kl = s.divergences.iter().sum::<f64>() / n;
    let kl_error = (s.divergences.iter().map(|d| (d - kl).powi(2)).sum::<f64>() / n / n).sqrt();
    let agreement = s.agreements as f64 / n;
    let reference = (s.reference_nll / n).exp();
    if args.json {
        let mut out = json!({
            "perplexity": perplexity, "standard_error": error, "nll": mean,
            "scored_tokens": s.scored, "windows": windows, "window": window,
        });
        if compared {
            out["reference"] = json!({
                "perplexity": reference, "kl_mean": kl, "kl_standard_error": kl_error, "kl_median": quantile(0.5),
                "kl_p99": quantile(0.99), "kl_max": quantile(1.0), "same_best_token": agreement,
            });
        }
        return print_json(&out);
    }
    let mut rows = vec![
        ("perplexity", format!("{perplexity:.4} +/- {error:.4}")),
        ("scored", format!("{} tokens, the second halves of {windows} windows of {window}", s.scored)),
    ];
    if compared {
        rows.push(("reference", format!("perplexity {reference:.4}")));
        rows.push((
            "divergence",
            format!(
                "mean {kl:.6} +/- {kl_error:.6} nats, median {:.6}, 99% below {:.6}",
                quantile(0.5),
                quantile(0.99)
            ),
        ));
        rows.push(("same best token", format!("{:.2}%", 100.0 * agreement)));
    }
    print_table(&rows)
}

fn best(p: &[f64]) -> usize {
    let mut best = 0;
    for (i, x) in p.iter().enumerate() {
        if *x > p[best] {
            best = i;
        }
    }
    best
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    let shift = max + sum.ln();
    logits.iter().map(|x| f64::from(*x) - shift).collect()
}

/// A model with a cache for one window.
struct Scorer {
    model: Arc<dyn Model>,
    ops: Arc<Ops>,
    cache: KvCache,
    table: Vec<u32>,
}

impl Scorer {
    fn new(loaded: &Loaded, window: usize, args: &PerplexityArgs) -> Result<Self> {
        let blocks = window.div_ceil(BLOCK);
        let layers = loaded.model.cache_layers();
        let cache = KvCache::new(&layers, blocks, BLOCK, args.engine.cache_type.into())?;
        let (model, ops) = (Arc::clone(&loaded.model), Arc::clone(&loaded.ops));
        Ok(Self { model, ops, cache, table: (0..blocks as u32).collect() })
    }

    /// Logits [scored.len(), V] of positions `scored` within `rows`; earlier positions were computed before.
    fn forward(&mut self, ids: &[TokenId], rows: std::ops::Range<usize>, scored: &[usize]) -> Result<Tensor> {
        let seqs = [SeqRows {
            rows: 0..rows.len(),
            num_computed: rows.start,
            block_table: self.table[..rows.end.div_ceil(BLOCK)].to_vec(),
        }];
        let ctx = AttentionContext::new(&self.ops, &self.cache, &seqs);
        let wanted: Vec<usize> = scored.iter().map(|j| j - rows.start).collect();
        Ok(self.model.forward(&ctx, &ids[rows], &wanted)?)
    }
}
