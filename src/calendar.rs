//! Days and moments of the calendar, in UTC, as queues' names and scripts have them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 60 * 60;
/// The first second of the year 10000, which has no place in four digits.
const END: u64 = 253_402_300_800;

/// Now, in whole seconds since the beginning of 1970.
#[must_use]
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Days since 1970. Shown as `2026-11-28`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day(u64);

impl Day {
    /// The day of this moment; what is before 1970 counts as its first day.
    #[must_use]
    pub fn of(moment: SystemTime) -> Self {
        Self(moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / DAY)
    }

    /// Whether a day is shown like this.
    #[must_use]
    pub fn is_shown_as(text: &str) -> bool {
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

/// A second before the year 10000. Shown as ISO 8601 has it: `2026-11-28T22:40:31Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u64);

impl Moment {
    /// So many seconds after the beginning of 1970. `None` for what is too late to be the time of anything.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Option<Self> {
        (seconds < END).then_some(Self(seconds))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = self.0 % DAY;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{}T{hour:02}:{minute:02}:{second:02}Z", Day(self.0 / DAY))
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
    fn moments_are_those_of_the_clock() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_795_905_631, "2026-11-28T22:40:31Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(Moment::from_unix(seconds).unwrap().to_string(), shown, "{seconds}");
        }
        assert_eq!(Moment::from_unix(253_402_300_800), None);
        assert_eq!(Moment::from_unix(u64::MAX), None);
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
