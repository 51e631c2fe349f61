//! Copies that the broker refuses as they are: the properties that it refuses are left out and named, and where that
//! does not help, the task waits for its copy and does not run again.

use crate::support::amqp::{self, ACK, Frame, PUBLISH, deliver_with};
use crate::support::handler::{attempt, body, header};
use crate::support::raw::{self, CONTENT_TYPE, HEADERS, MESSAGE_ID, entry, table};
use crate::support::script::Script;
use crate::support::{Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const HOUR: u64 = 3_600_000;
const REPLY_TO: u16 = 1 << 9;

/// Keeps the delay queue of one hour at one task: more are refused.
fn fill_up(sandbox: &Sandbox) {
    let pattern = format!("^{}$", sandbox.delay_queue(HOUR).replace('.', "[.]"));
    let full = r#"{"max-length":1,"overflow":"reject-publish"}"#;
    sandbox.node().ctl(&["set_policy", &sandbox.queue, &pattern, full]);
}

fn make_room(sandbox: &Sandbox) {
    sandbox.node().ctl(&["clear_policy", &sandbox.queue]);
}

/// A handler that records its run and fails.
const FAILS: &str = r#"echo "$(cat) $TASKQ_ATTEMPT" >>"$1/runs"; exit 1"#;

#[test]
fn a_task_whose_copy_is_refused_runs_no_more_often_for_it() {
    let sandbox = Sandbox::new();
    fill_up(&sandbox);
    sandbox.taskq(["send", "--lines"]).feed("1\n2\n3\n4\n").exits(0);
    let worker = sandbox.handling(&["--backoff", "1h"], FAILS);
    sandbox.wait_lines("runs", 4);
    worker.says("no copy is taken for").says("unacknowledged");
    // The others go on beside those that wait.
    sandbox.taskq(["send", "5"]).run().exits(0);
    sandbox.wait_lines("runs", 5);
    // The process knows how they ended, also when they are delivered to it again.
    sandbox.node().ctl(&["close_all_connections", "a test"]);
    worker.says("failed here before");
    make_room(&sandbox);
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.delay_queue(HOUR), 5);
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(sandbox.lines("runs").len(), 5, "{:?}", sandbox.lines("runs"));
    let copies = broker.drain(&sandbox.delay_queue(HOUR));
    assert!(copies.iter().all(|copy| attempt(copy) == Some(2) && header(copy, "x-taskq-dropped").is_empty()));
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn a_bounded_run_does_not_wait_for_a_copy_for_ever() {
    let sandbox = Sandbox::new();
    fill_up(&sandbox);
    sandbox.taskq(["send", "--lines"]).feed("1\n2\n3\n4\n").exits(0);
    let worked = sandbox.work_with(&["--backoff", "1h", "--until-empty"], FAILS).run().exits(75);
    worked.says("copies of tasks are refused");
    assert_eq!(sandbox.lines("runs"), ["1 1", "2 1", "3 1", "4 1"]);
    let broker = sandbox.broker();
    // A quorum queue takes one more than its limit.
    let kept = broker.ready(&sandbox.delay_queue(HOUR));
    assert!(kept < 4);
    broker.wait_ready(&sandbox.queue, 4 - kept);
}

#[test]
fn failed_tasks_go_back_at_once_when_the_worker_is_told_to_stop() {
    const TASKS: u32 = 40;
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "--lines"]).feed("bad\n".repeat(TASKS as usize)).exits(0);
    sandbox.node().memory_alarm(true);
    // As many as two threads set aside.
    let worker = sandbox.handling(&["--threads", "2", "--backoff", "1h", "--grace", "20s"], FAILS);
    sandbox.wait_lines("runs", 40);
    worker.says("has blocked publishing");
    worker.signal(SIGTERM);
    worker.end().exits(0).says("go back to the queue").never_says("finishing").never_says("giving up");
    sandbox.broker().wait_ready(&sandbox.queue, TASKS);
    sandbox.node().memory_alarm(false);
}

#[test]
fn a_copy_fits_the_frames_of_its_broker() {
    let sandbox = Sandbox::configured(&["frame_max = 8192"]);
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let headers = table(&entry(b"large", b'S', &table(&[b'x'; 7000])));
    raw::publish(sandbox.node().port(), &sandbox.queue, HEADERS, &[&headers], b"task");
    let script = r"head -c 5000 /dev/zero | tr '\0' e >&2; exit 1";
    let worker = sandbox.handling(&["--backoff", "1h"], script);
    let copy = broker.take(&sandbox.delay_queue(HOUR));
    assert_eq!((attempt(&copy), header(&copy, "large").len()), (Some(2), 7000));
    assert_eq!(header(&copy, "x-taskq-dropped"), "x-taskq-error");
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

#[test]
fn more_header_values_than_can_be_copied_hold_up_nobody() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let voids = entry(b"voids", b'A', &table(&vec![b'V'; 130_000]));
    raw::publish(sandbox.node().port(), &sandbox.queue, HEADERS, &[&table(&voids)], b"large");
    broker.publish(&sandbox.queue, "small");
    sandbox.work_with(&["--until-empty", "--attempts", "1"], "exit 1").run().exits(1);
    let mut dead = broker.drain(&sandbox.dead_queue());
    dead.sort_by_key(body);
    assert_eq!(dead.iter().map(body).collect::<Vec<_>>(), ["large", "small"]);
    assert_eq!(dead.iter().map(|task| header(task, "x-taskq-dropped")).collect::<Vec<_>>(), ["voids", ""]);
}

/// The routing key of a publish.
fn routing_key(frame: &Frame) -> String {
    // After class, method, a reserved number and the exchange, which is the default one.
    let key = &frame.payload[7..];
    String::from_utf8_lossy(&key[1..=usize::from(key[0])]).into_owned()
}

/// A broker that hands out one task with these properties and closes the channel with `words` over each copy of which
/// `offends` is true; returns the flags of the copies in their order, once the original is acknowledged.
fn copies_of(
    flags: u16,
    properties: Vec<u8>,
    words: &'static str,
    offends: fn(u16) -> bool,
) -> (Vec<u16>, crate::support::Finished) {
    let sandbox = Sandbox::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (copies, consumers, acks) = (Arc::clone(&seen), AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let acked = Arc::clone(&acks);
    let server = Script::run(move |stream| {
        let open = amqp::play_until(stream, amqp::OPEN)?;
        std::io::Write::write_all(stream, &amqp::answer(open.channel, amqp::OPEN).unwrap())?;
        let (mut tag, mut is_copy) = (0, false);
        amqp::serve_with(stream, |frame| match frame.method() {
            Some(amqp::CONSUME) if consumers.fetch_add(1, Ordering::SeqCst) == 0 => {
                let task = deliver_with(frame.channel, 1, 4, flags, &[&properties], b"task");
                Some([amqp::answer(frame.channel, amqp::CONSUME).unwrap(), task].concat())
            }
            Some(PUBLISH) => {
                tag += 1;
                is_copy = routing_key(frame).contains(".dead");
                // The permission to publish is asked for as well.
                (!is_copy).then(|| amqp::confirm(frame.channel, tag, false))
            }
            Some(ACK) => {
                acked.fetch_add(1, Ordering::SeqCst);
                None
            }
            None if is_copy && frame.payload.starts_with(&[0, 60, 0, 0]) => {
                let flags = u16::from_be_bytes([frame.payload[12], frame.payload[13]]);
                copies.lock().unwrap().push(flags);
                Some(if offends(flags) {
                    amqp::channel_close(frame.channel, 406, words)
                } else {
                    amqp::confirm(frame.channel, tag, false)
                })
            }
            _ => None,
        })
    });
    let worker = sandbox.work_with(&["--attempts", "1"], "exit 1").env("TASKQ_URL", server.url()).start();
    until("the acknowledgement", || (acks.load(Ordering::SeqCst) == 1).then_some(()));
    worker.signal(SIGTERM);
    let ended = worker.end().exits(0);
    (seen.lock().unwrap().clone(), ended)
}

#[test]
fn a_copy_that_the_broker_closes_the_channel_over_is_made_without_what_offends() {
    let names = [&b"\x05plain"[..], b"\x15amq.rabbitmq.reply-to", b"\x02id"].concat();
    let flags = CONTENT_TYPE | REPLY_TO | MESSAGE_ID;
    let words = "PRECONDITION_FAILED - fast reply consumer does not exist";
    let (copies, ended) = copies_of(flags, names.clone(), words, |flags| flags & REPLY_TO != 0);
    assert_eq!(copies.iter().map(|flags| flags & REPLY_TO != 0).collect::<Vec<_>>(), [true, false]);
    assert!(copies[1] & CONTENT_TYPE != 0, "the rest is kept");
    ended.says("without reply_to").says("fast reply consumer");
    // Whatever else it is that offends: the id and the record are left.
    let words = "PRECONDITION_FAILED - something new";
    let (copies, ended) = copies_of(flags, names, words, |flags| flags & CONTENT_TYPE != 0);
    assert_eq!(copies.iter().map(|flags| flags & (CONTENT_TYPE | REPLY_TO)).collect::<Vec<_>>()[1..], [0]);
    assert!(copies[1] & MESSAGE_ID != 0);
    ended.says("with its id and taskq's own headers alone");
}
