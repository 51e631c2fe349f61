//! `taskq dead`: look at the tasks that used up their attempts, and send them again or delete them.

mod shown;

use std::io::{IsTerminal, Write as _};

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use self::shown::{candidate, details, line_of_json, row, table, why_unclear};
use super::cannot_print;
use super::connection::ConnectionArgs;
use super::queue::{QueueNameArgs, check_name};
use crate::broker::{QueueSpec, SessionOptions};
use crate::calendar::unix_time;
use crate::dead_tasks::{self, Filter, Search, Selection, Unclear};
use crate::error::{Error, Exit, Result};
use crate::output;

/// Look at dead tasks, send them again, or delete them
///
/// A task is dead when it has used up its attempts, or its handler said that no further one can succeed. It is kept in
/// QUEUE.dead until a person decides.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Args)]
struct Target {
    #[command(flatten)]
    queue: QueueNameArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Subcommand)]
enum Action {
    /// List the dead tasks, oldest first
    List {
        /// One JSON object for each task, a line each
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Target,
    },
    /// Show one dead task with its error and its body
    Show {
        /// Its id, its key, or the beginning of one (of a key, 4 digits or more)
        #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        name: String,
        /// Only the body, byte for byte; on a terminal with what could drive it escaped
        #[arg(long)]
        body: bool,
        /// With --body: byte for byte on a terminal, too
        #[arg(long, requires = "body")]
        raw: bool,
        #[command(flatten)]
        place: Target,
    },
    /// Send dead tasks to their queue again, as if they were new
    Requeue {
        /// Their ids, their keys, or the beginnings of some (of a key, 4 digits or more)
        #[arg(
            value_name = "ID",
            required_unless_present = "all",
            conflicts_with = "all",
            value_parser = NonEmptyStringValueParser::new()
        )]
        names: Vec<String>,
        /// All that are dead now
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Target,
    },
    /// Delete the dead tasks, after a question; those that come after it stay
    Purge {
        /// Do not ask, and delete all at once
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        place: Target,
    },
}

pub(super) fn run(args: Args) -> Result<Exit> {
    match args.action {
        Action::List { json, place } => list(json, place),
        Action::Show { name, body, raw, place } => {
            let shown = match body {
                false => Shown::Everything,
                true if raw || !std::io::stdout().is_terminal() => Shown::Body,
                true => Shown::EscapedBody,
            };
            show(name, &shown, place)
        }
        Action::Requeue { names, all, place } => requeue(names, all, place),
        Action::Purge { yes, place } => purge(yes, place),
    }
}

impl Target {
    fn open(self) -> Result<(SessionOptions, QueueSpec)> {
        let queue = self.queue.into_existing()?;
        check_name("the name of the queue of dead tasks, made from the queue's,", &queue.dead().name)?;
        Ok((self.connection.into_options()?, queue))
    }
}

fn list(as_json: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    // Collected first, because the tasks are out of the queue while they are looked at, and whoever reads the output
    // may take any time.
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    let looked = dead_tasks::list(&options, &queue, &Selection::all(), &mut |task, _| {
        if as_json {
            objects.push(line_of_json(task));
        } else {
            rows.push(row(task));
        }
        Ok(true)
    });
    if let Err(error) = &looked
        && matches!(error.exit, Exit::Signal(_))
    {
        return looked.map(|_| Exit::Success);
    }
    // What came is worth showing also when something went wrong after it.
    let text = if as_json { objects.join("\n") } else { table(&rows) };
    if !text.is_empty() {
        print(format!("{text}\n").as_bytes())?;
    }
    looked?;
    if text.is_empty() && !as_json {
        log::info!("no dead tasks in {}", queue.dead().name);
    }
    Ok(Exit::Success)
}

/// What of a task.
enum Shown {
    Everything,
    Body,
    /// It may hold what drives a terminal.
    EscapedBody,
}

fn show(name: String, shown: &Shown, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let mut search = Search::new([name]);
    let mut text = Vec::new();
    dead_tasks::list(&options, &queue, &Selection::all(), &mut |task, _| {
        if search.meet(task.properties.id(), task.key) {
            text = match shown {
                Shown::Everything => details(task).into_bytes(),
                Shown::Body => task.body.to_vec(),
                Shown::EscapedBody => format!("{}\n", output::escape_lines(task.body)).into_bytes(),
            };
        }
        Ok(true)
    })?;
    refuse(&search.unclear(), &queue)?;
    print(&text)?;
    Ok(Exit::Success)
}

fn requeue(names: Vec<String>, all: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let selection = if all { Selection::all() } else { Selection::Named(names.into_iter().collect()) };
    let done = dead_tasks::requeue(&options, &queue, &selection, None, &mut |_, _| {})?;
    for (name, task) in &done.names.taken_for {
        log::info!("{} was taken for {}", output::foreign(name), candidate(task));
    }
    if done.count > 0 || done.names.unclear.is_empty() {
        log::info!("{} sent again to {}", done.count, queue.name);
    }
    refuse(&done.names.unclear, &queue)?;
    Ok(Exit::Success)
}

fn purge(yes: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let deleted = if yes {
        dead_tasks::purge_all(&options, &queue)?
    } else {
        let count = dead_tasks::count(&options, &queue, &Selection::all())?;
        if count == 0 {
            log::info!("no dead tasks in {}", queue.dead().name);
            return Ok(Exit::Success);
        }
        let asked_at = unix_time();
        let them = output::counted(count.into(), "dead task", "dead tasks");
        if !confirmed(&format!("Delete {them} from {}? [y/N] ", queue.dead().name))? {
            log::info!("nothing was deleted");
            return Ok(Exit::Success);
        }
        dead_tasks::purge_some(&options, &queue, &Filter::default(), count, asked_at)?
    };
    log::info!("{deleted} deleted from {}", queue.dead().name);
    Ok(Exit::Success)
}

fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::usage("there is nobody to ask: give --yes to delete without asking"));
    }
    // Messages come from a thread of their own.
    output::flush_stderr();
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Error::internal(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// What is missing in the output must not be taken for looked at: a purge may be next.
fn print(data: &[u8]) -> Result<()> {
    output::print(data).map(drop).map_err(|error| cannot_print(&error))
}

/// Names that are not clear are bad data.
fn refuse(unclear: &Unclear, queue: &QueueSpec) -> Result<()> {
    if unclear.is_empty() { Ok(()) } else { Err(Error::bad_data(why_unclear(unclear, &queue.dead().name))) }
}
