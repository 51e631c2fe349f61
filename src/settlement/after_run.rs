//! What becomes of a delivery after an attempt at its task.

use std::time::Duration;

use super::{Disposition, Purpose};
use crate::error::Error;
use crate::handler::{Failure, Outcome};
use crate::output::counted;

/// The pause where a policy names none: never 0, which would be a hot loop.
const DEFAULT_BACKOFF: Duration = Duration::from_secs(5);

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
            Outcome::Dead(Failure { exit, .. }) => dead(exit.clone()),
            Outcome::Failed(failure)
            | Outcome::Terminated(failure)
            | Outcome::CommandMissing { failure, .. } => self.after_failure(attempt, failure),
        }
    }

    fn after_failure(&self, attempt: u32, failure: &Failure) -> Disposition {
        if attempt >= self.attempts {
            return dead(format!("attempt {attempt} of {}: {}", self.attempts, failure.exit));
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

fn dead(why: String) -> Disposition {
    Disposition::Republish(Purpose::DeadLetter(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Obstacle;

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
        assert_eq!(after(5), dead("attempt 5 of 5: exit status 3".into()));
        assert_eq!(after(u32::MAX), dead(format!("attempt {} of 5: exit status 3", u32::MAX)));
    }

    #[test]
    fn one_attempt_is_no_retry() {
        let policy = Policy { attempts: 1, ..policy() };
        assert_eq!(policy.after(1, &failed()), dead("attempt 1 of 1: exit status 3".into()));
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
            assert_eq!(after(&hopeless), dead("DEAD no such order".into()));
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
