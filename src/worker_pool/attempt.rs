//! One attempt at a task: runs it when the machine has room for it, and says how it ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use super::context::Context;
use crate::backoff::Backoff;
use crate::broker::{Delivery, Record};
use crate::calendar::Moment;
use crate::events::{Event, Subject};
use crate::handler::{Failure, Handler, Obstacle, Outcome, Task, TaskProperties};
use crate::output;
use crate::report::tell;

/// What the machine lacks (descriptors, processes, the command while it is replaced) may be there again in a moment. Only
/// then the task goes back, which counts as a delivery; others have more.
const WAITS_TO_RUN: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

impl Context {
    /// Runs the task of a delivery.
    pub(super) fn attempt(
        &self,
        delivery: &Delivery<'_>,
        record: &Record,
        handler: &mut dyn Handler,
    ) -> Outcome {
        let properties = &delivery.properties;
        let (id, body) = (properties.id(), &output::Excerpt(&delivery.body));
        tell(&Event::Received { task: Subject { id, attempt: record.attempt, body, took: None } });
        let headers = properties.user_headers();
        let task = Task {
            id: properties.id(),
            attempt: record.attempt,
            attempts: self.shared.options.policy.attempts,
            queue: &self.shared.options.queue.name,
            redelivered: delivery.redelivered || record.deliveries > 0,
            content_type: properties.content_type(),
            properties: TaskProperties {
                reply_to: properties.reply_to(),
                correlation_id: properties.correlation_id(),
                content_encoding: properties.content_encoding(),
                kind: properties.kind(),
                priority: properties.priority(),
                timestamp: properties.timestamp().and_then(Moment::from_unix),
            },
            headers: &headers,
            body: &delivery.body,
        };
        let _running = self.shared.run();
        let outcome = self.run_when_possible(handler, &task);
        if !matches!(outcome, Outcome::NoResources(_) | Outcome::GivenUp) {
            self.shared.note_shortage(false);
        }
        self.shared.surroundings.settle(outcome, &task, self.stop.signalled(), self.stop.aborting())
    }

    fn run_when_possible(&self, handler: &mut dyn Handler, task: &Task<'_>) -> Outcome {
        let mut pauses = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        for _ in 0..WAITS_TO_RUN {
            let outcome = contained(|| handler.run(task, self.stop.aborting()));
            match &outcome {
                Outcome::NoResources(what) => self.shared.tell_shortage(what),
                Outcome::CannotRun(Obstacle { why, may_pass: true }) => self.shared.tell_obstacle(why),
                _ => return outcome,
            }
            if self.stop.draining().recv_timeout(pauses.pause()) == Err(RecvTimeoutError::Disconnected) {
                return Outcome::GivenUp;
            }
        }
        contained(|| handler.run(task, self.stop.aborting()))
    }
}

/// A fault in a handler's code fails its task; the thread and its connection go on.
fn contained(run: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Outcome::Failed(Failure { exit: "a fault of taskq's own".to_owned(), stderr: Vec::new() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_panics_fails_its_task_and_ends_nothing_else() {
        assert!(matches!(contained(|| Outcome::Done), Outcome::Done));
        let Outcome::Failed(failure) = contained(|| panic!("a fault")) else { panic!("it did not fail") };
        assert_eq!(failure.exit, "a fault of taskq's own");
    }
}
