//! `deephold model inspect`.

use std::process::ExitCode;

use anyhow::Result;
use deephold_base::{human_bytes, human_count};
use deephold_kernels::CacheDType;
use deephold_models::Description;
use deephold_tokenizer::{ChatFormat, Tokenizer, TokenizerError};
use deephold_weights::{Checkpoint, Kind};
use serde_json::{Value, json};

use super::{print_json, print_table};
use crate::cli::InspectArgs;
use crate::console::{out, plain};
use crate::loaded::open;

pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode> {
    let checkpoint = open(&args.path)?;
    let description = deephold_models::describe(&checkpoint)?;
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint);
    let view = View { checkpoint: &checkpoint, description: &description, tokenizer: &tokenizer };
    if args.json {
        print_json(&view.json(args.tensors))?;
    } else {
        view.print(args.tensors)?;
    }
    Ok(ExitCode::SUCCESS)
}

struct View<'a> {
    checkpoint: &'a Checkpoint,
    description: &'a Description,
    tokenizer: &'a Result<Tokenizer, TokenizerError>,
}

impl View<'_> {
    /// What the chat command would use, or why it cannot.
    fn template(&self) -> Result<&'static str, String> {
        let tokenizer = self.tokenizer.as_ref().map_err(|_| "no tokenizer".to_owned())?;
        match ChatFormat::from_checkpoint(self.checkpoint, tokenizer) {
            Ok(ChatFormat::Template(_)) => Ok("the model's own"),
            Ok(ChatFormat::DeepSeek(_)) => Ok("DeepSeek's published encoding"),
            Err(TokenizerError::NoTemplate) => Err("none".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn unsupported(&self) -> Vec<String> {
        let mut out = self.description.unsupported.clone();
        match self.tokenizer {
            Ok(_) | Err(TokenizerError::Missing { .. }) => {}
            Err(e) => out.push(e.to_string()),
        }
        out
    }

    fn json(&self, tensors: bool) -> Value {
        let d = self.description;
        let formats: Vec<Value> = d
            .formats
            .iter()
            .map(|f| json!({ "dtype": f.dtype, "tensors": f.tensors, "parameters": f.parameters, "bytes": f.bytes }))
            .collect();
        let mut out = json!({
            "path": self.checkpoint.path().display().to_string(),
            "kind": self.checkpoint.kind(),
            "files": self.checkpoint.files(),
            "architecture": d.architecture,
            "weights_bytes": d.weights_bytes,
            "formats": formats,
            "license": license(self.checkpoint),
            "unsupported": self.unsupported(),
        });
        if let Some(info) = &d.info {
            out["parameters"] = json!({ "total": info.parameters_total, "active": info.parameters_active });
            out["layers"] = info.num_hidden_layers.into();
            out["hidden_size"] = info.hidden_size.into();
            out["vocab_size"] = info.vocab_size.into();
            out["context"] = info.max_model_len.into();
            out["cache_bytes_per_token"] = json!({
                "f16": info.cache_bytes_per_token(CacheDType::F16),
                "f32": info.cache_bytes_per_token(CacheDType::F32),
            });
            out["notes"] = json!(info.notes);
        }
        out["tokenizer"] = match self.tokenizer {
            Ok(t) => {
                json!({ "tokens": t.vocab_size(), "bos": t.bos(), "eos": t.eos(), "stop": t.stop_ids() })
            }
            Err(e) => json!({ "error": e.to_string() }),
        };
        out["chat_template"] = match self.template() {
            Ok(kind) => json!(kind),
            Err(_) => Value::Null,
        };
        if tensors {
            let list = self.checkpoint.tensors();
            out["tensors"] = list
                .map(|t| json!({ "name": t.name, "dtype": t.dtype.name(), "shape": t.shape, "bytes": t.bytes }))
                .collect();
        }
        out
    }

    fn print(&self, tensors: bool) -> Result<()> {
        let d = self.description;
        let files = self.checkpoint.files();
        let kind = match self.checkpoint.kind() {
            Kind::HuggingFace => "safetensors",
            Kind::Gguf => "GGUF",
        };
        let mut rows = vec![
            ("model", self.checkpoint.path().display().to_string()),
            ("architecture", d.architecture.clone()),
        ];
        if let Some(info) = &d.info {
            let (total, active) = (human_count(info.parameters_total), human_count(info.parameters_active));
            let parameters = if info.parameters_active < info.parameters_total {
                format!("{total}, {active} active for each token")
            } else {
                total
            };
            rows.push(("parameters", parameters));
            let layers = format!(
                "{} of width {}, vocabulary {}",
                info.num_hidden_layers, info.hidden_size, info.vocab_size
            );
            rows.push(("layers", layers));
            rows.push(("context", format!("{} tokens", info.max_model_len)));
            // Encoders keep nothing.
            if !info.cache_layers.is_empty() {
                let each = info.cache_bytes_per_token(CacheDType::F16);
                let full = human_bytes(each.saturating_mul(info.max_model_len as u64));
                let each = human_bytes(each);
                rows.push(("cache", format!("{each} for each token in f16, {full} for a full context")));
            }
        }
        rows.push(("files", format!("{} {kind}, {} of weights", files.len(), human_bytes(d.weights_bytes))));
        let formats: Vec<String> = d
            .formats
            .iter()
            .map(|f| format!("{} {} ({} tensors)", human_bytes(f.bytes), f.dtype, f.tensors))
            .collect();
        rows.push(("formats", formats.join(", ")));
        rows.push(match self.tokenizer {
            Ok(t) => ("tokenizer", format!("{} tokens, ends at {:?}", t.vocab_size(), t.stop_ids())),
            Err(TokenizerError::Missing { .. }) => ("tokenizer", "none; use --prompt-ids".to_owned()),
            Err(e) => ("tokenizer", format!("unusable: {e}")),
        });
        rows.push(("chat template", self.template().map_or_else(|e| e, str::to_owned)));
        rows.push((
            "licence",
            license(self.checkpoint).unwrap_or_else(|| "not stated in the files".to_owned()),
        ));
        if let Some(info) = &d.info {
            rows.extend(info.notes.iter().map(|n| ("note", n.clone())));
        }
        let unsupported = self.unsupported();
        rows.extend(unsupported.into_iter().map(|u| ("unsupported", u)));
        print_table(&rows)?;
        if tensors {
            out!()?;
            for t in self.checkpoint.tensors() {
                out!("{:8} {:>24} {}", t.dtype.name(), format!("{:?}", t.shape), plain(&t.name))?;
            }
        }
        Ok(())
    }
}

/// `general.license` of GGUF; of a folder what its README's front matter says, or that it has a licence file.
fn license(checkpoint: &Checkpoint) -> Option<String> {
    if let Some(metadata) = checkpoint.gguf_metadata() {
        return metadata.get_str("general.license").map(|l| l.chars().take(200).collect());
    }
    let folder = checkpoint.path();
    let readme = deephold_weights::files::read_bounded(&folder.join("README.md"), 4 << 20).ok();
    let stated = readme.and_then(|bytes| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let front = text.strip_prefix("---")?.split("\n---").next()?.to_owned();
        let line = front.lines().find_map(|l| l.strip_prefix("license:"))?;
        Some(line.trim().chars().take(200).collect::<String>())
    });
    let file = ["LICENSE", "LICENSE.txt", "LICENSE.md", "LICENSE-MODEL"]
        .into_iter()
        .find(|name| folder.join(name).is_file())
        .map(|name| format!("see {name}"));
    stated.or(file)
}
