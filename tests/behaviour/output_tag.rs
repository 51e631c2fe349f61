//! `work --output`: lines of commands with their task's id, as they are, or not at all.

use crate::support::Sandbox;
use crate::support::handler::{KillOnDrop, header};

/// What stdout or stderr has of commands, in any order.
fn tagged(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
    lines.sort_unstable();
    lines
}

fn send(sandbox: &Sandbox, id: &str, body: &str) {
    sandbox.taskq(["send", "--id", id, body]).run().exits(0);
}

#[test]
fn each_line_is_that_of_a_task_on_both_streams() {
    let sandbox = Sandbox::new();
    send(&sandbox, "one", "1");
    send(&sandbox, "a] b,\n(c)/d", "2");
    sandbox.broker().publish(&sandbox.queue, "hello");
    let script = r#"body=$(cat); printf 'out %s\n\nunfinished' "$body"; echo "err $body" >&2"#;
    let options = ["--threads", "3", "--until-empty", "--output", "tag"];
    let worked = sandbox.work_with(&options, script).run().exits(0);
    // As in the parenthesis of a message, and where there is no id as the task's files are called.
    let ids = ["one", r"a\x5d\x20b\x2c\n\x28c\x29/d", "@9e4e330444ee1017"];
    let bodies = ["1", "2", "hello"];
    let lines = |of: &dyn Fn(&str, &str) -> Vec<String>| {
        let mut lines: Vec<String> = ids.iter().zip(bodies).flat_map(|(id, body)| of(id, body)).collect();
        lines.sort_unstable();
        lines
    };
    let out = lines(&|id, body| {
        vec![format!("[{id}] out {body}"), format!("[{id}] "), format!("[{id}] unfinished")]
    });
    assert_eq!(tagged(&worked.stdout_text()), out);
    assert!(worked.stdout.ends_with(b"\n"));
    assert_eq!(tagged(&worked.stderr), lines(&|id, body| vec![format!("[{id}] err {body}")]));
    worked.says(r"(id a\x5d\x20b\x2c\n\x28c\x29/d, attempt 1");
}

#[test]
fn in_the_journal_the_priority_comes_first() {
    let sandbox = Sandbox::new();
    send(&sandbox, "one", "x");
    let options = ["--log-format", "journal", "--output", "tag", "--until-empty"];
    let worked = sandbox.work_with(&options, "printf '<0>no end' >&2; echo out").run().exits(0);
    worked.says("\n<6>[one] <0>no end\n<6>Done (id one").stdout_text().lines().for_each(|line| {
        assert_eq!(line, "[one] out");
    });
}

#[test]
fn none_shows_nothing_and_the_end_of_stderr_is_kept_with_the_failure() {
    let sandbox = Sandbox::new();
    send(&sandbox, "one", "x");
    let options = ["--output", "none", "--until-empty", "--attempts", "1"];
    let script = "yes out | head -c 1000000; yes err | head -c 1000000 >&2; echo why >&2; exit 1";
    let worked = sandbox.work_with(&options, script).run().exits(1).never_says("err\n");
    assert_eq!(worked.stdout_text(), "");
    let error = header(&sandbox.broker().take(&sandbox.dead_queue()), "x-taskq-error");
    assert!(error.ends_with("err\nwhy\n"), "{error:?}");
}

#[test]
fn a_persistent_command_prints_for_the_task_that_it_has() {
    let sandbox = Sandbox::new();
    let script = r#"
        echo started >&2
        while IFS= read -r task; do
            printf 'working' >&2
            echo OK
            while [ -d "$1" ] && [ ! -e "$1/acknowledged" ]; do sleep 0.05; done
            rm "$1/acknowledged"
            echo 'between tasks' >&2
        done"#;
    let worker = sandbox.handling(&["--persistent", "--output", "tag"], script);
    send(&sandbox, "one", "x");
    worker.says("Done");
    sandbox.file("acknowledged", "");
    worker.says("[one] started\n").says("[one] working\n").says("\n[-] between tasks\n");
    send(&sandbox, "two", "x");
    worker.says("\n[two] working\n").says_times("Done", 2);
    assert!(!worker.stderr().contains("[two] started"));
}

#[test]
fn what_is_left_in_the_background_keeps_its_tag() {
    let sandbox = Sandbox::new();
    let script = r#"setsid sh -c 'echo $$ >>"$1/pids"; while [ -d "$1" ] && [ ! -e "$1/go" ]; do sleep 0.05; done; echo late >&2' sh "$1" & echo early >&2"#;
    let worker = sandbox.handling(&["--output", "tag"], script);
    send(&sandbox, "one", "x");
    worker.says("[one] early\n").says("Done");
    let _orphan = KillOnDrop(sandbox.pids("pids", 1)[0]);
    sandbox.file("go", "");
    worker.says("[one] late\n");
}
