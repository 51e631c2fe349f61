//! How a thread tells others to stop: a channel that closes.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use crate::lock::lock;

/// Never sent: a channel of it only ever closes, which tells every listener at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Never {}

/// Whether it has closed.
#[must_use]
pub fn is_closed(channel: &Receiver<Never>) -> bool {
    channel.try_recv() == Err(TryRecvError::Disconnected)
}

/// A channel that closes once. Any of its clones may close it, and every listener hears of it.
#[derive(Clone)]
pub struct Latch {
    /// Taken when it closes.
    open: Arc<Mutex<Option<Sender<Never>>>>,
    closed: Receiver<Never>,
}

impl Latch {
    /// Does nothing when it is closed already.
    pub fn close(&self) {
        drop(lock(&self.open).take());
    }

    /// Closes with the latch.
    #[must_use]
    pub fn closed(&self) -> &Receiver<Never> {
        &self.closed
    }
}

impl Default for Latch {
    fn default() -> Self {
        let (sender, closed) = crossbeam_channel::bounded(0);
        Self { open: Arc::new(Mutex::new(Some(sender))), closed }
    }
}
