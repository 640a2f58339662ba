//! Which tensors a configuration calls for: the one list that loading checks and `model verify` prints.

use deephold_weights::Checkpoint;
use deephold_weights::verify::ExpectedTensor;

use crate::ModelError;

/// Sizes of a layer's routed experts.
#[derive(Clone, Copy)]
pub(crate) struct ExpertSizes {
    /// E.
    pub(crate) experts: usize,
    /// Experts that a token uses.
    pub(crate) active: usize,
    /// I of one expert.
    pub(crate) intermediate: usize,
    /// H.
    pub(crate) hidden: usize,
}

/// Collects them; knows what the checkpoint holds, since some tensors come in one of two layouts.
pub(crate) struct TensorList<'a> {
    checkpoint: &'a Checkpoint,
    fp8_block: Option<(usize, usize)>,
    pub(crate) items: Vec<ExpectedTensor>,
}

impl<'a> TensorList<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, fp8_block: Option<(usize, usize)>) -> Self {
        Self { checkpoint, fp8_block, items: Vec::new() }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// Any shape.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.push(name, shape, (1, 1));
    }

    /// `[n]`
    pub(crate) fn vector(&mut self, name: &str, n: usize) {
        self.tensor(name, &[n]);
    }

    /// `<name>.weight` [n, k], its block scales where the file has them, and `<name>.bias` `[n]` where `bias`.
    pub(crate) fn linear(&mut self, name: &str, n: usize, k: usize, bias: bool) {
        self.matrix(name, n, k, (1, 1));
        if bias {
            self.vector(&format!("{name}.bias"), n);
        }
    }

    /// The three matrices of a gated block.
    pub(crate) fn mlp(&mut self, name: &str, hidden: usize, intermediate: usize, bias: bool) {
        self.linear(&format!("{name}.gate_proj"), intermediate, hidden, bias);
        self.linear(&format!("{name}.up_proj"), intermediate, hidden, bias);
        self.linear(&format!("{name}.down_proj"), hidden, intermediate, bias);
    }

    /// Experts, one tensor each or merged as GGUF has them.
    pub(crate) fn experts(&mut self, name: &str, sizes: ExpertSizes) {
        let ExpertSizes { experts: e, active, intermediate: i, hidden } = sizes;
        let share = (active, e);
        for (proj, n, k) in [("gate_proj", i, hidden), ("up_proj", i, hidden), ("down_proj", hidden, i)] {
            let merged = format!("{name}.{proj}.weight");
            if self.holds(&merged) {
                self.push(&merged, &[e, n, k], share);
                continue;
            }
            for expert in 0..e {
                self.matrix(&format!("{name}.{expert}.{proj}"), n, k, share);
            }
        }
    }

    fn matrix(&mut self, name: &str, n: usize, k: usize, share: (usize, usize)) {
        self.push(&format!("{name}.weight"), &[n, k], share);
        let scales = format!("{name}.weight_scale_inv");
        if let Some((rows, cols)) = self.fp8_block.filter(|_| self.holds(&scales)) {
            self.push(&scales, &[n.div_ceil(rows), k.div_ceil(cols)], (0, 1));
        }
    }

    fn push(&mut self, name: &str, shape: &[usize], active_share: (usize, usize)) {
        let tensor =
            ExpectedTensor { name: name.to_owned(), shape: shape.to_vec(), optional: false, active_share };
        self.items.push(tensor);
    }

    /// Everything must be there in its shape.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        for expected in &self.items {
            let Some(view) = self.checkpoint.tensor(&expected.name) else {
                return Err(ModelError::MissingTensor {
                    name: expected.name.clone(),
                    shape: expected.shape.clone(),
                });
            };
            if view.info().shape != expected.shape {
                return Err(ModelError::Shape {
                    name: expected.name.clone(),
                    found: view.info().shape.clone(),
                    expected: expected.shape.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Why a tensor beyond the expected ones may be there without harm; `None` where it is simply surplus.
pub fn ignored_tensor(name: &str, num_hidden_layers: usize) -> Option<&'static str> {
    if name.ends_with(".rotary_emb.inv_freq") {
        return Some("a buffer of older files; frequencies follow from config.json");
    }
    if name.ends_with(".attn.masked_bias") || name.ends_with(".self_attn.bias") {
        return Some("a mask that older files carry");
    }
    let inner = name.strip_prefix("bert.").unwrap_or(name);
    if inner == "embeddings.position_ids" {
        return Some("a buffer of older files; positions count from 0");
    }
    if inner.starts_with("pooler.") || inner.starts_with("cls.") {
        return Some("a head of an encoder's training, not used for vectors");
    }
    let layer = name.strip_prefix("model.layers.")?.split('.').next()?.parse::<usize>().ok()?;
    (layer >= num_hidden_layers).then_some("multi-token prediction, not computed yet")
}
