//! A worker outlives its connections, its channels and its queue: it consumes again, or says why it cannot.

use crate::support::{Process, Sandbox, until};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP, SIGTERM};
use std::time::Duration;

fn count(worker: &Process, text: &str) -> usize {
    worker.stderr().matches(text).count()
}

/// It still works tasks, and still stops cleanly.
fn works_on(sandbox: &Sandbox, worker: Process) {
    sandbox.broker().publish(&sandbox.queue, "still there");
    worker.says("Received a message: still there\nDone\n");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    let counts = sandbox.broker().counts(&sandbox.queue);
    assert_eq!(counts, Some((0, 0)), "every task was acknowledged");
}

#[test]
fn a_restarted_broker_is_found_again() {
    let sandbox = Sandbox::exclusive();
    let worker = sandbox.worker(["--threads", "2"]);
    sandbox.broker().wait_consumers(&sandbox.queue, 2);
    sandbox.node().kill();
    sandbox.node().start();
    works_on(&sandbox, worker);
}

#[test]
fn a_task_outlives_a_restart_of_the_broker_and_runs_once() {
    let sandbox = Sandbox::exclusive();
    let worker = sandbox.worker([""; 0]);
    // Sent by taskq: the broker stores it, and it has an id.
    sandbox.taskq(["send", "across the restart ...."]).run().exits(0);
    worker.says("Received a message: across");
    sandbox.node().kill();
    sandbox.node().start();
    worker.says("Done");
    sandbox.broker().wait_consumers(&sandbox.queue, 1);
    works_on(&sandbox, worker);
}

#[test]
fn a_task_that_was_done_on_a_dead_connection_is_not_run_again() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker([""; 0]);
    sandbox.taskq(["send", "only once ..."]).run().exits(0);
    worker.says("Received a message: only once");
    let before = proxy.accepted();
    proxy.cut();
    until("a new connection", || (proxy.accepted() > before).then_some(()));
    worker.says("Done");
    sandbox.broker().wait_ready(&sandbox.queue, 0);
    sandbox.broker().publish(&sandbox.queue, "the next");
    worker.says("Received a message: the next\nDone\n");
    assert_eq!(count(&worker, "Received a message: only once"), 1);
    works_on(&sandbox, worker);
}

#[test]
fn the_task_of_a_frozen_worker_goes_to_another_and_thawed_it_works_on() {
    let sandbox = Sandbox::new();
    let frozen = sandbox.worker(["--heartbeat", "1s"]);
    sandbox.taskq(["send", "passed on ..."]).run().exits(0);
    frozen.says("Received a message: passed on");
    frozen.signal(SIGSTOP);
    let other = sandbox.worker([""; 0]);
    other.says("Received a message: passed on").says("Done");
    other.signal(SIGTERM);
    other.end().exits(0);
    frozen.signal(SIGCONT);
    frozen.says("lost the connection").says("connected again to");
    works_on(&sandbox, frozen);
}

#[test]
fn a_task_that_still_runs_when_it_is_delivered_again_runs_once() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--threads", "2"]);
    sandbox.taskq(["send", "only once ......"]).run().exits(0);
    worker.says("Received a message: only once");
    proxy.cut();
    // The other thread is free, and gets it at once.
    sandbox.broker().wait_consumers(&sandbox.queue, 1);
    worker.says("Done");
    works_on(&sandbox, worker);
}

#[test]
fn many_cuts_under_load_lose_no_task() {
    const COUNT: usize = 400;
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--threads", "4"]);
    let broker = sandbox.broker();
    let tasks: Vec<String> = (0..COUNT).map(|n| format!("task <{n}>\n")).collect();
    for part in tasks.chunks(COUNT / 8) {
        sandbox
            .taskq(["send", "--lines"])
            .env("TASKQ_URL", sandbox.node().url())
            .feed(part.concat())
            .exits(0);
        proxy.cut();
    }
    until("every task worked", || {
        let stderr = worker.stderr();
        (0..COUNT).all(|n| stderr.contains(&format!("task <{n}> ("))).then_some(())
    });
    broker.wait_ready(&sandbox.queue, 0);
    broker.wait_consumers(&sandbox.queue, 4);
    works_on(&sandbox, worker);
}

#[test]
fn connections_closed_by_an_operator_are_opened_again() {
    let sandbox = Sandbox::exclusive();
    let worker = sandbox.worker(["--threads", "4"]);
    sandbox.taskq(["send", "only once ......"]).run().exits(0);
    worker.says("Received a message: only once");
    sandbox.node().ctl(&["close_all_connections", "maintenance, please wait"]);
    sandbox.broker().wait_consumers(&sandbox.queue, 4);
    worker.says("Done").says("maintenance, please wait");
    assert_eq!(count(&worker, "Received a message: only once"), 1);
    works_on(&sandbox, worker);
}

#[test]
fn a_deleted_queue_is_declared_and_consumed_again() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker(["--threads", "4"]);
    let broker = sandbox.broker();
    for _ in 0..3 {
        broker.wait_consumers(&sandbox.queue, 4);
        broker.delete(&sandbox.queue);
    }
    broker.wait_consumers(&sandbox.queue, 4);
    works_on(&sandbox, worker);
}

#[test]
fn a_queue_deleted_under_a_running_task_is_declared_and_consumed_again() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker(["--threads", "2"]);
    let broker = sandbox.broker();
    broker.publish(&sandbox.queue, "long...");
    worker.says("Received a message: long");
    broker.delete(&sandbox.queue);
    worker.says("Done");
    broker.wait_consumers(&sandbox.queue, 2);
    works_on(&sandbox, worker);
}

#[test]
fn without_a_declaration_a_deleted_queue_is_named_and_waited_for() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let worker = sandbox.worker(["--no-declare"]);
    broker.wait_consumers(&sandbox.queue, 1);
    broker.delete(&sandbox.queue);
    worker.says(&sandbox.queue);
    broker.declare(&sandbox.queue);
    works_on(&sandbox, worker);
}

#[test]
fn a_broker_that_comes_back_with_another_queue_of_the_name_is_a_configuration_error() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker([""; 0]);
    let broker = sandbox.broker();
    broker.wait_consumers(&sandbox.queue, 1);
    proxy.refuse();
    broker.wait_consumers(&sandbox.queue, 0);
    broker.delete(&sandbox.queue);
    broker.declare_with(&sandbox.queue, amiquip::QueueDeclareOptions::default());
    proxy.resume();
    worker.end().exits(78).says("durable");
}

#[test]
fn a_broker_that_stays_away_is_tried_again_and_again_and_each_failure_is_told() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let mut worker = sandbox.worker([""; 0]);
    let before = proxy.accepted();
    proxy.refuse();
    until("four attempts", || (proxy.accepted() >= before + 4).then_some(()));
    assert!(worker.is_running());
    assert!(worker.stderr().lines().count() >= 3, "it went quiet");
    proxy.resume();
    works_on(&sandbox, worker);
}

#[test]
fn a_heartbeat_finds_a_silent_network() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--heartbeat", "1s", "--connect-timeout", "2s"]);
    sandbox.broker().wait_consumers(&sandbox.queue, 1);
    let before = proxy.accepted();
    proxy.stall();
    until("an attempt to connect anew", || (proxy.accepted() > before).then_some(()));
    proxy.resume();
    works_on(&sandbox, worker);
}

#[test]
fn heartbeats_do_not_depend_on_a_running_task() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--heartbeat", "1s"]);
    sandbox.broker().publish(&sandbox.queue, "long ........");
    worker.says("Received a message: long");
    let connections = proxy.accepted();
    worker.says("Done");
    assert_eq!(proxy.accepted(), connections, "the connection was lost during a task of 8 s");
    assert_eq!(count(&worker, "Received"), 1);
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(20)).exits(0);
}

/// As RabbitMQ's metadata has it of a queue whose process cannot run now (`crashed`), and again when it can (`live`).
fn set_state(sandbox: &Sandbox, state: &str) {
    let name = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{}\">>)", sandbox.queue);
    let update =
        format!("rabbit_amqqueue:update({name}, fun(Queue) -> amqqueue:set_state(Queue, {state}) end)");
    // RabbitMQ 3.10 leaves the transaction to the caller.
    let set = format!(
        "case code:which(rabbit_db_queue) of \
             non_existing -> {{atomic, _}} = mnesia:transaction(fun() -> {update} end); \
             _ -> {update} \
         end."
    );
    sandbox.node().ctl(&["eval", &set]);
}

#[test]
fn a_queue_that_cannot_be_used_now_is_waited_for() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--threads", "2"]);
    let mut send = sandbox.taskq(["send", "--lines", "--retry-for", "2m"]).start();
    send.write("before\n");
    worker.says("Received a message: before\nDone\n");
    set_state(&sandbox, "crashed");
    proxy.cut();
    worker.says("has crashed and failed to restart; trying again");
    send.says("has crashed and failed to restart; trying again");
    send.write("meanwhile\n");
    // A worker that starts meanwhile does not wait, and its error suggests no change.
    for first in [["send", "hello", "--retry-for", "1s"].as_slice(), &["work"], &["work", "--no-declare"]] {
        sandbox.taskq(first).run().exits(69).says("has crashed and failed to restart");
    }
    set_state(&sandbox, "live");
    worker.says("Received a message: meanwhile\nDone\n");
    send.close_stdin();
    send.end().exits(0);
    works_on(&sandbox, worker);
}
