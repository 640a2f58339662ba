//! SentencePiece's BPE as GGUF files of the model `llama` carry it: pieces with scores, no list of merges.
//!
//! Kudo and Richardson 2018; the pair of neighbours whose joined piece has the best score is merged first, of equals the
//! leftmost, until no neighbours form a piece. What remains unknown falls back to its bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use deephold_base::TokenId;

/// Pieces, bytes and markers.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    ids: HashMap<Vec<u8>, TokenId>,
    scores: Vec<f32>,
    bytes: Vec<Option<TokenId>>,
    unknown: Option<TokenId>,
    /// Texts that are tokens wherever they stand.
    markers: Vec<(String, TokenId)>,
    space_prefix: bool,
}

struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        // Best score, then leftmost.
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// A run of the text; `len` 0 once it was merged into its left neighbour.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

impl SentencePiece {
    pub(crate) fn new(
        ids: HashMap<Vec<u8>, TokenId>,
        scores: Vec<f32>,
        bytes: Vec<Option<TokenId>>,
        unknown: Option<TokenId>,
        markers: Vec<(String, TokenId)>,
        space_prefix: bool,
    ) -> Self {
        Self { ids, scores, bytes, unknown, markers, space_prefix }
    }

    pub(crate) fn token_to_id(&self, token: &str) -> Option<TokenId> {
        let marker = self.markers.iter().find(|m| m.0 == token).map(|m| m.1);
        marker.or_else(|| self.ids.get(token.as_bytes()).copied())
    }

    pub(crate) fn encode(&self, text: &str) -> Vec<TokenId> {
        let mut out = Vec::new();
        let mut rest = text;
        // A space is put before text at the beginning and after a marker.
        while !rest.is_empty() {
            let found = self
                .markers
                .iter()
                .filter_map(|(m, id)| rest.find(m.as_str()).map(|at| (at, std::cmp::Reverse(m.len()), *id)))
                .min();
            let end = found.map_or(rest.len(), |f| f.0);
            if end > 0 {
                self.encode_piece(&rest[..end], &mut out);
            }
            match found {
                Some((at, len, id)) => {
                    out.push(id);
                    rest = &rest[at + len.0..];
                }
                None => break,
            }
        }
        out
    }

    fn encode_piece(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut spaced = String::with_capacity(text.len() + 8);
        if self.space_prefix {
            spaced.push('\u{2581}');
        }
        spaced.extend(text.chars().map(|c| if c == ' ' { '\u{2581}' } else { c }));
        let bytes = spaced.as_bytes();
        let mut symbols: Vec<Symbol> = Vec::with_capacity(spaced.len());
        for (i, (start, c)) in spaced.char_indices().enumerate() {
            symbols.push(Symbol { start, len: c.len_utf8(), prev: i.wrapping_sub(1), next: i + 1 });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut heap = BinaryHeap::new();
        let offer = |heap: &mut BinaryHeap<Pair>, symbols: &[Symbol], left: usize, right: usize| {
            if left == NONE || right == NONE {
                return;
            }
            let (a, b) = (symbols[left], symbols[right]);
            let len = a.len + b.len;
            if let Some(id) = self.ids.get(&bytes[a.start..a.start + len]) {
                let score = self.scores.get(*id as usize).copied().unwrap_or(0.0);
                heap.push(Pair { score, left, right, len });
            }
        };
        for right in 1..symbols.len() {
            offer(&mut heap, &symbols, right - 1, right);
        }
        while let Some(pair) = heap.pop() {
            let (a, b) = (symbols[pair.left], symbols[pair.right]);
            // Stale once either side was merged elsewhere.
            if a.len == 0 || b.len == 0 || a.len + b.len != pair.len || a.next != pair.right {
                continue;
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = b.next;
            symbols[pair.right].len = 0;
            if b.next != NONE {
                symbols[b.next].prev = pair.left;
            }
            offer(&mut heap, &symbols, symbols[pair.left].prev, pair.left);
            offer(&mut heap, &symbols, pair.left, b.next);
        }
        for s in symbols.iter().filter(|s| s.len > 0) {
            let piece = &bytes[s.start..s.start + s.len];
            match self.ids.get(piece) {
                Some(id) => out.push(*id),
                None => self.fall_back(piece, out),
            }
        }
    }

    fn fall_back(&self, piece: &[u8], out: &mut Vec<TokenId>) {
        let ids: Option<Vec<TokenId>> = piece.iter().map(|b| self.bytes[usize::from(*b)]).collect();
        match (ids, self.unknown) {
            (Some(ids), _) => out.extend(ids),
            (None, Some(unknown)) => out.push(unknown),
            (None, None) => {}
        }
    }
}
