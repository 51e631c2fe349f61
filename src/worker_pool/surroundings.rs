//! Outcomes that may be due to what is around a task: which they are is decided here, before anybody is blamed.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, select};

use crate::cancel::Never;
use crate::events::Event;
use crate::handler::{Obstacle, Outcome, Task};
use crate::lock::lock;
use crate::report::tell;

/// How long an end by a signal waits for the worker's own. Whoever stops a whole service signals all its processes
/// within milliseconds, and a busy machine takes its time to deliver that.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// How many given-back tasks are remembered. Two in a row whose commands are missing stop the worker, so that another task
/// has failed between any two of them.
const MAX_GIVEN_BACK: usize = 1000;

/// What all threads have seen so far.
#[derive(Default)]
pub(super) struct Surroundings {
    hasher: RandomState,
    missing: Mutex<Missing>,
}

impl Surroundings {
    /// What an outcome is, knowing the worker: `signalled` closes when it is told to stop by a signal, `abort` when
    /// running tasks are given up.
    pub(super) fn settle(
        &self,
        outcome: Outcome,
        task: &Task<'_>,
        signalled: &Receiver<Never>,
        abort: &Receiver<Never>,
    ) -> Outcome {
        let outcome = match outcome {
            Outcome::Terminated(failure) => select! {
                recv(signalled) -> _ => Outcome::GivenUp,
                recv(abort) -> _ => Outcome::GivenUp,
                recv(after(SAME_SIGNAL)) -> _ => Outcome::Failed(failure),
            },
            other => other,
        };
        let mut missing = lock(&self.missing);
        match outcome {
            Outcome::CommandMissing { failure, why } => match missing.next(self.identity(task)) {
                Ruling::Attempt => Outcome::Failed(failure),
                Ruling::Stop => Outcome::CannotRun(Obstacle::lasting(why)),
                Ruling::GiveBack => {
                    tell(&Event::CommandMissing { why: &why });
                    Outcome::GivenUp
                }
            },
            Outcome::Done => {
                missing.proven = true;
                Outcome::Done
            }
            Outcome::Failed(_) | Outcome::Dead(_) => {
                missing.last = None;
                outcome
            }
            Outcome::Terminated(_) | Outcome::GivenUp | Outcome::NoResources(_) | Outcome::CannotRun(_) => {
                outcome
            }
        }
    }

    /// The same for all deliveries of a task. Those without an id are told apart by their bodies.
    fn identity(&self, task: &Task<'_>) -> u64 {
        let body = if task.id.is_empty() { task.body } else { &[] };
        self.hasher.hash_one((task.id, body))
    }
}

/// Whether it is the tasks or the worker whose commands are not found (126 and 127): the worker, when two different
/// tasks in a row end so and none was ever done.
#[derive(Default)]
struct Missing {
    /// A task was done: commands can be executed here.
    proven: bool,
    /// The last task ended so.
    last: Option<u64>,
    /// Each task goes back once only, so that it cannot circle.
    given_back: HashSet<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Ruling {
    /// Of this task, which failed.
    Attempt,
    /// It may not be the task: back with it, until the next one has told.
    GiveBack,
    /// No task can run here.
    Stop,
}

impl Missing {
    fn next(&mut self, task: u64) -> Ruling {
        if self.proven {
            return Ruling::Attempt;
        }
        if self.last.replace(task).is_some_and(|last| last != task) {
            return Ruling::Stop;
        }
        if self.given_back.len() < MAX_GIVEN_BACK && self.given_back.insert(task) {
            Ruling::GiveBack
        } else {
            Ruling::Attempt
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::{Failure, TaskProperties};

    fn task(id: &'static str, body: &'static [u8]) -> Task<'static> {
        Task {
            id,
            attempt: 1,
            attempts: 5,
            queue: "q",
            redelivered: false,
            content_type: "",
            properties: TaskProperties::default(),
            headers: &[],
            body,
        }
    }

    fn failure() -> Failure {
        Failure { exit: "exit status 127".into(), stderr: Vec::new() }
    }

    fn missing() -> Outcome {
        Outcome::CommandMissing { failure: failure(), why: "why".into() }
    }

    /// What becomes of outcomes of these tasks, one after the other.
    fn settled(outcomes: &[(&'static str, Outcome)]) -> Vec<Outcome> {
        let (_open, never) = crossbeam_channel::bounded(0);
        let surroundings = Surroundings::default();
        let settle = |(id, outcome): &(&'static str, Outcome)| {
            surroundings.settle(outcome.clone(), &task(id, b""), &never, &never)
        };
        outcomes.iter().map(settle).collect()
    }

    #[test]
    fn two_different_tasks_in_a_row_stop_the_worker() {
        let stop = Outcome::CannotRun(Obstacle::lasting("why".into()));
        assert_eq!(settled(&[("a", missing()), ("b", missing())]), [Outcome::GivenUp, stop]);
    }

    #[test]
    fn one_task_alone_fails_the_second_time() {
        let failed = Outcome::Failed(failure());
        let outcomes = settled(&[("a", missing()), ("a", missing()), ("a", missing())]);
        assert_eq!(outcomes, [Outcome::GivenUp, failed.clone(), failed]);
    }

    #[test]
    fn where_a_task_was_done_it_is_the_tasks_fault() {
        let failed = Outcome::Failed(failure());
        for first in ["a", "b"] {
            let outcomes =
                settled(&[(first, missing()), ("c", Outcome::Done), ("a", missing()), ("b", missing())]);
            assert_eq!(outcomes, [Outcome::GivenUp, Outcome::Done, failed.clone(), failed.clone()]);
        }
    }

    #[test]
    fn another_end_in_between_is_no_row() {
        let failed = Outcome::Failed(failure());
        for other in [Outcome::Failed(failure()), Outcome::Dead(failure())] {
            let outcomes = settled(&[
                ("a", missing()),
                ("b", other.clone()),
                ("c", missing()),
                ("d", other.clone()),
                ("a", missing()),
                ("e", Outcome::GivenUp),
                ("c", missing()),
            ]);
            let stop = Outcome::CannotRun(Obstacle::lasting("why".into()));
            let back = Outcome::GivenUp;
            // `a` went back once already; giving a task up says nothing.
            let expected = [back.clone(), other.clone(), back.clone(), other, failed.clone(), back, stop];
            assert_eq!(outcomes, expected);
        }
    }

    #[test]
    fn tasks_without_an_id_are_told_apart_by_their_bodies() {
        let surroundings = Surroundings::default();
        let identity = |id, body| surroundings.identity(&task(id, body));
        assert_ne!(identity("", b"a"), identity("", b"b"));
        assert_eq!(identity("", b"a"), identity("", b"a"));
        assert_eq!(identity("1", b"a"), identity("1", b"b"));
    }

    #[test]
    fn an_end_by_a_signal_is_the_workers_if_that_was_signalled_too() {
        let settle = |signalled: &Receiver<Never>, abort: &Receiver<Never>| {
            Surroundings::default().settle(Outcome::Terminated(failure()), &task("a", b""), signalled, abort)
        };
        let (open, never) = crossbeam_channel::bounded(0);
        let (closing, closed) = crossbeam_channel::bounded(0);
        drop(closing);
        assert_eq!(settle(&closed, &never), Outcome::GivenUp);
        assert_eq!(settle(&never, &closed), Outcome::GivenUp);
        assert_eq!(settle(&never, &never), Outcome::Failed(failure()));
        // A moment later.
        std::thread::scope(|scope| {
            let settling = scope.spawn(|| settle(&never, &never));
            std::thread::sleep(SAME_SIGNAL / 10);
            drop(open);
            assert_eq!(settling.join().unwrap(), Outcome::GivenUp);
        });
    }
}
