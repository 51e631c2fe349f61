//! The books of a chaos run and their judge: plain data, no broker. The other tests test them.

pub(crate) mod account;
pub(crate) mod clock;
pub(crate) mod explain;
pub(crate) mod memory;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod strike;
