//! What was published on a channel and is not settled, by the numbers that the broker confirms it by.

use std::collections::BTreeMap;
use std::time::Instant;

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

/// See the module. `T` is what the caller wants to have back when a publish is settled; `None` where it wants nothing.
pub(super) struct Confirms<T> {
    /// Publishes so far, which are numbered from 1.
    published: u64,
    /// By tag.
    outstanding: BTreeMap<u64, Outstanding<T>>,
    bytes: usize,
    /// Nobody has asked for these yet.
    settled: Vec<(T, Settlement)>,
}

/// A publish that is not settled.
struct Outstanding<T> {
    token: Option<T>,
    queue: String,
    id: String,
    bytes: usize,
    /// When it was published, or the broker began to read again.
    since: Instant,
    /// No queue took it; its confirm is still to come.
    returned: bool,
}

impl<T> Default for Confirms<T> {
    fn default() -> Self {
        Self { published: 0, outstanding: BTreeMap::new(), bytes: 0, settled: Vec::new() }
    }
}

impl<T> Confirms<T> {
    /// Something was published. `bytes` is what it takes on the wire.
    pub(super) fn enter(&mut self, queue: &str, id: &str, bytes: usize, token: Option<T>) {
        self.published += 1;
        self.bytes += bytes;
        let (queue, id, since) = (queue.to_owned(), id.to_owned(), Instant::now());
        let sent = Outstanding { token, queue, id, bytes, since, returned: false };
        self.outstanding.insert(self.published, sent);
    }

    /// How many bytes are not settled.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many publishes are not settled.
    pub(super) fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Nothing is outstanding.
    pub(super) fn is_settled(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Since when the oldest publish has been outstanding.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.outstanding.values().map(|sent| sent.since).min()
    }

    /// The broker could not confirm anything until now.
    pub(super) fn excuse(&mut self) {
        let now = Instant::now();
        self.outstanding.values_mut().for_each(|sent| sent.since = now);
    }

    /// What is outstanding, in the order in which it was published.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &T> {
        self.outstanding.values().filter_map(|sent| sent.token.as_ref())
    }

    /// The same, forgotten: nothing will be known of it any more.
    pub(super) fn take_unsettled(&mut self) -> Vec<T> {
        self.bytes = 0;
        std::mem::take(&mut self.outstanding).into_values().filter_map(|sent| sent.token).collect()
    }

    /// Some of it was settled since [`Confirms::take_settled`].
    pub(super) fn has_news(&self) -> bool {
        !self.settled.is_empty()
    }

    /// What was settled since the last call.
    pub(super) fn take_settled(&mut self) -> Vec<(T, Settlement)> {
        std::mem::take(&mut self.settled)
    }

    /// A return carries no tag. Where several messages look like it (many have no id), all count as returned, and where
    /// none does, any may have been: better to send a task twice than to take a lost one for sent.
    pub(super) fn note_return(&mut self, returned: &Return) {
        let id = returned.properties.message_id().as_deref().unwrap_or_default();
        let alike = |sent: &Outstanding<T>| sent.id == id && sent.queue == returned.routing_key;
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
            self.settled.extend(sent.token.map(|token| (token, settlement)));
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
        for token in ["one", "two", "three", "four"] {
            confirms.enter("q", "", 10, Some(token));
        }
        assert_eq!((confirms.bytes(), confirms.len()), (40, 4));
        confirms.settle(&confirm(3, false), &Settlement::Nacked);
        confirms.settle(&confirm(2, true), &Settlement::Confirmed);
        // Of these nothing is known, or not any more.
        confirms.settle(&confirm(3, true), &Settlement::Confirmed);
        confirms.settle(&confirm(9, false), &Settlement::Confirmed);
        assert!(confirms.has_news());
        let settled = confirms.take_settled();
        assert_eq!(
            settled,
            [("three", Settlement::Nacked), ("one", Settlement::Confirmed), ("two", Settlement::Confirmed)]
        );
        assert!(!confirms.has_news() && !confirms.is_settled());
        confirms.settle(&confirm(u64::MAX, true), &Settlement::Confirmed);
        assert_eq!((confirms.bytes(), confirms.is_settled()), (0, true));
        assert_eq!(confirms.take_settled(), [("four", Settlement::Confirmed)]);
    }

    #[test]
    fn what_nobody_wants_back_is_outstanding_all_the_same() {
        let mut confirms = Confirms::default();
        confirms.enter("q", "", 10, None);
        confirms.enter("q", "", 10, Some("wanted"));
        assert_eq!(confirms.unsettled().collect::<Vec<_>>(), [&"wanted"]);
        confirms.settle(&confirm(1, false), &Settlement::Confirmed);
        assert!(!confirms.has_news() && !confirms.is_settled() && confirms.bytes() == 10);
        assert_eq!(confirms.take_unsettled(), ["wanted"]);
        assert!(confirms.is_settled() && confirms.bytes() == 0 && confirms.oldest().is_none());
        // Its confirm comes late.
        confirms.settle(&confirm(2, false), &Settlement::Confirmed);
        assert!(!confirms.has_news());
    }

    #[test]
    fn the_clock_of_a_publish_starts_over_when_the_broker_reads_again() {
        let mut confirms = Confirms::default();
        confirms.enter("q", "", 10, Some(()));
        let before = confirms.oldest().unwrap();
        confirms.excuse();
        assert!(confirms.oldest().unwrap() >= before);
    }
}
