//! Alarms: a broker that is low on memory or disk takes no publish. The user is told, `send` ends at its deadline with
//! exact counts, and `work` acknowledges as always.

use crate::support::{Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;
use std::collections::HashSet;
use std::time::Duration;

/// What a bounded wait may take longer than its bound.
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
