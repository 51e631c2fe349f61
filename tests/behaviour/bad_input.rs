//! Everything a user can get wrong: one clear line, the documented exit code, and nothing sent half.

use crate::support::{Finished, Sandbox};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// A usage error: exit code 2, nothing on stdout, no panic, the culprit named.
#[track_caller]
fn usage_error(failed: Finished, named: &str) {
    let failed = failed.exits(2);
    assert!(failed.stdout.is_empty());
    assert!(!failed.stderr.contains("panicked"), "{}", failed.stderr);
    assert!(failed.stderr.contains(named), "{named:?} is not named: {}", failed.stderr);
}

#[test]
fn flags_that_do_not_exist_are_usage_errors() {
    let sandbox = Sandbox::new();
    for args in [["--nonsense", "send"], ["send", "--nonsense"], ["work", "--nonsense"], ["nonsense", "x"]] {
        usage_error(sandbox.taskq(args).run(), "nonsense");
    }
    sandbox.taskq([""; 0]).run().exits(2);
}

#[test]
fn numbers_and_durations_are_checked() {
    let sandbox = Sandbox::new();
    for (command, flag, value) in [
        ("work", "--threads", "0"),
        ("work", "--threads", "-1"),
        ("work", "--threads", "many"),
        ("work", "--threads", "99999999999999999999"),
        ("work", "--prefetch", "0"),
        ("work", "--prefetch", "65536"),
        ("work", "--max-tasks", "0"),
        ("work", "--max-tasks", "1.5"),
        ("work", "--max-time", "0s"),
        ("work", "--idle-timeout", "5"),
        ("work", "--idle-timeout", "5 parsecs"),
        ("work", "--grace", "-1s"),
        ("work", "--grace", "1e3s"),
        ("work", "--queue-type", "stream"),
        ("work", "--connect-timeout", "soon"),
        ("work", "--connect-retry", "0s"),
        ("work", "--connect-retry", "always"),
        ("work", "--connect-timeout", "99999999999999999999h"),
        ("work", "--heartbeat", "x"),
        ("send", "--priority", "256"),
        ("send", "--priority", "high"),
        ("send", "--expires", "1w"),
        ("send", "--retry-for", ""),
        ("send", "--reply-to", ""),
        ("send", "--correlation-id", ""),
        ("send", "--type", ""),
        ("send", "--header", "novalue"),
        ("send", "--header", "=value"),
    ] {
        usage_error(sandbox.taskq([command, &format!("{flag}={value}")]).run(), flag);
    }
}

#[test]
fn flags_that_contradict_each_other_are_usage_errors() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("body", "x");
    let file = file.to_str().unwrap();
    for args in [
        ["send", "--lines", "body"].as_slice(),
        &["send", "--null", "body"],
        &["send", "--file", file, "body"],
        &["send", "--lines", "--id", "x"],
    ] {
        let failed = sandbox.taskq(args).run();
        assert_eq!(failed.code, 2, "{args:?}: {}", failed.stderr);
    }
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "something was sent");
}

/// What `-- $HANDLER` comes to where HANDLER is not set.
#[test]
fn a_separator_without_a_command_does_nothing_to_the_queue() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "hello"]).run().exits(0);
    for options in [&["work", "--until-empty", "--"][..], &["work", "-v", "--max-tasks", "1", "--"]] {
        usage_error(sandbox.taskq(options).run(), "COMMAND");
    }
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["hello"]);
}

#[test]
fn names_over_255_bytes_are_bad_data() {
    let sandbox = Sandbox::new();
    let long = "ä".repeat(128);
    for args in [
        ["send", "--queue", &long, "hello"],
        ["work", "--until-empty", "--queue", &long],
        ["send", "--id", &long, "hello"],
        ["send", "--content-type", &long, "hello"],
        ["send", "--reply-to", &long, "hello"],
        ["send", "--correlation-id", &long, "hello"],
        ["send", "--type", &long, "hello"],
        ["send", "--header", &format!("{long}=x"), "hello"],
    ] {
        let failed = sandbox.taskq(args).run();
        assert_eq!(failed.code, 65, "{args:?}: {}", failed.stderr);
        assert!(failed.in_one_line().stderr.contains("255"));
    }
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "something was sent");
}

/// RabbitMQ leaves them out where it declares a queue and not where it routes. A `\r` comes from a file of variables with
/// the line ends of Windows.
#[test]
fn a_line_break_in_the_name_of_a_queue_is_bad_data() {
    let sandbox = Sandbox::new();
    for end in ["\n", "\r", "\r\nx"] {
        let name = format!("{}{end}", sandbox.queue);
        for args in [&["send", "hello"][..], &["work", "--until-empty"], &["dead", "list"]] {
            let failed = sandbox.taskq(args).env("TASKQ_QUEUE", &name).run().exits(65).in_one_line();
            failed.says("line break");
        }
    }
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "something was declared");
}

#[test]
fn names_of_255_bytes_can_be_sent_to() {
    let sandbox = Sandbox::new();
    let long = format!("{:x<255}", sandbox.queue);
    sandbox.taskq(["send", "--queue", &long, "--id", &long, "hello"]).run().exits(0);
    assert_eq!(sandbox.broker().bodies(&long), ["hello"]);
}

#[test]
fn headers_too_large_for_a_frame_are_bad_data() {
    let sandbox = Sandbox::new();
    // No more than the arguments have, but each header takes 6 bytes more on the wire.
    let many = (0..2900).flat_map(|n| ["--header".to_owned(), format!("header-{n:04}={}", "x".repeat(30))]);
    let args = ["send", "hello"].map(str::to_owned).into_iter().chain(many);
    sandbox.taskq(args).run().exits(65).in_one_line().says("headers");
    assert!(sandbox.broker().counts(&sandbox.queue).is_none_or(|(ready, _)| ready == 0));
}

#[test]
fn headers_may_fill_the_frames_of_the_broker_at_hand_and_no_more() {
    const FRAME: usize = 8192;
    let sandbox = Sandbox::configured(&[&format!("frame_max = {FRAME}")]);
    let send = |bytes: usize| {
        let header = format!("large={}", "x".repeat(bytes));
        sandbox.taskq(["send", "--lines", "--header", &header]).feed("one\ntwo\n")
    };
    let refused = send(FRAME).exits(65).in_one_line().says("frame").never_says("tried").stderr;
    let (_, size) = refused.split_once("take ").unwrap();
    let size: usize = size.split_once(" bytes").unwrap().0.parse().unwrap();
    let room = FRAME - (size - FRAME);
    send(room + 1).exits(65).in_one_line().says(&format!("{} bytes", FRAME + 1));
    send(room).exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["one", "two"]);
}

#[test]
fn empty_names_are_refused() {
    let sandbox = Sandbox::new();
    for command in ["send", "work"] {
        sandbox.taskq([command, "--queue", ""]).run().exits_with_one_of(&[2, 65]);
        sandbox.taskq([command]).env("TASKQ_QUEUE", "").run().exits_with_one_of(&[2, 65]);
    }
}

#[test]
fn names_that_the_broker_keeps_for_itself_are_refused() {
    let sandbox = Sandbox::new();
    for command in ["send", "work"] {
        let failed = sandbox.taskq([command, "--queue", "amq.mine"]).run();
        failed.exits_with_one_of(&[65, 77, 78]).in_one_line();
    }
}

#[test]
fn names_that_are_not_utf8_are_usage_errors() {
    let sandbox = Sandbox::new();
    let bad = OsStr::from_bytes(b"caf\xe9");
    for args in [
        ["send", "--queue"],
        ["work", "--queue"],
        ["send", "--id"],
        ["send", "--content-type"],
        ["send", "--url"],
    ] {
        let args: Vec<OsString> = args.iter().map(OsString::from).chain([bad.to_owned()]).collect();
        sandbox.taskq(&args).run().exits(2).never_says("panicked");
    }
    sandbox.taskq(["send", "hello"]).env("TASKQ_QUEUE", bad).run().exits(2).never_says("panicked");
    sandbox.taskq(["send", "hello"]).env("TASKQ_URL", bad).run().exits(2).never_says("panicked");
}

#[test]
fn files_that_cannot_be_read_are_told_in_one_line() {
    let sandbox = Sandbox::new();
    for path in [sandbox.path("missing"), sandbox.path("")] {
        for lines in [false, true] {
            let mut args = vec!["send", "--file", path.to_str().unwrap()];
            args.extend(lines.then_some("--lines"));
            let failed = sandbox.taskq(&args).run().exits(65).in_one_line();
            assert!(failed.stderr.contains(path.to_str().unwrap()), "{}", failed.stderr);
        }
    }
}

#[test]
fn a_place_where_nothing_can_be_saved_is_told_before_anything_is_sent() {
    let sandbox = Sandbox::new();
    let nowhere = sandbox.path("missing/unsent");
    let args = ["send", "--unsent", nowhere.to_str().unwrap(), "hello"];
    sandbox.taskq(args).run().exits(78).in_one_line().says(nowhere.to_str().unwrap());
    assert!(sandbox.broker().counts(&sandbox.queue).is_none_or(|(ready, _)| ready == 0));
}

#[test]
fn an_unsent_file_that_is_there_already_is_not_overwritten_with_nothing() {
    let sandbox = Sandbox::new();
    let unsent = sandbox.file("unsent", "precious\n");
    sandbox.taskq(["send", "--unsent", unsent.to_str().unwrap(), "hello"]).run();
    assert_eq!(std::fs::read_to_string(unsent).unwrap(), "precious\n");
}

#[test]
fn a_closed_stdin_is_no_input() {
    let sandbox = Sandbox::new();
    let script = r#""$1" send --lines <&-"#;
    let closed = sandbox.program("sh", ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq")]).run();
    assert!(!closed.stderr.contains("panicked"), "{}", closed.stderr);
    assert!([0, 2, 78].contains(&closed.code), "exit code {}", closed.code);
}

/// Runs taskq with its stdout on a full disk.
fn on_a_full_disk(sandbox: &Sandbox, args: &[&str]) -> Finished {
    let script = r#"taskq=$1; shift; exec "$taskq" "$@" >/dev/full"#;
    let shell = ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq")];
    sandbox.program("sh", shell.iter().chain(args)).run()
}

#[test]
fn a_full_disk_behind_stdout_is_an_error_of_its_own() {
    let sandbox = Sandbox::new();
    let full = on_a_full_disk(&sandbox, &["send", "--quiet", "--print-ids", "hello"]);
    full.exits(70).in_one_line().says("the ids could not be printed");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["hello"], "the task itself was sent");
}

#[test]
fn a_dead_task_is_not_shown_where_the_disk_is_full() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--id", "a", "--queue", &sandbox.dead_queue(), "hello"]).run().exits(0);
    for args in [&["list"][..], &["list", "--json"], &["show", "a"], &["show", "--body", "a"]] {
        let full = on_a_full_disk(&sandbox, &[&["dead"], args].concat());
        full.exits(70).in_one_line().says("cannot write to stdout: No space left on device");
    }
}

#[test]
fn help_and_version_want_to_be_seen() {
    let sandbox = Sandbox::new();
    for args in [["--help"].as_slice(), &["--version"], &["dead", "list", "--help"]] {
        on_a_full_disk(&sandbox, args).exits(70).in_one_line().says("cannot write to stdout");
    }
}

#[test]
fn a_reader_that_has_seen_enough_of_a_dead_task_is_no_error() {
    let sandbox = Sandbox::new();
    // More than a pipe holds.
    let body = "x".repeat(1_000_000);
    let send = ["send", "--id", "a", "--queue", &sandbox.dead_queue(), "--file", "-"];
    sandbox.taskq(send).feed(body).exits(0);
    let script = r#"("$1" dead show --body a; echo "exit $?" >&3) 3>&2 | head -c 1"#;
    let read = sandbox.program("sh", ["-c", script, "sh", env!("CARGO_BIN_EXE_taskq")]).run();
    assert_eq!((read.stdout_text().as_str(), read.stderr.as_str()), ("x", "exit 0\n"));
}

#[test]
fn help_and_version_are_data() {
    let sandbox = Sandbox::new();
    for args in [["--help"].as_slice(), &["--version"], &["send", "--help"], &["work", "--help"]] {
        let shown = sandbox.taskq(args).run().exits(0);
        assert!(!shown.stdout.is_empty() && shown.stderr.is_empty());
    }
}
