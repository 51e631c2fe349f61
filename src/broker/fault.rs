//! What amiquip's errors and the broker's closing words mean for us: what has to be opened again, and whether
//! trying again can help.

use std::fmt;
use std::time::{Duration, Instant};

use crate::calendar::Day;
use crate::error::{Error, Exit};
use crate::output;
use crate::shortage;

/// Before the broker's own words.
const REFUSED_ACCESS: &str = "the broker refused access: ";

/// How RabbitMQ's 404 begins where the queue is there and its process is not: the classic queue's node is down or just
/// being stopped, or the process crashed, or moves. Of a missing queue it says "no queue". It cuts what it says at 255
/// bytes, so that of a queue with a long name the end, and with it the reason, may be lost.
const NOT_NOW: [&str; 3] =
    ["NOT_FOUND - home node '", "NOT_FOUND - queue '", "NOT_FOUND - failed to perform operation on queue '"];

/// The argument of a consumer that says how long the broker is to wait for its acknowledgements.
pub(super) const TIMEOUT_ARGUMENT: &str = "x-consumer-timeout";

/// How much of what was open is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole connection.
    Connection,
    /// One channel; its connection lives.
    Channel,
}

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Unreachable, cut, silent, or a queue whose node is away: the same again may succeed later.
    Lost,
    /// This machine lacks what a connection takes, such as descriptors: it says nothing about the broker, and passes.
    NoResources,
    /// The broker (or TLS) refused us; trying again rarely helps.
    Refused,
    /// The broker allows no more connections now; it does when others leave.
    NoRoom,
    /// The queue is not as we need it; trying again does not help.
    Configuration,
    /// The queue may be a stream.
    MaybeStream,
    /// The queue does not exist.
    NotFound,
    /// The broker waited too long for an acknowledgement (`consumer_timeout`).
    AckTimeout,
    /// The queue never takes back what is not acknowledged, and does not want to be told when to: a classic queue of
    /// RabbitMQ 4.3.
    NoTimeout,
    /// The broker cancelled the consumer: its queue was deleted, or moved to another node. Or, where a delivery that is not
    /// answered came then, the broker waited too long for that ([`super::AckTimeout::PerConsumer`]).
    ConsumerCancelled(Option<Instant>),
    /// A message larger than the broker allows; its limit in bytes where it told.
    TooLarge(Option<u64>),
    /// Headers and other properties of a message do not fit a frame of this connection.
    HeadersTooLarge,
    /// The broker closed the channel or the connection over what it was sent: the same again is refused again.
    Unacceptable,
}

/// Something that ended, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What ended.
    pub scope: Scope,
    /// What it means.
    pub kind: FaultKind,
    text: String,
}

impl Fault {
    pub(super) fn new(scope: Scope, kind: FaultKind, text: impl AsRef<str>) -> Self {
        Self { scope, kind, text: output::message(text.as_ref()) }
    }

    pub(super) fn connection(kind: FaultKind, text: impl AsRef<str>) -> Self {
        Self::new(Scope::Connection, kind, text)
    }

    pub(super) fn channel(kind: FaultKind, text: impl AsRef<str>) -> Self {
        Self::new(Scope::Channel, kind, text)
    }

    pub(super) fn lost(text: impl AsRef<str>) -> Self {
        Self::connection(FaultKind::Lost, text)
    }

    /// Something could not be opened or started here.
    pub(super) fn of_this_machine(error: &std::io::Error) -> Self {
        match shortage::explain(error) {
            Some(missing) => Self::connection(FaultKind::NoResources, missing),
            None => Self::lost(error.to_string()),
        }
    }

    /// A message came back because its queue is gone.
    #[must_use]
    pub fn unroutable(queue: &str) -> Self {
        Self::channel(FaultKind::NotFound, format!("the queue {queue} is gone, and tasks came back"))
    }

    /// The broker cancelled the consumer, whose oldest unanswered delivery came then.
    #[must_use]
    pub fn cancelled(since: Option<Instant>) -> Self {
        Self::channel(
            FaultKind::ConsumerCancelled(since),
            "the broker cancelled the consumer: the queue was deleted, or moved to another node",
        )
    }

    /// There is no such queue, and taskq was told not to declare it.
    #[must_use]
    pub fn missing(queue: &str) -> Self {
        Self::channel(
            FaultKind::NotFound,
            format!("there is no queue {queue}; create it, or have work do so (without --no-declare)"),
        )
    }

    /// A queue whose arguments this user may not see is a stream.
    #[must_use]
    pub fn a_stream(queue: &str) -> Self {
        Self::channel(
            FaultKind::Configuration,
            format!(
                "the queue {queue} cannot hold tasks safely: it is a stream, and no task ever leaves a stream"
            ),
        )
    }

    /// A delivery says that it comes from a stream.
    #[must_use]
    pub fn maybe_a_stream(queue: &str) -> Self {
        Self::channel(
            FaultKind::MaybeStream,
            format!(
                "a task of {queue} carries x-stream-offset: the queue is a stream, which cannot hold tasks safely, or \
                 the task was brought here from one. The permission to configure the queue lets taskq see which"
            ),
        )
    }

    /// Of `size` bytes, which are more than `frame_max`.
    pub(super) fn headers_too_large(size: usize, frame_max: usize) -> Self {
        Self::channel(
            FaultKind::HeadersTooLarge,
            format!(
                "headers, id and content type take {size} bytes, and a frame has {frame_max} at most; put large values \
                 into the body"
            ),
        )
    }

    /// A connection may have so many.
    pub(super) fn too_few_channels(allowed: u16) -> Self {
        Self::connection(
            FaultKind::Configuration,
            format!(
                "a connection may have {allowed} channels (channel_max of the broker, or in the URL), and more are \
                 needed: one for each thread, and one to look at queues"
            ),
        )
    }

    /// The broker lives, and does not say what became of a publish.
    #[must_use]
    pub fn unconfirmed() -> Self {
        Self::lost("the broker answers, but does not confirm")
    }

    /// The same trouble with a better explanation, where one is known.
    #[must_use]
    pub(super) fn because(mut self, text: Option<String>) -> Self {
        if let Some(text) = text {
            self.text = output::message(&text);
        }
        self
    }

    /// The same trouble with the permission that is missing, where the broker refused `call` for want of one.
    #[must_use]
    pub(super) fn lacking_permission(self, call: &str) -> Self {
        if self.scope != Scope::Channel || self.kind != FaultKind::Refused {
            return self;
        }
        let words = self.text.strip_prefix(REFUSED_ACCESS).unwrap_or(&self.text);
        match missing_permission(words, call) {
            Some(missing) => {
                Self { text: format!("the user lacks the permission {missing}: {words}"), ..self }
            }
            None => self,
        }
    }

    /// The same trouble with what it hindered before it.
    #[must_use]
    pub(super) fn because_also(mut self, text: &str) -> Self {
        self.text = format!("{} ({})", output::message(text), self.text);
        self
    }

    /// How long the broker waits for an acknowledgement, where it took a delivery back and says so: "Timeout value used:
    /// 1800000 ms".
    #[must_use]
    pub fn acknowledgement_timeout(&self) -> Option<Duration> {
        if self.kind != FaultKind::AckTimeout {
            return None;
        }
        let (_, tail) = self.text.split_once("Timeout value used: ")?;
        let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        tail[..digits].parse().ok().map(Duration::from_millis)
    }

    /// As the error that ends a command.
    #[must_use]
    pub fn into_error(self) -> Error {
        if self.kind == FaultKind::Refused && self.scope == Scope::Connection {
            return Error::turned_away(self.text);
        }
        let exit = match self.kind {
            FaultKind::Lost
            | FaultKind::NoResources
            | FaultKind::AckTimeout
            | FaultKind::NoTimeout
            | FaultKind::ConsumerCancelled(_) => Exit::Unavailable,
            // What else was on a connection may be to blame.
            FaultKind::Unacceptable if self.scope == Scope::Connection => Exit::Unavailable,
            FaultKind::Refused => Exit::Refused,
            FaultKind::NoRoom => Exit::TryAgain,
            FaultKind::Configuration
            | FaultKind::MaybeStream
            | FaultKind::NotFound
            | FaultKind::Unacceptable => Exit::Configuration,
            FaultKind::TooLarge(_) | FaultKind::HeadersTooLarge => Exit::BadData,
        };
        Error::new(exit, self.text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// amiquip's errors hold URLs (never passed to it) and the broker's words, no credentials.
impl From<amiquip::Error> for Fault {
    fn from(error: amiquip::Error) -> Self {
        use amiquip::Error as Amqp;
        match error {
            Amqp::ServerClosedConnection { code, message } => closed_connection(code, &message),
            Amqp::ServerClosedChannel { code, message, .. } => closed_channel(code, &message),
            Amqp::InvalidCredentials => Self::connection(FaultKind::Refused, "user name or password refused"),
            Amqp::UnsupportedAuthMechanism { available, requested } => Self::connection(
                FaultKind::Refused,
                format!("the broker does not offer {requested} authentication (it offers {available})"),
            ),
            Amqp::UnexpectedSocketClose => Self::lost("the broker closed the connection without a word"),
            Amqp::IoErrorReadingSocket { source } | Amqp::IoErrorWritingSocket { source } => {
                Self::lost(source.to_string())
            }
            Amqp::CreatePollHandle { source } | Amqp::ForkFailed { source } => Self::of_this_machine(&source),
            Amqp::MissedServerHeartbeats => Self::lost("the broker has gone silent (missed heartbeats)"),
            Amqp::EventLoopDropped | Amqp::EventLoopClientDropped | Amqp::ClientClosedConnection => {
                Self::lost("the connection is gone")
            }
            Amqp::IoThreadPanic => Self::lost("the connection broke down"),
            Amqp::ClientClosedChannel => Self::channel(FaultKind::Lost, "the channel is closed"),
            other => Self::lost(other.to_string()),
        }
    }
}

fn closed_connection(code: u16, message: &str) -> Fault {
    let message = &output::foreign(message);
    match code {
        320 => Fault::lost(format!("the broker closed the connection: {message}")),
        530 if message.contains("connection limit") => Fault::connection(
            FaultKind::NoRoom,
            format!("the broker allows no more connections now: {message}"),
        ),
        530 if message.contains("number of channels") => Fault::connection(FaultKind::Configuration, message),
        403 | 530 => Fault::connection(FaultKind::Refused, format!("{REFUSED_ACCESS}{message}")),
        // A malformed or too large frame, a wrong field, something that is not implemented.
        501..=503 | 505 | 540 => Fault::connection(
            FaultKind::Unacceptable,
            format!("the broker closed the connection ({code}): {message}"),
        ),
        _ => Fault::lost(format!("the broker closed the connection ({code}): {message}")),
    }
}

fn closed_channel(code: u16, message: &str) -> Fault {
    let message = &output::foreign(message);
    match code {
        403 if message.contains("' in exclusive use") => Fault::channel(
            FaultKind::Refused,
            format!("another consumer has the queue for itself alone (exclusive): {message}"),
        ),
        403 | 530 => Fault::channel(FaultKind::Refused, format!("{REFUSED_ACCESS}{message}")),
        404 if NOT_NOW.iter().any(|start| message.starts_with(start)) => {
            Fault::channel(FaultKind::Lost, format!("the queue cannot be used now: {message}"))
        }
        404 => Fault::channel(FaultKind::NotFound, format!("not found: {message}")),
        405 => Fault::channel(
            FaultKind::Configuration,
            format!("the queue belongs to another connection alone (exclusive): {message}"),
        ),
        406 if message.contains("acknowledgement") && message.contains("timed out") => {
            Fault::channel(FaultKind::AckTimeout, message)
        }
        406 if message.contains("message size") => {
            Fault::channel(FaultKind::TooLarge(configured_max_size(message)), message)
        }
        406 if message.contains(&format!("invalid arg '{TIMEOUT_ARGUMENT}'")) => {
            Fault::channel(FaultKind::NoTimeout, message)
        }
        406 if ["inequivalent arg", "invalid arg", "limit in vhost"]
            .iter()
            .any(|part| message.contains(part)) =>
        {
            Fault::channel(FaultKind::Configuration, message)
        }
        406 | 540 if !message.contains("unknown delivery tag") => Fault::channel(
            FaultKind::Unacceptable,
            format!("the broker closed the channel ({code}): {message}"),
        ),
        _ => Fault::channel(FaultKind::Lost, format!("the broker closed the channel ({code}): {message}")),
    }
}

/// Which permission on what, from "access to queue 'q' in vhost '/' refused for user 'u'". RabbitMQ 4 begins it with the
/// permission ("read access to ..."); before that the refused call has to tell.
fn missing_permission(message: &str, call: &str) -> Option<String> {
    let (before, object) = message.split_once("access to ")?;
    // Tasks go through the default exchange.
    let what =
        if object.starts_with("exchange ") { "amq.default, the default exchange" } else { "the queue" };
    match before.trim_end().rsplit(' ').next() {
        Some(told @ ("configure" | "write" | "read")) => Some(format!("\"{told}\" for {what}")),
        _ => needed_permission(object, call).map(|needed| format!("{needed} for {what}")),
    }
}

/// What `call` needs on this object, which begins as in "queue 'q' in vhost '/'".
fn needed_permission(object: &str, call: &str) -> Option<&'static str> {
    match call {
        // Publishing is refused after the call.
        _ if object.starts_with("exchange ") => Some("\"write\""),
        "queue.declare" if is_delay_queue(object) => Some("\"configure\" or \"read\" (it needs both)"),
        "queue.declare" => Some("\"configure\""),
        "basic.consume" | "basic.get" | "queue.purge" => Some("\"read\""),
        _ => None,
    }
}

/// Whether taskq gives this name to queues that hand their tasks on when their time has come. RabbitMQ asks who declares
/// such a one for the permission to read it as well, as if they took the tasks out themselves.
fn is_delay_queue(object: &str) -> bool {
    let name = object.strip_prefix("queue '").and_then(|rest| rest.split_once("' in vhost"));
    let after = name.and_then(|(name, _)| name.rsplit_once(".delay.")).map_or("", |(_, after)| after);
    let (milliseconds, day) = after.split_once('.').map_or((after, None), |(time, day)| (time, Some(day)));
    !milliseconds.is_empty()
        && milliseconds.bytes().all(|byte| byte.is_ascii_digit())
        && day.is_none_or(Day::is_shown_as)
}

/// From "message size 12 is larger than configured max size 10" (RabbitMQ 3.8 and later).
fn configured_max_size(message: &str) -> Option<u64> {
    let (_, tail) = message.split_once("max size ")?;
    let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
    tail[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel_fault(code: u16, message: &str) -> Fault {
        amiquip::Error::ServerClosedChannel { channel_id: 1, code, message: message.to_owned() }.into()
    }

    #[test]
    fn what_the_broker_says_is_understood() {
        let timeout = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: \
                       1800000 ms. This timeout value can be configured";
        assert_eq!(channel_fault(406, timeout).kind, FaultKind::AckTimeout);
        assert_eq!(channel_fault(406, timeout).acknowledgement_timeout(), Some(Duration::from_mins(30)));
        let size = "PRECONDITION_FAILED - message size 4096 is larger than configured max size 1024";
        assert_eq!(channel_fault(406, size).kind, FaultKind::TooLarge(Some(1024)));
        let tag = "PRECONDITION_FAILED - unknown delivery tag 7";
        assert_eq!(channel_fault(406, tag).kind, FaultKind::Lost);
        let classic = "PRECONDITION_FAILED - invalid arg 'x-consumer-timeout' for queue 'q' in vhost '/' of queue type \
                       rabbit_classic_queue";
        assert_eq!(channel_fault(406, classic).kind, FaultKind::NoTimeout);
        assert_eq!(channel_fault(403, "ACCESS_REFUSED").kind, FaultKind::Refused);
        assert_eq!(channel_fault(404, "NOT_FOUND").kind, FaultKind::NotFound);
        assert_eq!(channel_fault(405, "RESOURCE_LOCKED").into_error().exit, Exit::Configuration);
        let closed =
            amiquip::Error::ServerClosedConnection { code: 320, message: "CONNECTION_FORCED".into() };
        assert_eq!(Fault::from(closed).kind, FaultKind::Lost);
        let vhost = amiquip::Error::ServerClosedConnection { code: 530, message: "NOT_ALLOWED".into() };
        assert_eq!(Fault::from(vhost).into_error().exit, Exit::Refused);
    }

    #[test]
    fn a_queue_that_cannot_be_used_now_is_not_taken_for_a_missing_one() {
        for words in [
            "home node 'rabbit@one' of durable queue 'q' in vhost '/' is down or inaccessible",
            "queue 'q' in vhost '/' process is stopped by supervisor",
            "queue 'q' in vhost '/' has crashed and failed to restart",
            "failed to perform operation on queue 'q' in vhost '/' due to timeout",
            "failed to perform operation on queue 'q' in vhost '/': its master replica <1.2.0> may be stopping or being \
             demoted",
        ] {
            let whole = format!("NOT_FOUND - {words}");
            // As RabbitMQ does where the queue's name is long.
            let cut = format!("{}...", &whole[..whole.find("q' in").unwrap()]);
            for text in [whole, cut] {
                let fault = channel_fault(404, &text);
                assert_eq!((fault.scope, fault.kind), (Scope::Channel, FaultKind::Lost), "{text}");
                assert_eq!(fault.into_error().exit, Exit::Unavailable);
            }
        }
        for missing in [
            "no queue 'q' in vhost '/'",
            "no queue 'is down or inaccessible' in vhost '/'",
            "no exchange 'queue ' in vhost '/'",
        ] {
            assert_eq!(
                channel_fault(404, &format!("NOT_FOUND - {missing}")).kind,
                FaultKind::NotFound,
                "{missing}"
            );
        }
    }

    #[test]
    fn what_refuses_the_connection_may_pass_and_a_missing_permission_does_not() {
        let login = Fault::from(amiquip::Error::InvalidCredentials).into_error();
        let permission = channel_fault(403, "ACCESS_REFUSED").into_error();
        assert_eq!((login.exit, permission.exit), (Exit::Refused, Exit::Refused));
        assert!(login.may_pass() && Fault::lost("gone").into_error().may_pass() && !permission.may_pass());
    }

    #[test]
    fn a_queue_that_differs_is_a_matter_of_configuration() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'hello' in vhost '/': received 'true' \
                    but current is 'false'";
        assert_eq!(channel_fault(406, text).kind, FaultKind::Configuration);
    }

    #[test]
    fn limits_are_told_from_refusals() {
        let closed = |message: &str| {
            Fault::from(amiquip::Error::ServerClosedConnection { code: 530, message: message.to_owned() })
                .kind
        };
        for full in [
            "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (0) is reached",
            "NOT_ALLOWED - connection refused for user 'guest': user connection limit (1) is reached",
        ] {
            assert_eq!(closed(full), FaultKind::NoRoom);
        }
        let channels = "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user \
                        limit of (1)";
        assert_eq!(closed(channels), FaultKind::Configuration);
        assert_eq!(closed("NOT_ALLOWED - vhost x not found"), FaultKind::Refused);
    }

    #[test]
    fn what_the_broker_closes_over_what_it_was_sent_is_told_from_an_outage() {
        let connection_fault =
            |code| Fault::from(amiquip::Error::ServerClosedConnection { code, message: "words".to_owned() });
        for code in [501, 502, 503, 505, 540] {
            assert_eq!(connection_fault(code).kind, FaultKind::Unacceptable, "{code}");
        }
        for code in [320, 402, 504, 541] {
            assert_eq!(connection_fault(code).kind, FaultKind::Lost, "{code}");
        }
        for (code, kind) in
            [(406, FaultKind::Unacceptable), (540, FaultKind::Unacceptable), (541, FaultKind::Lost)]
        {
            assert_eq!(channel_fault(code, "words").kind, kind, "{code}");
        }
    }

    #[test]
    fn a_vhost_that_takes_no_more_queues_is_a_matter_of_configuration() {
        let text = "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (1) is reached";
        assert_eq!(channel_fault(406, text).kind, FaultKind::Configuration);
    }

    #[test]
    fn the_missing_permission_is_named() {
        let queue = "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'u'";
        let lacking =
            |call: &str, message: &str| channel_fault(403, message).lacking_permission(call).to_string();
        assert!(lacking("queue.declare", queue).contains("\"configure\" for the queue"));
        let both = "\"configure\" or \"read\" (it needs both) for the queue";
        for delay in ["q.delay.5000", "q.delay.1.delay.5000", "q.delay.5000.2026-11-28"] {
            assert!(lacking("queue.declare", &queue.replace("'q'", &format!("'{delay}'"))).contains(both));
        }
        for other in ["q.delay.", "q.delay.x", "q.delay.5000.dead", "q.delay.5000.2026-11-28.dead", "q.delay"]
        {
            assert!(!lacking("queue.declare", &queue.replace("'q'", &format!("'{other}'"))).contains(both));
        }
        assert!(lacking("basic.consume", queue).contains("\"read\" for the queue"));
        let exchange = queue.replace("queue 'q'", "exchange 'amq.default'");
        assert!(lacking("basic.qos", &exchange).contains("\"write\" for amq.default"));
        assert!(!lacking("basic.qos", queue).contains("lacks"));
        let told = queue.replace("access", "read access").replace("'q'", "'q.delay.5000'");
        assert!(lacking("queue.declare", &told).contains("permission \"read\" for the queue"));
        assert!(lacking("basic.qos", &told).contains("permission \"read\" for the queue"));
        // Refused, and not for want of a permission.
        let exclusive = lacking("basic.consume", "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use");
        assert!(exclusive.starts_with("another consumer has the queue for itself alone"), "{exclusive}");
        let reserved = "ACCESS_REFUSED - queue name 'amq.q' contains reserved prefix 'amq.*'";
        assert!(!lacking("queue.declare", reserved).contains("lacks"));
        assert!(
            !channel_fault(404, "NOT_FOUND")
                .lacking_permission("queue.declare")
                .to_string()
                .contains("lacks")
        );
    }

    #[test]
    fn what_a_broker_says_cannot_drive_a_terminal() {
        assert!(!channel_fault(404, "\x1b[2J").to_string().contains('\x1b'));
    }
}
