//! What was published on a channel and is not settled, by the numbers that the broker confirms it by.

use std::collections::BTreeMap;

use amiquip::{ConfirmPayload, Return};

/// What the broker made of one publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// On disk, in a queue.
    Confirmed,
    /// No queue took it: there is none of that name.
    Unroutable,
    /// The broker refused it: the queue is full, or it had an error of its own.
    Nacked,
}

/// See the module.
#[derive(Default)]
pub(super) struct Confirms {
    /// Publishes so far, which are numbered from 1.
    published: u64,
    /// By tag.
    outstanding: BTreeMap<u64, Outstanding>,
    bytes: usize,
    /// Nobody has asked for these yet.
    settled: Vec<(u64, Settlement)>,
}

/// A publish that is not settled.
struct Outstanding {
    queue: String,
    id: String,
    bytes: usize,
    /// No queue took it; its confirm is still to come.
    returned: bool,
}

impl Confirms {
    /// Something was published; returns its tag. `bytes` is what it takes on the wire.
    pub(super) fn enter(&mut self, queue: &str, id: &str, bytes: usize) -> u64 {
        self.published += 1;
        self.bytes += bytes;
        let sent = Outstanding { queue: queue.to_owned(), id: id.to_owned(), bytes, returned: false };
        self.outstanding.insert(self.published, sent);
        self.published
    }

    /// How many bytes are not settled.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Nothing is outstanding.
    pub(super) fn is_settled(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Some of it was settled since [`Confirms::take_settled`].
    pub(super) fn has_news(&self) -> bool {
        !self.settled.is_empty()
    }

    /// What was settled since the last call, by tag.
    pub(super) fn take_settled(&mut self) -> Vec<(u64, Settlement)> {
        std::mem::take(&mut self.settled)
    }

    /// A return carries no tag. Where several messages look like it (many have no id), all count as returned, and where
    /// none does, any may have been: better to send a task twice than to take a lost one for sent.
    pub(super) fn note_return(&mut self, returned: &Return) {
        let id = returned.properties.message_id().as_deref().unwrap_or_default();
        let alike = |sent: &Outstanding| sent.id == id && sent.queue == returned.routing_key;
        let known = self.outstanding.values().any(alike);
        for sent in self.outstanding.values_mut().filter(|sent| !known || alike(sent)) {
            sent.returned = true;
        }
    }

    /// Confirms come out of order, and `multiple` settles everything up to its tag.
    pub(super) fn settle(&mut self, payload: &ConfirmPayload, settlement: &Settlement) {
        for tag in self.covered(payload) {
            let Some(sent) = self.outstanding.remove(&tag) else { continue };
            self.bytes -= sent.bytes;
            let settlement = if sent.returned { Settlement::Unroutable } else { settlement.clone() };
            self.settled.push((tag, settlement));
        }
    }

    fn covered(&self, payload: &ConfirmPayload) -> Vec<u64> {
        if payload.multiple {
            self.outstanding.range(..=payload.delivery_tag).map(|(tag, _)| *tag).collect()
        } else {
            vec![payload.delivery_tag]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirm(delivery_tag: u64, multiple: bool) -> ConfirmPayload {
        ConfirmPayload { delivery_tag, multiple }
    }

    #[test]
    fn what_is_settled_is_told_once_and_makes_room() {
        let mut confirms = Confirms::default();
        let tags: Vec<u64> = (0..4).map(|_| confirms.enter("q", "", 10)).collect();
        assert_eq!((tags, confirms.bytes()), (vec![1, 2, 3, 4], 40));
        confirms.settle(&confirm(3, false), &Settlement::Nacked);
        confirms.settle(&confirm(2, true), &Settlement::Confirmed);
        // Of these nothing is known, or not any more.
        confirms.settle(&confirm(3, true), &Settlement::Confirmed);
        confirms.settle(&confirm(9, false), &Settlement::Confirmed);
        assert!(confirms.has_news());
        let settled = confirms.take_settled();
        assert_eq!(
            settled,
            [(3, Settlement::Nacked), (1, Settlement::Confirmed), (2, Settlement::Confirmed)]
        );
        assert!(!confirms.has_news() && !confirms.is_settled());
        confirms.settle(&confirm(u64::MAX, true), &Settlement::Confirmed);
        assert_eq!((confirms.bytes(), confirms.is_settled()), (0, true));
        assert_eq!(confirms.enter("q", "", 10), 5);
    }
}
