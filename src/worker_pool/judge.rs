//! One delivery from its arrival to the decision what the broker is told about it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};

use super::Event;
use super::copies::{Copies, Pending, Refusal};
use super::drain::Drain;
use super::intake::HOLD_LIMIT;
use super::ledger::{Claim, Fingerprint, Unproven};
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::broker::{Delivery, QueueSpec, Record};
use crate::duration;
use crate::error::Error;
use crate::handler::{Failure, Handler, Never, Outcome, Task};
use crate::output;
use crate::retry::Decision;

/// How long a worker thread waits for a copy to be kept before it turns to the next task.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the machine lacks (descriptors, processes) may be there again in a moment. Only then the task goes back, which
/// counts as a delivery; others have more.
const SHORTAGE_TRIES: u32 = 4;
const FIRST_SHORTAGE_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_SHORTAGE_PAUSE: Duration = Duration::from_secs(2);

/// Quorum queues count deliveries, and RabbitMQ 4 drops a message after 20 unless it is configured otherwise. Well
/// before that a copy takes its place, whose count begins again and carries the old one in a header.
const RECOUNT_AT: u64 = 10;

/// What the broker is told.
pub(super) enum Verdict {
    /// The task is done, or a copy of it is kept.
    Acknowledge,
    /// Somebody else, or this worker later, has to run it.
    GiveBack,
    /// As `GiveBack`, and nothing may be taken for a while: it would come back at once.
    GiveBackAndPause,
    /// As `GiveBack`; where the task is still to run, it runs: the count of its deliveries cannot be written.
    Uncounted,
    /// Nothing yet: the broker takes its time with the copy.
    SetAside(Keeping),
    /// Nothing for as long as it may be held, for there will be no copy: given back, it would come at once and hold up
    /// those behind it.
    Hold,
}

/// A copy that is to take the place of a delivery.
pub(super) struct Keeping {
    pending: Pending,
    /// The queue it goes to.
    name: String,
    purpose: Purpose,
    fingerprint: Option<Fingerprint>,
}

impl Keeping {
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }
}

/// What a copy is for.
enum Purpose {
    /// The next attempt.
    Retried,
    /// A person, for this reason.
    Dead(String),
    /// The next delivery of a task whose count of deliveries has to be written.
    Counted,
}

/// The verdict on one delivery, and whether its task was run for it.
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    pub(super) ran: bool,
}

impl Judged {
    fn unrun(verdict: Verdict) -> Self {
        Self { verdict, ran: false }
    }
}

/// What a worker thread needs to judge a delivery.
pub(super) struct Judge<'a> {
    pub(super) shared: &'a Shared,
    pub(super) events: &'a Sender<Event>,
    pub(super) copies: &'a Copies,
    pub(super) drain: &'a Drain,
    pub(super) abort: &'a Receiver<Never>,
    /// Rung when something is known of a delivery that was set aside.
    pub(super) bell: &'a Sender<()>,
}

impl Judge<'_> {
    /// Runs the task, unless it ran here before or must not run any more, and keeps the copy that its outcome asks
    /// for. On [`Verdict::Acknowledge`] the acknowledgement is noted as unproven.
    pub(super) fn judge(
        &self,
        delivery: &mut Delivery<'_>,
        unproven: &mut Unproven<'_>,
        handler: &mut dyn Handler,
    ) -> Judged {
        let record = delivery.properties().record();
        let fingerprint = self.shared.ledger.fingerprint(delivery, &record);
        let running = loop {
            match self.shared.ledger.claim(fingerprint, delivery.redelivered()) {
                Claim::Run(running) => break running,
                Claim::Finished => {
                    log::info!(
                        "task {} was finished here before its connection was lost: acknowledged without running again",
                        output::escape(delivery.properties().id())
                    );
                    unproven.acknowledging(fingerprint);
                    return Judged::unrun(Verdict::Acknowledge);
                }
                Claim::Elsewhere(ends) => {
                    log::info!(
                        "task {} came back while it is still running here: waiting for it",
                        output::escape(delivery.properties().id())
                    );
                    select! {
                        recv(ends) -> _ => {}
                        recv(self.drain.begun()) -> _ => return Judged::unrun(Verdict::GiveBack),
                    }
                }
            }
        };
        let mut judged = self.judge_claimed(delivery, &record, handler);
        match &mut judged.verdict {
            Verdict::Acknowledge => unproven.acknowledging(fingerprint),
            Verdict::SetAside(keeping) => keeping.fingerprint = fingerprint,
            Verdict::GiveBack | Verdict::GiveBackAndPause | Verdict::Uncounted | Verdict::Hold => {}
        }
        // Only now: whoever waits for it must find it remembered.
        drop(running);
        judged
    }

    fn judge_claimed(
        &self,
        delivery: &mut Delivery<'_>,
        record: &Record,
        handler: &mut dyn Handler,
    ) -> Judged {
        let policy = &self.shared.options.policy;
        let unanswered = unanswered(delivery, record);
        if let Some(Decision::Dead(why)) = policy.poisoned(unanswered) {
            let failure = Failure { exit: why, stderr: Vec::new() };
            return Judged::unrun(self.bury(delivery, record, &failure));
        }
        if must_be_counted(delivery)
            && let Some(verdict) = self.count_delivery(delivery, record, unanswered)
        {
            return Judged::unrun(verdict);
        }
        let (outcome, attempt) = (self.execute(delivery, record, handler), record.attempt);
        let failure = match &outcome {
            Outcome::Failed(failure) | Outcome::Dead(failure) => failure.clone(),
            Outcome::Done | Outcome::GivenUp | Outcome::NoResources(_) | Outcome::CannotRun(_) => {
                Failure::default()
            }
        };
        let verdict = match policy.after(attempt, &outcome) {
            Decision::Ack => {
                log::info!("Done");
                self.shared.finished();
                Verdict::Acknowledge
            }
            Decision::RetryAfter { delay, attempt: next } => {
                log::warn!(
                    "attempt {attempt} of {} failed ({}); the next one is in {}",
                    policy.attempts,
                    failure.exit,
                    duration::show(delay)
                );
                let to = self.shared.options.queue.delay(delay, false);
                let copy = self.after_failure(record, next, &failure);
                let body = delivery.take_body();
                self.keep(delivery, body, to, &copy, Purpose::Retried)
            }
            Decision::Dead(why) => self.bury(delivery, record, &Failure { exit: why, ..failure }),
            Decision::Requeue => Verdict::GiveBack,
            Decision::RequeueAndPause(_) => return Judged::unrun(Verdict::GiveBackAndPause),
            Decision::StopWorker(why) => self.stop_worker(Error::configuration(why)),
        };
        Judged { verdict, ran: true }
    }

    /// The drain begins before the task goes back: the next thread would fare no better, and each such round would
    /// count as a delivery.
    fn stop_worker(&self, error: Error) -> Verdict {
        // The pool is gone only when the process is about to be.
        let _ = self.events.send(Event::Fatal(error));
        self.drain.begin();
        Verdict::GiveBack
    }

    fn bury(&self, delivery: &mut Delivery<'_>, record: &Record, failure: &Failure) -> Verdict {
        let to = self.shared.options.queue.dead();
        let copy = self.after_failure(record, record.attempt, failure);
        let body = delivery.take_body();
        self.keep(delivery, body, to, &copy, Purpose::Dead(failure.exit.clone()))
    }

    /// A redelivered task that the broker does not count is counted by taskq, before it runs: should it take the
    /// worker down, the count is there. Its copy carries the count and takes its place; `None` means that it runs
    /// now.
    fn count_delivery(
        &self,
        delivery: &mut Delivery<'_>,
        record: &Record,
        unanswered: u64,
    ) -> Option<Verdict> {
        let broker_counts = brokers_count(delivery).is_some();
        let shared = self.shared;
        if shared.cannot_count.load(Ordering::Relaxed) || self.copies.are_blocked() && !broker_counts {
            // Tasks have to go on: it may be this queue that fills the broker.
            log::warn!("a redelivered task runs uncounted: publishing is blocked or not allowed");
            return None;
        }
        let deliveries = u32::try_from(unanswered).unwrap_or(u32::MAX);
        let counted = Record { deliveries, ..record.clone() };
        log::debug!("delivery {} of a task without an answer: counting it", deliveries.saturating_add(1));
        // It may have to run after all.
        let body = delivery.body().to_vec();
        match self.keep(delivery, body, shared.options.queue.clone(), &counted, Purpose::Counted) {
            Verdict::Uncounted => None,
            verdict => Some(verdict),
        }
    }

    /// Keeps a copy in place of the original.
    fn keep(
        &self,
        delivery: &Delivery<'_>,
        body: Vec<u8>,
        to: QueueSpec,
        record: &Record,
        purpose: Purpose,
    ) -> Verdict {
        let name = to.name.clone();
        let properties = delivery.properties().copy(record);
        let pending = self.copies.request(to, body, properties, self.bell);
        let patience = if self.copies.are_blocked() { Duration::ZERO } else { PATIENCE };
        let keeping = Keeping { pending, name, purpose, fingerprint: None };
        self.look_at(&keeping, patience).unwrap_or(Verdict::SetAside(keeping))
    }

    /// What became of a copy; `None` when nothing is known of it within `patience`.
    pub(super) fn look_at(&self, keeping: &Keeping, patience: Duration) -> Option<Verdict> {
        let name = &keeping.name;
        Some(match keeping.pending.wait(patience, self.abort)? {
            Ok(()) => {
                if let Purpose::Dead(why) = &keeping.purpose {
                    log::warn!("dead ({why}); kept in {name}");
                    self.shared.died();
                }
                Verdict::Acknowledge
            }
            Err(Refusal::Aborted) => Verdict::GiveBack,
            Err(Refusal::Later(why)) => {
                log::warn!(
                    "the copy for {name} was not confirmed ({why}); the task goes back to the queue for a while"
                );
                Verdict::GiveBackAndPause
            }
            Err(Refusal::TooLarge { length, limit }) => {
                let over = format!(
                    "its body of {length} bytes is over the limit of the broker, {limit} bytes (max_message_size: \
                     raise it)"
                );
                if matches!(keeping.purpose, Purpose::Counted) {
                    log::warn!("a redelivered task runs uncounted: {over}");
                    Verdict::Uncounted
                } else {
                    log::warn!(
                        "the task cannot be copied to {name}: {over}; it stays in the queue, and comes again in {} \
                         or when this worker ends",
                        duration::show(HOLD_LIMIT)
                    );
                    Verdict::Hold
                }
            }
            Err(Refusal::Never(error)) if matches!(keeping.purpose, Purpose::Counted) => {
                log::warn!("redelivered tasks cannot be counted: {error}");
                self.shared.cannot_count.store(true, Ordering::Relaxed);
                Verdict::Uncounted
            }
            Err(Refusal::Never(error)) => {
                self.stop_worker(error.context(&format!("cannot keep a copy of a task in {name}")))
            }
        })
    }

    fn after_failure(&self, record: &Record, attempt: u32, failure: &Failure) -> Record {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let queue = &self.shared.options.queue.name;
        record.after_failure(attempt, &failure.exit, &failure.stderr, now, &self.shared.host, queue)
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
        let mut pauses = Backoff::new(FIRST_SHORTAGE_PAUSE, LONGEST_SHORTAGE_PAUSE);
        for _ in 0..SHORTAGE_TRIES {
            let outcome = contained(|| handler.run(&task, self.abort));
            let Outcome::NoResources(what) = &outcome else { return outcome };
            self.shared.tell_shortage(what);
            if self.drain.begun().recv_timeout(pauses.pause()) == Err(RecvTimeoutError::Disconnected) {
                return Outcome::GivenUp;
            }
        }
        contained(|| handler.run(&task, self.abort))
    }
}

/// A fault in a handler's code fails its task; the thread and its connection go on.
fn contained(run: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Outcome::Failed(Failure { exit: "a fault of taskq's own".to_owned(), stderr: Vec::new() })
    })
}

/// How often the queue says that it has delivered this task without an answer. Other queues leave the header as it came,
/// and what a task brings along at its first delivery was counted elsewhere.
fn brokers_count(delivery: &Delivery<'_>) -> Option<u64> {
    delivery.properties().delivery_count().filter(|count| *count == 0 || delivery.redelivered())
}

/// How many deliveries of this task ended without an answer. Quorum queues count for us since the count was last
/// written; elsewhere the flag says that there was one.
fn unanswered(delivery: &Delivery<'_>, record: &Record) -> u64 {
    let since = brokers_count(delivery).unwrap_or(u64::from(delivery.redelivered()));
    u64::from(record.deliveries).saturating_add(since)
}

/// Whether the count has to be written before the task may run.
fn must_be_counted(delivery: &Delivery<'_>) -> bool {
    brokers_count(delivery).map_or(delivery.redelivered(), |count| count >= RECOUNT_AT)
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
