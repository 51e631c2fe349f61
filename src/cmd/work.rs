//! `taskq work`: run tasks until told to stop.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;

use super::connection::ConnectionArgs;
use super::positive_duration;
use super::queue::{DEFAULT_BACKOFF, QueueArgs, check_name, delay};
use crate::broker::QueueSpec;
use crate::descriptors;
use crate::duration;
use crate::error::{Error, Exit, Result};
use crate::handler::{self, Dots, ExitRule, Output, OutputFiles, Shown, Spec, reap_orphans};
use crate::settlement::Policy;
use crate::shortage;
use crate::shutdown;
use crate::worker_pool::{self, HandlerFactory, Options, Until};

/// More threads than a connection has channels cannot work; RabbitMQ allows 2047, and one is the supervisor's.
const MAX_THREADS: i64 = 2000;

/// Headings of `--help`.
const RUN: &str = "How a task runs";
const FAIL: &str = "When a task fails";
const END: &str = "When to end";

/// Work through the queue
///
/// Each thread takes one task at a time, runs it, and acknowledges it when it is done. COMMAND runs once for each task,
/// with the body on stdin, without a line end after it; without COMMAND the worker sleeps one second for each dot in the
/// body, and refuses a queue that has a QUEUE.dead, which is one that commands work on. CTRL+C or SIGTERM: take nothing new,
/// finish what runs, exit.
///
/// Exit status of COMMAND: 0 the task is done; 65 it is dead at once; anything else, a signal or --timeout: the attempt
/// has failed. A failed task is tried again later; after its last attempt it is kept in QUEUE.dead. If two tasks in a row
/// end with 126 or 127 before any was done, COMMAND cannot run, and the worker stops.
// Each is a flag of its own.
#[allow(clippy::struct_excessive_bools)]
#[derive(clap::Args)]
pub(super) struct Args {
    /// Tasks to run at the same time
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: u16,
    #[command(flatten)]
    queue: QueueArgs,
    /// End an attempt that takes longer: SIGTERM to COMMAND and its children, SIGKILL after --grace. RabbitMQ 4.3 and newer
    /// is told to wait for the task as long
    #[arg(help_heading = RUN, long, value_name = "DUR", value_parser = positive_duration, requires = "command")]
    timeout: Option<Duration>,
    /// Give COMMAND the body as an argument too: in place of each ARG that is {}, or after the last one. A task whose body
    /// cannot be one (a NUL byte, 128 KiB) is dead
    #[arg(help_heading = RUN, long, requires = "command", conflicts_with = "persistent")]
    arg: bool,
    /// Keep COMMAND running, and give it tasks as lines of JSON
    #[arg(help_heading = RUN, long, requires = "command")]
    persistent: bool,
    /// What an exit status of COMMAND means: CODE=done, CODE=retry or CODE=dead; may be repeated
    #[arg(help_heading = RUN, long, value_name = "CODE=MEANING", requires = "command", conflicts_with = "persistent")]
    on_exit: Vec<ExitRule>,
    /// What becomes of what COMMAND prints: inherit (it goes to this stdout and stderr), tag (the same, with the task's id
    /// before each line) or none
    #[arg(
        help_heading = RUN,
        long,
        value_name = "WHERE",
        value_enum,
        default_value = "inherit",
        hide_possible_values = true,
        requires = "command"
    )]
    output: ShownArg,
    /// Also keep what COMMAND prints, in files of each attempt: DIR/ID.ATTEMPT.out and .err, of 10 MiB at most (the end). DIR
    /// should be on a local disk
    #[arg(help_heading = RUN, long, value_name = "DIR", requires = "command")]
    output_dir: Option<PathBuf>,
    /// Tasks that a thread may hold, the one it runs included; with more than 1 some wait here while other threads are free
    #[arg(help_heading = RUN, long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: u16,
    /// Only sleep, one second for each dot in a body: what happens without COMMAND, by name, and also where the queue has a
    /// QUEUE.dead
    #[arg(help_heading = RUN, long, conflicts_with = "command")]
    dots: bool,
    /// Attempts at a task before it is dead, the first included
    #[arg(help_heading = FAIL, long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1_000_000), requires = "command")]
    attempts: u32,
    /// Pauses after the first failed attempt, the second, ...; the last repeats
    #[arg(help_heading = FAIL, long, value_name = "LIST", default_value = DEFAULT_BACKOFF, value_delimiter = ',', value_parser = delay, requires = "command")]
    backoff: Vec<Duration>,
    /// Deliveries that may end without an answer, as when the worker is killed, before the task is dead
    #[arg(help_heading = FAIL, long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_deliveries: u32,
    /// Exit once no task is ready in the queue and none runs here; those that wait for a retry or a --delay are left
    #[arg(help_heading = END, long)]
    until_empty: bool,
    /// As --until-empty, and once no task waits for a retry in a queue of --backoff either, whoever has put it there; those
    /// that wait for a --delay are left
    #[arg(help_heading = END, long, conflicts_with_all = ["until_empty", "idle_timeout"])]
    until_done: bool,
    /// Exit after exactly so many tasks
    #[arg(help_heading = END, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tasks: Option<u64>,
    /// Exit when no task has come for this long
    #[arg(help_heading = END, long, value_name = "DUR", value_parser = positive_duration)]
    idle_timeout: Option<Duration>,
    /// Take nothing new after this long, and exit when what runs is finished, at the latest after --grace
    #[arg(help_heading = END, long, value_name = "DUR", value_parser = positive_duration)]
    max_time: Option<Duration>,
    /// How long to wait for running tasks when told to stop, and between SIGTERM and SIGKILL
    #[arg(help_heading = END, long, value_name = "DUR", value_parser = duration::parse, default_value = "30s")]
    grace: Duration,
    /// The program that runs the tasks, and its arguments; no shell is involved
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Try the first connection again for so long, for a broker that starts beside the worker; `forever` is a value too
    /// [default: one try]
    #[arg(help_heading = "Connection", long, value_name = "DUR", value_parser = connect_retry)]
    connect_retry: Option<Duration>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum ShownArg {
    Inherit,
    Tag,
    None,
}

impl From<ShownArg> for Shown {
    fn from(arg: ShownArg) -> Self {
        match arg {
            ShownArg::Inherit => Self::Inherit,
            ShownArg::Tag => Self::Tag,
            ShownArg::None => Self::None,
        }
    }
}

pub(super) fn run(args: Args) -> Result<Exit> {
    if args.command.is_empty() && ends_with_separator(std::env::args_os()) {
        return Err(Error::usage(
            "there is no COMMAND after `--`, perhaps because a variable is empty; without `--` the built-in handler \
             runs, which only sleeps",
        ));
    }
    let queue = args.queue.into_spec()?;
    let policy =
        Policy { attempts: args.attempts, max_deliveries: args.max_deliveries, backoff: args.backoff };
    if !args.command.is_empty() {
        check_derived_names(&queue, &policy)?;
        descriptors::ensure(args.threads)?;
    }
    let spec = match args.command.split_first() {
        None => None,
        Some((program, arguments)) => {
            let output = command_output(args.output.into(), args.output_dir.as_deref())?;
            let options = handler::Options {
                program: program.clone(),
                arguments: arguments.to_vec(),
                body_as_argument: args.arg,
                timeout: args.timeout,
                grace: args.grace,
                on_exit: args.on_exit.into_iter().collect(),
            };
            Some(command_spec(options, output)?)
        }
    };
    let options = Options {
        session: args.connection.into_options()?,
        connect_retry: args.connect_retry,
        queue,
        threads: args.threads,
        prefetch: args.prefetch,
        until: match (args.until_done, args.until_empty) {
            (true, _) => Some(Until::Done),
            (false, true) => Some(Until::Empty),
            (false, false) => None,
        },
        max_tasks: args.max_tasks,
        idle_timeout: args.idle_timeout,
        max_time: args.max_time,
        timeout: args.timeout,
        grace: args.grace,
        policy,
        prepare_retries: spec.is_some(),
        is_sleeper_by_default: spec.is_none() && !args.dots,
    };
    let handlers: Arc<HandlerFactory> = match spec.clone() {
        None => Arc::new(|| Ok(Box::new(Dots))),
        Some(spec) if args.persistent => Arc::new(move || Ok(Box::new(spec.persistent()?))),
        Some(spec) => Arc::new(move || Ok(Box::new(spec.command()?))),
    };
    let bounded = options.tells_of_dead_tasks();
    let signals = shutdown::listen()?;
    shutdown::keep_exit_statuses()?;
    reap_orphans(spec.as_ref())
        .map_err(|error| Error::internal(format!("cannot wait for orphaned processes: {error}")))?;
    let result = worker_pool::run(options, &handlers, &signals);
    let Some(spec) = spec else { return result };
    // Whatever was left behind with a thread that did not end in time.
    spec.kill_all();
    match (result?, spec.lost_output()) {
        // Nothing else would tell a script that its data is incomplete; dead tasks are kept.
        (Exit::Success | Exit::TasksDead, Some(lost)) if bounded => Err(Error::internal(lost)),
        (exit, lost) => {
            if let Some(lost) = lost {
                log::warn!("{lost}");
            }
            Ok(exit)
        }
    }
}

/// Whether the command line announces a COMMAND and ends there. To clap that is the same as no `--` at all, and a script
/// whose variable is not set would have its tasks acknowledged without anything being done.
fn ends_with_separator(arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.last().is_some_and(|last| last == "--")
}

/// For clap. No clock counts further than the longest duration.
fn connect_retry(text: &str) -> std::result::Result<Duration, String> {
    if text == "forever" { Ok(Duration::MAX) } else { positive_duration(text) }
}

fn command_output(shown: Shown, directory: Option<&Path>) -> Result<Output> {
    let files = directory.map(OutputFiles::in_directory).transpose().map_err(Error::configuration)?;
    Output::of_this_process(shown, files).map_err(|error| {
        Error::internal(format!("cannot pass on the output of commands: {}", shortage::reason(&error)))
    })
}

fn command_spec(options: handler::Options, output: Output) -> Result<Spec> {
    let spec = Spec::new(options, output);
    spec.check().map_err(|why| Error::configuration(format!("cannot run tasks: {why}")))?;
    Ok(spec)
}

/// A failed task must never be without a place because its queue's name is long.
fn check_derived_names(queue: &QueueSpec, policy: &Policy) -> Result<()> {
    let delays = policy.pauses().iter().map(|pause| queue.delay(*pause).name);
    let longest = delays.chain([queue.dead().name]).max_by_key(String::len).unwrap_or_default();
    check_name("the name of a queue for failed tasks, made from the queue's,", &longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separator_with_nothing_after_it_is_seen() {
        for (arguments, ends) in [
            (&["taskq", "work", "--"][..], true),
            (&["taskq", "work"], false),
            (&["taskq", "work", "--", "true"], false),
            (&["taskq", "work", "--", ""], false),
        ] {
            assert_eq!(ends_with_separator(arguments.iter().map(OsString::from)), ends, "{arguments:?}");
        }
    }
}
