//! Users that may do little: it is enough, or what is missing is named. And what a command does not get to see.

use crate::support::script::Script;
use crate::support::{Finished, Invocation, Sandbox, User, amqp, until};
use amiquip::ConsumerOptions;
use nix::sys::signal::Signal::SIGTERM;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;

const NONE: &str = "^$";
/// Where tasks are published to.
const DEFAULT_EXCHANGE: &str = "^amq\\.default$";

/// A URL of a user of the test's own, who may configure, write and read this.
fn user(sandbox: &Sandbox, name: &str, permissions: [&str; 3]) -> String {
    User::add(sandbox, name, "opensesame", permissions).url("opensesame")
}

/// The sandbox's queue alone.
fn only(queue: &str) -> String {
    format!("^{}$", queue.replace('.', "\\."))
}

fn run(sandbox: &Sandbox, url: &str, args: &[&str]) -> Finished {
    let command: Invocation = sandbox.taskq(args).env("TASKQ_URL", url);
    command.run().never_says("opensesame")
}

/// It is refused for want of this permission on this.
fn lacks(sandbox: &Sandbox, url: &str, args: &[&str], permission: &str, on: &str) {
    let refused = run(sandbox, url, args).exits(77).in_one_line();
    refused.says(&format!("lacks the permission \"{permission}\"")).says(on);
}

#[test]
fn who_may_only_write_can_send_and_who_may_only_read_can_work() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let queue = only(&sandbox.queue);
    let writer = user(&sandbox, "writer", [NONE, DEFAULT_EXCHANGE, NONE]);
    let reader = user(&sandbox, "reader", [NONE, NONE, &queue]);
    run(&sandbox, &writer, &["send", "--no-declare", "hello"]).exits(0);
    let worked = run(&sandbox, &reader, &["work", "--no-declare", "--until-empty"]).exits(0);
    worked.says("Received a message: hello\nDone\n");
    // Neither can do the other's.
    lacks(&sandbox, &reader, &["send", "--no-declare", "hello"], "write", "amq.default");
    lacks(&sandbox, &writer, &["work", "--no-declare"], "read", &sandbox.queue);
}

/// Since 4.2.6 RabbitMQ does not let who may not configure a queue find out that there is none: the first use tells.
#[test]
fn a_missing_queue_is_named_to_those_who_may_not_declare_it() {
    let sandbox = Sandbox::new();
    let queue = only(&sandbox.queue);
    let writer = user(&sandbox, "writer", [NONE, DEFAULT_EXCHANGE, NONE]);
    let reader = user(&sandbox, "reader", [NONE, NONE, &queue]);
    let missing = format!("there is no queue {}", sandbox.queue);
    for (url, args) in [
        (&writer, &["send", "--no-declare", "hello"][..]),
        (&reader, &["work", "--no-declare"]),
        (&reader, &["work", "--no-declare", "--until-empty"]),
    ] {
        run(&sandbox, url, args).exits(78).says(&missing).never_says("sent again");
    }
    let mut bulk = sandbox.taskq(["send", "--no-declare", "--lines"]).env("TASKQ_URL", &writer).start();
    bulk.write("one\ntwo\n");
    bulk.close_stdin();
    bulk.end().exits(78).says(&missing).says("0 tasks confirmed, 2 not");
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "the queue was made after all");
    // A missing queue of dead tasks is no error, where there is one of tasks.
    let keeper = user(&sandbox, "keeper", [NONE, NONE, &only(&format!("{}.dead", sandbox.queue))]);
    sandbox.broker().declare(&sandbox.queue);
    run(&sandbox, &keeper, &["dead", "list"]).exits(0).says("no dead tasks");
}

#[test]
fn a_worker_with_a_command_may_have_its_queues_declared_by_somebody_else() {
    let sandbox = Sandbox::new();
    let declared = ["--until-empty", "--attempts", "2", "--backoff", "200ms"];
    sandbox.work_with(&declared, "exit 1").run().exits(0);
    let rights = [NONE, DEFAULT_EXCHANGE, &only(&sandbox.queue)];
    let worker = user(&sandbox, "worker", rights);
    sandbox.broker().publish(&sandbox.queue, "fails");
    let options = ["--no-declare", "--max-tasks", "2", "--attempts", "2", "--backoff", "200ms"];
    let worked = sandbox.work_with(&options, "exit 1").env("TASKQ_URL", &worker).run().exits(1);
    worked.says("attempt 1 of 2 failed").says(&format!("kept in {}.dead", sandbox.queue));
}

/// As RabbitMQ 4.2.6 and 4.3.0 do: it lets nobody look at a queue who may not configure it.
#[test]
fn a_queue_that_may_not_be_counted_cannot_be_worked_until_it_is_empty() {
    let sandbox = Sandbox::new();
    let server = Script::run(|stream| {
        let mut frame = amqp::play_until(stream, amqp::DECLARE)?;
        loop {
            let refused =
                "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'guest'";
            stream.write_all(&amqp::channel_close(frame.channel, 403, refused))?;
            frame = amqp::serve_until(stream, amqp::DECLARE)?;
        }
    });
    let work = ["work", "--no-declare", "--until-empty", "--url", &server.url()];
    let worked = sandbox.taskq(work).run().exits(77);
    worked.says("--until-empty has to count").says("lacks the permission \"configure\"");
}

#[test]
fn a_missing_permission_is_named_with_its_object() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let queue = only(&sandbox.queue);
    let unconfigured = user(&sandbox, "unconfigured", [NONE, ".*", ".*"]);
    for args in [["send", "hello"].as_slice(), &["work"], &["work", "--", "true"]] {
        lacks(&sandbox, &unconfigured, args, "configure", &sandbox.queue);
    }
    let mut bulk = sandbox.taskq(["send", "--lines"]).env("TASKQ_URL", &unconfigured).start();
    bulk.write("one\ntwo\n");
    bulk.close_stdin();
    bulk.end().exits(77).says("lacks the permission \"configure\"").never_says("opensesame");
    let narrow = user(&sandbox, "narrow", [&queue, ".*", ".*"]);
    lacks(&sandbox, &narrow, &["work", "--", "true"], "configure", &format!("{}.", sandbox.queue));
    let mute = user(&sandbox, "mute", [".*", NONE, ".*"]);
    lacks(&sandbox, &mute, &["send", "hello"], "write", "amq.default");
    lacks(&sandbox, &mute, &["work", "--", "true"], "write", "amq.default");
    let blind = user(&sandbox, "blind", [".*", ".*", NONE]);
    lacks(&sandbox, &blind, &["work"], "read", &sandbox.queue);
    assert_eq!(sandbox.broker().counts(&sandbox.queue), Some((0, 0)));
}

/// What README lists as enough for users for whom somebody else has declared the queues: nothing more, for each command.
#[test]
fn each_command_works_with_the_least_that_it_needs() {
    for kind in ["classic", "quorum"] {
        let sandbox = Sandbox::new();
        let user = User::add(&sandbox, "least", "opensesame", [NONE; 3]);
        let url = user.url("opensesame");
        let (queue, dead) = (only(&sandbox.queue), only(&sandbox.dead_queue()));
        let all = format!("^{}(\\.(dead|delay\\.[0-9]+))?$", sandbox.queue.replace('.', "\\."));
        let admin = |args: &[&str]| sandbox.taskq(args).run();
        let fill = || {
            admin(&["dead", "purge", "--yes"]).exits(0);
            for id in ["a", "b"] {
                admin(&["send", "--id", id, "--queue-type", kind, "body"]).exits(0);
            }
            sandbox.work_with(&["--until-empty", "--queue-type", kind], "exit 65").run().exits(1);
        };
        admin(&["send", "--queue-type", kind, "body"]).exits(0);
        sandbox.work_with(&["--until-empty", "--queue-type", kind], "exit 65").run().exits(1);
        fill();
        let enough = |permissions: [&str; 3], args: &[&str]| {
            user.may(permissions);
            run(&sandbox, &url, args).exits(0)
        };
        enough([&queue, DEFAULT_EXCHANGE, NONE], &["send", "--queue-type", kind, "hello"]);
        enough([NONE, DEFAULT_EXCHANGE, NONE], &["send", "--no-declare", "hello"]);
        enough([&queue, NONE, &queue], &["work", "--queue-type", kind, "--max-tasks", "1", "--dots"]);
        enough([NONE, NONE, &queue], &["work", "--no-declare", "--max-tasks", "1", "--dots"]);
        let work = ["work", "--max-tasks", "1", "--queue-type", kind, "--", "true"];
        enough([NONE, DEFAULT_EXCHANGE, NONE], &["send", "--no-declare", "hello"]);
        enough([&all, DEFAULT_EXCHANGE, &all], &work);
        // A queue of dead tasks that wears out: the second look replaces what the first has worn.
        for args in [&["dead", "list"][..], &["dead", "show", "a"], &["dead", "list", "--json"]] {
            enough([NONE, DEFAULT_EXCHANGE, &dead], args).never_says("could not be replaced");
        }
        enough([NONE, DEFAULT_EXCHANGE, &dead], &["dead", "requeue", "a"]).says("1 sent again");
        enough([NONE, NONE, &dead], &["dead", "purge", "--yes"]).says("1 deleted");
        admin(&["work", "--dots", "--until-empty"]).exits(0);
        fill();
        let told = enough([NONE, NONE, &all], &["status", "--json", "--max-dead", "2"]);
        assert_eq!(told.stderr, "");
        assert!(told.stdout_text().contains(r#""dead":2"#), "{kind}: {}", told.stdout_text());
    }
}

/// What may not be looked at, or not be read to make sure that nothing is in it, is unknown and stops nothing else.
#[test]
fn status_tells_what_this_user_may_see() {
    let sandbox = Sandbox::new();
    sandbox.work_with(&["--until-empty"], "true").run().exits(0);
    let user = User::add(&sandbox, "reader", "opensesame", [NONE, NONE, &only(&sandbox.queue)]);
    let url = user.url("opensesame");
    let told = run(&sandbox, &url, &["status", "--json"]).exits(0).in_one_line();
    let seen: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!((&seen["ready"], &seen["consumers"]), (&0.into(), &0.into()));
    assert!(seen["dead"].is_null() && seen["waiting"]["5s"].is_null(), "{seen}");
    told.says(&format!("unknown how much is in {}, ", sandbox.dead_queue())).says("lacks the permission");
    assert_eq!(run(&sandbox, &url, &["--quiet", "status"]).exits(0).stderr, "");
    run(&sandbox, &url, &["--quiet", "status", "--max-dead", "9"]).exits(77).in_one_line().says("--max-dead");
    run(&sandbox, &url, &["--quiet", "status", "--max-ready", "9"]).exits(0);
    // Before 4.2.6 a queue in which there is something can be counted by everybody.
    user.may([NONE; 3]);
    let seen_by_all = sandbox.broker().version() < [4, 2, 6];
    let nothing = run(&sandbox, &url, &["status", "--json"]);
    if seen_by_all {
        assert!(nothing.exits(0).stdout_text().contains(r#""ready":null"#));
        sandbox.broker().publish(&sandbox.queue, "task");
        sandbox.broker().wait_ready(&sandbox.queue, 1);
        let told = run(&sandbox, &url, &["status", "--json"]).exits(0).stdout_text();
        assert!(told.contains(r#""ready":1"#), "{told}");
    } else {
        assert!(nothing.exits(77).in_one_line().says("cannot be looked at").stdout.is_empty());
    }
}

/// RabbitMQ asks for both for a new queue that hands its messages on, and only since 4 it tells which one is missing.
#[test]
fn a_delay_queue_needs_two_permissions_and_both_are_named() {
    let sandbox = Sandbox::new();
    let queue = only(&sandbox.queue);
    let unread = user(&sandbox, "unread", [".*", ".*", &queue]);
    let unconfigured = user(&sandbox, "unconfigured", [&queue, ".*", ".*"]);
    let told = sandbox.broker().version() >= [4, 0, 0];
    for (url, permission) in [(&unread, "\"read\""), (&unconfigured, "\"configure\"")] {
        let permission = if told { permission } else { "\"configure\" or \"read\" (it needs both)" };
        for args in [["send", "--delay", "1h", "later"].as_slice(), &["work", "--", "true"]] {
            let refused = run(&sandbox, url, args).exits(77).never_says("panicked");
            refused
                .says(&format!("lacks the permission {permission} for the queue"))
                .says(&format!("{}.delay.", sandbox.queue));
        }
    }
    // With both, and nothing else than the exchange, it can be sent.
    let delay = format!("^{}(\\.delay\\..*)?$", sandbox.queue.replace('.', "\\."));
    let sufficient = user(&sandbox, "sufficient", [&delay, DEFAULT_EXCHANGE, "\\.delay\\."]);
    run(&sandbox, &sufficient, &["send", "--delay", "1h", "later"]).exits(0);
}

#[test]
fn a_queue_that_another_consumer_has_for_itself_is_no_missing_permission() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let alone = ConsumerOptions { exclusive: true, ..ConsumerOptions::default() };
    broker.while_consuming(&sandbox.queue, alone, || {
        for args in [["work"].as_slice(), &["work", "--no-declare"]] {
            let refused = sandbox.taskq(args).run().exits(77).never_says("lacks the permission");
            refused.says("another consumer has the queue for itself").says(&sandbox.queue);
        }
    });
    sandbox.taskq(["work", "--until-empty"]).run().exits(0);
}

#[test]
fn another_vhost_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let url = user(&sandbox, "stranger", [".*", ".*", ".*"]);
    let vhost = format!("v{}", std::process::id());
    sandbox.node().ctl(&["add_vhost", &vhost]);
    let url = format!("{url}/{vhost}");
    for args in [["send", "hello"], ["work", "--until-empty"]] {
        run(&sandbox, &url, &args).exits(77).in_one_line().says(&vhost);
    }
    sandbox.node().ctl(&["delete_vhost", &vhost]);
}

/// What systemd gives a worker, and a URL.
fn worker_with_secrets(sandbox: &Sandbox, options: &[&str], script: &str) -> crate::support::Process {
    let credential = sandbox.file("taskq-url", sandbox.url());
    let worker = sandbox
        .work_with(options, script)
        .env("CREDENTIALS_DIRECTORY", credential.parent().unwrap())
        .env("NOTIFY_SOCKET", "/nowhere/notify")
        .env("WATCHDOG_USEC", "30000000")
        .env("WATCHDOG_PID", "1")
        .start();
    worker.says("[*] Waiting");
    worker
}

/// Neither in its environment nor among its files.
fn looks_clean(pid: &str) {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    for secret in ["guest:guest", "TASKQ_URL=", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_"] {
        assert!(!environment.contains(secret), "{secret} is in the environment");
    }
    // While it starts it reads libraries and the like.
    until("no more open than stdin, stdout and stderr", || (open_files(pid).len() == 3).then_some(()));
}

fn open_files(pid: &str) -> Vec<String> {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).ok()?;
            // What the tests themselves were given by whoever runs them.
            let ours = std::path::Path::new("/proc/self/fd").join(entry.file_name());
            if std::fs::read_link(ours).is_ok_and(|ours| ours == target) {
                return None;
            }
            let socket = std::fs::metadata(entry.path()).is_ok_and(|there| there.file_type().is_socket());
            assert!(!socket, "a socket is open: {}", target.display());
            Some(format!("{} -> {}", entry.file_name().display(), target.display()))
        })
        .collect()
}

#[test]
fn a_command_inherits_no_secret_and_no_connection() {
    for persistent in [false, true] {
        let sandbox = Sandbox::new();
        let options: &[&str] =
            if persistent { &["--persistent", "--threads", "2"] } else { &["--threads", "2"] };
        // The replacement by another program is what a secret would survive.
        let script = r#"echo $$ >>"$1/pids"; exec sleep 600"#;
        let worker = worker_with_secrets(&sandbox, options, script);
        for _ in 0..2 {
            sandbox.broker().publish(&sandbox.queue, "task");
        }
        for pid in sandbox.wait_lines("pids", 2) {
            until("the sleep", || {
                let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
                (command.trim() == "sleep").then_some(())
            });
            looks_clean(&pid);
        }
        worker.signal(SIGTERM).says("SIGTERM").signal(SIGTERM);
        worker.end().exits(143);
    }
}

/// Since 4.2.6 RabbitMQ does not let everybody look at it.
#[test]
fn who_may_not_look_at_the_queue_of_dead_tasks_can_work_without_a_command() {
    let sandbox = Sandbox::new();
    let queue = only(&sandbox.queue);
    let reader = user(&sandbox, "reader", [&queue, NONE, &queue]);
    run(&sandbox, &reader, &["work", "--until-empty"]).exits(0);
    sandbox.broker().declare(&sandbox.dead_queue());
    run(&sandbox, &reader, &["work", "--until-empty", "--dots"]).exits(0);
    // Whoever may look is refused.
    sandbox.taskq(["work", "--until-empty"]).run().exits(78);
}

#[test]
fn who_may_not_write_is_told_so_when_dead_tasks_are_to_be_sent_again() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--queue", &sandbox.dead_queue(), "dead"]).run().exits(0);
    sandbox.broker().declare(&sandbox.queue);
    let url = User::add(&sandbox, "reads", "secret", ["^$", "^$", ".*"]).url("secret");
    for args in [&["--all"][..], &["--all", "--rate", "1/s"], &["--body", "dead"]] {
        let refused = sandbox.taskq(["dead", "requeue", "--url", &url].iter().chain(args)).run().exits(77);
        assert!(refused.stderr.contains("permission"), "{args:?}: {}", refused.stderr);
    }
    sandbox.broker().wait_ready(&sandbox.dead_queue(), 1);
}
