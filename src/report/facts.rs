//! What is known of an event beside its text, under the names that docs/log.md lists.

use log::kv::{Error, Key, Source, Value, VisitSource};
use std::time::Duration;

use crate::events::{Event, Subject, WhoWaits};

/// See the module.
pub(super) struct Facts<'f, 'e> {
    pub(super) event: &'f Event<'e>,
    /// The queue that this process works on or sends to.
    pub(super) queue: Option<&'f str>,
}

#[cfg(test)]
impl Facts<'_, '_> {
    /// Of the event and of its members.
    pub(super) fn names(&self) -> Vec<String> {
        struct Names(Vec<String>);
        impl<'kvs> VisitSource<'kvs> for Names {
            fn visit_pair(&mut self, key: Key<'kvs>, _: Value<'kvs>) -> Result<(), Error> {
                self.0.push(key.to_string());
                Ok(())
            }
        }
        let mut names = Names(vec![name(self.event).to_owned()]);
        let _ = self.visit(&mut names);
        names.0
    }
}

impl Source for Facts<'_, '_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), Error> {
        let mut tell = |name: &'static str, value: Value<'kvs>| visitor.visit_pair(Key::from(name), value);
        tell("event", Value::from(name(self.event)))?;
        if let Some(queue) = self.queue {
            tell("queue", Value::from(queue))?;
        }
        match self.event {
            Event::Received { task }
            | Event::RunsUncounted { task, .. }
            | Event::TooLargeToCopy { task, .. } => of_task(task, &mut tell),
            Event::Done { task } => {
                of_task(task, &mut tell)?;
                tell("outcome", Value::from("done"))
            }
            Event::Retried { task, exit, delay, .. } => {
                of_task(task, &mut tell)?;
                tell("outcome", Value::from("retry"))?;
                tell("exit", Value::from(*exit))?;
                tell("delay_ms", Value::from(millis(*delay)))
            }
            Event::Dead { task, death, queue } => {
                of_task(task, &mut tell)?;
                tell("outcome", Value::from("dead"))?;
                tell("exit", Value::from(death.exit.as_str()))?;
                tell("dead_queue", Value::from(*queue))
            }
            Event::FailedHereBefore { id }
            | Event::FinishedHereBefore { id }
            | Event::RunsHereAlready { id }
            | Event::CopyReduced { id, .. }
            | Event::CopyRefused { id, .. } => tell("id", Value::from(*id)),
            Event::CopiesRefused { tasks, .. }
            | Event::PublishingBlocked { waiting: WhoWaits::Worker { tasks: tasks @ 1.. }, .. } => {
                tell("tasks", Value::from(*tasks as u64))
            }
            Event::WithoutCopies { count } => tell("tasks", Value::from(*count)),
            Event::LastReturns { count, .. } => tell("tasks", Value::from(*count as u64)),
            Event::Stopping { running, .. } | Event::GivingUp { running, .. } => {
                tell("tasks", Value::from(*running as u64))
            }
            _ => Ok(()),
        }
    }
}

fn of_task<'kvs>(
    task: &'kvs Subject<'_>,
    tell: &mut dyn FnMut(&'static str, Value<'kvs>) -> Result<(), Error>,
) -> Result<(), Error> {
    if !task.id.is_empty() {
        tell("id", Value::from(task.id))?;
    }
    tell("attempt", Value::from(task.attempt))?;
    task.took.map_or(Ok(()), |took| tell("duration_ms", Value::from(millis(took))))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Part of the public interface: docs/log.md.
fn name(event: &Event<'_>) -> &'static str {
    match event {
        Event::Received { .. } => "received",
        Event::Done { .. } => "done",
        Event::Retried { .. } => "retried",
        Event::Dead { .. } => "dead",
        Event::FailedHereBefore { .. } => "failed_here_before",
        Event::FinishedHereBefore { .. } => "finished_here_before",
        Event::RunsHereAlready { .. } => "runs_here_already",
        Event::RunsUncounted { .. } => "runs_uncounted",
        Event::TooLargeToCopy { .. } => "too_large_to_copy",
        Event::WithoutCopies { .. } => "without_copies",
        Event::LastReturns { .. } => "last_returns",
        Event::CommandMissing { .. } => "command_missing",
        Event::Shortage { .. } => "shortage",
        Event::CommandNotStarted { .. } => "command_not_started",
        Event::Waiting => "waiting",
        Event::Connected { .. } => "connected",
        Event::ConnectedAgain { .. } => "connected_again",
        Event::ConnectionLost { .. } => "connection_lost",
        Event::CannotConnect { .. } => "cannot_connect",
        Event::SenderDown { .. } => "sender_down",
        Event::SenderRefused { .. } => "sender_refused",
        Event::ChannelLost { .. } => "channel_lost",
        Event::AcknowledgementLate { .. } => "acknowledgement_late",
        Event::TimeoutTooLong { .. } => "timeout_too_long",
        Event::LastAcknowledgementUnknown { .. } => "last_acknowledgement_unknown",
        Event::QueueGone { .. } => "queue_gone",
        Event::QueueVanished { .. } => "queue_vanished",
        Event::QueueSilent { .. } => "queue_silent",
        Event::PublishingBlocked { .. } => "publishing_blocked",
        Event::PublishingAccepted { .. } => "publishing_accepted",
        Event::CopyReduced { .. } => "copy_reduced",
        Event::CopiesRefused { .. } => "copies_refused",
        Event::CopyRefused { .. } => "copy_refused",
        Event::NotRefreshed { .. } => "not_refreshed",
        Event::FinishingCopies { .. } => "finishing_copies",
        Event::Stopping { .. } => "stopping",
        Event::GivingUp { .. } => "giving_up",
        Event::Failed { .. } => "failed",
    }
}
