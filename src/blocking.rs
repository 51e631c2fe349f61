//! Files that the caller of taskq has made non-blocking: whoever reads or writes them here waits all the same.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits where the file would not, without a deadline, as a file does that blocks: for threads that nobody waits for, and
/// for output that is all a command still has to do.
pub struct Blocking<F>(pub F);

impl<F: AsFd> Blocking<F> {
    /// Does it again whenever the file is ready for it.
    fn until_done<T>(
        &mut self,
        ready: PollFlags,
        mut work: impl FnMut(&mut F) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match work(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // An interruption is no reason to give up, and an error of the file is told by the next attempt.
                    let _ = poll(&mut [PollFd::new(self.0.as_fd(), ready)], PollTimeout::NONE);
                }
                done => return done,
            }
        }
    }
}

impl<F: AsFd + Read> Read for Blocking<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.until_done(PollFlags::POLLIN, |file| file.read(buf))
    }
}

impl<F: AsFd + Write> Write for Blocking<F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.until_done(PollFlags::POLLOUT, |file| file.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.until_done(PollFlags::POLLOUT, Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_pipe_that_does_not_block_is_waited_for_on_both_ends() {
        let (reader, writer) = io::pipe().unwrap();
        for end in [reader.as_fd(), writer.as_fd()] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        }
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let received = thread::scope(|scope| {
            let reading = scope.spawn(|| {
                // More than a pipe holds waits for it.
                thread::sleep(Duration::from_millis(20));
                let mut received = Vec::new();
                Blocking(reader).read_to_end(&mut received).map(|_| received)
            });
            Blocking(writer).write_all(&sent).unwrap();
            reading.join().unwrap().unwrap()
        });
        assert!(received == sent);
    }
}
