//! Wakes a worker thread that waits in `poll`.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Rings the [`Bell`] it was made with; any thread may hold one.
#[derive(Clone)]
pub(super) struct Ringer(Arc<UnixStream>);

/// What a worker thread polls; readable once it has been rung.
pub(super) struct Bell(UnixStream);

pub(super) fn bell() -> io::Result<(Ringer, Bell)> {
    let (ringer, bell) = UnixStream::pair()?;
    ringer.set_nonblocking(true)?;
    bell.set_nonblocking(true)?;
    Ok((Ringer(Arc::new(ringer)), Bell(bell)))
}

impl Ringer {
    /// Never blocks. A full buffer means that the bell is ringing already, and a closed one that nobody listens.
    pub(super) fn ring(&self) {
        let _ = (&*self.0).write(&[1]);
    }
}

impl Bell {
    /// Silences the bell. Look at what it may have been rung for only afterwards, so that no ring is missed.
    pub(super) fn silence(&self) {
        let mut rings = [0; 64];
        while matches!((&self.0).read(&mut rings), Ok(n) if n == rings.len()) {}
    }
}

impl AsFd for Bell {
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
    fn a_bell_rings_until_silenced() {
        let (ringer, bell) = bell().unwrap();
        assert!(!ready(bell.as_fd(), 0));
        for _ in 0..1_000_000 {
            ringer.ring(); // never blocks, however often
        }
        assert!(ready(bell.as_fd(), 0));
        bell.silence();
        assert!(!ready(bell.as_fd(), 0));
    }
}
