//! Percent escapes, as URLs have them.

use std::fmt::Write as _;

/// The bytes that a text stands for; `None` where a `%` is not followed by two hexadecimal digits.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digit = |at: usize| char::from(digits[at]).to_digit(16);
        bytes.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
        rest = tail;
    }
    Some(bytes)
}

/// The bytes as a text in which those that are not `plain` are escaped. A `%` always is: no two texts become one.
#[must_use]
pub fn encode(bytes: &[u8], plain: impl Fn(usize, u8) -> bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for (nth, byte) in bytes.iter().enumerate() {
        if *byte != b'%' && byte.is_ascii() && plain(nth, *byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plain_is_escaped_and_a_percent_sign_always() {
        let encode = |text: &str| encode(text.as_bytes(), |nth, byte| nth > 0 && byte != b'/');
        assert_eq!(encode("aa/b\u{fc}%2F\0"), "%61a%2Fb%C3%BC%252F\0");
    }

    #[test]
    fn escapes_are_taken_apart_and_broken_ones_refused() {
        assert_eq!(decode("a%2Fb%c3%BC%00+").as_deref(), Some("a/b\u{fc}\0+".as_bytes()));
        for broken in ["%", "%2", "a%2", "%zz", "%+1", "%%41"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }
}
