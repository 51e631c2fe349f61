//! One delivery from its arrival to the decision what the broker is told about it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{RecvTimeoutError, Sender, select};

use super::Event;
use super::context::Context;
use super::dedup::{Claim, Fingerprint, UnprovenAcks};
use super::planned_copy::{PlannedCopy, Purpose};
use super::republisher::{Answer, Pending, Republisher};
use super::settlement::{BeforeRun, Earlier, HeldCopy};
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::broker::{Delivery, Message, Record};
use crate::duration;
use crate::error::Error;
use crate::handler::{Failure, Handler, Obstacle, Outcome, Task};
use crate::output;
use crate::retry::Decision;

/// How long a worker thread waits for a copy to be kept before it turns to the next task.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the machine lacks (descriptors, processes, the command while it is replaced) may be there again in a moment. Only
/// then the task goes back, which counts as a delivery; others have more.
const WAITS_TO_RUN: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What the broker is told.
pub(super) enum Disposition {
    /// The task is done, or a copy of it is kept.
    Acknowledge,
    /// Somebody else, or this worker later, has to run it.
    GiveBack,
    /// As `GiveBack`, and nothing may be taken for a while, for want of this: it would come back at once.
    GiveBackAndPause(String),
    /// The task runs although it was counted nowhere: its copy is too large, or not allowed.
    RunUncounted,
    /// Nothing yet: the broker takes its time with the copy.
    SetAside(PendingCopy),
    /// Nothing for as long as it may be held, for there will be no copy: given back, it would come at once and hold up
    /// those behind it.
    Hold,
}

/// A copy that is to take the place of a delivery.
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
            counts: self.copy.purpose == Purpose::Counted,
            comes_first: self.copy.comes_first,
            waits_for: self.pending.waits_for(),
        }
    }

    /// What is known of the task although its copy is not kept: how it ended, where it ran.
    pub(super) fn outcome(self) -> Option<(Fingerprint, Box<PlannedCopy>)> {
        let ran = self.copy.purpose != Purpose::Counted;
        Some((self.fingerprint.filter(|_| ran)?, self.copy))
    }
}

/// The disposition of one delivery, and whether its task was run for it.
pub(super) struct Processed {
    pub(super) disposition: Disposition,
    pub(super) ran: bool,
}

impl Processed {
    fn unrun(disposition: Disposition) -> Self {
        Self { disposition, ran: false }
    }
}

impl Context {
    /// Runs the task, unless it ran here before or must not run any more, and keeps the copy that its outcome asks
    /// for. On [`Disposition::Acknowledge`] the acknowledgement is noted as unproven. `uncounted`: it was found out before
    /// that its deliveries cannot be counted.
    pub(super) fn process(
        &self,
        delivery: &mut Delivery<'_>,
        uncounted: bool,
        unproven: &mut UnprovenAcks<'_>,
        handler: &mut dyn Handler,
    ) -> Processed {
        let record = delivery.properties().record();
        let fingerprint = self.shared.dedup.fingerprint(&delivery.message(), &record);
        let (mut processed, running) = loop {
            match self.shared.dedup.claim(fingerprint, delivery.redelivered()) {
                Claim::Run(running) => {
                    break (self.process_claimed(delivery, &record, uncounted, handler), running);
                }
                Claim::Failed(copy, running) => {
                    log::info!(
                        "task {} failed here before: its copy is tried again, without running it",
                        output::escape(delivery.properties().id())
                    );
                    let body = delivery.take_body();
                    break (Processed::unrun(self.keep(delivery, body, *copy)), Some(running));
                }
                Claim::Finished => {
                    log::info!(
                        "task {} was finished here before its connection was lost: acknowledged without running again",
                        output::escape(delivery.properties().id())
                    );
                    unproven.acknowledging(fingerprint);
                    return Processed::unrun(Disposition::Acknowledge);
                }
                Claim::Elsewhere(ends) => {
                    log::info!(
                        "task {} came back while it is still running here: waiting for it",
                        output::escape(delivery.properties().id())
                    );
                    select! {
                        recv(ends) -> _ => {}
                        recv(self.drain.begun()) -> _ => return Processed::unrun(Disposition::GiveBack),
                    }
                }
            }
        };
        match &mut processed.disposition {
            Disposition::Acknowledge => unproven.acknowledging(fingerprint),
            Disposition::SetAside(pending_copy) => pending_copy.fingerprint = fingerprint,
            Disposition::GiveBack
            | Disposition::GiveBackAndPause(_)
            | Disposition::RunUncounted
            | Disposition::Hold => {}
        }
        // Only now: whoever waits for it must find it remembered.
        drop(running);
        processed
    }

    fn process_claimed(
        &self,
        delivery: &mut Delivery<'_>,
        record: &Record,
        uncounted: bool,
        handler: &mut dyn Handler,
    ) -> Processed {
        if !uncounted
            && let Some(copy) =
                instead_of_running(&self.shared, &self.republisher, &delivery.message(), record)
        {
            // It may have to run after all.
            let body = delivery.body().to_vec();
            match self.keep(delivery, body, copy) {
                Disposition::RunUncounted => {}
                disposition => return Processed::unrun(disposition),
            }
        }
        let (outcome, attempt) = (self.execute(delivery, record, handler), record.attempt);
        let failure = match &outcome {
            Outcome::Failed(failure)
            | Outcome::Dead(failure)
            | Outcome::Terminated(failure)
            | Outcome::CommandMissing { failure, .. } => failure.clone(),
            Outcome::Done | Outcome::GivenUp | Outcome::NoResources(_) | Outcome::CannotRun(_) => {
                Failure::default()
            }
        };
        let policy = &self.shared.options.policy;
        let disposition = match policy.after(attempt, &outcome) {
            Decision::Ack => {
                log::info!("Done");
                self.shared.finished();
                Disposition::Acknowledge
            }
            Decision::RetryAfter { delay, attempt: next } => {
                log::warn!(
                    "attempt {attempt} of {} failed ({}); the next one is in {}",
                    policy.attempts,
                    failure.exit,
                    duration::show(delay)
                );
                let to = self.shared.options.queue.delay(delay);
                let record = after_failure(&self.shared, record, next, &failure);
                let body = delivery.take_body();
                self.keep(
                    delivery,
                    body,
                    PlannedCopy { to, record, purpose: Purpose::Retried, comes_first: false },
                )
            }
            Decision::Dead(why) => {
                let copy = dead_copy(&self.shared, record, &Failure { exit: why, ..failure });
                let body = delivery.take_body();
                self.keep(delivery, body, copy)
            }
            Decision::Requeue => Disposition::GiveBack,
            Decision::RequeueAndPause(what) => return Processed::unrun(Disposition::GiveBackAndPause(what)),
            Decision::StopWorker(why) => self.stop_worker(Error::configuration(why)),
        };
        // What was given up is no task of `--max-tasks`.
        Processed { disposition, ran: outcome != Outcome::GivenUp }
    }

    /// The drain begins before the task goes back: the next thread would fare no better, and each such round would
    /// count as a delivery.
    fn stop_worker(&self, error: Error) -> Disposition {
        // The pool is gone only when the process is about to be.
        let _ = self.events.send(Event::Fatal(error));
        self.drain.begin();
        Disposition::GiveBack
    }

    /// Keeps a copy in place of the original.
    fn keep(&self, delivery: &Delivery<'_>, body: Vec<u8>, copy: PlannedCopy) -> Disposition {
        let pending = self.republisher.request(copy.clone(), body, delivery.properties(), &self.bell.0);
        let patience = if self.republisher.is_blocked() { Duration::ZERO } else { PATIENCE };
        let pending_copy = PendingCopy { pending, copy: Box::new(copy), fingerprint: None };
        self.look_at(&pending_copy, patience).unwrap_or(Disposition::SetAside(pending_copy))
    }

    /// What became of a copy; `None` when nothing is known of it within `patience`.
    pub(super) fn look_at(&self, pending_copy: &PendingCopy, patience: Duration) -> Option<Disposition> {
        let PlannedCopy { to, purpose, .. } = &*pending_copy.copy;
        let name = &to.name;
        let counts = *purpose == Purpose::Counted;
        Some(match pending_copy.pending.wait(patience, &self.abort)? {
            Answer::Kept => {
                if let Purpose::Dead(why) = purpose {
                    log::warn!("dead ({why}); kept in {name}");
                    self.shared.died();
                }
                Disposition::Acknowledge
            }
            Answer::Aborted => Disposition::GiveBack,
            Answer::TooLarge { length, limit } => {
                let over = format!(
                    "its body of {length} bytes is over the limit of the broker, {limit} bytes (max_message_size: \
                     raise it)"
                );
                if counts {
                    log::warn!("a redelivered task runs uncounted: {over}");
                    Disposition::RunUncounted
                } else {
                    log::warn!(
                        "the task cannot be copied to {name}: {over}; it stays in the queue, and comes again in {} \
                         or when this worker ends",
                        duration::show(self.shared.hold_limit())
                    );
                    Disposition::Hold
                }
            }
            Answer::NotAllowed(error) if counts => {
                log::warn!("redelivered tasks cannot be counted: {error}");
                self.shared.cannot_count.store(true, Ordering::Relaxed);
                Disposition::RunUncounted
            }
            Answer::NotAllowed(error) => {
                self.stop_worker(error.context(&format!("cannot keep a copy of a task in {name}")))
            }
        })
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

    fn execute(&self, delivery: &Delivery<'_>, record: &Record, handler: &mut dyn Handler) -> Outcome {
        let properties = delivery.properties();
        log::info!("Received a message: {}", output::excerpt(delivery.body()));
        let headers = properties.user_headers();
        let task = Task {
            id: properties.id(),
            attempt: record.attempt,
            queue: &self.shared.options.queue.name,
            redelivered: delivery.redelivered() || record.deliveries > 0,
            content_type: properties.content_type(),
            headers: &headers,
            body: delivery.body(),
        };
        let _running = self.shared.run();
        let outcome = self.run_when_possible(handler, &task);
        if !matches!(outcome, Outcome::NoResources(_) | Outcome::GivenUp) {
            self.shared.note_shortage(false);
        }
        self.shared.surroundings.settle(outcome, &task, self.drain.signalled(), &self.abort)
    }

    fn run_when_possible(&self, handler: &mut dyn Handler, task: &Task<'_>) -> Outcome {
        let mut pauses = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        for _ in 0..WAITS_TO_RUN {
            let outcome = contained(|| handler.run(task, &self.abort));
            match &outcome {
                Outcome::NoResources(what) => self.shared.tell_shortage(what),
                Outcome::CannotRun(Obstacle { why, may_pass: true }) => self.shared.tell_obstacle(why),
                _ => return outcome,
            }
            if self.drain.begun().recv_timeout(pauses.pause()) == Err(RecvTimeoutError::Disconnected) {
                return Outcome::GivenUp;
            }
        }
        contained(|| handler.run(task, &self.abort))
    }
}

/// The copy of a task that this process does not know, and that has to be counted before it may run, or must not run any
/// more: it is asked for as soon as the task arrives, however long it is until its turn.
pub(super) fn copy_on_arrival(
    shared: &Shared,
    republisher: &Republisher,
    message: &Message<'_>,
    bell: &Sender<()>,
) -> Option<PendingCopy> {
    let record = message.properties.record();
    let fingerprint = shared.dedup.fingerprint(message, &record);
    if shared.dedup.knows(fingerprint) {
        return None;
    }
    let copy = instead_of_running(shared, republisher, message, &record)?;
    let pending = republisher.request(copy.clone(), message.body.to_vec(), message.properties, bell);
    Some(PendingCopy { pending, copy: Box::new(copy), fingerprint })
}

/// The copy that has to be kept before the task may run, or instead of that.
fn instead_of_running(
    shared: &Shared,
    republisher: &Republisher,
    message: &Message<'_>,
    record: &Record,
) -> Option<PlannedCopy> {
    let earlier = earlier(shared, message, record);
    let copies_possible = !shared.cannot_count.load(Ordering::Relaxed) && !republisher.is_blocked();
    let comes_first = earlier.next_return_may_be_the_last();
    match earlier.before_run(&shared.options.policy, copies_possible) {
        BeforeRun::Run => None,
        BeforeRun::RunUncounted => {
            log::warn!("a redelivered task runs uncounted: publishing is blocked or not allowed");
            None
        }
        BeforeRun::Count(deliveries) => {
            log::debug!("delivery {} of a task without an answer: counting it", deliveries.saturating_add(1));
            let record = Record { deliveries, ..record.clone() };
            let to = shared.options.queue.clone();
            Some(PlannedCopy { to, record, purpose: Purpose::Counted, comes_first })
        }
        BeforeRun::DeadLetter(exit) => {
            let copy = dead_copy(shared, record, &Failure { exit, stderr: Vec::new() });
            Some(PlannedCopy { comes_first, ..copy })
        }
    }
}

fn earlier(shared: &Shared, message: &Message<'_>, record: &Record) -> Earlier {
    Earlier {
        redelivered: message.redelivered,
        header: message.properties.delivery_count(),
        recorded: record.deliveries,
        queue: shared.queue_kind(),
    }
}

fn dead_copy(shared: &Shared, record: &Record, failure: &Failure) -> PlannedCopy {
    let to = shared.options.queue.dead();
    let record = after_failure(shared, record, record.attempt, failure);
    PlannedCopy { to, record, purpose: Purpose::Dead(failure.exit.clone()), comes_first: false }
}

fn after_failure(shared: &Shared, record: &Record, attempt: u32, failure: &Failure) -> Record {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let queue = &shared.options.queue.name;
    record.after_failure(attempt, &failure.exit, &failure.stderr, now, &shared.host, queue)
}

/// A fault in a handler's code fails its task; the thread and its connection go on.
fn contained(run: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Outcome::Failed(Failure { exit: "a fault of taskq's own".to_owned(), stderr: Vec::new() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_panics_fails_its_task_and_ends_nothing_else() {
        assert!(matches!(contained(|| Outcome::Done), Outcome::Done));
        let Outcome::Failed(failure) = contained(|| panic!("a fault")) else { panic!("it did not fail") };
        assert_eq!(failure.exit, "a fault of taskq's own");
    }
}
