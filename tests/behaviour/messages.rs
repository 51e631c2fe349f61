//! What is said of names and URLs that mean harm: one line that drives no terminal, hides nothing, is of bounded length,
//! and holds no password.

use crate::support::{Finished, Sandbox};

/// Sets a terminal's title, hides, reorders, breaks the line.
const HARM: &str = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}b\u{200b}\u{e0041}";
/// How long a message may be, whatever is in it.
const MOST_CHARS: usize = 1_000;

/// The password of every URL here, as it is typed and as it may come back.
const PASSWORD: &str = "tea for/two";
const ENCODED: &str = "tea%20for%2Ftwo";

fn url(password: &str) -> String {
    format!("amqp://me:{password}@127.0.0.1:1")
}

fn assert_harmless(what: &str, finished: &Finished) {
    let line = finished.stderr.strip_suffix('\n').unwrap_or(&finished.stderr);
    let harmful = |c: char| c.is_control() || HARM.contains(c) && !c.is_ascii();
    assert!(!line.contains(harmful), "{what}: {line:?}");
    assert!(line.starts_with("taskq: error: "), "{what}: {line:?}");
    assert!(line.chars().count() <= MOST_CHARS, "{what}: {} characters: {line}", line.chars().count());
    for secret in ["tea", "two"] {
        assert!(!line.contains(secret), "{what}: {line}");
    }
}

#[test]
fn no_complaint_about_the_command_line_does_harm() {
    let sandbox = Sandbox::new();
    let long = format!("{HARM}{}", "x".repeat(100_000));
    let broken = format!("{HARM}\r\n");
    let with_blank = url(PASSWORD);
    let malformed = url("tea for/two%zz");
    let path = sandbox.path(HARM);
    let unsent = path.join("nowhere");
    let (path, unsent) = (path.to_str().unwrap(), unsent.to_str().unwrap());
    let url_of_teas = url("two%20teas");
    let cases: [(&[&str], i32); 28] = [
        (&[&broken], 2),
        (&[&with_blank], 2),
        (&["send", &format!("--{long}")], 2),
        (&["send", &format!("--{with_blank}")], 2),
        (&["send", "--priority", &with_blank, "x"], 2),
        // A password alone, known from a URL that nobody has got to yet: of the environment, or of another argument.
        (&["send", "--priority", ENCODED, "x"], 2),
        (&["send", "--priority", "two%20teas", "--url", &url_of_teas, "x"], 2),
        (&["send", "--header", &with_blank, "x"], 2),
        (&["send", "--header", &format!("{long}=1"), "x"], 65),
        (&["send", "--header", &format!("x-taskq-{broken}={with_blank}"), "x"], 2),
        (&["send", "--id", &long, "x"], 65),
        (&["send", "--content-type", &long, "x"], 65),
        (&["send", "--file", &long], 65),
        (&["send", "--file", path], 65),
        (&["send", "--file", &with_blank], 65),
        (&["send", "--unsent", unsent, "x"], 78),
        (&["send", "--queue", &broken, "x"], 65),
        (&["send", "--queue", &long, "x"], 65),
        (&["send", "--queue", HARM, "x"], 69),
        (&["send", "--queue", ENCODED, "--retry-for", "1ms", "x"], 69),
        (&["send", "--url", &with_blank, "x"], 2),
        (&["send", "--url", &malformed, "x"], 2),
        (&["send", "--url-file", path, "x"], 78),
        (&["work", "--timeout", &broken, "--", "true"], 2),
        (&["work", "--on-exit", &long, "--", "true"], 2),
        (&["work", "--", &long], 78),
        (&["work", "--", path], 78),
        (&["work", "--", &with_blank], 78),
    ];
    for (args, code) in cases {
        let what: String = args.join(" ").chars().take(120).collect();
        println!("{what:?}");
        let finished = sandbox.taskq(args).env("TASKQ_URL", url(ENCODED)).run().exits(code);
        assert_harmless(&what, &finished);
    }
}

#[test]
fn no_complaint_about_the_environment_does_harm() {
    let sandbox = Sandbox::new();
    for (name, value, code) in [
        ("TASKQ_QUEUE", format!("{HARM}\n"), 65),
        ("TASKQ_QUEUE", HARM.repeat(100), 65),
        ("TASKQ_URL", url("tea for/two%zz"), 2),
        ("TASKQ_URL", format!("{HARM}{}", url(PASSWORD)), 2),
        ("CREDENTIALS_DIRECTORY", format!("{HARM}{}", url(ENCODED)), 78),
    ] {
        println!("{name} {value:?}");
        let command = sandbox.taskq(["send", "hello"]);
        let command =
            if name == "CREDENTIALS_DIRECTORY" { command.without_env("TASKQ_URL") } else { command };
        assert_harmless(name, &command.env(name, value).run().exits(code));
    }
}

#[test]
fn no_complaint_about_a_dead_task_does_harm() {
    let sandbox = Sandbox::new();
    sandbox.work_with(&["--until-empty"], "true").run().exits(0);
    let long = format!("{HARM}\r\n{}", "x".repeat(100_000));
    for args in [["dead", "show", &long], ["dead", "requeue", &long]] {
        let finished = sandbox.taskq(args).run().exits(65);
        assert_harmless(args[1], &finished);
    }
}

#[test]
fn what_is_passed_on_shows_no_password_of_the_broker() {
    let sandbox = Sandbox::new();
    let node = format!("amqp://guest:guest@127.0.0.1:{}", sandbox.node().port());
    let urls = format!("{},{node}", url(ENCODED));
    let body = format!("{PASSWORD} {ENCODED}{HARM}{}", "x".repeat(300));
    let sent = sandbox.taskq(["send", &body]).env("TASKQ_URL", &urls).run().exits(0);
    let work = ["work", "--max-tasks", "1", "--", "cat"];
    let worked = sandbox.taskq(work).env("TASKQ_URL", &urls).run().exits(0);
    // The command gets the body as it is.
    assert!(worked.stdout_text().starts_with(&body));
    for said in [sent.stderr, worked.stderr] {
        assert!(said.contains("*** ***\\x1b]0;x\\x07") && !said.contains("tea"), "{said}");
        assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said:?}");
    }
}

/// What ends a command before its URL is read says nothing of the password either, however it is written there.
#[test]
fn no_complaint_before_the_url_is_read_shows_its_password() {
    let sandbox = Sandbox::new();
    let credential = sandbox.file("taskq-url", url(ENCODED));
    let directory = credential.parent().unwrap();
    for args in [
        &["send", "--header", PASSWORD, "x"][..],
        &["send", "--header", "tea%20for/two", "x"],
        &["send", "--header", "tea+for%2Ftwo", "x"],
        &["work", "--attempts", PASSWORD, "--", "true"],
        &["work", "--", PASSWORD],
        &[PASSWORD],
    ] {
        let named = ["--url-file", credential.to_str().unwrap()];
        let (command, rest) = args.split_first().unwrap();
        let with_file = std::iter::once(command).chain(&named).chain(rest);
        let by_file = sandbox.taskq(if args.len() > 1 { with_file.collect() } else { vec![command] });
        let by_file = if args.len() > 1 {
            by_file.without_env("TASKQ_URL")
        } else {
            by_file.env("TASKQ_URL", url(ENCODED))
        };
        assert_harmless(args[0], &by_file.run());
        let by_credential =
            sandbox.taskq(args).without_env("TASKQ_URL").env("CREDENTIALS_DIRECTORY", directory);
        assert_harmless(args[0], &by_credential.run());
        assert_harmless(args[0], &sandbox.taskq(args).env("TASKQ_URL", url(ENCODED)).run());
    }
}

#[test]
fn what_is_wrong_with_rust_log_is_told_in_one_line() {
    let sandbox = Sandbox::new();
    let sent = sandbox
        .taskq(["send", "x"])
        .env("RUST_LOG", format!("taskq=info,={HARM}\r\nforged: y="))
        .run()
        .exits(0);
    let lines: Vec<&str> = sent.stderr.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("taskq: warning: RUST_LOG"), "{lines:?}");
    assert!(!sent.stderr.contains(['\u{1b}', '\r', '\u{202e}']), "{lines:?}");
}
