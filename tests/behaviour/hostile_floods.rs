//! A broker that sends more than it was asked for, or announces what it does not send: it costs the connection, not
//! memory, and the words say so.

use super::hostile::MEMORY;
use crate::support::amqp::{self, content, deliver, frame, method, return_with, short};
use crate::support::script::{Script, hold};
use crate::support::{Process, Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const UNASKED: &str = "it sent more than it was asked for";

fn without_end(stream: &mut TcpStream, words: impl Fn(u64) -> Vec<u8>) -> io::Result<()> {
    (1..).try_for_each(|nth| stream.write_all(&words(nth)))
}

/// A worker cuts the connection, stays small, says why, and stops when told to.
fn worker_cuts(because: &str, words: impl Fn(u16, u64) -> Vec<u8> + Send + Sync + 'static) {
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        let consume = amqp::play_until(stream, amqp::CONSUME)?;
        stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
        without_end(stream, |nth| words(consume.channel, nth))
    });
    // Busy with the first task for a while, if there is any.
    let worker = sandbox.taskq(["work", "--", "sleep", "1"]).env("TASKQ_URL", server.url()).start();
    until("a second connection", || (server.connections() >= 2).then_some(()));
    worker.says(UNASKED).says(because);
    stays_small(&worker);
    worker.signal(SIGTERM);
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(20)).exits_with_one_of(&[0, 69, 143]).never_says("panicked");
}

fn stays_small(process: &Process) {
    let peak = process.peak_memory();
    assert!(peak < MEMORY, "{peak} KiB");
}

fn blocked() -> Vec<u8> {
    method(0, (10, 60), &[&short(&"low on memory ".repeat(18))])
}

#[test]
fn notices_of_alarms_without_end_cost_a_worker_the_connection() {
    worker_cuts("notices of alarms", |_, _| blocked().repeat(100));
}

#[test]
fn notices_that_an_alarm_is_over_cost_it_as_well() {
    worker_cuts("notices of alarms", |_, _| [blocked(), method(0, (10, 61), &[])].concat().repeat(100));
}

#[test]
fn deliveries_beyond_the_prefetch_cost_the_connection() {
    worker_cuts("unanswered deliveries", |channel, nth| deliver(channel, nth, 3, b"hey"));
    let large = vec![b'x'; 100_000];
    worker_cuts("unanswered deliveries", move |channel, _| deliver(channel, 1, 100_000, &large));
}

#[test]
fn confirms_and_returns_that_a_worker_did_not_ask_for_cost_the_connection() {
    worker_cuts("confirms", |channel, nth| amqp::confirm(channel, nth, true));
    worker_cuts("returns", |channel, _| return_with(channel, "queue", 0, &[]));
}

#[test]
fn cancels_that_want_to_be_answered_cost_the_connection() {
    worker_cuts("consumers that never were", |channel, nth| {
        method(channel, (60, 30), &[&short(&format!("other-{nth}")), &[0]])
    });
}

/// `send` goes on trying until it gives up, stays small, and says why.
fn send_cuts(because: &str, words: impl Fn(u16, u64) -> Vec<u8> + Send + Sync + 'static) {
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        let publish = amqp::play_until(stream, amqp::PUBLISH)?;
        without_end(stream, |nth| words(publish.channel, nth))
    });
    let send = sandbox.taskq(["send", "--retry-for", "3s", "hello"]).env("TASKQ_URL", server.url()).start();
    send.says(UNASKED).says(because);
    stays_small(&send);
    send.end_within(Duration::from_secs(20)).exits_with_one_of(&[69, 75]).never_says("Sent");
}

#[test]
fn notices_of_alarms_without_end_cost_a_sender_the_connection() {
    send_cuts("notices of alarms", |_, _| blocked().repeat(100));
}

#[test]
fn confirms_and_returns_beyond_what_was_published_cost_a_sender_the_connection() {
    send_cuts("confirms", |channel, _| amqp::confirm(channel, 7, false).repeat(1000));
    send_cuts("returns", |channel, _| return_with(channel, "queue", 0, &[]).repeat(1000));
    send_cuts("returns of more", |channel, _| {
        let mut large = return_with(channel, "queue", 0, &[]);
        // Its own content is eight bytes long.
        large.truncate(large.len() - content(channel, 8, 0, &[], b"returned").len());
        large.extend(content(channel, 1 << 20, 0, &[], b""));
        large.extend(frame(3, channel, &vec![0; 1 << 16]).repeat(16));
        large
    });
}

/// As much as any broker may announce.
const ANNOUNCED: u64 = 512 << 20;

#[test]
fn nothing_is_allocated_on_a_promise() {
    let sandbox = Sandbox::new();
    let server = Script::run(|stream| {
        let consume = amqp::play_until(stream, amqp::CONSUME)?;
        stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
        stream.write_all(&deliver(consume.channel, 1, ANNOUNCED, b"the beginning"))?;
        hold(stream)
    });
    // One arena: each takes 64 MiB of addresses for itself.
    let worker = sandbox.taskq(["work", "--heartbeat", "1s"]);
    let worker = worker.env("TASKQ_URL", server.url()).env("MALLOC_ARENA_MAX", "1").start();
    until("a second connection", || (server.connections() >= 2).then_some(()));
    let peak = worker.peak_addresses();
    assert!(peak < ANNOUNCED / 1024, "{peak} KiB");
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(20)).exits_with_one_of(&[0, 69, 143]);
}

/// A worker gets a body of this size once, the first part of it slowly, and longer than it would wait without a sign of
/// life. Returns its peak memory.
fn is_worked(size: usize, slowly: usize, heartbeat: &str) -> u64 {
    const PIECE: usize = 100_000;
    let sandbox = Sandbox::new();
    let consumers = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&consumers);
    let server = Script::run(move |stream| {
        let consume = amqp::play_until(stream, amqp::CONSUME)?;
        counted.fetch_add(1, Ordering::Relaxed);
        stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
        stream.write_all(&deliver(consume.channel, 1, size as u64, b""))?;
        for from in (0..size).step_by(PIECE) {
            stream.write_all(&frame(3, consume.channel, &vec![b'x'; PIECE.min(size - from)]))?;
            if from < slowly {
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        without_end(stream, |_| {
            std::thread::sleep(Duration::from_millis(200));
            amqp::heartbeat()
        })
    });
    let worker = sandbox.taskq(["work", "--heartbeat", heartbeat, "--", "wc", "-c"]);
    let worker = worker.env("TASKQ_URL", server.url()).start();
    worker.says("Done");
    assert_eq!(worker.prints_lines(1).stdout().trim(), size.to_string());
    assert_eq!(consumers.load(Ordering::Relaxed), 1, "consumers");
    worker.peak_memory()
}

#[test]
fn a_large_body_that_comes_slowly_is_waited_for() {
    // All of this is held back: it is less than an eighth.
    is_worked(9_000_000, 1_000_000, "1s");
}

#[test]
fn a_large_body_takes_little_more_memory_than_it_needs() {
    let size = 128 << 20;
    let peak = is_worked(size, 0, "10s");
    assert!(peak < size as u64 / 1024 * 5 / 4 + MEMORY / 2, "{peak} KiB");
}
