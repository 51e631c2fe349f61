//! The connection under a publisher: a channel in confirm mode, and what the broker says on both.

use std::sync::Arc;
use std::time::Duration;

use amiquip::{Confirm, ConnectionBlockedNotification, Publish, Return};
use crossbeam_channel::Receiver;

use super::channel::Channel;
use super::fault::{Fault, Scope};
use super::handover::Handover;
use super::message::{Body, Properties};
use super::session::{ConnectionPurpose, Session, SessionOptions};
use super::topology::{QueueSpec, declare_unseen, ensure_queue, find_again};
use crate::error;

/// How long a handover may take. Whoever publishes has a deadline of its own and cuts the connection at it; this one is
/// for the thread that would wait on otherwise.
const HANDOVER_TIMEOUT: Duration = Duration::from_hours(1);

/// What a publisher needs of a connection. A trait, so that a test can play the broker.
pub(super) trait Line: Send {
    /// Publishes one message through the default exchange; what no queue takes comes back. What cannot be published
    /// `at_once` without a wait for the broker to read is handed over by a thread.
    ///
    /// # Errors
    /// The channel or the connection is gone, or the channel is away with such a thread.
    fn publish(
        &mut self,
        queue: &str,
        body: &Body,
        properties: &Properties,
        at_once: bool,
    ) -> Result<(), Fault>;

    /// The channel is away with a thread that publishes.
    fn is_busy(&self) -> bool;

    /// How that ended, when it has.
    fn handed_over(&self) -> &Receiver<Result<(), Fault>>;

    /// Takes the channel back, after [`Line::handed_over`] has told.
    fn take_back(&mut self);

    /// Why the channel or the connection is gone: any call tells, though confirms end without a word.
    fn ask(&self) -> Result<(), Fault>;

    /// Makes sure of a queue; whether one that was `known` to be there was gone.
    fn prepare(&mut self, queue: &QueueSpec, known: bool) -> Result<bool, Fault>;

    /// Makes sure of the queue, and opens another channel on the same connection.
    fn recover(self: Box<Self>, queue: &QueueSpec) -> Result<Opened, Fault>;

    /// Closes the connection in good order.
    fn close(self: Box<Self>);

    /// Ends the connection at once.
    fn cut(self: Box<Self>, why: &str);
}

/// A connection that can be published on, and what the broker says on it.
pub(super) struct Opened {
    pub(super) line: Box<dyn Line>,
    pub(super) confirms: Receiver<Confirm>,
    pub(super) returns: Receiver<Return>,
    /// When it blocks and unblocks publishing.
    pub(super) blocked: Receiver<ConnectionBlockedNotification>,
    /// See [`Session::label`].
    pub(super) label: String,
    /// See [`Session::introduction`].
    pub(super) introduction: String,
    /// See [`Session::frame_max`].
    pub(super) frame_max: usize,
    pub(super) patience: AnswerPatience,
    /// See [`super::Publisher::queue_verified`].
    pub(super) queue_verified: bool,
}

/// How long answers may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct AnswerPatience {
    /// A confirm, from a broker that has not blocked publishing, beside what the bytes take on the line.
    pub(super) confirm: Duration,
    /// The answer to [`super::Publisher::probe`].
    pub(super) probe: Duration,
}

impl Default for AnswerPatience {
    fn default() -> Self {
        Self { confirm: Duration::from_secs(15), probe: Duration::from_secs(3) }
    }
}

/// See [`super::Publisher::open_optimistic`].
pub(super) fn open_optimistic(options: &SessionOptions, queue: &QueueSpec) -> error::Result<Opened> {
    let mut session = Session::open(options, ConnectionPurpose::Publish)?;
    if !queue.declare {
        return verified(session, queue).map_err(Fault::into_error);
    }
    match declare_unseen(&mut session, queue).and_then(confirming) {
        Ok(confirming) => Ok(on(session, confirming, false)),
        // The broker refused the queue before confirms were turned on.
        Err(fault) if fault.scope == Scope::Channel => verified(session, queue).map_err(Fault::into_error),
        Err(fault) => Err(fault.into_error()),
    }
}

/// See [`super::Publisher::open_verified`].
pub(super) fn open_verified(options: &SessionOptions, queue: &QueueSpec) -> error::Result<Opened> {
    verified(Session::open(options, ConnectionPurpose::Publish)?, queue).map_err(Fault::into_error)
}

fn verified(mut session: Session, queue: &QueueSpec) -> Result<Opened, Fault> {
    let found = ensure_queue(&mut session, queue)?;
    Ok(on(session, confirming(found.channel)?, true))
}

fn on(
    session: Session,
    (channel, confirms, returns): (Channel, Receiver<Confirm>, Receiver<Return>),
    queue_verified: bool,
) -> Opened {
    Opened {
        confirms,
        returns,
        blocked: session.blocked().clone(),
        label: session.label().to_owned(),
        introduction: session.introduction(),
        frame_max: session.frame_max(),
        patience: AnswerPatience::default(),
        queue_verified,
        line: Box::new(Live { handover: Handover::new(channel), session }),
    }
}

/// Puts a channel into confirm mode. The answer is not waited for: nothing but a refusal could come.
fn confirming(channel: Channel) -> Result<(Channel, Receiver<Confirm>, Receiver<Return>), Fault> {
    let returns = channel.call("a local setting", amiquip::Channel::listen_for_returns)?;
    let confirms = channel.call("a local setting", amiquip::Channel::listen_for_publisher_confirms)?;
    channel.call("confirm.select", amiquip::Channel::enable_publisher_confirms_nowait)?;
    Ok((channel, confirms, returns))
}

/// The real one.
struct Live {
    // Before the session: the channel has to go first.
    handover: Handover,
    session: Session,
}

impl Line for Live {
    fn publish(
        &mut self,
        queue: &str,
        body: &Body,
        properties: &Properties,
        at_once: bool,
    ) -> Result<(), Fault> {
        if at_once {
            let publish = publish_of(queue, body, properties);
            return self.handover.channel()?.call("a publish", |amqp| amqp.basic_publish("", publish));
        }
        let (queue, body, properties) = (queue.to_owned(), Arc::clone(body), properties.clone());
        self.handover.lend(move |channel| {
            let publish = publish_of(&queue, &body, &properties);
            channel.call_within(HANDOVER_TIMEOUT, "a publish", |amqp| amqp.basic_publish("", publish))
        })
    }

    fn is_busy(&self) -> bool {
        self.handover.is_empty()
    }

    fn handed_over(&self) -> &Receiver<Result<(), Fault>> {
        self.handover.done()
    }

    fn take_back(&mut self) {
        self.handover.take_back();
    }

    fn ask(&self) -> Result<(), Fault> {
        self.handover.channel()?.call("basic.qos", |amqp| amqp.qos(0, 0, false))
    }

    fn prepare(&mut self, queue: &QueueSpec, known: bool) -> Result<bool, Fault> {
        if known {
            return find_again(&mut self.session, queue);
        }
        ensure_queue(&mut self.session, queue).map(|_| false)
    }

    fn recover(self: Box<Self>, queue: &QueueSpec) -> Result<Opened, Fault> {
        drop(self.handover);
        verified(self.session, queue)
    }

    fn close(self: Box<Self>) {
        // Nothing is outstanding that matters, so to close the connection is enough: to close the channel would be one
        // more round trip.
        drop(self.session);
        drop(self.handover);
    }

    fn cut(self: Box<Self>, why: &str) {
        self.session.cut(why);
    }
}

fn publish_of<'a>(queue: &str, body: &'a [u8], properties: &Properties) -> Publish<'a> {
    let properties = properties.amqp().clone();
    Publish { body, routing_key: queue.to_owned(), mandatory: true, immediate: false, properties }
}
