//! What a run has to say for itself: tables that can stand in a document as they are.

use super::account::{Account, Books};
use super::clock::Moment;
use super::explain::Way;
use super::memory::Memory;
use super::record::Outcome;
use super::strike::{Kind, Strike, Target};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// What was on its way to a worker when a node was hit may still be run: that is no recovery.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// From a fault to the end of the next task that was begun after it, by whom it hit; for a sender, to its next
/// confirmed task. None when there was nothing more to do.
pub(crate) fn recovery(books: &Books, strike: &Strike) -> Option<Duration> {
    let next = match strike.target {
        Target::Worker(place) => next_end(books, strike.struck, |hit| hit == Some(place)),
        Target::Broker(_) => next_end(books, strike.struck.plus(ON_ITS_WAY), |_| true),
        Target::Sender(place) => {
            let prefix = format!("s{place}.");
            let of_it = books.confirmed.iter().filter(|confirmed| confirmed.session.starts_with(&prefix));
            of_it.map(|confirmed| confirmed.at).filter(|at| *at > strike.struck).min()
        }
    };
    Some(next?.since(strike.struck))
}

/// From a fault of a node until each sender has had a task confirmed again, the most patient of them included.
pub(crate) fn all_senders(books: &Books, strike: &Strike) -> Option<Duration> {
    let mut first = BTreeMap::new();
    for confirmed in books.confirmed.iter().filter(|confirmed| confirmed.at > strike.struck.plus(ON_ITS_WAY))
    {
        let sender = confirmed.session.split('.').next();
        let at = first.entry(sender).or_insert(confirmed.at);
        *at = confirmed.at.min(*at);
    }
    let last = first.into_values().max().filter(|_| strike.hits_broker())?;
    Some(last.since(strike.struck))
}

fn next_end(books: &Books, after: Moment, hit: impl Fn(Option<usize>) -> bool) -> Option<Moment> {
    let begun_later = books.runs.iter().filter(|run| run.start > after && hit(run.place()));
    begun_later.map(|run| run.end).min()
}

/// Between the ends of two runs, one after the other.
fn longest_gap(books: &Books) -> Option<Duration> {
    let mut ends: Vec<Moment> = books.runs.iter().map(|run| run.end).collect();
    ends.sort_unstable();
    ends.windows(2).map(|pair| pair[1].since(pair[0])).max()
}

pub(crate) fn median(mut durations: Vec<Duration>) -> Option<Duration> {
    durations.sort_unstable();
    durations.get(durations.len() / 2).copied()
}

pub(crate) fn seconds(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{:.1} s", duration.as_secs_f64()))
}

/// A table whose columns are as wide as they have to be.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
        if number == 0 {
            let lines = widths.iter().enumerate().map(|(column, width)| {
                if column == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" }
            });
            let _ = writeln!(text, "| {} |", lines.collect::<Vec<_>>().join(" | "));
        }
    }
    text
}

pub(crate) fn faults(books: &Books, account: &Account) -> String {
    let mut kinds = BTreeMap::<Kind, Vec<&Strike>>::new();
    for strike in &books.strikes {
        kinds.entry(strike.kind).or_default().push(strike);
    }
    let head =
        ["fault", "times", "lasted", "recovered", "worst", "all senders again", "worst", "runs too many"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (kind, strikes) in kinds {
        let lasted = strikes.iter().filter_map(|strike| Some(strike.until?.since(strike.struck))).collect();
        let recovered: Vec<Duration> = strikes.iter().filter_map(|strike| recovery(books, strike)).collect();
        let confirmed: Vec<Duration> =
            strikes.iter().filter_map(|strike| all_senders(books, strike)).collect();
        let repeats = account.explained().filter(|cause| cause.strike.kind == kind).count();
        rows.push(vec![
            kind.name().to_owned(),
            strikes.len().to_string(),
            seconds(median(lasted)),
            seconds(median(recovered.clone())),
            seconds(recovered.iter().max().copied()),
            seconds(median(confirmed.clone())),
            seconds(confirmed.iter().max().copied()),
            repeats.to_string(),
        ]);
    }
    table(&rows)
}

pub(crate) fn summary(books: &Books, account: &Account, memory: &Memory) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} tasks confirmed = {} done + {} dead + {} still queued; {} more came from senders that were killed or \
         gave up",
        account.confirmed, account.done, account.dead, account.queued, account.unconfirmed
    );
    let of = |outcome| books.runs.iter().filter(|run| run.outcome == outcome).count();
    let _ = writeln!(
        text,
        "{} runs: {} done, {} failed, {} timed out, {} refused, {} cut short with their worker",
        books.runs.len(),
        of(Outcome::Done),
        of(Outcome::Failed),
        of(Outcome::Hung),
        of(Outcome::Refused),
        of(Outcome::Truncated)
    );
    let mut ways = BTreeMap::<Way, usize>::new();
    for cause in account.explained() {
        *ways.entry(cause.way).or_default() += 1;
    }
    let ways: Vec<String> = ways.iter().map(|(way, count)| format!("{count} {}", way.name())).collect();
    let ways = if ways.is_empty() { "none".to_owned() } else { ways.join(", ") };
    let unexplained = account.repeats.len() - account.explained().count();
    let _ = writeln!(
        text,
        "{} runs too many ({}), {unexplained} of them without a fault that explains it; {} tasks were done more than \
         once",
        account.repeats.len(),
        ways,
        account.done_twice
    );
    let _ =
        writeln!(text, "the longest time in which no task was completed: {}", seconds(longest_gap(books)));
    if let Some((first, last)) = memory.ends() {
        let _ = writeln!(
            text,
            "a worker that was not replaced: {} KiB, {} descriptors, {} threads in the first third of the run, {} KiB, \
             {}, {} in the last; the most that any worker had: {} KiB",
            first.kib,
            first.descriptors,
            first.threads,
            last.kib,
            last.descriptors,
            last.threads,
            memory.peak_kib
        );
    }
    text
}
