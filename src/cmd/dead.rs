//! `taskq dead`: look at the tasks that used up their attempts, and send them again or delete them.

mod filter;
mod group;
mod shown;

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use self::filter::{FilterArgs, WHICH};
use self::group::Groups;
use self::shown::{candidate, details, row, why_unclear};
use super::connection::ConnectionArgs;
use super::listing::Listing;
use super::print;
use super::progress::{HowFar, Progress};
use super::queue::{QueueNameArgs, check_name};
use super::task::{BodyPart, object};
use crate::broker::{QueueSpec, SessionOptions};
use crate::calendar::unix_time;
use crate::dead_tasks::{self, Names, Rate, Search, Selection, Unclear};
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
        /// Count them by exit and first line of the error, numbers aside; since the first attempt that failed
        #[arg(long, conflicts_with = "limit")]
        group: bool,
        /// One JSON object for each task or group, a line each
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        limit: LimitArgs,
        #[command(flatten)]
        place: Target,
    },
    /// Show one dead task with its error and its body
    Show {
        /// Its key (beside the id in the list), its id, or what only this one begins with
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
        /// Their keys (beside the ids in the list), their ids, or what only one of these begins with
        #[arg(
            value_name = "ID",
            conflicts_with_all = ["all", "FilterArgs", "limit"],
            value_parser = NonEmptyStringValueParser::new()
        )]
        names: Vec<String>,
        /// All that are dead now
        #[arg(long, conflicts_with = "FilterArgs")]
        all: bool,
        /// At most N a second (2/s), a minute (30/m) or an hour (100/h); if the broker goes away, go on later
        #[arg(long, value_name = "N/s", value_parser = rate)]
        rate: Option<Rate>,
        /// Only list what would be sent
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        limit: LimitArgs,
        #[command(flatten)]
        place: Target,
    },
    /// Delete dead tasks, all or those that a filter chooses, after a question
    Purge {
        /// Only these: their keys (beside the ids in the list), their ids, or what only one of these begins with
        #[arg(
            value_name = "ID",
            conflicts_with_all = ["FilterArgs", "limit"],
            value_parser = NonEmptyStringValueParser::new()
        )]
        names: Vec<String>,
        /// Do not ask
        #[arg(long, conflicts_with = "dry_run")]
        yes: bool,
        /// Only list what would be deleted
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        limit: LimitArgs,
        #[command(flatten)]
        place: Target,
    },
}

#[derive(clap::Args)]
struct LimitArgs {
    /// The oldest N at most
    #[arg(help_heading = WHICH, short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

pub(super) fn run(args: Args) -> Result<Exit> {
    match args.action {
        Action::List { group, json, filter, limit, place } => {
            let selection = matching(filter, &limit);
            if group { list_groups(&selection, json, place) } else { list(&selection, json, place) }
        }
        Action::Show { name, body, raw, place } => {
            let shown = match body {
                false => Shown::Everything,
                true if raw || !std::io::stdout().is_terminal() => Shown::Body,
                true => Shown::EscapedBody,
            };
            show(name, &shown, place)
        }
        Action::Requeue { names, all, rate, dry_run, filter, limit, place } => {
            if names.is_empty() && !all && filter.is_empty() {
                return Err(Error::usage(
                    "which tasks? Give IDs, or what they are like (--error, --exit, --body, ...), or --all (taskq dead \
                     requeue --help)",
                ));
            }
            let selection = selection(names, filter, &limit);
            if dry_run { would_be("sent again", &selection, place) } else { requeue(&selection, rate, place) }
        }
        Action::Purge { names, yes, dry_run, filter, limit, place } => {
            let selection = selection(names, filter, &limit);
            if dry_run { would_be("deleted", &selection, place) } else { purge(&selection, yes, place) }
        }
    }
}

fn selection(names: Vec<String>, filter: FilterArgs, limit: &LimitArgs) -> Selection {
    if names.is_empty() { matching(filter, limit) } else { Selection::Named(names.into_iter().collect()) }
}

fn matching(filter: FilterArgs, limit: &LimitArgs) -> Selection {
    Selection::Matching { filter: filter.into_filter(), most: limit.limit }
}

/// For clap: how many tasks within which time.
fn rate(text: &str) -> std::result::Result<Rate, String> {
    let wrong = || "not a rate: write how many and a unit, as 2/s, 30/m or 100/h".to_owned();
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let per = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_mins(1),
        "h" => Duration::from_hours(1),
        _ => return Err(wrong()),
    };
    let count: u32 = count.parse().map_err(|_| wrong())?;
    if count == 0 { Err("nothing would be sent".to_owned()) } else { Ok(Rate { count, per }) }
}

impl Target {
    fn open(self) -> Result<(SessionOptions, QueueSpec)> {
        let queue = self.queue.into_existing()?;
        check_name("the name of the queue of dead tasks, made from the queue's,", &queue.dead().name)?;
        Ok((self.connection.into_options()?, queue))
    }
}

fn list(selection: &Selection, as_json: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let (listed, _) = list_selected(&options, &queue, selection, as_json)?;
    if listed == 0 && !as_json {
        tell_of_none(selection, &queue);
    }
    Ok(Exit::Success)
}

fn tell_of_none(selection: &Selection, queue: &QueueSpec) {
    let which = if *selection == Selection::all() { "no dead tasks" } else { "no such dead tasks" };
    log::info!("{which} in {}", queue.dead().name);
}

/// Prints the selected tasks, and says how many there were and which names mean nothing.
fn list_selected(
    options: &SessionOptions,
    queue: &QueueSpec,
    selection: &Selection,
    as_json: bool,
) -> Result<(u64, Names)> {
    let mut listing = Listing::new((!as_json).then_some(&shown::COLUMNS))?;
    let looked = dead_tasks::list(options, queue, selection, &mut |task, interrupt| {
        if let Some(task) = task {
            listing.add(|| row(task), || object(task, BodyPart::Excerpt));
        }
        listing.goes_on(interrupt)
    });
    if let Err(error) = &looked
        && matches!(error.exit, Exit::Signal(_))
    {
        return looked.map(|names| (0, names));
    }
    // What came is worth showing also when something went wrong after it.
    let listed = listing.finish()?;
    Ok((listed, looked?))
}

fn list_groups(selection: &Selection, as_json: bool, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let mut groups = Groups::default();
    dead_tasks::list(&options, &queue, selection, &mut |task, _| {
        if let Some(task) = task {
            groups.add(task);
        }
        Ok(true)
    })?;
    let mut listing = Listing::new((!as_json).then_some(&group::COLUMNS))?;
    for (row, object) in groups.in_order() {
        listing.add(|| row, || object);
    }
    if listing.finish()? == 0 && !as_json {
        tell_of_none(selection, &queue);
    }
    Ok(Exit::Success)
}

/// What a command with the same arguments would do, had it not `--dry-run`.
fn would_be(done: &str, selection: &Selection, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let (listed, names) = list_selected(&options, &queue, selection, false)?;
    tell_names(&names);
    log::info!("{} would be {done}", output::counted(listed, "dead task", "dead tasks"));
    refuse(&names.unclear, &queue)?;
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
        if let Some(task) = task.filter(|task| search.meet(task.properties.id(), task.key)) {
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

fn requeue(selection: &Selection, rate: Option<Rate>, place: Target) -> Result<Exit> {
    let (options, queue) = place.open()?;
    let mut progress = Progress::on_a_terminal("sent again");
    let is_all = *selection == Selection::all();
    let done = dead_tasks::requeue(&options, &queue, selection, rate, &mut |done, most| {
        let (done, all) = (done.into(), most.into());
        let far = if is_all { HowFar::OfTasks { done, all } } else { HowFar::Tasks(done) };
        if let Some(progress) = &mut progress {
            progress.show(far);
        }
    });
    drop(progress);
    let done = done?;
    tell_names(&done.names);
    if done.count > 0 || done.names.unclear.is_empty() {
        log::info!("{} sent again to {}", done.count, queue.name);
    }
    refuse(&done.names.unclear, &queue)?;
    Ok(Exit::Success)
}

fn tell_names(names: &Names) {
    for (name, task) in &names.taken_for {
        log::info!("{} was taken for {}", output::foreign(name), candidate(task));
    }
}

fn purge(selection: &Selection, yes: bool, place: Target) -> Result<Exit> {
    if !yes && !std::io::stdin().is_terminal() {
        return Err(Error::usage("there is nobody to ask: give --yes to delete without asking"));
    }
    let (options, queue) = place.open()?;
    let is_all = *selection == Selection::all();
    let (deleted, names) = if yes && is_all {
        (dead_tasks::purge_all(&options, &queue)?, Names::default())
    } else {
        let asked_at = unix_time();
        let mut most = u32::MAX;
        if !yes {
            let (count, names) = dead_tasks::count(&options, &queue, selection)?;
            refuse(&names.unclear, &queue)?;
            tell_names(&names);
            if count == 0 {
                tell_of_none(selection, &queue);
                return Ok(Exit::Success);
            }
            let such = if is_all { "" } else { "such " };
            let them =
                output::counted(count.into(), &format!("{such}dead task"), &format!("{such}dead tasks"));
            if !confirmed(&format!("Delete {them} from {}? [y/N] ", queue.dead().name))? {
                log::info!("nothing was deleted");
                return Ok(Exit::Success);
            }
            most = count;
        }
        dead_tasks::purge_some(&options, &queue, selection, most, asked_at)?
    };
    if yes {
        tell_names(&names);
    }
    log::info!("{deleted} deleted from {}", queue.dead().name);
    refuse(&names.unclear, &queue)?;
    Ok(Exit::Success)
}

fn confirmed(question: &str) -> Result<bool> {
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

/// Names that are not clear are bad data.
fn refuse(unclear: &Unclear, queue: &QueueSpec) -> Result<()> {
    if unclear.is_empty() { Ok(()) } else { Err(Error::bad_data(why_unclear(unclear, &queue.dead().name))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_so_many_within_a_unit() {
        let hours = Duration::from_hours(1);
        assert_eq!(rate("2/s"), Ok(Rate { count: 2, per: Duration::from_secs(1) }));
        assert_eq!(rate("100/h"), Ok(Rate { count: 100, per: hours }));
        for wrong in ["", "2", "/s", "2/", "2/d", "-1/s", "0.5/s", "2/s ", "0/s", "5000000000/s"] {
            assert!(rate(wrong).is_err(), "{wrong:?}");
        }
    }
}
