//! Passes the output of handlers on to the worker's own stdout and stderr.
//!
//! Only the stream's own thread ever writes, and it may block as long as it likes: so lines of different handlers do
//! not mix, and a reader that stopped reading delays handlers, not the deadlines of worker threads. Each relay has two
//! buffers: one waits in the stream's queue or is being written, the other is filled. While both are full the pipe of
//! the process is not read, so the process has to wait.

use std::collections::VecDeque;
use std::io;
#[cfg(test)]
use std::io::Write;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::loss::Loss;
use super::sink::{OutputSink, READ_MAX};
use super::wake::Waker;
use crate::lock::lock;
use crate::output::{self, CommandLines, Parcel, Stream, Unwritten};

/// A longer line is passed on in pieces of this size.
const LINE_MAX: usize = READ_MAX;

/// How much of the end of stderr is kept for a failed task.
const TAIL_MAX: usize = 2 * 1024;

/// Where the output of handlers goes. Clones share their writing threads.
#[derive(Clone)]
pub struct Output {
    stdout: Destination,
    stderr: Destination,
}

#[derive(Clone)]
struct Destination {
    stream: Stream,
    lines: CommandLines,
    loss: Arc<Loss>,
}

/// Bytes in the queue of a stream. Empty once their turn to be written has come. Until then they can be taken back.
type QueuedBytes = Arc<Mutex<Vec<u8>>>;

/// What a relay puts into the queue of its stream.
struct Chunk {
    bytes: QueuedBytes,
    before_lines: &'static [u8],
    /// What was before it ended with its line.
    begins_line: bool,
    /// Gets the emptied buffer back.
    back: Sender<Vec<u8>>,
    /// The relay waits for its buffer, so `waker` has to wake its thread.
    wake_wanted: Arc<AtomicBool>,
    waker: Waker,
    loss: Arc<Loss>,
}

impl Output {
    /// To the worker's own stdout and stderr.
    pub fn of_this_process() -> io::Result<Self> {
        let [stdout, stderr] = CommandLines::beside_messages();
        Ok(Self::to((output::stdout()?, stdout), (output::stderr()?, stderr)))
    }

    /// To anything else.
    #[cfg(test)]
    pub fn new(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> io::Result<Self> {
        let [data, messages] = [CommandLines::DATA, CommandLines { end: true, ..CommandLines::DATA }];
        Ok(Self::to((Stream::start("stdout", stdout)?, data), (Stream::start("stderr", stderr)?, messages)))
    }

    fn to(stdout: (Stream, CommandLines), stderr: (Stream, CommandLines)) -> Self {
        let destination = |(stream, lines): (Stream, CommandLines)| Destination {
            loss: Arc::new(Loss::of(stream.name())),
            stream,
            lines,
        };
        Self { stdout: destination(stdout), stderr: destination(stderr) }
    }

    /// What could not be passed on so far, in words; `None` where nothing is missing.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        let losses: Vec<String> = [&self.stdout, &self.stderr]
            .into_iter()
            .filter_map(|destination| destination.loss.summary())
            .collect();
        (!losses.is_empty()).then(|| losses.join("; "))
    }

    /// Passes on data: exactly the bytes that the handler writes, unless messages go to the same place.
    pub(super) fn stdout(&self, waker: Waker) -> Relay {
        Relay::new(self.stdout.clone(), waker, false)
    }

    /// Passes on messages. The last 2 KiB are kept for [`Relay::tail`].
    pub(super) fn stderr(&self, waker: Waker) -> Relay {
        Relay::new(self.stderr.clone(), waker, true)
    }
}

impl Parcel for Chunk {
    fn open(&mut self) -> Vec<u8> {
        let bytes = dequeue(&self.bytes);
        if self.before_lines.is_empty() { bytes } else { self.marked(&bytes) }
    }

    fn written(self: Box<Self>, buffer: Vec<u8>, result: Result<(), Unwritten>) {
        if let Err(Unwritten { bytes, error }) = result {
            self.loss.note(bytes, &error);
        }
        let _ = self.back.send(buffer);
        // This fence and the one in `refresh` belong together: either `refresh` finds the buffer, or this thread finds
        // that a wake-up is wanted.
        fence(Ordering::SeqCst);
        if self.wake_wanted.load(Ordering::Relaxed) {
            self.waker.wake();
        }
    }
}

impl Chunk {
    /// With something before each line that begins in it.
    fn marked(&self, bytes: &[u8]) -> Vec<u8> {
        let mut marked = Vec::with_capacity(bytes.len() + self.before_lines.len());
        let mut begins = self.begins_line;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if begins {
                marked.extend_from_slice(self.before_lines);
            }
            marked.extend_from_slice(line);
            begins = line.ends_with(b"\n");
        }
        marked
    }
}

fn dequeue(bytes: &QueuedBytes) -> Vec<u8> {
    mem::take(&mut lock(bytes))
}

/// Passes on one output stream of one process.
pub(super) struct Relay {
    destination: Destination,
    waker: Waker,
    /// Brings the emptied buffer back.
    back: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    /// The stream's thread has to wake this one when the buffer is back. Set only when nothing can be done here without
    /// it: most tasks are finished before that, and save the wake-up.
    wake_wanted: Arc<AtomicBool>,
    /// The second buffer, empty. None while it is with the stream.
    spare: Option<Vec<u8>>,
    queued: QueuedBytes,
    /// The buffer that is being filled.
    filling: Vec<u8>,
    /// The last byte that was handed over.
    last: Option<u8>,
    /// How many bytes of `filling` are whole lines.
    lines: usize,
    /// The last byte so far was no line end.
    unfinished_line: bool,
    /// See [`Output::stderr`].
    keeps_tail: bool,
    /// The pipe has ended.
    ended: bool,
    /// The last bytes so far, at most [`TAIL_MAX`]. Empty if not `keeps_tail`.
    tail: VecDeque<u8>,
}

impl Relay {
    fn new(destination: Destination, waker: Waker, keeps_tail: bool) -> Self {
        Self {
            destination,
            waker,
            back: bounded(1),
            wake_wanted: Arc::default(),
            spare: Some(Vec::new()),
            queued: QueuedBytes::default(),
            filling: Vec::new(),
            last: None,
            lines: 0,
            unfinished_line: false,
            keeps_tail,
            ended: false,
            tail: VecDeque::new(),
        }
    }

    /// The last bytes, at most 2 KiB, since the start or the last [`Relay::forget_tail`].
    pub(super) fn tail(&self) -> Vec<u8> {
        self.tail.iter().copied().collect()
    }

    pub(super) fn forget_tail(&mut self) {
        self.tail.clear();
    }

    fn take_back(&mut self) {
        if let Ok(spare) = self.back.1.try_recv() {
            self.spare = Some(spare);
            self.hand_over();
        }
    }

    /// Puts whole lines into the stream's queue, if the second buffer is free. At the end, and if a line is too long,
    /// also what is no whole line.
    fn hand_over(&mut self) {
        let whole = self.ended || self.filling.len() >= LINE_MAX && self.lines == 0;
        let length = if whole { self.filling.len() } else { self.lines };
        if length == 0 {
            return;
        }
        if let Some(mut bytes) = self.spare.take() {
            mem::swap(&mut bytes, &mut self.filling);
            self.filling.extend_from_slice(&bytes[length..]);
            bytes.truncate(length);
            self.lines = 0;
            let (back, wake_wanted, waker) =
                (self.back.0.clone(), Arc::clone(&self.wake_wanted), self.waker.clone());
            wake_wanted.store(false, Ordering::Relaxed);
            let before_lines = self.destination.lines.before;
            let begins_line = self.last.is_none_or(|last| last == b'\n');
            self.last = bytes.last().copied();
            self.queued = Arc::new(Mutex::new(bytes));
            let (bytes, loss) = (Arc::clone(&self.queued), Arc::clone(&self.destination.loss));
            self.destination.stream.pass(Box::new(Chunk {
                bytes,
                before_lines,
                begins_line,
                back,
                wake_wanted,
                waker,
                loss,
            }));
        }
    }
}

impl Drop for Relay {
    /// What the stream's thread has not begun to write by now is lost, and counted. It is taken out of the queue: while
    /// nobody reads the worker's output, the leftovers of all tasks would add up there.
    fn drop(&mut self) {
        let left = dequeue(&self.queued).len() + self.filling.len();
        if left > 0 {
            self.destination.loss.note_given_up(left);
        }
    }
}

impl OutputSink for Relay {
    fn room(&self) -> usize {
        LINE_MAX.saturating_sub(self.filling.len())
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some(newline) = bytes.iter().rposition(|byte| *byte == b'\n') {
            self.lines = self.filling.len() + newline + 1;
        }
        self.filling.extend_from_slice(bytes);
        self.unfinished_line = bytes.last().map_or(self.unfinished_line, |last| *last != b'\n');
        if self.keeps_tail {
            let last = &bytes[bytes.len().saturating_sub(TAIL_MAX)..];
            self.tail.drain(..(self.tail.len() + last.len()).saturating_sub(TAIL_MAX));
            self.tail.extend(last);
        }
        self.hand_over();
    }

    fn end(&mut self) {
        if !mem::replace(&mut self.ended, true) {
            if self.destination.lines.end && self.unfinished_line {
                self.filling.push(b'\n');
            }
            self.hand_over();
        }
    }

    fn refresh(&mut self) {
        loop {
            self.take_back();
            let waits = self.spare.is_none() && (self.ended || self.lines > 0 || self.room() == 0);
            if !waits || self.wake_wanted.swap(true, Ordering::Relaxed) {
                return;
            }
            // The buffer may have come back just before `wake_wanted` was set: look once more.
            fence(Ordering::SeqCst);
        }
    }

    fn successor(&self, waker: Waker) -> Box<dyn OutputSink + Send> {
        Box::new(Self::new(self.destination.clone(), waker, self.keeps_tail))
    }

    fn is_idle(&self) -> bool {
        self.spare.is_some() && self.lines == 0 && (!self.ended || self.filling.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::wake::wake_pair;
    use super::*;

    #[test]
    fn nothing_is_left_behind_of_a_task_whose_output_nobody_takes() {
        let (_blocked, blocks) = bounded(0);
        let output = Output::new(Stuck(blocks), io::sink()).unwrap();
        let (waker, _wake_fd) = wake_pair().unwrap();
        let mut relays = [(); 2].map(|()| output.stdout(waker.clone()));
        for relay in &mut relays {
            relay.take(b"a line\n");
        }
        let [first, second] = relays;
        wait_until("the first is being written", || first.queued.lock().unwrap().is_empty());
        let queued = Arc::clone(&second.queued);
        assert!(!queued.lock().unwrap().is_empty());
        drop(second);
        assert!(queued.lock().unwrap().is_empty());
    }
}
