//! `taskq send --lines` and `--null`: what a task is, in which order, and at what cost in memory.

use crate::support::Sandbox;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::Write;

/// What the tasks are after `input` went through `send` with `flags`.
#[track_caller]
fn tasks(flags: &[&str], input: &[u8]) -> Vec<String> {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send"].iter().chain(flags)).feed(input).exits(0);
    sandbox.broker().bodies(&sandbox.queue)
}

#[test]
fn an_input_that_does_not_block_is_waited_for() {
    let sandbox = Sandbox::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let send = sandbox.taskq(["send", "--lines"]).start_on(reader);
    writer.write_all(b"one\n").unwrap();
    sandbox.broker().wait_ready(&sandbox.queue, 1);
    writer.write_all(b"two\n").unwrap();
    drop(writer);
    send.end().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["one", "two"]);
}

#[test]
fn each_line_is_a_task_without_its_line_end() {
    assert_eq!(tasks(&["--lines"], b"one\ntwo words\nthree...\n"), ["one", "two words", "three..."]);
}

#[test]
fn the_last_line_needs_no_line_end() {
    assert_eq!(tasks(&["--lines"], b"one\ntwo"), ["one", "two"]);
}

#[test]
fn an_empty_line_is_an_empty_task() {
    assert_eq!(tasks(&["--lines"], b"\none\n\n"), ["", "one", ""]);
}

#[test]
fn a_carriage_return_belongs_to_the_body() {
    assert_eq!(tasks(&["--lines"], b"one\r\ntwo\r\n"), ["one\r", "two\r"]);
}

#[test]
fn null_separated_tasks_may_hold_line_ends() {
    assert_eq!(tasks(&["--null"], b"one\ntwo\0\0three"), ["one\ntwo", "", "three"]);
    assert_eq!(tasks(&["-0"], b"one\0"), ["one"]);
}

#[test]
fn no_input_is_no_task_and_no_failure() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("").exits(0);
    let counts = sandbox.broker().counts(&sandbox.queue);
    assert_eq!(counts.map_or(0, |(ready, _)| ready), 0);
}

#[test]
fn lines_are_read_from_a_file_too() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("tasks", "one\ntwo\n");
    sandbox.taskq(["send", "--lines", "--file", file.to_str().unwrap()]).run().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["one", "two"]);
}

#[test]
fn lines_are_bytes_and_need_not_be_text() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed(b"\xff\xfe\0\n").exits(0);
    assert_eq!(sandbox.broker().take(&sandbox.queue).body, b"\xff\xfe\0");
}

#[test]
fn ids_are_printed_in_the_order_of_the_lines() {
    const COUNT: usize = 5000;
    let sandbox = Sandbox::new();
    let input = (0..COUNT).map(|n| n.to_string() + "\n").collect::<String>();
    let sent = sandbox.taskq(["send", "--lines", "--print-ids"]).feed(input).exits(0);
    let messages = sandbox.broker().drain(&sandbox.queue);
    assert_eq!(messages.len(), COUNT);
    let ids = sent.stdout_lines();
    assert_eq!(ids.len(), COUNT);
    for (n, (message, id)) in messages.iter().zip(&ids).enumerate() {
        assert_eq!(message.body, n.to_string().as_bytes());
        assert_eq!(message.properties.message_id().as_ref(), Some(id), "line {n}");
    }
}

#[test]
fn a_bulk_send_says_how_many_it_sent() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("x\n".repeat(123)).exits(0).says("123").in_one_line();
}

#[test]
fn a_reader_of_the_ids_that_goes_away_costs_no_task() {
    let sandbox = Sandbox::new();
    let script = r#""$1" send --lines --print-ids | head -n 1"#;
    let pipe = sandbox.program("sh", ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq")]);
    let piped = pipe.feed("x\n".repeat(3000)).exits(0);
    assert!(!piped.stderr.contains("panicked"));
    assert_eq!(piped.stdout_lines().len(), 1);
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 3000);
}

/// The peak memory of a bulk send of that many lines, in KiB, once all are confirmed.
fn peak_memory(lines: usize) -> u64 {
    let sandbox = Sandbox::new();
    let mut send = sandbox.taskq(["send", "--lines", "--print-ids"]).start();
    let chunk = "a task of some forty bytes, dots: .......\n".repeat(1000);
    for _ in 0..lines / 1000 {
        send.write(&chunk);
    }
    send.prints_lines(lines);
    let peak = send.peak_memory();
    send.close_stdin();
    send.end().exits(0);
    sandbox.broker().delete(&sandbox.queue);
    peak
}

#[test]
fn memory_stays_flat_however_long_the_input() {
    let (short, long) = (peak_memory(20_000), peak_memory(200_000));
    // Both keep at most 1,000 tasks; a leak of the bodies alone would add 8 MiB.
    assert!(long < short + short / 4, "{short} KiB for 20,000 lines, {long} KiB for 200,000");
}

#[test]
fn a_line_over_the_protocols_maximum_is_named_and_the_others_are_sent() {
    const CHUNK: usize = 1 << 20;
    let sandbox = Sandbox::new();
    let mut send = sandbox.taskq(["send", "--lines"]).start();
    send.write("before\n");
    let chunk = vec![b'x'; CHUNK];
    for _ in 0..129 {
        send.write(&chunk);
    }
    send.write("\nafter\n");
    send.close_stdin();
    let sent = send.end().exits(65);
    assert!(sent.stderr.contains("line 2"), "the line is not named: {}", sent.stderr);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["before", "after"]);
}

#[test]
fn a_body_over_the_brokers_maximum_is_named_and_the_others_are_sent() {
    // The larger is refused while most of it is still to be handed over.
    for length in [200_000, 40_000_000] {
        over_the_brokers_maximum(length);
    }
}

fn over_the_brokers_maximum(length: usize) {
    let sandbox = Sandbox::configured(&["max_message_size = 100000"]);
    let unsent = sandbox.path("unsent");
    let big = "x".repeat(length);
    let args = ["send", "--lines", "--print-ids", "--unsent", unsent.to_str().unwrap()];
    let sent = sandbox.taskq(args).feed(format!("before\n{big}\nafter\n{big}\nlast\n")).exits(65);
    assert!(sent.stderr.contains("line 2"), "the line is not named: {}", sent.stderr);
    assert!(sent.stderr.contains("line 4"), "the line is not named: {}", sent.stderr);
    assert_eq!(sent.stdout_lines().len(), 3);
    let mut bodies = sandbox.broker().bodies(&sandbox.queue);
    // What was in flight with the refused one may have been published twice.
    bodies.dedup();
    assert_eq!(bodies, ["before", "after", "last"]);
    assert!(std::fs::read_to_string(unsent).unwrap() == format!("{big}\n{big}\n"));

    let single = sandbox.taskq(["send", "--file", "-"]).feed(&big).exits(65);
    assert!(single.stderr.contains("100000"), "the limit is not named: {}", single.stderr);
}

/// What stands on a terminal of so many columns, line after line, while a file of many tasks is sent.
fn on_a_terminal(columns: usize) -> Vec<String> {
    let sandbox = Sandbox::new();
    let file = sandbox.path("tasks");
    std::fs::write(&file, "task\n".repeat(50_000)).unwrap();
    let send = format!("stty cols {columns}; exec \"$TASKQ\" send --lines --file '{}'", file.display());
    let terminal = sandbox.program("script", ["--quiet", "--return", "--command", &send, "/dev/null"]);
    let seen = terminal.env("TASKQ", env!("CARGO_BIN_EXE_taskq")).run().exits(0).stdout_text();
    seen.split(['\r', '\n']).map(|line| line.trim_start_matches("\x1b[K").to_owned()).collect()
}

#[test]
fn a_terminal_shows_how_far_it_is_and_how_long_it_takes() {
    let lines = on_a_terminal(80);
    let progress = lines.iter().find(|line| line.contains("tasks sent, ")).expect("no progress");
    assert!(progress.contains("/s, about ") && progress.ends_with(" left"), "{progress}");
    assert!(lines.iter().any(|line| line == " [x] Sent 50000 tasks"), "{lines:?}");
}

#[test]
fn on_a_narrow_terminal_the_progress_is_cut() {
    let lines = on_a_terminal(20);
    let progress: Vec<_> = lines.iter().filter(|line| line.contains(" tasks")).collect();
    assert!(progress.len() > 1, "{lines:?}");
    assert!(progress.iter().all(|line| line.chars().count() <= 20 || line.contains("[x]")), "{progress:?}");
    assert!(progress.iter().any(|line| line.ends_with('…')), "{progress:?}");
}
