//! `taskq dead`: looking at dead tasks leaves them as they are, and none is lost on its way back.

use crate::support::handler::{attempt, body, headers};
use crate::support::{Finished, Sandbox, until};
use amiquip::{AmqpProperties, AmqpValue};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read, pipe};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Three dead tasks, `id-1` to `id-3`, each with an error of its own.
fn three_dead() -> Sandbox {
    let sandbox = Sandbox::new();
    for n in 1..=3 {
        let id = format!("id-{n}");
        let args = [
            "send",
            "--id",
            &id,
            "--header",
            "colour=green",
            "--content-type",
            "text/x",
            &format!("body {n}"),
        ];
        sandbox.taskq(args).run().exits(0);
    }
    let script = r#"echo "first line of $TASKQ_ID" >&2; echo "second line" >&2; exit 65"#;
    sandbox.work_with(&["--until-empty"], script).run().exits(1);
    sandbox
}

/// Many dead tasks, `0` to `count - 1`.
fn many_dead(count: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    let bodies = (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join("\n");
    sandbox.taskq(["send", "--lines", "--queue", &sandbox.dead_queue()]).feed(bodies).exits(0);
    sandbox.broker().declare(&sandbox.queue);
    sandbox
}

fn dead(sandbox: &Sandbox, args: &[&str]) -> Finished {
    sandbox.taskq(["dead"].iter().chain(args)).run()
}

fn objects(listed: &Finished) -> Vec<Value> {
    listed.stdout_lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_table_has_a_line_for_each_task_oldest_first() {
    let sandbox = three_dead();
    let lines = dead(&sandbox, &["list"]).exits(0).stdout_lines();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for (n, line) in lines.iter().enumerate().skip(1) {
        for part in [format!("id-{n}"), "65".into(), format!("first line of id-{n}"), format!("body {n}")] {
            assert!(line.contains(&part), "no {part:?} in {line:?}");
        }
        assert!(!line.contains("second line"), "{line:?}");
        // All columns begin where their headings do.
        assert_eq!(lines[0].find("ERROR"), line.find("first line"), "{lines:?}");
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Since 1970, of a time in ISO 8601, UTC.
fn seconds(at: &Value) -> u64 {
    let at = at.as_str().unwrap_or_else(|| panic!("not in ISO 8601: {at}"));
    assert!(
        at.len() == "2026-11-28T22:40:31Z".len() && at.as_bytes()[10] == b'T' && at.ends_with('Z'),
        "{at}"
    );
    let read = Command::new("date").args(["-u", "+%s", "-d", at]).output().unwrap();
    String::from_utf8(read.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn the_json_is_one_object_a_line() {
    let before = unix_time();
    let sandbox = three_dead();
    let listed = objects(&dead(&sandbox, &["list", "--json"]).exits(0));
    assert_eq!(listed.len(), 3);
    for (n, task) in (1..).zip(&listed) {
        assert_eq!(task["id"], format!("id-{n}"));
        assert_eq!(task["attempt"], 1);
        assert_eq!(task["queue"], sandbox.queue.as_str());
        assert_eq!(task["error"].as_str().unwrap().trim_end(), format!("first line of id-{n}\nsecond line"));
        assert_eq!(task["exit"], "exit status 65");
        for name in ["first_failed_at", "failed_at"] {
            let at = seconds(&task[name]);
            assert!((before..=unix_time()).contains(&at), "{task}");
        }
        assert_eq!(task["headers"]["colour"], "green");
        assert!(task.to_string().contains(&format!("body {n}")));
    }
}

#[test]
fn show_has_the_whole_story_and_show_body_only_the_body() {
    let sandbox = three_dead();
    let shown = dead(&sandbox, &["show", "id-2"]).exits(0).stdout_text();
    for part in
        ["id-2", "exit status 65", "first line of id-2\nsecond line", "colour=green", "text/x", "body 2"]
    {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    assert!(!shown.contains("id-1") && !shown.contains("body 3"), "{shown}");
    let listed = objects(&dead(&sandbox, &["list", "--json"]).exits(0));
    for (field, name) in [("first failed", "first_failed_at"), ("failed", "failed_at")] {
        let at = format!("{field:<14} {} (", listed[1][name].as_str().unwrap());
        assert!(shown.lines().any(|line| line.starts_with(&at) && line.ends_with(" ago)")), "{at}: {shown}");
    }
    assert_eq!(dead(&sandbox, &["show", "--body", "id-2"]).exits(0).stdout, b"body 2");
}

#[test]
fn a_body_drives_no_terminal_unless_that_is_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    sandbox.taskq(["send", "--id", "one", "--queue", &sandbox.dead_queue(), "a\u{1b}[2Jb\nc"]).run().exits(0);
    let on_terminal = |flags: &str| {
        let command = format!("'{}' dead show one --body {flags}", env!("CARGO_BIN_EXE_taskq"));
        let shown = sandbox.program("script", ["-qec", &command, "/dev/null"]).run().exits(0);
        shown.stdout_text().replace('\r', "")
    };
    assert_eq!(on_terminal(""), "a\\x1b[2Jb\nc\n");
    assert_eq!(on_terminal("--raw"), "a\u{1b}[2Jb\nc");
    dead(&sandbox, &["show", "one", "--raw"]).exits(2).in_one_line();
}

#[test]
fn show_body_is_byte_for_byte() {
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    sandbox.taskq(["send", "--id", "binary", "--file", "-"]).feed(&bytes).exits(0);
    sandbox.work_with(&["--until-empty"], "exit 65").run().exits(1);
    assert!(dead(&sandbox, &["show", "--body", "binary"]).exits(0).stdout == bytes);
    let shown = dead(&sandbox, &["show", "binary"]).exits(0).stdout_text();
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'));
}

#[test]
fn a_body_is_whole_where_stdout_does_not_block() {
    // More than a pipe holds.
    let body = "x".repeat(1_000_000);
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let send = ["send", "--id", "large", "--queue", &sandbox.dead_queue(), "--file", "-"];
    sandbox.taskq(send).feed(&body).exits(0);
    let (mut reader, writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let show = sandbox.taskq(["dead", "show", "--body", "large"]).stdout_to(writer).start();
    let mut shown = String::new();
    reader.read_to_string(&mut shown).unwrap();
    show.end().exits(0);
    assert!(shown == body, "{} bytes", shown.len());
}

#[test]
fn looking_leaves_everything_as_it_was() {
    let sandbox = many_dead(500);
    for args in [&["list"][..], &["list", "--json"], &["show", "no-such-id"], &["list"]] {
        dead(&sandbox, args);
    }
    let broker = sandbox.broker();
    broker.wait_ready(&sandbox.dead_queue(), 500);
    let bodies = broker.bodies(&sandbox.dead_queue());
    assert_eq!(bodies, (0..500).map(|n| n.to_string()).collect::<Vec<_>>(), "the order has changed");
}

#[test]
fn ids_that_are_not_there_are_named() {
    let sandbox = three_dead();
    for args in [["show", "no-such-id"], ["requeue", "no-such-id"]] {
        let failed = dead(&sandbox, &args).exits(65);
        assert!(failed.stderr.contains("no-such-id") && failed.stdout.is_empty(), "{}", failed.stderr);
    }
    // What is there moves all the same.
    dead(&sandbox, &["requeue", "id-1", "no-such-id"]).exits(65).says("no-such-id");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["body 1"]);
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 2);
}

#[test]
fn a_requeued_task_is_as_good_as_new() {
    let sandbox = three_dead();
    dead(&sandbox, &["requeue", "id-3", "id-1"]).exits(0);
    let broker = sandbox.broker();
    assert_eq!(broker.bodies(&sandbox.dead_queue()), ["body 2"]);
    for n in [1, 3] {
        let task = broker.take(&sandbox.queue);
        assert_eq!(body(&task), format!("body {n}"), "not in the order in which they died");
        assert_eq!(attempt(&task), None);
        assert_eq!(task.properties.message_id().clone(), Some(format!("id-{n}")));
        assert_eq!(task.properties.content_type().as_deref(), Some("text/x"));
        assert_eq!(*task.properties.delivery_mode(), Some(2));
        let headers: Vec<String> = headers(&task).into_keys().collect();
        assert_eq!(headers, ["colour"]);
    }
}

#[test]
fn a_requeued_task_has_all_its_attempts_again() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "hello"]).run().exits(0);
    let script = r#"echo "$TASKQ_ATTEMPT" >>"$1/runs"; exit 1"#;
    let worker = sandbox.handling(&["--attempts", "2", "--backoff", "100ms"], script);
    for round in 1..=2 {
        sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
        assert_eq!(sandbox.lines("runs").len(), 2 * round);
        dead(&sandbox, &["requeue", "--all"]).exits(0);
        sandbox.wait_lines("runs", 2 * round + 1);
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
    drop(worker);
    assert_eq!(sandbox.lines("runs"), ["1", "2", "1", "2", "1", "2"]);
}

#[test]
fn requeue_wants_to_be_told_what() {
    let sandbox = three_dead();
    for args in [&["requeue"][..], &["requeue", "--all", "id-1"], &["show"], &["purge", "id-1"], &[]] {
        dead(&sandbox, args).exits(2);
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 3);
}

#[test]
fn purge_asks_and_does_nothing_where_nobody_can_answer() {
    let sandbox = three_dead();
    for refused in [dead(&sandbox, &["purge"]), sandbox.taskq(["dead", "purge"]).feed("y\n")] {
        refused.exits(2).says("--yes");
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 3);
    dead(&sandbox, &["purge", "--yes"]).exits(0).says("3");
    assert_eq!(sandbox.broker().ready(&sandbox.dead_queue()), 0);
}

#[test]
fn purge_deletes_what_was_shown_and_not_what_came_after_the_question() {
    for kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        let dead = sandbox.dead_queue();
        let send = ["send", "--lines", "--queue-type", kind, "--queue", &dead];
        sandbox.taskq(send).feed("shown 1\nshown 2\nshown 3\n").exits(0);
        sandbox.broker().wait_ready(&dead, 3);
        // It asks a terminal only, which `script` makes.
        let asking = format!("{} dead purge", env!("CARGO_BIN_EXE_taskq"));
        let mut purge = sandbox.program("script", ["-q", "-e", "-c", &asking, "/dev/null"]).start();
        until("the question", || purge.stdout().contains("Delete 3 dead tasks").then_some(()));
        sandbox.taskq(send).feed("later 1\nlater 2\n").exits(0);
        purge.write("y\n");
        until("the end", || purge.stdout().contains(" deleted").then_some(()));
        purge.close_stdin();
        purge.end().exits(0);
        sandbox.broker().wait_ready(&dead, 2);
        let left = sandbox.broker().drain(&dead);
        assert_eq!(left.iter().map(body).collect::<Vec<_>>(), ["later 1", "later 2"], "{kind}");
        // They were not delivered, so not marked as redelivered.
        assert!(left.iter().all(|task| !task.redelivered), "{kind}");
    }
}

/// The question was about others, that somebody has sent again meanwhile.
#[test]
fn purge_does_not_delete_tasks_that_died_after_the_question() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("shown 1\nshown 2\n").exits(0);
    let die = || sandbox.work_with(&["--until-empty"], "exit 65").run().exits(1);
    die();
    let asking = format!("{} dead purge", env!("CARGO_BIN_EXE_taskq"));
    let mut purge = sandbox.program("script", ["-q", "-e", "-c", &asking, "/dev/null"]).start();
    until("the question", || purge.stdout().contains("Delete 2 dead tasks").then_some(()));
    let asked_at = SystemTime::now();
    dead(&sandbox, &["requeue", "--all"]).exits(0);
    // They have to die in another second.
    until("the next second", || (asked_at.elapsed().ok()? > Duration::from_secs(1)).then_some(()));
    die();
    purge.write("y\n");
    until("the end", || purge.stdout().contains("0 deleted").then_some(()));
    purge.close_stdin();
    purge.end().exits(0);
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 2);
}

#[test]
fn where_no_task_ever_died_there_is_nothing_to_see_and_nothing_wrong() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    for args in [&["list"][..], &["list", "--json"], &["requeue", "--all"], &["purge", "--yes"]] {
        let looked = dead(&sandbox, args).exits(0);
        assert!(looked.stdout.is_empty(), "{args:?}");
    }
    dead(&sandbox, &["show", "any"]).exits(65);
    assert!(sandbox.broker().counts(&sandbox.dead_queue()).is_none(), "looking made a queue");
}

#[test]
fn a_queue_that_is_not_there_is_not_taken_for_a_healthy_one() {
    let sandbox = Sandbox::new();
    for args in
        [&["list"][..], &["list", "--json"], &["show", "any"], &["requeue", "--all"], &["purge", "--yes"]]
    {
        dead(&sandbox, args).exits(78).in_one_line().says(&sandbox.queue).says("--queue");
    }
}

#[test]
fn twenty_thousand_dead_tasks_are_listed_and_sent_again_in_order() {
    const COUNT: usize = 20_000;
    let sandbox = many_dead(COUNT);
    assert_eq!(dead(&sandbox, &["list"]).exits(0).stdout_lines().len(), COUNT + 1);
    let listed = objects(&dead(&sandbox, &["list", "--json"]).exits(0));
    assert_eq!(listed.len(), COUNT);
    let last = listed[COUNT - 1]["id"].as_str().unwrap();
    assert_eq!(dead(&sandbox, &["show", "--body", last]).exits(0).stdout, (COUNT - 1).to_string().as_bytes());
    let broker = sandbox.broker();
    // The last one first, from behind all the others.
    dead(&sandbox, &["requeue", last]).exits(0);
    broker.wait_ready(&sandbox.dead_queue(), u32::try_from(COUNT - 1).unwrap());
    dead(&sandbox, &["requeue", "--all"]).exits(0);
    assert_eq!(broker.ready(&sandbox.dead_queue()), 0);
    let bodies = broker.bodies(&sandbox.queue);
    let expected = std::iter::once(COUNT - 1).chain(0..COUNT - 1).map(|n| n.to_string());
    assert!(bodies == expected.collect::<Vec<_>>(), "tasks are missing, doubled or out of order");
}

#[test]
fn killed_in_the_middle_of_sending_again_it_loses_nothing() {
    const COUNT: usize = 10_000;
    let sandbox = many_dead(COUNT);
    let broker = sandbox.broker();
    for part in 1..=3 {
        let requeue = sandbox.taskq(["dead", "requeue", "--all"]).start();
        let enough = u32::try_from(COUNT / 4 * part).unwrap();
        until("a part of them sent again", || (broker.ready(&sandbox.queue) >= enough).then_some(()));
        requeue.signal(SIGKILL);
        requeue.end().exits_with_one_of(&[137, 0]);
        broker.wait_consumers(&sandbox.dead_queue(), 0);
    }
    dead(&sandbox, &["requeue", "--all"]).exits(0);
    assert_eq!(broker.ready(&sandbox.dead_queue()), 0);
    let bodies = broker.bodies(&sandbox.queue);
    let distinct: BTreeSet<&String> = bodies.iter().collect();
    assert_eq!(distinct.len(), COUNT, "tasks are missing");
    // Only tasks that were in flight when it was killed can be there twice.
    assert!(bodies.len() < COUNT + 3 * 1000, "{} tasks", bodies.len());
}

#[test]
fn what_strangers_wrote_cannot_drive_a_terminal() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.dead_queue());
    let hostile = AmqpValue::LongString("\u{1b}]0;owned\u{7}\u{9b}2J\r\nid  1".to_owned());
    let names = ["error", "exit", "host", "queue"].map(|name| format!("x-taskq-{name}"));
    let table = names
        .into_iter()
        .chain(["colour\u{1b}[31m".to_owned()])
        .map(|name| (name, hostile.clone()))
        .collect();
    let properties = AmqpProperties::default()
        .with_message_id("id\u{1b}[2J\n".into())
        .with_content_type("text\u{1b}[31m".into())
        .with_headers(table);
    broker.publish_with(&sandbox.dead_queue(), b"\x1b[31mbody\r\n\xff\0", properties);
    for args in [&["list"][..], &["list", "--json"], &["show", "id\u{1b}[2J\n"]] {
        let shown = dead(&sandbox, args).exits(0).stdout_text();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{args:?}: {shown:?}");
    }
    assert_eq!(dead(&sandbox, &["list"]).stdout_lines().len(), 2);
    assert_eq!(objects(&dead(&sandbox, &["list", "--json"]))[0]["id"], "id\u{1b}[2J\n");
}

/// Columns of a terminal: wide characters take two.
#[test]
fn no_id_widens_the_table() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.dead_queue());
    let uuid = "01a204a2-499c-7598-8b3f-bb9077d323e2";
    let ids = [
        uuid.to_owned(),
        "x".repeat(255),
        "\u{ff37}".repeat(85),
        "\u{1b}]0;".repeat(50),
        "\u{202e}x".repeat(60),
        "\u{1f600}".repeat(60),
    ];
    for id in &ids {
        broker.publish_with(&sandbox.dead_queue(), "", AmqpProperties::default().with_message_id(id.clone()));
    }
    let lines = dead(&sandbox, &["list"]).exits(0).stdout_lines();
    let columns = |text: &str| -> usize { text.chars().map(|c| 1 + usize::from(c > '\u{ff00}')).sum() };
    let end_of_ids = lines[0].find("KEY").unwrap();
    assert!(lines[1].contains(uuid) && end_of_ids < 45, "{lines:#?}");
    for line in &lines[2..] {
        let id = line.split("  ").next().unwrap();
        assert!(id.ends_with('…') && columns(id) < end_of_ids, "{lines:#?}");
        // The columns after it begin where their headings do.
        let rest = line[id.len()..].trim_start();
        assert_eq!(columns(line) - columns(rest), end_of_ids, "{lines:#?}");
    }
    // Nowhere else is an id cut.
    assert_eq!(objects(&dead(&sandbox, &["list", "--json"]))[2]["id"], ids[2].as_str());
}

#[test]
fn tasks_without_an_id_can_be_listed_and_sent_again() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    for queue in [&sandbox.queue, &sandbox.dead_queue()] {
        broker.declare(queue);
    }
    broker.publish_with(&sandbox.dead_queue(), "nameless", AmqpProperties::default());
    assert!(dead(&sandbox, &["list"]).exits(0).stdout_text().contains("nameless"));
    dead(&sandbox, &["requeue", "--all"]).exits(0);
    assert_eq!(broker.bodies(&sandbox.queue), ["nameless"]);
}
