//! What is typed or pasted while an answer comes: it does not appear in the answer, and waits for the next prompt.

use std::collections::VecDeque;

use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};
use nix::unistd::read;

use crate::terminal;

/// More than anybody types; what comes beyond is not kept.
const MAX_KEPT: usize = 1 << 20;

/// Lines that were ended, and what was begun after them.
#[derive(Default)]
pub(super) struct Typed {
    lines: VecDeque<String>,
    begun: Vec<u8>,
    /// Within a control sequence, such as that of an arrow key.
    in_sequence: bool,
}

impl Typed {
    /// From now on keys are kept instead of shown. Ctrl-C still is a signal.
    pub(super) fn listen(&self) {
        let stdin = std::io::stdin();
        // What is no terminal has no such settings.
        let Ok(before) = tcgetattr(&stdin) else { return };
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON);
        // Reading gives what is there, and does not wait.
        quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
        quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        if tcsetattr(&stdin, SetArg::TCSANOW, &quiet).is_ok() {
            terminal::restore_at_exit(Some(before));
        }
    }

    /// Takes what was typed since.
    pub(super) fn take_keys(&mut self) {
        if !terminal::is_quiet() {
            return;
        }
        let mut keys = [0; 4096];
        while let Ok(count) = read(std::io::stdin(), &mut keys) {
            if count == 0 {
                break;
            }
            self.feed(&keys[..count]);
        }
    }

    /// Takes the rest, and keys are shown again.
    pub(super) fn stop_listening(&mut self) {
        self.take_keys();
        terminal::restore();
    }

    /// Forgets all: whoever stops an answer does not want the next question asked.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
        self.begun.clear();
    }

    /// The next line that was ended.
    pub(super) fn line(&mut self) -> Option<String> {
        self.lines.pop_front()
    }

    /// What was begun, to go on with.
    pub(super) fn begun(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.begun)).into_owned()
    }

    fn feed(&mut self, keys: &[u8]) {
        for key in keys {
            if self.in_sequence {
                // ESC [ 200 ~ and the like end with a letter or `~`.
                self.in_sequence = !(key.is_ascii_alphabetic() || *key == b'~');
                continue;
            }
            match key {
                b'\r' | b'\n' => self.end_line(),
                0x1b => self.in_sequence = true,
                // Backspace takes a whole character.
                0x7f | 0x08 => while self.begun.pop().is_some_and(|b| b & 0xc0 == 0x80) {},
                // Ctrl-U takes the line.
                0x15 => self.begun.clear(),
                b'\t' | 0x20.. if self.begun.len() < MAX_KEPT => self.begun.push(*key),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let kept: usize = self.lines.iter().map(String::len).sum();
        let line = self.begun();
        if kept < MAX_KEPT && !line.trim().is_empty() {
            self.lines.push_back(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Typed;

    #[test]
    fn keys_become_lines() {
        let mut typed = Typed::default();
        typed.feed("what ab\x7f\x7fis 层é\x7f?\r\n\x1b[200~pasted\nlines\x1b[201~ and\x15mo".as_bytes());
        typed.feed(b"\x1b[Dre\x03\x00");
        let lines: Vec<String> = std::iter::from_fn(|| typed.line()).collect();
        assert_eq!(lines, ["what is 层?", "pasted"]);
        assert_eq!(typed.begun(), "more");
        typed.feed(b"a\rb");
        typed.clear();
        assert_eq!((typed.line(), typed.begun()), (None, String::new()));
    }
}
