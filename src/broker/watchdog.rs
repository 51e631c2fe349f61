//! A deadline on every call into amiquip, which has none of its own: when it passes, the connection's socket is
//! shut down, and whatever was stuck in the call returns with an error.

use std::collections::BTreeMap;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::lock::lock;
use crate::shortage;

/// An answer may wait behind bodies that come over a slow line, and this is the slowest that is allowed for, in bytes a
/// second. A peer that sends a word now and then, and no answer, gains next to nothing by it.
const SLOWEST_LINE: u64 = 16 * 1024;
/// However much comes: in that time the largest body that RabbitMQ takes by default comes over a line of 75 KB a second.
const LONGEST_PATIENCE: Duration = Duration::from_mins(30);

/// Cuts one connection's TCP stream, from any thread.
#[derive(Debug, Clone)]
pub(super) struct KillSwitch(Arc<Target>);

#[derive(Debug)]
struct Target {
    stream: TcpStream,
    why: Mutex<Option<String>>,
    /// Counts the bytes that arrived, heartbeats aside.
    arrived: AtomicU64,
}

impl KillSwitch {
    /// `stream` is a clone (`try_clone`) of the connection's own.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Target { stream, why: Mutex::new(None), arrived: AtomicU64::new(0) }))
    }

    /// Shuts the socket down; the first reason given is kept.
    pub(super) fn fire(&self, why: &str) {
        lock(&self.0.why).get_or_insert_with(|| why.to_owned());
        // An error means that it is gone already.
        let _ = self.0.stream.shutdown(Shutdown::Both);
    }

    /// Why it was fired, if it was.
    pub(super) fn fired(&self) -> Option<String> {
        lock(&self.0.why).clone()
    }

    /// The peer has sent so many bytes, and not only heartbeats.
    pub(super) fn note_arrival(&self, bytes: usize) {
        self.0.arrived.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn arrived(&self) -> u64 {
        self.0.arrived.load(Ordering::Relaxed)
    }

    /// Fires when the returned guard still exists after `timeout`. `what` names the call for the reason:
    /// "no answer to {what} within ...".
    pub(super) fn guard(&self, timeout: Duration, what: &'static str) -> Guard {
        self.arm(timeout, what, None)
    }

    /// As [`KillSwitch::guard`], for an answer that comes in its turn: as long as anything else arrives, `timeout`
    /// begins anew.
    pub(super) fn patient_guard(&self, timeout: Duration, what: &'static str) -> Guard {
        let arrived = self.arrived();
        let patience = GuardPatience { began: Instant::now(), arrived_before: arrived, arrived };
        self.arm(timeout, what, Some(patience))
    }

    fn arm(&self, timeout: Duration, what: &'static str, patience: Option<GuardPatience>) -> Guard {
        let watchdog = watchdog();
        let due = Instant::now() + timeout;
        let mut watches = lock(&watchdog.watches);
        watches.serial += 1;
        let key = watches.serial;
        watches.armed.insert(key, Armed { due, kill: self.clone(), timeout, what, patience });
        // Deadlines are mostly alike, so a new one is rarely the next to pass and the thread can sleep on.
        if watches.wakes_at.is_none_or(|at| due < at) {
            watchdog.changed.notify_one();
        }
        Guard { key }
    }
}

/// Disarms its deadline when dropped.
#[derive(Debug)]
#[must_use = "the deadline holds only as long as the guard lives"]
pub(super) struct Guard {
    key: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&watchdog().watches).armed.remove(&self.key);
    }
}

struct Armed {
    due: Instant,
    kill: KillSwitch,
    timeout: Duration,
    what: &'static str,
    patience: Option<GuardPatience>,
}

impl Armed {
    /// Whether it can wait on, because something has arrived since it was last due.
    fn waits_on(&mut self, now: Instant) -> bool {
        let arrived = self.kill.arrived();
        let Some(patience) = &mut self.patience else { return false };
        if patience.arrived == arrived {
            return false;
        }
        patience.arrived = arrived;
        let waited = now.saturating_duration_since(patience.began);
        let rest = more_time(self.timeout, waited, arrived - patience.arrived_before);
        self.due = now + rest;
        !rest.is_zero()
    }
}

/// How much longer to wait for an answer while other things come: so many bytes since the question was asked, and some of
/// them within the last `timeout`.
fn more_time(timeout: Duration, waited: Duration, bytes: u64) -> Duration {
    let allowed = (timeout + Duration::from_millis(bytes * 1000 / SLOWEST_LINE)).min(LONGEST_PATIENCE);
    allowed.saturating_sub(waited).min(timeout)
}

struct GuardPatience {
    began: Instant,
    /// What had arrived when it began, and when it was last due.
    arrived_before: u64,
    arrived: u64,
}

struct Watches {
    armed: BTreeMap<u64, Armed>,
    serial: u64,
    /// When the thread looks next; `None` while it waits to be told.
    wakes_at: Option<Instant>,
}

struct Watchdog {
    watches: Mutex<Watches>,
    changed: Condvar,
}

fn watchdog() -> &'static Watchdog {
    static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
    WATCHDOG.get_or_init(|| Watchdog {
        watches: Mutex::new(Watches { armed: BTreeMap::new(), serial: 0, wakes_at: None }),
        changed: Condvar::new(),
    })
}

/// Starts the watchdog's thread, once in the life of the process. Nothing may be guarded before.
pub(super) fn start() -> Result<()> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = lock(&STARTED);
    if !*started {
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(watch)
            .map_err(|error| Error::unavailable(format!("cannot connect: {}", shortage::reason(&error))))?;
        *started = true;
    }
    Ok(())
}

fn watch() {
    let watchdog = watchdog();
    let mut watches = lock(&watchdog.watches);
    loop {
        let now = Instant::now();
        watches.armed.retain(|_, armed| {
            let keep = armed.due > now || armed.waits_on(now);
            if !keep {
                let waited = crate::duration::show(armed.timeout);
                armed.kill.fire(&format!("no answer to {} within {waited}", armed.what));
            }
            keep
        });
        watches.wakes_at = watches.armed.values().map(|armed| armed.due).min();
        watches = match watches.wakes_at {
            Some(at) => watchdog
                .changed
                .wait_timeout(watches, at.saturating_duration_since(now))
                .map_or_else(|poisoned| poisoned.into_inner().0, |(watches, _)| watches),
            None => watchdog.changed.wait(watches).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_guard_that_outlives_its_deadline_cuts_the_socket() {
        start().unwrap();
        let (mut near, _far) = pair();
        let kill = KillSwitch::new(near.try_clone().unwrap());
        let long = kill.guard(Duration::from_hours(1), "something slow");
        let short = kill.guard(Duration::from_millis(20), "a channel close");
        // Blocks until the watchdog shuts the socket down.
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        assert_eq!(kill.fired().unwrap(), "no answer to a channel close within 20ms");
        drop((long, short));
    }

    #[test]
    fn a_patient_guard_waits_while_something_arrives() {
        start().unwrap();
        let (mut near, _far) = pair();
        let kill = KillSwitch::new(near.try_clone().unwrap());
        let began = Instant::now();
        let guard = kill.patient_guard(Duration::from_millis(300), "a question");
        for _ in 0..60 {
            kill.note_arrival(64 * 1024);
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        assert!(began.elapsed() >= Duration::from_millis(600));
        drop(guard);
    }

    #[test]
    fn patience_is_for_slow_lines_and_has_an_end() {
        let secs = Duration::from_secs;
        let timeout = secs(15);
        for (waited, bytes, more) in [
            // 64 KiB a second, just the slowest, half of that, and chatter.
            (secs(15), 15 * 64 * 1024, timeout),
            (secs(150), 150 * SLOWEST_LINE, timeout),
            (secs(15), 15 * SLOWEST_LINE / 2, Duration::from_millis(7500)),
            (secs(30), 30 * SLOWEST_LINE / 2, Duration::ZERO),
            (secs(15), 40, Duration::from_millis(2)),
            (secs(16), 400, Duration::ZERO),
            // A flood.
            (LONGEST_PATIENCE.saturating_sub(secs(5)), 1 << 40, secs(5)),
            (LONGEST_PATIENCE, 1 << 40, Duration::ZERO),
        ] {
            assert_eq!(more_time(timeout, waited, bytes), more, "{bytes} bytes in {waited:?}");
        }
    }

    #[test]
    fn a_dropped_guard_does_nothing() {
        start().unwrap();
        let (near, mut far) = pair();
        let kill = KillSwitch::new(near.try_clone().unwrap());
        drop(kill.guard(Duration::from_millis(1), "a call that returned"));
        let (other, _keep) = pair();
        let other = KillSwitch::new(other);
        let guard = other.guard(Duration::from_millis(30), "another call");
        far.set_read_timeout(Some(Duration::from_millis(60))).unwrap();
        assert!(far.read(&mut [0]).is_err(), "the socket was cut");
        assert!(kill.fired().is_none());
        drop(guard);
    }
}
