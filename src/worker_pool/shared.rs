//! What all threads of the pool see: options, counts, the memory of finished tasks, and how many may still be taken.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::Options;
use super::ledger::Ledger;
use crate::backoff::Reminder;
use crate::error::Exit;
use crate::lock::lock;

/// What all threads of the pool see.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) ledger: Ledger,
    pub(super) permits: Permits,
    busy: AtomicUsize,
    /// Deliveries that were acknowledged, whatever for: the sign that things move.
    settled: AtomicU64,
    finished: AtomicU64,
    dead: AtomicU64,
    /// Failed tasks that went back to the queue at the end of this round, because no copy of them can be kept.
    held_back: AtomicU32,
    /// This user may not publish, so that redelivered tasks cannot be counted.
    pub(super) cannot_count: AtomicBool,
    pub(super) host: String,
    connected: AtomicBool,
    /// The broker has let the worker in, in whatever round.
    was_connected: AtomicBool,
    /// The pool ends because the queue is empty: what was delivered meanwhile is run, not given back.
    finishing: AtomicBool,
    last_activity: Mutex<Instant>,
    shortage: Mutex<Reminder>,
    greeting: Mutex<Greeting>,
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
            ledger: Ledger::new(),
            busy: AtomicUsize::new(0),
            settled: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            held_back: AtomicU32::new(0),
            cannot_count: AtomicBool::new(false),
            host: crate::broker::host_name(),
            connected: AtomicBool::new(false),
            was_connected: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            last_activity: Mutex::new(Instant::now()),
            shortage: Mutex::default(),
            greeting: Mutex::new(Greeting::Due(String::new())),
        }
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
    pub(super) fn finish(&self) {
        self.finishing.store(true, Ordering::SeqCst);
    }

    pub(super) fn hold_back(&self) {
        self.held_back.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn held_back(&self) -> u32 {
        self.held_back.load(Ordering::SeqCst)
    }

    /// A delivery has arrived; it counts as running until the guard is dropped.
    pub(super) fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        self.touch();
        Busy(self)
    }

    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    pub(super) fn settle(&self) {
        self.settled.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn settled(&self) -> u64 {
        self.settled.load(Ordering::SeqCst)
    }

    pub(super) fn finished(&self) {
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
        let bounded = self.options.until_empty || self.options.max_tasks.is_some();
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
            Greeting::Told => log::info!("connected to {introduction}"),
        }
    }

    /// A consumer has begun. What it brings is told after the greeting.
    pub(super) fn greet(&self) {
        let mut greeting = lock(&self.greeting);
        if let Greeting::Due(introduction) = &*greeting {
            log::info!(" [*] Waiting for messages. To exit press CTRL+C");
            log::info!("connected to {introduction}");
            *greeting = Greeting::Told;
        }
    }

    /// A task cannot run for want of something that this machine lacks now.
    pub(super) fn tell_shortage(&self, what: &str) {
        if lock(&self.shortage).is_due(what) {
            log::warn!(
                "cannot run a task now: {what}; no attempt is used up, the task goes back unless that passes soon, and \
                 this thread takes no other meanwhile"
            );
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
pub(super) struct Busy<'s>(&'s Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How many tasks may still be taken.
pub(super) struct Permits(Option<Mutex<u64>>);

impl Permits {
    fn new(limit: Option<u64>) -> Self {
        Self(limit.map(Mutex::new))
    }

    pub(super) fn take(&self) -> Option<Permit<'_>> {
        if let Some(left) = &self.0 {
            let mut left = lock(left);
            *left = left.checked_sub(1)?;
        }
        Some(Permit { permits: self, used: false })
    }
}

/// The right to take one task; it goes back when it was not used.
pub(super) struct Permit<'p> {
    permits: &'p Permits,
    used: bool,
}

impl Permit<'_> {
    pub(super) fn used(&mut self) {
        self.used = true;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let (false, Some(left)) = (self.used, &self.permits.0) {
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
        let Some(mut third) = permits.take() else { panic!("it came back") };
        third.used();
        drop((second, third));
        assert!(permits.take().is_some());
    }

    #[test]
    fn without_a_limit_there_is_always_another_permit() {
        let permits = Permits::new(None);
        let held: Vec<_> = (0..100).map(|_| permits.take()).collect();
        assert!(held.iter().all(Option::is_some));
    }
}
