//! A model in memory and the engine on it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use deephold_base::{ErrorCode, SystemClock};
use deephold_engine::{EngineConfig, EngineCore, Machine, MemoryLease};
use deephold_kernels::{Isa, Ops, PoolOptions, ThreadPool};
use deephold_models::{Encoder, LoadOptions, Model};
use deephold_tokenizer::{ChatFormat, Tokenizer, TokenizerError};
use deephold_weights::{Checkpoint, WeightsError, verify};

use crate::cli::EngineArgs;
use crate::fail::{bad_argument, fail};
use crate::{guide, system, terminal};

/// Without `--context` a model's window is cut to this: the cache of a 128 K window would surprise a laptop.
const DEFAULT_CONTEXT: usize = 8192;

/// Weights that take long enough to load that a vocabulary is built meanwhile.
const BESIDE_BYTES: u64 = 64 << 20;

/// Hears what is being done, how many bytes of it, and of how many.
pub(crate) type Progress<'a> = dyn FnMut(&'static str, u64, u64) + 'a;

pub(crate) struct Loaded {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) model: Arc<dyn Model>,
    pub(crate) ops: Arc<Ops>,
    machine: Arc<Machine>,
    /// The weights' part of the machine's memory.
    memory: MemoryLease,
    /// Why there is none matters only where one is needed.
    pub(crate) tokenizer: Result<Tokenizer, TokenizerError>,
    pub(crate) load_time: Duration,
}

/// The folder or file, or the built-in guide.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    if guide::is_meant(path) {
        return Ok(guide::open()?);
    }
    hinted(Checkpoint::open(path), path)
}

/// An error about a path that is none, but the name of a model somewhere else, says how the model comes here.
pub(crate) fn hinted(opened: Result<Checkpoint, WeightsError>, path: &Path) -> Result<Checkpoint> {
    opened.map_err(|error| match looks_like_a_name(path) {
        true if error.code() == ErrorCode::NotFound && !path.exists() => {
            let name = path.display();
            fail(
                ErrorCode::NotFound,
                format!(
                    "there is no file or folder {name}; deephold takes paths and never fetches a model by name. On a machine with \
                     internet fetch its Hugging Face folder (`hf download ORG/NAME --local-dir FOLDER`) or its .gguf file, bring \
                     it here, check it with `deephold model verify FOLDER`, and give its path"
                ),
            )
        }
        _ => error.into(),
    })
}

/// `deepseek-r1:7b`, `org/model`, `https://...`, or a word: what other programs fetch models by.
fn looks_like_a_name(path: &Path) -> bool {
    let Some(text) = path.to_str() else { return false };
    let has_ending = [".gguf", ".safetensors", ".json"].iter().any(|e| text.ends_with(e));
    let is_address = text.contains("://");
    let is_path = text.starts_with(['/', '.', '~']) || text.ends_with('/') || text.matches('/').count() > 1;
    is_address || !(is_path || has_ending)
}

/// The arithmetic and memory that the arguments ask for.
pub(crate) fn machine(args: &EngineArgs) -> Result<Arc<Machine>> {
    let isa = args.isa.unwrap_or_else(Isa::detect);
    if !isa.is_available() {
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        let message = format!("this processor does not run {isa}; it runs {}", names.join(", "));
        return Err(fail(ErrorCode::Unsupported, message));
    }
    if args.threads > 4096 {
        return Err(bad_argument("--threads is at most 4096"));
    }
    let pool = ThreadPool::new(PoolOptions { threads: args.threads, pin: args.pin });
    Ok(Machine::new(Arc::new(Ops::new(isa, Arc::new(pool))), memory_budget(args)))
}

pub(crate) fn load(path: &Path, args: &EngineArgs) -> Result<Loaded> {
    let start = Instant::now();
    let checkpoint = Arc::new(open(path)?);
    load_checkpoint(checkpoint, &machine(args)?, args, start, &mut terminal::phases())
}

pub(crate) fn load_checkpoint(
    checkpoint: Arc<Checkpoint>,
    machine: &Arc<Machine>,
    args: &EngineArgs,
    start: Instant,
    progress: &mut Progress<'_>,
) -> Result<Loaded> {
    let options = LoadOptions { quantize_to: args.load_as.map(Into::into) };
    let (machine, ops) = (Arc::clone(machine), Arc::clone(machine.ops()));
    // The system would end the program without a word.
    let memory = room(&checkpoint, &machine, &options)?;
    let mut weights = || {
        deephold_models::load(&checkpoint, &ops, &options, &mut |p| {
            progress("loading", p.done_bytes, p.total_bytes)
        })
    };
    // One thread builds the vocabulary: beside large weights, not before them. With small ones there is no time to be gained, and
    // where memory ends, it ends in the weights, which say so.
    let (tokenizer, model) = if memory.bytes() < BESIDE_BYTES {
        (Tokenizer::from_checkpoint(&checkpoint), weights())
    } else {
        std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| Tokenizer::from_checkpoint(&checkpoint));
            let model = weights();
            (tokenizer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), model)
        })
    };
    let model: Arc<dyn Model> = Arc::from(model?);
    let load_time = start.elapsed();
    Ok(Loaded { checkpoint, model, ops, machine, memory, tokenizer, load_time })
}

/// An encoder, its vocabulary and its part of the machine's memory.
pub(crate) fn load_encoder(
    checkpoint: &Arc<Checkpoint>,
    machine: &Machine,
    args: &EngineArgs,
    progress: &mut Progress<'_>,
) -> Result<(Arc<dyn Encoder>, Tokenizer, MemoryLease)> {
    let tokenizer = Tokenizer::from_checkpoint(checkpoint)?;
    let options = LoadOptions { quantize_to: args.load_as.map(Into::into) };
    let memory = room(checkpoint, machine, &options)?;
    let encoder = deephold_models::load_encoder(checkpoint, machine.ops(), &options, &mut |p| {
        progress("loading", p.done_bytes, p.total_bytes);
    })?;
    Ok((Arc::from(encoder), tokenizer, memory))
}

/// Memory for the weights.
fn room(checkpoint: &Checkpoint, machine: &Machine, options: &LoadOptions) -> Result<MemoryLease> {
    let packed = deephold_models::packed_bytes(checkpoint, options)?;
    machine.memory().reserve("the model", packed).map_err(|e| {
        let hint = "quantize it (`deephold quantize`), use a larger machine, or load it all the same with --ignore-memory";
        fail(e.code(), format!("{e}; {hint}"))
    })
}

/// How the model wants messages; none for one that only continues text.
pub(crate) fn chat_format(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<ChatFormat>> {
    match ChatFormat::from_checkpoint(checkpoint, tokenizer) {
        Ok(format) => Ok(Some(format)),
        Err(TokenizerError::NoTemplate) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// What identifies the model; reads all its weights once.
pub(crate) fn digest(checkpoint: &Checkpoint, progress: &mut Progress<'_>) -> String {
    let total = checkpoint.tensor_bytes();
    verify::content_digest(checkpoint, &mut |done| progress("digest", done, total))
}

/// What weights and caches may take together: what is free now.
fn memory_budget(args: &EngineArgs) -> u64 {
    match system::memory().available {
        Some(available) if !args.ignore_memory => available,
        _ => u64::MAX,
    }
}

/// Refuses a text that cannot fit `context` tokens before it is encoded, which takes some sixty times its memory.
pub(crate) fn refuse_hopeless(tokenizer: &Tokenizer, text: &str, context: usize) -> Result<()> {
    let least = tokenizer.least_tokens(text);
    if least < context {
        return Ok(());
    }
    let message = format!(
        "the prompt has at least {least} tokens, but the context holds {context} with the answer; shorten it"
    );
    Err(fail(ErrorCode::LimitExceeded, message))
}

impl Loaded {
    /// What a service keeps beside the engine: the tokenizer, the checkpoint that it came from, and the weights' part of the
    /// machine's memory.
    pub(crate) fn into_parts(self) -> Result<(Tokenizer, Arc<Checkpoint>, MemoryLease)> {
        match self.tokenizer {
            Ok(tokenizer) => Ok((tokenizer, self.checkpoint, self.memory)),
            Err(e) => Err(fail(e.code(), e.to_string())),
        }
    }

    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer> {
        match &self.tokenizer {
            Ok(t) => Ok(t),
            Err(e) => Err(fail(e.code(), e.to_string())),
        }
    }

    /// The context that the arguments give.
    pub(crate) fn context(&self, args: &EngineArgs) -> Result<usize> {
        let most = self.model.info().max_model_len;
        match args.context {
            Some(n) if n > most => {
                Err(bad_argument(format!("--context {n} is beyond the model's {most} tokens")))
            }
            Some(n) if n < 2 => Err(bad_argument("--context is at least 2")),
            Some(n) => Ok(n),
            None => Ok(most.min(DEFAULT_CONTEXT)),
        }
    }

    /// An engine for so many sequences at a time; `change` adjusts its configuration.
    pub(crate) fn engine(
        &self,
        args: &EngineArgs,
        max_num_seqs: usize,
        change: impl FnOnce(&mut EngineConfig),
    ) -> Result<EngineCore> {
        let info = self.model.info();
        let budget = self.machine.memory();
        let left = (budget.total() - budget.used()).min(system::memory().available.unwrap_or(4 << 30));
        let cache_bytes = args.cache_memory.unwrap_or(left / 2);
        let context = self.context(args)?;
        let mut config =
            EngineConfig::for_model(info, context, max_num_seqs, args.cache_type.into(), cache_bytes)?;
        change(&mut config);
        let clock = Arc::new(SystemClock::default());
        Ok(EngineCore::new(Arc::clone(&self.model), Arc::clone(&self.machine), config, clock)?)
    }
}
