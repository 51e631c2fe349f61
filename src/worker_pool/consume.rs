//! What a worker thread does with one channel: takes deliveries, processes each, settles it or sets it aside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;

use super::context::Context;
use super::dedup::UnprovenAcks;
use super::intake::{Arrival, Aside, AskOnArrival, Intake, Waiting};
use super::process::{Disposition, PendingCopy, Processed, copy_on_arrival};
use super::settlement::{Held, Next};
use super::shared::{Permit, last_returns};
use super::{BOUNDED_PATIENCE, Event};
use crate::backoff::Backoff;
use crate::broker::{Channel, Delivery, Fault, QueueType};
use crate::cancel::is_closed;
use crate::error::Error;
use crate::handler::Handler;
use crate::output::{self, counted};
use crate::shortage;

/// At the end: how often to look after the last copies although no bell rang.
const LAST_LOOK: Duration = Duration::from_secs(1);
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
/// goes back to the queue with the channel.
pub(super) fn consume(
    context: &Context,
    channel: &Channel,
    unproven: &mut UnprovenAcks<'_>,
    pauses: &mut Pauses,
    handler: &mut dyn Handler,
) -> Result<(), Fault> {
    // Held while waiting, so that with --max-tasks no task is taken only to be given back.
    let Some(permit) = context.shared.permits.take() else { return Ok(()) };
    let options = &context.shared.options;
    let intake = Intake::start(channel, &options.queue.name, options.prefetch, on_arrival(context))?;
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
    let (shared, republisher, bell) =
        (Arc::clone(shared), context.republisher.clone(), context.bell.0.clone());
    Some(Arc::new(move |message| copy_on_arrival(&shared, &republisher, message, &bell)))
}

/// What to do after a delivery.
enum Step<'s> {
    /// Take the next one.
    Next(Permit<'s>),
    /// The consumer is cancelled: take nothing for a while, for want of this.
    Pause(String),
    /// The consumer is cancelled: no more are wanted.
    Stop,
}

/// One thread at work on one channel.
struct Consuming<'c, 's, 'u, 'l> {
    context: &'s Context,
    intake: Intake<'c, 's>,
    unproven: &'u mut UnprovenAcks<'l>,
    handler: &'u mut dyn Handler,
}

impl<'c, 's> Consuming<'c, 's, '_, '_> {
    fn run(&mut self, mut permit: Permit<'s>, pauses: &mut Pauses) -> Result<(), Fault> {
        loop {
            self.settle_answered()?;
            self.intake.make_room()?;
            match self.intake.next(
                self.context.drain.begun(),
                &self.context.bell.1,
                self.context.shared.hold_limit(),
            ) {
                Arrival::Task(waiting) => match self.take(waiting, permit)? {
                    Step::Next(next) => permit = next,
                    Step::Pause(what) => {
                        if !self.pause(&what, pauses)? {
                            return Ok(());
                        }
                        let Some(next) = self.context.shared.permits.take() else { return Ok(()) };
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

    fn take(&mut self, waiting: Waiting<'c>, mut permit: Permit<'s>) -> Result<Step<'s>, Fault> {
        let shared = &self.context.shared;
        if self.context.drain.has_begun() && !shared.finishing() {
            self.intake.put_first(waiting);
            return Ok(Step::Stop);
        }
        let Waiting { mut delivery, consumer, uncounted, pending_copy } = waiting;
        if shared.queue_kind().is_none() && delivery.names_a_stream() {
            return Err(Fault::maybe_a_stream(&shared.options.queue.name));
        }
        let busy = shared.begin();
        let since = Instant::now();
        self.unproven.delivered();
        if pending_copy.is_some() {
            self.set_aside(Aside { delivery, consumer, pending_copy, since, _busy: Some(busy) });
            return Ok(Step::Next(permit));
        }
        let Processed { disposition, ran } =
            self.context.process(&mut delivery, uncounted, self.unproven, self.handler);
        // Before anything that can fail: how the task ended must not be forgotten.
        let pause =
            if let Disposition::GiveBackAndPause(what) = &disposition { Some(what.clone()) } else { None };
        let answer = match disposition {
            Disposition::SetAside(pending_copy) => {
                let pending_copy = Some(pending_copy);
                self.set_aside(Aside { delivery, consumer, pending_copy, since, _busy: Some(busy) });
                None
            }
            Disposition::Hold => {
                self.set_aside(Aside { delivery, consumer, pending_copy: None, since, _busy: None });
                None
            }
            answer => Some((answer, delivery)),
        };
        let next = if ran {
            permit.used();
            shared.permits.take()
        } else {
            Some(permit)
        };
        let cancelled = self.intake.end_if_cancelled()?;
        let next = next.filter(|_| pause.is_none() && !cancelled && !self.context.drain.has_begun());
        if next.is_none() {
            // Before the acknowledgement: it makes room for a next delivery, which would come only to be given back,
            // flagged as redelivered.
            self.intake.consumer.cancel()?;
        }
        if let Some((answer, delivery)) = answer {
            self.intake.settled(consumer);
            self.answer(delivery, &answer)?;
        }
        if cancelled {
            return Err(Fault::cancelled(Some(since.elapsed())));
        }
        Ok(match (next, pause) {
            (Some(next), _) => Step::Next(next),
            (None, Some(what)) => Step::Pause(what),
            (None, None) => Step::Stop,
        })
    }

    fn set_aside(&mut self, aside: Aside<'c, 's>) {
        self.unproven.set_aside();
        self.intake.aside.push_back(aside);
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
                        over = crossbeam_channel::after(pauses.next(shared.settled()));
                    }
                },
                recv(self.context.drain.begun()) -> _ => return Ok(false),
                recv(self.context.bell.1) -> _ => self.settle_answered()?,
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
            let _ = self.context.events.send(Event::Fatal(error));
        }
    }

    /// Settles what was set aside and has an answer by now, or has waited for one for too long.
    fn settle_answered(&mut self) -> Result<(), Fault> {
        let mut crowded = self.intake.is_crowded();
        // One by one: those that are left when the channel is lost must not be forgotten.
        for _ in 0..self.intake.aside.len() {
            let Some(aside) = self.intake.aside.pop_front() else { break };
            let answered = aside
                .pending_copy
                .as_ref()
                .and_then(|pending_copy| self.context.look_at(pending_copy, Duration::ZERO));
            let disposition = answered.or_else(|| {
                let overdue = aside.is_overdue(self.context.shared.hold_limit());
                match self.held(&aside).while_working(overdue, crowded) {
                    Next::Wait => None,
                    Next::GiveBack => Some(Disposition::GiveBack),
                    Next::Run => {
                        crowded = false;
                        log::warn!("a redelivered task runs uncounted: its queue is full");
                        Some(Disposition::RunUncounted)
                    }
                }
            });
            match disposition {
                Some(Disposition::Hold) => {
                    self.intake.aside.push_back(Aside { pending_copy: None, _busy: None, ..aside });
                }
                Some(Disposition::RunUncounted) => {
                    let Aside { delivery, consumer, .. } = aside;
                    self.intake.put_first(Waiting {
                        delivery,
                        consumer,
                        uncounted: true,
                        pending_copy: None,
                    });
                }
                Some(disposition) => self.settle(aside, &disposition)?,
                None => self.intake.aside.push_back(aside),
            }
        }
        Ok(())
    }

    /// Takes nothing more. What is here already is run where the queue is to be empty, and the last copies are waited
    /// for; when the worker was told to stop, only while they can be kept.
    fn finish(&mut self) -> Result<(), Fault> {
        self.intake.consumer.cancel()?;
        let shared = &self.context.shared;
        if shared.finishing() {
            while let (Some(permit), Some(waiting)) = (shared.permits.take(), self.intake.leftover()) {
                self.take(waiting, permit)?;
            }
        }
        loop {
            self.settle_answered()?;
            self.give_back_waiting()?;
            self.end_held()?;
            if self.intake.aside.is_empty() {
                return Ok(());
            }
            select! {
                recv(self.context.bell.1) -> _ => {}
                recv(self.context.abort) -> _ => {}
                default(LAST_LOOK) => {}
            }
        }
    }

    /// Gives back what has arrived and was not looked at. Where a copy was asked for, it may be kept by now, and what must
    /// not go back needs one.
    fn give_back_waiting(&mut self) -> Result<(), Fault> {
        while let Some(waiting) = self.intake.leftover() {
            if waiting.pending_copy.is_none() && self.context.must_not_go_back(&waiting.delivery) {
                self.settle_now(waiting)?;
                continue;
            }
            let Waiting { delivery, consumer, pending_copy, .. } = waiting;
            if pending_copy.is_some() {
                let busy = Some(self.context.shared.begin());
                self.set_aside(Aside {
                    delivery,
                    consumer,
                    pending_copy,
                    since: Instant::now(),
                    _busy: busy,
                });
            } else {
                self.intake.settled(consumer);
                delivery.requeue()?;
            }
        }
        Ok(())
    }

    /// What [`Self::take`] does, when nothing more is taken after it.
    fn settle_now(&mut self, waiting: Waiting<'c>) -> Result<(), Fault> {
        let Waiting { mut delivery, consumer, uncounted, .. } = waiting;
        let (busy, since) = (self.context.shared.begin(), Instant::now());
        let disposition =
            self.context.process(&mut delivery, uncounted, self.unproven, self.handler).disposition;
        match disposition {
            Disposition::SetAside(pending_copy) => {
                let pending_copy = Some(pending_copy);
                self.set_aside(Aside { delivery, consumer, pending_copy, since, _busy: Some(busy) });
            }
            Disposition::Hold => {
                self.set_aside(Aside { delivery, consumer, pending_copy: None, since, _busy: None });
            }
            disposition => {
                self.intake.end_if_cancelled()?;
                self.intake.settled(consumer);
                self.answer(delivery, &disposition)?;
            }
        }
        Ok(())
    }

    /// Acknowledges or gives back.
    fn answer(&self, delivery: Delivery<'_>, disposition: &Disposition) -> Result<(), Fault> {
        let shared = &self.context.shared;
        if let Disposition::Acknowledge = disposition {
            delivery.ack()?;
            shared.settle();
            return Ok(());
        }
        if self.context.must_not_go_back(&delivery) {
            shared.note_last_return();
        }
        delivery.requeue()
    }

    /// What there will be no copy of while this worker lives.
    fn end_held(&mut self) -> Result<(), Fault> {
        let (stops, aborted) = (self.context.drain.has_begun(), is_closed(&self.context.abort));
        let mut given_back = 0;
        for _ in 0..self.intake.aside.len() {
            let Some(aside) = self.intake.aside.pop_front() else { break };
            match self.held(&aside).at_the_end(stops, aborted) {
                Next::Wait => self.intake.aside.push_back(aside),
                Next::GiveBack => {
                    if aside.pending_copy.is_some() {
                        given_back += 1;
                    } else {
                        self.context.shared.hold_back();
                    }
                    self.settle(aside, &Disposition::GiveBack)?;
                }
                Next::Run => {
                    let Aside { delivery, consumer, .. } = aside;
                    log::warn!(
                        "task {} runs now, before this worker ends: its deliveries cannot be counted, and the broker \
                         may drop it when it goes back",
                        output::escape(delivery.properties().id())
                    );
                    let _last = self.context.shared.run_last_chance();
                    self.settle_now(Waiting { delivery, consumer, uncounted: true, pending_copy: None })?;
                }
            }
        }
        if given_back > 0 {
            let tasks =
                counted(given_back, "task whose copy is not kept goes", "tasks whose copies are not kept go");
            log::warn!("{tasks} back to the queue");
        }
        Ok(())
    }

    fn held(&self, aside: &Aside<'_, '_>) -> Held {
        Held { copy: aside.copy(), must_not_go_back: self.context.must_not_go_back(&aside.delivery) }
    }

    fn settle(&mut self, aside: Aside<'c, '_>, disposition: &Disposition) -> Result<(), Fault> {
        let Aside { delivery, consumer, pending_copy, .. } = aside;
        let acknowledged = matches!(disposition, Disposition::Acknowledge);
        // Before anything that can fail.
        if acknowledged {
            self.unproven.acknowledging(pending_copy.and_then(|pending_copy| pending_copy.fingerprint()));
        } else {
            self.remember_outcome(pending_copy);
        }
        self.intake.end_if_cancelled()?;
        self.intake.settled(consumer);
        self.answer(delivery, disposition)
    }

    /// The channel is gone, and with it what is set aside: when that comes again, what it needs is its copy.
    fn remember_outcomes(&mut self) {
        for aside in std::mem::take(&mut self.intake.aside) {
            self.remember_outcome(aside.pending_copy);
        }
    }

    /// What the channel held goes back with it.
    fn tell_last_returns(&mut self) {
        let held = self.intake.held();
        let count = held.filter(|delivery| self.context.next_return_may_be_the_last(delivery)).count();
        if count > 0 {
            log::warn!("{}", last_returns(&self.context.shared.options.queue.name, count));
        }
    }

    fn remember_outcome(&self, pending_copy: Option<PendingCopy>) {
        if let Some((fingerprint, copy)) = pending_copy.and_then(PendingCopy::outcome) {
            self.context.shared.dedup.remember_failed(fingerprint, copy);
        }
    }
}
