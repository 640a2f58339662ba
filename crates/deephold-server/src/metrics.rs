//! What Prometheus reads. Labels are bounded: models and routes are known at start, statuses are few.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deephold_engine::StepOutput;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
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

/// Counts of tokens or sequences, in powers of two.
fn counts() -> Histogram {
    Histogram::new(std::iter::successors(Some(1.0), |n| Some(n * 2.0)).take(14))
}

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    http_requests: Family<Labels, Counter>,
    requests: Family<Labels, Counter>,
    limited: Family<Labels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    cached_tokens: Family<Labels, Counter>,
    generation_tokens: Family<Labels, Counter>,
    steps: Family<Labels, Counter>,
    step_seconds: Seconds,
    step_tokens: Times,
    step_sequences: Times,
    ttft: Times,
    itl: Times,
    e2e: Times,
    queue: Times,
    audit: Histogram,
    unrecorded: Counter,
    running: Family<Labels, Gauge>,
    waiting: Family<Labels, Gauge>,
    paused: Family<Labels, Gauge>,
    cache_usage: Family<Labels, Gauge<f64, AtomicU64>>,
    prefix_queries: Family<Labels, Counter>,
    prefix_hits: Family<Labels, Counter>,
    preemptions: Family<Labels, Counter>,
    evictions: Family<Labels, Counter>,
    resident: Gauge,
}

impl Metrics {
    pub(crate) fn new(started: Duration) -> Self {
        let times = || Times::new_with_constructor(seconds as fn() -> Histogram);
        let sizes = || Times::new_with_constructor(counts as fn() -> Histogram);
        let mut out = Self {
            registry: Registry::default(),
            http_requests: Family::default(),
            requests: Family::default(),
            limited: Family::default(),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            generation_tokens: Family::default(),
            steps: Family::default(),
            step_seconds: Family::default(),
            step_tokens: sizes(),
            step_sequences: sizes(),
            ttft: times(),
            itl: times(),
            e2e: times(),
            queue: times(),
            audit: seconds(),
            unrecorded: Counter::default(),
            running: Family::default(),
            waiting: Family::default(),
            paused: Family::default(),
            cache_usage: Family::default(),
            prefix_queries: Family::default(),
            prefix_hits: Family::default(),
            preemptions: Family::default(),
            evictions: Family::default(),
            resident: Gauge::default(),
        };
        let mut r = Registry::default();
        out.register(&mut r);
        out.register_under_vllms_names(&mut r);
        let build = vec![("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)];
        r.register("deephold_build", "The program", Info::new(build));
        let since = Gauge::<f64, AtomicU64>::default();
        since.set(started.as_secs_f64());
        let help = "When the program started, since 1970";
        r.register_with_unit("process_start_time", help, Unit::Seconds, since);
        let help = "Memory of the program that is in RAM";
        r.register_with_unit("process_resident_memory", help, Unit::Bytes, out.resident.clone());
        out.registry = r;
        out
    }

    fn register(&self, r: &mut Registry) {
        let help = "Records of requests that the audit log did not take";
        r.register("deephold_unrecorded_requests", help, self.unrecorded.clone());
        r.register("deephold_http_requests", "HTTP requests by route and status", self.http_requests.clone());
        r.register("deephold_requests", "Requests for answers by model and outcome", self.requests.clone());
        r.register("deephold_limited_requests", "Requests that a limit refused", self.limited.clone());
        r.register("deephold_engine_step_seconds", "Time in steps of the engine", self.step_seconds.clone());
        r.register(
            "deephold_cache_usage",
            "Part of the cache's blocks in use, 0 to 1",
            self.cache_usage.clone(),
        );
        let help = "Time until a record was durable";
        r.register_with_unit("deephold_audit_latency", help, Unit::Seconds, self.audit.clone());
        let counters = [
            ("deephold_prompt_tokens", "Tokens of prompts", &self.prompt_tokens),
            ("deephold_cached_tokens", "Tokens of prompts found in the prefix cache", &self.cached_tokens),
            ("deephold_generation_tokens", "Tokens of answers", &self.generation_tokens),
            ("deephold_engine_steps", "Steps of the engine", &self.steps),
            ("deephold_prefix_queries", "Tokens looked for in the prefix cache", &self.prefix_queries),
            ("deephold_prefix_hits", "Tokens found in the prefix cache", &self.prefix_hits),
            ("deephold_preemptions", "Sequences that lost their blocks to others", &self.preemptions),
            ("deephold_cache_evictions", "Cached blocks taken for other content", &self.evictions),
        ];
        for (name, help, family) in counters {
            r.register(name, help, family.clone());
        }
        let sizes = [
            ("deephold_step_tokens", "Tokens computed in one step", &self.step_tokens),
            ("deephold_step_sequences", "Sequences that took part in one step", &self.step_sequences),
        ];
        for (name, help, family) in sizes {
            r.register(name, help, family.clone());
        }
        let times = [
            ("deephold_time_to_first_token", "Time until the first token", &self.ttft),
            ("deephold_inter_token_latency", "Time between two deliveries of an answer", &self.itl),
            ("deephold_e2e_request_latency", "Time of whole requests", &self.e2e),
            ("deephold_request_queue_time", "Time before a request first ran", &self.queue),
        ];
        for (name, help, family) in times {
            r.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        let gauges = [
            ("deephold_requests_running", "Sequences that compute", &self.running),
            ("deephold_requests_waiting", "Sequences that wait", &self.waiting),
            ("deephold_requests_paused", "Sequences whose readers are slow", &self.paused),
        ];
        for (name, help, family) in gauges {
            r.register(name, help, family.clone());
        }
    }

    /// The same values as vLLM's dashboards and autoscalers look for them (docs.vllm.ai, "Production Metrics").
    fn register_under_vllms_names(&self, r: &mut Registry) {
        let help = "As vLLM calls it";
        for (name, family) in
            [("vllm:num_requests_running", &self.running), ("vllm:num_requests_waiting", &self.waiting)]
        {
            r.register(name, help, family.clone());
        }
        for (name, family) in [
            ("vllm:prompt_tokens", &self.prompt_tokens),
            ("vllm:generation_tokens", &self.generation_tokens),
            ("vllm:num_preemptions", &self.preemptions),
            ("vllm:prefix_cache_queries", &self.prefix_queries),
            ("vllm:prefix_cache_hits", &self.prefix_hits),
        ] {
            r.register(name, help, family.clone());
        }
        for (name, family) in [
            ("vllm:time_to_first_token", &self.ttft),
            ("vllm:inter_token_latency", &self.itl),
            ("vllm:e2e_request_latency", &self.e2e),
            ("vllm:request_queue_time", &self.queue),
        ] {
            r.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        r.register("vllm:kv_cache_usage_perc", help, self.cache_usage.clone());
    }

    /// A model that is gone has no state; what it counted stays counted.
    pub(crate) fn forget(&self, model: &str) {
        let labels = model_label(model);
        self.running.remove(&labels);
        self.waiting.remove(&labels);
        self.paused.remove(&labels);
        self.cache_usage.remove(&labels);
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
        self.step_tokens.get_or_create(&labels).observe(step.num_tokens as f64);
        self.step_sequences.get_or_create(&labels).observe(step.num_seqs as f64);
    }

    /// Where an answer notes the times between its deliveries: found once, because there is one for every token.
    pub(crate) fn gaps(&self, model: &str) -> Histogram {
        self.itl.get_or_create_owned(&model_label(model))
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
        let labels = vec![("model_name", model.to_owned()), ("outcome", outcome.to_owned())];
        self.requests.get_or_create(&labels).inc();
    }

    /// A limit refused a request.
    pub(crate) fn limited(&self, limit: &'static str) {
        self.limited.get_or_create(&vec![("limit", limit.to_owned())]).inc();
    }

    /// The audit log did not take a record.
    pub(crate) fn unrecorded(&self) {
        self.unrecorded.inc();
    }

    pub(crate) fn audit(&self, took: Duration) {
        self.audit.observe(took.as_secs_f64());
    }

    /// The text that a scrape gets; what the engines count themselves is read now.
    pub(crate) fn text<'a>(&self, models: impl Iterator<Item = &'a Hosted>, resident: Option<u64>) -> String {
        for model in models {
            let (labels, stats) = (model_label(&model.name), model.engine.stats());
            self.running.get_or_create(&labels).set(stats.running as i64);
            self.waiting.get_or_create(&labels).set(stats.waiting as i64);
            self.paused.get_or_create(&labels).set(stats.paused as i64);
            let usage = stats.used_blocks as f64 / stats.num_blocks.max(1) as f64;
            self.cache_usage.get_or_create(&labels).set(usage);
            for (family, count) in [
                (&self.prefix_queries, stats.prefix_query_tokens),
                (&self.prefix_hits, stats.prefix_hit_tokens),
                (&self.preemptions, stats.preemptions),
                (&self.evictions, stats.evictions),
            ] {
                family.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
            }
        }
        if let Some(bytes) = resident {
            self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}

/// As vLLM labels it, so that its dashboards find these.
fn model_label(model: &str) -> Labels {
    vec![("model_name", model.to_owned())]
}
