//! `taskq send --unsent` when sending ends before the input does: what becomes of the rest of it.

use super::bulk_outage::{SLACK, bulk, lines, none_is_missing};
use crate::support::{Direction, Process, Sandbox, until};
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A bulk send that replaces its input by what remains of it.
fn replacing(sandbox: &Sandbox, form: &str, input: &Path) -> Process {
    let path = input.to_str().unwrap();
    let args = ["send", form, "--print-ids", "--retry-for", "60s", "--file", path, "--unsent", path];
    sandbox.taskq(args).start()
}

#[test]
fn an_interrupted_send_replaces_its_input_by_all_that_remains() {
    const COUNT: usize = 20_000;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        // Far longer than the test: most of the input has not been read when the signal comes.
        proxy.slow_down(Direction::ToBroker, 32 * 1024);
        let input = sandbox.file("tasks", lines(0..COUNT));
        let send = replacing(&sandbox, "--lines", &input);
        send.prints_lines(10);
        send.signal(signal);
        let sent = send.end_within(SLACK).exits(128 + signal as i32);
        none_is_missing(&sandbox, &sent, &input, COUNT);
    }
}

#[test]
fn a_signal_while_the_rest_is_saved_leaves_the_input_as_it_was() {
    const TASKS: u64 = 32 * 1024 * 1024;
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    proxy.stall();
    let input = sandbox.file("tasks", "");
    // Each of its zeros is an empty task: to save so many takes a while.
    File::options().write(true).open(&input).unwrap().set_len(TASKS).unwrap();
    let send = replacing(&sandbox, "--null", &input);
    until("an attempt to connect", || (proxy.accepted() > 0).then_some(()));
    send.signal(Signal::SIGTERM);
    send.says("stopped by SIGTERM").says("saving the rest of the input");
    send.signal(Signal::SIGINT);
    send.end_within(SLACK).exits(130).says("left as it was");
    assert_eq!(std::fs::metadata(&input).unwrap().len(), TASKS);
    let files = std::fs::read_dir(input.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1, "a temporary file was left");
}

#[test]
fn an_input_with_a_task_that_cannot_be_kept_is_left_as_it_was() {
    const TOO_LONG: u64 = 129 * 1024 * 1024;
    let sandbox = Sandbox::new();
    let input = sandbox.file("tasks", "before\n");
    let mut file = File::options().append(true).open(&input).unwrap();
    file.set_len(TOO_LONG).unwrap();
    file.write_all(b"\nafter\n").unwrap();
    let sent = replacing(&sandbox, "--lines", &input).end().exits(65);
    sent.says("line 2").says("left as it was");
    assert_eq!(std::fs::metadata(&input).unwrap().len(), TOO_LONG + 7);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["before", "after"]);
}

#[test]
fn giving_up_is_told_at_once_and_the_rest_is_saved_until_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        let unsent = sandbox.path("unsent");
        let mut send = bulk(&sandbox, "8s", &unsent);
        send.write(lines(0..10));
        send.prints_lines(10);
        proxy.refuse();
        send.write_and_see_it_read(&lines(10..300));
        // The input stays open, as that of `tail -f` does.
        send.says("did not come back within 8s").says("saving the rest of the input");
        send.write_and_see_it_read(&lines(300..600));
        send.signal(signal);
        let sent = send.end_within(SLACK).exits(128 + signal as i32);
        none_is_missing(&sandbox, &sent, &unsent, 600);
        assert_eq!(std::fs::read_to_string(unsent).unwrap(), lines(10..600), "in the order they came");
        sent.says("10 tasks confirmed, 590 not");
    }
}

#[test]
fn after_giving_up_the_end_of_the_input_ends_it_with_the_reason() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "8s", &unsent);
    send.write(lines(0..10));
    send.prints_lines(10);
    proxy.refuse();
    send.write(lines(10..20));
    send.says("saving the rest of the input");
    send.write(lines(20..30));
    send.close_stdin();
    let sent = send.end_within(SLACK).exits(69).says("10 tasks confirmed, 20 not");
    none_is_missing(&sandbox, &sent, &unsent, 30);
}
