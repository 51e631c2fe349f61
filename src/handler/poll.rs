//! `poll` with a deadline, and with descriptors that may be missing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until any of the descriptors is ready or the deadline has come. The result is empty for those that are
/// missing.
pub(super) fn poll_some<const N: usize>(
    sources: [Option<(BorrowedFd<'_>, PollFlags)>; N],
    deadline: Option<Instant>,
) -> io::Result<[PollFlags; N]> {
    let mut fds: Vec<_> = sources.iter().flatten().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
    poll_all(&mut fds, deadline)?;
    let mut seen = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
    Ok(sources.map(|source| source.and_then(|_| seen.next()).unwrap_or(PollFlags::empty())))
}

/// Waits until any of the descriptors is ready or the deadline has come. May return earlier, without a result.
pub(super) fn poll_all(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    match poll(fds, timeout(deadline)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a read would return at once, with bytes or with the end. False if there is no descriptor.
pub(super) fn readable(fd: Option<&impl AsFd>) -> io::Result<bool> {
    let [seen] = poll_some([fd.map(|fd| (fd.as_fd(), PollFlags::POLLIN))], Some(Instant::now()))?;
    Ok(!seen.is_empty())
}

/// Rounded up to milliseconds: a wait that ended before its deadline would be repeated at once, again and again.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1000);
    PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
}
