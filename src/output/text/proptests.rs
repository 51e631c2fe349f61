//! Bodies and reasons of all kinds.

use proptest::prelude::*;

use super::*;
use crate::output::escape::{escape_lines, is_invisible};

fn is_harmless(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || is_invisible(c))
}

proptest! {
    #[test]
    fn an_excerpt_is_one_harmless_line_of_bounded_length(body in any::<Vec<u8>>(), times in 1..50_usize) {
        let body = body.repeat(times);
        let shown = excerpt(&body);
        prop_assert!(is_harmless(&shown));
        prop_assert!(shown.chars().count() <= EXCERPT_CHARS + 40);
    }

    #[test]
    fn text_in_a_message_is_one_harmless_line_of_bounded_length(text in any::<String>(), times in 1..50_usize) {
        let text = text.repeat(times);
        for (shown, most) in [(foreign(&text), FOREIGN_CHARS), (message(&text), MESSAGE_CHARS)] {
            prop_assert!(is_harmless(&shown));
            prop_assert!(shown.chars().count() <= most + 1);
        }
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
