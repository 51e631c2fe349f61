//! The drain: from its beginning on no thread takes a new task. Any thread may begin it, and all hear of it at once.

use crossbeam_channel::Receiver;

use crate::cancel::{Latch, Never, is_closed};

/// See the module.
#[derive(Clone)]
pub(super) struct Drain {
    drain: Latch,
    signal: Latch,
}

impl Drain {
    pub(super) fn new() -> Self {
        Self { drain: Latch::new(), signal: Latch::new() }
    }

    pub(super) fn begin(&self) {
        self.drain.close();
    }

    /// Because the worker was sent a signal. The drain first: whoever hears of the signal gives its task back, and must
    /// not take it again.
    pub(super) fn begin_by_signal(&self) {
        self.begin();
        self.signal.close();
    }

    /// Closes when it begins.
    pub(super) fn begun(&self) -> &Receiver<Never> {
        self.drain.closed()
    }

    /// Closes when it begins by a signal, or goes on by one.
    pub(super) fn signalled(&self) -> &Receiver<Never> {
        self.signal.closed()
    }

    pub(super) fn has_begun(&self) -> bool {
        is_closed(self.begun())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_hears_of_the_signal_knows_of_the_drain() {
        for _ in 0..1000 {
            let drain = Drain::new();
            let told = drain.clone();
            let heard = std::thread::spawn(move || {
                assert!(told.signalled().recv().is_err());
                told.has_begun()
            });
            drain.begin_by_signal();
            assert!(heard.join().unwrap());
        }
    }
}
