//! taskq: a task queue for the shell on top of RabbitMQ.
#![allow(dead_code, unused_imports, unreachable_pub, clippy::doc_markdown)]
mod handler;
mod retry;
fn main() {}
