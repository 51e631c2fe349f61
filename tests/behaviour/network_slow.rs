//! Slow networks, with little bandwidth or long delays: a large body takes its time, and that is not taken for a dead
//! peer.

use crate::support::sandbox::LARGE;
use crate::support::{Direction, Process, Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;
use std::time::Duration;

fn received(worker: &Process) -> usize {
    worker.stderr().matches("Received").count()
}

#[test]
fn a_large_body_may_take_many_heartbeats_to_be_sent() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    proxy.slow_down(Direction::ToBroker, 30_000);
    let body = "x".repeat(300_000);
    let options = ["--file", "-", "--heartbeat", "1s", "--retry-for", "2m"];
    sandbox.taskq(["send"].iter().chain(&options)).feed(&body).exits(0);
    assert_eq!(proxy.accepted(), 1, "the connection was given up");
    assert_eq!(sandbox.broker().take(&sandbox.queue).body.len(), body.len());
}

#[test]
fn a_large_body_on_its_way_when_the_queue_is_missed_is_sent_once() {
    let mut sandbox = Sandbox::for_large_bodies();
    let proxy = sandbox.through_proxy();
    let broker = sandbox.broker();
    let mut send = sandbox.taskq(["send", "--null"]).start();
    send.write("first\0");
    until("the first task", || broker.counts(&sandbox.queue).filter(|(ready, _)| *ready == 1));
    broker.delete(&sandbox.queue);
    proxy.stall();
    send.write([b"second\0", &vec![b'x'; LARGE][..], b"\0"].concat());
    send.close_stdin();
    let runs = |thread: &str| send.threads().iter().any(|name| name == thread);
    until("the handover", || runs("publish").then_some(()));
    // The second comes back, which costs the channel, while most of the large one has yet to be handed over.
    proxy.slow_down(Direction::ToBroker, 1_000_000);
    proxy.flow();
    until("another try", || (proxy.accepted() > 1 || runs("connect")).then_some(()));
    proxy.resume();
    send.end().exits(0).says(" [x] Sent 3 tasks");
    let lengths: Vec<usize> = broker.bodies(&sandbox.queue).iter().map(String::len).collect();
    assert_eq!(lengths, [6, LARGE]);
}

#[test]
fn a_send_that_is_too_slow_for_its_deadline_says_so_in_time() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    proxy.slow_down(Direction::ToBroker, 5_000);
    let options = ["--file", "-", "--heartbeat", "1s", "--retry-for", "3s"];
    let mut send = sandbox.taskq(["send"].iter().chain(&options)).start();
    let _ = send.try_write("x".repeat(10_000_000).as_bytes());
    send.close_stdin();
    send.end_within(Duration::from_secs(3 + 10)).exits(75).in_one_line().says("--retry-for");
}

#[test]
fn a_large_body_may_take_many_heartbeats_to_be_received() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--heartbeat", "1s"]);
    let connections = proxy.accepted();
    proxy.slow_down(Direction::ToClient, 30_000);
    sandbox.broker().publish(&sandbox.queue, "x".repeat(300_000));
    worker.says("Done");
    assert_eq!((proxy.accepted(), received(&worker)), (connections, 1), "{}", worker.stderr());
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

#[test]
fn questions_that_wait_behind_a_large_body_are_not_given_up() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    for _ in 0..3 {
        broker.publish(&sandbox.queue, "x".repeat(800_000));
    }
    proxy.slow_down(Direction::ToClient, 40_000);
    // Each thread opens its channel and its consumer while 20 s of another one's body are under way.
    let worker = sandbox.taskq(["work", "--threads", "3", "--until-empty", "--heartbeat", "4s"]).start();
    let worked = worker.end_within(Duration::from_mins(4)).exits(0).never_says("lost the connection");
    assert_eq!((proxy.accepted(), worked.stderr.matches("Done").count()), (1, 3));
}

#[test]
fn a_network_with_long_delays_costs_no_task() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    proxy.delay(Duration::from_millis(200));
    let bulk = sandbox.taskq(["send", "--lines", "--heartbeat", "1s"]).feed("a\n".repeat(2000));
    bulk.exits(0).says(" [x] Sent 2000 tasks");
    sandbox.taskq(["send", "hello"]).run().exits(0);
    assert_eq!(sandbox.broker().drain(&sandbox.queue).len(), 2001);
    let worker = sandbox.worker(["--heartbeat", "1s"]);
    sandbox.broker().publish(&sandbox.queue, "far away");
    worker.says("Received a message: far away\nDone\n");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)));
}
