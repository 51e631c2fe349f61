//! Passes the output of handlers on to the worker's own stdout and stderr.
//!
//! Only the stream's own thread ever writes, and it may block as long as it likes: so lines of different handlers do
//! not mix, and a reader that stopped reading delays handlers, not the deadlines of worker threads. Each relay has two
//! buffers: one waits in the stream's queue or is being written, the other is filled. While both are full the pipe of
//! the process is not read, so the process has to wait.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::loss::Loss;
use super::sink::{OutputSink, READ_MAX};
use super::wake::Waker;
use crate::lock::lock;
use crate::output::{CommandLines, Parcel, Stream, Unwritten};

/// A longer line is passed on in pieces of this size.
const LINE_MAX: usize = READ_MAX;

/// A stream of this process, and how what commands write is passed on to it.
#[derive(Clone)]
pub(super) struct Destination {
    stream: Stream,
    lines: CommandLines,
    loss: Arc<Loss>,
}

/// Bytes in the queue of a stream. Empty once their turn to be written has come. Until then they can be taken back.
type QueuedBytes = Arc<Mutex<Vec<u8>>>;

/// What a relay puts into the queue of its stream.
struct Chunk {
    bytes: QueuedBytes,
    /// See [`CommandLines::before`].
    before_lines: Option<Arc<[u8]>>,
    /// What was before it ended with its line.
    begins_line: bool,
    /// Gets the emptied buffer back.
    back: Sender<Vec<u8>>,
    /// The relay waits for its buffer, so `waker` has to wake its thread.
    wake_wanted: Arc<AtomicBool>,
    waker: Waker,
    loss: Arc<Loss>,
}

impl Destination {
    pub(super) fn new(stream: Stream, lines: CommandLines) -> Self {
        Self { loss: Arc::new(Loss::of(stream.name())), stream, lines }
    }

    /// What could not be passed on so far, in words; `None` where nothing is missing.
    pub(super) fn lost(&self) -> Option<String> {
        self.loss.summary()
    }
}

impl Parcel for Chunk {
    fn open(&mut self) -> Vec<u8> {
        let bytes = dequeue(&self.bytes);
        match &self.before_lines {
            None => bytes,
            Some(before_lines) => self.marked(before_lines, &bytes),
        }
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
    fn marked(&self, before_lines: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut marked = Vec::with_capacity(bytes.len() + before_lines.len());
        let mut begins = self.begins_line;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if begins {
                marked.extend_from_slice(before_lines);
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
    /// Those of the task that runs now.
    lines: CommandLines,
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
    /// Parts at the beginning of `filling` that came before `lines` were those: where each ends, and what stands before
    /// its lines. They are whole lines.
    earlier: VecDeque<(usize, Option<Arc<[u8]>>)>,
    /// How many bytes of `filling` are whole lines.
    whole: usize,
    /// The last byte so far was no line end.
    unfinished_line: bool,
    /// The pipe has ended.
    ended: bool,
}

impl Relay {
    /// Without a tag the lines are those of the destination.
    pub(super) fn new(destination: Destination, waker: Waker, tag: Option<&[u8]>) -> Self {
        let lines = match tag {
            None => destination.lines.clone(),
            Some(tag) => destination.lines.tagged(tag),
        };
        Self {
            destination,
            lines,
            waker,
            back: bounded(1),
            wake_wanted: Arc::default(),
            spare: Some(Vec::new()),
            queued: QueuedBytes::default(),
            filling: Vec::new(),
            last: None,
            earlier: VecDeque::new(),
            whole: 0,
            unfinished_line: false,
            ended: false,
        }
    }

    /// For what others write to the same pipe later on. It uses `waker` where this one wakes the worker thread.
    pub(super) fn again(&self, waker: Waker) -> Self {
        let mut again = Self::new(self.destination.clone(), waker, None);
        again.lines = self.lines.clone();
        again
    }

    /// What comes from now on is another task's. A line that has no end gets one.
    pub(super) fn tag(&mut self, tag: &[u8]) {
        self.end_line();
        let (length, known) = (self.filling.len(), self.earlier.back().map_or(0, |(end, _)| *end));
        if length > known {
            self.earlier.push_back((length, self.lines.before.clone()));
        }
        self.lines = self.destination.lines.tagged(tag);
        self.hand_over();
    }

    fn end_line(&mut self) {
        if mem::take(&mut self.unfinished_line) {
            self.filling.push(b'\n');
            self.whole = self.filling.len();
        }
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
        let all = self.ended || self.filling.len() >= LINE_MAX && self.whole == 0;
        let length = match self.earlier.front() {
            Some((end, _)) => *end,
            None if all => self.filling.len(),
            None => self.whole,
        };
        if length == 0 {
            return;
        }
        if let Some(mut bytes) = self.spare.take() {
            mem::swap(&mut bytes, &mut self.filling);
            self.filling.extend_from_slice(&bytes[length..]);
            bytes.truncate(length);
            self.whole = self.whole.saturating_sub(length);
            let before_lines = match self.earlier.pop_front() {
                Some((_, before)) => before,
                None => self.lines.before.clone(),
            };
            for (end, _) in &mut self.earlier {
                *end -= length;
            }
            let (back, wake_wanted, waker) =
                (self.back.0.clone(), Arc::clone(&self.wake_wanted), self.waker.clone());
            wake_wanted.store(false, Ordering::Relaxed);
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
            self.whole = self.filling.len() + newline + 1;
        }
        self.filling.extend_from_slice(bytes);
        self.unfinished_line = bytes.last().map_or(self.unfinished_line, |last| *last != b'\n');
        self.hand_over();
    }

    fn end(&mut self) {
        if !mem::replace(&mut self.ended, true) {
            if self.lines.end {
                self.end_line();
            }
            self.hand_over();
        }
    }

    fn refresh(&mut self) {
        loop {
            self.take_back();
            let waits = self.spare.is_none() && (self.ended || self.whole > 0 || self.room() == 0);
            if !waits || self.wake_wanted.swap(true, Ordering::Relaxed) {
                return;
            }
            // The buffer may have come back just before `wake_wanted` was set: look once more.
            fence(Ordering::SeqCst);
        }
    }

    fn is_idle(&self) -> bool {
        self.spare.is_some() && self.whole == 0 && (!self.ended || self.filling.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::testing::*;
    use super::super::wake::wake_pair;
    use super::*;

    fn relay(to: impl Write + Send + 'static, tag: Option<&[u8]>) -> Relay {
        let stream = Stream::start("stdout", to).unwrap();
        Relay::new(Destination::new(stream, CommandLines::DATA), wake_pair().unwrap().0, tag)
    }

    /// Until everything is written.
    fn finish(mut relay: Relay) {
        relay.end();
        wait_until("it is written", || {
            relay.refresh();
            relay.is_idle()
        });
    }

    #[test]
    fn nothing_is_left_behind_of_a_task_whose_output_nobody_takes() {
        let (_blocked, blocks) = bounded(0);
        let destination =
            Destination::new(Stream::start("stdout", Stuck(blocks)).unwrap(), CommandLines::DATA);
        let (waker, _wake_fd) = wake_pair().unwrap();
        let mut relays = [(); 2].map(|()| Relay::new(destination.clone(), waker.clone(), None));
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

    #[test]
    fn a_tag_stands_before_each_line_and_once_before_a_long_one() {
        let out = Captured::default();
        let mut relay = relay(out.clone(), Some(b"[a] "));
        relay.take(b"one\n\ntw");
        relay.take(b"o\n");
        let long = vec![b'x'; LINE_MAX];
        for _ in 0..3 {
            wait_until("there is room", || {
                relay.refresh();
                relay.room() == LINE_MAX
            });
            relay.take(&long);
        }
        finish(relay);
        assert_eq!(out.text(), format!("[a] one\n[a] \n[a] two\n[a] {}\n", "x".repeat(3 * LINE_MAX)));
    }

    #[test]
    fn what_waits_when_the_task_changes_keeps_its_own_tag() {
        let (blocked, blocks) = bounded(0);
        let out = Captured::default();
        let mut relay = relay(StuckAtFirst(Some(blocks), out.clone()), Some(b"[-] "));
        relay.take(b"started\n");
        for (tag, text) in
            [("[a] ", "one\nno end"), ("[-] ", ""), ("[-] ", "between\n"), ("[b] ", "\n"), ("[c] ", "end")]
        {
            relay.tag(tag.as_bytes());
            relay.take(text.as_bytes());
        }
        drop(blocked);
        finish(relay);
        let tagged = "[-] started\n[a] one\n[a] no end\n[-] between\n[b] \n[c] end\n";
        assert_eq!(out.text(), tagged);
    }
}
