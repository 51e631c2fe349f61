//! A machine that is short of descriptors: no task fails for that reason, and no broker is reported as unavailable.

use crate::support::{Invocation, Process, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::process::Command;

const SHORT: &str = "this process has as many files open as it may";

/// taskq under these limits, as `ulimit` takes them.
fn limited(sandbox: &Sandbox, limits: &str, options: &[&str]) -> Invocation {
    let script = format!(r#"ulimit {limits}; exec "$@""#);
    let start = ["-c", &script, "sh", env!("CARGO_BIN_EXE_taskq")];
    sandbox.program("sh", start.iter().chain(options))
}

/// Changes how many descriptors a running process may have; those that it has stay.
fn limit(process: &Process, descriptors: u32) {
    let arguments = [format!("--pid={}", process.pid()), format!("--nofile={descriptors}:")];
    assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
}

fn tasks(sandbox: &Sandbox, count: usize) {
    sandbox.taskq(["send", "--lines"]).feed("x\n".repeat(count)).exits(0);
}

#[test]
fn the_limit_is_raised_for_many_threads() {
    let sandbox = Sandbox::new();
    tasks(&sandbox, 60);
    let options = ["work", "--threads", "30", "--attempts", "1", "--until-empty", "--", "sleep", "0.5"];
    limited(&sandbox, "-Sn 128", &options).run().exits(0).never_says(SHORT);
}

#[test]
fn commands_inherit_no_more_than_the_threads_need() {
    let sandbox = Sandbox::new();
    let limit_of = |soft: u32| {
        tasks(&sandbox, 1);
        let options = ["work", "--until-empty", "--", "sh", "-c", "ulimit -Sn"];
        let worked = limited(&sandbox, &format!("-Sn {soft}"), &options).run().exits(0);
        worked.stdout_text().trim().parse::<u32>().unwrap()
    };
    assert_eq!(limit_of(1024), 1024);
    assert!((129..1024).contains(&limit_of(128)));
}

#[test]
fn more_threads_than_the_machine_allows_are_refused_with_the_numbers() {
    let sandbox = Sandbox::new();
    tasks(&sandbox, 3);
    let options = ["work", "--threads", "30", "--", "true"];
    let refused = limited(&sandbox, "-n 200", &options).run().exits(78).in_one_line();
    refused
        .says("30 threads that run commands need up to ")
        .says("and 200 are allowed")
        .says("at most 9 threads");
    assert_eq!(sandbox.broker().ready(&sandbox.queue), 3);
}

#[test]
fn where_not_one_thread_has_room_fewer_threads_are_not_proposed() {
    let sandbox = Sandbox::new();
    for (threads, told) in
        [("1", "1 thread that runs commands needs"), ("4", "4 threads that run commands need")]
    {
        let options = ["work", "--threads", threads, "--", "true"];
        let refused = limited(&sandbox, "-n 64", &options).run().exits(78).in_one_line();
        refused.says(told).says("raise that limit to ").never_says("work with");
    }
}

#[test]
fn a_shortage_uses_up_no_attempt_and_leaves_the_tasks_to_others() {
    for options in
        [&["--", "true"][..], &["--persistent", "--", "sh", "-c", "while read -r _; do echo OK; done"]]
    {
        let sandbox = Sandbox::new();
        let all = ["--threads", "2", "--attempts", "1"];
        let short = sandbox.worker(all.iter().chain(options));
        limit(&short, 3);
        tasks(&sandbox, 6);
        short.says(SHORT);
        // The tasks that it had taken are ready again.
        sandbox.broker().wait_ready(&sandbox.queue, 6);
        let other = sandbox.worker(all.iter().chain(options));
        other.says_times("Done", 6).signal(SIGTERM);
        other.end().exits(0);
        limit(&short, 1024);
        tasks(&sandbox, 6);
        short.says_times("Done", 6).signal(SIGTERM);
        let stopped = short.end().exits(0);
        assert_eq!(stopped.stderr.matches(SHORT).count(), 1, "{}", stopped.stderr);
        assert!(!stopped.stderr.contains("attempt 1 of"), "{}", stopped.stderr);
        assert!(sandbox.broker().get(&sandbox.dead_queue()).is_none());
    }
}

/// It is neither idle nor done, and somebody waits for its end.
#[test]
fn a_bounded_run_that_can_run_nothing_ends_with_75() {
    for bound in [&["--until-empty"][..], &["--idle-timeout", "2s"]] {
        let sandbox = Sandbox::new();
        let worker =
            sandbox.handling(&[bound, &["--threads", "1"]].concat(), r#"sleep 0.1; echo >>"$1/runs""#);
        tasks(&sandbox, 20);
        sandbox.wait_lines("runs", 1);
        limit(&worker, 5);
        worker.end().exits(75).says(SHORT).says("no task can be run on this machine now");
        let done = u32::try_from(sandbox.lines("runs").len()).unwrap();
        sandbox.broker().wait_ready(&sandbox.queue, 20 - done);
    }
}

#[test]
fn a_worker_that_cannot_connect_for_want_of_descriptors_does_so_when_there_are_some() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--", "true"]);
    limit(&worker, 3);
    proxy.cut();
    worker.says(&format!("cannot connect: {SHORT}"));
    limit(&worker, 1024);
    worker.says("connected again to");
    tasks(&sandbox, 1);
    worker.says("Done").signal(SIGTERM);
    worker.end().exits(0).never_says("Is RabbitMQ").never_says("a fault of");
}

#[test]
fn no_broker_is_blamed_where_there_are_no_descriptors() {
    let sandbox = Sandbox::new();
    let mut lacking = 0;
    for descriptors in 5..40 {
        for command in [&["send", "x"][..], &["work", "--until-empty"], &["dead", "list"]] {
            // At a name, not at an address: looking it up takes some as well.
            let url = sandbox.url().replace("127.0.0.1", "localhost");
            let limits = format!("-n {descriptors}");
            let ended = limited(&sandbox, &limits, command).env("TASKQ_URL", url).run();
            let ended = ended.never_says("Is RabbitMQ").never_says("a fault of").never_says("panicked");
            lacking += i32::from(ended.code != 0);
            assert!([0, 69, 70, 78].contains(&ended.code), "{command:?} with {descriptors}: {}", ended.code);
        }
    }
    assert!(lacking > 0);
}

#[test]
fn no_broker_is_blamed_where_no_thread_can_be_started() {
    let sandbox = Sandbox::new();
    let mut lacking = 0;
    // Of address space, in which stacks have to find room; below that programs do not start.
    for kib in (14_000..80_000).step_by(2000) {
        let ended = limited(&sandbox, &format!("-v {kib}"), &["send", "x"]).run();
        let ended = ended.never_says("Is RabbitMQ").never_says("a fault of").never_says("panicked");
        lacking += i32::from(ended.stderr.contains("no further process or thread may be started"));
    }
    assert!(lacking > 0);
}
