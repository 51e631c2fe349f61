//! How wide text is on a terminal: tables of what strangers wrote stay in shape.

/// Characters that take two columns: East Asian scripts and their full-width forms, and what is drawn as a picture. After
/// Unicode's East Asian Width (W and F), in blocks; the few narrow ones in between count as wide too, so that text is
/// never wider than it is taken for.
const WIDE: [(u32, u32); 32] = [
    (0x1100, 0x115f),
    (0x231a, 0x231b),
    (0x2329, 0x232a),
    (0x23e9, 0x23f3),
    (0x25fd, 0x25fe),
    (0x2614, 0x2615),
    (0x2630, 0x2637),
    (0x2648, 0x2653),
    (0x267f, 0x268f),
    (0x2693, 0x2693),
    (0x26a1, 0x26a1),
    (0x26aa, 0x26ab),
    (0x26bd, 0x26be),
    (0x26c4, 0x26c5),
    (0x26ce, 0x26d4),
    (0x26ea, 0x26fd),
    (0x2705, 0x270b),
    (0x2728, 0x2728),
    (0x274c, 0x2757),
    (0x2795, 0x2797),
    (0x27b0, 0x27bf),
    (0x2b1b, 0x2b55),
    (0x2e80, 0x303e),
    (0x3041, 0xa4cf),
    (0xa960, 0xa97f),
    (0xac00, 0xd7ff),
    (0xf900, 0xfaff),
    (0xfe10, 0xfe6f),
    (0xff00, 0xff60),
    (0xffe0, 0xffe6),
    (0x1_6fe0, 0x1_b2ff),
    (0x1_f000, 0x3_fffd),
];

/// What stands for the rest of a text that was cut.
const CUT: char = '…';

/// How many columns an escaped text takes, at most.
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
    let c = u32::from(c);
    if WIDE.iter().any(|(first, last)| (*first..=*last).contains(&c)) { 2 } else { 1 }
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
