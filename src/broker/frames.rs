//! Looks at the bytes that come from the peer before amiquip does, which would allocate whatever a frame header
//! announces: what is no AMQP, and what is too large, ends the connection here.

use std::fmt;

/// The largest frame taskq asks for and accepts, in bytes of payload; RabbitMQ's own default.
pub(super) const FRAME_MAX: u32 = 131_072;
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

/// Follows the frame boundaries in a stream of bytes that arrive in any pieces.
#[derive(Debug, Default)]
pub(super) struct FrameInspector {
    prefix: [u8; PREFIX + HEADER_PREFIX],
    /// How much of `prefix` is filled.
    filled: usize,
    /// What is left of the current frame once its prefix was checked.
    skip: usize,
    seen_frame: bool,
}

impl FrameInspector {
    /// Checks the next bytes.
    pub(super) fn inspect(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = self.wanted();
            let taken = (wanted - self.filled).min(bytes.len());
            self.prefix[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if !self.seen_frame {
                self.check_first()?;
            }
            if self.filled == PREFIX {
                self.check_prefix()?;
            }
            // The content header's own prefix raises the wish.
            if self.filled == self.wanted() {
                self.finish_prefix()?;
            }
        }
        Ok(())
    }

    /// How much of the prefix has to be seen for this frame.
    fn wanted(&self) -> usize {
        if self.filled >= PREFIX && self.prefix[0] == HEADER {
            PREFIX + HEADER_PREFIX.min(self.size() as usize)
        } else {
            PREFIX
        }
    }

    fn size(&self) -> u32 {
        u32::from_be_bytes([self.prefix[3], self.prefix[4], self.prefix[5], self.prefix[6]])
    }

    fn check_first(&self) -> Result<(), Violation> {
        let seen = &self.prefix[..self.filled];
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

    fn check_prefix(&mut self) -> Result<(), Violation> {
        self.seen_frame = true;
        match self.prefix[0] {
            METHOD | HEADER | BODY | HEARTBEAT => {}
            other => return Err(Violation::Malformed(format!("frame type {other}"))),
        }
        if self.size() > FRAME_MAX {
            return Err(Violation::Malformed(format!("a frame of {} bytes", self.size())));
        }
        Ok(())
    }

    fn finish_prefix(&mut self) -> Result<(), Violation> {
        if self.prefix[0] == HEADER && self.filled == PREFIX + HEADER_PREFIX {
            let mut size = [0; 8];
            size.copy_from_slice(&self.prefix[PREFIX + 4..]);
            let size = u64::from_be_bytes(size);
            if size > BODY_MAX {
                return Err(Violation::Malformed(format!("a body of {size} bytes")));
            }
        }
        // The rest of the payload and the end octet.
        self.skip = PREFIX + self.size() as usize + 1 - self.filled;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
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

    fn inspect_in_pieces(bytes: &[u8], size: usize) -> Result<(), Violation> {
        let mut inspector = FrameInspector::default();
        bytes.chunks(size).try_for_each(|piece| inspector.inspect(piece))
    }

    #[test]
    fn sound_streams_pass_however_they_are_cut() {
        let mut stream = frame(METHOD, &[7; 300]);
        stream.extend(frame(HEARTBEAT, &[]));
        stream.extend(content_header(5));
        stream.extend(frame(BODY, b"HTTP/"));
        // Too short to be a content header: amiquip refuses it, nothing is allocated for it.
        stream.extend(frame(HEADER, &[1, 2]));
        stream.extend(frame(METHOD, &[]));
        for size in 1..stream.len() {
            assert_eq!(inspect_in_pieces(&stream, size), Ok(()), "in pieces of {size}");
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
                    matches!(inspect_in_pieces(&stream, size), Err(Violation::Malformed(_))),
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
                let violation = inspect_in_pieces(bytes, size);
                assert!(
                    violation.as_ref().is_err_and(|violation| violation.to_string().contains(expected)),
                    "{violation:?} in pieces of {size}"
                );
            }
        }
    }
}
