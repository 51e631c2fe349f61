//! Who does not take copies now, and when to try again: queues that are full or away, and single copies that the
//! broker does not take.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// How often a refusal that lasts is told.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Refusals that last. `K` is the queue that refuses, or the number of the copy that is refused.
pub(super) struct Refusals<K> {
    refusals: HashMap<K, Refusal>,
    /// The pauses before a copy is tried again.
    pauses: Backoff,
}

/// Why a copy was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// The broker refused it without a word, as a queue does that is full.
    QueueFull,
    /// In somebody's words.
    Told(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueueFull => "the broker does not take it; is the queue full?",
            Self::Told(words) => words,
        })
    }
}

struct Refusal {
    since: Instant,
    again_at: Instant,
    backoff: Backoff,
    reason: Reason,
    /// A copy is under way that will tell whether it still lasts.
    asked: bool,
    tell_at: Instant,
}

impl<K: Eq + Hash + Clone> Refusals<K> {
    /// `pauses` lie before each further attempt.
    pub(super) fn new(pauses: Backoff) -> Self {
        Self { refusals: HashMap::new(), pauses }
    }

    /// A copy was refused.
    pub(super) fn note(&mut self, whose: K, reason: Reason, now: Instant) {
        let refusal = self.refusals.entry(whose).or_insert_with(|| Refusal {
            since: now,
            again_at: now,
            backoff: self.pauses.clone(),
            reason: reason.clone(),
            asked: false,
            tell_at: now,
        });
        refusal.again_at = now + refusal.backoff.pause();
        refusal.asked = false;
        if refusal.reason != reason {
            refusal.reason = reason;
            refusal.tell_at = now;
        }
    }

    /// A copy was taken.
    pub(super) fn lift(&mut self, whose: &K) {
        self.refusals.remove(whose);
    }

    /// A copy may be published: nothing was refused, or it is time to ask again and nothing is under way that asks.
    pub(super) fn allow(&self, whose: &K, now: Instant) -> bool {
        self.refusals.get(whose).is_none_or(|refusal| !refusal.asked && refusal.again_at <= now)
    }

    /// Why the last one was refused, if none was taken since.
    pub(super) fn reason(&self, whose: &K) -> Option<&Reason> {
        self.refusals.get(whose).map(|refusal| &refusal.reason)
    }

    /// From when on [`Refusals::allow`] does, as far as that is a matter of time.
    pub(super) fn allows_at(&self, whose: &K) -> Option<Instant> {
        self.refusals.get(whose).filter(|refusal| !refusal.asked).map(|refusal| refusal.again_at)
    }

    /// A copy is published. Where one was refused, no other one is until it is settled.
    pub(super) fn ask(&mut self, whose: &K) {
        if let Some(refusal) = self.refusals.get_mut(whose) {
            refusal.asked = true;
        }
    }

    /// What was under way is lost, and will not tell.
    pub(super) fn forget_asked(&mut self) {
        self.refusals.values_mut().for_each(|refusal| refusal.asked = false);
    }

    /// Forgets all but what is wanted: nobody waits for the rest any more.
    pub(super) fn retain(&mut self, mut wanted: impl FnMut(&K) -> bool) {
        self.refusals.retain(|whose, _| wanted(whose));
    }

    /// What has to be told now, with the reasons.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(K, Reason)> {
        let due = self.refusals.iter_mut().filter(|(_, refusal)| refusal.tell_at <= now);
        due.map(|(whose, refusal)| {
            refusal.tell_at = now + TELL_EVERY;
            (whose.clone(), refusal.reason.clone())
        })
        .collect()
    }

    /// When there is something to tell again.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.refusals.values().map(|refusal| refusal.tell_at).min()
    }

    /// Since when the first of them lasts, and why.
    pub(super) fn longest(&self) -> Option<(Instant, &Reason)> {
        let oldest = self.refusals.values().min_by_key(|refusal| refusal.since)?;
        Some((oldest.since, &oldest.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST_PAUSE: Duration = Duration::from_secs(1);
    const LONGEST_PAUSE: Duration = Duration::from_secs(30);

    fn refusals() -> Refusals<&'static str> {
        Refusals::new(Backoff::new(FIRST_PAUSE, LONGEST_PAUSE))
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
        assert_eq!(refusals.longest(), Some((start, &told("full"))));
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
    fn a_refusal_is_told_at_once_and_each_minute_and_when_its_reason_changes() {
        let start = Instant::now();
        let mut refusals = refusals();
        let due = |refusals: &mut Refusals<&str>, after| {
            refusals
                .take_due(start + Duration::from_secs(after))
                .into_iter()
                .map(|(_, why)| why.to_string())
                .collect::<Vec<_>>()
        };
        refusals.note("q", told("full"), start);
        assert_eq!(due(&mut refusals, 0), ["full"]);
        refusals.note("q", told("full"), start + Duration::from_secs(10));
        assert!(due(&mut refusals, 10).is_empty() && due(&mut refusals, 59).is_empty());
        assert_eq!(due(&mut refusals, 60), ["full"]);
        refusals.note("q", told("away"), start + Duration::from_secs(61));
        assert_eq!(due(&mut refusals, 61), ["away"]);
    }
}
