//! One worker thread: asks the supervisor for a channel, consumes on it until it is lost or the drain begins, asks
//! again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, select};

use super::EndRequest;
use super::ack_timeout;
use super::consume::{Pauses, consume};
use super::context::Context;
use super::dedup::UnprovenAcks;
use super::supervisor::{Grant, Request};
use crate::backoff::Backoff;
use crate::broker::{AckTimeout, Fault, FaultKind};
use crate::error::Error;
use crate::events::Event;
use crate::handler::Handler;
use crate::report::tell;
use crate::shortage;

/// The pauses before asking again for a channel that ended without having delivered anything.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct WorkerThread {
    pub(super) context: Context,
    pub(super) requests: Sender<Request>,
}

impl WorkerThread {
    pub(super) fn run(self, handler: &mut dyn Handler) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut pauses = Pauses::new();
        let mut lost = None;
        while let Some(grant) = self.obtain(lost.take()) {
            let (generation, broker) = (grant.generation, grant.ack_timeout);
            let began = Instant::now();
            let finished_before = self.context.shared.settled();
            let Err(fault) = self.use_channel(grant, &mut pauses, handler) else { break };
            match fault.kind {
                FaultKind::AckTimeout => {
                    tell(&Event::AcknowledgementLate { broker, held: None, words: Some(&fault) });
                }
                // The next channel asks for nothing.
                FaultKind::NoTimeout if !self.context.shared.no_timeout.swap(true, Ordering::Relaxed) => {
                    continue;
                }
                _ => {}
            }
            if let Some(timeout) = fault.acknowledgement_timeout() {
                self.context.shared.learn_acknowledgement_timeout(timeout);
            }
            if self.context.shared.settled() > finished_before || began.elapsed() > LONGEST_PAUSE {
                backoff.reset();
            }
            lost = Some((generation, fault));
            // Nothing is held meanwhile. The first pause after a loss is short enough not to matter, and a channel
            // that ends at once again and again must not spin.
            if self.context.stop.draining().recv_timeout(backoff.pause())
                == Err(RecvTimeoutError::Disconnected)
            {
                break;
            }
        }
        handler.close(self.context.stop.aborting());
    }

    /// Without its handler the thread is of no use, and a worker with fewer threads than asked for is not one either.
    pub(super) fn cannot_start(self, error: &std::io::Error) {
        let error = Error::internal(format!("cannot prepare to run commands: {}", shortage::reason(error)));
        let _ = self.context.end_requests.send(EndRequest::Fatal(error));
    }

    /// Waits for a channel; `None` when the drain begins first.
    fn obtain(&self, lost: Option<(u64, Fault)>) -> Option<Grant> {
        let (reply, grants) = crossbeam_channel::bounded(1);
        self.requests.send(Request { reply, lost }).ok()?;
        select! {
            recv(grants) -> grant => grant.ok(),
            recv(self.context.stop.draining()) -> _ => None,
        }
    }

    /// Works until the thread is done: drained, or out of permits.
    fn use_channel(&self, grant: Grant, pauses: &mut Pauses, handler: &mut dyn Handler) -> Result<(), Fault> {
        let Grant { channel, ack_timeout, .. } = grant;
        let hold = self.time_to_ask_for(ack_timeout);
        let mut unproven =
            UnprovenAcks::new(&self.context.shared.dedup, self.context.shared.options.prefetch);
        let consumed = consume(&self.context, &*channel, hold, &mut unproven, pauses, handler);
        if let Err(fault) = consumed {
            // No other channel follows, on which it could be recognised.
            if self.context.stop.is_draining() && unproven.are_some() {
                tell(&Event::LastAcknowledgementUnknown { cause: &fault });
            }
            return Err(fault);
        }
        match channel.close() {
            Ok(()) => unproven.all_arrived(),
            Err(fault) => {
                tell(&Event::LastAcknowledgementUnknown { cause: &fault });
            }
        }
        Ok(())
    }

    /// How long the broker is to wait for acknowledgements, where a consumer has a say in it.
    fn time_to_ask_for(&self, broker: AckTimeout) -> Option<Duration> {
        if broker != AckTimeout::PerConsumer || self.context.shared.no_timeout.load(Ordering::Relaxed) {
            return None;
        }
        let options = &self.context.shared.options;
        ack_timeout::to_ask_for(options.timeout, options.grace, options.prefetch)
    }
}

#[cfg(test)]
mod tests;
