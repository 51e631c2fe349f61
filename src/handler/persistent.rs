//! One process per worker thread, which is given task after task.

#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, select};

use super::Never;
use super::abort::told_to_stop;
use super::errors::{cannot_start, cannot_watch, ready};
use super::exit::describe;
use super::idle::{IdleWatcher, PersistentProcess};
use super::limits::{ABORT_GRACE, Limits, from_now};
use super::process::{EarlyClose, Process, ProcessIo};
use super::protocol::{Replies, Reply, request};
use super::spawn::Launch;
use super::spec::Spec;
use super::task::{Failure, Handler, Outcome, Task};

/// The least time between two starts of a process that fails; doubled with each failure, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a process that has closed its stdout has to exit.
const EXIT_WAIT: Duration = Duration::from_millis(250);

/// Keeps one command alive and speaks the line protocol with it.
///
/// When a new process may not be started yet, the pause is taken before the outcome of the task that failed is
/// returned. That one is held meanwhile, but its fate is known; the next one would be held as well (the broker sends
/// it with the answer to this one) and could run elsewhere.
pub struct Persistent {
    spec: Spec,
    idle_watcher: IdleWatcher,
    restarts: Restarts,
}

/// When a process may be started again.
struct Restarts {
    pause: Duration,
    not_before: Instant,
}

impl Restarts {
    fn new() -> Self {
        Self { pause: FIRST_PAUSE, not_before: Instant::now() }
    }

    fn started(&mut self) {
        self.not_before = Instant::now() + self.pause;
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
    }

    /// The process works: the next one may start as soon as it is needed.
    fn succeeded(&mut self) {
        *self = Self::new();
    }

    /// False if the worker was told to stop.
    fn wait(&self, abort: &Receiver<Never>) -> bool {
        select! {
            recv(abort) -> _ => false,
            recv(after(self.not_before.saturating_duration_since(Instant::now()))) -> _ => !told_to_stop(abort),
        }
    }
}

/// What came of a task that a process was given.
enum Answer {
    Reply(Reply),
    /// It broke the rules: in these words.
    Wrong(String),
    /// It ended.
    Exited {
        /// Nothing of the task.
        read_nothing: bool,
    },
    TimedOut,
    Aborted,
}

impl Persistent {
    pub(super) fn new(spec: Spec) -> io::Result<Self> {
        let idle_watcher = IdleWatcher::start(PersistentProcess::new(spec.process_io()?))?;
        Ok(Self { spec, idle_watcher, restarts: Restarts::new() })
    }

    /// The kept is put back by the caller, except after a panic: then its process is killed with it.
    fn take_kept(&mut self) -> io::Result<PersistentProcess> {
        match self.idle_watcher.take_back() {
            Some(kept) => Ok(kept),
            None => Ok(PersistentProcess::new(self.spec.process_io()?)),
        }
    }

    fn run_on(
        &mut self,
        kept: &mut PersistentProcess,
        task: &Task<'_>,
        abort: &Receiver<Never>,
    ) -> io::Result<Outcome> {
        let stop = self.spec.aborts().of(abort)?;
        let line = request(task)?;
        self.drop_if_out_of_step(kept)?;
        loop {
            if kept.running.is_none() {
                if !self.restarts.wait(abort) {
                    return Ok(Outcome::GivenUp);
                }
                match self.start(&kept.io) {
                    Ok(process) => kept.running = Some(process),
                    Err(error) => return Ok(cannot_start(&self.spec.name(), &error, false)),
                }
                kept.has_replied = false;
            }
            let Some(mut process) = kept.running.take() else { return Ok(Outcome::GivenUp) };
            let deadline = self.spec.options().timeout.map(from_now);
            let limits = Limits { deadline, abort: Some(Arc::clone(&stop)) };
            let answer = ask(&mut process, &mut kept.io, &line, &limits)?;
            process.catch_up(&mut kept.io)?;
            if let Some(outcome) = self.conclude(kept, process, answer, limits)? {
                return Ok(outcome);
            }
        }
    }

    /// What the answer makes of the task. None if it was not for this task that the process ended: another one is to be
    /// asked.
    fn conclude(
        &mut self,
        kept: &mut PersistentProcess,
        mut process: Process<Replies>,
        answer: Answer,
        limits: Limits,
    ) -> io::Result<Option<Outcome>> {
        let failure = |exit, process: &Process<_>| Failure { exit, stderr: process.err.tail() };
        Ok(Some(match answer {
            Answer::Reply(reply) => {
                self.restarts.succeeded();
                kept.has_replied = true;
                let outcome = match reply {
                    Reply::Ok => Outcome::Done,
                    Reply::Retry(exit) => Outcome::Failed(failure(exit, &process)),
                    Reply::Dead(exit) => Outcome::Dead(failure(exit, &process)),
                };
                kept.running = Some(process);
                outcome
            }
            Answer::Exited { read_nothing } => {
                let status = process.finish(&mut kept.io, limits)?;
                // One that has answered before did not fail to start: it ended between two tasks, as those do that
                // recycle themselves. The next one is not has_replied, so this does not repeat.
                if kept.has_replied && read_nothing && status.success() {
                    log::debug!(
                        "the handler {} ended between two tasks: starting a new one",
                        self.spec.name()
                    );
                    return Ok(None);
                }
                let failure = failure(format!("{} without a reply", describe(status)), &process);
                match self.spec.options().on_exit.outcome(status, process.err.tail()) {
                    Outcome::CommandMissing { why, .. } if !kept.has_replied => {
                        let why = format!("{}: {why}", self.spec.name());
                        Outcome::CommandMissing { failure, why }
                    }
                    Outcome::Terminated(_) => Outcome::Terminated(failure),
                    _ => Outcome::Failed(failure),
                }
            }
            Answer::Aborted => {
                let grace = self.spec.options().grace.min(ABORT_GRACE);
                process.stop(&mut kept.io, &mut Limits { deadline: Some(from_now(grace)), abort: None })?;
                Outcome::GivenUp
            }
            Answer::Wrong(_) | Answer::TimedOut => {
                let timeout = self.spec.options().timeout.unwrap_or_default();
                let (exit, grace) = match answer {
                    Answer::Wrong(why) => (why, self.spec.options().grace.min(ABORT_GRACE)),
                    _ => (format!("timed out after {timeout:?}"), self.spec.options().grace),
                };
                let mut limits = Limits { deadline: Some(from_now(grace)), ..limits };
                process.stop(&mut kept.io, &mut limits)?;
                match limits.abort {
                    Some(_) => Outcome::Failed(failure(exit, &process)),
                    None => Outcome::GivenUp,
                }
            }
        }))
    }

    fn start(&mut self, io: &ProcessIo) -> io::Result<Process<Replies>> {
        let (path, arguments) = (self.spec.path()?, self.spec.arguments()?);
        let environment: Vec<&CStr> = self.spec.environment().entries().collect();
        let launch = Launch { path: &path, arguments: &arguments, environment: &environment };
        let err = self.spec.output().stderr(io.waker());
        let process = Process::start(io, &launch, EarlyClose::Notice, Replies::default(), err)?;
        self.restarts.started();
        Ok(process)
    }

    /// EarlyClose a process that has ended or has said something since the last task: a reply that nobody asked for would
    /// be taken for the one to the next task.
    fn drop_if_out_of_step(&mut self, kept: &mut PersistentProcess) -> io::Result<()> {
        let Some(mut process) = kept.running.take() else { return Ok(()) };
        process.catch_up(&mut kept.io)?;
        let why = match process.out.rest() {
            Some(rest) => format!("wrote {rest:?} to stdout without being asked"),
            None if process.closed_stdout() || process.exited() => "ended between two tasks".into(),
            None => {
                kept.running = Some(process);
                return Ok(());
            }
        };
        log::warn!("the handler {} {why}: starting a new one", self.spec.name());
        let grace = self.spec.options().grace.min(ABORT_GRACE);
        process.stop(&mut kept.io, &mut Limits { deadline: Some(from_now(grace)), abort: None })
    }
}

fn ask(
    process: &mut Process<Replies>,
    io: &mut ProcessIo,
    line: &[u8],
    limits: &Limits,
) -> io::Result<Answer> {
    let mut input = line;
    // A process that closes its stdout is about to end, as a rule.
    let mut exit_due = None;
    process.err.forget_tail();
    process.feed(&mut input);
    loop {
        let step = exit_due.map_or_else(|| limits.clone(), |due| limits.by(due));
        let seen = process.wait(io, &mut input, &step)?;
        if seen.exited {
            // It may have answered before.
            process.catch_up(io)?;
        }
        match process.out.next() {
            Some(_) if !input.is_empty() => {
                return Ok(Answer::Wrong("answered before it had read the task".into()));
            }
            Some(Ok(reply)) => return Ok(Answer::Reply(reply)),
            Some(Err(line)) => {
                return Ok(Answer::Wrong(format!("answered {line:?} instead of OK, RETRY or DEAD")));
            }
            None if seen.exited => {
                let left = process.unread_input().map(|left| left + input.len() as u64);
                return Ok(Answer::Exited { read_nothing: left == Some(line.len() as u64) });
            }
            None if seen.aborted => return Ok(Answer::Aborted),
            None if limits.deadline_passed() => return Ok(Answer::TimedOut),
            None if step.deadline_passed() => {
                return Ok(Answer::Wrong("closed its stdout without a reply".into()));
            }
            None if process.closed_stdout() => exit_due = exit_due.or(Some(from_now(EXIT_WAIT))),
            None => {}
        }
    }
}

impl Handler for Persistent {
    fn run(&mut self, task: &Task<'_>, abort: &Receiver<Never>) -> Outcome {
        if told_to_stop(abort) {
            return Outcome::GivenUp;
        }
        let mut kept = match self.take_kept() {
            Ok(kept) => kept,
            Err(error) => return cannot_watch(&self.spec.name(), &error),
        };
        let outcome = self
            .run_on(&mut kept, task, abort)
            .unwrap_or_else(|error| cannot_watch(&self.spec.name(), &error));
        let ended = kept.running.is_none();
        self.idle_watcher.watch(kept);
        if ended && matches!(outcome, Outcome::Failed(_)) {
            self.restarts.wait(abort);
        }
        outcome
    }

    fn ready(&self) -> io::Result<()> {
        ready()
    }

    /// Closes its stdin, which tells a handler that no task follows; TERM after half of the grace period, KILL at
    /// its end.
    fn close(&mut self, abort: &Receiver<Never>) {
        let Some(PersistentProcess { mut io, running: Some(mut process), .. }) =
            self.idle_watcher.take_back()
        else {
            return;
        };
        process.close_stdin();
        let grace = self.spec.options().grace;
        let (half, whole) = (from_now(grace / 2), from_now(grace));
        let mut limits = Limits { deadline: Some(whole), abort: self.spec.aborts().of(abort).ok() };
        let closed = loop {
            match process.wait(&mut io, &mut &[][..], &limits.by(half)) {
                Ok(seen) if seen.exited => break process.finish(&mut io, limits).map(drop),
                Ok(seen) if seen.deadline_passed || seen.aborted => break process.stop(&mut io, &mut limits),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = closed {
            log::warn!("the handler {} was killed: {error}", self.spec.name());
        }
    }
}
