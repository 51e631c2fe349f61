//! How dead tasks are shown: as rows of a table, and one of them in full.

use std::fmt::Write as _;

use crate::browse::QueuedTask;
use crate::cmd::table::{Column, cell};
use crate::cmd::task::{age, first_line, id, moment};
use crate::dead_tasks::{Candidate, Unclear};
use crate::output;

pub(super) const COLUMNS: [Column; 7] = [
    Column { name: "ID", shrinks: true },
    Column { name: "KEY", shrinks: false },
    Column { name: "ATTEMPT", shrinks: false },
    Column { name: "AGE", shrinks: false },
    Column { name: "EXIT", shrinks: true },
    Column { name: "ERROR", shrinks: true },
    Column { name: "BODY", shrinks: true },
];

pub(super) fn row(task: &QueuedTask<'_>) -> Vec<String> {
    let record = &task.record;
    vec![
        id(task.properties.id()),
        task.key.to_string(),
        record.attempt.to_string(),
        age(record.failed_at),
        cell(record.exit.as_deref().unwrap_or_default()),
        cell(first_line(record.error.as_deref())),
        cell(&output::excerpt(task.body)),
    ]
}

/// A task that a name may mean: its key and its id.
pub(super) fn candidate(task: &Candidate) -> String {
    format!("{} ({})", task.key, id(&task.id))
}

/// Which names mean nothing, and which too much.
pub(super) fn why_unclear(unclear: &Unclear, queue: &str) -> String {
    let mut reasons = Vec::new();
    if !unclear.missing.is_empty() {
        let names = output::foreign(unclear.missing.join(", "));
        reasons.push(format!("no dead task with this id or key in {queue}: {names}"));
    }
    for ambiguous in &unclear.ambiguous {
        let mut candidates: Vec<String> = ambiguous.candidates.iter().map(candidate).collect();
        if ambiguous.more {
            candidates.push("...".to_owned());
        }
        let (name, candidates) = (output::foreign(&ambiguous.name), candidates.join(", "));
        reasons
            .push(format!("several dead tasks in {queue} go by {name}, name one by its key: {candidates}"));
    }
    reasons.join("; ")
}

pub(super) fn details(task: &QueuedTask<'_>) -> String {
    let record = &task.record;
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<14} {}", output::escape(value));
        }
    };
    field("id", task.properties.id());
    field("key", &task.key.to_string());
    field("attempt", &record.attempt.to_string());
    field("exit", record.exit.as_deref().unwrap_or_default());
    field("first failed", &when(record.first_failed_at));
    field("failed", &when(record.failed_at));
    field("host", record.host.as_deref().unwrap_or_default());
    field("queue", record.queue.as_deref().unwrap_or_default());
    field("content type", task.properties.content_type());
    for (name, value) in task.properties.user_headers() {
        field("header", &format!("{name}={value}"));
    }
    if let Some(error) = &record.error {
        let _ = write!(text, "\nerror:\n{}\n", output::escape_lines(error.trim_end().as_bytes()));
    }
    let length = output::counted(task.body.len() as u64, "byte", "bytes");
    let _ = write!(text, "\nbody ({length}):\n{}\n", output::escape_lines(task.body));
    text
}

/// For people; empty where it is not known.
fn when(at: Option<u64>) -> String {
    moment(at).map(|moment| format!("{moment} ({} ago)", age(at))).unwrap_or_default()
}
