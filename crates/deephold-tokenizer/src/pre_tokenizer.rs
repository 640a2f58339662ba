//! What the names of pre-tokenizers in GGUF files mean.
//!
//! The patterns are those of the published tokenizer.json files (for Kimi K2 of its published tokenizer code) of the models
//! that the names stand for; that a name stands for a model is llama.cpp's convention (`src/llama-vocab.cpp`). Names whose
//! splits are no regular expressions over bytes (`gemma4`, `sarvam-moe`, `whitespace`, `superbpe`, `afmoe`, `chameleon`)
//! are not supported; none of them belongs to an architecture that Deephold computes.

/// For error messages.
pub(crate) const SUPPORTED: &str = "gpt2 with the pre-tokenizers of DeepSeek (deepseek-llm, deepseek-coder, deepseek-v3, \
    deepseek-r1-qwen), Qwen (qwen2, qwen35), Llama 3 (llama-bpe), SmolLM (smollm), GPT-2, GPT-4o, Mistral (tekken) and \
    their relatives; llama";

/// A named way to cut text into words before merges apply.
pub(crate) struct PreTokenizer {
    /// Cuts, applied one after the other to every piece of the one before.
    pub(crate) patterns: Vec<String>,
    /// A whole word that is a token skips the merges.
    pub(crate) ignore_merges: bool,
    /// Whether a prompt begins with the beginning-of-sequence token where the file does not say.
    pub(crate) add_bos: bool,
}

/// GPT-2's pattern: contractions, words, numbers, signs, each with the space before it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// English contractions in any case.
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// Runs of space: before a line break, at the end, and what is left.
const SPACES: &str = r"\s*[\r\n]+|\s+(?!\S)|\s+";

/// DeepSeek-V3's words: a sign with letters, letters with marks, signs, spaces.
const DEEPSEEK_V3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| \
    ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

/// Chinese and Japanese, as DeepSeek-V3 groups them.
const HAN_KANA: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";

/// Letters with case, as DeepSeek LLM's tokenizer.json lists them. By number: several would not survive an editor that
/// normalizes.
const CASED: &str = "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\
    \u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\
    \u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\
    \u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\
    \u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\
    \u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\
    \u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\
    \u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\
    \u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\
    \u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\
    \u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\
    \u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\
    \u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\
    \u{1e900}-\u{1e943}";

/// Chinese, and most scripts between Samaritan and Hangul, as DeepSeek's first tokenizers group them.
const HAN: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";

/// Letters that may stand in the upper-case part of a word, and in its lower-case part.
const UPPER: &str = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}";
const LOWER: &str = r"\p{Ll}\p{Lm}\p{Lo}\p{M}";

/// Llama 3's pattern; its relatives differ in how many digits go together.
fn words(digits: &str) -> String {
    format!(r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}")
}

/// GPT-4o's pattern: words end where lower case turns to upper case. `suffix` may follow a word, `not` is taken out of
/// the letters.
fn cased_words(suffix: &str, digits: &str, not: &str, line_ends: &str) -> String {
    let (upper, lower) = (format!("[{UPPER}{not}]"), format!("[{LOWER}{not}]"));
    format!(
        r"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{suffix}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[{line_ends}]*|{SPACES}"
    )
}

impl PreTokenizer {
    /// The pre-tokenizer of this name; `None` for one that is not supported.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let optional = format!("{CONTRACTIONS}?");
        let patterns: Vec<String> = match name {
            "deepseek-llm" => {
                let signs =
                    "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
                let cased = format!(r"\s?[{CASED}]+");
                own(&["[\r\n]", &cased, signs, r"\s+$", HAN, r"\p{N}+"])
            }
            "deepseek-coder" => own(&["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, r"\p{N}"]),
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
                own(&[r"\p{N}{1,3}", HAN_KANA, DEEPSEEK_V3])
            }
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan"
            | "solar-open" | "grok-2" => vec![words(r"\p{N}")],
            "qwen35" => vec![format!(
                r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
            )],
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
            | "jina-v5-nano" | "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => vec![words(r"\p{N}{1,3}")],
            "minicpm5" => vec![r"\p{N}{1,3}".to_owned(), words(r"\p{N}+")],
            "bailingmoe" | "bailingmoe2" | "llada-moe" => vec![
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+".to_owned(),
            ],
            "seed-coder" => vec![format!(
                r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
            )],
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                own(&[r"\p{N}", GPT2])
            }
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "gigachat"
            | "a.x-4.0" | "mellum" | "exaone4" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de"
            | "modern-bert" => own(&[GPT2]),
            "falcon" => own(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
            "bloom" | "poro-chat" | "gpt3-finnish" => own(&[r" ?[^(\s|.,!?…。，、।۔،)]+"]),
            "viking" => own(&[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"]),
            "tekken" => vec![cased_words("", r"\p{N}", "", r"\r\n/")],
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => {
                vec![cased_words(&optional, r"\p{N}{1,3}", "", r"\r\n/")]
            }
            "tiny_aya" | "cohere2moe" => vec![
                r"\d{1,3}(?=(?:\d{3})*\b)".to_owned(),
                cased_words(&optional, r"\p{N}{1,3}", "", r"\r\n/"),
            ],
            "youtu" => {
                let scripts = "[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+|[！…“”‘’—：；，、\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+|\
                    [\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
                vec![scripts.to_owned(), cased_words(&optional, r"\p{N}", "", r"\r\n/")]
            }
            "kimi-k2" => {
                let other = cased_words(&optional, r"\p{N}{1,3}", r"&&[^\p{Han}]", r"\r\n");
                vec![format!(r"\p{{Han}}+|{other}")]
            }
            "laguna" => vec![r"[^\n]+|[\n]+".to_owned(), words(r"\p{N}")],
            "default" | "" => own(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            _ => return None,
        };
        let llama3 = matches!(
            name,
            "llama-bpe"
                | "llama3"
                | "llama-v3"
                | "falcon3"
                | "falcon-h1"
                | "pixtral"
                | "midm-2.0"
                | "lfm2"
                | "jina-v5-nano"
        );
        Some(Self {
            patterns,
            ignore_merges: llama3 || matches!(name, "tekken" | "minicpm5" | "youtu"),
            add_bos: llama3 || name == "tekken",
        })
    }
}

fn own(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|p| (*p).to_owned()).collect()
}
