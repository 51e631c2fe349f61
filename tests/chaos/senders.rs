//! Senders: bulk sends that get their input line by line, and single sends that are repeated, with the same id, until
//! one succeeds.

use super::brokers::Setup;
use super::checker::clock::Moment;
use super::checker::record::Session;
use super::child::{self, ChildExit, SharedChild};
use super::recorder;
use super::shared::{AbandonOnPanic, PAUSE, Shared};
use super::workers::PAUSES;
use crate::support::{Node, Proxy, Rng};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Longer than a broker is away in a round.
const RETRY_FOR: &str = "90s";
/// From the end of its input to its end: it may wait for confirms as long as `--retry-for`, on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_mins(2);
/// More than PIPE_BUF, so that a killed worker may have written only a part of the body to its handler. A body of many
/// frames would test nothing more.
const PADDING: usize = 20_000;

pub(crate) struct Sender {
    pub(crate) number: usize,
    pub(crate) child: SharedChild,
    pub(crate) proxies: Vec<Proxy>,
    urls: String,
    sessions: Mutex<Vec<Session>>,
}

/// One `taskq send --lines`.
struct Bulk {
    name: String,
    delay: Option<&'static str>,
    written: u32,
}

impl Sender {
    pub(crate) fn new(number: usize, ports: &[u16]) -> Self {
        let proxies: Vec<Proxy> = ports.iter().map(|port| Proxy::to(*port)).collect();
        let urls = proxies.iter().map(|proxy| Node::url_at(proxy.port())).collect::<Vec<_>>().join(",");
        Self { number, child: SharedChild::default(), proxies, urls, sessions: Mutex::default() }
    }

    pub(crate) fn sessions(&self) -> Vec<Session> {
        self.sessions.lock().unwrap().clone()
    }

    fn command(&self, shared: &Shared, name: &str, delay: Option<&str>) -> Command {
        let mut command = child::command(env!("CARGO_BIN_EXE_taskq"));
        command.args(["send", "--print-ids", "--heartbeat", "5s", "--retry-for", RETRY_FOR]);
        if shared.setup.has_quorum_queues() {
            command.args(["--queue-type", "quorum"]);
        }
        command.args(delay.iter().flat_map(|delay| ["--delay", delay]));
        command
            .env("TASKQ_URL", &self.urls)
            .env("TASKQ_QUEUE", &shared.queue)
            .stdout(Stdio::piped())
            .stderr(shared.recorder.log("senders", name));
        command
    }

    /// Sends lines until the round drains: one `taskq send` after the other, a few hundred tasks each.
    pub(crate) fn send_lines(&self, shared: &Shared, rng: &mut Rng) {
        let _guard = AbandonOnPanic(shared);
        for session in 1.. {
            if shared.is_draining() {
                return;
            }
            let delay = (rng.below(5) == 0).then(|| PAUSES[usize::try_from(rng.below(2)).unwrap()]);
            self.send_some_lines(
                shared,
                rng,
                Bulk { name: format!("s{}.{session}", self.number), delay, written: 0 },
            );
        }
    }

    fn send_some_lines(&self, shared: &Shared, rng: &mut Rng, mut bulk: Bulk) {
        let unsent = shared.recorder.path("senders", &format!("{}.unsent", bulk.name));
        let mut command = self.command(shared, &bulk.name, bulk.delay);
        command.args(["--lines", "--unsent"]).arg(&unsent).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        self.child.set(child);
        let name = bulk.name.clone();
        let (exit, confirmed) = std::thread::scope(|scope| {
            let printed = scope.spawn(|| record_ids(shared, &name, stdout));
            self.write_input(shared, rng, &mut bulk, stdin);
            let exit = self.wait(shared);
            (exit, printed.join().unwrap())
        });
        let saved = std::fs::read_to_string(&unsent).map_or(0, |text| text.lines().count());
        shared.recorder.event(format_args!(
            "{} ended: {} after {:?}; written {}, confirmed {confirmed}, saved {saved}",
            bulk.name, exit.code, exit.signals, bulk.written
        ));
        let written = bulk.written as usize;
        let valid = match (exit.code, exit.signals.is_empty()) {
            (0, true) => confirmed == written,
            // The broker was away for too long, or at the start: each task is confirmed or saved.
            (69 | 75, true) => confirmed + saved == written,
            (0, false) => confirmed <= written,
            (69 | 75 | 137 | 143, false) => confirmed + saved <= written,
            _ => false,
        };
        if !valid && !shared.is_abandoned() {
            shared.violation(format!(
                "{} exited with {} after {:?}: written {written}, confirmed {confirmed}, saved {saved}",
                bulk.name, exit.code, exit.signals
            ));
        }
        self.record_session(bulk.name, exit.code == 0 && exit.signals.is_empty(), bulk.delay.is_some());
        if exit.code != 0 {
            shared.sleep(Duration::from_secs(1), Shared::is_draining);
        }
    }

    fn record_session(&self, name: String, succeeded: bool, delayed: bool) {
        self.sessions.lock().unwrap().push(Session { name, succeeded, delayed });
    }

    /// Writes lines for a while: mostly a few at a time, now and then more than `send` publishes without a confirm.
    fn write_input(&self, shared: &Shared, rng: &mut Rng, bulk: &mut Bulk, mut stdin: ChildStdin) {
        let end = Instant::now() + Duration::from_millis(3_000 + rng.below(20_000));
        while !shared.is_draining() && self.child.is_not_stopping() && Instant::now() < end {
            let count = if rng.below(300) == 0 { 300 } else { 1 + rng.below(4) };
            let mut lines = String::new();
            for _ in 0..count {
                bulk.written += 1;
                let _ = writeln!(lines, "{}", body(shared, rng, &format!("{}/{}", bulk.name, bulk.written)));
            }
            if stdin.write_all(lines.as_bytes()).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50 + rng.below(400)));
        }
    }

    /// Waits for the end of a sender whose input has ended.
    fn wait(&self, shared: &Shared) -> ChildExit {
        let deadline = Instant::now() + ENDS_WITHIN;
        let mut late = false;
        loop {
            if let Some(exit) = self.child.try_wait() {
                return exit;
            }
            if Instant::now() > deadline && !late {
                shared.violation(format!("sender s{} hangs: it did not end in {ENDS_WITHIN:?}", self.number));
                late = true;
            }
            if shared.is_abandoned() || late {
                self.child.signal(SIGKILL);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends one task after the other, each until it is confirmed.
    pub(crate) fn send_singly(&self, shared: &Shared, rng: &mut Rng) {
        let _guard = AbandonOnPanic(shared);
        for task in 1.. {
            if shared.is_draining() {
                return;
            }
            let name = format!("s{}.{task}", self.number);
            let id = format!("single-{}-{task}", self.number);
            let body = body(shared, rng, &format!("{name}/1"));
            let delay = (rng.below(5) == 0 && shared.setup != Setup::Hostile)
                .then(|| PAUSES[usize::try_from(rng.below(2)).unwrap()]);
            let mut sent = false;
            // A task that may have been published already is sent again with the same id, as a user should do it.
            while !sent && !shared.is_draining() {
                sent = self.send_one(shared, &name, &id, &body, delay);
                if !sent {
                    shared.sleep(Duration::from_secs(1), Shared::is_draining);
                }
            }
            self.record_session(name, sent, delay.is_some());
            // Long tasks are sent less often, so that draining ends in time.
            let pause = if shared.setup == Setup::Hostile { 1_000 } else { 100 };
            shared.sleep(Duration::from_millis(pause + rng.below(900)), Shared::is_draining);
        }
    }

    fn send_one(&self, shared: &Shared, name: &str, id: &str, body: &str, delay: Option<&str>) -> bool {
        let mut command = self.command(shared, name, delay);
        command.args(["--id", id, body]).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        self.child.set(child);
        let (exit, confirmed) = std::thread::scope(|scope| {
            let printed = scope.spawn(|| record_ids(shared, name, stdout));
            let exit = self.wait(shared);
            (exit, printed.join().unwrap())
        });
        let valid = match exit.code {
            0 => confirmed == 1,
            69 | 75 => confirmed == 0,
            137 | 143 => exit.signals.iter().any(|signal| matches!(signal, SIGKILL | SIGTERM)),
            _ => false,
        };
        if !valid && !shared.is_abandoned() {
            shared.violation(format!("{name} exited with {} and printed {confirmed} ids", exit.code));
        }
        // It may have been killed after it had printed the id, and the task is sent then.
        confirmed == 1
    }
}

fn record_ids(shared: &Shared, session: &str, stdout: ChildStdout) -> usize {
    recorder::read_ids(stdout, |id| shared.recorder.confirm(session, id))
}

/// The body of a task: its name, the action of its handler, the time, and now and then padding.
fn body(shared: &Shared, rng: &mut Rng, name: &str) -> String {
    let action = match rng.below(200) {
        _ if shared.setup == Setup::Hostile => format!("slow{}.{}", 1 + rng.below(3), rng.below(10)),
        0 => "hang".to_owned(),
        1..=4 => "data".to_owned(),
        5..=12 => "hopeless".to_owned(),
        13..=22 => "twice".to_owned(),
        23..=40 => "once".to_owned(),
        41..=60 => format!("slow{}.{}", rng.below(3), rng.below(10)),
        _ => "quick".to_owned(),
    };
    let padding = if rng.below(50) == 0 { "x".repeat(PADDING) } else { String::new() };
    format!("{name} {action} {} {padding}.", Moment::now())
}
