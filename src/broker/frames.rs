//! Looks at the bytes that come from the peer before amiquip does, which would allocate whatever a frame header
//! announces: what is no AMQP, and what is too large, ends the connection here; what it cannot read is rewritten
//! (`normal`).

use std::fmt;

use super::normal;

/// The largest frame taskq asks for, and the largest payload it accepts, in bytes; RabbitMQ's own default.
pub(super) const FRAME_MAX: u32 = 131_072;
/// What of a frame is not its payload, the end octet last. The negotiated size includes it.
pub const FRAME_OVERHEAD: usize = PREFIX + 1;
/// No body can be larger in any RabbitMQ (its `max_message_size` cannot be set higher).
const BODY_MAX: u64 = 512 * 1024 * 1024;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Type, channel, payload size.
const PREFIX: usize = 7;
/// Of a content header: class, weight, body size.
const HEADER_PREFIX: usize = 12;

/// Why the peer's bytes are not read further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    /// The first bytes belong to something else.
    NotAmqp(&'static str),
    /// A frame or body beyond all limits, or of an unknown type.
    Malformed(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAmqp(what) => f.write_str(what),
            Self::Malformed(what) => write!(f, "it sent malformed AMQP ({what})"),
        }
    }
}

/// The peer's bytes on their way to amiquip: frames of methods and headers are held back until they are whole, checked
/// and put into a form that it can read; bodies go through as they come.
#[derive(Debug, Default)]
pub(super) struct Intake {
    bytes: Vec<u8>,
    /// Up to here they were taken out.
    taken: usize,
    /// Up to here they may be.
    passed: usize,
    /// How much of the current frame may pass unseen.
    unseen: usize,
    /// The current frame says nothing.
    heartbeat: bool,
    seen_frame: bool,
    frame_max: Option<u32>,
}

impl Intake {
    /// Takes in what came next from the peer; tells whether it was anything but heartbeats.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<bool, Violation> {
        let mut substance = false;
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.passed -= self.taken;
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
        while self.passed < self.bytes.len() {
            if self.unseen > 0 {
                let passing = self.unseen.min(self.bytes.len() - self.passed);
                self.unseen -= passing;
                self.passed += passing;
                substance |= !self.heartbeat;
            } else {
                let whole = self.pass_frame()?;
                substance |= !self.heartbeat;
                if !whole {
                    break;
                }
            }
        }
        Ok(substance)
    }

    /// Hands on what has passed, as far as there is room.
    pub(super) fn take(&mut self, room: &mut [u8]) -> usize {
        let count = room.len().min(self.passed - self.taken);
        room[..count].copy_from_slice(&self.bytes[self.taken..self.taken + count]);
        self.taken += count;
        count
    }

    /// The largest frame that both sides take, in bytes of its payload and [`FRAME_OVERHEAD`]; known from the broker's
    /// wishes on.
    pub(super) fn frame_max(&self) -> Option<u32> {
        self.frame_max
    }

    /// Looks at the frame that begins here; false while too little of it has come.
    fn pass_frame(&mut self) -> Result<bool, Violation> {
        let frame = &mut self.bytes[self.passed..];
        if !self.seen_frame {
            check_first(frame)?;
        }
        self.heartbeat = frame[0] == HEARTBEAT;
        let Some((prefix, rest)) = frame.split_at_mut_checked(PREFIX) else { return Ok(false) };
        self.seen_frame = true;
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
        // A content header cannot be split, and the broker writes more into it than its producer did (`x-death`).
        if size > if prefix[0] == HEADER { 2 * FRAME_MAX } else { FRAME_MAX } {
            return Err(Violation::Malformed(format!("a frame of {size} bytes")));
        }
        let size = size as usize;
        let whole = size + FRAME_OVERHEAD;
        match prefix[0] {
            BODY | HEARTBEAT => {
                self.unseen = whole;
                return Ok(true);
            }
            METHOD | HEADER => {}
            other => return Err(Violation::Malformed(format!("frame type {other}"))),
        }
        if rest.len() <= size {
            return Ok(false);
        }
        let payload = &mut rest[..size];
        if let Some(wish) = normal::tuned_frame_max(payload).filter(|_| prefix[0] == METHOD) {
            // Zero is no limit. amiquip answers with the smaller one as well.
            self.frame_max = Some(if wish == 0 { FRAME_MAX } else { wish.min(FRAME_MAX) });
        }
        let shaped = if prefix[0] == METHOD { normal::method(payload) } else { content_header(payload)? };
        shaped.map_err(|normal::Misshapen| Violation::Malformed("a frame that breaks off".to_owned()))?;
        self.passed += whole;
        Ok(true)
    }
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

/// Class, weight, body size, properties.
fn content_header(payload: &mut [u8]) -> Result<Result<(), normal::Misshapen>, Violation> {
    let Some((head, properties)) = payload.split_first_chunk_mut::<HEADER_PREFIX>() else {
        return Ok(Err(normal::Misshapen));
    };
    let mut size = [0; 8];
    size.copy_from_slice(&head[HEADER_PREFIX - 8..]);
    let size = u64::from_be_bytes(size);
    if size > BODY_MAX {
        return Err(Violation::Malformed(format!("a body of {size} bytes")));
    }
    Ok(normal::properties(properties))
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    fn content_header(body_size: u64) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend(body_size.to_be_bytes());
        payload.extend([0, 0]);
        frame(HEADER, &payload)
    }

    /// What comes out, in reads of the same size.
    pub(super) fn through(bytes: &[u8], size: usize) -> Result<Vec<u8>, Violation> {
        let (mut intake, mut out) = (Intake::default(), Vec::new());
        for piece in bytes.chunks(size) {
            intake.put(piece)?;
            let mut room = vec![0; size];
            while let count @ 1.. = intake.take(&mut room) {
                out.extend_from_slice(&room[..count]);
            }
        }
        Ok(out)
    }

    #[test]
    fn sound_streams_pass_however_they_are_cut() {
        let mut stream = frame(METHOD, &[7; 300]);
        stream.extend(frame(HEARTBEAT, &[]));
        stream.extend(content_header(5));
        stream.extend(frame(BODY, b"HTTP/"));
        stream.extend(frame(METHOD, &[7; 5]));
        for size in 1..stream.len() {
            assert_eq!(through(&stream, size).as_ref(), Ok(&stream), "in pieces of {size}");
        }
    }

    #[test]
    fn bodies_pass_as_they_come_and_headers_whole() {
        let mut intake = Intake::default();
        let mut room = [0; 100];
        let body = frame(BODY, &[7; 20]);
        assert_eq!(intake.put(&frame(METHOD, &[7; 4])), Ok(true));
        assert_eq!(intake.take(&mut room), 12);
        assert_eq!((intake.put(&body[..9]), intake.take(&mut room)), (Ok(true), 9));
        assert_eq!((intake.put(&body[9..]), intake.take(&mut room)), (Ok(true), 19));
        let header = content_header(5);
        assert_eq!((intake.put(&header[..header.len() - 1]), intake.take(&mut room)), (Ok(true), 0));
        assert_eq!((intake.put(&[0xce]), intake.take(&mut room)), (Ok(true), header.len()));
    }

    #[test]
    fn the_smaller_frame_size_of_both_sides_holds() {
        let mut intake = Intake::default();
        assert_eq!(intake.frame_max(), None);
        for (wish, held) in [(0, FRAME_MAX), (8192, 8192), (u32::MAX, FRAME_MAX)] {
            let tune = [&[0, 10, 0, 30, 7, 255][..], &u32::to_be_bytes(wish), &[0, 60]].concat();
            assert_eq!(intake.put(&frame(METHOD, &tune)), Ok(true));
            assert_eq!(intake.put(&frame(BODY, &tune)), Ok(true));
            assert_eq!(intake.frame_max(), Some(held), "the broker wishes {wish}");
        }
    }

    #[test]
    fn heartbeats_say_nothing() {
        let mut intake = Intake::default();
        assert_eq!(intake.put(&frame(METHOD, &[7; 4])), Ok(true));
        for byte in frame(HEARTBEAT, &[]) {
            assert_eq!(intake.put(&[byte]), Ok(false));
        }
        let beats = frame(HEARTBEAT, &[]).repeat(3);
        assert_eq!(intake.put(&beats), Ok(false));
        assert_eq!(intake.put(&[&beats[..], &frame(BODY, &[7])].concat()), Ok(true));
    }

    #[test]
    fn frames_that_break_off_are_refused() {
        for broken in [frame(HEADER, &[1, 2]), frame(METHOD, &[]), frame(METHOD, &[0, 60, 0, 60, 9])] {
            let stream = [frame(METHOD, &[7; 10]), broken].concat();
            assert!(matches!(through(&stream, 7), Err(Violation::Malformed(_))));
        }
    }

    #[test]
    fn what_is_too_large_is_refused_as_soon_as_it_is_announced() {
        let mut big_frame = frame(METHOD, &[0; 10]);
        big_frame.extend([BODY, 0, 1, 0x7f, 0xff, 0xff, 0xff]);
        let mut big_body = frame(METHOD, &[0; 10]);
        big_body.extend(content_header(u64::MAX));
        let mut unknown = frame(METHOD, &[0; 10]);
        unknown.extend([9, 0, 0, 0, 0, 0, 0]);
        for stream in [big_frame, big_body, unknown] {
            for size in 1..stream.len() {
                assert!(
                    matches!(through(&stream, size), Err(Violation::Malformed(_))),
                    "in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn other_protocols_are_named() {
        for (bytes, expected) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], "HTTP"),
            (b"AMQP\x00\x01\x00\x00", "another version"),
            (b"\x15\x03\x03\x00\x02\x02\x50", "TLS"),
            (b"SSH-2.0-x", "not AMQP"),
        ] {
            for size in 1..bytes.len() {
                let violation = through(bytes, size);
                assert!(
                    violation.as_ref().is_err_and(|violation| violation.to_string().contains(expected)),
                    "{violation:?} in pieces of {size}"
                );
            }
        }
    }
}
