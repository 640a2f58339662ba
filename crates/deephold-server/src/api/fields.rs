//! Reading JSON bodies field by field: what is not taken is refused by name, so no field is ever ignored.

use deephold_base::TokenId;
use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};

/// An object of a body, and where it stands.
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The body itself.
    pub(crate) fn of_body(value: Value) -> ApiResult<Self> {
        match value {
            Value::Object(map) => Ok(Self { path: String::new(), map }),
            _ => Err(ApiError::bad_request("the body must be a JSON object")),
        }
    }

    /// An object inside, at `path`.
    pub(crate) fn of(value: Value, path: impl Into<String>) -> ApiResult<Self> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(ApiError::param(path, format!("must be an object, not {}", kind(&other)))),
        }
    }

    /// The full name of a field.
    pub(crate) fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// Any value; null counts as absent.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|v| !v.is_null())
    }

    fn wrong<T>(&self, field: &str, want: &str, got: &Value) -> ApiResult<T> {
        Err(ApiError::param(self.name(field), format!("must be {want}, not {}", kind(got))))
    }

    pub(crate) fn string(&mut self, field: &str) -> ApiResult<Option<String>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => self.wrong(field, "a string", &other),
        }
    }

    pub(crate) fn need_string(&mut self, field: &str) -> ApiResult<String> {
        self.string(field)?.ok_or_else(|| ApiError::param(self.name(field), "is missing"))
    }

    pub(crate) fn bool(&mut self, field: &str) -> ApiResult<Option<bool>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => self.wrong(field, "true or false", &other),
        }
    }

    pub(crate) fn number(&mut self, field: &str, low: f64, high: f64) -> ApiResult<Option<f64>> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Some(x) = value.as_f64() else { return self.wrong(field, "a number", &value) };
        if !(low..=high).contains(&x) {
            return Err(ApiError::param(self.name(field), format!("= {x} must be {low} to {high}")));
        }
        Ok(Some(x))
    }

    pub(crate) fn integer(&mut self, field: &str, low: i64, high: i64) -> ApiResult<Option<i64>> {
        let Some(value) = self.take(field) else { return Ok(None) };
        // Some clients write whole numbers as 5.0.
        let whole = value.as_i64().or(value.as_f64().filter(whole_i64).map(|x| x as i64));
        let Some(x) = whole else { return self.wrong(field, "a whole number", &value) };
        if !(low..=high).contains(&x) {
            return Err(ApiError::param(self.name(field), format!("= {x} must be {low} to {high}")));
        }
        Ok(Some(x))
    }

    pub(crate) fn array(&mut self, field: &str) -> ApiResult<Option<Vec<Value>>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(other) => self.wrong(field, "a list", &other),
        }
    }

    pub(crate) fn object(&mut self, field: &str) -> ApiResult<Option<Fields>> {
        let path = self.name(field);
        self.take(field).map(|v| Self::of(v, path)).transpose()
    }

    /// Refuses a field that only its default value would leave without effect.
    pub(crate) fn only(&mut self, field: &str, allowed: &[Value], why: &str) -> ApiResult<()> {
        match self.take(field) {
            Some(value) if !allowed.contains(&value) => Err(ApiError::unsupported(self.name(field), why)),
            _ => Ok(()),
        }
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(self) -> ApiResult<()> {
        match self.map.iter().find(|(_, v)| !v.is_null()) {
            None => Ok(()),
            Some((field, _)) => {
                let field: String = field.chars().take(100).collect();
                Err(ApiError {
                    code: "unknown_parameter",
                    ..ApiError::param(self.name(&field), "is not known or not supported here")
                })
            }
        }
    }
}

/// Whole and within 64 bits.
fn whole_i64(x: &f64) -> bool {
    // The bounds themselves are powers of two, so they have no rounding.
    x.fract() == 0.0 && (-(2f64.powi(63))..2f64.powi(63)).contains(x)
}

/// Token ids; none where something else is among them.
pub(crate) fn token_ids(list: &[Value]) -> Option<Vec<TokenId>> {
    list.iter().map(token_id).collect()
}

/// A token id.
pub(crate) fn token_id(value: &Value) -> Option<TokenId> {
    TokenId::try_from(value.as_u64()?).ok()
}

/// A value's type, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
