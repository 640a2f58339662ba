//! What a sequence may say next, decided outside the engine: grammars, schemas, tool calls.

use deephold_base::TokenId;

/// One bit a token of the vocabulary; set where the token is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask(Vec<u32>);

impl TokenMask {
    /// A mask from words of 32 bits, the lowest bit the lowest id; ids beyond the words are forbidden.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// Nothing allowed, for ids below `vocab_size`.
    pub fn none(vocab_size: usize) -> Self {
        Self(vec![0; vocab_size.div_ceil(32)])
    }

    /// Everything allowed, for ids below `vocab_size`.
    pub fn all(vocab_size: usize) -> Self {
        Self(vec![u32::MAX; vocab_size.div_ceil(32)])
    }

    /// Forbids one token.
    pub fn forbid(&mut self, id: TokenId) {
        if let Some(word) = self.0.get_mut(id as usize / 32) {
            *word &= !(1 << (id % 32));
        }
    }

    /// Forbids what another allows, unless nothing would be left.
    pub fn exclude(&mut self, other: &Self) {
        let kept = |(word, i): (&u32, usize)| word & !other.0.get(i).copied().unwrap_or(0);
        let left: Vec<u32> = self.0.iter().zip(0..).map(kept).collect();
        if left.iter().any(|word| *word != 0) {
            self.0 = left;
        }
    }

    /// Allows one token; ids beyond the mask are left forbidden.
    pub fn allow(&mut self, id: TokenId) {
        if let Some(word) = self.0.get_mut(id as usize / 32) {
            *word |= 1 << (id % 32);
        }
    }

    /// Whether a token is allowed.
    pub fn allows(&self, id: TokenId) -> bool {
        self.0.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }
}

/// Follows one sequence and says before each token which may come.
pub trait Constraint: Send {
    /// The tokens that may come next; `None` for all of them.
    ///
    /// # Errors
    /// What is wrong, in words for the caller; the sequence ends with it.
    fn allowed(&mut self) -> Result<Option<TokenMask>, String>;

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// As [`Self::allowed`].
    fn accept(&mut self, token: TokenId) -> Result<(), String>;

    /// A copy in the same state, for another sequence of the request.
    fn fork(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

impl std::fmt::Debug for dyn Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}
