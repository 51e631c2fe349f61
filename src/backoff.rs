//! How long to wait before trying again: exponential, with jitter, so that many clients of a broker that comes back
//! do not all knock at once.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, Instant};

/// The pauses between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses that double from `first` up to `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next pause: between half of the current step and all of it.
    pub fn pause(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.longest);
        step / 2 + step.mul_f64(random_fraction() / 2.0)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Keeps a trouble that lasts from being told at every attempt, and from being forgotten.
#[derive(Debug, Default)]
pub struct Reminder {
    last: Option<(String, Instant)>,
}

/// How often the same trouble is told.
const REMIND_AFTER: Duration = Duration::from_mins(1);

impl Reminder {
    /// Whether `text` should be told now: it is new, or was told long ago.
    pub fn is_due(&mut self, text: &str) -> bool {
        let due = self.last.as_ref().is_none_or(|(last, at)| last != text || at.elapsed() >= REMIND_AFTER);
        if due {
            self.last = Some((text.to_owned(), Instant::now()));
        }
        due
    }
}

/// Random enough to spread load; nothing secret depends on it. The standard library seeds every hasher anew.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[allow(clippy::cast_precision_loss)] // 32 bits fit an f64 exactly.
fn random_fraction() -> f64 {
    (random() >> 32) as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_stay_within_their_step() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for step in [100, 200, 400, 800, 1000, 1000, 1000] {
            let pause = backoff.pause();
            let step = Duration::from_millis(step);
            assert!(pause >= step / 2 && pause <= step, "{pause:?} of {step:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(100));
    }

    #[test]
    fn the_same_trouble_is_told_once_at_first() {
        let mut reminder = Reminder::default();
        let told = ["a", "a", "b", "b", "a"].map(|text| reminder.is_due(text));
        assert_eq!(told, [true, false, true, false, true]);
    }

    #[test]
    fn pauses_differ() {
        let pauses: std::collections::HashSet<_> =
            (0..20).map(|_| Backoff::new(Duration::from_secs(9), Duration::from_secs(9)).pause()).collect();
        assert!(pauses.len() > 1);
    }
}
