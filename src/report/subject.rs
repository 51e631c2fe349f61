//! Which task a line is about: always in its last parenthesis, whatever a body or an id has in it.

use std::fmt;
use std::time::Duration;

use crate::events::Subject;
use crate::output::one_word;

/// `(id 01a2, attempt 1, 20ms)`.
pub(super) struct Tail<'s, 'e>(pub(super) &'s Subject<'e>);

impl fmt::Display for Tail<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subject { id, attempt, took, .. } = self.0;
        match *id {
            "" => f.write_str("(no id")?,
            id => write!(f, "(id {}", one_word(id))?,
        }
        write!(f, ", attempt {attempt}")?;
        took.map_or(Ok(()), |took| write!(f, ", {}", rounded(took)))?;
        f.write_str(")")
    }
}

/// A time that was measured, to two or three digits: `20ms`, `3.2s`, `41s`, `5m12s`, `2h5m`, `3d4h`.
pub(super) fn rounded(time: Duration) -> String {
    let millis = time.as_millis();
    let seconds = time.as_secs();
    let pair = |size: u64, unit: &str, below: u64, lower: &str| match seconds % size / below {
        0 => format!("{}{unit}", seconds / size),
        rest => format!("{}{unit}{rest}{lower}", seconds / size),
    };
    match seconds {
        0 => format!("{millis}ms"),
        1..10 => format!("{}.{}s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => pair(60, "m", 1, "s"),
        3_600..86_400 => pair(3_600, "h", 60, "m"),
        _ => pair(86_400, "d", 3_600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_times_are_short() {
        for (millis, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (999, "999ms"),
            (3_290, "3.2s"),
            (41_900, "41s"),
            (60_000, "1m"),
            (312_000, "5m12s"),
            (7_500_000, "2h5m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(rounded(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn nothing_in_an_id_ends_the_parenthesis_or_looks_like_a_part_of_it() {
        let tail = |id, took| Tail(&Subject { id, attempt: 2, body: &"", took }).to_string();
        assert_eq!(tail("01a2-b", None), "(id 01a2-b, attempt 2)");
        assert_eq!(tail("", Some(Duration::from_millis(20))), "(no id, attempt 2, 20ms)");
        assert_eq!(
            tail("x, attempt 9) (id y", None),
            "(id x\\x2c\\x20attempt\\x209\\x29\\x20\\x28id\\x20y, attempt 2)"
        );
    }
}
