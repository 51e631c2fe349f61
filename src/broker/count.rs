//! How much is in a queue, whatever it is for; and to empty it.

use super::channel::Channel;
use super::fault::{Fault, Kind};
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
///
/// # Errors
/// The queue is missing, access is refused, or the connection is lost.
pub fn count_messages(session: &mut Session, name: &str) -> Result<Count, Fault> {
    look(session, name).map(|(_, count)| count)
}

/// Deletes what is ready in the queue and returns how much that was.
///
/// # Errors
/// The queue is missing, access is refused, or the connection is lost.
pub fn purge(session: &mut Session, name: &str) -> Result<u32, Fault> {
    let channel = session.open_channel()?;
    channel.call("queue.purge", |amqp| amqp.queue_purge(name))
}

/// A passive declaration: changes nothing, fails where there is no such queue.
pub(super) fn look(session: &mut Session, name: &str) -> Result<(Channel, Count), Fault> {
    let channel = session.open_channel()?;
    let counted = channel.call("queue.declare (passive)", |amqp| {
        amqp.queue_declare_passive(name).map(|queue| Count {
            ready: queue.declared_message_count().unwrap_or(0),
            consumers: queue.declared_consumer_count().unwrap_or(0),
        })
    });
    match counted {
        Ok(count) => Ok((channel, count)),
        Err(fault) if fault.kind == Kind::NotFound => Err(Fault::channel(
            Kind::NotFound,
            format!("there is no queue {name}; create it, or let taskq declare it (without --no-declare)"),
        )),
        Err(fault) => Err(fault),
    }
}

/// Returns whether there was none to get.
pub(super) fn get_and_give_back(channel: &Channel, name: &str) -> Result<bool, Fault> {
    channel.call("basic.get", |amqp| match amqp.basic_get(name, false)? {
        None => Ok(true),
        Some(got) => got.reject(amqp, true).map(|()| false),
    })
}
