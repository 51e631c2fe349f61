use std::fs;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use super::super::testing::*;
use super::super::{Obstacle, Options, Output};
use super::*;

const MIB: usize = 1024 * 1024;

fn with_timeout(script: &str, grace: Duration) -> Options {
    Options { timeout: Some(SHORT), grace, ..sh(script) }
}

/// Some shells say on stderr that they were terminated.
fn assert_timed_out(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Failed(why) if why.exit == "timed out after 200ms"), "{outcome:?}");
}

/// Runs a file that was written just now. As long as a process that another test is starting still has it open, it
/// cannot be executed.
fn run_when_closed(handler: &mut Command) -> Outcome {
    let mut outcome = run(handler, b"");
    wait_until("the file can be executed", || {
        let busy = matches!(&outcome, Outcome::Failed(why) if why.exit.contains("Text file busy"));
        if busy {
            outcome = run(handler, b"");
        }
        !busy
    });
    outcome
}

/// Whether a process is dead. It need not be reaped: what a killed command has started is not our child.
fn is_over(pid: nix::unistd::Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

fn outcome_of(options: Options) -> Outcome {
    run(&mut captured(options).0.command().unwrap(), b"")
}

#[test]
fn arguments_and_body_arrive_as_they_are() {
    let (spec, out, _) =
        captured(options("/bin/sh", &["-c", "printf '[%s]' \"$@\"; cat", "sh", "a  b", "*", ""]));
    let body: Vec<u8> = (0..=255).cycle().take(3 * MIB).collect();
    assert_eq!(run(&mut spec.command().unwrap(), &body), Outcome::Done);
    assert!(out.bytes().strip_prefix(b"[a  b][*][]") == Some(&body));
}

#[test]
fn the_task_is_in_the_environment() {
    let (spec, out, _) = captured(options("env", &[]));
    let headers = [("x-user.id".into(), "7\n8".into()), ("nul".into(), "\0".into())];
    let task = Task { headers: &headers, redelivered: true, attempt: 2, ..task(b"") };
    let (_keep, abort) = abort_channel();
    let mut handler = spec.command().unwrap();
    assert_eq!(handler.run(&task, &abort), Outcome::Done);
    let text = out.text();
    let wanted = [
        "TASKQ_ID=id-1",
        "TASKQ_ATTEMPT=2",
        "TASKQ_QUEUE=q",
        "TASKQ_REDELIVERED=1",
        "TASKQ_CONTENT_TYPE=text/plain",
        "TASKQ_HEADER_X_USER_ID=7\n8",
    ];
    for line in wanted {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!text.contains("TASKQ_HEADER_NUL"));
    // Nothing of one task is left for the next one.
    assert_eq!(run(&mut handler, b""), Outcome::Done);
    assert!(!out.text()[text.len()..].contains("TASKQ_HEADER"));
}

#[test]
fn a_body_need_not_be_read() {
    let body = vec![b'x'; 10 * MIB];
    for script in ["exit 0", "exec <&-; sleep 0.1", "head -c 100000 >/dev/null; exec <&-"] {
        assert_eq!(run(&mut captured(sh(script)).0.command().unwrap(), &body), Outcome::Done, "{script}");
    }
}

#[test]
fn the_exit_status_decides() {
    assert_eq!(outcome_of(sh("echo why >&2; exit 3")), failed("exit status 3", "why\n"));
    assert_eq!(outcome_of(sh("kill -9 $$")), failed("killed by signal 9", ""));
    assert!(matches!(outcome_of(sh("exit 65")), Outcome::Dead(_)));
    let on_exit = ["3=done".parse().unwrap(), "127=retry".parse().unwrap()].into_iter().collect();
    let mapped = |script| outcome_of(Options { on_exit: std::clone::Clone::clone(&on_exit), ..sh(script) });
    assert_eq!(mapped("exit 3"), Outcome::Done);
    assert_eq!(mapped("exit 127"), failed("exit status 127", ""));
}

#[test]
fn what_cannot_be_executed_is_nobodys_attempt() {
    let folder = tempfolder("cannot");
    let file = |name: &str, text: &str, mode| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let rows = [
        ("no-such-command".to_owned(), "command not found"),
        ("/no/such/command".into(), "command not found"),
        (file("plain", "#!/bin/sh\n", 0o644), "is not executable"),
        (file("orphan", "#!/no/such/sh -e\n", 0o755), "needs \"/no/such/sh\", which does not exist"),
        (file("dos", "#! /bin/sh\r\nexit 0\r\n", 0o755), "needs \"/bin/sh\\r\", which does not exist"),
        (folder.to_str().unwrap().into(), "is a directory"),
        (String::new(), "the command is empty"),
    ];
    for (program, why) in rows {
        let (spec, ..) = captured(options(&program, &[]));
        assert!(
            spec.check().is_err_and(|text| text.contains(why) && text.contains(&program)),
            "{:?}",
            spec.check()
        );
        let outcome = run_when_closed(&mut spec.command().unwrap());
        assert!(matches!(outcome, Outcome::CannotRun(_)), "{program}: {outcome:?}");
    }
    let (bare, ..) = captured(options(&file("bare", "exit 0\n", 0o755), &[]));
    let outcome = run_when_closed(&mut bare.command().unwrap());
    assert!(matches!(&outcome, Outcome::CannotRun(obstacle) if obstacle.why.contains("#!")), "{outcome:?}");
    for script in ["no-such-command", "exit 126", "exec /"] {
        let outcome = outcome_of(sh(script));
        assert!(
            matches!(&outcome, Outcome::CommandMissing { why, .. } if why.contains("/bin/sh: exit status 12")),
            "{outcome:?}"
        );
    }
    for good in ["sh", "/bin/sh", "env"] {
        assert_eq!(captured(options(good, &[])).0.check(), Ok(()));
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_command_may_come_and_go() {
    let folder = tempfolder("goes");
    let program = folder.join("handler");
    let install = || {
        fs::copy("/bin/true", folder.join("new")).unwrap();
        fs::rename(folder.join("new"), &program).unwrap();
    };
    install();
    let mut handler = captured(options(program.to_str().unwrap(), &[])).0.command().unwrap();
    assert_eq!(run_when_closed(&mut handler), Outcome::Done);
    fs::remove_file(&program).unwrap();
    assert!(
        matches!(run(&mut handler, b""), Outcome::CannotRun(Obstacle { why, may_pass: true }) if why.contains("No such file"))
    );
    install();
    assert_eq!(run_when_closed(&mut handler), Outcome::Done);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn headers_that_do_not_fit_are_the_tasks_fault() {
    let headers = [("big".into(), "x".repeat(MIB))];
    let (_keep, abort) = abort_channel();
    let mut handler = captured(sh("exit 0")).0.command().unwrap();
    let outcome = handler.run(&Task { headers: &headers, ..task(b"") }, &abort);
    assert!(matches!(&outcome, Outcome::Failed(failure) if failure.exit.contains("too long")), "{outcome:?}");
    assert_eq!(run(&mut handler, b""), Outcome::Done);
}

#[test]
fn the_end_of_stderr_is_kept_and_all_of_it_passed_on() {
    let (spec, out, err) =
        captured(sh("echo data; yes 0123456 | head -c 80000 >&2; printf last >&2; exit 1"));
    let Outcome::Failed(failure) = run(&mut spec.command().unwrap(), b"") else { panic!("not failed") };
    // From the beginning of a line on.
    assert_eq!(failure.stderr.len(), 2044);
    assert!(failure.stderr.starts_with(b"0123456\n") && failure.stderr.ends_with(b"0123456\nlast"));
    // The last line got a line end, because the worker's own messages follow.
    assert!(err.text().len() == 80005 && err.text().ends_with("0123456\nlast\n"));
    assert_eq!(out.text(), "data\n");
}

#[test]
fn stdout_is_passed_on_byte_by_byte() {
    let (spec, out, err) = captured(sh("cat; cat /bin/sh >&2"));
    assert_eq!(run(&mut spec.command().unwrap(), b"no line end"), Outcome::Done);
    assert_eq!(out.bytes(), b"no line end");
    assert!(err.bytes().starts_with(&fs::read("/bin/sh").unwrap()));
}

#[test]
fn a_flood_needs_no_memory() {
    const FLOOD: u64 = 300 << 20;
    for script in ["head -c $N /dev/zero", "yes some words | head -c $N", "yes | head -c $N >&2; exit 1"] {
        let (out, err) = (Counted::default(), Counted::default());
        let options = sh(&script.replace("$N", &FLOOD.to_string()));
        let spec = Spec::new(options, Output::new(out.clone(), err.clone()).unwrap());
        run(&mut spec.command().unwrap(), b"");
        let total = out.bytes.load(Ordering::Relaxed) + err.bytes.load(Ordering::Relaxed);
        assert_eq!(total, FLOOD, "{script}");
        let longest = out.longest.load(Ordering::Relaxed).max(err.longest.load(Ordering::Relaxed));
        assert!(longest <= 64 << 10, "{longest}");
    }
}

#[test]
fn lines_of_several_threads_stay_whole() {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do printf 'begin '; printf 'middle '; echo end; done";
    let (spec, out, _) = captured(sh(script));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut handler = spec.command().unwrap();
                (0..5).for_each(|_| assert_eq!(run(&mut handler, b""), Outcome::Done));
            });
        }
    });
    assert_eq!(out.text(), "begin middle end\n".repeat(4 * 5 * 9));
}

#[test]
fn a_reader_that_went_away_harms_nobody() {
    let spec =
        Spec::new(sh("yes | head -c 1000000; echo why >&2; exit 4"), Output::new(Broken, Broken).unwrap());
    assert_eq!(run(&mut spec.command().unwrap(), b""), failed("exit status 4", "why\n"));
}

#[test]
fn a_reader_that_does_not_read_cannot_stop_the_deadlines() {
    let (_keep_stuck, stuck) = abort_channel();
    let output = Output::new(Stuck(stuck), Captured::default()).unwrap();
    // The time-out ends a command that is blocked in the middle of its output.
    let spec = Spec::new(with_timeout("yes", LONG), output.clone());
    let outcome = within(Duration::from_secs(10), || run(&mut spec.command().unwrap(), b""));
    assert_timed_out(&outcome);
    // If the command has ended in time, but nobody takes its output, the abort ends the wait for that. The outcome
    // stays.
    let spec = Spec::new(sh("echo $$; exit 0"), output);
    let (keep, abort) = abort_channel();
    thread::scope(|scope| {
        let running = scope.spawn(|| spec.command().unwrap().run(&task(b""), &abort));
        thread::sleep(SHORT);
        assert!(!running.is_finished());
        drop(keep);
        assert_eq!(within(Duration::from_secs(10), || running.join().unwrap()), Outcome::Done);
    });
}

#[test]
fn a_daemon_that_keeps_the_pipes_open_is_not_waited_for() {
    for flood in ["", "yes & "] {
        let script = format!("setsid sh -c 'echo $$; {flood}exec sleep 60' & sleep 0.1; exit 3");
        let (spec, out, _) = captured(sh(&script));
        let outcome = within(Duration::from_secs(5), || run(&mut spec.command().unwrap(), b""));
        assert_eq!(outcome, failed("exit status 3", ""));
        // The daemon lives on: it has left the session, and the task was not timed out.
        assert!(!is_gone(out.pid()));
        let _ = kill(out.pid(), Signal::SIGKILL);
    }
}

#[test]
fn late_lines_are_waited_for_a_moment() {
    let (spec, out, _) = captured(sh("(sleep 0.05; echo late) & exit 0"));
    assert_eq!(run(&mut spec.command().unwrap(), b""), Outcome::Done);
    assert_eq!(out.text(), "late\n");
}

#[test]
fn a_timeout_ends_the_whole_group() {
    // The grandchild ignores TERM and has nothing to do with the pipes.
    let script = "sh -c 'trap \"\" TERM; echo $$; exec >/dev/null 2>&1; sleep 60; sleep 60' & wait";
    let (spec, out, _) = captured(with_timeout(script, SHORT));
    let outcome = within(Duration::from_secs(5), || run(&mut spec.command().unwrap(), b""));
    assert_timed_out(&outcome);
    wait_until_gone(out.pid());
}

#[test]
fn the_rest_of_the_group_has_the_grace_too() {
    // The leader dies at once, but what it has started needs a moment to clean up.
    let script = "sh -c 'trap \"sleep 0.3; echo clean >&3; exit\" TERM; echo $$; while :; do sleep 0.02; done' \
                  3>&1 & wait";
    let (spec, out, _) = captured(with_timeout(script, LONG));
    let outcome = within(Duration::from_secs(10), || run(&mut spec.command().unwrap(), b""));
    assert_timed_out(&outcome);
    assert!(out.text().ends_with("clean\n"));
    wait_until_gone(out.pid());
}

#[test]
fn ignoring_term_or_being_stopped_does_not_help() {
    let mut handler =
        captured(with_timeout("trap '' TERM; while :; do sleep 0.02; done", SHORT)).0.command().unwrap();
    let outcome = within(Duration::from_secs(5), || run(&mut handler, &vec![b'x'; MIB]));
    assert_timed_out(&outcome);
    let mut handler = captured(with_timeout("echo why >&2; kill -STOP $$", LONG)).0.command().unwrap();
    let outcome = within(Duration::from_secs(5), || run(&mut handler, b""));
    assert_eq!(outcome, failed("timed out after 200ms", "why\n"));
}

#[test]
fn a_timed_out_task_failed_even_if_it_ends_well() {
    assert_timed_out(&outcome_of(with_timeout("trap 'exit 0' TERM; while :; do sleep 0.02; done", LONG)));
}

#[test]
fn an_abort_gives_the_task_up() {
    let (spec, out, _) = captured(sh("echo $$; sleep 60 & wait"));
    let (keep, abort) = abort_channel();
    thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut handler = spec.command().unwrap();
            let first = handler.run(&task(b""), &abort);
            // The abort is for good: nothing is started any more.
            let length = out.bytes().len();
            (first, handler.run(&task(b""), &abort), out.bytes().len() - length)
        });
        let pid = out.pid();
        drop(keep);
        let ends = within(Duration::from_secs(4), || running.join().unwrap());
        assert_eq!(ends, (Outcome::GivenUp, Outcome::GivenUp, 0));
        wait_until_gone(pid);
    });
}

#[test]
fn an_abort_shortens_a_long_grace() {
    let (spec, out, _) = captured(with_timeout("trap '' TERM; echo $$; while :; do sleep 0.02; done", LONG));
    let (keep, abort) = abort_channel();
    thread::scope(|scope| {
        let running = scope.spawn(|| spec.command().unwrap().run(&task(b""), &abort));
        let pid = out.pid();
        thread::sleep(2 * SHORT); // the time-out is being carried out
        drop(keep);
        assert_eq!(
            within(ABORT_GRACE + Duration::from_secs(4), || running.join().unwrap()),
            Outcome::GivenUp
        );
        wait_until_gone(pid);
    });
}

#[test]
fn nothing_is_left_behind_when_a_process_is_dropped() {
    let (spec, out, _) = captured(sh("trap '' TERM; echo $$; sleep 60 & wait; wait"));
    let handler = spec.command().unwrap();
    let mut process = handler.start(&task(b""), &handler.arguments).unwrap();
    let mut io = handler.io;
    while out.bytes().is_empty() {
        process
            .wait(&mut io, &mut &[][..], &Limits { deadline: Some(from_now(SHORT)), abort: None })
            .unwrap();
    }
    drop(process);
    wait_until_gone(out.pid());
}

#[test]
fn kill_all_kills_all() {
    let (spec, out, _) = captured(sh("trap '' TERM; echo $$; while :; do sleep 60; done"));
    thread::scope(|scope| {
        let running = scope.spawn(|| run(&mut spec.clone().command().unwrap(), b""));
        let pid = out.pid();
        spec.kill_all();
        assert_eq!(running.join().unwrap(), failed("killed by signal 9", ""));
        assert!(is_gone(pid));
    });
    assert_eq!(run(&mut spec.command().unwrap(), b""), failed("killed by signal 9", ""));
}

/// Commands that start a process outside their own process group. That process prints its id first, and does not hold
/// the pipes.
const OTHER_GROUPS: [&str; 2] = [
    // A shell with job control.
    "set -m; sh -c 'echo $$; exec >/dev/null 2>&1; sleep 60; sleep 60' & wait",
    // `timeout` makes a group of its own, and ignores the signal here.
    "timeout 60 sh -c 'trap \"\" TERM; echo $$; exec >/dev/null 2>&1; sleep 60; sleep 60'; echo on",
];

#[test]
fn a_command_leads_a_session_without_a_terminal() {
    let (spec, out, _) = captured(sh("echo $$ $(cut -d ' ' -f 6 /proc/$$/stat); (: </dev/tty) || exit 3"));
    let Outcome::Failed(failure) = run(&mut spec.command().unwrap(), b"") else { panic!("there is one") };
    assert_eq!(failure.exit, "exit status 3");
    let text = out.text();
    let [process, session] = text.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert_eq!(process, session);
}

#[test]
fn a_timeout_ends_other_process_groups_too() {
    for script in OTHER_GROUPS {
        let (spec, out, _) = captured(with_timeout(script, SHORT));
        let outcome = within(Duration::from_secs(10), || run(&mut spec.command().unwrap(), b""));
        assert_timed_out(&outcome);
        // It has to end before the outcome is known: a retry must not run beside it.
        assert!(is_over(out.pid()), "{script}");
    }
}

#[test]
fn an_abort_ends_other_process_groups_too() {
    for script in OTHER_GROUPS {
        let (spec, out, _) = captured(Options { grace: SHORT, ..sh(script) });
        let (keep, abort) = abort_channel();
        thread::scope(|scope| {
            let running = scope.spawn(|| spec.command().unwrap().run(&task(b""), &abort));
            let pid = out.pid();
            drop(keep);
            assert_eq!(within(Duration::from_secs(10), || running.join().unwrap()), Outcome::GivenUp);
            assert!(is_over(pid), "{script}");
        });
    }
}

#[test]
fn kill_all_kills_other_process_groups_too() {
    for script in OTHER_GROUPS {
        let (spec, out, _) = captured(sh(script));
        thread::scope(|scope| {
            let running = scope.spawn(|| run(&mut spec.clone().command().unwrap(), b""));
            let pid = out.pid();
            spec.kill_all();
            // On a busy machine it may be killed and not yet dead after the second for which that is waited for.
            let deadline = Instant::now() + Duration::from_secs(10);
            while !is_over(pid) {
                assert!(Instant::now() < deadline, "{script}");
                thread::sleep(Duration::from_millis(10));
            }
            // One shell says on stderr that it has no terminal.
            let outcome = running.join().unwrap();
            assert!(
                matches!(&outcome, Outcome::Failed(why) if why.exit == "killed by signal 9"),
                "{outcome:?}"
            );
        });
    }
}

#[test]
fn what_a_finished_task_left_in_the_background_is_not_touched() {
    // In the group of the task, and in another one.
    for script in ["", "set -m; "] {
        let (spec, out, _) = captured(sh(&format!("{script}sleep 60 >/dev/null 2>&1 & echo $!")));
        let mut handler = spec.command().unwrap();
        assert_eq!(run(&mut handler, b""), Outcome::Done);
        let left = out.pid();
        // None of these may touch it: an aborted task, the end of the handler, a task of the same thread that times
        // out, and a forced stop.
        let (keep, abort) = abort_channel();
        drop(keep);
        assert_eq!(handler.run(&task(b""), &abort), Outcome::GivenUp);
        let io = handler.io;
        let (other, ..) = captured(with_timeout("sleep 60", SHORT));
        let mut other = other.command().unwrap();
        other.io = io;
        assert_timed_out(&run(&mut other, b""));
        spec.kill_all();
        assert!(!is_over(left), "{script}");
        kill(left, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_named_pipe_is_no_command() {
    let folder = tempfolder("fifo");
    let fifo = folder.join("handler");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o755)).unwrap();
    let (spec, ..) = captured(options(fifo.to_str().unwrap(), &[]));
    let (told, tells) = crossbeam_channel::bounded(1);
    thread::spawn(move || told.send((spec.check(), run(&mut spec.command().unwrap(), b""))));
    let (check, outcome) = tells.recv_timeout(LONG).expect("it hangs");
    assert!(check.is_err_and(|why| why.contains("not a regular file")));
    assert!(matches!(outcome, Outcome::CannotRun(_)), "{outcome:?}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_background_job_may_write_to_the_pipes_of_a_command_that_is_over() {
    let folder = tempfolder("phase");
    let done = folder.join("done");
    for (to, late) in [("1", "phase 2\n"), ("2", "phase 2\n")] {
        let script = format!(
            "( sleep 0.6; echo phase 2 >&{to}; sleep 0.1; echo phase 2 >&{to}; echo >{}) & exit 0",
            done.display()
        );
        let (spec, out, err) = captured(sh(&script));
        let mut handler = spec.command().unwrap();
        assert_eq!(run(&mut handler, b""), Outcome::Done);
        assert!(!done.exists(), "it was waited for");
        wait_until("it goes on to its end", || done.exists());
        wait_until("its lines are passed on", || (out.text() + &err.text()).matches(late).count() == 2);
        fs::remove_file(&done).unwrap();
    }
    fs::remove_dir_all(folder).unwrap();
}

fn tempfolder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("taskq-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}
