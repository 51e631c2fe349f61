//! The tasks that are read but not settled, in the order of the input.

use std::collections::VecDeque;
use std::time::Instant;

use super::source::Item;
use crate::error::Error;

/// Publishes that may be unconfirmed at a time.
pub(super) const MAX_ENTRIES: usize = 1000;
/// And how many bytes they may hold together; a single larger one goes alone.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// One task on its way.
pub(super) struct Entry {
    pub(super) item: Item,
    pub(super) id: String,
    state: EntryState,
    unroutable: u32,
}

enum EntryState {
    Queued,
    /// Published, and not settled.
    InFlight,
    Settled(Result<(), Error>),
}

impl Entry {
    fn size(&self) -> usize {
        self.item.body.as_ref().map_or(0, |body| body.len())
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Window {
    entries: VecDeque<Entry>,
    /// The sequence number of the first entry.
    first: u64,
    /// The sequence number from which on entries may be queued; before it none is.
    scan_from: u64,
    bytes: usize,
    /// When the last confirm came, or the first entry after there was none.
    waiting_since: Option<Instant>,
}

impl Window {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.state, EntryState::Settled(_)))
    }

    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < MAX_ENTRIES && self.bytes < MAX_BYTES
    }

    /// Since when nothing was confirmed although something is outstanding.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// The largest body in the window, in bytes.
    pub(super) fn largest(&self) -> u64 {
        self.entries.iter().map(Entry::size).max().unwrap_or_default() as u64
    }

    pub(super) fn push(&mut self, item: Item, id: String) {
        let entry = Entry { item, id, state: EntryState::Queued, unroutable: 0 };
        self.bytes += entry.size();
        self.entries.push_back(entry);
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    /// The next entry to publish, and its sequence number.
    pub(super) fn next_queued(&mut self) -> Option<(u64, &Entry)> {
        let start = self.scan_from.max(self.first);
        let offset = usize::try_from(start - self.first).ok()?;
        let found =
            self.entries.iter().skip(offset).position(|entry| matches!(entry.state, EntryState::Queued));
        let at = offset + found.unwrap_or(self.entries.len().saturating_sub(offset));
        self.scan_from = self.first + at as u64;
        self.entries.get(at).map(|entry| (self.scan_from, entry))
    }

    pub(super) fn in_flight(&mut self, sequence: u64) {
        if let Some(entry) = self.entry(sequence) {
            entry.state = EntryState::InFlight;
        }
    }

    pub(super) fn confirm(&mut self, sequence: u64) {
        if let Some(entry) = self.entry_in_flight(sequence) {
            entry.state = EntryState::Settled(Ok(()));
            self.waiting_since = Some(Instant::now());
        }
    }

    /// Whether anything is published and not settled.
    pub(super) fn is_in_flight(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.state, EntryState::InFlight))
    }

    /// Puts one entry back in line.
    pub(super) fn put_back(&mut self, sequence: u64) -> Option<&mut Entry> {
        self.scan_from = self.scan_from.min(sequence);
        let entry = self.entry_in_flight(sequence)?;
        entry.state = EntryState::Queued;
        Some(entry)
    }

    /// The same for one that no queue took; returns how often that has happened.
    pub(super) fn requeue(&mut self, sequence: u64) -> u32 {
        self.put_back(sequence).map_or(0, |entry| {
            entry.unroutable += 1;
            entry.unroutable
        })
    }

    /// Nothing is known of what is in flight any more: it is published again, in order.
    pub(super) fn requeue_in_flight(&mut self) {
        self.scan_from = self.first;
        for entry in &mut self.entries {
            if matches!(entry.state, EntryState::InFlight) {
                entry.state = EntryState::Queued;
            }
        }
    }

    /// Fails every entry that is not published yet and for which `judge` has an error.
    pub(super) fn fail_where(&mut self, judge: impl Fn(&Entry) -> Option<Error>) {
        for entry in &mut self.entries {
            if matches!(entry.state, EntryState::Queued)
                && let Some(error) = judge(entry)
            {
                entry.state = EntryState::Settled(Err(error));
            }
        }
    }

    /// Fails everything that is waiting to be published.
    pub(super) fn fail_queued(&mut self, error: &Error) {
        self.fail_where(|_| Some(error.clone()));
    }

    /// Fails everything that is not settled.
    pub(super) fn fail_open(&mut self, error: &Error) {
        self.requeue_in_flight();
        self.fail_where(|_| Some(error.clone()));
    }

    /// The first entry, if it is settled. The ones behind it wait for it.
    pub(super) fn pop_settled(&mut self) -> Option<(Entry, Result<(), Error>)> {
        if !matches!(self.entries.front()?.state, EntryState::Settled(_)) {
            return None;
        }
        let mut entry = self.entries.pop_front()?;
        self.first += 1;
        self.bytes -= entry.size();
        if self.entries.is_empty() {
            self.waiting_since = None;
        }
        match std::mem::replace(&mut entry.state, EntryState::Queued) {
            EntryState::Settled(outcome) => Some((entry, outcome)),
            EntryState::Queued | EntryState::InFlight => None,
        }
    }

    fn entry_in_flight(&mut self, sequence: u64) -> Option<&mut Entry> {
        self.entry(sequence).filter(|entry| matches!(entry.state, EntryState::InFlight))
    }

    fn entry(&mut self, sequence: u64) -> Option<&mut Entry> {
        let at = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Body;

    fn window(count: u64) -> Window {
        let mut window = Window::default();
        for number in 1..=count {
            window.push(Item { number, body: Ok(Body::new(vec![b'x'])) }, number.to_string());
        }
        window
    }

    fn publish_all(window: &mut Window) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some((sequence, entry)) = window.next_queued() {
            numbers.push(entry.item.number);
            window.in_flight(sequence);
        }
        numbers
    }

    fn pop_all(window: &mut Window) -> Vec<(u64, bool)> {
        std::iter::from_fn(|| window.pop_settled())
            .map(|(entry, outcome)| (entry.item.number, outcome.is_ok()))
            .collect()
    }

    #[test]
    fn settled_tasks_come_out_in_the_order_of_the_input() {
        let mut window = window(4);
        assert_eq!(publish_all(&mut window), [1, 2, 3, 4]);
        window.confirm(2);
        window.confirm(1);
        assert_eq!(pop_all(&mut window), []);
        window.confirm(0);
        assert_eq!(pop_all(&mut window), [(1, true), (2, true), (3, true)]);
        assert!(window.waiting_since().is_some());
        window.confirm(3);
        assert_eq!(pop_all(&mut window), [(4, true)]);
        assert!(window.is_empty() && window.waiting_since().is_none());
    }

    #[test]
    fn what_was_in_flight_is_published_again_and_nothing_else() {
        let mut window = window(3);
        publish_all(&mut window);
        window.confirm(1);
        window.requeue_in_flight();
        // It is not published.
        window.confirm(0);
        assert_eq!(publish_all(&mut window), [1, 3]);
        window.confirm(0);
        window.confirm(2);
        assert_eq!(pop_all(&mut window), [(1, true), (2, true), (3, true)]);
    }

    #[test]
    fn room_is_limited_by_count_and_by_bytes() {
        assert!(window(999).has_room());
        assert!(!window(1000).has_room());
        let mut big = Window::default();
        big.push(Item { number: 1, body: Ok(Body::new(vec![0; MAX_BYTES])) }, String::new());
        assert!(!big.has_room());
    }

    #[test]
    fn giving_up_fails_all_that_is_open() {
        let mut window = window(3);
        publish_all(&mut window);
        window.confirm(0);
        window.fail_open(&Error::try_again("late"));
        assert_eq!(pop_all(&mut window), [(1, true), (2, false), (3, false)]);
    }

    #[test]
    fn a_refused_task_is_published_again_and_alone() {
        let mut window = window(3);
        publish_all(&mut window);
        window.put_back(1);
        assert!(window.is_in_flight());
        window.confirm(0);
        window.confirm(2);
        assert!(!window.is_in_flight());
        assert_eq!(publish_all(&mut window), [2]);
        window.confirm(1);
        assert_eq!(pop_all(&mut window), [(1, true), (2, true), (3, true)]);
    }

    #[test]
    fn unroutable_tasks_are_counted() {
        let mut window = window(1);
        for round in 1..=3 {
            publish_all(&mut window);
            assert_eq!(window.requeue(0), round);
        }
    }
}
