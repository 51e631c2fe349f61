//! Frames on their way out, taken by the stream in pieces of all sizes.

use super::*;
use crate::broker::frames::{BODY, FRAME_END};
use crate::broker::methods::{CHANNEL_CLOSE, CHANNEL_OPEN, Method, PUBLISH};

const SIZES: [usize; 9] = [1, 2, 3, 7, 8, 11, 13, 64, 1 << 20];

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind], &channel.to_be_bytes()[..], &size, payload, &[FRAME_END]].concat()
}

fn method(channel: u16, method: Method, arguments: &[u8]) -> Vec<u8> {
    frame(METHOD, channel, &[&method[..], arguments].concat())
}

fn publish(channel: u16) -> Vec<u8> {
    method(channel, PUBLISH, &[0, 0, 0, 1, b'q', 1])
}

fn header(channel: u16, body: u64) -> Vec<u8> {
    frame(HEADER, channel, &[&[0, 60, 0, 0][..], &body.to_be_bytes(), &[0, 0]].concat())
}

fn body(channel: u16, bytes: usize) -> Vec<u8> {
    frame(BODY, channel, &vec![b'x'; bytes])
}

fn close_ok(channel: u16) -> Vec<u8> {
    method(channel, CHANNEL_CLOSE_OK, &[])
}

/// The protocol header, and channels that are opened.
fn opening(channels: &[u16]) -> Vec<u8> {
    let opens = channels.iter().flat_map(|channel| method(*channel, CHANNEL_OPEN, &[0]));
    b"AMQP\0\0\x09\x01".iter().copied().chain(opens).collect()
}

/// Takes so many bytes at a time, and none every other time.
struct Narrow {
    taken: Vec<u8>,
    width: usize,
    blocks: bool,
}

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.blocks = !self.blocks;
        if self.blocks {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(self.width);
        self.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What amiquip has to write, and what it got rid of.
struct Line {
    outgoing: Outgoing,
    accounts: Accounts,
    stream: Narrow,
    waiting: Vec<u8>,
}

impl Line {
    fn new(width: usize) -> Self {
        let stream = Narrow { taken: Vec::new(), width, blocks: false };
        let (outgoing, accounts) = (Outgoing::default(), Accounts::default());
        Self { outgoing, accounts, stream, waiting: Vec::new() }
    }

    /// One of amiquip's calls.
    fn write(&mut self) {
        match self.outgoing.write(&mut self.stream, &self.waiting, &mut self.accounts) {
            Ok(count) => drop(self.waiting.drain(..count)),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(self.stream.blocks, "the stream itself did not block");
            }
        }
    }

    fn write_all(&mut self) {
        while !self.waiting.is_empty() {
            self.write();
        }
    }

    fn close_by_broker(&mut self, channel: u16) {
        assert_eq!(self.accounts.note_received(channel, &CHANNEL_CLOSE), Ok(()));
    }
}

/// What the broker gets of `before` and `after`, taken in pieces of that size, if it closes the channels when it has got
/// `early` bytes and nothing of `after` is there yet.
fn sent(channels: &[u16], before: &[u8], early: usize, after: &[u8], width: usize) -> Vec<u8> {
    let mut line = Line::new(width);
    line.waiting = opening(channels);
    line.write_all();
    line.stream.taken.clear();
    line.waiting.extend(before);
    while line.stream.taken.len() < early.min(before.len()) {
        line.write();
    }
    for channel in channels {
        line.close_by_broker(*channel);
    }
    line.waiting.extend(after);
    line.write_all();
    assert!(!line.accounts.owes_close_ok(), "it was answered");
    line.stream.taken
}

/// Whenever the close comes, and however much the stream takes at a time.
fn assert_sent(channels: &[u16], before: &[u8], after: &[u8], wanted: &[u8]) {
    for width in SIZES {
        for early in 0..=before.len().min(60) {
            let sent = sent(channels, before, early, after, width);
            assert!(sent == wanted, "pieces of {width}, closed after {early}: {}", sent.escape_ascii());
        }
    }
}

#[test]
fn a_content_is_made_whole_before_the_answer_to_the_close() {
    let next = [method(1, CHANNEL_OPEN, &[0]), publish(1), header(1, 3), body(1, 3)].concat();
    let after = [close_ok(1), next].concat();
    for (before, made_up) in [
        (publish(1), header(1, 0)),
        ([publish(1), header(1, 1)].concat(), frame(BODY, 1, &[0])),
        ([publish(1), header(1, 8), body(1, 3)].concat(), frame(BODY, 1, &[0; 5])),
        (
            [publish(1), header(1, 5000)].concat(),
            [frame(BODY, 1, &[0; 4088]), frame(BODY, 1, &[0; 912])].concat(),
        ),
        // The one before it is whole.
        ([publish(1), header(1, 3), body(1, 3), publish(1)].concat(), header(1, 0)),
    ] {
        assert_sent(&[1], &before, &after, &[&before[..], &made_up, &after].concat());
    }
}

#[test]
fn what_is_whole_goes_out_as_it_is() {
    let after = [close_ok(1), method(1, CHANNEL_OPEN, &[0])].concat();
    for before in [
        vec![],
        [publish(1), header(1, 0)].concat(),
        [publish(1), header(1, 8), body(1, 3), body(1, 5)].concat(),
        method(1, [0, 50, 0, 10], &[0; 40]),
    ] {
        assert_sent(&[1], &before, &after, &[&before[..], &after].concat());
    }
}

#[test]
fn each_channel_has_a_content_of_its_own() {
    let heartbeat = frame(8, 0, &[]);
    let before = [publish(1), publish(2), heartbeat, header(2, 9), publish(3), body(2, 2)].concat();
    let rest = [body(2, 7), publish(4), header(4, 0)].concat();
    let after = [&rest[..], &close_ok(1), &close_ok(3), &close_ok(2), &close_ok(4)].concat();
    let wanted =
        [&before[..], &rest, &header(1, 0), &close_ok(1), &header(3, 0), &close_ok(3), &close_ok(2)].concat();
    assert_sent(&[1, 2, 3, 4], &before, &after, &[wanted, close_ok(4)].concat());
}

#[test]
fn a_large_rest_is_not_made_up() {
    const LIMIT: usize = 128 * 1024;
    let zeros = vec![0; LIMIT];
    let made_up = zeros.chunks(4088).flat_map(|piece| frame(BODY, 1, piece)).collect();
    for (missing, made_up) in [(LIMIT, made_up), (LIMIT + 1, vec![])] {
        let before = [publish(1), header(1, missing as u64 + 70_000), body(1, 70_000)].concat();
        let wanted = [&before[..], &made_up, &close_ok(1)].concat();
        for width in [1, 4096, 1 << 20] {
            let sent = sent(&[1], &before, 100, &close_ok(1), width);
            assert!(sent == wanted, "{missing} missing, pieces of {width}");
        }
    }
}

#[test]
fn nothing_is_looked_for_before_the_broker_closes_a_channel() {
    let mut line = Line::new(7);
    line.waiting = [opening(&[1]), publish(1), close_ok(1)].concat();
    let wanted = line.waiting.clone();
    line.write_all();
    assert_eq!(line.stream.taken, wanted);
}

#[test]
fn a_stream_that_takes_nothing_more_is_an_error() {
    let mut line = Line::new(1 << 20);
    line.waiting = [opening(&[1]), publish(1)].concat();
    line.write_all();
    line.close_by_broker(1);
    let closed = line.outgoing.write(&mut &mut [][..], &close_ok(1), &mut line.accounts);
    assert_eq!(closed.map_err(|error| error.kind()), Err(io::ErrorKind::WriteZero));
}

/// Publishes so many messages and asks for one task at a time.
fn published(count: usize) -> Vec<u8> {
    let publish = [publish(1), header(1, 5), body(1, 5)].concat();
    [opening(&[1]), publish.repeat(count), method(1, [0, 60, 0, 10], &[0, 0, 0, 0, 0, 1, 0])].concat()
}

fn pass(accounts: &mut Accounts, payload: &[u8]) -> usize {
    (0..10_000).take_while(|_| accounts.note_received(1, payload) == Ok(())).count()
}

#[test]
fn frames_are_seen_however_they_are_cut() {
    for size in [1, 2, 7, 13, 64, 1 << 20] {
        let mut line = Line::new(size);
        line.waiting = published(200);
        line.write_all();
        let mut accounts = line.accounts;
        // All of them may come back, with what they held, and a few that never were.
        let mut returned = |bytes| {
            assert_eq!(accounts.note_received(1, &[0, 60, 0, 50]), Ok(()));
            accounts.note_received_content(1, bytes)
        };
        assert_eq!(returned(200 * 1000), Ok(()), "in pieces of {size}");
        assert!(returned(10 << 20).is_err(), "more than was published, in pieces of {size}");
        assert!((198..400).contains(&pass(&mut accounts, &[0, 60, 0, 50])), "in pieces of {size}");
        assert!((2..100).contains(&pass(&mut accounts, &[0, 60, 0, 60])), "a prefetch of one");
    }
}
