//! What is recorded in a round, line by line: confirmed tasks, runs of handlers, tasks that remain in queues.

use super::clock::Moment;
use std::fmt;

/// What a task asks of its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Succeeds.
    Succeed,
    /// Fails this many times first.
    FailFirst(u32),
    /// Fails each time, or hangs, which counts as a failure.
    Fail,
    /// Says that no attempt can succeed.
    Refuse,
}

/// The body of a task begins with this: who sent it, what the handler is to do, when it was submitted to its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body {
    /// The `taskq send` that it was submitted to, such as `s0.3`.
    pub(crate) session: String,
    pub(crate) number: u32,
    /// `quick`, `slow1.5`, `once`, `twice`, `hopeless`, `hang`, `data`.
    pub(crate) action: String,
    pub(crate) submitted: Moment,
}

impl Body {
    pub(crate) fn parse(name: &str, action: &str, submitted: &str) -> Option<Self> {
        let (session, number) = name.split_once('/')?;
        Some(Self {
            session: session.to_owned(),
            number: number.parse().ok()?,
            action: action.to_owned(),
            submitted: Moment::parse(submitted)?,
        })
    }

    pub(crate) fn action(&self) -> Action {
        match self.action.as_str() {
            "once" => Action::FailFirst(1),
            "twice" => Action::FailFirst(2),
            "hopeless" | "hang" => Action::Fail,
            "data" => Action::Refuse,
            _ => Action::Succeed,
        }
    }

    /// The number of its sender: 3 in `s3.14`.
    pub(crate) fn sender(&self) -> Option<usize> {
        number_of(&self.session)
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {} {}", self.session, self.number, self.action, self.submitted)
    }
}

/// The number after the first letter: 3 in `w3.14`.
fn number_of(name: &str) -> Option<usize> {
    name.get(1..)?.split('.').next()?.parse().ok()
}

/// How a run ended, as the handler recorded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    /// Written before it begins to hang; the worker's time-out ends it.
    Hung,
    Refused,
    /// Its body was incomplete: the worker was killed while writing it.
    Truncated,
}

/// One completed run: a line that the handler wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    pub(crate) task: String,
    pub(crate) body: Body,
    pub(crate) attempt: u32,
    pub(crate) redelivered: bool,
    /// Such as `w1.4`: the fourth process in slot 1.
    pub(crate) worker: String,
    pub(crate) pid: u32,
    pub(crate) start: Moment,
    pub(crate) end: Moment,
}

impl Run {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [outcome, task, name, action, submitted, attempt, redelivered, worker, pid, start, end] =
            fields.try_into().ok()?;
        Some(Self {
            outcome: match outcome {
                "done" => Outcome::Done,
                "failed" => Outcome::Failed,
                "hung" => Outcome::Hung,
                "refused" => Outcome::Refused,
                "truncated" => Outcome::Truncated,
                _ => return None,
            },
            task: task.to_owned(),
            body: Body::parse(name, action, submitted)?,
            attempt: attempt.parse().ok()?,
            redelivered: redelivered == "1",
            worker: worker.to_owned(),
            pid: pid.parse().ok()?,
            start: Moment::parse(start)?,
            end: Moment::parse(end)?,
        })
    }

    pub(crate) fn slot(&self) -> Option<usize> {
        number_of(&self.worker)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let redelivered = if self.redelivered { ", redelivered" } else { "" };
        write!(
            f,
            "{:?} attempt {} of task {} ({}) on {}, handler {}, {} to {}{redelivered}",
            self.outcome, self.attempt, self.task, self.body, self.worker, self.pid, self.start, self.end
        )
    }
}

/// An id that `taskq send` printed, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Confirmed {
    pub(crate) at: Moment,
    pub(crate) session: String,
    pub(crate) task: String,
}

/// A task that is in a queue at the end of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remaining {
    pub(crate) task: String,
    pub(crate) body: Body,
    pub(crate) attempt: u32,
}

/// One `taskq send`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) name: String,
    /// It exited with 0: all that it was given is confirmed.
    pub(crate) succeeded: bool,
    /// Its tasks were sent with a delay.
    pub(crate) delayed: bool,
}
