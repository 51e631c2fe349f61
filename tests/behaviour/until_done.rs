//! `taskq work --until-done`: ends when the queue is empty, nothing runs here, and no task waits for a retry.

use crate::support::script::Script;
use crate::support::user::User;
use crate::support::{Sandbox, amqp};
use nix::sys::signal::Signal::SIGTERM;
use std::io::Write;
use std::time::Duration;

/// Far more than a drain takes that waits for nothing, far less than an hour.
const SOON: Duration = Duration::from_secs(30);

/// Fails until the last attempt, and notes each.
const AT_LAST: &str = r#"echo "$TASKQ_ID" >>"$1/runs"; [ "$TASKQ_ATTEMPT" = "$TASKQ_ATTEMPTS" ]"#;

#[test]
fn retries_are_waited_for_to_their_end() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "bad"]).run().exits(0);
    let options = ["--attempts", "3", "--backoff", "1s"];
    // The first attempt is all that --until-empty sees.
    sandbox.work_with(&[&options[..], &["--until-empty"]].concat(), AT_LAST).run().exits(0);
    assert_eq!(sandbox.lines("runs").len(), 1);
    let worked = sandbox.work_with(&[&options[..], &["--until-done"]].concat(), AT_LAST).run().exits(0);
    assert_eq!(sandbox.lines("runs").len(), 3);
    worked.says("attempt 2 of 3 failed").says(", attempt 3, ");
    let broker = sandbox.broker();
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
    assert_eq!(broker.counts(&sandbox.delay_queue(1000)), Some((0, 0)));
}

#[test]
fn a_task_that_ends_dead_is_told_by_the_exit_code() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("good\nbad\n").exits(0);
    let options = ["--attempts", "2", "--backoff", "500ms", "--until-done"];
    sandbox.work_with(&options, "! grep -q bad").run().exits(1).says("attempt 2 of 2: exit status 1");
    assert_eq!(sandbox.broker().ready(&format!("{}.dead", sandbox.queue)), 1);
}

#[test]
fn tasks_that_others_delay_in_the_same_queues_are_waited_for() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "bad"]).run().exits(0);
    let options = ["--backoff", "4s"];
    sandbox.work_with(&[&options[..], &["--until-empty"]].concat(), "exit 1").run().exits(0);
    let worked = sandbox.work_with(&[&options[..], &["--until-done"]].concat(), "true").run().exits(0);
    worked.says(", attempt 2)").says("Done");
}

#[test]
fn what_waits_elsewhere_is_left() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--delay", "1h", "later"]).run().exits(0);
    sandbox.taskq(["send", "bad"]).run().exits(0);
    sandbox.work_with(&["--until-empty", "--backoff", "1h"], "exit 1").run().exits(0);
    // Nor is there any queue for its own retries.
    sandbox.work_with(&["--until-done", "--attempts", "1"], "true").run().exits(0);
    sandbox.work_with(&["--until-done", "--backoff", "1s,2h"], "true").run().exits(0);
    assert_eq!(sandbox.broker().ready(&sandbox.delay_queue(3_600_000)), 1);
    // Without a command queues that do not exist are counted.
    let other = Sandbox::new();
    other.taskq(["work", "--until-done"]).run().exits(0);
}

#[test]
fn a_signal_ends_it_at_once_while_it_waits() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "bad"]).run().exits(0);
    let worker = sandbox.handling(&["--backoff", "1h", "--until-done"], "exit 1");
    worker.says("the next one is in 1h");
    sandbox.broker().wait_ready(&sandbox.delay_queue(3_600_000), 1);
    worker.signal(SIGTERM);
    worker.end_within(SOON).exits(0);
    assert_eq!(sandbox.broker().ready(&sandbox.delay_queue(3_600_000)), 1);
}

#[test]
fn other_ways_to_end_do_not_go_with_it_or_come_first() {
    let sandbox = Sandbox::new();
    for other in [&["--until-empty"][..], &["--idle-timeout", "1h"]] {
        let work = [&["work", "--until-done"], other].concat();
        sandbox.taskq(work).run().exits(2).says("cannot be used with");
    }
    sandbox.taskq(["send", "bad"]).run().exits(0);
    let options = ["--backoff", "1h", "--until-done", "--max-time", "4s"];
    sandbox.work_with(&options, "exit 1").start().end_within(SOON).exits(0);
    sandbox.taskq(["send", "good"]).run().exits(0);
    let options = ["--backoff", "1h", "--until-done", "--max-tasks", "1"];
    sandbox.work_with(&options, "true").start().end_within(SOON).exits(0);
}

#[test]
fn who_may_not_look_into_the_delay_queues_is_told_so() {
    let sandbox = Sandbox::new();
    sandbox.work_with(&["--until-empty"], "true").run().exits(0);
    let queue = format!("^{}$", sandbox.queue.replace('.', "\\."));
    let user = User::add(&sandbox, "reader", "opensesame", ["^$", "^$", &queue]);
    let url = user.url("opensesame");
    for flags in [&["--dots"][..], &["--dots", "--no-declare"]] {
        let work = [&["work", "--until-done"], flags].concat();
        // As far as declaring goes, it may.
        user.may([&queue, "^$", &queue]);
        let worked = sandbox.taskq(work).env("TASKQ_URL", &url).run().exits(77);
        worked.says("--until-done has to look into").says(".delay.").says("lacks the permission");
    }
}

/// As RabbitMQ does for a quorum queue whose leader is away: it counts no task, and no consumer either.
#[test]
fn a_delay_queue_that_nobody_answers_for_is_not_taken_for_empty() {
    let sandbox = Sandbox::new();
    let server = Script::run(|stream| {
        let open = amqp::play_until(stream, amqp::CHANNEL_OPEN)?;
        stream.write_all(&amqp::answer(open.channel, amqp::CHANNEL_OPEN).unwrap())?;
        amqp::serve_with(stream, |frame| {
            let name = |payload: &[u8]| payload[7..7 + usize::from(payload[6])].to_vec();
            let queue = (frame.method() == Some(amqp::DECLARE)).then(|| name(&frame.payload))?;
            let queue = String::from_utf8(queue).unwrap();
            let companion = [".delay.", ".dead"].iter().any(|part| queue.contains(part));
            let counts = [&amqp::short("queue")[..], &[0; 4], &1_u32.to_be_bytes()].concat();
            (!companion).then(|| amqp::method(frame.channel, (50, 11), &[&counts]))
        })
    });
    let worker = sandbox.taskq(["work", "--until-done", "--url", &server.url()]).start();
    worker.says("nobody answers for the queue").says(".delay.");
    worker.signal(SIGTERM);
    worker.end_within(SOON).exits(0);
}
