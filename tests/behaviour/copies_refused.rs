//! Copies of failed tasks that the broker does not take: the task is never lost, and nothing spins.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::{attempt, body};
use crate::support::{Broker, Finished, Sandbox, User, until};
use amiquip::QueueDeclareOptions;
use nix::sys::signal::Signal::SIGTERM;
use std::collections::BTreeSet;

const LATER: [&str; 3] = ["--until-empty", "--backoff", "1h"];
const LATER_MS: u64 = 3_600_000;

fn bodies(broker: &Broker, queue: &str) -> BTreeSet<String> {
    broker.drain(queue).iter().map(body).collect()
}

#[test]
fn failed_tasks_wait_for_the_end_of_an_alarm_and_run_no_more_often_for_it() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--lines"]).feed("bad 1\nbad 2\nbad 3\nbad 4\ngood 1\ngood 2\n").exits(0);
    sandbox.node().memory_alarm(true);
    let script = r#"read -r kind number; echo "$kind $number" >>"$1/runs"; [ "$kind" = good ]"#;
    let options = ["--threads", "2", "--prefetch", "2", "--attempts", "2", "--backoff", "200ms"];
    let worker = sandbox.handling(&options, script);
    let broker = sandbox.broker();
    worker.says_times("Done", 2);
    worker.says("has blocked publishing");
    // A thread that sets a task aside begins to consume anew.
    broker.wait_consumers(&sandbox.queue, 2);
    assert_eq!(broker.ready(&sandbox.queue), 0, "failed tasks went back");
    sandbox.node().memory_alarm(false);
    broker.wait_ready(&sandbox.dead_queue(), 4);
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
    let mut runs = sandbox.lines("runs");
    runs.sort_unstable();
    let twice = |n: u32| std::iter::repeat_n(format!("bad {n}"), 2);
    let expected: Vec<_> =
        (1..=4).flat_map(twice).chain(["good 1".to_owned(), "good 2".to_owned()]).collect();
    assert_eq!(runs, expected);
    let dead = broker.drain(&sandbox.dead_queue());
    assert!(dead.iter().all(|task| attempt(task) == Some(2)), "{dead:?}");
}

#[test]
fn a_failed_task_that_waits_for_the_end_of_an_alarm_does_not_hold_up_the_others() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--lines"]).feed("bad\ngood 1\ngood 2\ngood 3\n").exits(0);
    sandbox.node().memory_alarm(true);
    let worker = sandbox.handling(&["--backoff", "1h"], r"read -r kind number; [ $kind = good ]");
    worker.says_times("Done", 3);
    sandbox.node().memory_alarm(false);
    assert_eq!(body(&sandbox.broker().take(&sandbox.delay_queue(LATER_MS))), "bad");
}

#[test]
fn more_failed_tasks_than_a_worker_keeps_at_hand_wait_in_the_queue() {
    const TASKS: usize = 50;
    let sandbox = Sandbox::exclusive();
    let lines: Vec<String> = (0..TASKS).map(|n| format!("{n}\n")).collect();
    sandbox.taskq(["send", "--lines"]).feed(lines.concat()).exits(0);
    sandbox.node().memory_alarm(true);
    let worker = sandbox.handling(&["--backoff", "1h"], r#"echo run >>"$1/runs"; exit 1"#);
    sandbox.wait_lines("runs", 30);
    let broker = sandbox.broker();
    until("the worker taking nothing more", || {
        let (runs, ready) = (sandbox.lines("runs").len(), broker.ready(&sandbox.queue));
        (ready > 0 && runs + usize::try_from(ready).unwrap() == TASKS).then_some(())
    });
    sandbox.node().memory_alarm(false);
    broker.wait_ready(&sandbox.delay_queue(LATER_MS), u32::try_from(TASKS).unwrap());
    assert_eq!(sandbox.lines("runs").len(), TASKS, "some ran again");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn a_worker_that_stops_when_the_queue_is_empty_waits_for_the_end_of_an_alarm() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--lines"]).feed("bad\ngood\n").exits(0);
    sandbox.node().memory_alarm(true);
    let script = r"read -r kind; [ $kind = good ]";
    let mut worker = sandbox.work_with(&["--until-empty", "--attempts", "1"], script).start();
    worker.says("Done");
    worker.says("has blocked publishing");
    assert!(worker.is_running());
    sandbox.node().memory_alarm(false);
    worker.end().exits(1).says("dead (");
    assert_eq!(body(&sandbox.broker().take(&sandbox.dead_queue())), "bad");
    assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn whoever_waits_for_a_bounded_run_hears_of_an_alarm_that_goes_on() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--lines"]).feed("bad\ngood\n").exits(0);
    sandbox.node().memory_alarm(true);
    let script = r"read -r kind; [ $kind = good ]";
    let ended = sandbox.work_with(&["--until-empty"], script).run().exits(75);
    ended.says("Done").says("takes no copies of tasks (it has blocked publishing)");
    assert_eq!(bodies(&sandbox.broker(), &sandbox.queue), BTreeSet::from(["bad".to_owned()]));
    sandbox.node().memory_alarm(false);
}

#[test]
fn tasks_that_were_delivered_before_run_during_an_alarm() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--lines"]).feed("one\ntwo\nthree\n").exits(0);
    // All three are marked as redelivered from now on.
    let broker = sandbox.broker();
    let channel = broker.channel();
    for _ in 0..3 {
        channel.basic_get(&sandbox.queue, false).unwrap().unwrap();
    }
    drop(channel);
    broker.wait_ready(&sandbox.queue, 3);
    sandbox.node().memory_alarm(true);
    let worker = sandbox.handling(&[], "exit 0");
    // The first one meets the alarm; it waits until its deliveries can be counted.
    worker.says_times("Done", 2);
    sandbox.node().memory_alarm(false);
    worker.says_times("Done", 3);
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn a_worker_stops_in_time_during_an_alarm_and_leaves_its_failed_tasks_in_the_queue() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--lines"]).feed("bad 1\nbad 2\n").exits(0);
    sandbox.node().memory_alarm(true);
    let worker = sandbox.handling(&[], "exit 1");
    worker.says_times("attempt 1 of 5 failed", 2);
    worker.says("has blocked publishing");
    worker.signal(SIGTERM);
    worker.end().exits(0).says("go back to the queue");
    let broker = sandbox.broker();
    assert_eq!(
        ["bad 1", "bad 2"].map(String::from).into_iter().collect::<BTreeSet<_>>(),
        bodies(&broker, &sandbox.queue)
    );
    sandbox.node().memory_alarm(false);
}

#[test]
fn a_delay_queue_that_was_deleted_is_declared_again() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let worker = sandbox.handling(&["--backoff", "1h"], r#"[ "$(cat)" = good ]"#);
    for n in 0..3 {
        broker.publish(&sandbox.queue, format!("bad {n}"));
        broker.wait_ready(&sandbox.delay_queue(LATER_MS), 1);
        assert_eq!(broker.bodies(&sandbox.delay_queue(LATER_MS)), [format!("bad {n}")]);
        broker.delete(&sandbox.delay_queue(LATER_MS));
    }
    broker.publish(&sandbox.queue, "good");
    worker.says("Done");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn a_dead_queue_that_was_deleted_is_declared_again() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let _worker = sandbox.handling(&[], "exit 65");
    for n in 0..3 {
        broker.publish(&sandbox.queue, format!("{n}"));
        broker.wait_ready(&sandbox.dead_queue(), 1);
        assert_eq!(broker.bodies(&sandbox.dead_queue()), [format!("{n}")]);
        broker.delete(&sandbox.dead_queue());
    }
}

#[test]
fn a_full_dead_queue_loses_nothing() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let full = [("x-max-length", number(1)), ("x-overflow", text("reject-publish"))];
    broker.declare_with(&sandbox.dead_queue(), durable(arguments(&full)));
    broker.declare(&sandbox.queue);
    for n in 0..3 {
        broker.publish(&sandbox.queue, format!("{n}"));
    }
    let worker = sandbox.handling(&[], r#"cat >>"$1/runs"; echo >>"$1/runs"; exit 65"#);
    sandbox.wait_lines("runs", 3);
    worker.says("no copy is taken for");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.lines("runs").len(), 3, "none ran again because its copy was refused");
    let mut left = bodies(&broker, &sandbox.queue);
    assert_eq!(left.len(), 2);
    left.extend(bodies(&broker, &sandbox.dead_queue()));
    assert_eq!(left, ["0", "1", "2"].map(String::from).into());
}

/// As after an upgrade to RabbitMQ 4, which takes smaller messages than 3.x.
#[test]
fn a_task_that_is_too_large_for_a_copy_stays_and_holds_up_no_other() {
    let sandbox = Sandbox::configured(&[]);
    // RabbitMQ 3.x keeps the limit in the second place.
    let limit = |bytes: usize| {
        let code = format!(
            "application:set_env(rabbit, max_message_size, {bytes}), persistent_term:put(max_message_size, {bytes})."
        );
        sandbox.node().ctl(&["eval", &code]);
    };
    let broker = sandbox.broker();
    let full = [("x-max-length", number(2)), ("x-overflow", text("reject-publish"))];
    broker.declare_with(&sandbox.dead_queue(), durable(arguments(&full)));
    (0..2).for_each(|_| broker.publish(&sandbox.dead_queue(), "full"));
    let large = "x".repeat(200_000);
    sandbox.taskq(["send", "--file", "-"]).feed(&large).exits(0);
    limit(100_000);
    let script = r#"body=$(cat)
[ "$body" != bad ] || exit 65
[ "${#body}" -gt 1000 ] || { echo ok >>"$1/small"; exit; }
echo "$TASKQ_ATTEMPT" >>"$1/large"; exit 1"#;
    let work = || sandbox.work_with(&["--attempts", "2", "--backoff", "100ms"], script).start();

    let worker = work();
    worker.says("over the limit of the broker, 100000 bytes");
    sandbox.taskq(["send", "small"]).run().exits(0);
    until("the small task to be done", || (sandbox.lines("small").len() == 1).then_some(()));
    // It stays where it is while the copy of another one is refused.
    sandbox.taskq(["send", "bad"]).run().exits(0);
    worker.says("no copy is taken for");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.lines("large"), ["1"]);
    broker.drain(&sandbox.dead_queue());

    // It cannot be counted either, and runs all the same.
    let worker = work();
    worker.says("a redelivered task runs uncounted");
    worker.says("the task cannot be copied");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.lines("large"), ["1", "1"]);

    // `--until-empty` ends all the same.
    sandbox.work_with(&["--attempts", "2", "--backoff", "100ms", "--until-empty"], script).run().exits(1);
    assert_eq!(sandbox.lines("large").len(), 3);

    limit(1_000_000);
    let worker = work();
    worker.says("dead (");
    assert_eq!(sandbox.lines("large"), ["1", "1", "1", "1", "2"]);
    assert_eq!(bodies(&broker, &sandbox.dead_queue()), BTreeSet::from(["bad".to_owned(), large]));
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

/// A worker is refused with this code before it takes the task that waits, and the reason is named.
fn refused(sandbox: &Sandbox, code: i32, named: &str) -> Finished {
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish(&sandbox.queue, "waits");
    let refused = sandbox.work_with(&LATER, "exit 1").run().exits(code).never_says("[*]").in_one_line();
    assert!(refused.stderr.contains(named), "{named:?} is not named: {}", refused.stderr);
    assert!(!sandbox.broker().take(&sandbox.queue).redelivered, "the task was taken");
    refused
}

#[test]
fn queues_that_would_lose_failed_tasks_are_refused_at_the_start() {
    let unfit = |of: fn(&Sandbox) -> String, options: QueueDeclareOptions| {
        let sandbox = Sandbox::new();
        let queue = of(&sandbox);
        sandbox.broker().declare_with(&queue, options);
        refused(&sandbox, 78, &queue);
    };
    let dead = Sandbox::dead_queue;
    let delay = |sandbox: &Sandbox| sandbox.delay_queue(LATER_MS);
    unfit(dead, QueueDeclareOptions::default());
    unfit(dead, durable(arguments(&[("x-message-ttl", number(60_000))])));
    unfit(dead, durable(arguments(&[("x-expires", number(60_000))])));
    unfit(delay, QueueDeclareOptions::default());
    unfit(delay, durable(arguments(&[])));
    let elsewhere = [
        ("x-message-ttl", number(3_600_000)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("elsewhere")),
    ];
    unfit(delay, durable(arguments(&elsewhere)));
    let sooner = |sandbox: &Sandbox| {
        let back = [
            ("x-message-ttl", number(1000)),
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(&sandbox.queue)),
        ];
        durable(arguments(&back))
    };
    let sandbox = Sandbox::new();
    sandbox.broker().declare_with(&delay(&sandbox), sooner(&sandbox));
    refused(&sandbox, 78, &delay(&sandbox));
}

#[test]
fn a_queue_of_dead_tasks_with_harmless_settings_is_used_as_it_is() {
    for harmless in [
        vec![("x-queue-type", text("quorum"))],
        vec![("x-queue-mode", text("lazy"))],
        vec![("x-max-priority", number(3))],
    ] {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        broker.declare_with(&sandbox.dead_queue(), durable(arguments(&harmless)));
        sandbox.taskq(["send", "hello"]).run().exits(0);
        sandbox.work_with(&LATER, "exit 65").run().exits(1);
        assert_eq!(body(&broker.take(&sandbox.dead_queue())), "hello");
    }
}

#[test]
fn missing_permissions_are_found_at_the_start() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    broker.publish(&sandbox.queue, "waits");
    let main_only = format!("^{}$", sandbox.queue.replace('.', "\\."));
    for (name, configure, write) in [("unconfigured", main_only.as_str(), ".*"), ("mute", ".*", "")] {
        let url = User::add(&sandbox, name, "secret", [configure, write, ".*"]).url("secret");
        let refused = sandbox.work_with(&LATER, "exit 1").env("TASKQ_URL", &url).run().exits(77);
        let refused = refused.never_says("[*]").never_says("secret").in_one_line();
        assert!(!refused.stderr.contains("panicked"), "{}", refused.stderr);
    }
    assert!(!broker.take(&sandbox.queue).redelivered, "the task was taken");
}

#[test]
fn without_the_permission_to_configure_existing_queues_serve_with_no_declare() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    // A user who may configure declares the queues.
    sandbox.work_with(&LATER, "exit 1").run().exits(0);
    let url = User::add(&sandbox, "guest-worker", "secret", ["^$", ".*", ".*"]).url("secret");
    broker.publish(&sandbox.queue, "hello");
    let worked = sandbox.work_with(&["--no-declare", "--until-empty", "--backoff", "1h"], "exit 1");
    worked.env("TASKQ_URL", &url).run().exits(0);
    until("the retry", || broker.get(&sandbox.delay_queue(LATER_MS)));
}

#[test]
fn a_permission_that_was_taken_away_stops_the_worker_and_costs_no_task() {
    let sandbox = Sandbox::new();
    let user = User::add(&sandbox, "demoted", "secret", [".*"; 3]);
    let worker =
        sandbox.work_with(&["--backoff", "1h"], "exit 1").env("TASKQ_URL", user.url("secret")).start();
    worker.says("[*] Waiting");
    // The connection for copies is made when the first one is needed.
    user.may(["^$", ".*", ".*"]);
    let broker = sandbox.broker();
    broker.publish(&sandbox.queue, "fails");
    worker.end().exits(77).says("lacks the permission \"configure\"").never_says("secret");
    broker.wait_ready(&sandbox.queue, 1);
}
