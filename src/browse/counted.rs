//! How much is in a queue, where a count of nothing may only mean that nobody answers for it.

use super::interrupt::Interrupt;
use super::refresher::Refresher;
use super::walk::{Channels, WalkMode};
use crate::broker::{
    ConsumeOptions, Consumer, Count, Deliveries, Fault, FaultKind, QueueSpec, Scope, Session, SessionOptions,
    count_messages,
};
use crate::error::Result;

/// What came of [`count_surely`].
pub enum Counted {
    /// So much is in the queue.
    Known(Count),
    /// There is no such queue.
    Missing,
    /// Nobody answers for it; or it is a stream, which counts neither consumers nor what has just come.
    Unanswered,
    /// It cannot be looked at: the user may not, or its node is away.
    Unusable(Fault),
    /// It counts nothing, and this user may not read it to make sure.
    Unsure(Fault),
}

/// Counts what is in the queue. A quorum queue whose leader does not answer counts no messages, and not even the consumer
/// that it is asked by: so where nothing of either is counted a consumer asks, and only there, for it may be handed a task
/// that has just come. That one goes back.
///
/// # Errors
/// Those of the connection; or the task that came could not be kept from wearing out.
pub fn count_surely(session: &mut Session, options: &SessionOptions, queue: &QueueSpec) -> Result<Counted> {
    match count_messages(session, &queue.name) {
        Ok(Count { ready: 0, consumers: 0 }) => beside_a_consumer(session, options, queue),
        Ok(count) => Ok(Counted::Known(count)),
        Err(fault) => uncounted(fault),
    }
}

/// The same without asking: where nothing is counted, that is not known to be so.
///
/// # Errors
/// Those of the connection.
pub fn count_unsurely(session: &mut Session, queue: &QueueSpec) -> Result<Counted> {
    count_again(session, &queue.name, Counted::Unanswered)
}

fn beside_a_consumer(session: &mut Session, options: &SessionOptions, queue: &QueueSpec) -> Result<Counted> {
    let channels = Channels::open(session, 1, WalkMode::Held)?;
    let mut refresher = Refresher::new(options, queue, &Interrupt::ignored());
    let is_empty = {
        let started = Consumer::start(channels.first()?, &queue.name, ConsumeOptions::prefetching(1));
        let consumer = match started {
            Ok(consumer) => consumer,
            // Another consumer may have just come, and have the queue for itself.
            Err(fault) if fault.scope == Scope::Channel && fault.kind == FaultKind::Refused => {
                return count_again(session, &queue.name, Counted::Unsure(fault));
            }
            Err(fault) => return uncounted(fault),
        };
        let Count { ready, consumers } = match count_messages(session, &queue.name) {
            Ok(count) => count,
            Err(fault) => return uncounted(fault),
        };
        consumer.cancel().map_err(Fault::into_error)?;
        // One has come after all.
        let come = consumer.leftover();
        let is_empty = ready == 0 && consumers > 0 && come.is_none();
        if let Some(delivery) = come {
            refresher.consider(delivery);
        }
        is_empty
    };
    refresher.close()?;
    channels.close(session, &queue.name)?;
    if is_empty {
        return Ok(Counted::Known(Count { ready: 0, consumers: 0 }));
    }
    count_again(session, &queue.name, Counted::Unanswered)
}

/// There may be something after all: it has only just come, or the queue has only now begun to answer.
fn count_again(session: &mut Session, name: &str, otherwise: Counted) -> Result<Counted> {
    match count_messages(session, name) {
        Ok(Count { ready: 0, consumers: 0 }) => Ok(otherwise),
        Ok(count) => Ok(Counted::Known(count)),
        Err(fault) => uncounted(fault),
    }
}

fn uncounted(fault: Fault) -> Result<Counted> {
    match (fault.scope, fault.kind) {
        (Scope::Channel, FaultKind::NotFound) => Ok(Counted::Missing),
        (Scope::Channel, _) => Ok(Counted::Unusable(fault)),
        (Scope::Connection, _) => Err(fault.into_error()),
    }
}
