//! Looks at the bytes that come from the peer before amiquip does, which would allocate whatever a frame header
//! announces and queue whatever comes: what is no AMQP, what is too large and what nobody asked for ends the connection
//! here; what amiquip cannot read is rewritten (`sanitize`).

use super::accounts::Accounts;
use super::contents::Contents;
use super::methods::{CHANNEL_CLOSE, CHANNEL_CLOSE_OK};
use super::sanitize;
use super::violation::Violation;

/// The largest frame taskq asks for, and the largest payload it accepts, in bytes; RabbitMQ's own default.
pub(super) const FRAME_MAX: u32 = 131_072;
/// What of a frame is not its payload, the end octet last. The negotiated size includes it.
pub const FRAME_OVERHEAD: usize = PREFIX + 1;
/// No body can be larger in any RabbitMQ (its `max_message_size` cannot be set higher).
const BODY_MAX: u64 = 512 * 1024 * 1024;
/// More room than this is given back once it is empty.
const ROOM_KEPT: usize = 1024 * 1024;

pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Type, channel, payload size.
pub(super) const PREFIX: usize = 7;
pub(super) const FRAME_END: u8 = 0xce;
/// Of a content header: class, weight, body size.
pub(super) const HEADER_PREFIX: usize = 12;

/// A whole one.
const HEARTBEAT_FRAME: [u8; FRAME_OVERHEAD] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, FRAME_END];

/// Type, channel and payload size of the frame that begins so.
pub(super) fn prefix(frame: &[u8]) -> Option<(u8, u16, usize)> {
    let [kind, c1, c0, s3, s2, s1, s0] = *frame.first_chunk::<PREFIX>()?;
    Some((kind, u16::from_be_bytes([c1, c0]), u32::from_be_bytes([s3, s2, s1, s0]) as usize))
}

/// What a content header announces.
pub(super) fn body_size(header: &[u8]) -> u64 {
    header.get(4..).and_then(|rest| rest.first_chunk()).map_or(0, |size| u64::from_be_bytes(*size))
}

/// The limits of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tuned {
    /// The largest frame that both sides take, in bytes of its payload and [`FRAME_OVERHEAD`].
    pub(super) frame_max: u32,
    /// How many channels the broker allows.
    pub(super) channel_max: u16,
}

/// The peer's bytes on their way to amiquip: frames of methods and headers are held back until they are whole, checked
/// and put into a form that it can read; bodies go through as they come, large ones once some of it is there.
#[derive(Debug, Default)]
pub(super) struct FrameFilter {
    /// What has passed.
    ready: Vec<u8>,
    /// Up to here it was taken out.
    taken: usize,
    /// The frame that comes in, as far as it has to be seen whole.
    frame: Vec<u8>,
    /// The rest of a frame that need not be seen.
    passing: Option<Passing>,
    contents: Contents,
    seen_frame: bool,
    tuned: Option<Tuned>,
}

#[derive(Debug, Clone, Copy)]
struct Passing {
    kind: u8,
    channel: u16,
    left: usize,
}

impl FrameFilter {
    /// Takes in what came next from the peer; tells whether it was anything but heartbeats.
    pub(super) fn put(&mut self, mut bytes: &[u8], accounts: &mut Accounts) -> Result<bool, Violation> {
        if self.taken > 0 {
            self.ready.drain(..self.taken);
            self.taken = 0;
        }
        let (mut substance, mut held) = (false, false);
        while !bytes.is_empty() {
            let (kind, rest) = if let Some(passing) = self.passing {
                let (now, rest) = bytes.split_at(passing.left.min(bytes.len()));
                held |= !self.pass(passing, now);
                (passing.kind, rest)
            } else {
                let rest = self.collect(bytes)?;
                let kind = self.frame[0];
                self.look(accounts)?;
                (kind, rest)
            };
            substance |= kind != HEARTBEAT;
            bytes = rest;
        }
        if held && self.ready.is_empty() {
            // Else amiquip would miss the broker's heartbeats while a large body comes in slowly.
            self.ready.extend(HEARTBEAT_FRAME);
        }
        Ok(substance)
    }

    /// Hands on what has passed, as far as there is room.
    pub(super) fn take(&mut self, room: &mut [u8]) -> usize {
        let count = room.len().min(self.ready.len() - self.taken);
        room[..count].copy_from_slice(&self.ready[self.taken..self.taken + count]);
        self.taken += count;
        if self.taken == self.ready.len() {
            self.taken = 0;
            if self.ready.capacity() > ROOM_KEPT {
                self.ready = Vec::new();
            } else {
                self.ready.clear();
            }
        }
        count
    }

    /// Known from the broker's wishes on.
    pub(super) fn tuned(&self) -> Option<Tuned> {
        self.tuned
    }

    /// A piece of a frame that need not be seen whole; false if it has to wait.
    fn pass(&mut self, passing: Passing, bytes: &[u8]) -> bool {
        let left = passing.left - bytes.len();
        self.passing = (left > 0).then_some(Passing { left, ..passing });
        if !self.contents.is_held(passing.channel) {
            self.ready.extend_from_slice(bytes);
            return true;
        }
        let Some(content) = self.contents.add(passing.channel, bytes) else { return false };
        if self.ready.is_empty() {
            self.ready = content;
        } else {
            self.ready.extend_from_slice(&content);
        }
        true
    }

    /// Adds to the current frame until it is known what it is, or until it is whole; returns what belongs to the next.
    fn collect<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Violation> {
        let wanted = match prefix(&self.frame) {
            None => PREFIX,
            Some((_, _, size)) => size + FRAME_OVERHEAD,
        };
        let (more, rest) = bytes.split_at((wanted - self.frame.len()).min(bytes.len()));
        self.frame.extend_from_slice(more);
        if !self.seen_frame {
            check_first(&self.frame)?;
        }
        Ok(rest)
    }

    /// Looks at the current frame, as far as it is there.
    fn look(&mut self, accounts: &mut Accounts) -> Result<(), Violation> {
        let Some((kind, channel, size)) = prefix(&self.frame) else { return Ok(()) };
        self.seen_frame = true;
        // A content header cannot be split, and the broker writes more into it than its producer did (`x-death`).
        let limit = if kind == HEADER { 2 * FRAME_MAX } else { FRAME_MAX };
        if size > limit as usize {
            return Err(Violation::Malformed(format!("a frame of {size} bytes")));
        }
        match kind {
            BODY | HEARTBEAT => {
                // Its prefix first.
                let passing = Passing { kind, channel, left: size + FRAME_OVERHEAD };
                let frame = std::mem::take(&mut self.frame);
                self.pass(passing, &frame);
                self.keep_room(frame);
                return Ok(());
            }
            METHOD | HEADER => {}
            other => return Err(Violation::Malformed(format!("frame type {other}"))),
        }
        if self.frame.len() < size + FRAME_OVERHEAD {
            return Ok(());
        }
        let mut frame = std::mem::take(&mut self.frame);
        let payload = &mut frame[PREFIX..PREFIX + size];
        let announced = if kind == METHOD {
            self.look_at_method(channel, payload, accounts)?;
            0
        } else {
            self.look_at_header(channel, payload, accounts)?
        };
        if !self.contents.hold(channel, &frame, announced) {
            self.ready.extend_from_slice(&frame);
        }
        self.keep_room(frame);
        Ok(())
    }

    /// The next frame comes into the same room.
    fn keep_room(&mut self, mut frame: Vec<u8>) {
        frame.clear();
        self.frame = frame;
    }

    fn look_at_method(
        &mut self,
        channel: u16,
        payload: &mut [u8],
        accounts: &mut Accounts,
    ) -> Result<(), Violation> {
        if let Some((channels, wish)) = sanitize::tuned(payload) {
            // Zero is no limit. amiquip answers with the smaller one as well.
            let frame_max = if wish == 0 { FRAME_MAX } else { wish.min(FRAME_MAX) };
            self.tuned =
                Some(Tuned { frame_max, channel_max: if channels == 0 { u16::MAX } else { channels } });
        }
        sanitize::method(payload).map_err(breaks_off)?;
        accounts.note_received(channel, payload)?;
        if self.contents.is_held(channel) {
            if !payload.starts_with(&CHANNEL_CLOSE) && !payload.starts_with(&CHANNEL_CLOSE_OK) {
                return Err(Violation::Malformed("a method in the middle of a body".to_owned()));
            }
            self.contents.drop_held(channel);
        }
        Ok(())
    }

    /// Returns how large a body it announces.
    fn look_at_header(
        &mut self,
        channel: u16,
        payload: &mut [u8],
        accounts: &mut Accounts,
    ) -> Result<u64, Violation> {
        let size = body_size(payload);
        if size > BODY_MAX {
            return Err(Violation::Malformed(format!("a body of {size} bytes")));
        }
        if self.contents.is_held(channel) {
            return Err(Violation::Malformed("a content header in the middle of a body".to_owned()));
        }
        accounts.note_received_content(channel, payload.len() as u64 + size)?;
        let properties = payload.get_mut(HEADER_PREFIX..).ok_or(sanitize::Misshapen);
        properties.and_then(sanitize::properties).map_err(breaks_off)?;
        Ok(size)
    }
}

fn breaks_off(_: sanitize::Misshapen) -> Violation {
    Violation::Malformed("a frame that breaks off".to_owned())
}

fn check_first(seen: &[u8]) -> Result<(), Violation> {
    match seen[0] {
        METHOD => Ok(()),
        b'A' if seen.starts_with(b"AMQP") => {
            Err(Violation::NotAmqp("it speaks another version of AMQP than 0-9-1"))
        }
        b'A' if b"AMQP".starts_with(seen) => Ok(()),
        b'H' if seen.starts_with(b"HTTP") => Err(Violation::NotAmqp("an HTTP server answers there")),
        b'H' if b"HTTP".starts_with(seen) => Ok(()),
        0x15 | 0x16 => Err(Violation::NotAmqp("it expects TLS (use amqps://)")),
        _ => Err(Violation::NotAmqp("something that is not AMQP answers there")),
    }
}

#[cfg(test)]
mod proptests;

#[cfg(test)]
mod tests;
