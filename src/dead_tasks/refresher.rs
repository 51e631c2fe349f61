//! Keeps what is handed out again and again from being dropped for that.
//!
//! To look at a task is a delivery, and a quorum queue drops what goes back to it more often than its limit says. Measured
//! with RabbitMQ 3.10, 4.0 and 4.3: each way back counts, whether a task is rejected or its channel or connection ends;
//! only a nack does not, on 4.3. The limit may come from a policy, and AMQP does not tell of those.

use super::interrupt::Interrupt;
use super::mover::{Mover, Moving};
use super::record_of;
use crate::broker::{Properties, Publisher, QueueSpec, SessionOptions};
use crate::error::Result;
use crate::events::Event;
use crate::report::tell;

/// A task that has gone back so often is replaced by a copy, which has not, at the price of its place in the row. With a
/// limit of 2 it may go back once more, should this look end before the copy is kept.
const REPLACE_AT: u64 = 1;

/// Replaces by copies those tasks that go back and are near a delivery limit. Connects when there are any; a failure is told
/// and is no error.
pub(super) struct Refresher<'c> {
    options: SessionOptions,
    dead: QueueSpec,
    near_limit: Vec<Moving<'c>>,
    mover: Option<Mover<'c>>,
    failed: bool,
    interrupt: Interrupt,
}

impl<'c> Refresher<'c> {
    pub(super) fn new(options: &SessionOptions, dead: &QueueSpec, interrupt: &Interrupt) -> Self {
        let (options, dead, interrupt) = (options.clone(), dead.clone(), interrupt.clone());
        Self { options, dead, near_limit: Vec::new(), mover: None, failed: false, interrupt }
    }

    /// With a connection that is there already.
    pub(super) fn with(
        publisher: Publisher<Moving<'c>>,
        options: &SessionOptions,
        dead: &QueueSpec,
        interrupt: &Interrupt,
    ) -> Self {
        let mover = Mover::new(publisher, interrupt);
        Self { mover: Some(mover), ..Self::new(options, dead, interrupt) }
    }

    /// This task goes back when its channel is closed, unless it is replaced before.
    pub(super) fn consider(&mut self, task: impl Into<Moving<'c>>) {
        let task = task.into();
        if !self.failed && near_delivery_limit(&task.original.properties) {
            self.near_limit.push(task);
        }
    }

    /// Replaces them. Meanwhile nothing is to be handed out: the copies would be.
    pub(super) fn refresh(&mut self) {
        for task in std::mem::take(&mut self.near_limit) {
            if self.failed {
                break;
            }
            let refreshed = self.replace(task);
            self.note(refreshed);
        }
        if let Some(mover) = self.mover.as_mut().filter(|_| !self.failed) {
            let finished = mover.finish();
            self.note(finished);
        }
    }

    fn replace(&mut self, task: Moving<'c>) -> Result<()> {
        let mover = match &mut self.mover {
            Some(mover) => mover,
            none => {
                let publisher = Publisher::open_verified(&self.options, &self.dead)?;
                none.insert(Mover::new(publisher, &self.interrupt))
            }
        };
        // The same in everything but how often it was delivered, and its place.
        let record = record_of(&task.original.properties);
        mover.replace(task, &self.dead.name, &record)
    }

    fn note(&mut self, refreshed: Result<()>) {
        if let Err(error) = refreshed {
            self.failed = true;
            tell(&Event::NotRefreshed { queue: &self.dead.name, error: &error });
        }
    }

    /// Ends with the last of them.
    pub(super) fn close(mut self) {
        self.refresh();
        if let Some(mover) = self.mover.take() {
            mover.close();
        }
    }
}

fn near_delivery_limit(properties: &Properties) -> bool {
    properties.delivery_count().is_some_and(|count| count >= REPLACE_AT)
}
