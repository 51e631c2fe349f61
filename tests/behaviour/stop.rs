//! Stopping a worker while its broker works: what runs is finished, nothing new is taken.

use crate::support::{Process, Sandbox, until};
use nix::sys::signal::Signal::{self, SIGHUP, SIGINT, SIGKILL, SIGTERM};
use std::time::Duration;

/// The time in which a worker ends that has nothing to wait for.
const PROMPTLY: Duration = Duration::from_secs(15);

/// A worker in the middle of a long task.
fn busy(sandbox: &Sandbox, options: &[&str], seconds: usize) -> Process {
    let worker = sandbox.worker(options);
    sandbox.broker().publish(&sandbox.queue, format!("long {}", ".".repeat(seconds)));
    worker.says("Received a message: long");
    worker
}

#[test]
fn an_idle_worker_stops_at_once() {
    for signal in [SIGINT, SIGTERM] {
        let sandbox = Sandbox::new();
        let worker = sandbox.worker(["--threads", "3"]);
        sandbox.broker().wait_consumers(&sandbox.queue, 3);
        worker.signal(signal);
        worker.end_within(PROMPTLY).exits(0);
        assert_eq!(sandbox.broker().consumers(&sandbox.queue), 0);
    }
}

#[test]
fn the_running_task_is_finished_and_acknowledged() {
    for signal in [SIGINT, SIGTERM] {
        let sandbox = Sandbox::new();
        let worker = busy(&sandbox, &[], 3);
        worker.signal(signal);
        worker.end().exits(0).says("Received a message: long ...\n").says("Done\n");
        assert!(sandbox.broker().get(&sandbox.queue).is_none(), "the task was not acknowledged");
    }
}

#[test]
fn the_next_task_is_left_as_it_was() {
    for _ in 0..10 {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        let worker = busy(&sandbox, &[], 1);
        broker.publish(&sandbox.queue, "next");
        worker.signal(SIGTERM);
        worker.end().exits(0).says("Done").never_says("next");
        let next = broker.take(&sandbox.queue);
        assert_eq!(next.body, b"next");
        assert!(!next.redelivered, "the next task was delivered and given back");
        assert!(broker.get(&sandbox.queue).is_none());
    }
}

#[test]
fn all_threads_finish_their_tasks() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let worker = sandbox.worker(["--threads", "4"]);
    for n in 0..8 {
        broker.publish(&sandbox.queue, format!("{n} ..."));
    }
    worker.says_times("Received a message", 4);
    worker.signal(SIGINT);
    let stopped = worker.end().exits(0);
    assert_eq!(stopped.stderr.matches("Done").count(), 4);
    let left = broker.drain(&sandbox.queue);
    assert_eq!(left.len(), 4);
    assert!(left.iter().all(|message| !message.redelivered), "a task was taken and given back");
}

#[test]
fn tasks_that_were_prefetched_go_back() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    let worker = sandbox.worker(["--prefetch", "5"]);
    for n in 0..5 {
        broker.publish(&sandbox.queue, format!("{n} .."));
    }
    worker.says("Received a message");
    worker.signal(SIGTERM);
    let stopped = worker.end().exits(0);
    assert_eq!(stopped.stderr.matches("Received").count(), 1);
    broker.wait_ready(&sandbox.queue, 4);
}

/// Gives up its task: exits with 128+N, promptly, and the task is in the queue again.
fn gives_up(sandbox: &Sandbox, worker: Process, last: Signal) {
    worker.end_within(PROMPTLY).exits(128 + last as i32).never_says("Done");
    let back = sandbox.broker().take(&sandbox.queue);
    assert!(back.body.starts_with(b"long"));
    assert!(back.redelivered);
}

#[test]
fn a_second_signal_gives_up_the_running_task() {
    for (first, second) in [(SIGINT, SIGINT), (SIGTERM, SIGTERM), (SIGTERM, SIGINT)] {
        let sandbox = Sandbox::new();
        let worker = busy(&sandbox, &[], 100);
        worker.signal(first);
        // Two signals at once may be one: the second one comes when it has said what it makes of the first.
        worker.says(first.as_str());
        worker.signal(second);
        gives_up(&sandbox, worker, second);
    }
}

#[test]
fn the_grace_period_ends_the_wait_for_a_task() {
    for signal in [SIGINT, SIGTERM] {
        let sandbox = Sandbox::new();
        let worker = busy(&sandbox, &["--grace", "1s"], 100);
        worker.signal(signal);
        gives_up(&sandbox, worker, signal);
    }
}

#[test]
fn a_limit_that_was_reached_waits_for_its_tasks_without_a_grace_period() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish(&sandbox.queue, "long ....");
    let worked = sandbox.taskq(["work", "--max-tasks", "1", "--grace", "1s"]).run().exits(0);
    worked.says("Done");
}

#[test]
fn a_hang_up_is_a_reason_to_stop() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", ".."]).run().exits(0);
    // The tests may run under nohup themselves.
    let taskq = ["--default-signal=HUP", env!("CARGO_BIN_EXE_taskq"), "work"];
    let worker = sandbox.program("env", taskq).start();
    worker.says("Received a message");
    worker.signal(SIGHUP);
    worker.end().exits(0).says("Done");
}

#[test]
fn a_hang_up_that_nohup_ignores_stays_ignored() {
    let sandbox = Sandbox::new();
    let mut worker = sandbox.program("nohup", [env!("CARGO_BIN_EXE_taskq"), "work"]).start();
    worker.says(" [*] Waiting for messages");
    worker.signal(SIGHUP);
    // It still takes a task after the signal, and the next one stops it.
    sandbox.broker().publish(&sandbox.queue, "hello");
    worker.says("Done");
    sandbox.broker().publish(&sandbox.queue, "again");
    worker.says_times("Done", 2);
    assert!(worker.is_running());
    worker.signal(SIGTERM);
    worker.end_within(PROMPTLY).exits(0);
}

#[test]
fn a_worker_without_a_reader_for_its_messages_still_works_and_stops() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    for n in 0..2000 {
        broker.publish(&sandbox.queue, n.to_string());
    }
    // `head` goes away after the first line, and with it the pipe that stderr is.
    let script = r#"("$1" work --until-empty 2>&1 >&3; echo "exit $?" >&3) 3>&1 | head -n 1"#;
    let piped = sandbox.program("sh", ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq")]).run();
    assert!(!piped.stderr.contains("panicked"), "{}", piped.stderr);
    until("an end without a lost task", || (broker.consumers(&sandbox.queue) == 0).then_some(()));
}

#[test]
fn killed_in_the_middle_of_stopping_it_loses_nothing() {
    let sandbox = Sandbox::new();
    let worker = busy(&sandbox, &[], 100);
    worker.signal(SIGTERM);
    worker.says("SIGTERM");
    worker.signal(SIGKILL);
    worker.end().exits(137);
    assert!(sandbox.broker().take(&sandbox.queue).redelivered);
}
