//! What the exit status of a command makes of its task.

use crate::support::handler::{attempt, body, header};
use crate::support::{Broker, Process, Sandbox};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Exits with the number in the body, or is killed by the signal in it.
const AS_TOLD: &str =
    r#"read -r kind number; case $kind in exit) exit "$number";; signal) kill -s "$number" $$;; esac"#;

/// Failed attempts are put aside for the length of the test.
const LATER: [&str; 3] = ["--until-empty", "--backoff", "1h"];
const LATER_MS: u64 = 3_600_000;

fn send(sandbox: &Sandbox, bodies: &[&str]) {
    sandbox.taskq(["send", "--lines"]).feed(bodies.join("\n")).exits(0);
}

/// Body to how it ended, for all messages of a queue.
fn ends(broker: &Broker, queue: &str) -> BTreeMap<String, String> {
    broker.drain(queue).iter().map(|message| (body(message), header(message, "x-taskq-exit"))).collect()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(body, end)| ((*body).to_owned(), (*end).to_owned())).collect()
}

#[test]
fn success_failure_and_hopelessness_are_told_apart() {
    let sandbox = Sandbox::new();
    send(&sandbox, &["exit 0", "exit 65", "exit 75", "exit 1", "exit 255", "signal KILL", "signal SEGV"]);
    // 1: a task ended dead.
    sandbox.work_with(&LATER, AS_TOLD).run().exits(1);
    let broker = sandbox.broker();
    assert_eq!(broker.ready(&sandbox.queue), 0);
    assert_eq!(ends(&broker, &sandbox.dead_queue()), map(&[("exit 65", "exit status 65")]));
    let failed = [
        ("exit 75", "exit status 75"),
        ("exit 1", "exit status 1"),
        ("exit 255", "exit status 255"),
        ("signal KILL", "killed by signal 9"),
        ("signal SEGV", "killed by signal 11"),
    ];
    assert_eq!(ends(&broker, &sandbox.delay_queue(LATER_MS)), map(&failed));
}

#[test]
fn exit_statuses_mean_what_the_user_says() {
    let sandbox = Sandbox::new();
    let bodies = ["exit 0", "exit 3", "exit 4", "exit 65", "exit 126", "exit 127", "exit 9"];
    send(&sandbox, &bodies);
    let rules = ["0=retry", "3=done", "4=dead", "65=retry", "126=dead", "127=retry", "9=done", "9=dead"];
    let rules: Vec<&str> = rules.iter().flat_map(|rule| ["--on-exit", rule]).collect();
    sandbox.work_with(&[&LATER[..], &rules].concat(), AS_TOLD).run().exits(1);
    let broker = sandbox.broker();
    assert_eq!(broker.ready(&sandbox.queue), 0);
    let bodies_of = |queue: &str| ends(&broker, queue).into_keys().collect::<Vec<_>>();
    assert_eq!(bodies_of(&sandbox.dead_queue()), ["exit 126", "exit 4", "exit 9"]);
    assert_eq!(bodies_of(&sandbox.delay_queue(LATER_MS)), ["exit 0", "exit 127", "exit 65"]);
}

#[test]
fn an_on_exit_rule_for_a_status_leaves_signals_alone() {
    let sandbox = Sandbox::new();
    send(&sandbox, &["signal KILL"]);
    // 137 is what a shell makes of it.
    let rules = ["--on-exit", "137=dead", "--on-exit", "9=dead"];
    sandbox.work_with(&[&LATER[..], &rules].concat(), AS_TOLD).run().exits(0);
    sandbox.broker().wait_ready(&sandbox.delay_queue(LATER_MS), 1);
}

/// The worker said why it stopped, and all tasks are in their queue with no attempt used up.
fn stopped_for_configuration(
    sandbox: &Sandbox,
    worked: crate::support::Finished,
    named: &str,
    tasks: &[&str],
) {
    let worked = worked.exits(78);
    assert!(worked.stderr.contains(named), "{named:?} is not named: {}", worked.stderr);
    assert!(!worked.stderr.contains("panicked"), "{}", worked.stderr);
    // The other threads do not try in vain as well, until the task looks like one that brings workers down.
    for task in tasks {
        let received = format!("message: {task} (");
        assert_eq!(worked.stderr.matches(&received).count(), 1, "{}", worked.stderr);
    }
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.queue, u32::try_from(tasks.len()).unwrap());
    let mut left: Vec<_> =
        broker.drain(&sandbox.queue).iter().map(|task| (body(task), attempt(task))).collect();
    left.sort();
    assert_eq!(left, tasks.iter().map(|task| ((*task).to_owned(), None)).collect::<Vec<_>>());
    for queue in [sandbox.dead_queue(), sandbox.delay_queue(5000)] {
        assert_eq!(sandbox.broker().counts(&queue).map_or(0, |(ready, _)| ready), 0, "{queue}");
    }
}

#[test]
fn a_command_that_reports_a_missing_one_for_two_tasks_stops_the_worker() {
    for (status, attempts) in [("126", "1"), ("127", "5")] {
        let sandbox = Sandbox::new();
        let tasks = ["one", "two"];
        send(&sandbox, &tasks);
        let script = format!("echo no-such-interpreter >&2; exit {status}");
        let worked = sandbox.work_with(&["--until-empty", "--attempts", attempts], &script).run();
        stopped_for_configuration(&sandbox, worked, status, &tasks);
    }
}

#[test]
fn a_command_that_is_missing_for_one_task_only_has_failed_that_one() {
    for (bodies, done, option) in [
        (&["no-such-command", "exit 0", "exit 0"][..], 2, "--until-empty"),
        (&["exit 0", "no-such-command", "no-such-command-either"], 1, "--until-empty"),
        (&["no-such-command"], 0, "--until-empty"),
        // It goes back once, which is no task of those that were asked for.
        (&["no-such-command"], 0, "--max-tasks=1"),
    ] {
        let sandbox = Sandbox::new();
        send(&sandbox, bodies);
        // Each body is a script.
        let command = ["work", option, "--backoff", "1h", "--", "sh"];
        let worked = sandbox.taskq(command).run().exits(0);
        assert_eq!(worked.stderr.matches("Done (").count(), done, "{}", worked.stderr);
        let broker = sandbox.broker();
        assert_eq!(broker.ready(&sandbox.queue), 0);
        let failed = broker.drain(&sandbox.delay_queue(LATER_MS));
        assert_eq!(failed.len(), bodies.len() - done);
        for task in &failed {
            assert_eq!((attempt(task), header(task, "x-taskq-exit")), (Some(2), "exit status 127".into()));
        }
    }
}

fn executable(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn a_command_that_cannot_be_executed_is_noticed_before_the_first_task() {
    let sandbox = Sandbox::new();
    send(&sandbox, &["waits"]);
    let plain = sandbox.file("plain", "#!/bin/sh\nexit 0\n");
    executable(&plain, 0o644);
    let directory = sandbox.path("directory");
    std::fs::create_dir(&directory).unwrap();
    let commands = [
        "/nonexistent/handler",
        "no-such-command-anywhere",
        plain.to_str().unwrap(),
        directory.to_str().unwrap(),
        "",
    ];
    for command in commands {
        for mode in ["--until-empty", "--persistent"] {
            let refused = sandbox.taskq(["work", mode, "--", command, "argument"]).run();
            let refused = refused.exits(78).in_one_line().never_says("[*]");
            assert!(refused.stderr.contains(command), "{command:?} is not named: {}", refused.stderr);
        }
    }
    let task = sandbox.broker().take(&sandbox.queue);
    assert!(!task.redelivered, "the task was taken");
}

#[test]
fn a_command_that_goes_missing_later_stops_the_worker() {
    for break_it in [
        (|path: &Path| std::fs::remove_file(path).unwrap()) as fn(&Path),
        |path| executable(path, 0o600),
        |path| std::fs::write(path, "#!/nonexistent/interpreter\n").unwrap(),
    ] {
        let sandbox = Sandbox::new();
        let handler = sandbox.file("handler", "#!/bin/sh\nexit 0\n");
        executable(&handler, 0o755);
        let worker = sandbox.worker(["--threads", "2", "--", handler.to_str().unwrap()]);
        send(&sandbox, &["first"]);
        worker.says("Done");
        break_it(&handler);
        send(&sandbox, &["waits"]);
        stopped_for_configuration(&sandbox, worker.end(), handler.to_str().unwrap(), &["waits"]);
    }
}

/// A worker whose command has done a task and is gone when the next one comes; both forms end after each task.
fn with_a_command_that_is_gone(sandbox: &Sandbox, form: &[&str], script: &str) -> (Process, PathBuf) {
    let handler = sandbox.file("handler", script);
    executable(&handler, 0o755);
    let worker = sandbox.worker(form.iter().chain(&["--", handler.to_str().unwrap()]));
    send(sandbox, &["first"]);
    worker.says("Done");
    let away = handler.with_extension("away");
    std::fs::rename(&handler, away).unwrap();
    send(sandbox, &["waits"]);
    worker.says("cannot run a task now: ").says("then the worker stops");
    (worker, handler)
}

const FORMS: [(&[&str], &str); 2] = [
    (&["--attempts", "1"], "#!/bin/sh\nexit 0\n"),
    (&["--attempts", "1", "--persistent"], "#!/bin/sh\nread -r _\necho OK\n"),
];

#[test]
fn a_command_that_is_missing_for_a_moment_is_waited_for() {
    for (form, script) in FORMS {
        let sandbox = Sandbox::new();
        let (worker, handler) = with_a_command_that_is_gone(&sandbox, form, script);
        std::thread::sleep(Duration::from_millis(500));
        std::fs::rename(handler.with_extension("away"), &handler).unwrap();
        worker.says_times("Done", 2).signal(Signal::SIGTERM);
        let stopped = worker.end().exits(0);
        assert_eq!(stopped.stderr.matches("message: waits (").count(), 1, "{}", stopped.stderr);
        assert_eq!(stopped.stderr.matches("cannot run a task").count(), 1, "{}", stopped.stderr);
        assert!(sandbox.broker().get(&sandbox.dead_queue()).is_none());
    }
}

#[test]
fn a_worker_that_waits_for_its_command_can_be_stopped() {
    for (form, script) in FORMS {
        let sandbox = Sandbox::new();
        let (worker, _) = with_a_command_that_is_gone(&sandbox, form, script);
        worker.signal(Signal::SIGTERM);
        worker.end().exits(0);
        let task = sandbox.broker().take(&sandbox.queue);
        assert_eq!((body(&task), attempt(&task)), ("waits".to_owned(), None));
    }
}
