//! `taskq work`: run tasks until told to stop.

use std::sync::Arc;
use std::time::Duration;

use super::connection::ConnectionArgs;
use super::positive_duration;
use super::queue::QueueArgs;
use crate::error::{Exit, Result};
use crate::handler::Dots;
use crate::shutdown;
use crate::worker_pool::{self, HandlerFactory, Options};

/// More threads than a connection has channels cannot work; RabbitMQ allows 2047, and one is the supervisor's.
const MAX_THREADS: i64 = 2000;

/// Work through the queue
///
/// Each thread takes one task at a time, runs it, and acknowledges it when it is finished. The built-in handler
/// sleeps one second for each dot in the body. CTRL+C (or SIGTERM) finishes what is running and exits.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Tasks to run at the same time
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: u16,
    /// Tasks that the broker may hand to a thread in advance; more than 1 gives up fair dispatch for speed
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: u16,
    /// Exit once nothing is ready and nothing runs here
    #[arg(long)]
    until_empty: bool,
    /// Exit after exactly so many tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tasks: Option<u64>,
    /// Exit after so long without a delivery
    #[arg(long, value_name = "DUR", value_parser = positive_duration)]
    idle_timeout: Option<Duration>,
    /// How long to wait for running tasks when told to stop
    #[arg(long, value_name = "DUR", value_parser = crate::duration::parse, default_value = "30s")]
    grace: Duration,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(super) fn run(args: Args) -> Result<Exit> {
    let options = Options {
        session: args.connection.into_options()?,
        queue: args.queue.into_spec()?,
        threads: args.threads,
        prefetch: args.prefetch,
        until_empty: args.until_empty,
        max_tasks: args.max_tasks,
        idle_timeout: args.idle_timeout,
        grace: args.grace,
    };
    let handlers: Arc<HandlerFactory> = Arc::new(|| Box::new(Dots));
    let signals = shutdown::listen()?;
    worker_pool::run(options, &handlers, &signals)
}
