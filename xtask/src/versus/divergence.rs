//! What quantised activations cost: how far the distributions of a file as it is stored are from those of the very same weights
//! in f32, in Deephold and in llama.cpp. Random weights cannot say: this takes files of trained models, and a text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::programs::{Deephold, LlamaCpp};

/// Our mean divergence over llama.cpp's, at most.
const AT_MOST: f64 = 1.05;

/// Relative difference of the two programs' perplexities with f32 weights: sums in another order, keys and values in f16. More
/// means that they read different tokens.
const SAME_TEXT: f64 = 1e-3;

/// What is scored, as `deephold eval perplexity` scores: windows side by side, of each the second half.
pub(super) struct Text {
    pub(super) path: PathBuf,
    /// Tokens of a window.
    pub(super) window: usize,
    pub(super) windows: usize,
}

/// The row of a report for `file`; `folder` takes its weights as f32 meanwhile.
///
/// # Errors
/// A program fails, or the two do not score the same text.
pub(super) fn measure(
    ours: &Deephold,
    peer: &LlamaCpp,
    folder: &Path,
    file: &Path,
    text: &Text,
) -> Result<Value> {
    let reference = folder.join("deephold-versus-reference-f32.gguf");
    let measured = (|| -> Result<_> {
        peer.dequantise(file, &reference)?;
        Ok((ours.divergence(file, &reference, text)?, peer.divergence(file, &reference, text)?))
    })();
    // Also after a failure: it is four bytes for each weight. Where nothing was written there is nothing to remove.
    let _ = std::fs::remove_file(&reference);
    let (ours_said, peer_said) = measured?;
    row(file, text, ours.isa(), &ours_said, &peer_said)
}

fn row(file: &Path, text: &Text, isa: &str, ours: &Value, peer: &Value) -> Result<Value> {
    let number =
        |value: &Value, name: &str| value[name].as_f64().with_context(|| format!("no `{name}` in {value}"));
    let ours_kl = &ours["reference"];
    let scored = number(ours, "scored_tokens")?;
    let perplexities = (number(ours_kl, "perplexity")?, number(peer, "reference_perplexity")?);
    if scored != number(peer, "scored_tokens")? || (perplexities.0 / perplexities.1 - 1.0).abs() > SAME_TEXT {
        bail!("the programs do not score the same text: {ours} and {peer}");
    }
    let builds: BTreeMap<&str, f64> = super::BUILDS
        .iter()
        .map(|build| Ok((*build, number(&peer[*build], "kl_mean")?)))
        .collect::<Result<_>>()?;
    let least = builds.iter().min_by(|a, b| a.1.total_cmp(b.1));
    let (build, least) = least.map(|(build, kl)| (*build, *kl)).context("llama.cpp has no build")?;
    let kl = number(ours_kl, "kl_mean")?;
    let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let (shape, format) = stem.rsplit_once('.').unwrap_or((&stem, ""));
    let name = text.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(json!({
        "work": format!("divergence on {name}"),
        "shape": shape,
        "format": format,
        "isa": isa,
        "unit": "nats",
        "text": name,
        "scored_tokens": scored,
        "window": text.window,
        "reference_perplexity": perplexities.0,
        "ours": kl,
        "ours_standard_error": number(ours_kl, "kl_standard_error")?,
        "peer": least,
        "peer_standard_error": number(&peer[build], "kl_standard_error")?,
        "peer_build": build,
        "peer_builds": builds,
        "ratio": kl / least,
        "at_most": AT_MOST,
    }))
}

/// A row in words.
pub(super) fn line(row: &Value) -> String {
    let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
    let held = if number("ratio") <= AT_MOST { "held" } else { "MISSED" };
    format!(
        "{}: {:.6} +/- {:.6} nats from f32; llama.cpp ({}) {:.6}; {:.3} x (at most {AT_MOST} x: {held})",
        row["work"].as_str().unwrap_or_default(),
        number("ours"),
        number("ours_standard_error"),
        row["peer_build"].as_str().unwrap_or_default(),
        number("peer"),
        number("ratio"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Text {
        Text { path: PathBuf::from("some/where/poem.txt"), window: 512, windows: 2 }
    }

    fn ours() -> Value {
        json!({ "scored_tokens": 510, "reference": { "perplexity": 20.0, "kl_mean": 0.00102, "kl_standard_error": 1e-5 } })
    }

    fn peer(scored: usize, perplexity: f64) -> Value {
        let build = |kl: f64| json!({ "kl_mean": kl, "kl_standard_error": 2e-5, "perplexity": 20.1 });
        json!({ "scored_tokens": scored, "reference_perplexity": perplexity, "repacked": build(0.0011), "plain": build(0.001) })
    }

    #[test]
    fn the_better_of_the_two_builds_counts() {
        let file = Path::new("models/tiny-1.5b.q4_k_m.gguf");
        let row = row(file, &text(), "avx2", &ours(), &peer(510, 20.01)).expect("a row");
        assert_eq!((row["shape"].as_str(), row["format"].as_str()), (Some("tiny-1.5b"), Some("q4_k_m")));
        assert_eq!((row["peer_build"].as_str(), row["peer"].as_f64()), (Some("plain"), Some(0.001)));
        assert_eq!(row["text"], "poem.txt");
        assert!(line(&row).contains("1.020 x") && line(&row).contains("held"), "{}", line(&row));
    }

    #[test]
    fn another_text_is_refused() {
        let file = Path::new("tiny.gguf");
        for peer in [peer(509, 20.0), peer(510, 20.1)] {
            let error = row(file, &text(), "avx2", &ours(), &peer).expect_err("not the same");
            assert!(error.to_string().contains("do not score the same text"), "{error}");
        }
    }
}
