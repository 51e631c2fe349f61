//! How a dead task is named: by its id, by its key, by a beginning of either. Nothing but what was meant is shown or moved.

use crate::support::broker::{arguments, durable, number, text};
use crate::support::handler::body;
use crate::support::{Finished, Sandbox};
use amiquip::{AmqpProperties, AmqpValue};
use serde_json::Value;
use std::collections::BTreeSet;

/// Hexadecimal digits.
const KEY_LENGTH: usize = 12;

fn dead(sandbox: &Sandbox, args: &[&str]) -> Finished {
    sandbox.taskq(["dead"].iter().chain(args)).run()
}

fn listed(sandbox: &Sandbox) -> Vec<Value> {
    let lines = dead(sandbox, &["list", "--json"]).exits(0).stdout_lines();
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// In the order of the list.
fn keys(sandbox: &Sandbox) -> Vec<String> {
    listed(sandbox).iter().map(|task| task["key"].as_str().unwrap().to_owned()).collect()
}

/// Dead tasks with these ids and bodies, in this order.
fn have_died(tasks: &[(&str, &str)]) -> Sandbox {
    let sandbox = Sandbox::new();
    for (id, body) in tasks {
        sandbox.taskq(["send", "--id", id, body]).run().exits(0);
    }
    sandbox.work_with(&["--until-empty"], "exit 65").run().exits(1);
    sandbox
}

/// Messages as others write them, among the dead.
fn foreign(ids_and_bodies: &[(Option<&str>, &str)]) -> Sandbox {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    for queue in [&sandbox.queue, &sandbox.dead_queue()] {
        broker.declare(queue);
    }
    for (id, body) in ids_and_bodies {
        let properties = AmqpProperties::default().with_delivery_mode(2);
        let properties = match id {
            Some(id) => properties.with_message_id((*id).to_owned()),
            None => properties,
        };
        broker.publish_with(&sandbox.dead_queue(), body, properties);
    }
    sandbox
}

#[test]
fn a_task_is_named_by_its_id_its_key_or_a_beginning_of_either() {
    let sandbox = have_died(&[("alpha-1", "one"), ("alpha-2", "two"), ("beta", "three")]);
    let keys = keys(&sandbox);
    for key in &keys {
        let digits = key.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        assert!(key.len() == KEY_LENGTH && digits, "{key}");
    }
    let table = dead(&sandbox, &["list"]).exits(0).stdout_lines();
    for (key, line) in keys.iter().zip(&table[1..]) {
        assert_eq!(line.split_whitespace().nth(1), Some(key.as_str()), "{table:?}");
    }
    for (name, body) in
        [("alpha-2", "two"), ("b", "three"), (&keys[0], "one"), (&keys[1][..KEY_LENGTH - 1], "two")]
    {
        assert_eq!(dead(&sandbox, &["show", "--body", name]).exits(0).stdout_text(), body, "{name}");
    }
    assert!(dead(&sandbox, &["show", "beta"]).exits(0).stdout_text().contains(&keys[2]));
    dead(&sandbox, &["requeue", "be", &keys[0]]).exits(0).says("2 sent again");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["one", "three"]);
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
}

#[test]
fn a_whole_id_goes_before_those_that_begin_with_it() {
    let sandbox = have_died(&[("id-1", "one"), ("id-10", "ten"), ("id-11", "eleven")]);
    assert_eq!(dead(&sandbox, &["show", "--body", "id-1"]).exits(0).stdout_text(), "one");
    dead(&sandbox, &["requeue", "id-1"]).exits(0).says("1 sent again");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["one"]);
}

#[test]
fn a_name_that_is_not_clear_is_refused_with_those_that_it_may_mean() {
    let sandbox = have_died(&[("alpha-1", "one"), ("alpha-2", "two"), ("beta", "three")]);
    let keys = keys(&sandbox);
    for args in [["show", "alpha"], ["requeue", "alpha"]] {
        let refused = dead(&sandbox, &args).exits(65).in_one_line();
        assert!(refused.stdout.is_empty());
        refused.says("alpha-1").says("alpha-2").says(&keys[0]).says(&keys[1]).never_says("beta");
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 3);
    // What is clear moves all the same.
    dead(&sandbox, &["requeue", "alpha", "no-such-id", "beta"]).exits(65).says(&keys[0]).says("no-such-id");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["three"]);
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 2);
}

#[test]
fn two_tasks_with_one_id_are_told_apart() {
    let sandbox = have_died(&[("same", "one"), ("other", "two"), ("same", "three")]);
    let keys = keys(&sandbox);
    assert_ne!(keys[0], keys[2]);
    for args in [["show", "same"], ["requeue", "same"]] {
        let refused = dead(&sandbox, &args).exits(65);
        assert!(refused.stdout.is_empty());
        refused.says(&keys[0]).says(&keys[2]).never_says(&keys[1]);
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 3);
    assert_eq!(dead(&sandbox, &["show", "--body", &keys[0]]).exits(0).stdout_text(), "one");
    dead(&sandbox, &["requeue", &keys[2]]).exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["three"]);
    // It is clear now.
    assert_eq!(dead(&sandbox, &["show", "--body", "same"]).exits(0).stdout_text(), "one");
}

#[test]
fn what_has_no_id_that_can_be_typed_is_named_by_its_key() {
    let tasks = [
        (None, "none"),
        (Some(""), "empty"),
        (Some("a\0b"), "nul"),
        (Some("a\nb"), "line"),
        (Some("c"), "plain"),
    ];
    let sandbox = foreign(&tasks);
    let keys = keys(&sandbox);
    let table = dead(&sandbox, &["list"]).exits(0).stdout_lines();
    assert_eq!(table.len(), 1 + tasks.len(), "{table:?}");
    assert!(table[1].starts_with("- ") && table[2].starts_with("- "), "{table:?}");
    for ((_, body), key) in tasks.iter().zip(&keys) {
        assert_eq!(&dead(&sandbox, &["show", "--body", key]).exits(0).stdout_text(), body);
    }
    for ((_, body), key) in tasks.iter().zip(&keys).rev() {
        dead(&sandbox, &["requeue", key]).exits(0).says("1 sent again");
        assert_eq!(sandbox.broker().bodies(&sandbox.queue), [*body]);
    }
}

#[test]
fn an_empty_name_means_nothing() {
    let sandbox = foreign(&[(None, "nameless")]);
    for args in [["show", ""], ["requeue", ""]] {
        dead(&sandbox, &args).exits(2);
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
}

/// They cannot be told apart, and need not be.
#[test]
fn tasks_that_differ_in_nothing_have_one_name() {
    let sandbox = foreign(&[(Some("twin"), "body"), (Some("other"), "body"), (Some("twin"), "body")]);
    let keys = keys(&sandbox);
    assert!(keys[0] == keys[2] && keys[0] != keys[1], "{keys:?}");
    for name in ["twin", &keys[0]] {
        assert_eq!(dead(&sandbox, &["show", "--body", name]).exits(0).stdout_text(), "body");
    }
    dead(&sandbox, &["requeue", &keys[0]]).exits(0).says("2 sent again");
    assert_eq!(sandbox.broker().drain(&sandbox.queue).len(), 2);
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
}

/// A copy that takes a task's place may have to leave some out.
#[test]
fn headers_are_no_part_of_a_key() {
    let sandbox = foreign(&[(Some("id"), "body")]);
    let table = [("colour".to_owned(), AmqpValue::LongString("green".to_owned()))].into_iter().collect();
    let coloured = AmqpProperties::default().with_message_id("id".to_owned()).with_headers(table);
    sandbox.broker().publish_with(&sandbox.dead_queue(), "body", coloured);
    let keys = keys(&sandbox);
    assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
}

/// Whoever may send gives a task any id.
#[test]
fn no_task_takes_the_name_of_another_one() {
    let sandbox = foreign(&[(Some("victim"), "one")]);
    let key = keys(&sandbox).remove(0);
    let squatter = AmqpProperties::default().with_delivery_mode(2).with_message_id(key.clone());
    sandbox.broker().publish_with(&sandbox.dead_queue(), "two", squatter);
    assert_eq!(dead(&sandbox, &["show", "--body", &key]).exits(0).stdout_text(), "one");
    dead(&sandbox, &["requeue", &key]).exits(0).says("1 sent again");
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["one"]);
}

/// A look may replace a task by its copy; another worker, or the broker, may deliver it again.
#[test]
fn a_key_is_the_same_however_often_its_task_is_looked_at() {
    const LOWEST_LIMIT: i32 = 2;
    for kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        let mut its_arguments = vec![("x-queue-type", text(kind))];
        if kind == "quorum" {
            its_arguments.push(("x-delivery-limit", number(LOWEST_LIMIT)));
        }
        broker.declare_with(&sandbox.dead_queue(), durable(arguments(&its_arguments)));
        sandbox.taskq(["send", "--header", "colour=green", "from a worker"]).run().exits(0);
        sandbox.work_with(&["--until-empty"], "echo why >&2; exit 65").run().exits(1);
        broker.publish(&sandbox.dead_queue(), "from a stranger");
        // A busy quorum queue may keep an original beside its copy, under the same key.
        let first: BTreeSet<String> = keys(&sandbox).into_iter().collect();
        for look in 0..8 {
            assert_eq!(keys(&sandbox).into_iter().collect::<BTreeSet<_>>(), first, "{kind}, look {look}");
            dead(&sandbox, &["show", first.first().unwrap()]).exits(0);
        }
        dead(&sandbox, &["requeue", first.first().unwrap(), first.last().unwrap()]).exits(0);
        assert_eq!(broker.ready(&sandbox.dead_queue()), 0, "{kind}");
        let bodies: BTreeSet<String> = broker.drain(&sandbox.queue).iter().map(body).collect();
        assert_eq!(bodies, ["from a stranger", "from a worker"].map(str::to_owned).into(), "{kind}");
    }
}

#[test]
fn a_task_that_died_again_has_another_key() {
    let sandbox = have_died(&[("again", "body")]);
    let first = listed(&sandbox).remove(0);
    dead(&sandbox, &["requeue", "again"]).exits(0);
    crate::support::until("the next second", || {
        let now = std::process::Command::new("date").args(["-u", "+%FT%TZ"]).output().unwrap().stdout;
        (String::from_utf8(now).unwrap().trim() > first["failed_at"].as_str().unwrap()).then_some(())
    });
    sandbox.work_with(&["--until-empty"], "exit 65").run().exits(1);
    assert_ne!(listed(&sandbox)[0]["key"], first["key"]);
}
