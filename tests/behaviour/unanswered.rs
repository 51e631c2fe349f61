//! A broker that sends notices but no answers: no command waits for it for ever, and signals are handled meanwhile.

use crate::support::amqp::{self, DECLARE, Frame, Method, method, play_until, serve_until, short};
use crate::support::script::Script;
use crate::support::{Process, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

const BLOCKED: Method = (10, 60);
const UNBLOCKED: Method = (10, 61);

/// The name of the queue that is declared.
fn declared(frame: &Frame) -> String {
    let length = usize::from(frame.payload[6]);
    String::from_utf8_lossy(&frame.payload[7..7 + length]).into_owned()
}

/// Sends a notice of an alarm or of its end four times a second, until the client disconnects.
fn send_notices(stream: &mut TcpStream) -> io::Result<()> {
    loop {
        for notice in [method(0, BLOCKED, &[&short("low on memory")]), method(0, UNBLOCKED, &[])] {
            stream.write_all(&notice)?;
            std::thread::sleep(Duration::from_millis(250));
        }
    }
}

/// Answers as a broker does, until the client declares a queue whose name contains this; then it only sends notices.
fn unanswering_about(part: &'static str) -> Script {
    Script::run(move |stream| {
        let mut asked = play_until(stream, DECLARE)?;
        while !declared(&asked).contains(part) {
            // A declaration with no-wait gets no answer.
            if asked.payload.get(7 + declared(&asked).len()).is_some_and(|bits| bits & 16 == 0) {
                stream.write_all(&amqp::answer(asked.channel, DECLARE).unwrap())?;
            }
            asked = serve_until(stream, DECLARE)?;
        }
        send_notices(stream)
    })
}

/// A send that has asked for the queue of delayed tasks.
fn delayed(sandbox: &Sandbox, broker: &Script, retry_for: &str) -> Process {
    let args = ["send", "--lines", "--delay", "1h", "--retry-for", retry_for];
    let mut send = sandbox.taskq(args).env("TASKQ_URL", broker.url()).start();
    send.write_and_see_it_read("task\n");
    send
}

#[test]
fn a_delayed_send_hears_a_signal_while_the_broker_does_not_answer() {
    let sandbox = Sandbox::new();
    let broker = unanswering_about(".delay.");
    let send = delayed(&sandbox, &broker, "5m");
    send.signal(SIGTERM);
    send.end().exits(143).says("0 tasks confirmed, 1 not");
}

#[test]
fn a_delayed_send_gives_up_in_time_while_the_broker_does_not_answer() {
    let sandbox = Sandbox::new();
    let broker = unanswering_about(".delay.");
    delayed(&sandbox, &broker, "2s").end().exits_with_one_of(&[69, 75]).says("--retry-for");
}

#[test]
fn dead_tasks_are_not_waited_for_where_the_broker_does_not_answer() {
    let sandbox = Sandbox::new();
    let broker = unanswering_about(".dead");
    for args in [&["dead", "list"][..], &["dead", "requeue", "--all"], &["dead", "purge", "--yes"]] {
        sandbox.taskq(args).env("TASKQ_URL", broker.url()).start().end().exits(69).in_one_line();
    }
}

/// What is known without it is told.
#[test]
fn status_does_not_wait_for_ever_where_the_broker_does_not_answer() {
    let sandbox = Sandbox::new();
    let broker = unanswering_about(".dead");
    let status = ["status", "--json", "--max-dead", "0"];
    let told = sandbox.taskq(status).env("TASKQ_URL", broker.url()).start().end().exits(75);
    let unknown = format!("unknown how much is in {}.dead: no answer", sandbox.queue);
    let told = told.says(&unknown).says("--max-dead 0");
    assert_eq!(told.stdout_lines().len(), 1);
    assert!(told.stdout_text().contains(r#""dead":null"#), "{}", told.stdout_text());
}
