//! Finds the beginnings of the frames in the bytes that amiquip writes, however these are cut.

use crate::broker::frames::{PREFIX, prefix};
use crate::broker::methods::Method;

/// How much of a frame's payload is looked at: a method's class and number, a tag and a byte of flags.
const LOOKED_AT: usize = 13;

/// The beginning of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) channel: u16,
    /// Of the whole payload.
    pub(super) size: usize,
    payload: [u8; LOOKED_AT],
}

impl Head {
    fn new(kind: u8, channel: u16, size: usize, seen: &[u8]) -> Self {
        let mut payload = [0; LOOKED_AT];
        payload[..seen.len()].copy_from_slice(seen);
        Self { kind, channel, size, payload }
    }

    /// As much of the payload as is looked at.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload[..self.size.min(LOOKED_AT)]
    }

    /// Of a frame that is a method.
    pub(super) fn method(&self) -> Option<Method> {
        self.payload().first_chunk().copied()
    }
}

/// Where in the frames the bytes have got to.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    /// The beginning of the current frame.
    begun: Vec<u8>,
    /// How much of it is to come that is not looked at.
    unseen: usize,
}

impl Default for Heads {
    fn default() -> Self {
        // First of all goes "AMQP" with a version, which is no frame.
        Self { begun: Vec::with_capacity(PREFIX + LOOKED_AT), unseen: 8 }
    }
}

impl Heads {
    /// Goes on to the end of a frame whose beginning was seen; whether the next byte begins a frame.
    pub(super) fn finish(&mut self, bytes: &mut &[u8]) -> bool {
        let passing = self.unseen.min(bytes.len());
        self.unseen -= passing;
        *bytes = &bytes[passing..];
        self.unseen == 0 && self.begun.is_empty()
    }

    /// Goes on until the beginning of the next frame was seen; nothing if it is not all there.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        self.finish(bytes);
        self.take(PREFIX, bytes);
        let (kind, channel, size) = prefix(&self.begun)?;
        let looked_at = size.min(LOOKED_AT);
        if !self.take(PREFIX + looked_at, bytes) {
            return None;
        }
        let head = Head::new(kind, channel, size, &self.begun[PREFIX..]);
        self.begun.clear();
        // With the end octet.
        self.unseen = size - looked_at + 1;
        Some(head)
    }

    /// Adds to the beginning until it is so long; whether it is.
    fn take(&mut self, wanted: usize, bytes: &mut &[u8]) -> bool {
        let more = wanted.saturating_sub(self.begun.len()).min(bytes.len());
        self.begun.extend_from_slice(&bytes[..more]);
        *bytes = &bytes[more..];
        self.begun.len() >= wanted
    }
}
