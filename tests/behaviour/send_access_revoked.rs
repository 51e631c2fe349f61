//! `taskq send` and a broker that refuses access after it has granted it before: its user may have been refused, or the
//! broker is going down at that moment. So `send` tries again. It does not where the user lacks a permission on an open
//! connection.

use crate::support::script::{Script, hold};
use crate::support::{Proxy, Sandbox, User, amqp};
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How much longer than its limit a wait may take on a busy machine.
const SLACK: Duration = Duration::from_secs(15);

type Ending = fn(&mut TcpStream) -> io::Result<()>;

/// How a broker refuses access.
const REFUSALS: [Ending; 3] = [closed_after_the_credentials, reset_after_the_credentials, refused_with_words];

fn closed_after_the_credentials(stream: &mut TcpStream) -> io::Result<()> {
    amqp::play_until(stream, amqp::START_OK).map(drop)
}

fn reset_after_the_credentials(stream: &mut TcpStream) -> io::Result<()> {
    closed_after_the_credentials(stream)?;
    mio::net::TcpStream::from_stream(stream.try_clone()?)?.set_linger(Some(Duration::ZERO))
}

fn refused_with_words(stream: &mut TcpStream) -> io::Result<()> {
    amqp::play_until(stream, amqp::OPEN)?;
    stream.write_all(&amqp::connection_close(530, "NOT_ALLOWED - says the server"))?;
    hold(stream)
}

/// A server that cuts its first connection while a task is unconfirmed, and ends so many of the next ones like this.
/// Later ones work.
fn server(refuse: Ending, times: usize) -> Script {
    let connections = AtomicUsize::new(0);
    Script::run(move |stream| match connections.fetch_add(1, Ordering::Relaxed) {
        0 => amqp::play_until(stream, amqp::PUBLISH).map(drop),
        n if n <= times => refuse(stream),
        _ => {
            let publish = amqp::play_until(stream, amqp::PUBLISH)?;
            stream.write_all(&amqp::confirm(publish.channel, 1, false))?;
            hold(stream)
        }
    })
}

#[test]
fn a_refusal_for_a_while_is_waited_for() {
    for refuse in REFUSALS {
        let sandbox = Sandbox::new();
        let server = server(refuse, 2);
        let send = sandbox.taskq(["send", "--retry-for", "2m", "hello"]).env("TASKQ_URL", server.url());
        send.run().exits(0).says("refused").says(" [x] Sent hello");
        assert_eq!(server.connections(), 4);
    }
}

#[test]
fn a_refusal_that_lasts_is_told_in_the_end() {
    for refuse in REFUSALS {
        let sandbox = Sandbox::new();
        let server = server(refuse, usize::MAX);
        let send =
            sandbox.taskq(["send", "--retry-for", "2s", "hello"]).env("TASKQ_URL", server.url()).start();
        let refused = send.end_within(Duration::from_secs(2) + SLACK).exits(77);
        refused.says("2s (--retry-for)").never_says("Sent");
        assert!(server.connections() > 2, "tried once only");
    }
}

/// A bulk send of a user of the test's own that has had a task confirmed, by way of a proxy.
fn bulk(sandbox: &Sandbox) -> (User<'_>, Proxy, crate::support::Process) {
    let user = User::add(sandbox, "user", "opensesame", [".*"; 3]);
    let proxy = Proxy::to(sandbox.node().port());
    let url = user.url_at(proxy.port(), "opensesame");
    let args = ["send", "--lines", "--print-ids", "--retry-for", "2m"];
    let mut send = sandbox.taskq(args).env("TASKQ_URL", url).start();
    send.write("before\n");
    send.prints_lines(1);
    (user, proxy, send)
}

#[test]
fn a_password_that_is_wrong_for_a_while_costs_no_task() {
    let sandbox = Sandbox::new();
    let (user, proxy, mut send) = bulk(&sandbox);
    sandbox.node().ctl(&["change_password", &user.name, "closesesame"]);
    proxy.cut();
    send.write("after\n");
    send.close_stdin();
    send.says("user name or password refused");
    sandbox.node().ctl(&["change_password", &user.name, "opensesame"]);
    send.end().exits(0).says(" [x] Sent 2 tasks").never_says("sesame");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["before", "after"]);
}

#[test]
fn a_permission_that_was_taken_away_is_not_waited_for() {
    let sandbox = Sandbox::new();
    let (user, proxy, mut send) = bulk(&sandbox);
    user.may(["^$", ".*", ".*"]);
    proxy.cut();
    send.write("after\n");
    send.close_stdin();
    send.end_within(SLACK)
        .exits(77)
        .says("lacks the permission \"configure\"")
        .says("1 task confirmed, 1 not");
}
