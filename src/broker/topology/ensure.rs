//! Making sure that a queue is there and fit, whoever declared it and how.
//!
//! The broker tells what a queue is only by refusing to declare it otherwise, one difference at a time. So it is declared
//! again with what was told, until the broker agrees: then everything about it is known, as far as it was declared. AMQP
//! does not tell of policies.

use std::collections::BTreeSet;
use std::sync::Mutex;

use amiquip::QueueDeclareOptions;

use super::super::channel::Channel;
use super::super::count::{look, look_if_allowed};
use super::super::fault::{Fault, FaultKind, Scope};
use super::super::session::{ConnectionPurpose, Session};
use super::arguments::{Arguments, Difference, QUEUE_TYPE, Value};
use super::fitness::{FIT_TYPES, objection, objection_to_property};
use super::{QueueSpec, QueueType, Role};
use crate::lock::lock;

/// How many differences are looked at, far more than there are arguments that the broker compares.
const MAX_DIFFERENCES: usize = 32;
/// An argument that the broker compares on streams alone, and a value that nobody has given one.
const OF_STREAMS: (&str, &str) = ("x-max-age", "9999Y");
/// There is no such type: a queue that is there tells its own, and one that is missing stays so.
const NO_TYPE: &str = "taskq-asks-for-the-type";

/// Differences that are remembered as told: far more than a worker has queues.
const MAX_TOLD: usize = 1000;

/// A queue that is there.
pub struct Found {
    /// The channel on which it was seen.
    pub channel: Channel,
    /// What it is; `None` where nobody told.
    pub kind: Option<QueueType>,
}

/// What came of one declaration.
enum Answer {
    /// The queue is there, just so.
    Agreed(Channel),
    /// It is there, and this is different.
    Differs(Difference),
    /// It is there, and what is different is not to be understood.
    Unclear(Fault),
}

/// Makes sure that the queue is there and fit for use. A queue that is not to be declared, and that the user may not look
/// at either, is taken to be there.
///
/// # Errors
/// Configuration: the queue is unfit, or missing and not to be declared. Refused: the broker does not allow it.
/// Or the loss of the connection.
pub fn ensure_queue(session: &mut Session, spec: &QueueSpec) -> Result<Found, Fault> {
    if !spec.declare {
        return look_if_allowed(session, &spec.name).map(|channel| Found { channel, kind: None });
    }
    let mut wanted = spec.arguments();
    let mut found = wanted.clone();
    // With what the queue was declared is no news.
    let mut is_ours = false;
    let mut tried = Vec::new();
    let mut unclear = None;
    let mut channel = None;
    for _ in 0..MAX_DIFFERENCES {
        match ask(session, channel.take(), spec, &found)? {
            Answer::Agreed(on) => {
                channel = Some(on);
                if found.get(QUEUE_TYPE).is_some() {
                    break;
                }
                // It may be of any type, if that is the default of its vhost.
                is_ours |= found == wanted;
                found.set(QUEUE_TYPE, Value::text("classic"));
            }
            Answer::Differs(difference) => {
                if let Some(why) = objection_to_property(&difference.name) {
                    return Err(unfit(spec, why));
                }
                if !learn(&mut found, difference, &mut tried) {
                    break;
                }
            }
            Answer::Unclear(fault) if is_without_quorum_ttl(spec, &found, &fault) => {
                wanted = QueueSpec { kind: QueueType::Classic, ..spec.clone() }.arguments();
                found = wanted.clone();
            }
            Answer::Unclear(fault) => {
                unclear = Some(fault);
                break;
            }
        }
    }
    if let Some(why) = objection(&spec.role, &wanted, &found) {
        return Err(unfit(spec, why));
    }
    let channel = match channel {
        Some(channel) => channel,
        None => match look(session, &spec.name) {
            Ok((channel, _)) => channel,
            Err(missing) => {
                // Then it is no other queue that was in the way.
                let refusal = unclear.filter(|_| missing.kind == FaultKind::NotFound);
                let explained =
                    |fault: Fault| fault.because_also(&format!("the queue {} cannot be declared", spec.name));
                return Err(refusal.map_or(missing, explained));
            }
        },
    };
    if let Some(fault) = unclear {
        let name = &spec.name;
        tell(session, format!("the queue {name} exists with other settings and is used as it is ({fault})"));
    } else if !is_ours && found != wanted {
        tell(session, format!("the queue {} is used as it is ({})", spec.name, wanted.changes(&found)));
    }
    Ok(Found { channel, kind: kind(&found) })
}

/// Whoever works on a queue reads once that it is not as taskq would declare it; whoever sends, at each send, does not.
fn tell(session: &Session, difference: String) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = lock(&TOLD);
    if session.purpose() == ConnectionPurpose::Publish || told.contains(&difference) {
        log::debug!("{difference}");
    } else {
        log::info!("{difference}");
        if told.len() >= MAX_TOLD {
            told.clear();
        }
        told.insert(difference);
    }
}

/// As [`ensure_queue`], of a queue that was there before; whether it was gone, with what was in it.
pub fn find_again(session: &mut Session, spec: &QueueSpec) -> Result<bool, Fault> {
    let gone = match look(session, &spec.name) {
        Err(fault) if fault.kind == FaultKind::NotFound && spec.declare => true,
        // Whoever may not look cannot miss it. Its use tells.
        Err(fault) if fault.scope == Scope::Channel && fault.kind == FaultKind::Refused => false,
        looked => looked.map(|_| false)?,
    };
    ensure_queue(session, spec)?;
    Ok(gone)
}

/// The kind of a queue, whatever it is for, without declaring it; `None` where this user may not ask, or where the broker
/// does not say.
///
/// # Errors
/// Configuration: it is a stream. The queue is missing, or the connection is lost.
pub fn kind_of(session: &mut Session, name: &str) -> Result<Option<QueueType>, Fault> {
    let spec =
        QueueSpec { name: name.to_owned(), role: Role::Tasks, kind: QueueType::Classic, declare: false };
    let mut found = Arguments::default();
    found.set(QUEUE_TYPE, Value::text(NO_TYPE));
    for _ in 0..MAX_DIFFERENCES {
        let difference = match ask(session, None, &spec, &found) {
            Ok(Answer::Differs(difference)) => difference,
            // It is missing, and the broker does not know this type.
            Ok(Answer::Unclear(_)) => return look(session, name).map(|_| None),
            Ok(Answer::Agreed(_)) => return Ok(None),
            Err(fault) if fault.kind == FaultKind::Refused => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let is_the_type = difference.name == QUEUE_TYPE;
        if objection_to_property(&difference.name).is_some() || difference.current == Some(Value::Unknown) {
            return Ok(None);
        }
        found.learn(&difference);
        if is_the_type {
            // Only what it is counts here, not what else it was declared with.
            let mut its_type = Arguments::default();
            its_type.learn(&difference);
            return match objection(&spec.role, &its_type, &its_type) {
                Some(why) => Err(unfit(&spec, why)),
                None => Ok(kind(&its_type)),
            };
        }
    }
    Ok(None)
}

/// Declares the queue without waiting for the answer: a refusal closes the channel, before anything sent after it is
/// looked at.
pub(in crate::broker) fn declare_unseen(session: &mut Session, spec: &QueueSpec) -> Result<Channel, Fault> {
    let channel = session.open_channel()?;
    let declare = |arguments: &Arguments| {
        channel.call("queue.declare", |amqp| {
            amqp.queue_declare_nowait(spec.name.as_str(), durable(arguments)).map(drop)
        })
    };
    let mut arguments = spec.arguments();
    declare(&arguments)?;
    if arguments.get(QUEUE_TYPE).is_none() {
        // Where streams are the default of the vhost, the queue may be one.
        let (name, value) = OF_STREAMS;
        arguments.set(name, Value::text(value));
        declare(&arguments)?;
    }
    Ok(channel)
}

/// On this channel, or another one: a failed declaration closes its own.
fn ask(
    session: &mut Session,
    channel: Option<Channel>,
    spec: &QueueSpec,
    arguments: &Arguments,
) -> Result<Answer, Fault> {
    let channel = channel.map_or_else(|| session.open_channel(), Ok)?;
    let declared = channel
        .call("queue.declare", |amqp| amqp.queue_declare(spec.name.as_str(), durable(arguments)).map(drop));
    let fault = match declared {
        Ok(()) => return Ok(Answer::Agreed(channel)),
        Err(fault) => fault,
    };
    match fault.kind {
        FaultKind::Configuration => Ok(match Difference::told(&fault.to_string(), arguments) {
            Some(difference) => Answer::Differs(difference),
            None => Answer::Unclear(fault),
        }),
        // Which day's queue that is, nobody else can know before.
        FaultKind::Refused if matches!(spec.role, Role::Delay { of_a_day: true, .. }) => {
            Err(fault.because_also(&format!("the queue {} cannot be declared", spec.name)))
        }
        FaultKind::Refused => Err(fault.because_also(&format!(
            "the queue {} cannot be declared; with --no-declare it is used as it is, without the configure permission",
            spec.name
        ))),
        _ => Err(fault),
    }
}

/// Notes what is different; whether there is something else to declare after that. `tried` are the types that were tried
/// where the broker did not spell out the right one.
fn learn(found: &mut Arguments, difference: Difference, tried: &mut Vec<String>) -> bool {
    let is_told = difference.current != Some(Value::Unknown);
    if difference.name == QUEUE_TYPE && !is_told {
        tried.extend(found.text(QUEUE_TYPE).map(str::to_owned));
        if let Some(other) = FIT_TYPES.iter().find(|other| !tried.iter().any(|tried| tried == *other)) {
            found.set(QUEUE_TYPE, Value::text(other));
            return true;
        }
    }
    // The same again: what was declared instead is not what the broker meant.
    let again = found.get(&difference.name) == difference.current.as_ref();
    found.learn(&if again { Difference { current: Some(Value::Unknown), ..difference } } else { difference });
    is_told && !again
}

/// RabbitMQ before 3.10 has no quorum queues that let messages expire.
fn is_without_quorum_ttl(spec: &QueueSpec, found: &Arguments, fault: &Fault) -> bool {
    matches!(spec.role, Role::Delay { .. })
        && found.text(QUEUE_TYPE) == Some("quorum")
        && fault.to_string().contains("invalid arg '")
}

fn kind(found: &Arguments) -> Option<QueueType> {
    match found.text(QUEUE_TYPE)? {
        "classic" => Some(QueueType::Classic),
        "quorum" => Some(QueueType::Quorum),
        _ => None,
    }
}

fn unfit(spec: &QueueSpec, why: &str) -> Fault {
    Fault::channel(
        FaultKind::Configuration,
        format!(
            "the queue {0} cannot hold tasks safely: {why}. Delete it (rabbitmqctl delete_queue {0}) or choose another \
             with --queue",
            spec.name
        ),
    )
}

fn durable(arguments: &Arguments) -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, arguments: arguments.table(), ..QueueDeclareOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_the_broker_does_not_spell_out_is_found_by_trying() {
        let cut = || Difference { name: QUEUE_TYPE.to_owned(), current: Some(Value::Unknown) };
        for declared in [None, Some("classic"), Some("quorum")] {
            let (mut found, mut tried, mut seen) = (Arguments::default(), Vec::new(), Vec::new());
            if let Some(kind) = declared {
                found.set(QUEUE_TYPE, Value::text(kind));
            }
            seen.extend(kind(&found));
            while learn(&mut found, cut(), &mut tried) {
                seen.extend(kind(&found));
            }
            assert!(seen.len() == 2 && seen[0] != seen[1], "{declared:?}: {seen:?}");
            // And it is none of them.
            assert_eq!(found.get(QUEUE_TYPE), Some(&Value::Unknown));
        }
    }

    #[test]
    fn what_is_told_twice_was_not_understood() {
        let mut found = Arguments::default();
        let told = || Difference { name: "x-a".to_owned(), current: Some(Value::Number(1)) };
        assert!(learn(&mut found, told(), &mut Vec::new()));
        assert!(!learn(&mut found, told(), &mut Vec::new()));
        assert_eq!(found.get("x-a"), Some(&Value::Unknown));
    }
}
