//! Percent escapes of URLs.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_taken_apart_and_broken_ones_refused() {
        assert_eq!(decode("a%2Fb%c3%BC%00+").as_deref(), Some("a/b\u{fc}\0+".as_bytes()));
        for broken in ["%", "%2", "a%2", "%zz", "%+1", "%%41"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }
}
