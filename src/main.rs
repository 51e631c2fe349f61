//! taskq: a task queue for the shell on top of RabbitMQ.
//!
//! Data flows one way: the command line becomes options (`cmd`), options open a session (`broker`), a session yields
//! deliveries, a delivery is run (`handler`) and its outcome decides what the broker is told (`worker_pool`).

mod backoff;
mod base64;
mod blocking;
mod broker;
mod browse;
mod calendar;
mod cancel;
mod cmd;
mod dead_tasks;
mod descriptors;
mod digest;
mod duration;
mod error;
mod events;
mod handler;
mod lock;
mod output;
mod percent;
mod report;
mod sender;
mod settlement;
mod shortage;
mod shutdown;
mod status;
mod worker_pool;

use std::process::ExitCode;

use error::Exit;
use output::Patience;

fn main() -> ExitCode {
    output::install_panic_message();
    let exit = cmd::run();
    let patience = match exit {
        Exit::Signal(_) => Patience::Forced,
        _ if shutdown::was_told_to_stop() => Patience::Stopping,
        _ => Patience::Ordinary,
    };
    output::finish(patience, &shutdown::further());
    ExitCode::from(exit.code())
}
