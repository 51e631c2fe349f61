//! Publishes the copies of tasks that are to run later, or never again: on a connection of its own, because a memory
//! alarm blocks publishers only, and on a thread of its own, so that all worker threads share it.
//!
//! A copy is kept when the broker has confirmed it. Only then is the original acknowledged: whatever dies between the
//! two leaves the task twice, never not at all.
//!
//! While the broker blocks publishing, copies are held here unpublished: those that nobody waits for any more can
//! then be forgotten, instead of turning up when the alarm ends.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use super::shared::Shared;
use crate::broker::{
    Body, Fault, Kind, Properties, Publisher, QueueSpec, Settlement, Wake, confirm_patience,
};
use crate::error::{Error, Exit};
use crate::handler::Never;

/// A connection that is not used goes away after this long; most workers rarely need one.
const IDLE_CLOSE: Duration = Duration::from_mins(5);
/// How long a limit on the size of messages is believed without asking again, which costs a connection: it may be
/// raised meanwhile.
const LIMIT_VALID: Duration = Duration::from_mins(10);

/// A copy to be kept.
struct Request {
    to: QueueSpec,
    body: Body,
    properties: Properties,
    asker: Asker,
    /// It came back once because its queue was gone; the queue was declared again since.
    came_back: bool,
}

/// Who waits for the answer.
struct Asker {
    reply: Sender<Result<(), Refusal>>,
    bell: Sender<()>,
    withdrawn: Arc<AtomicBool>,
}

impl Asker {
    /// Whoever asked may have given up.
    fn answer(&self, kept: Result<(), Refusal>) {
        let _ = self.reply.send(kept);
        // A full bell rings already.
        let _ = self.bell.try_send(());
    }

    fn is_gone(&self) -> bool {
        self.withdrawn.load(Ordering::SeqCst)
    }
}

/// Why a copy could not be kept.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// It may work later.
    Later(String),
    /// It will not: the broker does not allow it, or the queue is unfit.
    Never(Error),
    /// It will not while the broker takes no body of more than `limit` bytes.
    TooLarge { length: usize, limit: u64 },
    /// The worker was told to give up.
    Aborted,
}

/// A copy that was asked for. Dropping it withdraws it, unless it is published already.
pub(super) struct Pending {
    replies: Receiver<Result<(), Refusal>>,
    withdrawn: Arc<AtomicBool>,
}

impl Pending {
    /// Waits for the answer; `None` when there was none within `patience`.
    ///
    /// # Errors
    /// The copy is not kept for certain.
    pub(super) fn wait(&self, patience: Duration, abort: &Receiver<Never>) -> Option<Result<(), Refusal>> {
        select! {
            recv(self.replies) -> kept => Some(kept.unwrap_or_else(|_| Err(gone()))),
            recv(abort) -> _ => Some(Err(Refusal::Aborted)),
            default(patience) => None,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.withdrawn.store(true, Ordering::SeqCst);
    }
}

fn gone() -> Refusal {
    Refusal::Later("the publishing thread is gone".to_owned())
}

/// Hands copies to the publishing thread.
#[derive(Clone)]
pub(super) struct Copies {
    requests: Sender<Request>,
    blocked: Arc<AtomicBool>,
}

impl Copies {
    /// Starts the thread; it ends when the last `Copies` is gone. `alive` is held until then.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(super) fn start(shared: &Arc<Shared>, alive: Sender<Never>) -> std::io::Result<Self> {
        let (sender, requests) = crossbeam_channel::unbounded();
        let shared = Arc::clone(shared);
        let blocked = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            shared,
            requests,
            publisher: None,
            refused: false,
            limit: None,
            outstanding: HashMap::new(),
            held: VecDeque::new(),
            blocked: Arc::clone(&blocked),
        };
        thread::Builder::new().name("copies".into()).spawn(move || {
            let _alive = alive;
            keeper.run();
        })?;
        Ok(Self { requests: sender, blocked })
    }

    /// Asks for one copy. `bell` gets a message when there is an answer.
    pub(super) fn request(
        &self,
        to: QueueSpec,
        body: Vec<u8>,
        properties: Properties,
        bell: &Sender<()>,
    ) -> Pending {
        let (reply, replies) = crossbeam_channel::bounded(1);
        let withdrawn = Arc::new(AtomicBool::new(false));
        let asker = Asker { reply, bell: bell.clone(), withdrawn: Arc::clone(&withdrawn) };
        // Without the thread the reply channel is closed, which is an answer.
        let body = Body::new(body);
        let _ = self.requests.send(Request { to, body, properties, asker, came_back: false });
        Pending { replies, withdrawn }
    }

    /// The broker is known not to take any copy now.
    pub(super) fn are_blocked(&self) -> bool {
        self.blocked.load(Ordering::SeqCst)
    }
}

struct Keeper {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    publisher: Option<Publisher>,
    /// The broker has refused a copy on this connection.
    refused: bool,
    limit: Option<Limit>,
    outstanding: HashMap<u64, Outstanding>,
    /// What cannot be published now, in the order in which it came.
    held: VecDeque<Request>,
    /// What [`Copies::are_blocked`] tells.
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
    fn run(mut self) {
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
        let Ok(request) = self.requests.recv() else { return true };
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
        let Some(publisher) = &mut self.publisher else { return false };
        // The publisher's own input channel carries the requests, and nothing interrupts it.
        let uninterrupted = crossbeam_channel::never::<()>();
        match publisher.wait(Some(&self.requests), &uninterrupted, Some(due.unwrap_or(now + IDLE_CLOSE))) {
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
            Wake::TimedOut if due.is_none() && !blocked => {
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
            Settlement::Confirmed => Ok(()),
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
        let sent = publisher
            .prepare(&request.to)
            .and_then(|()| publisher.publish(&request.to.name, &request.body, &request.properties));
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
        let settled = self.publisher.as_mut().map(Publisher::take_settled).unwrap_or_default();
        for (tag, _) in settled.iter().filter(|(_, settlement)| *settlement == Settlement::Confirmed) {
            if let Some(Outstanding { request, .. }) = self.outstanding.remove(tag) {
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
