//! Holds back the large contents that have only been announced: amiquip takes memory for the whole body as soon as it
//! sees the header.

use std::collections::HashMap;

/// A body up to this size is believed.
const BELIEVED: u64 = 1024 * 1024;
/// Of a larger one so much has to have come: one part of so many. The rest then passes as it comes, so that a body takes
/// little more memory than it needs.
const PART: u64 = 8;

/// By channel: a channel has one content at a time.
#[derive(Debug, Default)]
pub(super) struct Contents {
    held: HashMap<u16, HeldContent>,
}

/// A content header, and what has come of the body.
#[derive(Debug)]
struct HeldContent {
    frames: Vec<u8>,
    /// How much of the body is still to come before it passes.
    missing: u64,
}

impl Contents {
    /// Takes the frame of a content header that announces a large body; false if it need not be held.
    pub(super) fn hold(&mut self, channel: u16, header: &[u8], announced: u64) -> bool {
        let is_large = announced > BELIEVED;
        if is_large {
            self.held.insert(channel, HeldContent { frames: header.to_vec(), missing: announced / PART });
        }
        is_large
    }

    pub(super) fn is_held(&self, channel: u16) -> bool {
        !self.held.is_empty() && self.held.contains_key(&channel)
    }

    /// What came of a body frame on this channel. Returns all of the content so far once it may pass.
    pub(super) fn add(&mut self, channel: u16, bytes: &[u8]) -> Option<Vec<u8>> {
        let held = self.held.get_mut(&channel)?;
        held.frames.extend_from_slice(bytes);
        held.missing = held.missing.saturating_sub(bytes.len() as u64);
        if held.missing > 0 {
            return None;
        }
        self.held.remove(&channel).map(|held| held.frames)
    }

    /// Its channel was closed.
    pub(super) fn drop_held(&mut self, channel: u16) {
        self.held.remove(&channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_body_passes_when_a_part_of_it_is_there() {
        let mut contents = Contents::default();
        assert!(contents.hold(1, b"header", 80 << 20));
        let piece = vec![7; 1 << 20];
        for _ in 0..9 {
            assert_eq!(contents.add(1, &piece), None);
        }
        assert_eq!(contents.add(2, &piece), None, "another channel's");
        assert_eq!(contents.add(1, &piece), Some([&b"header"[..], &piece.repeat(10)].concat()));
        assert!(!contents.is_held(1));
    }

    #[test]
    fn small_bodies_are_believed() {
        let mut contents = Contents::default();
        assert!(!contents.hold(1, b"header", BELIEVED));
        assert!(contents.hold(2, b"header", BELIEVED + 1));
        assert_eq!((contents.is_held(1), contents.is_held(2)), (false, true));
        contents.drop_held(2);
        assert!(!contents.is_held(2));
    }
}
