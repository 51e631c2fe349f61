//! taskq as its users see it: the real binary against a real RabbitMQ, one file per behaviour.

// A test that cannot go on has failed: it may say so by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]
// What is sent by `send` is `sent`: the nearness of the names is their meaning.
#![allow(clippy::similar_names)]

mod behaviour;
// The checker of a chaos run, which is a program of its own.
#[allow(dead_code)]
#[path = "chaos/checker/mod.rs"]
mod checker;
mod support;
