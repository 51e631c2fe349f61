//! Tasks that the broker itself has moved to `<queue>.dead`, as a policy or the queue's arguments say.

use crate::support::Sandbox;
use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::body;
use amiquip::{AmqpProperties, AmqpValue};
use serde_json::Value;

/// `<queue>`, which dead-letters to `<queue>.dead` of that kind, and has these arguments.
fn dead_lettering(sandbox: &Sandbox, dead_kind: &str, more: &[(&str, AmqpValue)]) {
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.dead_queue(), durable(arguments(&[("x-queue-type", text(dead_kind))])));
    let to =
        [("x-dead-letter-exchange", text("")), ("x-dead-letter-routing-key", text(&sandbox.dead_queue()))];
    broker.declare_with(&sandbox.queue, durable(arguments(&[&to[..], more].concat())));
}

fn only_dead(sandbox: &Sandbox) -> Value {
    let listed = sandbox.taskq(["dead", "list", "--json"]).run().exits(0).stdout_lines();
    let [task] = listed.as_slice() else { panic!("not one dead task: {listed:?}") };
    serde_json::from_str(task).unwrap()
}

#[test]
fn what_the_broker_gave_up_on_says_so_however_often_it_is_looked_at() {
    const LIMIT: i32 = 2;
    for dead_kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        let limited = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(LIMIT))];
        dead_lettering(&sandbox, dead_kind, &limited);
        sandbox.taskq(["send", "--id", "one", "hello"]).run().exits(0);
        let broker = sandbox.broker();
        for _ in 0..=LIMIT {
            let channel = broker.channel();
            crate::support::until("a delivery", || channel.basic_get(&sandbox.queue, false).unwrap());
            // As when its worker is killed.
            channel.close().unwrap();
        }
        broker.wait_ready(&sandbox.dead_queue(), 1);
        let first = only_dead(&sandbox);
        for _ in 0..6 {
            let task = only_dead(&sandbox);
            assert!(task["exit"].as_str().unwrap().contains("the broker gave up on it"), "{task}");
            assert_eq!((&task["id"], &task["queue"]), (&"one".into(), &sandbox.queue.as_str().into()));
            assert!(task["failed_at"].is_string() && task["failed_at"] == first["failed_at"], "{task}");
            assert!(task["key"].is_string() && task["key"] == first["key"], "{task}");
        }
        let table = sandbox.taskq(["dead", "list"]).run().exits(0).stdout_text();
        assert!(table.contains("the broker gave up on it: delivery limit  "), "{table}");
        let key = first["key"].as_str().unwrap();
        let shown = sandbox.taskq(["dead", "show", key]).run().exits(0).stdout_text();
        assert!(shown.contains("the broker gave up on it"), "{shown}");
        sandbox.taskq(["dead", "requeue", "one"]).run().exits(0);
        let again = broker.take(&sandbox.queue);
        assert_eq!((body(&again).as_str(), again.redelivered), ("hello", false));
    }
}

#[test]
fn other_reasons_of_the_broker_are_told_too() {
    for (more, reason) in [
        (vec![("x-message-ttl", number(1))], "it expired in"),
        (vec![("x-max-length", number(0))], "was full"),
    ] {
        let sandbox = Sandbox::new();
        dead_lettering(&sandbox, "classic", &more);
        let properties = AmqpProperties::default().with_message_id("one".to_owned()).with_delivery_mode(2);
        sandbox.broker().publish_with(&sandbox.queue, "hello", properties);
        sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
        let task = only_dead(&sandbox);
        assert!(task["exit"].as_str().unwrap().contains(reason), "{task}");
    }
}
