//! Workers, each in a place of its own, started again whenever one ends, as a service manager would.

use super::brokers::Ground;
use super::run::{Alarm, PAUSE, Shared};
use super::seat::{self, Ended, Seat};
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
    // Nothing dies of being unlucky here: what is dead was meant to be.
    "--max-deliveries",
    "1000",
];

/// From its end to the start of the next.
const RESTARTED: Duration = Duration::from_millis(200);

/// From the order to stop to the end. A drain takes the grace period at most, giving up 5 s more, and a worker behind
/// a frozen broker up to 15 s; the rest is for a machine that starts nodes meanwhile.
const DRAINED: Duration = Duration::from_secs(5 + 5 + 15 + 20);
const FORCED: Duration = Duration::from_secs(5 + 15 + 20);
const KILLED: Duration = Duration::from_secs(10);

/// What runs the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handler {
    /// A process for each.
    Command,
    /// One that is kept, and ends itself after a few.
    Recycling,
    /// Each in half of the places.
    Mixed,
}

/// How many tasks it takes before it ends itself.
const RECYCLES: &str = "5";

impl Handler {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Recycling => "recycling",
            Self::Mixed => "mixed",
        }
    }

    fn recycles_in(self, place: usize) -> bool {
        match self {
            Self::Command => false,
            Self::Recycling => true,
            Self::Mixed => place % 2 == 1,
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

/// One place for a worker.
pub(crate) struct Place {
    pub(crate) number: usize,
    pub(crate) seat: Seat,
    /// The way to each node; none for a worker that has nothing between itself and the nodes.
    pub(crate) proxies: Vec<Proxy>,
    urls: String,
    generation: AtomicU32,
}

impl Place {
    pub(crate) fn new(number: usize, ports: &[u16], through_proxies: bool) -> Self {
        let proxies: Vec<Proxy> =
            if through_proxies { ports.iter().map(|port| Proxy::to(*port)).collect() } else { Vec::new() };
        let ports = if through_proxies { proxies.iter().map(Proxy::port).collect() } else { ports.to_vec() };
        let urls = ports.into_iter().map(Node::url_at).collect::<Vec<_>>().join(",");
        Self { number, seat: Seat::default(), proxies, urls, generation: AtomicU32::new(0) }
    }

    pub(crate) fn name(&self) -> String {
        format!("w{}.{}", self.number, self.generation.load(Ordering::Relaxed))
    }

    fn start(&self, shared: &Shared) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        let name = self.name();
        let mut command = seat::command(env!("CARGO_BIN_EXE_taskq"));
        command.arg("work").args(OPTIONS);
        command.args(["--threads", &THREADS.to_string(), "--attempts", &ATTEMPTS.to_string()]);
        if shared.ground.has_quorum_queues() {
            command.args(["--queue-type", "quorum"]);
        }
        if shared.ground == Ground::Hostile {
            command.env("CHAOS_ORPHANS", "no");
        }
        if shared.handler.recycles_in(self.number) {
            command.arg("--persistent").env("CHAOS_RECYCLES", RECYCLES);
        }
        command
            .args(["--", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/handler.sh")])
            .env("TASKQ_URL", &self.urls)
            .env("TASKQ_QUEUE", &shared.queue)
            .env("CHAOS_RUNS", shared.ledger.runs_path())
            .env("CHAOS_WORKER", &name)
            .stdin(Stdio::null())
            .stdout(shared.ledger.log("workers", &name))
            .stderr(shared.ledger.log("workers", &name));
        self.seat.take(command.spawn().unwrap());
        shared.ledger.event(format_args!("{name} started, process {}", self.seat.pid().unwrap()));
    }

    /// Whether the worker that is in this place now has begun.
    pub(crate) fn takes_tasks(&self, shared: &Shared) -> bool {
        self.seat.pid().is_some() && shared.ledger.has_logged("workers", &self.name(), "Waiting for messages")
    }

    /// Keeps a worker in this place until the run closes.
    pub(crate) fn keep(&self, shared: &Shared) {
        let _alarm = Alarm(shared);
        while !shared.is_closing() {
            self.start(shared);
            let ended = self.wait(shared);
            // What the dead one left open is of no use to the next.
            for proxy in &self.proxies {
                proxy.cut();
            }
            if let Some(what) = ended.and_then(|ended| self.judge(shared, &ended)) {
                shared.wrong(what);
            }
            shared.rest(RESTARTED, Shared::is_closing);
        }
    }

    /// Waits for the end of the process; stops it when the run closes. None when the run was abandoned.
    fn wait(&self, shared: &Shared) -> Option<Ended> {
        let mut due: Option<Instant> = None;
        let mut told = 0;
        loop {
            if let Some(ended) = self.seat.ended() {
                return Some(ended);
            }
            if shared.is_abandoned() {
                self.seat.signal(SIGKILL);
            } else if shared.is_closing() && self.seat.is_undisturbed() {
                self.seat.signal(SIGTERM);
            }
            let orders = self.seat.orders();
            if orders.len() != told {
                told = orders.len();
                due = patience(&orders).map(|patience| Instant::now() + patience);
            }
            if due.is_some_and(|due| Instant::now() > due) {
                shared.wrong(format!("{} hangs: it did not end after {orders:?}", self.name()));
                self.seat.signal(SIGKILL);
                due = None;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What is wrong with the way in which it ended, if anything is.
    fn judge(&self, shared: &Shared, ended: &Ended) -> Option<String> {
        shared.ledger.event(format_args!("{} ended: {} after {:?}", self.name(), ended.code, ended.signals));
        let terms = ended.signals.iter().filter(|signal| **signal == SIGTERM).count();
        let right = match (ended.signals.contains(&SIGKILL), terms) {
            (true, _) => ended.code == 137 || terms > 0,
            // Its first connection, to a broker that was away just then. Later on it goes on trying for ever.
            (false, 0) => {
                ended.code == 69 && !shared.ledger.has_logged("workers", &self.name(), "connected to ")
            }
            (false, _) => matches!(ended.code, 0 | 69 | 143),
        };
        (!right).then(|| format!("{} exited with {} after {:?}", self.name(), ended.code, ended.signals))
    }
}

/// How long a worker may take to end that was sent these signals.
fn patience(signals: &[Signal]) -> Option<Duration> {
    if signals.contains(&SIGKILL) {
        return Some(KILLED);
    }
    // A frozen process does nothing, and that is not its fault.
    if signals.iter().rev().find(|signal| matches!(signal, SIGSTOP | SIGCONT)) == Some(&SIGSTOP) {
        return None;
    }
    match signals.iter().filter(|signal| **signal == SIGTERM).count() {
        0 => None,
        1 => Some(DRAINED),
        _ => Some(FORCED),
    }
}
