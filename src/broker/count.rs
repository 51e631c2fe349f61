//! How much is in a queue, whatever it is for; and to empty it.

use super::channel::Channel;
use super::consumer::Consumer;
use super::deliveries::{ConsumeOptions, Deliveries};
use super::fault::{Fault, FaultKind, Scope};
use super::session::Session;

/// What the broker counts in a queue. A quorum queue whose leader does not answer counts nothing of either, and no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Messages that wait for a consumer.
    pub ready: u32,
    /// Consumers, of whatever connection.
    pub consumers: u32,
}

/// Counts what is in the queue.
pub fn count_messages(session: &mut Session, name: &str) -> Result<Count, Fault> {
    look(session, name).map(|(_, count)| count)
}

/// The same, and whether somebody answers for the queue at all, also where it has no consumers: it gets one for a moment,
/// which a quorum queue whose leader does not answer does not count. `None` then. What comes to that consumer goes back,
/// which counts as a delivery: ask where the queue counts nothing.
pub fn count_answered(session: &mut Session, name: &str) -> Result<Option<u32>, Fault> {
    let channel = session.open_channel()?;
    let Count { ready, consumers } = {
        let consumer = Consumer::start(&channel, name, ConsumeOptions::prefetching(1))?;
        let mut count = count_on(&channel, name)?;
        consumer.cancel()?;
        while let Some(delivery) = consumer.leftover() {
            count.ready += 1;
            delivery.requeue()?;
        }
        count
    };
    channel.close()?;
    Ok((consumers > 0).then_some(ready))
}

/// Deletes what is ready in the queue and returns how much that was.
pub fn purge(session: &mut Session, name: &str) -> Result<u32, Fault> {
    let channel = session.open_channel()?;
    let purged = channel.call("queue.purge", |amqp| amqp.queue_purge(name));
    purged.map_err(|fault| match fault.kind {
        FaultKind::Unacceptable => Fault::channel(FaultKind::Configuration, fault.to_string()),
        _ => fault,
    })
}

/// Whether the queue is a stream, for a user who may not ask for more than a message of it: the broker hands out none of
/// a stream's, and ends the connection (540). What another queue hands out goes back to it.
pub fn is_a_stream(session: &mut Session, name: &str) -> Result<bool, Fault> {
    let channel = session.open_channel()?;
    match channel.call("basic.get", |amqp| amqp.basic_get(name, false).map(drop)) {
        Ok(()) => channel.close().map(|()| false),
        Err(fault) if fault.kind == FaultKind::Unacceptable => Ok(true),
        Err(fault) => Err(fault),
    }
}

/// A passive declaration: changes nothing, fails where there is no such queue.
pub(super) fn look(session: &mut Session, name: &str) -> Result<(Channel, Count), Fault> {
    let channel = session.open_channel()?;
    let count = count_on(&channel, name)?;
    Ok((channel, count))
}

fn count_on(channel: &Channel, name: &str) -> Result<Count, Fault> {
    let counted = channel.call("queue.declare (passive)", |amqp| {
        amqp.queue_declare_passive(name).map(|queue| Count {
            ready: queue.declared_message_count().unwrap_or(0),
            consumers: queue.declared_consumer_count().unwrap_or(0),
        })
    });
    match counted {
        Err(fault) if fault.kind == FaultKind::NotFound => Err(Fault::missing(name)),
        counted => counted,
    }
}

/// Whether there is such a queue, as far as this user can see: RabbitMQ since 4.2.6 asks for a permission on the queue
/// itself, older ones for none.
pub fn is_seen(session: &mut Session, name: &str) -> Result<bool, Fault> {
    match look(session, name) {
        Ok(_) => Ok(true),
        Err(fault)
            if fault.scope == Scope::Channel
                && matches!(fault.kind, FaultKind::NotFound | FaultKind::Refused) =>
        {
            Ok(false)
        }
        Err(fault) => Err(fault),
    }
}

/// As [`look`], where the user may look at all: RabbitMQ since 4.2.6 asks for a permission on the queue itself, and where
/// there is no such queue for the one to configure it. Otherwise the first use of the queue tells.
pub(super) fn look_if_allowed(session: &mut Session, name: &str) -> Result<Channel, Fault> {
    match look(session, name) {
        Ok((channel, _)) => Ok(channel),
        Err(fault) if fault.scope == Scope::Channel && fault.kind == FaultKind::Refused => {
            session.open_channel()
        }
        Err(fault) => Err(fault),
    }
}
