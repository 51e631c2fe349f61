//! How dead tasks are shown: as a table, as JSON, and one of them in full.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::browse::QueuedTask;
use crate::calendar::{Moment, unix_time};
use crate::dead_tasks::{Candidate, Unclear};
use crate::duration;
use crate::output;

/// How wide a cell of a table may be, in columns: a UUID fits, and what others wrote cannot push the rest aside.
const CELL_COLUMNS: usize = 40;

/// One object in a line.
pub(super) fn line_of_json(task: &QueuedTask<'_>) -> String {
    output::line_of_json(&object(task))
}

fn object(task: &QueuedTask<'_>) -> Value {
    let record = &task.record;
    json!({
        "id": task.properties.id(),
        "key": task.key.to_string(),
        "attempts": record.attempt,
        "exit": record.exit,
        "error": record.error,
        "first_failed_at": moment(record.first_failed_at),
        "failed_at": moment(record.failed_at),
        "host": record.host,
        "queue": record.queue,
        "content_type": task.properties.content_type(),
        "headers": task.properties.user_headers().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "body_bytes": task.body.len(),
        "body_excerpt": output::excerpt(task.body),
    })
}

const COLUMNS: [&str; 7] = ["ID", "KEY", "ATTEMPTS", "AGE", "EXIT", "ERROR", "BODY"];

pub(super) fn row(task: &QueuedTask<'_>) -> [String; 7] {
    let record = &task.record;
    let error = record.error.as_deref().unwrap_or_default();
    let first_line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    [
        id(task.properties.id()),
        task.key.to_string(),
        record.attempt.to_string(),
        age(record.failed_at),
        cell(record.exit.as_deref().unwrap_or_default()),
        cell(first_line),
        cell(&output::excerpt(task.body)),
    ]
}

/// Never empty: the columns after it would be taken for it.
fn id(id: &str) -> String {
    if id.is_empty() { "-".to_owned() } else { cell(id) }
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

/// Headers can be written by anyone, so they are escaped like everything from outside.
fn cell(text: &str) -> String {
    output::fit(&output::escape(text), CELL_COLUMNS)
}

pub(super) fn table(rows: &[[String; 7]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let header = COLUMNS.map(str::to_owned);
    let lines = || std::iter::once(&header).chain(rows);
    let width = |column: usize| lines().map(|row| output::width(&row[column])).max().unwrap_or_default();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let render = |row: &[String; 7]| {
        let padded = |cell: &String, width: usize| cell.clone() + &" ".repeat(width - output::width(cell));
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| padded(cell, *width)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    lines().map(render).collect::<Vec<_>>().join("\n")
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
    field("attempts", &record.attempt.to_string());
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

/// `2026-11-28T22:40:31Z`, for scripts.
fn moment(at: Option<u64>) -> Option<String> {
    at.and_then(Moment::from_unix).map(|moment| moment.to_string())
}

/// The same for people; empty where it is not known.
fn when(at: Option<u64>) -> String {
    moment(at).map(|moment| format!("{moment} ({} ago)", age(at))).unwrap_or_default()
}

/// How long ago, to about two digits.
fn age(at: Option<u64>) -> String {
    let now = unix_time();
    at.map_or("?".to_owned(), |at| duration::rough(Duration::from_secs(now.saturating_sub(at))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |id: &str| [id, "3f2a9c81d04e", "1", "2s", "exit status 3", "", "body"].map(str::to_owned);
        let text = table(&[row("a"), row("longer")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("ID      KEY           ATTEMPTS  AGE  EXIT"));
        assert!(lines[1].starts_with("a       3f2a9c81d04e  1         2s   exit status 3"));
        let wide = table(&[row("全角"), row("four")]);
        assert!(wide.contains("\n全角  3f2a") && wide.contains("\nfour  3f2a"), "{wide}");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn cells_are_cut_and_harmless() {
        assert_eq!(cell("\x1b[2J"), "\\x1b[2J");
        assert_eq!(cell(&"ü".repeat(41)), format!("{}…", "ü".repeat(39)));
        assert_eq!(cell(&"全".repeat(21)), format!("{}…", "全".repeat(19)));
        assert_eq!(cell(&"ü".repeat(40)), "ü".repeat(40));
    }

    #[test]
    fn ages_are_short() {
        let now = unix_time();
        assert_eq!(age(None), "?");
        assert_eq!(age(Some(now + 1000)), "0s", "a clock that is wrong elsewhere");
        assert_eq!(age(Some(now - 3600 * 3 - 5)), "3h");
        assert_eq!(age(Some(0)).chars().last(), Some('d'));
    }
}
