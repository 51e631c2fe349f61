//! How long the broker waits for the acknowledgement of a task, and what is asked of it.

use std::time::{Duration, Instant};

use super::shared::HOLD_LIMIT;
use crate::broker::AckTimeout;

/// How long a broker waits unless it is told otherwise.
const DEFAULT: Duration = Duration::from_mins(30);

/// How long a delivery can take from its arrival to its answer, where the time of a run is limited: it may wait for
/// those that were handed out before it, run, and be held until the broker has its copy. Never less than a broker waits
/// by itself.
pub(super) fn to_ask_for(timeout: Option<Duration>, grace: Duration, prefetch: u16) -> Option<Duration> {
    let run = timeout?.saturating_add(grace);
    Some(run.saturating_mul(prefetch.into()).saturating_add(HOLD_LIMIT).max(DEFAULT))
}

/// Whether a `--timeout` is longer than this broker waits.
pub(super) fn is_exceeded(timeout: Option<Duration>, broker: AckTimeout) -> bool {
    // Where the worker has a say in it, the timeout says it.
    timeout.is_some_and(|timeout| timeout >= DEFAULT) && broker != AckTimeout::PerConsumer
}

/// Whether a consumer was cancelled because a task was not acknowledged in time. The task had been here `since` then; its
/// queue was last seen to be missing at `missing_at`.
pub(super) fn is_over(broker: AckTimeout, since: Option<Instant>, missing_at: Option<Instant>) -> bool {
    let same_queue = |since| missing_at.is_none_or(|missing_at| missing_at <= since);
    broker == AckTimeout::PerConsumer && since.is_some_and(same_queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(count: u64) -> Duration {
        Duration::from_mins(count)
    }

    #[test]
    fn the_broker_is_asked_to_wait_for_all_that_a_delivery_may_wait_for() {
        let ask = |timeout, prefetch| to_ask_for(Some(timeout), minutes(1), prefetch);
        assert_eq!(ask(minutes(59), 1), Some(minutes(60 + 25)));
        assert_eq!(ask(minutes(59), 3), Some(minutes(3 * 60 + 25)));
        assert_eq!(ask(minutes(2), 1), Some(minutes(30)));
        assert_eq!(to_ask_for(None, minutes(1), 1), None);
        assert!(ask(Duration::MAX, u16::MAX).is_some());
    }

    #[test]
    fn a_timeout_that_is_too_long_is_noticed_where_the_worker_has_no_say() {
        for (timeout, exceeded) in [(None, false), (Some(minutes(29)), false), (Some(minutes(30)), true)] {
            assert_eq!(is_exceeded(timeout, AckTimeout::Configured), exceeded);
            assert_eq!(is_exceeded(timeout, AckTimeout::PerQueue), exceeded);
            assert!(!is_exceeded(timeout, AckTimeout::PerConsumer));
        }
    }

    #[test]
    fn a_consumer_that_was_cancelled_over_a_task_is_told_from_one_whose_queue_was_deleted() {
        let start = Instant::now();
        let at = |count| Some(start + minutes(count));
        let over = |since, missing_at| is_over(AckTimeout::PerConsumer, since, missing_at);
        assert!(over(at(10), None));
        assert!(over(at(10), at(1)), "it was declared again before the task came");
        assert!(!over(at(10), at(11)), "it was deleted while the task ran");
        assert!(!over(None, None), "it had no task");
        assert!(!is_over(AckTimeout::PerQueue, at(10), None), "that one closes the channel");
    }
}
