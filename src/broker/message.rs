//! A message's properties: what `send` sets, what a worker reads.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

use super::dead_lettering::DeadLettering;
use super::frames::FRAME_MAX;
use super::headers::{self, Record};

/// Every message of taskq's is written to disk.
const PERSISTENT: u8 = 2;
/// Names travel as AMQP short strings: their length is one byte.
pub const MAX_NAME_BYTES: usize = 255;
/// Properties and headers have to fit one frame (131,072 bytes); this leaves room for all that is not header.
pub const MAX_HEADER_BYTES: usize = 120_000;

/// What a frame of the size that taskq asks for has room for beside its head and end, class, weight, body size, flags, and
/// the properties of fixed length.
const ROOM_FOR_PROPERTIES: usize = FRAME_MAX as usize - 8 - (2 + 2 + 8 + 2) - (1 + 1 + 8);

/// Three frames with the publish, the size of the body, and the properties that are short.
const AROUND_A_BODY: usize = 192;

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
            .filter(|(name, _)| !headers::is_reserved(name))
            .filter_map(|(name, value)| Some((name.clone(), headers::text(value)?)))
            .collect()
    }

    /// What taskq has written about the task so far.
    #[must_use]
    pub fn record(&self) -> Record {
        self.0.headers().as_ref().map(Record::read).unwrap_or_default()
    }

    /// How often the broker says it has delivered this message before, where it counts (quorum queues).
    #[must_use]
    pub fn delivery_count(&self) -> Option<u64> {
        headers::integer(self.0.headers().as_ref()?.get("x-delivery-count")?)
    }

    /// What the broker says where it has moved this message to its queue itself.
    #[must_use]
    pub fn dead_lettering(&self) -> Option<DeadLettering> {
        DeadLettering::read(self.0.headers().as_ref()?)
    }

    /// The properties of a copy of this message: everything of the original, except what must not be copied (a
    /// time to live that would drop the copy, carbon copies, a user the broker would check, the broker's own
    /// records), with taskq's record replaced.
    #[must_use]
    pub fn copy(&self, record: &Record) -> Self {
        let from = &self.0;
        let mut to = AmqpProperties::default().with_delivery_mode(PERSISTENT);
        // Properties cannot be taken out of amiquip's type, so those that stay are put into a new one.
        macro_rules! keep {
            ($($get:ident $set:ident),*) => {
                $(if let Some(value) = from.$get().clone() { to = to.$set(value); })*
            };
        }
        keep!(
            content_type with_content_type,
            content_encoding with_content_encoding,
            priority with_priority,
            correlation_id with_correlation_id,
            reply_to with_reply_to,
            message_id with_message_id,
            timestamp with_timestamp,
            type_ with_type_,
            app_id with_app_id
        );
        let mut table = from.headers().clone().unwrap_or_default();
        table.retain(|name, _| headers::is_copied(name));
        let names = [
            to.content_type(),
            to.content_encoding(),
            to.correlation_id(),
            to.reply_to(),
            to.message_id(),
            to.type_(),
            to.app_id(),
        ];
        let names: usize = names.into_iter().flatten().map(|name| 1 + name.len()).sum();
        record.write(&mut table, ROOM_FOR_PROPERTIES - names);
        Self(to.with_headers(table))
    }

    /// About how many bytes they and what else surrounds a body take on the wire.
    pub(super) fn size(&self) -> usize {
        AROUND_A_BODY + self.id().len() + self.0.headers().as_ref().map_or(0, headers::table_size)
    }

    pub(super) fn amqp(&self) -> &AmqpProperties {
        &self.0
    }
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
    fn a_copy_keeps_what_is_the_tasks_and_drops_what_was_the_deliverys() {
        let mut table = FieldTable::new();
        for name in [
            "Colour",
            "CC",
            "BCC",
            "x-death",
            "x-first-death-queue",
            "x-last-death-reason",
            "x-delivery-count",
        ] {
            table.insert(name.to_owned(), AmqpValue::LongString("v".to_owned()));
        }
        table.insert("x-taskq-deliveries".to_owned(), AmqpValue::LongInt(3));
        let original = Properties(
            AmqpProperties::default()
                .with_delivery_mode(1)
                .with_message_id("id".to_owned())
                .with_correlation_id("c".to_owned())
                .with_type_("t".to_owned())
                .with_priority(7)
                .with_expiration("1000".to_owned())
                .with_user_id("me".to_owned())
                .with_headers(table),
        );
        let copy = original.copy(&Record { attempt: 2, ..Record::default() });
        let amqp = copy.amqp();
        assert_eq!(*amqp.delivery_mode(), Some(2));
        assert_eq!((amqp.expiration(), amqp.user_id()), (&None, &None));
        assert_eq!((copy.id(), *amqp.priority(), amqp.type_().as_deref()), ("id", Some(7), Some("t")));
        let names: Vec<_> = amqp.headers().iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Colour", "x-taskq-attempt"]);
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
