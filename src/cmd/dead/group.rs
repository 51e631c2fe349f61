//! Dead tasks counted by how they ended: `dead list --group`.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::browse::QueuedTask;
use crate::cmd::table::{Column, cell};
use crate::cmd::task::{first_line, last_line, moment};
use crate::output;

/// Kinds that are told apart; the tasks of any further ones are counted together. A stranger's errors may all differ.
const MOST_KINDS: usize = 1000;
/// Of an error's first line, in characters.
const LONGEST_LINE: usize = 200;
/// Hosts that are named in JSON, and in the table.
const MOST_HOSTS: usize = 10;
const SHOWN_HOSTS: usize = 3;

pub(super) const COLUMNS: [Column; 6] = [
    Column { name: "TASKS", shrinks: false },
    Column { name: "EXIT", shrinks: true },
    Column { name: "SINCE", shrinks: false },
    Column { name: "LAST", shrinks: false },
    Column { name: "HOST", shrinks: true },
    Column { name: "ERROR", shrinks: true },
];

/// What tasks of one kind have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    exit: Option<String>,
    /// The first line that says something, with a `#` for each word with a digit: numbers, names of files, ids.
    error: String,
}

#[derive(Debug, Default)]
struct Group {
    tasks: u64,
    /// Of the oldest of them: the first line of its error that says something, and the last one.
    error: Option<String>,
    last_line: Option<String>,
    /// When the first attempt of any of them failed, and the last one.
    since: Option<u64>,
    last: Option<u64>,
    hosts: BTreeSet<String>,
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    kinds: HashMap<Kind, Group>,
    /// Of more kinds than are told apart.
    others: Group,
}

impl Groups {
    pub(super) fn add(&mut self, task: &QueuedTask<'_>) {
        let record = &task.record;
        let error = record.error.as_deref();
        let (first, last) = (first_line(error), last_line(error));
        let cut = |line: &str| line.chars().take(LONGEST_LINE).collect::<String>();
        let kind = Kind { exit: record.exit.clone(), error: without_numbers(&cut(first)) };
        let is_known = self.kinds.len() < MOST_KINDS || self.kinds.contains_key(&kind);
        let group = if is_known { self.kinds.entry(kind).or_default() } else { &mut self.others };
        if group.tasks == 0 && !first.is_empty() {
            (group.error, group.last_line) = (Some(cut(first)), Some(cut(last)));
        }
        group.tasks += 1;
        let since = record.first_failed_at.or(record.failed_at);
        group.since = group.since.into_iter().chain(since).min();
        group.last = group.last.max(record.failed_at);
        if let Some(host) = record.host.as_ref().filter(|_| group.hosts.len() < MOST_HOSTS) {
            group.hosts.insert(host.clone());
        }
    }

    /// The largest first, as rows of the table and as objects.
    pub(super) fn in_order(mut self) -> Vec<(Vec<String>, Value)> {
        let mut kinds: Vec<(Kind, Group)> = self.kinds.into_iter().collect();
        kinds.sort_by(|(kind, group), (other_kind, other)| {
            let words = |kind: &Kind| (kind.exit.clone(), kind.error.clone());
            other.tasks.cmp(&group.tasks).then_with(|| words(kind).cmp(&words(other_kind)))
        });
        let mut told: Vec<_> =
            kinds.iter().map(|(kind, group)| (row(kind, group), object(kind, group))).collect();
        if self.others.tasks > 0 {
            let none = Kind { exit: None, error: String::new() };
            self.others.error = Some("(of further kinds)".to_owned());
            told.push((row(&none, &self.others), object(&none, &self.others)));
        }
        told
    }
}

fn row(kind: &Kind, group: &Group) -> Vec<String> {
    let mut hosts: Vec<&str> = group.hosts.iter().take(SHOWN_HOSTS).map(String::as_str).collect();
    if group.hosts.len() > SHOWN_HOSTS {
        hosts.push("...");
    }
    vec![
        group.tasks.to_string(),
        cell(kind.exit.as_deref().unwrap_or("?")),
        moment(group.since).unwrap_or_else(|| "?".to_owned()),
        moment(group.last).unwrap_or_else(|| "?".to_owned()),
        cell(&hosts.join(", ")),
        output::escape(&error_of(group)),
    ]
}

/// Its first line, and the last one where that is another: there a trace says what was wrong.
fn error_of(group: &Group) -> String {
    match (&group.error, &group.last_line) {
        (Some(first), Some(last)) if first != last => format!("{first} ... {last}"),
        (error, _) => error.clone().unwrap_or_default(),
    }
}

/// Words with a digit in them tell tasks from each other, and not kinds.
fn without_numbers(line: &str) -> String {
    let mut words = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let is_word = rest.starts_with(|c: char| c.is_ascii_alphanumeric());
        let end = rest.find(|c: char| c.is_ascii_alphanumeric() != is_word).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        words.push_str(if part.contains(|c: char| c.is_ascii_digit()) { "#" } else { part });
        rest = after;
    }
    words
}

fn object(kind: &Kind, group: &Group) -> Value {
    json!({
        "tasks": group.tasks,
        "exit": kind.exit,
        "error": group.error,
        "error_last_line": group.last_line,
        "failed_since": moment(group.since),
        "failed_last": moment(group.last),
        "hosts": group.hosts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Properties, Record};
    use crate::browse::Key;

    #[test]
    fn what_differs_in_numbers_is_of_one_kind() {
        for (line, kind) in [
            ("cannot write /srv/photo-0102.jpg: full", "cannot write /srv/photo-#.jpg: full"),
            ("task 01a204a2-499c-7598 failed", "task #-#-# failed"),
            ("no numbers: größer", "no numbers: größer"),
            ("größe2 x3fz", "größ# #"),
            ("", ""),
        ] {
            assert_eq!(without_numbers(line), kind);
        }
    }

    fn add(groups: &mut Groups, exit: &str, error: &str, at: u64, host: &str) {
        let properties = Properties::new_task("text/plain");
        let record = Record {
            exit: Some(exit.to_owned()),
            error: Some(error.to_owned()),
            first_failed_at: Some(at - at % 10),
            failed_at: Some(at),
            host: Some(host.to_owned()),
            ..Record::default()
        };
        let key = Key::of("", &record, b"");
        groups.add(&QueuedTask { key, properties: &properties, record, redelivered: false, body: b"" });
    }

    #[test]
    fn tasks_are_counted_by_exit_and_first_line_and_the_largest_group_comes_first() {
        let mut groups = Groups::default();
        add(&mut groups, "exit status 1", "disk full\n1", 10, "a");
        add(&mut groups, "exit status 3", "no host a1\nx", 35, "b");
        add(&mut groups, "exit status 3", "no host b22\ny", 25, "a");
        add(&mut groups, "exit status 3", "other", 20, "a");
        let told: Vec<Value> = groups.in_order().into_iter().map(|(_, object)| object).collect();
        assert_eq!(told.len(), 3);
        assert_eq!(
            told[0],
            json!({
                "tasks": 2, "exit": "exit status 3", "error": "no host a1", "error_last_line": "x",
                "hosts": ["a", "b"],
                "failed_since": "1970-01-01T00:00:20Z", "failed_last": "1970-01-01T00:00:35Z",
            })
        );
        assert_eq!((&told[1]["exit"], &told[2]["error"]), (&json!("exit status 1"), &json!("other")));
    }

    /// A number without digits.
    fn letters(n: u64) -> String {
        n.to_string().bytes().map(|digit| char::from(digit - b'0' + b'a')).collect()
    }

    #[test]
    fn any_number_of_kinds_and_hosts_takes_so_much_memory() {
        let mut groups = Groups::default();
        for n in 0..2 * MOST_KINDS as u64 {
            add(&mut groups, "exit status 1", &format!("error {}", letters(n)), n, "a");
            add(&mut groups, "exit status 1", "error", n, &format!("host {n}"));
        }
        assert_eq!((groups.kinds.len(), groups.others.tasks), (MOST_KINDS, MOST_KINDS as u64 + 1));
        let told = groups.in_order();
        assert_eq!(told.len(), MOST_KINDS + 1);
        assert_eq!(told[0].1["hosts"].as_array().unwrap().len(), MOST_HOSTS);
        assert!(told[0].0[4].ends_with("..."), "{:?}", told[0].0);
    }
}
