//! `work --output-dir`: what the command of each attempt has written is in files of its own.

use crate::support::handler::{KillOnDrop, header};
use crate::support::{Invocation, Sandbox, until};
use amiquip::AmqpProperties;
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, pipe};
use std::os::unix::fs::{PermissionsExt, symlink};

const TOLD: &str = "taskq: warning: cannot write to ";
const MOST: usize = 10 * 1024 * 1024;

/// The name of the directory in that of the test.
const DIR: &str = "output";

fn options<'o>(directory: &'o str, more: &[&'o str]) -> Vec<&'o str> {
    [&["--output-dir", directory], more].concat()
}

/// A worker that ends when the queue is empty.
fn working(sandbox: &Sandbox, more: &[&str], script: &str) -> Invocation {
    let directory = sandbox.path(DIR);
    let more = [&["--until-empty"], more].concat();
    sandbox.work_with(&options(directory.to_str().unwrap(), &more), script)
}

fn send(sandbox: &Sandbox, id: &str, body: &str) {
    sandbox.taskq(["send", "--id", id, body]).run().exits(0);
}

/// What is in the directory.
fn files(sandbox: &Sandbox) -> BTreeMap<String, String> {
    let files = fs::read_dir(sandbox.path(DIR)).unwrap().map(|file| file.unwrap());
    files
        .map(|file| {
            let content = String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned();
            (file.file_name().into_string().unwrap(), content)
        })
        .collect()
}

fn expected(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
}

#[test]
fn each_attempt_has_what_it_printed_and_nothing_where_it_printed_nothing() {
    let sandbox = Sandbox::new();
    send(&sandbox, "one", "fails");
    send(&sandbox, "two", "silent");
    let script = r#"
        [ "$(cat)" = silent ] && exit
        printf 'out %s\nno end' "$TASKQ_ATTEMPT"
        [ "$TASKQ_ATTEMPT" = 2 ] && exit
        echo "err $TASKQ_ATTEMPT" >&2
        exit 1"#;
    let directory = sandbox.path(DIR);
    let more = ["--max-tasks", "3", "--backoff", "500ms", "--attempts", "2"];
    let worked = sandbox.work_with(&options(directory.to_str().unwrap(), &more), script).run().exits(0);
    let there = [("one.1.err", "err 1\n"), ("one.1.out", "out 1\nno end"), ("one.2.out", "out 2\nno end")];
    assert_eq!(files(&sandbox), expected(&there));
    for (path, mode) in [(directory.clone(), 0o700), (directory.join("one.1.out"), 0o600)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
    // Besides.
    assert_eq!(worked.stdout_text(), "out 1\nno endout 2\nno end");
    worked.says("err 1\n");
}

#[test]
fn without_showing_it_the_files_have_all_the_same() {
    let sandbox = Sandbox::new();
    send(&sandbox, "one", "x");
    let script = "echo out; echo err >&2; exit 1";
    let worked = working(&sandbox, &["--output", "none", "--attempts", "1"], script)
        .run()
        .exits(1)
        .never_says("err\n");
    assert_eq!(worked.stdout_text(), "");
    assert_eq!(files(&sandbox), expected(&[("one.1.err", "err\n"), ("one.1.out", "out\n")]));
    assert_eq!(header(&sandbox.broker().take(&sandbox.dead_queue()), "x-taskq-error"), "err\n");
}

#[test]
fn an_id_leads_nowhere_else() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(255);
    sandbox.broker().declare(&sandbox.queue);
    for id in ["../escaped", "/etc/passwd", "..", "nul\0here", &long] {
        let properties = AmqpProperties::default().with_message_id(id.to_owned());
        sandbox.broker().publish_with(&sandbox.queue, id, properties);
    }
    sandbox.broker().publish(&sandbox.queue, "hello");
    working(&sandbox, &["--output", "tag"], "cat").run().exits(0);
    let there = files(&sandbox);
    for (name, content) in [
        ("%2E.%2Fescaped.1.out", "../escaped"),
        ("%2Fetc%2Fpasswd.1.out", "/etc/passwd"),
        ("%2E..1.out", ".."),
        ("nul%00here.1.out", "nul\0here"),
        ("@9e4e330444ee1017.1.out", "hello"),
    ] {
        assert_eq!(there.get(name).map(String::as_str), Some(content), "{name} in {there:?}");
    }
    let digested = there.iter().find(|(_, content)| **content == long).unwrap().0;
    assert!(digested.len() == 23 && digested.starts_with('@'), "{digested}");
    assert_eq!(there.len(), 6);
    assert!(!sandbox.path("escaped.1.out").exists());
}

#[test]
fn the_same_attempt_again_adds_to_its_files() {
    let sandbox = Sandbox::new();
    let directory = sandbox.path(DIR);
    let script = r#"echo run; [ -e "$1/again" ] || exec sleep 1000"#;
    let worker = sandbox.handling(&options(directory.to_str().unwrap(), &[]), script);
    send(&sandbox, "one", "x");
    until("the first run's line", || fs::read(directory.join("one.1.out")).ok().filter(|it| it == b"run\n"));
    worker.signal(SIGKILL);
    worker.end();
    sandbox.file("again", "");
    sandbox.broker().wait_ready(&sandbox.queue, 1);
    working(&sandbox, &[], script).run().exits(0);
    assert_eq!(files(&sandbox), expected(&[("one.1.out", "run\nrun\n")]));
}

#[test]
fn a_file_keeps_the_end_of_what_is_too_much() {
    let sandbox = Sandbox::new();
    send(&sandbox, "one", "x");
    // Without a single line end, and in lines.
    let script = "head -c 30000000 /dev/zero; seq 5000000 >&2";
    let worked = working(&sandbox, &["--output", "none"], script).run().exits(0);
    worked.never_says(TOLD);
    let [out, err] =
        ["out", "err"].map(|end| fs::read(sandbox.path(DIR).join(format!("one.1.{end}"))).unwrap());
    for (file, name) in [(&out, "out"), (&err, "err")] {
        assert!((MOST / 2 - 1024..=MOST).contains(&file.len()), "{name} has {} bytes", file.len());
        assert!(file.starts_with(b"[taskq: the beginning is missing]\n"), "{name}");
    }
    let lines = String::from_utf8(err).unwrap();
    let numbers: Vec<u32> = lines.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a + 1 == *b) && numbers.last() == Some(&5_000_000));
}

#[test]
fn a_persistent_command_has_files_for_stderr_alone_and_only_while_it_has_a_task() {
    let sandbox = Sandbox::new();
    let directory = sandbox.path(DIR);
    let script = r#"
        echo started >&2
        while IFS= read -r task; do
            echo working >&2
            echo OK
            while [ -d "$1" ] && [ ! -e "$1/acknowledged" ]; do sleep 0.05; done
            rm "$1/acknowledged"
            echo 'between tasks' >&2
        done"#;
    let worker = sandbox.handling(&options(directory.to_str().unwrap(), &["--persistent"]), script);
    send(&sandbox, "one", "x");
    worker.says("Done");
    sandbox.file("acknowledged", "");
    worker.says("between tasks\n");
    send(&sandbox, "two", "x");
    worker.says_times("Done", 2).signal(SIGKILL);
    worker.end();
    assert_eq!(files(&sandbox), expected(&[("one.1.err", "started\nworking\n"), ("two.1.err", "working\n")]));
}

#[test]
fn what_is_left_in_the_background_writes_to_the_file_of_its_task() {
    let sandbox = Sandbox::new();
    let directory = sandbox.path(DIR);
    let script = r#"setsid sh -c 'echo $$ >>"$1/pids"; while [ -d "$1" ] && [ ! -e "$1/go" ]; do sleep 0.05; done; echo late' sh "$1" & echo early"#;
    let worker = sandbox.handling(&options(directory.to_str().unwrap(), &[]), script);
    send(&sandbox, "one", "x");
    worker.says("Done");
    let _orphan = KillOnDrop(sandbox.pids("pids", 1)[0]);
    sandbox.file("go", "");
    let file = directory.join("one.1.out");
    until("the late line", || fs::read(&file).ok().filter(|content| content == b"early\nlate\n"));
}

/// A limit on the size of files stands for a disk that is full.
fn without_room(sandbox: &Sandbox, options: &[&str], script: &str) -> Invocation {
    let directory = sandbox.path(DIR);
    let shell =
        ["-c", r#"ulimit -f 8; exec "$@""#, "sh", env!("CARGO_BIN_EXE_taskq"), "work", "--output-dir"];
    let start = shell.iter().copied().chain([directory.to_str().unwrap()]);
    sandbox.program("sh", start.chain(options.iter().copied()).chain(["--", "sh", "-c", script]))
}

#[test]
fn a_disk_that_is_full_costs_no_task_and_a_bounded_run_ends_with_70() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("x\n".repeat(3)).exits(0);
    let script = "yes 1234567 | head -n 10000; echo small >&2";
    let worked = without_room(&sandbox, &["--until-empty"], script).run().exits(70);
    assert_eq!(worked.stderr.matches(TOLD).count(), 1, "{}", worked.stderr);
    assert_eq!(worked.stdout.len(), 3 * 80_000);
    let kept: usize = files(&sandbox)
        .iter()
        .filter(|(name, _)| name.rsplit('.').next() == Some("out"))
        .map(|it| it.1.len())
        .sum();
    assert!(kept > 0);
    let lost = 3 * 80_000 - kept;
    worked
        .says(&format!("taskq: error: {lost} bytes for the files in {}", sandbox.path(DIR).display()))
        .says("are lost: File too large")
        .never_says("panicked");
    sandbox.broker().wait_ready(&sandbox.queue, 0);
    // Its other file had room.
    assert_eq!(files(&sandbox).values().filter(|content| *content == "small\n").count(), 3);
}

#[test]
fn a_worker_without_a_bound_says_at_its_end_what_is_lost() {
    let sandbox = Sandbox::new();
    let script = "yes 1234567 | head -n 10000";
    let worker = without_room(&sandbox, &[], script).start();
    worker.says(" [*] Waiting for messages");
    send(&sandbox, "one", "x");
    worker.says("Done").says(TOLD).signal(SIGTERM);
    worker.end().exits(0).says("warning: ").says(" bytes for the files in ");
}

#[test]
fn where_stdout_is_closed_the_file_is_whole() {
    let sandbox = Sandbox::new();
    send(&sandbox, "one", "x");
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let worked = working(&sandbox, &[], "yes 1234567 | head -n 10000").stdout_to(writer).run();
    worked.exits(70).says("80000 bytes that commands wrote to stdout are lost: nobody reads it");
    assert_eq!(files(&sandbox)["one.1.out"], "1234567\n".repeat(10_000));
}

#[test]
fn what_somebody_put_in_the_place_of_a_file_is_not_written_to() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path(DIR)).unwrap();
    let elsewhere = sandbox.file("elsewhere", "as it was");
    symlink(&elsewhere, sandbox.path(DIR).join("one.1.out")).unwrap();
    send(&sandbox, "one", "x");
    let worked = working(&sandbox, &[], "echo hi").run().exits(70);
    worked
        .says("one.1.out what a command prints: it is a symbolic link; its task goes on")
        .says("Done (id one");
    assert_eq!(fs::read(elsewhere).unwrap(), b"as it was");
}

#[test]
fn a_directory_that_cannot_be_one_is_told_at_the_start() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("file", "");
    for directory in [sandbox.path("not/there"), file, "/proc".into()] {
        let directory = directory.to_str().unwrap();
        let refused = sandbox.work_with(&options(directory, &[]), "true").run().exits(78).in_one_line();
        refused.says(directory).says("--output-dir");
    }
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "something happened");
}

#[test]
fn a_reader_of_stdout_that_sleeps_does_not_keep_a_line_from_its_file() {
    let sandbox = Sandbox::new();
    let (mut reader, writer) = pipe().unwrap();
    send(&sandbox, "one", "x");
    let file = sandbox.path(DIR).join("one.1.out");
    let worker = working(&sandbox, &[], "head -c 100000 /dev/zero; echo end").stdout_to(writer).start();
    // More than a pipe holds; what the worker could read of it is in the file already.
    until("the file", || fs::metadata(&file).ok().filter(|there| there.len() >= 65_536));
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    worker.end().exits(0);
    assert_eq!(fs::read(file).unwrap(), read);
}
