//! What is to be kept of a task, where and why, as plain data.

use crate::broker::{QueueSpec, Record};

/// A copy that is to take the place of a task.
#[derive(Debug, Clone)]
pub(super) struct PlannedCopy {
    /// The queue it goes to.
    pub(super) to: QueueSpec,
    /// What it says about the task.
    pub(super) record: Record,
    pub(super) purpose: Purpose,
    /// The task must not run, and not go back, before the copy is kept: the broker may drop it then.
    pub(super) comes_first: bool,
}

/// What a copy is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The next attempt.
    Retried,
    /// A person, for this reason.
    Dead(String),
    /// The next delivery of a task whose count of deliveries has to be written before it runs.
    Counted,
}
