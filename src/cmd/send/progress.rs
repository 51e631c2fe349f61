//! The line that shows how far a bulk send is, on a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::output::{self, Stream};

/// How often it is drawn at most.
const INTERVAL: Duration = Duration::from_millis(200);
/// Looking at the clock costs more than counting: only after so many tasks.
const STEP: u64 = 100;
/// Back to the start of the line, which is cleared.
const CLEAR: &str = "\r\x1b[K";

/// How far it is. The line is cleared when this is dropped.
pub(super) struct Progress {
    stderr: Stream,
    count: u64,
    /// Of the last drawing.
    drawn: (u64, Instant),
    /// The line is there.
    shown: bool,
}

impl Progress {
    /// None where nobody would see it, or wants to.
    pub(super) fn on_a_terminal() -> Option<Self> {
        if !std::io::stderr().is_terminal() || !log::log_enabled!(log::Level::Info) {
            return None;
        }
        Some(Self { stderr: output::stderr().ok()?, count: 0, drawn: (0, Instant::now()), shown: false })
    }

    /// One more task is sent.
    pub(super) fn count(&mut self) {
        self.count += 1;
        let (count, at) = self.drawn;
        let elapsed = at.elapsed();
        if self.count.is_multiple_of(STEP) && elapsed >= INTERVAL {
            self.stderr.show(format!("{CLEAR}{}", line(self.count, self.count - count, elapsed)));
            self.drawn = (self.count, Instant::now());
            self.shown = true;
        }
    }

    /// Takes the line away, before a message.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            self.stderr.show(CLEAR.to_owned());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(count: u64, lately: u64, within: Duration) -> String {
    let rate = u128::from(lately) * 1000 / within.as_millis().max(1);
    format!("{} tasks sent, {}/s", grouped(count.into()), grouped(rate))
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

    #[test]
    fn the_line_says_how_many_and_how_fast() {
        assert_eq!(line(1_234_500, 2_500, Duration::from_millis(250)), "1,234,500 tasks sent, 10,000/s");
        assert_eq!(line(100, 100, Duration::ZERO), "100 tasks sent, 100,000/s");
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
    }
}
