//! Headers of all kinds, written by anybody.

use proptest::prelude::*;

use super::*;

/// The first second of the year 10000.
const MAX_SECONDS: u64 = 253_402_300_800;

fn values() -> impl Strategy<Value = AmqpValue> {
    let value = prop_oneof![
        any::<bool>().prop_map(AmqpValue::Boolean),
        any::<i8>().prop_map(AmqpValue::ShortShortInt),
        any::<i32>().prop_map(AmqpValue::LongInt),
        any::<i64>().prop_map(AmqpValue::LongLongInt),
        any::<u64>().prop_map(AmqpValue::Timestamp),
        any::<f64>().prop_map(AmqpValue::Double),
        any::<String>().prop_map(AmqpValue::LongString),
        any::<Vec<u8>>().prop_map(AmqpValue::ByteArray),
        Just(AmqpValue::Void),
    ];
    value.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(AmqpValue::FieldArray),
            prop::collection::btree_map(any::<String>(), inner, 0..4).prop_map(AmqpValue::FieldTable),
        ]
    })
}

fn tables() -> impl Strategy<Value = FieldTable> {
    let name = prop_oneof![
        prop::sample::select(vec![ATTEMPT, DELIVERIES, ERROR, EXIT, FIRST_FAILED_AT, FAILED_AT, HOST, QUEUE])
            .prop_map(str::to_owned),
        any::<String>(),
    ];
    prop::collection::btree_map(name, values(), 0..12)
}

fn records() -> impl Strategy<Value = Record> {
    let texts = prop::array::uniform4(prop::option::of(any::<String>()));
    let times = prop::array::uniform2(prop::option::of(0..MAX_SECONDS));
    (2..1_000_000_u32, 0..1_000_000_u32, texts, times).prop_map(
        |(attempt, deliveries, [exit, error, host, queue], [first_failed_at, failed_at])| Record {
            attempt,
            deliveries,
            exit,
            error,
            first_failed_at,
            failed_at,
            host,
            queue,
            dropped: None,
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_read_is_within_bounds(table in tables()) {
        let record = Record::read(&table);
        prop_assert!(record.attempt >= 1 && u64::from(record.attempt) <= MAX_COUNT);
        prop_assert!(u64::from(record.deliveries) <= MAX_COUNT);
        for at in [record.first_failed_at, record.failed_at] {
            prop_assert!(at.is_none_or(|at| at < MAX_SECONDS));
        }
        for value in table.values() {
            let _ = (text(value), integer(value));
        }
    }

    #[test]
    fn what_is_written_is_read_again_whatever_was_there(record in records(), mut table in tables()) {
        let theirs: Vec<String> = table.keys().filter(|name| !is_reserved(name)).cloned().collect();
        record.write(&mut table, usize::MAX, Dropped::default());
        prop_assert_eq!(Record::read(&table), record);
        prop_assert!(theirs.iter().all(|name| table.contains_key(name)));
    }
}
