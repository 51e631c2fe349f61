//! Keeps what is handed out again and again from being dropped for that.
//!
//! To look at a task is a delivery, and a quorum queue drops what goes back to it more often than its limit says. Measured
//! with RabbitMQ 3.10, 4.0 and 4.3: each way back counts, whether a task is rejected or its channel or connection ends;
//! only a nack does not, on 4.3. The limit may come from a policy, and AMQP does not tell of those.

use super::interrupt::Interrupt;
use super::mover::{Mover, Moving};
use super::task::record_in;
use crate::broker::{Properties, Publisher, QueueSpec, Role, SessionOptions};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::report::tell;

/// A task that has gone back so often is replaced by a copy, which has not, at the price of its place in the row. With a
/// limit of 2 it may go back once more, should this look end before the copy is kept.
const REPLACE_AT: u64 = 1;

/// Replaces by copies those tasks that go back and are near a delivery limit. Connects when there are any. A failure is
/// told and no error where the tasks are dead: people have to see them. Those that wait for a worker can be left alone.
pub struct Refresher<'c> {
    options: SessionOptions,
    queue: QueueSpec,
    near_limit: Vec<Moving<'c>>,
    mover: Option<Mover<'c>>,
    failed: Option<Error>,
    interrupt: Interrupt,
}

impl<'c> Refresher<'c> {
    /// For the tasks of `queue`.
    pub fn new(options: &SessionOptions, queue: &QueueSpec, interrupt: &Interrupt) -> Self {
        let (options, queue, interrupt) = (options.clone(), queue.clone(), interrupt.clone());
        Self { options, queue, near_limit: Vec::new(), mover: None, failed: None, interrupt }
    }

    /// With a connection that is there already.
    pub fn with(
        publisher: Publisher<Moving<'c>>,
        options: &SessionOptions,
        queue: &QueueSpec,
        interrupt: &Interrupt,
    ) -> Self {
        let mover = Mover::new(publisher, interrupt);
        Self { mover: Some(mover), ..Self::new(options, queue, interrupt) }
    }

    /// This task goes back when its channel is closed, unless it is replaced before.
    pub fn consider(&mut self, task: impl Into<Moving<'c>>) {
        let task = task.into();
        if self.failed.is_none() && near_delivery_limit(&task.original.properties) {
            self.near_limit.push(task);
        }
    }

    /// Replaces them. Meanwhile nothing is to be handed out: the copies would be.
    pub fn refresh(&mut self) {
        for task in std::mem::take(&mut self.near_limit) {
            if self.failed.is_some() {
                break;
            }
            let refreshed = self.replace(task);
            self.note(refreshed);
        }
        if let Some(mover) = self.mover.as_mut().filter(|_| self.failed.is_none()) {
            let finished = mover.finish();
            self.note(finished);
        }
    }

    fn replace(&mut self, task: Moving<'c>) -> Result<()> {
        let mover = match &mut self.mover {
            Some(mover) => mover,
            none => {
                let publisher = Publisher::open_verified(&self.options, &self.queue)?;
                none.insert(Mover::new(publisher, &self.interrupt))
            }
        };
        // The same in everything but how often it was delivered, and its place.
        let record = record_in(&self.queue.role, &task.original.properties);
        mover.replace(task, &self.queue.name, &record)
    }

    fn note(&mut self, refreshed: Result<()>) {
        if let Err(error) = refreshed {
            if self.queue.role == Role::Dead {
                tell(&Event::NotRefreshed { queue: &self.queue.name, error: &error });
            }
            self.failed = Some(error);
        }
    }

    /// Ends with the last of them.
    pub fn close(mut self) -> Result<()> {
        self.refresh();
        if let Some(mover) = self.mover.take() {
            mover.close();
        }
        let queue = &self.queue;
        self.failed.filter(|_| queue.role != Role::Dead).map_or(Ok(()), |error| {
            Err(error.context(&format!(
                "tasks in {} went back there before and could not be replaced by copies; a quorum queue drops what goes \
                 back more often than its limit says, so do not look at them again",
                queue.name
            )))
        })
    }
}

fn near_delivery_limit(properties: &Properties) -> bool {
    properties.delivery_count().is_some_and(|count| count >= REPLACE_AT)
}
