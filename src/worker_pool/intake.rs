//! The deliveries of one channel, and those of them that are set aside.
//!
//! A failed task is acknowledged when the broker has its copy, which can take as long as a memory alarm lasts. Its
//! worker thread does not wait for that: it sets the delivery aside, unacknowledged, and takes another one. Otherwise
//! a few failing tasks could hold up the very queue whose length caused the alarm.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::judge::Keeping;
use super::shared::Busy;
use crate::broker::{Channel, Consumer, Delivery, Fault, Kind, Next};
use crate::handler::Never;

/// How many deliveries one thread sets aside before it waits (and what it has prefetched beside them): it holds their
/// bodies in memory.
const MAX_ASIDE: usize = 32;
/// How long a delivery is held in all: less than the 30 minutes that the broker waits for an acknowledgement.
pub(super) const HOLD_LIMIT: Duration = Duration::from_mins(25);

/// A delivery whose copy is not kept.
pub(super) struct Aside<'c, 's> {
    pub(super) delivery: Delivery<'c>,
    /// The copy; `None` where there will be none.
    pub(super) keeping: Option<Keeping>,
    /// When it arrived.
    pub(super) since: Instant,
    /// The worker has something to do until the copy is kept or refused.
    pub(super) _busy: Option<Busy<'s>>,
}

impl Aside<'_, '_> {
    /// It has to go back to the queue, or the broker closes the channel.
    pub(super) fn is_overdue(&self) -> bool {
        self.since.elapsed() >= HOLD_LIMIT
    }
}

/// Takes deliveries off one channel.
pub(super) struct Intake<'c, 's> {
    channel: &'c Channel,
    queue: &'c str,
    prefetch: u16,
    pub(super) consumer: Consumer<'c>,
    /// What an earlier consumer had prefetched.
    backlog: VecDeque<Delivery<'c>>,
    pub(super) aside: VecDeque<Aside<'c, 's>>,
    /// Too many are aside: the prefetch of the consumer is used up by them, so nothing more comes.
    stalled: bool,
}

impl<'c> Intake<'c, '_> {
    /// # Errors
    /// As [`Consumer::start`].
    pub(super) fn start(channel: &'c Channel, queue: &'c str, prefetch: u16) -> Result<Self, Fault> {
        let consumer = Consumer::start(channel, queue, prefetch)?;
        let (backlog, aside) = (VecDeque::new(), VecDeque::new());
        Ok(Self { channel, queue, prefetch, consumer, backlog, aside, stalled: false })
    }

    /// As [`Consumer::next`].
    pub(super) fn next(&mut self, stop: &Receiver<Never>, bell: &Receiver<()>) -> Next<'c> {
        if let Some(delivery) = self.backlog.pop_front() {
            return Next::Delivery(delivery);
        }
        let overdue = self.aside.front().map(|oldest| oldest.since + HOLD_LIMIT);
        self.consumer.next(stop, bell, overdue)
    }

    /// What has arrived although nothing more is taken.
    pub(super) fn leftover(&mut self) -> Option<Delivery<'c>> {
        self.backlog.pop_front().or_else(|| self.consumer.leftover())
    }

    /// Whether the broker has cancelled the consumer. To be asked before a delivery is answered: a consumer that RabbitMQ
    /// 4.3 cancelled over a delivery begins again with the answer, unless it was cancelled from here as well, and what it
    /// brings then is nobody's and costs the connection. The answer itself does no harm.
    ///
    /// # Errors
    /// The channel or connection is gone.
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
            (Kind::ConsumerCancelled(None), Some(oldest)) => Fault::cancelled(Some(oldest.since.elapsed())),
            _ => fault,
        }
    }

    /// Takes no more, and gives back what was not looked at.
    ///
    /// # Errors
    /// The channel or connection is gone.
    pub(super) fn give_back(&mut self) -> Result<(), Fault> {
        self.consumer.cancel()?;
        while let Some(delivery) = self.leftover() {
            delivery.requeue()?;
        }
        Ok(())
    }

    /// Goes on beside the deliveries that are set aside, unless they are too many: prefetch counts the unacknowledged
    /// ones of a consumer, and those of one that was cancelled are nobody's.
    ///
    /// # Errors
    /// The channel or connection is gone.
    pub(super) fn make_room(&mut self) -> Result<(), Fault> {
        self.stalled = self.aside.len() >= MAX_ASIDE;
        if self.stalled { Ok(()) } else { self.renew() }
    }

    /// Goes on where some that were set aside are settled by now.
    ///
    /// # Errors
    /// The channel or connection is gone.
    pub(super) fn resume(&mut self) -> Result<(), Fault> {
        if self.stalled { self.make_room() } else { Ok(()) }
    }

    fn renew(&mut self) -> Result<(), Fault> {
        self.consumer.cancel()?;
        while let Some(delivery) = self.consumer.leftover() {
            self.backlog.push_back(delivery);
        }
        self.consumer = Consumer::start(self.channel, self.queue, self.prefetch)?;
        Ok(())
    }
}
