//! The end of a run: what was confirmed is worked, queues are emptied and counted.

use super::books::clock::Moment;
use super::books::explain::HANGS_FOR;
use super::books::record::{Body, Left, Outcome, Run};
use super::brokers::Brokers;
use super::run::Shared;
use super::workers::ATTEMPTS;
use crate::support::{Broker, handler};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// After the last fault a task must be completed within this long, and then again and again while there are any.
const PROGRESS: Duration = Duration::from_mins(1);
/// A delay queue whose broker was restarted may wait that long for a confirm of its own before it hands a task over
/// again: RabbitMQ's time-out for that is three minutes.
const DELAYED_PROGRESS: Duration = Duration::from_mins(4);
/// A quorum queue tells only every five seconds what it holds.
const TOLD: Duration = Duration::from_secs(7);
/// As many runs as may still be going on although their lines are there.
const RECENT: usize = 100;
const LOOK: Duration = Duration::from_millis(500);

/// No further attempt follows this one.
fn is_last(run: &Run) -> bool {
    match run.outcome {
        Outcome::Done | Outcome::Refused => true,
        Outcome::Failed | Outcome::Hung => run.attempt >= ATTEMPTS,
        Outcome::Truncated => false,
    }
}

/// When its worker is done with it: a run that hangs writes its line at its beginning.
fn over_at(run: &Run) -> Moment {
    if run.outcome == Outcome::Hung { run.end.plus(HANGS_FOR) } else { run.end }
}

/// Waits until all that was confirmed has had its last run and nothing is left in the queues that workers empty.
pub(crate) fn wait_worked(shared: &Shared, brokers: &Brokers) {
    let confirmed: HashSet<String> =
        shared.ledger.read_confirmed().into_iter().map(|confirmed| confirmed.task).collect();
    let (mut seen, mut progress) = (0, Instant::now());
    while !shared.is_abandoned() {
        let (runs, open, rested) = shared.ledger.with_runs(|runs| {
            let over: HashSet<&str> =
                runs.iter().filter(|run| is_last(run)).map(|run| run.task.as_str()).collect();
            let open = confirmed.iter().filter(|task| !over.contains(task.as_str())).count();
            let last = runs.iter().rev().take(RECENT).map(over_at).max();
            (runs.len(), open, last.is_none_or(|last| Moment::now() > last.plus(TOLD)))
        });
        let (held, waiting) = brokers.count(&shared.queue);
        if open == 0 && held == 0 && waiting == 0 && rested {
            return;
        }
        if runs > seen {
            (seen, progress) = (runs, Instant::now());
        }
        // What is in no queue at all will not come any more.
        let patience = if held > 0 || waiting == 0 { PROGRESS } else { DELAYED_PROGRESS };
        if progress.elapsed() > patience {
            shared.wrong(format!(
                "nothing was worked for {patience:?}: {open} confirmed tasks are open, {held} are in the queue, \
                 {waiting} wait for their time"
            ));
            return;
        }
        shared.rest(LOOK, Shared::is_abandoned);
    }
}

/// Takes everything out of the queues: the tasks still to be run, and the dead.
pub(crate) fn empty_queues(shared: &Shared, brokers: &Brokers) -> (Vec<Left>, Vec<Left>) {
    let client = brokers.client();
    let mut queued = take(&client, &shared.queue);
    for delay in brokers.delay_queues(&shared.queue) {
        queued.extend(take(&client, &delay));
    }
    let dead = take(&client, &format!("{}.dead", shared.queue));
    for (name, left) in [("left", &queued), ("dead", &dead)] {
        shared.ledger.write(name, left.iter().map(|l| format!("{} {} {}", l.task, l.attempt, l.body)));
    }
    (queued, dead)
}

fn take(client: &Broker, queue: &str) -> Vec<Left> {
    let read = |message: &amiquip::Delivery| {
        let body = handler::body(message);
        let words: Vec<&str> = body.split(' ').collect();
        let [name, errand, fed, ..] = words[..] else { panic!("a task that nobody sent: {body:?}") };
        Left {
            task: message.properties.message_id().clone().unwrap_or_default(),
            body: Body::parse(name, errand, fed).unwrap(),
            attempt: handler::attempt(message).map_or(1, |attempt| u32::try_from(attempt).unwrap()),
        }
    };
    client.drain(queue).iter().map(read).collect()
}

/// Handlers whose workers were killed go on for a while; nobody waits for them.
pub(crate) fn end_strays(shared: &Shared) {
    let mark = format!("CHAOS_RUNS={}", shared.ledger.runs_path().display());
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
