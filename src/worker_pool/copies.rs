//! Publishes the copies of tasks that are to run later, or never again: on a connection of its own, because a memory
//! alarm blocks publishers only, and on a thread of its own, so that all worker threads share it.
//!
//! A copy is kept when the broker has confirmed it. Only then is the original acknowledged: whatever dies between the
//! two leaves the task twice, never not at all.

mod keeper;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::shared::Shared;
use crate::broker::{Body, Properties, QueueSpec};
use crate::error::Error;
use crate::handler::Never;
use keeper::Keeper;

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
        let keeper = Keeper::new(shared, requests, Arc::clone(&blocked));
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
