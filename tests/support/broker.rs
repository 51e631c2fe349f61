//! The tests' own AMQP client: what the broker really holds, and messages that taskq would never send.

use super::poll::{self, DEADLINE};
use amiquip::{
    AmqpProperties, AmqpValue, Auth, Channel, Confirm, Connection, ConnectionOptions, ConnectionTuning,
    ConsumerOptions, Delivery, FieldTable, Publish, QueueDeclareOptions, QueueDeleteOptions,
};
use crossbeam_channel::Receiver;
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long the client waits for an answer of the broker.
const ANSWER: Duration = DEADLINE;

pub(crate) struct Broker {
    /// Before the connection: closed first.
    publisher: RefCell<Option<(Channel, Receiver<Confirm>)>>,
    connection: RefCell<Connection>,
}

/// Queue arguments, as pairs.
pub(crate) fn arguments(pairs: &[(&str, AmqpValue)]) -> FieldTable {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

pub(crate) fn text(value: &str) -> AmqpValue {
    AmqpValue::LongString(value.to_owned())
}

pub(crate) fn number(value: i32) -> AmqpValue {
    AmqpValue::LongInt(value)
}

/// A queue that survives a restart.
pub(crate) fn durable(arguments: FieldTable) -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, arguments, ..QueueDeclareOptions::default() }
}

impl Broker {
    pub(crate) fn connect(port: u16) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, ANSWER).unwrap();
        // Without this a publish waits 40 ms for the kernel.
        stream.set_nodelay(true).unwrap();
        let stream = mio::net::TcpStream::from_stream(stream).unwrap();
        let options = ConnectionOptions::default()
            .auth(Auth::Plain { username: "guest".into(), password: "guest".into() })
            .channel_max(2047)
            .heartbeat(60)
            .connection_timeout(Some(ANSWER));
        let connection =
            Connection::insecure_open_stream(stream, options, ConnectionTuning::default()).unwrap();
        Self { publisher: RefCell::default(), connection: RefCell::new(connection) }
    }

    /// What the broker says it is: `RabbitMQ 4.0.5`.
    pub(crate) fn product(&self) -> String {
        let connection = self.connection.borrow();
        let properties = connection.server_properties();
        let [product, version] = ["product", "version"].map(|name| match &properties[name] {
            AmqpValue::LongString(text) => text.clone(),
            other => panic!("{name} is {other:?}"),
        });
        format!("{product} {version}")
    }

    /// Major, minor, patch.
    pub(crate) fn version(&self) -> [u32; 3] {
        let product = self.product();
        let numbers = product.split([' ', '.', '-', '+']).filter_map(|part| part.parse().ok());
        numbers
            .take(3)
            .collect::<Vec<_>>()
            .try_into()
            .unwrap_or_else(|_| panic!("which version is {product}?"))
    }

    /// A new channel: an error of the broker closes the channel it happened on.
    pub(crate) fn channel(&self) -> Channel {
        self.connection.borrow_mut().open_channel(None).unwrap()
    }

    pub(crate) fn declare(&self, queue: &str) {
        self.declare_with(queue, durable(FieldTable::default()));
    }

    pub(crate) fn declare_with(&self, queue: &str, options: QueueDeclareOptions) {
        self.channel().queue_declare(queue, options).unwrap();
    }

    pub(crate) fn delete(&self, queue: &str) {
        self.channel().queue_delete(queue, QueueDeleteOptions::default()).unwrap();
    }

    /// Messages ready and consumers; none when there is no such queue.
    pub(crate) fn counts(&self, queue: &str) -> Option<(u32, u32)> {
        let channel = self.channel();
        let queue = channel.queue_declare_passive(queue).ok()?;
        Some((queue.declared_message_count().unwrap(), queue.declared_consumer_count().unwrap()))
    }

    pub(crate) fn ready(&self, queue: &str) -> u32 {
        self.counts(queue).unwrap_or_else(|| panic!("no queue {queue}")).0
    }

    pub(crate) fn consumers(&self, queue: &str) -> u32 {
        self.counts(queue).map_or(0, |(_, consumers)| consumers)
    }

    pub(crate) fn wait_ready(&self, queue: &str, count: u32) {
        poll::until(&format!("{count} messages ready in {queue}"), || {
            (self.counts(queue)?.0 == count).then_some(())
        });
    }

    /// For messages that were replaced by copies: a busy quorum queue may lose acknowledgements that came just before
    /// their channel closed, and then the originals are there as well.
    pub(crate) fn wait_ready_at_least(&self, queue: &str, count: u32) {
        poll::until(&format!("at least {count} messages ready in {queue}"), || {
            (self.counts(queue)?.0 >= count).then_some(())
        });
    }

    pub(crate) fn wait_consumers(&self, queue: &str, count: u32) {
        poll::until(&format!("{count} consumers on {queue}"), || {
            (self.consumers(queue) == count).then_some(())
        });
    }

    /// Takes one message if there is one.
    pub(crate) fn get(&self, queue: &str) -> Option<Delivery> {
        self.channel().basic_get(queue, true).unwrap().map(|get| get.delivery)
    }

    /// Takes one message, which must be there or come.
    pub(crate) fn take(&self, queue: &str) -> Delivery {
        let channel = self.channel();
        poll::until(&format!("a message in {queue}"), || channel.basic_get(queue, true).unwrap()).delivery
    }

    /// Takes all messages that are ready.
    pub(crate) fn drain(&self, queue: &str) -> Vec<Delivery> {
        let channel = self.channel();
        std::iter::from_fn(|| channel.basic_get(queue, true).unwrap()).map(|get| get.delivery).collect()
    }

    /// Another consumer of the queue while `meanwhile` runs. What it gets, one message at a time, goes back afterwards.
    pub(crate) fn while_consuming(&self, queue: &str, options: ConsumerOptions, meanwhile: impl FnOnce()) {
        // Dropped last: amiquip ends the whole connection when nobody is there to be told that the consumer has ended
        // (docs/amiquip.md, H1).
        let _keepalive;
        let channel = self.channel();
        channel.qos(0, 1, false).unwrap();
        let consumer = channel.basic_consume(queue, options).unwrap();
        _keepalive = consumer.receiver().clone();
        meanwhile();
    }

    /// The bodies of all messages that are ready, which are taken.
    pub(crate) fn bodies(&self, queue: &str) -> Vec<String> {
        self.drain(queue).into_iter().map(|message| String::from_utf8(message.body).unwrap()).collect()
    }

    /// Publishes one persistent message and waits until the broker has it.
    pub(crate) fn publish(&self, queue: &str, body: impl AsRef<[u8]>) {
        self.publish_with(queue, body, AmqpProperties::default().with_delivery_mode(2));
    }

    pub(crate) fn publish_with(&self, queue: &str, body: impl AsRef<[u8]>, properties: AmqpProperties) {
        let mut publisher = self.publisher.borrow_mut();
        let (channel, confirms) = publisher.get_or_insert_with(|| {
            let channel = self.channel();
            channel.enable_publisher_confirms().unwrap();
            let confirms = channel.listen_for_publisher_confirms().unwrap();
            (channel, confirms)
        });
        channel.basic_publish("", Publish::with_properties(body.as_ref(), queue, properties)).unwrap();
        let confirm = confirms.recv_timeout(ANSWER).unwrap();
        assert!(matches!(confirm, Confirm::Ack(_)), "the broker refused a test's own message");
    }
}
