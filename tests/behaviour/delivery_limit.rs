//! A quorum queue with a limit of deliveries drops what was returned to it too often. taskq replaces such a task by a
//! copy before that, so that limits of 2 and more cost no task.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::{body, header};
use crate::support::poll::within;
use crate::support::{Broker, Sandbox, until};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use std::time::Duration;

/// A handler that records its start and runs until it is killed.
const SLOW: &str = r#"echo "$(cat) $TASKQ_REDELIVERED" >>"$1/runs"; exec sleep 60"#;

fn limited(sandbox: &Sandbox, queue: &str, limit: i32) {
    let limits = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(limit))];
    sandbox.broker().declare_with(queue, durable(arguments(&limits)));
}

/// A sandbox whose queue drops what was returned to it more often.
fn sandbox_with(limit: i32) -> Sandbox {
    let sandbox = Sandbox::new();
    limited(&sandbox, &sandbox.queue, limit);
    sandbox
}

/// Starts a worker, and stops or kills it in the middle of a task.
fn end_in_the_middle(sandbox: &Sandbox, options: &[&str], killed: bool) {
    let runs = sandbox.lines("runs").len();
    let worker = sandbox.handling(&[options, &["--grace", "100ms"]].concat(), SLOW);
    sandbox.wait_lines("runs", runs + 1);
    worker.signal(if killed { SIGKILL } else { SIGTERM });
    worker.end().exits(if killed { 137 } else { 143 });
}

/// All messages of the queue, once none is unacknowledged.
fn left(broker: &Broker, queue: &str, count: u32) -> Vec<String> {
    broker.wait_ready(queue, count);
    let mut left = broker.bodies(queue);
    left.sort_unstable();
    left
}

#[test]
fn a_task_whose_workers_are_ended_again_and_again_is_not_dropped() {
    for (limit, killed) in [(3, false), (3, true), (2, true)] {
        let sandbox = sandbox_with(limit);
        sandbox.taskq(["send", "precious"]).run().exits(0);
        for _ in 0..6 {
            end_in_the_middle(&sandbox, &[], killed);
        }
        let worker = sandbox.handling(&["--max-tasks", "1"], "exit 0");
        worker.says("Received a message: precious\nDone\n");
        worker.end().exits(0);
        assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)));
    }
}

#[test]
fn a_limit_that_a_policy_sets_is_no_different() {
    let sandbox = Sandbox::new();
    let pattern = format!("^{}$", sandbox.queue.replace('.', "[.]"));
    sandbox.node().ctl(&["set_policy", &sandbox.queue, &pattern, r#"{"delivery-limit":2}"#]);
    sandbox.taskq(["send", "--queue-type", "quorum", "precious"]).run().exits(0);
    for _ in 0..5 {
        end_in_the_middle(&sandbox, &["--queue-type", "quorum"], false);
    }
    sandbox.node().ctl(&["clear_policy", &sandbox.queue]);
    assert_eq!(left(&sandbox.broker(), &sandbox.queue, 1), ["precious"]);
}

#[test]
fn what_the_broker_gives_up_on_is_kept_where_a_policy_dead_letters_it() {
    let sandbox = Sandbox::new();
    let pattern = format!("^{}$", sandbox.queue.replace('.', "[.]"));
    let policy = format!(
        r#"{{"delivery-limit":1,"dead-letter-exchange":"","dead-letter-routing-key":"{}"}}"#,
        sandbox.dead_queue()
    );
    sandbox.node().ctl(&["set_policy", &sandbox.queue, &pattern, &policy, "--apply-to", "queues"]);
    sandbox.taskq(["send", "--queue-type", "quorum", "precious"]).run().exits(0);
    for _ in 0..2 {
        end_in_the_middle(&sandbox, &["--queue-type", "quorum"], true);
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
    let listed = sandbox.taskq(["dead", "list"]).run().exits(0);
    assert!(listed.stdout_lines().iter().any(|line| line.contains("gave up") && line.contains("precious")));
    sandbox.node().ctl(&["clear_policy", &sandbox.queue]);
}

#[test]
fn tasks_that_were_only_prefetched_are_not_dropped() {
    let sandbox = sandbox_with(2);
    sandbox.taskq(["send", "--lines"]).feed("1\n2\n3\n4\n5\n").exits(0);
    for _ in 0..6 {
        end_in_the_middle(&sandbox, &["--prefetch", "5"], true);
    }
    assert_eq!(left(&sandbox.broker(), &sandbox.queue, 5), ["1", "2", "3", "4", "5"]);
}

#[test]
fn a_task_that_comes_back_for_the_first_time_keeps_its_place() {
    let sandbox = sandbox_with(3);
    sandbox.taskq(["send", "--lines"]).feed("first\nsecond\n").exits(0);
    // Killed: RabbitMQ 4.3 does not count what a worker gives back itself.
    end_in_the_middle(&sandbox, &[], true);
    end_in_the_middle(&sandbox, &[], true);
    assert_eq!(sandbox.lines("runs"), ["first 0", "first 1"]);
    // The second time it is counted, which costs its place.
    end_in_the_middle(&sandbox, &[], true);
    assert_eq!(sandbox.lines("runs")[2], "second 0");
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.queue, 2);
    let tasks = broker.drain(&sandbox.queue);
    assert_eq!(tasks.iter().map(body).collect::<Vec<_>>(), ["second", "first"]);
}

/// The oldest tasks of the queue are handed out and come back twice: with a limit of 2, never again.
fn return_twice(sandbox: &Sandbox, tasks: u32) {
    let broker = sandbox.broker();
    let all = broker.ready(&sandbox.queue);
    for _ in 0..2 {
        let channel = broker.channel();
        for _ in 0..tasks {
            channel.basic_get(&sandbox.queue, false).unwrap().unwrap();
        }
        drop(channel);
        broker.wait_ready(&sandbox.queue, all);
    }
}

/// RabbitMQ does not from 4.3 on.
fn counts_nacks(sandbox: &Sandbox) -> bool {
    sandbox.broker().version() < [4, 3, 0]
}

const NOTES: &str = r#"echo "$(cat)" >>"$1/runs""#;

#[test]
fn a_task_that_may_not_come_back_again_does_not_run_during_an_alarm_and_no_other_beside_it() {
    let sandbox = Sandbox::exclusive();
    limited(&sandbox, &sandbox.queue, 2);
    sandbox.taskq(["send", "--lines"]).feed("returned\nfresh\n").exits(0);
    return_twice(&sandbox, 1);
    sandbox.node().memory_alarm(true);
    let mut worker = sandbox.handling(&[], NOTES);
    worker.says("has blocked publishing");
    // The other one is still there, and not with the worker.
    let broker = sandbox.broker();
    assert_eq!(broker.ready(&sandbox.queue), 1);
    assert!(sandbox.lines("runs").is_empty() && worker.is_running());
    sandbox.node().memory_alarm(false);
    worker.says_times("Done", 2);
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.lines("runs"), ["fresh", "returned"]);
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn what_may_not_come_back_again_runs_before_a_worker_stops_during_an_alarm() {
    let sandbox = Sandbox::exclusive();
    limited(&sandbox, &sandbox.queue, 2);
    sandbox.taskq(["send", "--lines"]).feed("1\n2\n3\n").exits(0);
    return_twice(&sandbox, 3);
    sandbox.node().memory_alarm(true);
    // One each, and more than one of a thread.
    let counts_nacks = counts_nacks(&sandbox);
    for (prefetch, taken) in [("1", 1), ("5", 3)] {
        let worker = sandbox.handling(&["--prefetch", prefetch], NOTES);
        worker.says("has blocked publishing");
        sandbox.broker().wait_ready(&sandbox.queue, if taken == 1 { 2 } else { 0 });
        worker.signal(SIGTERM);
        let ended = worker.end().exits(0);
        if counts_nacks {
            ended.says("runs now, before this worker ends");
        } else {
            ended.never_says("runs now");
            sandbox.broker().wait_ready(&sandbox.queue, 3);
        }
        assert_eq!(sandbox.lines("runs").len(), if counts_nacks { taken } else { 0 });
    }
    sandbox.node().memory_alarm(false);
    // No copy that counts turns up after the alarm, beside a task that is done.
    sandbox.taskq(["send", "marker"]).run().exits(0);
    assert_eq!(sandbox.broker().ready(&sandbox.queue), if counts_nacks { 1 } else { 4 });
}

#[test]
fn a_stop_that_leaves_no_time_says_what_may_be_lost() {
    let sandbox = Sandbox::exclusive();
    limited(&sandbox, &sandbox.queue, 2);
    sandbox.taskq(["send", "precious"]).run().exits(0);
    return_twice(&sandbox, 1);
    sandbox.node().memory_alarm(true);
    let worker = sandbox.handling(&["--grace", "500ms"], SLOW);
    worker.says("has blocked publishing");
    worker.signal(SIGTERM);
    if counts_nacks(&sandbox) {
        worker.end().exits(143).says("unless its delivery limit is reached, as may be for 1 of them");
    } else {
        worker.end().exits(0);
    }
    sandbox.node().memory_alarm(false);
}

#[test]
fn a_connection_that_is_lost_with_what_may_not_come_back_again_says_so() {
    let sandbox = Sandbox::exclusive();
    limited(&sandbox, &sandbox.queue, 2);
    sandbox.taskq(["send", "precious"]).run().exits(0);
    return_twice(&sandbox, 1);
    sandbox.node().memory_alarm(true);
    let worker = sandbox.handling(&[], NOTES);
    worker.says("has blocked publishing");
    sandbox.node().ctl(&["close_all_connections", "bye"]);
    worker.says("for at least the third time, without a copy: 1; the broker drops those");
    sandbox.node().memory_alarm(false);
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

/// Nothing can be done for it then, but to say so.
#[test]
fn a_task_that_fails_then_goes_back_and_the_worker_says_that_it_may_be_lost() {
    let sandbox = Sandbox::exclusive();
    limited(&sandbox, &sandbox.queue, 2);
    sandbox.taskq(["send", "precious"]).run().exits(0);
    return_twice(&sandbox, 1);
    sandbox.node().memory_alarm(true);
    let worker = sandbox.handling(&[], "exit 1");
    worker.says("has blocked publishing");
    worker.signal(SIGTERM);
    if counts_nacks(&sandbox) {
        let ended = worker.end().exits(75);
        ended.says("without a copy: 1; the broker drops those that are over a delivery limit");
    } else {
        worker.end().exits(0).never_says("delivery limit");
        sandbox.broker().wait_ready(&sandbox.queue, 1);
    }
    sandbox.node().memory_alarm(false);
}

#[test]
fn a_full_queue_does_not_keep_a_worker_from_making_room_in_it() {
    let sandbox = Sandbox::new();
    limited(&sandbox, &sandbox.queue, 2);
    sandbox.taskq(["send", "--lines"]).feed("1\n2\n3\n").exits(0);
    return_twice(&sandbox, 1);
    let pattern = format!("^{}$", sandbox.queue.replace('.', "[.]"));
    let full = r#"{"max-length":1,"overflow":"reject-publish"}"#;
    sandbox.node().ctl(&["set_policy", &sandbox.queue, &pattern, full]);
    let worker = sandbox.work_with(&["--until-empty"], NOTES);
    worker.run().exits(0).says("is the queue full?");
    assert_eq!(sandbox.lines("runs"), ["2", "3", "1"]);
    sandbox.node().ctl(&["clear_policy", &sandbox.queue]);
}

#[test]
fn where_only_tasks_that_were_returned_twice_are_in_a_full_queue_they_run() {
    let sandbox = sandbox_with(2);
    let lines = (1..=60).fold(String::new(), |lines, n| lines + &n.to_string() + "\n");
    sandbox.taskq(["send", "--lines"]).feed(lines).exits(0);
    return_twice(&sandbox, 60);
    let pattern = format!("^{}$", sandbox.queue.replace('.', "[.]"));
    let full = r#"{"max-length":1,"overflow":"reject-publish"}"#;
    sandbox.node().ctl(&["set_policy", &sandbox.queue, &pattern, full]);
    let worker = sandbox.handling(&[], NOTES);
    // There is no room for any copy before most of them are done.
    sandbox.wait_lines("runs", 20);
    worker.says("a redelivered task runs uncounted: its queue is full");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    sandbox.node().ctl(&["clear_policy", &sandbox.queue]);
    // Those that it held ran, or went back where that does not count.
    let done = u32::try_from(sandbox.lines("runs").len()).unwrap();
    sandbox.broker().wait_ready(&sandbox.queue, 60 - done);
}

#[test]
fn the_count_of_a_poisonous_task_goes_on_from_copy_to_copy() {
    let sandbox = sandbox_with(2);
    sandbox.taskq(["send", "poison"]).run().exits(0);
    let script = r#"echo run >>"$1/runs"; kill -9 $PPID; sleep 10"#;
    let broker = sandbox.broker();
    let start = || sandbox.work_with(&["--max-deliveries", "7"], script).start();
    let mut worker = start();
    within(Duration::from_mins(2), "the poison among the dead tasks", || {
        if !worker.is_running() {
            worker = start();
        }
        (broker.counts(&sandbox.dead_queue())?.0 == 1).then_some(())
    });
    assert_eq!(sandbox.lines("runs").len(), 7);
    let dead = broker.take(&sandbox.dead_queue());
    assert_eq!((body(&dead), header(&dead, "x-taskq-exit").contains('7')), ("poison".to_owned(), true));
}

/// As a shovel from a quorum queue leaves it.
#[test]
fn a_count_that_a_task_brings_along_neither_shortens_nor_lengthens_its_life() {
    for brought in [2_u64, 25] {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        broker.declare(&sandbox.queue);
        let table = [("x-delivery-count".to_owned(), amiquip::AmqpValue::LongLongInt(brought.cast_signed()))];
        let properties = amiquip::AmqpProperties::default()
            .with_message_id("p1".to_owned())
            .with_headers(table.into_iter().collect());
        broker.publish_with(&sandbox.queue, "poison", properties);
        let script = r#"echo run >>"$1/runs"; kill -9 $PPID; sleep 10"#;
        let start = || sandbox.work_with(&["--max-deliveries", "4"], script).start();
        let mut worker = start();
        until("the poison among the dead tasks", || {
            if !worker.is_running() {
                worker = start();
            }
            (broker.counts(&sandbox.dead_queue())?.0 == 1).then_some(())
        });
        assert_eq!(sandbox.lines("runs").len(), 4, "brought along: {brought}");
    }
}
