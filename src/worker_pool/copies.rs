//! Publishes the copies of tasks that are to run later, or never again: on a connection of its own, because a memory
//! alarm blocks publishers only, and on a thread of its own, so that all worker threads share it.
//!
//! A copy is kept when the broker has confirmed it. Only then is the original acknowledged: whatever dies between the
//! two leaves the task twice, never not at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use super::shared::Shared;
use crate::broker::{Fault, Kind, Properties, Publisher, QueueSpec, Settlement, Wake};
use crate::error::{Error, Exit};
use crate::handler::Never;

/// How long a copy may take. A worker thread holds the original meanwhile.
const COPY_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that is not used goes away after this long; most workers rarely need one.
const IDLE_CLOSE: Duration = Duration::from_mins(5);

/// A copy to be kept.
struct Request {
    to: QueueSpec,
    body: Vec<u8>,
    properties: Properties,
    reply: Sender<Result<(), Refusal>>,
    /// It came back once because its queue was gone; the queue was declared again since.
    came_back: bool,
}

/// Why a copy could not be kept.
#[derive(Debug, Clone)]
pub(super) enum Refusal {
    /// It may work later.
    Later(String),
    /// It will not: the broker does not allow it, or the queue is unfit.
    Never(Error),
    /// The worker was told to give up.
    Aborted,
}

/// Hands copies to the publishing thread.
#[derive(Clone)]
pub(super) struct Copies(Sender<Request>);

impl Copies {
    /// Starts the thread; it ends when the last `Copies` is gone. `alive` is held until then.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(super) fn start(shared: &Arc<Shared>, alive: Sender<Never>) -> std::io::Result<Self> {
        let (sender, requests) = crossbeam_channel::unbounded();
        let shared = Arc::clone(shared);
        thread::Builder::new().name("copies".into()).spawn(move || {
            let _alive = alive;
            Keeper { shared, requests, publisher: None, outstanding: HashMap::new() }.run();
        })?;
        Ok(Self(sender))
    }

    /// Publishes one copy and waits for its confirm.
    ///
    /// # Errors
    /// It is not kept for certain.
    pub(super) fn keep(
        &self,
        to: QueueSpec,
        body: Vec<u8>,
        properties: Properties,
        abort: &Receiver<Never>,
    ) -> Result<(), Refusal> {
        let (reply, replies) = crossbeam_channel::bounded(1);
        let gone = || Refusal::Later("the publishing thread is gone".to_owned());
        self.0.send(Request { to, body, properties, reply, came_back: false }).map_err(|_| gone())?;
        select! {
            recv(replies) -> kept => kept.unwrap_or_else(|_| Err(gone())),
            recv(abort) -> _ => Err(Refusal::Aborted),
        }
    }
}

struct Keeper {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    publisher: Option<Publisher>,
    outstanding: HashMap<u64, Outstanding>,
}

/// A copy that is published and not settled.
struct Outstanding {
    request: Request,
    due: Instant,
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
                let refusal = match error.exit {
                    Exit::Refused | Exit::Configuration => Refusal::Never(error),
                    _ => Refusal::Later(error.to_string()),
                };
                // Those that wait already would only wait for the same.
                answer(&request.reply, Err(refusal.clone()));
                self.requests.try_iter().for_each(|request| answer(&request.reply, Err(refusal.clone())));
            }
        }
        false
    }

    /// Publishes what comes and answers what is settled. Returns whether the worker has ended.
    fn serve(&mut self) -> bool {
        let now = Instant::now();
        let due = self.outstanding.values().map(|outstanding| outstanding.due).min();
        if due.is_some_and(|due| due <= now) {
            let blocked = self.publisher.as_ref().is_some_and(Publisher::is_blocked);
            let why =
                if blocked { "the broker has blocked publishing" } else { "the broker confirmed nothing" };
            self.drop_connection(&format!("{why} within {}", crate::duration::show(COPY_TIMEOUT)));
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
            }
            Wake::Blocked(reason) => {
                log::warn!(
                    "{} has blocked publishing ({reason}): failed tasks go back to the queue instead of waiting for their \
                     retry; finished ones are acknowledged as always",
                    publisher.label()
                );
            }
            Wake::Unblocked => log::info!("{} accepts publishes again", publisher.label()),
            Wake::Lost(fault) => self.lost(&fault),
            Wake::TimedOut if due.is_none() => {
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
                Err(Refusal::Later("the broker refused it (is the queue full?)".to_owned()))
            }
        };
        answer(&request.reply, kept);
    }

    fn publish(&mut self, request: Request) {
        let Some(publisher) = &mut self.publisher else {
            return answer(&request.reply, Err(Refusal::Later("the connection is gone".to_owned())));
        };
        if publisher.is_blocked() {
            let why = "the broker has blocked publishing (a memory or disk alarm)";
            return answer(&request.reply, Err(Refusal::Later(why.to_owned())));
        }
        let sent = publisher.prepare(&request.to).and_then(|()| {
            publisher.publish(&request.to.name, &request.body, &request.properties, COPY_TIMEOUT)
        });
        match sent {
            Ok(tag) => {
                let due = Instant::now() + COPY_TIMEOUT;
                self.outstanding.insert(tag, Outstanding { request, due });
            }
            Err(fault) => {
                answer(&request.reply, Err(refusal(&fault)));
                self.lost(&fault);
            }
        }
    }

    /// What is outstanding is unknown, so nothing of it counts as kept.
    fn lost(&mut self, fault: &Fault) {
        self.refuse_outstanding(&refusal(fault));
        self.drop_connection(&fault.to_string());
    }

    fn refuse_outstanding(&mut self, refusal: &Refusal) {
        for (_, outstanding) in self.outstanding.drain() {
            answer(&outstanding.request.reply, Err(refusal.clone()));
        }
    }

    fn drop_connection(&mut self, why: &str) {
        self.refuse_outstanding(&Refusal::Later(why.to_owned()));
        if let Some(publisher) = self.publisher.take() {
            log::debug!("closing the connection for copies: {why}");
            publisher.cut();
        }
    }
}

fn refusal(fault: &Fault) -> Refusal {
    match fault.kind {
        Kind::Refused | Kind::Configuration => Refusal::Never(fault.clone().into_error()),
        _ => Refusal::Later(fault.to_string()),
    }
}

/// The thread that asked may have given up.
fn answer(reply: &Sender<Result<(), Refusal>>, kept: Result<(), Refusal>) {
    let _ = reply.send(kept);
}
