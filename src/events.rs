//! What happens to tasks, connections and workers, as plain data: said once, by whoever knows it, and rendered by
//! [`crate::report`].

use std::fmt::Display;
use std::time::Duration;

use crate::broker::{AckTimeout, CopyForm};
use crate::error::Error;
use crate::settlement::{Death, Uncounted};

/// See the module. Ids, bodies and reasons of tasks are as they came, and made fit for people by the report; what is
/// composed already (errors, faults, `why`) holds what others said only as [`crate::output::foreign`] makes it.
pub enum Event<'e> {
    /// A task arrived, and is about to run.
    Received { task: Subject<'e> },
    /// The task that ran on this thread is done.
    Done { task: Subject<'e> },
    /// An attempt failed, and another one follows.
    Retried { task: Subject<'e>, attempts: u32, exit: &'e str, delay: Duration },
    /// A task is dead after this attempt, and kept.
    Dead { task: Subject<'e>, death: &'e Death, queue: &'e str },
    /// A task came back that failed here before its copy was kept.
    FailedHereBefore { id: &'e str },
    /// A task came back that was finished here before its connection was lost.
    FinishedHereBefore { id: &'e str },
    /// A task came back that still runs here.
    RunsHereAlready { id: &'e str },
    /// A task is to run although its deliveries should be counted first.
    RunsUncounted { task: Subject<'e>, why: &'e Uncounted },
    /// A task that failed is too large to be copied.
    TooLargeToCopy { task: Subject<'e>, queue: &'e str, length: usize, limit: u64, hold_limit: Duration },
    /// Tasks go back to the queue at the end because their copies are not kept.
    WithoutCopies { count: u64 },
    /// Tasks went back to a queue that may drop them for it.
    LastReturns { queue: &'e str, count: usize },
    /// A command was not found or not executable, and it is not known whether that is the task's fault.
    CommandMissing { why: &'e str },
    /// A task cannot run for want of something that this machine lacks now.
    Shortage { what: &'e str },
    /// A task cannot run because the command cannot be started now.
    CommandNotStarted { why: &'e str },
    /// The worker consumes for the first time.
    Waiting,
    /// The worker is connected to this broker, for the first time.
    Connected { broker: &'e str },
    /// A connection was lost, and there is another one now.
    ConnectedAgain { broker: &'e str },
    /// A connection was lost.
    ConnectionLost { broker: &'e str, cause: &'e dyn Display },
    /// No connection, and it is tried again.
    CannotConnect { why: &'e str },
    /// `send` has no connection, and tries again.
    SenderDown { why: &'e str },
    /// The broker refuses (nacks) what `send` publishes, and it tries another connection.
    SenderRefused { why: &'e str, patience: Duration },
    /// A channel was lost.
    ChannelLost { cause: &'e dyn Display },
    /// A task was not acknowledged in time, and the broker took it back.
    AcknowledgementLate {
        broker: AckTimeout,
        /// How long the task was here, where that is known.
        held: Option<Duration>,
        words: Option<&'e dyn Display>,
    },
    /// `--timeout` is not below what the broker waits for an acknowledgement.
    TimeoutTooLong { broker: AckTimeout },
    /// A channel did not end in good order.
    LastAcknowledgementUnknown { cause: &'e dyn Display },
    /// The queue that is worked on was deleted, or cannot be looked at.
    QueueGone { cause: &'e dyn Display },
    /// A queue in which tasks wait was there, and then was not.
    QueueVanished { queue: &'e str },
    /// Nobody answers for a queue.
    QueueSilent { queue: &'e str },
    /// The broker takes no publishes: an alarm. A worker that holds tasks over it says so each minute.
    PublishingBlocked { broker: &'e str, reason: &'e str, waiting: WhoWaits },
    /// It takes publishes again.
    PublishingAccepted { broker: &'e str },
    /// A copy is tried again in a form that has less to refuse.
    CopyReduced { id: &'e str, cause: &'e dyn Display, form: CopyForm },
    /// A queue takes no copies.
    CopiesRefused { queue: &'e str, reason: &'e dyn Display, tasks: usize },
    /// The broker does not take the copy of one task.
    CopyRefused { id: &'e str, queue: &'e str, reason: &'e dyn Display },
    /// Dead tasks could not be replaced by copies.
    NotRefreshed { queue: &'e str, error: &'e Error },
    /// `dead` was told to stop while it holds tasks that need copies.
    FinishingCopies { signal: &'e str },
    /// The worker was told to stop.
    Stopping { signal: &'e str, running: usize, grace: Duration },
    /// The worker gives up what runs.
    GivingUp { why: &'e str, running: usize, last_chances: usize },
    /// The worker ends with an error although something else ends the process.
    Failed { error: &'e Error },
}

/// Which task something happens to.
#[derive(Clone, Copy)]
pub struct Subject<'e> {
    /// Empty where it has none.
    pub id: &'e str,
    /// The attempt that it is for.
    pub attempt: u32,
    /// The start of its body, as text for people.
    pub body: &'e dyn Display,
    /// How long the attempt took, where it is over.
    pub took: Option<Duration>,
}

/// Who waits for a broker that has blocked publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhoWaits {
    /// A worker: so many tasks now, for their copies.
    Worker { tasks: usize },
    /// `send`, for so long at most.
    Sender(Duration),
    /// `dead`.
    Dead,
}
