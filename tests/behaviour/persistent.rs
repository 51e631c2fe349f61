//! `taskq work --persistent`: one process per thread, a line per task, a line per answer.

use crate::support::handler::{KillOnDrop, attempt, body, header, wait_dead};
use crate::support::{Process, Sandbox};
use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Failed attempts are put aside for the length of the test.
const LATER: [&str; 3] = ["--persistent", "--backoff", "1h"];
const LATER_MS: u64 = 3_600_000;

/// Tells when it starts and when its stdin ends, and answers with the body, which must be plain words.
const ECHO: &str = r#"
    echo $$ >>"$1/starts"
    while IFS= read -r task; do
        printf '%s\n' "$task" >>"$1/tasks"
        body=${task##*'"body":"'}; echo "${body%'"}'}"
    done
    echo closed >>"$1/ends""#;

fn send(sandbox: &Sandbox, bodies: &[&str]) {
    sandbox.taskq(["send", "--lines"]).feed(bodies.join("\n")).exits(0);
}

fn stop(worker: Process) {
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

/// How the one failed attempt ended.
fn failure(sandbox: &Sandbox) -> String {
    let failed = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
    assert_eq!(attempt(&failed), Some(2));
    header(&failed, "x-taskq-exit")
}

#[test]
fn the_answer_decides_about_the_task() {
    let sandbox = Sandbox::new();
    let options = [&LATER[..], &["--until-empty"]].concat();
    send(&sandbox, &["OK", "RETRY disk is full", "RETRY", "DEAD no such order", "OK"]);
    let worked = sandbox.work_with(&options, ECHO).run().exits(1);
    assert_eq!(worked.stderr.matches("Done").count(), 2);
    let broker = sandbox.broker();
    let dead = broker.drain(&sandbox.dead_queue());
    assert_eq!(dead.len(), 1);
    assert!(header(&dead[0], "x-taskq-exit").contains("no such order"), "{dead:?}");
    let retried = broker.drain(&sandbox.delay_queue(LATER_MS));
    assert_eq!(retried.iter().map(body).collect::<Vec<_>>(), ["RETRY disk is full", "RETRY"]);
    assert!(header(&retried[0], "x-taskq-exit").contains("disk is full"), "{retried:?}");
    assert_eq!(sandbox.lines("starts").len(), 1, "one process served all of them");
    assert_eq!(sandbox.lines("ends"), ["closed"], "and saw the end of its stdin");
}

#[test]
fn a_task_is_one_line_of_json() {
    let sandbox = Sandbox::new();
    let script = r#"while IFS= read -r task; do printf '%s\n' "$task" >>"$1/tasks"; echo OK; done"#;
    let worker = sandbox.handling(&["--persistent"], script);
    let text = "two\nlines, \"quotes\", \\, \u{7} and ü\u{2028}";
    let args = ["send", "--id", "one", "--header", "colour=green", "--content-type", "text/x", "--file", "-"];
    sandbox.taskq(args).feed(text).exits(0);
    let args = ["send", "--id", "two", "--priority", "7", "--file", "-"];
    sandbox.taskq(args).feed(b"\xff\0\xfe").exits(0);
    worker.says_times("Done", 2);
    let tasks: Vec<Value> =
        sandbox.lines("tasks").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(tasks.len(), 2);
    assert_eq!(tasks[0]["id"], "one");
    assert_eq!(tasks[0]["attempt"], 1);
    assert_eq!(tasks[0]["attempts"], 5);
    assert_eq!(tasks[0]["queue"], sandbox.queue.as_str());
    assert_eq!(tasks[0]["redelivered"], false);
    assert_eq!(tasks[0]["content_type"], "text/x");
    assert_eq!(tasks[0]["headers"]["colour"], "green");
    assert_eq!(tasks[0]["body"], text);
    assert!(tasks[0]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(tasks[0].get("priority").is_none() && tasks[0].get("reply_to").is_none());
    assert_eq!(tasks[1]["priority"], 7);
    assert!(tasks[0].get("body_base64").is_none());
    assert_eq!(tasks[1]["body_base64"], "/wD+");
    assert!(tasks[1].get("body").is_none());
}

#[test]
fn a_body_of_many_megabytes_is_one_line_too() {
    const SIZE: usize = 6 * 1024 * 1024;
    let sandbox = Sandbox::new();
    let script = r#"while IFS= read -r task; do echo ${#task} >>"$1/lengths"; echo OK; done"#;
    let worker = sandbox.worker(
        ["--persistent", "--", "bash", "-c", script, "bash"]
            .into_iter()
            .chain([sandbox.path("").to_str().unwrap()]),
    );
    sandbox.broker().publish(&sandbox.queue, vec![b'x'; SIZE]);
    worker.says("Done");
    let length: usize = sandbox.lines("lengths")[0].parse().unwrap();
    assert!((SIZE..SIZE + 1000).contains(&length), "{length}");
}

#[test]
fn each_thread_has_one_process_for_all_its_tasks() {
    let sandbox = Sandbox::new();
    let script =
        r#"echo $$ >>"$1/starts"; while read -r task; do echo $$ >>"$1/runs"; sleep 0.02; echo OK; done"#;
    let worker = sandbox.handling(&["--persistent", "--threads", "2"], script);
    send(&sandbox, &["x"; 60]);
    worker.says_times("Done", 60);
    let processes: BTreeSet<String> = sandbox.lines("runs").into_iter().collect();
    assert_eq!((processes.len(), sandbox.lines("starts").len()), (2, 2));
    stop(worker);
    for process in sandbox.pids("starts", 2) {
        wait_dead(process);
    }
}

#[test]
fn an_answer_may_come_in_pieces() {
    let sandbox = Sandbox::new();
    let script = "while read -r task; do printf O; sleep 0.3; printf 'K\\n'; done";
    let worker = sandbox.handling(&["--persistent"], script);
    send(&sandbox, &["a", "b"]);
    worker.says_times("Done", 2);
    stop(worker);
}

#[test]
fn a_line_that_is_no_reply_is_a_failed_attempt_and_a_fresh_process() {
    let sandbox = Sandbox::new();
    let worker = sandbox.handling(&LATER, ECHO);
    send(&sandbox, &["working on it", "OK"]);
    worker.says("Done");
    assert!(failure(&sandbox).contains("working on it"));
    assert_eq!(sandbox.lines("starts").len(), 2);
    stop(worker);
}

#[test]
fn a_second_answer_is_not_taken_for_the_one_to_the_next_task() {
    let sandbox = Sandbox::new();
    let script = r"while read -r task; do printf 'OK\nDEAD not me\n'; done";
    let worker = sandbox.handling(&LATER, script);
    send(&sandbox, &["a", "b", "c"]);
    worker.says_times("Done", 3);
    assert_eq!(sandbox.broker().ready(&sandbox.dead_queue()), 0);
    stop(worker);
}

#[test]
fn a_process_that_ends_in_the_middle_of_a_task_has_failed_it() {
    for (script, how) in [
        ("read -r task; echo 'last words' >&2; exit 3", "exit status 3"),
        ("read -r task; echo 'last words' >&2; exit 0", "without a reply"),
        ("read -r task; echo 'last words' >&2; kill -9 $$", "signal 9"),
        ("read -r task; echo 'last words' >&2; exec >&-; sleep 1000", "stdout"),
    ] {
        let sandbox = Sandbox::new();
        let worker = sandbox.handling(&LATER, script);
        send(&sandbox, &["hello"]);
        let failed = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
        let exit = header(&failed, "x-taskq-exit");
        assert!(exit.contains(how), "{script}: {exit:?}");
        assert!(header(&failed, "x-taskq-error").contains("last words"), "{script}");
        stop(worker);
    }
}

#[test]
fn a_process_that_ended_between_two_tasks_costs_no_attempt() {
    let sandbox = Sandbox::new();
    let worker = sandbox.handling(&LATER, r#"echo $$ >>"$1/pids"; read -r task; echo OK"#);
    for n in 1..=3 {
        send(&sandbox, &["hello"]);
        worker.says_times("Done", n);
        wait_dead(sandbox.pids("pids", n)[n - 1]);
    }
    stop(worker);
    assert_eq!(sandbox.broker().ready(&sandbox.delay_queue(LATER_MS)), 0);
}

#[test]
fn without_an_answer_in_time_the_process_and_its_children_end() {
    let sandbox = Sandbox::new();
    let script = r#"echo $$ >>"$1/pids"; read -r task; sleep 1000 & echo $! >>"$1/pids"; wait"#;
    let worker = sandbox.handling(&[&LATER[..], &["--timeout", "1s", "--grace", "2s"]].concat(), script);
    send(&sandbox, &["hello"]);
    let orphans: Vec<KillOnDrop> = sandbox.pids("pids", 2).into_iter().map(KillOnDrop).collect();
    assert!(failure(&sandbox).contains("timed out"));
    for orphan in &orphans {
        wait_dead(orphan.0);
    }
    stop(worker);
}

#[test]
fn the_time_out_is_for_a_task_and_not_for_the_process() {
    let sandbox = Sandbox::new();
    let script = "while read -r task; do sleep 0.5; echo OK; done";
    let worker = sandbox.handling(&[&LATER[..], &["--timeout", "3s"]].concat(), script);
    send(&sandbox, &["x"; 8]);
    worker.says_times("Done", 8);
    stop(worker);
}

#[test]
fn a_drain_lets_the_process_finish_its_task_and_closes_its_stdin() {
    let sandbox = Sandbox::new();
    let script = r#"
        while read -r task; do
            echo taken >>"$1/taken"; until [ -e "$1/go" ]; do sleep 0.05; done; echo OK
        done
        echo closed >>"$1/ends""#;
    let worker = sandbox.handling(&["--persistent"], script);
    send(&sandbox, &["hello"]);
    sandbox.wait_lines("taken", 1);
    worker.signal(SIGTERM);
    worker.says("SIGTERM");
    assert!(sandbox.lines("ends").is_empty(), "its stdin was closed in the middle of a task");
    sandbox.file("go", "");
    worker.end().exits(0).says("Done");
    assert_eq!(sandbox.lines("ends"), ["closed"]);
}

#[test]
fn a_process_that_does_not_mind_the_end_of_its_stdin_ends_with_the_grace_period() {
    let sandbox = Sandbox::new();
    let script = r#"trap '' TERM; echo $$ >>"$1/pids"; read -r task; echo OK; while :; do sleep 0.1; done"#;
    let worker = sandbox.handling(&["--persistent", "--grace", "2s"], script);
    send(&sandbox, &["hello"]);
    worker.says("Done");
    let orphan = KillOnDrop(sandbox.pids("pids", 1)[0]);
    worker.signal(SIGTERM);
    worker.end();
    wait_dead(orphan.0);
    assert!(sandbox.broker().get(&sandbox.queue).is_none(), "the task was not acknowledged");
}

#[test]
fn a_process_whose_worker_was_killed_sees_the_end_of_its_stdin() {
    let sandbox = Sandbox::new();
    let worker = sandbox.handling(&["--persistent"], ECHO);
    send(&sandbox, &["OK"]);
    worker.says("Done");
    worker.signal(SIGKILL);
    sandbox.wait_lines("ends", 1);
}

#[test]
fn a_handler_that_fails_at_once_is_not_restarted_in_a_loop() {
    let sandbox = Sandbox::new();
    let started = Instant::now();
    let script = r#"echo $$ >>"$1/starts"; exit 1"#;
    let worker = sandbox.handling(&LATER, script);
    send(&sandbox, &["x"; 50]);
    sandbox.wait_lines("starts", 4);
    // The pauses grow: at least 1, 2 and 4 s by now.
    assert!(started.elapsed() >= Duration::from_secs(6), "{:?} for 4 starts", started.elapsed());
    worker.signal(SIGTERM);
    worker.end_within(Duration::from_secs(30)).exits(0);
    let broker = sandbox.broker();
    let starts = sandbox.lines("starts").len();
    let failed = usize::try_from(broker.ready(&sandbox.delay_queue(LATER_MS))).unwrap();
    assert_eq!(failed, starts, "each start cost one attempt of one task");
    assert_eq!(usize::try_from(broker.ready(&sandbox.queue)).unwrap(), 50 - failed);
}

#[test]
fn the_end_of_stderr_is_that_of_the_task() {
    let sandbox = Sandbox::new();
    let script = r#"
        n=0
        while read -r task; do n=$((n + 1)); echo "about task $n" >&2; [ $n -lt 3 ] && echo OK || echo RETRY; done"#;
    let worker = sandbox.handling(&LATER, script);
    send(&sandbox, &["a", "b", "c"]);
    let failed = sandbox.broker().take(&sandbox.delay_queue(LATER_MS));
    let error = header(&failed, "x-taskq-error");
    assert!(error.contains("about task 3") && !error.contains("task 1"), "{error:?}");
    stop(worker);
}

#[test]
fn an_endless_answer_is_cut() {
    let sandbox = Sandbox::new();
    let worker = sandbox.handling(&LATER, r"read -r task; exec tr '\0' x </dev/zero");
    send(&sandbox, &["hello"]);
    assert!(failure(&sandbox).len() < 1000);
    assert!(worker.peak_memory() < 24 * 1024, "{} KiB", worker.peak_memory());
    stop(worker);
}
