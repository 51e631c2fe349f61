//! A task in a queue, and what is known of it.

use super::key::Key;
use crate::broker::{DeadLettering, Delivery, Properties, Record, Role};

/// One task in a queue, as a person looks at it.
pub struct QueuedTask<'a> {
    /// By which it can be named.
    pub key: Key,
    /// Its properties.
    pub properties: &'a Properties,
    /// What taskq wrote about it, and where the broker itself moved it here, what that says.
    pub record: Record,
    /// The broker has handed it out before.
    pub redelivered: bool,
    /// Any bytes.
    pub body: &'a [u8],
}

impl<'a> QueuedTask<'a> {
    /// One that came from a queue of this kind.
    #[must_use]
    pub fn of(delivery: &'a Delivery<'_>, role: &Role) -> Self {
        let properties = &delivery.properties;
        let record = record_in(role, properties);
        Self {
            key: Key::of(properties.id(), &record, &delivery.body),
            properties,
            record,
            redelivered: delivery.redelivered,
            body: &delivery.body,
        }
    }
}

/// What is known of how the last attempt ended. Of a dead task the broker's own word is the latest, as what taskq copies
/// comes without it; a task that waits has come from its delay queue.
pub(super) fn record_in(role: &Role, properties: &Properties) -> Record {
    let record = properties.record();
    let moved = properties.dead_lettering().filter(|_| *role == Role::Dead);
    let Some(DeadLettering { reason, queue, at }) = moved else { return record };
    let from = queue.as_deref().unwrap_or("its queue");
    let exit = match reason.as_str() {
        "delivery_limit" => "the broker gave up on it: delivery limit".to_owned(),
        "expired" => format!("it expired in {from}"),
        "maxlen" => format!("dropped, {from} was full"),
        "rejected" => "a consumer rejected it".to_owned(),
        other => format!("moved by the broker: {other}"),
    };
    Record {
        exit: Some(exit),
        first_failed_at: record.first_failed_at.or(at),
        failed_at: at.or(record.failed_at),
        queue: queue.or(record.queue),
        ..record
    }
}
