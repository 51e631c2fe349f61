//! The queue: how it is declared, and what happens when it is there already with other properties.

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};

use super::channel::Channel;
use super::fault::{Fault, Kind, differing_property};
use super::session::Session;

/// The kind of queue to declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// No arguments: the queue that RabbitMQ's tutorials declare.
    Classic,
    /// Replicated (`x-queue-type=quorum`).
    Quorum,
}

/// One queue and how to come by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// At most 255 bytes.
    pub name: String,
    /// What to declare.
    pub kind: QueueType,
    /// `false`: use the queue as it is, and only if it is there.
    pub declare: bool,
}

impl QueueSpec {
    fn options(&self) -> QueueDeclareOptions {
        QueueDeclareOptions { durable: true, arguments: self.arguments(), ..QueueDeclareOptions::default() }
    }

    fn arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::new();
        if self.kind == QueueType::Quorum {
            arguments.insert("x-queue-type".to_owned(), AmqpValue::LongString("quorum".to_owned()));
        }
        arguments
    }
}

/// What to do about a queue that exists with other properties than asked for, from the broker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mismatch {
    /// It would lose tasks: refuse.
    Unsafe(&'static str),
    /// It works all the same: use it as it is.
    Harmless,
}

fn judge_mismatch(message: &str) -> Mismatch {
    match differing_property(message) {
        Some("durable") => {
            Mismatch::Unsafe("it is not durable: its tasks would not survive a restart of the broker")
        }
        Some("auto_delete") => {
            Mismatch::Unsafe("it deletes itself, with its tasks, when its last consumer goes (auto-delete)")
        }
        Some("exclusive") => Mismatch::Unsafe("it belongs to another connection alone (exclusive)"),
        _ => Mismatch::Harmless,
    }
}

/// Makes sure that the queue is there and fit for use, and returns the channel on which it was seen. A failed
/// declaration closes its channel, so each try has one of its own.
///
/// # Errors
/// Configuration: the queue is unfit, or missing and not to be declared. Refused: the broker does not allow it.
/// Or the loss of the connection.
pub fn ensure_queue(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    if !spec.declare {
        return look(session, &spec.name).map(|(channel, _)| channel);
    }
    let channel = session.open_channel()?;
    let declared = channel
        .call("queue.declare", |amqp| amqp.queue_declare(spec.name.as_str(), spec.options()).map(drop));
    let fault = match declared {
        Ok(()) => return Ok(channel),
        Err(fault) => fault,
    };
    if fault.kind == Kind::Refused {
        return Err(fault.because_also(&format!(
            "the queue {} cannot be declared; with --no-declare it is used as it is, without the configure permission",
            spec.name
        )));
    }
    if fault.kind != Kind::Configuration {
        return Err(fault);
    }
    match judge_mismatch(&fault.to_string()) {
        Mismatch::Unsafe(why) => Err(Fault::channel(
            Kind::Configuration,
            format!(
                "the queue {0} cannot hold tasks safely: {why}. Delete it (rabbitmqctl delete_queue {0}) or choose \
                 another with --queue",
                spec.name
            ),
        )),
        Mismatch::Harmless => {
            let (channel, _) = look(session, &spec.name)?;
            log::info!("the queue {} exists with other settings and is used as it is ({fault})", spec.name);
            Ok(channel)
        }
    }
}

/// Declares the queue without waiting for the answer: a refusal closes the channel, before anything sent after it is
/// looked at.
///
/// # Errors
/// The loss of the connection.
pub(super) fn declare_unseen(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    let channel = session.open_channel()?;
    channel.call("queue.declare", |amqp| {
        amqp.queue_declare_nowait(spec.name.as_str(), spec.options()).map(drop)
    })?;
    Ok(channel)
}

/// How many messages are ready in the queue.
///
/// # Errors
/// The queue is missing, access is refused, or the connection is lost.
pub fn count_ready(session: &mut Session, name: &str) -> Result<u32, Fault> {
    look(session, name).map(|(_, ready)| ready)
}

/// A passive declaration: changes nothing, fails where there is no such queue.
fn look(session: &mut Session, name: &str) -> Result<(Channel, u32), Fault> {
    let channel = session.open_channel()?;
    let counted = channel.call("queue.declare (passive)", |amqp| {
        amqp.queue_declare_passive(name).map(|queue| queue.declared_message_count().unwrap_or(0))
    });
    match counted {
        Ok(ready) => Ok((channel, ready)),
        Err(fault) if fault.kind == Kind::NotFound => Err(Fault::channel(
            Kind::NotFound,
            format!("there is no queue {name}; create it, or let taskq declare it (without --no-declare)"),
        )),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(property: &str) -> String {
        format!(
            "PRECONDITION_FAILED - inequivalent arg '{property}' for queue 'q' in vhost '/': received 'x' but current \
             is 'y'"
        )
    }

    #[test]
    fn only_what_would_lose_tasks_is_refused() {
        for property in ["durable", "auto_delete", "exclusive"] {
            assert!(matches!(judge_mismatch(&message(property)), Mismatch::Unsafe(_)), "{property}");
        }
        for property in ["x-queue-type", "x-max-priority", "x-message-ttl", "x-dead-letter-exchange"] {
            assert_eq!(judge_mismatch(&message(property)), Mismatch::Harmless, "{property}");
        }
        assert_eq!(judge_mismatch("PRECONDITION_FAILED - something new"), Mismatch::Harmless);
    }

    #[test]
    fn a_classic_queue_has_no_arguments() {
        let mut spec = QueueSpec { name: "q".to_owned(), kind: QueueType::Classic, declare: true };
        assert!(spec.arguments().is_empty());
        spec.kind = QueueType::Quorum;
        assert_eq!(spec.arguments().len(), 1);
    }
}
