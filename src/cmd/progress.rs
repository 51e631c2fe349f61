//! The line on a terminal that shows how far a command is with many tasks.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::duration;
use crate::output::{self, Stream};

/// How often it is drawn at most.
const INTERVAL: Duration = Duration::from_millis(200);

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum HowFar {
    /// So many tasks; nobody knows of how many.
    Tasks(u64),
    /// So many of all tasks.
    OfTasks { done: u64, all: u64 },
    /// So many tasks, which were so many of all bytes.
    OfBytes { tasks: u64, done: u64, all: u64 },
}

impl HowFar {
    fn tasks(self) -> u64 {
        let (Self::Tasks(tasks) | Self::OfTasks { done: tasks, .. } | Self::OfBytes { tasks, .. }) = self;
        tasks
    }

    /// How much is left as a multiple of what is done, where that is known. A file may have grown beyond its size.
    fn left(self) -> Option<f64> {
        let (done, all) = match self {
            Self::Tasks(_) => return None,
            Self::OfTasks { done, all } | Self::OfBytes { done, all, .. } => (done, all),
        };
        let left = all.checked_sub(done).filter(|_| done > 0)?;
        // A few digits of them matter.
        #[allow(clippy::cast_precision_loss)]
        Some(left as f64 / done as f64)
    }
}

/// The line. It is cleared when this is dropped.
pub(super) struct Progress {
    stderr: Stream,
    what: &'static str,
    began: Instant,
    /// Of the last drawing.
    drawn: (u64, Instant),
}

impl Progress {
    /// None where nobody would see it, or wants to. `what` becomes of the tasks: "sent".
    pub(super) fn on_a_terminal(what: &'static str) -> Option<Self> {
        if !std::io::stderr().is_terminal() || !log::log_enabled!(log::Level::Info) {
            return None;
        }
        let now = Instant::now();
        Some(Self { stderr: output::stderr().ok()?, what, began: now, drawn: (0, now) })
    }

    /// Draws it, unless it was drawn a moment ago.
    pub(super) fn show(&mut self, far: HowFar) {
        let (tasks, at) = self.drawn;
        let lately = at.elapsed();
        if lately < INTERVAL {
            return;
        }
        let rate = rate(far.tasks().saturating_sub(tasks), lately);
        let line = line(self.what, far, rate, self.began.elapsed());
        // Asked for each time: the window may have another size now.
        let line = match output::terminal_width(std::io::stderr()) {
            Some(columns) => output::fit(&line, columns),
            None => line,
        };
        self.stderr.draw(&line);
        self.drawn = (far.tasks(), Instant::now());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stderr.clear();
    }
}

/// How many a second, rounded.
fn rate(tasks: u64, within: Duration) -> u128 {
    let millis = within.as_millis().max(1);
    (u128::from(tasks) * 1000 + millis / 2) / millis
}

/// What the line says `after` so long a time.
fn line(what: &str, far: HowFar, rate: u128, after: Duration) -> String {
    let tasks = grouped(far.tasks().into());
    let done = match far {
        HowFar::OfTasks { all, .. } => format!("{tasks} of {} {what}", grouped(all.into())),
        _ if far.tasks() == 1 => format!("{tasks} task {what}"),
        _ => format!("{tasks} tasks {what}"),
    };
    let left = far.left().and_then(|left| Duration::try_from_secs_f64(after.as_secs_f64() * left).ok());
    let left = left.map(|left| format!(", about {} left", duration::rough(left))).unwrap_or_default();
    format!("{done}, {}/s{left}", grouped(rate))
}

/// A number with a comma before every third digit from the end.
fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn the_line_says_how_many_and_how_fast() {
        for (far, said) in [
            (HowFar::Tasks(1_234_500), "1,234,500 tasks sent, 10,000/s"),
            (HowFar::Tasks(1), "1 task sent, 10,000/s"),
            (
                HowFar::OfTasks { done: 12_300, all: 100_000 },
                "12,300 of 100,000 sent, 10,000/s, about 7m left",
            ),
            (HowFar::OfTasks { done: 7, all: 7 }, "7 of 7 sent, 10,000/s, about 0s left"),
            (
                HowFar::OfBytes { tasks: 12_300, done: 1_000_000, all: 3_000_000 },
                "12,300 tasks sent, 10,000/s, about 2m left",
            ),
            (
                HowFar::OfBytes { tasks: 12_300, done: 2_999_999, all: 3_000_000 },
                "12,300 tasks sent, 10,000/s, about 0s left",
            ),
        ] {
            assert_eq!(line("sent", far, 10_000, MINUTE), said, "{far:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let huge = HowFar::OfTasks { done: 1, all: u64::MAX };
        for far in [
            HowFar::OfTasks { done: 0, all: 9 },
            HowFar::OfTasks { done: 10, all: 9 },
            HowFar::OfBytes { tasks: 1, done: 0, all: 9 },
            huge,
        ] {
            assert!(!line("sent", far, 1, Duration::MAX).contains("left"), "{far:?}");
        }
    }

    #[test]
    fn rates_are_whole_numbers() {
        let millis = Duration::from_millis;
        assert_eq!(rate(2_500, millis(250)), 10_000);
        assert_eq!(rate(100, Duration::ZERO), 100_000);
        assert_eq!(rate(1, millis(1_001)), 1);
        assert_eq!(rate(1, millis(2_001)), 0);
        assert_eq!(grouped(rate(u64::MAX, Duration::ZERO)), "18,446,744,073,709,551,615,000");
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
    }
}
