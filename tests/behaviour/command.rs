//! `taskq work -- COMMAND`: what a command is given, and what becomes of what it writes.

use crate::support::broker::text;
use crate::support::handler::header;
use crate::support::{Finished, Sandbox, until};
use amiquip::{AmqpProperties, AmqpValue};
use nix::sys::signal::Signal::SIGKILL;
use std::collections::HashMap;

/// Larger than any pipe, any frame and any buffer on the way.
const LARGE: usize = 12 * 1024 * 1024;

/// Publishes one task and works the queue empty.
fn work_one(sandbox: &Sandbox, body: impl AsRef<[u8]>, command: &[&str]) -> Finished {
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    broker.publish(&sandbox.queue, body);
    let worked = sandbox.taskq(["work", "--until-empty", "--"].iter().chain(command)).run().exits(0);
    assert_eq!(broker.ready(&sandbox.queue), 0, "the task was not done");
    worked
}

/// Every byte value, in no order that a text would have.
fn binary(size: usize) -> Vec<u8> {
    (0..size).map(|n| u8::try_from((n * 131 + n / 256) % 256).unwrap()).collect()
}

#[test]
fn the_arguments_arrive_as_they_were_written() {
    let sandbox = Sandbox::new();
    let arguments = ["two words", "$HOME", "*", "", "a;b|c&d", "`id`", "'\"\\", "--until-empty", "ü\n", "--"];
    let command = ["printf", "%s\\0"];
    let worked = work_one(&sandbox, "body", &[&command[..], &arguments].concat());
    let printed: Vec<&[u8]> = worked.stdout.split(|byte| *byte == 0).collect();
    let expected: Vec<&[u8]> =
        arguments.iter().map(|argument| argument.as_bytes()).chain([&b""[..]]).collect();
    assert_eq!(printed, expected);
}

/// The words that a command got, and its stdin.
const PRINT: [&str; 4] = ["sh", "-c", r#"printf '[%s]' "$@"; cat"#, "sh"];

#[test]
fn the_body_is_an_argument_too_where_that_is_asked_for() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let printed = |options: &[&str], words: &[&str]| {
        broker.publish(&sandbox.queue, "a  b\n");
        let work = [&["work", "--until-empty"], options, &["--"], &PRINT, words].concat();
        sandbox.taskq(work).run().exits(0).stdout_text().clone()
    };
    assert_eq!(printed(&["--arg"], &[]), "[a  b\n]a  b\n");
    assert_eq!(printed(&["--arg"], &["-x", "y{}"]), "[-x][y{}][a  b\n]a  b\n");
    assert_eq!(printed(&["--arg"], &["{}", "-x", "{}"]), "[a  b\n][-x][a  b\n]a  b\n");
    assert_eq!(printed(&[], &["{}"]), "[{}]a  b\n");
}

#[test]
fn a_body_that_cannot_be_an_argument_is_dead_at_once_and_says_why() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let many = ["{}"; 80];
    for (body, words, why) in [
        (b"a\0b".to_vec(), &[][..], "NUL"),
        (vec![b'x'; 128 * 1024], &[], "131072 bytes"),
        // Together more than Linux takes, however large the stack may become.
        (vec![b'x'; 100_000], &many, "8000000 bytes"),
    ] {
        broker.publish(&sandbox.queue, body);
        let work = [&["work", "--until-empty", "--arg", "--", "true"], words].concat();
        sandbox.taskq(work).run().exits(1).says("dead (").says(why);
        let dead = broker.take(&sandbox.dead_queue());
        assert!(header(&dead, "x-taskq-exit").contains(why), "{dead:?}");
    }
    broker.publish(&sandbox.queue, vec![b'x'; 128 * 1024 - 1]);
    sandbox.taskq(["work", "--until-empty", "--arg", "--", "true"]).run().exits(0);
}

#[test]
fn the_body_is_on_stdin_byte_for_byte() {
    for body in [Vec::new(), b"no line end".to_vec(), b"$HOME `id` %s\n".to_vec(), binary(LARGE)] {
        let sandbox = Sandbox::new();
        let worked = work_one(&sandbox, &body, &["cat"]);
        assert!(worked.stdout == body, "{} bytes became {}", body.len(), worked.stdout.len());
    }
}

#[test]
fn a_command_need_not_read_its_body() {
    let sandbox = Sandbox::new();
    let body = binary(LARGE);
    for script in ["exit 0", "exec <&-; sleep 0.2", "head -c 1 >/dev/null", "exec sleep 0.2"] {
        work_one(&sandbox, &body, &["sh", "-c", script]).never_says("ipe");
    }
}

/// The environment that `env -0` printed.
fn environment(printed: &[u8]) -> HashMap<String, String> {
    let entries = printed.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    let entries = entries.map(|entry| String::from_utf8(entry.to_vec()).unwrap());
    entries.map(|entry| entry.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap()).collect()
}

#[test]
fn the_task_is_in_the_environment() {
    let sandbox = Sandbox::new();
    let options = ["--id", "order-17", "--content-type", "text/csv", "--header", "customer=a b=c"];
    sandbox.taskq(["send", "hello"].iter().chain(&options)).run().exits(0);
    let worked = sandbox.taskq(["work", "--until-empty", "--", "env", "-0"]).run().exits(0);
    let seen = environment(&worked.stdout);
    for (name, value) in [
        ("TASKQ_ID", "order-17"),
        ("TASKQ_ATTEMPT", "1"),
        ("TASKQ_QUEUE", &sandbox.queue),
        ("TASKQ_CONTENT_TYPE", "text/csv"),
        ("TASKQ_HEADER_CUSTOMER", "a b=c"),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(["", "0", "false"].contains(&seen["TASKQ_REDELIVERED"].as_str()), "{seen:?}");
}

/// A worker may be started by a handler, or by something that traces it: neither describes the task.
#[test]
fn what_the_producer_said_is_in_the_environment_and_nothing_of_the_workers() {
    let own = [
        "TASKQ_ATTEMPTS",
        "TASKQ_REPLY_TO",
        "TASKQ_CORRELATION_ID",
        "TASKQ_CONTENT_ENCODING",
        "TASKQ_TYPE",
        "TASKQ_PRIORITY",
        "TASKQ_TIMESTAMP",
        "TRACEPARENT",
        "TRACESTATE",
    ];
    let sandbox = Sandbox::new();
    let seen = || {
        let work = ["work", "--until-empty", "--attempts", "7", "--", "env", "-0"];
        let worker = own.iter().fold(sandbox.taskq(work), |worker, name| worker.env(name, "the worker's"));
        environment(&worker.run().exits(0).stdout)
    };
    let headers = [("Traceparent", "00-a-b-01"), ("tracestate", "k=v")];
    let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
    let properties = AmqpProperties::default()
        .with_reply_to("answers".to_owned())
        .with_correlation_id("c-1".to_owned())
        .with_content_encoding("gzip".to_owned())
        .with_type_("invoice".to_owned())
        .with_priority(7)
        .with_timestamp(1_795_905_631)
        .with_headers(headers);
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    broker.publish_with(&sandbox.queue, "body", properties);
    let values = ["7", "answers", "c-1", "gzip", "invoice", "7", "2026-11-28T22:40:31Z", "00-a-b-01", "k=v"];
    let first = seen();
    for (name, value) in own.iter().zip(values) {
        assert_eq!(first.get(*name).map(String::as_str), Some(value), "{name}");
    }
    broker.publish_with(&sandbox.queue, "body", AmqpProperties::default());
    let second = seen();
    assert_eq!(second["TASKQ_ATTEMPTS"], "7");
    for name in &own[1..] {
        assert_eq!(second.get(*name), None, "{name}");
    }
}

#[test]
fn headers_of_any_name_and_kind_become_variables_and_nothing_else() {
    let sandbox = Sandbox::new();
    let table = [
        ("X-Trace.id", text("t")),
        ("number", AmqpValue::LongLongInt(-5)),
        ("truth", AmqpValue::Boolean(true)),
        ("lines", text("one\ntwo")),
        ("PATH", text("/nowhere")),
        ("nul", text("a\0b")),
        ("=", text("equals")),
        ("", text("nameless")),
        ("table", AmqpValue::FieldTable([("a".to_owned(), text("b"))].into())),
        ("x-taskq-host", text("elsewhere")),
    ];
    let table = table.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish_with(&sandbox.queue, "body", AmqpProperties::default().with_headers(table));
    let worked = sandbox.taskq(["work", "--until-empty", "--", "env", "-0"]).run().exits(0);
    let seen = environment(&worked.stdout);
    for (name, value) in [
        ("TASKQ_HEADER_X_TRACE_ID", "t"),
        ("TASKQ_HEADER_NUMBER", "-5"),
        ("TASKQ_HEADER_TRUTH", "true"),
        ("TASKQ_HEADER_LINES", "one\ntwo"),
        ("TASKQ_HEADER_PATH", "/nowhere"),
    ] {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(seen["PATH"], std::env::var("PATH").unwrap());
    assert!(!seen.keys().any(|name| name.contains("TASKQ_HEADER_X_TASKQ")), "{seen:?}");
}

#[test]
fn a_task_without_any_properties_has_empty_variables() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish_with(&sandbox.queue, "body", AmqpProperties::default());
    let worked = sandbox.taskq(["work", "--until-empty", "--", "env", "-0"]).run().exits(0);
    let seen = environment(&worked.stdout);
    for name in ["TASKQ_ID", "TASKQ_CONTENT_TYPE"] {
        assert_eq!(seen.get(name).map_or("", String::as_str), "", "{name}");
    }
    assert_eq!(seen["TASKQ_ATTEMPT"], "1");
}

#[test]
fn what_is_taskqs_own_is_not_in_the_environment() {
    let sandbox = Sandbox::new();
    let own = ["CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];
    for mode in [&["--until-empty"][..], &["--until-empty", "--persistent"]] {
        sandbox.taskq(["send", "hello"]).run().exits(0);
        let command = ["--", "sh", "-c", r#"env -0 >"$0"; echo OK"#, sandbox.path("env").to_str().unwrap()]
            .map(str::to_owned);
        let options = mode.iter().map(|option| (*option).to_owned());
        let invocation = sandbox.taskq(std::iter::once("work".to_owned()).chain(options).chain(command));
        let invocation = own.iter().fold(invocation, |invocation, name| invocation.env(name, "/nowhere"));
        invocation.env("WATCHDOG_USEC", "60000000").env("COLOUR", "green").run().exits(0);
        let seen = environment(&std::fs::read(sandbox.path("env")).unwrap());
        assert_eq!(seen["COLOUR"], "green", "the rest of the environment is passed on");
        for name in own.iter().chain(&["TASKQ_URL"]) {
            assert!(!seen.contains_key(*name), "{mode:?}: {name} is there");
        }
        assert!(!seen.values().any(|value| value.contains("guest:guest")), "{mode:?}: {seen:?}");
    }
}

#[test]
fn a_task_that_comes_back_says_so() {
    let sandbox = Sandbox::new();
    let victim = sandbox.handling(&[], "sleep 100");
    sandbox.taskq(["send", "hello"]).run().exits(0);
    victim.says("Received a message");
    victim.signal(SIGKILL);
    victim.end().exits(137);
    sandbox.broker().wait_ready(&sandbox.queue, 1);
    let heir = sandbox.handling(&[], r#"echo "$TASKQ_REDELIVERED $TASKQ_ATTEMPT" >>"$1/seen""#);
    assert_eq!(sandbox.wait_lines("seen", 1), ["1 1"], "redelivered, and still the first attempt");
    heir.says("Done");
}

#[test]
fn what_a_command_prints_reaches_the_workers_own_streams() {
    let sandbox = Sandbox::new();
    let worked = work_one(&sandbox, "x", &["sh", "-c", r"printf 'data\0\377 no end'; echo words >&2"]);
    assert_eq!(worked.stdout, b"data\0\xff no end");
    assert!(worked.stderr.lines().any(|line| line == "words"), "{}", worked.stderr);
}

#[test]
fn each_thread_runs_a_command_of_its_own() {
    let sandbox = Sandbox::new();
    // Each waits until all three have started.
    let script = r#"echo $$ >>"$1/started"; until [ "$(wc -l <"$1/started")" -ge 3 ]; do sleep 0.05; done"#;
    let worker = sandbox.handling(&["--threads", "3"], script);
    sandbox.taskq(["send", "--lines"]).feed("a\nb\nc\n").exits(0);
    worker.says_times("Done", 3);
}

#[test]
fn a_command_is_found_on_the_path_and_relative_to_the_directory() {
    let sandbox = Sandbox::new();
    work_one(&sandbox, "x", &["true"]);
    let script = sandbox.file("handler", "#!/bin/sh\necho ran\n");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.broker().publish(&sandbox.queue, "x");
    let shell = r#"cd "$1" && exec "$2" work --until-empty -- ./handler"#;
    let directory = sandbox.path("");
    let arguments = ["-c", shell, "sh", directory.to_str().unwrap(), env!("CARGO_BIN_EXE_taskq")];
    let worked = sandbox.program("sh", arguments).run().exits(0);
    assert_eq!(worked.stdout_text(), "ran\n");
    until("no task left", || (sandbox.broker().ready(&sandbox.queue) == 0).then_some(()));
}
