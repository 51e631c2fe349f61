//! The channel that is published on: at hand, or away on a thread that hands over a large body. That takes as long as
//! the broker takes to read it, which under an alarm is for ever.

use std::thread;

use crossbeam_channel::{Receiver, never};

use super::channel::Channel;
use super::fault::Fault;

/// See the module.
pub(super) struct Handover {
    channel: Option<Channel>,
    /// Where it comes back.
    back: Receiver<Channel>,
    done: Receiver<Result<(), Fault>>,
}

impl Handover {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel: Some(channel), back: never(), done: never() }
    }

    /// The channel.
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
        let (give_back, back) = crossbeam_channel::bounded(1);
        let (tell, done) = crossbeam_channel::bounded(1);
        (self.back, self.done) = (back, done);
        let started = thread::Builder::new().name("publish".into()).spawn(move || {
            let result = work(&channel);
            // Nobody listens any more when the connection was given up meanwhile.
            let _ = give_back.send(channel);
            let _ = tell.send(result);
        });
        started.map(drop).map_err(|error| Fault::of_this_machine(&error))
    }

    /// How the work went, when it has ended. The channel is back before that.
    pub(super) fn done(&self) -> &Receiver<Result<(), Fault>> {
        &self.done
    }

    /// Takes back a channel whose work has ended.
    pub(super) fn take_back(&mut self) {
        self.channel = self.back.try_recv().ok();
        self.done = never();
    }
}

fn in_use() -> Fault {
    Fault::lost("the channel for publishing is in use")
}
