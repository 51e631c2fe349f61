//! `taskq send` when the broker goes away, blocks, or the user loses patience: nothing is lost unnoticed.

use crate::support::amqp;
use crate::support::script::{Script, hold};
use crate::support::{Finished, Process, Sandbox};
use nix::sys::signal::Signal;
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How much longer than its limit a wait may take on a busy machine.
pub(super) const SLACK: Duration = Duration::from_secs(15);

pub(super) fn bulk(sandbox: &Sandbox, retry_for: &str, unsent: &Path) -> Process {
    let unsent = unsent.to_str().unwrap();
    let args = ["send", "--lines", "--print-ids", "--retry-for", retry_for, "--unsent", unsent];
    sandbox.taskq(args).start()
}

pub(super) fn lines(range: std::ops::Range<usize>) -> String {
    range.fold(String::new(), |lines, n| lines + "task " + &n.to_string() + "\n")
}

/// Every task of `0..count` is in the queue or in the file of those not sent, and what was reported fits.
pub(super) fn none_is_missing(sandbox: &Sandbox, finished: &Finished, unsent: &Path, count: usize) {
    let queued: HashSet<String> = sandbox.broker().bodies(&sandbox.queue).into_iter().collect();
    let unsent = std::fs::read_to_string(unsent).unwrap_or_default();
    let unsent: Vec<String> = unsent.lines().map(str::to_owned).collect();
    let confirmed = finished.stdout_lines().len();
    assert_eq!(confirmed + unsent.len(), count, "{confirmed} confirmed and {} saved", unsent.len());
    let saved: HashSet<&String> = unsent.iter().collect();
    assert_eq!(saved.len(), unsent.len(), "a task was saved twice");
    for n in 0..count {
        let task = format!("task {n}");
        assert!(queued.contains(&task) || saved.contains(&task), "{task} is nowhere");
    }
    if !unsent.is_empty() {
        assert!(finished.stderr.contains(&confirmed.to_string()), "{confirmed} is not reported");
        assert!(finished.stderr.contains(&unsent.len().to_string()), "{} is not reported", unsent.len());
    }
}

#[test]
fn a_broker_killed_and_restarted_in_the_middle_costs_no_task() {
    const COUNT: usize = 12_000;
    let sandbox = Sandbox::exclusive();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "60s", &unsent);
    send.write(lines(0..COUNT / 3));
    send.prints_lines(100);
    sandbox.node().kill();
    let rest = std::thread::scope(|scope| {
        // This blocks while nothing is confirmed, as `send` stops reading and the pipe is full.
        let writer = scope.spawn(|| {
            send.write(lines(COUNT / 3..COUNT));
            send.close_stdin();
            send
        });
        sandbox.node().start();
        writer.join().unwrap()
    });
    let sent = rest.end().exits(0);
    none_is_missing(&sandbox, &sent, &unsent, COUNT);
}

#[test]
fn connections_cut_again_and_again_cost_no_task() {
    const COUNT: usize = 10_000;
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "60s", &unsent);
    for part in 0..10 {
        send.write(lines(part * COUNT / 10..(part + 1) * COUNT / 10));
        send.prints_lines(part * COUNT / 10 + 100);
        proxy.cut();
    }
    send.close_stdin();
    let sent = send.end().exits(0);
    none_is_missing(&sandbox, &sent, &unsent, COUNT);
}

#[test]
fn a_broker_gone_for_good_ends_it_in_time_with_exact_counts() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "2s", &unsent);
    send.write(lines(0..500));
    send.prints_lines(500);
    proxy.refuse();
    send.write(lines(500..800));
    send.close_stdin();
    let sent = send.end_within(Duration::from_secs(2) + SLACK).exits_with_one_of(&[69, 75]);
    none_is_missing(&sandbox, &sent, &unsent, 800);
    assert_eq!(std::fs::read_to_string(unsent).unwrap(), lines(500..800), "in the order they came");
}

#[test]
fn a_silent_broker_ends_it_in_time_with_exact_counts() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "2s", &unsent);
    send.write(lines(0..500));
    send.prints_lines(500);
    proxy.stall();
    send.write(lines(500..800));
    send.close_stdin();
    // The heartbeat (10 s, missed twice) may have to find it out.
    let sent = send.end_within(Duration::from_secs(22) + SLACK).exits_with_one_of(&[69, 75]);
    proxy.resume();
    none_is_missing(&sandbox, &sent, &unsent, 800);
}

#[test]
fn all_input_is_saved_when_the_broker_goes_before_it_is_read() {
    const COUNT: usize = 20_000;
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "1s", &unsent);
    send.write(lines(0..10));
    send.prints_lines(10);
    proxy.refuse();
    // Far more than may be in flight: what was never read in time counts too.
    send.write(lines(10..COUNT));
    send.close_stdin();
    let sent = send.end().exits_with_one_of(&[69, 75]);
    none_is_missing(&sandbox, &sent, &unsent, COUNT);
}

#[test]
fn interrupting_it_saves_and_counts_what_was_read() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "60s", &unsent);
    send.write(lines(0..500));
    send.prints_lines(500);
    proxy.stall();
    send.write_and_see_it_read(&lines(500..600));
    send.signal(Signal::SIGINT);
    let sent = send.end_within(SLACK).exits_with_one_of(&[130, 75]);
    proxy.resume();
    let unsent = std::fs::read_to_string(unsent).unwrap();
    assert_eq!(unsent, lines(500..600));
    assert_eq!(sent.stdout_lines().len(), 500);
}

#[test]
fn what_a_killed_sender_has_printed_is_in_the_queue() {
    let sandbox = Sandbox::new();
    let mut send = sandbox.taskq(["send", "--lines", "--print-ids"]).start();
    // Without the end of its input it goes on waiting, some of this unread or unconfirmed.
    send.write("line\n".repeat(10_000));
    send.prints_lines(500);
    send.signal(Signal::SIGKILL);
    let killed = send.end().exits(137);
    let kept: HashSet<_> = sandbox
        .broker()
        .drain(&sandbox.queue)
        .iter()
        .map(|task| task.properties.message_id().clone())
        .collect();
    let printed = killed.stdout_text();
    // The last line may have been cut short.
    let printed: Vec<_> = printed.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).collect();
    assert!(printed.len() >= 500);
    for id in printed {
        assert!(kept.contains(&Some(id.to_owned())), "{id} is missing");
    }
}

#[test]
fn interrupting_it_while_it_waits_for_input_ends_it() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let sandbox = Sandbox::new();
        let mut send = sandbox.taskq(["send", "--lines", "--print-ids"]).start();
        send.write("one\n");
        send.prints_lines(1);
        send.signal(signal);
        send.end_within(SLACK).exits_with_one_of(&[0, 128 + signal as i32]);
        assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["one"]);
    }
}

#[test]
fn a_broker_that_blocks_publishers_is_told_and_gives_a_temporary_failure() {
    let sandbox = Sandbox::exclusive();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let unsent = sandbox.path("unsent");
    sandbox.node().memory_alarm(true);
    let mut send = bulk(&sandbox, "3s", &unsent);
    send.write(lines(0..50));
    send.close_stdin();
    let sent = send.end_within(Duration::from_secs(3) + SLACK * 2).exits(75);
    let told = sent.stderr.to_lowercase();
    assert!(told.contains("block") || told.contains("alarm"), "nothing about it: {told}");
    sandbox.node().memory_alarm(false);
    none_is_missing(&sandbox, &sent, &unsent, 50);

    // The alarm is over: it goes through.
    sandbox.taskq(["send", "hello"]).run().exits(0);
}

#[test]
fn a_broker_that_lives_and_confirms_nothing_is_left_for_another_connection() {
    let connections = AtomicUsize::new(0);
    // As RabbitMQ 3.10 does at times when a quorum queue changes its leader.
    let forgetful = Script::run(move |stream| {
        let publish = amqp::play_until(stream, amqp::PUBLISH)?;
        if connections.fetch_add(1, Ordering::Relaxed) == 0 {
            loop {
                stream.write_all(&amqp::heartbeat())?;
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        stream.write_all(&amqp::confirm(publish.channel, 1, false))?;
        hold(stream)
    });
    let sandbox = Sandbox::new();
    let send = sandbox.taskq(["send", "--retry-for", "2m", "hello"]).env("TASKQ_URL", forgetful.url());
    send.run().exits(0).says("does not confirm").says(" [x] Sent hello");
    assert_eq!(forgetful.connections(), 2);
}
