//! What all threads of the pool see: options, counts, the memory of finished tasks, and how many may still be taken.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Options;
use super::dedup::Dedup;
use super::surroundings::Surroundings;
use crate::backoff::Reminder;
use crate::broker::QueueType;
use crate::error::{Error, Exit};
use crate::events::Event;
use crate::lock::lock;
use crate::report::{last_returns, tell};

/// How long a delivery is held in all: less than the 30 minutes that the broker waits for an acknowledgement.
pub(super) const HOLD_LIMIT: Duration = Duration::from_mins(25);
/// The same as a share of what the broker waits, where it has told.
const HOLD_SHARE: f64 = 25.0 / 30.0;

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What all threads of the pool see.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) dedup: Arc<Dedup>,
    pub(super) surroundings: Surroundings,
    pub(super) permits: Permits,
    busy: AtomicUsize,
    running: AtomicUsize,
    /// Deliveries that were acknowledged, whatever for: the sign that things move.
    settled: AtomicU64,
    finished: AtomicU64,
    dead: AtomicU64,
    /// Failed tasks that went back to the queue at the end of this round, because no copy of them can be kept.
    held_back: AtomicU32,
    /// Tasks that went back to the queue although the broker may drop them for it.
    last_returns: AtomicU32,
    /// Tasks that run now, and of which that is true if they go back.
    last_chances: AtomicUsize,
    /// Since when no task could be run for want of something that this machine lacks.
    short_since: Mutex<Option<Instant>>,
    /// To give a delivery back counts towards the delivery limit of its queue.
    broker_counts_nacks: AtomicBool,
    /// How long a delivery may be held, in milliseconds.
    hold_limit: AtomicU64,
    /// This user may not publish, so that redelivered tasks cannot be counted.
    cannot_count: AtomicBool,
    /// The queue takes no task back, and refuses consumers that say when to.
    pub(super) no_timeout: AtomicBool,
    pub(super) host: String,
    connected: AtomicBool,
    /// The broker has let the worker in, in whatever round.
    was_connected: AtomicBool,
    /// The pool ends because the queue is empty: what was delivered meanwhile is run, not given back.
    finishing: AtomicBool,
    last_activity: Mutex<Instant>,
    shortage: Mutex<Reminder>,
    greeting: Mutex<Greeting>,
    /// What the queue is; `None` where nobody told.
    queue_kind: Mutex<Option<QueueType>>,
}

/// The worker says that it waits for messages when it does: when its first consumer has begun.
enum Greeting {
    /// Of the broker with this name.
    Due(String),
    Told,
}

impl Shared {
    pub(super) fn new(options: Options) -> Self {
        Self {
            permits: Permits::new(options.max_tasks),
            options,
            dedup: Arc::new(Dedup::new()),
            surroundings: Surroundings::default(),
            busy: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            settled: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            held_back: AtomicU32::new(0),
            last_returns: AtomicU32::new(0),
            last_chances: AtomicUsize::new(0),
            short_since: Mutex::default(),
            broker_counts_nacks: AtomicBool::new(true),
            hold_limit: AtomicU64::new(as_millis(HOLD_LIMIT)),
            cannot_count: AtomicBool::new(false),
            no_timeout: AtomicBool::new(false),
            host: crate::broker::host_name(),
            connected: AtomicBool::new(false),
            was_connected: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            last_activity: Mutex::new(Instant::now()),
            shortage: Mutex::default(),
            greeting: Mutex::new(Greeting::Due(String::new())),
            queue_kind: Mutex::new(None),
        }
    }

    /// How long a delivery is held in all, from its arrival on, before it goes back to the queue.
    pub(super) fn hold_limit(&self) -> Duration {
        Duration::from_millis(self.hold_limit.load(Ordering::Relaxed))
    }

    /// The broker has told how long it waits for an acknowledgement: less than it does unless configured otherwise.
    pub(super) fn learn_acknowledgement_timeout(&self, timeout: Duration) {
        let limit = as_millis(timeout.mul_f64(HOLD_SHARE));
        self.hold_limit.fetch_min(limit, Ordering::Relaxed);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::SeqCst)
    }

    pub(super) fn count_finished(&self) -> u64 {
        self.finished.load(Ordering::SeqCst)
    }

    /// Another pool of threads starts.
    pub(super) fn begin_round(&self) {
        self.finishing.store(false, Ordering::SeqCst);
        self.held_back.store(0, Ordering::SeqCst);
    }

    /// The queue is empty.
    pub(super) fn begin_finishing(&self) {
        self.finishing.store(true, Ordering::SeqCst);
    }

    pub(super) fn hold_back(&self) {
        self.held_back.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn held_back(&self) -> u32 {
        self.held_back.load(Ordering::SeqCst)
    }

    pub(super) fn note_last_return(&self) {
        self.last_returns.fetch_add(1, Ordering::SeqCst);
    }

    /// What to say of tasks that went back although the broker may drop them for it.
    pub(super) fn last_returns(&self) -> Option<Error> {
        let count = self.last_returns.load(Ordering::SeqCst);
        (count > 0).then(|| Error::try_again(last_returns(&self.options.queue.name, count as usize)))
    }

    /// A task is run that the broker may drop if it goes back, until the guard is dropped.
    pub(super) fn run_last_chance(&self) -> LastChance<'_> {
        self.last_chances.fetch_add(1, Ordering::SeqCst);
        LastChance(self)
    }

    pub(super) fn last_chances(&self) -> usize {
        self.last_chances.load(Ordering::SeqCst)
    }

    /// A task could be run, or not for want of something: since when that has been so.
    pub(super) fn note_shortage(&self, is_short: bool) -> Option<Instant> {
        let mut since = lock(&self.short_since);
        if is_short {
            Some(*since.get_or_insert_with(Instant::now))
        } else {
            *since = None;
            None
        }
    }

    /// Redelivered tasks are counted by copies.
    pub(super) fn counts(&self) -> bool {
        !self.cannot_count.load(Ordering::Relaxed)
    }

    /// This user may not publish the copies that would count them.
    pub(super) fn stop_counting(&self) {
        self.cannot_count.store(true, Ordering::Relaxed);
    }

    pub(super) fn broker_counts_nacks(&self) -> bool {
        self.broker_counts_nacks.load(Ordering::Relaxed)
    }

    pub(super) fn set_broker_counts_nacks(&self, counts: bool) {
        self.broker_counts_nacks.store(counts, Ordering::Relaxed);
    }

    /// A delivery has arrived; it counts as running until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.touch();
        Busy(Arc::clone(self))
    }

    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    /// A task is run until the guard is dropped.
    pub(super) fn run(&self) -> Running<'_> {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(self)
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub(super) fn count_acknowledged(&self) {
        self.settled.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn settled(&self) -> u64 {
        self.settled.load(Ordering::SeqCst)
    }

    pub(super) fn count_done(&self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn finishing(&self) -> bool {
        self.finishing.load(Ordering::SeqCst)
    }

    pub(super) fn died(&self) {
        self.dead.fetch_add(1, Ordering::SeqCst);
    }

    /// A bounded run tells whether all its tasks ended well; a worker that was stopped does not.
    pub(super) fn exit(&self) -> Exit {
        let bounded = self.options.tells_of_dead_tasks();
        let failed = self.dead.load(Ordering::SeqCst) > 0 || self.held_back() > 0;
        if bounded && failed { Exit::TasksDead } else { Exit::Success }
    }

    pub(super) fn was_connected(&self) -> bool {
        self.was_connected.load(Ordering::SeqCst)
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::SeqCst);
        self.was_connected.fetch_or(connected, Ordering::SeqCst);
        self.touch();
    }

    /// Tells where the worker is connected to, the first time together with its greeting.
    pub(super) fn tell_connected(&self, introduction: String) {
        let mut greeting = lock(&self.greeting);
        match *greeting {
            Greeting::Due(_) => *greeting = Greeting::Due(introduction),
            Greeting::Told => tell(&Event::ConnectedAgain { broker: &introduction }),
        }
    }

    /// A consumer has begun. What it brings is told after the greeting.
    pub(super) fn greet(&self) {
        let mut greeting = lock(&self.greeting);
        if let Greeting::Due(introduction) = &*greeting {
            // Not earlier: of a worker that cannot start, the error is all there is to say.
            if self.options.is_sleeper_by_default {
                log::info!(
                    "no COMMAND: tasks are slept through, one second for each dot (--dots says so by name)"
                );
            }
            tell(&Event::Waiting);
            tell(&Event::Connected { broker: introduction });
            *greeting = Greeting::Told;
        }
    }

    /// A consumer has begun, on whatever connection.
    pub(super) fn has_greeted(&self) -> bool {
        matches!(*lock(&self.greeting), Greeting::Told)
    }

    /// What the queue was when it was last made sure of; `None` where nobody told, as with `--no-declare`.
    pub(super) fn queue_kind(&self) -> Option<QueueType> {
        *lock(&self.queue_kind)
    }

    pub(super) fn set_queue_kind(&self, kind: Option<QueueType>) {
        *lock(&self.queue_kind) = kind;
    }

    /// A task cannot run for want of something that this machine lacks now.
    pub(super) fn tell_shortage(&self, what: &str) {
        if lock(&self.shortage).is_due(what) {
            tell(&Event::Shortage { what });
        }
    }

    /// A task cannot run because the command cannot be started now.
    pub(super) fn tell_obstacle(&self, why: &str) {
        if lock(&self.shortage).is_due(why) {
            tell(&Event::CommandNotStarted { why });
        }
    }

    fn touch(&self) {
        *lock(&self.last_activity) = Instant::now();
    }

    pub(super) fn last_activity(&self) -> Instant {
        *lock(&self.last_activity)
    }
}

/// One delivery that is being worked on.
pub(super) struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One task that is run.
pub(super) struct Running<'s>(&'s Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One task that is run and may be dropped if it goes back.
pub(super) struct LastChance<'s>(&'s Shared);

impl Drop for LastChance<'_> {
    fn drop(&mut self) {
        self.0.last_chances.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How many tasks may still be taken; no limit without `--max-tasks`.
pub(super) struct Permits(Option<Arc<Mutex<u64>>>);

impl Permits {
    fn new(limit: Option<u64>) -> Self {
        Self(limit.map(|limit| Arc::new(Mutex::new(limit))))
    }

    pub(super) fn take(&self) -> Option<Permit> {
        if let Some(left) = &self.0 {
            let mut left = lock(left);
            *left = left.checked_sub(1)?;
        }
        Some(Permit(self.0.clone()))
    }
}

/// The right to take one task; it goes back when it was not used.
pub(super) struct Permit(Option<Arc<Mutex<u64>>>);

impl Permit {
    pub(super) fn used(mut self) {
        self.0 = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(left) = &self.0 {
            *lock(left) += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_exact_and_come_back_unused() {
        let permits = Permits::new(Some(2));
        let (first, second) = (permits.take(), permits.take());
        assert!(first.is_some() && second.is_some() && permits.take().is_none());
        drop(first);
        permits.take().expect("it came back").used();
        drop(second);
        assert!(permits.take().is_some());
    }

    #[test]
    fn without_a_limit_there_is_always_another_permit() {
        let permits = Permits::new(None);
        let held: Vec<_> = (0..100).map(|_| permits.take()).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
