//! How the worker is told to stop: first to take no new task (the drain), then to give up what runs (the abort). Any
//! thread may tell it, and all hear of it at once.

use crossbeam_channel::Receiver;

use crate::cancel::{Latch, Never, is_closed};

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Stop {
    drain: Latch,
    signal: Latch,
    abort: Latch,
}

impl Stop {
    pub(super) fn drain(&self) {
        self.drain.close();
    }

    /// Because the worker was sent a signal. The drain first: whoever hears of the signal gives its task back, and must
    /// not take it again.
    pub(super) fn drain_by_signal(&self) {
        self.drain();
        self.signal.close();
    }

    /// Also begins the drain.
    pub(super) fn abort(&self) {
        self.drain();
        self.abort.close();
    }

    /// Closes when the drain begins.
    pub(super) fn draining(&self) -> &Receiver<Never> {
        self.drain.closed()
    }

    /// Closes when the drain begins by a signal, or goes on by one.
    pub(super) fn signalled(&self) -> &Receiver<Never> {
        self.signal.closed()
    }

    /// Closes when running tasks must be given up.
    pub(super) fn aborting(&self) -> &Receiver<Never> {
        self.abort.closed()
    }

    pub(super) fn is_draining(&self) -> bool {
        is_closed(self.draining())
    }

    pub(super) fn is_aborting(&self) -> bool {
        is_closed(self.aborting())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_hears_of_the_signal_or_the_abort_knows_of_the_drain() {
        for _ in 0..1000 {
            let (by_signal, by_abort) = (Stop::default(), Stop::default());
            let told = (by_signal.clone(), by_abort.clone());
            let heard = std::thread::spawn(move || {
                assert!(told.0.signalled().recv().is_err() && told.1.aborting().recv().is_err());
                told.0.is_draining() && told.1.is_draining()
            });
            by_signal.drain_by_signal();
            by_abort.abort();
            assert!(heard.join().unwrap());
        }
    }
}
