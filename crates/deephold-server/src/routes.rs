//! One table of everything that can be asked. The router and the test of roles come from it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{MethodFilter, on};
use deephold_state::Role;
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::access::authenticate;
use crate::admission::Rates;
use crate::api::error::{ApiError, ApiResult, ErrorStyle};
use crate::api::openapi::Operation;
use crate::api::{admin, anthropic, deepseek, openai, openapi, ops};
use crate::app::App;
use crate::call::Call;
use crate::idempotency;

type Answer = Pin<Box<dyn Future<Output = ApiResult<Response<Body>>> + Send>>;

/// One line of the table.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// Who may; nobody is asked who he is where it is empty.
    pub(crate) roles: &'static [Role],
    pub(crate) handler: fn(Call) -> Answer,
    /// What the document of the API says of it.
    pub(crate) describe: fn() -> Operation,
    /// How its errors are written.
    pub(crate) errors: ErrorStyle,
    /// Parameters behind the path, each with what it is.
    pub(crate) query: &'static [(&'static str, &'static str)],
}

const EVERYBODY: &[Role] = &[Role::Admin, Role::Operator, Role::Auditor, Role::App];
const MODELS: &[Role] = &[Role::Admin, Role::Operator, Role::App];
const ADMINS: &[Role] = &[Role::Admin];
const WATCHERS: &[Role] = &[Role::Admin, Role::Operator, Role::Auditor];
const OPEN: &[Role] = &[];

const fn get(
    path: &'static str,
    roles: &'static [Role],
    handler: fn(Call) -> Answer,
    describe: fn() -> Operation,
) -> Route {
    Route { method: Method::GET, path, roles, handler, describe, errors: ErrorStyle::OpenAi, query: &[] }
}

const fn post(
    path: &'static str,
    roles: &'static [Role],
    handler: fn(Call) -> Answer,
    describe: fn() -> Operation,
) -> Route {
    Route { method: Method::POST, path, roles, handler, describe, errors: ErrorStyle::OpenAi, query: &[] }
}

/// As [`post`] to a model, with errors as other clients read them.
const fn post_as(
    errors: ErrorStyle,
    path: &'static str,
    handler: fn(Call) -> Answer,
    describe: fn() -> Operation,
) -> Route {
    Route { method: Method::POST, path, roles: MODELS, handler, describe, errors, query: &[] }
}

/// As [`get`], with parameters behind the path.
const fn get_with(
    path: &'static str,
    roles: &'static [Role],
    handler: fn(Call) -> Answer,
    describe: fn() -> Operation,
    query: &'static [(&'static str, &'static str)],
) -> Route {
    Route { method: Method::GET, path, roles, handler, describe, errors: ErrorStyle::OpenAi, query }
}

/// The table. A part of a path in braces is a parameter, which may hold slashes.
#[rustfmt::skip]
pub(crate) const ROUTES: &[Route] = &[
    get("/healthz", OPEN, |c| Box::pin(ops::healthz(c)), ops::describe_healthz),
    // As vLLM, SGLang and llama.cpp name it.
    get("/health", OPEN, |c| Box::pin(ops::healthz(c)), ops::describe_healthz),
    get("/readyz", OPEN, |c| Box::pin(ops::readyz(c)), ops::describe_readyz),
    get("/openapi.json", OPEN, |c| Box::pin(openapi::document(c)), ops::describe_openapi),
    get("/metrics", WATCHERS, |c| Box::pin(ops::metrics(c)), ops::describe_metrics),
    get("/v1/models", EVERYBODY, |c| Box::pin(openai::models::list(c)), openai::models::describe),
    get("/v1/models/{model}", EVERYBODY, |c| Box::pin(openai::models::one(c)), openai::models::describe_one),
    post("/v1/chat/completions", MODELS, |c| Box::pin(openai::chat::chat(c)), openai::describe::chat),
    post("/v1/completions", MODELS, |c| Box::pin(openai::completions::completions(c)), openai::describe::completions),
    post("/v1/responses", MODELS, |c| Box::pin(openai::responses::responses(c)), openai::responses::describe::responses),
    post("/v1/embeddings", MODELS, |c| Box::pin(openai::embeddings::embeddings(c)), openai::embeddings::describe),
    post("/v1/rerank", MODELS, |c| Box::pin(openai::rerank::rerank(c)), openai::rerank::describe),
    post("/v1/tokenize", MODELS, |c| Box::pin(openai::tokenize::tokenize(c)), openai::tokenize::describe_tokenize),
    post("/v1/detokenize", MODELS, |c| Box::pin(openai::tokenize::detokenize(c)), openai::tokenize::describe_detokenize),
    post_as(ErrorStyle::Anthropic, "/v1/messages", |c| Box::pin(anthropic::messages(c)), anthropic::describe::messages),
    post_as(ErrorStyle::Anthropic, "/v1/messages/count_tokens", |c| Box::pin(anthropic::count_tokens(c)), anthropic::describe::count_tokens),
    post_as(ErrorStyle::Anthropic, "/anthropic/v1/messages", |c| Box::pin(anthropic::messages(c)), anthropic::describe::messages),
    post_as(ErrorStyle::Anthropic, "/anthropic/v1/messages/count_tokens", |c| Box::pin(anthropic::count_tokens(c)), anthropic::describe::count_tokens),
    // Administration.
    get("/admin/v1/keys", WATCHERS, |c| Box::pin(admin::keys(c)), admin::describe_keys),
    post("/admin/v1/keys", ADMINS, |c| Box::pin(admin::create_key(c)), admin::describe_create_key),
    post("/admin/v1/keys/rotate", ADMINS, |c| Box::pin(admin::rotate_key(c)), admin::describe_rotate_key),
    post("/admin/v1/keys/revoke", ADMINS, |c| Box::pin(admin::revoke_key(c)), admin::describe_revoke_key),
    get("/admin/v1/tenants", WATCHERS, |c| Box::pin(admin::tenants(c)), admin::describe_tenants),
    post("/admin/v1/tenants", ADMINS, |c| Box::pin(admin::set_tenant(c)), admin::describe_set_tenant),
    post("/admin/v1/projects", ADMINS, |c| Box::pin(admin::set_project(c)), admin::describe_set_project),
    get_with("/admin/v1/usage", WATCHERS, |c| Box::pin(admin::usage(c)), admin::describe_usage, admin::USAGE_QUERY),
    get_with("/v1/usage", EVERYBODY, |c| Box::pin(admin::own_usage(c)), admin::describe_own_usage, admin::OWN_USAGE_QUERY),
    // As DeepSeek's own service has them.
    get("/models", EVERYBODY, |c| Box::pin(openai::models::list(c)), openai::models::describe),
    post_as(ErrorStyle::DeepSeek, "/chat/completions", |c| Box::pin(openai::chat::chat(c)), openai::describe::chat),
    post_as(ErrorStyle::DeepSeek, "/beta/chat/completions", |c| Box::pin(openai::chat::chat(c)), openai::describe::chat),
    post_as(ErrorStyle::DeepSeek, "/completions", |c| Box::pin(openai::completions::completions(c)), openai::describe::completions),
    post_as(ErrorStyle::DeepSeek, "/beta/completions", |c| Box::pin(openai::completions::completions(c)), openai::describe::completions),
    get("/user/balance", MODELS, |c| Box::pin(deepseek::balance(c)), deepseek::describe_balance),
];

/// A line of the table as others see it.
#[derive(Clone, Copy, Debug)]
pub struct RouteInfo {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Parameters are in braces.
    pub path: &'static str,
    /// Who may; everybody, without a key, where it is empty.
    pub roles: &'static [Role],
    /// What it does.
    pub summary: &'static str,
}

/// Every route: for tests and documents.
pub fn routes() -> impl Iterator<Item = RouteInfo> {
    ROUTES.iter().map(|r| RouteInfo {
        method: if r.method == Method::GET { "GET" } else { "POST" },
        path: r.path,
        roles: r.roles,
        summary: (r.describe)().summary,
    })
}

/// The table of `docs/routes.md`.
pub fn routes_table() -> String {
    let all = [Role::Admin, Role::Operator, Role::Auditor, Role::App];
    let mut out = "# Routes and who may ask them\n\nWritten by `cargo run -p deephold-server --example routes`; a test holds it against the router, \
                   and another asks every route as every role.\n\n| method | path | admin | operator | auditor | app | |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for route in routes() {
        let may = |role: &Role| match route.roles {
            [] => "open",
            roles if roles.contains(role) => "yes",
            _ => "",
        };
        let cells: Vec<&str> = all.iter().map(may).collect();
        out +=
            &format!("| {} | `{}` | {} | {} |\n", route.method, route.path, cells.join(" | "), route.summary);
    }
    out
}

/// Paths and methods that are not in the table, in metrics.
const UNKNOWN: (&str, ErrorStyle) = ("unknown", ErrorStyle::OpenAi);

/// The router over the table.
pub(crate) fn router(app: &Arc<App>) -> axum::Router {
    let mut router = axum::Router::new();
    for route in ROUTES {
        let filter = MethodFilter::try_from(route.method.clone()).unwrap_or(MethodFilter::GET);
        let handler = move |State(app): State<Arc<App>>, request: Request| async move {
            serve(app, route, request).await
        };
        router = router.route(&route.path.replace('{', "{*"), on(filter, handler));
    }
    let unknown = |State(app): State<Arc<App>>| async move {
        let error = ApiError::not_found("there is nothing at this path");
        answer(&app, UNKNOWN, &app.next_request_id(), Err(error))
    };
    let wrong_method = |State(app): State<Arc<App>>| async move {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let error = ApiError::new(status, "method_not_allowed", "this path is not asked with this method");
        answer(&app, UNKNOWN, &app.next_request_id(), Err(error))
    };
    router.fallback(unknown).method_not_allowed_fallback(wrong_method).with_state(Arc::clone(app))
}

async fn serve(app: Arc<App>, route: &'static Route, request: Request) -> Response<Body> {
    let (request_id, start) = (app.next_request_id(), Instant::now());
    let rates = Arc::default();
    let result = admitted(&app, route, &request_id, request, &rates).await;
    let mut response = answer(&app, (route.path, route.errors), &request_id, result);
    if let Some(rates) = rates.get() {
        rates.write(route.errors, response.headers_mut());
    }
    let (status, seconds) = (response.status().as_u16(), start.elapsed().as_secs_f64());
    // Probes and scrapes come every few seconds.
    if route.method == Method::GET && status == 200 {
        tracing::debug!(request_id, route = route.path, status, seconds, "request");
    } else {
        tracing::info!(request_id, route = route.path, status, seconds, "request");
    }
    response
}

async fn admitted(
    app: &Arc<App>,
    route: &Route,
    request_id: &str,
    request: Request,
    rates: &Arc<OnceLock<Rates>>,
) -> ApiResult<Response<Body>> {
    let (head, body) = request.into_parts();
    if !names_one_host(&head) {
        return Err(ApiError::bad_request("the request must name one host (RFC 9112, section 3.2)"));
    }
    let principal = match route.roles {
        [] => None,
        roles => {
            let who = authenticate(&head.headers, app).await?;
            if !roles.contains(&who.role) {
                return Err(ApiError::forbidden(format!(
                    "a key of role `{}` may not do this",
                    who.role.name()
                )));
            }
            if !who.may_ask(route.path) {
                return Err(ApiError::forbidden(format!("this key may not ask {}", route.path)));
            }
            Some(who)
        }
    };
    let too_large = || {
        let message = format!("the body is larger than {} bytes", app.limits.body_bytes);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    // What a head announces need not be waited for.
    if body.size_hint().lower() > app.limits.body_bytes as u64 {
        return Err(too_large());
    }
    let read =
        tokio::time::timeout(app.limits.body_time, Limited::new(body, app.limits.body_bytes).collect()).await;
    let read = read.map_err(|_| {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time")
    })?;
    let body = read.map_err(|e| match e.downcast_ref::<LengthLimitError>() {
        Some(_) => too_large(),
        None => ApiError::bad_request("the body could not be read"),
    })?;
    let call = Call {
        app: Arc::clone(app),
        request_id: request_id.to_owned(),
        principal,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        rates: Arc::clone(rates),
        body: body.to_bytes(),
    };
    let named = match route.method == Method::POST && route.roles == MODELS {
        true => idempotency::name(&head.headers, app.limits.keep_answers)?,
        false => None,
    };
    match (named, &call.principal) {
        (Some(name), Some(who)) => {
            let (key, body) = (who.key_id.clone(), call.body.clone());
            let work = (route.handler)(call);
            idempotency::once(app, &key, name, (route.path, &body), work).await
        }
        _ => (route.handler)(call).await,
    }
}

/// Whether a request of HTTP/1.1 names one host, as it must. Nothing is made of the name: no answer repeats it.
fn names_one_host(head: &axum::http::request::Parts) -> bool {
    if head.version != axum::http::Version::HTTP_11 {
        return true;
    }
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let is_host = |value: &HeaderValue| {
        let authority = value.to_str().ok().and_then(|text| text.parse::<axum::http::uri::Authority>().ok());
        authority.is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'))
    };
    hosts.next().is_some_and(is_host) && hosts.next().is_none()
}

/// Every response says which request it answers.
fn answer(
    app: &App,
    (route, errors): (&'static str, ErrorStyle),
    request_id: &str,
    result: ApiResult<Response<Body>>,
) -> Response<Body> {
    let mut response = result.unwrap_or_else(|e| e.response(errors));
    app.metrics.http(route, response.status().as_u16());
    if let Ok(value) = HeaderValue::from_str(request_id) {
        // The second name is Anthropic's.
        response.headers_mut().insert("request-id", value.clone());
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_the_routers_table() {
        let written = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/routes.md"));
        let hint = "it is stale: cargo run -p deephold-server --example routes > docs/routes.md";
        assert_eq!(written.ok().as_deref(), Some(&*routes_table()), "{hint}");
    }
}
