//! The headers that taskq writes about a task, and the ones that must not travel with a copy.

use std::collections::HashSet;

use amiquip::{AmqpValue, FieldTable};

use crate::calendar::Moment;
use crate::output;

const ATTEMPT: &str = "x-taskq-attempt";
const DELIVERIES: &str = "x-taskq-deliveries";
const ERROR: &str = "x-taskq-error";
const EXIT: &str = "x-taskq-exit";
const FIRST_FAILED_AT: &str = "x-taskq-first-failed-at";
const FAILED_AT: &str = "x-taskq-failed-at";
const HOST: &str = "x-taskq-host";
const QUEUE: &str = "x-taskq-queue";
const DROPPED: &str = "x-taskq-dropped";

/// What of its own record a copy can do without, in the order in which it goes.
const WORDS: [&str; 6] = [ERROR, HOST, QUEUE, FIRST_FAILED_AT, FAILED_AT, EXIT];

/// A count beyond this was not written by taskq.
const MAX_COUNT: u64 = 1_000_000;

/// How many header values a copy keeps, nested ones included. amiquip begins anew at each value for which its buffer is
/// too small, so what it needs grows with the square of their number: 2,000 values take some 40 ms, and the 130,000 that
/// fit a frame nearly three minutes.
const MAX_VALUES: usize = 2000;

/// How long the list of names in [`DROPPED`] may become, in bytes.
const MAX_DROPPED: usize = 1024;

/// What taskq has written about a task. Headers that are missing, malformed or absurd count as not written: anyone
/// who may publish can write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The attempt that the task is for; of a dead task the last one.
    pub attempt: u32,
    /// Deliveries that ended without an answer, where the broker does not count them.
    pub deliveries: u32,
    /// How the last attempt ended, in a short phrase.
    pub exit: Option<String>,
    /// The end of what it wrote to stderr, printable.
    pub error: Option<String>,
    /// When the first attempt failed, in seconds since 1970.
    pub first_failed_at: Option<u64>,
    /// When the last one did.
    pub failed_at: Option<u64>,
    /// The machine it failed on.
    pub host: Option<String>,
    /// The queue it was taken from.
    pub queue: Option<String>,
    /// Names of the headers and properties that a copy could not keep.
    pub dropped: Option<String>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            attempt: 1,
            deliveries: 0,
            exit: None,
            error: None,
            first_failed_at: None,
            failed_at: None,
            host: None,
            queue: None,
            dropped: None,
        }
    }
}

impl Record {
    /// The record of the copy that is made after a failed attempt. `deliveries` starts anew: this one was answered.
    #[must_use]
    pub fn after_failure(
        &self,
        attempt: u32,
        exit: &str,
        stderr: &[u8],
        now: u64,
        host: &str,
        queue: &str,
    ) -> Self {
        let error = output::escape_lines(stderr);
        Self {
            attempt,
            deliveries: 0,
            exit: Some(output::escape(exit)),
            error: Some(error).filter(|error| !error.is_empty()),
            first_failed_at: Some(self.first_failed_at.unwrap_or(now)),
            failed_at: Some(now),
            host: Some(host.to_owned()),
            queue: Some(queue.to_owned()),
            dropped: self.dropped.clone(),
        }
    }

    pub(super) fn read(table: &FieldTable) -> Self {
        let count = |name: &str| {
            let count = table.get(name).and_then(integer).filter(|count| *count <= MAX_COUNT);
            count.and_then(|count| u32::try_from(count).ok())
        };
        let words = |name: &str| match table.get(name) {
            Some(AmqpValue::LongString(text)) => Some(text.clone()),
            _ => None,
        };
        Self {
            attempt: count(ATTEMPT).filter(|attempt| *attempt > 0).unwrap_or(1),
            deliveries: count(DELIVERIES).unwrap_or(0),
            exit: words(EXIT),
            error: words(ERROR),
            first_failed_at: table.get(FIRST_FAILED_AT).and_then(moment),
            failed_at: table.get(FAILED_AT).and_then(moment),
            host: words(HOST),
            queue: words(QUEUE),
            dropped: words(DROPPED),
        }
    }

    /// Puts the record in place of any other. Properties have to fit one frame: where they need more than `room` bytes,
    /// words about the failure go, and at the very last the largest of the user's headers. `dropped` are the names of
    /// what the copy does not keep for other reasons; all of them are written down.
    pub(super) fn write(&self, table: &mut FieldTable, room: usize, dropped: Dropped) {
        let mut set = |name: &str, value: Option<AmqpValue>| match value {
            Some(value) => drop(table.insert(name.to_owned(), value)),
            None => drop(table.remove(name)),
        };
        let words = |text: &Option<String>| text.clone().map(AmqpValue::LongString);
        let time = |at: Option<u64>| at.map(AmqpValue::Timestamp);
        set(
            ATTEMPT,
            (self.attempt > 1 || self.exit.is_some()).then(|| AmqpValue::LongLongInt(self.attempt.into())),
        );
        set(DELIVERIES, (self.deliveries > 0).then(|| AmqpValue::LongLongInt(self.deliveries.into())));
        set(EXIT, words(&self.exit));
        set(ERROR, words(&self.error));
        set(FIRST_FAILED_AT, time(self.first_failed_at));
        set(FAILED_AT, time(self.failed_at));
        set(HOST, words(&self.host));
        set(QUEUE, words(&self.queue));
        set(DROPPED, None);
        self.fit(table, room, dropped);
    }

    /// Takes out of the table what it has no room for, and writes down what that was.
    fn fit(&self, table: &mut FieldTable, room: usize, mut dropped: Dropped) {
        for name in beyond_the_values_kept(table) {
            dropped.take(table, &name);
        }
        let mut words = WORDS.into_iter();
        loop {
            // Its own words are named where there is room for that: the user's headers come first.
            for list in
                [dropped.list(self.dropped.as_deref(), true), dropped.list(self.dropped.as_deref(), false)]
            {
                match list {
                    Some(list) => table.insert(DROPPED.to_owned(), AmqpValue::LongString(list)),
                    None => table.remove(DROPPED),
                };
                if table_size(table) <= room {
                    return;
                }
            }
            if let Some(name) = words.by_ref().find(|name| table.contains_key(*name)) {
                dropped.take(table, name);
            } else if let Some(largest) = largest_of_the_users(table) {
                dropped.take(table, &largest);
            } else {
                table.remove(DROPPED);
                return;
            }
        }
    }
}

/// The names of what a copy does not keep.
#[derive(Debug, Default)]
pub(super) struct Dropped(Vec<String>);

impl Dropped {
    /// Something was left out.
    pub(super) fn note(&mut self, name: &str) {
        self.0.push(output::escape(name));
    }

    /// Leaves a header out.
    fn take(&mut self, table: &mut FieldTable, name: &str) {
        if table.remove(name).is_some() {
            self.note(name);
        }
    }

    /// All of them in a line, after those that `earlier` copies left out, as far as there is room for names. The record's
    /// own words are written anew for each copy, so of those only this copy's count, and only with `words`.
    fn list(&self, earlier: Option<&str>, words: bool) -> Option<String> {
        let earlier = earlier.into_iter().flat_map(|names| names.split(", "));
        let earlier = earlier.filter(|name| !name.is_empty() && !WORDS.contains(name));
        let these = self.0.iter().map(String::as_str).filter(|name| words || !WORDS.contains(name));
        let mut list = String::new();
        let mut seen = HashSet::new();
        for name in earlier.chain(these).filter(|name| seen.insert(*name)) {
            let separator = if list.is_empty() { "" } else { ", " };
            if list.len() + separator.len() + name.len() > MAX_DROPPED {
                list.push_str(if list.is_empty() { "..." } else { ", ..." });
                break;
            }
            list.push_str(separator);
            list.push_str(name);
        }
        (!list.is_empty()).then_some(list)
    }
}

/// The headers that have to go, those with the most values first, so that no more than [`MAX_VALUES`] are left.
fn beyond_the_values_kept(table: &FieldTable) -> Vec<String> {
    let mut counts: Vec<_> = table.iter().map(|(name, value)| (count_values(value), name)).collect();
    let mut total: usize = counts.iter().map(|(count, _)| count).sum();
    counts.sort_unstable_by(|one, other| other.cmp(one));
    let theirs = counts.into_iter().filter(|(_, name)| !is_reserved(name));
    theirs
        .take_while(|(count, _)| {
            let over = total > MAX_VALUES;
            total -= count;
            over
        })
        .map(|(_, name)| name.clone())
        .collect()
}

/// A value counts as one, and as many more as it holds.
fn count_values(value: &AmqpValue) -> usize {
    1 + match value {
        AmqpValue::FieldArray(values) => values.iter().map(count_values).sum(),
        AmqpValue::FieldTable(table) => table.values().map(count_values).sum(),
        _ => 0,
    }
}

fn largest_of_the_users(table: &FieldTable) -> Option<String> {
    let theirs = table.iter().filter(|(name, _)| !is_reserved(name));
    theirs.max_by_key(|(_, value)| value_size(value)).map(|(name, _)| name.clone())
}

/// What a table needs on the wire, with its length.
pub(super) fn table_size(table: &FieldTable) -> usize {
    // A length before the name, a type before the value.
    4 + table.iter().map(|(name, value)| 1 + name.len() + 1 + value_size(value)).sum::<usize>()
}

fn value_size(value: &AmqpValue) -> usize {
    match value {
        AmqpValue::Void => 0,
        AmqpValue::Boolean(_) | AmqpValue::ShortShortInt(_) | AmqpValue::ShortShortUInt(_) => 1,
        AmqpValue::ShortInt(_) | AmqpValue::ShortUInt(_) => 2,
        AmqpValue::LongInt(_) | AmqpValue::LongUInt(_) | AmqpValue::Float(_) => 4,
        AmqpValue::DecimalValue(_) => 5,
        AmqpValue::LongLongInt(_) | AmqpValue::Timestamp(_) | AmqpValue::Double(_) => 8,
        AmqpValue::LongString(text) => 4 + text.len(),
        AmqpValue::ByteArray(bytes) => 4 + bytes.len(),
        AmqpValue::FieldArray(values) => 4 + values.iter().map(|value| 1 + value_size(value)).sum::<usize>(),
        AmqpValue::FieldTable(table) => table_size(table),
    }
}

/// Whether a header belongs to taskq or to the broker rather than to the user.
pub(super) fn is_reserved(name: &str) -> bool {
    const BROKERS: [&str; 3] = ["x-death", "x-delivery-count", "x-acquired-count"];
    name.starts_with("x-taskq-")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
        || BROKERS.contains(&name)
}

/// Whether a header travels with a copy. CC and BCC would send further copies.
pub(super) fn is_copied(name: &str) -> bool {
    !is_reserved(name) && name != "CC" && name != "BCC"
}

/// Any kind of whole number that is not negative.
pub(super) fn integer(value: &AmqpValue) -> Option<u64> {
    match value {
        AmqpValue::ShortShortInt(value) => u64::try_from(*value).ok(),
        AmqpValue::ShortShortUInt(value) => Some(u64::from(*value)),
        AmqpValue::ShortInt(value) => u64::try_from(*value).ok(),
        AmqpValue::ShortUInt(value) => Some(u64::from(*value)),
        AmqpValue::LongInt(value) => u64::try_from(*value).ok(),
        AmqpValue::LongUInt(value) => Some(u64::from(*value)),
        AmqpValue::LongLongInt(value) => u64::try_from(*value).ok(),
        AmqpValue::Timestamp(value) => Some(*value),
        _ => None,
    }
}

/// A time in seconds since 1970 that can be one.
pub(super) fn moment(value: &AmqpValue) -> Option<u64> {
    integer(value).filter(|seconds| Moment::from_unix(*seconds).is_some())
}

/// A header's value as a handler sees it.
pub(super) fn text(value: &AmqpValue) -> Option<String> {
    Some(match value {
        AmqpValue::LongString(text) => text.clone(),
        AmqpValue::Boolean(value) => value.to_string(),
        AmqpValue::ShortShortInt(value) => value.to_string(),
        AmqpValue::ShortShortUInt(value) => value.to_string(),
        AmqpValue::ShortInt(value) => value.to_string(),
        AmqpValue::ShortUInt(value) => value.to_string(),
        AmqpValue::LongInt(value) => value.to_string(),
        AmqpValue::LongUInt(value) => value.to_string(),
        AmqpValue::LongLongInt(value) => value.to_string(),
        AmqpValue::Float(value) => value.to_string(),
        AmqpValue::Double(value) => value.to_string(),
        AmqpValue::Timestamp(value) => value.to_string(),
        AmqpValue::DecimalValue(_)
        | AmqpValue::FieldArray(_)
        | AmqpValue::FieldTable(_)
        | AmqpValue::ByteArray(_)
        | AmqpValue::Void => return None,
    })
}

#[cfg(test)]
mod proptests;

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 10_000;

    #[test]
    fn what_was_written_is_read_again() {
        let record = Record {
            attempt: 3,
            deliveries: 2,
            exit: Some("exit status 3".to_owned()),
            error: Some("no such file".to_owned()),
            first_failed_at: Some(1_700_000_000),
            failed_at: Some(1_700_000_100),
            host: Some("host".to_owned()),
            queue: Some("q".to_owned()),
            dropped: Some("reply_to, colour".to_owned()),
        };
        let mut table = FieldTable::new();
        record.write(&mut table, ROOM, Dropped::default());
        assert_eq!(Record::read(&table), record);
        Record::default().write(&mut table, ROOM, Dropped::default());
        assert!(table.is_empty(), "a default record leaves nothing behind: {table:?}");
    }

    #[test]
    fn hostile_headers_count_as_not_written() {
        for value in [
            AmqpValue::LongString("2".to_owned()),
            AmqpValue::LongInt(-1),
            AmqpValue::LongInt(0),
            AmqpValue::LongLongInt(i64::MAX),
            AmqpValue::Timestamp(u64::MAX),
            AmqpValue::Double(2.0),
            AmqpValue::Void,
            AmqpValue::FieldArray(vec![]),
        ] {
            let table = [(ATTEMPT.to_owned(), value.clone())].into_iter().collect();
            assert_eq!(Record::read(&table), Record::default(), "{value:?}");
        }
        for value in [AmqpValue::ShortShortInt(7), AmqpValue::LongLongInt(7), AmqpValue::LongUInt(7)] {
            let table = [(ATTEMPT.to_owned(), value.clone())].into_iter().collect();
            assert_eq!(Record::read(&table).attempt, 7, "{value:?}");
        }
    }

    #[test]
    fn more_values_than_can_be_copied_in_time_are_left_out() {
        let voids = |count| AmqpValue::FieldArray(vec![AmqpValue::Void; count]);
        let mut table: FieldTable = [
            ("many".to_owned(), voids(130_000)),
            ("nested".to_owned(), AmqpValue::FieldArray(vec![voids(900), voids(900)])),
            ("few".to_owned(), voids(10)),
        ]
        .into_iter()
        .collect();
        Record::default().write(&mut table, 131_000, Dropped::default());
        let names: Vec<_> = table.keys().map(String::as_str).collect();
        assert_eq!(names, ["few", "nested", DROPPED]);
        assert_eq!(table.get(DROPPED), Some(&AmqpValue::LongString("many".to_owned())));
    }

    #[test]
    fn what_was_left_out_is_written_down_once_and_in_little_room() {
        let list = |names: &[&str], earlier| {
            let mut dropped = Dropped::default();
            for name in names {
                dropped.note(name);
            }
            dropped.list(earlier, true)
        };
        assert_eq!(list(&[], None), None);
        assert_eq!(list(&["a\n", "b"], None).as_deref(), Some("a\\n, b"));
        assert_eq!(list(&["b", "c"], Some("a, b, x-taskq-error")).as_deref(), Some("a, b, c"));
        assert_eq!(list(&[ERROR], Some(ERROR)).as_deref(), Some(ERROR));
        let long = list(&["x".repeat(600).as_str(), "y".repeat(600).as_str()], None).unwrap();
        assert!(long.len() < MAX_DROPPED && long.ends_with("x, ..."));
    }

    #[test]
    fn words_go_when_the_headers_would_not_fit_a_frame() {
        let record = Record {
            attempt: 2,
            error: Some("e".repeat(100)),
            host: Some("h".repeat(100)),
            exit: Some("exit status 1".to_owned()),
            ..Record::default()
        };
        let written = |users: usize| {
            let user = AmqpValue::LongString("x".repeat(users));
            let mut table: FieldTable =
                [("user".to_owned(), user), ("small".to_owned(), AmqpValue::Void)].into_iter().collect();
            record.write(&mut table, 1000, Dropped::default());
            assert!(table_size(&table) <= 1000 && table.contains_key(ATTEMPT) && table.contains_key("small"));
            ["user", ERROR, HOST, EXIT].map(|name| table.contains_key(name))
        };
        assert_eq!(written(600), [true; 4]);
        assert_eq!(written(750), [true, false, true, true]);
        assert_eq!(written(850), [true, false, false, true]);
        assert_eq!(written(940), [true, false, false, false]);
        assert_eq!(written(990), [false; 4]);
    }
}
