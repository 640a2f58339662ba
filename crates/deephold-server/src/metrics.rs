//! What Prometheus reads. Labels are bounded: models and routes are known at start, statuses are few.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use deephold_engine::StepOutput;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::backends::Hosted;
use crate::generation::{Generation, Usage};

type Labels = Vec<(&'static str, String)>;
type Times = Family<Labels, Histogram, fn() -> Histogram>;
type Seconds = Family<Labels, Counter<f64, AtomicU64>>;

/// From a millisecond to minutes.
fn seconds() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    ])
}

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    http_requests: Family<Labels, Counter>,
    requests: Family<Labels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    cached_tokens: Family<Labels, Counter>,
    generation_tokens: Family<Labels, Counter>,
    steps: Family<Labels, Counter>,
    step_seconds: Seconds,
    ttft: Times,
    itl: Times,
    e2e: Times,
    queue: Times,
    audit: Histogram,
    running: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
    cache_usage: Family<Labels, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let times = || Times::new_with_constructor(seconds as fn() -> Histogram);
        let mut out = Self {
            registry: Registry::default(),
            http_requests: Family::default(),
            requests: Family::default(),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            generation_tokens: Family::default(),
            steps: Family::default(),
            step_seconds: Family::default(),
            ttft: times(),
            itl: times(),
            e2e: times(),
            queue: times(),
            audit: seconds(),
            running: Family::default(),
            waiting: Family::default(),
            cache_usage: Family::default(),
        };
        let r = &mut out.registry;
        r.register("deephold_http_requests", "HTTP requests by route and status", out.http_requests.clone());
        r.register("deephold_requests", "Requests for answers by model and outcome", out.requests.clone());
        r.register("deephold_prompt_tokens", "Tokens of prompts", out.prompt_tokens.clone());
        r.register(
            "deephold_cached_tokens",
            "Tokens of prompts found in the prefix cache",
            out.cached_tokens.clone(),
        );
        r.register("deephold_generation_tokens", "Tokens of answers", out.generation_tokens.clone());
        r.register("deephold_engine_steps", "Steps of the engine", out.steps.clone());
        r.register("deephold_engine_step_seconds", "Time in steps of the engine", out.step_seconds.clone());
        let times = [
            ("deephold_time_to_first_token", "Time until the first token", &out.ttft),
            ("deephold_inter_token_latency", "Time between two deliveries of an answer", &out.itl),
            ("deephold_e2e_request_latency", "Time of whole requests", &out.e2e),
            ("deephold_request_queue_time", "Time before a request first ran", &out.queue),
        ];
        for (name, help, family) in times {
            r.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        r.register_with_unit(
            "deephold_audit_latency",
            "Time until a record was durable",
            Unit::Seconds,
            out.audit.clone(),
        );
        r.register("deephold_requests_running", "Sequences that compute", out.running.clone());
        r.register("deephold_requests_waiting", "Sequences that wait", out.waiting.clone());
        r.register(
            "deephold_cache_usage",
            "Part of the cache's blocks in use, 0 to 1",
            out.cache_usage.clone(),
        );
        out
    }

    pub(crate) fn http(&self, route: &'static str, status: u16) {
        self.http_requests
            .get_or_create(&vec![("route", route.to_owned()), ("status", status.to_string())])
            .inc();
    }

    pub(crate) fn step(&self, model: &str, step: &StepOutput) {
        let labels = model_label(model);
        self.steps.get_or_create(&labels).inc();
        self.step_seconds.get_or_create(&labels).inc_by(step.duration.as_secs_f64());
    }

    /// A delivery of an answer's tokens, so long after the one before.
    pub(crate) fn delivered(&self, model: &str, gap: Duration) {
        self.itl.get_or_create(&model_label(model)).observe(gap.as_secs_f64());
    }

    /// The times of a request that is over.
    pub(crate) fn finished(&self, model: &str, generation: &Generation) {
        let labels = model_label(model);
        if let Some(first) = generation.first_token {
            self.ttft.get_or_create(&labels).observe(first.as_secs_f64());
        }
        self.queue.get_or_create(&labels).observe(generation.queue_time.as_secs_f64());
        self.e2e.get_or_create(&labels).observe(generation.started.elapsed().as_secs_f64());
    }

    pub(crate) fn answered(&self, model: &str, usage: Usage, outcome: &'static str) {
        let labels = model_label(model);
        self.prompt_tokens.get_or_create(&labels).inc_by(usage.prompt_tokens as u64);
        self.cached_tokens.get_or_create(&labels).inc_by(usage.cached_tokens as u64);
        self.generation_tokens.get_or_create(&labels).inc_by(usage.completion_tokens as u64);
        let labels = vec![("model", model.to_owned()), ("outcome", outcome.to_owned())];
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn audit(&self, took: Duration) {
        self.audit.observe(took.as_secs_f64());
    }

    /// The text that a scrape gets; gauges are read now.
    pub(crate) fn text<'a>(&self, models: impl Iterator<Item = &'a Hosted>) -> String {
        for model in models {
            let (labels, stats) = (model_label(&model.name), model.engine.stats());
            self.running.get_or_create(&labels).set(stats.running as i64);
            self.waiting.get_or_create(&labels).set(stats.waiting as i64);
            let usage = stats.used_blocks as f64 / stats.num_blocks.max(1) as f64;
            self.cache_usage.get_or_create(&labels).set(usage);
        }
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}

fn model_label(model: &str) -> Labels {
    vec![("model", model.to_owned())]
}
