//! Publishes the copies of tasks that are to run later, or never again: on a connection of its own, because a memory
//! alarm blocks publishers only, and on a thread of its own, so that all worker threads share it.
//!
//! A copy is kept when the broker has confirmed it. Only then is the original acknowledged: whatever dies between the
//! two leaves the task twice, never not at all. A copy that is refused is tried again, with growing pauses, for as long
//! as somebody waits for it.

mod hold;
mod loss;
mod publishing_thread;
mod refusals;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod waiting;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::EndRequest;
use super::planned_copy::PlannedCopy;
use super::shared::Shared;
use crate::broker::{Body, CopyForm, Opener, Properties, Publisher};
use crate::cancel::Never;
use crate::error::Error;
use crate::lock::lock;
use crate::settlement::{CopyResult, WaitsFor};
use publishing_thread::{PublishingThread, Times};

/// A copy that was asked for, with what its making takes.
struct CopyJob {
    /// In the order in which they came.
    number: u64,
    copy: PlannedCopy,
    body: Body,
    /// Of the task.
    original: Properties,
    form: CopyForm,
    /// The broker closed the channel, and it may have been over this one: it is published alone.
    suspect: bool,
    /// It came back once because its queue was gone; the queue was declared again since.
    came_back: bool,
    requester: Requester,
}

/// Who waits for the answer.
struct Requester {
    reply: Sender<CopyResult>,
    /// Gets a message when something that may last stands in the way.
    met: Sender<()>,
    wake: Sender<()>,
    state: Arc<PendingState>,
}

/// What both sides of a [`Pending`] see.
#[derive(Default)]
struct PendingState {
    /// Nobody waits any more.
    withdrawn: AtomicBool,
    /// See [`Pending::waits_for`].
    waits_for: Mutex<WaitsFor>,
}

impl Requester {
    /// Whoever asked may have given up.
    fn answer(&self, answer: CopyResult) {
        let _ = self.reply.send(answer);
        self.wake();
    }

    fn set_waits_for(&self, what: WaitsFor) {
        if std::mem::replace(&mut *lock(&self.state.waits_for), what) != what {
            if what != WaitsFor::Confirm {
                let _ = self.met.try_send(());
            }
            self.wake();
        }
    }

    fn is_gone(&self) -> bool {
        self.state.withdrawn.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        // One message is enough.
        let _ = self.wake.try_send(());
    }
}

/// A copy that was asked for. Dropping it withdraws it, unless it is published already.
pub(super) struct Pending {
    replies: Receiver<CopyResult>,
    met: Receiver<()>,
    state: Arc<PendingState>,
}

impl Pending {
    /// Waits for the answer; `None` when there was none within `patience`, or when it may be long.
    pub(super) fn wait(&self, patience: Duration, abort: &Receiver<Never>) -> Option<CopyResult> {
        let gone = || CopyResult::NotAllowed(Error::internal("the publishing thread is gone"));
        select! {
            recv(self.replies) -> answer => Some(answer.unwrap_or_else(|_| gone())),
            // A copy that is kept counts, whatever came at the same time.
            recv(abort) -> _ => Some(self.replies.try_recv().unwrap_or(CopyResult::Aborted)),
            recv(self.met) -> _ => self.replies.try_recv().ok(),
            default(patience) => None,
        }
    }

    /// What it waits for; a change wakes whoever asked.
    pub(super) fn waits_for(&self) -> WaitsFor {
        *lock(&self.state.waits_for)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.state.withdrawn.store(true, Ordering::SeqCst);
    }
}

/// Hands copies to the publishing thread.
#[derive(Clone)]
pub(super) struct Republisher {
    jobs: Sender<CopyJob>,
    blocked: Arc<AtomicBool>,
}

impl Republisher {
    /// Starts the thread; it ends when the last `Republisher` is gone. `alive` is held until then.
    pub(super) fn start(
        shared: &Arc<Shared>,
        end_requests: Sender<EndRequest>,
        alive: Sender<Never>,
    ) -> std::io::Result<Self> {
        let (session, queue) = (shared.options.session.clone(), shared.options.queue.clone());
        let opener = Arc::new(move || Publisher::open_verified(&session, &queue));
        Self::start_with(opener, Times::default(), shared, end_requests, alive)
    }

    fn start_with(
        opener: Opener<CopyJob>,
        times: Times,
        shared: &Arc<Shared>,
        end_requests: Sender<EndRequest>,
        alive: Sender<Never>,
    ) -> std::io::Result<Self> {
        let (sender, jobs) = crossbeam_channel::unbounded();
        let blocked = Arc::new(AtomicBool::new(false));
        let thread = PublishingThread::new(
            Arc::clone(shared),
            end_requests,
            jobs,
            Arc::clone(&blocked),
            opener,
            times,
        );
        thread::Builder::new().name("copies".into()).spawn(move || {
            let _alive = alive;
            thread.run();
        })?;
        Ok(Self { jobs: sender, blocked })
    }

    /// Asks for one copy. `wake` gets a message when something is known of it.
    pub(super) fn request(
        &self,
        copy: PlannedCopy,
        body: Vec<u8>,
        original: &Properties,
        wake: &Sender<()>,
    ) -> Pending {
        let ((reply, replies), (met_in, met)) =
            (crossbeam_channel::bounded(1), crossbeam_channel::bounded(1));
        let state = Arc::new(PendingState::default());
        let requester = Requester { reply, met: met_in, wake: wake.clone(), state: Arc::clone(&state) };
        let job = CopyJob {
            number: 0,
            copy,
            body: Body::new(body),
            original: original.clone(),
            form: CopyForm::Full,
            suspect: false,
            came_back: false,
            requester,
        };
        // Without the thread the reply channel is closed, which is an answer.
        let _ = self.jobs.send(job);
        Pending { replies, met, state }
    }

    /// The broker is known not to take any copy now.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::SeqCst)
    }
}
