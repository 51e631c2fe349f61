//! The copies that are not published, in the order in which they are to be, and what becomes of them when they cannot be.
//! Some wait because one was refused: all for the same queue, or a single one that the broker does not take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::hold::{Hold, Reason};
use super::loss::{self, Becomes};
use super::refusals::Refusals;
use super::{CopyJob, CopyResult};
use crate::backoff::Backoff;
use crate::broker::{Fault, FaultKind};
use crate::error::Error;
use crate::events::Event;
use crate::report::tell;
use crate::settlement::WaitsFor;

/// How long a limit on the size of messages is believed without asking again, which costs a connection: it may be
/// raised meanwhile.
const LIMIT_VALID: Duration = Duration::from_mins(10);

/// See the module.
pub(super) struct WaitingCopies {
    /// How many came so far.
    count: u64,
    jobs: VecDeque<CopyJob>,
    /// Queues that take none, by name.
    queues: Refusals<String>,
    /// Single copies that are not taken, by number.
    single: Refusals<u64>,
    /// The largest body that the broker takes, as it said when it refused a larger one, and when that was.
    limit: Option<(u64, Instant)>,
}

impl WaitingCopies {
    /// `pauses` lie before each further attempt at what was refused; `tell_every` between two times that it is told.
    pub(super) fn new(pauses: &Backoff, tell_every: Duration) -> Self {
        let queues = Refusals::new(pauses.clone(), tell_every);
        let single = Refusals::new(pauses.clone(), tell_every);
        Self { count: 0, jobs: VecDeque::new(), queues, single, limit: None }
    }

    /// One more.
    pub(super) fn accept(&mut self, mut job: CopyJob) {
        self.count += 1;
        job.number = self.count;
        self.jobs.push_back(job);
    }

    /// How many tasks wait for them.
    pub(super) fn wanted(&self) -> usize {
        self.jobs.iter().filter(|job| !job.requester.is_gone()).count()
    }

    /// The next one that may be published, if `fits` has nothing against it now.
    pub(super) fn take_next(&mut self, now: Instant, fits: impl FnOnce(&CopyJob) -> bool) -> Option<CopyJob> {
        let allowed =
            |job: &CopyJob| self.queues.allow(&job.copy.to.name, now) && self.single.allow(&job.number, now);
        let at = self.jobs.iter().position(allowed)?;
        if fits(&self.jobs[at]) { self.jobs.remove(at) } else { None }
    }

    /// From when on it may be published, where it was refused.
    fn allows_at(&self, job: &CopyJob) -> Option<Instant> {
        self.queues.allows_at(&job.copy.to.name).max(self.single.allows_at(&job.number))
    }

    /// From when on one of them may be published.
    pub(super) fn wanted_at(&self, now: Instant) -> Option<Instant> {
        self.jobs.iter().map(|job| self.allows_at(job).unwrap_or(now)).min()
    }

    /// When one of them, that may not be published yet, may be.
    pub(super) fn again_at(&self, now: Instant) -> Option<Instant> {
        self.jobs.iter().filter_map(|job| self.allows_at(job)).filter(|at| *at > now).min()
    }

    /// It is published. Where its queue has refused one, no other is until it is settled.
    pub(super) fn published(&mut self, job: &CopyJob) {
        self.queues.ask(&job.copy.to.name);
    }

    /// It was taken.
    pub(super) fn taken(&mut self, job: &CopyJob) {
        self.queues.lift(&job.copy.to.name);
        self.single.lift(&job.number);
    }

    /// It came back: its queue was gone, which can be helped once.
    pub(super) fn came_back(&mut self, mut job: CopyJob) {
        if std::mem::replace(&mut job.came_back, true) {
            self.refuse(job, Reason::Told("the queue is missing".to_owned()));
        } else {
            self.jobs.push_front(job);
        }
    }

    /// Its queue takes none now; the others for it need not be tried meanwhile.
    pub(super) fn refuse(&mut self, job: CopyJob, reason: Reason) {
        self.queues.note(job.copy.to.name.clone(), reason, Instant::now());
        self.jobs.push_front(job);
    }

    /// A task that must not run before its copy is kept waits for the permission, too.
    pub(super) fn not_allowed(&mut self, job: CopyJob, error: &Error) {
        if job.copy.comes_first {
            self.refuse(job, Reason::Told(error.to_string()));
        } else {
            job.requester.answer(CopyResult::NotAllowed(error.clone()));
        }
    }

    /// No copy is allowed.
    pub(super) fn none_is_allowed(&mut self, error: &Error) {
        for job in std::mem::take(&mut self.jobs) {
            self.not_allowed(job, error);
        }
    }

    /// The answer to a copy that is over the broker's limit.
    pub(super) fn too_large(&self, job: &CopyJob) -> Option<CopyResult> {
        let (limit, _) = self.limit.filter(|(_, told)| told.elapsed() < LIMIT_VALID)?;
        let length = job.body.len();
        (length as u64 > limit).then_some(CopyResult::TooLarge { length, limit })
    }

    /// The connection is given up: what was under way will not tell.
    pub(super) fn forget_asked(&mut self) {
        self.queues.forget_asked();
    }

    /// The channel or the connection on which these were published is gone, and nothing is known of them.
    pub(super) fn after_loss(&mut self, jobs: Vec<CopyJob>, fault: &Fault) {
        if let FaultKind::TooLarge(Some(limit)) = fault.kind {
            self.limit = Some((limit, Instant::now()));
        }
        let alone = jobs.len() == 1;
        for mut job in jobs.into_iter().rev() {
            let becomes = loss::after(fault, job.form, &job.original, alone);
            job.suspect |= matches!(becomes, Becomes::AgainAlone | Becomes::AgainAs(_) | Becomes::Later);
            match becomes {
                Becomes::Again | Becomes::AgainAlone => self.jobs.push_front(job),
                Becomes::AgainAs(form) => {
                    tell(&Event::CopyReduced { id: job.original.id(), cause: fault, form });
                    job.form = form;
                    self.jobs.push_front(job);
                }
                Becomes::Later => {
                    self.single.note(job.number, Reason::Told(fault.to_string()), Instant::now());
                    self.jobs.push_back(job);
                }
                Becomes::NotAllowed => self.not_allowed(job, &fault.clone().into_error()),
            }
        }
    }

    /// Forgets those that nobody waits for any more, and the refusals that concern neither the rest nor the `published`.
    pub(super) fn forget_withdrawn<'j>(&'j mut self, published: impl Iterator<Item = &'j CopyJob>) {
        self.jobs.retain(|job| !job.requester.is_gone());
        if self.longest().is_some() {
            let wanted: Vec<&CopyJob> = self.jobs.iter().chain(published).collect();
            self.single.retain(|number| wanted.iter().any(|job| job.number == *number));
            self.queues.retain(|name| wanted.iter().any(|job| job.copy.to.name == *name));
        }
    }

    /// Tells everybody who waits what stands in the way. `nothing_goes`: there is no connection that takes any.
    pub(super) fn tell_what_they_wait_for(&self, nothing_goes: bool) {
        for job in &self.jobs {
            let refused = self.single.reason(&job.number).or_else(|| self.queues.reason(&job.copy.to.name));
            job.requester.set_waits_for(match refused {
                _ if nothing_goes => WaitsFor::Change,
                Some(Reason::QueueFull) => WaitsFor::Room,
                Some(Reason::Told(_)) => WaitsFor::Change,
                None => WaitsFor::Confirm,
            });
        }
    }

    /// What lasts longest of what keeps them here.
    pub(super) fn longest(&self) -> Option<&Hold> {
        [self.queues.longest(), self.single.longest()].into_iter().flatten().min_by_key(|hold| hold.since())
    }

    /// When there is something to tell again.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        [self.queues.tell_at(), self.single.tell_at()].into_iter().flatten().min()
    }

    /// Says what is refused, at first and then each minute.
    pub(super) fn tell_refusals(&mut self) {
        let now = Instant::now();
        for (queue, reason) in self.queues.take_due(now) {
            let tasks = self.jobs.iter().filter(|job| job.copy.to.name == queue).count();
            tell(&Event::CopiesRefused { queue: &queue, reason: &reason, tasks });
        }
        for (number, reason) in self.single.take_due(now) {
            if let Some(job) = self.jobs.iter().find(|job| job.number == number) {
                let (id, queue) = (job.original.id(), &*job.copy.to.name);
                tell(&Event::CopyRefused { id, queue, reason: &reason });
            }
        }
    }
}
