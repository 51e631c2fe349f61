//! Bytes as text.

/// The digits, by their value.
pub const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 of RFC 4648, section 4, with padding.
pub fn encode(bytes: &[u8], to: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|nth| group.get(nth).copied().unwrap_or(0));
        let digits = [a >> 2, (a & 3) << 4 | b >> 4, (b & 15) << 2 | c >> 6, c & 63];
        for (nth, digit) in digits.into_iter().enumerate() {
            to.push(if nth <= group.len() { DIGITS[usize::from(digit)] } else { b'=' });
        }
    }
}

/// The same as a string of its own.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let mut to = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    encode(bytes, &mut to);
    to.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_rfc() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(text(bytes.as_bytes()), expected);
        }
        assert_eq!(text(&[0xfb, 0xff, 0xbf]), "+/+/");
    }
}
