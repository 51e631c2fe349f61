//! Where the tasks of one `send` come from: a single body, or the records of a stream, read on a thread of their
//! own so that a slow producer's line goes out as soon as it is complete.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, never, select};

use super::FileFingerprint;
use crate::broker::Body;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::shortage;

/// The largest body taskq sends, in bytes: RabbitMQ's own default limit up to 3.13 (4.x allows 16 MiB unless told
/// otherwise). What is larger belongs in a file or an object store, and its name in the task.
pub const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;
/// Lines that are there already travel together, in batches of about this many bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// Batches read ahead of the sender.
const BATCHES_AHEAD: usize = 1;
/// How long a read may take that is about to bring something.
const JUST_READING: Duration = Duration::from_millis(10);

/// One task to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    /// Its number in the input, from 1.
    pub number: u64,
    /// The body, or how many bytes it would have had where that is over [`MAX_BODY_BYTES`].
    pub body: std::result::Result<Body, u64>,
}

/// Some items that were there at the same time, or why there are no more.
pub type Batch = io::Result<Vec<Item>>;

/// Where tasks come from.
pub enum Source {
    /// One task.
    Single(Vec<u8>),
    /// One task a record.
    Records {
        /// What to read.
        input: Box<dyn Read + Send>,
        /// What ends a record; not part of it. The last record may do without.
        separator: u8,
    },
}

impl Source {
    /// Starts to read. `wait_for_room` is called before each read of a stream, and returns when more can be sent.
    pub fn start(self, wait_for_room: impl Fn() + Send + 'static) -> Result<Input> {
        let (sender, batches) = crossbeam_channel::bounded(BATCHES_AHEAD);
        let (tell, came_to_wait) = crossbeam_channel::bounded(1);
        let state = Arc::<Mutex<ReaderState>>::default();
        match self {
            Self::Single(body) => {
                lock(&state).read.add(&body);
                lock(&state).ended = true;
                let body =
                    if body.len() > MAX_BODY_BYTES { Err(body.len() as u64) } else { Ok(Body::new(body)) };
                // Has room for one.
                let _ = sender.send(Ok(vec![Item { number: 1, body }]));
            }
            Self::Records { input, separator } => {
                let wait_for_room = Box::new(wait_for_room);
                let tapped = Tapped { input, wait_for_room, state: Arc::clone(&state), tell };
                thread::Builder::new()
                    .name("input".into())
                    .spawn(move || tapped.read_records(separator, &sender))
                    .map_err(|error| {
                        Error::internal(format!("cannot start a thread: {}", shortage::reason(&error)))
                    })?;
            }
        }
        Ok(Input { batches, came_to_wait, state })
    }
}

/// A source that is being read.
pub struct Input {
    /// What it yields, in order; closes at the end.
    pub batches: Receiver<Batch>,
    /// The reader waits for the input, or did so a moment ago.
    came_to_wait: Receiver<()>,
    state: Arc<Mutex<ReaderState>>,
}

impl Input {
    /// Has no more read, and returns what is read already, a batch with each call. Never waits for an input that may
    /// have no end.
    pub fn next_at_hand(&self) -> Option<Vec<Item>> {
        lock(&self.state).closed = true;
        loop {
            // When the reader waits, all the tasks that it has read are in the channel.
            let patience = if lock(&self.state).waits { at(Instant::now() + JUST_READING) } else { never() };
            select! {
                recv(self.batches) -> batch => return batch.ok()?.ok(),
                recv(self.came_to_wait) -> _ => {}
                recv(patience) -> _ => return None,
            }
        }
    }

    /// Whether there is nothing more to read than what the channel holds.
    #[must_use]
    pub fn is_at_its_end(&self) -> bool {
        lock(&self.state).ended
    }

    /// All that was read, where that is all there was.
    #[must_use]
    pub fn all_of_it(&self) -> Option<FileFingerprint> {
        self.is_at_its_end().then(|| lock(&self.state).read)
    }
}

/// What the thread that reads and the one that sends know of each other.
#[derive(Default)]
struct ReaderState {
    /// Nothing more is to be read.
    closed: bool,
    /// The reader waits for the input, and holds no task.
    waits: bool,
    /// The end of the input was read.
    ended: bool,
    /// What came before it.
    read: FileFingerprint,
}

/// Reads while it may.
struct Tapped {
    input: Box<dyn Read + Send>,
    wait_for_room: Box<dyn Fn() + Send>,
    state: Arc<Mutex<ReaderState>>,
    /// That it has come to wait.
    tell: Sender<()>,
}

impl Tapped {
    fn read_records(self, separator: u8, sender: &Sender<Batch>) {
        let state = Arc::clone(&self.state);
        if read_records(BufReader::with_capacity(BATCH_BYTES, self), separator, sender) {
            lock(&state).ended = true;
        }
    }
}

impl Read for Tapped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        lock(&self.state).waits = true;
        // It is full where nobody asks.
        let _ = self.tell.try_send(());
        (self.wait_for_room)();
        // No end: what is read of a record that is not complete must not pass for one.
        let closed = lock(&self.state).closed;
        let read = if closed { Err(io::Error::other("no more is wanted")) } else { self.input.read(buffer) };
        let mut state = lock(&self.state);
        state.waits = false;
        if let Ok(length) = &read {
            state.read.add(&buffer[..*length]);
        }
        read
    }
}

/// Returns whether it came to the end of the input.
fn read_records<R: Read>(mut input: BufReader<R>, separator: u8, sender: &Sender<Batch>) -> bool {
    let mut number = 0;
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let end = loop {
            match read_record(&mut input, separator, MAX_BODY_BYTES) {
                Ok(Some(body)) => {
                    number += 1;
                    bytes += body.as_ref().map_or(0, Vec::len);
                    batch.push(Item { number, body: body.map(Body::new) });
                }
                Ok(None) => break Some(Ok(())),
                Err(error) => break Some(Err(error)),
            }
            // Nothing that is complete may wait for what is not: the next record is read only if it is here.
            if bytes >= BATCH_BYTES || !input.buffer().contains(&separator) {
                break None;
            }
        };
        // An error means that the sender has given up.
        if !batch.is_empty() && sender.send(Ok(batch)).is_err() {
            return false;
        }
        match end {
            None => {}
            Some(Ok(())) => return true,
            Some(Err(error)) => {
                let _ = sender.send(Err(error));
                return false;
            }
        }
    }
}

/// Reads one record without its separator; `None` at the end. A record longer than `limit` is skipped, and its
/// length returned in its place.
fn read_record<R: BufRead>(
    input: &mut R,
    separator: u8,
    limit: usize,
) -> io::Result<Option<std::result::Result<Vec<u8>, u64>>> {
    let mut record = Vec::new();
    let most = limit as u64 + 1;
    let read = input.by_ref().take(most).read_until(separator, &mut record)?;
    if read == 0 {
        return Ok(None);
    }
    if record.last() == Some(&separator) {
        record.pop();
        return Ok(Some(Ok(record)));
    }
    if record.len() <= limit {
        return Ok(Some(Ok(record)));
    }
    drop(record);
    Ok(Some(Err(most + skip_record(input, separator)?)))
}

/// Reads past the next separator and returns how many bytes came before it.
fn skip_record<R: BufRead>(input: &mut R, separator: u8) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok(skipped);
        }
        if let Some(at) = buffer.iter().position(|byte| *byte == separator) {
            input.consume(at + 1);
            return Ok(skipped + at as u64);
        }
        let length = buffer.len();
        input.consume(length);
        skipped += length as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn records(mut input: &[u8], separator: u8, limit: usize) -> Vec<std::result::Result<Vec<u8>, u64>> {
        std::iter::from_fn(|| read_record(&mut input, separator, limit).unwrap()).collect()
    }

    #[test]
    fn records_end_with_their_separator_or_the_input() {
        let ok = |body: &[u8]| Ok(body.to_vec());
        assert_eq!(records(b"a\n\nb\r\nc", b'\n', 9), [ok(b"a"), ok(b""), ok(b"b\r"), ok(b"c")]);
        assert_eq!(records(b"a\n", b'\n', 9), [ok(b"a")]);
        assert_eq!(records(b"", b'\n', 9), []);
        assert_eq!(records(b"a\nb\0\0", 0, 9), [ok(b"a\nb"), ok(b"")]);
    }

    #[test]
    fn a_record_over_the_limit_is_skipped_and_measured() {
        let ok = |body: &[u8]| Ok(body.to_vec());
        assert_eq!(records(b"123\n1234\n12345678\n1\n", b'\n', 3), [ok(b"123"), Err(4), Err(8), ok(b"1")]);
        assert_eq!(records(b"1234", b'\n', 3), [Err(4)]);
    }

    #[test]
    fn a_complete_line_does_not_wait_for_the_next_one() {
        let (reader, mut writer) = io::pipe().unwrap();
        let input = Source::Records { input: Box::new(reader), separator: b'\n' }.start(|| {}).unwrap();
        let batches = &input.batches;
        for number in 1..4 {
            io::Write::write_all(&mut writer, b"line\nincompl").unwrap();
            // Blocks for ever where the reader waits for more.
            let batch = batches.recv().unwrap().unwrap();
            assert_eq!(batch.len(), 1);
            assert_eq!(batch[0].number, number);
        }
        drop(writer);
        assert_eq!(batches.recv().unwrap().unwrap().len(), 1);
        assert!(batches.recv().is_err());
        assert_eq!(input.all_of_it().unwrap().bytes(), 3 * 12);
    }

    #[test]
    fn what_is_at_hand_is_all_that_was_read_and_nothing_incomplete() {
        let (reader, mut writer) = io::pipe().unwrap();
        // More than is read ahead, so that the reader holds some of it when it is told to stop.
        let lines = "line\n".repeat(3 * BATCH_BYTES / 5);
        // Fails when the reader has stopped.
        thread::spawn(move || io::Write::write_all(&mut writer, lines.as_bytes()));
        let input = Source::Records { input: Box::new(reader), separator: b'\n' }.start(|| {}).unwrap();
        let first = input.batches.recv().unwrap().unwrap().len() as u64;
        let rest: Vec<Item> = std::iter::from_fn(|| input.next_at_hand()).flatten().collect();
        let numbers: Vec<u64> = rest.iter().map(|item| item.number).collect();
        assert_eq!(numbers, (first + 1..=first + rest.len() as u64).collect::<Vec<_>>());
        assert!(rest.iter().all(|item| item.body == Ok(Body::new(b"line".to_vec()))));
        assert!(!input.is_at_its_end() && input.all_of_it().is_none());
    }

    #[test]
    fn an_input_without_end_is_not_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"one\ntwo\nincompl").unwrap();
        let input = Source::Records { input: Box::new(reader), separator: b'\n' }.start(|| {}).unwrap();
        assert_eq!(input.batches.recv().unwrap().unwrap().len(), 2);
        for _ in 0..2 {
            assert!(input.next_at_hand().is_none());
        }
        // Nor is room for what would come.
        let (full, room) = crossbeam_channel::bounded::<()>(0);
        let wait_for_room = move || assert!(room.recv().is_err());
        let source = Source::Records { input: Box::new(io::repeat(b'\n')), separator: b'\n' };
        let input = source.start(wait_for_room).unwrap();
        assert!(input.next_at_hand().is_none());
        drop(full);
        assert!(input.batches.recv().unwrap().is_err(), "no more is wanted");
    }

    #[test]
    fn a_single_body_is_all_there_is() {
        let input = Source::Single(b"body".to_vec()).start(|| {}).unwrap();
        assert!(input.is_at_its_end());
        assert_eq!(input.all_of_it().unwrap().bytes(), 4);
        assert_eq!(
            input.next_at_hand().unwrap(),
            [Item { number: 1, body: Ok(Body::new(b"body".to_vec())) }]
        );
        assert!(input.next_at_hand().is_none());
    }
}
