//! What one worker thread works with, beside its channel and its handler.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::EndRequest;
use super::republisher::Republisher;
use super::shared::Shared;
use super::stop::Stop;

/// See the module.
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    /// To the thread that hears signals.
    pub(super) end_requests: Sender<EndRequest>,
    pub(super) republisher: Republisher,
    pub(super) stop: Stop,
    /// Gets a message when something is known of a copy that this thread asked for.
    pub(super) wake: (Sender<()>, Receiver<()>),
}
