//! The channel that is published on: at hand, or away on a thread that hands over a large body. That takes as long as
//! the broker takes to read it, which under an alarm is for ever.

use std::thread;

use crossbeam_channel::{Receiver, Sender, never};

use super::channel::Channel;
use super::fault::Fault;

/// What comes back from the thread: the channel, and how the call on it went.
pub(super) type Return = (Channel, Result<(), Fault>);

/// See the module.
pub(super) struct Handover {
    channel: Option<Channel>,
    back: Receiver<Return>,
}

impl Handover {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel: Some(channel), back: never() }
    }

    /// The channel.
    ///
    /// # Errors
    /// It is away.
    pub(super) fn channel(&self) -> Result<&Channel, Fault> {
        self.channel.as_ref().ok_or_else(in_use)
    }

    /// Whether the channel is away.
    pub(super) fn is_empty(&self) -> bool {
        self.channel.is_none()
    }

    /// Runs `work` on a thread of its own. It must end when the connection's socket is cut, and does for any call
    /// into amiquip.
    ///
    /// # Errors
    /// The channel is away, or the system has no thread left.
    pub(super) fn lend(
        &mut self,
        work: impl FnOnce(&Channel) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), Fault> {
        let channel = self.channel.take().ok_or_else(in_use)?;
        let (sender, back): (Sender<Return>, _) = crossbeam_channel::bounded(1);
        self.back = back;
        let started = thread::Builder::new().name("publish".into()).spawn(move || {
            let result = work(&channel);
            // Nobody listens any more when the connection was given up meanwhile.
            let _ = sender.send((channel, result));
        });
        started.map(drop).map_err(|error| Fault::of_this_machine(&error))
    }

    /// Where the channel comes back; silent while it is here.
    pub(super) fn back(&self) -> &Receiver<Return> {
        &self.back
    }

    /// Puts down what came back.
    ///
    /// # Errors
    /// How the work went.
    pub(super) fn put_back(&mut self, (channel, result): Return) -> Result<(), Fault> {
        self.channel = Some(channel);
        self.back = never();
        result
    }
}

fn in_use() -> Fault {
    Fault::lost("the channel for publishing is in use")
}
