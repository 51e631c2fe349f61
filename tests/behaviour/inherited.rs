//! What a worker inherits from whoever started it: signals that are ignored or blocked, other people's children.

use crate::support::handler::attempt;
use crate::support::{Process, Sandbox, until};
use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use std::path::Path;

/// A worker that is started by a Python program, after what that does first.
fn started_by(sandbox: &Sandbox, first: &str, options: &[&str], script: &str) -> Process {
    let start = format!("import ctypes, os, signal, sys\n{first}\nos.execv(sys.argv[1], sys.argv[1:])");
    let directory = sandbox.path("");
    let handler = ["--", "sh", "-c", script, "sh", directory.to_str().unwrap()];
    let command = ["-c", &start, env!("CARGO_BIN_EXE_taskq"), "work"];
    sandbox.program("python3", command.iter().chain(options).chain(&handler)).start()
}

/// The signals of a mask that a command finds in its `/proc/self/status`.
fn mask(line: &str) -> u64 {
    u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
}

#[test]
fn commands_succeed_and_fail_where_their_end_was_to_be_ignored() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("exit 0\nexit 3\nexit 0\n").exits(0);
    let first = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)";
    let options = ["--until-empty", "--backoff", "1h", "--threads", "2"];
    let script = r#"grep SigIgn /proc/self/status >>"$1/ignored"; read -r how; $how"#;
    let worked = started_by(&sandbox, first, &options, script).end().exits(0);
    assert_eq!(worked.stderr.matches("Done").count(), 2, "{}", worked.stderr);
    assert_eq!(attempt(&sandbox.broker().take(&sandbox.delay_queue(3_600_000))), Some(2));
    // A command that looks after children of its own needs them.
    let child = 1 << (nix::libc::SIGCHLD - 1);
    assert!(sandbox.lines("ignored").iter().all(|line| mask(line) & child == 0), "still ignored");
}

#[test]
fn signals_are_heard_although_they_were_blocked() {
    for signal in [SIGTERM, SIGINT] {
        let sandbox = Sandbox::new();
        let first = "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))";
        let script = r#"grep SigBlk /proc/self/status >>"$1/blocked""#;
        let worker = started_by(&sandbox, first, &[], script);
        sandbox.taskq(["send", "task"]).run().exits(0);
        worker.says("Done");
        assert_eq!(mask(&sandbox.lines("blocked")[0]), 0);
        worker.signal(signal);
        worker.end().exits(0);
    }
}

#[test]
fn orphans_are_reaped_where_they_come_to_the_worker_and_no_exit_status_is_lost() {
    const TASKS: usize = 20;
    let sandbox = Sandbox::new();
    // PR_SET_CHILD_SUBREAPER: orphans below come here, as they come to the first process of a container.
    let first = "assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0";
    let script = r#"sleep 0.5 >/dev/null 2>&1 & echo $! >>"$1/orphans""#;
    let worker = started_by(&sandbox, first, &["--threads", "2"], script);
    sandbox.taskq(["send", "--lines"]).feed("x\n".repeat(TASKS)).exits(0);
    worker.says_times("Done", TASKS);
    for orphan in sandbox.pids("orphans", TASKS) {
        let entry = format!("/proc/{orphan}");
        until("the end of an orphan", || (!Path::new(&entry).exists()).then_some(()));
    }
    worker.signal(SIGTERM);
    let worked = worker.end().exits(0);
    assert!(!worked.stderr.contains("failed"), "{}", worked.stderr);
}
