//! Output of commands that nobody can take: their tasks are done, and the loss is told.

use crate::support::{Finished, Invocation, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::fs::File;
use std::io::{BufRead, BufReader, pipe};

const TOLD: &str = "cannot pass on what commands write to stdout";

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn tasks(sandbox: &Sandbox, count: usize) {
    sandbox.taskq(["send", "--lines"]).feed("x\n".repeat(count)).exits(0);
}

/// Works all tasks, each of which prints "hi".
fn echoing(sandbox: &Sandbox, options: &[&str]) -> Invocation {
    sandbox.taskq(["work"].iter().chain(options).chain(&["--", "echo", "hi"]))
}

fn told_once(worked: Finished) -> Finished {
    assert_eq!(worked.stderr.matches(TOLD).count(), 1, "{}", worked.stderr);
    worked
}

#[test]
fn a_bounded_run_whose_output_has_no_room_ends_with_70() {
    for options in [&["--until-empty"][..], &["--max-tasks", "3"]] {
        let sandbox = Sandbox::new();
        tasks(&sandbox, 3);
        let worked = told_once(echoing(&sandbox, options).stdout_to(full()).run().exits(70));
        worked.says("taskq: error: 9 bytes that commands wrote to stdout are lost: No space left on device");
        sandbox.broker().wait_ready(&sandbox.queue, 0);
    }
}

#[test]
fn a_bounded_run_whose_reader_has_gone_ends_with_70() {
    let sandbox = Sandbox::new();
    tasks(&sandbox, 3);
    let (reader, writer) = pipe().unwrap();
    let script = r#"echo hi; until [ -e "$1/gone" ]; do sleep 0.05; done"#;
    let worker = sandbox.work_with(&["--max-tasks", "3"], script).stdout_to(writer).start();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    assert_eq!(line, "hi\n");
    sandbox.file("gone", "");
    told_once(worker.end().exits(70)).says("6 bytes that commands wrote to stdout are lost: nobody reads");
}

#[test]
fn a_bounded_run_whose_errors_have_no_room_ends_with_70() {
    let sandbox = Sandbox::new();
    tasks(&sandbox, 1);
    sandbox.work_with(&["--until-empty"], "echo hi >&2").stderr_to(full()).run().exits(70);
}

#[test]
fn a_worker_that_was_told_to_stop_says_what_was_lost() {
    let sandbox = Sandbox::new();
    let worker = echoing(&sandbox, &[]).stdout_to(full()).start();
    worker.says(" [*] Waiting for messages");
    tasks(&sandbox, 2);
    worker.says_times("Done", 2).signal(SIGTERM);
    told_once(worker.end().exits(0)).says("warning: 6 bytes that commands wrote to stdout are lost");
}
