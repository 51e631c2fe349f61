//! Whether a queue that is there with other properties than taskq declares is fit for its use.

use super::Role;
use super::arguments::{Arguments, QUEUE_TYPE, Value};

/// What can hold tasks: in a stream, which is another type, they stay for ever.
pub(super) const FIT_TYPES: [&str; 2] = ["classic", "quorum"];

const EXPIRES: &str = "x-expires";
const TTL: &str = "x-message-ttl";
const LENGTHS: [&str; 2] = ["x-max-length", "x-max-length-bytes"];
const OVERFLOW: &str = "x-overflow";

/// What AMQP itself knows of a queue beside its arguments, and why taskq cannot do with a difference in it.
pub(super) fn objection_to_property(name: &str) -> Option<&'static str> {
    match name {
        "durable" => Some("it is not durable: its tasks would not survive a restart of the broker"),
        "auto_delete" => Some("it deletes itself, with its tasks, when its last consumer goes (auto-delete)"),
        "exclusive" => Some("it belongs to another connection alone (exclusive)"),
        _ => None,
    }
}

/// Why a queue with these arguments would lose tasks, where it would. Those that taskq declares it with are `wanted`.
pub(super) fn objection(role: &Role, wanted: &Arguments, found: &Arguments) -> Option<&'static str> {
    let differs = |name: &str| found.get(name) != wanted.get(name);
    match found.get(QUEUE_TYPE) {
        Some(Value::Text(kind)) if kind == "stream" => {
            return Some(
                "it is a stream, and no task ever leaves a stream (send and work declare another kind with --queue-type quorum)",
            );
        }
        None => {}
        Some(Value::Text(kind)) if FIT_TYPES.contains(&kind.as_str()) => {}
        Some(_) => {
            return Some(
                "it is neither a classic nor a quorum queue; perhaps a stream, which no task ever leaves (send and work declare another kind with --queue-type quorum)",
            );
        }
    }
    // With "reject-publish" and its like the sender is told.
    let drops_its_oldest = LENGTHS.iter().any(|name| found.get(name).is_some())
        && !found.text(OVERFLOW).is_some_and(|overflow| overflow.starts_with("reject-publish"));
    match role {
        Role::Tasks if found.get(EXPIRES).is_some() => {
            Some("it deletes itself, with its tasks, when no worker has used it for a time (x-expires)")
        }
        Role::Dead if found.get(EXPIRES).is_some() || found.get(TTL).is_some() => {
            Some("it drops what it keeps after a time (x-expires, x-message-ttl)")
        }
        Role::Delay { .. }
            if [TTL, "x-dead-letter-exchange", "x-dead-letter-routing-key"].into_iter().any(differs) =>
        {
            Some("its tasks would not come back, or not at their time")
        }
        Role::Delay { .. } if differs(EXPIRES) => {
            Some("it deletes itself, with its tasks, at another time than it should (x-expires)")
        }
        Role::Dead | Role::Delay { .. } if drops_its_oldest => {
            Some("it drops its oldest tasks when it is full (x-max-length without x-overflow=reject-publish)")
        }
        // Whoever declares a time limit or a length for the tasks themselves means it.
        Role::Tasks | Role::Dead | Role::Delay { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;
    use std::time::Duration;

    /// What is objected to a queue of this role that is found with these arguments beside or instead of those declared.
    fn object(role: &Role, wanted: &Arguments, other: &[(&str, Value)]) -> Option<&'static str> {
        let mut found = wanted.clone();
        for (name, value) in other {
            found.set(name, value.clone());
        }
        objection(role, wanted, &found)
    }

    #[test]
    fn only_what_would_lose_tasks_is_refused() {
        let (tasks, dead, delay) = (spec(), spec().dead(), spec().delay(Duration::from_secs(5)));
        let objection = |spec: &super::super::QueueSpec, other: &[(&str, Value)]| {
            object(&spec.role, &spec.arguments(), other)
        };
        for spec in [&tasks, &dead, &delay] {
            assert_eq!(objection(spec, &[]), None);
            for kind in FIT_TYPES {
                assert_eq!(objection(spec, &[(QUEUE_TYPE, Value::text(kind))]), None);
            }
            assert!(objection(spec, &[(QUEUE_TYPE, Value::text("stream"))]).unwrap().contains("stream"));
            for kind in [Value::Unknown, Value::text("something new")] {
                assert!(objection(spec, &[(QUEUE_TYPE, kind)]).is_some());
            }
            for expires in [Value::Number(3_600_000), Value::Unknown] {
                assert!(objection(spec, &[(EXPIRES, expires)]).is_some());
            }
            for property in ["durable", "auto_delete", "exclusive"] {
                assert!(objection_to_property(property).is_some());
            }
            for harmless in ["x-max-priority", "x-delivery-limit", "x-queue-mode", "x-single-active-consumer"]
            {
                assert_eq!(objection(spec, &[(harmless, Value::Unknown)]), None, "{harmless}");
                assert_eq!(objection_to_property(harmless), None);
            }
        }
        for limit in [TTL, "x-max-length", "x-dead-letter-exchange"] {
            assert_eq!(objection(&tasks, &[(limit, Value::Number(1))]), None, "{limit}");
        }
        assert!(objection(&dead, &[(TTL, Value::Number(1))]).is_some());
        for name in [TTL, "x-dead-letter-exchange", "x-dead-letter-routing-key"] {
            assert!(objection(&delay, &[(name, Value::Unknown)]).is_some(), "{name}");
        }
    }

    #[test]
    fn a_length_limit_is_fit_where_the_sender_is_told() {
        let dead = spec().dead();
        let limited = |name: &str, overflow: Option<&str>| {
            let limit = (name, Value::Number(1));
            let overflow = overflow.map(|overflow| (OVERFLOW, Value::text(overflow)));
            let other: Vec<_> = std::iter::once(limit).chain(overflow).collect();
            object(&dead.role, &dead.arguments(), &other)
        };
        for name in LENGTHS {
            assert!(limited(name, None).is_some() && limited(name, Some("drop-head")).is_some());
            assert_eq!(limited(name, Some("reject-publish")), None);
            assert_eq!(limited(name, Some("reject-publish-dlx")), None);
        }
    }
}
