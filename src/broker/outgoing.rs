//! Looks at the beginnings of the frames that amiquip writes, for the accounts.

use super::accounts::Accounts;
use super::frames::{HEADER, HEADER_PREFIX, METHOD, PREFIX, body_size, prefix};

/// How much of a frame's payload is looked at: a method's class and number, a tag and a byte of flags.
const LOOKED_AT: usize = 13;

/// The bytes on their way to the broker, as far as it took them.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The beginning of the current frame.
    head: Vec<u8>,
    /// How much is to come that is not looked at.
    unseen: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        // First of all goes "AMQP" with a version, which is no frame.
        Self { head: Vec::with_capacity(PREFIX + LOOKED_AT), unseen: 8 }
    }
}

impl Outgoing {
    pub(super) fn note(&mut self, mut bytes: &[u8], accounts: &mut Accounts) {
        loop {
            let passing = self.unseen.min(bytes.len());
            self.unseen -= passing;
            bytes = &bytes[passing..];
            if bytes.is_empty() {
                return;
            }
            let wanted = match prefix(&self.head) {
                None => PREFIX,
                Some((_, _, size)) => PREFIX + size.min(LOOKED_AT),
            };
            let more = (wanted - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            let Some((kind, channel, size)) = prefix(&self.head) else { continue };
            let looked_at = size.min(LOOKED_AT);
            if self.head.len() < PREFIX + looked_at {
                continue;
            }
            let payload = &self.head[PREFIX..];
            match kind {
                METHOD => accounts.note_sent(channel, payload),
                HEADER if payload.len() >= HEADER_PREFIX => {
                    accounts.note_sent_content(channel, size as u64 + body_size(payload));
                }
                _ => {}
            }
            self.head.clear();
            // With the end octet.
            self.unseen = size - looked_at + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
    }

    /// Opens a channel, publishes so many messages and asks for one task at a time.
    fn published(count: usize) -> Vec<u8> {
        let mut header = vec![0, 60, 0, 0];
        header.extend(5_u64.to_be_bytes());
        header.extend([0, 0]);
        let publish = [frame(METHOD, &[0, 60, 0, 40, 0, 0, 0, 1, b'q', 1]), frame(HEADER, &header)].concat();
        let publish = [publish, frame(3, &[0, 60, 0, 40, 0])].concat();
        [
            b"AMQP\0\0\x09\x01".to_vec(),
            frame(8, &[]),
            frame(METHOD, &[0, 20, 0, 10, 0]),
            publish.repeat(count),
            frame(METHOD, &[0, 60, 0, 10, 0, 0, 0, 0, 0, 1, 0]),
        ]
        .concat()
    }

    fn pass(accounts: &mut Accounts, payload: &[u8]) -> usize {
        (0..10_000).take_while(|_| accounts.note_received(1, payload) == Ok(())).count()
    }

    #[test]
    fn frames_are_seen_however_they_are_cut() {
        let stream = published(200);
        for size in [1, 2, 7, 13, 64, stream.len()] {
            let (mut outgoing, mut accounts) = (Outgoing::default(), Accounts::default());
            for piece in stream.chunks(size) {
                outgoing.note(piece, &mut accounts);
            }
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
}
