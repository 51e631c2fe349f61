//! A day of the calendar, in UTC, as part of a queue's name.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS: u64 = 24 * 60 * 60;

/// Days since 1970. Shown as `2026-11-28`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day(u64);

impl Day {
    /// The day of this moment; what is before 1970 counts as its first day.
    #[must_use]
    pub fn of(moment: SystemTime) -> Self {
        Self(moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / SECONDS)
    }

    /// Whether a day is shown like this.
    pub(in crate::broker) fn is_shown_as(text: &str) -> bool {
        let mut parts = text.split('-');
        let digits = |part: Option<&str>, least: usize| {
            part.is_some_and(|part| part.len() >= least && part.bytes().all(|byte| byte.is_ascii_digit()))
        };
        digits(parts.next(), 4)
            && digits(parts.next(), 2)
            && digits(parts.next(), 2)
            && parts.next().is_none()
    }
}

impl fmt::Display for Day {
    /// Years are counted from March here, so that the day that not every year has is the last one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days since 1 March of the year 0, in periods of 400 years.
        let days = self.0 + 719_468;
        let (period, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        write!(f, "{:04}-{month:02}-{day:02}", period * 400 + year + next_year)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01"),
            (86_399, "1970-01-01"),
            (86_400, "1970-01-02"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_709_164_800, "2024-02-29"),
            (1_735_689_599, "2024-12-31"),
            (1_735_689_600, "2025-01-01"),
            (1_795_824_000, "2026-11-28"),
            (4_107_542_399, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(Day::of(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), shown, "{seconds}");
            assert!(Day::is_shown_as(shown));
        }
        assert_eq!(Day::of(UNIX_EPOCH - Duration::from_secs(1)), Day(0));
    }

    #[test]
    fn other_words_are_no_days() {
        for text in
            ["", "2026", "2026-11", "2026-11-", "2026-1-1", "x2026-11-28", "2026-11-28-1", "2026-11-28.dead"]
        {
            assert!(!Day::is_shown_as(text), "{text}");
        }
    }
}
