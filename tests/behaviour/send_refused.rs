//! `taskq send` exits 0 only when the broker has the task and a queue holds it.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::{Finished, Sandbox};
use std::os::unix::fs::PermissionsExt;

#[test]
fn without_a_declaration_a_missing_queue_is_a_configuration_error() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "--no-declare", "hello"]).run().exits(78).in_one_line();
    assert!(sent.stderr.contains(&sandbox.queue), "{}", sent.stderr);
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "the queue was made after all");
}

#[test]
fn what_the_broker_takes_in_no_case_is_bad_data_at_once() {
    let sandbox = Sandbox::new();
    // It takes carbon copies from lists only.
    for header in ["CC=a", "BCC=a"] {
        let send = sandbox.taskq(["send", "--header", header, "--retry-for", "10m", "hello"]);
        send.run().exits(65).in_one_line().says("header");
    }
    sandbox.broker().wait_ready(&sandbox.queue, 0);
}

#[test]
fn without_a_declaration_an_existing_queue_is_used() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare_with(&sandbox.queue, durable(arguments(&[("x-max-length", number(10))])));
    sandbox.taskq(["send", "--no-declare", "hello"]).run().exits(0);
    assert_eq!(broker.bodies(&sandbox.queue), ["hello"]);
}

/// A bulk send that has one task confirmed when its queue is deleted, and is given another one.
fn delete_the_queue_under(sandbox: &Sandbox, options: &[&str]) -> Finished {
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let mut send = sandbox.taskq(["send", "--lines", "--print-ids"].iter().chain(options)).start();
    send.write("before\n");
    send.prints_lines(1);
    broker.delete(&sandbox.queue);
    send.write("after\n");
    send.close_stdin();
    send.end()
}

#[test]
fn a_task_that_no_queue_takes_is_not_sent() {
    let sandbox = Sandbox::new();
    let unsent = sandbox.path("unsent");
    let options = ["--no-declare", "--retry-for", "6s", "--unsent", unsent.to_str().unwrap()];
    let failed = delete_the_queue_under(&sandbox, &options).exits_with_one_of(&[75, 78]);
    assert_eq!(std::fs::read_to_string(unsent).unwrap(), "after\n");
    assert_eq!(failed.stdout_lines().len(), 1, "an id was printed for what was not sent");
}

#[test]
fn a_task_that_came_back_is_sent_again_to_a_queue_declared_anew() {
    let sandbox = Sandbox::new();
    delete_the_queue_under(&sandbox, &[]).exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["after"]);
}

/// A queue that takes `count` messages and refuses the rest.
fn full_after(sandbox: &Sandbox, count: i32) {
    let limit = [("x-max-length", number(count)), ("x-overflow", text("reject-publish"))];
    sandbox.broker().declare_with(&sandbox.queue, durable(arguments(&limit)));
}

#[test]
fn a_task_that_the_broker_refuses_is_temporary_failure() {
    let sandbox = Sandbox::new();
    full_after(&sandbox, 1);
    sandbox.taskq(["send", "fits"]).run().exits(0);
    let refused = sandbox.taskq(["send", "--retry-for", "6s", "too much"]).run().exits(75);
    assert!(!refused.stderr.contains("Sent"), "{}", refused.stderr);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["fits"]);
}

#[test]
fn a_refused_task_is_sent_when_there_is_room_for_it() {
    let sandbox = Sandbox::new();
    full_after(&sandbox, 1);
    sandbox.taskq(["send", "first"]).run().exits(0);
    let send = sandbox.taskq(["send", "second"]).start();
    send.says("refuses tasks");
    assert_eq!(sandbox.broker().take(&sandbox.queue).body, b"first");
    send.end().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["second"]);
}

#[test]
fn refused_tasks_are_counted_and_saved_for_their_owner_only() {
    let sandbox = Sandbox::new();
    full_after(&sandbox, 3);
    let unsent = sandbox.path("unsent");
    let args = ["send", "--lines", "--print-ids", "--retry-for", "6s", "--unsent", unsent.to_str().unwrap()];
    let sent = sandbox.taskq(args).feed("1\n2\n3\n4\n5\n").exits(75);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["1", "2", "3"]);
    assert_eq!(std::fs::read_to_string(&unsent).unwrap(), "4\n5\n");
    assert_eq!(std::fs::metadata(&unsent).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(sent.stdout_lines().len(), 3);
    assert!(sent.stderr.contains('3') && sent.stderr.contains('2'), "no counts in {:?}", sent.stderr);
}

#[test]
fn what_was_not_sent_can_be_sent_from_the_file_it_was_saved_to() {
    let sandbox = Sandbox::new();
    full_after(&sandbox, 1);
    let unsent = sandbox.path("unsent");
    let path = unsent.to_str().unwrap();
    let bulk = ["send", "--null", "--retry-for", "6s", "--unsent", path];
    sandbox.taskq(bulk).feed(b"1\0two\nlines\0\0\xff\0").exits(75);
    assert_eq!(std::fs::read(&unsent).unwrap(), b"two\nlines\0\0\xff\0");
    let broker = sandbox.broker();
    broker.drain(&sandbox.queue);
    broker.delete(&sandbox.queue);
    sandbox.taskq(["send", "--null", "--file", path]).run().exits(0);
    let bodies: Vec<Vec<u8>> = broker.drain(&sandbox.queue).into_iter().map(|message| message.body).collect();
    assert_eq!(bodies, [&b"two\nlines"[..], b"", b"\xff"]);
}

#[test]
fn a_single_body_that_was_not_sent_is_saved_as_it_is() {
    let sandbox = Sandbox::new();
    full_after(&sandbox, 0);
    let unsent = sandbox.path("unsent");
    let args = ["send", "--file", "-", "--retry-for", "6s", "--unsent", unsent.to_str().unwrap()];
    sandbox.taskq(args).feed(b"\0one\nbody").exits(75);
    assert_eq!(std::fs::read(unsent).unwrap(), b"\0one\nbody");
}
