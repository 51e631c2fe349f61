//! Where the tasks of one `send` come from: a single body, or the records of a stream, read on a thread of their
//! own so that a slow producer's line goes out as soon as it is complete.

use std::io::{self, BufRead, BufReader, Read};
use std::thread;

use crossbeam_channel::{Receiver, Sender};

use crate::error::{Error, Result};

/// The largest body taskq sends, in bytes: RabbitMQ's own default limit up to 3.13 (4.x allows 16 MiB unless told
/// otherwise). What is larger belongs in a file or an object store, and its name in the task.
pub const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;
/// Lines that are there already travel together, in parcels of about this many bytes.
const PARCEL_BYTES: usize = 64 * 1024;
/// Parcels read ahead of the sender.
const PARCELS_AHEAD: usize = 1;

/// One task to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    /// Its number in the input, from 1.
    pub number: u64,
    /// The body, or how many bytes it would have had where that is over [`MAX_BODY_BYTES`].
    pub body: std::result::Result<Vec<u8>, u64>,
}

/// Some items that were there at the same time, or why there are no more.
pub type Parcel = io::Result<Vec<Item>>;

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
    /// Starts to read; the channel closes at the end.
    ///
    /// # Errors
    /// Internal, when the thread cannot be started.
    pub fn start(self) -> Result<Receiver<Parcel>> {
        let (sender, receiver) = crossbeam_channel::bounded(PARCELS_AHEAD);
        match self {
            Self::Single(body) => {
                let body = if body.len() > MAX_BODY_BYTES { Err(body.len() as u64) } else { Ok(body) };
                // Has room for one.
                let _ = sender.send(Ok(vec![Item { number: 1, body }]));
            }
            Self::Records { input, separator } => {
                thread::Builder::new()
                    .name("input".into())
                    .spawn(move || {
                        read_records(BufReader::with_capacity(PARCEL_BYTES, input), separator, &sender);
                    })
                    .map_err(|error| Error::internal(format!("cannot start a thread: {error}")))?;
            }
        }
        Ok(receiver)
    }
}

fn read_records<R: Read>(mut input: BufReader<R>, separator: u8, sender: &Sender<Parcel>) {
    let mut number = 0;
    loop {
        let mut parcel = Vec::new();
        let mut bytes = 0;
        let end = loop {
            match read_record(&mut input, separator, MAX_BODY_BYTES) {
                Ok(Some(body)) => {
                    number += 1;
                    bytes += body.as_ref().map_or(0, Vec::len);
                    parcel.push(Item { number, body });
                }
                Ok(None) => break Some(Ok(())),
                Err(error) => break Some(Err(error)),
            }
            // Nothing that is complete may wait for what is not: the next record is read only if it is here.
            if bytes >= PARCEL_BYTES || !input.buffer().contains(&separator) {
                break None;
            }
        };
        // An error means that the sender has given up.
        if !parcel.is_empty() && sender.send(Ok(parcel)).is_err() {
            return;
        }
        match end {
            None => {}
            Some(Ok(())) => return,
            Some(Err(error)) => {
                let _ = sender.send(Err(error));
                return;
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
        let parcels = Source::Records { input: Box::new(reader), separator: b'\n' }.start().unwrap();
        for number in 1..4 {
            io::Write::write_all(&mut writer, b"line\nincompl").unwrap();
            // Blocks for ever where the reader waits for more.
            let parcel = parcels.recv().unwrap().unwrap();
            assert_eq!(parcel.len(), 1);
            assert_eq!(parcel[0].number, number);
        }
        drop(writer);
        assert_eq!(parcels.recv().unwrap().unwrap().len(), 1);
        assert!(parcels.recv().is_err());
    }
}
