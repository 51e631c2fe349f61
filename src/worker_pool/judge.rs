//! One delivery from its arrival to the decision what the broker is told about it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, select};

use super::Event;
use super::copies::{Copies, Refusal};
use super::ledger::{Claim, Unproven};
use super::shared::Shared;
use crate::broker::{Delivery, QueueSpec, Record};
use crate::duration;
use crate::error::Error;
use crate::handler::{Failure, Handler, Never, Outcome, Task};
use crate::output;
use crate::retry::Decision;

/// What the broker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The task is done, or a copy of it is kept.
    Acknowledge,
    /// Somebody else, or this worker later, has to run it.
    GiveBack,
    /// As `GiveBack`, and nothing may be taken for a while: it would come back at once.
    GiveBackAndPause,
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
    pub(super) drain: &'a Receiver<Never>,
    pub(super) abort: &'a Receiver<Never>,
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
                        recv(self.drain) -> _ => return Judged::unrun(Verdict::GiveBack),
                    }
                }
            }
        };
        let judged = self.judge_claimed(delivery, &record, handler);
        if judged.verdict == Verdict::Acknowledge {
            unproven.acknowledging(fingerprint);
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
        if delivery.redelivered() && delivery.properties().delivery_count().is_none() {
            let counted = self.count_delivery(delivery, record, unanswered);
            if let Some(verdict) = counted {
                return Judged::unrun(verdict);
            }
        }
        let (outcome, attempt) = (self.execute(delivery, record, handler), record.attempt);
        let failure = match &outcome {
            Outcome::Failed(failure) | Outcome::Dead(failure) => failure.clone(),
            Outcome::Done | Outcome::GivenUp | Outcome::CannotRun(_) => Failure::default(),
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
                self.keep(delivery, to, &self.after_failure(record, next, &failure))
            }
            Decision::Dead(why) => self.bury(delivery, record, &Failure { exit: why, ..failure }),
            Decision::Requeue => Verdict::GiveBack,
            Decision::StopWorker(why) => {
                let _ = self.events.send(Event::Fatal(Error::configuration(why)));
                Verdict::GiveBack
            }
        };
        Judged { verdict, ran: true }
    }

    fn bury(&self, delivery: &mut Delivery<'_>, record: &Record, failure: &Failure) -> Verdict {
        let to = self.shared.options.queue.dead();
        let name = to.name.clone();
        let verdict = self.keep(delivery, to, &self.after_failure(record, record.attempt, failure));
        if verdict == Verdict::Acknowledge {
            log::warn!("dead ({}); kept in {name}", failure.exit);
            self.shared.died();
        }
        verdict
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
        let deliveries = u32::try_from(unanswered).unwrap_or(u32::MAX);
        let counted = Record { deliveries, ..record.clone() };
        let body = delivery.body().to_vec();
        log::debug!("delivery {} of a task without an answer: counting it", deliveries.saturating_add(1));
        match self.publish(self.shared.options.queue.clone(), body, delivery, &counted) {
            Ok(()) => Some(Verdict::Acknowledge),
            Err(Refusal::Never(error)) => {
                log::warn!("a redelivered task runs uncounted: {error}");
                None
            }
            Err(Refusal::Later(why)) => {
                log::warn!(
                    "a redelivered task cannot be counted now ({why}); it goes back to the queue for a while"
                );
                Some(Verdict::GiveBackAndPause)
            }
            Err(Refusal::Aborted) => Some(Verdict::GiveBack),
        }
    }

    /// Keeps a copy in place of the original.
    fn keep(&self, delivery: &mut Delivery<'_>, to: QueueSpec, record: &Record) -> Verdict {
        let body = delivery.take_body();
        let name = to.name.clone();
        match self.publish(to, body, delivery, record) {
            Ok(()) => Verdict::Acknowledge,
            Err(Refusal::Aborted) => Verdict::GiveBack,
            Err(Refusal::Later(why)) => {
                log::warn!(
                    "the copy for {name} was not confirmed ({why}); the task goes back to the queue for a while"
                );
                Verdict::GiveBackAndPause
            }
            Err(Refusal::Never(error)) => {
                let _ = self
                    .events
                    .send(Event::Fatal(error.context(&format!("cannot keep a failed task in {name}"))));
                Verdict::GiveBack
            }
        }
    }

    fn publish(
        &self,
        to: QueueSpec,
        body: Vec<u8>,
        delivery: &Delivery<'_>,
        record: &Record,
    ) -> Result<(), Refusal> {
        self.copies.keep(to, body, delivery.properties().copy(record), self.abort)
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
        // A fault in a handler's code fails its task; the thread and its connection go on.
        catch_unwind(AssertUnwindSafe(|| handler.run(&task, self.abort))).unwrap_or_else(|_| {
            Outcome::Failed(Failure { exit: "a fault of taskq's own".to_owned(), stderr: Vec::new() })
        })
    }
}

/// How many deliveries of this task ended without an answer. Quorum queues count for us; elsewhere the flag says that
/// there was one since the count was last written.
fn unanswered(delivery: &Delivery<'_>, record: &Record) -> u64 {
    match delivery.properties().delivery_count() {
        Some(count) => count,
        None => u64::from(record.deliveries) + u64::from(delivery.redelivered()),
    }
}
