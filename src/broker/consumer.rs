//! One channel's deliveries: wait for the next, settle it, end cleanly.

use std::time::Instant;

use amiquip::{ConsumerMessage, ConsumerOptions};
use crossbeam_channel::{Receiver, TryRecvError, never, select};

use super::channel::Channel;
use super::fault::{Fault, Kind, Scope};
use super::message::Properties;
use crate::handler::Never;

/// One message as it was delivered. It is settled on the channel it came from and lives no longer than that: an
/// acknowledgement never crosses channels or connections.
pub struct Delivery<'c> {
    amqp: amiquip::Delivery,
    properties: Properties,
    channel: &'c Channel,
}

impl Delivery<'_> {
    /// Any bytes.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.amqp.body
    }

    /// The body, for a copy: afterwards this delivery can only be settled.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.amqp.body)
    }

    /// The broker has delivered this message before (a hint, not a count).
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.amqp.redelivered
    }

    /// Everything else that came with it.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Acknowledges a finished task. `Ok` means queued here: see [`Channel::close`] for certainty.
    ///
    /// # Errors
    /// The channel or connection is gone, and the broker will deliver the task again.
    pub fn ack(self) -> Result<(), Fault> {
        self.channel.note_answer();
        self.channel.call("basic.ack", |amqp| self.amqp.ack(amqp))
    }

    /// Gives a task back to the queue. Reject, not nack: quorum queues count the former.
    ///
    /// # Errors
    /// The channel or connection is gone, and the broker will deliver the task again anyway.
    pub fn requeue(self) -> Result<(), Fault> {
        self.channel.note_answer();
        self.channel.call("basic.reject", |amqp| self.amqp.reject(amqp, true))
    }
}

/// What a wait for a delivery ended with.
#[allow(clippy::large_enum_variant)] // Moved once, and nearly always a delivery.
pub enum Next<'c> {
    /// A task.
    Delivery(Delivery<'c>),
    /// The stop channel closed.
    Stopped,
    /// The bell rang.
    Woken,
    /// The deadline passed.
    TimedOut,
    /// No further delivery will come.
    Ended(Fault),
}

/// A consumer on a channel of its own, with manual acknowledgement.
pub struct Consumer<'c> {
    amqp: amiquip::Consumer<'c>,
    channel: &'c Channel,
}

impl<'c> Consumer<'c> {
    /// Limits the channel to `prefetch` unacknowledged deliveries and starts consuming.
    ///
    /// # Errors
    /// The queue is missing, access is refused, or the channel or connection is gone.
    pub fn start(channel: &'c Channel, queue: &str, prefetch: u16) -> Result<Self, Fault> {
        // Per channel (not `global`), and before the consumer exists: afterwards it would not apply to it.
        channel.call("basic.qos", |amqp| amqp.qos(0, prefetch, false))?;
        let amqp =
            channel.call("basic.consume", |amqp| amqp.basic_consume(queue, ConsumerOptions::default()))?;
        channel.keep_alive(amqp.receiver().clone());
        Ok(Self { amqp, channel })
    }

    /// Waits for the next delivery, until `stop` closes, `bell` rings or the deadline passes. Without a deadline the
    /// wait is bounded by the connection's heartbeats.
    #[must_use]
    pub fn next(&self, stop: &Receiver<Never>, bell: &Receiver<()>, deadline: Option<Instant>) -> Next<'c> {
        let timer = deadline.map_or_else(never, crossbeam_channel::at);
        select! {
            recv(self.amqp.receiver()) -> message => match message {
                Ok(message) => into_next(self.channel, message),
                // amiquip's I/O thread has died; only the connection knows why.
                Err(_) => Next::Ended(Fault::lost("the connection is gone")),
            },
            recv(stop) -> _ => Next::Stopped,
            recv(bell) -> _ => Next::Woken,
            recv(timer) -> _ => Next::TimedOut,
        }
    }

    /// A delivery that has arrived but was not waited for.
    #[must_use]
    pub fn leftover(&self) -> Option<Delivery<'c>> {
        loop {
            match self.amqp.receiver().try_recv() {
                Ok(message) => match into_next(self.channel, message) {
                    Next::Delivery(delivery) => return Some(delivery),
                    Next::Stopped | Next::Woken | Next::TimedOut | Next::Ended(_) => {}
                },
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            }
        }
    }

    /// Takes no further deliveries. When it returns, everything that was delivered has arrived here; what was
    /// not settled yet still can be. May be called again.
    ///
    /// # Errors
    /// The channel or connection is gone.
    pub fn cancel(&self) -> Result<(), Fault> {
        self.channel.call("basic.cancel", |_| self.amqp.cancel())
    }
}

impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        // amiquip's own drop would cancel as well, without a deadline; after this one it does nothing.
        let _ = self.cancel();
    }
}

fn into_next(channel: &Channel, message: ConsumerMessage) -> Next<'_> {
    match message {
        ConsumerMessage::Delivery(mut delivery) => {
            channel.note_delivery();
            let properties = Properties::from(std::mem::take(&mut delivery.properties));
            Next::Delivery(Delivery { amqp: delivery, properties, channel })
        }
        ConsumerMessage::ServerCancelled => Next::Ended(Fault::new(
            Scope::Channel,
            Kind::ConsumerCancelled,
            "the broker cancelled the consumer: the queue was deleted, or moved to another node",
        )),
        ConsumerMessage::ServerClosedChannel(error) | ConsumerMessage::ServerClosedConnection(error) => {
            Next::Ended(error.into())
        }
        ConsumerMessage::ClientCancelled | ConsumerMessage::ClientClosedChannel => {
            Next::Ended(Fault::channel(Kind::Lost, "the consumer was closed"))
        }
        ConsumerMessage::ClientClosedConnection => Next::Ended(Fault::lost("the connection was closed")),
    }
}
