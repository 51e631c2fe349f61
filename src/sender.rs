//! Sends the tasks of a source: up to a thousand at a time unconfirmed, in order, and again after a lost
//! connection. A task is sent when the broker has confirmed it, and not before.

mod fingerprint;
mod job;
mod link;
mod source;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod unsent;
mod window;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, never, select};

use crate::backoff::Backoff;
use crate::broker::{Fault, FaultKind, Opener, Publisher, Settlement, Wake};
use crate::duration;
use crate::error::{self, Error, Exit};
use crate::events::{Event, WhoWaits};
use crate::report::tell;

pub use fingerprint::FileFingerprint;
pub use job::{Job, Report, Summary};
use link::{Asked, SendingLink};
pub use source::{Batch, Input, Item, MAX_BODY_BYTES, Source};
pub use unsent::{InputFile, Saved, Unsaved, UnsentFile, UnsentForm};
use window::{Entry, MAX_ENTRIES, Window};

/// A task that comes back unroutable although its queue was declared again and again.
const MAX_UNROUTABLE: u32 = 3;

/// How long it waits for what.
struct Times {
    /// The pauses between attempts to reach a broker that went away; it is usually back within seconds.
    pauses: Backoff,
    /// How long what was published beside a refused task may still be confirmed. Some of it never is, nor refused.
    settling: Duration,
    /// After the first signal: how long to wait for what is on its way.
    stopping: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            pauses: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            settling: Duration::from_secs(3),
            stopping: Duration::from_secs(3),
        }
    }
}

/// Sends everything that `batches` yields. `signals` carries signal numbers.
pub fn send(
    job: &Job,
    batches: &Receiver<Batch>,
    signals: &Receiver<i32>,
    report: &mut dyn Report,
) -> Summary {
    let (session, queue, single) = (job.session.clone(), job.queue.clone(), job.single);
    // A single task saves two round trips by not waiting for the queue's declaration. Many tasks do not notice them,
    // and must not be under way when a declaration is refused.
    let opener = Arc::new(move || {
        let open = if single { Publisher::open_optimistic } else { Publisher::open_verified };
        open(&session, &queue)
    });
    Sending::new(job, opener, Times::default(), report).run(batches, signals)
}

struct Sending<'a> {
    job: &'a Job,
    report: &'a mut dyn Report,
    summary: Summary,
    window: Window,
    link: SendingLink,
    /// The queues for delayed tasks that were there.
    known: HashSet<String>,
    /// The broker's limit for bodies, once it has told.
    body_limit: u64,
    /// A signal came: nothing more is read, and this is when waiting ends.
    stopping: Option<(i32, Instant)>,
    times: Times,
}

impl<'a> Sending<'a> {
    fn new(job: &'a Job, opener: Opener<u64>, times: Times, report: &'a mut dyn Report) -> Self {
        Self {
            job,
            report,
            summary: Summary::default(),
            window: Window::default(),
            link: SendingLink::open(opener, &times),
            known: HashSet::new(),
            body_limit: u64::MAX,
            stopping: None,
            times,
        }
    }

    fn run(mut self, batches: &Receiver<Batch>, signals: &Receiver<i32>) -> Summary {
        let mut input = Some(batches);
        loop {
            self.summarise();
            if self.window.is_empty() && input.is_none() {
                break;
            }
            if let Some(error) = self.overdue() {
                self.give_up(error);
                break;
            }
            let readable = input.filter(|_| self.stopping.is_none() && self.window.has_room());
            match self.step(readable, signals) {
                SendStep::Input(Some(Ok(items))) => self.accept(items),
                SendStep::Input(Some(Err(error))) => {
                    self.note_error(Error::bad_data(format!("cannot read the input: {error}")));
                    input = None;
                }
                SendStep::Input(None) => input = None,
                SendStep::Interrupted(signal) => {
                    if self.stopping.is_some() {
                        self.give_up(interrupted(signal));
                        break;
                    }
                    self.stopping = Some((signal, Instant::now() + self.times.stopping));
                    input = None;
                }
                SendStep::GiveUp(error) => {
                    self.give_up(error);
                    break;
                }
                SendStep::Again => {}
            }
        }
        if let (Some((signal, _)), None) = (self.stopping, &self.summary.ended) {
            self.summary.ended = Some(interrupted(signal));
        }
        self.link.close(signals);
        self.summary
    }

    /// Waits for the next thing to happen, whatever the state of the link.
    fn step(&mut self, input: Option<&Receiver<Batch>>, signals: &Receiver<i32>) -> SendStep {
        let deadline = self.deadline();
        if self.link.state.get().is_some() {
            return self.step_connected(input, signals, deadline);
        }
        let (opened, rested) = self.link.state.waits_for();
        let no_input = never();
        select! {
            recv(opened) -> opened => self.opened(opened.unwrap_or_else(|_| Err(gone()))),
            recv(rested) -> _ => {
                self.link.open_again();
                SendStep::Again
            }
            recv(input.unwrap_or(&no_input)) -> batch => SendStep::Input(batch.ok()),
            recv(signals) -> signal => SendStep::Interrupted(signal.unwrap_or_default()),
            recv(crossbeam_channel::at(deadline)) -> _ => SendStep::Again,
        }
    }

    fn step_connected(
        &mut self,
        input: Option<&Receiver<Batch>>,
        signals: &Receiver<i32>,
        deadline: Instant,
    ) -> SendStep {
        if let Err(fault) = self.publish_queued() {
            return self.lost(&fault);
        }
        let spent_at = self.link.spent_at();
        // What is still in flight may be confirmed, and would be there twice if it were published again.
        if spent_at.is_some_and(|at| at <= Instant::now() || !self.window.is_in_flight()) {
            self.window.requeue_in_flight();
            self.link.try_another(self.job.retry_for);
            return SendStep::Again;
        }
        let stalls_at = self.link.state.get().and_then(Publisher::due);
        if stalls_at.is_some_and(|at| at <= Instant::now()) {
            return self.lost(&Fault::unconfirmed());
        }
        let deadline = [spent_at, stalls_at].into_iter().flatten().fold(deadline, Instant::min);
        let Some(publisher) = self.link.state.up() else { return SendStep::Again };
        match publisher.wait(input, signals, Some(deadline)) {
            Wake::Settled => {
                let settled = publisher.take_settled();
                self.settle(settled)
            }
            Wake::Input(batch) => SendStep::Input(batch),
            Wake::Interrupted(signal) => SendStep::Interrupted(signal),
            Wake::Blocked(reason) => {
                tell(&Event::PublishingBlocked {
                    broker: publisher.label(),
                    reason: &reason,
                    waiting: WhoWaits::Sender(self.job.retry_for),
                });
                SendStep::Again
            }
            Wake::Unblocked => {
                tell(&Event::PublishingAccepted { broker: publisher.label() });
                SendStep::Again
            }
            Wake::Lost(fault) => self.lost(&fault),
            Wake::TimedOut => SendStep::Again,
        }
    }

    /// There is a connection, or the broker has said whether the queue for delayed tasks is there, or neither.
    fn opened(&mut self, opened: error::Result<Asked>) -> SendStep {
        if opened.is_err() {
            self.window.requeue_in_flight();
        }
        match self.link.opened(opened) {
            Ok(None) => SendStep::Again,
            Ok(Some((queue, Ok(was_gone)))) => {
                if was_gone {
                    tell(&Event::QueueVanished { queue: &queue });
                }
                self.known.insert(queue);
                SendStep::Again
            }
            Ok(Some((_, Err(fault)))) => self.lost(&fault),
            Err(error) => SendStep::GiveUp(error),
        }
    }

    /// For messages.
    fn first_queue(&self) -> String {
        self.job.first_queue(SystemTime::now()).name
    }

    /// Everything in flight that is not confirmed is unknown now and will be published again.
    fn lost(&mut self, fault: &Fault) -> SendStep {
        self.confirm_at_hand();
        self.window.requeue_in_flight();
        match fault.kind {
            FaultKind::TooLarge(limit) => {
                // The broker names its limit and not the message, so every body over it is taken out. Should none
                // be, the largest must have been it.
                let largest = self.window.largest();
                self.body_limit = limit.filter(|limit| *limit < largest).unwrap_or(largest.saturating_sub(1));
                self.refuse_too_large();
                self.link.recover(&self.job.queue);
            }
            FaultKind::NotFound => self.link.recover(&self.job.queue),
            FaultKind::Refused | FaultKind::Configuration if !self.link.queue_verified() => {
                self.link.recover(&self.job.queue);
            }
            // All tasks have the same headers: what offends in one offends in all.
            FaultKind::Refused | FaultKind::Configuration | FaultKind::HeadersTooLarge => {
                return SendStep::GiveUp(fault.clone().into_error());
            }
            FaultKind::Unacceptable if self.link.is_unacceptable() => {
                return SendStep::GiveUp(Error::bad_data(fault.to_string()));
            }
            FaultKind::Unacceptable => {}
            _ => self.link.rest(&fault.to_string()),
        }
        SendStep::Again
    }

    fn accept(&mut self, items: Vec<Item>) {
        for item in items {
            let id = match &self.job.id {
                Some(id) => id.clone(),
                None => uuid::Uuid::now_v7().to_string(),
            };
            self.window.push(item, id);
        }
        self.refuse_too_large();
    }

    fn refuse_too_large(&mut self) {
        let limit = self.body_limit.min(MAX_BODY_BYTES as u64);
        let whose = if limit < MAX_BODY_BYTES as u64 { "the broker" } else { "taskq" };
        self.window.fail_where(|entry| match &entry.item.body {
            Ok(body) if body.len() as u64 <= limit => None,
            Ok(body) => Some(too_large(body.len() as u64, limit, whose)),
            Err(length) => Some(too_large(*length, limit, whose)),
        });
    }

    fn publish_queued(&mut self) -> std::result::Result<(), Fault> {
        let Some(publisher) = self.link.publisher_in_favour() else { return Ok(()) };
        let to = self.job.first_queue(SystemTime::now());
        if self.job.delay.is_some() && !publisher.is_prepared(&to) {
            if !publisher.is_busy() && self.window.next_queued().is_some() {
                let known = self.known.contains(&to.name);
                self.link.prepare(&to, known);
            }
            return Ok(());
        }
        while !publisher.is_busy()
            && publisher.outstanding() < MAX_ENTRIES
            && let Some((sequence, entry)) = self.window.next_queued()
        {
            let Ok(body) = &entry.item.body else { break };
            let properties = self.job.properties.clone().with_id(&entry.id);
            properties.fit(publisher.frame_max())?;
            publisher.publish(&to.name, body, &properties, sequence)?;
            self.window.in_flight(sequence);
        }
        Ok(())
    }

    fn settle(&mut self, settled: Vec<(u64, Settlement)>) -> SendStep {
        let mut declare_again = false;
        for (sequence, settlement) in settled {
            match settlement {
                Settlement::Confirmed => {
                    self.window.confirm(sequence);
                    self.link.confirmed();
                }
                Settlement::Nacked => {
                    self.window.put_back(sequence);
                    self.link.refused();
                }
                Settlement::Unroutable => {
                    declare_again = true;
                    if self.window.requeue(sequence) >= MAX_UNROUTABLE {
                        let name = self.first_queue();
                        if !self.job.queue.declare {
                            return SendStep::GiveUp(Fault::missing(&name).into_error());
                        }
                        let why = format!("there is no queue {name} to take it");
                        self.window.fail_queued(&Error::try_again(why));
                    }
                }
            }
        }
        if declare_again && !self.window.is_settled() {
            return self.lost(&Fault::unroutable(&self.first_queue()));
        }
        SendStep::Again
    }

    /// Hands on what is decided, from the front, so that the order is that of the input.
    fn summarise(&mut self) {
        while let Some((entry, outcome)) = self.window.pop_settled() {
            match outcome {
                Ok(()) => {
                    self.summary.confirmed += 1;
                    self.report.confirmed(&entry.item, &entry.id);
                }
                Err(error) => self.failed(&entry, error),
            }
        }
    }

    fn failed(&mut self, entry: &Entry, error: Error) {
        self.summary.failed += 1;
        if self.summary.ended.as_ref() == Some(&error) {
            self.report.abandoned(&entry.item);
        } else {
            self.report.failed(&entry.item, &error);
            self.note_error(error);
        }
    }

    fn note_error(&mut self, error: Error) {
        // A refusal that a later try may overcome outweighs data that never can be sent.
        let graver = self.summary.worst.as_ref().is_none_or(|worst| worst.exit == Exit::BadData);
        if graver {
            self.summary.worst = Some(error);
        }
    }

    /// When waiting ends, however things stand.
    fn deadline(&self) -> Instant {
        let stalled = self.window.waiting_since().map(|since| since + self.job.retry_for);
        let stopping = self.stopping.map(|(_, until)| until);
        // Without anything outstanding there is nothing to be late; the hour only bounds the wait.
        [stalled, stopping]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + Duration::from_hours(1))
    }

    fn overdue(&self) -> Option<Error> {
        let now = Instant::now();
        if let Some((signal, until)) = self.stopping {
            return (now >= until).then(|| interrupted(signal));
        }
        let since = self.window.waiting_since()?;
        if now < since + self.job.retry_for {
            return None;
        }
        Some(self.link.why_stalled(&duration::show(self.job.retry_for)))
    }

    /// Before the rest is given up.
    fn confirm_at_hand(&mut self) {
        for (sequence, settlement) in self.link.state.up().map(Publisher::take_settled).unwrap_or_default() {
            if settlement == Settlement::Confirmed {
                self.window.confirm(sequence);
            }
        }
    }

    /// Everything that is not confirmed by now has failed.
    fn give_up(&mut self, error: Error) {
        self.confirm_at_hand();
        self.window.fail_open(&error);
        self.summary.ended = Some(error);
        self.summarise();
        if let Some(publisher) = self.link.take() {
            publisher.cut();
        }
    }
}

enum SendStep {
    Input(Option<Batch>),
    Interrupted(i32),
    GiveUp(Error),
    Again,
}

/// A signal ended it.
#[must_use]
pub fn interrupted(signal: i32) -> Error {
    Error::new(Exit::Signal(signal), format!("stopped by {}", crate::shutdown::name(signal)))
}

fn gone() -> Error {
    Error::internal("the thread that asks the broker is gone")
}

fn too_large(length: u64, limit: u64, whose: &str) -> Error {
    Error::bad_data(format!("the body of {length} bytes is over the limit of {whose}, {limit} bytes"))
}
