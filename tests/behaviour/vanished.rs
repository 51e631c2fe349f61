//! A queue that is deleted under the tasks that wait in it: it is declared again, and the loss is told.

use crate::support::broker::{arguments, durable, text};
use crate::support::{Process, Sandbox};
use nix::sys::signal::Signal::SIGTERM;

const LATER_MS: u64 = 3_600_000;

/// A worker whose tasks fail until their second attempt, with one that waits for it in its delay queue.
fn with_one_waiting(sandbox: &Sandbox, pause: &str, milliseconds: u64) -> Process {
    let worker = sandbox.handling(&["--backoff", pause], r#"[ "$TASKQ_ATTEMPT" = 2 ]"#);
    let broker = sandbox.broker();
    broker.publish(&sandbox.queue, "waits");
    broker.wait_ready(&sandbox.delay_queue(milliseconds), 1);
    worker
}

fn told(queue: &str) -> String {
    format!("the queue {queue} was gone")
}

#[test]
fn a_delay_queue_that_vanishes_is_missed_although_nothing_goes_to_it() {
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue(4000);
    let worker = with_one_waiting(&sandbox, "4s", 4000);
    sandbox.broker().delete(&waiting);
    worker.says(&told(&waiting));
    // And it is there again.
    sandbox.broker().wait_ready(&waiting, 0);
    sandbox.broker().publish(&sandbox.queue, "another");
    worker.says("Done");
    worker.signal(SIGTERM);
    let worked = worker.end().exits(0);
    assert_eq!(worked.stderr.matches("was gone").count(), 1, "{}", worked.stderr);
}

#[test]
fn a_delay_queue_that_stays_is_not_missed() {
    let sandbox = Sandbox::new();
    let worker = with_one_waiting(&sandbox, "1500ms", 1500);
    worker.says("Done");
    sandbox.broker().publish(&sandbox.queue, "another");
    worker.says_times("Done", 2);
    worker.signal(SIGTERM);
    worker.end().exits(0).never_says("was gone");
}

#[test]
fn a_delay_queue_that_vanishes_is_missed_by_the_next_that_goes_to_it() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let waiting = sandbox.delay_queue(LATER_MS);
    let worker = with_one_waiting(&sandbox, "1h", LATER_MS);
    broker.delete(&waiting);
    broker.publish(&sandbox.queue, "next");
    worker.says(&told(&waiting));
    broker.wait_ready(&waiting, 1);
    assert_eq!(broker.bodies(&waiting), ["next"]);
}

#[test]
fn a_dead_queue_that_vanishes_is_missed_by_the_next_that_dies() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let worker = sandbox.handling(&[], "exit 65");
    broker.publish(&sandbox.queue, "first");
    broker.wait_ready(&sandbox.dead_queue(), 1);
    broker.delete(&sandbox.dead_queue());
    broker.publish(&sandbox.queue, "second");
    worker.says(&told(&sandbox.dead_queue()));
    broker.wait_ready(&sandbox.dead_queue(), 1);
}

#[test]
fn what_vanishes_while_the_worker_is_not_connected_is_missed_when_it_is() {
    let sandbox = Sandbox::exclusive();
    let waiting = sandbox.delay_queue(LATER_MS);
    let worker = with_one_waiting(&sandbox, "1h", LATER_MS);
    sandbox.broker().delete(&waiting);
    sandbox.node().ctl(&["close_all_connections", "for a test"]);
    worker.says(&told(&waiting));
}

#[test]
fn a_sender_misses_the_queue_of_its_delayed_tasks() {
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue_of_today(LATER_MS);
    let mut send = sandbox.taskq(["send", "--lines", "--print-ids", "--delay", "1h"]).start();
    send.write("before\n");
    send.prints_lines(1);
    sandbox.broker().delete(&waiting);
    send.write("after\n");
    send.close_stdin();
    send.end().exits(0).says(&told(&waiting));
}

/// The policies that README gives: one of higher priority takes the place of those that let queues expire, or drop
/// tasks. One with a delivery limit applies to quorum queues alone.
#[test]
fn a_policy_of_higher_priority_keeps_what_another_would_delete() {
    const HARMFUL: &str = r#"{"expires": 6000, "message-ttl": 2000, "max-length": 1}"#;
    const COMPANIONS: &str = "[.](delay[.].*|dead)$";
    let sandbox = Sandbox::exclusive();
    let policy = |name: &str, priority: &str, pattern: &str, definition: &str| {
        sandbox.node().ctl(&[
            "set_policy",
            "--priority",
            priority,
            "--apply-to",
            "queues",
            name,
            pattern,
            definition,
        ]);
    };
    policy("all", "0", ".*", HARMFUL);
    policy("taskq", "10", COMPANIONS, r#"{"overflow": "reject-publish"}"#);
    policy("taskq-quorum", "11", COMPANIONS, r#"{"overflow": "reject-publish", "delivery-limit": 1000000}"#);
    let broker = sandbox.broker();
    for kind in ["classic", "quorum"] {
        let queue = format!("{}.{kind}", sandbox.queue);
        broker.declare_with(&queue, durable(arguments(&[("x-queue-type", text(kind))])));
        let script = r#"[ "$TASKQ_ATTEMPT" = 2 ] && exit 65; exit 1"#;
        let worker = sandbox.handling(&["--queue", &queue, "--queue-type", kind, "--backoff", "15s"], script);
        for task in ["one", "two"] {
            broker.publish(&queue, task);
            worker.says(&format!("Received a message: {task}"));
        }
        let dead = format!("{queue}.dead");
        broker.wait_ready(&dead, 2);
        for _ in 0..3 {
            let listed = sandbox.taskq(["dead", "list", "--queue", &queue]).run().exits(0);
            assert_eq!(listed.stdout_lines().len(), 3, "{}", listed.stdout_text());
        }
        worker.signal(SIGTERM);
        worker.end().exits(0).never_says("was gone");
    }
    for name in ["taskq", "taskq-quorum", "all"] {
        sandbox.node().ctl(&["clear_policy", name]);
    }
}

/// Without it: publishing to a quorum queue is no use of it that counts.
#[test]
fn what_a_policy_lets_expire_is_missed() {
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue(12_000);
    let every = format!("^{}", sandbox.queue.replace('.', "[.]"));
    let expires = r#"{"expires": 3000}"#;
    sandbox.node().ctl(&["set_policy", &sandbox.queue, &every, expires, "--apply-to", "queues"]);
    let worker = with_one_waiting(&sandbox, "12s", 12_000);
    worker.says(&told(&waiting));
    sandbox.node().ctl(&["clear_policy", &sandbox.queue]);
}
