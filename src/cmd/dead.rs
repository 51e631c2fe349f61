//! `taskq dead`: look at the tasks that used up their attempts, and send them again or delete them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::{Value, json};

use super::cannot_print;
use super::connection::ConnectionArgs;
use super::queue::{QueueNameArgs, check_name};
use crate::broker::{QueueSpec, SessionOptions};
use crate::calendar::Moment;
use crate::dead_tasks::{self, DeadTask, Selection};
use crate::error::{Error, Exit, Result};
use crate::output;

/// How much of an error or a body a table shows, in characters.
const CELL_CHARS: usize = 40;

/// Look at dead tasks, send them again, or delete them
///
/// A task is dead when it has used up its attempts, or its handler said that no further one can succeed. It is kept in
/// QUEUE.dead until a person decides.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Args)]
struct Target {
    #[command(flatten)]
    queue: QueueNameArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Subcommand)]
enum Action {
    /// List the dead tasks, oldest first
    List {
        /// One JSON object for each task, a line each
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Target,
    },
    /// Show one dead task with its error and its body
    Show {
        /// The task's id
        #[arg(value_name = "ID")]
        id: String,
        /// Only the body, byte for byte
        #[arg(long)]
        body: bool,
        #[command(flatten)]
        place: Target,
    },
    /// Send dead tasks to their queue again, as if they were new
    Requeue {
        /// Their ids
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All that are dead now
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Target,
    },
    /// Delete all dead tasks that are there when it asks
    Purge {
        /// Do not ask, and delete all at once
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        place: Target,
    },
}

pub(super) fn run(args: Args) -> Result<Exit> {
    match args.action {
        Action::List { json, place } => list(json, place),
        Action::Show { id, body, place } => show(&id, body, place),
        Action::Requeue { ids, all, place } => requeue(ids, all, place),
        Action::Purge { yes, place } => purge(yes, place),
    }
}

impl Target {
    fn open(self) -> Result<(SessionOptions, QueueSpec)> {
        let queue = self.queue.into_existing()?;
        check_name("the name of the queue of dead tasks, made from the queue's,", &queue.dead().name)?;
        Ok((self.connection.into_options()?, queue))
    }
}

fn list(as_json: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    // Collected first, because the tasks are out of the queue while they are looked at, and whoever reads the output
    // may take any time.
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    let looked = dead_tasks::browse(&options, &queue, &mut |task| {
        if as_json {
            // JSON leaves some control characters as they are; as escapes they mean the same.
            objects.push(ascii(&object(task).to_string()));
        } else {
            rows.push(row(task));
        }
        true
    });
    if let Err(error) = &looked
        && matches!(error.exit, Exit::Signal(_))
    {
        return looked.map(|()| Exit::Success);
    }
    // What came is worth showing also when something went wrong after it.
    let text = if as_json { objects.join("\n") } else { table(&rows) };
    if !text.is_empty() {
        print(format!("{text}\n").as_bytes())?;
    }
    looked?;
    if text.is_empty() && !as_json {
        log::info!("no dead tasks in {}", queue.dead().name);
    }
    Ok(Exit::Success)
}

fn show(id: &str, body_only: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let mut found = None;
    dead_tasks::browse(&options, &queue, &mut |task| {
        if task.properties.id() == id {
            found = Some(if body_only { task.body.to_vec() } else { details(task).into_bytes() });
        }
        found.is_none()
    })?;
    let text = found.ok_or_else(|| not_found(&[id.to_owned()], &queue))?;
    print(&text)?;
    Ok(Exit::Success)
}

fn requeue(ids: Vec<String>, all: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let wanted: HashSet<String> = ids.into_iter().collect();
    let selection = if all { Selection::All } else { Selection::Ids(wanted.clone()) };
    let done = dead_tasks::requeue(&options, &queue, &selection)?;
    let mut missing: Vec<String> = wanted.difference(&done.ids).cloned().collect();
    missing.sort();
    if done.count > 0 || missing.is_empty() {
        log::info!("{} sent again to {}", done.count, queue.name);
    }
    if missing.is_empty() { Ok(Exit::Success) } else { Err(not_found(&missing, &queue)) }
}

fn purge(yes: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let deleted = if yes {
        dead_tasks::purge_all(&options, &queue)?
    } else {
        let count = dead_tasks::count(&options, &queue)?;
        if count == 0 {
            log::info!("no dead tasks in {}", queue.dead().name);
            return Ok(Exit::Success);
        }
        let asked_at = unix_time();
        let them = output::counted(count.into(), "dead task", "dead tasks");
        if !confirmed(&format!("Delete {them} from {}? [y/N] ", queue.dead().name))? {
            log::info!("nothing was deleted");
            return Ok(Exit::Success);
        }
        dead_tasks::purge_oldest(&options, &queue, count, asked_at)?
    };
    log::info!("{deleted} deleted from {}", queue.dead().name);
    Ok(Exit::Success)
}

fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::usage("there is nobody to ask: give --yes to delete without asking"));
    }
    // Messages come from a thread of their own.
    output::flush_stderr();
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Error::internal(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// What is missing in the output must not be taken for looked at: a purge may be next.
fn print(data: &[u8]) -> Result<()> {
    output::print(data).map(drop).map_err(|error| cannot_print(&error))
}

fn not_found(ids: &[String], queue: &QueueSpec) -> Error {
    let ids = output::foreign(ids.join(", "));
    Error::bad_data(format!("no dead task with this id in {}: {ids}", queue.dead().name))
}

fn object(task: &DeadTask<'_>) -> Value {
    let record = &task.record;
    json!({
        "id": task.properties.id(),
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

/// JSON with everything that is not ASCII as `\u` escapes.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\x7f' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

const COLUMNS: [&str; 6] = ["ID", "ATTEMPTS", "AGE", "EXIT", "ERROR", "BODY"];

fn row(task: &DeadTask<'_>) -> [String; 6] {
    let record = &task.record;
    let error = record.error.as_deref().unwrap_or_default();
    let first_line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    [
        output::escape(task.properties.id()),
        record.attempt.to_string(),
        age(record.failed_at),
        cell(record.exit.as_deref().unwrap_or_default()),
        cell(first_line),
        cell(&output::excerpt(task.body)),
    ]
}

/// Headers can be written by anyone, so they are escaped like everything from outside.
fn cell(text: &str) -> String {
    let text = output::escape(text);
    match text.char_indices().nth(CELL_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn table(rows: &[[String; 6]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let header = COLUMNS.map(str::to_owned);
    let lines = || std::iter::once(&header).chain(rows);
    let width = |column: usize| lines().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let render = |row: &[String; 6]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    lines().map(render).collect::<Vec<_>>().join("\n")
}

fn details(task: &DeadTask<'_>) -> String {
    let record = &task.record;
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<14} {}", output::escape(value));
        }
    };
    field("id", task.properties.id());
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

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long ago, to about two digits.
fn age(at: Option<u64>) -> String {
    let now = unix_time();
    let Some(seconds) = at.map(|at| now.saturating_sub(at)) else { return "?".to_owned() };
    let (count, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7_200 => (seconds / 60, "m"),
        7_200..172_800 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{count}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |id: &str| [id, "1", "2s", "exit status 3", "", "body"].map(str::to_owned);
        let text = table(&[row("a"), row("longer")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("ID      ATTEMPTS  AGE  EXIT"));
        assert!(lines[1].starts_with("a       1         2s   exit status 3"));
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn cells_are_cut_and_harmless() {
        assert_eq!(cell("\x1b[2J"), "\\x1b[2J");
        assert_eq!(cell(&"ü".repeat(41)), format!("{}…", "ü".repeat(40)));
        assert_eq!(cell(&"ü".repeat(40)), "ü".repeat(40));
    }

    #[test]
    fn json_is_ascii_and_means_the_same() {
        let text = "a\u{9b}31m ü 😀 \u{7f}";
        let json = ascii(&json!(text).to_string());
        assert!(json.is_ascii() && !json.contains('\x7f'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
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
