//! `taskq send --delay`: not before its time, soon after it, and no queues left behind.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::{attempt, body, headers};
use crate::support::{Broker, Sandbox};
use amiquip::AmqpValue;
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
    let waiting = sandbox.delay_queue_of_today(3_600_000);
    sandbox.taskq(["send", "--lines", "--delay", "1h"]).feed("a\nb\nc\n").exits(0);
    let broker = sandbox.broker();
    assert_eq!(broker.ready(&sandbox.queue), 0);
    assert_eq!(broker.bodies(&waiting), ["a", "b", "c"]);
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

/// The arguments of a delay queue that stays.
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
    let today = sandbox.delay_queue_of_today(0);
    let today = today.rsplit('.').next().unwrap();
    let last_ms = LATER_MS + (TASKS - 1) * STEP_MS;
    // Two at a time, each of some milliseconds more than an hour.
    let loop_ = r#"seq "$1" "$2" "$3" | xargs -P 2 -I{} "$4" send --quiet --delay {}ms {}"#;
    let numbers = [LATER_MS, STEP_MS, last_ms].map(|number| number.to_string());
    let [first, step, last] = numbers.each_ref().map(String::as_str);
    sandbox.program("sh", ["-c", loop_, "sh", first, step, last, env!("CARGO_BIN_EXE_taskq")]).run().exits(0);
    let broker = sandbox.broker();
    let mut tasks = 0;
    for milliseconds in (LATER_MS..last_ms + GRAIN_MS).step_by(usize::try_from(GRAIN_MS).unwrap()) {
        let queue = format!("{}.{today}", sandbox.delay_queue(u64::try_from(milliseconds).unwrap()));
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

/// To declare a quorum queue or to publish to it does not keep it: it has to live long enough from its first
/// declaration.
#[test]
fn a_delay_queue_outlives_all_that_is_sent_on_its_day() {
    const DAY_MS: u64 = 24 * 3_600_000;
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue_of_today(3_600_000);
    sandbox.taskq(["send", "--delay", "1h", "hello"]).run().exits(0);
    let mut other = permanent(&sandbox, LATER_MS);
    other.insert("x-expires".to_owned(), number(1));
    let refusal = refusal(&sandbox.broker(), &waiting, other);
    // inequivalent arg 'x-expires' for queue ...: received '1' but current is '7200000'
    let expires = refusal.rsplit_once("current is").and_then(|(_, current)| {
        current.split(|c: char| !c.is_ascii_digit()).find_map(|digits| digits.parse::<u64>().ok())
    });
    // The day, the delay, and as long again for a queue that takes nothing and for clocks that differ.
    assert!(expires.is_some_and(|expires| expires >= 3_600_000 + 2 * DAY_MS), "{refusal}");
}

/// A queue whose tasks are looked at now and then, to keep it alive, would count each look as a delivery.
#[test]
fn a_delivery_limit_does_not_bring_delayed_tasks_forward() {
    const SENDS: u32 = 5;
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue_of_today(3_600_000);
    let every = format!("^{}", sandbox.queue.replace('.', "[.]"));
    let limit = r#"{"delivery-limit": 1}"#;
    sandbox.node().ctl(&["set_policy", &sandbox.queue, &every, limit, "--apply-to", "queues"]);
    for number in 0..SENDS {
        sandbox.taskq(["send", "--delay", "1h", &number.to_string()]).run().exits(0);
    }
    let broker = sandbox.broker();
    broker.wait_ready(&waiting, SENDS);
    sandbox.node().ctl(&["clear_policy", &sandbox.queue]);
    assert_eq!(broker.ready(&sandbox.queue), 0, "some came an hour early");
    for task in broker.drain(&waiting) {
        let headers = headers(&task);
        let count = headers.get("x-delivery-count");
        assert!(matches!(count, None | Some(AmqpValue::LongLongInt(0))), "{count:?}");
    }
}

#[test]
fn a_delay_that_equals_a_pause_between_attempts_has_a_queue_of_its_own() {
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue_of_today(400);
    sandbox.taskq(["send", "--delay", "400ms", "delayed"]).run().exits(0);
    let script = r#"[ "$(cat)" = delayed ] || [ "$TASKQ_ATTEMPT" = 2 ]"#;
    let worker = sandbox.handling(&["--backoff", "400ms"], script);
    sandbox.taskq(["send", "--delay", "400ms", "delayed"]).run().exits(0);
    sandbox.taskq(["send", "fails once"]).run().exits(0);
    worker.says_times("Done", 3);
    worker.signal(SIGTERM);
    worker.end().exits(0);
    let broker = sandbox.broker();
    assert_eq!([&waiting, &sandbox.delay_queue(400)].map(|queue| broker.ready(queue)), [0, 0]);
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn a_delay_queue_that_would_not_bring_tasks_back_is_refused() {
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue_of_today(3_600_000);
    sandbox.broker().declare(&waiting);
    let refused = sandbox.taskq(["send", "--delay", "1h", "hello"]).run().exits(78).in_one_line();
    assert!(refused.stderr.contains(&waiting), "{}", refused.stderr);
    assert_eq!(sandbox.broker().ready(&waiting), 0);
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
fn what_is_not_to_declare_anything_cannot_delay() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    for form in [["--delay", "1h"].as_slice(), &["--lines", "--delay", "1h"]] {
        let refused = sandbox.taskq(["send", "--no-declare"].iter().chain(form)).feed("hello\n").exits(2);
        refused.in_one_line().says("--delay").says("--no-declare").says("each day");
    }
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0);
}

#[test]
fn a_delay_that_no_queue_can_outlive_is_a_usage_error() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--delay", "48d", "hello"]).run().exits(2).says("47 days");
    sandbox.taskq(["send", "--delay", "47d", "hello"]).run().exits(0);
}

#[test]
fn a_delay_queue_that_vanishes_is_declared_anew() {
    let sandbox = Sandbox::new();
    let waiting = sandbox.delay_queue_of_today(3_600_000);
    let mut send = sandbox.taskq(["send", "--lines", "--print-ids", "--delay", "1h"]).start();
    send.write("before\n");
    send.prints_lines(1);
    sandbox.broker().delete(&waiting);
    send.write("after\n");
    send.close_stdin();
    send.end().exits(0);
    assert_eq!(sandbox.broker().bodies(&waiting), ["after"]);
}

/// The README names the setting; unless it is set, the broker waits for three minutes.
#[test]
fn a_retry_whose_queue_is_full_comes_after_the_pause_that_the_broker_is_given() {
    let sandbox = Sandbox::configured(&[]);
    sandbox
        .node()
        .ctl(&["eval", "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 2000)."]);
    let broker = sandbox.broker();
    let full = [("x-max-length", number(1)), ("x-overflow", text("reject-publish"))];
    broker.declare_with(&sandbox.queue, durable(arguments(&full)));
    broker.publish(&sandbox.queue, "fails");
    // Time for the other task to take its place.
    sandbox.work_with(&["--max-tasks", "1", "--backoff", "10s"], "exit 1").run().exits(0);
    let delay = sandbox.delay_queue(10_000);
    broker.publish(&sandbox.queue, "in its place");
    broker.wait_ready(&delay, 0);
    // Time has come, and the queue has taken nothing.
    assert_eq!(body(&broker.take(&sandbox.queue)), "in its place");
    let retry = broker.take(&sandbox.queue);
    assert_eq!((body(&retry).as_str(), attempt(&retry)), ("fails", Some(2)));
}
