//! One delivery from its arrival to the decision what the broker is told about it.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, select};

use super::EndRequest;
use super::context::Context;
use super::dedup::{Claim, Fingerprint, UnprovenAcks};
use super::planned_copy::{Named, PlannedCopy};
use super::republisher::{Pending, Republisher};
use super::shared::Shared;
use crate::broker::{Delivery, Message, Record};
use crate::calendar::unix_time;
use crate::error::Error;
use crate::events::{Event, Subject};
use crate::handler::{Failure, Handler, Outcome};
use crate::output;
use crate::report::tell;
use crate::settlement::{CopyResult, Disposition, Earlier, HeldCopy, Purpose, Uncounted, after_copy};

/// How long a worker thread waits for a copy to be kept before it turns to the next task.
const PATIENCE: Duration = Duration::from_secs(1);

/// A copy that is to take the place of a delivery. Dropping it withdraws it, unless it is published already.
pub(super) struct PendingCopy {
    pending: Pending,
    copy: Box<PlannedCopy>,
    fingerprint: Option<Fingerprint>,
}

impl PendingCopy {
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// What the rules have to know of it.
    pub(super) fn held(&self) -> HeldCopy {
        HeldCopy {
            counts: self.copy.counts(),
            comes_first: self.copy.comes_first,
            waits_for: self.pending.waits_for(),
        }
    }

    /// What is known of the task although its copy is not kept: how it ended, where it ran.
    pub(super) fn outcome(self) -> Option<(Fingerprint, Box<PlannedCopy>)> {
        let ran = !self.copy.counts();
        Some((self.fingerprint.filter(|_| ran)?, self.copy))
    }
}

/// What is to be done with one delivery.
pub(super) struct Processed {
    pub(super) disposition: Disposition,
    /// With [`Disposition::Wait`]: what is waited for.
    pub(super) pending_copy: Option<PendingCopy>,
    /// Its task was run for it.
    pub(super) ran: bool,
}

impl From<Disposition> for Processed {
    fn from(disposition: Disposition) -> Self {
        Self { disposition, pending_copy: None, ran: false }
    }
}

impl Context {
    /// Runs the task, unless it ran here before or must not run any more, and keeps the copy that its outcome asks
    /// for. On [`Disposition::Acknowledge`] the acknowledgement is noted as unproven. `uncounted`: why its deliveries
    /// cannot be counted, where that was found out before.
    pub(super) fn process(
        &self,
        delivery: &mut Delivery<'_>,
        uncounted: Option<&Uncounted>,
        unproven: &mut UnprovenAcks,
        handler: &mut dyn Handler,
    ) -> Processed {
        let record = delivery.properties.record();
        let fingerprint = self.shared.dedup.fingerprint(&delivery.message(), &record);
        let (mut processed, running) = loop {
            match self.shared.dedup.claim(fingerprint, delivery.redelivered) {
                Claim::Run(running) => {
                    break (self.process_claimed(delivery, &record, uncounted, handler), running);
                }
                Claim::Failed(copy, running) => {
                    tell(&Event::FailedHereBefore { id: delivery.properties.id() });
                    let body = delivery.take_body();
                    break (self.republish(delivery, body, *copy), Some(running));
                }
                Claim::Finished => {
                    tell(&Event::FinishedHereBefore { id: delivery.properties.id() });
                    unproven.acknowledging(fingerprint);
                    return Disposition::Acknowledge.into();
                }
                Claim::Elsewhere(ends) => {
                    tell(&Event::RunsHereAlready { id: delivery.properties.id() });
                    select! {
                        recv(ends) -> _ => {}
                        recv(self.stop.draining()) -> _ => return Disposition::GiveBack.into(),
                    }
                }
            }
        };
        if processed.disposition == Disposition::Acknowledge {
            unproven.acknowledging(fingerprint);
        }
        if let Some(pending_copy) = &mut processed.pending_copy {
            pending_copy.fingerprint = fingerprint;
            // Its connection may be lost, and the task come to another thread before this one hears of it.
            if let Some(fingerprint) = fingerprint.filter(|_| !pending_copy.copy.counts()) {
                self.shared.dedup.remember_failed(fingerprint, pending_copy.copy.clone());
            }
        }
        // Only now: whoever waits for it must find it remembered.
        drop(running);
        processed
    }

    fn process_claimed(
        &self,
        delivery: &mut Delivery<'_>,
        record: &Record,
        uncounted: Option<&Uncounted>,
        handler: &mut dyn Handler,
    ) -> Processed {
        let (before, comes_first) = match uncounted {
            Some(why) => (Disposition::RunUncounted(why.clone()), false),
            None => before_run(&self.shared, &self.republisher, &delivery.message(), record),
        };
        let before = match before {
            Disposition::Republish(purpose) => {
                let named = Named::new(delivery.properties.id(), &delivery.body, None);
                let copy = self.shared.plan(purpose, record, &Failure::default(), named);
                // It may have to run after all.
                let body = delivery.body.clone();
                let processed = self.republish(delivery, body, PlannedCopy { comes_first, ..copy });
                match processed.disposition {
                    Disposition::RunUncounted(_) => processed.disposition,
                    _ => return processed,
                }
            }
            before => before,
        };
        if let Disposition::RunUncounted(why) = &before {
            self.note_uncounted(delivery, record, why);
        }
        let began = Instant::now();
        let outcome = self.attempt(delivery, record, handler);
        let ran = !matches!(outcome, Outcome::GivenUp | Outcome::NoResources(_));
        let processed = match self.shared.options.policy.after(record.attempt, &outcome) {
            Disposition::Republish(purpose) => {
                let failure = outcome.failure().cloned().unwrap_or_default();
                self.keep(delivery, purpose, record, &failure, began.elapsed())
            }
            Disposition::Acknowledge => {
                let (id, took) = (delivery.properties.id(), Some(began.elapsed()));
                tell(&Event::Done { task: Subject { id, attempt: record.attempt, body: &"", took } });
                self.shared.count_done();
                Disposition::Acknowledge.into()
            }
            Disposition::GiveBackAndStop(error) => {
                self.stop_worker(error.clone());
                Disposition::GiveBackAndStop(error).into()
            }
            disposition => disposition.into(),
        };
        Processed { ran, ..processed }
    }

    /// Keeps a copy of a task that has run in place of the original.
    fn keep(
        &self,
        delivery: &mut Delivery<'_>,
        purpose: Purpose,
        record: &Record,
        failure: &Failure,
        took: Duration,
    ) -> Processed {
        let named = Named::new(delivery.properties.id(), &delivery.body, Some(took));
        if let Purpose::Retry { delay, .. } = purpose {
            let attempts = self.shared.options.policy.attempts;
            let task = named.subject(record.attempt);
            tell(&Event::Retried { task, attempts, exit: &failure.exit, delay });
        }
        let copy = self.shared.plan(purpose, record, failure, named);
        let body = delivery.take_body();
        self.republish(delivery, body, copy)
    }

    /// Asks for a copy, and waits a moment for what becomes of it.
    fn republish(&self, delivery: &Delivery<'_>, body: Vec<u8>, copy: PlannedCopy) -> Processed {
        let pending = self.republisher.request(copy.clone(), body, &delivery.properties, &self.wake.0);
        let patience = if self.republisher.is_blocked() { Duration::ZERO } else { PATIENCE };
        let pending_copy = PendingCopy { pending, copy: Box::new(copy), fingerprint: None };
        match self.look_at(&pending_copy, patience) {
            Disposition::Wait => Processed { pending_copy: Some(pending_copy), ..Disposition::Wait.into() },
            disposition => disposition.into(),
        }
    }

    /// What a copy that was asked for means for its delivery; [`Disposition::Wait`] when nothing is known of it within
    /// `patience`.
    pub(super) fn look_at(&self, pending_copy: &PendingCopy, patience: Duration) -> Disposition {
        let PlannedCopy { to, purpose, record, named, .. } = &*pending_copy.copy;
        let Some(result) = pending_copy.pending.wait(patience, self.stop.aborting()) else {
            return Disposition::Wait;
        };
        match (purpose, &result) {
            (Purpose::DeadLetter(death), CopyResult::Kept) => {
                tell(&Event::Dead { task: named.subject(record.attempt), death, queue: &to.name });
                self.shared.died();
            }
            (Purpose::Retry { .. } | Purpose::DeadLetter(_), CopyResult::TooLarge { length, limit }) => {
                let hold_limit = self.shared.hold_limit();
                let (task, queue) = (named.subject(record.attempt), to.name.as_str());
                tell(&Event::TooLargeToCopy { task, queue, length: *length, limit: *limit, hold_limit });
            }
            _ => {}
        }
        match after_copy(purpose, result) {
            Disposition::GiveBackAndStop(error) => {
                let error = error.context(&format!("cannot keep a copy of a task in {}", to.name));
                self.stop_worker(error.clone());
                Disposition::GiveBackAndStop(error)
            }
            disposition => disposition,
        }
    }

    /// The drain begins before the task goes back: the next thread would fare no better, and each such round would
    /// count as a delivery.
    fn stop_worker(&self, error: Error) {
        // The pool is gone only when the process is about to be.
        let _ = self.end_requests.send(EndRequest::Fatal(error));
        self.stop.drain();
    }

    /// A task is to run although its deliveries should be counted first.
    fn note_uncounted(&self, delivery: &Delivery<'_>, record: &Record, why: &Uncounted) {
        if let Uncounted::NotAllowed(_) = why {
            self.shared.stop_counting();
        }
        let (id, body) = (delivery.properties.id(), &output::Excerpt(&delivery.body));
        let task = Subject { id, attempt: record.attempt, body, took: None };
        tell(&Event::RunsUncounted { task, why });
    }

    /// Whether the broker may drop the task when it is given back.
    pub(super) fn must_not_go_back(&self, delivery: &Delivery<'_>) -> bool {
        self.shared.broker_counts_nacks() && self.next_return_may_be_the_last(delivery)
    }

    /// Whether the broker may drop the task when its channel is lost.
    pub(super) fn next_return_may_be_the_last(&self, delivery: &Delivery<'_>) -> bool {
        let message = delivery.message();
        earlier(&self.shared, &message, &message.properties.record()).next_return_may_be_the_last()
    }
}

impl Shared {
    fn plan(&self, purpose: Purpose, record: &Record, failure: &Failure, named: Named) -> PlannedCopy {
        PlannedCopy::new(purpose, &self.options.queue, record, failure, named, (unix_time(), &self.host))
    }
}

/// The copy of a task that this process does not know, and that has to be counted before it may run, or must not run any
/// more: it is asked for as soon as the task arrives, however long it is until its turn.
pub(super) fn copy_on_arrival(
    shared: &Shared,
    republisher: &Republisher,
    message: &Message<'_>,
    wake: &Sender<()>,
) -> Option<PendingCopy> {
    let record = message.properties.record();
    let fingerprint = shared.dedup.fingerprint(message, &record);
    if shared.dedup.knows(fingerprint) {
        return None;
    }
    let (Disposition::Republish(purpose), comes_first) = before_run(shared, republisher, message, &record)
    else {
        return None;
    };
    let named = Named::new(message.properties.id(), message.body, None);
    let copy = PlannedCopy { comes_first, ..shared.plan(purpose, &record, &Failure::default(), named) };
    let pending = republisher.request(copy.clone(), message.body.to_vec(), message.properties, wake);
    Some(PendingCopy { pending, copy: Box::new(copy), fingerprint })
}

/// What to do before a task runs that this process does not know, and whether that comes before anything else: see
/// [`PlannedCopy::comes_first`].
fn before_run(
    shared: &Shared,
    republisher: &Republisher,
    message: &Message<'_>,
    record: &Record,
) -> (Disposition, bool) {
    let earlier = earlier(shared, message, record);
    let copies_possible = shared.counts() && !republisher.is_blocked();
    let disposition = earlier.before_run(&shared.options.policy, copies_possible);
    if let Disposition::Republish(Purpose::Count(deliveries)) = &disposition {
        log::debug!("delivery {} of a task without an answer: counting it", deliveries.saturating_add(1));
    }
    (disposition, earlier.next_return_may_be_the_last())
}

fn earlier(shared: &Shared, message: &Message<'_>, record: &Record) -> Earlier {
    Earlier {
        redelivered: message.redelivered,
        header: message.properties.delivery_count(),
        recorded: record.deliveries,
        queue: shared.queue_kind(),
    }
}
