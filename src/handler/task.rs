//! What a handler is: it gets a task, and says how the attempt at it ended.

use std::io;

use crossbeam_channel::Receiver;

use crate::calendar::Moment;
use crate::cancel::Never;

/// One delivery of a task, as a handler sees it.
#[derive(Debug)]
pub struct Task<'a> {
    /// The message id; empty where the producer gave none.
    pub id: &'a str,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// How many attempts the task has, the first included.
    pub attempts: u32,
    /// The queue the worker consumes from.
    pub queue: &'a str,
    /// The broker has delivered this message before.
    pub redelivered: bool,
    /// Empty where the producer gave none.
    pub content_type: &'a str,
    /// What else its producer has said of it.
    pub properties: TaskProperties<'a>,
    /// The user's headers as text, without taskq's own; values that have no text form are left out.
    pub headers: &'a [(String, String)],
    /// Any bytes.
    pub body: &'a [u8],
}

/// Properties of AMQP that a task may have or not. An empty one is there.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaskProperties<'a> {
    pub reply_to: Option<&'a str>,
    pub correlation_id: Option<&'a str>,
    /// Such as `gzip`.
    pub content_encoding: Option<&'a str>,
    /// The property `type`, a word between producer and handler.
    pub kind: Option<&'a str>,
    pub priority: Option<u8>,
    /// When the task was sent, as its producer says.
    pub timestamp: Option<Moment>,
}

impl<'a> Task<'a> {
    /// The value of a header whose name may be written in capitals or not. If several are called so, the last one holds.
    pub(super) fn header(&self, name: &str) -> Option<&'a str> {
        let mut headers = self.headers.iter().rev();
        headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// How one attempt at a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The task is finished and can be acknowledged.
    Done,
    /// The attempt failed; another one may succeed.
    Failed(Failure),
    /// The handler said that no further attempt can succeed.
    Dead(Failure),
    /// The process was ended by a signal that ends whole services. The attempt failed, unless the worker got such a
    /// signal as well.
    Terminated(Failure),
    /// The command exited with 126 or 127, which says that some command is not executable or not found. The attempt
    /// failed, unless it is the same with all tasks.
    CommandMissing {
        /// For the task, if only this one is concerned.
        failure: Failure,
        /// For a person, if all tasks are concerned: what is wrong.
        why: String,
    },
    /// The worker gave the task up, because it was told to stop or is not sure that it can run tasks: this is no
    /// attempt, the task goes back.
    GivenUp,
    /// The machine lacks what it takes to run a task now (descriptors, processes, memory): this is no attempt, the task
    /// goes back. The text says what is missing.
    NoResources(String),
    /// No task can run here (the command is missing or not executable): the worker has to stop, the task goes
    /// back.
    CannotRun(Obstacle),
}

impl Outcome {
    /// Why the attempt failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure)
            | Self::Dead(failure)
            | Self::Terminated(failure)
            | Self::CommandMissing { failure, .. } => Some(failure),
            Self::Done | Self::GivenUp | Self::NoResources(_) | Self::CannotRun(_) => None,
        }
    }
}

/// Why no task can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// One line for a person.
    pub why: String,
    /// Nothing was started, and the obstacle may be gone in a moment: the command may just be being replaced.
    pub may_pass: bool,
}

impl Obstacle {
    /// An obstacle that stays, or that makes it unknown whether the task ran.
    #[must_use]
    pub fn lasting(why: String) -> Self {
        Self { why, may_pass: false }
    }
}

/// Why an attempt failed. This goes into the headers of the retried or dead task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failure {
    /// One short phrase: `exit status 3`, `killed by signal 9`, `timed out after 30s`, `RETRY disk full`.
    pub exit: String,
    /// The end of what the handler wrote to stderr, at most 2 KiB, as it was (not escaped).
    pub stderr: Vec<u8>,
}

/// Runs tasks on one worker thread.
pub trait Handler {
    /// Runs one task to its end. When `abort` closes (it never carries a message) the handler stops what it is
    /// doing at once and returns [`Outcome::GivenUp`].
    fn run(&mut self, task: &Task<'_>, abort: &Receiver<Never>) -> Outcome;

    /// Whether the machine has what it takes to run a task, as far as that can be known without running one.
    fn ready(&self) -> io::Result<()> {
        Ok(())
    }

    /// Closes whatever the handler keeps between tasks, within its own grace period or until `abort` closes.
    fn close(&mut self, abort: &Receiver<Never>);
}
