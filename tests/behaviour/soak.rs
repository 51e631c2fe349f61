//! Many tasks and threads, with workers and brokers killed at random.

use crate::support::poll::within;
use crate::support::process::as_the_tutorial;
use crate::support::{Process, Rng, Sandbox};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use std::collections::HashSet;
use std::time::Duration;

#[test]
fn ten_thousand_empty_tasks_are_worked_exactly_once_in_little_memory() {
    const COUNT: usize = 10_000;
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("\n".repeat(COUNT)).exits(0);
    let broker = sandbox.broker();
    assert_eq!(broker.ready(&sandbox.queue), u32::try_from(COUNT).unwrap());
    let worker = sandbox.worker(["--threads", "4", "--idle-timeout", "60s"]);
    worker.says_times("\nDone\n", 1);
    broker.wait_ready(&sandbox.queue, 0);
    let peak = worker.peak_memory();
    worker.signal(SIGTERM);
    let worked = worker.end().exits(0);
    let said = as_the_tutorial(&worked.stderr);
    let lines = |text: &str| said.lines().filter(|line| *line == text).count();
    assert_eq!((lines("Received a message: "), lines("Done")), (COUNT, COUNT));
    assert!(broker.get(&sandbox.queue).is_none());
    assert!(peak < 16 * 1024, "{peak} KiB");

    sandbox.taskq(["send", "--lines"]).feed("\n".repeat(COUNT)).exits(0);
    let worked = sandbox.taskq(["work", "--threads", "4", "--until-empty"]).run().exits(0);
    assert_eq!(worked.stderr.lines().filter(|line| line.starts_with("Done (")).count(), COUNT);
    assert!(broker.get(&sandbox.queue).is_none());
}

/// Sixteen consumers are cancelled on one connection in each round: a client that lets go of a consumer too early
/// loses the connection in one of every few cancels, and with it the acknowledgements.
#[test]
fn hundreds_of_cancelled_consumers_do_not_cost_the_connection() {
    const ROUNDS: usize = 30;
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    for round in 0..ROUNDS {
        for n in 0..32 {
            broker.publish(&sandbox.queue, format!("{round}/{n}"));
        }
        let worked = sandbox.taskq(["work", "--dots", "--threads", "16", "--until-empty"]).run().exits(0);
        assert_eq!(worked.stderr.lines().filter(|line| line.starts_with("Done (")).count(), 32);
        let about_tasks = |line: &&str| line.starts_with("Received") || line.starts_with("Done (");
        let others: Vec<_> = worked.stderr.lines().filter(|line| !about_tasks(line)).collect();
        assert_eq!(others[0], " [*] Waiting for messages", "round {round}");
        assert!(others[1].starts_with("connected to ") && others.len() == 2, "round {round}: {others:?}");
        assert!(broker.get(&sandbox.queue).is_none(), "an acknowledgement was lost in round {round}");
    }
}

#[test]
fn hundreds_of_consumers_cancelled_by_the_broker_do_not_cost_the_connection() {
    const ROUNDS: usize = 5;
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--threads", "64"]);
    let broker = sandbox.broker();
    for _ in 0..ROUNDS {
        broker.wait_consumers(&sandbox.queue, 64);
        broker.delete(&sandbox.queue);
    }
    broker.wait_consumers(&sandbox.queue, 64);
    assert_eq!(proxy.accepted(), 1, "the connection was lost");
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

/// Starts a worker in place of each of the first two that was killed; those move to the end of the list.
fn restart_killed(workers: &mut Vec<Process>, start: impl Fn() -> Process) {
    for n in 0..2 {
        if !workers[n].is_running() {
            workers.push(start());
            let last = workers.len() - 1;
            workers.swap(n, last);
        }
    }
}

#[test]
fn killing_workers_and_the_broker_at_random_loses_none_of_500_tasks() {
    const COUNT: usize = 500;
    const DEATHS: u64 = 12;
    let mut rng = Rng::new();
    let sandbox = Sandbox::exclusive();
    let tasks: HashSet<String> = (0..COUNT).map(|n| format!("task {n}")).collect();
    let mut send = sandbox.taskq(["send", "--lines", "--retry-for", "60s"]).start();
    // Published a piece at a time, so that brokers are killed while the sender publishes.
    let all: Vec<String> = (0..COUNT).map(|n| format!("task {n}\n")).collect();
    let mut pieces: Vec<String> = all.chunks(COUNT / 10).map(<[String]>::concat).collect();
    // A worker may be killed after it has acknowledged a task and before it has logged that.
    let script = r#"echo "$(cat)" >>"$1/done""#;
    let start = || sandbox.work_with(&["--threads", "3", "--connect-timeout", "60s"], script).start();
    let mut workers = vec![start(), start()];
    for death in 0..DEATHS {
        if let Some(piece) = pieces.pop() {
            send.write(piece);
        }
        rng.pause(400);
        if death % 4 == 3 {
            sandbox.node().kill();
            rng.pause(1000);
            sandbox.node().start();
        } else {
            workers[usize::try_from(rng.below(2)).unwrap()].signal(SIGKILL);
        }
        restart_killed(&mut workers, start);
    }
    for piece in pieces {
        send.write(piece);
    }
    send.close_stdin();
    send.end().exits(0);
    within(Duration::from_mins(2), "all 500 tasks worked and acknowledged", || {
        // A worker that was started while the broker was down has ended with 69, as it should.
        restart_killed(&mut workers, start);
        let done: HashSet<String> = sandbox.lines("done").into_iter().collect();
        tasks.is_subset(&done).then_some(())
    });
    sandbox.broker().wait_ready(&sandbox.queue, 0);
    for worker in workers.drain(..2) {
        worker.signal(SIGTERM);
        worker.end().exits(0);
    }
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0, "a task was not acknowledged");
}
