//! `taskq work`: what a worker does with its tasks while nothing goes wrong.

use crate::support::process::as_the_tutorial;
use crate::support::{Sandbox, until};
use amiquip::AmqpProperties;
use nix::sys::signal::Signal;
use std::time::Instant;

/// The lines of a worker that are about tasks.
fn task_lines(stderr: &str) -> Vec<String> {
    let lines = as_the_tutorial(stderr);
    let of_tasks = |line: &&str| line.starts_with("Received a message") || *line == "Done";
    lines.lines().filter(of_tasks).map(str::to_owned).collect()
}

#[test]
fn a_task_is_received_worked_and_done() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    sandbox.taskq(["send", "hello."]).run().exits(0);
    worker.says("Done\n");
    assert_eq!(task_lines(&worker.stderr()), ["Received a message: hello.", "Done"]);
    assert_eq!(worker.stdout(), "", "messages for people are no data");
    worker.signal(Signal::SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 0);
}

#[test]
fn a_task_takes_one_second_for_each_dot() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    let broker = sandbox.broker();
    let mut took = ["none", "a.b.c."].map(|body| {
        let started = Instant::now();
        broker.publish(&sandbox.queue, body);
        worker.says(&format!("Received a message: {body}\nDone\n"));
        started.elapsed()
    });
    took.sort();
    // No task is faster than its dots. How much slower depends on the machine, except that no dots are no seconds.
    assert!(took[1].as_secs() >= 3, "{took:?}");
    assert!(took[0] < took[1], "{took:?}");
}

#[test]
fn threads_work_at_the_same_time() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker(["--threads", "4"]);
    let broker = sandbox.broker();
    for n in 0..4 {
        broker.publish(&sandbox.queue, format!("{n} ...."));
    }
    worker.says_times("Received a message", 4);
    assert!(!worker.stderr().contains("Done"), "four tasks did not run side by side");
    worker.says_times("Done", 4);
}

#[test]
fn a_thread_takes_one_task_at_a_time_and_leaves_the_rest_to_others() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let busy = sandbox.worker(["--threads", "2"]);
    broker.publish(&sandbox.queue, "long 1 ..........");
    broker.publish(&sandbox.queue, "long 2 ..........");
    busy.says_times("Received a message", 2);
    for n in 0..6 {
        broker.publish(&sandbox.queue, format!("short {n}"));
    }
    assert_eq!(broker.ready(&sandbox.queue), 6, "a busy thread holds more than its one task");
    let other = sandbox.worker([""; 0]);
    other.says_times("Done", 6);
    assert_eq!(busy.stderr().matches("Received").count(), 2);
}

#[test]
fn prefetch_holds_more_tasks_for_a_busy_thread() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let _busy = sandbox.worker(["--prefetch", "3"]);
    for n in 0..5 {
        broker.publish(&sandbox.queue, format!("{n} .........."));
    }
    broker.wait_ready(&sandbox.queue, 2);
}

#[test]
fn a_task_is_acknowledged_only_when_it_is_done() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let worker = sandbox.worker([""; 0]);
    broker.publish(&sandbox.queue, "unfinished ..............................");
    worker.says("Received a message");
    assert_eq!(broker.ready(&sandbox.queue), 0);
    worker.signal(Signal::SIGKILL);
    worker.end().exits(137);
    let back = broker.take(&sandbox.queue);
    assert_eq!(back.body, b"unfinished ..............................");
    assert!(back.redelivered);
}

#[test]
fn another_worker_finishes_the_task_of_one_that_died() {
    let sandbox = Sandbox::new();
    let victim = sandbox.worker([""; 0]);
    sandbox.broker().publish(&sandbox.queue, "shared...");
    victim.says("Received a message");
    let heir = sandbox.worker([""; 0]);
    victim.signal(Signal::SIGKILL);
    heir.says("Received a message: shared...\nDone\n");
    sandbox.broker().wait_ready(&sandbox.queue, 0);
}

#[test]
fn two_workers_share_the_tasks() {
    let sandbox = Sandbox::new();
    let workers = [sandbox.worker([""; 0]), sandbox.worker([""; 0])];
    let broker = sandbox.broker();
    broker.wait_consumers(&sandbox.queue, 2);
    for n in 0..6 {
        broker.publish(&sandbox.queue, format!("{n}."));
    }
    until("all tasks done", || {
        let done = workers.iter().map(|worker| worker.stderr().matches("Done").count());
        (done.sum::<usize>() == 6).then_some(())
    });
    for worker in &workers {
        assert_eq!(worker.stderr().matches("Received").count(), 3);
    }
}

#[test]
fn what_is_printed_of_a_body_cannot_drive_a_terminal() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    sandbox.broker().publish(&sandbox.queue, b"\x1b[31mred\x07\r\nDone\n\xff\xc2\x9b2J\t\0end");
    worker.says("\nDone\n");
    let stderr = worker.stderr();
    let line = stderr.lines().find(|line| line.starts_with("Received")).unwrap();
    assert!(!line.chars().any(char::is_control), "{line:?}");
    assert!(!line.contains('\u{fffd}'), "bytes that are no text are shown as what they are: {line:?}");
    assert!(line.contains("red") && line.contains("end"), "{line:?}");
    assert_eq!(
        stderr.lines().filter(|line| line.starts_with("Done (")).count(),
        1,
        "a body can say that it is done"
    );
}

#[test]
fn long_bodies_are_cut_in_print_only() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    // The dot at the end counts although it is not shown.
    let body = "x".repeat(1_000_000) + ".";
    let started = Instant::now();
    sandbox.broker().publish(&sandbox.queue, body);
    worker.says("\nDone\n");
    assert!(started.elapsed().as_secs() >= 1);
    let stderr = worker.stderr();
    let line = stderr.lines().find(|line| line.starts_with("Received")).unwrap();
    assert!(line.len() < 2000, "{} bytes", line.len());
    assert!(line.starts_with("Received a message: xxxxxxxxxx"));
}

#[test]
fn an_empty_body_is_a_task() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    sandbox.broker().publish(&sandbox.queue, "");
    worker.says("Done\n");
    assert_eq!(task_lines(&worker.stderr()), ["Received a message: ", "Done"]);
}

#[test]
fn tasks_of_other_programs_without_any_properties_are_worked() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    let broker = sandbox.broker();
    for body in ["same", "same"] {
        broker.publish_with(&sandbox.queue, body, AmqpProperties::default());
    }
    // Without an id nothing says that these two are one.
    worker.says_times("Received a message: same\nDone\n", 2);
}

#[test]
fn two_tasks_of_the_same_id_are_both_worked() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker([""; 0]);
    let broker = sandbox.broker();
    for body in ["first", "second"] {
        let properties = AmqpProperties::default().with_message_id("same".into()).with_delivery_mode(2);
        broker.publish_with(&sandbox.queue, body, properties);
    }
    // Only a redelivery is the same task again; a producer may well use an id twice.
    worker.says("Received a message: first\nDone\n");
    worker.says("Received a message: second\nDone\n");
}

#[test]
fn the_threads_have_names() {
    let sandbox = Sandbox::new();
    let worker = sandbox.worker(["--threads", "3"]);
    sandbox.broker().wait_consumers(&sandbox.queue, 3);
    let names = worker.threads();
    let taskq_names: Vec<_> = names.iter().filter(|name| name.ends_with(['1', '2', '3'])).collect();
    assert_eq!(taskq_names.len(), 3, "{names:?}");
}

#[test]
fn quorum_queues_are_declared_and_worked() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let worker = sandbox.worker(["--queue-type", "quorum"]);
    broker.wait_consumers(&sandbox.queue, 1);
    let quorum = [("x-queue-type", crate::support::broker::text("quorum"))];
    let options = crate::support::broker::durable(crate::support::broker::arguments(&quorum));
    broker.declare_with(&sandbox.queue, options);
    sandbox.taskq(["send", "hello"]).run().exits(0);
    worker.says("Received a message: hello\nDone\n");
    worker.signal(Signal::SIGINT);
    worker.end().exits(0);
    assert_eq!(broker.ready(&sandbox.queue), 0);
}

#[test]
fn without_a_declaration_a_missing_queue_is_a_configuration_error() {
    let sandbox = Sandbox::new();
    let worked = sandbox.taskq(["work", "--no-declare"]).run().exits(78);
    assert!(worked.stderr.contains(&sandbox.queue), "{}", worked.stderr);
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "the queue was made after all");
}

#[test]
fn without_a_declaration_an_existing_queue_is_worked() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish(&sandbox.queue, "hello");
    let worker = sandbox.worker(["--no-declare"]);
    worker.says("Received a message: hello\nDone\n");
}

/// As when a unit or a cron line has lost its end.
#[test]
fn a_forgotten_command_acknowledges_no_real_task() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    sandbox.work_with(&["--until-empty"], "true").run().exits(0);
    broker.publish(&sandbox.queue, "a real task");
    for options in [&["work"][..], &["work", "--no-declare", "--until-empty"]] {
        let refused = sandbox.taskq(options).run().exits(78);
        refused.in_one_line().says(&sandbox.dead_queue()).says("--dots").never_says("Received");
    }
    assert_eq!(broker.bodies(&sandbox.queue), ["a real task"]);
    broker.publish(&sandbox.queue, "a real task");
    let worked = sandbox.taskq(["work", "--dots", "--until-empty"]).run().exits(0);
    worked.says("Done").never_says("COMMAND");
}

#[test]
fn a_worker_without_a_command_says_that_it_only_sleeps() {
    let sandbox = Sandbox::new();
    let worked = sandbox.taskq(["work", "--until-empty"]).run().exits(0);
    assert!(worked.stderr.starts_with("no COMMAND: tasks are slept through"), "{}", worked.stderr);
    sandbox.taskq(["work", "--until-empty", "--", "true"]).run().exits(0).never_says("COMMAND");
}
