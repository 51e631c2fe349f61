//! Reads the pipes that background processes of finished commands still hold.
//!
//! A command may leave processes in the background that still write to its stdout or stderr. They would be killed by
//! SIGPIPE if nobody read. So one thread reads those pipes until the worker ends, and passes on what comes.

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

/// How many pipes are read at the same time. Each needs a descriptor, of which a process may have 1,024 as a rule.
const MAX_PIPES: usize = 256;

/// The thread that reads the pipes. It starts with the first pipe.
pub(super) struct BackgroundPipes {
    max_pipes: usize,
    reader: Mutex<Option<Reader>>,
}

struct Reader {
    /// Closed to end the thread.
    arrivals: Sender<BackgroundPipe>,
    /// Wakes the thread, which then looks at the other end of `arrivals`.
    waker: Waker,
}

/// A pipe, and the sink for what comes through it.
struct BackgroundPipe {
    /// None once it has ended.
    pipe: Option<PipeReader>,
    sink: Box<dyn OutputSink + Send>,
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

    /// Reads `pipe` until it ends. `make_sink` makes the sink for it, which wakes the thread by the waker it is given.
    pub(super) fn take_over(
        &self,
        pipe: PipeReader,
        make_sink: impl FnOnce(Waker) -> Box<dyn OutputSink + Send>,
    ) {
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
        let sink = make_sink(reader.waker.clone());
        // This fails only if the thread has ended, because it could not poll: then the pipe is closed, of which a
        // warning has told.
        let _ = reader.arrivals.send(BackgroundPipe { pipe: Some(pipe), sink });
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

/// Runs until `arriving` is closed.
fn read_on(wake_fd: &WakeFd, arriving: &Receiver<BackgroundPipe>, max_pipes: usize) -> io::Result<()> {
    let mut held = VecDeque::new();
    let mut buffer = vec![0; READ_MAX];
    let mut warned = false;
    loop {
        loop {
            match arriving.try_recv() {
                Ok(pipe) => held.push_back(pipe),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        held.retain_mut(BackgroundPipe::is_needed);
        while held.len() > max_pipes {
            held.pop_front();
            if !std::mem::replace(&mut warned, true) {
                log::warn!(
                    "commands left more than {max_pipes} pipes open in the background: the oldest are closed"
                );
            }
        }
        wait_and_read(wake_fd, &mut held, &mut buffer)?;
    }
}

/// Waits until bytes come or the thread is woken, and passes the bytes on.
fn wait_and_read(wake_fd: &WakeFd, held: &mut VecDeque<BackgroundPipe>, buffer: &mut [u8]) -> io::Result<()> {
    let room: Vec<usize> = held.iter().map(|pipe| pipe.sink.room()).collect();
    let readable = held.iter().zip(&room).enumerate().filter(|(_, (_, room))| **room > 0);
    let pipes: Vec<_> = readable.filter_map(|(nth, (held, _))| Some((nth, held.pipe.as_ref()?))).collect();
    let sources = pipes.iter().map(|(_, pipe)| pipe.as_fd()).chain([wake_fd.as_fd()]);
    let mut sources: Vec<_> = sources.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll_all(&mut sources, None)?;
    let seen = sources.iter().map(|source| source.revents().unwrap_or(PollFlags::empty()));
    let seen: Vec<(usize, PollFlags)> = pipes.iter().map(|(nth, _)| *nth).zip(seen).collect();
    wake_fd.clear();
    for (nth, seen) in seen.into_iter().filter(|(_, seen)| !seen.is_empty()) {
        let BackgroundPipe { pipe, sink } = &mut held[nth];
        pull(pipe, &mut **sink, &mut buffer[..room[nth]], seen);
    }
    Ok(())
}

impl BackgroundPipe {
    /// False when the pipe has ended and all that came from it is passed on.
    fn is_needed(&mut self) -> bool {
        self.sink.refresh();
        self.pipe.is_some() || !self.sink.is_idle()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, PipeWriter, Write, pipe};

    use super::super::output::Output;
    use super::super::sink::Discard;
    use super::super::tee::Label;
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
            background.take_over(reader, |waker| Box::new(output.stdout(waker, &Label::default())));
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
