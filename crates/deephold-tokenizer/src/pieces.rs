//! The bytes behind each token.

use deephold_base::TokenId;

use crate::TokenizerError;

/// The bytes of every id, and which ids are markers rather than text.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    data: Vec<u8>,
    /// Start of each id's bytes; one more at the end.
    starts: Vec<u32>,
    control: Vec<bool>,
}

impl Pieces {
    /// From (id, bytes, is a control token) in any order; ids without an entry have no bytes.
    ///
    /// # Errors
    /// Ids far beyond the number of entries: a table for them would be mostly empty.
    pub(crate) fn new(mut entries: Vec<(TokenId, Vec<u8>, bool)>) -> Result<Self, TokenizerError> {
        entries.sort_by_key(|e| e.0);
        let count = entries.last().map_or(0, |e| e.0 as usize + 1);
        let limit = entries.len().saturating_mul(4).saturating_add(1 << 16);
        if count > limit {
            return Err(TokenizerError::TooLarge {
                what: "the vocabulary's highest id",
                actual: count - 1,
                limit,
            });
        }
        let mut out =
            Self { data: Vec::new(), starts: Vec::with_capacity(count + 1), control: vec![false; count] };
        let mut entries = entries.into_iter().peekable();
        for id in 0..count {
            out.starts.push(out.data.len() as u32);
            let mut first = true;
            while let Some((_, bytes, control)) = entries.next_if(|e| e.0 as usize == id) {
                if std::mem::take(&mut first) {
                    out.data.extend_from_slice(&bytes);
                    out.control[id] = control;
                }
            }
            if out.data.len() > u32::MAX as usize {
                return Err(TokenizerError::TooLarge {
                    what: "the size of the vocabulary",
                    actual: out.data.len(),
                    limit: u32::MAX as usize,
                });
            }
        }
        out.starts.push(out.data.len() as u32);
        Ok(out)
    }

    /// Bytes of the longest.
    pub(crate) fn longest(&self) -> usize {
        self.starts.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }

    /// How many ids.
    pub(crate) fn len(&self) -> usize {
        self.control.len()
    }

    /// The bytes of `id`; none for an unknown one.
    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        match self.starts.get(id as usize..(id as usize).saturating_add(2)) {
            Some(&[start, end]) => &self.data[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Whether `id` is a marker such as the end of a sequence.
    pub(crate) fn is_control(&self, id: TokenId) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }
}

/// The bytes that a byte-level token stands for (GPT-2's table: printable Latin-1 as itself, the other bytes from U+0100
/// on); a token with any other character stands for itself.
pub(crate) fn from_byte_level(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        c @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(c).ok(),
        c @ 0x100..=0x120 => u8::try_from(c - 0x100).ok(),
        c @ 0x121..=0x142 => u8::try_from(c - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes that a SentencePiece token stands for: `<0x41>` one byte, U+2581 a space.
pub(crate) fn from_sentence_piece(token: &str) -> Vec<u8> {
    match byte_token(token) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}

/// The byte of `<0x41>`.
pub(crate) fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}
