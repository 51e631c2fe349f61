//! The drain: from its beginning on no thread takes a new task. Any thread may begin it, and all hear of it at once.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use crate::handler::Never;
use crate::lock::lock;

/// See the module.
#[derive(Clone)]
pub(super) struct Drain {
    /// Taken when it begins.
    ahead: Arc<Mutex<Option<Sender<Never>>>>,
    begun: Receiver<Never>,
}

impl Drain {
    pub(super) fn new() -> Self {
        let (sender, begun) = crossbeam_channel::bounded(0);
        Self { ahead: Arc::new(Mutex::new(Some(sender))), begun }
    }

    pub(super) fn begin(&self) {
        drop(lock(&self.ahead).take());
    }

    /// Closes when it begins.
    pub(super) fn begun(&self) -> &Receiver<Never> {
        &self.begun
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.try_recv() == Err(TryRecvError::Disconnected)
    }
}
