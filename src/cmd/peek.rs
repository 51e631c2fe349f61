//! `taskq peek`: look at the tasks that wait for a worker.

use std::io::IsTerminal;

use super::connection::ConnectionArgs;
use super::listing::Listing;
use super::print;
use super::queue::QueueNameArgs;
use super::table::{Column, cell};
use super::task::{BodyPart, age, id, object};
use crate::broker::{QueueType, SessionOptions};
use crate::browse::{Interrupt, Opened, Place, QueuedTask, browse};
use crate::error::{Error, Exit, Result};
use crate::output;

/// Look at the next tasks that wait for a worker, and give them back
///
/// On a classic queue the look marks them as redelivered: a worker counts them, and they go to the end of the queue once.
/// So it does on a quorum queue before RabbitMQ 4.3 from the second look on.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How many tasks at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// One JSON object for each task, a line each
    #[arg(long)]
    json: bool,
    /// Whole bodies: one after the other, byte for byte (on a terminal escaped); in the objects of --json
    #[arg(long)]
    body: bool,
    #[command(flatten)]
    queue: QueueNameArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

const COLUMNS: [Column; 5] = [
    Column { name: "ID", shrinks: true },
    Column { name: "ATTEMPT", shrinks: false },
    Column { name: "AGE", shrinks: false },
    Column { name: "HEADERS", shrinks: true },
    Column { name: "BODY", shrinks: true },
];

pub(super) fn run(args: Args) -> Result<Exit> {
    let queue = args.queue.into_existing()?;
    let options = args.connection.into_options()?;
    let mut place = match Place::open(&options, &queue)? {
        Opened::There(place) => place,
        Opened::Missing(_) => {
            return Err(Error::configuration(format!(
                "there is no queue {}; is the name right (--queue, TASKQ_QUEUE)?",
                queue.name
            )));
        }
    };
    let interrupt = place.interrupt()?;
    let (looked_at, outcome) = if args.body && !args.json {
        bodies(&mut place, &options, args.limit, &interrupt)?
    } else {
        let part = if args.body { BodyPart::Whole } else { BodyPart::Excerpt };
        let mut listing = Listing::new((!args.json).then_some(&COLUMNS))?;
        let outcome = browse(&mut place, &options, args.limit, &interrupt, &mut |task, interrupt| {
            listing.add(|| row(task), || object(task, part));
            listing.goes_on(interrupt)
        });
        // What came is worth showing also when something went wrong after it.
        (listing.finish()?, outcome)
    };
    let cost = cost(&place, looked_at);
    place.session.close();
    outcome?;
    match cost {
        Some(cost) => log::info!("{cost}"),
        None if looked_at == 0 => log::info!("nothing is ready in {}", queue.name),
        None => {}
    }
    Ok(Exit::Success)
}

/// They are printed when the tasks are given back. How many there were, and how the look ended.
fn bodies(
    place: &mut Place,
    options: &SessionOptions,
    limit: u32,
    interrupt: &Interrupt,
) -> Result<(u64, Result<()>)> {
    let escaped = std::io::stdout().is_terminal();
    let (mut count, mut bytes) = (0, Vec::new());
    let outcome = browse(place, options, limit, interrupt, &mut |task, _| {
        count += 1;
        if escaped {
            bytes.extend_from_slice(output::escape_lines(task.body).as_bytes());
            bytes.push(b'\n');
        } else {
            bytes.extend_from_slice(task.body);
        }
        Ok(true)
    });
    print(&bytes)?;
    Ok((count, outcome))
}

fn row(task: &QueuedTask<'_>) -> Vec<String> {
    let headers = task.properties.user_headers();
    let headers: Vec<String> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    vec![
        id(task.properties.id()),
        task.record.attempt.to_string(),
        age(task.properties.timestamp()),
        cell(&headers.join(" ")),
        cell(&output::excerpt(task.body)),
    ]
}

/// What the look has cost the tasks, where it has.
fn cost(place: &Place, looked_at: u64) -> Option<String> {
    let them = output::counted(looked_at, "task", "tasks");
    match place.kind {
        _ if looked_at == 0 => None,
        Some(QueueType::Classic) => Some(format!(
            "{them} given back, marked as redelivered: a worker that takes such a task puts it at the end of the queue once"
        )),
        Some(QueueType::Quorum) | None if place.wears_out() => Some(format!(
            "{them} given back, which this queue counts: what is looked at a second time goes to the end of the queue"
        )),
        Some(QueueType::Quorum) | None => None,
    }
}
