//! Bodies and reasons of all kinds.

use proptest::prelude::*;

use super::*;

/// The longest escape is that of a tag character, `\\u{e0000}`.
const LONGEST_ESCAPE: usize = 10;

fn is_harmless(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || is_invisible(c))
}

proptest! {
    #[test]
    fn an_excerpt_is_one_harmless_line_of_bounded_length(body in any::<Vec<u8>>(), times in 1..50_usize) {
        let body = body.repeat(times);
        let shown = excerpt(&body);
        prop_assert!(is_harmless(&shown));
        prop_assert!(shown.chars().count() <= EXCERPT_CHARS * LONGEST_ESCAPE + 40);
    }

    #[test]
    fn text_from_outside_is_harmless(text in any::<String>()) {
        prop_assert!(is_harmless(&escape(&text)));
        let lines = escape_lines(text.as_bytes());
        prop_assert!(is_harmless(&lines.replace('\n', "")));
        prop_assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
        prop_assert_eq!(escape(&escape(&text)), escape(&text));
    }
}
