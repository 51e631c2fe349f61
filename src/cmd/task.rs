//! A task in a queue, as programs and people see it: the one form that all commands give it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::table::cell;
use crate::base64;
use crate::browse::QueuedTask;
use crate::calendar::{Moment, unix_time};
use crate::duration;
use crate::output;

/// How much of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyPart {
    /// How it begins.
    Excerpt,
    /// All of it.
    Whole,
}

/// Its JSON object: docs/taskq.schema.json describes it.
pub(super) fn object(task: &QueuedTask<'_>, part: BodyPart) -> Value {
    let (properties, record) = (task.properties, &task.record);
    let mut object = json!({
        "id": properties.id(),
        "key": task.key.to_string(),
        "attempt": record.attempt,
        "redelivered": task.redelivered,
        "exit": record.exit,
        "error": record.error,
        "first_failed_at": moment(record.first_failed_at),
        "failed_at": moment(record.failed_at),
        "host": record.host,
        "queue": record.queue,
        "content_type": properties.content_type(),
        "headers": properties.user_headers().into_iter().collect::<BTreeMap<_, _>>(),
        "body_bytes": task.body.len(),
    });
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            object[name] = value;
        }
    };
    add("reply_to", properties.reply_to().map(Value::from));
    add("correlation_id", properties.correlation_id().map(Value::from));
    add("content_encoding", properties.content_encoding().map(Value::from));
    add("type", properties.kind().map(Value::from));
    add("priority", properties.priority().map(Value::from));
    add("timestamp", moment(properties.timestamp()).map(Value::from));
    match (part, str::from_utf8(task.body)) {
        (BodyPart::Excerpt, _) => add("body_excerpt", Some(output::excerpt(task.body).into())),
        (BodyPart::Whole, Ok(text)) => add("body", Some(text.into())),
        (BodyPart::Whole, Err(_)) => add("body_base64", Some(base64::text(task.body).into())),
    }
    object
}

/// Its id in a table. Never empty: the columns after it would be taken for it.
pub(super) fn id(id: &str) -> String {
    if id.is_empty() { "-".to_owned() } else { cell(id) }
}

/// The first line of its error that says something.
pub(super) fn first_line(error: Option<&str>) -> &str {
    error.unwrap_or_default().lines().find(|line| !line.trim().is_empty()).unwrap_or_default()
}

/// The last one.
pub(super) fn last_line(error: Option<&str>) -> &str {
    error.unwrap_or_default().lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default()
}

/// `2026-11-28T22:40:31Z`.
pub(super) fn moment(at: Option<u64>) -> Option<String> {
    at.and_then(Moment::from_unix).map(|moment| moment.to_string())
}

/// How long ago, to about two digits; `?` where it is not known.
pub(super) fn age(at: Option<u64>) -> String {
    let now = unix_time();
    at.map_or("?".to_owned(), |at| duration::rough(Duration::from_secs(now.saturating_sub(at))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = unix_time();
        assert_eq!(age(None), "?");
        assert_eq!(age(Some(now + 1000)), "0s", "a clock that is wrong elsewhere");
        assert_eq!(age(Some(now - 3600 * 3 - 5)), "3h");
        assert_eq!(age(Some(0)).chars().last(), Some('d'));
    }

    #[test]
    fn the_first_line_that_says_something() {
        assert_eq!(first_line(Some("\n  \nTraceback:\nx")), "Traceback:");
        assert_eq!(first_line(None), "");
    }
}
