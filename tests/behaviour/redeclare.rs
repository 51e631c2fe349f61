//! A queue of the same name with other properties: refused where tasks could be lost, used as it is elsewhere.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::{Finished, Sandbox, User, until};
use amiquip::{AmqpProperties, AmqpValue, QueueDeclareOptions};

/// Each command that declares or checks the queue before its first task.
const COMMANDS: [&[&str]; 4] = [
    &["send", "hello"],
    &["send", "--lines"],
    &["work", "--until-empty"],
    &["work", "--until-empty", "--", "true"],
];

/// The queue is refused by all of them, for this reason, and nothing is sent to it.
fn refuses(sandbox: &Sandbox, options: QueueDeclareOptions, why: &str) {
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.queue, options);
    for command in COMMANDS {
        let refused = sandbox.taskq(command).feed("hello\n").exits(78).in_one_line();
        refused.says(why).says(&format!("delete_queue {}", sandbox.queue)).says("--queue").never_says("[*]");
    }
    assert_eq!(broker.ready(&sandbox.queue), 0, "something was sent");
    broker.delete(&sandbox.queue);
}

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
        vec![("x-max-length", number(1000))],
        vec![("x-max-length-bytes", number(1_000_000)), ("x-max-priority", number(3))],
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
        worked.says("Received a message: hello\nDone\n");
        sandbox.broker().delete(&sandbox.queue);
    }
}

#[test]
fn who_works_on_a_queue_with_other_arguments_reads_so_once_and_who_sends_to_it_does_not() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let arguments = arguments(&[("x-max-priority", number(10))]);
    sandbox.broker().declare_with(&sandbox.queue, durable(arguments));
    let send = |body: &str| sandbox.taskq(["send", body]).run().exits(0).in_one_line();
    send("one");
    let worker = sandbox.worker(["--threads", "2"]);
    worker.says("Received a message: one\nDone\n");
    let before = proxy.accepted();
    proxy.cut();
    until("a new connection", || (proxy.accepted() > before).then_some(()));
    send("two");
    worker.says("Received a message: two\nDone\n");
    assert_eq!(worker.stderr().matches("is used as it is").count(), 1, "{}", worker.stderr());
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

#[test]
fn a_queue_that_deletes_itself_is_refused_whatever_else_it_has() {
    let expires = ("x-expires", number(3_600_000));
    for others in [
        vec![],
        vec![("x-queue-type", text("quorum")), ("x-delivery-limit", number(5))],
        // The broker names one difference at a time, and this one first or last.
        vec![("x-max-priority", number(10)), ("x-message-ttl", number(1000)), ("x-queue-mode", text("lazy"))],
    ] {
        let sandbox = Sandbox::new();
        let both: Vec<_> = others.into_iter().chain([expires.clone()]).collect();
        refuses(&sandbox, durable(arguments(&both)), "x-expires");
    }
}

#[test]
fn a_stream_is_refused() {
    for others in [vec![], vec![("x-max-age", text("1D")), ("x-max-length-bytes", number(1_000_000_000))]] {
        let sandbox = Sandbox::new();
        let stream: Vec<_> = others.into_iter().chain([("x-queue-type", text("stream"))]).collect();
        refuses(&sandbox, durable(arguments(&stream)), "it is a stream");
    }
}

#[test]
fn what_the_broker_has_no_room_to_say_about_a_queue_with_a_long_name_is_found_out() {
    let mut sandbox = Sandbox::new();
    // A stream needs some of the length that a file name may have for itself.
    sandbox.queue += &"x".repeat(180 - sandbox.queue.len());
    let of_type = |kind: &str| durable(arguments(&[("x-queue-type", text(kind))]));
    refuses(&sandbox, of_type("stream"), "neither a classic nor a quorum queue");
    refuses(&sandbox, durable(arguments(&[("x-expires", number(3_600_000))])), "x-expires");
    for kind in ["classic", "quorum"] {
        for used in send_and_work(&sandbox, of_type(kind)) {
            used.exits(0);
        }
        sandbox.broker().delete(&sandbox.queue);
    }
}

/// The default type of a vhost is that of all queues that are declared without one.
#[test]
fn the_default_type_of_the_vhost_is_seen() {
    let sandbox = Sandbox::new();
    for kind in ["stream", "quorum"] {
        let vhost = format!("{kind}.{}", std::process::id());
        sandbox.node().ctl(&["add_vhost", &vhost, "--default-queue-type", kind]);
        sandbox.node().ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
        let url = format!("{}/{vhost}", sandbox.url());
        let run = |command: &[&str]| sandbox.taskq(command).env("TASKQ_URL", &url).feed("hello\n");
        let messages = || sandbox.node().ctl(&["-q", "list_queues", "-p", &vhost, "name", "messages"]);
        if kind == "quorum" {
            for command in COMMANDS {
                run(command).exits(0).never_says("is down");
            }
            assert!(messages().contains(&format!("{}\t0", sandbox.queue)), "{}", messages());
        } else {
            // The first declares it.
            for command in COMMANDS {
                run(command).exits(78).in_one_line().says("it is a stream").says("--queue-type quorum");
            }
            assert!(messages().contains(&format!("{}\t0", sandbox.queue)), "{}", messages());
            // Beside a queue that is fit, those for failed tasks are what the vhost makes of them.
            sandbox.node().ctl(&["delete_queue", "-p", &vhost, &sandbox.queue]);
            run(&["send", "--queue-type", "quorum", "hello"]).exits(0);
            run(&["work", "--queue-type", "classic", "--", "true"]).exits(78).says(&sandbox.dead_queue());
            run(&["work", "--queue-type", "quorum", "--until-empty", "--", "true"])
                .exits(78)
                .says("it is a stream");
        }
        sandbox.node().ctl(&["delete_vhost", &vhost]);
    }
}

#[test]
fn a_stream_for_the_dead_is_refused_before_anything_is_taken() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.dead_queue(), durable(arguments(&[("x-queue-type", text("stream"))])));
    sandbox.taskq(["send", "hello"]).run().exits(0);
    let dead: [&[&str]; 4] = [
        &["work", "--", "false"],
        &["dead", "list"],
        &["dead", "requeue", "--all"],
        &["dead", "purge", "--yes"],
    ];
    for command in dead {
        sandbox
            .taskq(command)
            .run()
            .exits(78)
            .in_one_line()
            .says("it is a stream")
            .says(&sandbox.dead_queue());
    }
    assert_eq!(broker.ready(&sandbox.queue), 1);
}

#[test]
fn a_stream_for_the_dead_is_recognised_by_a_user_who_may_not_configure_it() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.dead_queue(), durable(arguments(&[("x-queue-type", text("stream"))])));
    broker.publish(&sandbox.dead_queue(), "task");
    broker.declare(&sandbox.queue);
    let url = User::add(&sandbox, "reader", "secret", ["^$", ".*", ".*"]).url("secret");
    for command in [&["list"][..], &["requeue", "--all"], &["purge", "--yes"]] {
        let refused = sandbox.taskq(["dead"].iter().chain(command)).env("TASKQ_URL", &url).run();
        refused.exits(78).in_one_line().says(" stream");
    }
}

#[test]
fn dead_tasks_are_not_sent_again_to_a_stream() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.dead_queue());
    broker.publish(&sandbox.dead_queue(), "hello");
    broker.declare_with(&sandbox.queue, durable(arguments(&[("x-queue-type", text("stream"))])));
    let refused = sandbox.taskq(["dead", "requeue", "--all"]).run().exits(78).in_one_line();
    refused.says("it is a stream").says(&sandbox.queue);
    broker.wait_ready(&sandbox.dead_queue(), 1);
}

/// Where nothing is declared, the first task tells.
#[test]
fn a_stream_that_was_not_to_be_declared_is_refused_before_its_first_task_runs() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.queue, durable(arguments(&[("x-queue-type", text("stream"))])));
    let worker = sandbox.worker(["--no-declare", "--threads", "2"]);
    broker.publish(&sandbox.queue, "hello");
    worker.end().exits(78).says("it is a stream").never_says("Received");
}

#[test]
fn a_stream_that_was_not_to_be_declared_is_not_waited_for_until_it_is_empty() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.queue, durable(arguments(&[("x-queue-type", text("stream"))])));
    let worker = sandbox.taskq(["work", "--no-declare", "--until-empty"]).run().exits(78);
    worker.says("it is a stream").never_says("nobody answers");
}

/// Something moved it here from a stream, as a shovel does.
#[test]
fn a_task_that_comes_from_a_stream_runs() {
    for kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        broker.declare_with(&sandbox.queue, durable(arguments(&[("x-queue-type", text(kind))])));
        let headers = arguments(&[("x-stream-offset", AmqpValue::LongLongInt(7))]);
        let properties = AmqpProperties::default().with_delivery_mode(2).with_headers(headers);
        broker.publish_with(&sandbox.queue, "hello", properties);
        let worked = sandbox.taskq(["work", "--no-declare", "--until-empty"]).run().exits(0);
        worked.says("Received a message: hello\nDone\n");
    }
}

#[test]
fn companions_that_drop_their_oldest_tasks_are_refused() {
    let limits = [("x-max-length", number(10)), ("x-max-length-bytes", number(1000))];
    for limit in limits {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        broker.declare_with(&sandbox.dead_queue(), durable(arguments(std::slice::from_ref(&limit))));
        sandbox.taskq(["work", "--", "true"]).run().exits(78).in_one_line().says("drops its oldest");
        broker.delete(&sandbox.dead_queue());
        let refusing = [limit, ("x-overflow", text("reject-publish"))];
        broker.declare_with(&sandbox.dead_queue(), durable(arguments(&refusing)));
        sandbox.taskq(["work", "--until-empty", "--", "true"]).run().exits(0);
    }
}
