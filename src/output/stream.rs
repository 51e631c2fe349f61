//! One output stream, and the thread that alone writes to it.
//!
//! Whoever reads a stream may stop reading: a pager that nobody scrolls, a terminal after Ctrl-S, a log collector that
//! hangs. Only the stream's own thread waits for that. What is written is handed to it, and stays in order.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;
use log::{Level, Record};

use super::format::LogFormat;
use crate::cancel::Never;
use crate::lock::lock;
use crate::output::counted;

/// How many bytes of messages wait for a reader; further ones are dropped, and counted.
const MESSAGES_BYTES: usize = 256 * 1024;
/// How many more where it is the errors that wait: there are few of them, and they say why a command ended.
const ERRORS_BYTES: usize = 64 * 1024;
/// How long a reader that is slow holds up who has a message for it. One that takes nothing for so long has stopped
/// reading, and holds up nobody until it goes on.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is written in one piece, so that a slow reader is seen to read.
const PIECE: usize = 16 * 1024;
/// How long a stream that somebody else made non-blocking (a terminal shared with another program) is left alone.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Back to the start of the line, which is cleared.
const CLEAR: &[u8] = b"\r\x1b[K";

/// Bytes that bound themselves: whoever hands them over waits for them to be written before more follow.
pub trait Parcel: Send {
    /// What there is to write, now that its turn has come.
    fn open(&mut self) -> Vec<u8>;

    /// It was written, or not all of it. The buffer is empty.
    fn written(self: Box<Self>, buffer: Vec<u8>, result: Result<(), Unwritten>);
}

/// What could not be written, and why.
#[derive(Debug)]
pub struct Unwritten {
    /// How many bytes are missing at the end.
    pub bytes: usize,
    /// What the system said.
    pub error: io::Error,
}

/// A stream; clones belong to the same one. The thread ends when the last one is dropped and everything is written.
#[derive(Clone)]
pub struct Stream(Arc<Handle>);

struct Handle(Arc<Inner>);

struct Inner {
    name: &'static str,
    state: Mutex<State>,
    /// For the thread: there is something to write.
    filled: Condvar,
    /// For those with messages: there may be room.
    moved: Condvar,
}

struct State {
    queue: VecDeque<Entry>,
    /// Bytes of the messages in it.
    waiting: usize,
    /// The thread has something to write.
    writing: bool,
    /// When the reader last took something, or had nothing to take.
    moved_at: Instant,
    closed: bool,
    /// A line is drawn that the next message replaces.
    drawn: bool,
}

enum Entry {
    Message(Vec<u8>),
    /// So many messages had no room here.
    Dropped(u64),
    Parcel(Box<dyn Parcel>),
    /// Dropped when everything before it is written.
    Mark(#[allow(dead_code)] Sender<Never>),
}

thread_local! {
    static NEVER_WAITS: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread never waits for room, not even for a short time: it hears signals, or it writes.
pub(super) fn never_wait_here() {
    NEVER_WAITS.set(true);
}

impl Stream {
    /// Starts the thread. `name` is what messages call the stream.
    pub fn start(name: &'static str, to: impl Write + Send + 'static) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            name,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                waiting: 0,
                writing: false,
                moved_at: Instant::now(),
                closed: false,
                drawn: false,
            }),
            filled: Condvar::new(),
            moved: Condvar::new(),
        });
        let writer = Arc::clone(&inner);
        thread::Builder::new().name(format!("write-{name}")).spawn(move || writer.write_on(to))?;
        Ok(Self(Arc::new(Handle(inner))))
    }

    /// How messages call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.0.name
    }

    /// Hands over a whole line for a person, which is dropped where too much waits already. `grave` ones have more room.
    pub(super) fn say(&self, mut line: Vec<u8>, grave: bool) {
        let most = if grave { MESSAGES_BYTES + ERRORS_BYTES } else { MESSAGES_BYTES };
        let inner = &*self.0.0;
        let mut state = lock(&inner.state);
        if std::mem::take(&mut state.drawn) {
            line.splice(..0, CLEAR.iter().copied());
        }
        let has_room = |state: &State| state.waiting == 0 || state.waiting + line.len() <= most;
        while !NEVER_WAITS.get() && !has_room(&state) {
            let Some(left) = PATIENCE.checked_sub(state.moved_at.elapsed()) else { break };
            state = inner
                .moved
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        if has_room(&state) {
            state.waiting += line.len();
            inner.push(state, Entry::Message(line));
        } else if let Some(Entry::Dropped(count)) = state.queue.back_mut() {
            *count += 1;
        } else {
            inner.push(state, Entry::Dropped(1));
        }
    }

    /// Draws a line on a terminal that is of interest only now, in place of the one before, unless anything waits already.
    /// The next message takes its place.
    pub fn draw(&self, line: &str) {
        let inner = &*self.0.0;
        let mut state = lock(&inner.state);
        if state.waiting == 0 {
            let line = [CLEAR, line.as_bytes()].concat();
            state.waiting += line.len();
            state.drawn = true;
            inner.push(state, Entry::Message(line));
        }
    }

    /// Takes such a line away.
    pub fn clear(&self) {
        let inner = &*self.0.0;
        let mut state = lock(&inner.state);
        if std::mem::take(&mut state.drawn) {
            state.waiting += CLEAR.len();
            inner.push(state, Entry::Message(CLEAR.to_vec()));
        }
    }

    /// Hands over what bounds itself.
    pub fn pass(&self, parcel: Box<dyn Parcel>) {
        let inner = &*self.0.0;
        inner.push(lock(&inner.state), Entry::Parcel(parcel));
    }

    /// Drops `mark` when everything that was handed over before is written.
    pub fn mark(&self, mark: Sender<Never>) {
        let inner = &*self.0.0;
        inner.push(lock(&inner.state), Entry::Mark(mark));
    }

    /// Since when the reader has taken nothing although there was something to take.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        let state = lock(&self.0.0.state);
        (state.writing || !state.queue.is_empty()).then_some(state.moved_at)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.filled.notify_one();
    }
}

impl Inner {
    fn push(&self, mut state: MutexGuard<'_, State>, entry: Entry) {
        if !state.writing && state.queue.is_empty() {
            state.moved_at = Instant::now();
        }
        state.queue.push_back(entry);
        drop(state);
        self.filled.notify_one();
    }

    fn write_on(&self, mut to: impl Write) {
        never_wait_here();
        // Messages that were dropped or not taken, and of which nothing is told yet.
        let mut lost = 0;
        loop {
            let entry = self.at_hand().or_else(|| {
                self.tell_lost(&mut to, &mut lost);
                self.next()
            });
            match entry {
                None => return,
                Some(Entry::Mark(mark)) => {
                    self.tell_lost(&mut to, &mut lost);
                    drop(mark);
                }
                Some(Entry::Dropped(count)) => lost += count,
                Some(Entry::Message(line)) => {
                    self.tell_lost(&mut to, &mut lost);
                    if lost > 0 || self.write(&mut to, &line).is_err() {
                        lost += 1;
                    }
                }
                Some(Entry::Parcel(mut parcel)) => {
                    let mut buffer = parcel.open();
                    let result = self.write(&mut to, &buffer);
                    buffer.clear();
                    parcel.written(buffer, result);
                }
            }
        }
    }

    /// What comes next; the stream counts as being written to until there is nothing.
    fn at_hand(&self) -> Option<Entry> {
        let mut state = lock(&self.state);
        let entry = state.queue.pop_front()?;
        state.writing = true;
        if let Entry::Message(line) = &entry {
            state.waiting -= line.len();
            drop(state);
            self.moved.notify_all();
        }
        Some(entry)
    }

    /// Waits for it. `None` when nothing will come any more.
    fn next(&self) -> Option<Entry> {
        let mut state = lock(&self.state);
        while state.queue.is_empty() {
            state.writing = false;
            if state.closed {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.at_hand()
    }

    fn tell_lost(&self, to: &mut impl Write, lost: &mut u64) {
        if *lost == 0 {
            return;
        }
        let lost_here = counted(*lost, "message is", "messages are");
        let text = format_args!("{lost_here} missing here: nobody took them from {}", self.name);
        let record = Record::builder().args(text).level(Level::Warn).build();
        let line = LogFormat::current().line(&record, SystemTime::now());
        if self.write(to, line.as_bytes()).is_ok() {
            *lost = 0;
        }
    }

    fn write(&self, to: &mut impl Write, mut bytes: &[u8]) -> Result<(), Unwritten> {
        loop {
            let piece = &bytes[..bytes.len().min(PIECE)];
            let result =
                if piece.is_empty() { to.flush() } else { to.write(piece).map(|n| bytes = &bytes[n..]) };
            match result {
                Ok(()) if piece.is_empty() => return Ok(()),
                Ok(()) => {
                    lock(&self.state).moved_at = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
                Err(error) => return Err(Unwritten { bytes: bytes.len(), error }),
            }
        }
    }
}

#[cfg(test)]
mod tests;
