//! A thousand tasks of which many fail: each is done or dead in the end, also when workers and brokers are killed at
//! random.

use crate::support::handler::{body, header};
use crate::support::poll::within;
use crate::support::{Broker, Process, Rng, Sandbox};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a handler does with task number n: every third one fails once, every tenth one always, and those in a list
/// never end. Each run leaves a line, and so does each success.
const SCRIPT: &str = r#"
    read -r n || exit 1 # Its worker was killed before it had written the body.
    echo "$n" >>"$1/runs"
    case $n in *55) exec sleep 1000;; *0) echo "task $n is hopeless" >&2; exit 3;; esac
    if [ $((n % 3)) = 0 ] && [ "$TASKQ_ATTEMPT" = 1 ]; then echo "task $n is not ready" >&2; exit 75; fi
    echo "$n" >>"$1/done""#;

fn never_ends(n: usize) -> bool {
    n % 100 == 55
}

fn is_hopeless(n: usize) -> bool {
    n.is_multiple_of(10) || never_ends(n)
}

fn send(sandbox: &Sandbox, tasks: &BTreeSet<usize>) {
    let lines = tasks.iter().map(usize::to_string).collect::<Vec<_>>().join("\n");
    // Each body ends with a line end, so that a shell can tell a whole one.
    sandbox
        .taskq(["send", "--null", "--retry-for", "60s"])
        .feed(lines.replace('\n', "\n\0") + "\n\0")
        .exits(0);
}

fn done(sandbox: &Sandbox) -> Vec<usize> {
    sandbox.lines("done").iter().map(|line| line.parse().unwrap()).collect()
}

fn runs(sandbox: &Sandbox) -> BTreeMap<usize, usize> {
    let mut runs = BTreeMap::new();
    for line in sandbox.lines("runs") {
        *runs.entry(line.parse().unwrap()).or_default() += 1;
    }
    runs
}

#[test]
fn of_a_thousand_tasks_each_is_done_or_dead_after_all_its_attempts() {
    const ATTEMPTS: usize = 3;
    let sandbox = Sandbox::new();
    let tasks: BTreeSet<usize> = (0..1000).collect();
    let hopeless: BTreeSet<usize> = tasks.iter().copied().filter(|n| is_hopeless(*n)).collect();
    send(&sandbox, &tasks);
    let options =
        ["--quiet", "--threads", "6", "--attempts", "3", "--backoff", "300ms,600ms", "--timeout", "4s"];
    let worker = sandbox.work_with(&options, SCRIPT).start();
    let broker = sandbox.broker();
    within(Duration::from_mins(3), "every task done or dead", || {
        let dead = broker.counts(&sandbox.dead_queue())?.0;
        (usize::try_from(dead).unwrap() + done(&sandbox).len() >= tasks.len()).then_some(())
    });
    worker.signal(SIGTERM);
    worker.end().exits(0);

    let expected: Vec<usize> = tasks.difference(&hopeless).copied().collect();
    let mut finished = done(&sandbox);
    finished.sort_unstable();
    assert!(finished == expected, "missing or done twice");
    for queue in [&sandbox.queue, &sandbox.delay_queue(300), &sandbox.delay_queue(600)] {
        assert_eq!(broker.ready(queue), 0, "{queue}");
    }
    let listed = sandbox.taskq(["dead", "list", "--json"]).run().exits(0);
    let dead: Vec<Value> =
        listed.stdout_lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let runs = runs(&sandbox);
    let mut seen = BTreeSet::new();
    for task in &dead {
        let n: usize = task["body_excerpt"].as_str().unwrap().trim_end_matches("\\n").parse().unwrap();
        assert!(seen.insert(n), "{n} is dead twice");
        assert_eq!((runs[&n], task["attempt"].as_u64()), (ATTEMPTS, Some(3)), "{task}");
        let (exit, error) = (task["exit"].as_str().unwrap(), task["error"].as_str());
        if never_ends(n) {
            assert!(exit.contains("timed out"), "{task}");
        } else {
            assert_eq!(error.map(str::trim_end), Some(&*format!("task {n} is hopeless")));
        }
    }
    assert_eq!(seen, hopeless);
    for task in dead.iter().filter(|task| task["error"].is_string()).step_by(40) {
        let id = task["id"].as_str().unwrap();
        let shown = sandbox.taskq(["dead", "show", id]).run().exits(0).stdout_text();
        assert!(shown.contains(task["error"].as_str().unwrap().trim_end()), "{shown}");
    }
}

/// Starts a worker in place of each that was killed.
fn restart_killed(workers: &mut [Process], start: impl Fn() -> Process) {
    for worker in workers {
        if !worker.is_running() {
            *worker = start();
        }
    }
}

/// Empties the queue of dead tasks into a map from task to why it died.
fn collect_dead(broker: &Broker, sandbox: &Sandbox) -> BTreeMap<usize, String> {
    let dead = broker.drain(&sandbox.dead_queue());
    dead.iter().map(|task| (body(task).trim().parse().unwrap(), header(task, "x-taskq-exit"))).collect()
}

#[test]
fn killing_workers_and_the_broker_at_random_loses_neither_a_task_nor_a_failure() {
    const DEATHS: u64 = 10;
    let mut rng = Rng::new();
    let sandbox = Sandbox::exclusive();
    let tasks: BTreeSet<usize> = (0..400).filter(|n| !never_ends(*n)).collect();
    let hopeless: BTreeSet<usize> = tasks.iter().copied().filter(|n| is_hopeless(*n)).collect();
    send(&sandbox, &tasks);
    let start = || {
        let options =
            ["--quiet", "--threads", "3", "--attempts", "2", "--backoff", "300ms", "--max-deliveries", "50"];
        sandbox.work_with(&options, SCRIPT).env("RUST_LOG", "warn").start()
    };
    let mut workers = [start(), start()];
    for death in 0..DEATHS {
        rng.pause(700);
        if death % 5 == 4 {
            sandbox.node().kill();
            rng.pause(1000);
            sandbox.node().start();
        } else {
            workers[usize::try_from(rng.below(2)).unwrap()].signal(SIGKILL);
        }
        restart_killed(&mut workers, start);
    }
    let broker = sandbox.broker();
    let left = || [&sandbox.queue, &sandbox.delay_queue(300)].map(|queue| broker.ready(queue)) != [0, 0];
    while left() {
        within(Duration::from_mins(2), "nothing that waits", || {
            // A worker that was started while the broker was down has ended with 69, as it should.
            restart_killed(&mut workers, start);
            (!left()).then_some(())
        });
        // What still runs may have to be tried again.
        for worker in std::mem::replace(&mut workers, [start(), start()]) {
            worker.signal(SIGTERM);
            // The signal's own code where it came before the worker could listen.
            worker.end().exits_with_one_of(&[0, 69, 143]);
        }
    }
    broker.wait_consumers(&sandbox.queue, 6);
    for worker in workers {
        worker.signal(SIGTERM);
        worker.end().exits(0);
    }
    let dead = collect_dead(&broker, &sandbox);
    let finished: BTreeSet<usize> = done(&sandbox).into_iter().collect();
    let lost: Vec<usize> =
        tasks.iter().copied().filter(|n| !finished.contains(n) && !dead.contains_key(n)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert_eq!(dead.keys().copied().collect::<BTreeSet<_>>(), hopeless);
    assert!(dead.values().all(|why| why.contains("exit status 3")), "{dead:?}");
    assert_eq!(finished, tasks.difference(&hopeless).copied().collect());
}
