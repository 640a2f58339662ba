//! Colours, progress and Ctrl-C.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::termios::{SetArg, Termios, tcsetattr};

use crate::console::{DIM, GREEN, NO_COLOUR, NOT_DIM, RED, note};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether somebody looks at the flag; where not, the first signal ends the program.
static IS_WATCHED: AtomicBool = AtomicBool::new(true);

/// What the terminal was before it was made quiet.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// From now on Ctrl-C, SIGTERM and SIGHUP set a flag instead of ending the program. A second one, while the first is not yet
/// seen, ends it.
pub(crate) fn catch_interrupts() {
    // An error means that a handler is there already.
    let _ = ctrlc::set_handler(|| {
        let again = INTERRUPTED.swap(true, Ordering::SeqCst);
        if again || !IS_WATCHED.load(Ordering::SeqCst) {
            restore();
            if again {
                note!("\n(ended by a second signal)");
            }
            std::process::exit(130);
        }
    });
}

/// Says whether the flag is looked at: not while a prompt waits for the user.
pub(crate) fn watch_interrupts(watched: bool) {
    IS_WATCHED.store(watched, Ordering::SeqCst);
}

/// What the terminal goes back to with [`restore`], also when the program is ended.
pub(crate) fn restore_at_exit(before: Option<Termios>) {
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = before;
}

/// Whether the terminal was made quiet.
pub(crate) fn is_quiet() -> bool {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Undoes what was done to the terminal.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &before);
    }
}

/// Whether Ctrl-C was pressed since the last [`clear_interrupt`].
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

pub(crate) fn clear_interrupt() {
    INTERRUPTED.store(false, Ordering::SeqCst);
}

/// How text is set off, where the terminal can and the user has not said no (`NO_COLOR`).
#[derive(Clone, Copy)]
pub(crate) struct Style {
    on: bool,
}

impl Style {
    pub(crate) fn stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self { on: terminal && !refused && !dumb }
    }

    pub(crate) fn dim(self) -> (&'static str, &'static str) {
        if self.on { (DIM, NOT_DIM) } else { ("", "") }
    }

    /// Red for what is wrong, green for what is well.
    pub(crate) fn verdict(self, good: bool, text: &str) -> String {
        match (self.on, good) {
            (true, true) => format!("{GREEN}{text}{NO_COLOUR}"),
            (true, false) => format!("{RED}{text}{NO_COLOUR}"),
            (false, _) => text.to_owned(),
        }
    }
}

/// A bar of bytes on standard error; invisible where that is no terminal.
pub(crate) fn byte_bar(what: &str, total: u64) -> ProgressBar {
    bar(what, total, "{msg} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left")
}

/// Bars of bytes one after the other, by what is being done; the last one goes when this is dropped.
pub(crate) fn named_phases() -> impl FnMut(&str, u64, u64) {
    struct Bar(ProgressBar, String);
    impl Drop for Bar {
        fn drop(&mut self) {
            self.0.finish_and_clear();
        }
    }
    let mut bar: Option<Bar> = None;
    move |phase, done, total| {
        let bar = match &mut bar {
            Some(bar) if bar.1 == phase => bar,
            other => {
                *other = None;
                other.insert(Bar(byte_bar(phase, total), phase.to_owned()))
            }
        };
        bar.0.set_length(total);
        bar.0.set_position(done);
    }
}

/// The same for loading a model.
pub(crate) fn phases() -> impl FnMut(&'static str, u64, u64) {
    let mut bars = named_phases();
    move |phase, done, total| bars(phase, done, total)
}

/// A bar of steps.
pub(crate) fn step_bar(what: &str, total: u64) -> ProgressBar {
    bar(what, total, "{msg} [{bar:30}] {pos}/{len}, {eta} left")
}

fn bar(what: &str, total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
