//! The ids of sent tasks on their way to stdout. Nothing of them is dropped: whoever reads them slowly is sent for
//! slowly, and this thread waits for neither.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, select};

use crate::cancel::Never;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::output::{Parcel, Stream, Unwritten};
use crate::sender::interrupted;

/// While so many bytes of ids wait for their reader, nothing more is read that could be sent.
const WAITING_BYTES: usize = 64 * 1024;

/// The ids; clones are of the same ones.
#[derive(Clone)]
pub(super) struct Ids(Arc<IdsInner>);

struct IdsInner {
    stdout: Stream,
    state: Mutex<IdsState>,
    taken: Condvar,
}

#[derive(Default)]
struct IdsState {
    /// Whole lines that are not being written yet.
    waiting: Vec<u8>,
    /// Their turn will come.
    queued: bool,
    /// Why no more are written.
    failed: Option<io::Error>,
    /// Nothing is sent any more, so nobody has to wait.
    over: bool,
}

impl Ids {
    pub(super) fn to(stdout: Stream) -> Self {
        Self(Arc::new(IdsInner { stdout, state: Mutex::default(), taken: Condvar::new() }))
    }

    pub(super) fn print(&self, id: &str) {
        let mut state = lock(&self.0.state);
        if state.failed.is_some() {
            return;
        }
        state.waiting.extend_from_slice(id.as_bytes());
        state.waiting.push(b'\n');
        if !std::mem::replace(&mut state.queued, true) {
            drop(state);
            self.0.stdout.pass(Box::new(self.clone()));
        }
    }

    /// Waits until there is room for the ids of more tasks.
    pub(super) fn wait_for_room(&self) {
        let mut state = lock(&self.0.state);
        while state.waiting.len() >= WAITING_BYTES && !state.over {
            state = self.0.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more is sent: what is read from now on is not waited with.
    pub(super) fn end_waiting(&self) {
        lock(&self.0.state).over = true;
        self.0.taken.notify_all();
    }

    /// Waits until their reader has them all, or a signal comes.
    ///
    /// # Errors
    /// Internal, where they could not be written; the signal.
    pub(super) fn finish(&self, signals: &Receiver<i32>) -> Result<()> {
        let (mark, written): (Sender<Never>, _) = crossbeam_channel::bounded(0);
        self.0.stdout.mark(mark);
        select! {
            recv(written) -> _ => {}
            recv(signals) -> signal => {
                let why = interrupted(signal.unwrap_or_default());
                return Err(why.context("everything was sent, but nobody reads the ids"));
            }
        }
        match &lock(&self.0.state).failed {
            // Whoever read the ids has read enough.
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::internal(format!(
                "everything was sent, but the ids could not be printed: {error}"
            ))),
            _ => Ok(()),
        }
    }
}

impl Parcel for Ids {
    fn open(&mut self) -> Vec<u8> {
        let mut state = lock(&self.0.state);
        state.queued = false;
        let lines = std::mem::take(&mut state.waiting);
        drop(state);
        self.0.taken.notify_all();
        lines
    }

    fn written(self: Box<Self>, _: Vec<u8>, result: std::result::Result<(), Unwritten>) {
        if let Err(Unwritten { error, .. }) = result {
            let mut state = lock(&self.0.state);
            state.waiting.clear();
            state.failed.get_or_insert(error);
            drop(state);
            self.0.taken.notify_all();
        }
    }
}
