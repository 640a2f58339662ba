//! Stop strings in a stream.

/// Finds the first of several strings in text that comes in parts.
///
/// Text that may be the beginning of a stop string is held back until it is certain, so a reader never sees any part of
/// one.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// What a part of the stream gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is certain.
    pub text: String,
    /// The stop string that ended it.
    pub stop: Option<String>,
}

impl StopMatcher {
    /// Empty strings are ignored.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// Takes the next part. After a stop there is nothing more to take.
    pub fn push(&mut self, text: &str) -> Stopped {
        self.held.push_str(text);
        // The earliest, of several at one place the longest.
        let found = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s.as_str()).map(|at| (at, std::cmp::Reverse(s.len()), s)))
            .min();
        if let Some((at, _, stop)) = found {
            let stop = stop.clone();
            // An earlier and longer stop string may still be coming only if it began before; then it is not `found`
            // here, but what was found is complete: it wins.
            let text = self.held[..at].to_owned();
            self.held.clear();
            return Stopped { text, stop: Some(stop) };
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Stopped { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// What was held back, at the end of the stream.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The longest suffix of `text` that begins `stop`, in bytes.
pub(crate) fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    (1..=most).rev().find(|n| text.as_bytes()[text.len() - n..] == stop.as_bytes()[..*n]).unwrap_or(0)
}
