//! The queue: how it is declared, and what happens when it is there already with other properties.

mod day;

use std::time::Duration;

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};

use super::channel::Channel;
use super::count::look;
use super::fault::{Fault, Kind, differing_property};
use super::session::Session;
pub use day::Day;

/// The kind of queue to declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// No arguments: the queue that RabbitMQ's tutorials declare.
    Classic,
    /// Replicated (`x-queue-type=quorum`).
    Quorum,
}

/// What a queue is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Tasks wait for a worker in it.
    Tasks,
    /// Tasks wait in it for their time, and then go to the queue they belong to. One fixed time for all, because
    /// only the head of a queue expires.
    Delay {
        /// How long, in whole milliseconds.
        after: Duration,
        /// Where they go then.
        back_to: String,
        /// The queue is for what is sent on one day, and deletes itself when all of that is due: for the delays that
        /// people make up. The few of the back-off list are permanent.
        of_a_day: bool,
    },
    /// Tasks that used up their attempts are kept in it for a person.
    Dead {
        /// As a quorum queue it is asked never to drop a task for having been looked at too often.
        patient: bool,
    },
}

/// How long a delay queue of a day takes tasks, from its first declaration on.
const DAY: Duration = Duration::from_hours(24);
/// The clocks of those who use it may differ by so much. A queue that deletes itself cannot be kept from that: to declare
/// a quorum queue or to publish to it does not count as a use of it, and to get a message counts as a delivery of it,
/// which a delivery limit may forbid.
const CLOCKS_DIFFER: Duration = Duration::from_hours(16);
/// How long a delay queue of a day keeps tasks whose time has come, and which their queue has not taken since.
const KEPT: Duration = Duration::from_hours(24);
/// RabbitMQ's timers count 32 bits of milliseconds: 49 days and 17 hours.
const LONGEST_TIMER: Duration = Duration::from_millis(u32::MAX as u64);
/// The longest delay: all of the above, together with it, fit one timer.
pub const MAX_DELAY: Duration = Duration::from_hours(24 * 47);
const _: () = assert!(
    MAX_DELAY.as_millis() + DAY.as_millis() + CLOCKS_DIFFER.as_millis() + KEPT.as_millis()
        <= LONGEST_TIMER.as_millis()
);
/// Delays that people make up are rounded up to a multiple of this, those of up to [`SHORT_DELAY`] to the finer one: any
/// number of milliseconds would have a queue of its own. Well within the second that a task may be late.
const GRAIN: Duration = Duration::from_millis(500);
const FINE_GRAIN: Duration = Duration::from_millis(100);
const SHORT_DELAY: Duration = Duration::from_secs(10);
/// How long a declaration is trusted.
pub(super) const TRUSTED_FOR: Duration = Duration::from_mins(1);
/// How often a message may be delivered that is only looked at. Each look counts, and RabbitMQ 4 drops a message after
/// 20 unless told otherwise. "No limit" can only be said to 4: to 3 a limit of -1 means that the first delivery is the
/// last.
const PATIENCE: i32 = i32::MAX;

/// One queue and how to come by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// At most 255 bytes.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// What to declare.
    pub kind: QueueType,
    /// `false`: use the queue as it is, and only if it is there.
    pub declare: bool,
}

impl QueueSpec {
    /// Where this queue's failed tasks wait for `after`. Always a quorum queue: a classic one hands over what has expired
    /// without confirms, so that a broker which is killed in that moment loses it (RABBITMQ.md, 13).
    #[must_use]
    pub fn delay(&self, after: Duration) -> Self {
        Self {
            name: format!("{}.delay.{}", self.name, after.as_millis()),
            role: Role::Delay { after, back_to: self.name.clone(), of_a_day: false },
            kind: QueueType::Quorum,
            declare: self.declare,
        }
    }

    /// Where tasks wait for `after` that are sent to this queue on this day, and no longer than half a second more.
    #[must_use]
    pub fn delay_of(&self, day: Day, after: Duration) -> Self {
        let after = rounded_up(after);
        let permanent = self.delay(after);
        Self {
            name: format!("{}.{day}", permanent.name),
            role: Role::Delay { after, back_to: self.name.clone(), of_a_day: true },
            ..permanent
        }
    }

    /// Where this queue's dead tasks are kept.
    #[must_use]
    pub fn dead(&self) -> Self {
        Self { name: format!("{}.dead", self.name), role: Role::Dead { patient: true }, ..self.clone() }
    }

    fn options(&self) -> QueueDeclareOptions {
        QueueDeclareOptions { durable: true, arguments: self.arguments(), ..QueueDeclareOptions::default() }
    }

    fn arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::new();
        let mut set = |name: &str, value: AmqpValue| {
            arguments.insert(name.to_owned(), value);
        };
        let text = |text: &str| AmqpValue::LongString(text.to_owned());
        let millis = |duration: Duration| {
            AmqpValue::LongLongInt(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
        };
        if self.kind == QueueType::Quorum {
            set("x-queue-type", text("quorum"));
        }
        if self.kind == QueueType::Quorum && matches!(self.role, Role::Dead { patient: true }) {
            set("x-delivery-limit", AmqpValue::LongInt(PATIENCE));
        }
        if let Role::Delay { after, back_to, of_a_day } = &self.role {
            set("x-message-ttl", millis(*after));
            set("x-dead-letter-exchange", text(""));
            set("x-dead-letter-routing-key", text(back_to));
            if self.kind == QueueType::Quorum {
                // It leaves this queue when the other one has confirmed it, and not before.
                set("x-dead-letter-strategy", text("at-least-once"));
                set("x-overflow", text("reject-publish"));
            }
            if *of_a_day {
                set("x-expires", millis(*after + DAY + CLOCKS_DIFFER + KEPT));
            }
        }
        arguments
    }
}

/// As little longer as gives few different delays.
fn rounded_up(delay: Duration) -> Duration {
    let grain = if delay <= SHORT_DELAY { FINE_GRAIN } else { GRAIN };
    let grains = delay.as_nanos().div_ceil(grain.as_nanos());
    grain.saturating_mul(u32::try_from(grains).unwrap_or(u32::MAX))
}

/// What to do about a queue that exists with other properties than asked for, from the broker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mismatch {
    /// It would lose tasks: refuse.
    Unsafe(&'static str),
    /// It is a classic queue and was declared as a quorum queue, or the broker is too old for quorum queues that let
    /// messages expire (RabbitMQ 3.10 has them): declare it as a classic one, so that the rest is compared as well.
    Classic,
    /// It counts deliveries, and was declared without [`PATIENCE`]: declare it so, for the same reason.
    Impatient,
    /// It works all the same: use it as it is.
    Harmless,
}

fn judge_mismatch(role: &Role, message: &str) -> Mismatch {
    match (differing_property(message), role) {
        (Some("durable"), _) => {
            Mismatch::Unsafe("it is not durable: its tasks would not survive a restart of the broker")
        }
        (Some("auto_delete"), _) => {
            Mismatch::Unsafe("it deletes itself, with its tasks, when its last consumer goes (auto-delete)")
        }
        (Some("exclusive"), _) => Mismatch::Unsafe("it belongs to another connection alone (exclusive)"),
        (Some("x-expires"), Role::Delay { .. }) => {
            Mismatch::Unsafe("it deletes itself, and does it at another time than it should (x-expires)")
        }
        (Some("x-queue-type"), Role::Delay { .. } | Role::Dead { .. }) => Mismatch::Classic,
        (Some("x-delivery-limit"), Role::Dead { .. }) => Mismatch::Impatient,
        (None, Role::Delay { .. }) if message.contains("invalid arg '") => Mismatch::Classic,
        (
            Some("x-message-ttl" | "x-dead-letter-exchange" | "x-dead-letter-routing-key"),
            Role::Delay { .. },
        ) => Mismatch::Unsafe("its tasks would not come back, or not at their time"),
        (Some("x-expires" | "x-message-ttl"), Role::Dead { .. }) => {
            Mismatch::Unsafe("it drops what it keeps after a time")
        }
        _ => Mismatch::Harmless,
    }
}

/// Makes sure that the queue is there and fit for use, and returns the channel on which it was seen. A failed
/// declaration closes its channel, so each try has one of its own.
///
/// # Errors
/// Configuration: the queue is unfit, or missing and not to be declared. Refused: the broker does not allow it.
/// Or the loss of the connection.
pub fn ensure_queue(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    if !spec.declare {
        return look(session, &spec.name).map(|(channel, _)| channel);
    }
    let mut as_it_is = spec.clone();
    let mut fault = match declare(session, &as_it_is) {
        Ok(channel) => return Ok(channel),
        Err(fault) => fault,
    };
    // Each variation is tried once: the kind, and the patience.
    for _ in 0..2 {
        if fault.kind != Kind::Configuration {
            break;
        }
        match judge_mismatch(&spec.role, &fault.to_string()) {
            Mismatch::Classic => as_it_is.kind = QueueType::Classic,
            Mismatch::Impatient => as_it_is.role = Role::Dead { patient: false },
            Mismatch::Unsafe(_) | Mismatch::Harmless => break,
        }
        fault = match declare(session, &as_it_is) {
            Ok(channel) => {
                log::info!("the queue {} is used as it is ({fault})", spec.name);
                return Ok(channel);
            }
            Err(fault) => fault,
        };
    }
    settle_mismatch(session, spec, fault)
}

/// What a refused declaration comes to when no variation of it helped.
fn settle_mismatch(session: &mut Session, spec: &QueueSpec, fault: Fault) -> Result<Channel, Fault> {
    match (fault.kind, judge_mismatch(&spec.role, &fault.to_string())) {
        // Which day's queue that is, nobody else can know before.
        (Kind::Refused, _) if matches!(spec.role, Role::Delay { of_a_day: true, .. }) => {
            Err(fault.because_also(&format!("the queue {} cannot be declared", spec.name)))
        }
        (Kind::Refused, _) => Err(fault.because_also(&format!(
            "the queue {} cannot be declared; with --no-declare it is used as it is, without the configure permission",
            spec.name
        ))),
        (Kind::Configuration, Mismatch::Unsafe(why)) => Err(Fault::channel(
            Kind::Configuration,
            format!(
                "the queue {0} cannot hold tasks safely: {why}. Delete it (rabbitmqctl delete_queue {0}) or choose \
                 another with --queue",
                spec.name
            ),
        )),
        (Kind::Configuration, _) => {
            let (channel, _) = look(session, &spec.name)?;
            log::info!("the queue {} exists with other settings and is used as it is ({fault})", spec.name);
            Ok(channel)
        }
        _ => Err(fault),
    }
}

fn declare(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    let channel = session.open_channel()?;
    channel.call("queue.declare", |amqp| amqp.queue_declare(spec.name.as_str(), spec.options()).map(drop))?;
    Ok(channel)
}

/// Declares the queue without waiting for the answer: a refusal closes the channel, before anything sent after it is
/// looked at.
///
/// # Errors
/// The loss of the connection.
pub(super) fn declare_unseen(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    let channel = session.open_channel()?;
    channel.call("queue.declare", |amqp| {
        amqp.queue_declare_nowait(spec.name.as_str(), spec.options()).map(drop)
    })?;
    Ok(channel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn message(property: &str) -> String {
        format!(
            "PRECONDITION_FAILED - inequivalent arg '{property}' for queue 'q' in vhost '/': received 'x' but current \
             is 'y'"
        )
    }

    fn spec() -> QueueSpec {
        QueueSpec { name: "q".to_owned(), role: Role::Tasks, kind: QueueType::Classic, declare: true }
    }

    #[test]
    fn only_what_would_lose_tasks_is_refused() {
        let judge = |role: &Role, property: &str| judge_mismatch(role, &message(property));
        let delay = spec().delay(Duration::from_secs(5)).role;
        let dead = spec().dead().role;
        for role in [&Role::Tasks, &dead, &delay] {
            for property in ["durable", "auto_delete", "exclusive"] {
                assert!(matches!(judge(role, property), Mismatch::Unsafe(_)), "{property}");
            }
        }
        assert_eq!(judge(&Role::Tasks, "x-queue-type"), Mismatch::Harmless);
        assert_eq!(judge(&delay, "x-queue-type"), Mismatch::Classic);
        assert_eq!(judge(&dead, "x-queue-type"), Mismatch::Classic);
        assert_eq!(judge(&dead, "x-delivery-limit"), Mismatch::Impatient);
        for property in ["x-max-priority", "x-message-ttl", "x-dead-letter-exchange", "x-expires"] {
            assert_eq!(judge(&Role::Tasks, property), Mismatch::Harmless, "{property}");
        }
        assert!(matches!(judge(&dead, "x-message-ttl"), Mismatch::Unsafe(_)));
        assert!(matches!(judge(&delay, "x-dead-letter-exchange"), Mismatch::Unsafe(_)));
        assert!(matches!(judge(&delay, "x-expires"), Mismatch::Unsafe(_)));
        assert_eq!(judge(&delay, "x-delivery-limit"), Mismatch::Harmless);
        let too_old = "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/' of queue type \
                       rabbit_quorum_queue";
        assert_eq!(judge_mismatch(&delay, too_old), Mismatch::Classic);
        assert_eq!(judge_mismatch(&Role::Tasks, "PRECONDITION_FAILED - something new"), Mismatch::Harmless);
    }

    #[test]
    fn a_classic_queue_has_no_arguments() {
        assert!(spec().arguments().is_empty() && spec().dead().arguments().is_empty());
        let quorum = QueueSpec { kind: QueueType::Quorum, ..spec() };
        assert_eq!(quorum.arguments().len(), 1);
        assert_eq!(quorum.dead().arguments().get("x-delivery-limit"), Some(&AmqpValue::LongInt(i32::MAX)));
    }

    #[test]
    fn delays_that_people_make_up_are_rounded_up_and_those_of_the_back_off_list_are_not() {
        let today = Day::of(SystemTime::now());
        let milliseconds = |spec: QueueSpec| match spec.role {
            Role::Delay { after, .. } => after.as_millis(),
            Role::Tasks | Role::Dead { .. } => panic!("no delay"),
        };
        for (asked, waited) in [
            (1, 100),
            (100, 100),
            (101, 200),
            (1500, 1500),
            (9_901, 10_000),
            (10_000, 10_000),
            (10_001, 10_500),
            (3_600_000, 3_600_000),
            (3_600_999, 3_601_000),
        ] {
            let delay = Duration::from_millis(asked);
            assert_eq!(milliseconds(spec().delay_of(today, delay)), waited);
            assert_eq!(milliseconds(spec().delay(delay)), u128::from(asked));
        }
        assert_eq!(rounded_up(MAX_DELAY), MAX_DELAY);
    }

    #[test]
    fn a_delay_queue_leads_back_after_its_time() {
        let ladder = spec().delay(Duration::from_millis(1500));
        assert_eq!(ladder.name, "q.delay.1500");
        let arguments = ladder.arguments();
        assert_eq!(arguments.get("x-message-ttl"), Some(&AmqpValue::LongLongInt(1500)));
        assert_eq!(arguments.get("x-dead-letter-routing-key"), Some(&AmqpValue::LongString("q".to_owned())));
        let at_least_once = AmqpValue::LongString("at-least-once".to_owned());
        assert_eq!(arguments.get("x-dead-letter-strategy"), Some(&at_least_once));
        assert_eq!((arguments.get("x-expires"), arguments.get("x-delivery-limit")), (None, None));
    }

    #[test]
    fn a_delay_queue_of_a_day_outlives_all_that_is_sent_on_it() {
        let day = |hours| Day::of(SystemTime::UNIX_EPOCH + Duration::from_hours(hours));
        let delay = Duration::from_mins(10);
        let of = |hours| spec().delay_of(day(hours), delay);
        assert_eq!(of(0).name, "q.delay.600000.1970-01-01");
        assert_eq!(of(0), of(23));
        assert_eq!(of(24).name, "q.delay.600000.1970-01-02");
        let expires = |delay| match spec().delay_of(day(0), delay).arguments().get("x-expires") {
            Some(AmqpValue::LongLongInt(expires)) => Duration::from_millis(u64::try_from(*expires).unwrap()),
            other => panic!("{other:?}"),
        };
        // The day, and what clocks differ by, until the last is sent; its delay; and a day in which it is taken.
        assert_eq!(expires(delay), Duration::from_hours(24 + 16 + 24) + delay);
        assert!(expires(MAX_DELAY) <= LONGEST_TIMER);
        assert_eq!(of(0).arguments().get("x-delivery-limit"), None);
    }
}
