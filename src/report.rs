//! Renders what happens as lines for people.

mod acknowledgement;
mod facts;
mod subject;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod testing;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::IsTerminal;
use std::sync::OnceLock;

use log::{Level, Record};

use crate::broker::CopyForm;
use crate::duration;
use crate::events::{Event, Subject, WhoWaits};
use crate::output::{RECOVERY, counted, foreign};
use crate::settlement::{Death, Uncounted};
use facts::Facts;
use subject::Tail;

/// Says what happened. Never waits for whoever reads it: the lines are written by a thread of their own.
pub fn tell(event: &Event<'_>) {
    // What comes with each task can be filtered apart (`RUST_LOG=info,taskq::task=warn`).
    let target = match event {
        Event::Received { .. } | Event::Done { .. } => "taskq::task",
        Event::ConnectedAgain { .. } | Event::PublishingAccepted { .. } => RECOVERY,
        _ => "taskq",
    };
    let (level, facts) = (level(event), Facts { event, queue: QUEUE.get().map(String::as_str) });
    if level <= log::STATIC_MAX_LEVEL && level <= log::max_level() {
        let mut record = Record::builder();
        record.level(level).target(target).key_values(&facts);
        log::logger().log(&record.args(format_args!("{}", Text(event))).build());
    }
}

/// What this process works on, or sends to: every event from now on names it.
pub fn about(queue: &str) {
    let _ = QUEUE.set(queue.to_owned());
}

static QUEUE: OnceLock<String> = OnceLock::new();

fn level(event: &Event<'_>) -> Level {
    match event {
        Event::Received { .. }
        | Event::Done { .. }
        | Event::FailedHereBefore { .. }
        | Event::FinishedHereBefore { .. }
        | Event::RunsHereAlready { .. }
        | Event::Waiting
        | Event::Connected { .. }
        | Event::ConnectedAgain { .. }
        | Event::PublishingAccepted { .. }
        | Event::FinishingCopies { .. }
        | Event::Stopping { .. } => Level::Info,
        Event::Failed { .. } => Level::Error,
        _ => Level::Warn,
    }
}

/// One line.
struct Text<'e>(&'e Event<'e>);

impl fmt::Display for Text<'_> {
    #[allow(clippy::too_many_lines)] // One line for each event.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Received { task } => write!(f, "Received a message: {} {}", task.body, Tail(task)),
            Event::Done { task } => write!(f, "Done {}", Tail(task)),
            Event::Retried { task, attempts, exit, delay } => write!(
                f,
                "attempt {} of {attempts} failed ({}); the next one is in {}: {} {}",
                task.attempt,
                foreign(exit),
                duration::show(*delay),
                task.body,
                Tail(task)
            ),
            Event::Dead { task, death, queue } => dead(f, task, death, queue),
            Event::FailedHereBefore { id } => {
                let id = foreign(id);
                write!(f, "task {id} failed here before: its copy is tried again, without running it")
            }
            Event::FinishedHereBefore { id } => write!(
                f,
                "task {} was finished here before its connection was lost: acknowledged without running again",
                foreign(id)
            ),
            Event::RunsHereAlready { id } => {
                write!(f, "task {} came back while it is still running here: waiting for it", foreign(id))
            }
            Event::RunsUncounted { task, why } => {
                runs_uncounted(f, why)?;
                write!(f, " {}", Tail(task))
            }
            Event::TooLargeToCopy { task, queue, length, limit, hold_limit } => write!(
                f,
                "the task cannot be copied to {queue}: {}; it stays in the queue, and comes again in {} or when this \
                 worker ends {}",
                over_limit(*length, *limit),
                duration::show(*hold_limit),
                Tail(task)
            ),
            Event::WithoutCopies { count } => {
                let tasks =
                    counted(*count, "task whose copy is not kept goes", "tasks whose copies are not kept go");
                write!(f, "{tasks} back to the queue")
            }
            Event::LastReturns { queue, count } => f.write_str(&last_returns(queue, *count)),
            Event::CommandMissing { why } => write!(
                f,
                "{why}; the task goes back to the queue once, and if the next one ends like that as well, the worker \
                 stops"
            ),
            Event::Shortage { what } => write!(
                f,
                "cannot run a task now: {what}; no attempt is used up, the task goes back unless that passes soon, and \
                 this thread takes no other meanwhile"
            ),
            Event::CommandNotStarted { why } => write!(
                f,
                "cannot run a task now: {why}; no attempt is used up, it is tried again for some seconds, as the \
                 command may be being replaced; then the worker stops"
            ),
            Event::Waiting if std::io::stderr().is_terminal() => {
                f.write_str(" [*] Waiting for messages. To exit press CTRL+C")
            }
            Event::Waiting => f.write_str(" [*] Waiting for messages"),
            Event::Connected { broker } => write!(f, "connected to {broker}"),
            Event::ConnectedAgain { broker } => write!(f, "connected again to {broker}"),
            Event::ConnectionLost { broker, cause } => write!(f, "lost the connection to {broker}: {cause}"),
            Event::CannotConnect { why } => write!(f, "{why}; trying again"),
            Event::SenderDown { why } => {
                write!(f, "the connection for sending is down: {why}; trying again")
            }
            Event::SenderRefused { why, patience } => {
                write!(f, "{why}; trying again for up to {}", duration::show(*patience))
            }
            Event::ChannelLost { cause } => write!(f, "{cause}; opening another channel"),
            Event::AcknowledgementLate { broker, held, words } => {
                f.write_str(&acknowledgement::late(*broker, *held))?;
                words.map_or(Ok(()), |words| write!(f, " ({words})"))
            }
            Event::TimeoutTooLong { broker } => f.write_str(&acknowledgement::timeout_too_long(*broker)),
            Event::LastAcknowledgementUnknown { cause } => write!(
                f,
                "the last acknowledgement may be lost ({cause}); if so, its task will be delivered again"
            ),
            Event::QueueGone { cause } => write!(f, "{cause}"),
            Event::QueueVanished { queue } => write!(
                f,
                "the queue {queue} was gone, with any tasks that waited in it: somebody deleted it, or a policy lets it \
                 expire (README, \"What no queue can promise\")"
            ),
            Event::QueueSilent { queue } => {
                write!(f, "nobody answers for the queue {queue}; waiting for that, as it may not be empty")
            }
            Event::PublishingBlocked { broker, reason, waiting } => blocked(f, broker, reason, *waiting),
            Event::PublishingAccepted { broker } => write!(f, "{broker} accepts publishes again"),
            Event::CopyReduced { id, cause, form } => {
                let without = match form {
                    CopyForm::WithoutReplyTo => "without reply_to",
                    CopyForm::Full | CopyForm::Bare => "with its id and taskq's own headers alone",
                };
                let id = foreign(id);
                write!(f, "the broker does not take a copy of the task {id} ({cause}): copying it {without}")
            }
            Event::CopiesRefused { queue, reason, tasks } => write!(
                f,
                "no copy is taken for {queue} ({reason}): the tasks wait here, unacknowledged, until it is ({tasks} now)"
            ),
            Event::CopyRefused { id, queue, reason } => write!(
                f,
                "no copy of the task {} is taken for {queue} ({reason}): it waits here, unacknowledged, until it is",
                foreign(id)
            ),
            Event::NotRefreshed { queue, error } => write!(
                f,
                "tasks in {queue} went back there before, and could not be replaced by copies ({error}); a quorum queue \
                 drops what goes back more often than its limit says"
            ),
            Event::FinishingCopies { signal } => {
                write!(f, "{signal}: tasks that are held get their copies first; once more to stop at once")
            }
            Event::Stopping { signal, running: 0, .. } => write!(f, "{signal}: stopping"),
            Event::Stopping { signal, running, grace } => {
                let grace = duration::show(*grace);
                write!(f, "{signal}: finishing {running} running (up to {grace}); once more to give up")
            }
            Event::GivingUp { why, running, last_chances } => {
                write!(
                    f,
                    "{why}: giving up {running} running; the broker will deliver again what was not finished"
                )?;
                if *last_chances > 0 {
                    write!(
                        f,
                        ", unless its delivery limit is reached, as may be for {last_chances} of them"
                    )?;
                }
                Ok(())
            }
            Event::Failed { error } => write!(f, "{error}"),
        }
    }
}

fn dead(f: &mut fmt::Formatter<'_>, task: &Subject<'_>, death: &Death, queue: &str) -> fmt::Result {
    f.write_str("dead (")?;
    if let Some(attempts) = death.of_attempts {
        write!(f, "attempt {} of {attempts}: ", task.attempt)?;
    }
    write!(f, "{}); kept in {queue}: {} {}", foreign(&death.exit), task.body, Tail(task))
}

fn runs_uncounted(f: &mut fmt::Formatter<'_>, why: &Uncounted) -> fmt::Result {
    match why {
        Uncounted::NoCopies => {
            f.write_str("a redelivered task runs uncounted: publishing is blocked or not allowed")
        }
        Uncounted::TooLarge { length, limit } => {
            write!(f, "a redelivered task runs uncounted: {}", over_limit(*length, *limit))
        }
        Uncounted::QueueFull => f.write_str("a redelivered task runs uncounted: its queue is full"),
        Uncounted::NotAllowed(error) => write!(f, "redelivered tasks cannot be counted: {error}"),
        Uncounted::LastChance => f.write_str(
            "a task runs now, before this worker ends: its deliveries cannot be counted, and the broker may drop it when \
             it goes back",
        ),
    }
}

fn over_limit(length: usize, limit: u64) -> String {
    format!(
        "its body of {length} bytes is over the limit of the broker, {limit} bytes (max_message_size: raise it)"
    )
}

fn blocked(f: &mut fmt::Formatter<'_>, broker: &str, reason: &str, waiting: WhoWaits) -> fmt::Result {
    write!(f, "{broker} has blocked publishing ({reason})")?;
    match waiting {
        WhoWaits::Worker { tasks } => {
            let held = match tasks {
                0 => "failed tasks wait".to_owned(),
                1 => "1 task waits".to_owned(),
                _ => format!("{tasks} tasks wait"),
            };
            let until = if tasks == 1 { "its copy" } else { "their copies" };
            write!(
                f,
                ": {held} here, unacknowledged, until it takes {until}; finished ones are acknowledged as always"
            )
        }
        WhoWaits::Sender(at_most) => {
            write!(f, "; what it has not confirmed waits up to {} for it to go on", duration::show(at_most))
        }
        WhoWaits::Dead => f.write_str("; the tasks stay in their queue and wait for it to go on"),
    }
}

/// What to say of tasks that go back to a queue although the broker may drop them for it.
#[must_use]
pub fn last_returns(queue: &str, count: usize) -> String {
    format!(
        "tasks that went back to {queue} for at least the third time, without a copy: {count}; the broker drops those \
         that are over a delivery limit"
    )
}
