//! What the broker writes about a message that it has moved to another queue itself.

use amiquip::{AmqpValue, FieldTable};

use super::headers::moment;

/// Why, from where and when the broker has moved a message the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLettering {
    /// `delivery_limit`, `expired`, `maxlen`, `rejected`, or what later versions say.
    pub reason: String,
    /// The queue that it was in.
    pub queue: Option<String>,
    /// In seconds since 1970.
    pub at: Option<u64>,
}

impl DeadLettering {
    /// Of `x-death`, where the latest comes first. Whoever may publish can write it, so anything malformed counts as not
    /// written.
    pub(super) fn read(headers: &FieldTable) -> Option<Self> {
        let AmqpValue::FieldArray(deaths) = headers.get("x-death")? else { return None };
        let AmqpValue::FieldTable(latest) = deaths.first()? else { return None };
        let words = |name: &str| match latest.get(name) {
            Some(AmqpValue::LongString(text)) => Some(text.clone()),
            _ => None,
        };
        Some(Self {
            reason: words("reason")?,
            queue: words("queue"),
            at: latest.get("time").and_then(moment),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(deaths: AmqpValue) -> FieldTable {
        [("x-death".to_owned(), deaths)].into_iter().collect()
    }

    fn death(reason: &str) -> AmqpValue {
        let text = |text: &str| AmqpValue::LongString(text.to_owned());
        let entries = [
            ("reason", text(reason)),
            ("queue", text("q")),
            ("time", AmqpValue::Timestamp(7)),
            ("count", text("x")),
        ];
        AmqpValue::FieldTable(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    #[test]
    fn the_latest_is_the_first() {
        let read =
            DeadLettering::read(&headers(AmqpValue::FieldArray(vec![death("maxlen"), death("expired")])));
        let expected =
            DeadLettering { reason: "maxlen".to_owned(), queue: Some("q".to_owned()), at: Some(7) };
        assert_eq!(read, Some(expected));
    }

    #[test]
    fn a_time_that_is_none_is_not_written() {
        let death = [
            ("reason", AmqpValue::LongString("expired".to_owned())),
            ("time", AmqpValue::Timestamp(u64::MAX)),
        ];
        let table = death.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let deaths = AmqpValue::FieldArray(vec![AmqpValue::FieldTable(table)]);
        assert_eq!(DeadLettering::read(&headers(deaths)).map(|read| read.at), Some(None));
    }

    #[test]
    fn what_is_malformed_counts_as_not_written() {
        for deaths in [
            AmqpValue::FieldArray(vec![]),
            AmqpValue::FieldArray(vec![AmqpValue::Void]),
            AmqpValue::FieldArray(vec![AmqpValue::FieldTable(FieldTable::new())]),
            AmqpValue::LongString("expired".to_owned()),
            death("expired"),
        ] {
            assert_eq!(DeadLettering::read(&headers(deaths.clone())), None, "{deaths:?}");
        }
        assert_eq!(DeadLettering::read(&FieldTable::new()), None);
    }
}
