//! What is to be kept of a task, where and why, as plain data.

use std::time::Duration;

use crate::broker::{QueueSpec, Record};
use crate::events::Subject;
use crate::handler::Failure;
use crate::output;
use crate::settlement::Purpose;

/// A copy that is to take the place of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlannedCopy {
    /// The queue it goes to.
    pub(super) to: QueueSpec,
    /// What it says about the task.
    pub(super) record: Record,
    pub(super) purpose: Purpose,
    /// For messages.
    pub(super) named: Named,
    /// The task must not run, and not go back, before the copy is kept: the broker may drop it then.
    pub(super) comes_first: bool,
}

/// What messages say of a task whose body is on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) id: String,
    /// The start of its body.
    pub(super) start: String,
    /// How long its attempt took, where it ran.
    pub(super) took: Option<Duration>,
}

impl Named {
    pub(super) fn new(id: &str, body: &[u8], took: Option<Duration>) -> Self {
        Self { id: id.to_owned(), start: output::start(body), took }
    }

    /// In this attempt.
    pub(super) fn subject(&self, attempt: u32) -> Subject<'_> {
        Subject { id: &self.id, attempt, body: &self.start, took: self.took }
    }
}

impl PlannedCopy {
    /// Of a task of `queue` with this record, for `purpose`. `failure`: how its last attempt ended, where it ran; `now`:
    /// the time in seconds since 1970; `host`: where this worker runs.
    pub(super) fn new(
        purpose: Purpose,
        queue: &QueueSpec,
        record: &Record,
        failure: &Failure,
        named: Named,
        (now, host): (u64, &str),
    ) -> Self {
        let after_failure = |attempt, exit: &str| {
            record.after_failure(attempt, exit, &failure.stderr, now, host, &queue.name)
        };
        let (to, record) = match &purpose {
            Purpose::Retry { delay, attempt } => {
                (queue.delay(*delay), after_failure(*attempt, &failure.exit))
            }
            Purpose::DeadLetter(death) => (queue.dead(), after_failure(record.attempt, &death.exit)),
            Purpose::Count(deliveries) => {
                (queue.clone(), Record { deliveries: *deliveries, ..record.clone() })
            }
        };
        Self { to, record, purpose, named, comes_first: false }
    }

    /// It only counts a delivery of a task that may run.
    pub(super) fn counts(&self) -> bool {
        matches!(self.purpose, Purpose::Count(_))
    }
}
