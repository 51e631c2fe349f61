//! What happens to tasks, connections and workers, as plain data: said once, by whoever knows it, and rendered by
//! [`crate::report`].

use std::fmt::Display;
use std::time::Duration;

use crate::broker::{AckTimeout, CopyForm};
use crate::error::Error;
use crate::settlement::Uncounted;

/// See the module. Texts are as the broker or the task brought them, not escaped.
pub enum Event<'e> {
    /// A task arrived, and is about to run.
    Received {
        /// Any bytes.
        body: &'e [u8],
    },
    /// The task that ran on this thread is done.
    Done,
    /// An attempt failed, and another one follows.
    Retried {
        /// The one that failed, from 1.
        attempt: u32,
        /// How many there are.
        attempts: u32,
        /// How it ended.
        exit: &'e str,
        /// When the next one comes.
        delay: Duration,
    },
    /// A task is dead, and kept.
    Dead {
        /// The reason.
        why: &'e str,
        /// Where it is kept.
        queue: &'e str,
    },
    /// A task came back that failed here before its copy was kept.
    FailedHereBefore {
        /// The task's.
        id: &'e str,
    },
    /// A task came back that was finished here before its connection was lost.
    FinishedHereBefore {
        /// The task's.
        id: &'e str,
    },
    /// A task came back that still runs here.
    RunsHereAlready {
        /// The task's.
        id: &'e str,
    },
    /// A task is to run although its deliveries should be counted first.
    RunsUncounted {
        /// The task's.
        id: &'e str,
        /// What stands in the way.
        why: &'e Uncounted,
    },
    /// A task that failed is too large to be copied.
    TooLargeToCopy {
        /// Where the copy was to go.
        queue: &'e str,
        /// Of its body, in bytes.
        length: usize,
        /// The broker's, in bytes.
        limit: u64,
        /// When the task comes again.
        hold_limit: Duration,
    },
    /// Tasks go back to the queue at the end because their copies are not kept.
    WithoutCopies {
        /// How many.
        count: u64,
    },
    /// Tasks went back to a queue that may drop them for it.
    LastReturns {
        /// The queue.
        queue: &'e str,
        /// How many.
        count: usize,
    },
    /// A command was not found or not executable, and it is not known whether that is the task's fault.
    CommandMissing {
        /// What is wrong.
        why: &'e str,
    },
    /// A task cannot run for want of something that this machine lacks now.
    Shortage {
        /// What is missing.
        what: &'e str,
    },
    /// A task cannot run because the command cannot be started now.
    CommandNotStarted {
        /// What is wrong.
        why: &'e str,
    },
    /// The worker consumes for the first time.
    Waiting,
    /// The worker is connected to this broker.
    Connected {
        /// The broker, and what it says it is.
        broker: &'e str,
    },
    /// A connection was lost.
    ConnectionLost {
        /// The broker.
        broker: &'e str,
        /// Why.
        cause: &'e dyn Display,
    },
    /// No connection, and it is tried again.
    CannotConnect {
        /// Why.
        why: &'e str,
    },
    /// `send` has no connection, and tries again.
    SenderDown {
        /// Why.
        why: &'e str,
    },
    /// The broker does not let `send` in any more, and it tries again.
    SenderRefused {
        /// What happened.
        why: &'e str,
        /// For so long.
        patience: Duration,
    },
    /// A channel was lost.
    ChannelLost {
        /// Why.
        cause: &'e dyn Display,
    },
    /// A task was not acknowledged in time, and the broker took it back.
    AcknowledgementLate {
        /// Who says how long the broker waits.
        broker: AckTimeout,
        /// How long the task was here, where that is known.
        held: Option<Duration>,
        /// What the broker said.
        words: Option<&'e dyn Display>,
    },
    /// `--timeout` is not below what the broker waits for an acknowledgement.
    TimeoutTooLong {
        /// Who says how long the broker waits.
        broker: AckTimeout,
    },
    /// A channel did not end in good order.
    LastAcknowledgementUnknown {
        /// Why.
        cause: &'e dyn Display,
    },
    /// The queue that is worked on was deleted, or cannot be looked at.
    QueueGone {
        /// What the broker said.
        cause: &'e dyn Display,
    },
    /// A queue in which tasks wait was there, and then was not.
    QueueVanished {
        /// Its name.
        queue: &'e str,
    },
    /// Nobody answers for a queue.
    QueueSilent {
        /// Its name.
        queue: &'e str,
    },
    /// The broker takes no publishes: an alarm.
    PublishingBlocked {
        /// The broker.
        broker: &'e str,
        /// What it says.
        reason: &'e str,
        /// Who waits for that to end.
        waiting: WhoWaits,
    },
    /// It takes publishes again.
    PublishingAccepted {
        /// The broker.
        broker: &'e str,
    },
    /// A copy is tried again in a form that has less to refuse.
    CopyReduced {
        /// The task's.
        id: &'e str,
        /// What the broker said.
        cause: &'e dyn Display,
        /// What the copy keeps.
        form: CopyForm,
    },
    /// A queue takes no copies.
    CopiesRefused {
        /// Its name.
        queue: &'e str,
        /// Why.
        reason: &'e dyn Display,
        /// Tasks that wait for it.
        tasks: usize,
    },
    /// The broker does not take the copy of one task.
    CopyRefused {
        /// The task's.
        id: &'e str,
        /// Where it was to go.
        queue: &'e str,
        /// Why.
        reason: &'e dyn Display,
    },
    /// Dead tasks could not be replaced by copies.
    NotRefreshed {
        /// Where they are.
        queue: &'e str,
        /// Why.
        error: &'e Error,
    },
    /// `dead` was told to stop while it holds tasks that need copies.
    FinishingCopies {
        /// The signal's name.
        signal: &'e str,
    },
    /// The worker was told to stop.
    Stopping {
        /// The signal's name.
        signal: &'e str,
        /// Tasks that run.
        running: usize,
        /// How long they may take.
        grace: Duration,
    },
    /// The worker gives up what runs.
    GivingUp {
        /// What for.
        why: &'e str,
        /// Tasks that run.
        running: usize,
        /// Those of them that the broker may drop.
        last_chances: usize,
    },
    /// The worker ends with an error although something else ends the process.
    Failed {
        /// The error.
        error: &'e Error,
    },
}

/// Who waits for a broker that has blocked publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhoWaits {
    /// A worker: failed tasks, for their copies.
    Worker,
    /// `send`, for so long at most.
    Sender(Duration),
    /// `dead`.
    Mover,
}
