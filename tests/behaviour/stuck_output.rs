//! Readers of stdout and stderr that do not read: tasks go on, signals are heard, and the process ends.

use crate::support::{Sandbox, until};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, pipe};
use std::time::Duration;

/// What a worker has after its grace period (5 s), and time for a slow machine.
const BOUND: Duration = Duration::from_secs(20);

/// A pipe that is full after a few lines; nobody reads it as long as the reading end is only kept.
fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (reader, writer)
}

fn numbers(count: usize) -> String {
    (0..count).map(|number| number.to_string() + "\n").collect()
}

#[test]
fn tasks_go_on_and_the_worker_stops_although_nobody_reads_its_messages() {
    for handler in [&["--", "true"][..], &["--", "sh", "-c", "echo error >&2"], &[]] {
        let sandbox = Sandbox::new();
        // With output of their own, commands wait for the reader, and so do their tasks.
        let waits = handler.len() > 2;
        sandbox.taskq(["send", "--lines"]).feed(numbers(300)).exits(0);
        let (_reader, writer) = small_pipe();
        let options = ["work", "--grace", "1s"].iter().chain(handler);
        let worker = sandbox.taskq(options).stderr_to(writer).start();
        if waits {
            until("tasks taken", || (sandbox.broker().ready(&sandbox.queue) < 300).then_some(()));
        } else {
            sandbox.broker().wait_ready(&sandbox.queue, 0);
        }
        worker.signal(SIGTERM);
        worker.end_within(BOUND).exits_with_one_of(if waits { &[0, 143] } else { &[0] });
    }
}

#[test]
fn the_grace_period_and_a_second_signal_end_a_worker_whose_messages_nobody_reads() {
    for (grace, signals) in [("1s", 1), ("1h", 2)] {
        let sandbox = Sandbox::new();
        let (_reader, writer) = small_pipe();
        let lines = "x\n".repeat(200) + "last\n";
        sandbox.taskq(["send", "--lines"]).feed(lines).exits(0);
        let script = r#"[ "$(cat)" = last ] || exit 0; echo >"$1/last"; exec sleep 600"#;
        let worker = sandbox.work_with(&["--grace", grace], script).stderr_to(writer).start();
        sandbox.wait_lines("last", 1);
        worker.signal(SIGTERM);
        if signals == 2 {
            // Two signals at once may be one.
            std::thread::sleep(Duration::from_millis(200));
            worker.signal(SIGINT);
        }
        worker.end_within(BOUND).exits(if signals == 2 { 130 } else { 143 });
        assert_eq!(sandbox.broker().take(&sandbox.queue).body, b"last");
    }
}

#[test]
fn ids_that_nobody_reads_do_not_keep_send_from_stopping() {
    for signals in [1, 2] {
        let sandbox = Sandbox::new();
        let (_reader, writer) = small_pipe();
        let mut send = sandbox.taskq(["send", "--lines", "--print-ids"]).stdout_to(writer).start();
        // The input never ends, and more ids than the pipe holds are under way.
        send.write(numbers(2000));
        sandbox.broker().wait_ready(&sandbox.queue, 2000);
        send.signal(SIGTERM);
        if signals == 2 {
            std::thread::sleep(Duration::from_millis(200));
            send.signal(SIGTERM);
        }
        send.end_within(BOUND).exits(143);
    }
}

#[test]
fn all_ids_reach_a_reader_that_takes_its_time_and_they_do_not_pile_up() {
    const TASKS: usize = 200_000;
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let (reader, writer) = small_pipe();
    let lines = sandbox.file("lines", "x\n".repeat(TASKS));
    let send = sandbox
        .taskq(["send", "--lines", "--print-ids", "--file", lines.to_str().unwrap()])
        .stdout_to(writer)
        .start();
    // It waits for the reader instead of keeping the ids of all tasks.
    let mut last = 0;
    until("a pause for the reader", || {
        let sent = sandbox.broker().ready(&sandbox.queue);
        std::thread::sleep(Duration::from_millis(500));
        (sent > 0 && std::mem::replace(&mut last, sent) == sent).then_some(())
    });
    assert!((last as usize) < TASKS, "all were sent");
    let ids: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
    send.end().exits(0);
    assert_eq!(ids.len(), TASKS);
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), TASKS);
}

#[test]
fn the_last_words_reach_a_reader_that_comes_late() {
    let sandbox = Sandbox::new();
    let (mut reader, writer) = small_pipe();
    sandbox.taskq(["send", "--lines"]).feed(numbers(150)).exits(0);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let script = r#"echo; [ "$(cat)" != 149 ] || echo >"$1/last""#;
    let worker = sandbox.work_with(&["--until-empty"], script).stdout_to(full).stderr_to(writer).start();
    sandbox.wait_lines("last", 1);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    worker.end().exits(70);
    assert_eq!(text.matches("Received a message").count(), 150);
    assert!(text.lines().last().unwrap().starts_with("taskq: error: 150 bytes"), "{text}");
}
