//! JSON for whoever reads lines.

use std::fmt::Write as _;

use serde_json::Value;

/// A value in one line of ASCII: JSON leaves some control characters as they are, and as `\u` escapes they mean the same.
#[must_use]
pub fn line_of_json(value: &Value) -> String {
    let json = value.to_string();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && c != '\x7f' {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_ascii_and_means_the_same() {
        let text = "a\u{9b}31m ü 😀 \u{7f}";
        let line = line_of_json(&json!(text));
        assert!(line.is_ascii() && !line.contains('\x7f'), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }
}
