//! A broker that speaks AMQP and means ill, or is very broken: absurd numbers, methods out of turn, frames that make no
//! sense, at each step. `send` and `work` end or go on as documented; nothing that was not confirmed counts as sent.

use super::hostile::{MEMORY, SLACK, both_end, end, send_ends, worker_survives};
use crate::support::amqp::{self, Method, deliver, deliver_with, frame, method};
use crate::support::raw::{CONTENT_TYPE, HEADERS, MESSAGE_ID, entry, nested, table};
use crate::support::script::{Script, hold};
use crate::support::{Finished, Rng, Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;
use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What no broker says at any step of a handshake.
fn out_of_turn() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a frame of an unknown type", frame(9, 0, b"?")),
        ("a frame of type 0", frame(0, 0, &[])),
        ("a method of an unknown class", method(0, (999, 1), &[])),
        ("a method of an unknown number", method(0, (10, 999), &[])),
        ("a method without arguments", method(0, (10, 30), &[])),
        ("half a method", frame(1, 0, &[0])),
        ("a second start", amqp::start()),
        ("an answer to a question never asked", method(0, (50, 11), &[&[0; 9]])),
        ("a close-ok", method(0, amqp::CLOSE_OK, &[])),
        ("a delivery", deliver(0, 1, 3, b"hey")),
        ("a body", frame(3, 0, b"body")),
        ("a content header", frame(2, 0, &[0; 14])),
        ("a method on a channel", method(7, (10, 30), &[&[0; 8]])),
        ("a frame with a wrong end", [&frame(1, 0, &[0, 10, 0, 41, 0])[..12], &[0]].concat()),
        ("half a frame and a close", amqp::start()[..9].to_vec()),
    ]
}

#[test]
fn words_out_of_turn_at_each_step_of_the_handshake_are_no_broker() {
    for step in [amqp::START_OK, amqp::TUNE_OK, amqp::OPEN] {
        for (what, words) in out_of_turn() {
            println!("{what} after {step:?}");
            let half = what.contains("half a frame");
            both_end(if half && step == amqp::START_OK { 77 } else { 69 }, move |stream| {
                amqp::play_until(stream, step)?;
                stream.write_all(&words)?;
                if half { Ok(()) } else { hold(stream) }
            });
        }
    }
}

#[test]
fn a_table_without_end_in_the_greeting_is_no_broker() {
    let properties = table(&entry(b"abyss", b'A', &nested(25_000)));
    both_end(69, move |stream| {
        let rest = [&[0, 0, 0, 5][..], b"PLAIN", &[0, 0, 0, 5], b"en_US"].concat();
        stream.write_all(&method(0, (10, 10), &[&[0, 9], &properties, &rest]))?;
        // It goes on from there, and so do we not.
        amqp::serve_until(stream, amqp::START_OK)?;
        stream.write_all(&frame(9, 0, &[]))?;
        hold(stream)
    });
}

/// A broker that greets with these numbers, and takes one task.
fn tuned(channels: u16, frame_max: u32, heartbeat: u16) -> Finished {
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        amqp::play_until(stream, amqp::START_OK)?;
        stream.write_all(&amqp::tune(channels, frame_max, heartbeat))?;
        let publish = amqp::serve_until(stream, amqp::PUBLISH)?;
        stream.write_all(&amqp::confirm(publish.channel, 1, false))?;
        amqp::play(stream)
    });
    let options = ["--connect-timeout", "5s", "--retry-for", "5s", "--file", "-"];
    let mut send = sandbox.taskq(["send"].iter().chain(&options)).env("TASKQ_URL", server.url()).start();
    send.write("x".repeat(20_000));
    send.close_stdin();
    let (ended, peak) = end(send, Duration::from_secs(10) + SLACK);
    assert!(peak < MEMORY, "{peak} KiB");
    ended.never_says("panicked")
}

#[test]
fn absurd_tuning_is_lived_with_or_refused() {
    for (channels, frame_max, heartbeat) in
        [(0, 0, 0), (1, 4096, 1), (u16::MAX, u32::MAX, u16::MAX), (2047, 4096, 0), (1, 0, u16::MAX)]
    {
        println!("{channels} {frame_max} {heartbeat}");
        tuned(channels, frame_max, heartbeat).exits(0);
    }
    for frame_max in [1, 7, 8, 4095] {
        println!("{frame_max}");
        tuned(2047, frame_max, 60).exits(69).in_one_line();
    }
}

#[test]
fn fewer_channels_than_threads_are_a_matter_of_configuration() {
    let sandbox = Sandbox::new();
    let limited = format!("{}?channel_max=2", sandbox.url());
    let worker = sandbox.taskq(["work", "--threads", "4"]).env("TASKQ_URL", limited).run();
    worker.exits(78).says("channel_max").never_says("lost the connection");
    let server = Script::run(move |stream| {
        amqp::play_until(stream, amqp::START_OK)?;
        stream.write_all(&amqp::tune(1, 131_072, 60))?;
        amqp::play(stream)
    });
    let worker = sandbox.taskq(["work", "--threads", "2"]).env("TASKQ_URL", server.url()).run();
    worker.exits(78).says("channel_max").never_says("lost the connection");
}

#[test]
fn connections_that_end_at_the_first_channel_are_no_hot_loop() {
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        // The first is for the queue.
        let open = amqp::play_until(stream, amqp::CHANNEL_OPEN)?;
        stream.write_all(&amqp::answer(open.channel, amqp::CHANNEL_OPEN).unwrap())?;
        amqp::serve_until(stream, amqp::CHANNEL_OPEN).map(drop)
    });
    let worker = sandbox.taskq(["work", "--dots"]).env("TASKQ_URL", server.url()).start();
    let mut pauses = Vec::new();
    for connection in 2..7 {
        let began = std::time::Instant::now();
        until("another connection", || (server.connections() >= connection).then_some(()));
        pauses.push(began.elapsed());
    }
    assert!(pauses[4] > pauses[0], "the pauses do not grow: {pauses:?}");
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(20)).exits_with_one_of(&[0, 69, 143]);
}

/// What no broker says on a channel.
fn nonsense(channel: u16) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a frame of an unknown type", frame(200, channel, b"?")),
        ("a method of an unknown class", method(channel, (999, 1), &[])),
        ("a client's method", method(channel, amqp::CONSUME, &[&[0; 10]])),
        ("a connection's method", method(channel, (10, 41), &[&[0]])),
        ("a heartbeat on a channel", frame(8, channel, &[])),
        ("a body out of nowhere", frame(3, channel, b"body")),
        ("a content header out of nowhere", amqp::content(channel, 3, 0, &[], b"")),
        ("an unknown consumer's delivery", deliver(channel, 1, 3, b"hey")),
        ("two deliveries in one", deliver(channel, 1, 100, b"hey").repeat(2)),
        ("a body longer than announced", deliver(channel, 1, 2, b"hey")),
        ("a flow", method(channel, (20, 20), &[&[0]])),
        ("another channel's close", amqp::channel_close(channel + 9, 404, "NOT_FOUND")),
        ("an open-ok of an open channel", method(channel, (20, 11), &[&[0; 4]])),
        ("a cancel-ok that was not asked for", method(channel, (60, 31), &[&[3], b"tag"])),
        ("a get that was not asked for", method(channel, (60, 72), &[&[0]])),
        ("a close of code 0 without words", amqp::connection_close(0, "")),
    ]
}

#[test]
fn nonsense_in_place_of_a_confirm_does_not_count_as_one() {
    for (nth, (what, _)) in nonsense(0).into_iter().enumerate() {
        println!("{what}");
        send_ends(amqp::PUBLISH, move |stream, channel| {
            stream.write_all(&nonsense(channel).swap_remove(nth).1)?;
            hold(stream)
        });
    }
}

#[test]
fn heartbeats_are_no_confirm_and_extend_no_deadline() {
    for step in [amqp::CHANNEL_OPEN, amqp::PUBLISH] {
        send_ends(step, |stream, _| {
            loop {
                stream.write_all(&amqp::heartbeat())?;
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }
}

#[test]
fn confirms_of_tags_that_were_never_given_confirm_nothing() {
    send_ends(amqp::PUBLISH, |stream, channel| {
        for tag in [0, 2, 999, u64::MAX] {
            stream.write_all(&amqp::confirm(channel, tag, false))?;
        }
        hold(stream)
    });
}

#[test]
fn confirms_without_end_extend_no_deadline() {
    send_ends(amqp::PUBLISH, |stream, channel| {
        let flood = amqp::confirm(channel, 7, false).repeat(1000);
        loop {
            stream.write_all(&flood)?;
        }
    });
}

#[test]
fn a_task_that_came_back_is_not_sent_whatever_became_of_its_id() {
    // Without any; with another one; with one that is no text.
    let ids: [(u16, &[u8]); 3] = [(0, b""), (MESSAGE_ID, b"\x05other"), (MESSAGE_ID, b"\x02\xff\xfe")];
    for (flags, id) in ids {
        send_ends(amqp::PUBLISH, move |stream, channel| {
            let mut tag = 1;
            loop {
                stream.write_all(&amqp::return_with(channel, "elsewhere", flags, &[id]))?;
                stream.write_all(&amqp::confirm(channel, tag, false))?;
                let publish = amqp::serve_until(stream, amqp::PUBLISH)?;
                tag = if publish.channel == channel { tag + 1 } else { 1 };
            }
        });
    }
}

#[test]
fn returns_without_end_fill_no_memory() {
    send_ends(amqp::PUBLISH, |stream, channel| {
        let flood = amqp::return_with(channel, "queue", 0, &[]).repeat(1000);
        loop {
            stream.write_all(&flood)?;
        }
    });
}

#[test]
fn a_worker_survives_nonsense_on_its_channel() {
    for (nth, (what, words)) in nonsense(0).into_iter().enumerate() {
        // These are no reason to leave.
        if what.contains("delivery") && !what.contains("deliveries")
            || what.contains("not asked")
            || words.is_empty()
        {
            continue;
        }
        println!("{what}");
        worker_survives(move |stream, channel| {
            stream.write_all(&nonsense(channel).swap_remove(nth).1)?;
            // For those that amiquip lets pass: nothing more comes.
            hold(stream)
        });
    }
}

/// A worker gets this task and answers it.
fn is_worked(flags: u16, properties: Vec<u8>, tag: u64) {
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        let consume = amqp::play_until(stream, amqp::CONSUME)?;
        stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
        stream.write_all(&deliver_with(consume.channel, tag, 3, flags, &[&properties], b"hey"))?;
        amqp::play(stream)
    });
    let worker = sandbox.taskq(["work"]).env("TASKQ_URL", server.url()).start();
    worker.says("Received a message: hey\nDone\n");
    assert!(worker.peak_memory() < MEMORY);
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(20)).exits(0).never_says("panicked");
    assert_eq!(server.connections(), 1);
}

#[test]
fn hostile_headers_make_a_task_like_any_other() {
    is_worked(HEADERS, table(&entry(b"abyss", b'A', &nested(25_000))), 1);
    is_worked(HEADERS, table(&entry(b"\xff\xfe", b'S', &table(b"\xff"))), 1);
    is_worked(HEADERS, table(&entry(b"", b'V', b"").repeat(40_000)), 1);
    is_worked(HEADERS, table(&entry(b"", b'A', &table(&vec![b'V'; 100_000]))), 1);
    is_worked(HEADERS, table(&entry(b"x-taskq-attempt", b'F', &table(b""))), 1);
    is_worked(HEADERS, table(&entry(b"x-delivery-count", b'l', &[0xff; 8])), 1);
    is_worked(CONTENT_TYPE | MESSAGE_ID, [&[255][..], &[0x1b; 255], &[255], &[0xff; 255]].concat(), 1);
    is_worked(0, vec![], u64::MAX);
    is_worked(0, vec![], 0);
}

#[test]
fn headers_that_break_off_cost_the_connection_and_nothing_else() {
    for broken in [
        vec![0xff; 4],
        vec![0, 0, 0, 9, 1, b'a', b'S', 0, 0, 0, 99],
        table(&entry(b"a", b'?', b"")),
        table(&entry(b"a", b'I', b"")),
    ] {
        worker_survives(move |stream, channel| {
            stream.write_all(&deliver_with(channel, 1, 3, HEADERS, &[&broken], b"hey"))?;
            hold(stream)
        });
    }
}

/// A faultless broker whose words are garbled now and then on their way.
struct Garbler<'s> {
    stream: &'s mut TcpStream,
    rng: Rng,
    /// One byte of so many.
    rate: u64,
}

impl io::Read for Garbler<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.stream.read(room)
    }
}

impl io::Write for Garbler<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut garbled = bytes.to_vec();
        for byte in &mut garbled {
            if self.rng.below(self.rate) == 0 {
                *byte = u8::try_from(self.rng.below(256)).unwrap();
            }
        }
        if self.rng.below(self.rate) == 0 {
            garbled.truncate(usize::try_from(self.rng.below(bytes.len() as u64 + 1)).unwrap());
        }
        self.stream.write_all(&garbled)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many brokers garble, for each command.
const GARBLERS: u64 = 40;

#[test]
fn garbled_words_end_in_time_with_a_documented_code() {
    let mut seeds = Rng::new();
    let seeds: Vec<u64> = (0..GARBLERS).map(|_| seeds.below(u64::MAX) | 1).collect();
    std::thread::scope(|scope| {
        for part in seeds.chunks(seeds.len() / 4) {
            scope.spawn(|| part.iter().for_each(|seed| garbled(*seed)));
        }
    });
}

fn garbled(seed: u64) {
    println!("seed {seed}");
    let sandbox = Sandbox::new();
    let server = Script::run(move |stream| {
        let rng = Rng::from(seed);
        let mut stream = Garbler { stream, rng, rate: 60 };
        let publish = amqp::play_until(&mut stream, amqp::PUBLISH)?;
        stream.write_all(&amqp::confirm(publish.channel, 1, false))?;
        amqp::play(&mut stream)
    });
    let options = ["--connect-timeout", "1s", "--heartbeat", "1s"];
    let send = ["send", "hello", "--retry-for", "1s"];
    let send = sandbox.taskq(send.iter().chain(&options)).env("TASKQ_URL", server.url()).start();
    let (ended, peak) = end(send, Duration::from_secs(2) + SLACK);
    assert!([0, 65, 69, 75, 77, 78].contains(&ended.code), "seed {seed}: {}: {}", ended.code, ended.stderr);
    assert!(!ended.stderr.contains("panicked") && peak < MEMORY, "seed {seed}: {peak} KiB: {}", ended.stderr);

    let server = Script::run(move |stream| {
        let rng = Rng::from(seed);
        let mut stream = Garbler { stream, rng, rate: 100 };
        let consume = amqp::play_until(&mut stream, amqp::CONSUME)?;
        stream.write_all(&amqp::answer(consume.channel, amqp::CONSUME).unwrap())?;
        for tag in 1..20 {
            let properties: [&[u8]; 2] = [&table(&entry(b"name", b'S', &table(b"value"))), b"\x02id"];
            stream.write_all(&deliver_with(
                consume.channel,
                tag,
                4,
                HEADERS | MESSAGE_ID,
                &properties,
                b"task",
            ))?;
        }
        amqp::play(&mut stream)
    });
    let worker = sandbox.taskq(["work"].iter().chain(&options)).env("TASKQ_URL", server.url()).start();
    let mut worker = Some(worker);
    until("some connections, or an end", || {
        let ended = !worker.as_mut()?.is_running();
        let worked = worker.as_ref()?.stderr().matches("Done").count() >= 19;
        (ended || worked || server.connections() >= 3).then_some(())
    });
    let mut worker = worker.take().unwrap();
    if worker.is_running() {
        worker.signal(SIGTERM);
    }
    let (ended, peak) = end(worker, Duration::from_secs(20));
    let documented = [0, 69, 77, 78, 143].contains(&ended.code);
    assert!(documented, "seed {seed}: {}: {}", ended.code, ended.stderr);
    assert!(!ended.stderr.contains("panicked") && peak < MEMORY, "seed {seed}: {peak} KiB: {}", ended.stderr);
}

/// All that a method's own step may be answered with, and is not.
const WRONG_ANSWERS: [Method; 4] = [(60, 11), (50, 11), (20, 41), (85, 11)];

#[test]
fn answers_to_other_questions_are_no_answers() {
    for step in [amqp::CHANNEL_OPEN, amqp::DECLARE] {
        for wrong in WRONG_ANSWERS {
            println!("{wrong:?} to {step:?}");
            send_ends(step, move |stream, channel| {
                stream.write_all(&method(channel, wrong, &[&[0; 9]]))?;
                hold(stream)
            });
        }
    }
}
