//! The command line. Past this folder nobody knows it: each command turns its flags into plain options and runs.

mod connection;
mod dead;
mod listing;
mod peek;
mod progress;
mod queue;
mod send;
mod status;
mod table;
mod task;
mod work;

use clap::error::ErrorKind;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use crate::duration;
use crate::error::{Error, Exit, Result};
use crate::output::{self, LogFormat, Verbosity};
use crate::shortage;
use crate::shutdown;

/// The last heading of `--help`.
const MESSAGES: &str = "Messages";

/// A task queue for the shell on top of RabbitMQ.
///
/// `taskq send "hello..."` enqueues a task, `taskq work --threads 4` works through the queue. A task is acknowledged when
/// it is done and not before: whatever dies meanwhile, it is run again. One that fails is tried again, and at last kept
/// for a person to look at.
///
/// Durations (DUR) are written 500ms, 30s, 5m, 2h, 1d, or 1h30m: the longest unit first, each once.
#[derive(Parser)]
#[command(name = "taskq", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
    /// Say more about what happens underneath
    #[arg(help_heading = MESSAGES, short, long, global = true, conflicts_with = "quiet", display_order = LAST - 1)]
    verbose: bool,
    /// Say nothing but warnings and errors; what COMMAND prints is not touched (work --output)
    #[arg(help_heading = MESSAGES, long, global = true, action = ArgAction::SetTrue, display_order = LAST)]
    quiet: bool,
    /// How messages are written: text, time (the same with a UTC time in front), json (an object a line) or journal
    /// (with priorities, which systemd's journal reads) [default: journal where stderr is the journal, else text]
    #[arg(help_heading = MESSAGES, long, global = true, value_name = "FORMAT", hide_possible_values = true, display_order = LAST - 2)]
    log_format: Option<Format>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Time,
    Json,
    Journal,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Text,
            Format::Time => Self::Time,
            Format::Json => Self::Json,
            Format::Journal => Self::Journal,
        }
    }
}

#[derive(Subcommand)]
enum Verb {
    Send(send::Args),
    Work(work::Args),
    Peek(peek::Args),
    Dead(dead::Args),
    Status(status::Args),
}

/// Flags of all commands come after those of one, just before `--help`, which clap puts at 999.
const LAST: usize = 998;

const EXIT_CODES: &str = "\
Exit codes:
  0      done; send: the broker has every task; work: what it had begun is finished
  1      work --until..., --max-...: finished, and a task ended dead; status: a limit does not hold
  2      a wrong flag, URL, duration or number
  65     data that cannot be sent; dead: a name that means no task, or several
  69     the broker cannot be reached, or was lost; try again
  70     an error of this machine, such as a full disk, or of taskq
  75     not confirmed in time, or refused for now; try again
  77     the broker refused access
  78     a queue, a file or a command that cannot be used
  128+N  stopped by signal N before everything was done";

/// Parses the command line, runs the command and says how the process should end.
#[must_use]
pub fn run() -> Exit {
    hide_passwords();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return tell(&error),
    };
    let verbosity = match (cli.verbose, cli.quiet) {
        (true, _) => Verbosity::Verbose,
        (false, true) => Verbosity::Quiet,
        (false, false) => Verbosity::Normal,
    };
    let format = format_of(cli.log_format);
    if let Err(error) = output::install_logger(verbosity, format) {
        return complain(&Error::internal(format!("cannot start a thread: {}", shortage::reason(&error))));
    }
    let result = shutdown::survive_file_limits().and_then(|()| match cli.command {
        Verb::Send(args) => send::run(args),
        Verb::Work(args) => work::run(args),
        Verb::Peek(args) => peek::run(args),
        Verb::Dead(args) => dead::run(args),
        Verb::Status(args) => status::run(args),
    });
    result.unwrap_or_else(|error| {
        log::error!("{error}");
        error.exit
    })
}

/// A URL with its password may stand where none is expected, and then in what is said of that.
fn hide_passwords() {
    let arguments: Vec<_> = std::env::args_os().map(|text| text.to_string_lossy().into_owned()).collect();
    let variable = std::env::var_os("TASKQ_URL").map(|text| text.to_string_lossy().into_owned());
    for text in arguments.iter().chain(&variable) {
        output::hide_urls_of(text);
    }
    connection::hide_passwords_in_files(&arguments);
}

/// Prints clap's help or complaint.
fn tell(error: &clap::Error) -> Exit {
    use std::io::Write as _;
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return Exit::Usage;
    }
    if error.use_stderr() {
        return complain(&Error::usage(one_line(&error.render().to_string())));
    }
    // Help and version.
    match output::unless_closed(error.print().and_then(|()| std::io::stdout().flush())) {
        Ok(_) => Exit::Success,
        Err(error) => complain(&cannot_print(&error)),
    }
}

/// What clap says in several paragraphs: what is wrong, without how the command is used, but with the command that
/// tells.
fn one_line(complaint: &str) -> String {
    let (wrong, usage) = complaint.split_once("\n\nUsage: ").unwrap_or((complaint, ""));
    let wrong = wrong.strip_prefix("error: ").unwrap_or(wrong);
    let wrong = wrong.split_once("\n\nFor more information").map_or(wrong, |(wrong, _)| wrong);
    let parts = wrong.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let wrong = parts.collect::<Vec<_>>().join("; ");
    // Some complaints come without it.
    let typed = || std::env::args().take_while(|word| !word.starts_with('-')).collect::<Vec<_>>().join(" ");
    let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
    let usage = if usage.is_empty() { typed() } else { usage.to_owned() };
    let command = usage
        .split_whitespace()
        .skip(1)
        .take_while(is_name)
        .fold("taskq".to_owned(), |out, word| out + " " + word);
    format!("{} ({command} --help)", output::foreign(wrong))
}

/// Without the logger. The command line may be wrong, and still say how it wants to be told of that.
fn complain(error: &Error) -> Exit {
    use std::io::Write as _;
    let words: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let after = words.windows(2).filter(|pair| pair[0] == "--log-format").map(|pair| pair[1].as_str());
    let joined = words.iter().filter_map(|word| word.strip_prefix("--log-format="));
    let wanted = after.chain(joined).find_map(|name| Format::from_str(name, false).ok());
    let _ = std::io::stderr().write_all(format_of(wanted).complaint(&error.to_string()).as_bytes());
    error.exit
}

fn format_of(wanted: Option<Format>) -> LogFormat {
    wanted.map_or_else(LogFormat::of_stderr, LogFormat::from)
}

/// Such as a full disk behind stdout.
fn cannot_print(error: &std::io::Error) -> Error {
    Error::internal(format!("cannot write to stdout: {error}"))
}

/// Data on stdout. What is missing there must not be taken for looked at: something may be deleted next.
fn print(data: &[u8]) -> Result<()> {
    output::print(data).map(drop).map_err(|error| cannot_print(&error))
}

/// For clap: a duration longer than zero.
fn positive_duration(text: &str) -> std::result::Result<std::time::Duration, String> {
    duration::parse_positive(text)
}

/// An environment variable that is set has to mean something: an empty one is more often a script's mistake than a
/// wish for the default.
fn environment(name: &str) -> Result<Option<String>> {
    match std::env::var(name) {
        Ok(value) if value.is_empty() => {
            Err(Error::usage(format!("{name} is set but empty; unset it or give a value")))
        }
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Error::usage(format!("{name} is not UTF-8"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
