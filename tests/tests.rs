//! taskq as its users see it: the real binary against a real RabbitMQ, one file per behaviour.

// A test that cannot go on has failed: it may say so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod behaviour;
mod support;
