//! What all threads of a run share: its ledger, its faults, its phase, and what went wrong.

use super::books::clock::Moment;
use super::books::strike::{Kind, Strike, Target};
use super::brokers::Ground;
use super::ledger::Ledger;
use super::workers::Handler;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(25);

/// In place of the end of a fault that hit nobody.
const MISSED: Moment = Moment(0);

/// What a run is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// How often a quorum queue delivers a task before it drops it.
    pub(crate) limit: Option<u32>,
    pub(crate) handler: Handler,
}

/// How a run goes on. Each thread looks at it often.
#[derive(Default)]
pub(crate) struct Phase {
    /// Senders finish what they were given, and no fault is begun.
    pub(crate) settling: AtomicBool,
    /// Workers are told to stop.
    pub(crate) closing: AtomicBool,
}

pub(crate) struct Shared {
    pub(crate) ledger: Ledger,
    pub(crate) queue: String,
    pub(crate) ground: Ground,
    pub(crate) handler: Handler,
    pub(crate) phase: Phase,
    /// A signal came, or a thread broke down: everything ends at once.
    pub(crate) abandoned: Arc<AtomicBool>,
    strikes: Mutex<Vec<Strike>>,
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    pub(crate) fn new(ledger: Ledger, ground: Ground, handler: Handler, abandoned: Arc<AtomicBool>) -> Self {
        Self {
            ledger,
            queue: "chaos".to_owned(),
            ground,
            handler,
            phase: Phase::default(),
            abandoned,
            strikes: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// Something that must not be, and that the books alone would not show.
    pub(crate) fn wrong(&self, what: String) {
        self.ledger.event(format_args!("WRONG: {what}"));
        self.wrong.lock().unwrap().push(what);
    }

    pub(crate) fn all_wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(crate) fn is_settling(&self) -> bool {
        self.is_abandoned() || self.phase.settling.load(Ordering::Relaxed)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.is_abandoned() || self.phase.closing.load(Ordering::Relaxed)
    }

    /// Sleeps that long, or until `over`.
    pub(crate) fn rest(&self, duration: Duration, over: impl Fn(&Self) -> bool) {
        let end = Instant::now() + duration;
        while !over(self) && Instant::now() < end {
            std::thread::sleep(PAUSE.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// A fault begins; its number is for [`Shared::over`].
    pub(crate) fn begin(&self, kind: Kind, target: Target) -> usize {
        let mut strikes = self.strikes.lock().unwrap();
        let now = Moment::now();
        let strike = Strike { kind, target, from: now, struck: now, until: None };
        self.ledger.fault(&strike);
        strikes.push(strike);
        strikes.len() - 1
    }

    /// It is in force now.
    pub(crate) fn struck(&self, number: usize) {
        self.strikes.lock().unwrap()[number].struck = Moment::now();
    }

    /// What was done has been undone.
    pub(crate) fn over(&self, number: usize) {
        let mut strikes = self.strikes.lock().unwrap();
        strikes[number].until = Some(Moment::now());
        self.ledger.fault(&strikes[number]);
    }

    /// It was not to be: nobody was there to be hit.
    pub(crate) fn missed(&self, number: usize) {
        let mut strikes = self.strikes.lock().unwrap();
        // It stays in the list, as it is there that others have their numbers from.
        strikes[number].until = Some(MISSED);
        self.ledger.event(format_args!("missed: {}", strikes[number]));
    }

    pub(crate) fn strikes(&self) -> Vec<Strike> {
        let strikes = self.strikes.lock().unwrap();
        strikes.iter().filter(|strike| strike.until != Some(MISSED)).cloned().collect()
    }
}

/// Held by each thread: when one breaks down the others end too, and what they started with them.
pub(crate) struct Alarm<'s>(pub(crate) &'s Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandoned.store(true, Ordering::Relaxed);
        }
    }
}
