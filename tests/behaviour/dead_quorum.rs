//! Quorum queues count deliveries, and may drop what was delivered too often: RabbitMQ 4 after 20, unless told
//! otherwise. To look at a dead task is a delivery.

use amiquip::{AmqpValue, ConsumerOptions};

use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::{attempt, body, header};
use crate::support::{Sandbox, User, until};
use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};

/// More than any limit in these tests.
const LOOKS: u32 = 24;

/// The lowest that allows for more than one look at all.
const LOWEST_LIMIT: i32 = 2;

/// Two dead tasks, `a` and `b`.
fn two_dead(sandbox: &Sandbox, kind: &str) {
    for id in ["a", "b"] {
        sandbox.taskq(["send", "--queue-type", kind, "--id", id, &format!("body of {id}")]).run().exits(0);
    }
    let script = r#"echo "error of $TASKQ_ID" >&2; exit 65"#;
    sandbox.work_with(&["--until-empty", "--queue-type", kind], script).run().exits(1);
}

/// Looks at them in all the ways there are, and finds them every time.
fn look_often(sandbox: &Sandbox) {
    for look in 0..LOOKS {
        let looked = match look % 3 {
            0 => sandbox.taskq(["dead", "list"]).run().exits(0),
            1 => sandbox.taskq(["dead", "show", "a"]).run().exits(0),
            _ => sandbox.taskq(["dead", "requeue", "a", "no-such-id"]).run().exits(65),
        };
        if look % 3 == 2 {
            // Dead again, and therefore the last in the row.
            sandbox.work_with(&["--until-empty"], "echo error of a >&2; exit 65").run().exits(1);
        } else {
            let shown = looked.stdout_text();
            assert!(shown.contains("body of a"), "look {look}: {shown}");
            assert!(look % 3 == 1 || shown.contains("body of b"), "look {look}: {shown}");
            assert_eq!(looked.stderr, "");
        }
    }
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.dead_queue(), 2);
    let mut dead = broker.drain(&sandbox.dead_queue());
    dead.sort_by_key(body);
    for (task, id) in dead.iter().zip(["a", "b"]) {
        assert_eq!(body(task), format!("body of {id}"));
        assert_eq!(task.properties.message_id().as_deref(), Some(id));
        assert_eq!(*task.properties.delivery_mode(), Some(2));
        assert_eq!(attempt(task), Some(1));
        assert_eq!(header(task, "x-taskq-error").trim_end(), format!("error of {id}"));
        assert_eq!(header(task, "x-taskq-queue"), sandbox.queue);
    }
}

#[test]
fn dead_tasks_in_taskqs_own_quorum_queue_can_be_looked_at_for_ever() {
    let sandbox = Sandbox::new();
    two_dead(&sandbox, "quorum");
    look_often(&sandbox);
}

#[test]
fn dead_tasks_in_a_queue_that_drops_what_is_delivered_often_are_renewed_in_time() {
    let sandbox = Sandbox::new();
    let limited = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(LOWEST_LIMIT))];
    sandbox.broker().declare_with(&sandbox.dead_queue(), durable(arguments(&limited)));
    two_dead(&sandbox, "classic");
    look_often(&sandbox);
}

/// It holds against the limit that taskq declares, and only the broker's operator sees it.
#[test]
fn a_policy_that_drops_what_is_delivered_often_costs_no_dead_task() {
    let sandbox = Sandbox::new();
    let name = sandbox.dead_queue();
    let policy =
        ["set_policy", &name, &format!("^{name}$"), &format!(r#"{{"delivery-limit": {LOWEST_LIMIT}}}"#)];
    sandbox.node().ctl(&policy);
    two_dead(&sandbox, "quorum");
    look_often(&sandbox);
    sandbox.node().ctl(&["clear_policy", &name]);
}

#[test]
fn whoever_interrupts_a_look_loses_nothing() {
    const TASKS: u32 = 1500;
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let dead = sandbox.dead_queue();
    let limited = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(LOWEST_LIMIT))];
    broker.declare_with(&dead, durable(arguments(&limited)));
    broker.declare(&sandbox.queue);
    let bodies = (0..TASKS).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    sandbox.taskq(["send", "--lines", "--queue", &dead]).feed(bodies).exits(0);
    let looks = [&["dead", "list"][..], &["dead", "requeue", "no-such-id"], &["dead", "list", "--json"]];
    for (looking, signal) in looks.iter().cycle().zip([SIGINT, SIGTERM, SIGHUP, SIGINT, SIGTERM, SIGHUP]) {
        let mut look = sandbox.taskq(*looking).start();
        until("it holds some", || (!look.is_running() || broker.ready(&dead) < TASKS).then_some(()));
        // Or it was faster.
        if look.is_running() {
            look.signal(signal);
        }
        look.end().exits_with_one_of(&[0, 65, 128 + signal as i32]);
        broker.wait_ready_at_least(&dead, TASKS);
    }
    let mut left: Vec<u32> = broker.bodies(&dead).iter().map(|body| body.parse().unwrap()).collect();
    left.sort_unstable();
    left.dedup();
    assert_eq!(left.len(), TASKS as usize);
}

#[test]
fn whoever_interrupts_moving_in_an_alarm_does_not_wait_for_its_end() {
    const TASKS: u32 = 3000;
    let sandbox = Sandbox::exclusive();
    let (broker, dead) = (sandbox.broker(), sandbox.dead_queue());
    let bodies = (0..TASKS).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    sandbox.taskq(["send", "--lines", "--queue", &dead]).feed(bodies).exits(0);
    broker.declare(&sandbox.queue);
    let mut moving = sandbox.taskq(["dead", "requeue", "--all"]).start();
    until("it moves some", || (!moving.is_running() || broker.ready(&dead) < TASKS).then_some(()));
    sandbox.node().memory_alarm(true);
    // Or it was faster.
    if moving.is_running() {
        moving.signal(SIGINT);
    }
    moving.end().exits_with_one_of(&[0, 130]);
    sandbox.node().memory_alarm(false);
}

/// It would count as a look, and no copy could take the place of what was looked at too often.
#[test]
fn nobody_looks_at_what_wears_out_while_publishing_is_blocked() {
    let sandbox = Sandbox::exclusive();
    let limited = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(LOWEST_LIMIT))];
    sandbox.broker().declare_with(&sandbox.dead_queue(), durable(arguments(&limited)));
    two_dead(&sandbox, "classic");
    for _ in 0..LOWEST_LIMIT {
        sandbox.taskq(["dead", "list"]).run().exits(0);
    }
    sandbox.node().memory_alarm(true);
    let counts = sandbox.broker().version() < [4, 3, 0];
    for look in 0..=LOWEST_LIMIT {
        for looking in [&["dead", "list"][..], &["dead", "list", "--json"], &["dead", "show", "a"]] {
            let looked = sandbox.taskq(looking).run().exits(if counts { 75 } else { 0 });
            assert!(
                !counts || looked.stderr.contains("has blocked publishing"),
                "look {look}: {}",
                looked.stderr
            );
        }
        let requeue = sandbox.taskq(["dead", "requeue", "--all"]).run().exits(75);
        requeue.says("has blocked publishing").says("0 sent again");
    }
    sandbox.node().memory_alarm(false);
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 2);
    sandbox.taskq(["dead", "requeue", "--all"]).run().exits(0).says("2 sent again");
}

#[test]
fn what_does_not_wear_out_is_looked_at_during_an_alarm() {
    let sandbox = Sandbox::exclusive();
    two_dead(&sandbox, "classic");
    sandbox.node().memory_alarm(true);
    let listed = sandbox.taskq(["dead", "list"]).run().exits(0);
    assert_eq!(listed.stdout_lines().len(), 3);
    sandbox.node().memory_alarm(false);
}

#[test]
fn dead_tasks_that_cannot_be_sent_again_are_not_worn_out_by_trying() {
    const TASKS: usize = 150;
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let dead = sandbox.dead_queue();
    let limited = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(LOWEST_LIMIT))];
    broker.declare_with(&dead, durable(arguments(&limited)));
    let full = [("x-max-length", number(0)), ("x-overflow", text("reject-publish"))];
    broker.declare_with(&sandbox.queue, durable(arguments(&full)));
    // More than are under way at a time.
    let bodies = (0..TASKS).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    sandbox.taskq(["send", "--lines", "--queue", &dead]).feed(bodies).exits(0);
    for _ in 0..LOWEST_LIMIT + 3 {
        sandbox.taskq(["dead", "requeue", "--all"]).run().exits(75).says("0 sent again");
    }
    broker.wait_ready_at_least(&dead, u32::try_from(TASKS).unwrap());
    let mut left: Vec<usize> = broker.bodies(&dead).iter().map(|body| body.parse().unwrap()).collect();
    left.sort_unstable();
    left.dedup();
    assert_eq!(left, (0..TASKS).collect::<Vec<_>>());
}

#[test]
fn who_may_only_read_is_told_that_dead_tasks_wear_out() {
    let sandbox = Sandbox::new();
    let url = User::add(&sandbox, "reader", "secret", ["^$", "^$", ".*"]).url("secret");
    two_dead(&sandbox, "quorum");
    let mut told = 0;
    for _ in 0..LOOKS {
        let listed = sandbox.taskq(["dead", "list", "--url", &url]).run().exits(0);
        assert_eq!(listed.stdout_lines().len(), 3);
        told += u32::from(listed.stderr.contains("could not be replaced"));
    }
    // A look that does not count wears nothing out.
    let counts = sandbox.broker().version() < [4, 3, 0];
    assert_eq!(told > 0, counts, "told {told} times");
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 2);
}

/// Dead tasks with these as their ids, as `list` shows them.
fn listed(sandbox: &Sandbox) -> Vec<String> {
    let lines = sandbox.taskq(["dead", "list"]).run().exits(0).stdout_lines();
    lines.iter().skip(1).map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// Sends tasks to the queue of dead tasks and finds, moves and keeps all of them, in their order.
fn all_of_many_are_there(count: usize) {
    let sandbox = Sandbox::new();
    let dead = sandbox.dead_queue();
    let bodies = (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    let send = ["send", "--lines", "--print-ids", "--queue-type", "quorum", "--queue", &dead];
    let mut ids = sandbox.taskq(send).feed(bodies).exits(0).stdout_lines();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    broker.wait_ready(&dead, u32::try_from(count).unwrap());
    assert!(listed(&sandbox) == ids, "tasks are missing or out of order");
    let last = ids.pop().unwrap();
    let shown = sandbox.taskq(["dead", "show", "--body", &last]).run().exits(0);
    assert_eq!(shown.stdout_text(), (count - 1).to_string());
    sandbox.taskq(["dead", "requeue", &last]).run().exits(0);
    assert_eq!(broker.bodies(&sandbox.queue), [(count - 1).to_string()]);
    broker.wait_ready(&dead, u32::try_from(count - 1).unwrap());
    assert!(listed(&sandbox) == ids, "looking has lost some or changed the order");
}

#[test]
fn more_dead_tasks_than_a_quorum_queue_hands_out_unasked_are_all_there() {
    all_of_many_are_there(5_000);
}

#[test]
fn more_dead_tasks_than_one_consumer_can_hold_are_all_there() {
    all_of_many_are_there(66_000);
}

#[test]
fn dead_tasks_that_the_broker_does_not_hand_out_are_not_kept_quiet_about() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let single = [("x-queue-type", text("quorum")), ("x-single-active-consumer", AmqpValue::Boolean(true))];
    broker.declare_with(&sandbox.dead_queue(), durable(arguments(&single)));
    broker.declare(&sandbox.queue);
    for id in ["a", "b"] {
        sandbox.taskq(["send", "--id", id, "--queue", &sandbox.dead_queue()]).run().exits(0);
    }
    // It has one, and nobody else gets the other.
    broker.while_consuming(&sandbox.dead_queue(), ConsumerOptions::default(), || {
        broker.wait_ready(&sandbox.dead_queue(), 1);
        for args in
            [&["list"][..], &["list", "--json"], &["show", "b"], &["requeue", "b"], &["requeue", "--all"]]
        {
            let missed = sandbox.taskq(["dead"].iter().chain(args)).run().exits(75).in_one_line();
            assert!(missed.stdout.is_empty());
            missed.says("ready there: 1");
        }
    });
    broker.wait_ready(&sandbox.dead_queue(), 2);
    assert_eq!(listed(&sandbox), ["a", "b"]);
}

#[test]
fn a_queue_of_dead_tasks_that_is_unfit_is_refused_whatever_else_it_is() {
    for unfit in [
        vec![("x-queue-type", text("quorum")), ("x-message-ttl", number(60_000))],
        vec![("x-message-ttl", number(60_000))],
        vec![("x-queue-type", text("quorum")), ("x-expires", number(60_000))],
    ] {
        let sandbox = Sandbox::new();
        sandbox.broker().declare_with(&sandbox.dead_queue(), durable(arguments(&unfit)));
        let refused = sandbox.work_with(&["--queue-type", "quorum"], "exit 65").run().exits(78);
        assert!(refused.stderr.contains("drops what it keeps"), "{unfit:?}: {}", refused.stderr);
    }
}
