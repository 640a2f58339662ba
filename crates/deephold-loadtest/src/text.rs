//! Prompts of a length in tokens for a server whose tokenizer is not known.

use rand_distr::{Distribution, Uniform};
use rand_pcg::Pcg64;

use crate::Planned;

/// Common English words: most are one token in every vocabulary of the field.
const WORDS: &str = "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were \
when we there can an your which their said if do will each about how up out them then she many some so these would other into has more her \
two like him see time could no make than first been its who now people my made over did down only way find use may water long little very \
after words called just where most know get through back much before go good new write our used me man too any day same right look think \
also around another came come work three word must because does part even place well such here take why things help put years different away \
again off went old number great tell men say small every found still between name should home big give air line set own under read last never \
us left end along while might next sound below saw something thought both few those always looked show large often together asked house world \
going want school important until form food keep children feet land side without boy once animals life enough took four head above kind began \
almost live page got earth need far hand high year mother light parts country father let night following picture being study second eyes soon \
times story boys since white days ever paper hard near sentence better best across during today others however sure means knew try told young \
miles sun ways thing whole hear example heard several change answer room sea against top turned learn point city play toward five using himself";

/// How a server counts: tokens of a prompt = `fixed` + `per_word` × words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    /// Of the chat template.
    pub fixed: f64,
    /// Of a word.
    pub per_word: f64,
}

impl Calibration {
    /// What is assumed of a server that does not say how many tokens a prompt had.
    pub const ASSUMED: Self = Self { fixed: 8.0, per_word: 1.1 };

    /// From the tokens that two prompts of so many words had.
    pub fn measured(few: (usize, u64), many: (usize, u64)) -> Option<Self> {
        let words = many.0.checked_sub(few.0).filter(|n| *n > 0)? as f64;
        let per_word = many.1.checked_sub(few.1)? as f64 / words;
        let fixed = few.1 as f64 - per_word * few.0 as f64;
        (per_word > 0.2).then_some(Self { fixed: fixed.max(0.0), per_word })
    }

    fn words(self, tokens: f64) -> usize {
        (tokens / self.per_word).round().max(1.0) as usize
    }
}

/// Writes prompts.
#[derive(Clone, Debug)]
pub struct Texts {
    words: Vec<&'static str>,
    calibration: Calibration,
    block_tokens: usize,
}

impl Texts {
    /// For a server that counts so, and a plan with blocks of so many tokens.
    pub fn new(calibration: Calibration, block_tokens: usize) -> Self {
        Self { words: WORDS.split_whitespace().collect(), calibration, block_tokens }
    }

    /// A prompt of `count` words.
    pub(crate) fn of_words(&self, count: usize, seed: u64) -> String {
        let mut text = String::with_capacity(count * 6);
        self.append(&mut text, count, seed, 1);
        text
    }

    /// The prompt of a planned request.
    pub fn prompt(&self, request: &Planned) -> String {
        let tokens = (request.prompt_tokens as f64 - self.calibration.fixed).max(1.0);
        let mut left = self.calibration.words(tokens);
        let mut text = String::with_capacity(left * 6);
        let block = self.calibration.words(self.block_tokens as f64);
        for id in &request.blocks {
            let count = block.min(left);
            self.append(&mut text, count, *id, 2);
            left -= count;
        }
        self.append(&mut text, left, request.seed, 1);
        text
    }

    fn append(&self, text: &mut String, count: usize, seed: u64, stream: u128) {
        let mut rng = Pcg64::new(u128::from(seed), stream);
        let Ok(places) = Uniform::new(0, self.words.len()) else { return };
        for _ in 0..count {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(self.words[places.sample(&mut rng)]);
        }
    }
}
