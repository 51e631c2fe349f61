//! Poison tasks, which kill their worker: they are not delivered for ever.

use crate::support::handler::{attempt, body, header};
use crate::support::poll::within;
use crate::support::{Process, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::time::Duration;

/// Kills the worker that runs it for bodies that begin with `poison`.
const POISON: &str =
    r#"task=$(cat); echo "$task" >>"$1/runs"; case $task in poison*) kill -9 $PPID; sleep 10;; esac"#;

/// Starts a worker in place of each that was killed until so many tasks are dead. The last one goes on.
fn run_until_dead(sandbox: &Sandbox, options: &[&str], dead: u32) -> Process {
    let broker = sandbox.broker();
    let mut worker = sandbox.work_with(options, POISON).start();
    within(Duration::from_mins(2), "the poison among the dead tasks", || {
        if !worker.is_running() {
            worker = sandbox.work_with(options, POISON).start();
        }
        (broker.counts(&sandbox.dead_queue())?.0 == dead).then_some(())
    });
    worker
}

fn runs(sandbox: &Sandbox, task: &str) -> usize {
    sandbox.lines("runs").iter().filter(|line| *line == task).count()
}

#[test]
fn a_task_that_kills_its_worker_is_dead_after_so_many_deliveries() {
    for kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        let send = ["send", "--queue-type", kind, "--lines"];
        sandbox.taskq(send).feed("good 1\npoison\ngood 2\n").exits(0);
        let options = ["--queue-type", kind, "--max-deliveries", "3", "--attempts", "2"];
        let _worker = run_until_dead(&sandbox, &options, 1);
        let dead = sandbox.broker().take(&sandbox.dead_queue());
        assert_eq!(body(&dead), "poison");
        assert_eq!(runs(&sandbox, "poison"), 3, "{kind}: {:?}", sandbox.lines("runs"));
        let why = header(&dead, "x-taskq-exit");
        assert!(why.contains('3') && why.contains("deliver"), "{kind}: {why:?}");
        // No attempt ended with an answer.
        assert_eq!(attempt(&dead), Some(1), "{kind}");
        sandbox.wait_lines("runs", 5);
        assert!(runs(&sandbox, "good 1") > 0 && runs(&sandbox, "good 2") > 0);
        sandbox.broker().wait_ready(&sandbox.queue, 0);
    }
}

#[test]
fn a_limit_of_the_broker_does_not_come_before_that_of_the_worker() {
    // RabbitMQ 4 drops what a quorum queue has delivered more than 20 times.
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--queue-type", "quorum", "poison"]).run().exits(0);
    drop(run_until_dead(&sandbox, &["--queue-type", "quorum", "--max-deliveries", "25"], 1));
    assert_eq!(runs(&sandbox, "poison"), 25);
    assert_eq!(body(&sandbox.broker().take(&sandbox.dead_queue())), "poison");
}

#[test]
fn one_delivery_without_an_answer_can_be_enough() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "poison"]).run().exits(0);
    drop(run_until_dead(&sandbox, &["--max-deliveries", "1"], 1));
    assert_eq!(runs(&sandbox, "poison"), 1);
}

#[test]
fn a_task_that_kills_a_persistent_handlers_worker_is_dead_as_well() {
    let sandbox = Sandbox::new();
    let script = r#"while read -r task; do echo run >>"$1/runs"; kill -9 $PPID; sleep 10; done"#;
    sandbox.taskq(["send", "poison"]).run().exits(0);
    let broker = sandbox.broker();
    let start = || sandbox.work_with(&["--persistent", "--max-deliveries", "2"], script).start();
    let mut worker = start();
    within(Duration::from_mins(2), "the poison among the dead tasks", || {
        if !worker.is_running() {
            worker = start();
        }
        (broker.counts(&sandbox.dead_queue())?.0 == 1).then_some(())
    });
    assert_eq!(sandbox.lines("runs").len(), 2);
}

#[test]
fn a_dead_poison_that_is_sent_again_is_counted_from_the_start() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "poison"]).run().exits(0);
    for round in 1..=2 {
        let worker = run_until_dead(&sandbox, &["--max-deliveries", "2"], 1);
        // The original has to be acknowledged too.
        worker.signal(SIGTERM);
        worker.end().exits(0);
        assert_eq!(runs(&sandbox, "poison"), 2 * round);
        sandbox.taskq(["dead", "requeue", "--all"]).run().exits(0);
    }
}

#[test]
fn deliveries_without_an_answer_use_up_no_attempt() {
    let sandbox = Sandbox::new();
    let script = r#"echo "$TASKQ_ATTEMPT" >>"$1/runs"; [ -e "$1/tame" ] || kill -9 $PPID"#;
    sandbox.taskq(["send", "hello"]).run().exits(0);
    for _ in 0..3 {
        sandbox.work_with(&["--attempts", "1"], script).run().exits(137);
    }
    sandbox.file("tame", "");
    sandbox.work_with(&["--attempts", "1", "--max-tasks", "1"], script).run().exits(0).says("Done");
    assert_eq!(sandbox.lines("runs"), ["1", "1", "1", "1"]);
    assert_eq!(sandbox.broker().ready(&sandbox.dead_queue()), 0);
}
