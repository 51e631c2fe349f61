//! The queues: what they are for, their names, and how they are declared.

mod arguments;
mod ensure;
mod fitness;

use std::time::Duration;

use crate::calendar::Day;
use arguments::{Arguments, QUEUE_TYPE, Value};
pub(super) use ensure::declare_unseen;
pub use ensure::{ensure_queue, find_again, kind_of};

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
    Dead,
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
const MOST_DELIVERIES: i64 = i32::MAX as i64;

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
    /// without confirms, so that a broker which is killed in that moment loses it (RabbitMQ's documentation of dead letter
    /// exchanges: at-most-once from classic queues, at-least-once from quorum queues that ask for it).
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
        Self { name: format!("{}.dead", self.name), role: Role::Dead, ..self.clone() }
    }

    fn arguments(&self) -> Arguments {
        let mut arguments = Arguments::default();
        let mut set = |name: &str, value: Value| arguments.set(name, value);
        let millis =
            |duration: Duration| Value::Number(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX));
        if self.kind == QueueType::Quorum {
            set(QUEUE_TYPE, Value::text("quorum"));
        }
        if self.kind == QueueType::Quorum && self.role == Role::Dead {
            set("x-delivery-limit", Value::Number(MOST_DELIVERIES));
        }
        if let Role::Delay { after, back_to, of_a_day } = &self.role {
            set("x-message-ttl", millis(*after));
            set("x-dead-letter-exchange", Value::text(""));
            set("x-dead-letter-routing-key", Value::text(back_to));
            if self.kind == QueueType::Quorum {
                // It leaves this queue when the other one has confirmed it, and not before.
                set("x-dead-letter-strategy", Value::text("at-least-once"));
                set("x-overflow", Value::text("reject-publish"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    pub(super) fn spec() -> QueueSpec {
        QueueSpec { name: "q".to_owned(), role: Role::Tasks, kind: QueueType::Classic, declare: true }
    }

    #[test]
    fn a_classic_queue_has_no_arguments() {
        for spec in [spec(), spec().dead()] {
            assert_eq!(spec.arguments(), Arguments::default());
        }
        let quorum = QueueSpec { kind: QueueType::Quorum, ..spec() };
        assert_eq!(quorum.arguments().table().len(), 1);
        let limit = Value::Number(i64::from(i32::MAX));
        assert_eq!(quorum.dead().arguments().get("x-delivery-limit"), Some(&limit));
    }

    #[test]
    fn delays_that_people_make_up_are_rounded_up_and_those_of_the_back_off_list_are_not() {
        let today = Day::of(SystemTime::now());
        let milliseconds = |spec: QueueSpec| match spec.role {
            Role::Delay { after, .. } => after.as_millis(),
            Role::Tasks | Role::Dead => panic!("no delay"),
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
        assert_eq!(arguments.get("x-message-ttl"), Some(&Value::Number(1500)));
        assert_eq!(arguments.text("x-dead-letter-routing-key"), Some("q"));
        assert_eq!(arguments.text("x-dead-letter-strategy"), Some("at-least-once"));
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
            Some(Value::Number(expires)) => Duration::from_millis(u64::try_from(*expires).unwrap()),
            other => panic!("{other:?}"),
        };
        // The day, and what clocks differ by, until the last is sent; its delay; and a day in which it is taken.
        assert_eq!(expires(delay), Duration::from_hours(24 + 16 + 24) + delay);
        assert!(expires(MAX_DELAY) <= LONGEST_TIMER);
        assert_eq!(of(0).arguments().get("x-delivery-limit"), None);
    }
}
