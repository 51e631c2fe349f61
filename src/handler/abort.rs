//! The abort channel of a worker: it closes when running tasks have to be given up at once. It never carries a message.

use std::io::{self, PipeReader, pipe};
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::cancel::Never;
use crate::lock::lock;

/// Whether `abort` has closed.
pub(super) fn is_aborted(abort: &Receiver<Never>) -> bool {
    matches!(abort.try_recv(), Err(TryRecvError::Disconnected))
}

/// Makes the abort channel pollable, for all worker threads: one thread waits for the channel to close and then closes
/// one end of a pipe, which ends every `poll` of the other end.
#[derive(Default)]
pub(super) struct AbortPipe(Mutex<Option<(Receiver<Never>, Arc<PipeReader>)>>);

impl AbortPipe {
    /// A descriptor that `poll` reports as hung up once `abort` has closed.
    pub(super) fn of(&self, abort: &Receiver<Never>) -> io::Result<Arc<PipeReader>> {
        let mut known = lock(&self.0);
        if let Some((of, fd)) = &*known
            && of.same_channel(abort)
        {
            return Ok(Arc::clone(fd));
        }
        let (fd, writer) = pipe()?;
        let (fd, waits_for) = (Arc::new(fd), abort.clone());
        thread::Builder::new().name("abort-watch".into()).spawn(move || {
            let _ = waits_for.recv();
            drop(writer);
        })?;
        *known = Some((abort.clone(), Arc::clone(&fd)));
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};

    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn ready(fd: BorrowedFd<'_>, ms: u16) -> bool {
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(ms)).unwrap() > 0
    }

    #[test]
    fn closing_the_channel_hangs_up_every_copy() {
        let aborts = AbortPipe::default();
        let (sender, abort) = crossbeam_channel::bounded(0);
        let (one, other) = (aborts.of(&abort).unwrap(), aborts.of(&abort.clone()).unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        assert!(!ready(one.as_fd(), 0));
        drop(sender);
        assert!(ready(one.as_fd(), 10_000) && ready(other.as_fd(), 10_000));
    }
}
