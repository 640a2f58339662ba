//! What the wire costs: the same requests to an engine alone and over HTTP with keys, events and audit, in turns.
//!
//! `cargo run --release -p deephold-server --example gateway -- MODEL [STREAMS [TOKENS [ROUNDS [THREADS]]]]`
#![allow(missing_docs, reason = "a program to measure with")]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deephold_audit::{AuditLog, Options, SigningKey};
use deephold_base::{SystemClock, TokenId};
use deephold_engine::{EngineConfig, EngineCore, EngineHandle, Machine, Request, SamplingParams};
use deephold_kernels::{CacheDType, Isa, Ops, PoolOptions, ThreadPool};
use deephold_models::{LoadOptions, Model};
use deephold_server::access::{KeyWish, issue_key};
use deephold_server::{HostedModel, ModelFacts, Server, ServerConfig};
use deephold_state::{Limits, Role, SqlStore};
use deephold_testkit::TempDir;
use deephold_tokenizer::Tokenizer;
use deephold_weights::Checkpoint;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Tokens of each prompt.
const PROMPT: usize = 64;

/// What one side did in one round.
struct Round {
    /// Until the first token, for each stream.
    first: Vec<Duration>,
    whole: Duration,
    tokens: usize,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: gateway MODEL [STREAMS [TOKENS [ROUNDS [THREADS]]]]")?;
    let mut number = |default: usize| args.next().map_or(Ok(default), |n| n.parse());
    let (streams, tokens, rounds, threads) = (number(1)?, number(128)?, number(9)?, number(0)?);

    let pool = ThreadPool::new(PoolOptions { threads, pin: false });
    let machine = Machine::new(Arc::new(Ops::new(Isa::detect(), Arc::new(pool))), u64::MAX);
    let checkpoint = Arc::new(Checkpoint::open(Path::new(&path))?);
    let model = deephold_models::load(&checkpoint, machine.ops(), &LoadOptions::default(), &mut |_| {})?;
    let model: Arc<dyn Model> = Arc::from(model);
    let clock = Arc::new(SystemClock::default());
    let core = || -> Result<EngineCore> {
        let context = PROMPT + tokens + 1;
        let config = EngineConfig::for_model(model.info(), context, streams, CacheDType::F16, 1 << 30)?;
        Ok(EngineCore::new(Arc::clone(&model), Arc::clone(&machine), config, clock.clone())?)
    };
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
    let stop_token_ids = tokenizer.stop_ids().to_vec();
    // No end before the last token, so that rounds are equally long.
    let logit_bias = stop_token_ids.iter().map(|id| (*id, -100.0)).collect();
    let vocab = tokenizer.vocab_size();
    let params = SamplingParams {
        temperature: 1.0,
        max_tokens: tokens,
        stop_token_ids,
        logit_bias,
        logprobs: Some(0),
        ..Default::default()
    };
    let prompt = |seed: usize| -> Vec<TokenId> {
        (0..PROMPT).map(|i| ((i * 31 + seed * 7919) % (vocab - 300) + 280) as TokenId).collect()
    };

    let dir = TempDir::new("gateway");
    let store = SqlStore::sqlite(&dir.join("state.db"))?;
    let wish = KeyWish {
        tenant: None,
        project: None,
        owner: "gateway".into(),
        role: Role::App,
        models: vec![],
        endpoints: vec![],
        limits: Limits::default(),
        expires_ms: None,
    };
    let key = issue_key(&store, &wish, 0)?.secret;
    let signing = SigningKey::open_or_create(&dir.join("audit.key"))?;
    let log = AuditLog::open(&dir.join("audit"), signing, Options::default(), clock.clone())?;
    let hosted = HostedModel {
        name: "m".into(),
        core: core()?,
        tokenizer,
        chat: None,
        defaults: params.clone(),
        facts: ModelFacts::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let config = ServerConfig { bind: SocketAddr::from(([127, 0, 0, 1], 0)), ..ServerConfig::default() };
    let server =
        runtime.block_on(Server::start(config, Arc::new(store), log, vec![hosted.into()], clock.clone()))?;
    let address = server.address();
    runtime.spawn(server.serve(std::future::pending()));
    let bare = EngineHandle::spawn(core()?)?;

    let (mut alone, mut over_http) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let seeds = round * streams..(round + 1) * streams;
        let one = |seed: usize| -> Result<(Duration, usize)> {
            let params = SamplingParams { seed: Some(seed as u64), ..params.clone() };
            let start = Instant::now();
            let mut stream = bare.submit(Request::new(seed as u64, prompt(seed), params))?;
            let (mut first, mut count) = (None, 0);
            while let Some(output) = stream.next_output() {
                first.get_or_insert_with(|| start.elapsed());
                count += output.tokens.len();
            }
            Ok((first.ok_or("no token")?, count))
        };
        let a = side(seeds.clone(), &one)?;
        let b = side(seeds, &|seed| ask(address, &key, &prompt(seed), seed, &params))?;
        if a.tokens != b.tokens {
            return Err(format!("{} tokens alone, {} over HTTP", a.tokens, b.tokens).into());
        }
        // The first round warms caches and connections up.
        if round > 0 {
            alone.push(a);
            over_http.push(b);
        }
    }
    println!(
        "{streams} streams, {rounds} rounds, {} tokens a round, medians",
        alone.iter().map(|r| r.tokens).sum::<usize>() / rounds
    );
    let first =
        |rounds: &[Round]| median(rounds.iter().flat_map(|r| r.first.iter().map(Duration::as_secs_f64)));
    let rate = |rounds: &[Round]| median(rounds.iter().map(|r| r.tokens as f64 / r.whole.as_secs_f64()));
    let token = |rounds: &[Round]| median(rounds.iter().map(|r| r.whole.as_secs_f64() / r.tokens as f64));
    for (name, rounds) in [("engine", &alone), ("over HTTP", &over_http)] {
        println!("{name}: first token {:.3} ms, {:.0} tokens/s", first(rounds) * 1e3, rate(rounds));
    }
    println!(
        "the wire: {:.3} ms until the first token, {:.1} µs a token, {:.1} % of throughput",
        (first(&over_http) - first(&alone)) * 1e3,
        (token(&over_http) - token(&alone)) * 1e6,
        (1.0 - rate(&over_http) / rate(&alone)) * 100.0
    );
    Ok(())
}

/// All streams of a round at once.
fn side(
    seeds: std::ops::Range<usize>,
    one: &(dyn Fn(usize) -> Result<(Duration, usize)> + Sync),
) -> Result<Round> {
    let start = Instant::now();
    let results: Vec<std::result::Result<(Duration, usize), String>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            seeds.map(|seed| scope.spawn(move || one(seed).map_err(|e| e.to_string()))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread failed".into()))).collect()
    });
    let whole = start.elapsed();
    let results = results.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(Round {
        first: results.iter().map(|r| r.0).collect(),
        whole,
        tokens: results.iter().map(|r| r.1).sum(),
    })
}

/// One stream over HTTP: time until the first event, and tokens as the usage says.
fn ask(
    address: SocketAddr,
    key: &str,
    prompt: &[TokenId],
    seed: usize,
    params: &SamplingParams,
) -> Result<(Duration, usize)> {
    let bias: serde_json::Map<String, serde_json::Value> =
        params.logit_bias.iter().map(|(id, bias)| (id.to_string(), (*bias).into())).collect();
    let body = serde_json::json!({
        "model": "m", "prompt": prompt, "seed": seed, "max_tokens": params.max_tokens, "logit_bias": bias, "stream": true, "stream_options": { "include_usage": true },
        // Each token goes out, also while its text is not certain.
        "logprobs": 0,
    })
    .to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let start = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let (mut first, mut last) = (None, String::new());
    for line in BufReader::new(stream).lines() {
        let line = line?;
        if let Some(data) = line.strip_prefix("data: ").filter(|d| *d != "[DONE]") {
            first.get_or_insert_with(|| start.elapsed());
            last = data.to_owned();
        }
    }
    let usage: serde_json::Value = serde_json::from_str(&last)?;
    let count = usage["usage"]["completion_tokens"].as_u64().ok_or_else(|| format!("no usage: {last}"))?;
    Ok((first.ok_or("no event")?, count as usize))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
