//! Text of a stream that is not given out yet.
//!
//! What was looked at is never looked at again, and what was taken from the front is moved away in large parts: so a parser over
//! it takes time linear in the stream, however it is cut.

/// Pending text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    text: String,
    /// Where the pending text begins in `text`.
    start: usize,
    /// Bytes that searches have looked at, for the test of linearity.
    #[cfg(test)]
    pub(crate) examined: usize,
}

impl Held {
    /// Appends what came.
    pub(crate) fn push(&mut self, text: &str) {
        // The front is moved away when it is at least as long as what stays: each byte is moved once on average.
        if self.start * 2 >= self.text.len() {
            self.text.drain(..self.start);
            self.start = 0;
        }
        self.text.push_str(text);
    }

    /// The pending text.
    pub(crate) fn rest(&self) -> &str {
        &self.text[self.start..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    /// Takes the first `n` bytes, which must end a character.
    pub(crate) fn take(&mut self, n: usize) -> &str {
        self.start += n;
        &self.text[self.start - n..self.start]
    }

    /// Takes all.
    pub(crate) fn take_all(&mut self) -> String {
        let rest = self.rest().to_owned();
        *self = Self {
            #[cfg(test)]
            examined: self.examined,
            ..Self::default()
        };
        rest
    }

    /// The first of several marks at or after `from`, as its place and its index in `marks`; of two at one place the first in
    /// the list. One pass, which ends at the mark. `from` must begin a character.
    pub(crate) fn find(&mut self, marks: &[&str], from: usize) -> Option<(usize, usize)> {
        let bytes = self.rest().as_bytes();
        let mark_at = |at: usize| marks.iter().position(|mark| bytes[at..].starts_with(mark.as_bytes()));
        let begins = |byte: u8| marks.iter().any(|mark| mark.as_bytes().first() == Some(&byte));
        let candidates = (from..bytes.len()).filter(|at| begins(bytes[*at]));
        let found = candidates.filter_map(|at| Some((at, mark_at(at)?))).next();
        #[cfg(test)]
        {
            self.examined += found.map_or(self.rest().len(), |f| f.0) - from;
        }
        found
    }

    /// Where a search for `marks` may begin the next time if it has found none: before what may be a mark's beginning.
    pub(crate) fn certain(&self, marks: &[&str]) -> usize {
        let rest = self.rest();
        rest.len() - marks.iter().map(|mark| crate::stop::overlap(rest, mark)).max().unwrap_or(0)
    }
}
