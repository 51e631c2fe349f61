//! Durations as people write them: `500ms`, `30s`, `5m`, `2h`.

use std::time::Duration;

/// Anything longer is a typing error: it would overflow the broker's milliseconds or never come to pass.
const MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// Parses one duration: a whole number and a unit (`ms`, `s`, `m`, `h`, `d`).
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected = "expected a whole number and a unit: 500ms, 30s, 5m, 2h, 1d";
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected.to_owned()),
    };
    if number.is_empty() {
        return Err(expected.to_owned());
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis_per_unit))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX)
        .ok_or_else(|| "longer than ten years".to_owned())
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
}
