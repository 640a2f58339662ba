//! A really trained encoder, all-MiniLM-L6-v2, against transformers (`testdata/scripts/make_minilm_reference.py`).
//!
//! Both sides compute in float32 and round differently: the cosine of two vectors of length 1 that differ by e in each of their
//! 384 values is 1 - 384 e^2 / 2, so 1e-5 allows errors of 2e-4 of a value. Values are near 0.05; six layers of four sums of at
//! most 1536 terms give sqrt(24 * 1536) u = 1.1e-5 of that.

mod support;

use std::sync::Arc;

use deephold_kernels::{Isa, Ops, PoolOptions, ThreadPool};
use deephold_models::{Encoder, LoadOptions, ModelError};
use deephold_testkit::{assert_same_bits, fetched_model, testdata};
use deephold_weights::Checkpoint;
use serde_json::Value;

struct Entry {
    ids: Vec<u32>,
    vector: Vec<f64>,
}

fn reference() -> Vec<Entry> {
    let bytes = std::fs::read(testdata("minilm").join("reference.json")).expect("a reference");
    let tree: Value = serde_json::from_slice(&bytes).expect("JSON");
    let entry = |e: &Value| Entry {
        ids: serde_json::from_value(e["ids"].clone()).expect("ids"),
        vector: serde_json::from_value(e["vector"].clone()).expect("a vector"),
    };
    tree["entries"].as_array().expect("entries").iter().map(entry).collect()
}

fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum();
    let norm = a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>() * b.iter().map(|b| b * b).sum::<f64>();
    dot / norm.sqrt()
}

fn load(checkpoint: &Arc<Checkpoint>, ops: &Ops) -> Box<dyn Encoder> {
    deephold_models::load_encoder(checkpoint, ops, &LoadOptions::default(), &mut |_| {}).expect("an encoder")
}

#[test]
fn minilm_gives_the_vectors_of_transformers() {
    let Some(path) = fetched_model("all-minilm-l6-v2") else { return };
    let checkpoint = Arc::new(Checkpoint::open(&path).expect("a checkpoint"));
    assert!(deephold_models::is_encoder(&checkpoint).expect("a kind"));
    let entries = reference();
    assert_eq!(entries.len(), 20);
    let texts: Vec<&[u32]> = entries.iter().map(|e| e.ids.as_slice()).collect();
    let mut first: Option<Vec<Vec<f32>>> = None;
    for isa in Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar) {
        for threads in [1, 2, 3] {
            let ops = Ops::new(isa, Arc::new(ThreadPool::new(PoolOptions { threads, pin: false })));
            let model = load(&checkpoint, &ops);
            let together = model.encode(&ops, &texts).expect("vectors");
            for (entry, vector) in entries.iter().zip(&together) {
                let cosine = cosine(vector, &entry.vector);
                assert!(1.0 - cosine < 1e-5, "{isa}: {cosine}");
            }
            // Neither neighbours, threads nor instructions change a bit.
            let alone = model.encode(&ops, &texts[5..6]).expect("a vector");
            assert_same_bits(&alone[0], &together[5], isa.name());
            let first = first.get_or_insert_with(|| together.clone());
            first.iter().zip(&together).for_each(|(a, b)| assert_same_bits(a, b, isa.name()));
        }
    }
}

#[test]
fn an_encoder_is_told_from_a_model_that_writes() {
    let Some(path) = fetched_model("all-minilm-l6-v2") else { return };
    let ops = support::ops(2);
    let checkpoint = Arc::new(Checkpoint::open(&path).expect("a checkpoint"));
    let refused = deephold_models::load(&checkpoint, &ops, &LoadOptions::default(), &mut |_| {});
    assert!(matches!(refused, Err(ModelError::Encoder(_))));
    let model = load(&checkpoint, &ops);
    let packed = deephold_models::packed_bytes(&checkpoint, &LoadOptions::default()).expect("bytes");
    assert_eq!(packed, model.info().packed_bytes);
    let description = deephold_models::describe(&checkpoint).expect("a description");
    assert!(description.unsupported.is_empty(), "{:?}", description.unsupported);
    assert_eq!(description.info.map(|i| (i.hidden_size, i.max_model_len)), Some((384, 512)));

    let long = vec![101u32; 513];
    for (text, hint) in [(&[][..], "0 tokens"), (&long[..], "513 tokens"), (&[30_522][..], "outside")] {
        let error = model.encode(&ops, &[text]).expect_err("a refusal").to_string();
        assert!(error.contains(hint), "{error}");
    }
    assert!(model.encode(&ops, &[&long[..512]]).is_ok());

    let decoder = Arc::new(Checkpoint::open(&testdata("golden/r1-distill-llama")).expect("a checkpoint"));
    let refused = deephold_models::load_encoder(&decoder, &ops, &LoadOptions::default(), &mut |_| {});
    assert!(matches!(refused, Err(ModelError::NoEncoder(_))));
}
