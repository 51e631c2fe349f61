//! Passes what handlers write on to the worker's own stdout and stderr.
//!
//! Only the stream's own thread ever writes (and may block there as long as it takes): lines of different handlers do
//! not mix, and a reader that stopped reading delays handlers, not the deadlines of worker threads. Each handler has
//! one chunk under way and one being filled; while both are full its pipe is not read, so it waits.

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
use crate::output::{self, Parcel, Stream, Unwritten};

/// A longer line is passed on in pieces of this size.
const LINE_MAX: usize = READ_MAX;

/// How much of the end of stderr is kept for a failed task.
const TAIL: usize = 2 * 1024;

/// Where the output of handlers goes. Clones share their writing threads.
#[derive(Clone)]
pub struct Output {
    stdout: Destination,
    stderr: Destination,
}

#[derive(Clone)]
struct Destination {
    stream: Stream,
    loss: Arc<Loss>,
}

/// Bytes on their way, which can be taken off it again.
type UnderWay = Arc<Mutex<Vec<u8>>>;

struct Chunk {
    bytes: UnderWay,
    /// Gets the emptied buffer back; then `waker` wakes the thread that waits for it, if `wanted` says that one does.
    back: Sender<Vec<u8>>,
    wanted: Arc<AtomicBool>,
    waker: Waker,
    loss: Arc<Loss>,
}

impl Output {
    /// To the worker's own stdout and stderr.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self::over(output::stdout()?, output::stderr()?))
    }

    /// To anything else.
    ///
    /// # Errors
    /// When a thread cannot be started.
    #[cfg(test)]
    pub fn new(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> io::Result<Self> {
        Ok(Self::over(Stream::start("stdout", stdout)?, Stream::start("stderr", stderr)?))
    }

    fn over(stdout: Stream, stderr: Stream) -> Self {
        let destination = |stream: Stream| Destination { loss: Arc::new(Loss::of(stream.name())), stream };
        Self { stdout: destination(stdout), stderr: destination(stderr) }
    }

    /// What could not be passed on so far, in words; `None` where nothing is missing.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        let told: Vec<String> = [&self.stdout, &self.stderr]
            .into_iter()
            .filter_map(|destination| destination.loss.summary())
            .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// For data: byte by byte what the handler wrote.
    pub(super) fn stdout(&self, waker: Waker) -> Relay {
        Relay::new(self.stdout.clone(), waker, false)
    }

    /// For messages: an unfinished last line is finished, because the worker's own messages follow on the same
    /// stream. The end is kept.
    pub(super) fn stderr(&self, waker: Waker) -> Relay {
        Relay::new(self.stderr.clone(), waker, true)
    }
}

impl Parcel for Chunk {
    fn open(&mut self) -> Vec<u8> {
        take_off(&self.bytes)
    }

    fn written(self: Box<Self>, buffer: Vec<u8>, result: Result<(), Unwritten>) {
        if let Err(Unwritten { bytes, error }) = result {
            self.loss.note(bytes, &error);
        }
        let _ = self.back.send(buffer);
        // With the fence in `refresh`: either the buffer is found there or the wish here.
        fence(Ordering::SeqCst);
        if self.wanted.load(Ordering::Relaxed) {
            self.waker.wake();
        }
    }
}

fn take_off(bytes: &UnderWay) -> Vec<u8> {
    mem::take(&mut lock(bytes))
}

/// One stream of one process on its way to the worker's.
pub(super) struct Relay {
    destination: Destination,
    waker: Waker,
    back: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
    /// Nothing goes on here until the buffer is back. Most tasks are over before anybody has to be woken for that.
    wanted: Arc<AtomicBool>,
    /// The other buffer; none while it is under way.
    spare: Option<Vec<u8>>,
    under_way: UnderWay,
    filling: Vec<u8>,
    /// This much of `filling` is whole lines.
    lines: usize,
    /// The last byte so far is not a line end.
    mid_line: bool,
    finish_line: bool,
    ended: bool,
    /// The last bytes, where they are wanted.
    tail: VecDeque<u8>,
}

impl Relay {
    fn new(destination: Destination, waker: Waker, messages: bool) -> Self {
        Self {
            destination,
            waker,
            back: bounded(1),
            wanted: Arc::default(),
            spare: Some(Vec::new()),
            under_way: UnderWay::default(),
            filling: Vec::new(),
            lines: 0,
            mid_line: false,
            finish_line: messages,
            ended: false,
            tail: VecDeque::new(),
        }
    }

    /// The last 2 KiB since the start or [`Relay::forget_tail`].
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
            let (back, wanted, waker) = (self.back.0.clone(), Arc::clone(&self.wanted), self.waker.clone());
            wanted.store(false, Ordering::Relaxed);
            self.under_way = Arc::new(Mutex::new(bytes));
            let (bytes, loss) = (Arc::clone(&self.under_way), Arc::clone(&self.destination.loss));
            self.destination.stream.pass(Box::new(Chunk { bytes, back, wanted, waker, loss }));
        }
    }
}

impl Drop for Relay {
    /// Whoever did not wait for its output has given it up. While nobody reads, each task would leave some behind.
    fn drop(&mut self) {
        let left = take_off(&self.under_way).len() + self.filling.len();
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
        self.mid_line = bytes.last().map_or(self.mid_line, |last| *last != b'\n');
        if self.finish_line {
            let last = &bytes[bytes.len().saturating_sub(TAIL)..];
            self.tail.drain(..(self.tail.len() + last.len()).saturating_sub(TAIL));
            self.tail.extend(last);
        }
        self.hand_over();
    }

    fn end(&mut self) {
        if !mem::replace(&mut self.ended, true) {
            if self.finish_line && self.mid_line {
                self.filling.push(b'\n');
            }
            self.hand_over();
        }
    }

    fn refresh(&mut self) {
        loop {
            self.take_back();
            let waits = self.spare.is_none() && (self.ended || self.lines > 0 || self.room() == 0);
            if !waits || self.wanted.swap(true, Ordering::Relaxed) {
                return;
            }
            // The wake-up is sure only from here on: the buffer may have come back just before.
            fence(Ordering::SeqCst);
        }
    }

    fn successor(&self, waker: Waker) -> Box<dyn OutputSink + Send> {
        Box::new(Self::new(self.destination.clone(), waker, self.finish_line))
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
        wait_until("the first is being written", || first.under_way.lock().unwrap().is_empty());
        let under_way = Arc::clone(&second.under_way);
        assert!(!under_way.lock().unwrap().is_empty());
        drop(second);
        assert!(under_way.lock().unwrap().is_empty());
    }
}
