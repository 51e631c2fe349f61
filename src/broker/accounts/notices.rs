//! How often a broker may say that it blocks, or no longer blocks, publishing.

use std::time::{Duration, Instant};

use crate::broker::violation::Violation;

/// Many nodes of a cluster can raise and clear alarms of memory and disk together.
const AT_ONCE: u32 = 100;
/// And go on like that: RabbitMQ looks at its memory once a second, at a full disk more often.
const EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Notices {
    /// How many came that time has not made up for.
    recent: u32,
    /// Until when it has.
    since: Option<Instant>,
}

impl Notices {
    pub(super) fn note(&mut self, now: Instant) -> Result<(), Violation> {
        let since = self.since.get_or_insert(now);
        let made_up = now.saturating_duration_since(*since).as_millis() / EVERY.as_millis();
        let made_up = u32::try_from(made_up).unwrap_or(u32::MAX);
        if made_up >= self.recent {
            (self.recent, *since) = (0, now);
        } else {
            self.recent -= made_up;
            *since += EVERY * made_up;
        }
        self.recent += 1;
        if self.recent <= AT_ONCE {
            Ok(())
        } else {
            Err(Violation::Unasked("notices of alarms without end".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_come_at_once_and_then_one_at_a_time() {
        let mut notices = Notices::default();
        let mut now = Instant::now();
        for _ in 0..AT_ONCE {
            assert_eq!(notices.note(now), Ok(()));
        }
        for _ in 0..3 * AT_ONCE {
            now += EVERY;
            assert_eq!(notices.note(now), Ok(()));
        }
        assert!(notices.note(now + EVERY / 2).is_err());
    }

    #[test]
    fn a_long_silence_makes_up_for_all() {
        let mut notices = Notices::default();
        let now = Instant::now();
        for round in 0..3 {
            for _ in 0..AT_ONCE {
                assert_eq!(notices.note(now + Duration::from_hours(round)), Ok(()));
            }
        }
        assert!(notices.note(now + Duration::from_hours(2)).is_err());
    }
}
