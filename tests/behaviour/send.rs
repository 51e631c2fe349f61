//! `taskq send`: what becomes the body, and when it counts as sent.

use crate::support::Sandbox;

#[test]
fn the_words_are_joined_by_spaces() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "First", "message", "with  two", "dots.."]).run().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["First message with  two dots.."]);
}

#[test]
fn hello_is_sent_when_there_are_no_words_or_one_that_is_empty() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send"]).run().exits(0);
    sandbox.taskq(["send", ""]).run().exits(0);
    sandbox.taskq(["send", "", "other"]).run().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["hello", "hello", " other"]);
}

#[test]
fn what_was_sent_is_told_on_stderr_and_stdout_stays_empty() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "hello..."]).run().exits(0);
    assert_eq!(sent.stderr, " [x] Sent hello...\n");
    assert!(sent.stdout.is_empty());
}

#[test]
fn quiet_says_nothing() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "--quiet", "hello"]).run().exits(0);
    assert_eq!(sent.stderr, "");
}

#[test]
fn a_body_cannot_drive_the_terminal_of_its_sender() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "a\u{1b}[2Jb\nc"]).run().exits(0).in_one_line();
    assert!(sent.stderr.contains("Sent a"), "{}", sent.stderr);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["a\u{1b}[2Jb\nc"], "the body itself is untouched");
}

#[test]
fn the_flags_say_where_to_send_and_beat_the_environment() {
    let sandbox = Sandbox::new();
    let send = sandbox
        .taskq(["send", "--url", sandbox.url(), "--queue", &sandbox.queue, "hello"])
        .env("TASKQ_URL", "amqp://guest:guest@127.0.0.1:1")
        .env("TASKQ_QUEUE", "another");
    send.run().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["hello"]);
}

#[test]
fn the_queue_is_called_task_queue_unless_told_otherwise() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "hello"]).without_env("TASKQ_QUEUE").run().exits(0);
    let broker = sandbox.broker();
    // Exactly the queue of the tutorial's programs: this would be refused if it differed.
    broker.declare("task_queue");
    assert_eq!(broker.bodies("task_queue"), ["hello"]);
}

#[test]
fn a_file_is_sent_byte_for_byte() {
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let file = sandbox.file("body", &bytes);
    sandbox.taskq(["send".as_ref(), "--file".as_ref(), file.as_os_str()]).run().exits(0);
    assert!(sandbox.broker().take(&sandbox.queue).body == bytes);
}

#[test]
fn a_file_called_dash_is_stdin() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--file", "-"]).feed(b"one\ntwo\0\xff\r\n").exits(0);
    assert_eq!(sandbox.broker().take(&sandbox.queue).body, b"one\ntwo\0\xff\r\n");
}

#[test]
fn an_empty_file_is_an_empty_task() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--file", "-"]).feed("").exits(0);
    let broker = sandbox.broker();
    assert_eq!(broker.take(&sandbox.queue).body, b"");
    assert_eq!(broker.ready(&sandbox.queue), 0);
}

#[test]
fn a_word_that_is_not_utf8_is_sent_as_it_is() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::new();
    let word = std::ffi::OsStr::from_bytes(b"caf\xe9");
    sandbox.taskq(["send".as_ref(), word]).run().exits(0).in_one_line();
    assert_eq!(sandbox.broker().take(&sandbox.queue).body, b"caf\xe9");
}

#[test]
fn print_ids_prints_the_id_of_the_message() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "--print-ids", "hello"]).run().exits(0);
    let message = sandbox.broker().take(&sandbox.queue);
    assert_eq!(sent.stdout_lines(), [message.properties.message_id().clone().unwrap()]);
}

#[test]
fn a_queue_made_by_send_survives_with_its_message() {
    let sandbox = Sandbox::exclusive();
    sandbox.taskq(["send", "kept"]).run().exits(0);
    sandbox.node().kill();
    sandbox.node().start();
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["kept"]);
}
