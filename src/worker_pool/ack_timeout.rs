//! How long the broker waits for the acknowledgement of a task: what is asked of it, and what people are told about it.

use std::time::Duration;

use super::shared::HOLD_LIMIT;
use crate::broker::AckTimeout;
use crate::duration;

/// How long a broker waits unless it is told otherwise.
const DEFAULT: Duration = Duration::from_mins(30);
/// RabbitMQ's documentation allows no less.
const SHORTEST: Duration = Duration::from_mins(1);

/// How long a delivery can take from its arrival to its answer, where the time of a run is limited: it may wait for
/// those that were handed out before it, run, and be held until the broker has its copy. Never less than a broker waits
/// by itself.
pub(super) fn to_ask_for(timeout: Option<Duration>, grace: Duration, prefetch: u16) -> Option<Duration> {
    let run = timeout?.saturating_add(grace);
    Some(run.saturating_mul(prefetch.into()).saturating_add(HOLD_LIMIT).max(DEFAULT))
}

/// What is to be said about a `--timeout` that is longer than this broker waits.
pub(super) fn warning(timeout: Option<Duration>, broker: AckTimeout) -> Option<String> {
    // Where the worker has a say in it, the timeout says it.
    if timeout? < DEFAULT || broker == AckTimeout::PerConsumer {
        return None;
    }
    Some(format!(
        "--timeout is not below the 30 minutes that a broker waits for an acknowledgement unless told otherwise: {}",
        broker.cure()
    ))
}

/// Whether a consumer was cancelled because a task was not acknowledged in time. The task had been here for `held`; it
/// is `missing_for` since its queue was last seen to be missing.
pub(super) fn is_over(broker: AckTimeout, held: Option<Duration>, missing_for: Option<Duration>) -> bool {
    let same_queue = |held| missing_for.is_none_or(|missing_for| missing_for >= held);
    broker == AckTimeout::PerConsumer && held.is_some_and(same_queue)
}

/// What it comes to that a task ran for too long; for how long it was here, where that is known.
pub(super) fn explanation(broker: AckTimeout, held: Option<Duration>) -> String {
    let time = held.map_or_else(String::new, |held| format!(" ({})", in_round_numbers(held)));
    // Somebody else may have declared it.
    let or = match held {
        Some(held) if held < SHORTEST => ", unless the queue was deleted and declared again meanwhile",
        _ => "",
    };
    format!(
        "a task ran longer{time} than the broker waits for an acknowledgement (consumer_timeout, 30 minutes by default), \
         so the broker has put it back into the queue{or}; it is not run again by this process once it is finished here, \
         but another worker may run it. To avoid that, {}; or split the task",
        broker.cure()
    )
}

fn in_round_numbers(time: Duration) -> String {
    let seconds = time.as_secs();
    duration::show(Duration::from_secs(if seconds < 120 { seconds.max(1) } else { seconds / 60 * 60 }))
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
    fn a_timeout_that_is_too_long_is_told_with_the_cure_for_this_broker() {
        for (timeout, told) in [(None, false), (Some(minutes(29)), false), (Some(minutes(30)), true)] {
            assert_eq!(warning(timeout, AckTimeout::Configured).is_some(), told);
            assert_eq!(warning(timeout, AckTimeout::PerQueue).is_some(), told);
            assert_eq!(warning(timeout, AckTimeout::PerConsumer), None);
        }
        let told = |broker| warning(Some(minutes(30)), broker).unwrap();
        assert!(
            !told(AckTimeout::Configured).contains("policy") && told(AckTimeout::PerQueue).contains("policy")
        );
    }

    #[test]
    fn a_consumer_that_was_cancelled_over_a_task_is_told_from_one_whose_queue_was_deleted() {
        let over = |held, missing_for| is_over(AckTimeout::PerConsumer, held, missing_for);
        assert!(over(Some(minutes(31)), None));
        assert!(over(Some(minutes(31)), Some(minutes(40))), "it was declared again before the task came");
        assert!(!over(Some(minutes(31)), Some(minutes(20))), "it was deleted while the task ran");
        assert!(!over(None, None), "it had no task");
        assert!(!is_over(AckTimeout::PerQueue, Some(minutes(31)), None), "that one closes the channel");
    }

    #[test]
    fn a_task_that_ran_too_long_is_explained() {
        let text = explanation(AckTimeout::PerConsumer, Some(Duration::from_secs(1861)));
        assert!(text.contains("ran longer (31m) than") && text.contains("--timeout"), "{text}");
        assert!(!text.contains("deleted"), "{text}");
        let soon = explanation(AckTimeout::PerConsumer, Some(Duration::from_millis(2100)));
        assert!(soon.contains("longer (2s) than") && soon.contains("deleted and declared again"), "{soon}");
        let text = explanation(AckTimeout::Configured, None);
        assert!(
            text.contains("ran longer than") && text.contains("consumer_timeout in rabbitmq.conf"),
            "{text}"
        );
    }
}
