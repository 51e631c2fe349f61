//! The handlers in examples/handlers/, as a newcomer would run them.

use crate::support::Sandbox;
use crate::support::handler::{attempt, body, header};
use nix::sys::signal::Signal::SIGTERM;
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn example(name: &str) -> String {
    format!("{}/examples/handlers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// All but the shell's look at the number of the attempt, and so let `later` succeed.
fn keeps_the_protocol(handler: &str, done: usize) {
    let sandbox = Sandbox::new();
    let options = ["--persistent", "--threads", "2", "--backoff", "100ms", "--", &example(handler)];
    let worker = sandbox.worker(options);
    sandbox.taskq(["send", "--lines"]).feed("plain\nlater\nnever\nalso plain\n").exits(0);
    worker.says_times("Done", done);
    let dead = sandbox.broker().take(&sandbox.dead_queue());
    assert_eq!((body(&dead).as_str(), attempt(&dead)), ("never", Some(1)));
    assert!(header(&dead, "x-taskq-exit").contains("DEAD makes no sense"), "{dead:?}");
    assert!(header(&dead, "x-taskq-error").contains("never"), "its words go to stderr: {dead:?}");
    worker.says("not yet");
    worker.says("working on");
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

#[test]
fn the_shell_handler() {
    keeps_the_protocol("handler.sh", 2);
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    // Text that looks like what it cuts at, and a header of that name.
    let looks = r#"},"body":"x"}"#;
    let plain = ["", "two words", "ü"];
    let special: [&[u8]; 4] = [b"\xff\0", b"a\nb", br"a\b", looks.as_bytes()];
    for body in plain.iter().map(|body| body.as_bytes()).chain(special) {
        broker.publish(&sandbox.queue, body);
    }
    let header = ["send", "--header", "body_base64=x", "--header", "body=y", "with headers"];
    sandbox.taskq(header).run().exits(0);
    let options = ["work", "--persistent", "--until-empty", "--", &example("handler.sh")];
    let worked = sandbox.taskq(options).run().exits(1);
    assert_eq!(worked.stderr.lines().filter(|line| line.starts_with("Done (")).count(), 4);
    let dead: Vec<Vec<u8>> = broker.drain(&sandbox.dead_queue()).into_iter().map(|task| task.body).collect();
    assert_eq!(dead, special, "what it cannot read is not done");
}

#[test]
fn the_python_handler() {
    keeps_the_protocol("handler.py", 3);
    takes_any_bytes("handler.py");
}

#[test]
fn the_node_handler() {
    if !there("node") {
        println!("skipped: there is no node here");
        return;
    }
    keeps_the_protocol("handler.js", 3);
    takes_any_bytes("handler.js");
}

fn there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn takes_any_bytes(handler: &str) {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    for body in [&b"\xff\0\n"[..], b"", "ü\u{2028}\n\"".as_bytes()] {
        sandbox.broker().publish(&sandbox.queue, body);
    }
    let options = ["work", "--persistent", "--until-empty", "--", &example(handler)];
    let worked = sandbox.taskq(options).run().exits(0);
    assert_eq!(worked.stderr.lines().filter(|line| line.starts_with("Done (")).count(), 3);
}

/// How long a task takes on average.
fn pace(sandbox: &Sandbox, tasks: u32, options: &[&str]) -> Duration {
    let worker = sandbox.taskq(["work", "--quiet", "--idle-timeout", "60s"].iter().chain(options)).start();
    sandbox.taskq(["send", "--lines"]).feed("\n").exits(0);
    let broker = sandbox.broker();
    // Everything has started.
    broker.wait_consumers(&sandbox.queue, 1);
    sandbox.wait_lines("ran", 1);
    let started = Instant::now();
    sandbox.taskq(["send", "--lines"]).feed("\n".repeat(usize::try_from(tasks).unwrap())).exits(0);
    sandbox.wait_lines("ran", usize::try_from(tasks).unwrap() + 1);
    let took = started.elapsed();
    drop(worker);
    std::fs::remove_file(sandbox.path("ran")).unwrap();
    took / tasks
}

#[test]
fn a_python_handler_that_stays_is_twenty_times_as_fast_as_one_per_task() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let directory = sandbox.path("");
    let log = "import base64, json, sys\nlog = open(sys.argv[1] + '/ran', 'a', 1)\n";
    let stays = format!(
        "{log}for line in sys.stdin:\n    json.loads(line)\n    log.write('x\\n')\n    print('OK', flush=True)\n"
    );
    let starts = format!("{log}sys.stdin.buffer.read()\nlog.write('x\\n')\n");
    // What `python3` is here, without a wrapper in between.
    let python = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    let python = String::from_utf8(python.stdout).unwrap();
    let command = |program: &str| {
        ["--", python.trim(), "-c", program, directory.to_str().unwrap()].map(str::to_owned).to_vec()
    };
    let mut paces: HashMap<&str, Duration> = HashMap::new();
    for (name, tasks, options) in [
        ("starts", 25, command(&starts)),
        ("stays", 2000, {
            let mut options = vec!["--persistent".to_owned()];
            options.extend(command(&stays));
            options
        }),
    ] {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        paces.insert(name, pace(&sandbox, tasks, &options));
    }
    assert!(paces["starts"] >= paces["stays"] * 20, "{paces:?}");
}
