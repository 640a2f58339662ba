//! What callers are told when something is wrong.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use deephold_base::ErrorCode;
use deephold_engine::EngineError;
use deephold_tokenizer::TokenizerError;
use serde_json::{Value, json};

/// Whose clients read an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorStyle {
    OpenAi,
    /// As OpenAI's; what is wrong with a field has a status of its own.
    DeepSeek,
    Anthropic,
}

/// A refusal.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// What is wrong and what to do; never a path of this machine, a key or a prompt.
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) code: &'static str,
    /// Seconds after which it is worth trying again.
    pub(crate) retry_after: Option<u64>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// 400 that names the field.
    pub(crate) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("`{param}` {}", message.into());
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// 400 for a field that exists elsewhere but is not offered here.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: "unsupported_value", ..Self::param(param, message) }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_denied", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::try_again(StatusCode::SERVICE_UNAVAILABLE, code, message, 1)
    }

    /// What may be asked again after so many seconds.
    pub(crate) fn try_again(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        retry_after_s: u64,
    ) -> Self {
        Self { retry_after: Some(retry_after_s), ..Self::new(status, code, message) }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    fn openai_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            402 => "insufficient_quota",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500..=599 => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500..=599 => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub(crate) fn body(&self, style: ErrorStyle) -> Value {
        match style {
            ErrorStyle::OpenAi | ErrorStyle::DeepSeek => json!({ "error": {
                "message": self.message,
                "type": self.openai_type(),
                "param": self.param,
                "code": self.code,
            }}),
            ErrorStyle::Anthropic => json!({ "type": "error", "error": {
                "type": self.anthropic_type(),
                "message": self.message,
            }}),
        }
    }

    pub(crate) fn response(&self, style: ErrorStyle) -> Response<Body> {
        let is_parameters = self.status == StatusCode::BAD_REQUEST && self.param.is_some();
        let status = match style {
            ErrorStyle::DeepSeek if is_parameters => StatusCode::UNPROCESSABLE_ENTITY,
            _ => self.status,
        };
        let mut response = json_response(status, &self.body(style));
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let value = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let value = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

impl From<EngineError> for ApiError {
    fn from(e: EngineError) -> Self {
        match (&e, e.code()) {
            (EngineError::TenantBusy { .. }, _) => {
                Self::try_again(StatusCode::TOO_MANY_REQUESTS, "queue_full", e.to_string(), 1)
            }
            (EngineError::Parameter { param, problem }, _) => Self::param(*param, problem.clone()),
            (EngineError::PromptTooLong { .. } | EngineError::CacheTooSmall { .. }, _) => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", e.to_string())
            }
            (_, ErrorCode::Busy) => Self::unavailable("queue_full", e.to_string()),
            (_, ErrorCode::InvalidInput | ErrorCode::LimitExceeded) => Self::bad_request(e.to_string()),
            (EngineError::Stopped, _) => Self::unavailable("model_unloaded", "the model has been unloaded"),
            _ => {
                tracing::error!(error = %e, "the engine failed");
                Self::internal("the engine failed; the server's log says why")
            }
        }
    }
}

impl From<TokenizerError> for ApiError {
    fn from(e: TokenizerError) -> Self {
        match e {
            TokenizerError::Template(_) | TokenizerError::Encode(_) | TokenizerError::TooLarge { .. } => {
                Self::param("messages", format!("cannot be written for this model: {e}"))
            }
            TokenizerError::NoTemplate => {
                Self::unsupported("messages", "need a chat template, which this model lacks")
            }
            _ => {
                tracing::error!(error = %e, "the tokenizer failed");
                Self::internal("the tokenizer failed; the server's log says why")
            }
        }
    }
}
