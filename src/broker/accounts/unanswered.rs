//! The deliveries of a channel's consumer that were not answered yet.

use std::collections::VecDeque;

use crate::broker::violation::Violation;

/// How often the broker may forget while a task runs that it has delivered it: each failover of a queue hands tasks out
/// again, under new tags, although the channel has not answered the old ones.
const FAILOVERS: usize = 16;
/// How large the deliveries beyond the prefetch may be together, in bytes for each task of the prefetch: as large as two
/// of the largest messages that RabbitMQ takes by default.
const BEYOND_BYTES: u64 = 2 * 128 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Unanswered {
    /// Zero is no limit.
    prefetch: usize,
    /// In the order of their arrival. Tags are the broker's, and may be anything.
    open: VecDeque<Delivery>,
    /// Of all but the first of them, as many as the prefetch.
    beyond_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Delivery {
    tag: u64,
    bytes: u64,
}

impl Unanswered {
    pub(super) fn set_prefetch(&mut self, prefetch: usize) {
        self.prefetch = prefetch;
        self.beyond_bytes = self.open.iter().skip(prefetch).map(|delivery| delivery.bytes).sum();
    }

    /// Another consumer has its own prefetch, beside what earlier ones have delivered: taskq sets tasks aside like that.
    pub(super) fn begin_anew(&mut self) {
        self.open.clear();
        self.beyond_bytes = 0;
    }

    pub(super) fn note_delivery(&mut self, tag: u64) -> Result<(), Violation> {
        if self.prefetch == 0 {
            return Ok(());
        }
        self.open.push_back(Delivery { tag, bytes: 0 });
        if self.open.len() <= self.prefetch * (1 + FAILOVERS) { Ok(()) } else { Err(self.violation()) }
    }

    /// What the latest delivery holds.
    pub(super) fn note_content(&mut self, bytes: u64) -> Result<(), Violation> {
        let is_beyond = self.open.len() > self.prefetch;
        let Some(latest) = self.open.back_mut() else { return Ok(()) };
        latest.bytes = bytes;
        if is_beyond {
            self.beyond_bytes += bytes;
        }
        let limit = BEYOND_BYTES.saturating_mul(self.prefetch as u64);
        if self.beyond_bytes <= limit { Ok(()) } else { Err(self.violation()) }
    }

    /// They were answered: one, or all up to this tag, or (tag 0) all there are.
    pub(super) fn settle(&mut self, tag: u64, multiple: bool) {
        if multiple {
            self.open.retain(|delivery| tag != 0 && delivery.tag > tag);
            self.set_prefetch(self.prefetch);
        } else if let Some(at) = self.open.iter().position(|delivery| delivery.tag == tag) {
            // One from beyond the prefetch takes its place.
            if let Some(moved) = self.open.get(at.max(self.prefetch)) {
                self.beyond_bytes -= moved.bytes;
            }
            self.open.remove(at);
        }
    }

    fn violation(&self) -> Violation {
        let (count, prefetch) = (self.open.len(), self.prefetch);
        Violation::Unasked(format!(
            "{count} unanswered deliveries at once, of {prefetch} that were asked for"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_prefetch(prefetch: usize) -> Unanswered {
        Unanswered { prefetch, ..Unanswered::default() }
    }

    fn deliver(unanswered: &mut Unanswered, tag: u64, bytes: u64) -> Result<(), Violation> {
        unanswered.note_delivery(tag)?;
        unanswered.note_content(bytes)
    }

    #[test]
    fn answers_make_room() {
        let mut unanswered = with_prefetch(3);
        for tag in 1..1000 {
            assert_eq!(deliver(&mut unanswered, tag, u64::from(u32::MAX)), Ok(()));
            // The oldest stays unanswered for long.
            if tag > 2 {
                unanswered.settle(tag - 1, false);
            }
        }
        unanswered.settle(1, false);
        assert_eq!((unanswered.open.len(), unanswered.beyond_bytes), (1, 0));
        assert_eq!(deliver(&mut unanswered, 1000, 1), Ok(()));
        unanswered.settle(0, true);
        assert!(unanswered.open.is_empty());
    }

    #[test]
    fn failovers_may_deliver_again_so_often_and_no_more() {
        for prefetch in [1, 10] {
            let mut unanswered = with_prefetch(prefetch);
            let most = prefetch * (1 + FAILOVERS);
            for tag in 0..most {
                assert_eq!(deliver(&mut unanswered, tag as u64, 1), Ok(()));
            }
            assert!(deliver(&mut unanswered, 7, 1).is_err());
        }
    }

    #[test]
    fn what_goes_beyond_the_prefetch_is_limited_in_bytes_too() {
        let large = BEYOND_BYTES / 2;
        let mut unanswered = with_prefetch(1);
        // As many as there is prefetch may be of any size.
        assert_eq!(deliver(&mut unanswered, 1, u64::MAX / 2), Ok(()));
        assert_eq!(deliver(&mut unanswered, 2, large), Ok(()));
        assert_eq!(deliver(&mut unanswered, 3, large), Ok(()));
        unanswered.settle(1, false);
        assert_eq!(deliver(&mut unanswered, 4, large), Ok(()));
        unanswered.settle(4, false);
        assert_eq!(deliver(&mut unanswered, 5, large), Ok(()));
        let told = deliver(&mut unanswered, 6, 1).map_err(|violation| violation.to_string());
        assert!(told.is_err_and(|told| told.contains("4 unanswered deliveries at once, of 1 ")));
    }

    #[test]
    fn several_are_answered_at_once() {
        let mut unanswered = with_prefetch(1);
        for tag in 1..=4 {
            assert_eq!(deliver(&mut unanswered, tag, 10), Ok(()));
        }
        assert_eq!(unanswered.beyond_bytes, 30);
        unanswered.settle(2, true);
        assert_eq!((unanswered.open.len(), unanswered.beyond_bytes), (2, 10));
        unanswered.settle(99, false);
        assert_eq!(unanswered.open.len(), 2);
    }

    #[test]
    fn no_prefetch_is_no_limit() {
        let mut unanswered = with_prefetch(0);
        for tag in 0..10_000 {
            assert_eq!(deliver(&mut unanswered, tag, u64::from(u32::MAX)), Ok(()));
        }
        assert!(unanswered.open.is_empty());
    }
}
