//! Several URLs: taskq gets past brokers that are down, silent or refuse access, to the one that answers.

use crate::support::script::{Script, hold};
use crate::support::{Node, Sandbox};
use std::net::TcpListener;

/// A port where nobody listens.
fn closed_port() -> String {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    Node::url_at(port)
}

/// Accepts connections and says nothing, as a frozen node does.
fn silent() -> Script {
    Script::run(hold)
}

/// A good URL with a bad password.
fn refusing(sandbox: &Sandbox) -> String {
    sandbox.url().replace("guest:guest@", "guest:opensesame@")
}

/// taskq tries the URLs from a random one on: enough runs for each to be the first.
const RUNS: usize = 4;

/// `send` and `work` reach the good broker beside these others, each time.
fn both_get_past(others: &[String]) {
    let sandbox = Sandbox::new();
    let urls = [others, &[sandbox.url().to_owned()]].concat().join(",");
    for run in 0..RUNS {
        let body = format!("task {run}");
        sandbox.taskq(["send", "--url", &urls, "--connect-timeout", "6s", &body]).run().exits(0);
        let work = ["work", "--url", &urls, "--connect-timeout", "6s", "--until-empty"];
        sandbox.taskq(work).run().exits(0).says(&format!("Received a message: {body}\n"));
    }
}

#[test]
fn a_broker_that_is_down_is_passed_over() {
    both_get_past(&[closed_port()]);
}

#[test]
fn a_broker_that_refuses_the_password_is_passed_over() {
    both_get_past(&[refusing(&Sandbox::new())]);
}

#[test]
fn a_frozen_broker_takes_only_its_share_of_the_connect_timeout() {
    let silent = silent();
    // The first URL is random: once in 256 rounds it is always the good one.
    for _ in 0..8 {
        both_get_past(&[silent.url()]);
        if silent.connections() > 0 {
            return;
        }
    }
    panic!("the silent broker was never tried");
}

#[test]
fn a_running_worker_gets_past_brokers_that_are_down_and_frozen() {
    let mut sandbox = Sandbox::new();
    let silent = silent();
    let proxy = sandbox.through_proxy();
    let urls = [closed_port(), silent.url(), sandbox.url().to_owned()].join(",");
    let worker = sandbox.worker(["--url", &urls, "--connect-timeout", "6s", "-v"]);
    for loss in 1..=3 {
        proxy.cut();
        worker.says_times("connected again to amqp", loss);
    }
    sandbox.taskq(["send", "hello"]).run().exits(0);
    worker.says("Received a message: hello\n").says("\nDone\n");
}

#[test]
fn when_none_answers_each_is_reported() {
    let sandbox = Sandbox::new();
    let (silent, closed, refusing) = (silent(), closed_port(), refusing(&sandbox));
    let urls = [closed.clone(), silent.url(), refusing].join(",");
    for command in [&["send", "hello"][..], &["work"]] {
        let options = ["--url", &urls, "--connect-timeout", "12s"];
        let failed = sandbox.taskq(command.iter().chain(&options)).run().exits(69).in_one_line();
        let told = |url: &str, what: &str| {
            let address = url.rsplit('@').next().unwrap();
            let mut parts = failed.stderr.split("; ");
            assert!(
                parts.any(|part| part.contains(address) && part.contains(what)),
                "{address}, {what}: {}",
                failed.stderr
            );
        };
        told(&closed, "connection refused");
        told(&silent.url(), "no answer");
        told(sandbox.url(), "password refused");
        assert!(!failed.stderr.contains("opensesame"), "{}", failed.stderr);
    }
}

#[test]
fn when_all_refuse_access_it_is_refused() {
    let sandbox = Sandbox::new();
    let urls = format!("{0},{0}/", refusing(&sandbox));
    for command in [&["send", "hello"][..], &["work"]] {
        let failed = sandbox.taskq(command.iter().chain(&["--url", &urls])).run().exits(77).in_one_line();
        assert_eq!(failed.stderr.matches("password refused").count(), 2, "{}", failed.stderr);
    }
}
