//! The methods of AMQP 0-9-1 that are looked at on their way, by class and number.

pub(super) type Method = [u8; 4];

pub(super) const START: Method = [0, 10, 0, 10];
pub(super) const TUNE: Method = [0, 10, 0, 30];
pub(super) const BLOCKED: Method = [0, 10, 0, 60];
pub(super) const UNBLOCKED: Method = [0, 10, 0, 61];
pub(super) const CHANNEL_OPEN: Method = [0, 20, 0, 10];
pub(super) const CHANNEL_CLOSE: Method = [0, 20, 0, 40];
pub(super) const CHANNEL_CLOSE_OK: Method = [0, 20, 0, 41];
pub(super) const QOS: Method = [0, 60, 0, 10];
pub(super) const CONSUME: Method = [0, 60, 0, 20];
pub(super) const CANCEL: Method = [0, 60, 0, 30];
pub(super) const PUBLISH: Method = [0, 60, 0, 40];
pub(super) const RETURN: Method = [0, 60, 0, 50];
pub(super) const DELIVER: Method = [0, 60, 0, 60];
pub(super) const ACK: Method = [0, 60, 0, 80];
pub(super) const REJECT: Method = [0, 60, 0, 90];
pub(super) const NACK: Method = [0, 60, 0, 120];
