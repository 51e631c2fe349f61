//! Dead tasks by what they are like: which ones are listed, counted, sent again, deleted.

use serde_json::Value;

use crate::support::{Finished, Sandbox};

/// Three kinds of failures: `net-1` to `net-3`, `disk-1` and `disk-2`, and `shot-1`.
fn three_kinds() -> Sandbox {
    let sandbox = Sandbox::new();
    for id in ["net-1", "disk-1", "net-2", "shot-1", "disk-2", "net-3"] {
        sandbox.taskq(["send", "--id", id, &format!("body of {id}")]).run().exits(0);
    }
    let script = r#"case "$TASKQ_ID" in
        net-*) echo "no such host" >&2; echo "while at $TASKQ_ID" >&2; exit 3;;
        disk-*) echo "disk full" >&2; exit 33;;
        *) kill -9 $$;;
    esac"#;
    sandbox.work_with(&["--until-empty", "--attempts", "1"], script).run().exits(1);
    sandbox
}

fn dead(sandbox: &Sandbox, args: &[&str]) -> Finished {
    sandbox.taskq(["dead"].iter().chain(args)).run()
}

/// The ids of those that a filter means.
fn ids(sandbox: &Sandbox, filter: &[&str]) -> Vec<String> {
    let listed = dead(sandbox, &[&["list", "--json"], filter].concat()).exits(0);
    let id = |line: &String| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    listed.stdout_lines().iter().map(id).collect()
}

#[test]
fn a_filter_means_those_for_which_all_of_it_holds() {
    let sandbox = three_kinds();
    let net = ["net-1", "net-2", "net-3"];
    for (filter, meant) in [
        (&["--exit", "3"][..], &net[..]),
        (&["--exit", "exit status 3"], &["net-1", "disk-1", "net-2", "disk-2", "net-3"]),
        (&["--exit", "signal"], &["shot-1"]),
        (&["--error", "such host"], &net),
        (&["--error", "while at net-2"], &["net-2"]),
        (&["--error", "full", "--id", "-2"], &["disk-2"]),
        (&["--body", "of disk"], &["disk-1", "disk-2"]),
        (&["--body", "of disk", "--exit", "3"], &[]),
        (&["--newer", "1h", "--limit", "2"], &["net-1", "disk-1"]),
        (&["--exit", "3", "-n", "2"], &["net-1", "net-2"]),
        (&["--older", "1h"], &[]),
    ] {
        assert_eq!(ids(&sandbox, filter), meant, "{filter:?}");
    }
    // Looking has changed nothing.
    assert_eq!(ids(&sandbox, &[]).len(), 6);
    let none = dead(&sandbox, &["list", "--exit", "4"]).exits(0);
    assert!(none.stdout.is_empty() && none.stderr.contains("no such dead tasks in"), "{}", none.stderr);
}

#[test]
fn groups_are_counted_by_exit_and_first_line_of_the_error() {
    let sandbox = three_kinds();
    let lines = dead(&sandbox, &["list", "--group"]).exits(0).stdout_lines();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (line, parts) in lines.iter().skip(1).zip([
        ["3 ", "exit status 3", "no such host"],
        ["2 ", "exit status 33", "disk full"],
        ["1 ", "killed by signal 9", ""],
    ]) {
        assert!(line.starts_with(parts[0]) && parts.iter().all(|part| line.contains(part)), "{line:?}");
    }
    let json = dead(&sandbox, &["list", "--group", "--json", "--id", "net"]).exits(0).stdout_lines();
    let group: Value = serde_json::from_str(&json[0]).unwrap();
    assert_eq!((json.len(), &group["tasks"], &group["error"]), (1, &3.into(), &"no such host".into()));
    assert_eq!(group["hosts"].as_array().unwrap().len(), 1);
}

#[test]
fn one_kind_is_sent_again_and_another_deleted() {
    let sandbox = three_kinds();
    let tried = dead(&sandbox, &["requeue", "--exit", "3", "--dry-run"]).exits(0);
    assert_eq!(tried.stdout_lines().len(), 4);
    assert!(tried.stderr.contains("3 dead tasks would be sent again"), "{}", tried.stderr);
    let tried = dead(&sandbox, &["purge", "--exit", "33", "--dry-run"]).exits(0);
    assert!(tried.stderr.contains("2 dead tasks would be deleted"), "{}", tried.stderr);
    assert_eq!(ids(&sandbox, &[]).len(), 6);

    let sent = dead(&sandbox, &["requeue", "--exit", "3", "--limit", "2"]).exits(0);
    assert!(sent.stderr.contains("2 sent again"), "{}", sent.stderr);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["body of net-1", "body of net-2"]);
    assert_eq!(ids(&sandbox, &[]), ["disk-1", "shot-1", "disk-2", "net-3"]);
    let deleted = dead(&sandbox, &["purge", "--error", "full", "--yes"]).exits(0);
    assert!(deleted.stderr.contains("2 deleted"), "{}", deleted.stderr);
    assert_eq!(ids(&sandbox, &[]), ["shot-1", "net-3"]);
    let deleted = dead(&sandbox, &["purge", "--limit", "1", "--yes"]).exits(0);
    assert!(deleted.stderr.contains("1 deleted"), "{}", deleted.stderr);
    assert_eq!(ids(&sandbox, &[]), ["net-3"]);
}

#[test]
fn tasks_are_deleted_by_name() {
    let sandbox = three_kinds();
    let deleted = dead(&sandbox, &["purge", "disk-2", "shot", "nobody", "--yes"]).exits(65);
    assert!(deleted.stderr.contains("2 deleted") && deleted.stderr.contains("nobody"), "{}", deleted.stderr);
    assert_eq!(ids(&sandbox, &[]), ["net-1", "disk-1", "net-2", "net-3"]);
    dead(&sandbox, &["purge", "net", "--yes"]).exits(65).says("several dead tasks");
    assert_eq!(ids(&sandbox, &[]).len(), 4);
}

#[test]
fn names_can_be_tried_first() {
    let sandbox = three_kinds();
    let tried = dead(&sandbox, &["requeue", "disk-2", "shot", "nobody", "--dry-run"]).exits(65);
    let lines = tried.stdout_lines();
    assert!(lines.len() == 3 && lines[1].contains("shot-1") && lines[2].contains("disk-2"), "{lines:?}");
    assert!(
        tried.stderr.contains("shot was taken for") && tried.stderr.contains("nobody"),
        "{}",
        tried.stderr
    );
    assert_eq!(ids(&sandbox, &[]).len(), 6);
}

#[test]
fn filters_that_mean_nothing_or_contradict_are_usage_errors() {
    let sandbox = Sandbox::new();
    for args in [
        &["requeue"][..],
        &["requeue", "--limit", "3"],
        &["requeue", "--all", "--exit", "3"],
        &["requeue", "an-id", "--exit", "3"],
        &["requeue", "an-id", "--limit", "3"],
        &["requeue", "--all", "--rate", "fast"],
        &["requeue", "--all", "--rate", "0/s"],
        &["list", "--limit", "0"],
        &["list", "--exit", ""],
        &["list", "--older", "yesterday"],
        &["purge", "--yes", "--dry-run"],
        &["purge", "an-id", "--yes", "--exit", "3"],
        &["list", "--group", "--limit", "3"],
    ] {
        let refused = dead(&sandbox, args).exits(2);
        assert_eq!(refused.stderr.lines().count(), 1, "{args:?}: {}", refused.stderr);
    }
}

/// The first of many tasks is shown while others are still looked at, and little of them is kept.
#[test]
fn a_long_list_begins_at_once_and_ends_where_its_reader_does() {
    let sandbox = Sandbox::new();
    let bodies = (0..20_000).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    sandbox.taskq(["send", "--lines", "--queue", &sandbox.dead_queue()]).feed(bodies).exits(0);
    sandbox.broker().declare(&sandbox.queue);
    let pipe = format!("{} dead list --json | head -n 2", env!("CARGO_BIN_EXE_taskq"));
    let head = sandbox.program("sh", ["-c", &pipe]).run().exits(0);
    assert_eq!((head.stdout_lines().len(), head.stderr.as_str()), (2, ""));
    // All are back, and in their order.
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 20_000);
    let limited = dead(&sandbox, &["list", "--body", "19999"]).exits(0).stdout_lines();
    assert_eq!(limited.len(), 2, "{limited:?}");
}

#[test]
fn two_commands_at_once_share_the_tasks() {
    let sandbox = Sandbox::new();
    let bodies = (0..2_000).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    sandbox.taskq(["send", "--lines", "--queue", &sandbox.dead_queue()]).feed(bodies).exits(0);
    sandbox.broker().declare(&sandbox.queue);
    let requeue = || sandbox.taskq(["dead", "requeue", "--body", "1"]).start();
    let both = [requeue(), requeue()];
    for process in both {
        process.end().exits(0);
    }
    // What one of them holds while it looks, the other does not see.
    let rest = dead(&sandbox, &["requeue", "--body", "1"]).exits(0);
    assert!(rest.stderr.contains("sent again"), "{}", rest.stderr);
    let mut moved: Vec<usize> =
        sandbox.broker().bodies(&sandbox.queue).iter().map(|body| body.parse().unwrap()).collect();
    moved.sort_unstable();
    let wanted = (0..2_000).filter(|n: &usize| n.to_string().contains('1'));
    assert!(moved.into_iter().eq(wanted), "some are lost, or sent twice");
}
