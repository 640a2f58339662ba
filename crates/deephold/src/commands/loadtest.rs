//! `deephold loadtest`: how much a running server holds.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use deephold_base::{ErrorCode, human_duration};
use deephold_loadtest::{
    Api, Arrivals, Calibration, Client, ClientOptions, Lengths, Objective, Options, Outcome, Percentile,
    Plan, Planned, Report, Summary, Texts, TraceOptions, picture, read_trace, run as keep_to,
};
use serde_json::json;

use super::print_json;
use crate::cli::{ApiArg, ArrivalsArg, LoadtestArgs};
use crate::console::{note, out, plain};
use crate::fail::{bad_argument, fail};
use crate::input::read_text_within;
use crate::{system, terminal};

/// Requests where nothing is said.
const REQUESTS: usize = 100;

/// A client that sends later than this is the limit of its own test.
const LATE_S: f64 = 0.02;

/// The variable that OpenAI's clients read a key from.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// A key file at most.
const KEY_BYTES_MAX: u64 = 4096;

pub(crate) fn run(args: &LoadtestArgs) -> Result<ExitCode> {
    let mut plan = plan(args)?;
    let shortened = plan.shorten(args.prompt_max, args.output_max);
    let timeout = seconds("--timeout", args.timeout)?;
    let api = match args.api {
        ApiArg::Chat => Api::Chat,
        ApiArg::Completions => Api::Completions,
    };
    let options = ClientOptions { api, key: key(args)?, ca: args.ca.clone(), timeout };
    system::raise_descriptors();
    terminal::catch_interrupts();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut client = Client::new(args.url.clone(), options)?;
    let calibration = runtime.block_on(async {
        client.choose_model(args.model.as_deref()).await?;
        client.calibrate(args.seed).await
    })?;
    if calibration.is_none() {
        note!("the server does not say how many tokens a prompt has: lengths of prompts are estimates");
    }
    if !client.keeps_lengths() {
        note!("the server does not take `ignore_eos`: answers end where the model ends them");
    }
    let texts = Texts::new(calibration.unwrap_or(Calibration::ASSUMED), plan.block_tokens);
    let client = Arc::new(client);
    runtime.block_on(async {
        let warm_up = plan.requests.iter().take(args.warm_up);
        for (i, request) in warm_up.enumerate() {
            // Texts of their own, so that no prefix of the measurement is in a cache.
            let seed = args.seed ^ (i as u64 + (1 << 40));
            let prompt_tokens = request.prompt_tokens.min(256);
            let planned = Planned { prompt_tokens, seed, blocks: Vec::new(), ..request.clone() };
            client.ask(&texts.prompt(&planned), 8).await;
        }
    });
    let bar = terminal::step_bar("answers", plan.requests.len() as u64);
    let outcome = runtime.block_on(keep_to(
        Arc::clone(&client),
        &plan,
        &texts,
        Options { at_once_max: args.concurrency },
        &mut |progress| {
            bar.set_position(progress.ended as u64);
            let under_way = progress.sent - progress.ended;
            bar.set_message(match progress.failed {
                0 => format!("{under_way} under way"),
                failed => format!("{under_way} under way, {failed} failed"),
            });
            !terminal::interrupted()
        },
    ));
    bar.finish_and_clear();
    let report = Report::new(&plan, &outcome, objective(args)?);
    if let Some(path) = &args.svg {
        let title = format!("{}, {}", args.url, client.model());
        write(path, picture(&title, &outcome, &report.objective).as_bytes())?;
    }
    if let Some(path) = &args.csv {
        write(path, &table(&outcome)?)?;
    }
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["url"] = json!(args.url.to_string());
        value["model"] = json!(client.model());
        value["seed"] = json!(args.seed);
        value["shortened"] = json!(shortened);
        print_json(&value)?;
    } else {
        show(&report, shortened)?;
    }
    if report.is_stopped {
        return Err(fail(ErrorCode::Cancelled, "stopped before its end"));
    }
    if report.succeeded == 0 {
        return Err(fail(ErrorCode::Io, "no request was answered"));
    }
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &LoadtestArgs) -> Result<Plan> {
    let duration = args.duration.map(|d| seconds("--duration", d)).transpose()?;
    if let Some(path) = &args.trace {
        let (speed, count, is_day) = (args.speed, args.requests, args.day);
        let options = TraceOptions { speed, count, duration, is_day, seed: args.seed };
        return Ok(read_trace(path, &options)?);
    }
    let arrivals = match args.arrivals {
        ArrivalsArg::Poisson => Arrivals::Poisson(args.rate),
        ArrivalsArg::Fixed => Arrivals::Fixed(args.rate),
        ArrivalsArg::AtOnce => Arrivals::AtOnce,
    };
    let lengths = Lengths { prompt: args.prompt_tokens, output: args.output_tokens };
    let count = args.requests.or(if duration.is_some() { None } else { Some(REQUESTS) });
    Ok(Plan::new(arrivals, lengths, count, duration, args.seed)?)
}

fn seconds(flag: &str, value: f64) -> Result<Duration> {
    let duration = Duration::try_from_secs_f64(value).ok().filter(|d| !d.is_zero());
    duration.ok_or_else(|| bad_argument(format!("{flag} {value}: give seconds above 0")))
}

fn objective(args: &LoadtestArgs) -> Result<Objective> {
    let ms = |flag: &str, value: Option<f64>| match value {
        Some(v) if !(v > 0.0 && v.is_finite()) => {
            Err(bad_argument(format!("{flag} {v}: give milliseconds above 0")))
        }
        v => Ok(v.map(|v| v / 1e3)),
    };
    Ok(Objective {
        ttft_s: ms("--slo-ttft", args.slo_ttft)?,
        tpot_s: ms("--slo-tpot", args.slo_tpot)?,
        e2e_s: ms("--slo-e2e", args.slo_e2e)?,
    })
}

/// The key of a file, or of the environment; none is no error, since some servers ask for none.
fn key(args: &LoadtestArgs) -> Result<Option<String>> {
    let text = match &args.key_file {
        Some(path) => read_text_within(path, KEY_BYTES_MAX)?,
        None => std::env::var(KEY_VARIABLE).unwrap_or_default(),
    };
    let key = text.trim();
    if key.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(bad_argument(
            "the key has characters that no header may hold; give it alone in its file",
        ));
    }
    Ok((!key.is_empty()).then(|| key.to_owned()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn table(outcome: &Outcome) -> Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record([
        "request",
        "sent_s",
        "late_s",
        "ttft_s",
        "e2e_s",
        "prompt_tokens",
        "output_tokens",
        "error",
    ])?;
    for r in &outcome.requests {
        let count = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        table.write_record([
            r.place.to_string(),
            format!("{:.6}", r.sent.as_secs_f64()),
            format!("{:.6}", r.late.as_secs_f64()),
            r.first.map(|d| format!("{:.6}", d.as_secs_f64())).unwrap_or_default(),
            format!("{:.6}", r.whole.as_secs_f64()),
            count(r.prompt_tokens),
            count(r.output_tokens),
            r.error.clone().unwrap_or_default(),
        ])?;
    }
    Ok(table.into_inner()?)
}

fn show(report: &Report, shortened: usize) -> Result<()> {
    let planned = report.rate_planned.map(|r| format!("{r:.2} a second asked, ")).unwrap_or_default();
    out!(
        "{} answers in {:.1} s: {planned}{:.2} reached, at most {} at once; {} failed",
        report.succeeded,
        report.duration_s,
        report.rate_reached,
        report.at_once_max,
        report.failed
    )?;
    for (problem, count) in &report.errors {
        out!("  {count} x {}", plain(problem))?;
    }
    if report.left_out > 0 {
        out!("  {} were never sent, or not waited for", report.left_out)?;
    }
    if let (Some(prompt), Some(output)) = (&report.prompt_tokens, &report.output_tokens) {
        out!(
            "tokens: prompts {:.0} on average ({:.0} to {:.0}), answers {:.0} ({:.0} to {:.0}); {:.1} a second in all",
            prompt.mean,
            prompt.min,
            prompt.max,
            output.mean,
            output.min,
            output.max,
            report.output_tokens_per_s
        )?;
    }
    if shortened > 0 {
        out!("{shortened} requests of the trace were shortened")?;
    }
    out!("{:24} {:>10} {:>28} {:>28} {:>28}", "", "mean", "p50", "p90", "p99")?;
    for (name, summary) in [
        ("first token (TTFT)", &report.ttft_s),
        ("each after it (TPOT)", &report.tpot_s),
        ("gaps as they came (ITL)", &report.itl_s),
        ("end to end (E2E)", &report.e2e_s),
    ] {
        let Some(s) = summary else { continue };
        out!(
            "{name:24} {:>10} {:>28} {:>28} {:>28}",
            time(s.mean),
            with_interval(&s.p50),
            with_interval(&s.p90),
            with_interval(&s.p99)
        )?;
    }
    if let Some(goodput) = &report.goodput {
        out!(
            "within the objective: {:.1} % (95 %: {:.1} to {:.1}), {:.2} requests a second",
            100.0 * goodput.share,
            100.0 * goodput.share_low,
            100.0 * goodput.share_high,
            goodput.requests_per_s
        )?;
    }
    // Where all come at once, the last cannot but be late.
    warn_if_late(report.late_s.as_ref().filter(|_| report.rate_planned.is_some()));
    Ok(())
}

fn warn_if_late(late: Option<&Summary>) {
    if let Some(late) = late.filter(|l| l.p99.value > LATE_S) {
        note!(
            "requests were sent late (p99 {}): this machine, or --concurrency, is the limit and not the server",
            time(late.p99.value)
        );
    }
}

fn time(seconds: f64) -> String {
    human_duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// With its interval of 95 %, where the sample is large enough.
fn with_interval(p: &Percentile) -> String {
    match (p.low, p.high) {
        (Some(low), Some(high)) => format!("{} [{}, {}]", time(p.value), time(low), time(high)),
        _ => time(p.value),
    }
}
