//! The one clock of a run: the machine's uptime, which a shell script can read without starting a process.

use std::fmt;
use std::time::Duration;

/// Hundredths of a second since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    pub(crate) fn now() -> Self {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        uptime.split_whitespace().next().and_then(Self::parse).unwrap()
    }

    /// As it stands in `/proc/uptime` and in the recorder: `1234.56`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (seconds, hundredths) = text.split_once('.')?;
        let hundredths: u64 = (hundredths.len() == 2).then(|| hundredths.parse().ok())??;
        Some(Self(seconds.parse::<u64>().ok()? * 100 + hundredths))
    }

    /// How long after an earlier moment this is.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0) * 10)
    }

    pub(crate) fn plus(self, duration: Duration) -> Self {
        Self(self.0 + hundredths(duration))
    }

    pub(crate) fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(hundredths(duration)))
    }
}

fn hundredths(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis() / 10).unwrap_or(u64::MAX)
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}
