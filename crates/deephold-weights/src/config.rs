//! JSON files beside the weights: config.json, generation_config.json, tokenizer_config.json, the shard index.

use std::path::Path;

use serde_json::Value;

use crate::WeightsError;
use crate::files::read_bounded;

/// Far above any published config.json.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// A JSON object of at most 16 MiB. Values nest at most 128 deep (the parser's own limit).
///
/// # Errors
/// Not JSON, not an object, or too large.
pub fn parse(bytes: &[u8]) -> Result<Value, WeightsError> {
    parse_bounded(bytes, CONFIG_BYTES_MAX)
}

pub(crate) fn parse_bounded(bytes: &[u8], limit: u64) -> Result<Value, WeightsError> {
    if bytes.len() as u64 > limit {
        return Err(WeightsError::malformed(
            "the JSON document",
            format!(
                "has {}, at most {} are read",
                deephold_base::human_bytes(bytes.len() as u64),
                deephold_base::human_bytes(limit)
            ),
        ));
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| WeightsError::malformed("the JSON document", format!("cannot be parsed: {e}")))?;
    if !value.is_object() {
        return Err(WeightsError::malformed("the JSON document", "must be an object `{...}`"));
    }
    Ok(value)
}

/// Reads one; the limit holds while reading, whatever the file's length was said to be.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Value, WeightsError> {
    parse_bounded(&read_bounded(path, limit)?, limit).map_err(|e| e.in_file(path))
}

/// `None` where there is no such file.
pub(crate) fn read_optional(path: &Path, limit: u64) -> Result<Option<Value>, WeightsError> {
    if path.is_file() { read(path, limit).map(Some) } else { Ok(None) }
}

pub(crate) fn read_config(path: &Path) -> Result<Value, WeightsError> {
    read(path, CONFIG_BYTES_MAX)
}
