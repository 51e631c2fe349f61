//! The connection that tasks are sent on: opened, lost, and opened again.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::Job;
use crate::backoff::{Backoff, Reminder};
use crate::broker::{Fault, Publisher, QueueSpec, on_a_thread};
use crate::duration;
use crate::error::{Error, Exit, Result};

/// The pauses between attempts to reach a broker that went away; it is usually back within seconds.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long what was published beside a refused task may still be confirmed. Some of it never is, nor refused.
const SETTLE_PATIENCE: Duration = Duration::from_secs(3);
const REFUSED: &str =
    "the broker refuses tasks: the queue is full, or its node is away, or the broker has an error of its own";

/// Whether the broker has refused (nacked) a task since it last confirmed one. The queue may be full. Or it is a quorum
/// queue that was between two leaders when this connection first published to it: RabbitMQ then refuses all that comes
/// on this connection, for as long as the old leader's node is away, while another connection would do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refusal {
    None,
    /// On this connection, at that time: nothing more is published on it.
    Here(Instant),
    /// On one before this.
    Before,
}

/// The connection and what is remembered of earlier ones.
pub(super) struct Link {
    pub(super) state: State,
    /// Starts over when a task is confirmed: a broker that lets us in and then takes nothing is not back.
    backoff: Backoff,
    /// The first connection is tried once only: a wrong address should not look like a hang.
    connected_once: bool,
    was_lost: bool,
    /// What the last attempt to connect again ended with, where the broker did not let us in.
    turned_away: Option<Error>,
    refusal: Refusal,
    reminder: Reminder,
    /// Of connections that came back.
    returns: Reminder,
}

/// A connection, and how it went to make sure of a queue on it.
pub(super) struct Prepared {
    publisher: Box<Publisher<u64>>,
    /// The queue's name.
    pub(super) queue: String,
    /// Whether it was there before, and was gone.
    result: std::result::Result<bool, Fault>,
}

/// How the connection is.
pub(super) enum State {
    Up(Box<Publisher<u64>>),
    /// Being opened on a thread of its own, so that signals are heard meanwhile.
    Opening(Receiver<Result<Publisher<u64>>>),
    /// On such a thread because the broker is asked for the queue for delayed tasks. It comes back as it is then.
    Preparing(Receiver<Result<Prepared>>),
    Resting {
        until: Instant,
    },
}

impl Link {
    pub(super) fn open(job: &Job) -> Self {
        Self {
            state: open(job),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            connected_once: false,
            was_lost: false,
            turned_away: None,
            refusal: Refusal::None,
            reminder: Reminder::default(),
            returns: Reminder::default(),
        }
    }

    pub(super) fn open_again(&mut self, job: &Job) {
        self.state = open(job);
    }

    /// None while there is no connection.
    pub(super) fn publisher(&mut self) -> Option<&mut Publisher<u64>> {
        if let State::Up(publisher) = &mut self.state { Some(publisher) } else { None }
    }

    /// The same where it also takes tasks.
    pub(super) fn publisher_in_favour(&mut self) -> Option<&mut Publisher<u64>> {
        if matches!(self.refusal, Refusal::Here(_)) {
            return None;
        }
        // What waits here can be forgotten or saved; what waits in the broker's buffers turns up after the alarm.
        self.publisher().filter(|publisher| !publisher.is_blocked())
    }

    /// When a connection that is out of favour is given up, whatever is in flight on it.
    pub(super) fn spent_at(&self) -> Option<Instant> {
        if let Refusal::Here(since) = self.refusal { Some(since + SETTLE_PATIENCE) } else { None }
    }

    /// The broker has refused a task.
    pub(super) fn refused(&mut self) {
        if !matches!(self.refusal, Refusal::Here(_)) {
            self.refusal = Refusal::Here(Instant::now());
        }
    }

    /// The broker has confirmed a task.
    pub(super) fn confirmed(&mut self) {
        if !matches!(self.refusal, Refusal::Here(_)) {
            self.refusal = Refusal::None;
            self.backoff.reset();
        }
    }

    /// Another connection, after a pause.
    pub(super) fn try_another(&mut self, patience: Duration) {
        if self.reminder.is_due(REFUSED) {
            log::warn!("{REFUSED}; trying again for up to {}", duration::show(patience));
        }
        let until = Instant::now() + self.backoff.pause();
        self.rest_until(until);
    }

    /// Without a goodbye, which may take its time: this is the thread that hears signals.
    fn rest_until(&mut self, until: Instant) {
        if let Some(publisher) = self.take() {
            publisher.cut();
        }
        self.state = State::Resting { until };
    }

    /// Says goodbye to the broker, which may not answer, and waits for that no longer than until a signal comes.
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
        let resting = State::Resting { until: Instant::now() };
        if let State::Up(publisher) = std::mem::replace(&mut self.state, resting) {
            Some(*publisher)
        } else {
            None
        }
    }

    /// An attempt to connect has ended.
    ///
    /// # Errors
    /// Why another one would be of no use.
    pub(super) fn opened(&mut self, opened: Result<Publisher<u64>>) -> Result<()> {
        match opened {
            Ok(publisher) => {
                // Who sends one task wants to read one line; who was told of a loss wants to know that it is over.
                let text = format!("connected to {}", publisher.introduction());
                let told = std::mem::take(&mut self.was_lost) && self.returns.is_due(&text);
                log::log!(if told { log::Level::Info } else { log::Level::Debug }, "{text}");
                self.connected_once = true;
                self.turned_away = None;
                if self.refusal != Refusal::None {
                    self.refusal = Refusal::Before;
                }
                self.state = State::Up(Box::new(publisher));
                Ok(())
            }
            Err(error) if self.connected_once && error.may_pass() => {
                self.rest(&error.to_string());
                self.turned_away = (error.exit == Exit::Refused).then_some(error);
                Ok(())
            }
            Err(error) => Err(if self.connected_once { error } else { error.on_first_connect() }),
        }
    }

    /// Makes sure of a queue beside the main one, on a thread of its own: it asks the broker, which may not answer.
    /// `known`: it was there before.
    pub(super) fn prepare(&mut self, queue: &QueueSpec, known: bool) {
        let Some(mut publisher) = self.take().map(Box::new) else { return };
        let queue = queue.clone();
        self.state = State::Preparing(on_a_thread(move || {
            let result = publisher.prepare(&queue, known);
            Ok(Prepared { publisher, queue: queue.name, result })
        }));
    }

    /// That thread has ended; whether a queue that was known to be there was gone.
    ///
    /// # Errors
    /// The queue is unfit, or the connection is lost.
    pub(super) fn prepared(&mut self, prepared: Prepared) -> std::result::Result<bool, Fault> {
        self.state = State::Up(prepared.publisher);
        prepared.result
    }

    pub(super) fn queue_verified(&self) -> bool {
        matches!(&self.state, State::Up(publisher) if publisher.queue_verified())
    }

    /// Looks at the queue and goes on with another channel of the same connection.
    pub(super) fn recover(&mut self, job: &Job) {
        if let Some(publisher) = self.take() {
            if publisher.is_busy() {
                // What is being handed over would arrive after all, and once more on the other channel.
                publisher.cut();
                let until = Instant::now() + self.backoff.pause();
                self.rest_until(until);
                return;
            }
            let queue = job.queue.clone();
            self.state = State::Opening(on_a_thread(move || publisher.recover(&queue)));
        }
    }

    /// The connection is lost: another attempt comes after a pause.
    pub(super) fn rest(&mut self, why: &str) {
        let until = Instant::now() + self.backoff.pause();
        self.was_lost = true;
        if self.reminder.is_due(why) {
            log::warn!("the connection for sending is down: {why}; trying again");
        }
        self.rest_until(until);
    }

    /// Why nothing was confirmed for as long as `waited` says.
    pub(super) fn why_stalled(&self, waited: &str) -> Error {
        if let Some(error) = &self.turned_away {
            let before =
                format!("the broker went away and did not let us in again within {waited} (--retry-for)");
            return error.clone().context(&before);
        }
        match &self.state {
            _ if self.refusal != Refusal::None => Error::try_again(format!(
                "{REFUSED}, and took none within {waited}; safe to try again, or wait longer with --retry-for"
            )),
            State::Up(publisher) if publisher.is_blocked() => Error::try_again(format!(
                "{} has blocked publishing (a memory or disk alarm) and did not go on within {waited}; safe to try \
                 again later, or wait longer with --retry-for",
                publisher.label()
            )),
            State::Up(publisher) => Error::try_again(format!(
                "{} confirmed nothing within {waited}; safe to try again, or wait longer with --retry-for",
                publisher.label()
            )),
            State::Preparing(_) => Error::try_again(format!(
                "the broker did not say within {waited} whether the queue for delayed tasks is there; safe to try again, \
                 or wait longer with --retry-for"
            )),
            State::Opening(_) | State::Resting { .. } if !self.connected_once => {
                Error::unavailable(format!("the broker did not answer within {waited} (--retry-for)"))
            }
            State::Opening(_) | State::Resting { .. } => Error::unavailable(format!(
                "the broker went away and did not come back within {waited} (--retry-for)"
            )),
        }
    }
}

fn open(job: &Job) -> State {
    let (session, queue) = (job.session.clone(), job.queue.clone());
    // A single task saves two round trips by not waiting for the queue's declaration. Many tasks do not notice them,
    // and must not be under way when a declaration is refused.
    let single = job.single;
    State::Opening(on_a_thread(move || {
        if single {
            Publisher::open_optimistic(&session, &queue)
        } else {
            Publisher::open_verified(&session, &queue)
        }
    }))
}
