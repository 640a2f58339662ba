//! Numbers that end. JSON lets a number have any digits, and RFC 3339 a fraction of a second; small models, once in a row of ones,
//! write nothing else until their tokens are spent.

use std::sync::Arc;

use deephold_base::TokenId;
use deephold_engine::TokenMask;
use deephold_tokenizer::Tokenizer;

/// More digits in a row than any double or 64-bit integer needs.
const DIGITS_MAX: usize = 20;

/// Follows JSON byte by byte and knows when a row of digits is long enough.
#[derive(Clone)]
pub(crate) struct NumberBound {
    /// Tokens that begin with a digit.
    digits: Arc<TokenMask>,
    in_string: bool,
    is_escaped: bool,
    row: usize,
    /// The last bytes before the row, every digit as 0.
    before: [u8; 4],
}

/// The tokens of a vocabulary that begin with a digit.
pub(crate) fn digit_tokens(tokenizer: &Tokenizer) -> TokenMask {
    let size = tokenizer.vocab_size();
    let mut mask = TokenMask::none(size);
    let begins = |id: &TokenId| tokenizer.token_bytes(*id).first().is_some_and(u8::is_ascii_digit);
    (0..size as TokenId).filter(begins).for_each(|id| mask.allow(id));
    mask
}

impl NumberBound {
    pub(crate) fn new(digits: Arc<TokenMask>) -> Self {
        Self { digits, in_string: false, is_escaped: false, row: 0, before: [0; 4] }
    }

    pub(crate) fn accept(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let was_escaped = std::mem::take(&mut self.is_escaped);
            match byte {
                b'"' if !was_escaped => self.in_string = !self.in_string,
                b'\\' if self.in_string && !was_escaped => self.is_escaped = true,
                _ => {}
            }
            if byte.is_ascii_digit() {
                self.row += 1;
                continue;
            }
            // Of the row that ends here two digits are enough to know seconds by.
            let [_, b, c, d] = self.before;
            self.before = match self.row {
                0 => [b, c, d, *byte],
                1 => [c, d, b'0', *byte],
                _ => [d, b'0', b'0', *byte],
            };
            self.row = 0;
        }
    }

    /// No more digits where there are enough, if anything else may come.
    pub(crate) fn restrict(&self, mask: &mut TokenMask) {
        let is_fraction_of_second = self.before == *b":00.";
        if (!self.in_string || is_fraction_of_second) && self.row >= DIGITS_MAX {
            mask.exclude(&self.digits);
        }
    }
}
