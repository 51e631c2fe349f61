//! How long the broker waits for the acknowledgement of a task, in words.

use std::time::Duration;

use crate::broker::AckTimeout;
use crate::duration;

/// RabbitMQ's documentation allows no less.
const SHORTEST: Duration = Duration::from_mins(1);

/// What is to be said about a `--timeout` that is longer than this broker waits.
pub(super) fn timeout_too_long(broker: AckTimeout) -> String {
    format!(
        "--timeout is not below the 30 minutes that a broker waits for an acknowledgement unless told otherwise: {}",
        broker.cure()
    )
}

/// What it comes to that a task ran for too long; for how long it was here, where that is known.
pub(super) fn late(broker: AckTimeout, held: Option<Duration>) -> String {
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

    #[test]
    fn a_timeout_that_is_too_long_is_told_with_the_cure_for_this_broker() {
        let told = timeout_too_long;
        assert!(
            !told(AckTimeout::Configured).contains("policy") && told(AckTimeout::PerQueue).contains("policy")
        );
    }

    #[test]
    fn a_task_that_ran_too_long_is_explained() {
        let text = late(AckTimeout::PerConsumer, Some(Duration::from_secs(1861)));
        assert!(text.contains("ran longer (31m) than") && text.contains("--timeout"), "{text}");
        assert!(!text.contains("deleted"), "{text}");
        let soon = late(AckTimeout::PerConsumer, Some(Duration::from_millis(2100)));
        assert!(soon.contains("longer (2s) than") && soon.contains("deleted and declared again"), "{soon}");
        let text = late(AckTimeout::Configured, None);
        assert!(
            text.contains("ran longer than") && text.contains("consumer_timeout in rabbitmq.conf"),
            "{text}"
        );
    }
}
