//! Replaces tasks by copies, some of them at a time: a task is taken out when the broker has confirmed its copy, and not
//! before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Requeued;
use super::interrupt::Interrupt;
use crate::broker::{Body, CopyForm, Delivery, Fault, Publisher, Record, Settlement, Wake};
use crate::error::{Error, Result};

/// Copies under way at a time.
pub(super) const WINDOW: u16 = 100;
/// How long the broker may confirm nothing, whatever else it says.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Mover<'c> {
    publisher: Publisher,
    under_way: HashMap<u64, Moving<'c>>,
    done: Requeued,
    /// When the last of them was settled, or the first one published.
    since: Instant,
    interrupt: Interrupt,
}

/// A task whose copy is not known to be confirmed.
pub(super) struct Moving<'c> {
    pub(super) original: Delivery<'c>,
    pub(super) body: Body,
}

impl<'c> Mover<'c> {
    pub(super) fn new(publisher: Publisher, interrupt: &Interrupt) -> Self {
        let (done, since, interrupt) = (Requeued::default(), Instant::now(), interrupt.clone());
        Self { publisher, under_way: HashMap::new(), done, since, interrupt }
    }

    /// Publishes a copy with this record. Waits where many are under way.
    pub(super) fn replace(&mut self, moving: Moving<'c>, to: &str, record: &Record) -> Result<()> {
        let properties = moving.original.properties();
        let copy = properties.copy(record, CopyForm::Full, self.publisher.frame_max());
        if self.under_way.is_empty() {
            self.since = Instant::now();
        }
        let published = self.publisher.publish(to, &moving.body, &copy);
        // One that was not published is under way to nowhere, and so is among those that are left in the end.
        let tag = published.as_ref().copied().unwrap_or_default();
        self.under_way.insert(tag, moving);
        if let Err(fault) = published {
            self.take_out_settled()?;
            return Err(fault.into_error());
        }
        // The broker sends nothing more while so many are unanswered.
        while self.publisher.is_busy() || self.under_way.len() >= usize::from(WINDOW) {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits for the last of them.
    pub(super) fn finish(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            self.settle()?;
        }
        Ok(())
    }

    /// What was done, and what was begun and not done.
    pub(super) fn close(self) -> (Requeued, Vec<Moving<'c>>) {
        self.publisher.close();
        (self.done, self.under_way.into_values().collect())
    }

    /// Waits for confirms, and takes out what they confirm.
    fn settle(&mut self) -> Result<()> {
        let deadline = self.since + CONFIRM_TIMEOUT;
        if Instant::now() >= deadline {
            return Err(Error::try_again("the broker did not confirm in time"));
        }
        match self.publisher.wait::<(), i32>(None, self.interrupt.signals(), Some(deadline)) {
            Wake::Settled => self.take_out_settled(),
            Wake::Blocked(reason) => {
                log::warn!("the broker has blocked publishing ({reason}); waiting for it to go on");
                Ok(())
            }
            Wake::Interrupted(signal) => self.interrupt.note(signal),
            Wake::Unblocked | Wake::Input(_) | Wake::TimedOut => Ok(()),
            Wake::Lost(fault) => {
                self.take_out_settled()?;
                Err(fault.into_error())
            }
        }
    }

    fn take_out_settled(&mut self) -> Result<()> {
        let mut result = Ok(());
        for (tag, settlement) in self.publisher.take_settled() {
            let settled = match settlement {
                Settlement::Confirmed => self.take_out(tag),
                Settlement::Unroutable => Err(Error::configuration("the queue to send them to is gone")),
                Settlement::Nacked => Err(Error::try_again("the broker refused a copy; is the queue full?")),
            };
            result = result.and(settled);
        }
        result
    }

    fn take_out(&mut self, tag: u64) -> Result<()> {
        let Some(Moving { original, .. }) = self.under_way.remove(&tag) else { return Ok(()) };
        self.since = Instant::now();
        self.done.count += 1;
        self.done.ids.insert(original.properties().id().to_owned());
        original.ack().map_err(Fault::into_error)
    }
}

impl<'c> From<Delivery<'c>> for Moving<'c> {
    fn from(mut original: Delivery<'c>) -> Self {
        let body = Arc::new(original.take_body());
        Self { original, body }
    }
}
