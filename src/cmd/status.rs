//! `taskq status`: how much is in queues, for people and for monitoring.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::cannot_print;
use super::connection::ConnectionArgs;
use super::queue::{DEFAULT_BACKOFF, QueueNamesArgs, check_name, delay};
use super::table::{self, Column};
use crate::broker::QueueSpec;
use crate::duration;
use crate::error::{Exit, Result};
use crate::output;
use crate::status::{self, Broken, Limits, Measure, Reason, Status, Told, Unknown};

/// Tell how much is in queues: ready, waiting for a retry, dead
///
/// READY tasks wait for a worker. UNACKED ones are with a worker, and AMQP does not tell how many: it is always `?`. WAITING
/// ones have failed and wait for their next attempt, in the pauses of --backoff; those of `send --delay` wait in queues that
/// AMQP does not list, and are not counted. DEAD ones have used up their attempts. `?` is what nobody can tell, or what
/// this user may not look at.
///
/// With a limit (--max-ready, --max-dead, --min-consumers) it exits with 1 and says which, if a queue does not hold it;
/// with 75 if nobody answers for the queue.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    queues: QueueNamesArgs,
    /// One JSON object for each queue, a line each; what is not known is null
    #[arg(long)]
    json: bool,
    /// The pauses of the workers, where they were given a --backoff of their own
    #[arg(
        long,
        value_name = "LIST",
        default_value = DEFAULT_BACKOFF,
        value_delimiter = ',',
        value_parser = delay
    )]
    backoff: Vec<Duration>,
    /// Exit with 1 if more tasks than this are ready
    #[arg(long, value_name = "N")]
    max_ready: Option<u32>,
    /// Exit with 1 if more tasks than this are dead
    #[arg(long, value_name = "N")]
    max_dead: Option<u32>,
    /// Exit with 1 if there are fewer consumers than this (each thread of a worker is one)
    #[arg(long, value_name = "N")]
    min_consumers: Option<u32>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(super) fn run(args: Args) -> Result<Exit> {
    let queues = args.queues.into_existing()?;
    check_derived_names(&queues, &args.backoff)?;
    let limits =
        Limits { max_ready: args.max_ready, max_dead: args.max_dead, min_consumers: args.min_consumers };
    let looks = status::look(&args.connection.into_options()?, &queues, &args.backoff)?;
    let (mut seen, mut errors) = (Vec::new(), Vec::new());
    for look in looks {
        match look {
            Ok(status) => seen.push(status),
            Err(error) => errors.push(error),
        }
    }
    print(&seen, &limits, args.json)?;
    let mut exits: Vec<Exit> = errors.iter().map(|error| error.exit).collect();
    for status in &seen {
        explain(&status.unknown);
        for broken in limits.broken_by(status) {
            log::warn!("{}", why_broken(&status.queue, &broken));
            exits.push(broken.exit());
        }
    }
    for error in errors {
        log::error!("{error}");
    }
    Ok(worst(&exits))
}

/// Which of them a script should hear.
fn worst(exits: &[Exit]) -> Exit {
    let order = [Exit::Configuration, Exit::Refused, Exit::Unavailable, Exit::TryAgain, Exit::BeyondLimit];
    let first = order.into_iter().find(|exit| exits.contains(exit));
    first.or(exits.first().copied()).unwrap_or(Exit::Success)
}

fn check_derived_names(queues: &[QueueSpec], pauses: &[Duration]) -> Result<()> {
    for queue in queues {
        let delays = pauses.iter().map(|pause| queue.delay(*pause).name);
        let longest = delays.chain([queue.dead().name]).max_by_key(String::len).unwrap_or_default();
        check_name("the name of a queue for failed tasks, made from the queue's,", &longest)?;
    }
    Ok(())
}

fn print(seen: &[Status], limits: &Limits, as_json: bool) -> Result<()> {
    if seen.is_empty() {
        return Ok(());
    }
    let text = if as_json {
        let lines = seen.iter().map(|status| output::line_of_json(&object(status, limits)));
        lines.collect::<Vec<_>>().join("\n")
    } else {
        let rows: Vec<_> = seen.iter().map(row).collect();
        table::whole(&COLUMNS, &rows, output::terminal_width(std::io::stdout()))
    };
    output::print(format!("{text}\n").as_bytes()).map(drop).map_err(|error| cannot_print(&error))
}

const COLUMNS: [Column; 6] = [
    Column { name: "QUEUE", shrinks: true },
    Column { name: "READY", shrinks: false },
    Column { name: "UNACKED", shrinks: false },
    Column { name: "CONSUMERS", shrinks: false },
    Column { name: "WAITING", shrinks: true },
    Column { name: "DEAD", shrinks: false },
];

fn row(status: &Status) -> Vec<String> {
    vec![
        output::escape(&status.queue),
        number(status.ready),
        "?".to_owned(),
        number(status.consumers),
        waiting(&status.waiting),
        number(status.dead),
    ]
}

fn number(told: Told) -> String {
    told.map_or_else(|_| "?".to_owned(), |number| number.to_string())
}

/// `7 (5s: 4, 30s: 3)`: all of them, and the steps in which there are some.
fn waiting(steps: &[(Duration, Told)]) -> String {
    let sum = steps.iter().map(|(_, told)| told.map(u64::from)).sum::<std::result::Result<u64, Reason>>();
    let all = sum.map_or_else(|_| "?".to_owned(), |sum| sum.to_string());
    // Where no step is known, nothing is added by saying so of each.
    let some = steps.iter().any(|(_, told)| told.is_ok_and(|number| number > 0));
    let known = steps.iter().any(|(_, told)| told.is_ok());
    let shown = steps.iter().filter(|(_, told)| *told != Ok(0));
    let shown: Vec<String> =
        shown.map(|(step, told)| format!("{}: {}", duration::show(*step), number(*told))).collect();
    if some || (known && sum.is_err()) { format!("{all} ({})", shown.join(", ")) } else { all }
}

fn object(status: &Status, limits: &Limits) -> Value {
    let steps = status.waiting.iter().map(|(step, told)| (duration::show(*step), json!(told.ok())));
    let mut object = json!({
        "queue": status.queue,
        "ready": status.ready.ok(),
        // AMQP does not tell.
        "unacknowledged": null,
        "consumers": status.consumers.ok(),
        "waiting": steps.collect::<Map<_, _>>(),
        "dead": status.dead.ok(),
    });
    if limits.are_given() {
        let broken = limits.broken_by(status);
        let names: Vec<&str> = broken
            .iter()
            .filter(|broken| broken.found.is_ok())
            .map(|broken| match broken.measure {
                Measure::Ready => "ready",
                Measure::Dead => "dead",
                Measure::Consumers => "consumers",
            })
            .collect();
        object["over"] = json!(names);
    }
    object
}

/// Why numbers are `?`: a line for each reason.
fn explain(unknown: &[Unknown]) {
    let of = |kind: Reason| unknown.iter().filter(move |unknown| unknown.kind == kind);
    let names = |why: Option<&str>, kind: Reason| {
        let meant = of(kind).filter(|unknown| why.is_none_or(|why| unknown.why == why));
        meant.map(|unknown| unknown.queue.as_str()).collect::<Vec<_>>().join(", ")
    };
    // What the broker says of that names the queue, and is the same otherwise.
    if let Some(first) = of(Reason::NotAllowed).next() {
        log::info!("unknown how much is in {}: {}", names(None, Reason::NotAllowed), first.why);
    }
    for why in of(Reason::Unanswered).map(|unknown| unknown.why.as_str()).collect::<BTreeSet<_>>() {
        log::warn!("unknown how much is in {}: {why}", names(Some(why), Reason::Unanswered));
    }
}

/// `task_queue: 120 ready, more than --max-ready 100`.
fn why_broken(queue: &str, broken: &Broken) -> String {
    let (what, flag, than) = match broken.measure {
        Measure::Ready => ("ready", "--max-ready", "more"),
        Measure::Dead => ("dead", "--max-dead", "more"),
        Measure::Consumers => ("consumers", "--min-consumers", "fewer"),
    };
    let limit = broken.limit;
    match broken.found {
        Ok(1) if broken.measure == Measure::Consumers => {
            format!("{queue}: 1 consumer, fewer than --min-consumers {limit}")
        }
        Ok(found) => format!("{queue}: {found} {what}, {than} than {flag} {limit}"),
        Err(_) => format!("{queue}: unknown how many {what}, so {flag} {limit} may not hold"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(told: [Told; 3]) -> String {
        waiting(&[5, 30, 120].map(Duration::from_secs).into_iter().zip(told).collect::<Vec<_>>())
    }

    #[test]
    fn waiting_tasks_are_summed_and_what_is_unknown_is_no_number() {
        let unknown = Err(Reason::NotAllowed);
        assert_eq!(steps([Ok(0); 3]), "0");
        assert_eq!(steps([Ok(4), Ok(0), Ok(3)]), "7 (5s: 4, 2m: 3)");
        assert_eq!(steps([unknown; 3]), "?");
        assert_eq!(steps([Ok(4), unknown, Ok(0)]), "? (5s: 4, 30s: ?)");
        assert_eq!(steps([Ok(0), unknown, Ok(0)]), "? (30s: ?)");
        assert_eq!(steps([Ok(u32::MAX); 3]).split(' ').next(), Some("12884901885"));
    }

    #[test]
    fn a_script_hears_the_worst() {
        use Exit::{BeyondLimit, Configuration, Refused, Success, TryAgain, Unavailable};
        assert_eq!(worst(&[]), Success);
        assert_eq!(worst(&[BeyondLimit]), BeyondLimit);
        assert_eq!(worst(&[BeyondLimit, TryAgain]), TryAgain);
        assert_eq!(worst(&[TryAgain, Configuration, BeyondLimit]), Configuration);
        assert_eq!(worst(&[TryAgain, Unavailable, Refused]), Refused);
    }

    #[test]
    fn what_does_not_hold_is_said_with_its_flag() {
        let said = |measure, limit, found| why_broken("q", &Broken { measure, limit, found });
        assert_eq!(said(Measure::Ready, 100, Ok(120)), "q: 120 ready, more than --max-ready 100");
        assert_eq!(said(Measure::Dead, 0, Ok(1)), "q: 1 dead, more than --max-dead 0");
        assert_eq!(said(Measure::Consumers, 2, Ok(1)), "q: 1 consumer, fewer than --min-consumers 2");
        assert_eq!(
            said(Measure::Dead, 0, Err(Reason::Unanswered)),
            "q: unknown how many dead, so --max-dead 0 may not hold"
        );
    }
}
