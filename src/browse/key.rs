//! What a dead task can be named by whatever its id is, and whether it has one at all.

use std::fmt;

use crate::broker::Record;
use crate::digest::Digest;

/// How many hexadecimal digits are shown: among 100,000 tasks two have the same key by chance once in 50,000 times.
const DIGITS: usize = 12;

/// Made of what is the task's for as long as it lies here: its id, its body, when it failed. No look changes these, and
/// they are in each copy that takes its place. What a copy may have to leave out (headers, the error), what a delivery
/// adds (counts) and where it stands do not enter. Tasks that differ in none of the former have one key.
///
/// Where a stranger's headers fill a frame to its last bytes, a copy may have no room for the times either, and gets
/// another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// Of a task with this id and body, and this record. It must be the same in each version: people write keys down.
    pub fn of(id: &str, record: &Record, body: &[u8]) -> Self {
        let mut digest = Digest::default();
        digest.add(&(id.len() as u64).to_le_bytes());
        digest.add(id.as_bytes());
        for at in [record.first_failed_at, record.failed_at] {
            digest.add(&at.unwrap_or(u64::MAX).to_le_bytes());
        }
        digest.add(body);
        Self(digest.mixed() >> (64 - 4 * DIGITS))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0DIGITS$x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(first: u64, last: u64) -> Record {
        Record { first_failed_at: Some(first), failed_at: Some(last), ..Record::default() }
    }

    #[test]
    fn a_key_is_the_same_in_every_version() {
        assert_eq!(Key::of("id", &failed(1, 2), b"body").to_string(), "ab922007db85");
        assert_eq!(Key::of("", &Record::default(), b"").to_string(), "14a0bce80c32");
    }

    #[test]
    fn each_thing_that_makes_a_task_makes_its_key() {
        let keys = [
            Key::of("id", &failed(1, 2), b"body"),
            Key::of("id2", &failed(1, 2), b"body"),
            Key::of("id", &failed(1, 2), b"body2"),
            Key::of("id", &failed(0, 2), b"body"),
            Key::of("id", &failed(1, 3), b"body"),
            Key::of("id", &Record::default(), b"body"),
            Key::of("", &failed(1, 2), b"idbody"),
            Key::of("idbody", &failed(1, 2), b""),
        ];
        let distinct: std::collections::HashSet<Key> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn what_a_copy_may_leave_out_and_a_delivery_adds_does_not_enter() {
        let record = Record {
            attempt: 3,
            deliveries: 4,
            exit: Some("exit status 3".to_owned()),
            error: Some("why".to_owned()),
            host: Some("here".to_owned()),
            queue: Some("q".to_owned()),
            dropped: Some("priority".to_owned()),
            ..failed(1, 2)
        };
        assert_eq!(Key::of("id", &record, b"body"), Key::of("id", &failed(1, 2), b"body"));
    }

    #[test]
    fn all_digits_are_shown() {
        assert_eq!(Key(0xab).to_string(), "0000000000ab");
    }
}
