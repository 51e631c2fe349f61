//! `taskq send --delay`: not before its time, soon after it, and no queues left behind.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::{attempt, body};
use crate::support::{Broker, Finished, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::time::{Duration, Instant};

/// Far beyond a test.
const LATER_MS: i32 = 3_600_000;

#[test]
fn a_delayed_task_comes_after_its_time_and_before_one_with_a_longer_delay() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    let started = Instant::now();
    sandbox.taskq(["send", "--delay", "5s", "late"]).run().exits(0);
    sandbox.taskq(["send", "--delay", "1500ms", "soon"]).run().exits(0);
    sandbox.taskq(["send", "now"]).run().exits(0);
    worker.says("Received a message: now");
    worker.says("Received a message: soon");
    assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    worker.says("Received a message: late");
    assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
    let stderr = worker.stderr();
    let place = |body: &str| stderr.find(&format!("message: {body}")).unwrap();
    assert!(place("now") < place("soon") && place("soon") < place("late"), "{stderr}");
}

#[test]
fn a_delayed_task_is_an_ordinary_one_when_it_comes() {
    let sandbox = Sandbox::new();
    let args =
        ["send", "--delay", "300ms", "--id", "one", "--header", "colour=green", "--print-ids", "hello"];
    assert_eq!(sandbox.taskq(args).run().exits(0).stdout_text(), "one\n");
    let task = sandbox.broker().take(&sandbox.queue);
    assert_eq!((body(&task).as_str(), attempt(&task)), ("hello", None));
    assert_eq!(task.properties.message_id().as_deref(), Some("one"));
    assert_eq!(*task.properties.delivery_mode(), Some(2));
}

#[test]
fn all_tasks_of_a_bulk_send_are_delayed() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines", "--delay", "1h"]).feed("a\nb\nc\n").exits(0);
    let broker = sandbox.broker();
    assert_eq!(broker.ready(&sandbox.queue), 0);
    assert_eq!(broker.bodies(&sandbox.delay_queue(3_600_000)), ["a", "b", "c"]);
}

#[test]
fn a_worker_until_empty_does_not_wait_for_delayed_tasks() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--delay", "1h", "hello"]).run().exits(0);
    sandbox.taskq(["work", "--until-empty"]).run().exits(0).never_says("Received");
}

#[test]
fn an_expiry_does_not_bring_a_delayed_task_forward() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "--delay", "1h", "--expires", "100ms", "hello"]).run();
    if sent.code != 0 {
        // The two contradict each other: that can be said as well.
        sent.exits(2);
        return;
    }
    // Behind it, in a queue of their own, tasks with the time that the expiry has.
    sandbox.taskq(["send", "--delay", "2s", "later"]).run().exits(0);
    assert_eq!(body(&sandbox.broker().take(&sandbox.queue)), "later", "it came an hour early");
}

/// The arguments of a delay queue, without a lease.
fn permanent(sandbox: &Sandbox, milliseconds: i32) -> amiquip::FieldTable {
    arguments(&[
        ("x-message-ttl", number(milliseconds)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&sandbox.queue)),
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ])
}

/// Why the broker refuses to declare the queue like this.
fn refusal(broker: &Broker, queue: &str, arguments: amiquip::FieldTable) -> String {
    broker.channel().queue_declare(queue, durable(arguments)).map(drop).unwrap_err().to_string()
}

#[test]
fn three_hundred_different_delays_make_few_queues_and_none_that_stays() {
    const TASKS: i32 = 300;
    const STEP_MS: i32 = 10;
    const GRAIN_MS: i32 = 500;
    let sandbox = Sandbox::new();
    let last_ms = LATER_MS + (TASKS - 1) * STEP_MS;
    // Two at a time, each of some milliseconds more than an hour.
    let loop_ = r#"seq "$1" "$2" "$3" | xargs -P 2 -I{} "$4" send --quiet --delay {}ms {}"#;
    let numbers = [LATER_MS, STEP_MS, last_ms].map(|number| number.to_string());
    let [first, step, last] = numbers.each_ref().map(String::as_str);
    sandbox.program("sh", ["-c", loop_, "sh", first, step, last, env!("CARGO_BIN_EXE_taskq")]).run().exits(0);
    let broker = sandbox.broker();
    let mut tasks = 0;
    for milliseconds in (LATER_MS..last_ms + GRAIN_MS).step_by(usize::try_from(GRAIN_MS).unwrap()) {
        let queue = sandbox.delay_queue(u64::try_from(milliseconds).unwrap());
        // Nothing else is different, so this is what is named.
        let refusal = refusal(&broker, &queue, permanent(&sandbox, milliseconds));
        assert!(refusal.contains("'x-expires'"), "{queue}: {refusal}");
        for delay in broker.bodies(&queue) {
            let delay: i32 = delay.parse().unwrap();
            assert!((milliseconds - GRAIN_MS + 1..=milliseconds).contains(&delay), "{delay} in {queue}");
            tasks += 1;
        }
        broker.delete(&queue);
    }
    assert_eq!(tasks, TASKS);
}

#[test]
fn the_lease_of_a_delay_queue_is_longer_than_its_delay() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--delay", "1h", "hello"]).run().exits(0);
    let mut leased = permanent(&sandbox, LATER_MS);
    leased.insert("x-expires".to_owned(), number(1));
    let refusal = refusal(&sandbox.broker(), &sandbox.delay_queue(3_600_000), leased);
    // inequivalent arg 'x-expires' for queue ...: received the value '1' ... but current is the value '7200000' ...
    let lease = refusal.rsplit_once("current is").and_then(|(_, current)| {
        current.split(|c: char| !c.is_ascii_digit()).find_map(|digits| digits.parse::<u64>().ok())
    });
    assert!(lease.is_some_and(|lease| lease >= 3_600_000 + 600_000), "{refusal}");
}

/// To declare a quorum queue does not renew its lease, and with it goes what it holds. A policy stands for the years
/// after which this would be seen otherwise.
#[test]
fn a_delay_queue_in_use_outlives_its_lease() {
    const LEASE: Duration = Duration::from_secs(10);
    let sandbox = Sandbox::exclusive();
    let send = |number: u32| {
        sandbox.taskq(["send", "--quiet", "--delay", "40s", &number.to_string()]).run().exits(0);
    };
    send(0);
    let lease = format!(r#"{{"expires": {}}}"#, LEASE.as_millis());
    sandbox.node().ctl(&[
        "set_policy",
        "lease",
        &sandbox.delay_queue(40_000),
        &lease,
        "--apply-to",
        "queues",
    ]);
    let (started, mut sent) = (Instant::now(), 1);
    // The broker looks every five seconds.
    while started.elapsed() < 3 * LEASE {
        send(sent);
        sent += 1;
        std::thread::sleep(LEASE / 40);
    }
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.delay_queue(40_000), sent);
    sandbox.node().ctl(&["clear_policy", "lease"]);
    for number in 0..sent {
        let task = broker.take(&sandbox.queue);
        assert_eq!(body(&task), number.to_string());
        let headers = task.properties.headers().as_ref();
        assert!(headers.is_none_or(|headers| !headers.contains_key("x-delivery-count")), "{headers:?}");
    }
}

#[test]
fn a_delay_that_equals_a_pause_between_attempts_shares_its_queue() {
    // Whoever comes first, worker or sender, makes the queue in its own way.
    for worker_first in [true, false] {
        let sandbox = Sandbox::new();
        let delayed = || drop(sandbox.taskq(["send", "--delay", "400ms", "delayed"]).run().exits(0));
        if !worker_first {
            delayed();
        }
        let script = r#"[ "$(cat)" = delayed ] || [ "$TASKQ_ATTEMPT" = 2 ]"#;
        let worker = sandbox.handling(&["--backoff", "400ms"], script);
        if worker_first {
            delayed();
        }
        sandbox.taskq(["send", "fails once"]).run().exits(0);
        worker.says_times("Done", 2);
        worker.signal(SIGTERM);
        worker.end().exits(0);
        let broker = sandbox.broker();
        assert_eq!(broker.ready(&sandbox.delay_queue(400)), 0);
        assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
    }
}

#[test]
fn a_delay_queue_that_would_not_bring_tasks_back_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.delay_queue(3_600_000));
    let refused = sandbox.taskq(["send", "--delay", "1h", "hello"]).run().exits(78).in_one_line();
    assert!(refused.stderr.contains(&sandbox.delay_queue(3_600_000)), "{}", refused.stderr);
    assert_eq!(sandbox.broker().ready(&sandbox.delay_queue(3_600_000)), 0);
}

#[test]
fn a_delayed_task_survives_the_broker() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--delay", "2s", "hello"]).run().exits(0);
    sandbox.node().kill();
    sandbox.node().start();
    assert_eq!(body(&sandbox.broker().take(&sandbox.queue)), "hello");
}

#[test]
fn without_a_declaration_a_missing_delay_queue_is_a_configuration_error() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let options = ["send", "--no-declare", "--delay", "1h"];
    for (form, input) in [(&["hello"][..], ""), (&["--lines"], "hello\n")] {
        let sent = sandbox.taskq(options.iter().chain(form)).feed(input).exits(78).in_one_line();
        sent.says(&sandbox.delay_queue(3_600_000)).says("without --no-declare");
    }
}

/// A bulk send of delayed tasks that has one of them confirmed when their queue is deleted.
fn delete_the_delay_queue_under(sandbox: &Sandbox, options: &[&str]) -> Finished {
    let args = ["send", "--lines", "--print-ids", "--delay", "1h"];
    let mut send = sandbox.taskq(args.iter().chain(options)).start();
    send.write("before\n");
    send.prints_lines(1);
    sandbox.broker().delete(&sandbox.delay_queue(3_600_000));
    send.write("after\n");
    send.close_stdin();
    send.end()
}

#[test]
fn a_delay_queue_that_vanishes_is_declared_anew() {
    let sandbox = Sandbox::new();
    delete_the_delay_queue_under(&sandbox, &[]).exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.delay_queue(3_600_000)), ["after"]);
}

#[test]
fn without_a_declaration_a_delay_queue_that_vanishes_is_a_configuration_error() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--delay", "1h", "first"]).run().exits(0);
    let failed = delete_the_delay_queue_under(&sandbox, &["--no-declare"]).exits(78);
    failed.says(&sandbox.delay_queue(3_600_000)).says("1 task confirmed, 1 not");
}
