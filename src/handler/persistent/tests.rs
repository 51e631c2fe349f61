use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::testing::*;
use super::super::{Options, Output};
use super::*;

/// Answers every line with what `case` says about `$line`.
fn script(case: &str) -> Options {
    sh(&format!("echo $$ >&2; while IFS= read -r line; do {case}; done"))
}

fn handler(options: Options) -> (Persistent, Captured) {
    let (spec, _, err) = captured(options);
    (spec.persistent().unwrap(), err)
}

/// How many processes were started. Each prints its id first.
fn starts(err: &Captured) -> usize {
    err.text().lines().filter(|line| line.parse::<i32>().is_ok()).count()
}

/// Waits until the `nth` process has ended, so that the next task is not given to it.
fn wait_until_ended(err: &Captured, nth: usize) {
    wait_until("it has started", || starts(err) == nth);
    wait_until_gone(Pid::from_raw(err.text().lines().last().unwrap().parse().unwrap()));
}

fn close(mut handler: Persistent) {
    let (_keep, abort) = abort_channel();
    within(LONG, || handler.close(&abort));
}

fn exit_of(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed(failure) => failure.exit,
        other => panic!("not failed but {other:?}"),
    }
}

fn run_without_pause(handler: &mut Persistent, body: &[u8]) -> Outcome {
    handler.restarts.pause = Duration::ZERO;
    run(handler, body)
}

#[test]
fn one_process_runs_many_tasks() {
    let case = r#"case $line in *'"body":"later"'*) echo why >&2; echo RETRY disk full;;
        *never*) echo DEAD;; *) echo OK;; esac"#;
    let (mut handler, err) = handler(script(case));
    assert_eq!(starts(&err), 0); // only when there is a task
    for _ in 0..3 {
        assert_eq!(run(&mut handler, b"hello"), Outcome::Done);
        assert_eq!(run(&mut handler, b"later"), failed("RETRY disk full", "why\n"));
        assert!(matches!(run(&mut handler, b"never"), Outcome::Dead(failure) if failure.exit == "DEAD"));
    }
    let pid = err.pid();
    close(handler);
    assert_eq!(starts(&err), 1);
    assert!(is_gone(pid));
}

#[test]
fn a_reply_may_come_in_pieces() {
    let (mut handler, _) = handler(script("printf 'RETRY'; sleep 0.05; printf ' a'; sleep 0.05; echo"));
    assert_eq!(exit_of(run(&mut handler, b"")), "RETRY a");
}

#[test]
fn bodies_of_any_bytes_and_size() {
    let echo = options("python3", &["-uc", PYTHON_LENGTH]);
    let (mut handler, _) = handler(echo);
    let binary: Vec<u8> = (0..=255).cycle().take(10 << 20).collect();
    let text = "\u{e9}\n\"".repeat(1 << 20);
    assert_eq!(exit_of(run(&mut handler, &binary)), format!("RETRY {} {}", binary.len(), 255));
    assert_eq!(exit_of(run(&mut handler, text.as_bytes())), format!("RETRY {} {}", 3 << 20, 34));
    assert_eq!(exit_of(run(&mut handler, b"")), "RETRY 0 -1");
    close(handler);
}

const PYTHON_LENGTH: &str = r#"
import base64, json, sys
for line in sys.stdin:
    task = json.loads(line)
    body = base64.b64decode(task["body_base64"]) if "body_base64" in task else [ord(c) for c in task["body"]]
    print("RETRY", len(body), body[-1] if body else -1)
"#;

#[test]
fn a_process_that_breaks_the_rules_is_replaced() {
    let rows = [
        ("echo hello", "answered \"hello\" instead of OK, RETRY or DEAD"),
        ("echo; echo OK", "answered \"\" instead of OK, RETRY or DEAD"),
        ("head -c 70000 /dev/zero | tr '\\0' x; exec sleep 60", "answered \"xxx"),
        ("head -c 100 /dev/urandom; echo", "answered"),
        ("echo why >&2; exit 3", "exit status 3 without a reply"),
        ("exit 0", "exit status 0 without a reply"),
        ("exit 65", "exit status 65 without a reply"),
        ("printf OK; exit 0", "exit status 0 without a reply"),
        ("kill -9 $$", "killed by signal 9 without a reply"),
        ("exec >&-; sleep 60", "closed its stdout without a reply"),
    ];
    for (case, exit) in rows {
        let (mut handler, err) = handler(script(case));
        let outcome = within(Duration::from_secs(10), || run_without_pause(&mut handler, b""));
        assert!(exit_of(outcome).starts_with(exit), "{case}");
        wait_until_gone(err.pid());
        run_without_pause(&mut handler, b"");
        close(handler);
        assert_eq!(starts(&err), 2, "{case}");
    }
}

#[test]
fn a_reply_before_the_exit_counts() {
    let (mut handler, err) = handler(script("echo OK; exit 1"));
    for nth in 1..=3 {
        // It costs no pause either.
        assert_eq!(within(Duration::from_secs(5), || run(&mut handler, b"")), Outcome::Done);
        wait_until_ended(&err, nth);
    }
    close(handler);
}

#[test]
fn a_reply_to_no_task_is_not_taken_for_the_next_one() {
    // The second reply comes at once, or later.
    for case in ["printf 'OK\\nOK\\n'", "echo OK; sleep 0.05; echo OK; echo late >&2"] {
        let (mut handler, err) = handler(script(case));
        assert_eq!(run(&mut handler, b""), Outcome::Done);
        if case.contains("late") {
            wait_until("it is late", || err.text().contains("late"));
        }
        assert_eq!(run(&mut handler, b""), Outcome::Done);
        close(handler);
        assert_eq!(starts(&err), 2);
    }
}

#[test]
fn an_answer_before_the_task_was_read_is_no_answer() {
    let (mut handler, _) = handler(sh("echo OK; sleep 60"));
    let outcome = run_without_pause(&mut handler, &vec![b'x'; 1 << 20]);
    assert_eq!(exit_of(outcome), "answered before it had read the task");
}

#[test]
fn a_death_between_two_tasks_is_nobodys_attempt() {
    let (mut handler, err) = handler(script("echo OK"));
    assert_eq!(run(&mut handler, b""), Outcome::Done);
    kill(err.pid(), Signal::SIGKILL).unwrap();
    wait_until_ended(&err, 1);
    assert_eq!(run(&mut handler, b""), Outcome::Done);
    close(handler);
    assert_eq!(starts(&err), 2);
}

#[test]
fn a_process_that_recycles_itself_costs_no_attempt() {
    // It ends a while after its answer; the next task is in its pipe by then, or as much of it as a pipe takes.
    for body in [&b"hello"[..], &vec![b'x'; 1 << 20]] {
        let (mut handler, err) = handler(sh("echo $$ >&2; head -n 1 >/dev/null; echo OK; sleep 0.3"));
        for _ in 0..3 {
            assert_eq!(run(&mut handler, body), Outcome::Done);
        }
        close(handler);
        assert_eq!(starts(&err), 3);
    }
}

#[test]
fn a_process_that_has_read_of_its_task_has_failed_it_whatever_it_did_before() {
    for (second, exit) in [
        ("read -r line; exit 0", "exit status 0"),
        ("head -c 1 >/dev/null; exit 0", "exit status 0"),
        // Nothing was read, but this was no orderly end.
        ("sleep 0.3; exit 3", "exit status 3"),
        ("sleep 0.3; kill -9 $$", "killed by signal 9"),
    ] {
        let (mut handler, _) = handler(sh(&format!("read -r line; echo OK; {second}")));
        assert_eq!(run(&mut handler, b""), Outcome::Done);
        let outcome = run_without_pause(&mut handler, b"");
        assert_eq!(exit_of(outcome), format!("{exit} without a reply"), "{second}");
    }
}

#[test]
fn a_task_is_asked_again_only_once() {
    let marker = std::env::temp_dir().join(format!("taskq-{}-once", std::process::id()));
    let script = format!(
        "echo $$ >&2; [ -e {0} ] && exit 0; echo >{0}; read -r line; echo OK; sleep 0.3",
        marker.display()
    );
    let (mut handler, err) = handler(sh(&script));
    assert_eq!(run(&mut handler, b""), Outcome::Done);
    assert_eq!(exit_of(run_without_pause(&mut handler, b"")), "exit status 0 without a reply");
    assert_eq!(starts(&err), 2);
    std::fs::remove_file(marker).unwrap();
}

#[test]
fn stderr_is_passed_on_between_tasks() {
    let (mut handler, err) = handler(script("echo OK; sleep 0.05; echo afterwards >&2"));
    assert_eq!(run(&mut handler, b""), Outcome::Done);
    wait_until("it is passed on", || err.text().ends_with("afterwards\n"));
    close(handler);
}

#[test]
fn a_flood_on_stderr_passes() {
    let (out, err) = (Counted::default(), Counted::default());
    let options = script("yes | head -c 100000000 >&2; echo RETRY");
    let spec = super::super::Spec::new(options, Output::new(out, err.clone()).unwrap());
    let mut handler = spec.persistent().unwrap();
    let Outcome::Failed(failure) = run(&mut handler, b"") else { panic!("not failed") };
    assert!(failure.stderr.len() == 2048 && failure.stderr.ends_with(b"y\ny\n"));
    wait_until("all is passed on", || err.bytes.load(std::sync::atomic::Ordering::Relaxed) > 100_000_000);
}

#[test]
fn a_timeout_ends_the_process() {
    for case in ["sleep 60", "trap '' TERM; sleep 60; sleep 60"] {
        let options = Options { timeout: Some(SHORT), grace: SHORT, ..script(case) };
        let (mut handler, err) = handler(options);
        let outcome = within(Duration::from_secs(5), || run_without_pause(&mut handler, b""));
        assert_eq!(exit_of(outcome), "timed out after 200ms");
        wait_until_gone(err.pid());
    }
}

#[test]
fn a_broken_handler_does_not_spin() {
    let (mut handler, err) = handler(script("exit 1"));
    let start = Instant::now();
    run(&mut handler, b"");
    run(&mut handler, b"");
    // 1 s after the first start, 2 s after the second.
    assert!((3000..6000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(starts(&err), 2);
    let pauses: Vec<_> = (0..6)
        .map(|_| {
            handler.restarts.started();
            handler.restarts.pause.as_secs()
        })
        .collect();
    assert_eq!(pauses, [8, 16, 30, 30, 30, 30]);
    handler.restarts.succeeded();
    assert_eq!(handler.restarts.pause, FIRST_PAUSE);
}

#[test]
fn an_abort_ends_task_and_pause() {
    let (mut handler, err) = handler(script("sleep 60"));
    let (keep, abort) = abort_channel();
    thread::scope(|scope| {
        let running = scope.spawn(|| handler.run(&task(b""), &abort));
        let pid = err.pid();
        drop(keep);
        assert_eq!(within(Duration::from_secs(4), || running.join().unwrap()), Outcome::GivenUp);
        wait_until_gone(pid);
    });
    let (mut handler, err) = self::handler(script("exit 1"));
    let (keep, abort) = abort_channel();
    handler.restarts.pause = LONG;
    thread::scope(|scope| {
        let running = scope.spawn(|| handler.run(&task(b""), &abort));
        wait_until_gone(err.pid());
        thread::sleep(SHORT);
        assert!(!running.is_finished());
        drop(keep);
        // The outcome was known before the pause.
        let outcome = within(Duration::from_secs(4), || running.join().unwrap());
        assert_eq!(exit_of(outcome), "exit status 1 without a reply");
    });
}

#[test]
fn what_cannot_be_executed_is_nobodys_attempt() {
    for options in [options("no-such-command", &[]), sh("no-such-command"), script("exit 126")] {
        let (mut handler, _) = handler(options);
        let outcome = run(&mut handler, b"");
        assert!(matches!(outcome, Outcome::CannotRun(_) | Outcome::CommandMissing { .. }), "{outcome:?}");
    }
    // A command that has replied once can be executed, so this is a failed attempt.
    let (mut handler, _) = handler(script("test $n && exit 127; n=1; echo OK"));
    assert_eq!(run(&mut handler, b""), Outcome::Done);
    assert_eq!(exit_of(run_without_pause(&mut handler, b"")), "exit status 127 without a reply");
}

#[test]
fn closing_is_polite_first() {
    // This one sees the end of its input, and has time for its last work.
    let options =
        Options { grace: LONG, ..sh("while read -r line; do echo OK; done; sleep 0.1; echo end >&2") };
    let (mut polite, err) = handler(options);
    assert_eq!(run(&mut polite, b""), Outcome::Done);
    within(Duration::from_secs(5), || close(polite));
    assert_eq!(err.text(), "end\n");
    // The first of these needs TERM, the second KILL.
    for on_term in ["echo term >&2; exit", ""] {
        let script = format!(
            "trap '{on_term}' TERM; echo $$ >&2; read -r line; echo OK; while :; do sleep 0.02; done"
        );
        let (mut handler, err) = handler(Options { grace: 2 * SHORT, ..sh(&script) });
        assert_eq!(run(&mut handler, b""), Outcome::Done);
        within(Duration::from_secs(5), || close(handler));
        assert!(is_gone(err.pid()));
        assert_eq!(err.text().ends_with("term\n"), !on_term.is_empty());
    }
}

#[test]
fn closing_does_not_outlast_an_abort() {
    let (mut handler, err) = handler(script("echo OK; while :; do sleep 0.02; done"));
    let (keep, abort) = abort_channel();
    assert_eq!(handler.run(&task(b""), &abort), Outcome::Done);
    drop(keep);
    within(Duration::from_secs(4), || handler.close(&abort));
    assert!(is_gone(err.pid()));
    // A second close finds nothing to do.
    handler.close(&abort);
}

#[test]
fn nothing_is_left_behind_without_a_close() {
    let (mut handler, err) = handler(script("trap '' TERM; echo OK"));
    assert_eq!(run(&mut handler, b""), Outcome::Done);
    drop(handler);
    wait_until_gone(err.pid());
}

#[test]
fn the_examples_work() {
    for file in ["handler.sh", "handler.py", "handler.js"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/handlers").join(file);
        let (mut handler, err) = handler(options(path.to_str().unwrap(), &[]));
        for _ in 0..2 {
            assert_eq!(run(&mut handler, b"hello"), Outcome::Done, "{file}");
            assert_eq!(
                run(&mut handler, b"later today"),
                failed("RETRY not yet", "working on later today\n"),
                "{file}"
            );
            let outcome = run(&mut handler, b"never again");
            assert!(matches!(outcome, Outcome::Dead(why) if why.exit == "DEAD makes no sense"), "{file}");
            let binary = run(&mut handler, b"\xff\x00");
            match file {
                // It has no way to take it.
                "handler.sh" => assert!(matches!(binary, Outcome::Dead(_)), "{binary:?}"),
                _ => assert_eq!(binary, Outcome::Done, "{file}"),
            }
        }
        within(LONG, || close(handler));
        assert!(err.text().starts_with("working on hello\n"), "{file}: {}", err.text());
    }
}
