//! The broker takes a task back that takes longer than its delivery acknowledgement timeout. Up to RabbitMQ 4.2 it
//! closes the channel; 4.3 cancels the consumer, of quorum queues only, and lets the consumer say how long it may take.

use crate::support::broker::{arguments, durable, text};
use crate::support::{Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;

/// On a broker whose delivery acknowledgement timeout is two seconds.
fn with_short_timeout() -> Sandbox {
    let sandbox = Sandbox::configured(&["consumer_timeout = 2000"]);
    // A channel checks its deliveries once a minute by default; the setting holds for channels that are opened later.
    // 4.3 has a timer for each delivery.
    sandbox.node().ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]);
    sandbox
}

fn lets_consumers_set_the_timeout(sandbox: &Sandbox) -> bool {
    sandbox.broker().version() >= [4, 3, 0]
}

fn declare(sandbox: &Sandbox, kind: &str) {
    let kind = arguments(&[("x-queue-type", text(kind))]);
    sandbox.broker().declare_with(&sandbox.queue, durable(kind));
}

#[test]
fn it_is_explained_and_the_worker_goes_on() {
    let sandbox = with_short_timeout();
    declare(&sandbox, "quorum");
    let worker = sandbox.worker(["--threads", "2"]);
    let broker = sandbox.broker();
    // With an id, by which it is known when it comes back.
    sandbox.taskq(["send", "too long ........"]).run().exits(0);
    worker.says("Received a message: too long");
    worker.says("a task ran longer").says("consumer_timeout").says("Done");
    broker.wait_consumers(&sandbox.queue, 2);
    broker.publish(&sandbox.queue, "short");
    worker.says("Received a message: short\nDone\n");
    worker.signal(SIGTERM);
    let ended = worker.end().exits(0).never_says("cancelled the consumer");
    assert_eq!(ended.stderr.matches("Received a message: too long").count(), 1, "{}", ended.stderr);
    until("the long task to be acknowledged", || {
        (broker.counts(&sandbox.queue) == Some((0, 0))).then_some(())
    });
}

/// The broker has cancelled the consumer by then, and must not take it for a live one when the task is answered at last.
#[test]
fn a_task_that_is_answered_too_late_costs_no_connection() {
    for kind in ["classic", "quorum"] {
        let sandbox = with_short_timeout();
        declare(&sandbox, kind);
        for body in ["too long", "next", "last"] {
            sandbox.taskq(["send", body]).run().exits(0);
        }
        let script = r#"body=$(cat); [ "$body" != "too long" ] || sleep 5; echo "$body" >>"$1/done""#;
        let worked = sandbox.work_with(&["--until-empty"], script).run().exits(0);
        worked.never_says("lost the connection").never_says("cancelled the consumer");
        let mut done = sandbox.lines("done");
        done.sort_unstable();
        assert_eq!(done, ["last", "next", "too long"]);
        assert_eq!(sandbox.broker().counts(&sandbox.queue).unwrap().0, 0);
    }
}

/// With a time limit of its own the worker knows how long the broker has to wait, and since 4.3 can tell it.
#[test]
fn the_broker_waits_for_as_long_as_a_task_may_take_where_it_can_be_told() {
    for kind in ["classic", "quorum"] {
        let sandbox = with_short_timeout();
        declare(&sandbox, kind);
        sandbox.taskq(["send", "slow"]).run().exits(0);
        let options = ["--timeout", "20s", "--until-empty"];
        let worked = sandbox.work_with(&options, "sleep 5; echo done >>\"$1/done\"").run().exits(0);
        if lets_consumers_set_the_timeout(&sandbox) {
            worked.never_says("ran longer").never_says("cancelled the consumer");
        } else {
            worked.says("a task ran longer").says("consumer_timeout in rabbitmq.conf");
        }
        assert_eq!(sandbox.lines("done"), ["done"], "{kind}");
    }
}

/// The worker reports that the queue was deleted, and no timeout, although a long task is running.
#[test]
fn a_queue_that_is_deleted_under_a_task_is_not_blamed_on_the_task() {
    let sandbox = Sandbox::new();
    declare(&sandbox, "quorum");
    let broker = sandbox.broker();
    // The idle thread sees it first and declares the queue again.
    let worker = sandbox.worker(["--threads", "2"]);
    broker.publish(&sandbox.queue, "task ...");
    worker.says("Received a message: task");
    broker.delete(&sandbox.queue);
    worker.says("the queue was deleted").says("Done");
    broker.wait_consumers(&sandbox.queue, 2);
    worker.signal(SIGTERM);
    worker.end().exits(0).never_says("ran longer");
}
