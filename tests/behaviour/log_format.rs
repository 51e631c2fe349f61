//! `--log-format`: the same messages for people, log files, programs and the journal.

use crate::support::Sandbox;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

const DOCS: &str = include_str!("../../docs/log.md");

/// What the first column of the tables of docs/log.md names.
fn documented() -> BTreeSet<&'static str> {
    let cells =
        DOCS.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split(" | ").next());
    cells
        .flat_map(|cell| cell.trim_start_matches("| ").split(", "))
        .map(|name| name.trim_matches('`'))
        .collect()
}

fn objects(stderr: &str) -> Vec<Value> {
    stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

fn assert_documented(objects: &[Value]) {
    let documented = documented();
    for object in objects {
        let members = object.as_object().unwrap();
        for needed in ["ts", "level", "event", "thread", "message"] {
            assert!(members.contains_key(needed), "{needed} is missing: {object}");
        }
        for name in members.keys().map(String::as_str).chain(object["event"].as_str()) {
            assert!(documented.contains(name) || name == "message", "{name} is not in docs/log.md: {object}");
        }
    }
}

#[test]
fn json_tells_the_story_of_each_task() {
    let sandbox = Sandbox::new();
    let id = "an id, (with) anything\n\u{202e}";
    sandbox.taskq(["send", "--id", id, "fails"]).run().exits(0);
    sandbox.taskq(["send", "--id", "good", "fine"]).run().exits(0);
    let flags = ["--log-format", "json", "--until-empty", "--attempts", "2", "--backoff", "1h"];
    let worked = sandbox.work_with(&flags, "read -r body; [ \"$body\" = fine ]; exit $?").run().exits(0);
    let objects = objects(&worked.stderr);
    assert_documented(&objects);
    assert!(worked.stderr.is_ascii());
    let of = |event: &str| objects.iter().filter(|object| object["event"] == event).collect::<Vec<_>>();
    let retried = of("retried")[0];
    assert_eq!(
        (&retried["id"], &retried["attempt"], &retried["level"]),
        (&id.into(), &1.into(), &"warning".into())
    );
    assert_eq!((&retried["outcome"], &retried["exit"]), (&"retry".into(), &"exit status 1".into()));
    assert_eq!(
        (&retried["delay_ms"], &retried["queue"]),
        (&3_600_000.into(), &sandbox.queue.as_str().into())
    );
    assert!(retried["duration_ms"].is_u64() && retried["thread"] == "worker-1", "{retried}");
    let done = of("done")[0];
    assert_eq!((&done["id"], &done["outcome"]), (&"good".into(), &"done".into()));
    assert_eq!(of("received").len(), 2);
    assert_eq!((of("waiting").len(), of("connected").len()), (1, 1));
}

#[test]
fn every_command_and_every_error_is_json_when_that_is_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--log-format", "json", "--id", "dies", "x"]).run().exits(0);
    let flags = ["--log-format", "json", "--until-empty", "--attempts", "1"];
    let worked = sandbox.work_with(&flags, "exit 3").run().exits(1);
    let dead = objects(&worked.stderr).into_iter().find(|object| object["event"] == "dead").unwrap();
    assert_eq!((&dead["id"], &dead["exit"]), (&"dies".into(), &"exit status 3".into()));
    assert_eq!(dead["dead_queue"], sandbox.dead_queue().as_str());
    for (args, code) in [
        (&["send", "-v", "y"][..], 0),
        (&["send", "--url", "amqp://127.0.0.1:1", "y"], 69),
        (&["dead", "requeue", "--all"], 0),
        (&["dead", "show", "nobody"], 65),
        (&["work", "--", "/no/such/command"], 78),
    ] {
        let said = sandbox.taskq(["--log-format", "json"].iter().chain(args)).run().exits(code).stderr;
        let said = objects(&said);
        assert!(!said.is_empty());
        assert_documented(&said);
        assert_eq!(said.last().unwrap()["level"] == "error", code != 0, "{said:?}");
    }
}

#[test]
fn a_log_file_has_times() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "--log-format", "time", "hello"]).run().exits(0).stderr;
    let (time, line) = sent.split_once(' ').unwrap();
    assert_eq!(line, " [x] Sent hello\n");
    assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z'), "{time}");
}

/// A worker whose stderr is this socket, or pipe, as systemd announces it.
fn run_under_a_journal(sandbox: &Sandbox, stdout_too: bool) -> String {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stat = nix::sys::stat::fstat(writer.as_fd()).unwrap();
    let journal = format!("{}:{}", stat.st_dev, stat.st_ino);
    let script = "printf '<0>out\\nmore'; printf '<0>err\\n' >&2; exit 1";
    let worker =
        sandbox.work_with(&["--until-empty", "--attempts", "1"], script).env("JOURNAL_STREAM", journal);
    let worker =
        if stdout_too { worker.stdout_to(OwnedFd::from(writer.try_clone().unwrap())) } else { worker };
    worker.stderr_to(OwnedFd::from(writer)).run().exits(1);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_journal_is_recognised_and_told_priorities() {
    for stdout_too in [false, true] {
        let sandbox = Sandbox::new();
        sandbox.taskq(["send", "--id", "one", "x"]).run().exits(0);
        let text = run_under_a_journal(&sandbox, stdout_too);
        assert!(text.contains("<6>Received a message: x (id one, attempt 1)\n"), "{text}");
        assert!(text.contains("\n<4>taskq: warning: dead ("), "{text}");
        // What a command prints has the priority of any other output.
        assert!(text.contains("\n<6><0>err\n"), "{text}");
        // Nor does it swallow a message by leaving out the end of its last line.
        for line in ["\n<6><0>out\n", "\n<6>more\n"] {
            assert_eq!(text.contains(line), stdout_too, "{line:?}: {text}");
        }
        let first_failure = text.lines().find(|line| line.starts_with("<4>")).unwrap();
        assert!(
            first_failure.ends_with(')') && first_failure.contains("(id one, attempt 1, "),
            "{first_failure}"
        );
    }
    // A stderr that is another one now.
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "x"]).env("JOURNAL_STREAM", "1:1").run().exits(0);
    assert_eq!(sent.stderr, " [x] Sent x\n");
}

/// systemd announces one of them.
#[test]
fn stdout_may_have_a_stream_of_its_own_to_the_journal() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "x"]).run().exits(0);
    let [(mut out, stdout), (err, stderr)] = [(); 2].map(|()| UnixStream::pair().unwrap());
    let stat = nix::sys::stat::fstat(stderr.as_fd()).unwrap();
    let journal = format!("{}:{}", stat.st_dev, stat.st_ino);
    let worker =
        sandbox.work_with(&["--until-empty"], "printf '<0>out\\nmore'").env("JOURNAL_STREAM", journal);
    worker.stdout_to(OwnedFd::from(stdout)).stderr_to(OwnedFd::from(stderr)).run().exits(0);
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "<6><0>out\n<6>more\n");
    drop(err);
}

/// Before there is a logger, too.
#[test]
fn a_wrong_command_line_is_told_in_the_form_that_it_asks_for() {
    let sandbox = Sandbox::new();
    let say = |args: &[&str]| sandbox.taskq(args).run().exits(2).in_one_line().stderr;
    let json: Value = serde_json::from_str(&say(&["work", "--log-format", "json", "--bogus"])).unwrap();
    assert_eq!((&json["level"], &json["event"]), (&"error".into(), &"message".into()));
    assert!(json["message"].as_str().unwrap().contains("--bogus"), "{json}");
    let journal = say(&["send", "--delay", "x", "--log-format=journal"]);
    assert!(journal.starts_with("<3>taskq: error: "), "{journal}");
    let time = say(&["--log-format", "time", "nothing"]);
    assert!(time.contains("Z taskq: error: "), "{time}");
    assert!(say(&["work", "--log-format", "none"]).starts_with("taskq: error: "));
}
