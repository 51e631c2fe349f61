//! Flags about commands, retries and delays that make no sense: exit code 2 before anything happens.

use crate::support::Sandbox;

#[test]
fn senseless_values_are_usage_errors() {
    let sandbox = Sandbox::new();
    let rows: &[(&str, &[&str])] = &[
        ("--timeout", &["0s", "0", "-1s", "", "soon", "5", "99999999999999999999h"]),
        ("--grace", &["-1s", "", "soon"]),
        (
            "--backoff",
            &[
                "",
                "0s",
                "1s,0s",
                "1s,",
                ",1s",
                "1s,,2s",
                "soon",
                "1s;2s",
                "5",
                "-1s",
                "1s,99999d",
                "1000000h",
            ],
        ),
        ("--attempts", &["0", "-1", "1.5", "", "many", "99999999999999999999"]),
        ("--max-deliveries", &["0", "-1", "", "many"]),
        (
            "--on-exit",
            &["", "3", "3=", "=dead", "3=maybe", "256=dead", "-1=dead", "+3=dead", "3=DEAD", "x=done"],
        ),
        ("--output", &["", "tags", "TAG", "inherit,tag"]),
        ("--output-dir", &[""]),
    ];
    for (flag, values) in rows {
        for value in *values {
            let wrong = format!("{flag}={value}");
            let failed = sandbox.taskq(["work", &wrong, "--", "true"]).run();
            assert_eq!(failed.code, 2, "{wrong}: {}", failed.stderr);
            assert!(failed.stderr.contains(flag), "{wrong}: {}", failed.stderr);
            assert!(!failed.stderr.contains("panicked"), "{wrong}: {}", failed.stderr);
        }
    }
    for value in ["0s", "", "soon", "-1s", "5", "1000000h"] {
        sandbox.taskq(["send", &format!("--delay={value}"), "hello"]).run().exits(2).says("--delay");
    }
    assert!(sandbox.broker().counts(&sandbox.queue).is_none(), "something happened");
}

#[test]
fn flags_about_a_command_need_a_command() {
    let sandbox = Sandbox::new();
    for flag in [
        "--persistent",
        "--timeout=5s",
        "--on-exit=3=dead",
        "--attempts=3",
        "--backoff=1s",
        "--arg",
        "--output=tag",
        "--output-dir=/tmp",
    ] {
        sandbox.taskq(["work", "--until-empty", flag]).run().exits(2);
        sandbox.taskq(["work", "--until-empty", flag, "--"]).run().exits(2);
    }
    sandbox.taskq(["work", "--until-empty", "--arg", "--persistent", "--", "true"]).run().exits(2);
    sandbox.taskq(["work", "--until-empty", "--dots", "--", "true"]).run().exits(2);
    // Without the dashes it would be a guess which flags are taskq's.
    sandbox.taskq(["work", "--until-empty", "true"]).run().exits(2);
}

#[test]
fn a_queue_whose_name_leaves_no_room_for_the_names_made_from_it_is_refused() {
    let sandbox = Sandbox::new();
    let long = "q".repeat(250);
    sandbox.taskq(["work", "--until-empty", "--queue", &long, "--", "true"]).run().exits(65);
    sandbox.taskq(["send", "--delay", "1h", "--queue", &long, "hello"]).run().exits(65);
    sandbox.taskq(["dead", "list", "--queue", &long.repeat(2)[..253]]).run().exits(65).in_one_line();
    assert!(sandbox.broker().counts(&long).is_none(), "something happened");
}

/// Before RabbitMQ 4.3, which is told to wait for as long.
#[test]
fn a_time_out_beyond_the_brokers_acknowledgement_timeout_is_pointed_out() {
    let sandbox = Sandbox::new();
    let is_told = sandbox.broker().version() >= [4, 3, 0];
    for (timeout, beyond) in [("29m", false), ("30m", true), ("2h", true)] {
        let worked =
            sandbox.taskq(["work", "--until-empty", "--timeout", timeout, "--", "true"]).run().exits(0);
        let warned = worked.stderr.contains("30 minutes");
        assert_eq!(warned, beyond && !is_told, "{timeout}: {}", worked.stderr);
        assert_eq!(worked.stderr.contains("raise consumer_timeout in rabbitmq.conf"), warned);
    }
}

#[test]
fn the_command_line_of_a_handler_is_its_own() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "hello"]).run().exits(0);
    let options = ["work", "--until-empty", "--", "echo", "--threads", "0", "--", "--help"];
    assert_eq!(sandbox.taskq(options).run().exits(0).stdout_text(), "--threads 0 -- --help\n");
}

#[test]
fn with_a_single_attempt_no_queue_for_retries_is_needed() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    for queue in [&sandbox.queue, &sandbox.dead_queue()] {
        broker.declare(queue);
    }
    let worked = sandbox.work_with(&["--no-declare", "--attempts", "1", "--until-empty"], "exit 1");
    broker.publish(&sandbox.queue, "fails");
    worked.run().exits(1);
    broker.wait_ready(&sandbox.dead_queue(), 1);
}

#[test]
fn without_a_command_the_names_of_other_queues_do_not_matter() {
    let sandbox = Sandbox::new();
    let long = format!("{:x<250}", sandbox.queue);
    sandbox.taskq(["work", "--queue", &long, "--until-empty"]).run().exits(0);
    let refused = sandbox.taskq(["work", "--queue", &long, "--until-empty", "--", "true"]).run().exits(65);
    refused.in_one_line().says("made from the queue's, has");
}
