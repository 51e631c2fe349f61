//! The built-in handler: sleeps one second for each dot in the body, as the tutorial's worker does.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::task::{Handler, Outcome, Task};
use crate::cancel::Never;

/// Pretends to work.
pub struct Dots;

impl Handler for Dots {
    fn run(&mut self, task: &Task<'_>, abort: &Receiver<Never>) -> Outcome {
        // Counted once for a task that takes seconds.
        #[allow(clippy::naive_bytecount)]
        let dots = task.body.iter().filter(|byte| **byte == b'.').count();
        let Ok(seconds) = u64::try_from(dots) else { return Outcome::Done };
        if seconds == 0 {
            return Outcome::Done;
        }
        match abort.recv_timeout(Duration::from_secs(seconds)) {
            Err(RecvTimeoutError::Timeout) => Outcome::Done,
            Ok(_) | Err(RecvTimeoutError::Disconnected) => Outcome::GivenUp,
        }
    }

    fn close(&mut self, _abort: &Receiver<Never>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(body: &[u8]) -> Task<'_> {
        crate::handler::testing::task(body)
    }

    #[test]
    fn no_dots_take_no_time() {
        let (_keep, abort) = crossbeam_channel::bounded(0);
        assert_eq!(Dots.run(&task(b"hello"), &abort), Outcome::Done);
    }

    #[test]
    fn a_closed_abort_channel_interrupts_the_sleep() {
        let (sender, abort) = crossbeam_channel::bounded::<Never>(0);
        drop(sender);
        assert_eq!(Dots.run(&task(&b".".repeat(100_000)), &abort), Outcome::GivenUp);
    }
}
