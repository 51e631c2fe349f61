//! What a worker thread does with one channel: takes deliveries, processes each, answers it or sets it aside.

mod ending;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::select;

use super::context::Context;
use super::dedup::UnprovenAcks;
use super::intake::{Arrival, Aside, AskOnArrival, Consumption, Intake, WaitingDelivery};
use super::process::{PendingCopy, Processed, copy_on_arrival};
use super::shared::{Busy, Permit};
use super::{BOUNDED_PATIENCE, EndRequest};
use crate::backoff::Backoff;
use crate::broker::{Delivery, DeliveryChannel, Fault, QueueType};
use crate::error::Error;
use crate::handler::Handler;
use crate::settlement::{Disposition, Held, Uncounted};
use crate::shortage;

/// The first pause after a task went back because it could not run here.
const FIRST_GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_GIVE_BACK_PAUSE: Duration = Duration::from_secs(10);

/// The pauses after the machine had no room for a task. They start over when a task was settled since the last one.
pub(super) struct Pauses {
    backoff: Backoff,
    settled: u64,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self { backoff: Backoff::new(FIRST_GIVE_BACK_PAUSE, LONGEST_GIVE_BACK_PAUSE), settled: 0 }
    }

    /// `settled` is how many tasks were settled so far.
    fn next(&mut self, settled: u64) -> Duration {
        if std::mem::replace(&mut self.settled, settled) < settled {
            self.backoff.reset();
        }
        self.backoff.pause()
    }
}

/// Consumes until the drain begins or the permits are used up. On `Ok` the consumer is cancelled; what was not settled
/// goes back to the queue with the channel. `hold`: how long the broker is to wait for an answer, where it can be told.
pub(super) fn consume(
    context: &Context,
    channel: &dyn DeliveryChannel,
    hold: Option<Duration>,
    unproven: &mut UnprovenAcks,
    pauses: &mut Pauses,
    handler: &mut dyn Handler,
) -> Result<(), Fault> {
    // Held while waiting, so that with --max-tasks no task is taken only to be given back.
    let Some(permit) = context.shared.permits.take() else { return Ok(()) };
    let options = &context.shared.options;
    let (queue, prefetch) = (options.queue.name.as_str(), options.prefetch);
    let consumption = Consumption { queue, prefetch, hold, on_arrival: on_arrival(context) };
    let intake = Intake::start(channel, consumption)?;
    context.shared.greet();
    let mut consuming = Consuming { context, intake, unproven, handler };
    let ended = consuming.run(permit, pauses).and_then(|()| consuming.finish());
    if ended.is_err() {
        consuming.tell_last_returns();
    }
    consuming.remember_outcomes();
    ended
}

/// With a prefetch of 1 a task arrives when it is its turn, and classic queues do not count what was only prefetched.
fn on_arrival(context: &Context) -> Option<AskOnArrival> {
    let shared = &context.shared;
    if shared.options.prefetch == 1 || shared.queue_kind() == Some(QueueType::Classic) {
        return None;
    }
    let (shared, republisher, wake) =
        (Arc::clone(shared), context.republisher.clone(), context.wake.0.clone());
    Some(Arc::new(move |message| copy_on_arrival(&shared, &republisher, message, &wake)))
}

/// What to do after a delivery.
enum Step {
    /// Take the next one.
    Next(Permit),
    /// The consumer is cancelled: take nothing for a while, for want of this.
    Pause(String),
    /// The consumer is cancelled: no more are wanted.
    Stop,
}

/// A delivery that is to be answered now.
struct Due<'c> {
    delivery: Delivery<'c>,
    /// The consumer that it came to.
    consumer: u32,
    disposition: Disposition,
    /// The worker has something to do until it is answered.
    busy: Busy,
}

/// One thread at work on one channel.
struct Consuming<'c> {
    context: &'c Context,
    intake: Intake<'c>,
    unproven: &'c mut UnprovenAcks,
    handler: &'c mut dyn Handler,
}

impl<'c> Consuming<'c> {
    fn run(&mut self, mut permit: Permit, pauses: &mut Pauses) -> Result<(), Fault> {
        let Context { shared, stop, wake, .. } = self.context;
        loop {
            self.settle_answered()?;
            self.intake.make_room()?;
            match self.intake.next(stop.draining(), &wake.1, shared.hold_limit()) {
                Arrival::Task(waiting) => match self.take(waiting, permit)? {
                    Step::Next(next) => permit = next,
                    Step::Pause(what) => {
                        if !self.pause(&what, pauses)? {
                            return Ok(());
                        }
                        let Some(next) = shared.permits.take() else { return Ok(()) };
                        permit = next;
                    }
                    Step::Stop => return Ok(()),
                },
                Arrival::Woken => {}
                Arrival::Stopped => return Ok(()),
                Arrival::Ended(fault) => return Err(self.intake.ended(fault)),
            }
        }
    }

    fn take(&mut self, waiting: WaitingDelivery<'c>, permit: Permit) -> Result<Step, Fault> {
        let shared = &self.context.shared;
        if self.context.stop.is_draining() && !shared.finishing() {
            self.intake.put_first(waiting);
            return Ok(Step::Stop);
        }
        if shared.queue_kind().is_none() && waiting.delivery.names_a_stream() {
            return Err(Fault::maybe_a_stream(&shared.options.queue.name));
        }
        self.unproven.delivered();
        if waiting.pending_copy.is_some() {
            self.set_aside(waiting);
            return Ok(Step::Next(permit));
        }
        let since = waiting.since;
        let (due, ran) = self.process(waiting);
        // Before anything that can fail: how the task ended must not be forgotten.
        let pause = match due.as_ref().map(|due| &due.disposition) {
            Some(Disposition::GiveBackAndPause(what)) => Some(what.clone()),
            _ => None,
        };
        let next = if ran {
            permit.used();
            shared.permits.take()
        } else {
            Some(permit)
        };
        let cancelled = self.intake.end_if_cancelled()?;
        let next = next.filter(|_| pause.is_none() && !cancelled && !self.context.stop.is_draining());
        if next.is_none() {
            // Before the acknowledgement: it makes room for a next delivery, which would come only to be given back,
            // flagged as redelivered.
            self.intake.consumer.cancel()?;
        }
        if let Some(due) = due {
            self.answer(due)?;
        }
        if cancelled {
            return Err(Fault::cancelled(Some(since)));
        }
        Ok(match (next, pause) {
            (Some(next), _) => Step::Next(next),
            (None, Some(what)) => Step::Pause(what),
            (None, None) => Step::Stop,
        })
    }

    /// Runs a task, or does what has to be done instead. What cannot be answered yet is set aside. Also whether the task
    /// was run.
    fn process(&mut self, waiting: WaitingDelivery<'c>) -> (Option<Due<'c>>, bool) {
        let WaitingDelivery { mut delivery, consumer, since, uncounted, .. } = waiting;
        let busy = self.context.shared.begin();
        let Processed { disposition, pending_copy, ran } =
            self.context.process(&mut delivery, uncounted.as_ref(), self.unproven, self.handler);
        let busy = match disposition {
            Disposition::Wait => Some(busy),
            Disposition::Hold => None,
            disposition => return (Some(Due { delivery, consumer, disposition, busy }), ran),
        };
        self.unproven.set_aside();
        self.intake.aside.push_back(Aside { delivery, consumer, pending_copy, since, busy });
        (None, ran)
    }

    /// Its copy is under way since it arrived.
    fn set_aside(&mut self, waiting: WaitingDelivery<'c>) {
        let WaitingDelivery { delivery, consumer, since, pending_copy, .. } = waiting;
        let busy = Some(self.context.shared.begin());
        self.unproven.set_aside();
        self.intake.aside.push_back(Aside { delivery, consumer, pending_copy, since, busy });
    }

    /// Takes nothing for a while: what was given back would come at once. What is set aside stays, for its copies may be
    /// under way. False when the drain began meanwhile.
    fn pause(&mut self, what: &str, pauses: &mut Pauses) -> Result<bool, Fault> {
        self.intake.consumer.cancel()?;
        self.give_back_waiting()?;
        let shared = &self.context.shared;
        // To wait for the machine is not to be idle, and the queue is not empty.
        let _busy = shared.begin();
        self.end_bounded_run(what);
        let mut over = crossbeam_channel::after(pauses.next(shared.settled()));
        loop {
            select! {
                recv(over) -> _ => match self.handler.ready() {
                    Ok(()) => break,
                    // What came now would go back, and each time count as a delivery.
                    Err(error) => {
                        let what = shortage::reason(&error);
                        shared.tell_shortage(&what);
                        self.end_bounded_run(&what);
                        self.settle_answered()?;
                        over = crossbeam_channel::after(pauses.next(shared.settled()));
                    }
                },
                recv(self.context.stop.draining()) -> _ => return Ok(false),
                recv(self.context.wake.1) -> _ => self.settle_answered()?,
            }
        }
        self.intake.renew()?;
        Ok(true)
    }

    /// Whoever waits for a bounded run has to do something when no task can be run for long.
    fn end_bounded_run(&self, what: &str) {
        let shared = &self.context.shared;
        let since = shared.note_shortage(true);
        if shared.options.is_bounded() && since.is_some_and(|since| since.elapsed() >= BOUNDED_PATIENCE) {
            let error = Error::try_again(format!(
                "no task can be run on this machine now: {what}; the tasks go back to {}",
                shared.options.queue.name
            ));
            // The pool is gone only when the process is about to be.
            let _ = self.context.end_requests.send(EndRequest::Fatal(error));
        }
    }

    /// Settles what was set aside and has an answer by now, or has waited for one for too long.
    fn settle_answered(&mut self) -> Result<(), Fault> {
        let mut crowded = self.intake.is_crowded();
        // One by one: those that are left when the channel is lost must not be forgotten.
        for _ in 0..self.intake.aside.len() {
            let Some(aside) = self.intake.aside.pop_front() else { break };
            let look = |copy: &PendingCopy| self.context.look_at(copy, Duration::ZERO);
            let disposition = match aside.pending_copy.as_ref().map_or(Disposition::Wait, look) {
                Disposition::Wait => {
                    let overdue = aside.is_overdue(self.context.shared.hold_limit());
                    self.held(&aside).while_working(overdue, crowded)
                }
                known => known,
            };
            crowded &= disposition != Disposition::RunUncounted(Uncounted::QueueFull);
            self.settle(aside, disposition)?;
        }
        Ok(())
    }

    fn held(&self, aside: &Aside<'_>) -> Held {
        Held { copy: aside.copy(), must_not_go_back: self.context.must_not_go_back(&aside.delivery) }
    }

    /// Does with a delivery that is set aside what was decided.
    fn settle(&mut self, aside: Aside<'c>, disposition: Disposition) -> Result<(), Fault> {
        match disposition {
            Disposition::Wait => self.intake.aside.push_back(aside),
            Disposition::Hold => {
                // Its outcome goes with its copy: when it comes again, it runs again.
                if let Some(fingerprint) = aside.pending_copy.as_ref().and_then(PendingCopy::fingerprint) {
                    self.context.shared.dedup.forget(fingerprint);
                }
                self.intake.aside.push_back(Aside { pending_copy: None, busy: None, ..aside });
            }
            Disposition::RunUncounted(why) => self.intake.put_first(aside.uncounted(why)),
            disposition => {
                let Aside { delivery, consumer, pending_copy, busy, .. } = aside;
                // Before anything that can fail.
                if disposition == Disposition::Acknowledge {
                    self.unproven
                        .acknowledging(pending_copy.and_then(|pending_copy| pending_copy.fingerprint()));
                } else {
                    self.remember_outcome(pending_copy);
                }
                let busy = busy.unwrap_or_else(|| self.context.shared.begin());
                self.answer(Due { delivery, consumer, disposition, busy })?;
            }
        }
        Ok(())
    }

    /// Acknowledges or gives back.
    fn answer(&mut self, due: Due<'_>) -> Result<(), Fault> {
        let Due { delivery, consumer, disposition, busy: _busy } = due;
        let shared = &self.context.shared;
        self.intake.end_if_cancelled()?;
        self.intake.settled(consumer);
        if disposition == Disposition::Acknowledge {
            delivery.ack()?;
            shared.count_acknowledged();
            return Ok(());
        }
        if self.context.must_not_go_back(&delivery) {
            shared.note_last_return();
        }
        delivery.requeue()
    }

    /// The channel is gone, and with it what is set aside: when that comes again, what it needs is its copy.
    fn remember_outcomes(&mut self) {
        for aside in std::mem::take(&mut self.intake.aside) {
            self.remember_outcome(aside.pending_copy);
        }
    }

    fn remember_outcome(&self, pending_copy: Option<PendingCopy>) {
        if let Some((fingerprint, copy)) = pending_copy.and_then(PendingCopy::outcome) {
            self.context.shared.dedup.remember_failed(fingerprint, copy);
        }
    }
}

#[cfg(test)]
mod tests;
