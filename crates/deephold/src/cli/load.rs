//! Arguments of the load test.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use deephold_loadtest::{Length, Url};

#[derive(Args)]
pub(crate) struct LoadtestArgs {
    /// The server, as http://HOST:PORT
    pub(crate) url: Url,
    /// The model [default: the server's first]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// A file with the key [default: the variable OPENAI_API_KEY, where it is set]
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Whose certificates the server may show (PEM) [default: those that this system trusts]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// What is asked: chat or plain completions
    #[arg(long, value_enum, default_value_t = ApiArg::Chat)]
    pub(crate) api: ApiArg,
    /// How requests arrive
    #[arg(long, value_enum, default_value_t = ArrivalsArg::Poisson, conflicts_with = "trace")]
    pub(crate) arrivals: ArrivalsArg,
    /// Arrivals a second, on average
    #[arg(short, long, value_name = "N", default_value_t = 1.0)]
    pub(crate) rate: f64,
    /// Arrivals and lengths of a recorded trace: Azure's CSV or Mooncake's JSON lines
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// How many times as fast as the trace was recorded
    #[arg(long, value_name = "N", default_value_t = 1.0, requires = "trace")]
    pub(crate) speed: f64,
    /// Repeats the trace over 24 hours with a quiet night: at its pace at 14:00, at a quarter of it at 2:00
    #[arg(long, requires = "trace")]
    pub(crate) day: bool,
    /// Requests [default: 100, or those of the trace; with --duration as many as arrive]
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) requests: Option<usize>,
    /// Seconds in which requests arrive; their answers are waited for
    #[arg(short, long, value_name = "S")]
    pub(crate) duration: Option<f64>,
    /// Tokens of prompts: a mean, or MEAN:SPREAD
    #[arg(short, long, value_name = "TOKENS", default_value = "128:32")]
    pub(crate) prompt_tokens: Length,
    /// Tokens of answers: a mean, or MEAN:SPREAD
    #[arg(short, long, value_name = "TOKENS", default_value = "64:16")]
    pub(crate) output_tokens: Length,
    /// Shortens longer prompts to this, for a trace that a context cannot hold
    #[arg(long, value_name = "TOKENS")]
    pub(crate) prompt_max: Option<usize>,
    /// Shortens longer answers to this
    #[arg(long, value_name = "TOKENS")]
    pub(crate) output_max: Option<usize>,
    /// Requests under way at once at most: more wait here, so a slow server slows its arrivals down
    #[arg(short, long, value_name = "N")]
    pub(crate) concurrency: Option<usize>,
    /// Requests before the measurement, one after the other
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) warm_up: usize,
    /// Seconds after which a request has failed
    #[arg(long, value_name = "S", default_value_t = 600.0)]
    pub(crate) timeout: f64,
    /// What arrivals, lengths and texts are drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// A good answer begins within so many milliseconds (TTFT)
    #[arg(long, value_name = "MS", help_heading = "Objective")]
    pub(crate) slo_ttft: Option<f64>,
    /// Takes so many for each token after the first, on average
    #[arg(long, value_name = "MS", help_heading = "Objective")]
    pub(crate) slo_tpot: Option<f64>,
    /// And ends within so many (E2E)
    #[arg(long, value_name = "MS", help_heading = "Objective")]
    pub(crate) slo_e2e: Option<f64>,
    /// Draws distributions and requests under way into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Writes every request to this file, as CSV
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ApiArg {
    Chat,
    Completions,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArrivalsArg {
    /// Independent of one another: gaps are exponential
    Poisson,
    /// Evenly
    Fixed,
    /// All in one moment
    AtOnce,
}
