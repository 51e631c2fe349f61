//! One worker thread: asks the supervisor for a channel, consumes on it until it is lost or the drain begins, asks
//! again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::ledger::{Claim, Unproven};
use super::supervisor::{Grant, Request};
use super::{Event, Shared};
use crate::backoff::Backoff;
use crate::broker::{Consumer, Delivery, Fault, Kind, Next};
use crate::error::Error;
use crate::handler::{Failure, Handler, Never, Outcome, Task};
use crate::output;

/// The pauses before asking again for a channel that ended without having delivered anything.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Slot {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Sender<Request>,
    pub(super) events: Sender<Event>,
    /// Closes when no new task may be taken.
    pub(super) drain: Receiver<Never>,
    /// Closes when running tasks must be given up.
    pub(super) abort: Receiver<Never>,
}

/// How the use of one channel ended.
enum End {
    /// The thread is done: drained, or out of permits.
    Done,
    /// The channel or its connection is gone.
    Lost(Fault),
}

/// What became of one delivery.
enum Verdict {
    Acknowledge,
    GiveBack,
}

impl Slot {
    pub(super) fn run(self, handler: &mut dyn Handler) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut lost = None;
        while let Some(grant) = self.obtain(lost.take()) {
            let generation = grant.generation;
            let taken_before = self.shared.taken();
            match self.use_channel(grant, handler) {
                End::Done => break,
                End::Lost(fault) => {
                    if fault.kind == Kind::AckTimeout {
                        explain_ack_timeout(&fault);
                    }
                    if self.shared.taken() > taken_before {
                        backoff.reset();
                    }
                    // The first pause is short enough not to matter, and a channel that ends at once again and
                    // again must not spin.
                    if self.drain.recv_timeout(backoff.pause())
                        == Err(crossbeam_channel::RecvTimeoutError::Disconnected)
                    {
                        break;
                    }
                    lost = Some((generation, fault));
                }
            }
        }
        handler.close(&self.abort);
    }

    /// Waits for a channel; `None` when the drain begins first.
    fn obtain(&self, lost: Option<(u64, Fault)>) -> Option<Grant> {
        let (reply, grants) = crossbeam_channel::bounded(1);
        self.requests.send(Request { reply, lost }).ok()?;
        select! {
            recv(grants) -> grant => grant.ok(),
            recv(self.drain) -> _ => None,
        }
    }

    fn use_channel(&self, grant: Grant, handler: &mut dyn Handler) -> End {
        let channel = grant.channel;
        let mut unproven = Unproven::new(&self.shared.ledger, self.shared.options.prefetch);
        match self.consume(&channel, &mut unproven, handler) {
            Ok(()) => match channel.close() {
                Ok(()) => unproven.all_arrived(),
                Err(fault) => log::warn!(
                    "the last acknowledgement may be lost ({fault}); if so, its task will be delivered again"
                ),
            },
            Err(fault) => return End::Lost(fault),
        }
        End::Done
    }

    /// Consumes until the drain begins or the permits are used up. On `Ok` everything was settled and the consumer
    /// cancelled.
    fn consume(
        &self,
        channel: &crate::broker::Channel,
        unproven: &mut Unproven<'_>,
        handler: &mut dyn Handler,
    ) -> Result<(), Fault> {
        // Held while waiting, so that with --max-tasks no task is taken only to be given back.
        let Some(mut permit) = self.shared.permits.take() else { return Ok(()) };
        let options = &self.shared.options;
        let consumer = Consumer::start(channel, &options.queue.name, options.prefetch)?;
        loop {
            match consumer.next(&self.drain, None) {
                Next::Delivery(delivery) => {
                    let busy = self.shared.begin();
                    unproven.delivered();
                    let verdict = self.judge(&delivery, unproven, handler);
                    permit.used();
                    let next = self.shared.permits.take().filter(|_| !self.draining());
                    if next.is_none() {
                        // Before the acknowledgement: it makes room for a next delivery, which would come only to be
                        // given back, flagged as redelivered.
                        consumer.cancel()?;
                    }
                    settle(&consumer, delivery, &verdict)?;
                    drop(busy);
                    match next {
                        Some(next) => permit = next,
                        None => break,
                    }
                }
                Next::Stopped | Next::TimedOut => break,
                Next::Ended(fault) => return Err(fault),
            }
        }
        consumer.cancel()?;
        if self.shared.finishing() {
            while let (Some(mut permit), Some(delivery)) = (self.shared.permits.take(), consumer.leftover()) {
                let _busy = self.shared.begin();
                let verdict = self.judge(&delivery, unproven, handler);
                permit.used();
                settle(&consumer, delivery, &verdict)?;
            }
        }
        Ok(())
    }

    fn draining(&self) -> bool {
        self.drain.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
    }

    /// Runs the task, unless it was run here before.
    fn judge(
        &self,
        delivery: &Delivery<'_>,
        unproven: &mut Unproven<'_>,
        handler: &mut dyn Handler,
    ) -> Verdict {
        let attempt = 1;
        let ledger = &self.shared.ledger;
        let fingerprint = ledger.fingerprint(delivery, attempt);
        let running = loop {
            match ledger.claim(fingerprint, delivery.redelivered()) {
                Claim::Run(running) => break running,
                Claim::Finished => {
                    log::info!(
                        "task {} was finished here before its connection was lost: acknowledged without running again",
                        output::escape(delivery.properties().id())
                    );
                    unproven.acknowledging(fingerprint);
                    return Verdict::Acknowledge;
                }
                Claim::Elsewhere(ends) => {
                    log::info!(
                        "task {} came back while it is still running here: waiting for it",
                        output::escape(delivery.properties().id())
                    );
                    select! {
                        recv(ends) -> _ => {}
                        recv(self.drain) -> _ => return Verdict::GiveBack,
                    }
                }
            }
        };
        let outcome = self.execute(delivery, attempt, handler);
        let verdict = match outcome {
            Outcome::Done => {
                log::info!("Done");
                self.shared.finished();
                unproven.acknowledging(fingerprint);
                Verdict::Acknowledge
            }
            Outcome::Failed(failure) | Outcome::Dead(failure) => {
                log::warn!("the task failed: {}", failure.exit);
                Verdict::GiveBack
            }
            Outcome::GivenUp => Verdict::GiveBack,
            Outcome::CannotRun(why) => {
                let _ = self.events.send(Event::Fatal(Error::configuration(why)));
                Verdict::GiveBack
            }
        };
        drop(running);
        verdict
    }

    fn execute(&self, delivery: &Delivery<'_>, attempt: u32, handler: &mut dyn Handler) -> Outcome {
        let properties = delivery.properties();
        log::info!("Received a message: {}", output::excerpt(delivery.body()));
        let headers = properties.user_headers();
        let task = Task {
            id: properties.id(),
            attempt,
            queue: &self.shared.options.queue.name,
            redelivered: delivery.redelivered(),
            content_type: properties.content_type(),
            headers: &headers,
            body: delivery.body(),
        };
        // A fault in a handler's code fails its task; the thread and its connection go on.
        catch_unwind(AssertUnwindSafe(|| handler.run(&task, &self.abort))).unwrap_or_else(|_| {
            Outcome::Failed(Failure { exit: "a fault of taskq's own".to_owned(), stderr: Vec::new() })
        })
    }
}

fn settle<'c>(consumer: &Consumer<'c>, delivery: Delivery<'c>, verdict: &Verdict) -> Result<(), Fault> {
    match verdict {
        Verdict::Acknowledge => consumer.ack(delivery),
        Verdict::GiveBack => consumer.requeue(delivery),
    }
}

fn explain_ack_timeout(fault: &Fault) {
    log::warn!(
        "a task ran longer than the broker waits for an acknowledgement (consumer_timeout, 30 minutes by default), so \
         the broker has put it back into the queue; it is not run again by this process once it is finished here, but \
         another worker may run it. Raise consumer_timeout in rabbitmq.conf, or split the task. ({fault})"
    );
}
