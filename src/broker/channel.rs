//! One AMQP channel, owned by the thread that uses it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use amiquip::ConsumerMessage;
use crossbeam_channel::{Receiver, TryRecvError};

use super::fault::Fault;
use super::watchdog::{Guard, KillSwitch};

/// How long closing a channel or a connection may take before the socket is cut: nothing depends on it.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel whose every call has a deadline. It is `Send` but not `Sync`: acknowledgements go back on the
/// channel that delivered because nobody else has it.
pub struct Channel {
    /// `None` only while it is being closed.
    amqp: Option<amiquip::Channel>,
    /// Clones of the receivers of all consumers this channel had. amiquip's I/O thread ends the whole connection
    /// when it finds a consumer's receiver gone, which a cancel or close can make it look for at any time
    /// (docs/amiquip.md, H1). Declared after the channel, so dropped after it.
    keepalive: RefCell<Vec<Receiver<ConsumerMessage>>>,
    /// Deliveries that were taken and are not settled, without their contents, by their tags.
    unanswered: RefCell<BTreeMap<u64, amiquip::Delivery>>,
    kill: KillSwitch,
    rpc_timeout: Duration,
}

impl Channel {
    pub(super) fn new(amqp: amiquip::Channel, kill: KillSwitch, rpc_timeout: Duration) -> Self {
        let (keepalive, unanswered) = (RefCell::default(), RefCell::default());
        Self { amqp: Some(amqp), keepalive, unanswered, kill, rpc_timeout }
    }

    /// How many deliveries of its consumers were taken and are not settled.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        u32::try_from(self.unanswered.borrow().len()).unwrap_or(u32::MAX)
    }

    pub(super) fn keep_unanswered(&self, delivery: amiquip::Delivery) {
        self.unanswered.borrow_mut().insert(delivery.delivery_tag(), delivery);
    }

    /// How many of these, in ascending order, nothing else that is unanswered is older than.
    pub(super) fn older_than_all_others(&self, tags: &[u64]) -> usize {
        older_than_all_others(tags, self.unanswered.borrow().keys())
    }

    pub(super) fn take_unanswered(&self, tag: u64) -> Result<amiquip::Delivery, Fault> {
        self.unanswered.borrow_mut().remove(&tag).ok_or_else(|| Fault::lost("a delivery was answered twice"))
    }

    /// Calls amiquip under the channel's deadline, which begins anew as long as other things arrive; `what` names the
    /// call for the error.
    pub(super) fn call<'a, T>(
        &'a self,
        what: &'static str,
        call: impl FnOnce(&'a amiquip::Channel) -> amiquip::Result<T>,
    ) -> Result<T, Fault> {
        self.call_under(self.kill.patient_guard(self.rpc_timeout, what), what, call)
    }

    /// As [`Channel::call`], with a deadline of its own that holds whatever arrives.
    pub(super) fn call_within<'a, T>(
        &'a self,
        timeout: Duration,
        what: &'static str,
        call: impl FnOnce(&'a amiquip::Channel) -> amiquip::Result<T>,
    ) -> Result<T, Fault> {
        self.call_under(self.kill.guard(timeout, what), what, call)
    }

    fn call_under<'a, T>(
        &'a self,
        _guard: Guard,
        what: &str,
        call: impl FnOnce(&'a amiquip::Channel) -> amiquip::Result<T>,
    ) -> Result<T, Fault> {
        let amqp = self.amqp.as_ref().ok_or_else(|| Fault::lost("the channel is closed"))?;
        call(amqp).map_err(|error| Fault::from(error).lacking_permission(what).because(self.kill.fired()))
    }

    /// Also lets go of those that have ended: their last message was taken, so nothing looks for them any more.
    pub(super) fn keep_alive(&self, receiver: Receiver<ConsumerMessage>) {
        let mut receivers = self.keepalive.borrow_mut();
        receivers.retain(|receiver| !matches!(receiver.try_recv(), Err(TryRecvError::Disconnected)));
        receivers.push(receiver);
    }

    /// Gives back all that was delivered and is not settled. A nack, because RabbitMQ 4.3 does not count it as a delivery
    /// that failed; earlier versions count every way back.
    pub fn give_all_back(&self) -> Result<(), Fault> {
        self.call("basic.nack", |amqp| amqp.nack_all(true))
    }

    /// Closes the channel. When it returns `Ok`, the broker has processed everything sent on it before,
    /// acknowledgements included.
    ///
    /// # Errors
    /// Whatever had closed it before, or the loss of the connection.
    pub fn close(mut self) -> Result<(), Fault> {
        let Some(amqp) = self.amqp.take() else { return Ok(()) };
        let _guard = self.kill.patient_guard(CLOSE_TIMEOUT, "a channel close");
        amqp.close().map_err(|error| Fault::from(error).because(self.kill.fired()))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(amqp) = self.amqp.take() {
            let _guard = self.kill.patient_guard(CLOSE_TIMEOUT, "a channel close");
            drop(amqp);
        }
    }
}

fn older_than_all_others<'t>(tags: &[u64], unanswered: impl Iterator<Item = &'t u64>) -> usize {
    tags.iter().zip(unanswered).take_while(|(tag, unanswered)| tag == unanswered).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_acknowledgement_covers_those_that_nothing_older_is_unanswered_before() {
        let older = |tags: &[u64], unanswered: &[u64]| older_than_all_others(tags, unanswered.iter());
        assert_eq!(older(&[1, 2, 3], &[1, 2, 3, 4]), 3);
        // What was answered before leaves no gap.
        assert_eq!(older(&[2, 5, 9], &[2, 5, 9]), 3);
        assert_eq!(older(&[1, 3], &[1, 2, 3]), 1);
        assert_eq!(older(&[2, 3], &[1, 2, 3]), 0);
        assert_eq!(older(&[], &[1]), 0);
    }
}
