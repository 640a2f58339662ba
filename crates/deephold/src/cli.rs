//! The command line.

mod access;
mod audit;
mod load;
mod serve;

use std::path::PathBuf;

pub(crate) use access::{KeyCommand, StateCommand, TenantCommand, TenantSetArgs, UsageArgs, UsageFormat};
pub(crate) use audit::{
    AuditCommand, AuditExportArgs, AuditReplayArgs, AuditShowArgs, AuditVerifyArgs, ExportFormat, RecordArgs,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use deephold_kernels::{CacheDType, Isa};
use deephold_quant::DType;
use deephold_weights::quantize::QuantFormat;
pub(crate) use load::{ApiArg, ArrivalsArg, LoadtestArgs};
pub(crate) use serve::{
    AuditFailureArg, AuditPolicyArg, ConfigCommand, LogArg, SandboxArg, ServeArgs, StateArgs, StoreArgs,
};

/// Runs DeepSeek models inside your own walls. Uses no network but what you name.
#[derive(Parser)]
#[command(name = "deephold", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Talk to a model in the terminal; without MODEL to the built-in guide
    Chat(ChatArgs),
    /// Answer one prompt, for scripts and tests
    Generate(GenerateArgs),
    /// Look into model files; load and unload those of a running server
    #[command(subcommand)]
    Model(ModelCommand),
    /// Write a model as a smaller GGUF file
    Quantize(QuantizeArgs),
    /// Measure speed beside the limits of this machine
    Bench(BenchArgs),
    /// Measure how much a running server holds, ours or any other with OpenAI's API
    Loadtest(Box<LoadtestArgs>),
    /// Measure how well a model predicts
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Show what this machine has and what to change
    Doctor(DoctorArgs),
    /// Serve models over OpenAI's API; without MODEL the built-in guide
    Serve(ServeArgs),
    /// Check and show the settings of `serve`
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make, list and end API keys, also beside a running server
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make tenants and their projects, and set what each may use
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Show what was used, by day, tenant, project, key and model
    Usage(UsageArgs),
    /// Back up, restore and check what the server keeps
    #[command(subcommand)]
    State(StateCommand),
    /// Check and read the audit log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print what this program is made of, with versions and licences (CycloneDX)
    Sbom,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

#[derive(Subcommand)]
pub(crate) enum ModelCommand {
    /// Show architecture, sizes, formats, tokenizer, template, licence and what is unsupported
    Inspect(InspectArgs),
    /// Check shapes, index, finite values and digests
    Verify(VerifyArgs),
    /// Load a model into the running server
    Load(ModelLoadArgs),
    /// Take a model out of the running server
    Unload(ModelUnloadArgs),
    /// Show the models of the running server
    List(ModelListArgs),
}

#[derive(Args)]
pub(crate) struct ModelLoadArgs {
    /// A Hugging Face folder, a .gguf file or `guide`, as PATH or NAME=PATH
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Args)]
pub(crate) struct ModelUnloadArgs {
    /// What requests call it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Args, Clone)]
pub(crate) struct ModelListArgs {
    /// One JSON document instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Subcommand)]
pub(crate) enum EvalCommand {
    /// Perplexity of a text, and the divergence from a reference model
    Perplexity(PerplexityArgs),
}

/// How a model is loaded and run.
#[derive(Args, Clone)]
#[command(next_help_heading = "Model and machine")]
pub(crate) struct EngineArgs {
    /// Threads that compute [default: all that this process may use]
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
    /// Bind each thread to a core
    #[arg(long)]
    pub(crate) pin: bool,
    /// Instruction set: scalar, avx2, avxvnni, avx512, neon [default: the widest]
    #[arg(long, value_name = "ISA")]
    pub(crate) isa: Option<Isa>,
    /// Longest context, prompt and answer together [default: the model's, at most 8192]
    #[arg(short, long, value_name = "TOKENS")]
    pub(crate) context: Option<usize>,
    /// How the cache stores entries
    #[arg(long, value_enum, default_value_t = CacheType::F16)]
    pub(crate) cache_type: CacheType,
    /// Memory for the cache, as 512MiB or 4GiB [default: half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) cache_memory: Option<u64>,
    /// Quantize matrices while loading
    #[arg(long, value_name = "TYPE", value_enum)]
    pub(crate) load_as: Option<LoadAs>,
    /// Load even if memory seems too small
    #[arg(long)]
    pub(crate) ignore_memory: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum CacheType {
    F16,
    F32,
}

/// What an argument's value is called.
pub(crate) fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

impl From<CacheType> for CacheDType {
    fn from(c: CacheType) -> Self {
        match c {
            CacheType::F16 => CacheDType::F16,
            CacheType::F32 => CacheDType::F32,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum LoadAs {
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q6_k")]
    Q6K,
    #[value(name = "q5_k")]
    Q5K,
    #[value(name = "q4_k")]
    Q4K,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<LoadAs> for DType {
    fn from(l: LoadAs) -> Self {
        match l {
            LoadAs::Q8_0 => DType::Q8_0,
            LoadAs::Q6K => DType::Q6K,
            LoadAs::Q5K => DType::Q5K,
            LoadAs::Q4K => DType::Q4K,
            LoadAs::Q4_0 => DType::Q4_0,
        }
    }
}

/// How tokens are chosen.
#[derive(Args, Clone)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// 0 always takes the most probable token [default: chat: the model's, else 0.6; generate: 0]
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Only the K most probable tokens; 0 for all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Only the most probable tokens that together reach P
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Only tokens at least P times as probable as the best
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens that occurred
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Taken off the logits of tokens in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// Taken off for every occurrence in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Added to a token's logit, as 42=-5.5; may be repeated
    #[arg(long, value_name = "ID=X", value_parser = parse_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// End the answer with this token; may be repeated
    #[arg(long, value_name = "ID")]
    pub(crate) stop_id: Vec<u32>,
    /// No end before N tokens
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) min_tokens: usize,
    /// Go on past the model's end tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

/// What turns messages into a prompt.
#[derive(Args, Clone)]
#[command(next_help_heading = "Conversation")]
pub(crate) struct TemplateArgs {
    /// Instructions for the model
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// A Jinja file to use instead of the model's template
    #[arg(long, value_name = "FILE")]
    pub(crate) template: Option<PathBuf>,
    /// Whether the model thinks first, as --thinking or --thinking=false [default: the template's choice]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) thinking: Option<bool>,
}

#[derive(Args)]
pub(crate) struct ChatArgs {
    /// A Hugging Face folder or a .gguf file; without it the built-in guide
    pub(crate) model: Option<PathBuf>,
    /// Answer this once and exit; what is piped in is put behind it
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) conversation: TemplateArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("input").required(true).multiple(true).args(["prompt", "prompt_file", "prompt_ids"]))]
pub(crate) struct GenerateArgs {
    /// A Hugging Face folder, a .gguf file, or `guide`
    pub(crate) model: PathBuf,
    /// The prompt
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// A file with the prompt, or with what --prompt is about; `-` for standard input
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// The prompt as token ids; needs no tokenizer
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["prompt", "prompt_file"])]
    pub(crate) prompt_ids: Option<Vec<u32>>,
    /// Take the text as it is, without a chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Log probabilities of each token and of the K best
    #[arg(long, value_name = "K")]
    pub(crate) logprobs: Option<usize>,
    #[command(flatten)]
    pub(crate) guide: GuideArgs,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) conversation: TemplateArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// What the answer must be.
#[derive(Args, Clone)]
#[command(next_help_heading = "Form of the answer")]
pub(crate) struct GuideArgs {
    /// The answer is JSON of the schema in this file
    #[arg(long, value_name = "FILE", group = "guide")]
    pub(crate) json_schema: Option<PathBuf>,
    /// The answer is a text that this expression matches whole
    #[arg(long, value_name = "EXPRESSION", group = "guide")]
    pub(crate) regex: Option<String>,
    /// The answer is a text of the Lark grammar in this file
    #[arg(long, value_name = "FILE", group = "guide")]
    pub(crate) grammar: Option<PathBuf>,
    /// Functions that the model may call: a JSON list as in the API
    #[arg(long, value_name = "FILE", group = "guide", conflicts_with = "raw")]
    pub(crate) tools: Option<PathBuf>,
    /// auto, required, or the function to call
    #[arg(long, value_name = "CHOICE", requires = "tools")]
    pub(crate) tool_choice: Option<String>,
}

#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A Hugging Face folder, a .gguf file, or `guide`
    pub(crate) path: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// A Hugging Face folder or a .gguf file
    pub(crate) path: PathBuf,
    /// Write the digests of all files beside the model, for later checks
    #[arg(long)]
    pub(crate) write_manifest: bool,
    /// Only headers and shapes: read no values, compute no digests
    #[arg(long, conflicts_with = "write_manifest")]
    pub(crate) quick: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct QuantizeArgs {
    /// A Hugging Face folder or a .gguf file
    pub(crate) input: PathBuf,
    /// The GGUF file to write
    pub(crate) output: PathBuf,
    /// q8_0, q4_0, q4_k_m, q5_k_m, q6_k or bf16
    #[arg(short, long)]
    pub(crate) format: QuantFormat,
    /// Replace the output if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// One JSON object with the error of each tensor instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// A Hugging Face folder, a .gguf file, or `guide`
    pub(crate) model: PathBuf,
    /// Tokens of the prompt
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to decode
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64)]
    pub(crate) decode_tokens: usize,
    /// Tokens that stand before what is decoded, filled once and decoded from in every run
    #[arg(short, long, value_name = "TOKENS", default_value_t = 0, hide_default_value = true)]
    pub(crate) depth: usize,
    /// Sequences decoded side by side, one figure each
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', default_value = "1,8")]
    pub(crate) batch: Vec<usize>,
    /// Runs of each measurement
    #[arg(short, long, value_name = "N", default_value_t = 3)]
    pub(crate) runs: usize,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Args)]
pub(crate) struct PerplexityArgs {
    /// A Hugging Face folder, a .gguf file, or `guide`
    pub(crate) model: PathBuf,
    /// A text file
    pub(crate) text: PathBuf,
    /// Compare with this model: divergence and agreement
    #[arg(long, value_name = "MODEL")]
    pub(crate) reference: Option<PathBuf>,
    /// Windows to evaluate at most
    #[arg(long, value_name = "N")]
    pub(crate) windows: Option<usize>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("write it as ID=BIAS, for example 42=-5.5")?;
    let id = id.trim().parse().map_err(|_| format!("`{id}` is not a token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("`{bias}` is not a number"))?;
    Ok((id, bias))
}

/// Bytes: a number with an optional unit, `1.5GiB`, `512M`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let bad = || format!("`{text}` is not a size; write it as 512MiB or 4GiB");
    let number: f64 = number.parse().map_err(|_| bad())?;
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let bytes = number * (1u64 << shift) as f64;
    if bytes.is_finite() && bytes < 1e18 { Ok(bytes as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("1.5 g"), Ok(3 << 29));
        assert_eq!(parse_size("7"), Ok(7));
        for bad in ["", "x", "1.2.3", "5 parsecs", "99999999999999T", "-1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_bias("42=-5.5"), Ok((42, -5.5)));
        assert!(parse_bias("42").is_err());
    }
}
