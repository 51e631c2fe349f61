//! Which RabbitMQ it is: told at the start, and given no reason to complain.

use crate::support::Sandbox;

#[test]
fn the_worker_says_which_broker_it_found_and_send_only_when_asked() {
    let sandbox = Sandbox::new();
    let found = format!(
        "connected to amqp://guest@127.0.0.1:{} ({})\n",
        sandbox.node().port(),
        sandbox.broker().product()
    );
    let worked = sandbox.taskq(["work", "--dots", "--until-empty"]).run().exits(0);
    let expected = format!(" [*] Waiting for messages\n{found}");
    assert_eq!(worked.stderr, expected);
    sandbox.taskq(["work", "--until-empty", "--quiet"]).run().exits(0).never_says("connected");
    sandbox.taskq(["send", "hello"]).run().exits(0).never_says("connected");
    sandbox.taskq(["-v", "send", "hello"]).run().exits(0).says(&found);
}

#[test]
fn nothing_that_the_broker_calls_deprecated_is_used() {
    // Its log is about this test alone.
    let sandbox = Sandbox::configured(&[]);
    for kind in ["classic", "quorum"] {
        let queue = format!("{kind}.{}", sandbox.queue);
        let with = ["--queue", &queue, "--queue-type", kind];
        sandbox.taskq(["send", "--lines"].iter().chain(&with)).feed("fails\nfails too\n").exits(0);
        sandbox.taskq(["send", "--delay", "100ms", "later"].iter().chain(&with)).run().exits(0);
        let often = [&with[..], &["--attempts", "2", "--backoff", "100ms", "--max-tasks", "5"]].concat();
        sandbox.work_with(&often, "exit 1").run().exits_with_one_of(&[0, 1]);
        sandbox.taskq(["dead", "list", "--queue", &queue]).run().exits(0);
        sandbox.taskq(["dead", "requeue", "--all", "--queue", &queue]).run().exits(0);
    }
    let log = sandbox.node().log();
    let complaints: Vec<_> = log.lines().filter(|line| line.contains("Deprecated features")).collect();
    assert!(log.contains("accepting AMQP connection") && complaints.is_empty(), "{complaints:?}");
}
