//! `taskq send --unsent` with a file that others write to as well, or that cannot be written: no task is lost.

use super::bulk_outage::{SLACK, lines};
use crate::support::{Finished, Invocation, Process, Sandbox, until};
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Nobody listens there, so nothing is confirmed.
const NOWHERE: &str = "amqp://guest:guest@127.0.0.1:1";

/// A bulk send that has given up and saves its input until that ends.
fn giving_up(sandbox: &Sandbox, unsent: &Path) -> Process {
    let args = ["send", "--lines", "--unsent", unsent.to_str().unwrap()];
    let send = sandbox.taskq(args).env("TASKQ_URL", NOWHERE).start();
    send.says("saving the rest of the input");
    send
}

fn end_of(mut send: Process) -> Finished {
    send.close_stdin();
    send.end_within(SLACK)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// What else is in the directory of this file.
fn beside(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|entry| entry != path).collect()
}

#[test]
fn runs_that_share_a_file_keep_each_others_tasks() {
    for last_is_first in [false, true] {
        let sandbox = Sandbox::new();
        let unsent = sandbox.path("unsent");
        let (mut one, mut other) = (giving_up(&sandbox, &unsent), giving_up(&sandbox, &unsent));
        one.write("one\n");
        other.write("other\n");
        if last_is_first {
            std::mem::swap(&mut one, &mut other);
        }
        for send in [one, other] {
            end_of(send).exits(69).says("0 tasks confirmed, 1 not");
        }
        let expected = if last_is_first { "other\none\n" } else { "one\nother\n" };
        assert_eq!(read(&unsent), expected);
        assert_eq!(beside(&unsent), [""; 0].map(PathBuf::from), "a temporary file was left");
    }
}

/// A run that reads this file, and replaces it by what remains of it when it is let go on.
fn replacing(sandbox: &Sandbox, leftover: &Path) -> Process {
    let path = leftover.to_str().unwrap();
    let patience = ["--connect-timeout", "50s", "--retry-for", "50s"];
    let args = ["send", "--lines", "--file", path, "--unsent", path];
    sandbox.taskq(args.iter().chain(&patience)).start()
}

#[test]
fn a_run_that_sends_its_file_keeps_what_others_have_put_there_meanwhile() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    proxy.stall();
    // The last line has no end.
    let leftover = sandbox.file("leftover", "sent 1\nsent 2");
    let send = replacing(&sandbox, &leftover);
    until("an attempt to connect", || (proxy.accepted() > 0).then_some(()));
    let mut other = giving_up(&sandbox, &leftover);
    other.write("other\n");
    end_of(other).exits(69);
    // As a script would do it.
    let append = r#"echo appended >>"$1""#;
    sandbox.program("sh", ["-c", append, "sh", leftover.to_str().unwrap()]).run().exits(0);
    proxy.resume();
    send.end().exits(0);
    assert_eq!(read(&leftover), "other\nappended\n");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["sent 1", "sent 2"]);
}

#[test]
fn a_file_that_was_written_anew_while_it_was_sent_is_kept() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    proxy.stall();
    let leftover = sandbox.file("leftover", "sent 1\nsent 2\n");
    let send = replacing(&sandbox, &leftover);
    until("an attempt to connect", || (proxy.accepted() > 0).then_some(()));
    // The same file, and longer than before.
    fs::write(&leftover, "anew 1\nanew 2\nanew 3\n").unwrap();
    proxy.resume();
    send.end().exits(0);
    let anew = "anew 1\nanew 2\nanew 3\n";
    assert_eq!(read(&leftover), anew);
}

#[test]
fn an_input_on_stdin_is_recognised_as_the_file() {
    let sandbox = Sandbox::new();
    for (number, script, remains) in [
        // The first line is taken by somebody else.
        (1, r#"{ IFS= read -r line; "$1" send --lines --unsent "$2"; } <"$2""#, "not ours\n"),
        (2, r#""$1" send --lines --file - --unsent "$2" <"$2""#, ""),
        (3, r#"ln "$2" "$2.link"; "$1" send --lines --file "$2.link" --unsent "$2""#, ""),
    ] {
        let leftover = sandbox.file(&number.to_string(), "not ours\none\ntwo\n");
        let args = ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq"), leftover.to_str().unwrap()];
        sandbox.program("sh", args).run().exits(0);
        assert_eq!(read(&leftover), remains, "{script}");
    }
}

#[test]
fn unsent_to_stdout_is_a_usage_error() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--unsent", "-", "hello"]).run().exits(2).says("--unsent");
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "something was sent");
}

/// The one file beside `path`, which the message names.
fn kept_beside(path: &Path, finished: &Finished) -> PathBuf {
    let beside = beside(path);
    let [kept] = beside.as_slice() else { panic!("not one file was kept: {beside:?}") };
    assert!(
        finished.stderr.contains(kept.to_str().unwrap()),
        "{} is not named: {}",
        kept.display(),
        finished.stderr
    );
    kept.clone()
}

#[test]
fn what_cannot_be_put_in_place_is_kept_and_named() {
    let sandbox = Sandbox::new();
    let unsent = sandbox.path("unsent");
    let mut send = giving_up(&sandbox, &unsent);
    send.write("one\ntwo\n");
    fs::create_dir(&unsent).unwrap();
    let failed = end_of(send).exits(70).says("0 tasks confirmed, 2 not").says("refused");
    assert_eq!(read(&kept_beside(&unsent, &failed)), "one\ntwo\n");
}

#[test]
fn a_single_task_that_cannot_be_put_in_place_is_kept_and_named() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    proxy.stall();
    let unsent = sandbox.path("unsent");
    let patience = ["--connect-timeout", "2s", "--unsent", unsent.to_str().unwrap()];
    let send = sandbox.taskq(["send", "hello"].iter().chain(&patience)).start();
    until("an attempt to connect", || (proxy.accepted() > 0).then_some(()));
    fs::create_dir(&unsent).unwrap();
    let failed = send.end_within(SLACK).exits(70).says("0 tasks confirmed, 1 not").in_one_line();
    assert_eq!(read(&kept_beside(&unsent, &failed)), "hello");
}

/// A bulk send that nobody confirms, under a limit on the size of files, which stands for a full disk.
fn without_room(sandbox: &Sandbox, limit: &str, options: &[&str]) -> Invocation {
    let script = format!(r#"ulimit -f {limit}; exec "$@""#);
    let start = ["-c", &script, "sh", env!("CARGO_BIN_EXE_taskq"), "send", "--lines", "--unsent"];
    sandbox.program("sh", start.iter().chain(options)).env("TASKQ_URL", NOWHERE)
}

#[test]
fn what_has_no_room_is_counted_and_no_half_task_is_kept() {
    const COUNT: usize = 10_000;
    let sandbox = Sandbox::new();
    let unsent = sandbox.path("unsent");
    let limited = without_room(&sandbox, "100", &[unsent.to_str().unwrap()]).feed(lines(0..COUNT)).exits(70);
    let limited = limited.says("too large").never_says("panicked");
    let kept = read(&kept_beside(&unsent, &limited));
    assert!(kept.len() > 10_000 && lines(0..COUNT).starts_with(&kept), "{} bytes", kept.len());
    assert!(kept.ends_with('\n'), "a part of a task");
    // What had not come yet when the file was full is not taken.
    let (kept, failed) = (kept.lines().count(), counted(&limited));
    limited.says(&format!("; {kept} of them are kept in ")).says(&format!(
        ", {} are lost: nothing is kept from line {} on",
        failed - kept,
        kept + 1
    ));
}

/// How many tasks were not confirmed.
fn counted(finished: &Finished) -> usize {
    let (_, counts) = finished.stderr.split_once("0 tasks confirmed, ").unwrap();
    counts.split_once(" not").unwrap().0.parse().unwrap()
}

#[test]
fn an_input_without_end_is_no_longer_taken_when_there_is_no_room() {
    let sandbox = Sandbox::new();
    let unsent = sandbox.path("unsent");
    let script = r#"yes task | { ulimit -f 100; exec "$1" send --lines --unsent "$2"; }"#;
    let args = ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq"), unsent.to_str().unwrap()];
    // `yes` ends when its pipe is closed, and sh when both have ended.
    let limited = sandbox.program("sh", args).env("TASKQ_URL", NOWHERE).run().exits(70);
    let kept = read(&kept_beside(&unsent, &limited)).lines().count();
    let failed = counted(&limited);
    // What was read ahead.
    assert!((failed - kept) * "task\n".len() <= 512 * 1024, "{failed} not confirmed, {kept} kept");
    limited.says(&format!("nothing was taken of the input from line {} on", failed + 1));
}

#[test]
fn a_slow_input_is_no_longer_taken_when_there_is_no_room() {
    let sandbox = Sandbox::new();
    let unsent = sandbox.path("unsent");
    // Blocks of 512 or 1024 bytes.
    let mut send = without_room(&sandbox, "1", &[unsent.to_str().unwrap()]).start();
    send.says("saving the rest of the input");
    for number in 0..3 {
        // Closed after the first or the second.
        let _ = send.try_write(format!("{number}{}\n", "x".repeat(399)).as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let limited = send.end_within(SLACK).exits(70).says("lost: nothing is kept from line ");
    let kept = read(&kept_beside(&unsent, &limited)).lines().count();
    assert_eq!(counted(&limited), kept + 1);
}

#[test]
fn what_is_in_a_file_is_not_lost_where_there_is_no_room() {
    const COUNT: usize = 10_000;
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("in")).unwrap();
    let tasks = sandbox.file("in/tasks", lines(0..COUNT));
    let path = tasks.to_str().unwrap();
    let unsent = sandbox.path("unsent");
    let limited = without_room(&sandbox, "100", &[unsent.to_str().unwrap(), "--file", path]).run().exits(70);
    assert!(
        limited.stderr.contains("are in the input only: nothing is kept from line "),
        "{}",
        limited.stderr
    );
    // A part of it beside all of it would be sent twice.
    let limited = without_room(&sandbox, "50", &[path, "--file", path]).run().exits(70);
    limited.says("left as it was");
    assert_eq!(read(&tasks), lines(0..COUNT));
    assert_eq!(beside(&tasks), [""; 0].map(PathBuf::from), "a temporary file was left");
}

#[test]
fn an_earlier_file_is_not_held_in_memory() {
    const EARLIER: u64 = 192 * 1024 * 1024;
    let sandbox = Sandbox::new();
    let unsent = sandbox.file("unsent", "");
    File::options().write(true).open(&unsent).unwrap().set_len(EARLIER).unwrap();
    // In KiB, and for all of its data.
    let script = r#"ulimit -d 131072; exec "$1" send --lines --unsent "$2""#;
    let args = ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq"), unsent.to_str().unwrap()];
    sandbox.program("sh", args).env("TASKQ_URL", NOWHERE).feed("one\n").exits(69);
    // A line end for what had none.
    assert_eq!(fs::metadata(&unsent).unwrap().len(), EARLIER + 1 + 4);
}

#[test]
fn a_directory_that_is_locked_for_long_is_not_waited_for_after_a_signal() {
    let sandbox = Sandbox::new();
    let unsent = sandbox.path("unsent");
    let directory = File::open(unsent.parent().unwrap()).unwrap();
    directory.lock().unwrap();
    let mut send = giving_up(&sandbox, &unsent);
    send.write("one\n");
    send.close_stdin();
    send.says("waiting for another program");
    send.signal(Signal::SIGTERM);
    let stopped = send.end_within(SLACK).exits(143).says("0 tasks confirmed, 1 not");
    assert_eq!(read(&kept_beside(&unsent, &stopped)), "one\n");
}
