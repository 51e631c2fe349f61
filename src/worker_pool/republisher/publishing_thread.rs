//! The publishing thread: has a connection while it needs one, publishes what it is asked for, and answers when that is
//! settled.
//!
//! While the broker blocks publishing, copies are held here unpublished: those that nobody waits for any more can
//! then be forgotten, instead of turning up when the alarm ends. A copy that the broker closes the channel over is
//! tried again in forms that have less to refuse; where several were under way, they are published one at a time to
//! find out which it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, never, select};

use super::super::shared::Shared;
use super::super::{BOUNDED_PATIENCE, EndRequest};
use super::CopyJob;
use super::hold::{Hold, Reason};
use super::loss;
use super::waiting::WaitingCopies;
use crate::backoff::Backoff;
use crate::broker::{DelayWatch, Fault, FaultKind, Link, Opener, Publisher, Scope, Settlement, Wake};
use crate::error::{Error, Exit, Result};
use crate::events::{Event, WhoWaits};
use crate::report::tell;
use crate::settlement::{CopyResult, WaitsFor};

/// A connection that is not used goes away after this long; most workers rarely need one.
const IDLE_CLOSE: Duration = Duration::from_mins(5);
/// How long it waits for what.
pub(super) struct Times {
    /// The pauses between attempts to connect. The longest bounds how late copies are kept after the broker is back.
    pub(super) connecting: Backoff,
    /// The pauses before a copy that was refused is tried again. The longest bounds how late it is kept after the reason is
    /// gone.
    pub(super) refused: Backoff,
    /// For how long a bounded run puts up with copies that are refused.
    pub(super) bounded: Duration,
    /// How often it is told why copies are held, for as long as they are.
    pub(super) telling: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connecting: Backoff::new(Duration::from_millis(200), Duration::from_secs(15)),
            refused: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)),
            bounded: BOUNDED_PATIENCE,
            telling: Duration::from_mins(1),
        }
    }
}

/// What the publishing thread knows.
pub(super) struct PublishingThread {
    shared: Arc<Shared>,
    end_requests: Sender<EndRequest>,
    jobs: Receiver<CopyJob>,
    opener: Opener<CopyJob>,
    link: Link<Publisher<CopyJob>>,
    /// The broker has refused a copy on this connection.
    refused_here: bool,
    /// The last attempt to connect failed.
    is_down: bool,
    backoff: Backoff,
    /// See [`Times::bounded`].
    patience: Duration,
    waiting: WaitingCopies,
    /// The queues that copies went to.
    watch: DelayWatch,
    /// What [`super::Republisher::is_blocked`] tells.
    blocked: Arc<AtomicBool>,
    /// Copies are held because the broker has blocked publishing.
    alarm: Option<Hold>,
    /// See [`Times::telling`].
    tell_every: Duration,
    /// A bounded run was told that it cannot go on.
    gave_up: bool,
}

impl PublishingThread {
    /// `blocked` is what it tells the others: whether the broker takes no copies now.
    pub(super) fn new(
        shared: Arc<Shared>,
        end_requests: Sender<EndRequest>,
        jobs: Receiver<CopyJob>,
        blocked: Arc<AtomicBool>,
        opener: Opener<CopyJob>,
        times: Times,
    ) -> Self {
        let queue = &shared.options.queue;
        let mut watch = DelayWatch::default();
        if shared.options.prepare_retries {
            // They were made sure of at the start.
            let delays = shared.options.policy.pauses().iter().map(|pause| queue.delay(*pause));
            delays.chain([queue.dead()]).for_each(|queue| watch.note(&queue.name));
        }
        Self {
            watch,
            shared,
            end_requests,
            jobs,
            opener,
            link: Link::resting(Instant::now()),
            refused_here: false,
            is_down: false,
            waiting: WaitingCopies::new(&times.refused, times.telling),
            backoff: times.connecting,
            patience: times.bounded,
            blocked,
            alarm: None,
            tell_every: times.telling,
            gave_up: false,
        }
    }

    /// Serves until the last of those who could ask has gone.
    pub(super) fn run(mut self) {
        while self.step() {}
        if let Link::Up(publisher) = self.link {
            publisher.close();
        }
    }

    /// Does what can be done now and waits for the next thing to happen. False when the worker has ended.
    fn step(&mut self) -> bool {
        self.waiting.forget_withdrawn(self.link.get().into_iter().flat_map(Publisher::unsettled));
        while let Some(job) = self.next_to_publish()
            && self.publish(job)
        {}
        self.tell_what_they_wait_for();
        self.note_alarm();
        self.tell_what_is_held();
        if self.link.get().is_some() { self.serve() } else { self.wait_for_connection() }
    }

    /// Without a connection: the first copy that may be published opens one, and so does a queue that has to be looked at.
    fn wait_for_connection(&mut self) -> bool {
        let now = Instant::now();
        let wanted = self.waiting.wanted_at(now).into_iter().chain(self.watch.next_look()).min();
        let opens_at = match &self.link {
            Link::Resting { until } => wanted.map(|wanted| wanted.max(*until)),
            Link::Up(_) | Link::Opening(_) => None,
        };
        if opens_at.is_some_and(|at| at <= now) {
            self.open();
            return true;
        }
        let (opened, _) = self.link.waits_for();
        let deadline = [opens_at, self.next_to_tell()].into_iter().flatten().min();
        select! {
            recv(self.jobs) -> job => return job.is_ok_and(|job| self.accept(job)),
            recv(opened) -> opened => {
                self.opened(opened.unwrap_or_else(|_| Err(Error::internal("the connecting thread is gone"))));
            }
            recv(deadline.map_or_else(never, at)) -> _ => {}
        }
        true
    }

    fn open(&mut self) {
        let open = Arc::clone(&self.opener);
        self.link = Link::open(move || {
            let mut publisher = open()?;
            // What is published into an alarm waits in the broker's buffers, and turns up when that is over, whatever
            // has become of the task meanwhile.
            publisher.probe().map_err(Fault::into_error)?;
            Ok(publisher)
        });
    }

    /// The broker takes no publish on this connection. Where tasks are held over that, it is told with how many:
    /// [`Self::tell_what_is_held`].
    fn blocks(&mut self) {
        self.blocked.store(true, Ordering::SeqCst);
        if self.held() == 0 {
            self.tell_alarm();
        }
    }

    fn tell_alarm(&self) {
        if let Some(publisher) = self.link.get() {
            tell(&Event::PublishingBlocked {
                broker: publisher.label(),
                reason: publisher.why_blocked().unwrap_or_default(),
                waiting: WhoWaits::Worker { tasks: self.held() },
            });
        }
    }

    fn is_blocked(&self) -> bool {
        matches!(&self.link, Link::Up(publisher) if publisher.is_blocked())
    }

    fn opened(&mut self, opened: Result<Publisher<CopyJob>>) {
        match opened {
            Ok(publisher) => {
                log::debug!("opened a connection to {} for copies", publisher.label());
                self.is_down = false;
                self.refused_here = false;
                let blocks = publisher.is_blocked();
                self.link = Link::Up(Box::new(publisher));
                if blocks {
                    self.blocks();
                }
            }
            Err(error) => self.cannot_connect(&error),
        }
    }

    fn cannot_connect(&mut self, error: &Error) {
        self.link = Link::resting(Instant::now() + self.backoff.pause());
        self.is_down = true;
        self.watch.put_off(Instant::now());
        log::debug!("no connection for copies: {error}");
        // The broker has let this user in before; being turned away now may pass.
        if matches!(error.exit, Exit::Refused | Exit::Configuration) && !error.may_pass() {
            self.waiting.none_is_allowed(error);
        }
    }

    /// Looks at the queues in which tasks may wait, where it is time to.
    fn look_after_waiting(&mut self, now: Instant) {
        for queue in self.watch.take_due(now) {
            let Some(publisher) = self.link.up() else { return };
            match publisher.look_at(&queue) {
                Ok(false) => {}
                Ok(true) => self.tell_vanished(&queue.name),
                Err(fault) if fault.kind == FaultKind::NotFound => self.tell_vanished(&queue.name),
                Err(fault) if fault.scope == Scope::Connection => return self.lost(&fault, None),
                Err(fault) => log::debug!("cannot look at {}: {fault}", queue.name),
            }
        }
    }

    fn tell_vanished(&mut self, name: &str) {
        tell(&Event::QueueVanished { queue: name });
        self.watch.forget(name);
    }

    /// Publishes what comes and answers what is settled.
    fn serve(&mut self) -> bool {
        let now = Instant::now();
        let blocked = self.is_blocked();
        let due = self.link.get().and_then(Publisher::due);
        if due.is_some_and(|due| due <= now) {
            self.lost(&Fault::unconfirmed(), None);
            return true;
        }
        // Only when nothing is unconfirmed: otherwise an alarm may have begun that nobody has told of yet, and the broker would
        // not answer.
        let looks_at = self.watch.next_look().filter(|_| !blocked && self.is_settled());
        if looks_at.is_some_and(|look| look <= now) {
            self.look_after_waiting(now);
            return true;
        }
        let deadline =
            [due, self.waiting.again_at(now), looks_at, self.next_to_tell()].into_iter().flatten().min();
        let Some(publisher) = self.link.up() else { return true };
        // The publisher's own input channel carries the jobs, and nothing interrupts it.
        let uninterrupted = never::<()>();
        match publisher.wait(Some(&self.jobs), &uninterrupted, Some(deadline.unwrap_or(now + IDLE_CLOSE))) {
            Wake::Input(Some(job)) => return self.accept(job),
            Wake::Input(None) => return false,
            Wake::Settled => {
                for (job, settlement) in publisher.take_settled() {
                    self.settle(job, &settlement);
                }
                self.leave_if_refused();
            }
            Wake::Blocked(_) => self.blocks(),
            Wake::Unblocked => {
                tell(&Event::PublishingAccepted { broker: publisher.label() });
                self.blocked.store(false, Ordering::SeqCst);
            }
            Wake::Lost(fault) => self.lost(&fault, None),
            Wake::TimedOut if deadline.is_none() && !blocked => {
                if let Some(publisher) = self.link.take(now) {
                    publisher.close();
                }
            }
            Wake::TimedOut | Wake::Interrupted(()) => {}
        }
        true
    }

    fn accept(&mut self, job: CopyJob) -> bool {
        self.waiting.accept(job);
        true
    }

    fn settle(&mut self, job: CopyJob, settlement: &Settlement) {
        match settlement {
            Settlement::Confirmed => self.kept(&job),
            Settlement::Unroutable => {
                if let Some(publisher) = self.link.up() {
                    publisher.forget_prepared();
                }
                self.waiting.came_back(job);
            }
            Settlement::Nacked => {
                self.refused_here = true;
                self.waiting.refuse(job, Reason::QueueFull);
            }
        }
    }

    fn kept(&mut self, job: &CopyJob) {
        self.watch.put(&job.copy.to, Instant::now());
        self.waiting.taken(job);
        self.backoff.reset();
        job.requester.answer(CopyResult::Kept);
    }

    /// A quorum queue that was between two leaders when this connection first published to it refuses all that
    /// comes on it until the old leader's node is back. What is in flight may be confirmed all the same.
    fn leave_if_refused(&mut self) {
        if self.is_settled() && self.refused_here {
            self.disconnect("the broker refuses copies on it", Instant::now());
        }
    }

    /// A queue is declared only where nothing is outstanding: what is may have met an alarm that we have not heard of
    /// yet, and then the declaration would not be answered either.
    fn next_to_publish(&mut self) -> Option<CopyJob> {
        let publisher =
            self.link.get().filter(|publisher| !publisher.is_blocked() && !publisher.is_busy())?;
        self.waiting.take_next(Instant::now(), |job| {
            let alone = job.suspect || !publisher.is_prepared(&job.copy.to);
            let beside_suspect = publisher.unsettled().any(|job| job.suspect);
            publisher.outstanding() == 0 || !alone && !beside_suspect
        })
    }

    /// Returns whether the connection is still there.
    fn publish(&mut self, job: CopyJob) -> bool {
        if let Some(refusal) = self.waiting.too_large(&job) {
            job.requester.answer(refusal);
            return true;
        }
        let Some(publisher) = self.link.up() else { return false };
        let (to, own) = (&job.copy.to, &job.copy.record);
        match publisher.prepare(to, self.watch.knows(&to.name)) {
            Ok(was_gone) => {
                if was_gone {
                    tell(&Event::QueueVanished { queue: &to.name });
                    self.watch.forget(&to.name);
                }
                self.watch.note(&to.name);
            }
            Err(fault) => return self.cannot_prepare(job, &fault),
        }
        let properties = job.original.copy(own, job.form, publisher.frame_max());
        self.waiting.published(&job);
        let (queue, body) = (to.name.clone(), Arc::clone(&job.body));
        match publisher.publish(&queue, &body, &properties, job) {
            Ok(()) => true,
            Err(fault) => {
                self.lost(&fault, None);
                false
            }
        }
    }

    /// Its queue is not there, and cannot be declared. Returns whether the connection is still there.
    fn cannot_prepare(&mut self, job: CopyJob, fault: &Fault) -> bool {
        if matches!(fault.kind, FaultKind::Refused | FaultKind::Configuration) {
            self.waiting.not_allowed(job, &fault.clone().into_error());
        } else if fault.scope == Scope::Channel {
            self.waiting.refuse(job, Reason::Told(fault.to_string()));
        } else {
            self.lost(fault, Some(job));
            return false;
        }
        true
    }

    /// The channel or the connection is gone. What is outstanding and not confirmed by now is unknown, so nothing of it
    /// counts as kept: all of it is published again, with `last`, which met the end before it was published.
    fn lost(&mut self, fault: &Fault, last: Option<CopyJob>) {
        let mut jobs = Vec::new();
        for (job, settlement) in self.link.up().map(Publisher::take_settled).unwrap_or_default() {
            match settlement {
                Settlement::Confirmed => self.kept(&job),
                Settlement::Nacked | Settlement::Unroutable => jobs.push(job),
            }
        }
        jobs.extend(self.link.up().map(Publisher::take_unsettled).into_iter().flatten().chain(last));
        let at_once = !jobs.is_empty() && loss::is_over_a_copy(fault);
        let pause = if at_once { Duration::ZERO } else { self.backoff.pause() };
        self.waiting.after_loss(jobs, fault);
        self.disconnect(&fault.to_string(), Instant::now() + pause);
    }

    fn disconnect(&mut self, why: &str, until: Instant) {
        self.blocked.store(false, Ordering::SeqCst);
        self.refused_here = false;
        self.waiting.forget_asked();
        if let Some(publisher) = self.link.take(until) {
            log::debug!("closing the connection for copies: {why}");
            publisher.cut();
        }
    }

    /// What is published and not settled.
    fn published(&self) -> impl Iterator<Item = &CopyJob> {
        self.link.get().into_iter().flat_map(Publisher::unsettled)
    }

    fn is_settled(&self) -> bool {
        self.link.get().is_none_or(|publisher| publisher.outstanding() == 0)
    }

    /// Tells everybody who waits what stands in the way.
    fn tell_what_they_wait_for(&self) {
        let blocked = self.is_blocked();
        self.waiting.tell_what_they_wait_for(blocked || self.is_down);
        let under_way = if blocked { WaitsFor::Change } else { WaitsFor::Confirm };
        self.published().for_each(|job| job.requester.set_waits_for(under_way));
    }

    fn next_to_tell(&self) -> Option<Instant> {
        let alarm = self.alarm.as_ref().map(Hold::tell_at);
        [self.waiting.tell_at(), alarm, self.gives_up_at()].into_iter().flatten().min()
    }

    fn gives_up_at(&self) -> Option<Instant> {
        let waits = self.shared.options.is_bounded() && !self.gave_up;
        let holds = self.waiting.longest().into_iter().chain(&self.alarm);
        let since = holds.map(Hold::since).min().filter(|_| waits)?;
        Some(since + self.patience)
    }

    /// How many tasks wait here, until their copies are kept.
    fn held(&self) -> usize {
        self.waiting.wanted() + self.published().filter(|job| !job.requester.is_gone()).count()
    }

    /// An alarm holds copies from when on somebody waits for one.
    fn note_alarm(&mut self) {
        let reason = self.link.get().and_then(Publisher::why_blocked).filter(|_| self.held() > 0);
        let reason = reason.map(|words| Reason::Told(words.to_owned()));
        self.alarm = match (self.alarm.take(), reason) {
            (Some(mut alarm), Some(reason)) => {
                alarm.lasts(reason, Instant::now());
                Some(alarm)
            }
            (None, Some(reason)) => Some(Hold::new(reason, self.tell_every, Instant::now())),
            (_, None) => None,
        };
    }

    /// Says what is held and why, at first and then each minute, and ends a bounded run over it.
    fn tell_what_is_held(&mut self) {
        if self.alarm.as_mut().is_some_and(|alarm| alarm.take_due(Instant::now())) {
            self.tell_alarm();
        }
        self.waiting.tell_refusals();
        if self.gives_up_at().is_some_and(|at| at <= Instant::now()) {
            self.gave_up = true;
            let why = match self.waiting.longest() {
                Some(refused) => format!("copies of tasks are refused ({})", refused.reason()),
                None => "the broker takes no copies of tasks (it has blocked publishing)".to_owned(),
            };
            let queue = &self.shared.options.queue.name;
            // The pool is gone only when the process is about to be.
            let _ = self
                .end_requests
                .send(EndRequest::Fatal(Error::try_again(format!("{why}; the tasks go back to {queue}"))));
        }
    }
}
