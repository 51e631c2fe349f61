//! How many tasks are sent again within which time.

use std::time::{Duration, Instant};

/// Tasks are taken for so long at a time: well within the 30 minutes that a broker waits for an answer, and whatever dies
/// meanwhile, no more than these come back.
const TAKEN_FOR: Duration = Duration::from_mins(5);

/// So many within such a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least one.
    pub count: u32,
    /// Within which time.
    pub per: Duration,
}

impl Rate {
    /// How many are taken at a time: as many as are sent in five minutes, and one at least.
    #[must_use]
    pub fn at_a_time(self) -> u32 {
        let many = u128::from(self.count) * TAKEN_FOR.as_nanos() / self.per.as_nanos().max(1);
        u32::try_from(many).unwrap_or(u32::MAX).max(1)
    }

    fn interval(self) -> Duration {
        self.per / self.count.max(1)
    }
}

/// When the next one is due.
pub(super) struct Pace {
    interval: Duration,
    due: Instant,
}

impl Pace {
    /// The first one is due now.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { interval: rate.interval(), due: now }
    }

    /// When to send the next one.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// One was sent. What was missed is not made up for: others would have to bear it.
    pub(super) fn sent(&mut self, now: Instant) {
        self.due = self.due.max(now.checked_sub(self.interval).unwrap_or(now)) + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn as_many_are_taken_as_are_sent_in_five_minutes() {
        let at_a_time = |count, per| Rate { count, per }.at_a_time();
        assert_eq!(at_a_time(2, SECOND), 600);
        assert_eq!(at_a_time(1, 60 * SECOND), 5);
        assert_eq!(at_a_time(100, 3600 * SECOND), 8);
        assert_eq!(at_a_time(1, 3600 * SECOND), 1);
        assert_eq!(at_a_time(u32::MAX, SECOND), u32::MAX);
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::new(Rate { count: 2, per: SECOND }, start);
        assert_eq!(pace.due(), start);
        pace.sent(start);
        assert_eq!(pace.due(), start + SECOND / 2);
        // A little late: the next one is not later for it.
        pace.sent(start + SECOND * 7 / 10);
        assert_eq!(pace.due(), start + SECOND);
        pace.sent(start + SECOND * 60);
        assert_eq!(pace.due(), start + SECOND * 60);
    }
}
