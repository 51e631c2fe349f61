//! What all threads of a round share: its recorder, its faults, its phase, and the violations found so far.

use super::brokers::Setup;
use super::checker::clock::Moment;
use super::checker::fault::{Fault, FaultKind, Target};
use super::recorder::Recorder;
use super::workers::Handler;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two polls.
pub(crate) const PAUSE: Duration = Duration::from_millis(25);

/// The end of a fault that could not be injected.
const NOT_APPLIED: Moment = Moment(0);

/// The settings of a chaos run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// How often a quorum queue delivers a task before it drops it.
    pub(crate) limit: Option<u32>,
    pub(crate) handler: Handler,
}

/// How far a round is. Each thread polls it.
#[derive(Default)]
pub(crate) struct Phase {
    /// Senders finish what was submitted to them, and no fault is begun.
    pub(crate) draining: AtomicBool,
    /// Workers are told to stop.
    pub(crate) stopping: AtomicBool,
}

pub(crate) struct Shared {
    pub(crate) recorder: Recorder,
    pub(crate) queue: String,
    pub(crate) setup: Setup,
    pub(crate) handler: Handler,
    pub(crate) phase: Phase,
    /// A signal came, or a thread panicked: everything ends at once.
    pub(crate) abandoned: Arc<AtomicBool>,
    faults: Mutex<Vec<Fault>>,
    violations: Mutex<Vec<String>>,
}

impl Shared {
    pub(crate) fn new(
        recorder: Recorder,
        setup: Setup,
        handler: Handler,
        abandoned: Arc<AtomicBool>,
    ) -> Self {
        Self {
            recorder,
            queue: "chaos".to_owned(),
            setup,
            handler,
            phase: Phase::default(),
            abandoned,
            faults: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    /// Records a broken rule that the history alone would not show.
    pub(crate) fn violation(&self, what: String) {
        self.recorder.event(format_args!("VIOLATION: {what}"));
        self.violations.lock().unwrap().push(what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_abandoned() || self.phase.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_abandoned() || self.phase.stopping.load(Ordering::Relaxed)
    }

    /// Sleeps that long, or until this is true.
    pub(crate) fn sleep(&self, duration: Duration, until: impl Fn(&Self) -> bool) {
        let end = Instant::now() + duration;
        while !until(self) && Instant::now() < end {
            std::thread::sleep(PAUSE.min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// A fault begins. Returns its number, for [`Shared::end_fault`].
    pub(crate) fn begin_fault(&self, kind: FaultKind, target: Target) -> usize {
        let mut faults = self.faults.lock().unwrap();
        let now = Moment::now();
        let fault = Fault { kind, target, from: now, in_force_at: now, until: None };
        self.recorder.fault(&fault);
        faults.push(fault);
        faults.len() - 1
    }

    /// The fault is in force now.
    pub(crate) fn fault_in_force(&self, number: usize) {
        self.faults.lock().unwrap()[number].in_force_at = Moment::now();
    }

    /// The fault is over.
    pub(crate) fn end_fault(&self, number: usize) {
        let mut faults = self.faults.lock().unwrap();
        faults[number].until = Some(Moment::now());
        self.recorder.fault(&faults[number]);
    }

    /// The fault was not injected: there was no process.
    pub(crate) fn fault_not_applied(&self, number: usize) {
        let mut faults = self.faults.lock().unwrap();
        // It stays in the list, whose indexes are the numbers of the other faults.
        faults[number].until = Some(NOT_APPLIED);
        self.recorder.event(format_args!("not applied: {}", faults[number]));
    }

    pub(crate) fn faults(&self) -> Vec<Fault> {
        let faults = self.faults.lock().unwrap();
        faults.iter().filter(|fault| fault.until != Some(NOT_APPLIED)).cloned().collect()
    }
}

/// Held by each thread: when one panics the others end too, and the processes that they started.
pub(crate) struct AbandonOnPanic<'s>(pub(crate) &'s Shared);

impl Drop for AbandonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandoned.store(true, Ordering::Relaxed);
        }
    }
}
