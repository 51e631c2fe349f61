//! `dead requeue --rate`: so many at most within a time, whatever becomes of the connection meanwhile.

use std::time::{Duration, Instant};

use crate::support::{Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;

/// So many dead tasks, with ids and without any failure written down.
fn dead_tasks(sandbox: &Sandbox, count: usize) {
    let bodies = (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    sandbox.taskq(["send", "--lines", "--queue", &sandbox.dead_queue()]).feed(bodies).exits(0);
    sandbox.broker().declare(&sandbox.queue);
}

fn numbers(sandbox: &Sandbox) -> Vec<usize> {
    let mut numbers: Vec<usize> =
        sandbox.broker().bodies(&sandbox.queue).iter().map(|body| body.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn no_more_are_sent_than_the_rate_allows() {
    let sandbox = Sandbox::new();
    dead_tasks(&sandbox, 11);
    let began = Instant::now();
    let sent = sandbox.taskq(["dead", "requeue", "--all", "--rate", "5/s"]).run().exits(0);
    // The first one is due at once.
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(sent.stderr.contains("11 sent again"), "{}", sent.stderr);
    assert_eq!(numbers(&sandbox), (0..11).collect::<Vec<_>>());
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 0);
}

#[test]
fn it_takes_no_more_than_it_sends_in_five_minutes() {
    let sandbox = Sandbox::new();
    dead_tasks(&sandbox, 10);
    // One a minute: five at a time.
    let requeue = sandbox.taskq(["dead", "requeue", "--all", "--rate", "1/m"]).start();
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.queue, 1);
    broker.wait_ready(&sandbox.dead_queue(), 5);
    requeue.signal(SIGTERM);
    let ended = requeue.end().exits(128 + 15);
    assert!(ended.stderr.contains("1 sent again, the others are still in"), "{}", ended.stderr);
    broker.wait_ready(&sandbox.dead_queue(), 9);
}

#[test]
fn it_goes_on_when_the_connection_is_lost() {
    let mut sandbox = Sandbox::new();
    dead_tasks(&sandbox, 60);
    let proxy = sandbox.through_proxy();
    let requeue = sandbox.taskq(["dead", "requeue", "--all", "--rate", "20/s"]).start();
    let broker = sandbox.broker();
    for sent in [10, 30] {
        until("some are sent", || (broker.ready(&sandbox.queue) >= sent).then_some(()));
        proxy.cut();
    }
    let ended = requeue.end().exits(0);
    assert!(ended.stderr.contains("60 sent again"), "{}", ended.stderr);
    let mut numbers = numbers(&sandbox);
    let sent = numbers.len();
    numbers.dedup();
    assert_eq!(numbers, (0..60).collect::<Vec<_>>(), "none is lost");
    // A copy on its way when the connection is cut may have arrived without anybody knowing: one at each cut.
    assert!(sent <= 62, "{sent} were sent");
    broker.wait_ready(&sandbox.dead_queue(), 0);
}
