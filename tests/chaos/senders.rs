//! Senders: bulk sends fed line by line, and single sends that are repeated, with the same id, until one succeeds.

use super::books::clock::Moment;
use super::books::record::Session;
use super::brokers::Ground;
use super::ledger;
use super::run::{Alarm, PAUSE, Shared};
use super::seat::{self, Ended, Seat};
use super::workers::PAUSES;
use crate::support::{Node, Proxy, Rng};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Above the time that a broker may be away here.
const RETRY_FOR: &str = "90s";
/// From the end of its input: what is unconfirmed may be waited for that long and the machine is busy.
const ENDED: Duration = Duration::from_mins(2);
/// A body of many frames would say nothing more; one that does not fit a pipe's buffer does.
const PADDING: usize = 20_000;

pub(crate) struct Sender {
    pub(crate) number: usize,
    pub(crate) seat: Seat,
    pub(crate) proxies: Vec<Proxy>,
    urls: String,
    sessions: Mutex<Vec<Session>>,
}

/// One run of `taskq send --lines`.
struct Bulk {
    name: String,
    delay: Option<&'static str>,
    fed: u32,
}

impl Sender {
    pub(crate) fn new(number: usize, ports: &[u16]) -> Self {
        let proxies: Vec<Proxy> = ports.iter().map(|port| Proxy::to(*port)).collect();
        let urls = proxies.iter().map(|proxy| Node::url_at(proxy.port())).collect::<Vec<_>>().join(",");
        Self { number, seat: Seat::default(), proxies, urls, sessions: Mutex::default() }
    }

    pub(crate) fn sessions(&self) -> Vec<Session> {
        self.sessions.lock().unwrap().clone()
    }

    fn command(&self, shared: &Shared, name: &str, delay: Option<&str>) -> Command {
        let mut command = seat::command(env!("CARGO_BIN_EXE_taskq"));
        command.args(["send", "--print-ids", "--heartbeat", "5s", "--retry-for", RETRY_FOR]);
        if shared.ground.has_quorum_queues() {
            command.args(["--queue-type", "quorum"]);
        }
        command.args(delay.iter().flat_map(|delay| ["--delay", delay]));
        command
            .env("TASKQ_URL", &self.urls)
            .env("TASKQ_QUEUE", &shared.queue)
            .stdout(Stdio::piped())
            .stderr(shared.ledger.log("senders", name));
        command
    }

    /// Sends lines until the run settles: one `taskq send` after the other, a few hundred tasks each.
    pub(crate) fn send_lines(&self, shared: &Shared, rng: &mut Rng) {
        let _alarm = Alarm(shared);
        for session in 1.. {
            if shared.is_settling() {
                return;
            }
            let delay = (rng.below(5) == 0).then(|| PAUSES[usize::try_from(rng.below(2)).unwrap()]);
            self.send_some_lines(
                shared,
                rng,
                Bulk { name: format!("s{}.{session}", self.number), delay, fed: 0 },
            );
        }
    }

    fn send_some_lines(&self, shared: &Shared, rng: &mut Rng, mut bulk: Bulk) {
        let unsent = shared.ledger.path("senders", &format!("{}.unsent", bulk.name));
        let mut command = self.command(shared, &bulk.name, bulk.delay);
        command.args(["--lines", "--unsent"]).arg(&unsent).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        self.seat.take(child);
        let name = bulk.name.clone();
        let (ended, confirmed) = std::thread::scope(|scope| {
            let printed = scope.spawn(|| note_ids(shared, &name, stdout));
            self.feed(shared, rng, &mut bulk, stdin);
            let ended = self.wait(shared);
            (ended, printed.join().unwrap())
        });
        let saved = std::fs::read_to_string(&unsent).map_or(0, |text| text.lines().count());
        shared.ledger.event(format_args!(
            "{} ended: {} after {:?}; fed {}, confirmed {confirmed}, saved {saved}",
            bulk.name, ended.code, ended.signals, bulk.fed
        ));
        let fed = bulk.fed as usize;
        let right = match (ended.code, ended.signals.is_empty()) {
            (0, true) => confirmed == fed,
            // The broker was away for too long, or at the start: each task is here or there.
            (69 | 75, true) => confirmed + saved == fed,
            (0, false) => confirmed <= fed,
            (69 | 75 | 137 | 143, false) => confirmed + saved <= fed,
            _ => false,
        };
        if !right && !shared.is_abandoned() {
            shared.wrong(format!(
                "{} exited with {} after {:?}: fed {fed}, confirmed {confirmed}, saved {saved}",
                bulk.name, ended.code, ended.signals
            ));
        }
        self.note(bulk.name, ended.code == 0 && ended.signals.is_empty(), bulk.delay.is_some());
        if ended.code != 0 {
            shared.rest(Duration::from_secs(1), Shared::is_settling);
        }
    }

    fn note(&self, name: String, succeeded: bool, delayed: bool) {
        self.sessions.lock().unwrap().push(Session { name, succeeded, delayed });
    }

    /// Writes lines for a while: mostly a few at a time, now and then more than `send` has under way unconfirmed.
    fn feed(&self, shared: &Shared, rng: &mut Rng, bulk: &mut Bulk, mut stdin: ChildStdin) {
        let end = Instant::now() + Duration::from_millis(3_000 + rng.below(20_000));
        while !shared.is_settling() && self.seat.is_undisturbed() && Instant::now() < end {
            let count = if rng.below(300) == 0 { 300 } else { 1 + rng.below(4) };
            let mut lines = String::new();
            for _ in 0..count {
                bulk.fed += 1;
                let _ = writeln!(lines, "{}", body(shared, rng, &format!("{}/{}", bulk.name, bulk.fed)));
            }
            if stdin.write_all(lines.as_bytes()).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50 + rng.below(400)));
        }
    }

    /// Waits for the end of a sender whose input has ended.
    fn wait(&self, shared: &Shared) -> Ended {
        let due = Instant::now() + ENDED;
        let mut late = false;
        loop {
            if let Some(ended) = self.seat.ended() {
                return ended;
            }
            if Instant::now() > due && !late {
                shared.wrong(format!("sender s{} hangs: it did not end in {ENDED:?}", self.number));
                late = true;
            }
            if shared.is_abandoned() || late {
                self.seat.signal(SIGKILL);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Sends one task after the other, each until it is confirmed.
    pub(crate) fn send_singly(&self, shared: &Shared, rng: &mut Rng) {
        let _alarm = Alarm(shared);
        for task in 1.. {
            if shared.is_settling() {
                return;
            }
            let name = format!("s{}.{task}", self.number);
            let id = format!("single-{}-{task}", self.number);
            let body = body(shared, rng, &format!("{name}/1"));
            let delay = (rng.below(5) == 0 && shared.ground != Ground::Hostile)
                .then(|| PAUSES[usize::try_from(rng.below(2)).unwrap()]);
            let mut sent = false;
            // What may be there already is sent again with its id, as a careful user would.
            while !sent && !shared.is_settling() {
                sent = self.send_one(shared, &name, &id, &body, delay);
                if !sent {
                    shared.rest(Duration::from_secs(1), Shared::is_settling);
                }
            }
            self.note(name, sent, delay.is_some());
            // Long tasks are to be worked in the end too.
            let pause = if shared.ground == Ground::Hostile { 1_000 } else { 100 };
            shared.rest(Duration::from_millis(pause + rng.below(900)), Shared::is_settling);
        }
    }

    fn send_one(&self, shared: &Shared, name: &str, id: &str, body: &str, delay: Option<&str>) -> bool {
        let mut command = self.command(shared, name, delay);
        command.args(["--id", id, body]).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        self.seat.take(child);
        let (ended, confirmed) = std::thread::scope(|scope| {
            let printed = scope.spawn(|| note_ids(shared, name, stdout));
            let ended = self.wait(shared);
            (ended, printed.join().unwrap())
        });
        let right = match ended.code {
            0 => confirmed == 1,
            69 | 75 => confirmed == 0,
            137 | 143 => ended.signals.iter().any(|signal| matches!(signal, SIGKILL | SIGTERM)),
            _ => false,
        };
        if !right && !shared.is_abandoned() {
            shared.wrong(format!("{name} exited with {} and printed {confirmed} ids", ended.code));
        }
        // It may have been killed after it had printed the id: sent all the same.
        confirmed == 1
    }
}

fn note_ids(shared: &Shared, session: &str, stdout: ChildStdout) -> usize {
    ledger::ids(stdout, |id| shared.ledger.confirm(session, id))
}

/// What a task is, and what it asks of its handler.
fn body(shared: &Shared, rng: &mut Rng, name: &str) -> String {
    let errand = match rng.below(200) {
        _ if shared.ground == Ground::Hostile => format!("slow{}.{}", 1 + rng.below(3), rng.below(10)),
        0 => "hang".to_owned(),
        1..=4 => "data".to_owned(),
        5..=12 => "hopeless".to_owned(),
        13..=22 => "twice".to_owned(),
        23..=40 => "once".to_owned(),
        41..=60 => format!("slow{}.{}", rng.below(3), rng.below(10)),
        _ => "quick".to_owned(),
    };
    let padding = if rng.below(50) == 0 { "x".repeat(PADDING) } else { String::new() };
    format!("{name} {errand} {} {padding}.", Moment::now())
}
