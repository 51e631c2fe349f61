//! Alarms: a broker that is low on memory or disk takes no publish. The user is told, `send` ends at its deadline with
//! exact counts, and `work` acknowledges as always.

use crate::support::sandbox::LARGE;
use crate::support::{Sandbox, until};
use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use std::collections::HashSet;
use std::time::Duration;

/// How much longer than its limit a wait may take on a busy machine.
const SLACK: Duration = Duration::from_secs(20);

/// How an alarm is raised, how it ends, and what the broker calls it.
const ALARMS: [[&[&str]; 2]; 2] = [
    [&["set_vm_memory_high_watermark", "0.000001"], &["set_vm_memory_high_watermark", "0.4"]],
    [&["set_disk_free_limit", "100000GB"], &["set_disk_free_limit", "1MB"]],
];

/// It is raised when the broker has looked at its memory or disk again.
fn raise_alarm(sandbox: &Sandbox, raise: &[&str]) {
    sandbox.node().ctl(raise);
    until("the alarm", || {
        let alarms = sandbox.node().ctl(&["-q", "eval", "rabbit_alarm:get_alarms()."]);
        alarms.contains("resource_limit").then_some(())
    });
}

fn lines(range: std::ops::Range<usize>) -> String {
    range.fold(String::new(), |lines, n| lines + "task " + &n.to_string() + "\n")
}

#[test]
fn a_bulk_send_that_is_blocked_in_the_middle_ends_with_exact_counts() {
    for [raise, end] in ALARMS {
        let sandbox = Sandbox::exclusive();
        let unsent = sandbox.path("unsent");
        let options = ["--print-ids", "--retry-for", "4s", "--unsent", unsent.to_str().unwrap()];
        let mut send = sandbox.taskq(["send", "--lines"].iter().chain(&options)).start();
        send.write(lines(0..300));
        send.prints_lines(300);
        raise_alarm(&sandbox, raise);
        send.write(lines(300..500));
        send.close_stdin();
        let sent = send.end_within(Duration::from_secs(4) + SLACK).exits(75);
        let sent = sent.says("has blocked publishing").says("300 tasks confirmed, 200 not");
        assert_eq!(sent.stdout_lines().len(), 300);
        assert_eq!(std::fs::read_to_string(&unsent).unwrap(), lines(300..500));
        sandbox.node().ctl(end);
        // What was saved goes through now; the broker may have taken some of it already.
        let path = unsent.to_str().unwrap();
        sandbox.taskq(["send", "--lines", "--file", path, "--unsent", path]).run().exits(0);
        let queued: HashSet<String> = sandbox.broker().bodies(&sandbox.queue).into_iter().collect();
        assert_eq!(queued.len(), 500);
        assert_eq!(std::fs::read(&unsent).unwrap(), b"");
    }
}

#[test]
fn a_send_goes_on_when_the_alarm_is_over_in_time() {
    for [raise, end] in ALARMS {
        let sandbox = Sandbox::exclusive();
        sandbox.broker().declare(&sandbox.queue);
        raise_alarm(&sandbox, raise);
        let single = sandbox.taskq(["send", "--retry-for", "2m", "single"]).start();
        let mut bulk = sandbox.taskq(["send", "--lines", "--retry-for", "2m"]).start();
        bulk.write(lines(0..50));
        bulk.close_stdin();
        single.says("has blocked publishing");
        bulk.says("has blocked publishing");
        sandbox.node().ctl(end);
        single.end().exits(0).says("accepts publishes again").says(" [x] Sent single");
        bulk.end().exits(0).says(" [x] Sent 50 tasks");
        assert_eq!(sandbox.broker().bodies(&sandbox.queue).len(), 51);
    }
}

#[test]
fn a_single_send_ends_at_its_deadline_and_says_why() {
    for [raise, end] in ALARMS {
        let sandbox = Sandbox::exclusive();
        sandbox.broker().declare(&sandbox.queue);
        raise_alarm(&sandbox, raise);
        let send = sandbox.taskq(["send", "--retry-for", "2s", "hello"]).start();
        let sent = send.end_within(Duration::from_secs(2) + SLACK).exits(75);
        sent.says("has blocked publishing").says("safe to try again").never_says("Sent");
        sandbox.node().ctl(end);
    }
}

#[test]
fn a_send_of_a_large_body_ends_at_its_deadline_or_with_a_signal_and_says_why() {
    let sandbox = Sandbox::for_large_bodies();
    sandbox.broker().declare(&sandbox.queue);
    let body = sandbox.file("body", vec![b'x'; LARGE]);
    let body = body.to_str().unwrap();
    let [raise, end] = ALARMS[0];
    raise_alarm(&sandbox, raise);
    let send = sandbox.taskq(["send", "--retry-for", "2s", "--file", body]).start();
    let sent = send.end_within(Duration::from_secs(2) + SLACK).exits(75);
    sent.says("has blocked publishing").says("safe to try again").never_says("Sent");
    // The input does not end; it is in the middle of a large one when the signal comes.
    let unsent = sandbox.path("unsent");
    let options = ["--print-ids", "--retry-for", "1h", "--unsent", unsent.to_str().unwrap()];
    let mut send = sandbox.taskq(["send", "--null"].iter().chain(&options)).start();
    send.write([&vec![b'x'; LARGE][..], b"\0small\0"].concat());
    send.says("has blocked publishing");
    send.signal(SIGINT);
    let sent = send.end_within(SLACK).exits(130).says("0 tasks confirmed, 2 not");
    assert_eq!(sent.stdout_lines().len(), 0);
    assert_eq!(std::fs::read(&unsent).unwrap().len(), LARGE + 7);
    sandbox.node().ctl(end);
}

#[test]
fn a_send_of_large_headers_ends_at_its_deadline_and_says_why() {
    let sandbox = Sandbox::exclusive();
    sandbox.broker().declare(&sandbox.queue);
    let [raise, end] = ALARMS[0];
    raise_alarm(&sandbox, raise);
    // Some of 100 kB each, read at once.
    let header = format!("large={}", "x".repeat(100_000));
    let send = ["send", "--lines", "--retry-for", "2s", "--header", &header];
    let mut send = sandbox.taskq(send).start();
    send.write(lines(0..1000));
    let sent = send.end_within(Duration::from_secs(2) + SLACK).exits(75);
    sent.says("has blocked publishing").says("0 tasks confirmed, 1000 not");
    sandbox.node().ctl(end);
}

#[test]
fn a_large_body_that_was_held_up_goes_through_when_the_alarm_is_over() {
    let sandbox = Sandbox::for_large_bodies();
    sandbox.broker().declare(&sandbox.queue);
    let [raise, end] = ALARMS[0];
    raise_alarm(&sandbox, raise);
    let mut send = sandbox.taskq(["send", "--null", "--retry-for", "2m"]).start();
    send.write([b"before\0", &vec![b'x'; LARGE][..], b"\0after\0"].concat());
    send.close_stdin();
    send.says("has blocked publishing");
    sandbox.node().ctl(end);
    send.end().exits(0).says("accepts publishes again").says(" [x] Sent 3 tasks").never_says("is down");
    let lengths: Vec<usize> = sandbox.broker().bodies(&sandbox.queue).iter().map(String::len).collect();
    assert_eq!(lengths, [6, LARGE, 5]);
}

#[test]
fn failed_tasks_of_any_size_wait_for_the_end_of_an_alarm() {
    for [raise, end] in ALARMS {
        let sandbox = Sandbox::for_large_bodies();
        let tasks = [&b"bad "[..], &vec![b'x'; LARGE][..], b"\0bad\0good\0"].concat();
        sandbox.taskq(["send", "--null"]).feed(tasks).exits(0);
        raise_alarm(&sandbox, raise);
        let worker = sandbox.handling(&["--backoff", "1h"], "! grep -q bad");
        worker.says("has blocked publishing").says_times("Done", 1);
        sandbox.node().ctl(end);
        worker.says("accepts publishes again");
        let broker = sandbox.broker();
        let later = sandbox.delay_queue(3_600_000);
        broker.wait_ready(&later, 2);
        worker.signal(SIGTERM);
        worker.end_within(SLACK).exits(0).never_says("is down");
        assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
        let mut lengths: Vec<usize> = broker.bodies(&later).iter().map(String::len).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [3, LARGE + 4]);
    }
}

#[test]
fn a_worker_says_how_many_tasks_an_alarm_holds_also_where_it_is_to_say_little() {
    let [raise, end] = ALARMS[0];
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "bad"]).run().exits(0);
    raise_alarm(&sandbox, raise);
    let options = ["--backoff", "1h", "--quiet", "--log-format", "json"];
    let worker = sandbox.work_with(&options, "exit 1").start();
    worker.says("has blocked publishing");
    sandbox.node().ctl(end);
    worker.says("accepts publishes again");
    sandbox.broker().wait_ready(&sandbox.delay_queue(3_600_000), 1);
    worker.signal(SIGTERM);
    let said = worker.end_within(SLACK).exits(0).stderr;
    let blocked: Vec<_> = said.lines().filter(|line| line.contains("publishing_blocked")).collect();
    assert_eq!(blocked.len(), 1, "{said}");
    assert!(blocked[0].contains("1 task waits here, unacknowledged, until it takes its copy"), "{said}");
    assert!(blocked[0].contains(r#""level":"warning""#) && blocked[0].contains(r#""tasks":1"#), "{said}");
}

#[test]
fn a_worker_stops_in_time_while_a_large_failed_task_waits_for_the_end_of_an_alarm() {
    let sandbox = Sandbox::for_large_bodies();
    sandbox.taskq(["send", "--file", "-"]).feed(vec![b'x'; LARGE]).exits(0);
    let [raise, end] = ALARMS[0];
    raise_alarm(&sandbox, raise);
    let worker = sandbox.handling(&["--backoff", "1h"], "exit 1");
    worker.says("has blocked publishing");
    worker.signal(SIGTERM);
    worker.end_within(SLACK).exits(0).says("1 task whose copy is not kept goes back to the queue");
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.queue, 1);
    assert_eq!(broker.counts(&sandbox.delay_queue(3_600_000)), Some((0, 0)));
    sandbox.node().ctl(end);
}

#[test]
fn a_worker_takes_finishes_and_acknowledges_during_an_alarm() {
    for [raise, end] in ALARMS {
        let sandbox = Sandbox::exclusive();
        sandbox.taskq(["send", "--lines"]).feed("one ..\ntwo .\nthree ..\nfour ..\nlong ......\n").exits(0);
        let worker = sandbox.worker(["--threads", "2"]);
        raise_alarm(&sandbox, raise);
        worker.says("Received a message: long");
        worker.signal(SIGTERM);
        let worked = worker.end_within(SLACK * 2).exits(0);
        assert_eq!(worked.stderr.matches("Done").count(), 5, "{}", worked.stderr);
        let another = sandbox.taskq(["work", "--until-empty"]).start();
        another.end_within(SLACK).exits(0).never_says("Received");
        until("every acknowledgement", || {
            let list = sandbox.node().ctl(&["-q", "list_queues", "name", "messages"]);
            list.contains(&format!("{}\t0", sandbox.queue)).then_some(())
        });
        sandbox.node().ctl(end);
    }
}
