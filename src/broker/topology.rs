//! The queue: how it is declared, and what happens when it is there already with other properties.

use std::time::Duration;

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions};

use super::channel::Channel;
use super::count::{get_and_give_back, look, look_if_allowed};
use super::fault::{Fault, Kind, differing_property};
use super::session::Session;

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
        /// The queue deletes itself some time after its last use: for the delays that people make up. The few of the
        /// back-off list are permanent.
        leased: bool,
    },
    /// Tasks that used up their attempts are kept in it for a person.
    Dead {
        /// As a quorum queue it is asked never to drop a task for having been looked at too often.
        patient: bool,
    },
}

/// How long a leased delay queue lives beyond its delay when nobody uses it. With it goes what is still in it: tasks
/// whose time has come, and which their queue has not taken since. The lease is renewed before each use, at most
/// [`RENEW_AFTER`] before.
const LEASE: Duration = Duration::from_hours(24);
/// Leased delays are rounded up to a multiple of this, those of up to [`SHORT_DELAY`] to the finer one: people make up
/// any number of milliseconds, and each would have a queue of its own until the lease ends. Well within the second that
/// a task may be late.
const GRAIN: Duration = Duration::from_millis(500);
const FINE_GRAIN: Duration = Duration::from_millis(100);
const SHORT_DELAY: Duration = Duration::from_secs(10);
/// How long a declaration is trusted. Well within the lease.
pub(super) const RENEW_AFTER: Duration = Duration::from_mins(1);
/// How often a message may be delivered that is only looked at. Each look counts, and RabbitMQ 4 drops a message after
/// 20 unless told otherwise. "No limit" can only be said to 4: to 3 a limit of -1 means that the first delivery is the
/// last.
const PATIENCE: i32 = i32::MAX;
/// RabbitMQ's timers count 32 bits of milliseconds.
const LONGEST_TIMER: Duration = Duration::from_millis(u32::MAX as u64);
/// The longest delay; some of its lease is left.
pub const MAX_DELAY: Duration = Duration::from_hours(24 * 49);

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
    /// Where this queue's tasks wait for `after`, and no longer than half a second more if `leased`. Always a quorum
    /// queue: a classic one hands over what has expired without confirms, so that a broker which is killed in that
    /// moment loses it (RABBITMQ.md, 13).
    #[must_use]
    pub fn delay(&self, after: Duration, leased: bool) -> Self {
        let after = if leased { rounded_up(after) } else { after };
        Self {
            name: format!("{}.delay.{}", self.name, after.as_millis()),
            role: Role::Delay { after, back_to: self.name.clone(), leased },
            kind: QueueType::Quorum,
            declare: self.declare,
        }
    }

    /// Where this queue's dead tasks are kept.
    #[must_use]
    pub fn dead(&self) -> Self {
        Self { name: format!("{}.dead", self.name), role: Role::Dead { patient: true }, ..self.clone() }
    }

    fn with_other_lease(&self) -> Self {
        let mut other = self.clone();
        if let Role::Delay { leased, .. } = &mut other.role {
            *leased = !*leased;
        }
        other
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
        if self.kind == QueueType::Quorum
            && matches!(self.role, Role::Dead { patient: true } | Role::Delay { leased: true, .. })
        {
            set("x-delivery-limit", AmqpValue::LongInt(PATIENCE));
        }
        if let Role::Delay { after, back_to, leased } = &self.role {
            set("x-message-ttl", millis(*after));
            set("x-dead-letter-exchange", text(""));
            set("x-dead-letter-routing-key", text(back_to));
            if self.kind == QueueType::Quorum {
                // It leaves this queue when the other one has confirmed it, and not before.
                set("x-dead-letter-strategy", text("at-least-once"));
                set("x-overflow", text("reject-publish"));
            }
            if *leased {
                set("x-expires", millis((*after + LEASE).min(LONGEST_TIMER)));
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
    /// It is leased and was declared as permanent, or the other way round: declare it as what it is.
    OtherLease,
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
        (Some("x-expires" | "x-delivery-limit"), Role::Delay { .. }) => Mismatch::OtherLease,
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
/// declaration closes its channel, so each try has one of its own. A queue that is not to be declared, and that the user
/// may not look at either, is taken to be there.
///
/// # Errors
/// Configuration: the queue is unfit, or missing and not to be declared. Refused: the broker does not allow it.
/// Or the loss of the connection.
pub fn ensure_queue(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    if !spec.declare {
        return look_if_allowed(session, &spec.name);
    }
    let mut as_it_is = spec.clone();
    let mut fault = match acquire(session, &as_it_is) {
        Ok(channel) => return Ok(channel),
        Err(fault) => fault,
    };
    // Each variation is tried once: the kind, and the lease or the patience.
    for _ in 0..2 {
        if fault.kind != Kind::Configuration {
            break;
        }
        match judge_mismatch(&spec.role, &fault.to_string()) {
            Mismatch::OtherLease => as_it_is = as_it_is.with_other_lease(),
            Mismatch::Classic => as_it_is.kind = QueueType::Classic,
            Mismatch::Impatient => as_it_is.role = Role::Dead { patient: false },
            Mismatch::Unsafe(_) | Mismatch::Harmless => break,
        }
        fault = match acquire(session, &as_it_is) {
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

/// Declares the queue and, where it is leased, renews that. A declaration does not renew the lease of a quorum queue;
/// to get a message does, whether there is one or not, and it goes back to its place.
fn acquire(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    let channel = declare(session, spec)?;
    if matches!(spec.role, Role::Delay { leased: true, .. }) {
        get_and_give_back(&channel, &spec.name)?;
    }
    Ok(channel)
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
        let delay = spec().delay(Duration::from_secs(5), false).role;
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
        assert_eq!(judge(&delay, "x-expires"), Mismatch::OtherLease);
        assert_eq!(judge(&delay, "x-delivery-limit"), Mismatch::OtherLease);
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
        let milliseconds = |asked, leased| match spec().delay(Duration::from_millis(asked), leased).role {
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
            assert_eq!(milliseconds(asked, true), waited);
            assert_eq!(milliseconds(asked, false), u128::from(asked));
        }
        assert_eq!(rounded_up(MAX_DELAY), MAX_DELAY);
    }

    #[test]
    fn a_delay_queue_leads_back_after_its_time() {
        let ladder = spec().delay(Duration::from_millis(1500), false);
        assert_eq!(ladder.name, "q.delay.1500");
        let arguments = ladder.arguments();
        assert_eq!(arguments.get("x-message-ttl"), Some(&AmqpValue::LongLongInt(1500)));
        assert_eq!(arguments.get("x-dead-letter-routing-key"), Some(&AmqpValue::LongString("q".to_owned())));
        let at_least_once = AmqpValue::LongString("at-least-once".to_owned());
        assert_eq!(arguments.get("x-dead-letter-strategy"), Some(&at_least_once));
        assert_eq!((arguments.get("x-expires"), arguments.get("x-delivery-limit")), (None, None));
        let leased = ladder.with_other_lease();
        assert_eq!(leased.arguments().get("x-expires"), Some(&AmqpValue::LongLongInt(86_401_500)));
        assert_eq!(leased.arguments().get("x-delivery-limit"), Some(&AmqpValue::LongInt(i32::MAX)));
        let longest = spec().delay(MAX_DELAY, true).arguments();
        let Some(AmqpValue::LongLongInt(expires)) = longest.get("x-expires") else { panic!("no lease") };
        assert!(*expires <= i64::from(u32::MAX));
    }
}
