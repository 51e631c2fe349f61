//! How wide text is on a terminal: tables of what strangers wrote stay in shape.

use unicode_width::UnicodeWidthChar;

/// What stands for the rest of a text that was cut.
const CUT: char = '…';

/// How many columns an escaped text takes.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// An escaped text in so many columns (at least one), with a mark at its end where it had to be cut.
#[must_use]
pub fn fit(text: &str, most: usize) -> String {
    let mut taken = 0;
    let mut cut_at = 0;
    for (at, c) in text.char_indices() {
        if taken < most {
            cut_at = at;
        }
        taken += columns(c);
        if taken > most {
            return format!("{}{CUT}", &text[..cut_at]);
        }
    }
    text.to_owned()
}

fn columns(c: char) -> usize {
    c.width().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_take_two_columns() {
        for (text, columns) in [
            ("", 0),
            ("abc", 3),
            ("größer…✓", 8),
            ("ﾊﾝｶｸ", 4),
            ("全角", 4),
            ("한글", 4),
            ("Ａ", 2),
            ("😀", 2),
        ] {
            assert_eq!(width(text), columns, "{text}");
        }
    }

    #[test]
    fn what_is_too_wide_is_cut_and_marked() {
        for (text, fitted) in [
            ("", ""),
            ("abcd", "abcd"),
            ("abcde", "abc…"),
            ("全角", "全角"),
            ("全角文", "全…"),
            ("a全角", "a全…"),
            ("ab全角", "ab…"),
            ("abc全", "abc…"),
        ] {
            assert_eq!(fit(text, 4), fitted, "{text}");
            assert!(width(&fit(text, 4)) <= 4);
        }
    }
}
