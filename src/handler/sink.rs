//! Where the bytes go that a process writes to a pipe.

use std::io::{ErrorKind, Read};

use nix::poll::PollFlags;

use super::wake::Waker;

/// The most bytes of one read: the usual capacity of a pipe. Buffers have this size, so no sink may have more room.
pub(super) const READ_MAX: usize = 64 * 1024;

/// Takes what a process writes to one pipe.
pub(super) trait OutputSink {
    /// How many bytes it takes now, at most [`READ_MAX`]. While this is 0 the pipe is not read.
    fn room(&self) -> usize;
    /// At most [`OutputSink::room`] bytes.
    fn take(&mut self, bytes: &[u8]);
    /// The pipe has ended: no more bytes come. May be called more than once.
    fn end(&mut self);
    /// To be called before each wait: there may be room again. Where only another thread can make room, it is asked
    /// to wake this one when it has.
    fn refresh(&mut self) {}
    /// Nothing waits here to be passed on.
    fn is_idle(&self) -> bool {
        true
    }
    /// Makes the sink for what background processes write to the same pipe after the process has ended. It uses `waker`
    /// where this one wakes the worker thread.
    fn successor(&self, _waker: Waker) -> Box<dyn OutputSink + Send> {
        Box::new(Discard)
    }
}

/// Throws everything away.
pub(super) struct Discard;

impl OutputSink for Discard {
    fn room(&self) -> usize {
        READ_MAX
    }

    fn take(&mut self, _: &[u8]) {}

    fn end(&mut self) {}
}

/// Reads once from a pipe that `poll` reported with `seen`, and passes the bytes to the sink. At the end of the pipe,
/// or on an error, `from` becomes None. Returns the number of bytes.
pub(super) fn pull<R: Read>(
    from: &mut Option<R>,
    to: &mut (impl OutputSink + ?Sized),
    buffer: &mut [u8],
    seen: PollFlags,
) -> u64 {
    let Some(pipe) = from else { return 0 };
    let result = if seen.contains(PollFlags::POLLIN) { pipe.read(buffer) } else { Ok(0) };
    match result {
        Ok(n) if n > 0 => {
            to.take(&buffer[..n]);
            return n as u64;
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => {}
        _ => {
            *from = None;
            to.end();
        }
    }
    0
}
