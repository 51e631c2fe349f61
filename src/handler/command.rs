//! The handler that starts one process per task.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;

use crossbeam_channel::Receiver;

use super::abort::is_aborted;
use super::arguments::{body_is_too_long, with_body};
use super::environment::task_variables;
use super::errors::{cannot_start, cannot_watch, is_too_long, ready};
use super::limits::{ABORT_GRACE, Limits, from_now};
use super::process::{EarlyClose, Process, ProcessIo};
use super::spawn::Launch;
use super::spec::Spec;
use super::task::{Failure, Handler, Outcome, Task};
use super::tee::Tee;
use crate::cancel::Never;
use crate::duration;

/// Starts the command for every task, with the body on its stdin and the rest of the task in its environment.
pub struct Command {
    spec: Spec,
    arguments: Vec<CString>,
    io: ProcessIo,
}

/// Why a process has to be stopped.
#[derive(Clone, Copy)]
enum StopReason {
    Timeout,
    Abort,
}

impl Command {
    pub(super) fn new(spec: Spec) -> io::Result<Self> {
        Ok(Self { io: spec.process_io()?, arguments: spec.arguments()?, spec })
    }

    /// Those for one task, or why it cannot have any.
    fn arguments(&self, task: &Task<'_>) -> Result<Cow<'_, [CString]>, String> {
        if self.spec.options().body_as_argument {
            with_body(&self.arguments, task.body).map(Cow::Owned)
        } else {
            Ok(Cow::Borrowed(&self.arguments))
        }
    }

    fn start(&self, task: &Task<'_>, arguments: &[CString]) -> io::Result<Process<Tee>> {
        let (path, own) = (self.spec.path()?, task_variables(task));
        let environment: Vec<&CStr> =
            self.spec.environment().entries().chain(own.iter().map(CString::as_c_str)).collect();
        let launch = Launch { path: &path, arguments, environment: &environment };
        let output = self.spec.output();
        let label = output.label(task);
        let (out, err) = (output.stdout(self.io.waker(), &label), output.stderr(self.io.waker(), &label));
        Process::start(&self.io, &launch, EarlyClose::Ignore, out, err)
    }

    fn not_started(&self, error: &io::Error, task: &Task<'_>, arguments: &[CString]) -> Outcome {
        let may_be_the_body = self.spec.options().body_as_argument && is_too_long(error);
        match body_is_too_long(arguments, task.body).filter(|_| may_be_the_body) {
            Some(why) => hopeless(why),
            None => cannot_start(&self.spec.name(), error, !task.headers.is_empty()),
        }
    }

    /// Runs the process to its end.
    fn follow(
        &mut self,
        mut process: Process<Tee>,
        task: &Task<'_>,
        mut limits: Limits,
    ) -> io::Result<Outcome> {
        let (io, mut input) = (&mut self.io, task.body);
        process.feed(&mut input);
        let stop_reason = loop {
            if input.is_empty() {
                process.close_stdin();
            }
            match process.wait(io, &mut input, &limits)? {
                events if events.exited => break None,
                events if events.aborted => break Some(StopReason::Abort),
                events if events.deadline_passed => break Some(StopReason::Timeout),
                _ => {}
            }
        };
        let Some(stop_reason) = stop_reason else {
            let status = process.finish(io, limits)?;
            let outcome = self.spec.options().on_exit.outcome(status, process.err.tail());
            return Ok(match (outcome, status.code()) {
                (Outcome::CommandMissing { failure, why }, Some(code)) => {
                    let name = self.spec.name();
                    let why = format!("{name}: {why} (--on-exit {code}=retry makes it a failed attempt)");
                    Outcome::CommandMissing { failure, why }
                }
                (outcome, _) => outcome,
            });
        };
        let mut grace = self.spec.options().grace;
        if let StopReason::Abort = stop_reason {
            limits.abort = None;
            grace = grace.min(ABORT_GRACE);
        }
        limits.deadline = Some(from_now(grace));
        process.stop(io, &mut limits)?;
        // The abort may also have come after the time-out, while the process was being stopped.
        if limits.abort.is_none() {
            return Ok(Outcome::GivenUp);
        }
        let timeout = self.spec.options().timeout.unwrap_or_default();
        Ok(Outcome::Failed(Failure {
            exit: format!("timed out after {}", duration::show(timeout)),
            stderr: process.err.tail(),
        }))
    }
}

/// No attempt at the task can succeed, because of what it is.
fn hopeless(why: String) -> Outcome {
    Outcome::Dead(Failure { exit: why, stderr: Vec::new() })
}

impl Handler for Command {
    fn run(&mut self, task: &Task<'_>, abort: &Receiver<Never>) -> Outcome {
        if is_aborted(abort) {
            return Outcome::GivenUp;
        }
        let deadline = self.spec.options().timeout.map(from_now);
        let arguments = match self.arguments(task) {
            Ok(arguments) => arguments,
            Err(why) => return hopeless(why),
        };
        let started = self.spec.aborts().of(abort).and_then(|abort| {
            let process = self.start(task, &arguments)?;
            Ok((process, Limits { deadline, abort: Some(abort) }))
        });
        match started.map_err(|error| self.not_started(&error, task, &arguments)) {
            Ok((process, limits)) => self
                .follow(process, task, limits)
                .unwrap_or_else(|error| cannot_watch(&self.spec.name(), &error)),
            Err(outcome) => outcome,
        }
    }

    fn ready(&self) -> io::Result<()> {
        ready()
    }

    /// Does nothing: no process is kept between tasks.
    fn close(&mut self, _: &Receiver<Never>) {}
}
