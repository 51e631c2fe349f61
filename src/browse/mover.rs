//! Replaces tasks by copies, some of them at a time: a task is taken out when the broker has confirmed its copy, and not
//! before.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::interrupt::Interrupt;
use super::key::Key;
use crate::broker::{Body, CopyForm, Delivery, Fault, Publisher, Record, Settlement, Wake, ack_all};
use crate::error::{Error, Result};
use crate::events::{Event, WhoWaits};
use crate::report::tell;

/// Copies under way at a time.
pub const WINDOW: u16 = 100;
/// How long the broker may confirm nothing, whatever else it says.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// See the module.
pub struct Mover<'c> {
    publisher: Publisher<Moving<'c>>,
    done: Moved,
    /// Originals whose copies are confirmed. They are acknowledged together: see [`ack_all`].
    confirmed: Vec<Delivery<'c>>,
    /// Those that the broker did not take.
    left: Vec<Moving<'c>>,
    /// When the last of them was settled, or the first one published.
    since: Instant,
    interrupt: Interrupt,
}

/// A task whose copy is not known to be confirmed.
pub struct Moving<'c> {
    pub original: Delivery<'c>,
    pub body: Body,
    /// Its key, where that has to be told when it is done.
    pub key: Option<Key>,
}

/// What was replaced by copies.
#[derive(Default)]
pub struct Moved {
    /// How many tasks.
    pub count: u32,
    /// The keys of those that had to be told.
    pub keys: HashSet<Key>,
}

impl<'c> Mover<'c> {
    pub fn new(publisher: Publisher<Moving<'c>>, interrupt: &Interrupt) -> Self {
        let (done, since, interrupt) = (Moved::default(), Instant::now(), interrupt.clone());
        Self { publisher, done, confirmed: Vec::new(), left: Vec::new(), since, interrupt }
    }

    /// Publishes a copy with this record. Waits where many are under way.
    pub fn replace(&mut self, moving: Moving<'c>, to: &str, record: &Record) -> Result<()> {
        let properties = &moving.original.properties;
        let copy = properties.copy(record, CopyForm::Full, self.publisher.frame_max());
        if self.publisher.outstanding() == 0 {
            self.since = Instant::now();
        }
        let body = Arc::clone(&moving.body);
        if let Err(fault) = self.publisher.publish(to, &body, &copy, moving) {
            self.take_settled()?;
            return Err(fault.into_error());
        }
        while self.publisher.is_busy() {
            self.settle()?;
        }
        // The broker sends nothing more while so many are unanswered.
        if self.publisher.outstanding() + self.confirmed.len() >= usize::from(WINDOW) {
            while self.publisher.outstanding() > usize::from(WINDOW) / 2 {
                self.settle()?;
            }
            self.take_out_confirmed()?;
        }
        Ok(())
    }

    /// How many were replaced so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.done.count
    }

    /// Waits for the last of them.
    pub fn finish(&mut self) -> Result<()> {
        let mut settled = Ok(());
        while settled.is_ok() && self.publisher.outstanding() > 0 {
            settled = self.settle();
        }
        let taken_out = self.take_out_confirmed();
        settled.and(taken_out)
    }

    /// What was done, and what was begun and not done.
    pub fn close(mut self) -> (Moved, Vec<Moving<'c>>) {
        // Where the channel is gone as well they come again, beside their copies.
        let _ = self.take_out_confirmed();
        self.left.extend(self.publisher.take_unsettled());
        self.publisher.close();
        (self.done, self.left)
    }

    /// Waits for confirms.
    fn settle(&mut self) -> Result<()> {
        // Nothing more is confirmed for as long as an alarm lasts.
        if self.publisher.is_blocked() {
            self.interrupt.result()?;
        }
        let deadline = self.since + CONFIRM_TIMEOUT;
        if Instant::now() >= deadline {
            return Err(Error::try_again("the broker did not confirm in time"));
        }
        match self.publisher.wait::<(), i32>(None, self.interrupt.signals(), Some(deadline)) {
            Wake::Settled => self.take_settled(),
            Wake::Blocked(reason) => {
                let (broker, reason, waiting) = ("the broker", reason.as_str(), WhoWaits::Dead);
                tell(&Event::PublishingBlocked { broker, reason, waiting });
                Ok(())
            }
            Wake::Interrupted(signal) => self.interrupt.note(signal),
            Wake::Unblocked | Wake::Input(_) | Wake::TimedOut => Ok(()),
            Wake::Lost(fault) => {
                self.take_settled()?;
                Err(fault.into_error())
            }
        }
    }

    fn take_settled(&mut self) -> Result<()> {
        let mut result = Ok(());
        for (moving, settlement) in self.publisher.take_settled() {
            let refusal = match settlement {
                Settlement::Confirmed => {
                    self.since = Instant::now();
                    self.done.count += 1;
                    self.done.keys.extend(moving.key);
                    self.confirmed.push(moving.original);
                    continue;
                }
                Settlement::Unroutable => Error::configuration("the queue to send them to is gone"),
                Settlement::Nacked => Error::try_again("the broker refused a copy; is the queue full?"),
            };
            self.left.push(moving);
            result = result.and(Err(refusal));
        }
        result
    }

    fn take_out_confirmed(&mut self) -> Result<()> {
        ack_all(std::mem::take(&mut self.confirmed)).map_err(Fault::into_error)
    }
}

impl<'c> From<Delivery<'c>> for Moving<'c> {
    fn from(mut original: Delivery<'c>) -> Self {
        let body = Arc::new(original.take_body());
        Self { original, body, key: None }
    }
}
