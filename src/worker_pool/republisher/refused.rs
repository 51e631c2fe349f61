//! Which copies wait because one was refused: all for the same queue, or a single one that the broker does not take.

use std::time::Instant;

use super::Job;
use super::refusals::{Reason, Refusals};
use crate::backoff::Backoff;
use crate::output;

/// See the module.
pub(super) struct Refused {
    /// By name.
    queues: Refusals<String>,
    /// Single copies, by number.
    single: Refusals<u64>,
}

impl Refused {
    pub(super) fn new(pauses: &Backoff) -> Self {
        Self { queues: Refusals::new(pauses.clone()), single: Refusals::new(pauses.clone()) }
    }

    /// Its queue takes none now; the others for it need not be tried meanwhile.
    pub(super) fn by_its_queue(&mut self, job: &Job, reason: Reason) {
        self.queues.note(job.copy.to.name.clone(), reason, Instant::now());
    }

    /// The broker does not take this one.
    pub(super) fn by_itself(&mut self, job: &Job, reason: Reason) {
        self.single.note(job.number, reason, Instant::now());
    }

    /// It was taken.
    pub(super) fn taken(&mut self, job: &Job) {
        self.queues.lift(&job.copy.to.name);
        self.single.lift(&job.number);
    }

    /// It is published.
    pub(super) fn ask(&mut self, job: &Job) {
        self.queues.ask(&job.copy.to.name);
    }

    /// What was under way is lost.
    pub(super) fn forget_asked(&mut self) {
        self.queues.forget_asked();
    }

    /// Forgets what none of these jobs waits for.
    pub(super) fn retain(&mut self, jobs: &[&Job]) {
        self.single.retain(|number| jobs.iter().any(|job| job.number == *number));
        self.queues.retain(|name| jobs.iter().any(|job| job.copy.to.name == *name));
    }

    /// It may be published.
    pub(super) fn allow(&self, job: &Job, now: Instant) -> bool {
        self.queues.allow(&job.copy.to.name, now) && self.single.allow(&job.number, now)
    }

    /// From when on it may be, where it was refused.
    pub(super) fn allows_at(&self, job: &Job) -> Option<Instant> {
        self.queues.allows_at(&job.copy.to.name).max(self.single.allows_at(&job.number))
    }

    /// Why it, or one for the same queue, is refused.
    pub(super) fn reason(&self, job: &Job) -> Option<&Reason> {
        self.single.reason(&job.number).or_else(|| self.queues.reason(&job.copy.to.name))
    }

    /// Since when the first of them is refused, and why.
    pub(super) fn longest(&self) -> Option<(Instant, &Reason)> {
        [self.queues.longest(), self.single.longest()].into_iter().flatten().min_by_key(|(since, _)| *since)
    }

    /// When there is something to tell again.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        [self.queues.tell_at(), self.single.tell_at()].into_iter().flatten().min()
    }

    /// Says what is refused, at first and then each minute.
    pub(super) fn tell<'j>(&mut self, waiting: &(impl Iterator<Item = &'j Job> + Clone)) {
        let now = Instant::now();
        for (queue, reason) in self.queues.take_due(now) {
            let tasks = waiting.clone().filter(|job| job.copy.to.name == queue).count();
            log::warn!(
                "no copy is taken for {queue} ({reason}): the tasks wait here, unacknowledged, until it is ({tasks} now)"
            );
        }
        for (number, reason) in self.single.take_due(now) {
            if let Some(job) = waiting.clone().find(|job| job.number == number) {
                let (id, queue) = (output::escape(job.original.id()), &job.copy.to.name);
                log::warn!(
                    "no copy of the task {id} is taken for {queue} ({reason}): it waits here, unacknowledged, until it \
                     is"
                );
            }
        }
    }
}
