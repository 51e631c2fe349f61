//! The connection that tasks are sent on: opened, lost, and opened again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::Times;
use crate::backoff::{Backoff, Reminder};
use crate::broker::{self, Fault, Opener, Publisher, QueueSpec, on_a_thread};
use crate::error::{Error, Exit, Result};
use crate::events::Event;
use crate::report::tell;

const REFUSED: &str =
    "the broker refuses tasks: the queue is full, or its node is away, or the broker has an error of its own";

/// Whether the broker has refused (nacked) a task since it last confirmed one. The queue may be full. Or it is a quorum
/// queue that was between two leaders when this connection first published to it: RabbitMQ then refuses all that comes
/// on this connection, for as long as the old leader's node is away, while another connection would do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LastRefusal {
    None,
    /// On this connection, at that time: nothing more is published on it.
    Here(Instant),
    /// On one before this.
    Before,
}

/// The connection and what is remembered of earlier ones.
pub(super) struct SendingLink {
    pub(super) state: broker::Link<Publisher<u64>, Asked>,
    opener: Opener<u64>,
    /// The queue that a thread makes sure of on the connection, which is away meanwhile.
    preparing: Option<String>,
    /// Starts over when a task is confirmed: a broker that accepts the connection and then takes nothing is not back.
    backoff: Backoff,
    /// See [`Times::settling`].
    settling: Duration,
    /// The first connection is tried once only: a wrong address should not look like a hang.
    connected_once: bool,
    was_lost: bool,
    /// What the last attempt to connect again ended with, where the broker did not let us in.
    turned_away: Option<Error>,
    refusal: LastRefusal,
    /// Since the last confirm the broker has closed a channel or a connection over what it was sent.
    was_unacceptable: bool,
    reminder: Reminder,
    /// Of connections that came back.
    returns: Reminder,
}

/// What a thread brings that has asked the broker: a connection, and whether a queue that it made sure of on it was there
/// before, and was gone.
pub(super) type Asked = (Publisher<u64>, std::result::Result<bool, Fault>);

impl SendingLink {
    pub(super) fn open(opener: Opener<u64>, times: &Times) -> Self {
        Self {
            state: open(&opener),
            opener,
            preparing: None,
            backoff: times.pauses.clone(),
            settling: times.settling,
            connected_once: false,
            was_lost: false,
            turned_away: None,
            refusal: LastRefusal::None,
            was_unacceptable: false,
            reminder: Reminder::default(),
            returns: Reminder::default(),
        }
    }

    pub(super) fn open_again(&mut self) {
        self.state = open(&self.opener);
    }

    /// What is connected, where it also takes tasks.
    pub(super) fn publisher_in_favour(&mut self) -> Option<&mut Publisher<u64>> {
        if matches!(self.refusal, LastRefusal::Here(_)) {
            return None;
        }
        // What waits here can be forgotten or saved; what waits in the broker's buffers turns up after the alarm.
        self.state.up().filter(|publisher| !publisher.is_blocked())
    }

    /// When a connection that is out of favour is given up, whatever is in flight on it.
    pub(super) fn spent_at(&self) -> Option<Instant> {
        if let LastRefusal::Here(since) = self.refusal { Some(since + self.settling) } else { None }
    }

    /// The broker has refused a task.
    pub(super) fn refused(&mut self) {
        if !matches!(self.refusal, LastRefusal::Here(_)) {
            self.refusal = LastRefusal::Here(Instant::now());
        }
    }

    /// The broker has confirmed a task.
    pub(super) fn confirmed(&mut self) {
        if !matches!(self.refusal, LastRefusal::Here(_)) {
            self.refusal = LastRefusal::None;
            self.was_unacceptable = false;
            self.backoff.reset();
        }
    }

    /// The broker has closed the channel or the connection over what it was sent. It is tried once more on another
    /// connection; true where that was tried.
    pub(super) fn is_unacceptable(&mut self) -> bool {
        if !std::mem::replace(&mut self.was_unacceptable, true) {
            self.pause();
            return false;
        }
        true
    }

    /// Another connection, after a pause.
    pub(super) fn try_another(&mut self, patience: Duration) {
        if self.reminder.is_due(REFUSED) {
            tell(&Event::SenderRefused { why: REFUSED, patience });
        }
        self.pause();
    }

    /// No connection for a while. It is cut, since closing it may take its time: this is the thread that hears signals.
    fn pause(&mut self) {
        if let Some(publisher) = self.state.take(Instant::now() + self.backoff.pause()) {
            publisher.cut();
        }
    }

    /// Closes the connection to the broker, which may not answer, and waits for that no longer than until a signal comes.
    pub(super) fn close(&mut self, signals: &Receiver<i32>) {
        let Some(publisher) = self.take() else { return };
        let closed = on_a_thread(move || {
            publisher.close();
            Ok(())
        });
        select! {
            recv(closed) -> _ => {}
            recv(signals) -> _ => {}
        }
    }

    /// Leaves no connection behind.
    pub(super) fn take(&mut self) -> Option<Publisher<u64>> {
        self.state.take(Instant::now())
    }

    /// What was asked on a thread is answered, or cannot be. Returns what came of making sure of a queue, and its name,
    /// where that was it.
    ///
    /// # Errors
    /// Why another attempt to connect would be of no use.
    pub(super) fn opened(
        &mut self,
        opened: Result<Asked>,
    ) -> Result<Option<(String, std::result::Result<bool, Fault>)>> {
        let preparing = self.preparing.take();
        match opened {
            Ok((publisher, result)) => {
                if preparing.is_none() {
                    self.connected(&publisher);
                }
                self.state = broker::Link::Up(Box::new(publisher));
                Ok(preparing.map(|queue| (queue, result)))
            }
            Err(error) if error.is_no_room() || self.connected_once && error.may_pass() => {
                self.rest(&error.to_string());
                self.turned_away = (error.exit == Exit::Refused || error.is_no_room()).then_some(error);
                Ok(None)
            }
            Err(error) => Err(if self.connected_once { error } else { error.on_first_connect() }),
        }
    }

    fn connected(&mut self, publisher: &Publisher<u64>) {
        // Who sends one task wants to read one line; who was told of a loss wants to know that it is over.
        let text = format!("connected to {}", publisher.introduction());
        let told = std::mem::take(&mut self.was_lost) && self.returns.is_due(&text);
        if told {
            tell(&Event::ConnectedAgain { broker: publisher.introduction() });
        } else {
            log::debug!("{text}");
        }
        self.connected_once = true;
        self.turned_away = None;
        if self.refusal != LastRefusal::None {
            self.refusal = LastRefusal::Before;
        }
    }

    /// Makes sure of a queue beside the main one, on a thread of its own: it asks the broker, which may not answer.
    /// `known`: it was there before.
    pub(super) fn prepare(&mut self, queue: &QueueSpec, known: bool) {
        let Some(mut publisher) = self.take() else { return };
        self.preparing = Some(queue.name.clone());
        let queue = queue.clone();
        self.state = broker::Link::open(move || {
            let result = publisher.prepare(&queue, known);
            Ok((publisher, result))
        });
    }

    pub(super) fn queue_verified(&self) -> bool {
        self.state.get().is_some_and(Publisher::queue_verified)
    }

    /// Looks at the queue and goes on with another channel of the same connection.
    pub(super) fn recover(&mut self, queue: &QueueSpec) {
        if self.state.get().is_some_and(Publisher::is_busy) {
            // What is being handed over would arrive after all, and once more on the other channel.
            self.pause();
        } else if let Some(publisher) = self.take() {
            let queue = queue.clone();
            self.state = broker::Link::open(move || Ok((publisher.recover(&queue)?, Ok(false))));
        }
    }

    /// The connection is lost: another attempt comes after a pause.
    pub(super) fn rest(&mut self, why: &str) {
        self.was_lost = true;
        if self.reminder.is_due(why) {
            tell(&Event::SenderDown { why });
        }
        self.pause();
    }

    /// Why nothing was confirmed for as long as `waited` says.
    pub(super) fn why_stalled(&self, waited: &str) -> Error {
        if let Some(error) = &self.turned_away {
            let before = if error.is_no_room() {
                format!("there was no room for another connection within {waited} (--retry-for)")
            } else {
                format!("the broker went away and did not let us in again within {waited} (--retry-for)")
            };
            return error.clone().context(&before);
        }
        match &self.state {
            _ if self.refusal != LastRefusal::None => Error::try_again(format!(
                "{REFUSED}, and took none within {waited}; safe to try again, or wait longer with --retry-for"
            )),
            broker::Link::Up(publisher) if publisher.is_blocked() => Error::try_again(format!(
                "{} has blocked publishing (a memory or disk alarm) and did not go on within {waited}; safe to try \
                 again later, or wait longer with --retry-for",
                publisher.label()
            )),
            broker::Link::Up(publisher) => Error::try_again(format!(
                "{} confirmed nothing within {waited}; safe to try again, or wait longer with --retry-for",
                publisher.label()
            )),
            _ if self.preparing.is_some() => Error::try_again(format!(
                "the broker did not say within {waited} whether the queue for delayed tasks is there; safe to try again, \
                 or wait longer with --retry-for"
            )),
            _ if !self.connected_once => {
                Error::unavailable(format!("the broker did not answer within {waited} (--retry-for)"))
            }
            _ => Error::unavailable(format!(
                "the broker went away and did not come back within {waited} (--retry-for)"
            )),
        }
    }
}

fn open(opener: &Opener<u64>) -> broker::Link<Publisher<u64>, Asked> {
    let open = Arc::clone(opener);
    broker::Link::open(move || Ok((open()?, Ok(false))))
}
