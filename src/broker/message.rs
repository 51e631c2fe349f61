//! A message: its body and its properties. What `send` sets, what a worker reads.

use std::sync::Arc;
use std::time::Duration;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

use super::dead_lettering::DeadLettering;
use super::fault::Fault;
use super::frames::{FRAME_MAX, FRAME_OVERHEAD};
use super::headers::{self, Dropped, Record};
use crate::calendar::unix_time;

/// The body of a message. It is shared, because handing it over can outlast the interest in it.
pub type Body = Arc<Vec<u8>>;

/// Every message of taskq's is written to disk.
const PERSISTENT: u8 = 2;
/// Names travel as AMQP short strings: their length is one byte.
pub const MAX_NAME_BYTES: usize = 255;

/// What a content header's frame holds beside properties: its head and end, class, weight, body size, flags.
const AROUND_PROPERTIES: usize = FRAME_OVERHEAD + (2 + 2 + 8 + 2);
const MESSAGE_ID: &str = "message_id";

/// Three frames with the publish, the size of the body, and the properties that are short.
const AROUND_A_BODY: usize = 192;

/// How much of a message its copy keeps. Each form has less that a broker could refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyForm {
    /// All that may be copied.
    Full,
    /// The same without the address for an answer: RabbitMQ refuses `amq.rabbitmq.reply-to` from anybody but the
    /// connection that waits for the answer.
    WithoutReplyTo,
    /// The id and taskq's own record.
    Bare,
}

impl CopyForm {
    /// The form to try next, after the broker closed the channel over a copy of `of` in this one with `words`.
    #[must_use]
    pub fn next(self, words: &str, of: &Properties) -> Option<Self> {
        match self {
            Self::Full if words.contains("reply") && of.0.reply_to().is_some() => Some(Self::WithoutReplyTo),
            Self::Full | Self::WithoutReplyTo => Some(Self::Bare),
            Self::Bare => None,
        }
    }

    fn keeps(self, property: &str) -> bool {
        match self {
            Self::Full => true,
            Self::WithoutReplyTo => property != "reply_to",
            Self::Bare => property == MESSAGE_ID,
        }
    }
}

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
        Self(
            AmqpProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type(content_type.to_owned())
                .with_timestamp(unix_time())
                .with_app_id("taskq".to_owned()),
        )
    }

    /// Sets the message id.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self(self.0.with_message_id(id.to_owned()))
    }

    /// Sets where an answer is to go.
    #[must_use]
    pub fn with_reply_to(self, reply_to: &str) -> Self {
        Self(self.0.with_reply_to(reply_to.to_owned()))
    }

    /// Sets what an answer is to be known by.
    #[must_use]
    pub fn with_correlation_id(self, correlation_id: &str) -> Self {
        Self(self.0.with_correlation_id(correlation_id.to_owned()))
    }

    /// Sets the property `type`.
    #[must_use]
    pub fn with_kind(self, kind: &str) -> Self {
        Self(self.0.with_type_(kind.to_owned()))
    }

    /// Sets the priority, which only queues declared with `x-max-priority` and quorum queues of RabbitMQ 4 look at.
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

    /// As a quorum queue delivers it that has delivered it so often before, with this record.
    #[cfg(test)]
    #[must_use]
    pub fn redelivered(self, count: u32, record: &Record) -> Self {
        let mut table = self.0.headers().clone().unwrap_or_default();
        record.write(&mut table, FRAME_MAX as usize, Dropped::default());
        table.insert("x-delivery-count".to_owned(), AmqpValue::LongInt(i32::try_from(count).unwrap()));
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

    /// Where an answer is to go.
    #[must_use]
    pub fn reply_to(&self) -> Option<&str> {
        self.0.reply_to().as_deref()
    }

    /// What an answer is to be known by.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.correlation_id().as_deref()
    }

    /// How the body is encoded, such as `gzip`.
    #[must_use]
    pub fn content_encoding(&self) -> Option<&str> {
        self.0.content_encoding().as_deref()
    }

    /// The property `type`.
    #[must_use]
    pub fn kind(&self) -> Option<&str> {
        self.0.type_().as_deref()
    }

    /// 0 to 255, where the producer gave one.
    #[must_use]
    pub fn priority(&self) -> Option<u8> {
        *self.0.priority()
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

    pub(super) fn has_header(&self, name: &str) -> bool {
        self.0.headers().as_ref().is_some_and(|table| table.contains_key(name))
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

    /// The properties of a copy of this message that fits frames of `frame_max` bytes: everything of the original, as far
    /// as `form` has it, except what must not be copied (a time to live that would drop the copy, carbon copies, a user
    /// the broker would check, the broker's own records), with taskq's record replaced. The record names what else is
    /// missing.
    #[must_use]
    pub fn copy(&self, record: &Record, form: CopyForm, frame_max: usize) -> Self {
        let from = &self.0;
        let mut to = AmqpProperties::default().with_delivery_mode(PERSISTENT);
        let mut dropped = Dropped::default();
        // Properties cannot be taken out of amiquip's type, so those that stay are put into a new one.
        macro_rules! keep {
            ($($name:expr => $get:ident $set:ident),*) => {
                $(if let Some(value) = from.$get().clone() {
                    if form.keeps($name) { to = to.$set(value) } else { dropped.note($name) }
                })*
            };
        }
        keep!(
            "content_type" => content_type with_content_type,
            "content_encoding" => content_encoding with_content_encoding,
            "priority" => priority with_priority,
            "correlation_id" => correlation_id with_correlation_id,
            "reply_to" => reply_to with_reply_to,
            MESSAGE_ID => message_id with_message_id,
            "timestamp" => timestamp with_timestamp,
            "type" => type_ with_type_,
            "app_id" => app_id with_app_id
        );
        let mut table = from.headers().clone().unwrap_or_default();
        table.retain(|name, _| headers::is_copied(name));
        if form == CopyForm::Bare {
            for name in table.keys() {
                dropped.note(name);
            }
            table.clear();
        }
        let to = Self(to);
        record.write(&mut table, frame_max.saturating_sub(to.frame_size()), dropped);
        Self(to.0.with_headers(table))
    }

    /// How many bytes the frame takes that has them. All of them have to fit one.
    fn frame_size(&self) -> usize {
        let amqp = &self.0;
        let names = [
            amqp.content_type(),
            amqp.content_encoding(),
            amqp.correlation_id(),
            amqp.reply_to(),
            amqp.expiration(),
            amqp.message_id(),
            amqp.type_(),
            amqp.user_id(),
            amqp.app_id(),
            amqp.cluster_id(),
        ];
        let names: usize = names.into_iter().flatten().map(|name| 1 + name.len()).sum();
        let octets = usize::from(amqp.delivery_mode().is_some()) + usize::from(amqp.priority().is_some());
        let timestamp = amqp.timestamp().map_or(0, |_| 8);
        let headers = amqp.headers().as_ref().map_or(0, headers::table_size);
        AROUND_PROPERTIES + names + octets + timestamp + headers
    }

    /// Whether they fit a frame of `frame_max` bytes ([`super::Publisher::frame_max`]).
    ///
    /// # Errors
    /// They do not, with both sizes.
    pub fn fit(&self, frame_max: usize) -> Result<(), Fault> {
        let size = self.frame_size();
        if size <= frame_max { Ok(()) } else { Err(Fault::headers_too_large(size, frame_max)) }
    }

    /// Whether they fit any frame that taskq sends, before the broker has said what it takes.
    ///
    /// # Errors
    /// See [`Properties::fit`].
    pub fn fit_the_largest_frame(&self) -> Result<(), Fault> {
        self.fit(FRAME_MAX as usize)
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
        let copy = original.copy(&Record { attempt: 2, ..Record::default() }, CopyForm::Full, 131_072);
        let amqp = copy.amqp();
        assert_eq!(*amqp.delivery_mode(), Some(2));
        assert_eq!((amqp.expiration(), amqp.user_id()), (&None, &None));
        assert_eq!((copy.id(), *amqp.priority(), amqp.type_().as_deref()), ("id", Some(7), Some("t")));
        let names: Vec<_> = amqp.headers().iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Colour", "x-taskq-attempt"]);
    }

    #[test]
    fn each_form_of_a_copy_keeps_less_and_says_what_is_missing() {
        let table = [("Colour".to_owned(), AmqpValue::LongString("red".to_owned()))].into_iter().collect();
        let original = Properties(
            AmqpProperties::default()
                .with_message_id("id".to_owned())
                .with_reply_to("amq.rabbitmq.reply-to".to_owned())
                .with_priority(7)
                .with_headers(table),
        );
        let copy = |form| {
            let copy = original.copy(&Record::default(), form, 131_072);
            let dropped = copy.record().dropped;
            (copy.0.reply_to().is_some(), *copy.0.priority(), copy.user_headers().len(), dropped)
        };
        assert_eq!(copy(CopyForm::Full), (true, Some(7), 1, None));
        assert_eq!(copy(CopyForm::WithoutReplyTo), (false, Some(7), 1, Some("reply_to".to_owned())));
        let names = "priority, reply_to, Colour".to_owned();
        assert_eq!(copy(CopyForm::Bare), (false, None, 0, Some(names)));
        assert_eq!(original.copy(&Record::default(), CopyForm::Bare, 131_072).id(), "id");
        let next = |form: CopyForm, words| form.next(words, &original);
        assert_eq!(
            next(CopyForm::Full, "fast reply consumer does not exist"),
            Some(CopyForm::WithoutReplyTo)
        );
        assert_eq!(next(CopyForm::Full, "something else"), Some(CopyForm::Bare));
        assert_eq!(next(CopyForm::WithoutReplyTo, "fast reply"), Some(CopyForm::Bare));
        assert_eq!(next(CopyForm::Bare, "fast reply"), None);
    }

    #[test]
    fn a_copy_fits_the_frames_of_its_connection() {
        let table = [("large".to_owned(), AmqpValue::LongString("x".repeat(7000)))].into_iter().collect();
        let original =
            Properties(AmqpProperties::default().with_message_id("id".to_owned()).with_headers(table));
        let record = Record { attempt: 2, error: Some("e".repeat(2048)), ..Record::default() };
        let kept = |frame_max| {
            let copy = original.copy(&record, CopyForm::Full, frame_max);
            assert_eq!(copy.fit(frame_max), Ok(()));
            (copy.record().attempt, copy.record().error.is_some(), copy.user_headers().len())
        };
        assert_eq!(kept(131_072), (2, true, 1));
        assert_eq!(kept(8192), (2, false, 1));
        assert_eq!(kept(4096), (2, false, 0));
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
