//! Workers, each in a slot: whenever one ends, the next is started in its slot, as a service manager would do it.

use super::brokers::Setup;
use super::child::{self, ChildExit, SharedChild};
use super::shared::{AbandonOnPanic, PAUSE, Shared};
use crate::support::{Node, Proxy};
use nix::sys::signal::Signal::{self, SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) const ATTEMPTS: u32 = 3;
pub(crate) const THREADS: usize = 3;
/// A worker's pauses, which are also the delays of what is sent with `--delay`.
pub(crate) const PAUSES: [&str; 2] = ["500ms", "2s"];
pub(crate) const DELAYS_MS: [i32; 2] = [500, 2000];
const OPTIONS: [&str; 11] = [
    "--verbose",
    "--backoff",
    "500ms,2s",
    "--timeout",
    "6s",
    "--grace",
    "5s",
    "--heartbeat",
    "5s",
    // Faults alone must not make a task dead: only its own failures.
    "--max-deliveries",
    "1000",
];

/// From the end of a worker to the start of the next.
const RESTARTED: Duration = Duration::from_millis(200);

/// From SIGTERM to the end. A drain takes the grace period at most, giving up 5 s more, and a worker behind
/// a frozen broker up to 15 s; the rest is slack for a machine that starts nodes meanwhile.
const DRAINED: Duration = Duration::from_secs(5 + 5 + 15 + 20);
const FORCED: Duration = Duration::from_secs(5 + 15 + 20);
const KILLED: Duration = Duration::from_secs(10);

/// What runs the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handler {
    /// A process for each task.
    Command,
    /// A persistent command that ends itself after a few tasks.
    Recycling,
    /// Either in half of the slots.
    Mixed,
}

/// How many tasks a recycling handler takes before it ends itself.
const RECYCLES: &str = "5";

impl Handler {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Recycling => "recycling",
            Self::Mixed => "mixed",
        }
    }

    fn recycles_in(self, slot: usize) -> bool {
        match self {
            Self::Command => false,
            Self::Recycling => true,
            Self::Mixed => slot % 2 == 1,
        }
    }
}

impl std::str::FromStr for Handler {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Command, Self::Recycling, Self::Mixed]
            .into_iter()
            .find(|handler| handler.name() == text)
            .ok_or(())
    }
}

/// A slot, with one worker after the other.
pub(crate) struct WorkerSlot {
    pub(crate) number: usize,
    pub(crate) child: SharedChild,
    /// One in front of each node; empty for a worker that connects without proxies.
    pub(crate) proxies: Vec<Proxy>,
    urls: String,
    generation: AtomicU32,
}

impl WorkerSlot {
    pub(crate) fn new(number: usize, ports: &[u16], through_proxies: bool) -> Self {
        let proxies: Vec<Proxy> =
            if through_proxies { ports.iter().map(|port| Proxy::to(*port)).collect() } else { Vec::new() };
        let ports = if through_proxies { proxies.iter().map(Proxy::port).collect() } else { ports.to_vec() };
        let urls = ports.into_iter().map(Node::url_at).collect::<Vec<_>>().join(",");
        Self { number, child: SharedChild::default(), proxies, urls, generation: AtomicU32::new(0) }
    }

    pub(crate) fn name(&self) -> String {
        format!("w{}.{}", self.number, self.generation.load(Ordering::Relaxed))
    }

    fn start(&self, shared: &Shared) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        let name = self.name();
        let mut command = child::command(env!("CARGO_BIN_EXE_taskq"));
        command.arg("work").args(OPTIONS);
        command.args(["--threads", &THREADS.to_string(), "--attempts", &ATTEMPTS.to_string()]);
        if shared.setup.has_quorum_queues() {
            command.args(["--queue-type", "quorum"]);
        }
        if shared.setup == Setup::Hostile {
            command.env("CHAOS_ORPHANS", "no");
        }
        if shared.handler.recycles_in(self.number) {
            command.arg("--persistent").env("CHAOS_RECYCLES", RECYCLES);
        }
        command
            .args(["--", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/handler.sh")])
            .env("TASKQ_URL", &self.urls)
            .env("TASKQ_QUEUE", &shared.queue)
            .env("CHAOS_RUNS", shared.recorder.runs_path())
            .env("CHAOS_WORKER", &name)
            .stdin(Stdio::null())
            .stdout(shared.recorder.log("workers", &name))
            .stderr(shared.recorder.log("workers", &name));
        self.child.set(command.spawn().unwrap());
        shared.recorder.event(format_args!("{name} started, process {}", self.child.pid().unwrap()));
    }

    /// Whether the present worker of this slot consumes.
    pub(crate) fn takes_tasks(&self, shared: &Shared) -> bool {
        self.child.pid().is_some()
            && shared.recorder.has_logged("workers", &self.name(), "Waiting for messages")
    }

    /// Keeps a worker running in this slot until the round stops.
    pub(crate) fn keep_running(&self, shared: &Shared) {
        let _guard = AbandonOnPanic(shared);
        while !shared.is_stopping() {
            self.start(shared);
            let exit = self.wait(shared);
            // Connections that a frozen or killed worker left open in the proxies.
            for proxy in &self.proxies {
                proxy.cut();
            }
            if let Some(what) = exit.and_then(|exit| self.check_exit(shared, &exit)) {
                shared.violation(what);
            }
            shared.sleep(RESTARTED, Shared::is_stopping);
        }
    }

    /// Waits for the end of the process, and stops it when the round stops.
    fn wait(&self, shared: &Shared) -> Option<ChildExit> {
        let mut deadline: Option<Instant> = None;
        let mut seen = 0;
        loop {
            if let Some(exit) = self.child.try_wait() {
                return Some(exit);
            }
            if shared.is_abandoned() {
                self.child.signal(SIGKILL);
            } else if shared.is_stopping() && self.child.is_not_stopping() {
                self.child.signal(SIGTERM);
            }
            let signals = self.child.signals();
            if signals.len() != seen {
                seen = signals.len();
                deadline = time_to_end(&signals).map(|time| Instant::now() + time);
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                shared.violation(format!("{} hangs: it did not end after {signals:?}", self.name()));
                self.child.signal(SIGKILL);
                deadline = None;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// A violation if it should not have ended like this.
    fn check_exit(&self, shared: &Shared, exit: &ChildExit) -> Option<String> {
        shared.recorder.event(format_args!("{} ended: {} after {:?}", self.name(), exit.code, exit.signals));
        let terms = exit.signals.iter().filter(|signal| **signal == SIGTERM).count();
        let valid = match (exit.signals.contains(&SIGKILL), terms) {
            (true, _) => exit.code == 137 || terms > 0,
            // No signal: it may only fail to connect for the first time. Once connected, it tries again for ever.
            (false, 0) => {
                exit.code == 69 && !shared.recorder.has_logged("workers", &self.name(), "connected to ")
            }
            (false, _) => matches!(exit.code, 0 | 69 | 143),
        };
        (!valid).then(|| format!("{} exited with {} after {:?}", self.name(), exit.code, exit.signals))
    }
}

/// How long a worker that was sent these signals may take to end.
fn time_to_end(signals: &[Signal]) -> Option<Duration> {
    if signals.contains(&SIGKILL) {
        return Some(KILLED);
    }
    // A frozen process cannot end.
    if signals.iter().rev().find(|signal| matches!(signal, SIGSTOP | SIGCONT)) == Some(&SIGSTOP) {
        return None;
    }
    match signals.iter().filter(|signal| **signal == SIGTERM).count() {
        0 => None,
        1 => Some(DRAINED),
        _ => Some(FORCED),
    }
}
