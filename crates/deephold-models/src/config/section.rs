//! Typed reading of config.json: every error names the key.

use serde_json::{Map, Value};

use crate::ModelError;
use crate::error::CONFIG;

/// Bounds that no published model comes near; with them no product of two or three dimensions can overflow.
pub(crate) const DIM_MAX: usize = 1 << 20;
/// Rows of the embedding table.
pub(crate) const VOCAB_MAX: usize = 1 << 24;
/// Decoder layers.
pub(crate) const LAYERS_MAX: usize = 1 << 10;
/// Experts of one layer.
pub(crate) const EXPERTS_MAX: usize = 1 << 12;
/// Positions.
pub(crate) const POSITIONS_MAX: usize = 1 << 28;

/// One JSON object of the configuration.
#[derive(Clone, Copy)]
pub(crate) struct Section<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(crate) fn root(config: &'a Value) -> Result<Self, ModelError> {
        match config {
            Value::Object(map) => Ok(Self { map, prefix: "" }),
            other => Err(ModelError::Config {
                file: CONFIG,
                key: "(root)".into(),
                problem: format!("must be an object, not {}", short(other)),
            }),
        }
    }

    /// The object under `key`, `None` where it is absent or null.
    pub(crate) fn object(&self, key: &'static str) -> Result<Option<Section<'a>>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Section { map, prefix: key })),
            Some(other) => Err(self.bad(key, format!("must be an object, not {}", short(other)))),
        }
    }

    /// The value under `key`, `None` where it is absent or null.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A whole number in `1..=max`, or `None`.
    pub(crate) fn opt_size(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        match self.opt_count(key, max)? {
            Some(0) => Err(self.bad(key, "must be at least 1, not 0")),
            other => Ok(other),
        }
    }

    /// A whole number in `1..=max`.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        self.opt_size(key, max)?.ok_or_else(|| self.bad(key, "is missing"))
    }

    /// A whole number in `0..=max`, or `None`.
    pub(crate) fn opt_count(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        // 4096.0 is how some tools write 4096.
        let whole = value.as_u64().or_else(|| {
            value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..=1e15).contains(f)).map(|f| f as u64)
        });
        let number =
            whole.ok_or_else(|| self.bad(key, format!("must be a whole number, not {}", short(value))))?;
        match usize::try_from(number) {
            Ok(n) if n <= max => Ok(Some(n)),
            _ => Err(self.bad(key, format!("= {number} is beyond the bound of {max}"))),
        }
    }

    /// A finite number in `low..=high`, or `None`.
    pub(crate) fn opt_float(&self, key: &str, low: f64, high: f64) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(f) if f.is_finite() && f >= low && f <= high => Ok(Some(f)),
            _ => {
                Err(self.bad(key, format!("must be a number from {low:e} to {high:e}, not {}", short(value))))
            }
        }
    }

    /// A finite number in `low..=high`.
    pub(crate) fn float(&self, key: &str, low: f64, high: f64) -> Result<f64, ModelError> {
        self.opt_float(key, low, high)?.ok_or_else(|| self.bad(key, "is missing"))
    }

    /// A flag, `default` where absent.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.bad(key, format!("must be true or false, not {}", short(other)))),
        }
    }

    /// A text, or `None`.
    pub(crate) fn opt_text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.bad(key, format!("must be a text, not {}", short(other)))),
        }
    }

    /// A list of texts, or `None`.
    pub(crate) fn opt_texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts =
            value.as_array().and_then(|items| items.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.bad(key, format!("must be a list of texts, not {}", short(value))))
    }

    /// Refuses any value but `only`; absent is taken as `only`.
    pub(crate) fn only_text(&self, key: &str, only: &[&str], hint: &str) -> Result<(), ModelError> {
        match self.opt_text(key)? {
            Some(text) if !only.contains(&text) => {
                Err(self.unsupported(key, &format!("\"{}\"", clip(text)), hint))
            }
            _ => Ok(()),
        }
    }

    /// An error about the value of `key`.
    pub(crate) fn bad(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::Config { file: CONFIG, key: self.path(key), problem: problem.into() }
    }

    /// An error about a value of `key` that is not built.
    pub(crate) fn unsupported(&self, key: &str, value: &str, hint: &str) -> ModelError {
        ModelError::UnsupportedConfig {
            file: CONFIG,
            key: self.path(key),
            value: value.into(),
            hint: hint.into(),
        }
    }

    fn path(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }
}

/// A value as an error message shows it: never longer than a line.
fn short(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(_) => "an object".into(),
        other => clip(&other.to_string()),
    }
}

fn clip(text: &str) -> String {
    let head: String = text.chars().take(40).collect();
    if head.len() < text.len() { format!("{head}...") } else { head }
}
