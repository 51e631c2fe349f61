//! Stopping while the broker is down, silent, frozen, or blocks the connection. Every wait has an end.

use crate::support::script::{Script, hold};
use crate::support::{Process, Proxy, Sandbox, until};
use nix::sys::signal::Signal::{self, SIGINT, SIGTERM};
use std::time::Duration;

/// The longest a stop may take that has no task to wait for, whatever the broker does.
const BOUND: Duration = Duration::from_secs(20);

const SIGNALS: [Signal; 2] = [SIGINT, SIGTERM];

/// It stops within the bound: cleanly, or saying that it could not.
fn stops(worker: Process, signal: Signal) {
    worker.signal(signal);
    worker.end_within(BOUND).exits_with_one_of(&[0, 69, 128 + signal as i32]);
}

fn idle_behind_a_proxy() -> (Sandbox, Proxy, Process) {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker(["--threads", "2"]);
    sandbox.broker().wait_consumers(&sandbox.queue, 2);
    (sandbox, proxy, worker)
}

#[test]
fn what_was_done_on_a_connection_that_is_lost_in_the_drain_is_told() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let gate = sandbox.path("gate");
    let script = format!("while ! test -e '{}'; do sleep 0.05; done", gate.display());
    let worker = sandbox.handling(&[], &script);
    sandbox.broker().publish(&sandbox.queue, "task");
    worker.says("Received a message");
    worker.signal(SIGTERM);
    worker.says("finishing 1 running");
    proxy.cut();
    // The broker has noticed.
    sandbox.broker().wait_ready(&sandbox.queue, 1);
    std::fs::write(gate, "").unwrap();
    worker.end().exits(0).says("Done\n").says("the last acknowledgement may be lost");
}

#[test]
fn it_stops_while_it_reconnects() {
    for signal in SIGNALS {
        let (_sandbox, proxy, worker) = idle_behind_a_proxy();
        let before = proxy.accepted();
        proxy.refuse();
        until("two further attempts", || (proxy.accepted() >= before + 2).then_some(()));
        stops(worker, signal);
    }
}

#[test]
fn it_stops_while_it_reconnects_to_a_silent_broker() {
    let (_sandbox, proxy, worker) = idle_behind_a_proxy();
    let before = proxy.accepted();
    proxy.stall();
    proxy.cut();
    until("another attempt", || (proxy.accepted() > before).then_some(()));
    stops(worker, SIGTERM);
    proxy.resume();
}

#[test]
fn it_stops_at_the_first_connect_to_a_silent_server() {
    for command in ["send", "work"] {
        for signal in SIGNALS {
            let sandbox = Sandbox::new();
            let silent = Script::run(hold);
            let process =
                sandbox.taskq([command, "--connect-timeout", "60s"]).env("TASKQ_URL", silent.url()).start();
            until("a connection", || (silent.connections() > 0).then_some(()));
            process.signal(signal);
            process.end_within(BOUND).exits_with_one_of(&[0, 69, 75, 128 + signal as i32]);
        }
    }
}

#[test]
fn it_stops_when_the_network_swallows_everything() {
    for signal in SIGNALS {
        let (_sandbox, proxy, worker) = idle_behind_a_proxy();
        proxy.stall();
        stops(worker, signal);
        proxy.resume();
    }
}

#[test]
fn a_task_is_finished_first_when_the_network_swallows_everything() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let worker = sandbox.worker([""; 0]);
    sandbox.broker().publish(&sandbox.queue, "long....");
    worker.says("Received a message");
    proxy.stall();
    worker.signal(SIGTERM);
    let stopped = worker.end_within(BOUND * 2).says("Done");
    // The acknowledgement never arrived: this must not look like success of everything.
    stopped.exits_with_one_of(&[0, 69, 75, 143]);
    proxy.refuse();
    proxy.resume();
    assert_eq!(sandbox.broker().take(&sandbox.queue).body, b"long....");
}

#[test]
fn a_frozen_broker_does_not_hold_up_a_stop() {
    let sandbox = Sandbox::exclusive();
    let idle = sandbox.worker(["--threads", "4"]);
    let busy = sandbox.worker([""; 0]);
    let broker = sandbox.broker();
    broker.wait_consumers(&sandbox.queue, 5);
    for n in 0..5 {
        broker.publish(&sandbox.queue, format!("{n} ...................................."));
    }
    until("all five busy", || {
        let received = |worker: &Process| worker.stderr().matches("Received").count();
        (received(&idle) == 4 && received(&busy) == 1).then_some(())
    });
    sandbox.node().freeze();
    // One gives up its tasks, the other one gets a second signal at once.
    idle.signal(SIGTERM).says("SIGTERM").signal(SIGINT);
    busy.signal(SIGINT).says("SIGINT").signal(SIGTERM);
    idle.end_within(BOUND).exits_with_one_of(&[130, 143]);
    busy.end_within(BOUND).exits_with_one_of(&[130, 143]);
    sandbox.node().thaw();
    broker.wait_ready(&sandbox.queue, 5);
}

#[test]
fn an_idle_worker_of_a_frozen_broker_stops() {
    let sandbox = Sandbox::exclusive();
    for signal in SIGNALS {
        let worker = sandbox.worker(["--threads", "4"]);
        sandbox.broker().wait_consumers(&sandbox.queue, 4);
        sandbox.node().freeze();
        stops(worker, signal);
        sandbox.node().thaw();
        sandbox.broker().wait_consumers(&sandbox.queue, 0);
    }
}

#[test]
fn a_memory_alarm_holds_up_neither_tasks_nor_a_stop() {
    let sandbox = Sandbox::exclusive();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    for n in 0..4 {
        broker.publish(&sandbox.queue, format!("{n}.."));
    }
    sandbox.node().memory_alarm(true);
    let worker = sandbox.worker([""; 0]);
    worker.says_times("Done", 2);
    worker.signal(SIGTERM);
    worker.end_within(BOUND).exits(0);
    let send = sandbox.taskq(["send", "--retry-for", "60s", "blocked"]).start();
    // It waits for the alarm to end, and says so, until it is told to stop.
    send.says("block");
    send.signal(SIGINT);
    send.end_within(BOUND).exits_with_one_of(&[75, 130]);
    sandbox.node().memory_alarm(false);
}
