//! One channel's publishes that were not confirmed yet. taskq publishes in confirm mode only, and each of them may come
//! back, before it is confirmed.

use std::collections::VecDeque;

use crate::broker::violation::Violation;

/// What a broker may write into a message before it comes back: its name and the time, as RabbitMQ's interceptors do.
const ADDED_BYTES: u64 = 1024;
/// How much more than was published may come back. RabbitMQ sends nothing of the kind.
const UNASKED_BYTES: u64 = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Unconfirmed {
    /// As the broker counts them.
    next_tag: u64,
    /// In the order of their tags.
    open: VecDeque<Publish>,
    open_bytes: u64,
    /// How many of these may still come back. Returns carry no tags: it cannot be known which have.
    returns: usize,
    return_bytes: u64,
    unasked_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Publish {
    tag: u64,
    bytes: u64,
}

impl Default for Unconfirmed {
    fn default() -> Self {
        Self {
            next_tag: 1,
            open: VecDeque::new(),
            open_bytes: 0,
            returns: 0,
            return_bytes: 0,
            unasked_bytes: 0,
        }
    }
}

impl Unconfirmed {
    pub(super) fn note_publish(&mut self) {
        self.open.push_back(Publish { tag: self.next_tag, bytes: 0 });
        self.next_tag += 1;
        self.returns += 1;
    }

    /// What the latest publish holds.
    pub(super) fn note_content(&mut self, bytes: u64) {
        let bytes = bytes.saturating_add(ADDED_BYTES);
        if let Some(latest) = self.open.back_mut() {
            latest.bytes = bytes;
            self.open_bytes += bytes;
            self.return_bytes += bytes;
        }
    }

    /// The broker confirms one, or all up to this tag, or (tag 0) all there are; false if there are none such.
    pub(super) fn settle(&mut self, tag: u64, multiple: bool) -> bool {
        let after =
            if tag == 0 { self.open.len() } else { self.open.partition_point(|open| open.tag <= tag) };
        let is_there = after > 0 && (multiple || self.open[after - 1].tag == tag);
        if is_there {
            let first = if multiple { 0 } else { after - 1 };
            for open in self.open.drain(first..after) {
                self.open_bytes -= open.bytes;
            }
            // What is left is all that can still come back.
            self.returns = self.returns.min(self.open.len());
            self.return_bytes = self.return_bytes.min(self.open_bytes);
        }
        is_there
    }

    /// One has come back; false if none can have.
    pub(super) fn take_return(&mut self) -> bool {
        let is_one = self.returns > 0;
        self.returns = self.returns.saturating_sub(1);
        is_one
    }

    /// What has come back holds so much.
    pub(super) fn note_returned_content(&mut self, bytes: u64) -> Result<(), Violation> {
        self.unasked_bytes = self.unasked_bytes.saturating_add(bytes.saturating_sub(self.return_bytes));
        self.return_bytes = self.return_bytes.saturating_sub(bytes);
        if self.unasked_bytes <= UNASKED_BYTES {
            Ok(())
        } else {
            Err(Violation::Unasked("returns of more than was published".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(bytes: &[u64]) -> Unconfirmed {
        let mut unconfirmed = Unconfirmed::default();
        for bytes in bytes {
            unconfirmed.note_publish();
            unconfirmed.note_content(*bytes);
        }
        unconfirmed
    }

    fn tags(unconfirmed: &Unconfirmed) -> Vec<u64> {
        unconfirmed.open.iter().map(|publish| publish.tag).collect()
    }

    #[test]
    fn confirms_come_in_any_order_and_several_at_once() {
        let mut unconfirmed = published(&[1; 6]);
        assert!(unconfirmed.settle(3, false));
        assert_eq!(tags(&unconfirmed), [1, 2, 4, 5, 6]);
        assert!(unconfirmed.settle(3, true));
        assert_eq!(tags(&unconfirmed), [4, 5, 6]);
        for (unknown, multiple) in [(3, false), (3, true), (7, false), (0, false), (u64::MAX, false)] {
            assert!(!unconfirmed.settle(unknown, multiple), "{unknown} {multiple}");
        }
        assert!(unconfirmed.settle(0, true));
        assert_eq!((unconfirmed.open.len(), unconfirmed.open_bytes), (0, 0));
        assert!(!unconfirmed.settle(0, true));
    }

    #[test]
    fn each_publish_may_come_back_once_and_before_its_confirm() {
        let mut unconfirmed = published(&[10; 3]);
        assert!(unconfirmed.take_return());
        assert!(unconfirmed.settle(1, true));
        assert!(unconfirmed.take_return());
        assert!(unconfirmed.take_return());
        assert!(!unconfirmed.take_return());
        assert!(unconfirmed.settle(3, true));
        assert!(!unconfirmed.take_return());
        let mut confirmed = published(&[10; 3]);
        assert!(confirmed.settle(0, true));
        assert!(!confirmed.take_return());
    }

    #[test]
    fn no_more_comes_back_than_was_published() {
        let large = 100 * UNASKED_BYTES;
        let mut unconfirmed = published(&[large, 10, 10]);
        assert_eq!(unconfirmed.note_returned_content(large + ADDED_BYTES), Ok(()));
        assert!(unconfirmed.settle(1, false));
        assert_eq!(unconfirmed.note_returned_content(UNASKED_BYTES), Ok(()));
        assert!(unconfirmed.note_returned_content(large).is_err());
        assert!(unconfirmed.note_returned_content(u64::MAX).is_err());
    }
}
