//! A queue of the same name with other properties: refused where tasks could be lost, used as it is elsewhere.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::{Finished, Sandbox};
use amiquip::{AmqpValue, QueueDeclareOptions};

/// What `send` and `work` make of a queue that was declared like this.
fn send_and_work(sandbox: &Sandbox, options: QueueDeclareOptions) -> [Finished; 2] {
    sandbox.broker().declare_with(&sandbox.queue, options);
    let sent = sandbox.taskq(["send", "hello"]).run();
    [sent, sandbox.taskq(["work", "--until-empty"]).run()]
}

#[test]
fn a_queue_that_is_not_durable_is_refused_and_the_way_out_is_named() {
    let sandbox = Sandbox::new();
    for refused in send_and_work(&sandbox, QueueDeclareOptions::default()) {
        let refused = refused.exits(78).in_one_line();
        assert!(refused.stderr.contains("durable"), "{}", refused.stderr);
        assert!(refused.stderr.contains(&sandbox.queue), "{}", refused.stderr);
        let told = refused.stderr.to_lowercase();
        assert!(told.contains("delete") || told.contains("--queue"), "no way out: {told}");
    }
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0, "nothing was sent to it");
}

#[test]
fn a_worker_that_was_refused_does_not_wait_for_messages() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare_with(&sandbox.queue, QueueDeclareOptions::default());
    let refused = sandbox.taskq(["work", "--threads", "4"]).run().exits(78);
    assert!(!refused.stderr.contains("[*]"), "{}", refused.stderr);
}

#[test]
fn durable_queues_of_all_kinds_are_used_as_they_are() {
    for kind in [
        vec![("x-queue-type", text("quorum"))],
        vec![("x-max-priority", number(10))],
        vec![("x-message-ttl", number(3_600_000))],
        vec![("x-expires", number(3_600_000))],
        vec![("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text("elsewhere"))],
        vec![("x-queue-type", text("quorum")), ("x-delivery-limit", number(5))],
        vec![("x-single-active-consumer", AmqpValue::Boolean(true))],
        vec![("x-queue-mode", text("lazy"))],
    ] {
        let sandbox = Sandbox::new();
        sandbox.broker().delete(&sandbox.queue);
        let [sent, worked] = send_and_work(&sandbox, durable(arguments(&kind)));
        assert_eq!(sent.code, 0, "{kind:?}: {}", sent.stderr);
        assert_eq!(worked.code, 0, "{kind:?}: {}", worked.stderr);
        assert!(worked.stderr.contains("Received a message: hello\nDone\n"), "{kind:?}: {}", worked.stderr);
        sandbox.broker().delete(&sandbox.queue);
    }
}

#[test]
fn a_classic_queue_is_used_where_a_quorum_queue_was_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish(&sandbox.queue, "hello");
    let worked = sandbox.taskq(["work", "--queue-type", "quorum", "--until-empty"]).run().exits(0);
    worked.says("Received a message: hello\nDone\n").says("x-queue-type");
}

#[test]
fn priorities_are_honoured_by_a_queue_that_has_them() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare_with(&sandbox.queue, durable(arguments(&[("x-max-priority", number(10))])));
    for (priority, body) in [("1", "low"), ("9", "high")] {
        sandbox.taskq(["send", "--priority", priority, body]).run().exits(0);
    }
    let worked = sandbox.taskq(["work", "--until-empty"]).run().exits(0);
    worked.says("Received a message: high\nDone\nReceived a message: low\nDone\n");
}
