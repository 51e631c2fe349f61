//! What a worker thread does with one channel: takes deliveries, judges each, settles it or sets it aside.

use std::time::{Duration, Instant};

use crossbeam_channel::select;

use super::intake::{Aside, Intake};
use super::judge::{Judge, Judged, Verdict};
use super::ledger::Unproven;
use super::shared::Permit;
use super::slot::{Pauses, Slot};
use crate::broker::{Channel, Delivery, Fault, Next};
use crate::handler::Handler;
use crate::shortage;

/// At the end: how often to look whether waiting for the last copies has become pointless.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Consumes until the drain begins or the permits are used up. On `Ok` the consumer is cancelled; what was not settled
/// goes back to the queue with the channel.
pub(super) fn consume(
    slot: &Slot,
    channel: &Channel,
    unproven: &mut Unproven<'_>,
    pauses: &mut Pauses,
    handler: &mut dyn Handler,
) -> Result<(), Fault> {
    // Held while waiting, so that with --max-tasks no task is taken only to be given back.
    let Some(mut permit) = slot.shared.permits.take() else { return Ok(()) };
    let options = &slot.shared.options;
    let intake = Intake::start(channel, &options.queue.name, options.prefetch)?;
    slot.shared.greet();
    let mut consuming = Consuming { slot, intake, unproven, handler };
    loop {
        if consuming.settle_answered()? && !consuming.pause(pauses)? {
            break;
        }
        consuming.intake.resume()?;
        match consuming.intake.next(slot.drain.begun(), &slot.bell.1) {
            Next::Delivery(delivery) => match consuming.take(delivery, permit)? {
                Step::Next(next) => permit = next,
                Step::Pause => {
                    if !consuming.pause(pauses)? {
                        break;
                    }
                    let Some(next) = slot.shared.permits.take() else { break };
                    permit = next;
                }
                Step::Stop => break,
            },
            Next::Woken | Next::TimedOut => {}
            Next::Stopped => break,
            Next::Ended(fault) => return Err(fault),
        }
    }
    consuming.finish()
}

/// What to do after a delivery.
enum Step<'s> {
    /// Take the next one.
    Next(Permit<'s>),
    /// The consumer is cancelled: take nothing for a while.
    Pause,
    /// The consumer is cancelled: no more are wanted.
    Stop,
}

/// One thread at work on one channel.
struct Consuming<'c, 's, 'u, 'l> {
    slot: &'s Slot,
    intake: Intake<'c, 's>,
    unproven: &'u mut Unproven<'l>,
    handler: &'u mut dyn Handler,
}

impl<'c, 's> Consuming<'c, 's, '_, '_> {
    fn take(&mut self, mut delivery: Delivery<'c>, mut permit: Permit<'s>) -> Result<Step<'s>, Fault> {
        let (shared, since) = (&self.slot.shared, Instant::now());
        if self.slot.drain.has_begun() && !shared.finishing() {
            self.intake.consumer.cancel()?;
            delivery.requeue()?;
            return Ok(Step::Stop);
        }
        let busy = shared.begin();
        self.unproven.delivered();
        let Judged { verdict, ran } = self.judge().judge(&mut delivery, self.unproven, self.handler);
        let pause = matches!(verdict, Verdict::GiveBackAndPause);
        let next = if ran {
            permit.used();
            shared.permits.take()
        } else {
            Some(permit)
        };
        let next = next.filter(|_| !pause && !self.slot.drain.has_begun());
        if next.is_none() {
            // Before the acknowledgement: it makes room for a next delivery, which would come only to be given back,
            // flagged as redelivered.
            self.intake.consumer.cancel()?;
        }
        let goes_on = next.is_some();
        match verdict {
            Verdict::SetAside(keeping) => {
                self.set_aside(
                    Aside { delivery, keeping: Some(keeping), since, _busy: Some(busy) },
                    goes_on,
                )?;
            }
            Verdict::Hold => {
                self.set_aside(Aside { delivery, keeping: None, since, _busy: None }, goes_on)?;
            }
            Verdict::Acknowledge => {
                delivery.ack()?;
                shared.settle();
            }
            Verdict::GiveBack | Verdict::GiveBackAndPause | Verdict::Uncounted => {
                delivery.requeue()?;
            }
        }
        Ok(match next {
            Some(next) => Step::Next(next),
            None if pause => Step::Pause,
            None => Step::Stop,
        })
    }

    fn set_aside(&mut self, aside: Aside<'c, 's>, goes_on: bool) -> Result<(), Fault> {
        self.unproven.set_aside();
        self.intake.aside.push_back(aside);
        if goes_on { self.intake.make_room() } else { Ok(()) }
    }

    /// Takes nothing for a while: what was given back would come at once. What is set aside stays, for its copies may be
    /// under way. False when the drain began meanwhile.
    fn pause(&mut self, pauses: &mut Pauses) -> Result<bool, Fault> {
        self.intake.give_back()?;
        let shared = &self.slot.shared;
        let mut over = crossbeam_channel::after(pauses.next(shared.settled()));
        loop {
            select! {
                recv(over) -> _ => match self.handler.ready() {
                    Ok(()) => break,
                    // What came now would go back, and each time count as a delivery.
                    Err(error) => {
                        shared.tell_shortage(&shortage::reason(&error));
                        over = crossbeam_channel::after(pauses.next(shared.settled()));
                    }
                },
                recv(self.slot.drain.begun()) -> _ => return Ok(false),
                recv(self.slot.bell.1) -> _ => {
                    // One more that is given back makes it no longer.
                    let _ = self.settle_answered()?;
                }
            }
        }
        self.intake.make_room()?;
        Ok(true)
    }

    /// Settles what was set aside and has an answer by now, or has waited for one for too long. Whether a pause is
    /// needed after that.
    fn settle_answered(&mut self) -> Result<bool, Fault> {
        let mut pause = false;
        for aside in std::mem::take(&mut self.intake.aside) {
            let verdict =
                aside.keeping.as_ref().and_then(|keeping| self.judge().look_at(keeping, Duration::ZERO));
            match verdict.or_else(|| aside.is_overdue().then_some(Verdict::GiveBackAndPause)) {
                Some(Verdict::Hold) => {
                    self.intake.aside.push_back(Aside { keeping: None, _busy: None, ..aside });
                }
                Some(verdict) => {
                    pause |= matches!(verdict, Verdict::GiveBackAndPause);
                    self.settle(aside, &verdict)?;
                }
                None => self.intake.aside.push_back(aside),
            }
        }
        Ok(pause)
    }

    /// Takes nothing more. What is here already is run where the queue is to be empty, and the last copies are waited
    /// for; when the worker was told to stop, only while they can be kept.
    fn finish(&mut self) -> Result<(), Fault> {
        self.intake.consumer.cancel()?;
        let shared = &self.slot.shared;
        if shared.finishing() {
            while let (Some(permit), Some(delivery)) = (shared.permits.take(), self.intake.leftover()) {
                self.take(delivery, permit)?;
            }
        }
        for aside in std::mem::take(&mut self.intake.aside) {
            let verdict = loop {
                let Some(keeping) = &aside.keeping else { break Verdict::Hold };
                if let Some(verdict) = self.judge().look_at(keeping, LAST_LOOK) {
                    break verdict;
                }
                if aside.is_overdue() || self.slot.drain.has_begun() && self.slot.copies.are_blocked() {
                    log::warn!("the copy of a task was not confirmed; the task goes back to the queue");
                    break Verdict::GiveBack;
                }
            };
            if matches!(verdict, Verdict::Hold) {
                shared.hold_back();
            }
            self.settle(aside, &verdict)?;
        }
        Ok(())
    }

    fn settle(&mut self, aside: Aside<'c, '_>, verdict: &Verdict) -> Result<(), Fault> {
        if let Verdict::Acknowledge = verdict {
            self.unproven.acknowledging(aside.keeping.and_then(|keeping| keeping.fingerprint()));
            aside.delivery.ack()?;
            self.slot.shared.settle();
            return Ok(());
        }
        aside.delivery.requeue()
    }

    fn judge(&self) -> Judge<'s> {
        let slot = self.slot;
        Judge {
            shared: &slot.shared,
            events: &slot.events,
            copies: &slot.copies,
            drain: &slot.drain,
            abort: &slot.abort,
            bell: &slot.bell.0,
        }
    }
}
