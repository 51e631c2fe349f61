//! The first connection: what cannot be reached, what is refused, and URLs of all forms.

use crate::support::{Finished, Invocation, Proxy, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::net::{TcpListener, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Send and work, told to use this URL.
fn both(sandbox: &Sandbox, url: &str) -> [Invocation; 2] {
    [["send", "hello"], ["work", "--until-empty"]]
        .map(|args| sandbox.taskq(args.iter().chain(&["--url", url])).without_env("TASKQ_URL"))
}

/// Both fail in one line with this exit code.
#[track_caller]
fn both_fail(url: &str, code: i32) -> [Finished; 2] {
    let sandbox = Sandbox::new();
    both(&sandbox, url).map(|command| command.run().exits(code).in_one_line())
}

/// A port where nobody listens.
fn closed_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn port() -> u16 {
    crate::support::Node::shared().port()
}

#[test]
fn the_error_that_ends_the_program_is_said_whatever_rust_log_says() {
    let sandbox = Sandbox::new();
    let url = format!("amqp://127.0.0.1:{}", closed_port());
    for filter in ["other=info", "off"] {
        for command in both(&sandbox, &url) {
            command.env("RUST_LOG", filter).run().exits(69).in_one_line().says("connection refused");
        }
    }
}

#[test]
fn a_port_where_nobody_listens_is_unavailable_and_named() {
    let port = closed_port();
    for failed in both_fail(&format!("amqp://guest:guest@127.0.0.1:{port}"), 69) {
        failed.says(&format!("127.0.0.1:{port}")).says("refused").says("Is RabbitMQ running there");
    }
}

/// Where this machine has two of them for `localhost`, both are tried.
#[test]
fn the_addresses_behind_a_name_are_told_when_none_answers() {
    let port = closed_port();
    let addresses: Vec<_> = ("localhost", port).to_socket_addrs().unwrap().collect();
    for failed in both_fail(&format!("amqp://guest:guest@localhost:{port}"), 69) {
        for address in &addresses {
            assert!(failed.stderr.contains(&format!("{address}: connection refused")), "{}", failed.stderr);
        }
    }
}

#[test]
fn a_host_without_an_address_is_unavailable_and_named() {
    let sandbox = Sandbox::new();
    for command in both(&sandbox, "amqp://no-such-host.invalid") {
        command.run().exits(69).says("no-such-host.invalid").never_says("panicked");
    }
}

#[test]
fn wrong_credentials_are_refused_without_being_shown() {
    for failed in both_fail(&format!("amqp://guest:opensesame@127.0.0.1:{}", port()), 77) {
        assert!(!failed.stderr.contains("opensesame"), "{}", failed.stderr);
    }
}

#[test]
fn an_unknown_vhost_is_refused_and_named() {
    for failed in both_fail(&format!("amqp://guest:guest@127.0.0.1:{}/nowhere", port()), 77) {
        assert!(failed.stderr.contains("nowhere"), "{}", failed.stderr);
    }
}

#[test]
fn malformed_urls_are_usage_errors() {
    for url in [
        "http://localhost",
        "amqp:/localhost",
        "localhost",
        "amqp://host:port",
        "amqp://host:65536",
        "amqp://host:0x10",
        "amqp://host/a/b",
        "amqp://%zz@host",
        "amqp://host/%ff",
        "amqp://[::1",
        "amqp://host?heartbeat=soon",
        "amqp://host?colour=red",
        "",
    ] {
        let sandbox = Sandbox::new();
        for command in both(&sandbox, url) {
            let failed = command.run();
            assert_eq!(failed.code, 2, "{url:?}: {}", failed.stderr);
            assert!(!failed.stderr.contains("panicked"), "{url:?}: {}", failed.stderr);
            assert!(failed.stdout.is_empty());
        }
    }
}

#[test]
fn a_malformed_url_is_not_shown_with_its_password() {
    for url in [
        "amqp://user:opensesame@host:port",
        "http://user:opensesame@host",
        "amqp//user:opensesame@host",
        "amqp://user:opensesame@[::1",
        "amqp://user:opensesame@host?heartbeat=x",
        "amqp://user:open%zzsesame@h",
    ] {
        let sandbox = Sandbox::new();
        for command in both(&sandbox, url) {
            let failed = command.run();
            assert_eq!(failed.code, 2, "{}", failed.stderr);
            assert!(!failed.stderr.contains("sesame"), "{}", failed.stderr);
        }
    }
}

#[test]
fn urls_of_all_good_forms_connect() {
    let port = port();
    let ipv6 = Proxy::on_ipv6_to(port);
    for url in [
        format!("amqp://127.0.0.1:{port}"),
        format!("amqp://guest:guest@localhost:{port}/"),
        format!("amqp://guest:guest@localhost:{port}/%2f"),
        format!("amqp://g%75est:%67uest@127.0.0.1:{port}/%2F"),
        format!("amqp://guest:guest@127.0.0.1:{port}?heartbeat=5&connection_timeout=5000&channel_max=100"),
        format!("amqp://guest:guest@[::1]:{}", ipv6.port()),
    ] {
        let sandbox = Sandbox::new();
        for command in both(&sandbox, &url) {
            let finished = command.run();
            assert_eq!(finished.code, 0, "{url}: {}", finished.stderr);
        }
    }
}

#[test]
fn several_urls_are_tried_in_turn() {
    let sandbox = Sandbox::new();
    let closed = format!("amqp://guest:guest@127.0.0.1:{}", closed_port());
    for command in both(&sandbox, &format!("{closed},{}", sandbox.url())) {
        command.run().exits(0);
    }
    let repeated = ["send", "--url", &closed, "--url", sandbox.url(), "hello"];
    sandbox.taskq(repeated).run().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue).len(), 1);
}

#[test]
fn a_plain_connection_to_another_machine_with_a_password_draws_one_warning() {
    let sandbox = Sandbox::new();
    // An address for documentation: nothing answers there.
    let url = "amqp://user:opensesame@192.0.2.1";
    for command in [["send", "hello"], ["work", "--until-empty"]] {
        let options = ["--url", url, "--connect-timeout", "1s"];
        let failed = sandbox.taskq(command.iter().chain(&options)).run().exits(69).never_says("opensesame");
        let warnings = failed.stderr.lines().filter(|line| line.contains("amqps")).count();
        assert_eq!(warnings, 1, "{}", failed.stderr);
    }
    let local = sandbox.taskq(["send", "hello"]).run().exits(0);
    assert!(!local.stderr.contains("amqps"), "loopback needs no warning: {}", local.stderr);
}

#[test]
fn a_worker_that_is_to_wait_for_its_broker_starts_when_that_does() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    for patience in ["1m", "forever"] {
        proxy.refuse();
        let worker = sandbox.taskq(["work", "--connect-retry", patience]).start();
        worker.says("taskq: warning: ");
        proxy.resume();
        worker.says(" [*] Waiting for messages");
        worker.signal(SIGTERM);
        worker.end().exits(0);
    }
}

#[test]
fn a_worker_waits_no_longer_for_its_broker_than_it_is_told() {
    let sandbox = Sandbox::new();
    let url = "amqp://guest:guest@127.0.0.1:1";
    let work = ["work", "--url", url, "--connect-retry", "1s500ms"];
    let began = Instant::now();
    sandbox.taskq(work).run().exits(69).says("warning: ").says("Is RabbitMQ running there");
    assert!(began.elapsed() >= Duration::from_millis(1500));
    // Whoever waits for it can still stop it.
    let worker = sandbox.taskq(["work", "--url", url, "--connect-retry", "forever"]).start();
    worker.says("warning: ");
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(30)).exits(0);
}
