//! Confirmed, mandatory publishing with many publishes in flight: what is published here is done when the broker
//! confirmed it, and not before.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Confirm, ConnectionBlockedNotification};
use crossbeam_channel::{Receiver, never, select};

use super::confirms::{Confirms, Settlement};
use super::fault::{Fault, FaultKind};
use super::line::{self, Opened};
use super::message::{Body, Properties};
#[cfg(doc)]
use super::session::Session;
use super::session::SessionOptions;
#[cfg(doc)]
use super::topology::ensure_queue;
use super::topology::{QueueSpec, TRUSTED_FOR};
use crate::error::Result;

/// How many confirms one wait takes at most: otherwise a broker that sends without end would keep a wait from seeing its deadline.
const CONFIRMS_AT_ONCE: usize = 1024;
/// So many bytes may be published and not confirmed before a further publish could have to wait for the broker to read:
/// amiquip buffers 16 MiB.
const ROOM: usize = 12 * 1024 * 1024;
/// How long a handover may go on that has nothing to wait for any more.
const HANDOVER_END: Duration = Duration::from_secs(5);
/// The slowest line that is allowed for, in bytes a second, while confirms are waited for.
const SLOWEST_LINE: usize = 64 * 1024;

/// Whether the broker takes publishes.
pub enum Publishing {
    /// It does.
    Works,
    /// It does not, for this reason: an alarm.
    Blocked(String),
    /// It has not said in time.
    Unknown,
}

/// Why a wait ended.
pub enum Wake<I, S> {
    /// Some publishes were settled; see [`Publisher::take_settled`].
    Settled,
    /// Something arrived on the input channel; `None` when it closed.
    Input(Option<I>),
    /// Something arrived on the interrupt channel.
    Interrupted(S),
    /// The broker stopped reading from this connection, and why it says so.
    Blocked(String),
    /// It reads again.
    Unblocked,
    /// The connection or the channel is gone: everything outstanding is unknown.
    Lost(Fault),
    /// The deadline passed.
    TimedOut,
}

/// Opens a publisher: on a real connection, or in a test on one that the test plays.
pub type Opener<T> = Arc<dyn Fn() -> Result<Publisher<T>> + Send + Sync>;

/// A connection and a channel in confirm mode. `T` comes back with the settlement of what it was published for. Messages
/// go through the default exchange to the queue that their routing key names. Dropping it does not close the connection in good order: use
/// [`Publisher::close`].
pub struct Publisher<T> {
    on: Opened,
    /// Why, where it is blocked.
    blocked: Option<String>,
    /// When each queue beside the main one was last made sure of.
    prepared: HashMap<String, Instant>,
    unsettled: Confirms<T>,
}

impl<T> Publisher<T> {
    /// Connects, declares the queue, and turns on confirms. The answer to the declaration is not waited for: if the
    /// broker refuses it, it closes the channel before it takes any publish, [`Publisher::wait`] tells, and
    /// [`Publisher::recover`] looks closely. That saves two round trips of a `taskq send`.
    pub fn open_optimistic(options: &SessionOptions, queue: &QueueSpec) -> Result<Self> {
        line::open_optimistic(options, queue).map(Self::on)
    }

    /// As [`Publisher::open_optimistic`], but looks at the queue before anything is published.
    pub fn open_verified(options: &SessionOptions, queue: &QueueSpec) -> Result<Self> {
        line::open_verified(options, queue).map(Self::on)
    }

    /// After its channel was closed: makes sure that the queue is there and fit, and opens another channel on the
    /// same connection. What was outstanding is unknown.
    pub fn recover(self, queue: &QueueSpec) -> Result<Self> {
        self.on.line.recover(queue).map(Self::on).map_err(Fault::into_error)
    }

    pub(super) fn on(opened: Opened) -> Self {
        Self { on: opened, blocked: None, prepared: HashMap::new(), unsettled: Confirms::default() }
    }

    /// The broker, for messages.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.on.label
    }

    /// The same, with what it says it is.
    #[must_use]
    pub fn introduction(&self) -> &str {
        &self.on.introduction
    }

    /// See [`Session::frame_max`].
    #[must_use]
    pub fn frame_max(&self) -> usize {
        self.on.frame_max
    }

    /// Whether the broker has said that it does not read from this connection.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// The reason that the broker gave for that.
    #[must_use]
    pub fn why_blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// Whether the queue was seen to be there and fit. Otherwise a closed channel may mean that it is not, and
    /// [`Publisher::recover`] finds out.
    #[must_use]
    pub fn queue_verified(&self) -> bool {
        self.on.queue_verified
    }

    /// Makes sure of a queue beside the main one; whether one that was `known` to be there was gone. Does nothing if that
    /// was done a moment ago.
    pub fn prepare(&mut self, queue: &QueueSpec, known: bool) -> std::result::Result<bool, Fault> {
        if self.is_prepared(queue) {
            return Ok(false);
        }
        self.make_sure_of(queue, known)
    }

    /// Makes sure of a queue that was there before, however long ago that was; whether it was gone, with what was in it.
    pub fn look_at(&mut self, queue: &QueueSpec) -> std::result::Result<bool, Fault> {
        self.make_sure_of(queue, true)
    }

    fn make_sure_of(&mut self, queue: &QueueSpec, known: bool) -> std::result::Result<bool, Fault> {
        let gone = self.on.line.prepare(queue, known)?;
        self.prepared.insert(queue.name.clone(), Instant::now());
        Ok(gone)
    }

    /// Whether [`Publisher::prepare`] has nothing to do now.
    #[must_use]
    pub fn is_prepared(&self, queue: &QueueSpec) -> bool {
        self.prepared.get(&queue.name).is_some_and(|at| at.elapsed() < TRUSTED_FOR)
    }

    /// A message came back: no queue is certain any more.
    pub fn forget_prepared(&mut self) {
        self.prepared.clear();
    }

    /// Finds out whether the broker takes publishes, by a message that no queue takes.
    ///
    /// # Errors
    /// The connection or its channel is gone, or this user may not publish.
    pub fn probe(&mut self) -> std::result::Result<Publishing, Fault> {
        let nowhere = uuid::Uuid::now_v7().to_string();
        let deadline = Instant::now() + self.on.patience.probe;
        let properties = Properties::new_task("text/plain").with_id(&nowhere);
        self.send(&nowhere, &Body::default(), &properties, None)?;
        loop {
            match self.wait::<(), ()>(None, &never(), Some(deadline)) {
                Wake::Settled if self.unsettled.is_settled() => return Ok(Publishing::Works),
                Wake::Settled | Wake::Unblocked | Wake::Input(_) | Wake::Interrupted(()) => {}
                Wake::Blocked(reason) => return Ok(Publishing::Blocked(reason)),
                Wake::TimedOut => return Ok(Publishing::Unknown),
                Wake::Lost(fault) => return Err(fault),
            }
        }
    }

    /// Publishes one message. `Ok` means under way: the settlement comes later. Never waits for the broker to read: what
    /// would have to is handed over by a thread, and until it is, [`Publisher::is_busy`].
    ///
    /// # Errors
    /// The channel or the connection is gone, or it is busy. The message is among the unsettled all the same.
    pub fn publish(
        &mut self,
        queue: &str,
        body: &Body,
        properties: &Properties,
        token: T,
    ) -> std::result::Result<(), Fault> {
        self.send(queue, body, properties, Some(token))
    }

    fn send(
        &mut self,
        queue: &str,
        body: &Body,
        properties: &Properties,
        token: Option<T>,
    ) -> std::result::Result<(), Fault> {
        let bytes = body.len() + properties.size();
        let at_once = self.unsettled.bytes() + bytes <= ROOM;
        self.unsettled.enter(queue, properties.id(), bytes, token);
        self.on.line.publish(queue, body, properties, at_once)
    }

    /// When the oldest confirm is overdue: another connection is answered then. However long an alarm lasts, what was
    /// published before it is neither kept nor refused. A quorum queue that changes its leader can forget publishes without
    /// a word (seen with RabbitMQ 3.10).
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let oldest = self.unsettled.oldest().filter(|_| !self.is_blocked())?;
        let on_the_line = Duration::from_secs((self.unsettled.bytes() / SLOWEST_LINE) as u64);
        Some(oldest + self.on.patience.confirm + on_the_line)
    }

    /// How many publishes are not settled.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.unsettled.len()
    }

    /// What is not settled, in the order in which it was published.
    pub fn unsettled(&self) -> impl Iterator<Item = &T> {
        self.unsettled.unsettled()
    }

    /// The same, where the rest is given up or lost: nothing will be known of it. What came in time is taken first, by
    /// [`Publisher::take_settled`].
    pub fn take_unsettled(&mut self) -> Vec<T> {
        self.unsettled.take_unsettled()
    }

    /// A large body is being handed over, and nothing else can be published; [`Publisher::wait`] returns when it is.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.on.line.is_busy()
    }

    /// Waits until something happens, whichever comes first. `input` and `interrupt` belong to the caller.
    pub fn wait<I, S: Default>(
        &mut self,
        input: Option<&Receiver<I>>,
        interrupt: &Receiver<S>,
        deadline: Option<Instant>,
    ) -> Wake<I, S> {
        let no_input = never();
        let timer = deadline.map_or_else(never, crossbeam_channel::at);
        select! {
            recv(self.on.confirms) -> confirm => match confirm {
                Ok(confirm) => {
                    self.settle(&confirm);
                    Wake::Settled
                }
                Err(_) => Wake::Lost(self.why_lost()),
            },
            recv(self.on.returns) -> returned => match returned {
                Ok(returned) => {
                    self.unsettled.note_return(&returned);
                    Wake::Settled
                }
                Err(_) => self.end(),
            },
            recv(self.on.blocked) -> notification => match notification {
                // The same again.
                Ok(ConnectionBlockedNotification::Blocked(_)) if self.is_blocked() => Wake::Settled,
                Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                    let reason = crate::output::foreign(&reason);
                    self.blocked = Some(reason.clone());
                    Wake::Blocked(reason)
                }
                Ok(ConnectionBlockedNotification::Unblocked) => {
                    self.blocked = None;
                    self.unsettled.excuse();
                    Wake::Unblocked
                }
                Err(_) => self.end(),
            },
            recv(self.on.line.handed_over()) -> result => {
                let result = result.map_err(|_| Fault::lost("a publish ended without a word"));
                match result.and_then(|result| self.take_back(result)) {
                    Ok(()) => Wake::Settled,
                    Err(fault) => Wake::Lost(fault),
                }
            }
            recv(interrupt) -> sent => Wake::Interrupted(sent.unwrap_or_default()),
            recv(input.unwrap_or(&no_input)) -> item => Wake::Input(item.ok()),
            recv(timer) -> _ => Wake::TimedOut,
        }
    }

    /// The settlements that came since the last call.
    pub fn take_settled(&mut self) -> Vec<(T, Settlement)> {
        self.settle_queued();
        self.unsettled.take_settled()
    }

    /// Closes the connection. A blocked broker does not read that, so there it is cut instead (docs/amiquip.md, H3).
    pub fn close(mut self) {
        // The confirm was faster than the thread's end.
        if self.is_busy() && self.unsettled.is_settled() {
            let _ = self.end_handover();
        }
        if self.is_blocked() || self.is_busy() {
            self.on.line.cut("the broker does not read");
        } else {
            self.on.line.close();
        }
    }

    /// Ends the connection at once, for when what is outstanding was given up.
    pub fn cut(self) {
        self.on.line.cut("taskq gave up");
    }

    /// What came before the end still counts.
    fn end<I, S>(&mut self) -> Wake<I, S> {
        self.settle_queued();
        if self.unsettled.has_news() { Wake::Settled } else { Wake::Lost(self.why_lost()) }
    }

    fn settle_queued(&mut self) {
        for _ in 0..CONFIRMS_AT_ONCE {
            let Ok(confirm) = self.on.confirms.try_recv() else { break };
            self.settle(&confirm);
        }
    }

    fn settle(&mut self, confirm: &Confirm) {
        let (payload, settlement) = match confirm {
            Confirm::Ack(payload) => (payload, Settlement::Confirmed),
            Confirm::Nack(payload) => (payload, Settlement::Nacked),
        };
        // A message's return is queued before its confirm.
        for _ in 0..self.on.returns.len() {
            let Ok(returned) = self.on.returns.try_recv() else { break };
            self.unsettled.note_return(&returned);
        }
        self.unsettled.settle(payload, &settlement);
    }

    /// The confirms end without a word when the channel or the connection does.
    fn why_lost(&mut self) -> Fault {
        // What is being handed over meets the same end.
        let told = if self.is_busy() { self.end_handover() } else { Ok(()) };
        match told.and_then(|()| self.on.line.ask()) {
            Err(fault) => fault,
            Ok(()) => Fault::channel(FaultKind::Lost, "the confirms ended"),
        }
    }

    /// Waits for the end of a handover that is about to end.
    fn end_handover(&mut self) -> std::result::Result<(), Fault> {
        let result = self.on.line.handed_over().recv_timeout(HANDOVER_END);
        self.take_back(result.map_err(|_| Fault::lost("a publish does not end"))?)
    }

    /// A handover has ended with this.
    fn take_back(&mut self, result: std::result::Result<(), Fault>) -> std::result::Result<(), Fault> {
        self.on.line.take_back();
        result
    }
}

impl Publisher<()> {
    /// Finds out whether publishing is allowed at all. A broker that does not answer in time (it may be blocked by an
    /// alarm) counts as willing.
    pub fn check_permission(options: &SessionOptions, queue: &QueueSpec) -> Result<()> {
        let mut publisher = Self::open_verified(options, queue)?;
        match publisher.probe() {
            Ok(_) => {
                publisher.close();
                Ok(())
            }
            Err(fault) if fault.kind == FaultKind::Refused => {
                Err(fault.into_error().context("retries need the permission to publish"))
            }
            Err(_) => Ok(()),
        }
    }
}
