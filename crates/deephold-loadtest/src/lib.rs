//! How much a server holds, and how fast it answers while it does: a load test for any server with OpenAI's API.
//!
//! Called by the command line; calls nobody. A [`Plan`] says before the run when each request arrives and how long it is, so
//! that a slow server does not slow its own arrivals down (an open loop); the run itself follows from a seed. [`run`] keeps to the
//! plan over a [`Client`], and [`Report`] makes figures of what came: percentiles with their confidence, and how many requests
//! were within a stated objective. Everything but the client is pure.

mod client;
mod error;
mod picture;
mod plan;
mod report;
mod run;
mod statistics;
mod text;
mod trace;

pub use client::{Api, Client, ClientOptions, Url};
pub use error::LoadError;
pub use picture::picture;
pub use plan::{Arrivals, Length, Lengths, Plan, Planned};
pub use report::{Objective, Report, Summary};
pub use run::{Measured, Options, Outcome, Progress, run};
pub use statistics::{Percentile, Sorted};
pub use text::{Calibration, Texts};
pub use trace::{TraceOptions, read_trace};

#[cfg(test)]
mod tests;
