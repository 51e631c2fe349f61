//! Wakes a worker thread that waits in `poll`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Wakes the thread that polls the [`WakeFd`] of the same pair; any thread may hold one.
#[derive(Clone)]
pub(super) struct Waker(Arc<UnixStream>);

/// Polled by the thread to be woken: readable from a wake-up on until it is cleared.
pub(super) struct WakeFd(UnixStream);

pub(super) fn wake_pair() -> io::Result<(Waker, WakeFd)> {
    let (waker, wake_fd) = UnixStream::pair()?;
    waker.set_nonblocking(true)?;
    wake_fd.set_nonblocking(true)?;
    Ok((Waker(Arc::new(waker)), WakeFd(wake_fd)))
}

impl Waker {
    /// Never blocks. Errors do not matter: if the buffer is full the thread is being woken already, and if the other
    /// end is closed there is no thread to wake.
    pub(super) fn wake(&self) {
        let _ = (&*self.0).write(&[1]);
    }
}

impl WakeFd {
    /// Takes all wake-ups so far. To be called before looking for what they were about: one that comes during the
    /// look is then kept for the next poll.
    pub(super) fn clear(&self) {
        let mut wakeups = [0; 64];
        while matches!((&self.0).read(&mut wakeups), Ok(n) if n == wakeups.len()) {}
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn ready(fd: BorrowedFd<'_>, ms: u16) -> bool {
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(ms)).unwrap() > 0
    }

    #[test]
    fn a_wake_up_lasts_until_it_is_cleared() {
        let (waker, wake_fd) = wake_pair().unwrap();
        assert!(!ready(wake_fd.as_fd(), 0));
        for _ in 0..1_000_000 {
            waker.wake(); // never blocks, however often
        }
        assert!(ready(wake_fd.as_fd(), 0));
        wake_fd.clear();
        assert!(!ready(wake_fd.as_fd(), 0));
    }
}
