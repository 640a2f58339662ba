//! Lines of a file, each bounded.

use std::io::{self, BufRead, BufReader, Read};

use crate::format::MAX_LINE;

/// Reads line by line into one buffer.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    buffer: Vec<u8>,
}

/// A line without its newline.
pub(crate) struct RawLine<'a> {
    pub(crate) bytes: &'a [u8],
    /// Whether a newline ended it; else the file ended, or the line is longer than any that is written.
    pub(crate) whole: bool,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader: BufReader::new(reader), buffer: Vec::new() }
    }

    /// The next line, or a part of one that is too long; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<RawLine<'_>>> {
        self.buffer.clear();
        let mut bounded = (&mut self.reader).take(MAX_LINE as u64 + 1);
        if bounded.read_until(b'\n', &mut self.buffer)? == 0 {
            return Ok(None);
        }
        let whole = self.buffer.last() == Some(&b'\n');
        let len = self.buffer.len() - usize::from(whole);
        Ok(Some(RawLine { bytes: &self.buffer[..len], whole }))
    }
}
