//! Durations as people write them: `500ms`, `30s`, `5m`, `1h30m`.

use std::time::Duration;

/// Anything longer is a typing error: it would overflow the broker's milliseconds or never come to pass.
const MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// From the longest to the shortest, with their milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

const EXPECTED: &str = "expected whole numbers with units, the longest first: 500ms, 30s, 5m, 1h30m, 1d";

/// Parses one duration: a whole number and a unit (`ms`, `s`, `m`, `h`, `d`), or several, from the longest unit to the
/// shortest, each unit once. Another order is more often a typing error than meant.
pub fn parse(text: &str) -> Result<Duration, String> {
    let (mut rest, mut units) = (text, &UNITS[..]);
    let mut total = Some(0_u64);
    while !rest.is_empty() || text.is_empty() {
        let (number, unit, tail) = first_part(rest);
        let nth = units.iter().position(|(name, _)| *name == unit).ok_or(EXPECTED)?;
        if number.is_empty() {
            return Err(EXPECTED.to_owned());
        }
        let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(units[nth].1));
        total = total.zip(millis).and_then(|(total, millis)| total.checked_add(millis));
        units = &units[nth + 1..];
        rest = tail;
    }
    total
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX)
        .ok_or_else(|| "longer than ten years".to_owned())
}

/// The number that `text` begins with, its unit, and what follows.
fn first_part(text: &str) -> (&str, &str, &str) {
    let split = |text: &'_ str, ends: fn(char) -> bool| text.find(ends).unwrap_or(text.len());
    let (number, rest) = text.split_at(split(text, |c| !c.is_ascii_digit()));
    let (unit, rest) = rest.split_at(split(rest, |c| c.is_ascii_digit()));
    (number, unit, rest)
}

/// Parses a duration that must not be zero.
pub fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

/// The shortest exact form that [`parse`] reads, rounded to whole milliseconds.
#[must_use]
pub fn show(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis >= size && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

/// To about two digits, rounded down: `45s`, `12m`, `3h`, `2d`.
#[must_use]
pub fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7_200 => (seconds / 60, "m"),
        7_200..172_800 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{count}{unit}")
}

#[cfg(test)]
mod proptests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1m30s", 90_000),
            ("2h30m", 9_000_000),
            ("1d12h", 129_600_000),
            ("1s500ms", 1_500),
            ("1h1ms", 3_600_001),
            ("1d2h3m4s5ms", 93_784_005),
            ("1m0s", 60_000),
            ("0h90m", 5_400_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert!(parse_positive("1ms").is_ok());
        assert!(parse_positive("0m").is_err());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "1 s",
            "1S",
            "1sec",
            "1w",
            "9999999999999999999999s",
            "11000d",
            // Each unit once, the longest first, and nothing in between.
            "30s1m",
            "1m1m",
            "500ms1s",
            "1h30",
            "1h m",
            "1h 30m",
            "1h-30m",
            "hm",
            "1hm",
            "3650d1ms",
            "213503982334d18446744073709551615ms",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn showing_and_reading_agree() {
        for text in ["1ms", "1500ms", "1s", "90s", "2m", "30m", "36h"] {
            assert_eq!(parse(text).map(show), Ok(text.to_owned()));
        }
        assert_eq!(show(Duration::ZERO), "0ms");
    }

    #[test]
    fn about_two_digits_are_enough_for_a_glance() {
        for (seconds, said) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7_199, "119m"), (10_805, "3h"), (172_800, "2d")]
        {
            assert_eq!(rough(Duration::from_secs(seconds)), said);
        }
    }
}
