//! What networks do to connections without telling: bytes that vanish one way, peers that are gone, resets in the
//! middle of a frame. A heartbeat finds it out, every wait ends when it should, and no task is lost.

use crate::support::proxy::DIRECTIONS;
use crate::support::{Direction, Process, Proxy, Rng, Sandbox, poll, until};
use nix::sys::signal::Signal::SIGTERM;
use std::collections::HashSet;
use std::time::Duration;

/// Short, so that the tests are.
const HEARTBEAT: &str = "3s";

/// A dead peer is to be found within two heartbeats; a busy machine needs more. Less than with the heartbeat that
/// taskq has when it is not told.
const FOUND: Duration = Duration::from_secs(6 * 3);

type Death = fn(&Proxy);

/// How a connection can be dead without having been closed.
const DEATHS: [(&str, Death); 4] = [
    ("nothing moves", Proxy::stall),
    ("the broker's words vanish", |proxy| proxy.vanish(Direction::ToClient)),
    ("the client's words vanish", |proxy| proxy.vanish(Direction::ToBroker)),
    ("the broker is gone and nobody was told", Proxy::half_open),
];

fn works_on(sandbox: &Sandbox, worker: Process) {
    sandbox.broker().publish(&sandbox.queue, "still there");
    worker.says("Received a message: still there\nDone\n");
    // Before that an acknowledgement may be under way on a connection that is dead.
    sandbox.broker().wait_ready(&sandbox.queue, 0);
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn a_worker_finds_a_dead_connection_and_works_on_when_the_network_heals() {
    for (death, kill) in DEATHS {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        let worker = sandbox.worker(["--heartbeat", HEARTBEAT, "--connect-timeout", "2s"]);
        sandbox.broker().wait_consumers(&sandbox.queue, 1);
        let before = proxy.accepted();
        kill(&proxy);
        poll::within(FOUND, death, || (proxy.accepted() > before).then_some(()));
        worker.says("lost the connection");
        proxy.resume();
        works_on(&sandbox, worker);
    }
}

#[test]
fn a_task_that_runs_when_the_connection_dies_is_finished_and_not_run_again() {
    for (death, kill) in DEATHS {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        let worker = sandbox.worker(["--heartbeat", HEARTBEAT, "--connect-timeout", "2s", "--threads", "2"]);
        sandbox.taskq(["send", "only once ..."]).run().exits(0);
        worker.says("Received a message: only once");
        kill(&proxy);
        worker.says("Done");
        worker.says("lost the connection");
        proxy.resume();
        sandbox.broker().wait_consumers(&sandbox.queue, 2);
        works_on(&sandbox, worker);
        let _ = death;
    }
}

#[test]
fn a_send_that_waits_for_confirms_finds_a_dead_connection_and_sends_again() {
    for (death, kill) in DEATHS {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        let options =
            ["--print-ids", "--heartbeat", HEARTBEAT, "--connect-timeout", "2s", "--retry-for", "60s"];
        let mut send = sandbox.taskq(["send", "--lines"].iter().chain(&options)).start();
        send.write("one\ntwo\n");
        send.prints_lines(2);
        let before = proxy.accepted();
        kill(&proxy);
        send.write("three\nfour\n");
        send.close_stdin();
        poll::within(FOUND, death, || (proxy.accepted() > before).then_some(()));
        proxy.resume();
        send.end().exits(0).says(" [x] Sent 4 tasks");
        let sent: HashSet<String> = sandbox.broker().bodies(&sandbox.queue).into_iter().collect();
        assert_eq!(sent.len(), 4, "{death}: {sent:?}");
    }
}

#[test]
fn a_send_whose_broker_stays_away_ends_at_its_deadline_with_exact_counts() {
    for (death, kill) in DEATHS {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        let unsent = sandbox.path("unsent");
        let bounds = ["--retry-for", "2s", "--heartbeat", HEARTBEAT, "--connect-timeout", "2s"];
        let options = ["--print-ids", "--unsent", unsent.to_str().unwrap()];
        let mut send = sandbox.taskq(["send", "--lines"].iter().chain(&bounds).chain(&options)).start();
        send.write("one\ntwo\n");
        send.prints_lines(2);
        kill(&proxy);
        // A half-open connection would be replaced by a sound one.
        proxy.vanish(Direction::ToClient);
        send.write("three\nfour\n");
        send.close_stdin();
        let ended = send.end_within(Duration::from_secs(2) + FOUND).exits_with_one_of(&[69, 75]);
        assert!(ended.stderr.contains("2 tasks confirmed, 2 not"), "{death}: {}", ended.stderr);
        assert_eq!(std::fs::read_to_string(&unsent).unwrap(), "three\nfour\n", "{death}");
    }
}

#[test]
fn a_single_send_into_a_network_that_swallows_one_way_ends_at_its_deadline() {
    for direction in DIRECTIONS {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        proxy.vanish(direction);
        let options = ["--connect-timeout", "2s", "--retry-for", "60s"];
        let send = sandbox.taskq(["send", "hello"].iter().chain(&options)).start();
        send.end_within(Duration::from_secs(2) + FOUND).exits(69).in_one_line().says("connect timeout");
        let worker = sandbox.taskq(["work", "--connect-timeout", "2s"]).start();
        worker.end_within(Duration::from_secs(2) + FOUND).exits(69).in_one_line();
    }
}

/// Positions all over the handshake, the declarations and the publish, in steps that fall into every kind of frame.
const CUTS: std::ops::Range<usize> = 0..900;
const STEP: usize = 53;

#[test]
fn a_reset_in_the_middle_of_any_frame_loses_nothing_and_duplicates_no_success() {
    for direction in DIRECTIONS {
        for cut in CUTS.step_by(STEP) {
            let mut sandbox = Sandbox::new();
            let proxy = sandbox.through_proxy();
            proxy.reset_after(direction, cut);
            let sent = sandbox.taskq(["send", "--retry-for", "20s", "hello"]).run();
            // On the first connect a reset after the login looks like a refusal.
            let sent = sent.exits_with_one_of(&[0, 69, 77]).never_says("panicked");
            let queued = sandbox.broker().counts(&sandbox.queue).map_or(0, |(ready, _)| ready);
            assert!(sent.code != 0 || queued >= 1, "{direction:?} after {cut} bytes: it is nowhere");
            assert!(queued <= 2, "{direction:?} after {cut} bytes: {queued} tasks");
        }
    }
}

#[test]
fn a_worker_that_is_reset_in_the_middle_of_any_frame_works_on() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--threads", "2"]);
    let broker = sandbox.broker();
    for direction in DIRECTIONS {
        for cut in CUTS.step_by(STEP * 3) {
            broker.wait_consumers(&sandbox.queue, 2);
            let before = proxy.accepted();
            proxy.reset_after(direction, cut);
            let task = format!("{direction:?} {cut}");
            let mut more = 0;
            until("a new connection", || {
                if proxy.accepted() > before {
                    return Some(());
                }
                // Traffic, so that the reset comes.
                more += 1;
                broker.publish(&sandbox.queue, format!("{task} <{more}>"));
                None
            });
            until("every task", || {
                let stderr = worker.stderr();
                (1..=more).all(|n| stderr.contains(&format!("{task} <{n}> ("))).then_some(())
            });
        }
    }
    broker.wait_consumers(&sandbox.queue, 2);
    assert!(!worker.stderr().contains("panicked"));
    works_on(&sandbox, worker);
}

#[test]
fn network_faults_of_all_kinds_lose_no_task() {
    const COUNT: usize = 600;
    let mut rng = Rng::new();
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let bounds = ["--heartbeat", "1s", "--connect-timeout", "2s"];
    let worker = sandbox.worker(["--threads", "4"].iter().chain(&bounds));
    let options = ["--print-ids", "--retry-for", "5m"];
    let mut send = sandbox.taskq(["send", "--lines"].iter().chain(&options).chain(&bounds)).start();
    send.write("the first\n");
    send.prints_lines(1);
    for part in 0..12 {
        let lines: Vec<String> =
            (0..COUNT / 12).map(|n| format!("task <{}>\n", part * COUNT / 12 + n)).collect();
        send.write(lines.concat());
        match rng.below(6) {
            0 => proxy.vanish(Direction::ToBroker),
            1 => proxy.vanish(Direction::ToClient),
            2 => proxy.half_open(),
            3 => proxy.delay(Duration::from_millis(100)),
            4 => proxy.stall(),
            _ => proxy.reset_after(DIRECTIONS[part % 2], usize::try_from(rng.below(3000)).unwrap()),
        }
        rng.pause(4000);
        proxy.resume();
        rng.pause(1000);
    }
    send.close_stdin();
    let sent = send.end_within(Duration::from_mins(2)).exits(0);
    assert_eq!(sent.stdout_lines().len(), COUNT + 1);
    poll::within(Duration::from_mins(2), "every task done", || {
        let stderr = worker.stderr();
        (0..COUNT).all(|n| stderr.contains(&format!("task <{n}> ("))).then_some(())
    });
    works_on(&sandbox, worker);
}
