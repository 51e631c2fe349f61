//! Every line of JSON that any command writes has the form that docs/taskq.schema.json gives it, as a validator reads it
//! that knows nothing of taskq.

use crate::support::{Finished, Invocation, Sandbox};

/// Reads lines of JSON on stdin, and complains of those that are not as the definition says.
const VALIDATOR: &str = r"
import json, sys
from jsonschema import Draft202012Validator, RefResolver
schema = json.load(open(sys.argv[1]))
Draft202012Validator.check_schema(schema)
definition = {'$ref': '#/$defs/' + sys.argv[2], '$defs': schema['$defs']}
wrong = 0
for line in sys.stdin:
    for error in Draft202012Validator(definition).iter_errors(json.loads(line)):
        print(line, error.message, list(error.absolute_path), file=sys.stderr)
        wrong = 1
sys.exit(wrong)
";

/// The lines of a text, all of the form that is called so, and at least so many.
fn lines_are(form: &str, text: &str, least: usize) {
    assert!(text.lines().count() >= least, "{form}: {text}");
    validate(form, text).exits(0);
}

fn validate(form: &str, text: &str) -> Finished {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/taskq.schema.json");
    Invocation::new("python3", ["-c", VALIDATOR, schema, form]).feed(text)
}

#[test]
fn another_form_is_noticed() {
    let group = r#"{"tasks":1,"exit":null,"error":null,"error_last_line":null,"failed_since":null,"failed_last":null,"hosts":[]}"#;
    lines_are("group", group, 1);
    for wrong in [group.replace("[]", "null"), group.replace("hosts", "host"), group.replace("1,", "-1,")] {
        validate("group", &wrong).exits(1);
    }
}

/// Tasks with everything that a task can have, and with nothing.
fn send_all_kinds(sandbox: &Sandbox) {
    let everything = [
        "send",
        "--id",
        "every-thing",
        "--header",
        "k=v",
        "--content-type",
        "x/y",
        "--priority",
        "3",
        "--reply-to",
        "answers",
        "--correlation-id",
        "c",
        "--type",
        "t",
        "--header",
        "traceparent=00-1-2-01",
        "ünï\u{1b}[0m",
    ];
    sandbox.taskq(everything).run().exits(0);
    sandbox.taskq(["send", "--id", "bytes", "--file", "-"]).feed(b"\xff\0").exits(0);
    sandbox.broker().declare(&sandbox.queue);
    sandbox.broker().publish(&sandbox.queue, "foreign");
}

#[test]
fn waiting_and_dead_tasks() {
    let sandbox = Sandbox::new();
    send_all_kinds(&sandbox);
    let print = |args: &[&str]| sandbox.taskq(args).run().exits(0).stdout_text();
    lines_are("queued_task", &print(&["peek", "--json"]), 3);
    lines_are("queued_task", &print(&["peek", "--json", "--body"]), 3);
    let script = r#"[ "$TASKQ_ID" = bytes ] && exit 65; echo why >&2; exit 1"#;
    sandbox.work_with(&["--until-empty", "--attempts", "1"], script).run().exits(1);
    sandbox.broker().publish(&sandbox.dead_queue(), "nobody said when it died");
    lines_are("queued_task", &print(&["dead", "list", "--json"]), 4);
    lines_are("group", &print(&["dead", "list", "--group", "--json"]), 3);
}

#[test]
fn the_state_of_queues() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.taskq(["send", "hello"]).run().exits(0);
    let plain = sandbox.taskq(["status", "--json"]).run().exits(0).stdout_text();
    let over = sandbox.taskq(["status", "--json", "--max-ready", "0", "--min-consumers", "0"]).run().exits(1);
    lines_are("status", &plain, 1);
    lines_are("status", &over.stdout_text(), 1);
}

#[test]
fn tasks_for_persistent_commands() {
    let sandbox = Sandbox::new();
    send_all_kinds(&sandbox);
    let kept = sandbox.path("lines");
    let script =
        format!(r#"while IFS= read -r line; do printf '%s\n' "$line" >> {}; echo OK; done"#, kept.display());
    let args = ["work", "--until-empty", "--persistent", "--", "sh", "-c", &script];
    sandbox.taskq(args).run().exits(0);
    lines_are("handed_task", &std::fs::read_to_string(kept).unwrap(), 3);
}

#[test]
fn messages_of_all_commands() {
    let sandbox = Sandbox::new();
    let json = ["--log-format", "json", "--verbose"];
    let say = |args: &[&str]| sandbox.taskq(args.iter().chain(&json)).run();
    let mut said = say(&["send", "hello"]).stderr;
    said += &say(&["dead", "list"]).stderr;
    for (attempts, code) in [("2", 1), ("1", 3)] {
        let command = ["--", "sh", "-c", &format!("echo to stderr >/dev/null; exit {code}")];
        let args = ["work", "--max-tasks", "1", "--attempts", attempts, "--backoff", "1ms"];
        let worked = sandbox.taskq(args.iter().chain(&json).chain(&command)).run();
        said += &worked.stderr;
    }
    said += &say(&["dead", "requeue", "--all"]).stderr;
    said += &say(&["peek"]).stderr;
    said += &say(&["work", "--until-empty", "--dots"]).stderr;
    said += &say(&["dead", "requeue", "no-such-id"]).stderr;
    said += &sandbox.taskq(["send", "--url", "amqp://127.0.0.1:1"].iter().chain(&json)).run().stderr;
    for event in ["received", "retried", "dead", "done", "waiting", "message"] {
        assert!(said.contains(&format!("\"event\":\"{event}\"")), "no {event} in {said}");
    }
    lines_are("message", &said, 10);
}
