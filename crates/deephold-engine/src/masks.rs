//! Masks ahead of time: while the forward pass of the next step runs, a thread of its own follows the constraints and has their
//! masks ready when the step samples.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use crate::constraint::{Constraint, TokenMask};

/// The thread; it ends when this is dropped.
pub(crate) struct MaskWorker(Sender<Job>);

struct Job {
    constraint: Box<dyn Constraint>,
    done: SyncSender<Ready>,
}

/// A constraint with the mask for its next token.
pub(crate) struct Ready {
    /// None where it failed: nothing of it can be trusted then.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) mask: Result<Option<TokenMask>, String>,
}

/// A constraint whose mask is being computed, or will be when it is asked for.
pub(crate) enum Masked {
    Here(Box<dyn Constraint>),
    Ahead(Receiver<Ready>),
}

impl MaskWorker {
    /// None where the system gives no thread: then masks are computed when they are asked for.
    pub(crate) fn start() -> Option<Self> {
        let (jobs, queue) = channel::<Job>();
        let run = move || {
            for job in queue {
                // A sequence that has ended takes its receiver with it.
                let _ = job.done.send(ready(job.constraint));
            }
        };
        std::thread::Builder::new().name("masks".into()).spawn(run).ok()?;
        Some(Self(jobs))
    }

    fn ahead(&self, constraint: Box<dyn Constraint>) -> Masked {
        let (done, waiting) = sync_channel(1);
        match self.0.send(Job { constraint, done }) {
            Ok(()) => Masked::Ahead(waiting),
            Err(job) => Masked::Here(job.0.constraint),
        }
    }
}

impl Masked {
    /// With the worker, where there is one.
    pub(crate) fn new(constraint: Box<dyn Constraint>, worker: Option<&MaskWorker>) -> Self {
        match worker {
            Some(worker) => worker.ahead(constraint),
            None => Self::Here(constraint),
        }
    }

    /// The mask for the next token, as soon as it is there.
    pub(crate) fn ready(self) -> Ready {
        match self {
            Self::Here(constraint) => ready(constraint),
            Self::Ahead(waiting) => {
                waiting.recv().unwrap_or_else(|_| Ready { constraint: None, mask: Err(DEFECT.into()) })
            }
        }
    }
}

/// What a caller is told whose constraint panicked.
pub(crate) const DEFECT: &str = "the constraint of this request failed; this is a defect";

/// The constraint is the caller's code: a panic in it ends its sequence alone.
fn ready(mut constraint: Box<dyn Constraint>) -> Ready {
    match catch_unwind(AssertUnwindSafe(|| constraint.allowed())) {
        Ok(mask) => Ready { constraint: Some(constraint), mask },
        Err(_) => Ready { constraint: None, mask: Err(DEFECT.into()) },
    }
}
