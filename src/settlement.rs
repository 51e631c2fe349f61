//! The rules of what becomes of a delivery, as pure functions of plain data: before its task runs ([`Earlier`]), after it
//! ran ([`Policy`]), when something is known of its copy ([`after_copy`]), and while that is waited for ([`Held`]). Whoever
//! asks carries out the [`Disposition`].

mod copy;
mod run;

use std::time::Duration;

pub use copy::{CopyResult, Held, HeldCopy, WaitsFor, after_copy};
pub use run::{Earlier, Policy};

use crate::error::Error;

/// What to do with a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Run its task.
    Run,
    /// Run its task although its deliveries should be counted first, and cannot be.
    RunUncounted(Uncounted),
    /// Publish a copy, and acknowledge the delivery when the broker has confirmed the copy.
    Republish(Purpose),
    /// Acknowledge it: the task is done, or a copy is kept.
    Acknowledge,
    /// Back to the queue as it is; no attempt is used up.
    GiveBack,
    /// As `GiveBack`, and take nothing for a while, for want of this: it would come back at once.
    GiveBackAndPause(String),
    /// As `GiveBack`, and stop the worker: no task can run here, or none can be settled.
    GiveBackAndStop(Error),
    /// Neither answer it nor run it now: its copy is under way.
    Wait,
    /// Hold it for as long as that is possible and give it back then, for there will be no copy: given back now, it would
    /// come at once and hold up those behind it.
    Hold,
}

/// What a copy is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// The next attempt.
    Retry {
        /// Not before this much time has passed.
        delay: Duration,
        /// The number of the attempt that follows.
        attempt: u32,
    },
    /// A person: the task is dead.
    DeadLetter(Death),
    /// The next delivery of a task that may run. The copy carries this count of deliveries that ended without an answer;
    /// should the task take the worker down, the count is there.
    Count(u32),
}

/// Why a task is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// How it ended, in a short phrase. Its record says this alone: the attempt stands beside it.
    pub exit: String,
    /// How many attempts it had, where the last of them failed; otherwise it is dead whichever attempt this was.
    pub of_attempts: Option<u32>,
}

/// Why the deliveries of a task cannot be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uncounted {
    /// Publishing is blocked or not allowed.
    NoCopies,
    /// The broker takes no body of more than `limit` bytes.
    TooLarge {
        /// Of this one, in bytes.
        length: usize,
        /// In bytes.
        limit: u64,
    },
    /// Its queue is full, and nothing else makes room.
    QueueFull,
    /// This user may not publish there.
    NotAllowed(Error),
    /// The worker ends, and to go back may be the end of the task.
    LastChance,
}
