//! The report of a round: tables in Markdown, for docs/reliability.md.

use super::check::{CheckResult, History};
use super::clock::Moment;
use super::explain::Window;
use super::fault::{Fault, FaultKind, Target};
use super::record::Outcome;
use super::resources::Resources;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// A delivery that was in flight when a node failed may still be run: that is no recovery.
const IN_FLIGHT: Duration = Duration::from_millis(200);

/// From a fault to the end of the next task that was begun after it, by the worker that it affected; for a sender, to
/// its next confirmed task. None when there was no further task.
pub(crate) fn recovery(history: &History, fault: &Fault) -> Option<Duration> {
    let next = match fault.target {
        Target::Worker(slot) => next_end(history, fault.in_force_at, |ran_in| ran_in == Some(slot)),
        Target::Broker(_) => next_end(history, fault.in_force_at.plus(IN_FLIGHT), |_| true),
        Target::Sender(number) => {
            let prefix = format!("s{number}.");
            let of_it = history.confirmed.iter().filter(|confirmed| confirmed.session.starts_with(&prefix));
            of_it.map(|confirmed| confirmed.at).filter(|at| *at > fault.in_force_at).min()
        }
    };
    Some(next?.since(fault.in_force_at))
}

/// From a fault of a node until every sender has had a task confirmed again.
pub(crate) fn all_senders(history: &History, fault: &Fault) -> Option<Duration> {
    let mut first = BTreeMap::new();
    for confirmed in
        history.confirmed.iter().filter(|confirmed| confirmed.at > fault.in_force_at.plus(IN_FLIGHT))
    {
        let sender = confirmed.session.split('.').next();
        let at = first.entry(sender).or_insert(confirmed.at);
        *at = confirmed.at.min(*at);
    }
    let last = first.into_values().max().filter(|_| fault.affects_broker())?;
    Some(last.since(fault.in_force_at))
}

fn next_end(history: &History, after: Moment, wanted: impl Fn(Option<usize>) -> bool) -> Option<Moment> {
    let begun_later = history.runs.iter().filter(|run| run.start > after && wanted(run.slot()));
    begun_later.map(|run| run.end).min()
}

/// The longest time between the ends of two successive runs.
fn longest_gap(history: &History) -> Option<Duration> {
    let mut ends: Vec<Moment> = history.runs.iter().map(|run| run.end).collect();
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

/// A Markdown table, padded to the width of its cells.
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

pub(crate) fn fault_table(history: &History, result: &CheckResult) -> String {
    let mut kinds = BTreeMap::<FaultKind, Vec<&Fault>>::new();
    for fault in &history.faults {
        kinds.entry(fault.kind).or_default().push(fault);
    }
    let head = ["fault", "times", "lasted", "recovered", "worst", "all senders again", "worst", "extra runs"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (kind, faults) in kinds {
        let lasted = faults.iter().filter_map(|fault| Some(fault.until?.since(fault.in_force_at))).collect();
        let recovered: Vec<Duration> = faults.iter().filter_map(|fault| recovery(history, fault)).collect();
        let confirmed: Vec<Duration> =
            faults.iter().filter_map(|fault| all_senders(history, fault)).collect();
        let extra_runs = result.explained().filter(|explanation| explanation.fault.kind == kind).count();
        rows.push(vec![
            kind.name().to_owned(),
            faults.len().to_string(),
            seconds(median(lasted)),
            seconds(median(recovered.clone())),
            seconds(recovered.iter().max().copied()),
            seconds(median(confirmed.clone())),
            seconds(confirmed.iter().max().copied()),
            extra_runs.to_string(),
        ]);
    }
    table(&rows)
}

pub(crate) fn summary(history: &History, result: &CheckResult, resources: &Resources) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} tasks confirmed = {} done + {} dead + {} still queued; {} more came from senders that were killed or \
         gave up",
        result.confirmed, result.done, result.dead, result.queued, result.unconfirmed
    );
    let of = |outcome| history.runs.iter().filter(|run| run.outcome == outcome).count();
    let _ = writeln!(
        text,
        "{} runs: {} done, {} failed, {} timed out, {} refused, {} cut short with their worker",
        history.runs.len(),
        of(Outcome::Done),
        of(Outcome::Failed),
        of(Outcome::Hung),
        of(Outcome::Refused),
        of(Outcome::Truncated)
    );
    let mut windows = BTreeMap::<Window, usize>::new();
    for explanation in result.explained() {
        *windows.entry(explanation.window).or_default() += 1;
    }
    let windows: Vec<String> =
        windows.iter().map(|(window, count)| format!("{count} {}", window.name())).collect();
    let windows = if windows.is_empty() { "none".to_owned() } else { windows.join(", ") };
    let unexplained = result.extra_runs.len() - result.explained().count();
    let _ = writeln!(
        text,
        "{} extra runs ({}), {unexplained} of them without a fault that explains it; {} tasks were done more than \
         once",
        result.extra_runs.len(),
        windows,
        result.done_twice
    );
    let _ =
        writeln!(text, "the longest time in which no task was completed: {}", seconds(longest_gap(history)));
    if let Some((first, last)) = resources.ends() {
        let _ = writeln!(
            text,
            "a worker that was not replaced: {} KiB, {} descriptors, {} threads in the first third of the round, {} KiB, \
             {}, {} in the last; the most that any worker had: {} KiB",
            first.kib,
            first.descriptors,
            first.threads,
            last.kib,
            last.descriptors,
            last.threads,
            resources.peak_kib
        );
    }
    text
}
