//! From a step's plan to one forward pass.

use deephold_base::TokenId;
use deephold_kernels::{AttentionContext, KvCache, Ops, SeqRows, Tensor};
use deephold_models::{Model, ModelError};

use crate::scheduler::{Scheduler, SchedulerOutput};

/// Logits of the sequences that caught up, and which share of the plan each row belongs to.
pub(crate) struct Logits {
    pub(crate) rows: Tensor,
    pub(crate) shares: Vec<usize>,
}

/// Runs the plan: rows of all sequences side by side, logits only where a token will be sampled.
pub(crate) fn forward(
    model: &dyn Model,
    ops: &Ops,
    cache: &KvCache,
    scheduler: &Scheduler,
    plan: &SchedulerOutput,
) -> Result<Logits, ModelError> {
    let mut tokens: Vec<TokenId> = Vec::with_capacity(plan.num_tokens);
    let mut seqs = Vec::with_capacity(plan.seqs.len());
    let (mut logits_rows, mut shares) = (Vec::new(), Vec::new());
    for (i, share) in plan.seqs.iter().enumerate() {
        let Some(seq) = scheduler.running.get(&share.rank) else { continue };
        let end = seq.num_computed + share.num_tokens;
        let rows = tokens.len()..tokens.len() + share.num_tokens;
        tokens.extend_from_slice(&seq.tokens[seq.num_computed..end]);
        if end == seq.tokens.len() {
            logits_rows.push(rows.end - 1);
            shares.push(i);
        }
        seqs.push(SeqRows { rows, num_computed: seq.num_computed, block_table: seq.blocks.table.clone() });
    }
    let ctx = AttentionContext::new(ops, cache, &seqs);
    let rows = model.forward(&ctx, &tokens, &logits_rows)?;
    Ok(Logits { rows, shares })
}
