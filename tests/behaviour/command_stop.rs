//! Ending commands: time-outs, drains, signals. Whatever a command has started ends with it.

use crate::support::handler::{KillOnDrop, attempt, body, header, is_alive, wait_dead};
use crate::support::{Process, Sandbox};
use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use nix::sys::signal::killpg;
use nix::unistd::Pid;

/// Failed attempts are put aside for the length of the test.
const LATER: [&str; 2] = ["--backoff", "1h"];
const LATER_MS: u64 = 3_600_000;

#[test]
fn a_time_out_ends_the_command_and_its_children() {
    let sandbox = Sandbox::new();
    // One in its group, one in a pipeline, and one in a group of its own: `timeout` makes that.
    let script = r#"
        started='echo $$ >>"$1/pids"; exec sleep 1000'
        sh -c "$started" sh "$1" &
        sleep 1000 | sh -c "$started" sh "$1" &
        timeout 1000 sh -c "$started" sh "$1" &
        echo $$ >>"$1/pids"; wait"#;
    let worker = sandbox.handling(&[&LATER[..], &["--timeout", "2s"]].concat(), script);
    sandbox.taskq(["send", "slow"]).run().exits(0);
    let orphans: Vec<KillOnDrop> = sandbox.pids("pids", 4).into_iter().map(KillOnDrop).collect();
    let failed = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
    assert!(header(&failed, "x-taskq-exit").contains("timed out"), "{failed:?}");
    assert_eq!(attempt(&failed), Some(2));
    for orphan in &orphans {
        assert!(!is_alive(orphan.0), "{} is there beside the retry", orphan.0);
    }
    worker.signal(SIGTERM);
    worker.end().exits(0).never_says("Done");
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let sandbox = Sandbox::new();
    let script =
        r#"trap 'echo ignored >>"$1/signals"' TERM; echo $$ >>"$1/pids"; while :; do sleep 0.1; done"#;
    let _worker = sandbox.handling(&[&LATER[..], &["--timeout", "1s", "--grace", "2s"]].concat(), script);
    sandbox.taskq(["send", "stubborn"]).run().exits(0);
    let orphan = KillOnDrop(sandbox.pids("pids", 1)[0]);
    let failed = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
    assert!(header(&failed, "x-taskq-exit").contains("timed out"), "{failed:?}");
    wait_dead(orphan.0);
    assert_eq!(sandbox.lines("signals"), ["ignored"], "one SIGTERM came first");
}

#[test]
fn a_command_can_clean_up_when_it_timed_out_and_has_failed_all_the_same() {
    let sandbox = Sandbox::new();
    let script =
        r#"trap 'echo cleaned >"$1/cleaned"; echo "the last words" >&2; exit 0' TERM; sleep 1000 & wait"#;
    let _worker = sandbox.handling(&[&LATER[..], &["--timeout", "1s"]].concat(), script);
    sandbox.taskq(["send", "slow"]).run().exits(0);
    let failed = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
    assert_eq!(sandbox.lines("cleaned"), ["cleaned"]);
    assert!(header(&failed, "x-taskq-exit").contains("timed out"), "{failed:?}");
    assert!(header(&failed, "x-taskq-error").contains("the last words"), "{failed:?}");
}

#[test]
fn a_command_that_is_quick_enough_does_not_time_out() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "quick"]).run().exits(0);
    sandbox.work_with(&["--until-empty", "--timeout", "60s"], "exit 0").run().exits(0).says("Done");
}

/// A worker whose command runs until there is a file `go`.
fn busy(sandbox: &Sandbox, options: &[&str]) -> (Process, KillOnDrop) {
    let script =
        r#"echo $$ >>"$1/pids"; until [ -e "$1/go" ]; do sleep 0.1; done; echo finished >"$1/finished""#;
    let worker = sandbox.handling(options, script);
    sandbox.taskq(["send", "task"]).run().exits(0);
    let pid = sandbox.pids("pids", 1)[0];
    (worker, KillOnDrop(pid))
}

/// The task is in its queue, with no attempt used up.
fn is_back(sandbox: &Sandbox) {
    let back = sandbox.broker().take(&sandbox.queue);
    assert_eq!((body(&back), attempt(&back)), ("task".to_owned(), None));
    assert!(back.redelivered);
    assert!(sandbox.broker().get(&sandbox.queue).is_none(), "the task is there twice");
}

#[test]
fn a_drain_waits_for_the_command() {
    for signal in [SIGINT, SIGTERM] {
        let sandbox = Sandbox::new();
        let (worker, orphan) = busy(&sandbox, &[]);
        worker.signal(signal);
        worker.says(signal.as_str());
        assert!(is_alive(orphan.0));
        sandbox.file("go", "");
        worker.end().exits(0).says("Done");
        assert_eq!(sandbox.lines("finished"), ["finished"]);
        assert!(sandbox.broker().get(&sandbox.queue).is_none(), "the task was not acknowledged");
    }
}

#[test]
fn a_second_signal_kills_the_command_and_gives_its_task_back() {
    for (first, second) in [(SIGINT, SIGINT), (SIGTERM, SIGTERM)] {
        let sandbox = Sandbox::new();
        let (worker, orphan) = busy(&sandbox, &["--attempts", "1"]);
        worker.signal(first);
        worker.says(first.as_str());
        worker.signal(second);
        worker.end().exits(128 + second as i32).never_says("Done").never_says("dead");
        wait_dead(orphan.0);
        is_back(&sandbox);
        assert!(sandbox.lines("finished").is_empty());
    }
}

#[test]
fn the_grace_period_ends_the_command_and_gives_its_task_back() {
    let sandbox = Sandbox::new();
    let (worker, orphan) = busy(&sandbox, &["--attempts", "1", "--grace", "1s"]);
    worker.signal(SIGTERM);
    worker.end().exits(143);
    wait_dead(orphan.0);
    is_back(&sandbox);
}

#[test]
fn a_command_that_ignores_sigterm_does_not_outlive_a_forced_stop() {
    let sandbox = Sandbox::new();
    let script = r#"trap '' TERM INT; echo $$ >>"$1/pids"; while :; do sleep 0.1; done"#;
    let worker = sandbox.handling(&["--grace", "1s"], script);
    sandbox.taskq(["send", "task"]).run().exits(0);
    let orphan = KillOnDrop(sandbox.pids("pids", 1)[0]);
    worker.signal(SIGTERM);
    worker.end().exits(143);
    wait_dead(orphan.0);
    is_back(&sandbox);
}

#[test]
fn ctrl_c_at_the_terminal_drains_and_does_not_reach_the_command() {
    let sandbox = Sandbox::new();
    let script = r#"trap 'echo INT >"$1/signals"; exit 1' INT; echo $$ >>"$1/pids"; until [ -e "$1/go" ]; do sleep 0.1; done"#;
    // A process group of its own, which gets the signal as a terminal would send it.
    let directory = sandbox.path("");
    let command = [env!("CARGO_BIN_EXE_taskq"), "work", "--", "sh", "-c", script, "sh"];
    let command = command.into_iter().chain([directory.to_str().unwrap()]);
    let worker = sandbox.program("setsid", command).start();
    worker.says(" [*] Waiting for messages");
    sandbox.taskq(["send", "task"]).run().exits(0);
    let orphan = KillOnDrop(sandbox.pids("pids", 1)[0]);
    killpg(Pid::from_raw(i32::try_from(worker.pid()).unwrap()), SIGINT).unwrap();
    worker.says("SIGINT");
    assert!(is_alive(orphan.0));
    sandbox.file("go", "");
    worker.end().exits(0).says("Done");
    assert!(sandbox.lines("signals").is_empty(), "the command got the signal");
}

#[test]
fn a_drain_takes_no_further_task() {
    let sandbox = Sandbox::new();
    let (worker, _orphan) = busy(&sandbox, &[]);
    sandbox.taskq(["send", "next"]).run().exits(0);
    worker.signal(SIGTERM);
    worker.says("SIGTERM");
    sandbox.file("go", "");
    worker.end().exits(0).never_says("next");
    let next = sandbox.broker().take(&sandbox.queue);
    assert_eq!((body(&next), next.redelivered), ("next".to_owned(), false));
}

#[test]
fn a_command_that_fails_during_a_drain_is_retried_as_always() {
    let sandbox = Sandbox::new();
    let script = r#"echo $$ >>"$1/pids"; until [ -e "$1/go" ]; do sleep 0.1; done; exit 3"#;
    let worker = sandbox.handling(&LATER, script);
    sandbox.taskq(["send", "task"]).run().exits(0);
    let _orphan = KillOnDrop(sandbox.pids("pids", 1)[0]);
    worker.signal(SIGTERM);
    worker.says("SIGTERM");
    sandbox.file("go", "");
    worker.end().exits(0);
    assert_eq!(attempt(&sandbox.broker().take(&sandbox.delay_queue(LATER_MS))), Some(2));
    assert!(sandbox.broker().get(&sandbox.queue).is_none());
}

#[test]
fn a_command_that_is_ended_together_with_its_worker_has_not_failed() {
    // Whoever stops a whole service signals all its processes, in any order, and some exit as shells put it.
    for (options, end) in [
        (&[][..], "(sleep 0.2; kill -TERM $PPID) >/dev/null 2>&1 & kill -TERM $$"),
        (&[], "(sleep 0.2; kill -TERM $PPID) >/dev/null 2>&1 & exit 143"),
        (&[], "kill -TERM $PPID; sleep 0.2; kill -TERM $$"),
        (&["--persistent"], "(sleep 0.2; kill -TERM $PPID) >/dev/null 2>&1 & kill -TERM $$"),
    ] {
        let sandbox = Sandbox::new();
        let worker = sandbox.handling(&[options, &["--attempts", "1"]].concat(), end);
        sandbox.taskq(["send", "task"]).run().exits(0);
        worker.end().exits(0).never_says("dead");
        is_back(&sandbox);
    }
}

#[test]
fn a_command_that_is_ended_alone_has_failed() {
    let sandbox = Sandbox::new();
    let worker = sandbox.handling(&LATER, "kill -TERM $$");
    sandbox.taskq(["send", "task"]).run().exits(0);
    let failed = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
    assert_eq!((attempt(&failed), header(&failed, "x-taskq-exit")), (Some(2), "killed by signal 15".into()));
    worker.signal(SIGTERM);
    worker.end().exits(0);
}
