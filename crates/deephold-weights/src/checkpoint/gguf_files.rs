//! GGUF files, single and split.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Checkpoint, Kind, TensorInfo, gguf_config};
use crate::error::shown;
use crate::files::open_regular;
use crate::gguf::{self, Gguf, Metadata};
use crate::mapped::MappedFile;
use crate::{WeightsError, names};

/// Parts have five digits; nobody splits into more than this.
const PARTS_MAX: usize = 10_000;

/// Whether a file begins with the magic.
pub(super) fn is_gguf(path: &Path) -> Result<bool, WeightsError> {
    let mut file = open_regular(path)?;
    let mut magic = [0; 4];
    let n = file.read(&mut magic).map_err(WeightsError::io("read", path))?;
    Ok(magic[..n] == *b"GGUF" || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")))
}

/// The GGUF model of a folder that has no safetensors: one file, or one set of parts.
pub(super) fn in_folder(folder: &Path) -> Result<Option<PathBuf>, WeightsError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(WeightsError::io("read", folder))? {
        let path = entry.map_err(WeightsError::io("read", folder))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => return Ok(None),
            Some("gguf") if path.is_file() => match SplitName::of(&path) {
                Some(split) if split.number != 1 => {}
                _ => found.push(path),
            },
            _ => {}
        }
    }
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        n => Err(WeightsError::NotFound {
            what: format!("one model in {}", folder.display()),
            hint: format!("the folder has {n} GGUF files; name one of them"),
        }),
    }
}

/// `prefix-00002-of-00003.gguf`
struct SplitName {
    prefix: String,
    number: usize,
    count: usize,
}

impl SplitName {
    fn of(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits =
            |s: &str| (s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok());
        let (number, count): (usize, usize) = (digits(number)??, digits(count)??);
        ((1..=count).contains(&number) && count <= PARTS_MAX).then(|| Self {
            prefix: prefix.to_owned(),
            number,
            count,
        })
    }

    fn file(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// Opens a file, and with it all parts it belongs to.
pub(super) fn open(path: &Path) -> Result<Checkpoint, WeightsError> {
    let split = SplitName::of(path);
    let paths = match &split {
        None => vec![path.to_owned()],
        Some(split) => (1..=split.count).map(|n| path.with_file_name(split.file(n))).collect(),
    };
    let mut c = Checkpoint {
        kind: Kind::Gguf,
        root: paths[0].clone(),
        files: Vec::new(),
        tensors: Vec::new(),
        by_name: HashMap::new(),
        config: serde_json::Value::Null,
        generation_config: None,
        tokenizer_config: None,
        pooling_config: None,
        tokenizer_json: None,
        static_tokenizer: None,
        chat_template: None,
        metadata: None,
        architecture: None,
        problems: Vec::new(),
    };
    for (i, path) in paths.iter().enumerate() {
        if !path.is_file() {
            return Err(WeightsError::NotFound {
                what: path.display().to_string(),
                hint: format!("the model is split into {} files and needs all of them", paths.len()),
            });
        }
        c.add_gguf(path, i, paths.len())?;
    }
    c.finish_gguf(paths.len())?;
    Ok(c)
}

impl Checkpoint {
    fn add_gguf(&mut self, path: &Path, number: usize, parts: usize) -> Result<(), WeightsError> {
        let file = MappedFile::open(path)?;
        let gguf = gguf::parse(file.bytes()).map_err(|e| e.in_file(path))?;
        check_split(&gguf.metadata, number, parts).map_err(|e| e.in_file(path))?;
        let file_idx = self.files.len();
        let Gguf { metadata, tensors, .. } = gguf;
        if self.metadata.is_none() {
            let Some(architecture) = metadata.get_str("general.architecture") else {
                let error = WeightsError::malformed("GGUF metadata: `general.architecture`", "is missing");
                return Err(error.in_file(path));
            };
            check_numbers(&metadata, architecture).map_err(|e| e.in_file(path))?;
            self.architecture = Some(architecture.chars().take(64).collect());
            self.chat_template = metadata.get_str("tokenizer.chat_template").map(str::to_owned);
            self.metadata = Some(metadata);
        }
        for t in tensors {
            let name = names::to_hugging_face(&t.name).unwrap_or_else(|| t.name.clone());
            if self.by_name.insert(name.clone(), self.tensors.len()).is_some() {
                let what = format!("tensor `{}`", shown(&t.name));
                return Err(WeightsError::malformed(what, "comes twice in the model").in_file(path));
            }
            self.tensors.push(TensorInfo {
                name,
                stored_name: t.name,
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

    fn finish_gguf(&mut self, parts: usize) -> Result<(), WeightsError> {
        let metadata = self.metadata.as_ref().expect("set with the first file");
        if let Some(total) = metadata.get_u64("split.tensors.count").filter(|_| parts > 1)
            && total != self.tensors.len() as u64
        {
            let problem = format!("says {total}, the {parts} files hold {}", self.tensors.len());
            return Err(WeightsError::malformed("GGUF metadata: `split.tensors.count`", problem));
        }
        self.tensors.sort_by_key(|t| (t.file_idx, t.offset));
        self.by_name = self.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        self.config = gguf_config::synthesize(self);
        Ok(())
    }
}

/// Numbers that describe the model are finite: NaN would pass most comparisons unseen.
fn check_numbers(metadata: &Metadata, architecture: &str) -> Result<(), WeightsError> {
    for (key, value) in metadata.iter() {
        let number = match value {
            gguf::Value::F32(v) => f64::from(*v),
            gguf::Value::F64(v) => *v,
            _ => continue,
        };
        let is_ours = key.strip_prefix(architecture).is_some_and(|rest| rest.starts_with('.'));
        if is_ours && !number.is_finite() {
            let what = format!("GGUF metadata: `{}`", shown(key));
            return Err(WeightsError::malformed(
                what,
                format!("is {number}; fetch or convert the model again"),
            ));
        }
    }
    Ok(())
}

fn check_split(metadata: &Metadata, number: usize, parts: usize) -> Result<(), WeightsError> {
    let count = metadata.get_u64("split.count").unwrap_or(1);
    if count.max(1) != parts as u64 {
        let problem = match parts {
            1 => format!("says {count} parts, but the name does not end in `-00001-of-{count:05}.gguf`"),
            _ => format!("says {count} parts, the name says {parts}"),
        };
        return Err(WeightsError::malformed("GGUF metadata: `split.count`", problem));
    }
    if parts > 1 && metadata.get_u64("split.no") != Some(number as u64) {
        let problem = format!("is not {number}, as the name says: the parts were renamed or mixed");
        return Err(WeightsError::malformed("GGUF metadata: `split.no`", problem));
    }
    Ok(())
}
