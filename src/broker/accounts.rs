//! Holds what the broker sends against what it was asked for. amiquip queues without limit whatever comes: deliveries
//! beyond the prefetch, returns and confirms of messages that were never published, notices of alarms.

mod notices;
mod unanswered;
mod unconfirmed;

use std::collections::HashMap;
use std::time::Instant;

use self::notices::Notices;
use self::unanswered::Unanswered;
use self::unconfirmed::Unconfirmed;
use super::methods::{
    ACK, BLOCKED, CANCEL, CHANNEL_CLOSE, CHANNEL_CLOSE_OK, CHANNEL_OPEN, CONSUME, DELIVER, Method, NACK,
    PUBLISH, QOS, REJECT, RETURN, UNBLOCKED,
};
use super::violation::Violation;

/// How many small methods a channel may get that nothing asked for. RabbitMQ sends none; it costs nothing to bear a few.
const UNASKED_MAX: u32 = 100;

/// What was asked for on a connection, in both directions seen from the socket.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    channels: HashMap<u16, Account>,
    /// Channels that the broker has closed, until the answer to that has gone out.
    closed_by_broker: Vec<u16>,
    notices: Notices,
}

/// One channel's.
#[derive(Debug, Default)]
struct Account {
    unanswered: Unanswered,
    unconfirmed: Unconfirmed,
    /// How many consumers the broker may still cancel.
    consumers: u32,
    unasked: u32,
    /// What the next content header of the broker's belongs to.
    coming: Option<Coming>,
}

#[derive(Debug, Clone, Copy)]
enum Coming {
    Delivery,
    Return,
}

impl Accounts {
    /// A method that was written, with as much of its arguments as is needed here.
    pub(super) fn note_sent(&mut self, channel: u16, payload: &[u8]) {
        let Some((method, arguments)) = payload.split_first_chunk::<4>() else { return };
        match *method {
            CHANNEL_OPEN => {
                self.channels.insert(channel, Account::default());
                return;
            }
            CHANNEL_CLOSE_OK => self.closed_by_broker.retain(|closed| *closed != channel),
            _ => {}
        }
        let Some(account) = self.channels.get_mut(&channel) else { return };
        match *method {
            // After the size in bytes, which RabbitMQ does not know.
            QOS => account.unanswered.set_prefetch(usize::from(short(arguments, 4))),
            CONSUME => {
                account.consumers += 1;
                account.unanswered.begin_anew();
            }
            PUBLISH => account.unconfirmed.note_publish(),
            ACK | NACK => account.unanswered.settle(long(arguments, 0), flag(arguments, 8)),
            REJECT => account.unanswered.settle(long(arguments, 0), false),
            _ => {}
        }
    }

    /// The properties and body of a publish, in bytes.
    pub(super) fn note_sent_content(&mut self, channel: u16, bytes: u64) {
        if let Some(account) = self.channels.get_mut(&channel) {
            account.unconfirmed.note_content(bytes);
        }
    }

    /// A method of the broker's. What is no more than it was asked for passes.
    pub(super) fn note_received(&mut self, channel: u16, payload: &[u8]) -> Result<(), Violation> {
        let Some((method, arguments)) = payload.split_first_chunk::<4>() else { return Ok(()) };
        match *method {
            BLOCKED | UNBLOCKED => return self.notices.note(Instant::now()),
            CHANNEL_CLOSE | CHANNEL_CLOSE_OK => {
                // amiquip ends the connection over the close of a channel that it did not open.
                let was_open = self.channels.remove(&channel).is_some();
                if was_open && *method == CHANNEL_CLOSE {
                    self.closed_by_broker.push(channel);
                }
                return Ok(());
            }
            _ => {}
        }
        // amiquip refuses all else on a channel that it did not open.
        let Some(account) = self.channels.get_mut(&channel) else { return Ok(()) };
        account.note_received(*method, arguments)
    }

    /// Whether the broker has closed a channel and the answer to that has not gone out.
    pub(super) fn owes_close_ok(&self) -> bool {
        !self.closed_by_broker.is_empty()
    }

    /// The content header that follows a delivery, a return or a get: the bytes of its frame and of the body to come.
    pub(super) fn note_received_content(&mut self, channel: u16, bytes: u64) -> Result<(), Violation> {
        let Some(account) = self.channels.get_mut(&channel) else { return Ok(()) };
        match account.coming.take() {
            Some(Coming::Delivery) => account.unanswered.note_content(bytes),
            Some(Coming::Return) => account.unconfirmed.note_returned_content(bytes),
            None => Ok(()),
        }
    }
}

impl Account {
    fn note_received(&mut self, method: Method, arguments: &[u8]) -> Result<(), Violation> {
        match method {
            DELIVER => {
                let tag_at = 1 + usize::from(arguments.first().copied().unwrap_or_default());
                self.coming = Some(Coming::Delivery);
                self.unanswered.note_delivery(long(arguments, tag_at))
            }
            RETURN => {
                self.coming = Some(Coming::Return);
                let asked = self.unconfirmed.take_return();
                self.unless(asked, "returns of messages that were not published")
            }
            ACK | NACK => {
                let asked = self.unconfirmed.settle(long(arguments, 0), flag(arguments, 8));
                self.unless(asked, "confirms of messages that were not published")
            }
            // Each may have to be answered, and answers wait in memory.
            CANCEL => {
                let asked = self.consumers > 0;
                self.consumers = self.consumers.saturating_sub(1);
                self.unless(asked, "the end of consumers that never were")
            }
            _ => Ok(()),
        }
    }

    fn unless(&mut self, asked: bool, what: &str) -> Result<(), Violation> {
        self.unasked += u32::from(!asked);
        if self.unasked <= UNASKED_MAX { Ok(()) } else { Err(Violation::Unasked(what.to_owned())) }
    }
}

fn short(arguments: &[u8], at: usize) -> u16 {
    arguments.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn long(arguments: &[u8], at: usize) -> u64 {
    arguments.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The first of the bits in a byte.
fn flag(arguments: &[u8], at: usize) -> bool {
    arguments.get(at).is_some_and(|bits| bits & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(accounts: &mut Accounts, method: Method, arguments: &[u8]) {
        accounts.note_sent(1, &[&method[..], arguments].concat());
    }

    fn received(accounts: &mut Accounts, method: Method, arguments: &[u8]) -> Result<(), Violation> {
        accounts.note_received(1, &[&method[..], arguments].concat())
    }

    fn open() -> Accounts {
        let mut accounts = Accounts::default();
        sent(&mut accounts, CHANNEL_OPEN, &[0]);
        accounts
    }

    fn settled(tag: u64) -> Vec<u8> {
        [&tag.to_be_bytes()[..], &[0]].concat()
    }

    fn delivery(tag: u64) -> Vec<u8> {
        [&b"\x03tag"[..], &tag.to_be_bytes(), &[0]].concat()
    }

    /// How many of these pass.
    fn pass(accounts: &mut Accounts, method: Method, arguments: &[u8]) -> usize {
        (0..100_000).take_while(|_| received(accounts, method, arguments).is_ok()).count()
    }

    #[test]
    fn what_was_asked_for_passes_for_ever() {
        let mut accounts = open();
        sent(&mut accounts, QOS, &[0, 0, 0, 0, 0, 1, 0]);
        for tag in 1..10_000 {
            sent(&mut accounts, PUBLISH, &[0, 0, 0]);
            accounts.note_sent_content(1, 1000);
            assert_eq!(received(&mut accounts, RETURN, &[]), Ok(()));
            assert_eq!(accounts.note_received_content(1, 1000), Ok(()));
            assert_eq!(received(&mut accounts, ACK, &settled(tag)), Ok(()));
            assert_eq!(received(&mut accounts, DELIVER, &delivery(tag)), Ok(()));
            assert_eq!(accounts.note_received_content(1, 1 << 20), Ok(()));
            sent(&mut accounts, CONSUME, &[]);
            let answer = [ACK, REJECT, NACK][usize::try_from(tag % 3).unwrap()];
            sent(&mut accounts, answer, &settled(tag));
            assert_eq!(received(&mut accounts, CANCEL, b"\x03tag\x00"), Ok(()));
        }
    }

    #[test]
    fn each_consumer_has_a_prefetch_of_its_own() {
        let mut accounts = open();
        sent(&mut accounts, QOS, &[0, 0, 0, 0, 0, 1, 0]);
        // Each is cancelled with what it delivered set aside.
        for tag in 1..100 {
            sent(&mut accounts, CONSUME, &[]);
            assert_eq!(received(&mut accounts, DELIVER, &delivery(tag)), Ok(()));
            assert_eq!(accounts.note_received_content(1, 100 << 20), Ok(()));
        }
        sent(&mut accounts, ACK, &settled(7));
        assert!(pass(&mut accounts, DELIVER, &delivery(100)) < 100);
    }

    #[test]
    fn what_nothing_asked_for_ends() {
        for (method, arguments) in
            [(RETURN, vec![]), (ACK, settled(7)), (NACK, settled(7)), (CANCEL, vec![0])]
        {
            assert_eq!(pass(&mut open(), method, &arguments), UNASKED_MAX as usize, "{method:?}");
        }
        assert!(pass(&mut open(), BLOCKED, &[0]) < 1000);
        let mut accounts = open();
        sent(&mut accounts, QOS, &[0, 0, 0, 0, 0, 2, 0]);
        assert!((2..100).contains(&pass(&mut accounts, DELIVER, &delivery(1))));
    }

    #[test]
    fn a_channel_begins_anew_when_it_is_opened_again() {
        let mut accounts = open();
        assert_eq!(pass(&mut accounts, ACK, &settled(1)), UNASKED_MAX as usize);
        assert_eq!(received(&mut accounts, CHANNEL_CLOSE, &[]), Ok(()));
        sent(&mut accounts, CHANNEL_OPEN, &[0]);
        assert_eq!(pass(&mut accounts, ACK, &settled(1)), UNASKED_MAX as usize);
    }

    #[test]
    fn a_channel_that_is_not_open_is_amiquips_matter() {
        assert_eq!(pass(&mut Accounts::default(), ACK, &settled(1)), 100_000);
    }

    #[test]
    fn methods_that_break_off_say_nothing() {
        let mut accounts = open();
        for method in [QOS, CONSUME, PUBLISH, ACK, REJECT] {
            accounts.note_sent(1, &method[..3]);
            sent(&mut accounts, method, &[]);
        }
        for method in [DELIVER, RETURN, ACK, CANCEL] {
            assert_eq!(received(&mut accounts, method, &[]), Ok(()));
            assert_eq!(accounts.note_received(1, &method[..3]), Ok(()));
        }
    }
}
