//! Looks at the beginnings of the frames that amiquip writes, for the accounts, and makes whole what it leaves unfinished
//! (docs/amiquip.md, H20).

mod heads;
mod unfinished;

use std::io::{self, Write};

use self::heads::Heads;
use self::unfinished::{Missing, Unfinished};
use super::accounts::Accounts;
use super::frames::{HEADER, HEADER_PREFIX, METHOD, body_size};
use super::methods::CHANNEL_CLOSE_OK;

/// The bytes on their way to the broker, as far as it took them.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    heads: Heads,
    unfinished: Unfinished,
    /// Frames that are not amiquip's, for the place that was reached: nothing of amiquip's may go before them.
    own: Vec<u8>,
}

/// A channel.close-ok that would come in the middle of a content.
struct Cut {
    /// Where it is in what amiquip wants to write.
    at: usize,
    channel: u16,
    missing: Missing,
}

impl Outgoing {
    /// Writes as much as the stream takes now; returns how much that was of `bytes`. These have to end with a frame, as
    /// all that amiquip has to write always does; the stream may take any part. What TLS could not send has to be given to
    /// it again, and is: a close-ok is added only behind that, so a later call is not cut short before its end.
    pub(super) fn write(
        &mut self,
        stream: &mut impl Write,
        bytes: &[u8],
        accounts: &mut Accounts,
    ) -> io::Result<usize> {
        loop {
            self.write_own(stream)?;
            // Before the broker closes a channel there is no close-ok to look for.
            let cut = if accounts.owes_close_ok() { self.look_ahead(bytes) } else { None };
            match cut {
                Some(cut) if cut.at == 0 => self.make_whole(&cut),
                cut => {
                    let now = &bytes[..cut.map_or(bytes.len(), |cut| cut.at)];
                    let count = stream.write(now)?;
                    self.note(&now[..count], accounts);
                    return Ok(count);
                }
            }
        }
    }

    /// The next close-ok that comes in the middle of a content which can be made whole.
    fn look_ahead(&self, bytes: &[u8]) -> Option<Cut> {
        let (mut heads, mut unfinished) = (self.heads.clone(), self.unfinished.clone());
        let mut rest = bytes;
        loop {
            let begins = heads.finish(&mut rest);
            let at = bytes.len() - rest.len();
            let head = heads.next(&mut rest)?;
            let channel = head.channel;
            if begins
                && (head.kind, head.method()) == (METHOD, Some(CHANNEL_CLOSE_OK))
                && let Some(missing) = unfinished.missing(channel).filter(|missing| missing.can_be_made_up())
            {
                return Some(Cut { at, channel, missing });
            }
            unfinished.note(&head);
        }
    }

    /// The broker drops what comes on a channel that it has closed, so this content is nobody's message.
    fn make_whole(&mut self, cut: &Cut) {
        self.own = cut.missing.made_up(cut.channel);
        self.unfinished.take(cut.channel);
    }

    fn write_own(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while !self.own.is_empty() {
            let count = stream.write(&self.own)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.own.drain(..count);
        }
        Ok(())
    }

    fn note(&mut self, mut bytes: &[u8], accounts: &mut Accounts) {
        while let Some(head) = self.heads.next(&mut bytes) {
            self.unfinished.note(&head);
            let payload = head.payload();
            match head.kind {
                METHOD => accounts.note_sent(head.channel, payload),
                HEADER if payload.len() >= HEADER_PREFIX => {
                    accounts.note_sent_content(head.channel, head.size as u64 + body_size(payload));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
