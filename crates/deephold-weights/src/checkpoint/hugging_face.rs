//! A folder of config.json and safetensors.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{Checkpoint, Finding, FindingKind, Kind, TensorInfo};
use crate::config;
use crate::error::shown;
use crate::files::read_bounded;
use crate::mapped::MappedFile;
use crate::{WeightsError, safetensors};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const INDEX_BYTES_MAX: u64 = 100_000_000;
/// tokenizer_config.json carries a template and sometimes every added token.
const SIDE_FILE_BYTES_MAX: u64 = 64 << 20;

/// `only` names one file of the folder to take instead of what the folder would choose.
pub(super) fn open(folder: &Path, only: Option<&Path>) -> Result<Checkpoint, WeightsError> {
    let config_path = folder.join("config.json");
    if !config_path.is_file() {
        return Err(WeightsError::NotFound {
            what: config_path.display().to_string(),
            hint: "a model folder holds config.json and model.safetensors (or shards with their index)"
                .into(),
        });
    }
    let config = config::read_config(&config_path)?;
    let tokenizer_config = config::read_optional(&folder.join("tokenizer_config.json"), SIDE_FILE_BYTES_MAX)?;
    let tokenizer_json = Some(folder.join("tokenizer.json")).filter(|p| p.is_file());
    let mut c = Checkpoint {
        kind: Kind::HuggingFace,
        root: folder.to_owned(),
        files: Vec::new(),
        tensors: Vec::new(),
        by_name: HashMap::new(),
        config,
        generation_config: config::read_optional(
            &folder.join("generation_config.json"),
            SIDE_FILE_BYTES_MAX,
        )?,
        chat_template: chat_template(folder, tokenizer_config.as_ref())?,
        tokenizer_config,
        tokenizer_json,
        pooling_config: config::read_optional(&folder.join("1_Pooling/config.json"), SIDE_FILE_BYTES_MAX)?,
        static_tokenizer: None,
        metadata: None,
        architecture: None,
        problems: Vec::new(),
    };
    match only {
        Some(file) => c.add_file(file, None)?,
        None => match choose(folder)? {
            Choice::Single(file) => c.add_file(&file, None)?,
            Choice::Index(index) => c.add_shards(folder, &index)?,
        },
    }
    Ok(c)
}

/// The files of a folder that is part of the program; config.json and model.safetensors must be among them.
pub(super) fn open_static(name: &str, files: &[(&str, &'static [u8])]) -> Result<Checkpoint, WeightsError> {
    let root = PathBuf::from(name);
    let find = |file: &str| files.iter().find(|(n, _)| *n == file).map(|(_, bytes)| *bytes);
    let json =
        |file: &str| find(file).map(config::parse).transpose().map_err(|e| e.in_file(&root.join(file)));
    let needed = |file: &str| WeightsError::NotFound {
        what: root.join(file).display().to_string(),
        hint: "the program was built without it".into(),
    };
    let tokenizer_config = json("tokenizer_config.json")?;
    let mut c = Checkpoint {
        kind: Kind::HuggingFace,
        files: Vec::new(),
        tensors: Vec::new(),
        by_name: HashMap::new(),
        config: json("config.json")?.ok_or_else(|| needed("config.json"))?,
        generation_config: json("generation_config.json")?,
        chat_template: template_in(tokenizer_config.as_ref()),
        tokenizer_config,
        tokenizer_json: None,
        pooling_config: None,
        static_tokenizer: find("tokenizer.json"),
        metadata: None,
        architecture: None,
        problems: Vec::new(),
        root: root.clone(),
    };
    let weights = find(SINGLE).ok_or_else(|| needed(SINGLE))?;
    c.add_mapped(MappedFile::from_static(&root.join(SINGLE), weights), None)?;
    Ok(c)
}

enum Choice {
    Single(PathBuf),
    Index(PathBuf),
}

/// As the reference chooses: the single file, then the index; a lone file under another name also serves.
fn choose(folder: &Path) -> Result<Choice, WeightsError> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(Choice::Single(single));
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        return Ok(Choice::Index(index));
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(WeightsError::io("read", folder))? {
        let path = entry.map_err(WeightsError::io("read", folder))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
            found.push(path);
        }
    }
    match found.len() {
        1 => Ok(Choice::Single(found.remove(0))),
        0 => Err(WeightsError::NotFound {
            what: format!("{} (or {INDEX})", single.display()),
            hint: "the folder has no safetensors weights; files of other formats (.bin, .pt) are not read"
                .into(),
        }),
        n => Err(WeightsError::NotFound {
            what: index.display().to_string(),
            hint: format!(
                "the folder has {n} safetensors files, and only the index says how they belong together"
            ),
        }),
    }
}

impl Checkpoint {
    /// Maps a file and takes its tensors; with an index only those that the index gives to this file.
    fn add_file(&mut self, path: &Path, index: Option<&Index>) -> Result<(), WeightsError> {
        self.add_mapped(MappedFile::open(path)?, index)
    }

    fn add_mapped(&mut self, file: MappedFile, index: Option<&Index>) -> Result<(), WeightsError> {
        let bytes = file.bytes();
        let header =
            safetensors::parse_header(bytes, bytes.len() as u64).map_err(|e| e.in_file(file.path()))?;
        let file_idx = self.files.len();
        let shard = file.path().file_name().and_then(|n| n.to_str()).unwrap_or_default();
        for t in header.tensors {
            if let Some(index) = index {
                match index.weight_map.get(&t.name) {
                    Some(owner) if owner == shard => {}
                    Some(owner) => {
                        self.problem(
                            FindingKind::Index,
                            shard,
                            format!("holds tensor `{}`, which the index gives to {owner}", shown(&t.name)),
                            true,
                        );
                        continue;
                    }
                    None => {
                        let what =
                            format!("holds tensor `{}`, which the index does not name", shown(&t.name));
                        self.problem(FindingKind::Index, shard, what, true);
                    }
                }
            }
            if self.by_name.contains_key(&t.name) {
                let what = format!("holds tensor `{}`, which another shard holds too", shown(&t.name));
                self.problem(FindingKind::Index, shard, what, false);
                continue;
            }
            self.by_name.insert(t.name.clone(), self.tensors.len());
            self.tensors.push(TensorInfo {
                stored_name: t.name.clone(),
                name: t.name,
                dtype: t.dtype,
                shape: t.shape,
                file_idx,
                offset: t.offset,
                bytes: t.bytes,
            });
        }
        self.files.push(file);
        Ok(())
    }

    fn add_shards(&mut self, folder: &Path, index_path: &Path) -> Result<(), WeightsError> {
        let value = config::read(index_path, INDEX_BYTES_MAX)?;
        let index = Index::parse(&value).map_err(|e| e.in_file(index_path))?;
        for shard in &index.shards {
            let path = folder.join(shard);
            if path.is_file() {
                self.add_file(&path, Some(&index))?;
            } else {
                let what = "is named by the index and is not there".to_owned();
                self.problem(FindingKind::File, &path.display().to_string(), what, false);
            }
        }
        let present: BTreeSet<String> =
            self.files.iter().filter_map(|f| Some(f.path().file_name()?.to_str()?.to_owned())).collect();
        let missing: Vec<_> = index
            .weight_map
            .iter()
            .filter(|(name, shard)| present.contains(*shard) && !self.by_name.contains_key(*name))
            .map(|(name, shard)| (shown(name), shard.clone()))
            .collect();
        for (name, shard) in missing {
            let what = format!("does not hold tensor `{name}`, which the index says it does");
            self.problem(FindingKind::Index, &shard, what, false);
        }
        Ok(())
    }

    fn problem(&mut self, kind: FindingKind, place: &str, what: String, harmless: bool) {
        let hint = match kind {
            FindingKind::File => "fetch the shard again",
            _ => "fetch the index and the shards from one version of the model",
        };
        self.problems.push(Finding { kind, what, place: place.to_owned(), hint: hint.to_owned(), harmless });
    }
}

struct Index {
    /// tensor -> file name
    weight_map: BTreeMap<String, String>,
    shards: BTreeSet<String>,
}

impl Index {
    fn parse(value: &Value) -> Result<Self, WeightsError> {
        let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
            return Err(WeightsError::malformed("`weight_map`", "is missing or not an object"));
        };
        let (mut weight_map, mut shards) = (BTreeMap::new(), BTreeSet::new());
        for (tensor, shard) in map {
            let Some(shard) = shard.as_str().filter(|s| is_plain_file_name(s)) else {
                return Err(WeightsError::malformed(
                    format!("`weight_map` of tensor `{}`", shown(tensor)),
                    format!("names {}, which is not a file of this folder", shown(&shard.to_string())),
                ));
            };
            weight_map.insert(tensor.clone(), shard.to_owned());
            shards.insert(shard.to_owned());
        }
        if shards.is_empty() {
            return Err(WeightsError::malformed("`weight_map`", "names no file"));
        }
        Ok(Self { weight_map, shards })
    }
}

/// One component and nothing else: no separators of any system, no `..`, no drive.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(c)), None) if c == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

fn chat_template(folder: &Path, tokenizer_config: Option<&Value>) -> Result<Option<String>, WeightsError> {
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        let bytes = read_bounded(&file, SIDE_FILE_BYTES_MAX)?;
        return String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| WeightsError::malformed("the template", "is not UTF-8").in_file(&file));
    }
    let json = config::read_optional(&folder.join("chat_template.json"), SIDE_FILE_BYTES_MAX)?;
    Ok(template_in(json.as_ref()).or_else(|| template_in(tokenizer_config)))
}

fn template_in(value: Option<&Value>) -> Option<String> {
    match value?.get("chat_template")? {
        Value::String(template) => Some(template.clone()),
        Value::Array(several) => {
            let named = several.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            Some(named.or(several.first())?.get("template")?.as_str()?.to_owned())
        }
        _ => None,
    }
}
