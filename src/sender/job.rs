//! What is asked of a sender, and what it tells.

use std::time::{Duration, SystemTime};

use super::source::Item;
use crate::broker::{Properties, QueueSpec, SessionOptions};
use crate::calendar::Day;
use crate::error::Error;

/// What to send, and how.
pub struct Job {
    /// How to reach the broker.
    pub session: SessionOptions,
    /// Where the tasks go.
    pub queue: QueueSpec,
    /// How long they wait before that, in a queue of the day on which they are sent.
    pub delay: Option<Duration>,
    /// Everything but the id.
    pub properties: Properties,
    /// There is one task only.
    pub single: bool,
    /// The id of a single task; otherwise each gets one of its own.
    pub id: Option<String>,
    /// How long to go on without a single confirm.
    pub retry_for: Duration,
}

impl Job {
    /// Where the broker puts at first what is published at this moment: input may come for days.
    pub(super) fn first_queue(&self, now: SystemTime) -> QueueSpec {
        match self.delay {
            Some(delay) => self.queue.delay_of(Day::of(now), delay),
            None => self.queue.clone(),
        }
    }
}

/// Is told of every task's end, in the order of the input.
pub trait Report {
    /// The broker has it.
    fn confirmed(&mut self, item: &Item, id: &str);
    /// The broker does not have it for certain.
    fn failed(&mut self, item: &Item, why: &Error);
    /// The broker does not have it for certain, because all of the sending ended; why is in the summary.
    fn abandoned(&mut self, item: &Item);
}

/// How it went.
#[derive(Debug, Default)]
pub struct Summary {
    /// Tasks that the broker confirmed.
    pub confirmed: u64,
    /// Tasks that it did not confirm, as far as the input was read.
    pub failed: u64,
    /// Why sending ended before the end of the input, if it did.
    pub ended: Option<Error>,
    /// The gravest of the single tasks' errors.
    pub worst: Option<Error>,
}
