//! A port where something else answers: it ends within the deadline, with the documented code, in bounded memory.

use crate::support::amqp::{self, Method};
use crate::support::script::{Script, hold};
use crate::support::{Process, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How much longer than `--connect-timeout` its end may take.
pub(super) const SLACK: Duration = Duration::from_secs(10);

/// No answer makes taskq hold more than this, in KiB. It starts with some 10 MiB.
pub(super) const MEMORY: u64 = 64 * 1024;

/// Its end, and its peak memory shortly before.
pub(super) fn end(mut process: Process, deadline: Duration) -> (crate::support::Finished, u64) {
    let mut peak = 0;
    crate::support::poll::within(deadline, "an end", || {
        if process.is_running() {
            // It ended between the two reads: the last figure counts.
            peak = process.try_peak_memory().unwrap_or(peak);
            None
        } else {
            Some(())
        }
    });
    (process.end(), peak)
}

/// Against this server `send` and `work` both end in time with one line and this code.
pub(super) fn both_end(code: i32, script: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static) {
    let sandbox = Sandbox::new();
    let server = Script::run(script);
    for args in [["send", "hello"], ["work", "--until-empty"]] {
        let args = args.iter().chain(&["--connect-timeout", "2s", "--url"]).map(|arg| (*arg).to_owned());
        let process = sandbox.taskq(args.chain([server.url()])).start();
        let (ended, peak) = end(process, Duration::from_secs(2) + SLACK);
        let ended = ended.exits(code).in_one_line();
        assert!(ended.stdout.is_empty());
        assert!(peak < MEMORY, "{peak} KiB");
    }
}

#[test]
fn silence_is_no_broker() {
    both_end(69, hold);
}

#[test]
fn a_connection_closed_at_once_is_no_broker() {
    both_end(69, |_| Ok(()));
}

#[test]
fn a_web_server_is_no_broker() {
    both_end(69, |stream| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        // Far more than an answer, to see whether it is kept.
        for _ in 0..2000 {
            stream.write_all(&vec![b'x'; 64 * 1024])?;
        }
        hold(stream)
    });
}

#[test]
fn garbage_is_no_broker() {
    both_end(69, |stream| {
        let mut byte = 1_u8;
        loop {
            let chunk: Vec<u8> = std::iter::repeat_with(|| {
                byte = byte.wrapping_mul(167).wrapping_add(13);
                byte
            })
            .take(4096)
            .collect();
            stream.write_all(&chunk)?;
        }
    });
}

#[test]
fn bytes_that_trickle_do_not_extend_the_deadline() {
    both_end(69, |stream| {
        // A frame of a plausible size that never ends; each byte comes well within any time-out of a single read.
        stream.write_all(&amqp::frame_announcing(1, 0, 100_000))?;
        loop {
            stream.write_all(&[0])?;
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

#[test]
fn heartbeats_do_not_extend_the_deadline() {
    both_end(69, |stream| {
        amqp::play_until(stream, amqp::OPEN)?;
        loop {
            stream.write_all(&amqp::heartbeat())?;
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

#[test]
fn a_protocol_of_another_version_is_no_broker() {
    both_end(69, |stream| {
        // What a broker says to a version it does not speak, and then closes.
        stream.read_exact(&mut [0; 8])?;
        stream.write_all(b"AMQP\x00\x01\x00\x00")
    });
}

#[test]
fn silence_after_each_step_of_the_handshake_ends_in_time() {
    for step in [amqp::START_OK, amqp::TUNE_OK, amqp::OPEN] {
        both_end(69, move |stream| {
            amqp::play_until(stream, step)?;
            hold(stream)
        });
    }
}

#[test]
fn a_close_by_an_operator_during_the_handshake_is_unavailable() {
    for step in [amqp::START_OK, amqp::TUNE_OK, amqp::OPEN] {
        both_end(69, move |stream| {
            amqp::play_until(stream, step)?;
            stream.write_all(&amqp::connection_close(320, "CONNECTION_FORCED - going down"))?;
            hold(stream)
        });
    }
}

#[test]
fn a_silent_close_after_the_credentials_means_that_they_were_refused() {
    both_end(77, |stream| amqp::play_until(stream, amqp::START_OK).map(drop));
}

#[test]
fn refusals_are_refusals() {
    // After the login RabbitMQ closes with words only if the client announces that it understands them, which amiquip
    // does not.
    both_end(77, move |stream| {
        amqp::play_until(stream, amqp::OPEN)?;
        stream.write_all(&amqp::connection_close(530, "REFUSED - says the server"))?;
        hold(stream)
    });
}

#[test]
fn a_frame_that_announces_gigabytes_is_no_broker() {
    for kind in [1, 2, 3, 8, 200] {
        both_end(69, move |stream| {
            stream.write_all(&amqp::frame_announcing(kind, 0, u32::MAX))?;
            for _ in 0..5000 {
                stream.write_all(&vec![0; 64 * 1024])?;
            }
            hold(stream)
        });
    }
}

/// After the handshake the broker counts as reached: `send` goes on trying for `--retry-for`, and ends.
pub(super) fn send_ends(
    method: Method,
    then: impl Fn(&mut TcpStream, u16) -> io::Result<()> + Send + Sync + 'static,
) {
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        let frame = amqp::play_until(stream, method)?;
        then(stream, frame.channel)
    });
    let options = ["--connect-timeout", "2s", "--retry-for", "2s", "--heartbeat", "1s"];
    let send = sandbox.taskq(["send", "hello"].iter().chain(&options)).env("TASKQ_URL", server.url()).start();
    let (ended, peak) = end(send, Duration::from_secs(4) + SLACK);
    let ended = ended.exits_with_one_of(&[69, 75]);
    assert!(!ended.stderr.contains("Sent") && !ended.stderr.contains("panicked"));
    assert!(peak < MEMORY, "{peak} KiB");
}

const STEPS_OF_SEND: [Method; 4] = [amqp::CHANNEL_OPEN, amqp::CONFIRM, amqp::DECLARE, amqp::PUBLISH];

#[test]
fn send_ends_when_a_broker_falls_silent() {
    for step in STEPS_OF_SEND {
        send_ends(step, |stream, _| hold(stream));
    }
}

/// Such as one that has only the address of a queue, whose node is away.
#[test]
fn a_broker_that_lets_in_and_takes_nothing_is_tried_less_and_less_often() {
    let sandbox = Sandbox::new();
    let server = Script::run(|stream| amqp::play_until(stream, amqp::PUBLISH).map(drop));
    let sent = sandbox.taskq(["send", "--retry-for", "6s", "hello"]).env("TASKQ_URL", server.url()).run();
    let sent = sent.exits_with_one_of(&[69, 75]);
    // At least 0.05, 0.1, 0.2, 0.4, 0.8, 1.6 and 2.5 s apart.
    assert!((2..=8).contains(&server.connections()), "{} connections", server.connections());
    assert_eq!(sent.stderr.matches("connected again to").count(), 1, "{}", sent.stderr);
}

#[test]
fn send_ends_when_a_broker_closes_every_connection() {
    for step in STEPS_OF_SEND {
        send_ends(step, |stream, _| {
            stream.write_all(&amqp::connection_close(320, "CONNECTION_FORCED - going down"))?;
            hold(stream)
        });
    }
}

#[test]
fn send_ends_when_a_broker_is_cut_off_every_time() {
    for step in STEPS_OF_SEND {
        send_ends(step, |_, _| Ok(()));
    }
}

#[test]
fn send_ends_when_a_frame_announces_gigabytes() {
    for step in STEPS_OF_SEND {
        send_ends(step, |stream, channel| {
            stream.write_all(&amqp::frame_announcing(1, channel, u32::MAX))?;
            loop {
                stream.write_all(&vec![0; 64 * 1024])?;
            }
        });
    }
}

/// A worker goes on trying for ever: it stays small, and it stops when told to.
pub(super) fn worker_survives(then: impl Fn(&mut TcpStream, u16) -> io::Result<()> + Send + Sync + 'static) {
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        let consume = amqp::play_until(stream, amqp::CONSUME)?;
        stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
        then(stream, consume.channel)
    });
    let options = ["--connect-timeout", "2s", "--heartbeat", "1s"];
    let worker = sandbox.taskq(["work"].iter().chain(&options)).env("TASKQ_URL", server.url()).start();
    crate::support::until("a second connection", || (server.connections() >= 2).then_some(()));
    let peak = worker.peak_memory();
    assert!(peak < MEMORY, "{peak} KiB");
    worker.signal(SIGTERM);
    let stopped = worker.end_within(Duration::from_secs(20)).exits_with_one_of(&[0, 69, 143]);
    assert!(!stopped.stderr.contains("Received a message"), "half a task was worked");
}

#[test]
fn a_worker_survives_a_body_that_announces_more_than_there_is_memory() {
    for announced in [1 << 40, u64::MAX] {
        worker_survives(move |stream, channel| {
            stream.write_all(&amqp::deliver(channel, 1, announced, b"the beginning"))?;
            amqp::serve_until(stream, amqp::CLOSE_OK).map(drop)
        });
    }
}

#[test]
fn a_worker_survives_a_delivery_that_is_cut_off() {
    worker_survives(|stream, channel| stream.write_all(&amqp::deliver(channel, 1, 100, b"the beginning")));
}

#[test]
fn a_worker_survives_a_frame_that_announces_gigabytes() {
    worker_survives(|stream, channel| {
        stream.write_all(&amqp::frame_announcing(1, channel, u32::MAX))?;
        loop {
            stream.write_all(&vec![0; 64 * 1024])?;
        }
    });
}

#[test]
fn a_worker_survives_frames_of_channels_that_it_never_opened() {
    worker_survives(|stream, _| {
        stream.write_all(&amqp::deliver(1999, 1, 3, b"hey"))?;
        hold(stream)
    });
}

#[test]
fn a_worker_survives_a_broker_that_closes_connection_after_connection() {
    worker_survives(|stream, _| {
        stream.write_all(&amqp::connection_close(320, "CONNECTION_FORCED - going down"))?;
        hold(stream)
    });
}

#[test]
fn a_worker_survives_a_broker_that_closes_its_channels() {
    let sandbox = Sandbox::new();
    let closed = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&closed);
    let server = Script::run(move |stream| {
        let mut consume = amqp::play_until(stream, amqp::CONSUME)?;
        loop {
            stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
            stream.write_all(&amqp::channel_close(consume.channel, 541, "INTERNAL_ERROR - it happens"))?;
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            consume = amqp::serve_until(stream, amqp::CONSUME)?;
        }
    });
    let worker = sandbox.taskq(["work"]).env("TASKQ_URL", server.url()).start();
    crate::support::until("three channels", || {
        (closed.load(std::sync::atomic::Ordering::Relaxed) >= 3).then_some(())
    });
    worker.says("INTERNAL_ERROR - it happens");
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(20)).exits_with_one_of(&[0, 143]);
}

#[test]
fn what_a_server_says_cannot_drive_a_terminal() {
    both_end(77, |stream| {
        amqp::play_until(stream, amqp::OPEN)?;
        stream.write_all(&amqp::connection_close(530, "NOT_ALLOWED - \x1b[2J\r\nDone\x07"))?;
        hold(stream)
    });
}
