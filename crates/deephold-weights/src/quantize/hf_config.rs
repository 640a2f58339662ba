//! The numbers of config.json that a conversion needs, in both spellings of rope.

use serde_json::Value;

use crate::WeightsError;
use crate::error::shown;

/// Beyond every published size; products of two fit usize easily.
const SIZE_MAX: u64 = 1 << 31;

#[derive(Clone, Copy)]
pub(super) struct HfConfig<'a>(pub(super) &'a Value);

impl<'a> HfConfig<'a> {
    /// A number that must be there.
    pub(super) fn size(self, key: &str) -> Result<usize, WeightsError> {
        self.opt_size(key)?
            .ok_or_else(|| WeightsError::malformed(format!("config.json: `{key}`"), "is missing and needed"))
    }

    pub(super) fn opt_size(self, key: &str) -> Result<Option<usize>, WeightsError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_u64().filter(|n| *n <= SIZE_MAX) {
                Some(n) => Ok(Some(n as usize)),
                None => Err(WeightsError::malformed(
                    format!("config.json: `{key}`"),
                    format!("= {} is not a size", shown(&v.to_string())),
                )),
            },
        }
    }

    pub(super) fn number(self, key: &str) -> Option<f64> {
        self.0.get(key)?.as_f64().filter(|v| v.is_finite())
    }

    pub(super) fn flag(self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub(super) fn text(self, key: &str) -> Option<&'a str> {
        self.0.get(key)?.as_str()
    }

    pub(super) fn texts(self, key: &str) -> Option<Vec<&'a str>> {
        self.0.get(key)?.as_array()?.iter().map(Value::as_str).collect()
    }

    /// `rope_parameters`, else `rope_scaling`.
    pub(super) fn rope(self) -> Option<HfConfig<'a>> {
        let section = |key: &str| self.0.get(key).filter(|v| v.is_object());
        section("rope_parameters").or_else(|| section("rope_scaling")).map(HfConfig)
    }

    pub(super) fn rope_type(self) -> &'a str {
        let section = self.rope();
        section.and_then(|r| r.text("rope_type").or_else(|| r.text("type"))).unwrap_or("default")
    }

    pub(super) fn rope_theta(self) -> f64 {
        self.rope()
            .and_then(|r| r.number("rope_theta"))
            .or_else(|| self.number("rope_theta"))
            .unwrap_or(10_000.0)
    }

    /// D: said, or hidden / heads.
    pub(super) fn head_dim(self) -> Result<usize, WeightsError> {
        if let Some(dim) = self.opt_size("head_dim")? {
            return Ok(dim);
        }
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        match hidden.checked_div(heads) {
            Some(dim) if dim * heads == hidden => Ok(dim),
            _ => Err(WeightsError::malformed(
                "config.json: `num_attention_heads`",
                format!("= {heads} does not divide hidden_size = {hidden}"),
            )),
        }
    }
}
