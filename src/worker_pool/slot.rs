//! One worker thread: asks the supervisor for a channel, consumes on it until it is lost or the drain begins, asks
//! again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};

use super::Event;
use super::consume::consume;
use super::copies::Copies;
use super::drain::Drain;
use super::ledger::Unproven;
use super::shared::Shared;
use super::supervisor::{Grant, Request};
use crate::backoff::Backoff;
use crate::broker::{Fault, Kind};
use crate::error::Error;
use crate::handler::{Handler, Never};
use crate::shortage;

/// The pauses before asking again for a channel that ended without having delivered anything.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The first pause after a copy could not be kept: the broker needs a moment, and the task runs again after it.
const FIRST_COPY_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Slot {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Sender<Request>,
    pub(super) events: Sender<Event>,
    pub(super) copies: Copies,
    pub(super) drain: Drain,
    /// Closes when running tasks must be given up.
    pub(super) abort: Receiver<Never>,
    /// Rings when something is known of a copy; this thread's own.
    pub(super) bell: (Sender<()>, Receiver<()>),
}

/// The pauses after a copy could not be kept. They start over when a task was settled since the last one.
pub(super) struct Pauses {
    backoff: Backoff,
    settled: u64,
}

impl Pauses {
    fn new() -> Self {
        Self { backoff: Backoff::new(FIRST_COPY_PAUSE, LONGEST_PAUSE), settled: 0 }
    }

    /// `settled` is how many tasks were settled so far.
    pub(super) fn next(&mut self, settled: u64) -> Duration {
        if std::mem::replace(&mut self.settled, settled) < settled {
            self.backoff.reset();
        }
        self.backoff.pause()
    }
}

impl Slot {
    pub(super) fn run(self, handler: &mut dyn Handler) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut pauses = Pauses::new();
        let mut lost = None;
        while let Some(grant) = self.obtain(lost.take()) {
            let generation = grant.generation;
            let began = Instant::now();
            let finished_before = self.shared.settled();
            let Err(fault) = self.use_channel(grant, &mut pauses, handler) else { break };
            if fault.kind == Kind::AckTimeout {
                explain_ack_timeout(&fault);
            }
            if self.shared.settled() > finished_before || began.elapsed() > LONGEST_PAUSE {
                backoff.reset();
            }
            lost = Some((generation, fault));
            // Nothing is held meanwhile. The first pause after a loss is short enough not to matter, and a channel
            // that ends at once again and again must not spin.
            if self.drain.begun().recv_timeout(backoff.pause()) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
        handler.close(&self.abort);
    }

    /// Without its handler the thread is of no use, and a worker with fewer threads than asked for is not one either.
    pub(super) fn cannot_start(self, error: &std::io::Error) {
        let error = Error::internal(format!("cannot prepare to run commands: {}", shortage::reason(error)));
        let _ = self.events.send(Event::Fatal(error));
    }

    /// Waits for a channel; `None` when the drain begins first.
    fn obtain(&self, lost: Option<(u64, Fault)>) -> Option<Grant> {
        let (reply, grants) = crossbeam_channel::bounded(1);
        self.requests.send(Request { reply, lost }).ok()?;
        select! {
            recv(grants) -> grant => grant.ok(),
            recv(self.drain.begun()) -> _ => None,
        }
    }

    /// Works until the thread is done: drained, or out of permits.
    ///
    /// # Errors
    /// The channel or its connection is gone.
    fn use_channel(&self, grant: Grant, pauses: &mut Pauses, handler: &mut dyn Handler) -> Result<(), Fault> {
        let channel = grant.channel;
        let mut unproven = Unproven::new(&self.shared.ledger, self.shared.options.prefetch);
        consume(self, &channel, &mut unproven, pauses, handler)?;
        match channel.close() {
            Ok(()) => unproven.all_arrived(),
            Err(fault) => {
                log::warn!(
                    "the last acknowledgement may be lost ({fault}); if so, its task will be delivered again"
                );
            }
        }
        Ok(())
    }
}

fn explain_ack_timeout(fault: &Fault) {
    log::warn!(
        "a task ran longer than the broker waits for an acknowledgement (consumer_timeout, 30 minutes by default), so \
         the broker has put it back into the queue; it is not run again by this process once it is finished here, but \
         another worker may run it. Raise consumer_timeout in rabbitmq.conf, or split the task. ({fault})"
    );
}
