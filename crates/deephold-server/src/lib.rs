//! The wire: HTTP and the bodies of APIs, who may ask, and that every answer is recorded.
//!
//! The binary starts it with [`Server::start`]. It is the only crate that knows HTTP and the wire's JSON; it computes nothing
//! of a model, writes no SQL, and reads neither environment nor configuration files.
//!
//! A request walks: `http` (connection, limits) -> `routes` (one table) -> `access` (bearer -> principal) -> `api` (parse) ->
//! `generation` (a `ValidRequest`, which cannot be bad) -> `backends` (our engine) -> `answering` (the API's writer) ->
//! `admission` (a permit is closed with its outcome: audit record and metrics come from that one place). The end of an answer is
//! sent only after its record is acknowledged.

pub mod access;
pub mod admin;
mod admission;
mod answering;
mod api;
mod app;
mod backends;
mod call;
mod error;
mod generation;
mod http;
mod idempotency;
mod metrics;
mod record;
mod replay;
mod routes;
mod tls;
mod usage_table;

pub use admission::Prices;
pub use app::ServerConfig;
pub use backends::{HostedEncoder, HostedModel, LoadProgress, ModelFacts, ModelLoader, NewModel};
pub use error::ServerError;
pub use http::Server;
pub use record::AuditPolicy;
pub use replay::{Comparison, Recorded, Replay};
pub use routes::{RouteInfo, routes, routes_table};
pub use tls::{TlsFiles, local_certificate};
pub use usage_table::{cost_of, date_of, usage_csv};
