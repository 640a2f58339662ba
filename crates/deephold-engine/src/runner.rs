//! From a step's plan to one forward pass.

use std::ops::Range;

use deephold_base::TokenId;
use deephold_kernels::{AttentionContext, KvCache, Ops, SeqRows, Tensor};
use deephold_models::{Model, ModelError};

use crate::scheduler::{Scheduler, SchedulerOutput};

/// Output of one forward pass.
pub(crate) struct Forward {
    /// A row for each sequence that caught up with its tokens, so that one can be sampled.
    pub(crate) logits: Tensor,
    /// For each row of `logits`, its sequence's index in [`SchedulerOutput::seqs`].
    pub(crate) sampled_idx: Vec<usize>,
    /// Hidden states of rows whose sequences are pooled or scored.
    pub(crate) hidden: Tensor,
    /// Indices in [`SchedulerOutput::seqs`] of pooled sequences, and their rows of `hidden`.
    pub(crate) pooled: Vec<(usize, Range<usize>)>,
    /// The same of sequences whose prompts are scored.
    pub(crate) scored: Vec<(usize, Range<usize>)>,
}

/// Runs the plan: rows of all sequences side by side, logits only where a token will be sampled.
pub(crate) fn forward(
    model: &dyn Model,
    ops: &Ops,
    cache: &KvCache,
    scheduler: &Scheduler,
    plan: &SchedulerOutput,
) -> Result<Forward, ModelError> {
    let mut tokens: Vec<TokenId> = Vec::with_capacity(plan.num_tokens);
    let mut seqs = Vec::with_capacity(plan.seqs.len());
    let (mut logits_rows, mut sampled_idx) = (Vec::new(), Vec::new());
    let (mut hidden_rows, mut pooled, mut scored) = (Vec::new(), Vec::new(), Vec::new());
    for (i, scheduled) in plan.seqs.iter().enumerate() {
        let Some(seq) = scheduler.running.get(&scheduled.key) else { continue };
        let end = seq.num_computed + scheduled.num_tokens;
        let rows = tokens.len()..tokens.len() + scheduled.num_tokens;
        tokens.extend_from_slice(&seq.tokens[seq.num_computed..end]);
        if seq.pooled.is_some() {
            let start = hidden_rows.len();
            hidden_rows.extend(rows.clone());
            pooled.push((i, start..hidden_rows.len()));
        } else if end == seq.tokens.len() {
            logits_rows.push(rows.end - 1);
            sampled_idx.push(i);
        }
        let to_score = seq.to_score(end);
        if !to_score.is_empty() {
            let start = hidden_rows.len();
            hidden_rows.extend(to_score.map(|position| rows.start + position - seq.num_computed));
            scored.push((i, start..hidden_rows.len()));
        }
        seqs.push(SeqRows { rows, num_computed: seq.num_computed, block_table: seq.blocks.table.clone() });
    }
    let ctx = AttentionContext::new(ops, cache, &seqs);
    let sampled = logits_rows.len();
    logits_rows.extend(hidden_rows);
    let all = model.hidden(&ctx, &tokens, &logits_rows)?;
    if sampled == all.rows() {
        let logits = model.head(ops, &all);
        return Ok(Forward { logits, sampled_idx, hidden: ops.zeros(0, 0), pooled, scored });
    }
    let logits = model.head(ops, &part(ops, &all, 0..sampled));
    let hidden = part(ops, &all, sampled..all.rows());
    Ok(Forward { logits, sampled_idx, hidden, pooled, scored })
}

/// Some rows of `all`.
pub(crate) fn part(ops: &Ops, all: &Tensor, rows: Range<usize>) -> Tensor {
    let mut out = ops.zeros(rows.len(), all.cols());
    for (i, row) in rows.enumerate() {
        out.row_mut(i).copy_from_slice(all.row(row));
    }
    out
}
