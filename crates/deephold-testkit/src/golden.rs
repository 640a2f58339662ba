//! The golden checkpoints and what the reference computes from them.

use std::path::PathBuf;

use crate::{SafeTensors, testdata};

/// The golden folders that the engine computes today.
pub const GOLDEN_MODELS: [&str; 8] = [
    "r1-distill-llama",
    "r1-distill-qwen",
    "r1-distill-qwen-tied",
    "r1-0528-qwen3",
    "v2-lite",
    "v2",
    "v3",
    "v3.2",
];

/// The folder of one golden checkpoint.
pub fn golden_dir(name: &str) -> PathBuf {
    testdata("golden").join(name)
}

/// One prompt and the reference's answer.
#[derive(Clone, Debug)]
pub struct GoldenPrompt {
    /// T token ids.
    pub ids: Vec<u32>,
    /// `[T][V]` logits at every position.
    pub logits: Vec<Vec<f32>>,
    /// The greedy continuation.
    pub greedy: Vec<u32>,
    /// Best minus second logit at each step of the continuation.
    pub margin: Vec<f32>,
}

/// The reference's results for one checkpoint (transformers, float32, eager attention, no cache).
#[derive(Clone, Debug)]
pub struct Golden {
    /// Prompts of lengths 1, 7, 33 and 130.
    pub prompts: Vec<GoldenPrompt>,
    /// Residual stream of prompt 1: before layer 0, after each layer, after the final norm; each `[T * H]`.
    pub hidden: Vec<Vec<f32>>,
}

impl Golden {
    /// Loads `testdata/golden/<name>/golden.safetensors`.
    pub fn load(name: &str) -> Self {
        let file = SafeTensors::read(&golden_dir(name).join("golden.safetensors"));
        let ids =
            |key: String| -> Vec<u32> { file.get(&key).to_i32().into_iter().map(|id| id as u32).collect() };
        let mut prompts = Vec::new();
        for i in 0.. {
            if !file.0.contains_key(&format!("prompt.{i}.ids")) {
                break;
            }
            let logits = file.get(&format!("prompt.{i}.logits"));
            let vocab = logits.shape[1];
            prompts.push(GoldenPrompt {
                ids: ids(format!("prompt.{i}.ids")),
                logits: logits.to_f32().chunks_exact(vocab).map(<[f32]>::to_vec).collect(),
                greedy: ids(format!("prompt.{i}.greedy")),
                margin: file.get(&format!("prompt.{i}.greedy_margin")).to_f32(),
            });
        }
        let hidden =
            (0..).map_while(|l| file.0.get(&format!("prompt.1.hidden.{l}")).map(|t| t.to_f32())).collect();
        Self { prompts, hidden }
    }
}

/// The index of the largest value, the first where several are equal.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in row.iter().enumerate() {
        if *v > row[best] {
            best = i;
        }
    }
    best as u32
}
