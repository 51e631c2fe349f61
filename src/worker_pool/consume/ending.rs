//! The end of a thread's work on one channel: what it has taken is settled, as far as that can be.

use std::time::Duration;

use crossbeam_channel::select;

use super::Consuming;
use crate::broker::Fault;
use crate::events::Event;
use crate::report::tell;
use crate::settlement::Disposition;

/// How often to look after the last copies although nothing woke the thread.
const LAST_LOOK: Duration = Duration::from_secs(1);

impl Consuming<'_> {
    /// Takes nothing more. What is here already is run where the queue is to be empty, and the last copies are waited
    /// for; when the worker was told to stop, only while they can be kept.
    pub(super) fn finish(&mut self) -> Result<(), Fault> {
        self.intake.consumer.cancel()?;
        let shared = &self.context.shared;
        if shared.finishing() {
            while let (Some(permit), Some(waiting)) = (shared.permits.take(), self.intake.leftover()) {
                self.take(waiting, permit)?;
            }
        }
        loop {
            self.settle_answered()?;
            self.give_back_waiting()?;
            self.end_held()?;
            if self.intake.aside.is_empty() {
                return Ok(());
            }
            select! {
                recv(self.context.wake.1) -> _ => {}
                recv(self.context.stop.aborting()) -> _ => {}
                default(LAST_LOOK) => {}
            }
        }
    }

    /// Gives back what has arrived and was not looked at. Where a copy was asked for, it may be kept by now, and what must
    /// not go back needs one.
    pub(super) fn give_back_waiting(&mut self) -> Result<(), Fault> {
        while let Some(waiting) = self.intake.leftover() {
            if waiting.pending_copy.is_some() {
                self.set_aside(waiting);
            } else if self.context.must_not_go_back(&waiting.delivery) {
                if let (Some(due), _) = self.process(waiting) {
                    self.answer(due)?;
                }
            } else {
                self.intake.settled(waiting.consumer);
                waiting.delivery.requeue()?;
            }
        }
        Ok(())
    }

    /// Decides about what may get no copy while this worker lives.
    fn end_held(&mut self) -> Result<(), Fault> {
        let (stops, aborted) = (self.context.stop.is_draining(), self.context.stop.is_aborting());
        let mut given_back = 0;
        for _ in 0..self.intake.aside.len() {
            let Some(aside) = self.intake.aside.pop_front() else { break };
            match self.held(&aside).at_the_end(stops, aborted) {
                Disposition::RunUncounted(why) => {
                    let waiting = self.uncounted(aside, &why);
                    let _last = self.context.shared.run_last_chance();
                    if let (Some(due), _) = self.process(waiting) {
                        self.answer(due)?;
                    }
                }
                Disposition::GiveBack => {
                    if aside.pending_copy.is_some() {
                        given_back += 1;
                    } else {
                        self.context.shared.hold_back();
                    }
                    self.settle(aside, Disposition::GiveBack)?;
                }
                disposition => self.settle(aside, disposition)?,
            }
        }
        if given_back > 0 {
            tell(&Event::WithoutCopies { count: given_back });
        }
        Ok(())
    }

    /// What the channel held goes back with it.
    pub(super) fn tell_last_returns(&mut self) {
        let held = self.intake.held();
        let count = held.filter(|delivery| self.context.next_return_may_be_the_last(delivery)).count();
        if count > 0 {
            tell(&Event::LastReturns { queue: &self.context.shared.options.queue.name, count });
        }
    }
}
