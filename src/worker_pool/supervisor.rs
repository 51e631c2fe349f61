//! Owns the connection: opens it, opens it again when it is lost, and gives each worker thread a channel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::EndRequest;
use super::ack_timeout;
use super::probe::{Finding, Left, Probe};
use super::shared::Shared;
use crate::backoff::{Backoff, Reminder};
use crate::broker::{
    AckTimeout, ConnectionPurpose, DeliveryChannel, Fault, FaultKind, Link, Publisher, QueueSpec, Scope,
    Session, count_messages, ensure_queue, find_again, is_seen, kind_of,
};
use crate::duration;
use crate::error::{Error, Exit, Result};
use crate::events::Event;
use crate::report::tell;

/// The pauses between attempts to reach a broker that went away. The longest bounds how late a worker is back.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A broker that comes back may refuse logins until its users are loaded; if it goes on for this long it means it.
const REFUSED_PATIENCE: Duration = Duration::from_mins(1);

/// A worker thread asks for a channel.
pub(super) struct Request {
    /// Where to send it.
    pub(super) reply: Sender<Grant>,
    /// What became of the last one: the connection it belonged to, and how it ended.
    pub(super) lost: Option<(u64, Fault)>,
}

/// A channel, and the number of the connection it belongs to.
pub(super) struct Grant {
    pub(super) channel: Box<dyn DeliveryChannel>,
    pub(super) generation: u64,
    pub(super) ack_timeout: AckTimeout,
}

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    end_requests: Sender<EndRequest>,
    waiting: Vec<Request>,
    link: Link<Session>,
    backoff: Backoff,
    began: Instant,
    /// Counts connections, so that the loss of one is noticed once however many threads report it.
    generation: u64,
    refusals: RefusedSince,
    reminder: Reminder,
    probe: Probe,
    /// When the queue was last seen to be missing.
    missing_at: Option<Instant>,
}

/// How long a broker that had let the worker in has been refusing it.
#[derive(Default)]
struct RefusedSince {
    since: Option<Instant>,
}

impl RefusedSince {
    /// Whether it is worth trying again after an attempt that ended with `error` at the time `now`. How long the broker
    /// was away before it refused anything does not count: it may be dying again in the middle of a login.
    fn may_pass(&mut self, error: &Error, now: Instant) -> bool {
        if error.exit != Exit::Refused && !error.is_no_room() {
            self.since = None;
            return error.exit == Exit::Unavailable;
        }
        now.duration_since(*self.since.get_or_insert(now)) < REFUSED_PATIENCE
    }

    /// The worker was let in.
    fn end(&mut self) {
        self.since = None;
    }
}

impl Supervisor {
    pub(super) fn new(
        shared: Arc<Shared>,
        requests: Receiver<Request>,
        end_requests: Sender<EndRequest>,
    ) -> Self {
        let link = open(&shared);
        let probe = Probe::new(&shared);
        Self {
            probe,
            shared,
            requests,
            end_requests,
            waiting: Vec::new(),
            link,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            began: Instant::now(),
            generation: 0,
            refusals: RefusedSince::default(),
            reminder: Reminder::default(),
            missing_at: None,
        }
    }

    /// Serves until the last worker thread has gone. Returns what the pool needs to know then, if it finishes because there
    /// was nothing left to do.
    pub(super) fn run(mut self) -> Left {
        loop {
            self.serve_waiting();
            let probe = self.probe_timer();
            let (opened, rested) = self.link.waits_for();
            select! {
                recv(self.requests) -> request => match request {
                    Ok(request) => self.take(request),
                    Err(_) => break,
                },
                recv(probe) -> _ => self.probe(),
                recv(opened) -> opened => {
                    let gone = || Err(Error::internal("the connecting thread is gone"));
                    self.opened(opened.unwrap_or_else(|_| gone()));
                }
                recv(rested) -> _ => self.link = open(&self.shared),
            }
        }
        self.close()
    }

    fn take(&mut self, request: Request) {
        if let Some((generation, fault)) = &request.lost {
            let current = *generation == self.generation && matches!(self.link, Link::Up(_));
            match (fault.scope, fault.kind) {
                (_, FaultKind::Refused | FaultKind::Configuration) => self.fatal(fault.clone().into_error()),
                (_, FaultKind::MaybeStream) if current => self.ask_for_the_kind(fault),
                (Scope::Connection, _) if current => self.connection_lost(fault),
                (Scope::Channel, FaultKind::ConsumerCancelled(since)) if current => {
                    self.cancelled(fault, since);
                }
                // It could not be looked at before.
                (Scope::Channel, FaultKind::NotFound) if self.is_first_use() => {
                    self.fatal(Fault::missing(&self.shared.options.queue.name).into_error());
                }
                (Scope::Channel, FaultKind::NotFound) if current => self.queue_gone(fault),
                // The thread has explained it, and with more words; or it is of no interest.
                (Scope::Channel, FaultKind::AckTimeout | FaultKind::NoTimeout) => {}
                (Scope::Channel, _) if current => {
                    tell(&Event::ChannelLost { cause: fault });
                }
                // One of several threads that report the same loss.
                _ => {}
            }
        }
        self.waiting.push(request);
    }

    /// Opens a channel for each thread that waits for one.
    fn serve_waiting(&mut self) {
        while let Link::Up(session) = &mut self.link {
            let Some(request) = self.waiting.pop() else { break };
            match session.open_channel() {
                Ok(channel) => {
                    // Only now: a connection that is lost as soon as it is used must not be tried without pauses.
                    self.backoff.reset();
                    let (channel, ack_timeout) = (Box::new(channel), session.ack_timeout());
                    // A thread that drains meanwhile no longer listens.
                    let _ = request.reply.send(Grant { channel, generation: self.generation, ack_timeout });
                }
                Err(fault) if fault.kind == FaultKind::Configuration => {
                    self.fatal(fault.into_error());
                    break;
                }
                Err(fault) => {
                    self.waiting.push(request);
                    self.connection_lost(&fault);
                }
            }
        }
    }

    fn connection_lost(&mut self, seen: &Fault) {
        self.shared.set_connected(false);
        if let Some(session) = self.link.take(Instant::now()) {
            let label = session.label().to_owned();
            // The connection knows the cause; its channels only know that it is gone.
            let cause = session.close().unwrap_or_else(|| seen.clone());
            if cause.kind == FaultKind::Configuration {
                return self.fatal(cause.into_error());
            }
            tell(&Event::ConnectionLost { broker: &label, cause: &cause });
        }
        self.rest();
    }

    fn rest(&mut self) {
        let pause = self.backoff.pause();
        // The last attempt is at the end of the time, and not long after it.
        let left = self.left_to_connect().filter(|left| !left.is_zero());
        let pause = left.map_or(pause, |left| pause.min(left));
        log::debug!("next attempt to connect in {}", duration::show(pause));
        self.link = Link::resting(Instant::now() + pause);
    }

    /// A queue that taskq is not to declare has not been consumed from yet.
    fn is_first_use(&self) -> bool {
        !self.shared.options.queue.declare && !self.shared.has_greeted()
    }

    /// The broker cancelled a consumer, which had a task since then.
    fn cancelled(&mut self, seen: &Fault, since: Option<Instant>) {
        let Some(session) = self.link.up() else { return };
        let broker = session.ack_timeout();
        if !ack_timeout::is_over(broker, since, self.missing_at) {
            return self.queue_gone(seen);
        }
        match count_messages(session, &self.shared.options.queue.name) {
            Err(fault) if fault.scope == Scope::Connection => self.connection_lost(&fault),
            Err(fault) if fault.kind == FaultKind::NotFound => self.queue_gone(seen),
            // Or it cannot be looked at.
            _ => {
                let held = since.map(|since| since.elapsed());
                tell(&Event::AcknowledgementLate { broker, held, words: None });
            }
        }
    }

    /// The queue was deleted under its consumers: declare it again, or say that it is missing and try later.
    fn queue_gone(&mut self, seen: &Fault) {
        tell(&Event::QueueGone { cause: seen });
        self.missing_at = Some(Instant::now());
        let Some(session) = self.link.up() else { return };
        match ensure_queue(session, &self.shared.options.queue) {
            Ok(found) => self.shared.set_queue_kind(found.kind),
            Err(fault) if fault.kind == FaultKind::NotFound => {}
            Err(fault) if matches!(fault.kind, FaultKind::Refused | FaultKind::Configuration) => {
                self.fatal(fault.into_error());
            }
            Err(fault) => self.connection_lost(&fault),
        }
    }

    /// Nobody has told what the queue is, and a task speaks of a stream.
    fn ask_for_the_kind(&mut self, suspicion: &Fault) {
        let Some(session) = self.link.up() else { return };
        match kind_of(session, &self.shared.options.queue.name) {
            Ok(None) => self.fatal(suspicion.clone().into_error()),
            Ok(kind) => self.shared.set_queue_kind(kind),
            Err(fault) if fault.kind == FaultKind::Configuration => self.fatal(fault.into_error()),
            Err(fault) if fault.scope == Scope::Connection => self.connection_lost(&fault),
            Err(fault) => tell(&Event::QueueGone { cause: &fault }),
        }
    }

    fn opened(&mut self, opened: Result<Session>) {
        let first = !self.shared.was_connected();
        match opened {
            Ok(session) => {
                self.generation += 1;
                self.refusals.end();
                self.shared.tell_connected(session.introduction());
                self.shared.set_broker_counts_nacks(session.counts_nacks());
                let broker = session.ack_timeout();
                if first && ack_timeout::is_exceeded(self.shared.options.timeout, broker) {
                    tell(&Event::TimeoutTooLong { broker });
                }
                self.link = Link::Up(Box::new(session));
                self.shared.set_connected(true);
            }
            Err(error) if !self.is_worth_another_try(&error) => {
                self.rest();
                self.fatal(if first { error.on_first_connect() } else { error });
            }
            Err(error) => {
                let text = error.to_string();
                if self.reminder.is_due(&text) {
                    tell(&Event::CannotConnect { why: &text });
                }
                self.rest();
            }
        }
    }

    /// Whether to connect again after `error`. A wrong URL looks as a broker that is not there yet, so that without a wish
    /// to wait the first attempt is the only one.
    fn is_worth_another_try(&mut self, error: &Error) -> bool {
        let is_wanted = error.is_no_room() || self.left_to_connect().is_none_or(|left| !left.is_zero());
        is_wanted && self.refusals.may_pass(error, Instant::now())
    }

    /// How long the first connection is still tried; `None` after it.
    fn left_to_connect(&self) -> Option<Duration> {
        let patience = self.shared.options.connect_retry.unwrap_or_default();
        (!self.shared.was_connected()).then(|| patience.saturating_sub(self.began.elapsed()))
    }

    fn fatal(&self, error: Error) {
        // The pool is gone only when the process is about to be.
        let _ = self.end_requests.send(EndRequest::Fatal(error));
    }

    fn probe_timer(&self) -> Receiver<Instant> {
        let may_ask = self.link.get().is_some() && self.waiting.is_empty() && !self.shared.finishing();
        self.probe.pause().filter(|_| may_ask).map_or_else(never, crossbeam_channel::after)
    }

    /// Asks the pool to finish when there is nothing left to do.
    fn probe(&mut self) {
        let Some(session) = self.link.up() else { return };
        match self.probe.look(session) {
            Finding::NotYet => {}
            Finding::Empty => {
                let _ = self.end_requests.send(EndRequest::Empty);
            }
            Finding::Fatal(error) => self.fatal(error),
            Finding::Lost(fault) => self.connection_lost(&fault),
        }
    }

    fn close(mut self) -> Left {
        let Link::Up(mut session) = self.link else { return Left::default() };
        let left = if self.shared.finishing() { self.probe.left(&mut session) } else { Left::default() };
        if let Some(fault) = session.close() {
            log::debug!("the connection did not end in good order: {fault}");
        }
        left
    }
}

/// Connects and makes sure of the queue.
fn open(shared: &Arc<Shared>) -> Link<Session> {
    let shared = Arc::clone(shared);
    Link::open(move || prepare(&shared))
}

/// A connection on which all that the worker needs was seen.
fn prepare(shared: &Shared) -> Result<Session> {
    let options = &shared.options;
    let mut session = Session::open(&options.session, ConnectionPurpose::Consume)?;
    let kind = ensure_queue(&mut session, &options.queue).map_err(Fault::into_error)?.kind;
    shared.set_queue_kind(kind);
    if options.is_sleeper_by_default && !shared.was_connected() {
        refuse_where_dead(&mut session, &options.queue)?;
    }
    if options.prepare_retries {
        let delays = options.policy.pauses().iter().map(|pause| options.queue.delay(*pause));
        for queue in delays.chain([options.queue.dead()]) {
            if !shared.was_connected() {
                ensure_queue(&mut session, &queue).map_err(Fault::into_error)?;
            } else if find_again(&mut session, &queue).map_err(Fault::into_error)? {
                tell(&Event::QueueVanished { queue: &queue.name });
            }
        }
        Publisher::check_permission(&options.session, &options.queue)?;
    }
    Ok(session)
}

/// A forgotten COMMAND would have the tasks acknowledged without anything being done.
fn refuse_where_dead(session: &mut Session, queue: &QueueSpec) -> Result<()> {
    let dead = queue.dead().name;
    if !is_seen(session, &dead).map_err(Fault::into_error)? {
        return Ok(());
    }
    Err(Error::configuration(format!(
        "the queue {} has a {dead}, so its tasks are for a command, and this worker has none, so that it would only \
         sleep and acknowledge them: give the command (taskq work -- COMMAND), or --dots if that is what you want",
        queue.name
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_that_go_on_end_a_worker_however_long_the_broker_was_away_before() {
        let (away, refused) = (Error::unavailable("away"), Error::turned_away("no"));
        let start = Instant::now();
        let minutes = |count: u64| start + Duration::from_mins(count);
        let mut refusals = RefusedSince::default();
        assert!(refusals.may_pass(&away, start) && refusals.may_pass(&refused, minutes(10)));
        assert!(!refusals.may_pass(&refused, minutes(12)));
        // Something else in between, or a success: counted from the start again.
        assert!(refusals.may_pass(&away, minutes(13)) && refusals.may_pass(&refused, minutes(14)));
        refusals.end();
        assert!(refusals.may_pass(&refused, minutes(16)) && !refusals.may_pass(&refused, minutes(17)));
        assert!(!refusals.may_pass(&Error::configuration("wrong"), start));
        let full = Error::no_room("full");
        assert!(refusals.may_pass(&full, minutes(20)) && !refusals.may_pass(&full, minutes(21)));
    }
}
