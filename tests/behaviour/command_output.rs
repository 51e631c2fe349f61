//! Commands that write a lot, at the same time, nonsense, or never stop holding their pipes open.

use crate::support::Sandbox;
use crate::support::handler::{KillOnDrop, header};
use std::collections::HashMap;

/// More than this, and what passes through a worker stays in its memory.
const MEMORY_KIB: u64 = 24 * 1024;

#[test]
fn lines_of_commands_that_run_at_the_same_time_stay_whole() {
    const TASKS: usize = 4;
    const LINES: usize = 400;
    let sandbox = Sandbox::new();
    // All wait for each other, and each line comes in two pieces, to both streams.
    let script = r#"
        n=$(cat); echo "$n" >>"$1/started"
        until [ "$(wc -l <"$1/started")" -ge 4 ]; do sleep 0.05; done
        i=0
        while [ $i -lt 400 ]; do
            printf '%s:out:' "$n"; printf '%s:err:' "$n" >&2
            printf '%s:end\n' "$i"; printf '%s:end\n' "$i" >&2
            i=$((i + 1))
        done"#;
    sandbox.taskq(["send", "--lines"]).feed("a\nb\nc\nd\n").exits(0);
    let worked = sandbox.work_with(&["--threads", "4", "--until-empty"], script).run().exits(0);
    for (stream, text) in [("out", worked.stdout_text()), ("err", worked.stderr)] {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let parts = text.lines().filter(|line| line.contains(":end"));
        for line in parts {
            let fields: Vec<&str> = line.split(':').collect();
            let [task, name, number, "end"] = fields[..] else { panic!("not a whole line: {line:?}") };
            let next = seen.entry(task.to_owned()).or_default();
            assert_eq!((name, number.parse()), (stream, Ok(*next)), "{line:?}");
            *next += 1;
        }
        assert!(seen.len() == TASKS && seen.values().all(|count| *count == LINES), "{stream}: {seen:?}");
    }
}

#[test]
fn an_unfinished_last_line_does_not_swallow_the_workers_own_messages() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("a\nb\n").exits(0);
    let worked = sandbox.work_with(&["--until-empty"], "printf unfinished >&2").run().exits(0);
    assert_eq!(
        worked.stderr.lines().filter(|line| line.starts_with("Done (")).count(),
        2,
        "{}",
        worked.stderr
    );
}

/// Works one task whose command prints, with the worker's stdout read by `wc -c` and its stderr by nobody; returns
/// what was counted and the worker's largest size in KiB.
fn flood(sandbox: &Sandbox, options: &[&str], script: &str) -> (u64, u64) {
    sandbox.taskq(["send", "flood"]).run().exits(0);
    let shell = r#"mkfifo "$1/fifo"; wc -c <"$1/fifo" >"$1/count" & directory=$1; shift; exec "$@" >"$directory/fifo" 2>/dev/null"#;
    let directory = sandbox.path("");
    let directory = directory.to_str().unwrap();
    let start = ["-c", shell, "sh", directory, env!("CARGO_BIN_EXE_taskq"), "work"];
    let end = ["--idle-timeout", "60s", "--", "sh", "-c", script, "sh", directory];
    let worker = sandbox.program("sh", start.iter().chain(options).chain(&end)).start();
    sandbox.wait_lines("finished", 1);
    sandbox.broker().wait_ready(&sandbox.queue, 0);
    let peak = worker.peak_memory();
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    worker.end();
    (sandbox.wait_lines("count", 1)[0].trim().parse().unwrap(), peak)
}

#[test]
fn a_flood_of_output_passes_through_without_growing_the_worker() {
    for (bytes, print) in [
        // Without a single line end; and in lines.
        (400_000_000, "head -c 400000000 /dev/zero"),
        (100_000_000, "yes 123456789 | head -c 100000000"),
    ] {
        let sandbox = Sandbox::new();
        let (count, peak) = flood(&sandbox, &[], &format!(r#"{print}; echo >"$1/finished""#));
        assert_eq!(count, bytes, "output was lost");
        assert!(peak < MEMORY_KIB, "{peak} KiB");
    }
}

#[test]
fn a_flood_of_errors_leaves_its_end_with_the_task_and_does_not_grow_the_worker() {
    let sandbox = Sandbox::new();
    let script = r#"yes 123456789 | head -c 100000000 >&2; echo "the end" >&2; echo >"$1/finished"; exit 1"#;
    let (_, peak) = flood(&sandbox, &["--backoff", "1h"], script);
    assert!(peak < MEMORY_KIB, "{peak} KiB");
    let failed = sandbox.broker().take(&sandbox.delay_queue(3_600_000));
    let error = header(&failed, "x-taskq-error");
    assert!(error.trim_end().ends_with("123456789\nthe end"), "{error:?}");
    assert!((1000..=3 * 1024).contains(&error.len()), "{} bytes", error.len());
}

#[test]
fn an_endless_flood_ends_with_its_time_out() {
    let sandbox = Sandbox::new();
    let options = ["--timeout", "1s", "--grace", "1s", "--attempts", "1", "--until-empty", "--", "yes"];
    sandbox.taskq(["send", "x"]).run().exits(0);
    // Nobody keeps what it prints.
    let shell = r#""$@" >/dev/null; echo "exit $?" >&2"#;
    let start = ["-c", shell, "sh", env!("CARGO_BIN_EXE_taskq"), "work"];
    sandbox.program("sh", start.iter().chain(&options)).run().exits(0).says("exit 1\n");
    assert!(header(&sandbox.broker().take(&sandbox.dead_queue()), "x-taskq-exit").contains("timed out"));
}

#[test]
fn binary_garbage_on_stderr_is_harmless_in_the_task_and_on_the_terminal_of_who_reads_it() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--id", "garbage", "x"]).run().exits(0);
    let script = r"printf 'before \033[2J\000\377\302\233 after\n' >&2; head -c 100000 /dev/urandom >&2; printf '\033]0;x\007 last' >&2; exit 65";
    sandbox.work_with(&["--until-empty"], script).run().exits(1);
    for args in [&["dead", "list"][..], &["dead", "list", "--json"], &["dead", "show", "garbage"]] {
        let shown = sandbox.taskq(args).run().exits(0).stdout_text();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{args:?}: {shown:?}");
    }
    let error = header(&sandbox.broker().take(&sandbox.dead_queue()), "x-taskq-error");
    assert!(!error.chars().any(|c| c.is_control() && c != '\n'), "{error:?}");
    assert!(error.contains("last"), "{error:?}");
}

#[test]
fn a_daemon_that_keeps_the_pipes_open_does_not_hold_up_its_task() {
    let sandbox = Sandbox::new();
    // One in the command's process group, one that has left it.
    let script = r#"sleep 1000 & echo $! >>"$1/pids"; setsid sh -c 'echo $$ >>"$1/pids"; exec sleep 1000' sh "$1" & echo started"#;
    let worker = sandbox.handling(&[], script);
    sandbox.taskq(["send", "--lines"]).feed("a\nb\n").exits(0);
    worker.says_times("Done", 2).prints_lines(2);
    let _orphans: Vec<KillOnDrop> = sandbox.pids("pids", 4).into_iter().map(KillOnDrop).collect();
}

#[test]
fn a_worker_whose_stdout_nobody_reads_any_more_goes_on() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--lines"]).feed("x\n".repeat(50)).exits(0);
    // `head` goes away after the first line.
    let shell = r#"("$@" 3>&1 1>&4 | :) 4>&1 | head -n 1"#;
    let script = r#"yes line | head -n 2000; echo ran >>"$1/ran""#;
    let directory = sandbox.path("");
    let end = ["--until-empty", "--", "sh", "-c", script, "sh", directory.to_str().unwrap()];
    let start = ["-c", shell, "sh", env!("CARGO_BIN_EXE_taskq"), "work"];
    let piped = sandbox.program("sh", start.iter().chain(&end)).run();
    assert!(!piped.stderr.contains("panicked"), "{}", piped.stderr);
    assert_eq!(sandbox.wait_lines("ran", 50).len(), 50);
    sandbox.broker().wait_ready(&sandbox.queue, 0);
}
