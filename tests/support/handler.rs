//! Handlers that are shell scripts, and what they leave in the test's own directory.

use super::{Invocation, Process, Sandbox, until};
use amiquip::{AmqpValue, Delivery, FieldTable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a shell and its arguments are in a worker's options: `$1` in the script is the test's own directory.
fn shell(sandbox: &Sandbox, options: &[&str], script: &str) -> Vec<String> {
    let directory = sandbox.path("").to_str().unwrap().to_owned();
    let handler = ["--", "sh", "-c", script, "sh", &directory];
    options.iter().chain(&handler).map(|option| (*option).to_owned()).collect()
}

impl Sandbox {
    /// A worker, waiting for messages, that runs this script for each task.
    pub(crate) fn handling(&self, options: &[&str], script: &str) -> Process {
        self.worker(shell(self, options, script))
    }

    /// The same, to be started.
    pub(crate) fn work_with(&self, options: &[&str], script: &str) -> Invocation {
        self.taskq(std::iter::once("work".to_owned()).chain(shell(self, options, script)))
    }

    /// The lines that handlers have written to a file.
    pub(crate) fn lines(&self, file: &str) -> Vec<String> {
        let written = std::fs::read(self.path(file)).unwrap_or_default();
        String::from_utf8_lossy(&written).lines().map(str::to_owned).collect()
    }

    /// Waits until there are so many.
    pub(crate) fn wait_lines(&self, file: &str, count: usize) -> Vec<String> {
        until(&format!("{count} lines in the file {file}"), || {
            Some(self.lines(file)).filter(|lines| lines.len() >= count)
        })
    }

    /// Waits for the process ids that handlers have written to a file, a line each.
    pub(crate) fn pids(&self, file: &str, count: usize) -> Vec<Pid> {
        self.wait_lines(file, count).iter().map(|line| Pid::from_raw(line.parse().unwrap())).collect()
    }

    /// The queue of failed tasks that wait for so many milliseconds.
    pub(crate) fn delay_queue(&self, milliseconds: u64) -> String {
        format!("{}.delay.{milliseconds}", self.queue)
    }

    /// The queue of what is sent today with such a `--delay`. Waits for tomorrow where today ends in a moment.
    pub(crate) fn delay_queue_of_today(&self, milliseconds: u64) -> String {
        let last_minute = || {
            let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() % 86_400;
            second >= 86_400 - 60
        };
        until("the next day", || (!last_minute()).then_some(()));
        let date = Command::new("date").args(["-u", "+%F"]).output().unwrap().stdout;
        format!("{}.{}", self.delay_queue(milliseconds), String::from_utf8(date).unwrap().trim())
    }

    pub(crate) fn dead_queue(&self) -> String {
        format!("{}.dead", self.queue)
    }
}

/// Whether the process runs: it exists and is no zombie.
pub(crate) fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

pub(crate) fn wait_dead(pid: Pid) {
    until(&format!("the end of process {pid}"), || (!is_alive(pid)).then_some(()));
}

/// A handler's process, which is killed when the test ends.
pub(crate) struct KillOnDrop(pub(crate) Pid);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

pub(crate) fn headers(message: &Delivery) -> FieldTable {
    message.properties.headers().clone().unwrap_or_default()
}

/// A text header; empty when it is missing or no text.
pub(crate) fn header(message: &Delivery, name: &str) -> String {
    match headers(message).get(name) {
        Some(AmqpValue::LongString(text)) => text.clone(),
        _ => String::new(),
    }
}

/// The attempt that a message says it is for.
pub(crate) fn attempt(message: &Delivery) -> Option<i64> {
    match headers(message).get("x-taskq-attempt")? {
        AmqpValue::LongLongInt(attempt) => Some(*attempt),
        other => panic!("x-taskq-attempt is {other:?}"),
    }
}

pub(crate) fn body(message: &Delivery) -> String {
    String::from_utf8_lossy(&message.body).into_owned()
}
