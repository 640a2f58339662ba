//! One view of a model's files, whatever their format.

mod gguf_config;
mod gguf_files;
mod hugging_face;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use deephold_quant::DType;
use serde::Serialize;
use serde_json::Value;

pub(crate) use gguf_config::llama3_factors;
pub(crate) use hugging_face::is_plain_file_name;

use crate::gguf::Metadata;
use crate::mapped::MappedFile;
use crate::{GgufVocab, WeightsError};

/// Where the tensors came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A folder of config.json and safetensors.
    HuggingFace,
    /// A GGUF file or its parts.
    Gguf,
}

/// Which columns of a llama-like attention head rope turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyleHint {
    /// i and i + D/2: Hugging Face files, and GGUF files of the architectures `qwen2` and `qwen3`.
    Half,
    /// 2i and 2i + 1: GGUF files of the architecture `llama`, whose q and k rows the converter has permuted.
    Interleaved,
}

/// A tensor's name, type, shape and place.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// In the Hugging Face spelling; GGUF names without a counterpart stay as stored.
    pub name: String,
    /// As the file spells it.
    pub stored_name: String,
    /// Element type.
    pub dtype: DType,
    /// Outermost dimension first: `[N, K]`, merged experts `[E, N, K]`.
    pub shape: Vec<usize>,
    /// Which of [`Checkpoint::files`].
    pub file_idx: usize,
    /// First byte in that file.
    pub offset: usize,
    /// Bytes in that file.
    pub bytes: usize,
}

impl TensorInfo {
    /// How many values it has; checked when the file was read.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A tensor and its mapped bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    info: &'a TensorInfo,
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Name, type, shape.
    pub fn info(&self) -> &'a TensorInfo {
        self.info
    }

    /// Row-major, as stored; not aligned beyond one byte.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All values in float32. FP8 codes come without their block scales: see [`Checkpoint::tensor_f32`].
    ///
    /// # Errors
    /// An integer type.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        let mut values = vec![0f32; self.info.elements()];
        deephold_quant::dequantize(self.info.dtype, self.bytes, &mut values)
            .map_err(|source| WeightsError::Values { tensor: self.info.name.clone(), source })?;
        Ok(values)
    }

    /// The bytes of part `e` along the outermost dimension: one expert of `[E, N, K]`.
    ///
    /// # Errors
    /// There is no part `e`.
    pub fn expert(&self, e: usize) -> Result<&'a [u8], WeightsError> {
        let parts = self.info.shape.first().copied().unwrap_or(0);
        if e >= parts || !self.bytes.len().is_multiple_of(parts) {
            let problem = format!("has {parts} parts, there is no part {e}");
            return Err(WeightsError::malformed(format!("tensor `{}`", self.info.name), problem));
        }
        let each = self.bytes.len() / parts;
        Ok(&self.bytes[e * each..(e + 1) * each])
    }
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// What sort of problem was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A file that was named is not there or cannot be read.
    File,
    /// The index and the shards disagree.
    Index,
    /// A tensor that the configuration calls for is not there.
    Missing,
    /// A tensor that the configuration does not call for.
    Surplus,
    /// A shape differs from the configuration's.
    Shape,
    /// NaN or an infinity.
    NotFinite,
    /// A file differs from the manifest.
    Digest,
    /// config.json contradicts the files.
    Config,
}

/// One finding: what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What sort.
    pub kind: FindingKind,
    /// What is wrong.
    pub what: String,
    /// The file or tensor.
    #[serde(rename = "where")]
    pub place: String,
    /// What to do.
    pub hint: String,
    /// Whether the model still works (surplus tensors do no harm).
    pub harmless: bool,
}

/// A model's files, mapped and checked.
pub struct Checkpoint {
    kind: Kind,
    root: PathBuf,
    files: Vec<MappedFile>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    config: Value,
    generation_config: Option<Value>,
    tokenizer_config: Option<Value>,
    tokenizer_json: Option<PathBuf>,
    pooling_config: Option<Value>,
    static_tokenizer: Option<&'static [u8]>,
    chat_template: Option<String>,
    metadata: Option<Metadata>,
    architecture: Option<String>,
    problems: Vec<Finding>,
}

impl Checkpoint {
    /// Opens a folder with config.json and safetensors (single or sharded), a `.gguf` file (of split files: any part),
    /// a folder that holds one GGUF model and no safetensors, or a file of a Hugging Face folder.
    ///
    /// # Errors
    /// A file that is missing, truncated or contradicts its format; an index that disagrees with its shards.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let mut checkpoint = Self::open_for_verify(path)?;
        match checkpoint.problems.iter().position(|p| !p.harmless) {
            None => Ok(checkpoint),
            Some(first) => {
                let p = checkpoint.problems.swap_remove(first);
                Err(match p.kind {
                    FindingKind::File => {
                        // The only files that are named and missing are the index's.
                        WeightsError::NotFound {
                            what: format!("{}, which the index names,", p.place),
                            hint: p.hint,
                        }
                    }
                    _ => WeightsError::malformed(p.place, format!("{}; {}", p.what, p.hint)),
                })
            }
        }
    }

    /// As [`Checkpoint::open`], but missing shards and an index that disagrees become [`Checkpoint::problems`], so that
    /// all of them can be listed at once.
    ///
    /// # Errors
    /// A file that contradicts its format.
    pub fn open_for_verify(path: &Path) -> Result<Self, WeightsError> {
        let metadata = std::fs::metadata(path).map_err(WeightsError::io("open", path))?;
        if metadata.is_dir() {
            return match gguf_files::in_folder(path)? {
                Some(file) => gguf_files::open(&file),
                None => hugging_face::open(path, None),
            };
        }
        if gguf_files::is_gguf(path)? {
            return gguf_files::open(path);
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => hugging_face::open(folder, Some(path)),
            Some("json") => hugging_face::open(folder, None),
            _ => Err(WeightsError::unsupported(
                path.display().to_string(),
                "not a model file",
                "give a folder with config.json and safetensors, or a .gguf file",
            )),
        }
    }

    /// A model that is part of the program: the files of its folder by name, config.json and model.safetensors among them.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_static(name: &str, files: &[(&str, &'static [u8])]) -> Result<Self, WeightsError> {
        hugging_face::open_static(name, files)
    }

    /// Where the files say what [`Self::config`] has under `key` (`section.key` within a section): the file and its own key.
    pub fn place_of(&self, key: &str) -> (&'static str, String) {
        match &self.architecture {
            Some(architecture) if self.kind == Kind::Gguf => {
                let own = gguf_config::metadata_key(architecture, key);
                ("GGUF metadata", own.unwrap_or_else(|| key.to_owned()))
            }
            _ => ("config.json", key.to_owned()),
        }
    }

    /// Folder of safetensors, or GGUF.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The folder, or the (first) GGUF file.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// All tensors, file by file in the order of their data.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// A tensor by its Hugging Face name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|i| self.view(&self.tensors[*i]))
    }

    pub(crate) fn view<'a>(&'a self, info: &'a TensorInfo) -> TensorView<'a> {
        // In bounds: checked against the file's length when its header was read.
        let bytes = &self.files[info.file_idx].bytes()[info.offset..info.offset + info.bytes];
        TensorView { info, bytes }
    }

    /// config.json as it is; for GGUF one like it, made from the metadata: `architectures`, `model_type` and the
    /// older spelling of rope (`rope_theta`, `rope_scaling`). Keys that the file is silent about are left out.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The weight files.
    pub fn files(&self) -> Vec<FileInfo> {
        self.files
            .iter()
            .map(|f| FileInfo { path: f.path().to_owned(), bytes: f.bytes().len() as u64 })
            .collect()
    }

    /// Bytes of all tensors as stored.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// generation_config.json.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// Where tokenizer.json is.
    pub fn tokenizer_json(&self) -> Option<PathBuf> {
        self.tokenizer_json.clone()
    }

    /// The text of tokenizer.json where the program or a GGUF file carries it (`tokenizer.huggingface.json`): exact, where
    /// the vocabulary alone leaves the pre-tokenizer open.
    pub fn embedded_tokenizer_json(&self) -> Option<&[u8]> {
        if let Some(json) = self.static_tokenizer {
            return Some(json);
        }
        match self.metadata.as_ref()?.get("tokenizer.huggingface.json")? {
            crate::gguf::Value::String(json) => Some(json),
            _ => None,
        }
    }

    /// How an encoder's states become one vector, as sentence-transformers keeps it: 1_Pooling/config.json.
    pub fn pooling_config(&self) -> Option<&Value> {
        self.pooling_config.as_ref()
    }

    /// tokenizer_config.json.
    pub fn tokenizer_config(&self) -> Option<&Value> {
        self.tokenizer_config.as_ref()
    }

    /// The chat template: chat_template.jinja, else tokenizer_config.json's (of several the one called `default`), else
    /// GGUF's `tokenizer.chat_template`.
    pub fn chat_template(&self) -> Option<String> {
        self.chat_template.clone()
    }

    /// The vocabulary inside a GGUF file.
    pub fn gguf_vocab(&self) -> Option<GgufVocab> {
        GgufVocab::from_metadata(self.metadata.as_ref()?)
    }

    /// All metadata of a GGUF file (of split files: the first).
    pub fn gguf_metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// `general.architecture` of a GGUF file.
    pub fn gguf_architecture(&self) -> Option<&str> {
        self.architecture.as_deref()
    }

    /// How q and k rows of Llama, Qwen2 and Qwen3 lie: what is stored is exposed, not permuted back. DeepSeek's rope
    /// columns are interleaved in every file, as published.
    pub fn rope_style_hint(&self) -> RopeStyleHint {
        match self.architecture.as_deref() {
            Some("llama") => RopeStyleHint::Interleaved,
            _ => RopeStyleHint::Half,
        }
    }

    /// `[D/2]` divisors of the rope frequencies, `rope_freqs.weight` of GGUF files with llama3 scaling. Where they are
    /// those of a published llama3 scaling, [`Checkpoint::config`] carries that scaling and they need not be applied;
    /// otherwise its `rope_scaling` has `rope_type: "factors"`.
    pub fn rope_factors(&self) -> Option<Vec<f32>> {
        let view = self.tensor("rope_freqs.weight")?;
        if view.info.elements() > 1 << 16 {
            return None;
        }
        view.to_f32().ok().filter(|f| f.iter().all(|x| x.is_finite() && *x > 0.0))
    }

    /// What did not fit together when the files were opened.
    pub fn problems(&self) -> &[Finding] {
        &self.problems
    }

    /// Tells the system that this tensor's pages may go: they will not be read again soon. Contents are unaffected.
    pub fn release_pages(&self, info: &TensorInfo) {
        self.files[info.file_idx].done_with(info.offset, info.bytes);
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("kind", &self.kind)
            .field("root", &self.root)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
