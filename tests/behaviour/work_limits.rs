//! `taskq work` that ends by itself: `--until-empty`, `--max-tasks`, `--idle-timeout`.

use crate::support::script::Script;
use crate::support::{Broker, Sandbox, amqp};
use nix::sys::signal::Signal::SIGTERM;
use std::io::Write;
use std::time::Duration;

fn publish(broker: &Broker, queue: &str, count: usize) {
    broker.declare(queue);
    for n in 0..count {
        broker.publish(queue, format!("task {n}"));
    }
}

fn received(stderr: &str) -> usize {
    stderr.lines().filter(|line| line.starts_with("Received a message")).count()
}

#[test]
fn until_empty_works_everything_and_ends() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    publish(&broker, &sandbox.queue, 100);
    let worked = sandbox.taskq(["work", "--threads", "3", "--until-empty"]).run().exits(0);
    assert_eq!(received(&worked.stderr), 100);
    assert_eq!(broker.ready(&sandbox.queue), 0);
}

#[test]
fn until_empty_ends_at_once_where_there_is_nothing() {
    let sandbox = Sandbox::new();
    let worked = sandbox.taskq(["work", "--threads", "4", "--until-empty"]).run().exits(0);
    assert_eq!(received(&worked.stderr), 0);
}

#[test]
fn until_empty_waits_for_the_tasks_that_run_here() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    broker.publish(&sandbox.queue, "long...");
    let worked = sandbox.taskq(["work", "--threads", "4", "--until-empty"]).run().exits(0);
    worked.says("Received a message: long...\nDone\n");
    assert_eq!(broker.ready(&sandbox.queue), 0);
}

#[test]
fn max_tasks_is_exact_over_all_threads() {
    for round in 0..10 {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        publish(&broker, &sandbox.queue, 40);
        let limit = (17 + round).to_string();
        let worked = sandbox.taskq(["work", "--threads", "8", "--max-tasks", &limit]).run().exits(0);
        assert_eq!(received(&worked.stderr), 17 + round);
        let left = broker.drain(&sandbox.queue);
        assert_eq!(left.len(), 40 - 17 - round);
    }
}

#[test]
fn the_task_after_the_last_one_was_never_delivered() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    publish(&broker, &sandbox.queue, 10);
    sandbox.taskq(["work", "--max-tasks", "3"]).run().exits(0);
    let left = broker.drain(&sandbox.queue);
    assert_eq!(left.len(), 7);
    assert!(left.iter().all(|message| !message.redelivered), "a task was taken and given back");
}

#[test]
fn more_threads_than_tasks_leave_the_next_task_untouched() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    publish(&broker, &sandbox.queue, 12);
    let worked = sandbox.taskq(["work", "--threads", "8", "--max-tasks", "2"]).run().exits(0);
    assert_eq!(received(&worked.stderr), 2);
    let left = broker.drain(&sandbox.queue);
    assert_eq!(left.len(), 10);
    assert!(left.iter().all(|message| !message.redelivered), "a task was taken and given back");
}

#[test]
fn max_tasks_waits_for_tasks_to_come() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker(["--max-tasks", "2"]);
    let broker = sandbox.broker();
    broker.publish(&sandbox.queue, "one");
    worker.says("Done");
    broker.publish(&sandbox.queue, "two");
    broker.publish(&sandbox.queue, "three");
    worker.end().exits(0).never_says("three");
    assert_eq!(broker.bodies(&sandbox.queue), ["three"]);
}

#[test]
fn idle_timeout_ends_a_worker_that_gets_nothing() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker(["--threads", "2", "--idle-timeout", "1s"]);
    worker.end_within(Duration::from_secs(30)).exits(0);
}

#[test]
fn a_running_task_is_not_idleness() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish(&sandbox.queue, "long....");
    let worked = sandbox.taskq(["work", "--threads", "2", "--idle-timeout", "1s"]).run().exits(0);
    worked.says("Received a message: long....\nDone\n");
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0);
}

/// Long enough to be connected by then, also on a busy machine.
const TIME: [&str; 2] = ["--max-time", "4s"];

#[test]
fn max_time_ends_a_worker_that_gets_nothing() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker(["--threads", "2", "--idle-timeout", "1h"].iter().chain(&TIME));
    worker.end_within(Duration::from_secs(30)).exits(0);
}

#[test]
fn after_its_time_a_worker_finishes_what_runs_and_takes_nothing_new() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    publish(&broker, &sandbox.queue, 3);
    // Longer than the time, whenever that began.
    let worker = sandbox.handling(&[&TIME[..], &["--until-empty"]].concat(), "exec sleep 5");
    let worked = worker.end_within(Duration::from_secs(30)).exits(0);
    assert_eq!((received(&worked.stderr), worked.stderr.matches("Done").count()), (1, 1));
    let left = broker.drain(&sandbox.queue);
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|message| !message.redelivered), "a task was taken and given back");
}

#[test]
fn what_outlasts_the_time_and_the_grace_period_goes_back_and_the_run_ends_well() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    publish(&broker, &sandbox.queue, 1);
    let options = [&TIME[..], &["--grace", "500ms"]].concat();
    let worked = sandbox.handling(&options, "exec sleep 100").end_within(Duration::from_secs(30)).exits(0);
    worked.says("the grace period is over: giving up 1 running");
    broker.wait_ready(&sandbox.queue, 1);
}

#[test]
fn a_run_whose_time_is_over_tells_of_dead_tasks() {
    let sandbox = Sandbox::new();
    publish(&sandbox.broker(), &sandbox.queue, 1);
    sandbox.handling(&TIME, "exit 65").end_within(Duration::from_secs(30)).exits(1);
}

#[test]
fn without_a_connection_when_the_time_is_over_the_broker_is_lost() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(TIME);
    proxy.refuse();
    proxy.cut();
    worker.end_within(Duration::from_secs(30)).exits(69).says("--max-time");
}

#[test]
fn limits_combine_and_the_first_one_ends_it() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    publish(&broker, &sandbox.queue, 5);
    let options = ["work", "--until-empty", "--max-tasks", "9", "--idle-timeout", "50s", "--max-time", "1h"];
    let worked = sandbox.taskq(options).run().exits(0);
    assert_eq!(received(&worked.stderr), 5);
}

/// As RabbitMQ does for a quorum queue whose leader is away: it counts no task, and no consumer either.
#[test]
fn a_queue_without_its_own_consumers_is_not_counted_and_so_not_empty() {
    let sandbox = Sandbox::new();
    let server = Script::run(|stream| {
        let consume = amqp::play_until(stream, amqp::CONSUME)?;
        stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
        amqp::play(stream)
    });
    let worker = sandbox.taskq(["work", "--until-empty", "--url", &server.url()]).start();
    worker.says("nobody answers for the queue");
    worker.signal(SIGTERM);
    worker.end().exits(0);
}
