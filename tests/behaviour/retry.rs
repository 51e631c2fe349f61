//! Failed attempts: the task comes back later with its history, and after the last attempt it is kept as dead.

use crate::support::Sandbox;
use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::{attempt, body, header, headers};
use amiquip::{AmqpProperties, AmqpValue, Delivery, FieldTable};
use nix::sys::signal::Signal::SIGTERM;
use std::time::{SystemTime, UNIX_EPOCH};

/// Failed attempts are put aside for the length of the test.
const LATER: [&str; 3] = ["--until-empty", "--backoff", "1h"];
const LATER_MS: u64 = 3_600_000;

fn time(message: &Delivery, name: &str) -> u64 {
    match headers(message).get(name) {
        Some(AmqpValue::Timestamp(seconds)) => *seconds,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn a_task_that_fails_twice_is_done_at_its_third_attempt() {
    let sandbox = Sandbox::new();
    let script = r#"echo "$TASKQ_ATTEMPT $(cat)" >>"$1/runs"; [ "$TASKQ_ATTEMPT" -ge 3 ]"#;
    let worker = sandbox.handling(&["--backoff", "200ms,300ms"], script);
    sandbox.taskq(["send", "persevere"]).run().exits(0);
    worker.says("Done");
    assert_eq!(sandbox.lines("runs"), ["1 persevere", "2 persevere", "3 persevere"]);
    worker.signal(SIGTERM);
    worker.end().exits(0);
    let broker = sandbox.broker();
    for queue in [&sandbox.queue, &sandbox.dead_queue(), &sandbox.delay_queue(200), &sandbox.delay_queue(300)]
    {
        assert_eq!(broker.counts(queue).map_or(0, |(ready, _)| ready), 0, "{queue}");
    }
}

#[test]
fn a_retry_waits_on_the_broker_and_holds_up_nothing() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("bad\ngood\n").exits(0);
    let worked = sandbox.work_with(&LATER, r#"[ "$(cat)" = good ]"#).run().exits(0);
    assert_eq!(worked.stderr.matches("Done").count(), 1);
    let broker = sandbox.broker();
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
    assert_eq!(broker.ready(&sandbox.delay_queue(LATER_MS)), 1);
}

#[test]
fn a_retried_message_tells_its_history() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--id", "one", "hello"]).run().exits(0);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    sandbox.work_with(&LATER, "echo first; echo why >&2; exit 7").run().exits(0);
    let retried = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
    assert_eq!((body(&retried).as_str(), attempt(&retried)), ("hello", Some(2)));
    assert_eq!(header(&retried, "x-taskq-error").trim_end(), "why");
    assert_eq!(header(&retried, "x-taskq-exit"), "exit status 7");
    assert_eq!(header(&retried, "x-taskq-host"), nix::unistd::gethostname().unwrap().to_str().unwrap());
    assert_eq!(header(&retried, "x-taskq-queue"), sandbox.queue);
    for name in ["x-taskq-first-failed-at", "x-taskq-failed-at"] {
        assert!((before..=now()).contains(&time(&retried, name)), "{name}");
    }
    assert_eq!(retried.properties.message_id().as_deref(), Some("one"));
    assert_eq!(*retried.properties.delivery_mode(), Some(2));
}

#[test]
fn a_dead_message_tells_its_history() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--id", "one", "hello"]).run().exits(0);
    let script = r#"echo "$TASKQ_ATTEMPT" >>"$1/runs"; echo "no. $TASKQ_ATTEMPT" >&2; exit "$TASKQ_ATTEMPT""#;
    let worker = sandbox.handling(&["--attempts", "3", "--backoff", "1100ms"], script);
    let dead = sandbox.broker().take(&sandbox.dead_queue());
    assert_eq!(sandbox.lines("runs"), ["1", "2", "3"]);
    assert_eq!((body(&dead).as_str(), attempt(&dead)), ("hello", Some(3)));
    assert_eq!(header(&dead, "x-taskq-error").trim_end(), "no. 3");
    // The exit alone: the attempt stands beside it.
    assert_eq!(header(&dead, "x-taskq-exit"), "exit status 3");
    assert_eq!(header(&dead, "x-taskq-queue"), sandbox.queue);
    assert!(time(&dead, "x-taskq-first-failed-at") < time(&dead, "x-taskq-failed-at"));
    assert_eq!(dead.properties.message_id().as_deref(), Some("one"));
    worker.says(&format!("dead (attempt 3 of 3: exit status 3); kept in {}", sandbox.dead_queue()));
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)), "the original was not acknowledged");
}

/// A message with everything that AMQP has.
fn laden(queue: &str) -> AmqpProperties {
    let death = [("queue", text("elsewhere")), ("count", AmqpValue::LongLongInt(9))];
    let death = AmqpValue::FieldArray(vec![AmqpValue::FieldTable(arguments(&death))]);
    let elsewhere = || AmqpValue::FieldArray(vec![text(&format!("{queue}.copies"))]);
    let table = [
        ("colour", text("green")),
        ("number", number(-7)),
        ("truth", AmqpValue::Boolean(true)),
        ("nested", AmqpValue::FieldTable(arguments(&[("a", AmqpValue::FieldArray(vec![number(1)]))]))),
        ("bytes", AmqpValue::ByteArray(b"\0\xff".to_vec())),
        ("CC", elsewhere()),
        ("BCC", elsewhere()),
        ("x-death", death),
        ("x-first-death-queue", text("elsewhere")),
        ("x-last-death-reason", text("expired")),
    ];
    AmqpProperties::default()
        .with_message_id("the id".into())
        .with_correlation_id("correlated".into())
        .with_reply_to("answers".into())
        .with_type_("kind".into())
        .with_app_id("producer".into())
        .with_content_type("application/x-thing".into())
        .with_content_encoding("rot13".into())
        .with_priority(7)
        .with_timestamp(1_234_567_890)
        .with_delivery_mode(1)
        .with_expiration("3600000".into())
        .with_user_id("guest".into())
        .with_headers(arguments(&table))
}

/// All but taskq's own and the count with which a quorum queue hands a message out for the first time.
fn foreign_headers(message: &Delivery) -> FieldTable {
    let mut table = headers(message);
    let first = ("x-delivery-count", &AmqpValue::LongLongInt(0));
    table.retain(|name, value| !name.starts_with("x-taskq-") && (name.as_str(), &*value) != first);
    table
}

fn survived(copy: &Delivery, original: &AmqpProperties) {
    let kept = &copy.properties;
    assert_eq!(kept.message_id(), original.message_id());
    assert_eq!(kept.correlation_id(), original.correlation_id());
    assert_eq!(kept.reply_to(), original.reply_to());
    assert_eq!(kept.type_(), original.type_());
    assert_eq!(kept.app_id(), original.app_id());
    assert_eq!(kept.content_type(), original.content_type());
    assert_eq!(kept.content_encoding(), original.content_encoding());
    assert_eq!(kept.priority(), original.priority());
    assert_eq!(kept.timestamp(), original.timestamp());
    assert_eq!(*kept.delivery_mode(), Some(2), "a copy is persistent, whatever the original was");
    assert_eq!((kept.expiration(), kept.user_id()), (&None, &None));
    let mut expected = original.headers().clone().unwrap();
    expected.retain(|name, _| ["colour", "number", "truth", "nested", "bytes"].contains(&name.as_str()));
    assert_eq!(foreign_headers(copy), expected);
    assert_eq!(copy.body, b"\0 body \xff");
}

#[test]
fn what_came_with_a_task_stays_with_it_except_what_would_do_harm() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    broker.declare(&format!("{}.copies", sandbox.queue));
    let original = laden(&sandbox.queue);
    for code in ["1", "65"] {
        broker.publish_with(&sandbox.queue, b"\0 body \xff", original.clone());
        let script = format!("exit {code}");
        sandbox.work_with(&LATER, &script).run();
    }
    survived(&broker.take(&sandbox.delay_queue(LATER_MS)), &original);
    survived(&broker.take(&sandbox.dead_queue()), &original);
    // Two for each of the two originals, by CC and BCC, and none for a copy.
    assert_eq!(broker.ready(&format!("{}.copies", sandbox.queue)), 2, "a copy was sent to others");
}

#[test]
fn the_last_pause_of_the_list_repeats() {
    let sandbox = Sandbox::new();
    let script = r#"echo "$TASKQ_ATTEMPT" >>"$1/runs"; exit 1"#;
    let worker = sandbox.handling(&["--attempts", "5", "--backoff", "100ms,150ms"], script);
    sandbox.taskq(["send", "hello"]).run().exits(0);
    let broker = sandbox.broker();
    assert_eq!(attempt(&broker.take(&sandbox.dead_queue())), Some(5));
    assert_eq!(sandbox.lines("runs"), ["1", "2", "3", "4", "5"]);
    drop(worker);
    // As the contract says, and permanent.
    for milliseconds in [100, 150] {
        let back = [
            ("x-message-ttl", number(milliseconds)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(&sandbox.queue)),
            ("x-queue-type", text("quorum")),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ];
        let queue = sandbox.delay_queue(u64::try_from(milliseconds).unwrap());
        broker.declare_with(&queue, durable(arguments(&back)));
    }
    // The main queue has no arguments after all this, and neither has that of the dead.
    broker.declare(&sandbox.queue);
    broker.declare(&sandbox.dead_queue());
}

#[test]
fn a_later_attempt_does_not_come_before_its_pause_is_over() {
    let sandbox = Sandbox::new();
    let script = r#"date +%s%N >>"$1/times"; exit 1"#;
    let _worker = sandbox.handling(&["--attempts", "3", "--backoff", "300ms,1200ms"], script);
    sandbox.taskq(["send", "hello"]).run().exits(0);
    let times: Vec<u64> = sandbox.wait_lines("times", 3).iter().map(|line| line.parse().unwrap()).collect();
    assert!(times[1] - times[0] >= 300_000_000, "{times:?}");
    assert!(times[2] - times[1] >= 1_200_000_000, "{times:?}");
}

#[test]
fn a_bounded_run_says_whether_a_task_ended_dead() {
    for limit in [&["--until-empty"][..], &["--max-tasks", "2"]] {
        for (script, code) in [("exit 0", 0), ("exit 65", 1)] {
            let sandbox = Sandbox::new();
            sandbox.taskq(["send", "--lines"]).feed("a\nb\n").exits(0);
            sandbox.work_with(&[limit, &["--backoff", "1h"]].concat(), script).run().exits(code);
        }
        // A retry that waits is not dead.
        let sandbox = Sandbox::new();
        sandbox.taskq(["send", "--lines"]).feed("a\nb\n").exits(0);
        sandbox.work_with(&[limit, &["--backoff", "1h"]].concat(), "exit 1").run().exits(0);
    }
}

#[test]
fn with_one_attempt_the_first_failure_is_the_last() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "hello"]).run().exits(0);
    sandbox.work_with(&["--attempts", "1", "--until-empty"], "exit 1").run().exits(1);
    let dead = sandbox.broker().take(&sandbox.dead_queue());
    assert_eq!(attempt(&dead), Some(1));
    assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn headers_that_nobody_wrote_in_earnest_count_as_the_first_attempt() {
    let absurd = vec![
        text("4"),
        text(""),
        text("\u{1b}[2J"),
        number(0),
        number(-1),
        AmqpValue::LongLongInt(i64::MAX),
        AmqpValue::LongLongInt(i64::MIN),
        AmqpValue::Timestamp(u64::MAX),
        AmqpValue::Double(4.0),
        AmqpValue::Float(4.0),
        AmqpValue::Boolean(true),
        AmqpValue::Void,
        AmqpValue::ByteArray(vec![4]),
        AmqpValue::FieldArray(vec![number(4)]),
        AmqpValue::FieldTable(arguments(&[("x-taskq-attempt", number(4))])),
    ];
    let names = ["attempt", "deliveries", "error", "exit", "first-failed-at", "failed-at", "host", "queue"];
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    for value in &absurd {
        let table = names.iter().map(|name| (format!("x-taskq-{name}"), value.clone())).collect();
        broker.publish_with(&sandbox.queue, "x", AmqpProperties::default().with_headers(table));
    }
    let script = r#"echo "$TASKQ_ATTEMPT" >>"$1/runs"; exit 1"#;
    sandbox.work_with(&LATER, script).run().exits(0);
    assert_eq!(sandbox.lines("runs"), vec!["1"; absurd.len()]);
    for retried in broker.drain(&sandbox.delay_queue(LATER_MS)) {
        assert_eq!(attempt(&retried), Some(2));
        assert_eq!(header(&retried, "x-taskq-queue"), sandbox.queue);
        assert!(time(&retried, "x-taskq-failed-at") > 1_600_000_000);
    }
}

#[test]
fn headers_that_fill_a_frame_do_not_keep_a_task_from_its_retry() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let filled = arguments(&[("large", text(&"x".repeat(125_000)))]);
    broker.publish_with(&sandbox.queue, "x", AmqpProperties::default().with_headers(filled));
    sandbox.work_with(&LATER, "yes error | head -c 4000 >&2; exit 1").run().exits(0);
    let retried = broker.take(&sandbox.delay_queue(LATER_MS));
    assert_eq!(attempt(&retried), Some(2));
    assert_eq!(header(&retried, "large").len(), 125_000);
}

#[test]
fn quorum_queues_have_retries_and_dead_tasks_too() {
    let sandbox = Sandbox::new();
    let options = ["--queue-type", "quorum", "--attempts", "2", "--backoff", "300ms"];
    let script = r#"echo "$TASKQ_ATTEMPT $(cat)" >>"$1/runs"; exit 1"#;
    let worker = sandbox.handling(&options, script);
    sandbox.taskq(["send", "--queue-type", "quorum", "hello"]).run().exits(0);
    let dead = sandbox.broker().take(&sandbox.dead_queue());
    assert_eq!(attempt(&dead), Some(2));
    assert_eq!(sandbox.lines("runs"), ["1 hello", "2 hello"]);
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

#[test]
fn the_tasks_of_a_lost_connection_have_used_up_no_attempt() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let script = r#"echo "$TASKQ_ATTEMPT" >>"$1/runs"; until [ -e "$1/go" ]; do sleep 0.1; done"#;
    let worker = sandbox.handling(&["--attempts", "1"], script);
    sandbox.taskq(["send", "hello"]).run().exits(0);
    sandbox.wait_lines("runs", 1);
    proxy.cut();
    sandbox.broker().wait_consumers(&sandbox.queue, 0);
    sandbox.file("go", "");
    worker.says("Done").says("acknowledged without running again");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.lines("runs"), ["1"], "a task that was done here ran again");
    assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)));
    assert_eq!(sandbox.broker().ready(&sandbox.dead_queue()), 0);
}
