//! `taskq send --lines` behind a slow producer, without the 40 ms that Nagle's algorithm and a delayed
//! acknowledgement of TCP cost each publish of a client that does not care.

use crate::support::Sandbox;
use std::time::{Duration, Instant};

const TASKS: usize = 1000;

/// What a pipe, two thread switches and a printed id may add to a round trip. The stall is a factor of 50 or more.
const ALLOWED_RATIO: u32 = 12;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_line_is_published_when_it_is_read_and_confirmed_without_a_stall() {
    let sandbox = Sandbox::new();
    let mut send = sandbox.taskq(["send", "--lines", "--print-ids"]).start();
    send.write("the first\n");
    send.prints_lines(1);
    let broker = sandbox.broker();
    let (mut taskq, mut plain) = (Vec::new(), Vec::new());
    for n in 0..TASKS {
        let started = Instant::now();
        send.write(format!("{n}\n"));
        // Each line only after the id of the one before it.
        send.prints_lines(n + 2);
        taskq.push(started.elapsed());

        // Alternating, so that whatever else the machine does slows both.
        let started = Instant::now();
        broker.publish(&sandbox.queue, "x");
        plain.push(started.elapsed());
    }
    send.close_stdin();
    send.end().exits(0);
    let (taskq, plain) = (median(taskq), median(plain));
    assert!(
        taskq < plain * ALLOWED_RATIO,
        "{taskq:?} a line, {plain:?} for a publish of the tests' own client"
    );
}
