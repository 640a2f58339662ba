//! Arguments of `deephold serve` and `deephold config`, and where a server keeps what it knows.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{EngineArgs, parse_size};

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether file and environment are valid
    Check(ConfigCheckArgs),
    /// Show the value of every setting
    Show(ConfigShowArgs),
    /// Print a file with all settings, their defaults and what they do
    Reference,
}

#[derive(Args)]
pub(crate) struct ConfigCheckArgs {
    /// The file [default: deephold.toml here, else in deephold/ of the user's configuration folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ConfigShowArgs {
    /// The file [default: deephold.toml here, else in deephold/ of the user's configuration folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Say where each value comes from
    #[arg(long)]
    pub(crate) origin: bool,
    /// One JSON object of what is not a default, instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the server keeps keys, audit log and signing key.
#[derive(Args, Clone)]
pub(crate) struct StateArgs {
    /// The state folder [default: deephold in the user's state folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Settings [default: deephold.toml here, else in deephold/ of the user's configuration folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Where tenants, keys and usage lie.
#[derive(Args, Clone, Default)]
pub(crate) struct StoreArgs {
    /// A PostgreSQL database that several servers share, as postgres://USER@HOST/DATABASE [default: SQLite in the state folder]
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// A file with the database's password
    #[arg(long, value_name = "FILE")]
    pub(crate) store_password_file: Option<PathBuf>,
    /// Whose certificates the database may show (PEM); without it only one on this machine is spoken to
    #[arg(long, value_name = "FILE")]
    pub(crate) store_ca: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// Hugging Face folders or .gguf files, as PATH or NAME=PATH
    #[arg(value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// Address and port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub(crate) bind: std::net::SocketAddr,
    /// Speak TLS 1.3 also to this machine; to others it always is
    #[arg(long)]
    pub(crate) tls: bool,
    /// A certificate of the site (PEM, with those between it and its authority) [default: one of a local authority]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// A name or address that clients use, for the local certificate; again for several
    #[arg(long = "tls-name", value_name = "NAME")]
    pub(crate) tls_names: Vec<String>,
    /// Clients must show a certificate of one of these authorities (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Speak plain HTTP although other machines reach the address; recorded in the audit log
    #[arg(long, conflicts_with = "tls")]
    pub(crate) insecure_http: bool,
    /// What the audit log keeps of prompts and answers
    #[arg(long, value_enum, default_value_t = AuditPolicyArg::Full)]
    pub(crate) audit_policy: AuditPolicyArg,
    /// Sequences that compute at the same time, for each model
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) max_seqs: usize,
    /// Another name for a model, as NAME=MODEL; again for several
    #[arg(long = "alias", value_name = "NAME=MODEL")]
    pub(crate) aliases: Vec<String>,
    /// What happens while the audit log takes no records
    #[arg(long, value_enum, default_value_t = AuditFailureArg::Refuse)]
    pub(crate) audit_failure: AuditFailureArg,
    /// What is written to standard error of each request: never a prompt, an answer or a key
    #[arg(long, value_enum, default_value_t = LogArg::Text)]
    pub(crate) log: LogArg,
    /// Connections at a time; others wait. More than twice what may wait for a model (1,024 sequences): a tenant that floods then leaves
    /// room for the others
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) connections: u32,
    /// The largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = parse_size)]
    pub(crate) body_size: u64,
    /// Seconds for a whole request, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) request_time: u32,
    /// Seconds for requests to end once the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub(crate) drain_time: u32,
    /// Hours for which an answer to a request with an `Idempotency-Key` is kept; 0 for none
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(0..=720))]
    pub(crate) keep_answers: u32,
    /// What a million tokens of a model cost, as MODEL=PROMPT/CACHED/ANSWER; again for several
    #[arg(long = "price", value_name = "PRICE")]
    pub(crate) prices: Vec<String>,
    /// The currency of prices and budgets (ISO 4217)
    #[arg(long, value_name = "CODE", default_value = "EUR")]
    pub(crate) currency: String,
    /// Whether the kernel bounds what the program may do: no writing outside of its state, no other program, no connection
    #[arg(long, value_enum, default_value_t = SandboxArg::Auto)]
    pub(crate) sandbox: SandboxArg,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SandboxArg {
    /// As far as the kernel has the means
    Auto,
    /// The server does not start without all of it
    Require,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum AuditPolicyArg {
    Full,
    Hash,
    Redacted,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum AuditFailureArg {
    /// Requests are refused before they compute anything
    Refuse,
    /// Requests are answered unrecorded, which is counted and logged
    Answer,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LogArg {
    Off,
    Text,
    Json,
}
