//! Turns what other threads have to say into something a worker thread can `poll` for beside its pipes.

use std::io::{self, PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use crossbeam_channel::Receiver;

use super::Never;
use crate::lock::lock;

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

/// The abort channel as file descriptors, shared by all worker threads: one thread waits for the channel to close
/// and then closes a pipe, which every poll on its other end sees.
#[derive(Default)]
pub(super) struct AbortPipe(Mutex<Option<(Receiver<Never>, Arc<PipeReader>)>>);

impl AbortPipe {
    /// A descriptor that polls as hung up once `abort` has closed.
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
