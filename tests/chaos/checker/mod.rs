//! The history of a chaos round and its checker: plain data, no broker. Its own tests are in
//! `tests/behaviour/chaos_checker.rs`.

pub(crate) mod check;
pub(crate) mod clock;
pub(crate) mod explain;
pub(crate) mod fault;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod resources;
