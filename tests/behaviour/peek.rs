//! `taskq peek`: the tasks that wait, shown and given back.

use amiquip::AmqpValue;
use serde_json::Value;

use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::body;
use crate::support::{Sandbox, User};

fn send(sandbox: &Sandbox, kind: &str, count: usize) {
    let bodies = (0..count).map(|n| format!("task {n}")).collect::<Vec<_>>().join("\n");
    let args = ["send", "--lines", "--queue-type", kind, "--header", "colour=green"];
    sandbox.taskq(args).feed(bodies).exits(0);
}

#[test]
fn the_next_tasks_are_shown_in_their_order_and_stay() {
    for kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        send(&sandbox, kind, 5);
        let peeked = sandbox.taskq(["peek", "-n", "3"]).run().exits(0);
        let lines = peeked.stdout_lines();
        assert_eq!(lines.len(), 4, "{lines:?}");
        for (n, line) in lines.iter().skip(1).enumerate() {
            assert!(line.contains(&format!("task {n}")) && line.contains("colour=green"), "{line:?}");
        }
        let broker = sandbox.broker();
        broker.wait_ready(&sandbox.queue, 5);
        let left = broker.drain(&sandbox.queue);
        assert!(left.iter().map(body).eq((0..5).map(|n| format!("task {n}"))), "{kind}: out of order");
        // It says what it costs where it costs.
        let marked = left.iter().filter(|task| task.redelivered).count();
        assert_eq!(peeked.stderr.contains("given back"), kind == "classic" || broker.version() < [4, 3, 0]);
        assert!(kind == "quorum" || marked == 3, "{marked} are marked");
    }
}

#[test]
fn the_json_has_the_form_of_dead_tasks_and_whole_bodies_where_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--id", "text", "--correlation-id", "c", "hello..."]).run().exits(0);
    sandbox.taskq(["send", "--id", "bytes", "--file", "-"]).feed(b"\xff\0").exits(0);
    let peek = |args: &[&str]| -> Vec<Value> {
        let lines = sandbox.taskq(["peek", "--json"].iter().chain(args)).run().exits(0).stdout_lines();
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let excerpts = peek(&[]);
    assert_eq!(
        (&excerpts[0]["body_excerpt"], &excerpts[0]["correlation_id"]),
        (&"hello...".into(), &"c".into())
    );
    assert_eq!((&excerpts[0]["attempt"], &excerpts[0]["redelivered"]), (&1.into(), &false.into()));
    assert_eq!(excerpts[0].get("body"), None);
    let whole = peek(&["--body"]);
    assert_eq!((&whole[0]["body"], whole[0].get("body_base64")), (&"hello...".into(), None));
    assert_eq!((&whole[1]["body_base64"], whole[1].get("body")), (&"/wA=".into(), None));
    assert_eq!(whole[1]["redelivered"], true);
    let bytes = sandbox.taskq(["peek", "--body"]).run().exits(0);
    assert_eq!(bytes.stdout, b"hello...\xff\0");
}

/// A retried task comes from a queue where it expired; that is not how its attempt ended.
#[test]
fn a_task_that_failed_says_how() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "again"]).run().exits(0);
    sandbox.work_with(&["--max-tasks", "1", "--backoff", "1ms"], "echo why >&2; exit 3").run().exits(0);
    sandbox.broker().wait_ready(&sandbox.queue, 1);
    let line = sandbox.taskq(["peek", "--json"]).run().exits(0).stdout_text();
    let task: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&task["attempt"], &task["exit"]), (&2.into(), &"exit status 3".into()));
    assert_eq!(task["error"].as_str().unwrap().trim_end(), "why");
}

#[test]
fn where_nothing_waits_there_is_nothing_to_see_and_a_missing_queue_is_an_error() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["peek"]).run().exits(78).says("there is no queue");
    sandbox.broker().declare(&sandbox.queue);
    let nothing = sandbox.taskq(["peek"]).run().exits(0);
    assert!(nothing.stdout.is_empty() && nothing.stderr.contains("nothing is ready"), "{}", nothing.stderr);
    sandbox.taskq(["peek", "-n", "0"]).run().exits(2);
}

/// A quorum queue drops what goes back too often. No number of looks may do that.
#[test]
fn any_number_of_looks_loses_no_task() {
    let sandbox = Sandbox::new();
    let limited = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(2))];
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.queue, durable(arguments(&limited)));
    send(&sandbox, "quorum", 3);
    for _ in 0..8 {
        assert_eq!(sandbox.taskq(["peek"]).run().exits(0).stdout_lines().len(), 4);
    }
    broker.wait_ready(&sandbox.queue, 3);
    // And none of the looks counts as an attempt.
    let done = sandbox.work_with(&["--until-empty"], "cat; echo").run().exits(0);
    let mut bodies = done.stdout_lines();
    bodies.sort_unstable();
    assert_eq!(bodies, ["task 0", "task 1", "task 2"]);
}

#[test]
fn who_may_only_read_is_stopped_before_a_quorum_queue_drops_anything() {
    let sandbox = Sandbox::new();
    send(&sandbox, "quorum", 1);
    let url = User::add(&sandbox, "peeker", "secret", ["^$", "^$", ".*"]).url("secret");
    let peek = || sandbox.taskq(["peek", "--url", &url]).run();
    peek().exits(0);
    if sandbox.broker().version() < [4, 3, 0] {
        peek().exits(77).says("could not be replaced by copies");
    } else {
        peek().exits(0);
    }
    sandbox.broker().wait_ready(&sandbox.queue, 1);
}

#[test]
fn a_stream_is_refused() {
    let sandbox = Sandbox::new();
    let stream = [("x-queue-type", AmqpValue::LongString("stream".to_owned()))];
    sandbox.broker().declare_with(&sandbox.queue, durable(arguments(&stream)));
    sandbox.taskq(["peek"]).run().exits(78).in_one_line();
}
