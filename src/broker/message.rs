//! A message's properties: what `send` sets, what a worker reads.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

/// Every message of taskq's is written to disk.
const PERSISTENT: u8 = 2;
/// Names travel as AMQP short strings: their length is one byte.
pub const MAX_NAME_BYTES: usize = 255;
/// Properties and headers have to fit one frame (131,072 bytes); this leaves room for all that is not header.
pub const MAX_HEADER_BYTES: usize = 120_000;

/// The properties of one message. Everything is kept, also what taskq has no name for.
#[derive(Debug, Clone, Default)]
pub struct Properties(AmqpProperties);

impl From<AmqpProperties> for Properties {
    fn from(amqp: AmqpProperties) -> Self {
        Self(amqp)
    }
}

impl Properties {
    /// A new task's: persistent, by taskq, now.
    #[must_use]
    pub fn new_task(content_type: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self(
            AmqpProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type(content_type.to_owned())
                .with_timestamp(now)
                .with_app_id("taskq".to_owned()),
        )
    }

    /// Sets the message id.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self(self.0.with_message_id(id.to_owned()))
    }

    /// Sets the priority, which only queues declared with `x-max-priority` look at.
    #[must_use]
    pub fn with_priority(self, priority: u8) -> Self {
        Self(self.0.with_priority(priority))
    }

    /// Drops the task from the queue when it has waited this long.
    #[must_use]
    pub fn with_expiration(self, after: Duration) -> Self {
        Self(self.0.with_expiration(after.as_millis().to_string()))
    }

    /// Sets the headers, replacing any.
    #[must_use]
    pub fn with_headers(self, headers: &[(String, String)]) -> Self {
        let table: FieldTable =
            headers.iter().map(|(key, value)| (key.clone(), AmqpValue::LongString(value.clone()))).collect();
        Self(self.0.with_headers(table))
    }

    /// The message id; empty where the producer gave none.
    #[must_use]
    pub fn id(&self) -> &str {
        self.0.message_id().as_deref().unwrap_or_default()
    }

    /// The content type; empty where the producer gave none.
    #[must_use]
    pub fn content_type(&self) -> &str {
        self.0.content_type().as_deref().unwrap_or_default()
    }

    /// When it was sent, in seconds since 1970, where the producer said so.
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        *self.0.timestamp()
    }

    /// The headers that have a text form, without taskq's own and the broker's.
    #[must_use]
    pub fn user_headers(&self) -> Vec<(String, String)> {
        let Some(table) = self.0.headers() else { return Vec::new() };
        table
            .iter()
            .filter(|(name, _)| !is_reserved(name))
            .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
            .collect()
    }

    pub(super) fn amqp(&self) -> &AmqpProperties {
        &self.0
    }
}

/// Headers that belong to taskq or to the broker rather than to the user.
fn is_reserved(name: &str) -> bool {
    const BROKERS: [&str; 3] = ["x-death", "x-delivery-count", "x-acquired-count"];
    name.starts_with("x-taskq-")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
        || BROKERS.contains(&name)
}

fn text(value: &AmqpValue) -> Option<String> {
    Some(match value {
        AmqpValue::LongString(text) => text.clone(),
        AmqpValue::Boolean(value) => value.to_string(),
        AmqpValue::ShortShortInt(value) => value.to_string(),
        AmqpValue::ShortShortUInt(value) => value.to_string(),
        AmqpValue::ShortInt(value) => value.to_string(),
        AmqpValue::ShortUInt(value) => value.to_string(),
        AmqpValue::LongInt(value) => value.to_string(),
        AmqpValue::LongUInt(value) => value.to_string(),
        AmqpValue::LongLongInt(value) => value.to_string(),
        AmqpValue::Float(value) => value.to_string(),
        AmqpValue::Double(value) => value.to_string(),
        AmqpValue::Timestamp(value) => value.to_string(),
        AmqpValue::DecimalValue(_)
        | AmqpValue::FieldArray(_)
        | AmqpValue::FieldTable(_)
        | AmqpValue::ByteArray(_)
        | AmqpValue::Void => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_task_is_persistent_and_signed() {
        let properties = Properties::new_task("text/plain").with_id("x").with_priority(3);
        let amqp = properties.amqp();
        assert_eq!(*amqp.delivery_mode(), Some(2));
        assert_eq!(amqp.app_id().as_deref(), Some("taskq"));
        assert!(properties.timestamp().is_some());
        assert_eq!((properties.id(), properties.content_type()), ("x", "text/plain"));
    }

    #[test]
    fn handlers_see_the_users_headers_only() {
        let mut table = FieldTable::new();
        for name in ["x-taskq-attempt", "x-death", "x-first-death-queue", "x-delivery-count", "Colour"] {
            table.insert(name.to_owned(), AmqpValue::LongString("v".to_owned()));
        }
        table.insert("n".to_owned(), AmqpValue::LongInt(-7));
        table.insert("nothing".to_owned(), AmqpValue::Void);
        let properties = Properties(AmqpProperties::default().with_headers(table));
        let expected = [("Colour", "v"), ("n", "-7")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(properties.user_headers(), expected);
    }
}
