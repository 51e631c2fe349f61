//! Dead tasks counted by how they ended: `dead list --group`.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::browse::QueuedTask;
use crate::cmd::table::{Column, cell};
use crate::cmd::task::{age, first_line, moment};
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
    /// The first line that says something.
    error: Option<String>,
}

#[derive(Debug, Default)]
struct Group {
    tasks: u64,
    /// When the first and the last of them failed for the last time.
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
        let error = first_line(record.error.as_deref());
        let kind = Kind {
            exit: record.exit.clone(),
            error: (!error.is_empty()).then(|| error.chars().take(LONGEST_LINE).collect()),
        };
        let is_known = self.kinds.len() < MOST_KINDS || self.kinds.contains_key(&kind);
        let group = if is_known { self.kinds.entry(kind).or_default() } else { &mut self.others };
        group.tasks += 1;
        if let Some(at) = record.failed_at {
            group.since = Some(group.since.map_or(at, |since| since.min(at)));
            group.last = group.last.max(Some(at));
        }
        if let Some(host) = record.host.as_ref().filter(|_| group.hosts.len() < MOST_HOSTS) {
            group.hosts.insert(host.clone());
        }
    }

    /// The largest first, as rows of the table and as objects.
    pub(super) fn in_order(self) -> Vec<(Vec<String>, Value)> {
        let mut kinds: Vec<(Kind, Group)> = self.kinds.into_iter().collect();
        kinds.sort_by(|(kind, group), (other_kind, other)| {
            let words = |kind: &Kind| (kind.exit.clone(), kind.error.clone());
            other.tasks.cmp(&group.tasks).then_with(|| words(kind).cmp(&words(other_kind)))
        });
        let mut told: Vec<_> =
            kinds.iter().map(|(kind, group)| (row(kind, group), object(kind, group))).collect();
        if self.others.tasks > 0 {
            let other = Kind { exit: Some("(others)".to_owned()), error: None };
            told.push((row(&other, &self.others), object(&Kind { exit: None, error: None }, &self.others)));
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
        age(group.since),
        age(group.last),
        cell(&hosts.join(", ")),
        output::escape(kind.error.as_deref().unwrap_or_default()),
    ]
}

fn object(kind: &Kind, group: &Group) -> Value {
    json!({
        "tasks": group.tasks,
        "exit": kind.exit,
        "error": kind.error,
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

    fn add(groups: &mut Groups, exit: &str, error: &str, at: u64, host: &str) {
        let properties = Properties::new_task("text/plain");
        let record = Record {
            exit: Some(exit.to_owned()),
            error: Some(error.to_owned()),
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
        add(&mut groups, "exit status 3", "no host\nx", 30, "b");
        add(&mut groups, "exit status 3", "no host\ny", 20, "a");
        add(&mut groups, "exit status 3", "other", 20, "a");
        let told: Vec<Value> = groups.in_order().into_iter().map(|(_, object)| object).collect();
        assert_eq!(told.len(), 3);
        assert_eq!(
            told[0],
            json!({
                "tasks": 2, "exit": "exit status 3", "error": "no host", "hosts": ["a", "b"],
                "failed_since": "1970-01-01T00:00:20Z", "failed_last": "1970-01-01T00:00:30Z",
            })
        );
        assert_eq!((&told[1]["exit"], &told[2]["error"]), (&json!("exit status 1"), &json!("other")));
    }

    #[test]
    fn any_number_of_kinds_and_hosts_takes_so_much_memory() {
        let mut groups = Groups::default();
        for n in 0..2 * MOST_KINDS as u64 {
            add(&mut groups, "exit status 1", &format!("error {n}"), n, "a");
            add(&mut groups, "exit status 1", "error 0", n, &format!("host {n}"));
        }
        assert_eq!((groups.kinds.len(), groups.others.tasks), (MOST_KINDS, MOST_KINDS as u64));
        let told = groups.in_order();
        assert_eq!(told.len(), MOST_KINDS + 1);
        assert_eq!(told[0].1["hosts"].as_array().unwrap().len(), MOST_HOSTS);
        assert!(told[0].0[4].ends_with("..."), "{:?}", told[0].0);
    }
}
