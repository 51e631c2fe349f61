//! The deliveries of one channel, and those of them that are set aside.
//!
//! A failed task is acknowledged when the broker has its copy, which can take as long as a memory alarm lasts. Its
//! worker thread does not wait for that: it sets the delivery aside, unacknowledged, and takes another one. Otherwise
//! a few failing tasks could hold up the very queue whose length caused the alarm.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::process::PendingCopy;
use super::shared::Busy;
use crate::broker::{
    ConsumeOptions, Deliveries, Delivery, DeliveryChannel, Fault, FaultKind, Message, Next, Watch,
};
use crate::cancel::Never;
use crate::lock::lock;
use crate::settlement::{HeldCopy, Uncounted};

/// How many deliveries one thread sets aside before it waits (and what it has prefetched beside them): it holds their
/// bodies in memory.
const MAX_ASIDE: usize = 32;

/// A delivery whose copy is not kept.
pub(super) struct Aside<'c> {
    pub(super) delivery: Delivery<'c>,
    /// The consumer that it came to.
    pub(super) consumer: u32,
    /// The copy; `None` where there will be none.
    pub(super) pending_copy: Option<PendingCopy>,
    /// When it came.
    pub(super) since: Instant,
    /// The worker has something to do until the copy is kept or refused.
    pub(super) busy: Option<Busy>,
}

impl<'c> Aside<'c> {
    /// Its task is to run all the same.
    pub(super) fn uncounted(self, why: Uncounted) -> WaitingDelivery<'c> {
        let Self { delivery, consumer, since, .. } = self;
        WaitingDelivery { delivery, consumer, since, uncounted: Some(why), pending_copy: None }
    }

    /// It has been held for longer than `limit`, and has to go back to the queue, or the broker closes the channel. One
    /// that must not go back is left to the broker.
    pub(super) fn is_overdue(&self, limit: Duration) -> bool {
        self.since.elapsed() >= limit
    }

    /// The copy, as the rules see it.
    pub(super) fn copy(&self) -> Option<HeldCopy> {
        self.pending_copy.as_ref().map(PendingCopy::held)
    }
}

/// What there is to do.
#[allow(clippy::large_enum_variant)] // Moved once, and nearly always a task.
pub(super) enum Arrival<'c> {
    /// A task.
    Task(WaitingDelivery<'c>),
    /// Something is known of a delivery that is set aside, or it is overdue.
    Woken,
    /// The drain has begun.
    Stopped,
    /// No further delivery will come.
    Ended(Fault),
}

/// A delivery that waits for its turn.
pub(super) struct WaitingDelivery<'c> {
    pub(super) delivery: Delivery<'c>,
    /// The consumer that it came to.
    pub(super) consumer: u32,
    /// When it came.
    pub(super) since: Instant,
    /// Why its deliveries cannot be counted, where that was found out.
    pub(super) uncounted: Option<Uncounted>,
    /// The copy that was asked for when it arrived.
    pub(super) pending_copy: Option<PendingCopy>,
}

/// Asks for the copy that has to be kept before a task may run, if there is one, as soon as it arrives. Its turn is after
/// others, which may take long or take this process down: each such end is one more delivery of it.
pub(super) type AskOnArrival = Arc<dyn Fn(&Message<'_>) -> Option<PendingCopy> + Send + Sync>;

/// Copies that were asked for, by the tags of their deliveries.
type Early = Arc<Mutex<HashMap<u64, PendingCopy>>>;

/// How to consume, each time that a consumer is started.
pub(super) struct Consumption<'c> {
    pub(super) queue: &'c str,
    /// Unanswered deliveries at a time, beside those that are set aside.
    pub(super) prefetch: u16,
    /// See [`ConsumeOptions::hold`].
    pub(super) hold: Option<Duration>,
    pub(super) on_arrival: Option<AskOnArrival>,
}

/// Takes deliveries off one channel.
pub(super) struct Intake<'c> {
    channel: &'c dyn DeliveryChannel,
    consumption: Consumption<'c>,
    pub(super) consumer: Box<dyn Deliveries<'c> + 'c>,
    /// The number of that consumer on this channel.
    number: u32,
    /// How many deliveries it has brought that are not settled.
    unsettled: u32,
    /// What has arrived and was not run yet.
    backlog: VecDeque<WaitingDelivery<'c>>,
    pub(super) aside: VecDeque<Aside<'c>>,
    early: Early,
}

impl<'c> Intake<'c> {
    pub(super) fn start(
        channel: &'c dyn DeliveryChannel,
        consumption: Consumption<'c>,
    ) -> Result<Self, Fault> {
        let early = Early::default();
        let consumer = consumption.start(channel, &early)?;
        let (backlog, aside) = (VecDeque::new(), VecDeque::new());
        Ok(Self { channel, consumption, consumer, number: 0, unsettled: 0, backlog, aside, early })
    }

    /// Waits for the next task or for anything else to do. Deliveries may be held for `limit`.
    pub(super) fn next(
        &mut self,
        stop: &Receiver<Never>,
        wake: &Receiver<()>,
        limit: Duration,
    ) -> Arrival<'c> {
        let held_up = self.is_held_up();
        if !held_up && let Some(waiting) = self.backlog.pop_front() {
            return Arrival::Task(waiting);
        }
        let held = self.aside.iter().filter(|aside| !aside.copy().is_some_and(|copy| copy.comes_first));
        let overdue = held.map(|aside| aside.since + limit).min();
        match self.consumer.next(stop, wake, overdue) {
            Next::Delivery(delivery) => {
                let waiting = self.arrived(delivery);
                if held_up {
                    self.backlog.push_back(waiting);
                    return Arrival::Woken;
                }
                Arrival::Task(waiting)
            }
            Next::Woken | Next::TimedOut => Arrival::Woken,
            Next::Stopped => Arrival::Stopped,
            Next::Ended(fault) => Arrival::Ended(fault),
        }
    }

    /// What has arrived although nothing more is taken.
    pub(super) fn leftover(&mut self) -> Option<WaitingDelivery<'c>> {
        self.backlog.pop_front().or_else(|| self.consumer.leftover().map(|delivery| self.arrived(delivery)))
    }

    fn arrived(&mut self, delivery: Delivery<'c>) -> WaitingDelivery<'c> {
        self.unsettled += 1;
        let pending_copy = lock(&self.early).remove(&delivery.tag);
        WaitingDelivery {
            delivery,
            consumer: self.number,
            since: Instant::now(),
            uncounted: None,
            pending_copy,
        }
    }

    /// A delivery that came to this consumer is settled.
    pub(super) fn settled(&mut self, consumer: u32) {
        if consumer == self.number {
            self.unsettled = self.unsettled.saturating_sub(1);
        }
    }

    /// Its turn is now, or again.
    pub(super) fn put_first(&mut self, waiting: WaitingDelivery<'c>) {
        self.backlog.push_front(waiting);
    }

    /// A task that is set aside must neither go back nor be put at risk by another one before its copy is kept.
    fn is_held_up(&self) -> bool {
        self.aside.iter().filter_map(Aside::copy).any(HeldCopy::holds_up)
    }

    /// What has arrived and is not settled.
    pub(super) fn held(&self) -> impl Iterator<Item = &Delivery<'c>> {
        let aside = self.aside.iter().map(|aside| &aside.delivery);
        aside.chain(self.backlog.iter().map(|waiting| &waiting.delivery))
    }

    /// So many are set aside that nothing more is taken.
    pub(super) fn is_crowded(&self) -> bool {
        self.aside.len() >= MAX_ASIDE
    }

    /// Whether the broker has cancelled the consumer. Ask before answering: RabbitMQ 4.3 cancels a consumer over a late
    /// delivery and resumes it on the answer, unless it was cancelled from here too; what it then sends has no receiver
    /// and costs the connection.
    pub(super) fn end_if_cancelled(&self) -> Result<bool, Fault> {
        let cancelled = self.consumer.is_cancelled();
        if cancelled {
            self.consumer.cancel()?;
        }
        Ok(cancelled)
    }

    /// Why no further delivery comes, with what is not answered yet.
    pub(super) fn ended(&self, fault: Fault) -> Fault {
        match (fault.kind, self.aside.front()) {
            (FaultKind::ConsumerCancelled(None), Some(oldest)) => Fault::cancelled(Some(oldest.since)),
            _ => fault,
        }
    }

    /// Starts another consumer when the deliveries that are set aside use up the prefetch of this one, unless they are too
    /// many: the broker counts the unanswered deliveries of each consumer, and no longer those of one that was cancelled.
    /// Only when the prefetch is used up, because a quorum queue takes back what is on its way to a consumer that is
    /// cancelled, and counts that.
    pub(super) fn make_room(&mut self) -> Result<(), Fault> {
        let used_up = self.backlog.is_empty() && self.unsettled >= u32::from(self.consumption.prefetch);
        if !used_up || self.is_crowded() || self.is_held_up() {
            return Ok(());
        }
        self.consumer.cancel()?;
        self.renew()
    }

    /// Consumes again, after the consumer was cancelled.
    pub(super) fn renew(&mut self) -> Result<(), Fault> {
        self.consumer = self.consumption.start(self.channel, &self.early)?;
        self.number += 1;
        self.unsettled = 0;
        Ok(())
    }
}

impl<'c> Consumption<'c> {
    fn start(
        &self,
        channel: &'c dyn DeliveryChannel,
        early: &Early,
    ) -> Result<Box<dyn Deliveries<'c> + 'c>, Fault> {
        let watch = self.on_arrival.clone().map(|ask| {
            let early = Arc::clone(early);
            Box::new(move |tag, message: &Message<'_>| {
                if let Some(pending_copy) = ask(message) {
                    lock(&early).insert(tag, pending_copy);
                }
            }) as Watch
        });
        channel.consume(self.queue, ConsumeOptions { prefetch: self.prefetch, hold: self.hold, watch })
    }
}
