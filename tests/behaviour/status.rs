//! `status`: how much is in queues, and the codes by which monitoring hears of it.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::script::Script;
use crate::support::{Finished, Sandbox, amqp};
use amiquip::{ConsumerOptions, FieldTable};
use serde_json::{Value, json};
use std::io::Write;

fn status(sandbox: &Sandbox, args: &[&str]) -> Finished {
    sandbox.taskq(["status"].iter().chain(args)).run()
}

/// The only line of JSON.
#[track_caller]
fn object(finished: &Finished) -> Value {
    let lines = finished.stdout_lines();
    assert_eq!(lines.len(), 1, "{lines:?}\n{}", finished.stderr);
    serde_json::from_str(&lines[0]).unwrap()
}

/// The cells of the row after the header.
#[track_caller]
fn cells(finished: &Finished) -> Vec<String> {
    let lines = finished.stdout_lines();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), HEADER, "{lines:?}");
    lines[1].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

const HEADER: [&str; 6] = ["QUEUE", "READY", "UNACKED", "CONSUMERS", "WAITING", "DEAD"];

/// With 3 tasks ready, 2 and 1 that wait, and 1 that is dead.
fn filled() -> Sandbox {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    sandbox.work_with(&["--until-empty", "--attempts", "6"], "true").run().exits(0);
    for (queue, count) in [
        (sandbox.queue.clone(), 3),
        (sandbox.dead_queue(), 1),
        (sandbox.delay_queue(600_000), 2),
        (sandbox.delay_queue(3_600_000), 1),
    ] {
        for _ in 0..count {
            broker.publish(&queue, "task");
        }
        broker.wait_ready(&queue, count);
    }
    sandbox
}

#[test]
fn all_that_is_in_a_queue_and_its_companions_is_counted() {
    let sandbox = filled();
    let shown = status(&sandbox, &[]).exits(0);
    assert_eq!(cells(&shown), [&sandbox.queue, "3", "?", "0", "3 (10m: 2, 1h: 1)", "1"]);
    assert_eq!(shown.stderr, "");
    let told = object(&status(&sandbox, &["--json"]).exits(0));
    let waiting = json!({"5s": 0, "30s": 0, "2m": 0, "10m": 2, "1h": 1});
    let expected = json!({
        "queue": sandbox.queue, "ready": 3, "unacknowledged": null, "consumers": 0, "waiting": waiting, "dead": 1
    });
    assert_eq!(told, expected);
    // Nothing of it is taken out, or was looked at.
    let again = sandbox.broker().drain(&sandbox.queue);
    assert!(again.len() == 3 && again.iter().all(|task| !task.redelivered));
}

#[test]
fn another_ladder_has_other_steps() {
    let sandbox = filled();
    let told = object(&status(&sandbox, &["--json", "--backoff", "600s,1s,10m"]).exits(0));
    assert_eq!(told["waiting"], json!({"10m": 2, "1s": 0}));
}

#[test]
fn consumers_are_counted_and_not_its_own() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let told = || object(&status(&sandbox, &["--json"]).exits(0));
    // One that was counted by help of a consumer.
    assert_eq!(told()["consumers"], 0);
    sandbox.broker().while_consuming(&sandbox.queue, ConsumerOptions::default(), || {
        assert_eq!((&told()["consumers"], &told()["ready"]), (&json!(1), &json!(0)));
    });
    let alone = ConsumerOptions { exclusive: true, ..ConsumerOptions::default() };
    sandbox.broker().while_consuming(&sandbox.queue, alone, || assert_eq!(told()["consumers"], 1));
}

/// Queues without companions, and quorum queues, which count nothing where nobody answers.
#[test]
fn an_empty_queue_is_empty_whatever_it_is() {
    for kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        let of_kind = durable(arguments(&[("x-queue-type", text(kind))]));
        sandbox.broker().declare_with(&sandbox.queue, of_kind);
        let shown = status(&sandbox, &["--max-ready", "0", "--max-dead", "0"]).exits(0);
        assert_eq!(cells(&shown), [&sandbox.queue, "0", "?", "0", "0", "0"], "{kind}");
        // No companion was declared by the look.
        assert!(sandbox.broker().counts(&sandbox.dead_queue()).is_none());
    }
}

#[test]
fn several_queues_are_told_and_those_that_do_not_exist_are_an_error_after_them() {
    let sandbox = Sandbox::new();
    let (one, two) = (format!("{}.one", sandbox.queue), format!("{}.two", sandbox.queue));
    let missing = format!("{}.missing", sandbox.queue);
    for queue in [&one, &two] {
        sandbox.broker().declare(queue);
    }
    let all = ["--queue", &one, "-q", &missing, "-q", &two, "-q", &one];
    let shown = status(&sandbox, &all).exits(78).says(&format!("there is no queue {missing};")).in_one_line();
    let lines = shown.stdout_lines();
    assert!(lines.len() == 3 && lines[1].starts_with(&one) && lines[2].starts_with(&two), "{lines:?}");
    let told = status(&sandbox, &[&["--json", "--max-ready", "0"], &all[..]].concat()).exits(78);
    assert_eq!(told.stdout_lines().len(), 2);
    // None at all.
    let nothing = status(&sandbox, &[]).exits(78).in_one_line();
    assert_eq!(nothing.stdout, b"");
    assert!(sandbox.broker().counts(&missing).is_none());
}

#[test]
fn a_limit_that_does_not_hold_is_named() {
    let sandbox = filled();
    let queue = &sandbox.queue;
    let holding = ["--max-ready", "3", "--max-dead", "1", "--min-consumers", "0"];
    assert_eq!(status(&sandbox, &holding).exits(0).stderr, "");
    for (args, words, over) in [
        (["--max-ready", "2"], "3 ready, more than --max-ready 2", "ready"),
        (["--max-dead", "0"], "1 dead, more than --max-dead 0", "dead"),
        (["--min-consumers", "1"], "0 consumers, fewer than --min-consumers 1", "consumers"),
    ] {
        // Also where only warnings are said.
        let beyond = status(&sandbox, &[&args[..], &["--quiet"]].concat()).exits(1).in_one_line();
        let beyond = beyond.says(&format!("taskq: warning: {queue}: {words}\n"));
        assert_eq!(cells(&beyond)[1], "3");
        let told = object(&status(&sandbox, &[&args[..], &["--json"]].concat()).exits(1));
        assert_eq!(told["over"], json!([over]));
    }
    let all = ["--max-ready", "0", "--max-dead", "0", "--min-consumers", "7"];
    let beyond = status(&sandbox, &all).exits(1);
    assert_eq!(beyond.stderr.lines().count(), 3);
    assert_eq!(object(&status(&sandbox, &["--json", "--max-ready", "3"]).exits(0))["over"], json!([]));
    // What does not exist goes before what is beyond a limit.
    let missing = format!("{queue}.missing");
    status(&sandbox, &["-q", queue, "-q", &missing, "--max-ready", "0"]).exits(78).says("3 ready");
}

#[test]
fn what_is_no_number_or_no_name_is_a_usage_error() {
    let sandbox = Sandbox::new();
    for args in [
        ["--max-ready", "-1"],
        ["--max-ready", "many"],
        ["--min-consumers", ""],
        ["--max-dead", "4294967296"],
        ["--backoff", "soon"],
        ["--queue", ""],
    ] {
        status(&sandbox, &args).exits(2).in_one_line();
    }
    status(&sandbox, &["--queue", &"q".repeat(251)]).exits(65).in_one_line().says("255");
    status(&sandbox, &["--queue", "a\nb"]).exits(65).in_one_line();
}

/// Nobody may be handed tasks who only counts them. A stream hands out what comes, and counts no consumer.
#[test]
fn a_stream_is_not_called_empty() {
    let sandbox = Sandbox::new();
    let stream = durable(arguments(&[("x-queue-type", text("stream"))]));
    sandbox.broker().declare_with(&sandbox.queue, stream);
    let shown = status(&sandbox, &[]).exits(0);
    assert_eq!(cells(&shown), [&sandbox.queue, "?", "?", "?", "0", "0"]);
    shown.says("unknown how much is in").in_one_line();
    let told = status(&sandbox, &["--json", "--max-ready", "0", "--max-dead", "0"]).exits(75);
    assert_eq!(object(&told)["ready"], Value::Null);
    assert_eq!(object(&told)["over"], json!([]));
    told.says("unknown how many ready, so --max-ready 0 may not hold");
}

/// Queues that delete themselves when nobody uses them: a look is no use, as long as there are tasks in a quorum queue,
/// which those of taskq's are.
#[test]
fn a_look_does_not_keep_a_delay_queue_that_is_about_to_expire() {
    const LEASE_MS: i32 = 3_000;
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let delay = sandbox.delay_queue(5_000);
    let leased = [("x-queue-type", text("quorum")), ("x-expires", number(LEASE_MS))];
    broker.declare_with(&delay, durable(arguments(&leased)));
    broker.publish(&delay, "waits");
    broker.wait_ready(&delay, 1);
    crate::support::until("the queue expires under these looks", || {
        let told = object(&status(&sandbox, &["--json"]).exits(0));
        (told["waiting"]["5s"] == 0).then_some(())
    });
    assert!(broker.counts(&delay).is_none());
}

#[test]
fn a_name_does_not_drive_the_terminal() {
    let sandbox = Sandbox::new();
    let name = format!("{}\u{1b}[2J", sandbox.queue);
    sandbox.broker().declare_with(&name, durable(FieldTable::default()));
    let shown = status(&sandbox, &["--queue", &name, "--max-ready", "0"]).exits(0);
    assert!(shown.stdout_text().contains("\\x1b[2J") && !shown.stdout_text().contains('\u{1b}'));
    status(&sandbox, &["--queue", &format!("{name}2")]).exits(78).in_one_line();
}

/// A broker on which a queue counts nothing, not even the consumer that it is asked by, as one without a leader does.
fn without_leaders() -> Script {
    Script::run(|stream| {
        let first = amqp::play_until(stream, amqp::OPEN)?;
        stream.write_all(&amqp::answer(first.channel, amqp::OPEN).unwrap())?;
        amqp::serve_with(stream, |_| None)
    })
}

/// The same, and it ends the connection over such a consumer, as RabbitMQ does after some seconds.
fn without_consumers() -> Script {
    Script::run(|stream| {
        let asked = amqp::play_until(stream, amqp::CONSUME)?;
        let failed = "INTERNAL_ERROR - failed consuming from quorum queue 'q' in vhost '/': nodedown";
        assert!(asked.channel > 0);
        stream.write_all(&amqp::connection_close(541, failed))?;
        amqp::serve_with(stream, |_| None)
    })
}

/// As if it were deleted between the count and the consumer.
#[test]
fn a_queue_that_is_deleted_meanwhile_does_not_exist() {
    let sandbox = Sandbox::new();
    let broker = Script::run(|stream| {
        let asked = amqp::play_until(stream, amqp::CONSUME)?;
        let missing = amqp::channel_close(asked.channel, 404, "NOT_FOUND - no queue 'q' in vhost '/'");
        stream.write_all(&missing)?;
        amqp::serve_with(stream, |_| None)
    });
    let look = sandbox.taskq(["status"]).env("TASKQ_URL", broker.url()).run();
    look.exits(78).in_one_line().says(&format!("there is no queue {};", sandbox.queue));
}

#[test]
fn a_queue_that_nobody_answers_for_is_unknown_and_not_empty() {
    for broker in [without_leaders(), without_consumers()] {
        let sandbox = Sandbox::new();
        let look =
            |args: &[&str]| sandbox.taskq(["status"].iter().chain(args)).env("TASKQ_URL", broker.url()).run();
        let shown = look(&[]).exits(0).says(&format!("unknown how much is in {}", sandbox.queue));
        // Its queue of dead tasks does not exist.
        assert_eq!(cells(&shown), [&sandbox.queue, "?", "?", "?", "?", "0"]);
        let told = object(&look(&["--json", "--max-ready", "0", "--max-dead", "0"]).exits(75));
        for member in ["ready", "consumers"] {
            assert_eq!(told[member], Value::Null);
        }
        assert_eq!(
            (&told["waiting"]["5s"], &told["over"], &told["dead"]),
            (&Value::Null, &json!([]), &json!(0))
        );
        let words = "unknown how many consumers, so --min-consumers 0 may not hold";
        look(&["--min-consumers", "0", "--quiet"]).exits(75).says(words);
        look(&["--max-dead", "0"]).exits(0);
    }
}
