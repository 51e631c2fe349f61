//! What a worker thread does with a channel. Below this amiquip's types borrow their channel; above it a delivery is
//! plain data that is answered through the channel that it came on, so that worker threads are tested without a broker.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::fault::Fault;
use super::message::Properties;
use crate::cancel::Never;

/// The header that a stream sets on all that it hands out, as other queues do not.
const STREAM_OFFSET: &str = "x-stream-offset";

/// What a delivery brings.
pub struct Message<'m> {
    /// Everything but the body.
    pub properties: &'m Properties,
    /// Any bytes.
    pub body: &'m [u8],
    /// The broker has delivered it before (a hint, not a count).
    pub redelivered: bool,
}

/// Sees each message that was delivered before, with its tag, as soon as it arrives, and on a thread of its own: the one
/// that consumes may be busy.
pub type Watch = Box<dyn FnMut(u64, &Message<'_>) + Send>;

/// How to consume.
pub struct ConsumeOptions {
    /// How many deliveries of the consumer may be unanswered, at least 1.
    pub prefetch: u16,
    /// How long the broker is to wait for an answer. Only where consumers have a say in it
    /// ([`super::AckTimeout::PerConsumer`]); elsewhere it is nothing but an unknown argument.
    pub hold: Option<Duration>,
    /// See [`Watch`].
    pub watch: Option<Watch>,
}

impl ConsumeOptions {
    /// With so many deliveries unanswered, and nothing else.
    #[must_use]
    pub fn prefetching(prefetch: u16) -> Self {
        Self { prefetch, hold: None, watch: None }
    }
}

/// A channel that delivers, owned by the thread that uses it.
pub trait DeliveryChannel: Send {
    /// Starts a consumer.
    ///
    /// # Errors
    /// The queue is missing, access is refused, the queue knows no timeouts ([`super::FaultKind::NoTimeout`]), or the
    /// channel or connection is gone.
    fn consume<'c>(
        &'c self,
        queue: &str,
        options: ConsumeOptions,
    ) -> Result<Box<dyn Deliveries<'c> + 'c>, Fault>;

    /// See [`Delivery::ack`].
    fn ack(&self, tag: u64) -> Result<(), Fault>;

    /// See [`ack_all`].
    fn ack_many(&self, tags: &[u64]) -> Result<(), Fault> {
        tags.iter().try_for_each(|tag| self.ack(*tag))
    }

    /// See [`Delivery::requeue`].
    fn requeue(&self, tag: u64) -> Result<(), Fault>;

    /// See [`super::Channel::close`].
    ///
    /// # Errors
    /// Whatever had closed it before, or the loss of the connection.
    fn close(self: Box<Self>) -> Result<(), Fault>;
}

/// What one consumer brings. Dropping it cancels it.
pub trait Deliveries<'c> {
    /// Waits for the next delivery, until `stop` closes, `wake` gets a message or the deadline passes. Without a deadline the
    /// wait is bounded by the connection's heartbeats.
    fn next(&self, stop: &Receiver<Never>, wake: &Receiver<()>, deadline: Option<Instant>) -> Next<'c>;

    /// A delivery that has arrived but was not waited for.
    fn leftover(&self) -> Option<Delivery<'c>>;

    /// Whether the broker has cancelled it, with deliveries still to be taken or not.
    fn is_cancelled(&self) -> bool;

    /// Takes no further deliveries. When it returns, everything that was delivered has arrived here; what was
    /// not settled yet still can be. May be called again.
    fn cancel(&self) -> Result<(), Fault>;
}

/// What a wait for a delivery ended with.
#[allow(clippy::large_enum_variant)] // Moved once, and nearly always a delivery.
pub enum Next<'c> {
    /// A task.
    Delivery(Delivery<'c>),
    /// The stop channel closed.
    Stopped,
    /// The wake channel got a message.
    Woken,
    /// The deadline passed.
    TimedOut,
    /// No further delivery will come.
    Ended(Fault),
}

/// One message as it was delivered. It is settled on the channel it came from and lives no longer than that: an
/// acknowledgement never crosses channels or connections.
pub struct Delivery<'c> {
    /// The number that the broker knows it by on its channel.
    pub tag: u64,
    /// The broker has delivered this message before (a hint, not a count).
    pub redelivered: bool,
    /// Any bytes.
    pub body: Vec<u8>,
    /// Everything else that came with it.
    pub properties: Properties,
    /// Where it came, and is answered.
    pub channel: &'c (dyn DeliveryChannel + 'c),
}

impl Delivery<'_> {
    /// The body, for a copy: afterwards this delivery can only be settled.
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// It says that it comes from a stream. It may also have been brought here from one.
    #[must_use]
    pub fn names_a_stream(&self) -> bool {
        self.properties.has_header(STREAM_OFFSET)
    }

    /// All of it.
    #[must_use]
    pub fn message(&self) -> Message<'_> {
        Message { properties: &self.properties, body: &self.body, redelivered: self.redelivered }
    }

    /// Acknowledges a finished task. `Ok` means queued here: see [`super::Channel::close`] for certainty.
    ///
    /// # Errors
    /// The channel or connection is gone, and the broker will deliver the task again.
    pub fn ack(self) -> Result<(), Fault> {
        self.channel.ack(self.tag)
    }

    /// Gives a task back to the queue, in good order. By a nack: quorum queues of RabbitMQ 4.3 do not count those, so
    /// that the task comes no nearer to their limit of deliveries; all others count it as they count a reject.
    ///
    /// # Errors
    /// The channel or connection is gone, and the broker will deliver the task again anyway.
    pub fn requeue(self) -> Result<(), Fault> {
        self.channel.requeue(self.tag)
    }
}

/// Acknowledges many deliveries, with one acknowledgement for all that nothing older is unanswered before. A quorum queue
/// under load keeps single ones back, and forgets them when their channel closes (seen with RabbitMQ 3.10).
///
/// # Errors
/// The channel or connection is gone, and the broker will deliver some of them again.
pub fn ack_all(mut deliveries: Vec<Delivery<'_>>) -> Result<(), Fault> {
    deliveries.sort_by_key(|delivery| delivery.tag);
    while let Some(first) = deliveries.first() {
        let channel = first.channel;
        let (same, others): (Vec<_>, _) =
            deliveries.into_iter().partition(|delivery| std::ptr::addr_eq(delivery.channel, channel));
        channel.ack_many(&same.iter().map(|delivery| delivery.tag).collect::<Vec<_>>())?;
        deliveries = others;
    }
    Ok(())
}
