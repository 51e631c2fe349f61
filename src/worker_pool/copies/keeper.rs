//! The publishing thread: has a connection while it needs one, publishes what it is asked for, and answers when that is
//! settled.
//!
//! While the broker blocks publishing, copies are held here unpublished: those that nobody waits for any more can
//! then be forgotten, instead of turning up when the alarm ends.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::super::shared::Shared;
use super::{Refusal, Request};
use crate::broker::{
    DelayWatch, Fault, Kind, Publisher, Scope, Settlement, Wake, confirm_patience, vanished,
};
use crate::error::Exit;

/// A connection that is not used goes away after this long; most workers rarely need one.
const IDLE_CLOSE: Duration = Duration::from_mins(5);
/// How long a limit on the size of messages is believed without asking again, which costs a connection: it may be
/// raised meanwhile.
const LIMIT_VALID: Duration = Duration::from_mins(10);

/// What the publishing thread knows.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    publisher: Option<Publisher>,
    /// The broker has refused a copy on this connection.
    refused: bool,
    limit: Option<Limit>,
    outstanding: HashMap<u64, Outstanding>,
    /// The queues that copies went to.
    watch: DelayWatch,
    /// What cannot be published now, in the order in which it came.
    held: VecDeque<Request>,
    /// What [`super::Copies::are_blocked`] tells.
    blocked: Arc<AtomicBool>,
}

/// The largest body that the broker takes, as it said when it refused a larger one.
struct Limit {
    bytes: u64,
    told: Instant,
}

impl Limit {
    fn told_by(fault: &Fault) -> Option<Self> {
        let Kind::TooLarge(Some(bytes)) = fault.kind else { return None };
        Some(Self { bytes, told: Instant::now() })
    }

    /// Of a copy that is over it.
    fn refusal(&self, body: &[u8]) -> Option<Refusal> {
        let over = self.told.elapsed() < LIMIT_VALID && body.len() as u64 > self.bytes;
        over.then_some(Refusal::TooLarge { length: body.len(), limit: self.bytes })
    }
}

/// A copy that is published and not settled.
struct Outstanding {
    request: Request,
    /// When it was published, or the broker began to read again.
    since: Instant,
}

impl Keeper {
    /// `blocked` is what it tells the others: whether the broker takes no copies now.
    pub(super) fn new(shared: Arc<Shared>, requests: Receiver<Request>, blocked: Arc<AtomicBool>) -> Self {
        let queue = &shared.options.queue;
        let mut watch = DelayWatch::default();
        if shared.options.prepare_retries {
            // They were made sure of at the start.
            let delays = shared.options.policy.backoff.iter().map(|pause| queue.delay(*pause));
            delays.chain([queue.dead()]).for_each(|queue| watch.note(&queue.name));
        }
        Self {
            watch,
            shared,
            requests,
            publisher: None,
            refused: false,
            limit: None,
            outstanding: HashMap::new(),
            held: VecDeque::new(),
            blocked,
        }
    }

    /// Serves until the last of those who could ask has gone.
    pub(super) fn run(mut self) {
        loop {
            let ended = if self.publisher.is_some() { self.serve() } else { self.idle() };
            if ended {
                break;
            }
        }
        if let Some(publisher) = self.publisher.take() {
            publisher.close();
        }
    }

    /// Without a connection: the first request opens one. Returns whether the worker has ended.
    fn idle(&mut self) -> bool {
        let looks_at = self.watch.next_look().map_or_else(crossbeam_channel::never, crossbeam_channel::at);
        let request = select! {
            recv(self.requests) -> request => match request {
                Ok(request) => request,
                Err(_) => return true,
            },
            recv(looks_at) -> now => {
                self.open_to_look(now.unwrap_or_else(|_| Instant::now()));
                return false;
            }
        };
        match Publisher::open_carefully(&self.shared.options.session, &self.shared.options.queue) {
            Ok(publisher) => {
                log::debug!("opened a connection to {} for copies", publisher.label());
                self.publisher = Some(publisher);
                self.publish(request);
            }
            Err(error) => {
                // The broker has let this user in before; being turned away now may pass.
                let refusal = match error.exit {
                    Exit::Refused | Exit::Configuration if !error.may_pass() => Refusal::Never(error),
                    _ => Refusal::Later(error.to_string()),
                };
                // Those that wait already would only wait for the same.
                request.asker.answer(Err(refusal.clone()));
                self.requests.try_iter().for_each(|request| request.asker.answer(Err(refusal.clone())));
            }
        }
        false
    }

    /// Tasks wait in queues that are to be looked at.
    fn open_to_look(&mut self, now: Instant) {
        match Publisher::open_carefully(&self.shared.options.session, &self.shared.options.queue) {
            Ok(publisher) => self.publisher = Some(publisher),
            Err(error) => {
                log::debug!("cannot look after the tasks that wait for a retry: {error}");
                self.watch.put_off(now);
            }
        }
    }

    /// Looks at the queues in which tasks may wait, where it is time to.
    fn look_after_waiting(&mut self, now: Instant) {
        for queue in self.watch.take_due(now) {
            let Some(publisher) = &mut self.publisher else { return };
            match publisher.look_at(&queue) {
                Ok(false) => {}
                Ok(true) => self.tell_vanished(&queue.name),
                Err(fault) if fault.kind == Kind::NotFound => self.tell_vanished(&queue.name),
                Err(fault) if fault.scope == Scope::Connection => return self.lost(&fault),
                Err(fault) => log::debug!("cannot look at {}: {fault}", queue.name),
            }
        }
    }

    fn tell_vanished(&mut self, name: &str) {
        log::warn!("{}", vanished(name));
        self.watch.forget(name);
    }

    /// Publishes what comes and answers what is settled. Returns whether the worker has ended.
    fn serve(&mut self) -> bool {
        let now = Instant::now();
        let blocked = self.is_blocked();
        self.held.retain(|request| !request.asker.is_gone());
        // However long an alarm lasts, what was published before it is neither kept nor refused.
        let due = self.due().filter(|_| !blocked);
        if due.is_some_and(|due| due <= now) {
            self.lost(&Fault::unconfirmed());
            return false;
        }
        // As for declarations: what is outstanding may have met an alarm that we have not heard of yet.
        let looks_at = self.watch.next_look().filter(|_| !blocked && self.outstanding.is_empty());
        if looks_at.is_some_and(|look| look <= now) {
            self.look_after_waiting(now);
            return false;
        }
        let Some(publisher) = &mut self.publisher else { return false };
        // The publisher's own input channel carries the requests, and nothing interrupts it.
        let uninterrupted = crossbeam_channel::never::<()>();
        match publisher.wait(
            Some(&self.requests),
            &uninterrupted,
            Some(due.or(looks_at).unwrap_or(now + IDLE_CLOSE)),
        ) {
            Wake::Input(Some(request)) => self.publish(request),
            Wake::Input(None) => return true,
            Wake::Settled => {
                for (tag, settlement) in publisher.take_settled() {
                    self.settle(tag, &settlement);
                }
                self.publish_held();
            }
            Wake::Blocked(reason) => {
                log::warn!(
                    "{} has blocked publishing ({reason}): failed tasks wait here, unacknowledged, until it takes \
                     their copies; finished ones are acknowledged as always",
                    publisher.label()
                );
                self.blocked.store(true, Ordering::SeqCst);
            }
            Wake::Unblocked => {
                log::info!("{} accepts publishes again", publisher.label());
                self.blocked.store(false, Ordering::SeqCst);
                self.outstanding.values_mut().for_each(|outstanding| outstanding.since = Instant::now());
                self.publish_held();
            }
            Wake::Lost(fault) => self.lost(&fault),
            Wake::TimedOut if due.is_none() && looks_at.is_none() && !blocked => {
                if let Some(publisher) = self.publisher.take() {
                    publisher.close();
                }
            }
            Wake::TimedOut | Wake::Interrupted(()) => {}
        }
        false
    }

    fn settle(&mut self, tag: u64, settlement: &Settlement) {
        let Some(Outstanding { mut request, .. }) = self.outstanding.remove(&tag) else { return };
        let kept = match settlement {
            Settlement::Confirmed => {
                self.watch.put(&request.to, Instant::now());
                Ok(())
            }
            Settlement::Unroutable if !request.came_back => {
                if let Some(publisher) = &mut self.publisher {
                    publisher.forget_prepared();
                }
                request.came_back = true;
                return self.publish(request);
            }
            Settlement::Unroutable => Err(Refusal::Later("the queue for it is missing".to_owned())),
            Settlement::Nacked => {
                self.refused = true;
                Err(Refusal::Later("the broker refused it (is the queue full?)".to_owned()))
            }
        };
        request.asker.answer(kept);
        // A quorum queue that was between two leaders when this connection first published to it refuses all that
        // comes on it until the old leader's node is back. What is in flight may be confirmed all the same.
        if self.refused && self.outstanding.is_empty() {
            self.drop_connection("the broker refuses copies on it");
        }
    }

    fn publish(&mut self, request: Request) {
        self.held.push_back(request);
        self.publish_held();
    }

    fn publish_held(&mut self) {
        while let Some(request) = self.held.front()
            && self.is_open_for(request)
            && let Some(request) = self.held.pop_front()
        {
            self.publish_now(request);
        }
    }

    /// A queue is declared only where nothing is outstanding: what is may have met an alarm that we have not heard of
    /// yet, and then the declaration would not be answered either.
    fn is_open_for(&self, request: &Request) -> bool {
        !self.is_blocked()
            && self.publisher.as_ref().is_none_or(|publisher| !publisher.is_busy())
            && (self.outstanding.is_empty()
                || self.publisher.as_ref().is_none_or(|publisher| publisher.is_prepared(&request.to)))
    }

    fn publish_now(&mut self, request: Request) {
        if request.asker.is_gone() {
            return;
        }
        let Some(publisher) = &mut self.publisher else {
            return request.asker.answer(Err(Refusal::Later("the connection is gone".to_owned())));
        };
        if let Some(refusal) = self.limit.as_ref().and_then(|limit| limit.refusal(&request.body)) {
            return request.asker.answer(Err(refusal));
        }
        let known = self.watch.knows(&request.to.name);
        let gone = publisher.prepare(&request.to, known);
        let sent = gone.and_then(|gone| {
            if gone {
                log::warn!("{}", vanished(&request.to.name));
                self.watch.forget(&request.to.name);
            }
            self.watch.note(&request.to.name);
            publisher.publish(&request.to.name, &request.body, &request.properties)
        });
        match sent {
            Ok(tag) => {
                self.outstanding.insert(tag, Outstanding { request, since: Instant::now() });
            }
            Err(fault) => {
                // It met the end of what was published before it.
                self.held.push_front(request);
                self.lost(&fault);
            }
        }
    }

    /// When the oldest confirm is overdue.
    fn due(&self) -> Option<Instant> {
        let bytes = self.outstanding.values().map(|outstanding| outstanding.request.body.len()).sum();
        let oldest = self.outstanding.values().map(|outstanding| outstanding.since).min()?;
        Some(oldest + confirm_patience(bytes))
    }

    fn is_blocked(&self) -> bool {
        self.publisher.as_ref().is_some_and(Publisher::is_blocked)
    }

    /// What is outstanding and not confirmed by now is unknown, so nothing of it counts as kept.
    fn lost(&mut self, fault: &Fault) {
        for tag in self.publisher.as_mut().map(Publisher::take_confirmed).unwrap_or_default() {
            if let Some(Outstanding { request, .. }) = self.outstanding.remove(&tag) {
                request.asker.answer(Ok(()));
            }
        }
        if let Some(limit) = Limit::told_by(fault) {
            self.limit = Some(limit);
        }
        self.refuse_all(&refusal(fault));
        self.drop_connection(&fault.to_string());
    }

    fn refuse_all(&mut self, refusal: &Refusal) {
        let outstanding = self.outstanding.drain().map(|(_, outstanding)| outstanding.request);
        for request in outstanding.chain(self.held.drain(..)) {
            // The broker names its limit, and not the message that it closed the channel over.
            let own = self.limit.as_ref().and_then(|limit| limit.refusal(&request.body));
            request.asker.answer(Err(own.unwrap_or_else(|| refusal.clone())));
        }
    }

    fn drop_connection(&mut self, why: &str) {
        self.blocked.store(false, Ordering::SeqCst);
        self.refused = false;
        self.refuse_all(&Refusal::Later(why.to_owned()));
        if let Some(publisher) = self.publisher.take() {
            log::debug!("closing the connection for copies: {why}");
            publisher.cut();
        }
    }
}

fn refusal(fault: &Fault) -> Refusal {
    match fault.kind {
        Kind::Refused | Kind::Configuration => Refusal::Never(fault.clone().into_error()),
        Kind::TooLarge(Some(_)) => Refusal::Later("the broker refused a larger one beside it".to_owned()),
        _ => Refusal::Later(fault.to_string()),
    }
}
