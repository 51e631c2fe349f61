//! One channel's deliveries: wait for the next, settle it, end cleanly.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpValue, ConsumerMessage, ConsumerOptions, FieldTable};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, never, select};

use super::channel::Channel;
use super::fault::{Fault, FaultKind, TIMEOUT_ARGUMENT};
use super::message::Properties;
use crate::cancel::Never;
use crate::shortage;

/// The header that a stream sets on all that it hands out, as other queues do not.
const STREAM_OFFSET: &str = "x-stream-offset";

/// How long a cancelled consumer's last deliveries may take from one thread to the other.
const HANDOVER: Duration = Duration::from_secs(5);

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

    /// It says that it comes from a stream. It may also have been brought here from one.
    #[must_use]
    pub fn names_a_stream(&self) -> bool {
        self.properties.has_header(STREAM_OFFSET)
    }

    /// Everything else that came with it.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// All of it.
    #[must_use]
    pub fn message(&self) -> Message<'_> {
        Message { properties: &self.properties, body: &self.amqp.body, redelivered: self.amqp.redelivered }
    }

    /// The number that the broker knows it by on its channel.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.amqp.delivery_tag()
    }

    /// Acknowledges a finished task. `Ok` means queued here: see [`Channel::close`] for certainty.
    ///
    /// # Errors
    /// The channel or connection is gone, and the broker will deliver the task again.
    pub fn ack(self) -> Result<(), Fault> {
        self.channel.note_answer();
        self.channel.call("basic.ack", |amqp| self.amqp.ack(amqp))
    }

    /// Gives a task back to the queue, in good order. By a nack: quorum queues of RabbitMQ 4.3 do not count those, so
    /// that the task comes no nearer to their limit of deliveries; all others count it as they count a reject.
    ///
    /// # Errors
    /// The channel or connection is gone, and the broker will deliver the task again anyway.
    pub fn requeue(self) -> Result<(), Fault> {
        self.channel.note_answer();
        self.channel.call("basic.nack", |amqp| self.amqp.nack(amqp, true))
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
    /// Where its messages arrive.
    messages: Receiver<ConsumerMessage>,
    /// Closes when all that was delivered has been seen by the [`Watch`].
    watched: Option<Receiver<Never>>,
    /// What was taken off `messages` to see what is behind it.
    arrived: RefCell<VecDeque<ConsumerMessage>>,
}

impl<'c> Consumer<'c> {
    /// Limits the channel to `prefetch` unacknowledged deliveries and starts consuming. `watch` sees what arrives.
    ///
    /// # Errors
    /// The queue is missing, access is refused, the queue knows no timeouts ([`FaultKind::NoTimeout`]), or the channel or
    /// connection is gone.
    pub fn start(
        channel: &'c Channel,
        queue: &str,
        prefetch: u16,
        watch: Option<Watch>,
    ) -> Result<Self, Fault> {
        // Per channel (not `global`), and before the consumer exists: afterwards it would not apply to it.
        channel.call("basic.qos", |amqp| amqp.qos(0, prefetch, false))?;
        let options = ConsumerOptions { arguments: arguments(channel.hold()), ..ConsumerOptions::default() };
        let amqp = channel.call("basic.consume", |amqp| amqp.basic_consume(queue, options))?;
        channel.keep_alive(amqp.receiver().clone());
        let (messages, watched) = match watch {
            None => (amqp.receiver().clone(), None),
            Some(watch) => {
                let (messages, watched) = watched(amqp.receiver().clone(), watch)?;
                (messages, Some(watched))
            }
        };
        Ok(Self { amqp, channel, messages, watched, arrived: RefCell::default() })
    }

    /// Whether the broker has cancelled it, with deliveries still to be taken or not.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        let mut arrived = self.arrived.borrow_mut();
        arrived.extend(self.messages.try_iter());
        arrived.iter().any(|message| matches!(message, ConsumerMessage::ServerCancelled))
    }

    /// Waits for the next delivery, until `stop` closes, `bell` rings or the deadline passes. Without a deadline the
    /// wait is bounded by the connection's heartbeats.
    #[must_use]
    pub fn next(&self, stop: &Receiver<Never>, bell: &Receiver<()>, deadline: Option<Instant>) -> Next<'c> {
        if let Some(message) = self.arrived.borrow_mut().pop_front() {
            return into_next(self.channel, message);
        }
        let timer = deadline.map_or_else(never, crossbeam_channel::at);
        select! {
            recv(self.messages) -> message => match message {
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
            let message = self.arrived.borrow_mut().pop_front();
            if let Next::Delivery(delivery) =
                into_next(self.channel, message.or_else(|| self.messages.try_recv().ok())?)
            {
                return Some(delivery);
            }
        }
    }

    /// Takes no further deliveries. When it returns, everything that was delivered has arrived here; what was
    /// not settled yet still can be. May be called again.
    ///
    /// # Errors
    /// The channel or connection is gone.
    pub fn cancel(&self) -> Result<(), Fault> {
        self.channel.call("basic.cancel", |_| self.amqp.cancel())?;
        // It ends with the last message.
        if let Some(watched) = &self.watched
            && watched.recv_timeout(HANDOVER) == Err(RecvTimeoutError::Timeout)
        {
            return Err(Fault::lost("a thread that passes on deliveries does not end"));
        }
        Ok(())
    }
}

impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        // amiquip's own drop would cancel as well, without a deadline; after this one it does nothing.
        let _ = self.cancel();
    }
}

/// Passes everything on to a second channel, with a look at what was delivered before.
fn watched(
    from: Receiver<ConsumerMessage>,
    mut watch: Watch,
) -> Result<(Receiver<ConsumerMessage>, Receiver<Never>), Fault> {
    // No more than the prefetch is under way, or the connection is cut.
    let (to, messages) = crossbeam_channel::unbounded();
    let (alive, ended) = crossbeam_channel::bounded(0);
    let started = thread::Builder::new().name("arrivals".into()).spawn(move || {
        let _alive: Sender<Never> = alive;
        for message in from {
            if let ConsumerMessage::Delivery(delivery) = &message
                && delivery.redelivered
            {
                let properties = Properties::from(delivery.properties.clone());
                let seen = Message { properties: &properties, body: &delivery.body, redelivered: true };
                watch(delivery.delivery_tag(), &seen);
            }
            if to.send(message).is_err() {
                break;
            }
        }
    });
    match started {
        Ok(_) => Ok((messages, ended)),
        Err(error) => Err(Fault::lost(format!("cannot consume: {}", shortage::reason(&error)))),
    }
}

fn into_next(channel: &Channel, message: ConsumerMessage) -> Next<'_> {
    match message {
        ConsumerMessage::Delivery(mut delivery) => {
            channel.note_delivery();
            let properties = Properties::from(std::mem::take(&mut delivery.properties));
            Next::Delivery(Delivery { amqp: delivery, properties, channel })
        }
        ConsumerMessage::ServerCancelled => Next::Ended(Fault::cancelled(None)),
        ConsumerMessage::ServerClosedChannel(error) | ConsumerMessage::ServerClosedConnection(error) => {
            Next::Ended(error.into())
        }
        ConsumerMessage::ClientCancelled | ConsumerMessage::ClientClosedChannel => {
            Next::Ended(Fault::channel(FaultKind::Lost, "the consumer was closed"))
        }
        ConsumerMessage::ClientClosedConnection => Next::Ended(Fault::lost("the connection was closed")),
    }
}

/// How long the broker is to wait for an acknowledgement.
fn arguments(hold: Option<Duration>) -> FieldTable {
    let millis = |hold: Duration| AmqpValue::LongLongInt(i64::try_from(hold.as_millis()).unwrap_or(i64::MAX));
    hold.map(|hold| (TIMEOUT_ARGUMENT.to_owned(), millis(hold))).into_iter().collect()
}
