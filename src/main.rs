//! taskq: a task queue for the shell on top of RabbitMQ.
fn main() {}
