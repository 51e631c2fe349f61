//! Why a task ran more often than was due: the rules by which a fault explains an extra run.

use super::clock::Moment;
use super::fault::{Fault, FaultKind, Target};
use super::record::{Outcome, Run};
use std::collections::BTreeMap;
use std::time::Duration;

/// From the end of a handler until the broker has the acknowledgement, or the copy of a failed task: what both take
/// on a machine that is busy.
const ACKNOWLEDGED: Duration = Duration::from_secs(3);
/// A run that hangs writes its line at its beginning; the worker's time-out and grace period follow.
pub(crate) const HANGS_FOR: Duration = Duration::from_secs(12);
/// How long a fault of the broker goes on to have effects after it is over: elections, connections that come back,
/// heartbeats missed before.
const AFTER_EFFECTS: Duration = Duration::from_secs(10);
/// A sender whose connection is lost needs that long at least to have another one.
const CONNECTED_AGAIN: Duration = Duration::from_millis(100);
/// What was held up arrives when the fault is over; the machine may be busy.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// The times of two processes are read at slightly different moments.
const SLACK: Duration = Duration::from_secs(1);

/// How a fault led to an extra run: the windows for duplicates of docs/reliability.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Window {
    /// It hit the worker, its connection or its broker while the task ran there, or before that was acknowledged.
    Unacknowledged,
    /// It hit the sender or its broker between publish and confirm, and the task was published again.
    PublishedTwice,
    /// It hit the broker while the task waited in the delay queue, which handed it over twice.
    HandedOver,
    /// It hit the worker that counted a redelivery: the copy with the new count was published, and the original was
    /// delivered again too.
    Counted,
    /// It froze the worker, or stalled its network, before a delivery had arrived. The broker gave the task to another
    /// worker, and then the first delivery arrived too.
    LateDelivery,
    /// It hit the node just after the acknowledgement, which was not on disk yet.
    LostAcknowledgement,
}

impl Window {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unacknowledged => "run, not acknowledged",
            Self::PublishedTwice => "published, not confirmed",
            Self::HandedOver => "handed over by the delay queue",
            Self::Counted => "redelivered, being counted",
            Self::LateDelivery => "delivered, not arrived in time",
            Self::LostAcknowledgement => "acknowledged, not on disk",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Explanation {
    pub(crate) window: Window,
    pub(crate) fault: Fault,
}

/// What the rules need to know of one task. Its runs are in the order in which they began.
pub(crate) struct Explainer<'b> {
    pub(crate) runs: &'b [&'b Run],
    pub(crate) confirmed: Option<Moment>,
    pub(crate) delayed: bool,
    pub(crate) faults: &'b [Fault],
}

/// How early a fault may have ended that still has effects at `moment`.
fn affected_from(fault: &Fault, moment: Moment) -> Moment {
    moment.minus(if fault.affects_broker() { AFTER_EFFECTS } else { SLACK })
}

fn has_failed(run: &Run) -> bool {
    matches!(run.outcome, Outcome::Failed | Outcome::Hung)
}

impl<'b> Explainer<'b> {
    /// The first attempt is due once, each later one as often as the one before it failed. All other runs are extra.
    pub(crate) fn extra_runs(&self) -> Vec<&'b Run> {
        let mut due = BTreeMap::from([(1, 1)]);
        for run in self.runs.iter().filter(|run| has_failed(run)) {
            *due.entry(run.attempt + 1).or_insert(0) += 1;
        }
        let is_extra = |run: &&&Run| {
            let count = due.entry(run.attempt).or_insert(0);
            *count -= 1;
            *count < 0
        };
        self.runs.iter().filter(is_extra).copied().collect()
    }

    pub(crate) fn explain(&self, extra: &Run) -> Option<Explanation> {
        let windows = [
            Window::PublishedTwice,
            Window::Unacknowledged,
            Window::HandedOver,
            Window::Counted,
            Window::LateDelivery,
            Window::LostAcknowledgement,
        ];
        windows.into_iter().find_map(|window| {
            let faults = self.faults.iter().filter(|fault| fault.from <= extra.start.plus(SLACK));
            // The last one that fits is the nearest to the run.
            let fault =
                faults.filter(|fault| self.fits(window, fault, extra)).max_by_key(|fault| fault.from)?;
            Some(Explanation { window, fault: fault.clone() })
        })
    }

    fn fits(&self, window: Window, fault: &Fault, extra: &Run) -> bool {
        let affected_a_run = || {
            self.before(extra).any(|run| {
                run.slot().is_some_and(|slot| fault.affects_worker(slot))
                    && fault.overlaps(affected_from(fault, run.start), self.acknowledged_by(run))
                    // During an alarm the broker takes acknowledgements, and blocks copies.
                    && (fault.kind != FaultKind::MemoryAlarm || has_failed(run))
            })
        };
        match window {
            // The broker marks a task that it delivers again as redelivered.
            Window::Unacknowledged => extra.redelivered && affected_a_run(),
            // The first delivery, which is not marked as redelivered, arrives when the fault is over.
            Window::LateDelivery => {
                let ran_elsewhere =
                    self.before(extra).any(|run| run.redelivered && run.worker != extra.worker);
                ran_elsewhere
                    && !extra.redelivered
                    && extra.slot().is_some_and(|slot| fault.affects_worker(slot))
                    && fault.overlaps(extra.start.minus(ARRIVES_WITHIN), extra.start)
            }
            Window::LostAcknowledgement => fault.affects_node() && affected_a_run(),
            Window::PublishedTwice => {
                let submitted = extra.body.submitted;
                let late = self.confirmed.is_none_or(|at| at.since(submitted) >= CONNECTED_AGAIN);
                let confirmed = self.confirmed.unwrap_or(extra.start).plus(SLACK);
                extra.attempt == 1
                    && late
                    && extra.body.sender().is_some_and(|number| fault.affects_sender(number))
                    && fault.overlaps(affected_from(fault, submitted), confirmed)
            }
            Window::HandedOver => {
                let waited_from = self.waited_from(extra);
                waited_from.is_some_and(|from| {
                    fault.affects_broker() && fault.overlaps(affected_from(fault, from), extra.start)
                })
            }
            // Both are marked as redelivered: the copy with the count, which ran first, and the original.
            Window::Counted => self.before(extra).filter(|run| run.redelivered).any(|run| {
                let from = self.waited_from(extra).unwrap_or(extra.body.submitted);
                extra.redelivered
                    && !affects_only_sender(fault)
                    && fault.overlaps(affected_from(fault, from), run.start.plus(ACKNOWLEDGED))
            }),
        }
    }

    /// Whether a fault may have made the worker copy a dead task twice after this last attempt: it hit the worker, its
    /// connection or its broker at some time between the end of the attempt and the end of the round. The broker may
    /// take a copy and lose the confirm with the connection; the worker then copies the task again without running it.
    pub(crate) fn may_be_copied_twice(&self, last_attempt: &Run) -> bool {
        let from = last_attempt.end;
        last_attempt.slot().is_some_and(|slot| {
            self.faults.iter().any(|fault| {
                fault.affects_worker(slot)
                    && fault.until.is_none_or(|until| until >= affected_from(fault, from))
            })
        })
    }

    /// The runs that may have led to this one: of the same attempt, or of the one before it.
    fn before(&self, extra: &Run) -> impl Iterator<Item = &'b Run> {
        let (start, attempt, itself) = (extra.start, extra.attempt, std::ptr::from_ref(extra));
        self.runs
            .iter()
            .copied()
            .filter(move |run| !std::ptr::eq(*run, itself) && run.start <= start)
            .filter(move |run| run.attempt == attempt || run.attempt + 1 == attempt)
    }

    /// When the broker has the acknowledgement of a run at the latest. A failed task is set aside while the broker
    /// takes no copy of it, as during a memory alarm.
    fn acknowledged_by(&self, run: &Run) -> Moment {
        let hangs = if run.outcome == Outcome::Hung { HANGS_FOR } else { Duration::ZERO };
        let ended = run.end.plus(hangs);
        let at_once = ended.plus(ACKNOWLEDGED);
        let set_aside = self.faults.iter().filter(|fault| {
            has_failed(run) && fault.affects_broker() && fault.overlaps(ended.minus(AFTER_EFFECTS), at_once)
        });
        let copied = set_aside.map(|fault| fault.until.unwrap_or(fault.from).plus(AFTER_EFFECTS));
        copied.max().map_or(at_once, |copied| copied.max(at_once))
    }

    /// Since when the task was in a delay queue before this attempt, if it was.
    fn waited_from(&self, extra: &Run) -> Option<Moment> {
        if extra.attempt == 1 {
            return self.delayed.then_some(extra.body.submitted);
        }
        self.before(extra).filter(|run| run.attempt + 1 == extra.attempt).map(|run| run.end).min()
    }
}

fn affects_only_sender(fault: &Fault) -> bool {
    matches!(fault.target, Target::Sender(_))
}
