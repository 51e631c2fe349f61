//! Why a task ran once more than it was asked to: the rules by which a run too many is put down to a fault.

use super::clock::Moment;
use super::record::{Outcome, Run};
use super::strike::{Kind, Strike, Target};
use std::collections::BTreeMap;
use std::time::Duration;

/// From the end of a handler until the broker has the acknowledgement, or the copy of a failed task: what both take
/// on a machine that is busy.
const ACKNOWLEDGED: Duration = Duration::from_secs(3);
/// A run that hangs writes its line at its beginning; the worker's time-out and grace period follow.
pub(crate) const HANGS_FOR: Duration = Duration::from_secs(12);
/// How long a fault of the broker goes on to have effects after it is over: elections, connections that come back,
/// heartbeats missed before.
const AFTERSHOCK: Duration = Duration::from_secs(10);
/// A sender whose connection is lost needs that long at least to have another one.
const CONNECTED_AGAIN: Duration = Duration::from_millis(100);
/// What was held up arrives when the fault is over; the machine may be busy.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// Clocks are read at slightly different times.
const SLACK: Duration = Duration::from_secs(1);

/// How a fault led to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Way {
    /// It hit the worker, its connection or its broker while the task ran there, or before that was acknowledged.
    Unacknowledged,
    /// It hit the sender or its broker between publish and confirm, and the task was published again.
    SentAgain,
    /// It hit the broker while the task waited for its time, and the delay queue handed it over twice.
    HandedOver,
    /// It hit whoever had the task when its redelivery was counted: the copy that carries the count was kept, and the
    /// original came back too.
    Counted,
    /// It froze the worker, or the way to it, with the delivery on its way. The broker gave the task to another one, and
    /// yet the first delivery arrived in the end.
    Overtaken,
    /// It hit the broker just after the acknowledgement, which was not on disk yet.
    Forgotten,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unacknowledged => "run, not acknowledged",
            Self::SentAgain => "published, not confirmed",
            Self::HandedOver => "handed over by the delay queue",
            Self::Counted => "redelivered, being counted",
            Self::Overtaken => "delivered, not arrived in time",
            Self::Forgotten => "acknowledged, not on disk",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) way: Way,
    pub(crate) strike: Strike,
}

/// What is known of one task. Its runs are in the order of their beginnings.
pub(crate) struct Evidence<'b> {
    pub(crate) runs: &'b [&'b Run],
    pub(crate) confirmed: Option<Moment>,
    pub(crate) delayed: bool,
    pub(crate) strikes: &'b [Strike],
}

fn has_failed(run: &Run) -> bool {
    matches!(run.outcome, Outcome::Failed | Outcome::Hung)
}

impl<'b> Evidence<'b> {
    /// The first attempt is due once, each later one as often as the one before it failed. All beyond that is too
    /// much.
    pub(crate) fn repeats(&self) -> Vec<&'b Run> {
        let mut due = BTreeMap::from([(1, 1)]);
        for run in self.runs.iter().filter(|run| has_failed(run)) {
            *due.entry(run.attempt + 1).or_insert(0) += 1;
        }
        let too_much = |run: &&&Run| {
            let left = due.entry(run.attempt).or_insert(0);
            *left -= 1;
            *left < 0
        };
        self.runs.iter().filter(too_much).copied().collect()
    }

    pub(crate) fn explain(&self, repeat: &Run) -> Option<Cause> {
        let ways = [
            Way::SentAgain,
            Way::Unacknowledged,
            Way::HandedOver,
            Way::Counted,
            Way::Overtaken,
            Way::Forgotten,
        ];
        ways.into_iter().find_map(|way| {
            let strikes = self.strikes.iter().filter(|strike| strike.from <= repeat.start.plus(SLACK));
            // The last one that fits was the nearest to it.
            let strike = strikes.filter(|strike| self.fits(way, strike, repeat)).max_by_key(|s| s.from)?;
            Some(Cause { way, strike: strike.clone() })
        })
    }

    fn fits(&self, way: Way, strike: &Strike, repeat: &Run) -> bool {
        let feels_until = |moment: Moment| {
            if strike.hits_broker() { moment.minus(AFTERSHOCK) } else { moment.minus(SLACK) }
        };
        let hit_a_run = || {
            self.before(repeat).any(|run| {
                run.place().is_some_and(|place| strike.hits_worker(place))
                    && strike.touches(feels_until(run.start), self.settled(run))
                    // Acknowledgements pass, copies do not.
                    && (strike.kind != Kind::MemoryAlarm || has_failed(run))
            })
        };
        match way {
            // The broker says so when it delivers a task for the second time.
            Way::Unacknowledged => repeat.redelivered && hit_a_run(),
            // It arrives when the fault is over, and is the only one that the broker does not call a redelivery.
            Way::Overtaken => {
                let by_another =
                    self.before(repeat).any(|run| run.redelivered && run.worker != repeat.worker);
                by_another
                    && !repeat.redelivered
                    && repeat.place().is_some_and(|place| strike.hits_worker(place))
                    && strike.touches(repeat.start.minus(ARRIVES_WITHIN), repeat.start)
            }
            Way::Forgotten => strike.hits_node() && hit_a_run(),
            Way::SentAgain => {
                let fed = repeat.body.fed;
                let late = self.confirmed.is_none_or(|at| at.since(fed) >= CONNECTED_AGAIN);
                let confirmed = self.confirmed.unwrap_or(repeat.start).plus(SLACK);
                repeat.attempt == 1
                    && late
                    && repeat.body.sender().is_some_and(|place| strike.hits_sender(place))
                    && strike.touches(feels_until(fed), confirmed)
            }
            Way::HandedOver => {
                let waited_from = self.waited_from(repeat);
                waited_from.is_some_and(|from| {
                    strike.hits_broker() && strike.touches(feels_until(from), repeat.start)
                })
            }
            // Both are redeliveries then: the copy with the count, which ran first, and the original.
            Way::Counted => self.before(repeat).filter(|run| run.redelivered).any(|run| {
                let from = self.waited_from(repeat).unwrap_or(repeat.body.fed);
                repeat.redelivered
                    && !is_senders(strike)
                    && strike.touches(feels_until(from), run.start.plus(ACKNOWLEDGED))
            }),
        }
    }

    /// The runs that may have led to this one: of the same attempt, or of the one before it.
    fn before(&self, repeat: &Run) -> impl Iterator<Item = &'b Run> {
        let (start, attempt, itself) = (repeat.start, repeat.attempt, std::ptr::from_ref(repeat));
        self.runs
            .iter()
            .copied()
            .filter(move |run| !std::ptr::eq(*run, itself) && run.start <= start)
            .filter(move |run| run.attempt == attempt || run.attempt + 1 == attempt)
    }

    /// When the worker is done with a run: its broker has the acknowledgement. A failed task is set aside while its
    /// copy cannot be kept, as during a memory alarm.
    fn settled(&self, run: &Run) -> Moment {
        let hangs = if run.outcome == Outcome::Hung { HANGS_FOR } else { Duration::ZERO };
        let ended = run.end.plus(hangs);
        let at_once = ended.plus(ACKNOWLEDGED);
        let set_aside = self.strikes.iter().filter(|strike| {
            has_failed(run) && strike.hits_broker() && strike.touches(ended.minus(AFTERSHOCK), at_once)
        });
        let taken = set_aside.map(|strike| strike.until.unwrap_or(strike.from).plus(AFTERSHOCK));
        taken.max().map_or(at_once, |taken| taken.max(at_once))
    }

    /// Since when the task was in a delay queue before this attempt, if it was.
    fn waited_from(&self, repeat: &Run) -> Option<Moment> {
        if repeat.attempt == 1 {
            return self.delayed.then_some(repeat.body.fed);
        }
        self.before(repeat).filter(|run| run.attempt + 1 == repeat.attempt).map(|run| run.end).min()
    }
}

fn is_senders(strike: &Strike) -> bool {
    matches!(strike.target, Target::Sender(_))
}
