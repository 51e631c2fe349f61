//! What becomes of a delivery before its task runs, and after.
//!
//! That a task was delivered before and nobody answered is counted before it runs, so that it neither takes down one
//! worker after the other nor is dropped by the broker. A queue may drop a task that was returned to it too often:
//! RabbitMQ 4 after 20 times, and a policy sets any other limit, which AMQP does not tell. A task is therefore replaced
//! by a copy that carries the count when it comes back for the second time, so that limits of 2 and more are never
//! reached. The first time it runs as it is: a restart of its worker does not cost it its place in the queue.

use std::time::Duration;

use super::{Death, Disposition, Purpose, Uncounted};
use crate::broker::QueueType;
use crate::error::Error;
use crate::handler::{Failure, Outcome};
use crate::output::counted;

/// A quorum queue has taken a task back so often when a copy has to take its place.
const COUNT_AT: u64 = 2;
/// The pause where a policy names none: never 0, which would be a hot loop.
const DEFAULT_BACKOFF: Duration = Duration::from_secs(5);

/// What is known of the earlier deliveries of a task.
#[derive(Debug, Clone, Copy)]
pub struct Earlier {
    /// The broker's flag: it was delivered before.
    pub redelivered: bool,
    /// The header `x-delivery-count`. A quorum queue writes it; on any other queue it is what the task brought along.
    pub header: Option<u64>,
    /// What taskq counted, up to the copy that this delivery is of.
    pub recorded: u32,
    /// The queue's type, where it is known.
    pub queue: Option<QueueType>,
}

impl Earlier {
    /// For a delivery whose task this process does not know. `copies_possible`: publishing is neither blocked nor
    /// forbidden. Where it is, tasks go on uncounted, for it may be this queue that fills the broker.
    #[must_use]
    pub fn before_run(&self, policy: &Policy, copies_possible: bool) -> Disposition {
        let unanswered = self.unanswered();
        if let Some(why) = policy.poisoned(unanswered) {
            return dead(why, None);
        }
        if !self.must_be_counted() {
            return Disposition::Run;
        }
        if copies_possible || self.next_return_may_be_the_last() {
            Disposition::Republish(Purpose::Count(u32::try_from(unanswered).unwrap_or(u32::MAX)))
        } else {
            Disposition::RunUncounted(Uncounted::NoCopies)
        }
    }

    /// How many deliveries of the task ended without an answer.
    fn unanswered(&self) -> u64 {
        let since = match (self.redelivered, self.queue) {
            (false, _) => 0,
            (true, Some(QueueType::Quorum)) => self.returns(),
            // The flag tells of at least one, and taskq makes a copy at each.
            (true, Some(QueueType::Classic) | None) => 1,
        };
        u64::from(self.recorded).saturating_add(since)
    }

    /// The count has to be written into a copy before the task may run.
    fn must_be_counted(&self) -> bool {
        match self.queue {
            Some(QueueType::Quorum) => self.redelivered && self.returns() >= COUNT_AT,
            Some(QueueType::Classic) | None => self.redelivered,
        }
    }

    /// The broker may drop the task the next time it takes it back.
    #[must_use]
    pub fn next_return_may_be_the_last(&self) -> bool {
        self.queue != Some(QueueType::Classic) && self.redelivered && self.returns() >= COUNT_AT
    }

    fn returns(&self) -> u64 {
        self.header.unwrap_or(0)
    }
}

/// How often and when a task is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How many attempts a task has, the first included.
    pub attempts: u32,
    /// How many deliveries of a task may end without any answer.
    pub max_deliveries: u32,
    /// The pause after the first failed attempt, the second, ...; the last repeats.
    pub backoff: Vec<Duration>,
}

impl Policy {
    /// The pauses that can come: with a single attempt there is none.
    #[must_use]
    pub fn pauses(&self) -> &[Duration] {
        let retries = usize::try_from(self.attempts.saturating_sub(1)).unwrap_or(usize::MAX);
        &self.backoff[..self.backoff.len().min(retries)]
    }

    /// After attempt number `attempt` (from 1; 0 counts as 1) ended with `outcome`.
    #[must_use]
    pub fn after(&self, attempt: u32, outcome: &Outcome) -> Disposition {
        let attempt = attempt.max(1);
        match outcome {
            Outcome::Done => Disposition::Acknowledge,
            Outcome::GivenUp => Disposition::GiveBack,
            Outcome::NoResources(what) => Disposition::GiveBackAndPause(what.clone()),
            Outcome::CannotRun(obstacle) => {
                Disposition::GiveBackAndStop(Error::configuration(obstacle.why.clone()))
            }
            Outcome::Dead(Failure { exit, .. }) => dead(exit.clone(), None),
            Outcome::Failed(failure)
            | Outcome::Terminated(failure)
            | Outcome::CommandMissing { failure, .. } => self.after_failure(attempt, failure),
        }
    }

    fn after_failure(&self, attempt: u32, failure: &Failure) -> Disposition {
        if attempt >= self.attempts {
            return dead(failure.exit.clone(), Some(self.attempts));
        }
        let (delay, next) = (self.pause_after(attempt), attempt.saturating_add(1));
        Disposition::Republish(Purpose::Retry { delay, attempt: next })
    }

    /// Before a task runs that was delivered `unanswered` times without an answer: why it must not, if so.
    #[must_use]
    pub fn poisoned(&self, unanswered: u64) -> Option<String> {
        (unanswered >= u64::from(self.max_deliveries)).then(|| {
            let deliveries = counted(unanswered, "delivery", "deliveries");
            format!("{deliveries} ended without an answer")
        })
    }

    fn pause_after(&self, attempt: u32) -> Duration {
        let index = usize::try_from(attempt - 1).unwrap_or(usize::MAX);
        self.backoff.get(index).or(self.backoff.last()).copied().unwrap_or(DEFAULT_BACKOFF)
    }
}

fn dead(exit: String, of_attempts: Option<u32>) -> Disposition {
    Disposition::Republish(Purpose::DeadLetter(Death { exit, of_attempts }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Obstacle;

    const CLASSIC: Option<QueueType> = Some(QueueType::Classic);
    const QUORUM: Option<QueueType> = Some(QueueType::Quorum);

    /// Unanswered deliveries; whether they have to be counted; whether the next return may be the last.
    fn rules(queue: Option<QueueType>, redelivered: bool, header: Option<u64>) -> (u64, bool, bool) {
        let earlier = Earlier { redelivered, header, recorded: 4, queue };
        (earlier.unanswered(), earlier.must_be_counted(), earlier.next_return_may_be_the_last())
    }

    #[test]
    fn a_quorum_queue_counts_and_a_task_is_replaced_when_it_comes_back_for_the_second_time() {
        assert_eq!(rules(QUORUM, false, None), (4, false, false));
        assert_eq!(rules(QUORUM, false, Some(0)), (4, false, false));
        assert_eq!(rules(QUORUM, true, Some(1)), (5, false, false));
        assert_eq!(rules(QUORUM, true, Some(2)), (6, true, true));
        assert_eq!(rules(QUORUM, true, Some(9)), (13, true, true));
        // RabbitMQ 4.3 does not count what a worker gives back in good order.
        assert_eq!(rules(QUORUM, true, None), (4, false, false));
    }

    #[test]
    fn elsewhere_each_redelivery_is_counted_by_a_copy() {
        for queue in [CLASSIC, None] {
            assert_eq!(rules(queue, false, None), (4, false, false));
            assert_eq!(rules(queue, true, None), (5, true, false));
        }
    }

    fn count(deliveries: u32) -> Disposition {
        Disposition::Republish(Purpose::Count(deliveries))
    }

    const POLICY: Policy = Policy { attempts: 5, max_deliveries: 6, backoff: Vec::new() };

    #[test]
    fn a_task_runs_is_counted_first_or_is_dead() {
        let before = |queue, redelivered, header, recorded, copies_possible| {
            Earlier { redelivered, header, recorded, queue }.before_run(&POLICY, copies_possible)
        };
        for copies_possible in [true, false] {
            assert_eq!(before(QUORUM, false, None, 0, copies_possible), Disposition::Run);
            assert_eq!(before(QUORUM, true, Some(1), 0, copies_possible), Disposition::Run);
            // Whatever stands in the way of a copy: the next return may be the last.
            assert_eq!(before(QUORUM, true, Some(2), 1, copies_possible), count(3));
            assert_eq!(before(None, true, Some(2), 1, copies_possible), count(2));
            let dead = dead("6 deliveries ended without an answer".to_owned(), None);
            assert_eq!(before(QUORUM, true, Some(2), 4, copies_possible), dead);
            assert_eq!(before(CLASSIC, true, None, 5, copies_possible), dead);
        }
        assert_eq!(before(CLASSIC, true, None, 1, true), count(2));
        assert_eq!(before(CLASSIC, true, None, 1, false), Disposition::RunUncounted(Uncounted::NoCopies));
    }

    #[test]
    fn a_count_that_the_task_brought_along_says_nothing() {
        for header in [0, 1, 2, 25, u64::MAX] {
            assert_eq!(rules(CLASSIC, false, Some(header)), (4, false, false));
            assert_eq!(rules(CLASSIC, true, Some(header)), (5, true, false));
            assert_eq!(rules(QUORUM, false, Some(header)), (4, false, false));
            assert_eq!(rules(None, false, Some(header)), (4, false, false));
            // It may be a quorum queue.
            assert_eq!(rules(None, true, Some(header)), (5, true, header >= 2));
        }
    }

    fn policy() -> Policy {
        Policy { attempts: 5, max_deliveries: 20, backoff: [1, 2, 3].map(Duration::from_secs).to_vec() }
    }

    fn failed() -> Outcome {
        Outcome::Failed(Failure { exit: "exit status 3".into(), stderr: Vec::new() })
    }

    #[test]
    fn failed_attempts_are_retried_until_the_last() {
        let after = |attempt| policy().after(attempt, &failed());
        let retry = |secs, attempt| {
            Disposition::Republish(Purpose::Retry { delay: Duration::from_secs(secs), attempt })
        };
        assert_eq!(after(0), retry(1, 2));
        assert_eq!(after(1), retry(1, 2));
        assert_eq!(after(2), retry(2, 3));
        assert_eq!(after(3), retry(3, 4));
        assert_eq!(after(4), retry(3, 5));
        assert_eq!(after(5), dead("exit status 3".into(), Some(5)));
        assert_eq!(after(u32::MAX), dead("exit status 3".into(), Some(5)));
    }

    #[test]
    fn one_attempt_is_no_retry() {
        let policy = Policy { attempts: 1, ..policy() };
        assert_eq!(policy.after(1, &failed()), dead("exit status 3".into(), Some(1)));
    }

    #[test]
    fn without_a_list_there_is_still_a_pause() {
        let policy = Policy { attempts: u32::MAX, backoff: Vec::new(), ..policy() };
        let retry = |attempt| Disposition::Republish(Purpose::Retry { delay: DEFAULT_BACKOFF, attempt });
        assert_eq!(policy.after(1, &failed()), retry(2));
        assert_eq!(policy.after(u32::MAX - 1, &failed()), retry(u32::MAX));
    }

    #[test]
    fn other_outcomes_do_not_depend_on_the_attempt() {
        let hopeless = Outcome::Dead(Failure { exit: "DEAD no such order".into(), stderr: Vec::new() });
        for attempt in [0, 1, 5, 6, u32::MAX] {
            let after = |outcome: &Outcome| policy().after(attempt, outcome);
            assert_eq!(after(&Outcome::Done), Disposition::Acknowledge);
            assert_eq!(after(&Outcome::GivenUp), Disposition::GiveBack);
            let what = "no files left".to_owned();
            assert_eq!(after(&Outcome::NoResources(what.clone())), Disposition::GiveBackAndPause(what));
            let obstacle = Obstacle::lasting("why".into());
            assert_eq!(
                after(&Outcome::CannotRun(obstacle)),
                Disposition::GiveBackAndStop(Error::configuration("why"))
            );
            assert_eq!(after(&hopeless), dead("DEAD no such order".into(), None));
        }
    }

    #[test]
    fn poison_is_counted_apart() {
        assert_eq!(policy().poisoned(0), None);
        assert_eq!(policy().poisoned(19), None);
        assert_eq!(policy().poisoned(20).as_deref(), Some("20 deliveries ended without an answer"));
        assert!(policy().poisoned(u64::MAX).is_some());
        let poisoned = Policy { max_deliveries: 1, ..policy() }.poisoned(1);
        assert_eq!(poisoned.as_deref(), Some("1 delivery ended without an answer"));
    }
}
