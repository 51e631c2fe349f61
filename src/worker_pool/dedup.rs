//! Which tasks run here, and which ran here although the broker does not know it.
//!
//! The guarantee is at least once: a task whose acknowledgement was lost with its connection is delivered again. When
//! it comes back to the process that ran it, it is acknowledged without running again; one that failed and had to go
//! back before its copy was kept is copied without running again; and one that is still running on another thread is
//! waited for, not started beside it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::{Receiver, Sender};

use super::planned_copy::PlannedCopy;
use crate::broker::{Message, Record};
use crate::cancel::Never;
use crate::lock::lock;

/// Tasks that are remembered. A lost connection leaves at most so many for each thread as it has prefetched and set
/// aside.
const MAX_REMEMBERED: usize = 10_000;

/// What makes two deliveries the same attempt at the same task: id, time of sending, body, attempt and count of
/// deliveries. An id alone would not do, since users give the same one to tomorrow's task, and taskq's own copies
/// keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64, u64);

/// The process's memory.
pub(super) struct Dedup {
    seeds: [RandomState; 2],
    state: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Each closes its channel when it ends.
    running: HashMap<Fingerprint, Receiver<Never>>,
    ended: HashMap<Fingerprint, Ended>,
    /// `ended` in the order of arrival, for forgetting the oldest.
    order: VecDeque<Fingerprint>,
}

/// How a task ended here.
enum Ended {
    /// It can be acknowledged.
    Finished,
    /// Its copy has to be kept first.
    Failed(Box<PlannedCopy>),
}

impl Memory {
    fn forget(&mut self, fingerprint: Fingerprint) {
        if self.ended.remove(&fingerprint).is_some()
            // Mostly the newest entries go, so the search from the back is short.
            && let Some(at) = self.order.iter().rposition(|other| *other == fingerprint)
        {
            self.order.remove(at);
        }
    }

    fn remember(&mut self, fingerprint: Fingerprint, how: Ended) {
        if self.ended.insert(fingerprint, how).is_none() {
            self.order.push_back(fingerprint);
        }
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

/// What to do with a delivery.
pub(super) enum Claim<'l> {
    /// Run it; it counts as running until this is dropped.
    Run(Option<Claimed<'l>>),
    /// It was finished here: acknowledge it.
    Finished,
    /// It failed here, and this copy of it is not known to be kept. It counts as running until the guard is dropped.
    Failed(Box<PlannedCopy>, Claimed<'l>),
    /// It runs on another thread; ask again when this channel closes.
    Elsewhere(Receiver<Never>),
}

/// A task that runs on this thread.
pub(super) struct Claimed<'l> {
    dedup: &'l Dedup,
    fingerprint: Fingerprint,
    _ends: Sender<Never>,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.dedup.lock().running.remove(&self.fingerprint);
    }
}

impl Dedup {
    pub(super) fn new() -> Self {
        Self { seeds: [RandomState::new(), RandomState::new()], state: Mutex::default() }
    }

    /// `None` for a task without an id: nothing tells it from another one like it.
    pub(super) fn fingerprint(&self, message: &Message<'_>, record: &Record) -> Option<Fingerprint> {
        let properties = message.properties;
        if properties.id().is_empty() {
            return None;
        }
        let identity =
            (properties.id(), properties.timestamp(), record.attempt, record.deliveries, message.body);
        let [one, two] = &self.seeds;
        Some(Fingerprint(one.hash_one(identity), two.hash_one(identity)))
    }

    /// Only redeliveries are looked up: what the broker delivers for the first time is new, however much it looks
    /// like something else.
    pub(super) fn claim(&self, fingerprint: Option<Fingerprint>, redelivered: bool) -> Claim<'_> {
        let Some(fingerprint) = fingerprint else { return Claim::Run(None) };
        let mut state = self.lock();
        let mut failed = None;
        if redelivered {
            if let Some(ends) = state.running.get(&fingerprint) {
                return Claim::Elsewhere(ends.clone());
            }
            match state.ended.get(&fingerprint) {
                Some(Ended::Finished) => return Claim::Finished,
                Some(Ended::Failed(copy)) => failed = Some(copy.clone()),
                None => {}
            }
        } else {
            // A first delivery is a new message, such as a dead task sent again: what is remembered is of an earlier one.
            state.forget(fingerprint);
        }
        let (sender, receiver) = crossbeam_channel::bounded(0);
        state.running.insert(fingerprint, receiver);
        let running = Claimed { dedup: self, fingerprint, _ends: sender };
        match failed {
            Some(copy) => Claim::Failed(copy, running),
            None => Claim::Run(Some(running)),
        }
    }

    /// Whether [`Dedup::claim`] knows a redelivered task.
    pub(super) fn knows(&self, fingerprint: Option<Fingerprint>) -> bool {
        let state = self.lock();
        fingerprint
            .is_some_and(|print| state.running.contains_key(&print) || state.ended.contains_key(&print))
    }

    /// Remembers a finished task until [`Dedup::forget`]. To be called before its acknowledgement is sent, so that
    /// no moment is left in which it could come back unknown.
    pub(super) fn remember(&self, fingerprint: Fingerprint) {
        self.lock().remember(fingerprint, Ended::Finished);
    }

    /// Remembers a failed task that goes back to the queue, because its copy is not kept: when it comes again, the copy
    /// is all that is left to do.
    pub(super) fn remember_failed(&self, fingerprint: Fingerprint, copy: Box<PlannedCopy>) {
        self.lock().remember(fingerprint, Ended::Failed(copy));
    }

    /// The broker has the acknowledgement: the task cannot come back.
    pub(super) fn forget(&self, fingerprint: Fingerprint) {
        self.lock().forget(fingerprint);
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        lock(&self.state)
    }
}

/// The acknowledgements of one channel that the broker may not have processed. It never has more than `prefetch`
/// deliveries out on a channel, so each new one proves that all but the last few acknowledgements arrived.
pub(super) struct UnprovenAcks {
    dedup: Arc<Dedup>,
    /// As many as can be out at once: more than the channel's own where deliveries were set aside.
    prefetch: usize,
    /// `None` is a task without an id.
    acknowledged: VecDeque<Option<Fingerprint>>,
}

impl UnprovenAcks {
    pub(super) fn new(dedup: &Arc<Dedup>, prefetch: u16) -> Self {
        Self { dedup: Arc::clone(dedup), prefetch: usize::from(prefetch), acknowledged: VecDeque::new() }
    }

    /// Whether there are any.
    pub(super) fn are_some(&self) -> bool {
        !self.acknowledged.is_empty()
    }

    /// A delivery stays unsettled while others come beside it.
    pub(super) fn set_aside(&mut self) {
        self.prefetch += 1;
    }

    /// To be called before the acknowledgement is sent.
    pub(super) fn acknowledging(&mut self, fingerprint: Option<Fingerprint>) {
        if let Some(fingerprint) = fingerprint {
            self.dedup.remember(fingerprint);
        }
        self.acknowledged.push_back(fingerprint);
    }

    /// A delivery has arrived.
    pub(super) fn delivered(&mut self) {
        while self.acknowledged.len() >= self.prefetch.max(1) {
            let Some(proven) = self.acknowledged.pop_front() else { break };
            if let Some(proven) = proven {
                self.dedup.forget(proven);
            }
        }
    }

    /// The channel was closed in good order, after everything on it.
    pub(super) fn all_arrived(&mut self) {
        for proven in self.acknowledged.drain(..).flatten() {
            self.dedup.forget(proven);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Fingerprint = Fingerprint(1, 1);
    const B: Fingerprint = Fingerprint(2, 2);

    fn finished(dedup: &Dedup, fingerprint: Fingerprint) -> bool {
        matches!(dedup.claim(Some(fingerprint), true), Claim::Finished)
    }

    #[test]
    fn a_finished_task_is_recognised_when_it_comes_back() {
        let dedup = Dedup::new();
        dedup.remember(A);
        assert!(finished(&dedup, A));
        assert!(!finished(&dedup, B));
        dedup.forget(A);
        assert!(!finished(&dedup, A));
        dedup.remember(A);
        assert!(matches!(dedup.claim(Some(A), false), Claim::Run(_)), "a first delivery is a new task");
        assert!(!finished(&dedup, A), "what was remembered was another one's");
    }

    #[test]
    fn a_task_that_runs_elsewhere_is_waited_for() {
        let dedup = Dedup::new();
        let Claim::Run(running) = dedup.claim(Some(A), false) else { panic!("should run") };
        let Claim::Elsewhere(ends) = dedup.claim(Some(A), true) else { panic!("should wait") };
        assert!(ends.try_recv() == Err(crossbeam_channel::TryRecvError::Empty));
        dedup.remember(A);
        drop(running);
        assert!(ends.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected));
        assert!(finished(&dedup, A));
    }

    #[test]
    fn each_delivery_proves_earlier_acknowledgements() {
        let dedup = Arc::new(Dedup::new());
        let mut unproven = UnprovenAcks::new(&dedup, 1);
        unproven.acknowledging(Some(A));
        unproven.delivered();
        assert!(!finished(&dedup, A));
        let mut unproven = UnprovenAcks::new(&dedup, 2);
        unproven.acknowledging(Some(A));
        unproven.delivered();
        assert!(finished(&dedup, A), "the delivery may have been under way");
        unproven.acknowledging(Some(B));
        unproven.delivered();
        assert!(!finished(&dedup, A) && finished(&dedup, B));
        unproven.all_arrived();
        assert!(!finished(&dedup, B));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let dedup = Dedup::new();
        for number in 0..2 * MAX_REMEMBERED as u64 {
            dedup.remember(Fingerprint(number, 0));
        }
        let state = dedup.lock();
        assert_eq!((state.ended.len(), state.order.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
    }
}
