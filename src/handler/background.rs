//! Reads on from the pipes of commands that are over.
//!
//! What a command left in the background may still write to them, and would be killed by SIGPIPE once nobody reads. So
//! one thread reads until the worker ends, and passes on what comes.

use std::collections::VecDeque;
use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::thread;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use nix::poll::{PollFd, PollFlags};

use super::poll::poll_all;
use super::sink::{OutputSink, READ_MAX, pull};
use super::wake::{WakeFd, Waker, wake_pair};
use crate::lock::lock;

/// Pipes that are read. Each is a descriptor, of which a process has 1,024 as a rule.
const MAX_PIPES: usize = 256;

/// The pipes of commands that are over. The thread starts with the first one.
pub(super) struct BackgroundPipes {
    max_pipes: usize,
    reader: Mutex<Option<Reader>>,
}

struct Reader {
    // Closed before the last wake-up, which tells the thread to look.
    arrivals: Sender<BackgroundPipe>,
    waker: Waker,
}

/// A pipe, and what becomes of what comes through it.
struct BackgroundPipe {
    pipe: Option<PipeReader>,
    to: Box<dyn OutputSink + Send>,
}

impl Default for BackgroundPipes {
    fn default() -> Self {
        Self::with_room_for(MAX_PIPES)
    }
}

impl BackgroundPipes {
    fn with_room_for(max_pipes: usize) -> Self {
        Self { max_pipes, reader: Mutex::default() }
    }

    /// Reads from `pipe` until it ends; `to` makes the consumer, which uses the waker it is given.
    pub(super) fn take_over(&self, pipe: PipeReader, to: impl FnOnce(Waker) -> Box<dyn OutputSink + Send>) {
        let mut reader = lock(&self.reader);
        let reader = match &mut *reader {
            Some(reader) => reader,
            none => match Reader::start(self.max_pipes) {
                Ok(reader) => none.insert(reader),
                Err(error) => {
                    log::warn!(
                        "what a command left in the background cannot write any more: cannot start a thread: {error}"
                    );
                    return;
                }
            },
        };
        // The thread ends after the reader only.
        let _ = reader.arrivals.send(BackgroundPipe { pipe: Some(pipe), to: to(reader.waker.clone()) });
        reader.waker.wake();
    }
}

impl Drop for BackgroundPipes {
    fn drop(&mut self) {
        if let Some(Reader { arrivals, waker }) = lock(&self.reader).take() {
            drop(arrivals);
            waker.wake();
        }
    }
}

impl Reader {
    fn start(max_pipes: usize) -> io::Result<Self> {
        let (arrivals, arriving) = unbounded();
        let (waker, wake_fd) = wake_pair()?;
        thread::Builder::new().name("background".into()).spawn(move || {
            if let Err(error) = read_on(&wake_fd, &arriving, max_pipes) {
                log::warn!("what commands left in the background cannot write any more: {error}");
            }
        })?;
        Ok(Self { arrivals, waker })
    }
}

/// Until nobody can send any more.
fn read_on(wake_fd: &WakeFd, arriving: &Receiver<BackgroundPipe>, max_pipes: usize) -> io::Result<()> {
    let mut held = VecDeque::new();
    let mut buffer = vec![0; READ_MAX];
    let mut told = false;
    loop {
        loop {
            match arriving.try_recv() {
                Ok(left) => held.push_back(left),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        held.retain_mut(BackgroundPipe::goes_on);
        while held.len() > max_pipes {
            held.pop_front();
            if !std::mem::replace(&mut told, true) {
                log::warn!(
                    "commands left more than {max_pipes} pipes open in the background: the oldest are closed"
                );
            }
        }
        look(wake_fd, &mut held, &mut buffer)?;
    }
}

/// Waits until something comes, and passes it on.
fn look(wake_fd: &WakeFd, held: &mut VecDeque<BackgroundPipe>, buffer: &mut [u8]) -> io::Result<()> {
    let room: Vec<usize> = held.iter().map(|left| left.to.room()).collect();
    let readable = held.iter().zip(&room).enumerate().filter(|(_, (_, room))| **room > 0);
    let pipes: Vec<_> = readable.filter_map(|(nth, (left, _))| Some((nth, left.pipe.as_ref()?))).collect();
    let sources = pipes.iter().map(|(_, pipe)| pipe.as_fd()).chain([wake_fd.as_fd()]);
    let mut sources: Vec<_> = sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll_all(&mut sources, None)?;
    let seen = sources.iter().map(|source| source.revents().unwrap_or(PollFlags::empty()));
    let seen: Vec<(usize, PollFlags)> = pipes.iter().map(|(nth, _)| *nth).zip(seen).collect();
    wake_fd.clear();
    for (nth, seen) in seen.into_iter().filter(|(_, seen)| !seen.is_empty()) {
        let BackgroundPipe { pipe, to } = &mut held[nth];
        pull(pipe, &mut **to, &mut buffer[..room[nth]], seen);
    }
    Ok(())
}

impl BackgroundPipe {
    /// False when nothing comes any more and all that came is passed on.
    fn goes_on(&mut self) -> bool {
        self.to.refresh();
        self.pipe.is_some() || !self.to.is_idle()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, PipeWriter, Write, pipe};

    use super::super::relay::Output;
    use super::super::sink::Discard;
    use super::super::testing::*;
    use super::*;

    fn leave(background: &BackgroundPipes) -> PipeWriter {
        let (reader, writer) = pipe().unwrap();
        background.take_over(reader, |_| Box::new(Discard));
        writer
    }

    #[test]
    fn the_oldest_pipe_is_closed_for_one_too_many() {
        let background = BackgroundPipes::with_room_for(2);
        let mut first = leave(&background);
        let mut others = [leave(&background), leave(&background)];
        wait_until("it is closed", || {
            first.write(b"x").is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
        });
        // More than a pipe takes: they are read.
        let more = vec![b'x'; 200_000];
        for other in &mut others {
            other.write_all(&more).unwrap();
        }
    }

    #[test]
    fn a_pipe_that_ended_makes_room_when_its_bytes_are_passed_on() {
        let (background, out) = (BackgroundPipes::with_room_for(1), Captured::default());
        let output = Output::new(out.clone(), io::sink()).unwrap();
        for line in ["one", "two", "three"] {
            let (reader, mut writer) = pipe().unwrap();
            background.take_over(reader, |waker| Box::new(output.stdout(waker)));
            writer.write_all(line.as_bytes()).unwrap();
            drop(writer);
            wait_until("it is passed on", || out.text().ends_with(line));
        }
    }

    #[test]
    fn nobody_reads_when_nobody_is_left() {
        let background = BackgroundPipes::default();
        let mut writer = leave(&background);
        drop(background);
        wait_until("it is closed", || writer.write(b"x").is_err());
    }
}
