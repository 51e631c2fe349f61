//! Who does not take copies now, and when to try again: queues that are full or away, and single copies that the
//! broker does not take.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::hold::{Hold, Reason};
use crate::backoff::Backoff;

/// Refusals that last. `K` is the queue that refuses, or the number of the copy that is refused.
pub(super) struct Refusals<K> {
    lasting: HashMap<K, Refusal>,
    /// The pauses before a copy is tried again.
    pauses: Backoff,
    /// How often a refusal that lasts is told.
    tell_every: Duration,
}

struct Refusal {
    hold: Hold,
    again_at: Instant,
    backoff: Backoff,
    /// A copy is under way that will tell whether it still lasts.
    asked: bool,
}

impl<K: Eq + Hash + Clone> Refusals<K> {
    /// `pauses` lie before each further attempt; `tell_every` between two times that it is told.
    pub(super) fn new(pauses: Backoff, tell_every: Duration) -> Self {
        Self { lasting: HashMap::new(), pauses, tell_every }
    }

    /// A copy was refused.
    pub(super) fn note(&mut self, whose: K, reason: Reason, now: Instant) {
        let refusal = self.lasting.entry(whose).or_insert_with(|| Refusal {
            hold: Hold::new(reason.clone(), self.tell_every, now),
            again_at: now,
            backoff: self.pauses.clone(),
            asked: false,
        });
        refusal.again_at = now + refusal.backoff.pause();
        refusal.asked = false;
        refusal.hold.lasts(reason, now);
    }

    /// A copy was taken.
    pub(super) fn lift(&mut self, whose: &K) {
        self.lasting.remove(whose);
    }

    /// A copy may be published: nothing was refused, or it is time to ask again and nothing is under way that asks.
    pub(super) fn allow(&self, whose: &K, now: Instant) -> bool {
        self.lasting.get(whose).is_none_or(|refusal| !refusal.asked && refusal.again_at <= now)
    }

    /// Why the last one was refused, if none was taken since.
    pub(super) fn reason(&self, whose: &K) -> Option<&Reason> {
        self.lasting.get(whose).map(|refusal| refusal.hold.reason())
    }

    /// From when on [`Refusals::allow`] does, as far as that is a matter of time.
    pub(super) fn allows_at(&self, whose: &K) -> Option<Instant> {
        self.lasting.get(whose).filter(|refusal| !refusal.asked).map(|refusal| refusal.again_at)
    }

    /// A copy is published. Where one was refused, no other one is until it is settled.
    pub(super) fn ask(&mut self, whose: &K) {
        if let Some(refusal) = self.lasting.get_mut(whose) {
            refusal.asked = true;
        }
    }

    /// What was under way is lost, and will not tell.
    pub(super) fn forget_asked(&mut self) {
        self.lasting.values_mut().for_each(|refusal| refusal.asked = false);
    }

    /// Forgets all but what is wanted: nobody waits for the rest any more.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(&K) -> bool) {
        self.lasting.retain(|whose, _| wanted(whose));
    }

    /// What has to be told now, with the reasons.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(K, Reason)> {
        let refusals = self.lasting.iter_mut().map(|(whose, refusal)| (whose, &mut refusal.hold));
        let due = refusals.filter_map(|(whose, hold)| hold.take_due(now).then_some((whose, hold)));
        due.map(|(whose, hold)| (whose.clone(), hold.reason().clone())).collect()
    }

    /// When there is something to tell again.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.lasting.values().map(|refusal| refusal.hold.tell_at()).min()
    }

    /// The one that lasts longest.
    pub(super) fn longest(&self) -> Option<&Hold> {
        self.lasting.values().map(|refusal| &refusal.hold).min_by_key(|hold| hold.since())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST_PAUSE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(30);

    fn refusals() -> Refusals<&'static str> {
        Refusals::new(Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), Duration::from_mins(1))
    }

    fn told(words: &str) -> Reason {
        Reason::Told(words.to_owned())
    }

    #[test]
    fn a_queue_that_refuses_is_asked_by_one_copy_after_each_pause() {
        let start = Instant::now();
        let mut refusals = refusals();
        assert!(refusals.allow(&"q", start) && refusals.allows_at(&"q").is_none());
        refusals.note("q", told("full"), start);
        assert!(!refusals.allow(&"q", start) && refusals.allow(&"other", start));
        let again = start + FIRST_PAUSE;
        assert!(refusals.allow(&"q", again));
        refusals.ask(&"q");
        refusals.ask(&"other");
        assert!(!refusals.allow(&"q", again) && refusals.allow(&"other", again));
        // The pauses grow to the longest.
        for _ in 0..10 {
            refusals.note("q", told("full"), again);
        }
        assert!(!refusals.allow(&"q", again + LONGEST_PAUSE / 3));
        assert!(refusals.allow(&"q", again + LONGEST_PAUSE));
        let longest = refusals.longest().map(|hold| (hold.since(), hold.reason()));
        assert_eq!(longest, Some((start, &told("full"))));
        refusals.lift(&"q");
        assert!(refusals.allow(&"q", again) && refusals.longest().is_none());
    }

    #[test]
    fn what_was_asked_and_lost_is_asked_again() {
        let start = Instant::now();
        let mut refusals = refusals();
        refusals.note("q", told("full"), start);
        refusals.ask(&"q");
        refusals.forget_asked();
        assert!(refusals.allow(&"q", start + FIRST_PAUSE));
    }

    #[test]
    fn each_refusal_is_told_for_itself() {
        let start = Instant::now();
        let mut refusals = refusals();
        refusals.note("q", told("full"), start);
        assert_eq!(refusals.take_due(start), [("q", told("full"))]);
        let later = start + FIRST_PAUSE;
        refusals.note("q", told("full"), later);
        refusals.note("other", told("away"), later);
        assert_eq!(refusals.tell_at(), Some(later));
        assert_eq!(refusals.take_due(later), [("other", told("away"))]);
        assert_eq!(refusals.tell_at(), Some(start + Duration::from_mins(1)));
    }
}
