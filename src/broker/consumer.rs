//! One consumer: waits for the next delivery, and ends in good order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpValue, ConsumerMessage, ConsumerOptions, FieldTable};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, never, select};

use super::channel::Channel;
use super::deliveries::{ConsumeOptions, Deliveries, Delivery, DeliveryChannel, Message, Next, Watch};
use super::fault::{Fault, FaultKind, TIMEOUT_ARGUMENT};
use super::message::Properties;
use crate::cancel::Never;
use crate::shortage;

/// How long a cancelled consumer's last deliveries may take from one thread to the other.
const HANDOVER: Duration = Duration::from_secs(5);

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
    /// Limits the channel to the prefetch and starts consuming.
    pub fn start(channel: &'c Channel, queue: &str, options: ConsumeOptions) -> Result<Self, Fault> {
        let ConsumeOptions { prefetch, hold, watch } = options;
        // Per channel (not `global`), and before the consumer exists: afterwards it would not apply to it.
        channel.call("basic.qos", |amqp| amqp.qos(0, prefetch, false))?;
        let options = ConsumerOptions { arguments: arguments(hold), ..ConsumerOptions::default() };
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
}

impl<'c> Deliveries<'c> for Consumer<'c> {
    fn is_cancelled(&self) -> bool {
        let mut arrived = self.arrived.borrow_mut();
        arrived.extend(self.messages.try_iter());
        arrived.iter().any(|message| matches!(message, ConsumerMessage::ServerCancelled))
    }

    fn next(&self, stop: &Receiver<Never>, wake: &Receiver<()>, deadline: Option<Instant>) -> Next<'c> {
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
            recv(wake) -> _ => Next::Woken,
            recv(timer) -> _ => Next::TimedOut,
        }
    }

    fn leftover(&self) -> Option<Delivery<'c>> {
        loop {
            let message = self.arrived.borrow_mut().pop_front();
            if let Next::Delivery(delivery) =
                into_next(self.channel, message.or_else(|| self.messages.try_recv().ok())?)
            {
                return Some(delivery);
            }
        }
    }

    fn cancel(&self) -> Result<(), Fault> {
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

impl DeliveryChannel for Channel {
    fn consume<'c>(
        &'c self,
        queue: &str,
        options: ConsumeOptions,
    ) -> Result<Box<dyn Deliveries<'c> + 'c>, Fault> {
        Ok(Box::new(Consumer::start(self, queue, options)?))
    }

    fn ack(&self, tag: u64) -> Result<(), Fault> {
        let delivery = self.take_unanswered(tag)?;
        self.call("basic.ack", |amqp| delivery.ack(amqp))
    }

    fn ack_many(&self, tags: &[u64]) -> Result<(), Fault> {
        let older = self.older_than_all_others(tags);
        if let Some(last) = older.checked_sub(1).map(|last| tags[last]) {
            let last = self.take_unanswered(last)?;
            for tag in &tags[..older - 1] {
                self.take_unanswered(*tag)?;
            }
            self.call("basic.ack", |amqp| last.ack_multiple(amqp))?;
        }
        tags[older..].iter().try_for_each(|tag| self.ack(*tag))
    }

    fn requeue(&self, tag: u64) -> Result<(), Fault> {
        let delivery = self.take_unanswered(tag)?;
        self.call("basic.nack", |amqp| delivery.nack(amqp, true))
    }

    fn close(self: Box<Self>) -> Result<(), Fault> {
        Channel::close(*self)
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
            let (tag, redelivered) = (delivery.delivery_tag(), delivery.redelivered);
            let properties = Properties::from(std::mem::take(&mut delivery.properties));
            let body = std::mem::take(&mut delivery.body);
            channel.keep_unanswered(delivery);
            Next::Delivery(Delivery { tag, redelivered, body, properties, channel })
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
