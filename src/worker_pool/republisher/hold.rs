//! Why copies are held, for how long already, and when that is to be told.

use std::fmt;
use std::time::{Duration, Instant};

/// Copies are held for a reason that may last: told at once and then again and again.
#[derive(Debug)]
pub(super) struct Hold {
    since: Instant,
    reason: Reason,
    tell_at: Instant,
    tell_every: Duration,
}

/// What keeps the broker from taking copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    /// The broker refused one without a word, as a queue does that is full.
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

impl Hold {
    /// From now on.
    pub(super) fn new(reason: Reason, tell_every: Duration, now: Instant) -> Self {
        Self { since: now, reason, tell_at: now, tell_every }
    }

    /// It lasts, for this reason now: another one than before is told at once.
    pub(super) fn lasts(&mut self, reason: Reason, now: Instant) {
        if self.reason != reason {
            self.reason = reason;
            self.tell_at = now;
        }
    }

    /// Since when.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// See [`Reason`].
    pub(super) fn reason(&self) -> &Reason {
        &self.reason
    }

    /// When it is to be told the next time.
    pub(super) fn tell_at(&self) -> Instant {
        self.tell_at
    }

    /// Whether it is to be told now; then it is taken to be.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.tell_at <= now;
        if due {
            self.tell_at = now + self.tell_every;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_at_once_and_each_minute_and_when_its_reason_changes() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let told = |words: &str| Reason::Told(words.to_owned());
        let mut hold = Hold::new(told("full"), Duration::from_mins(1), start);
        assert!(hold.take_due(start));
        hold.lasts(told("full"), after(10));
        assert!(!hold.take_due(after(10)) && !hold.take_due(after(59)));
        assert_eq!(hold.tell_at(), after(60));
        assert!(hold.take_due(after(60)) && !hold.take_due(after(61)));
        hold.lasts(told("away"), after(62));
        assert!(hold.take_due(after(62)));
        assert_eq!((hold.since(), hold.reason()), (start, &told("away")));
    }
}
