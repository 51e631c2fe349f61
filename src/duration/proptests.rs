//! Durations of all forms.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn nothing_that_is_written_breaks_it(text in any::<String>()) {
        if let Ok(duration) = parse(&text) {
            prop_assert!(duration <= MAX);
            prop_assert_eq!(parse(&show(duration)), Ok(duration));
        }
    }

    #[test]
    fn numbers_and_units_of_all_sizes_are_read_or_refused(number in any::<u128>(), unit in "ms|s|m|h|d|w| |") {
        let text = format!("{number}{unit}");
        if let Ok(duration) = parse(&text) {
            let millis = match unit.as_str() {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => 86_400_000,
            };
            prop_assert_eq!(duration.as_millis(), number * millis);
        }
    }

    #[test]
    fn the_parts_are_added_up(numbers in any::<[u32; 5]>(), has in any::<[bool; 5]>()) {
        let parts = || UNITS.iter().zip(numbers).zip(has).filter(|(_, has)| *has);
        let text = parts().map(|(((unit, _), number), _)| format!("{number}{unit}")).collect::<Vec<_>>().concat();
        let millis: u64 = parts().map(|(((_, size), number), _)| size * u64::from(number)).sum();
        let expected = Some(Duration::from_millis(millis)).filter(|sum| *sum <= MAX && !text.is_empty());
        prop_assert_eq!(parse(&text).ok(), expected);
    }

    #[test]
    fn what_is_shown_is_read_again(millis in 0..=315_360_000_000_u64) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(parse(&show(duration)), Ok(duration));
    }
}
