//! Every message about tasks, connections and workers, with names, reasons and URLs in it that mean harm.

use std::time::Duration;

use super::*;
use crate::broker::{AckTimeout, BrokerUrl, Fault};
use crate::error::Error;
use crate::output;
use crate::settlement::Death;

const PASSWORD: &str = "swordfish of 7 seas";
/// What a terminal would execute, hide, reorder or break.
const HARM: &str =
    "a\u{1b}]0;x\u{7}\u{9b}2J\r\n\u{202e}b\u{200b}\u{e0041}swordfish of 7 seas swordfish%20of%207%20seas";
/// In the table of events of docs/log.md.
const LEVELS: [&str; 3] = ["error", "warning", "info"];
/// What a line may have. It is not cut where it is shorter.
const MOST_CHARS: usize = 1_500;

/// What strangers may have written: as much of it as they like.
struct Hostile {
    /// As the worker makes it of a body.
    body: String,
    text: String,
    /// As long as the broker allows.
    queue: String,
    broker: String,
    fault: Fault,
    error: Error,
    death: Death,
    /// Composed here, with something from outside in it.
    why: String,
    uncounted: [Uncounted; 5],
}

impl Hostile {
    fn new() -> Self {
        let text = HARM.repeat(1000);
        let head = text.floor_char_boundary(255);
        let vhost = "%1b%0a".repeat(80);
        let url = format!("amqp://%1bu%e2%80%ae:swordfish%20of%207%20seas@host/{vhost}");
        Self {
            body: output::excerpt(text.as_bytes()),
            fault: Fault::missing(&text[..head]),
            error: Fault::missing(&text[..head]).into_error(),
            why: Fault::missing(&text[..head]).to_string(),
            queue: text[..head].to_owned(),
            broker: BrokerUrl::parse(&url).map(|url| url.to_string()).unwrap_or_default(),
            death: Death { exit: text.clone(), of_attempts: Some(u32::MAX) },
            uncounted: [
                Uncounted::NoCopies,
                Uncounted::TooLarge { length: usize::MAX, limit: u64::MAX },
                Uncounted::QueueFull,
                Uncounted::NotAllowed(Fault::missing(&text[..head]).into_error()),
                Uncounted::LastChance,
            ],
            text,
        }
    }

    /// Each kind of event leads to the next one, so that the compiler asks where a new one belongs.
    #[allow(clippy::too_many_lines)] // One line for each event.
    fn after(&self, event: Option<&Event<'_>>) -> Option<Event<'_>> {
        let (text, queue, broker) = (self.text.as_str(), self.queue.as_str(), self.broker.as_str());
        let (cause, error, why, long) = (&self.fault, &self.error, self.why.as_str(), Duration::MAX);
        let task = Subject { id: text, attempt: u32::MAX, body: &self.body, took: Some(long) };
        Some(match event {
            None => Event::Received { task },
            Some(Event::Received { .. }) => Event::Done { task },
            Some(Event::Done { .. }) => Event::Retried { task, attempts: u32::MAX, exit: text, delay: long },
            Some(Event::Retried { .. }) => Event::Dead { task, death: &self.death, queue },
            Some(Event::Dead { .. }) => Event::FailedHereBefore { id: text },
            Some(Event::FailedHereBefore { .. }) => Event::FinishedHereBefore { id: text },
            Some(Event::FinishedHereBefore { .. }) => Event::RunsHereAlready { id: text },
            Some(Event::RunsHereAlready { .. }) => Event::RunsUncounted { task, why: &self.uncounted[0] },
            Some(Event::RunsUncounted { why: this, .. }) => {
                let at =
                    self.uncounted.iter().position(|other| std::ptr::eq(*this, other)).unwrap_or_default();
                match self.uncounted.get(at + 1) {
                    Some(why) => Event::RunsUncounted { task, why },
                    None => Event::TooLargeToCopy {
                        task,
                        queue,
                        length: usize::MAX,
                        limit: u64::MAX,
                        hold_limit: long,
                    },
                }
            }
            Some(Event::TooLargeToCopy { .. }) => Event::WithoutCopies { count: u64::MAX },
            Some(Event::WithoutCopies { .. }) => Event::LastReturns { queue, count: usize::MAX },
            Some(Event::LastReturns { .. }) => Event::CommandMissing { why },
            Some(Event::CommandMissing { .. }) => Event::Shortage { what: why },
            Some(Event::Shortage { .. }) => Event::CommandNotStarted { why },
            Some(Event::CommandNotStarted { .. }) => Event::Waiting,
            Some(Event::Waiting) => Event::Connected { broker },
            Some(Event::Connected { .. }) => Event::ConnectedAgain { broker },
            Some(Event::ConnectedAgain { .. }) => Event::ConnectionLost { broker, cause },
            Some(Event::ConnectionLost { .. }) => Event::CannotConnect { why },
            Some(Event::CannotConnect { .. }) => Event::SenderDown { why },
            Some(Event::SenderDown { .. }) => Event::SenderRefused { why, patience: long },
            Some(Event::SenderRefused { .. }) => Event::ChannelLost { cause },
            Some(Event::ChannelLost { .. }) => Event::AcknowledgementLate {
                broker: AckTimeout::PerQueue,
                held: Some(Duration::from_secs(u64::MAX)),
                words: Some(cause),
            },
            Some(Event::AcknowledgementLate { .. }) => {
                Event::TimeoutTooLong { broker: AckTimeout::PerConsumer }
            }
            Some(Event::TimeoutTooLong { .. }) => Event::LastAcknowledgementUnknown { cause },
            Some(Event::LastAcknowledgementUnknown { .. }) => Event::QueueGone { cause },
            Some(Event::QueueGone { .. }) => Event::QueueVanished { queue },
            Some(Event::QueueVanished { .. }) => Event::QueueSilent { queue },
            Some(Event::QueueSilent { .. }) => Event::PublishingBlocked {
                broker,
                reason: why,
                waiting: WhoWaits::Worker { tasks: usize::MAX },
            },
            Some(Event::PublishingBlocked { .. }) => Event::PublishingAccepted { broker },
            Some(Event::PublishingAccepted { .. }) => {
                Event::CopyReduced { id: text, cause, form: CopyForm::Bare }
            }
            Some(Event::CopyReduced { .. }) => {
                Event::CopiesRefused { queue, reason: cause, tasks: usize::MAX }
            }
            Some(Event::CopiesRefused { .. }) => Event::CopyRefused { id: text, queue, reason: cause },
            Some(Event::CopyRefused { .. }) => Event::NotRefreshed { queue, error },
            Some(Event::NotRefreshed { .. }) => Event::FinishingCopies { signal: "SIGTERM" },
            Some(Event::FinishingCopies { .. }) => {
                Event::Stopping { signal: "SIGTERM", running: usize::MAX, grace: long }
            }
            Some(Event::Stopping { .. }) => {
                Event::GivingUp { why, running: usize::MAX, last_chances: usize::MAX }
            }
            Some(Event::GivingUp { .. }) => Event::Failed { error },
            Some(Event::Failed { .. }) => return None,
        })
    }
}

fn assert_harmless(line: &str) {
    assert_eq!(output::escape(line), line, "a terminal would act on it");
    assert!(!line.contains("swordfish"), "the password is in it: {line}");
}

#[test]
fn no_event_makes_a_line_that_does_harm() {
    output::hide(PASSWORD);
    let hostile = Hostile::new();
    let documented = include_str!("../../docs/log.md");
    let mut event = hostile.after(None);
    let mut seen = 0;
    while let Some(this) = event {
        let composed = Text(&this).to_string();
        let line = output::message(&composed);
        assert_harmless(&line);
        assert!(line.chars().count() <= MOST_CHARS, "{} characters: {line}", line.chars().count());
        let level = match level(&this) {
            Level::Error => "error",
            Level::Warn => "warning",
            _ => "info",
        };
        let facts = Facts { event: &this, queue: Some(&hostile.queue) };
        for name in facts.names() {
            assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/log.md");
            let cell = |row: &str, number| row.split(" | ").nth(number).unwrap_or_default().to_owned();
            let events = documented.lines().filter(|row| {
                cell(row, 0).contains(&format!("`{name}`")) && LEVELS.contains(&cell(row, 1).as_str())
            });
            for row in events {
                assert!(row.contains(&format!(" | {level} | ")), "{name} is at another level: {row}");
            }
        }
        event = hostile.after(Some(&this));
        seen += 1;
    }
    assert!(seen > 35, "{seen} events");
}
