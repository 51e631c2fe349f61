//! The contents that have begun to go out and are not whole yet.

use super::heads::Head;
use crate::broker::frames::{BODY, FRAME_END, FRAME_OVERHEAD, HEADER, HEADER_PREFIX, METHOD, body_size};
use crate::broker::methods::PUBLISH;

/// The payload of the smallest frame that every broker takes.
const PIECE: usize = 4096 - FRAME_OVERHEAD;
/// More than this is not made up: it would take memory and the line's time.
const MADE_UP_MAX: usize = 128 * 1024;
/// A content header without properties that announces an empty body; the class of it is basic.
const EMPTY_HEADER: [u8; HEADER_PREFIX + 2] = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What a content still has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The method has gone out and nothing else.
    Header,
    /// So many bytes of the body.
    Body(usize),
}

impl Missing {
    pub(super) fn can_be_made_up(self) -> bool {
        match self {
            Self::Header => true,
            Self::Body(bytes) => bytes <= MADE_UP_MAX,
        }
    }

    /// The frames that make the content whole.
    pub(super) fn made_up(self, channel: u16) -> Vec<u8> {
        match self {
            Self::Header => frame(HEADER, channel, &EMPTY_HEADER),
            Self::Body(bytes) => {
                vec![0; bytes].chunks(PIECE).flat_map(|piece| frame(BODY, channel, piece)).collect()
            }
        }
    }
}

/// What is missing, by channel. There are rarely two.
#[derive(Debug, Clone, Default)]
pub(super) struct Unfinished(Vec<(u16, Missing)>);

impl Unfinished {
    /// A further frame.
    pub(super) fn note(&mut self, head: &Head) {
        let before = self.take(head.channel);
        let missing = match (head.kind, before) {
            // Any other method would be the end of a content.
            (METHOD, _) => (head.method() == Some(PUBLISH)).then_some(Missing::Header),
            (HEADER, _) => {
                Some(Missing::Body(usize::try_from(body_size(head.payload())).unwrap_or(usize::MAX)))
            }
            (BODY, Some(Missing::Body(bytes))) => Some(Missing::Body(bytes.saturating_sub(head.size))),
            _ => before,
        };
        if let Some(missing) = missing.filter(|missing| *missing != Missing::Body(0)) {
            self.0.push((head.channel, missing));
        }
    }

    pub(super) fn missing(&self, channel: u16) -> Option<Missing> {
        self.0.iter().find(|(on, _)| *on == channel).map(|(_, missing)| *missing)
    }

    /// What was missing is not any more.
    pub(super) fn take(&mut self, channel: u16) -> Option<Missing> {
        let at = self.0.iter().position(|(on, _)| *on == channel)?;
        Some(self.0.swap_remove(at).1)
    }
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let [c1, c0] = channel.to_be_bytes();
    // A piece has no more bytes than fit two of the four octets of the size.
    let [.., s1, s0] = payload.len().to_be_bytes();
    [&[kind, c1, c0, 0, 0, s1, s0], payload, &[FRAME_END]].concat()
}
