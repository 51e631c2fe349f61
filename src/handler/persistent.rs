//! The handler that keeps one process per worker thread and gives it one task after the other.

#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, select};

use super::abort::is_aborted;
use super::errors::{cannot_start, cannot_watch, ready};
use super::exit::describe;
use super::idle::{IdleWatcher, PersistentProcess};
use super::limits::{ABORT_GRACE, Limits, from_now};
use super::process::{EarlyClose, Process, ProcessIo};
use super::protocol::{Replies, Reply, request};
use super::spawn::Launch;
use super::spec::Spec;
use super::task::{Failure, Handler, Outcome, Task};
use crate::cancel::Never;
use crate::duration;

/// The time between two starts of processes that fail. It is doubled with each failure, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a process that has closed its stdout has to exit.
const EXIT_WAIT: Duration = Duration::from_millis(250);

/// Keeps one command alive and speaks the line protocol with it.
///
/// When a process has failed a task, the pause before the next start is taken before the outcome is returned, not with
/// the next task. Otherwise the broker would deliver the next task at once, and hold it here during the pause although
/// another worker could run it.
pub struct Persistent {
    spec: Spec,
    idle_watcher: IdleWatcher,
    restarts: Restarts,
}

/// When a process may be started again.
struct Restarts {
    /// After the next start.
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

    /// To be called when a process has replied: the next start needs no pause.
    fn succeeded(&mut self) {
        *self = Self::new();
    }

    /// Waits until a process may be started. False if that was ended by the abort.
    fn wait(&self, abort: &Receiver<Never>) -> bool {
        select! {
            recv(abort) -> _ => false,
            recv(after(self.not_before.saturating_duration_since(Instant::now()))) -> _ => !is_aborted(abort),
        }
    }
}

/// How an attempt to have a task run by the process ended.
enum TaskEnd {
    Reply(Reply),
    /// The process broke the rules of the protocol; the text says how.
    ProtocolError(String),
    /// The process ended without a reply.
    Exited {
        /// It has read nothing of the task.
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

    /// The caller gives it back to the idle watcher. After a panic nobody does: the process was killed when it was
    /// dropped, and a new one is made here.
    fn take_process(&mut self) -> io::Result<PersistentProcess> {
        match self.idle_watcher.take_back() {
            Some(kept) => Ok(kept),
            None => Ok(PersistentProcess::new(self.spec.process_io()?)),
        }
    }

    /// Runs `task` on the process that is kept, or on a new one.
    fn run_with(
        &mut self,
        kept: &mut PersistentProcess,
        task: &Task<'_>,
        abort: &Receiver<Never>,
    ) -> io::Result<Outcome> {
        let stop = self.spec.aborts().of(abort)?;
        let line = request(task)?;
        let label = self.spec.output().label(task);
        self.stop_if_unusable(kept)?;
        // Repeated at most once: see `outcome_of`.
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
            process.err.assign(&label);
            let deadline = self.spec.options().timeout.map(from_now);
            let limits = Limits { deadline, abort: Some(Arc::clone(&stop)) };
            let end = exchange(&mut process, &mut kept.io, &line, &limits)?;
            process.catch_up(&mut kept.io)?;
            if let Some(outcome) = self.outcome_of(kept, process, end, limits)? {
                return Ok(outcome);
            }
        }
    }

    /// The outcome of the task. None if the process ended without having to do with the task, which then has to be
    /// given to another one.
    fn outcome_of(
        &mut self,
        kept: &mut PersistentProcess,
        mut process: Process<Replies>,
        end: TaskEnd,
        limits: Limits,
    ) -> io::Result<Option<Outcome>> {
        let failure = |exit, process: &Process<_>| Failure { exit, stderr: process.err.tail() };
        Ok(Some(match end {
            TaskEnd::Reply(reply) => {
                self.restarts.succeeded();
                kept.has_replied = true;
                let outcome = match reply {
                    Reply::Ok => Outcome::Done,
                    Reply::Retry(exit) => Outcome::Failed(failure(exit, &process)),
                    Reply::Dead(exit) => Outcome::Dead(failure(exit, &process)),
                };
                process.err.assign(&self.spec.output().between_tasks());
                kept.running = Some(process);
                outcome
            }
            TaskEnd::Exited { read_nothing } => {
                let status = process.finish(&mut kept.io, limits)?;
                // It has replied before, so it can run tasks, and it ended in order before it read this one: some
                // handlers end now and then, to free memory say. The next process has not replied yet, so this does
                // not repeat.
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
            TaskEnd::Aborted => {
                let grace = self.spec.options().grace.min(ABORT_GRACE);
                process.stop(&mut kept.io, &mut Limits { deadline: Some(from_now(grace)), abort: None })?;
                Outcome::GivenUp
            }
            TaskEnd::ProtocolError(_) | TaskEnd::TimedOut => {
                let timeout = self.spec.options().timeout.unwrap_or_default();
                let (exit, grace) = match end {
                    TaskEnd::ProtocolError(why) => (why, self.spec.options().grace.min(ABORT_GRACE)),
                    _ => (format!("timed out after {}", duration::show(timeout)), self.spec.options().grace),
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

    /// Starts a process.
    fn start(&mut self, io: &ProcessIo) -> io::Result<Process<Replies>> {
        let (path, arguments) = (self.spec.path()?, self.spec.arguments()?);
        let environment: Vec<&CStr> = self.spec.environment().entries().collect();
        let launch = Launch { path: &path, arguments: &arguments, environment: &environment };
        let output = self.spec.output();
        let err = output.stderr(io.waker(), &output.between_tasks());
        let process = Process::start(io, &launch, EarlyClose::Notice, Replies::default(), err)?;
        self.restarts.started();
        Ok(process)
    }

    /// Stops a process that has ended or has written to stdout since the last task: what it wrote would be taken for
    /// the reply to the next task.
    fn stop_if_unusable(&mut self, kept: &mut PersistentProcess) -> io::Result<()> {
        let Some(mut process) = kept.running.take() else { return Ok(()) };
        process.catch_up(&mut kept.io)?;
        let why = match process.out.unread() {
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

/// Writes a task to the process and waits for the reply.
fn exchange(
    process: &mut Process<Replies>,
    io: &mut ProcessIo,
    line: &[u8],
    limits: &Limits,
) -> io::Result<TaskEnd> {
    let mut input = line;
    // Set when the process has closed its stdout, which it does just before its exit as a rule.
    let mut exit_due = None;
    process.err.forget_tail();
    process.feed(&mut input);
    loop {
        let step = exit_due.map_or_else(|| limits.clone(), |due| limits.by(due));
        let events = process.wait(io, &mut input, &step)?;
        if events.exited {
            // It may have replied before that.
            process.catch_up(io)?;
        }
        match process.out.next() {
            Some(_) if !input.is_empty() => {
                return Ok(TaskEnd::ProtocolError("answered before it had read the task".into()));
            }
            Some(Ok(reply)) => return Ok(TaskEnd::Reply(reply)),
            Some(Err(line)) => {
                return Ok(TaskEnd::ProtocolError(format!("answered {line:?} instead of OK, RETRY or DEAD")));
            }
            None if events.exited => {
                let left = process.unread_input().map(|left| left + input.len() as u64);
                return Ok(TaskEnd::Exited { read_nothing: left == Some(line.len() as u64) });
            }
            None if events.aborted => return Ok(TaskEnd::Aborted),
            None if limits.deadline_passed() => return Ok(TaskEnd::TimedOut),
            None if step.deadline_passed() => {
                return Ok(TaskEnd::ProtocolError("closed its stdout without a reply".into()));
            }
            None if process.closed_stdout() => exit_due = exit_due.or(Some(from_now(EXIT_WAIT))),
            None => {}
        }
    }
}

impl Handler for Persistent {
    fn run(&mut self, task: &Task<'_>, abort: &Receiver<Never>) -> Outcome {
        if is_aborted(abort) {
            return Outcome::GivenUp;
        }
        let mut kept = match self.take_process() {
            Ok(kept) => kept,
            Err(error) => return cannot_watch(&self.spec.name(), &error),
        };
        let outcome = self
            .run_with(&mut kept, task, abort)
            .unwrap_or_else(|error| cannot_watch(&self.spec.name(), &error));
        let process_ended = kept.running.is_none();
        self.idle_watcher.watch(kept);
        if process_ended && matches!(outcome, Outcome::Failed(_)) {
            self.restarts.wait(abort);
        }
        outcome
    }

    fn ready(&self) -> io::Result<()> {
        ready()
    }

    /// Closes the stdin of the process, which tells it that no task follows. It gets TERM after half of the grace
    /// period, and KILL at its end.
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
                Ok(events) if events.exited => break process.finish(&mut io, limits).map(drop),
                Ok(events) if events.deadline_passed || events.aborted => {
                    break process.stop(&mut io, &mut limits);
                }
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = closed {
            log::warn!("the handler {} was killed: {error}", self.spec.name());
        }
    }
}
