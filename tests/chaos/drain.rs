//! The end of a round: all confirmed tasks are worked, then the queues are emptied.

use super::brokers::Brokers;
use super::checker::clock::Moment;
use super::checker::explain::HANGS_FOR;
use super::checker::record::{Body, Outcome, Remaining, Run};
use super::shared::Shared;
use super::workers::ATTEMPTS;
use crate::support::{Broker, handler};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// After the last fault a task must be completed within this long, and then again and again while there are any.
const PROGRESS: Duration = Duration::from_mins(1);
/// The same while tasks wait in delay queues only. A delay queue whose broker was restarted may wait for a confirm
/// before it hands a task over again: RabbitMQ's time-out for that is three minutes.
const DELAYED_PROGRESS: Duration = Duration::from_mins(4);
/// A quorum queue updates its message counts only every five seconds.
const COUNTS_UPDATED: Duration = Duration::from_secs(7);
/// More than the runs that may still go on although their lines are written.
const RECENT: usize = 100;
const POLL: Duration = Duration::from_millis(500);

/// No further attempt follows this one.
fn is_last(run: &Run) -> bool {
    match run.outcome {
        Outcome::Done | Outcome::Refused => true,
        Outcome::Failed | Outcome::Hung => run.attempt >= ATTEMPTS,
        Outcome::Truncated => false,
    }
}

/// When a run has ended: one that hangs writes its line at its beginning.
fn ended_at(run: &Run) -> Moment {
    if run.outcome == Outcome::Hung { run.end.plus(HANGS_FOR) } else { run.end }
}

/// Waits until all that was confirmed has had its last run and nothing is left in the queues that workers empty.
pub(crate) fn wait_worked(shared: &Shared, brokers: &Brokers) {
    let confirmed: HashSet<String> =
        shared.recorder.read_confirmed().into_iter().map(|confirmed| confirmed.task).collect();
    let (mut seen, mut progress) = (0, Instant::now());
    while !shared.is_abandoned() {
        let (runs, open, rested) = shared.recorder.with_runs(|runs| {
            let over: HashSet<&str> =
                runs.iter().filter(|run| is_last(run)).map(|run| run.task.as_str()).collect();
            let open = confirmed.iter().filter(|task| !over.contains(task.as_str())).count();
            let last = runs.iter().rev().take(RECENT).map(ended_at).max();
            (runs.len(), open, last.is_none_or(|last| Moment::now() > last.plus(COUNTS_UPDATED)))
        });
        let (held, waiting) = brokers.count(&shared.queue);
        if open == 0 && held == 0 && waiting == 0 && rested {
            return;
        }
        if runs > seen {
            (seen, progress) = (runs, Instant::now());
        }
        // With nothing in the delay queues there is no reason to wait longer.
        let limit = if held > 0 || waiting == 0 { PROGRESS } else { DELAYED_PROGRESS };
        if progress.elapsed() > limit {
            shared.violation(format!(
                "nothing was worked for {limit:?}: {open} confirmed tasks are open, {held} are in the queue, \
                 {waiting} wait for their time"
            ));
            return;
        }
        shared.sleep(POLL, Shared::is_abandoned);
    }
}

/// Takes everything out of the queues: the tasks still to be run, and the dead.
pub(crate) fn empty_queues(shared: &Shared, brokers: &Brokers) -> (Vec<Remaining>, Vec<Remaining>) {
    let client = brokers.client();
    let mut queued = take(&client, &shared.queue);
    for delay in brokers.delay_queues(&shared.queue) {
        queued.extend(take(&client, &delay));
    }
    let dead = take(&client, &format!("{}.dead", shared.queue));
    for (name, remaining) in [("queued", &queued), ("dead", &dead)] {
        shared.recorder.write(name, remaining.iter().map(|r| format!("{} {} {}", r.task, r.attempt, r.body)));
    }
    (queued, dead)
}

fn take(client: &Broker, queue: &str) -> Vec<Remaining> {
    let read = |message: &amiquip::Delivery| {
        let body = handler::body(message);
        let words: Vec<&str> = body.split(' ').collect();
        let [name, action, submitted, ..] = words[..] else { panic!("not a task of a sender: {body:?}") };
        Remaining {
            task: message.properties.message_id().clone().unwrap_or_default(),
            body: Body::parse(name, action, submitted).unwrap(),
            attempt: handler::attempt(message).map_or(1, |attempt| u32::try_from(attempt).unwrap()),
        }
    };
    client.drain(queue).iter().map(read).collect()
}

/// Kills the handlers that still run although their workers were killed.
pub(crate) fn kill_orphans(shared: &Shared) {
    let variable = format!("CHAOS_RUNS={}", shared.recorder.runs_path().display());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
