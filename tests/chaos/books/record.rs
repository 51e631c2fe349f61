//! What a run leaves behind, line by line: tasks that were confirmed, runs of handlers, tasks left in queues.

use super::clock::Moment;
use std::fmt;

/// What a task asks of its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Succeeds.
    Succeed,
    /// Fails so many times first.
    FailFirst(u32),
    /// Fails each time, or never ends, which comes to the same.
    Fail,
    /// Says that no attempt can succeed.
    Refuse,
}

/// The body of a task begins with this: who sent it, what it is to do, when it was handed to its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body {
    /// The run of `taskq send` that it was given to, such as `s0.3`.
    pub(crate) session: String,
    pub(crate) number: u32,
    /// `quick`, `slow1.5`, `once`, `twice`, `hopeless`, `hang`, `data`.
    pub(crate) errand: String,
    pub(crate) fed: Moment,
}

impl Body {
    pub(crate) fn parse(name: &str, errand: &str, fed: &str) -> Option<Self> {
        let (session, number) = name.split_once('/')?;
        Some(Self {
            session: session.to_owned(),
            number: number.parse().ok()?,
            errand: errand.to_owned(),
            fed: Moment::parse(fed)?,
        })
    }

    pub(crate) fn errand(&self) -> Errand {
        match self.errand.as_str() {
            "once" => Errand::FailFirst(1),
            "twice" => Errand::FailFirst(2),
            "hopeless" | "hang" => Errand::Fail,
            "data" => Errand::Refuse,
            _ => Errand::Succeed,
        }
    }

    /// The place of its sender: 3 in `s3.14`.
    pub(crate) fn sender(&self) -> Option<usize> {
        place(&self.session)
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {} {}", self.session, self.number, self.errand, self.fed)
    }
}

/// The number after the first letter: 3 in `w3.14`.
fn place(name: &str) -> Option<usize> {
    name.get(1..)?.split('.').next()?.parse().ok()
}

/// How a handler's run ended, by its own account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
    /// Written before it begins to hang; the worker's time-out ends it.
    Hung,
    Refused,
    /// It was given an incomplete body, as its worker died while writing it.
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
    /// Such as `w1.4`: the fourth process in place 1.
    pub(crate) worker: String,
    pub(crate) pid: u32,
    pub(crate) start: Moment,
    pub(crate) end: Moment,
}

impl Run {
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let [outcome, task, name, errand, fed, attempt, redelivered, worker, pid, start, end] =
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
            body: Body::parse(name, errand, fed)?,
            attempt: attempt.parse().ok()?,
            redelivered: redelivered == "1",
            worker: worker.to_owned(),
            pid: pid.parse().ok()?,
            start: Moment::parse(start)?,
            end: Moment::parse(end)?,
        })
    }

    pub(crate) fn place(&self) -> Option<usize> {
        place(&self.worker)
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

/// A task that lies in a queue at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) task: String,
    pub(crate) body: Body,
    pub(crate) attempt: u32,
}

/// One run of `taskq send`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) name: String,
    /// It exited with 0: all that it was given is confirmed.
    pub(crate) succeeded: bool,
    /// Its tasks were sent with a delay.
    pub(crate) delayed: bool,
}
