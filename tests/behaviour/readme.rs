//! README.md is run: each of its code blocks in a directory of its own, against a node of this test's own.
//!
//! A block that is not known here fails the test, unless it is a console block without any preparation: its commands
//! follow `$ `, exit with 0, and print what is shown after them. What may vary in that is in [`told`] and [`Place::console`].

use crate::support::poll::DEADLINE;
use crate::support::{Invocation, Process, Sandbox, until};
use nix::sys::signal::Signal::SIGTERM;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
/// Nobody listens there.
const NOWHERE: &str = "amqp://guest:guest@127.0.0.1:1";

#[derive(Clone, Copy)]
enum Check {
    /// This runs it.
    By(fn(&Place)),
    /// Why it is not run here.
    Not(&'static str),
}

/// The language of a block, how its first line begins, and what is done about it.
const CHECKS: &[(&str, &str, Check)] = &[
    ("console", "$ taskq send 'hello", Check::By(shows)),
    ("sh", "make demo", Check::Not("they are the demos, and these tests themselves")),
    (
        "sh",
        "make && sudo make install",
        Check::Not("it changes the machine; makefile.rs installs into a directory"),
    ),
    ("console", "$ taskq send 'first", Check::By(three_terminals)),
    ("sh", "taskq send --lines --file leftover", Check::By(sends_what_was_left)),
    ("sh", "taskq send --lines --unsent leftover", Check::By(tells_the_exit_codes_apart)),
    ("make", "images:", Check::By(is_a_makefile)),
    ("sh", "#!/bin/sh", Check::By(leaves_nothing_behind)),
    ("console", "$ ls /srv", Check::By(backs_up)),
    ("sh", "body=$(cat)", Check::By(reads_the_body)),
    ("sh", "taskq work --queue logs", Check::By(gives_the_body_as_an_argument)),
    ("", "0 4 * * *", Check::By(deletes_old_output)),
    ("", "{\"id\":", Check::By(is_the_line_of_a_persistent_command)),
    ("sh", "taskq work --persistent", Check::By(is_persistent)),
    ("sh", "taskq dead list", Check::By(looks_at_dead_tasks)),
    ("sh", "rabbitmqctl set_policy taskq-backup", Check::By(sets_policies)),
    ("sh", "taskq status --queue", Check::By(watches_queues)),
    ("console", "$ taskq status", Check::By(shows_how_much_there_is)),
    ("sh", "taskq peek", Check::By(looks_at_waiting_tasks)),
    ("sh", "rabbitmqctl set_permissions sender", Check::By(sets_permissions)),
    ("sh", "umask 077", Check::By(keeps_the_password_in_a_file)),
    ("sh", "export TASKQ_URL=", Check::By(names_several_brokers)),
    ("erlang", "[{rabbit,", Check::By(is_what_make_cluster_has)),
    ("ini", "[Unit]", Check::By(starts_as_a_service)),
    ("sh", "sudo useradd", Check::Not("it needs systemd as the first process, and root")),
    ("", "0 3 * * *", Check::By(runs_under_cron)),
    ("sh", "rabbitmqctl set_policy --apply-to queues --priority", Check::By(sets_policies)),
    ("console", "$ rabbitmqctl -q list_queues", Check::By(counts_unacknowledged_tasks)),
];

struct Block {
    line: usize,
    language: String,
    text: String,
}

impl Block {
    fn is(&self, (language, beginning, _): &(&str, &str, Check)) -> bool {
        self.language == *language && self.text.starts_with(beginning)
    }
}

fn blocks() -> Vec<Block> {
    let readme = fs::read_to_string(format!("{REPOSITORY}/README.md")).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in readme.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block { line: number + 1, language: language.to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    assert!(open.is_none() && !blocks.is_empty(), "a block without an end");
    blocks
}

/// A block, and the directory it is run in.
struct Place<'a> {
    sandbox: &'a Sandbox,
    block: &'a Block,
    dir: PathBuf,
    /// The script of "Run your own program".
    back_up: &'a str,
}

impl<'a> Place<'a> {
    /// `bin` stands for /usr/local/bin: taskq is installed there. `rabbitmqctl` there is that of the node.
    fn new(sandbox: &'a Sandbox, block: &'a Block, back_up: &'a str) -> Self {
        let dir = sandbox.path(&format!("line-{}", block.line));
        for directory in ["bin", "home", "srv"] {
            fs::create_dir_all(dir.join(directory)).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_taskq"), dir.join("bin/taskq")).unwrap();
        let place = Self { sandbox, block, dir, back_up };
        let node = sandbox.node().dir().display();
        place.program(
            "bin/rabbitmqctl",
            &format!("#!/bin/sh\nexec {REPOSITORY}/scripts/rabbitmq-node ctl {node} \"$@\"\n"),
        );
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn program(&self, name: &str, content: &str) {
        self.write(name, content);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn text(&self) -> &str {
        &self.block.text
    }

    /// A shell script here, with the paths of the README as those of this directory.
    fn sh(&self, script: &str) -> Invocation {
        let dir = self.dir.to_str().unwrap();
        let node = self.sandbox.node().dir().display();
        let script = script
            .replace("/usr/local/bin/", &format!("{dir}/bin/"))
            .replace("/srv/", &format!("{dir}/srv/"))
            .replace("make queues", &format!("make -s -C {REPOSITORY} queues BROKER={node}"));
        let path = format!("{dir}/bin:{}", std::env::var("PATH").unwrap());
        let mut sh = self
            .sandbox
            .program("sh", ["-c", &format!("cd \"$0\" || exit 99\n{script}"), dir])
            .without_env("TASKQ_QUEUE")
            .env("PATH", path)
            .env("HOME", self.path("home"));
        if let Ok(directory) = std::env::var("RABBITMQ_BIN") {
            sh = sh.env("RABBITMQ_BIN", directory);
        }
        sh
    }

    /// A worker that waits for messages; signals reach taskq itself.
    fn worker(&self, command: &str) -> Process {
        let worker = self.sh(&format!("exec {command}")).start();
        worker.says("Waiting for messages");
        worker
    }

    fn send(&self, arguments: &str, input: &str) {
        self.sh(&format!("taskq send {arguments}")).feed(input).exits(0);
    }

    /// Runs the commands of a console block and compares what they print. That of a worker with several threads may come
    /// in another order. What asks for the state of the broker is asked again until it is that of the README.
    fn console(&self) {
        for (command, expected) in commands(self.text()) {
            let asks_again = command.starts_with("make queues") || command.starts_with("rabbitmqctl");
            let any_order = command.contains("--threads");
            let lines = |text: &str| {
                let mut lines: Vec<String> = text.lines().map(told).collect();
                if any_order {
                    lines.sort();
                }
                lines
            };
            let started = Instant::now();
            let printed = loop {
                let ran = self.sh(&format!("exec 2>&1\n{command}")).run().exits(0);
                let printed = ran.stdout_text().replace(&format!("{}/srv/", self.dir.display()), "/srv/");
                if !asks_again || lines(&printed) == lines(&expected) || started.elapsed() > DEADLINE {
                    break printed;
                }
            };
            assert_eq!(lines(&printed), lines(&expected), "README.md: {command}\nprinted:\n{printed}");
        }
    }

    /// Sends a task to `queue` that a worker has failed for good, and returns its id.
    fn one_dead(&self, queue: &str) -> String {
        let id = "01a204a2-499c-7598-8b3f-bb9077d323e2";
        self.send(&format!("--queue {queue} --id {id} a dead task"), "");
        let work = format!("taskq work --queue {queue} --attempts 1 --until-empty -- false");
        self.sh(&work).run().exits(1);
        id.to_owned()
    }

    fn databases(&self) {
        for name in ["shop", "wiki"] {
            let create = format!("sqlite3 srv/{name}.db 'create table {name} (line)'");
            self.sh(&create).run().exits(0);
        }
        self.write("srv/broken.db", "this is no database, whatever its name says");
    }
}

/// The commands of a console block, and what each prints.
fn commands(text: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            commands.push((command.to_owned(), String::new()));
        } else {
            let (_, printed) = commands.last_mut().expect("a console block begins with `$ `");
            printed.extend([line, "\n"]);
        }
    }
    commands
}

/// A line of output without what differs from run to run: the broker and its version, ids with the keys and ages beside
/// them, and the widths of columns, which follow from these.
fn told(line: &str) -> String {
    // Only a terminal has that key.
    let line = line.strip_suffix(". To exit press CTRL+C").unwrap_or(line);
    if line.starts_with("connected to amqp://guest@") {
        return "connected".to_owned();
    }
    let words: Vec<&str> = line.split([' ', ',', ')']).filter(|word| !word.is_empty()).collect();
    let is_row = words.iter().any(|word| is_uuid(word));
    let varies = |word: &str| {
        let digits = word.trim_start_matches(|c: char| c.is_ascii_digit());
        match () {
            () if is_uuid(word) => "ID".to_owned(),
            () if is_row
                && digits.len() < word.len()
                && ["s", "m", "h", "ms"]
                    .contains(&digits.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit())) =>
            {
                "AGE".to_owned()
            }
            () if is_row && word.len() == 12 && word.chars().all(|c| c.is_ascii_hexdigit()) => {
                "KEY".to_owned()
            }
            () => word.to_owned(),
        }
    };
    words.into_iter().map(varies).collect::<Vec<_>>().join(" ")
}

fn is_uuid(word: &str) -> bool {
    word.len() == 36
        && word.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
        && word.matches('-').count() == 4
}

fn files(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn shows(place: &Place) {
    place.console();
}

fn three_terminals(place: &Place) {
    let _second = place.worker("taskq work");
    place.console();
}

fn sends_what_was_left(place: &Place) {
    place.write("leftover", "one\ntwo\n");
    place.sh(place.text()).run().exits(0);
    assert_eq!(place.sandbox.broker().bodies("task_queue"), ["one", "two"]);
    assert_eq!(fs::read_to_string(place.path("leftover")).unwrap(), "");
}

fn tells_the_exit_codes_apart(place: &Place) {
    place.write("tasks", "one\ntwo\n");
    let run = |url: &str| place.sh(place.text()).env("TASKQ_URL", url).run();
    run(place.sandbox.url()).exits(0).never_says("try again later");
    assert_eq!(place.sandbox.broker().bodies("task_queue"), ["one", "two"]);
    assert!(!place.path("leftover").exists());
    run("not a URL").exits(1);
    run(NOWHERE).exits(0).says("try again later: leftover");
    assert_eq!(fs::read_to_string(place.path("leftover")).unwrap(), "one\ntwo\n");
}

fn is_a_makefile(place: &Place) {
    place.write("Makefile", place.text());
    place.program(
        "resize",
        "#!/bin/sh\nfile=$(cat)\n[ \"$file\" != bad ] || exit 3\necho \"$file\" >>resized\n",
    );
    place.write("list.txt", "one\ntwo\n");
    place.sh("make images").run().exits(0);
    let mut resized = place.sh("cat resized").run().stdout_lines();
    resized.sort();
    assert_eq!(resized, ["one", "two"]);
    place.write("list.txt", "bad\n");
    place.sh("make images").run().exits(2).says("Error 1");
}

/// However it ends: `sqlite3` is played by a program that writes and hangs.
fn leaves_nothing_behind(place: &Place) {
    place.program("back-up", place.text());
    let hangs = "#!/bin/sh\n: >\"$HOME/backup/.$TASKQ_ID\"\n: >\"$HOME/backup/.$TASKQ_ID-journal\"\n: >started\nexec sleep 1000\n";
    place.program("bin/sqlite3", hangs);
    place.write("srv/some.db", "");
    place.send("--queue backup /srv/some.db", "");
    let worker = place.worker("taskq work --queue backup -- ./back-up");
    until("a copy that has begun", || place.path("started").exists().then_some(()));
    assert_eq!(files(&place.path("home/backup")).len(), 2);
    // The second one does not wait for the end of the task.
    worker.signal(SIGTERM).says("finishing 1 running").signal(SIGTERM);
    worker.end().exits(143);
    assert_eq!(files(&place.path("home/backup")), [""; 0]);
    // The task is there again.
    let work = "taskq work --queue backup --timeout 2s --attempts 1 --until-empty -- ./back-up";
    place.sh(work).run().exits(1).says("timed out after 2s");
    assert_eq!(files(&place.path("home/backup")), [""; 0]);
}

fn backs_up(place: &Place) {
    place.program("back-up", place.back_up);
    place.databases();
    place.console();
    let mut saved = files(&place.path("home/backup"));
    saved.sort();
    assert_eq!(saved, ["shop.db", "wiki.db"]);
}

fn reads_the_body(place: &Place) {
    let (whole, by_line) = place.text().split_once('\n').unwrap();
    place.write("whole", &format!("{whole}\nprintf '%s' \"$body\" | od -c >got\n"));
    place.write("by-line", &format!("{{\n{by_line}}} >got\n"));
    let work = |script: &str| {
        place.sh(&format!("taskq work --until-empty -- sh ./{script}")).run().exits(0);
        fs::read_to_string(place.path("got")).unwrap()
    };
    for body in ["one line", "two\nlines", "an end\n"] {
        place.send("--file -", body);
        let trimmed = body.trim_end_matches('\n');
        place.write("expected", trimmed);
        assert_eq!(work("whole"), place.sh("od -c expected").run().stdout_text());
        place.send("--file -", body);
        assert_eq!(work("by-line"), format!("{trimmed}\n"));
    }
}

fn gives_the_body_as_an_argument(place: &Place) {
    place.write("-old.log", "x");
    place.send("--queue logs -- -old.log", "");
    place.sh(place.text()).run().exits(0);
    assert!(place.path("-old.log.gz").exists() && !place.path("-old.log").exists());
}

fn deletes_old_output(place: &Place) {
    place.send("--id one hello", "");
    let work = "taskq work --output-dir $HOME/output --until-empty -- cat";
    place.sh(work).run().exits(0);
    place.sh("touch -d '15 days ago' $HOME/output/old.1.out").run().exits(0);
    let command = place.text().strip_prefix("0 4 * * *").unwrap();
    place.sh(command).run().exits(0);
    assert_eq!(files(&place.path("home/output")), ["one.1.out"]);
}

fn is_the_line_of_a_persistent_command(place: &Place) {
    place.program(
        "handler",
        "#!/bin/sh\nwhile IFS= read -r task; do printf '%s\\n' \"$task\" >>line; echo OK; done\n",
    );
    place.send("--id my-id --header k=v hello", "");
    place.sh("taskq work --persistent --max-tasks 1 -- ./handler").run().exits(0);
    // It was sent at another time.
    let without_time = |line: &str| {
        let (before, rest) = line.split_once(r#""timestamp":"20"#).unwrap();
        let (time, after) = rest.split_once('"').unwrap();
        assert_eq!(time.len(), "26-11-28T22:40:31Z".len());
        format!("{before}{after}")
    };
    let line = fs::read_to_string(place.path("line")).unwrap();
    assert_eq!(without_time(&line), without_time(place.text()));
}

fn is_persistent(place: &Place) {
    symlink(format!("{REPOSITORY}/examples"), place.path("examples")).unwrap();
    let worker = place.worker(place.text());
    place.send("hello", "");
    worker.says("working on hello").says("Done").signal(SIGTERM);
    worker.end().exits(0);
}

/// Line by line, each with a dead task to look at.
fn looks_at_waiting_tasks(place: &Place) {
    place.sandbox.taskq(["send", "--queue", "task_queue", "a task that waits"]).run().exits(0);
    for line in place.text().lines() {
        let shown = place.sh(line).run().exits(0);
        assert!(shown.stdout_text().contains("a task that waits"), "{line}: {}", shown.stdout_text());
    }
    place.sandbox.broker().drain("task_queue");
}

fn looks_at_dead_tasks(place: &Place) {
    for line in place.text().lines() {
        let id = place.one_dead("task_queue");
        let (command, _) = line.split_once(" #").unwrap_or((line, ""));
        let command = command.trim().replace("ID...", &id).replace(" ID", &format!(" {id}"));
        // Who could answer its question is not there.
        let sure = if command.contains(" purge") { " --yes" } else { "" };
        place.sh(&format!("{command}{sure}")).run().exits(0);
        place.sh("taskq dead purge --yes").run().exits(0);
        place.sandbox.broker().drain("task_queue");
    }
}

fn sets_policies(place: &Place) {
    place.sh(place.text()).run().exits(0);
    let listed = place.sh("rabbitmqctl -q list_policies").run().exits(0).stdout_lines();
    let names: Vec<&str> = listed.iter().skip(1).filter_map(|line| line.split('\t').nth(1)).collect();
    assert_eq!(names.len(), place.text().matches("set_policy").count(), "{listed:?}");
    for name in names {
        place.sh(&format!("rabbitmqctl clear_policy {name}")).run().exits(0);
    }
}

fn watches_queues(place: &Place) {
    for queue in ["backup", "images"] {
        place.sandbox.broker().declare(queue);
    }
    let ran =
        place.sh(place.text()).run().exits(0).says("fewer than --min-consumers 1").says("look at backup");
    let queues = ran.stdout_lines();
    assert_eq!(queues.iter().filter(|line| line.starts_with("backup")).count(), 2, "{queues:?}");
    assert!(queues.iter().any(|line| line.starts_with("images")), "{queues:?}");
}

fn shows_how_much_there_is(place: &Place) {
    place.send("--lines", &format!("{}\n", ".".repeat(1000)).repeat(124));
    let _worker = place.worker("taskq work --threads 4 -- sleep 1000");
    let broker = place.sandbox.broker();
    for (companion, count) in [("delay.120000", 4), ("delay.600000", 3), ("dead", 2)] {
        for _ in 0..count {
            broker.publish(&format!("task_queue.{companion}"), "task");
        }
        broker.wait_ready(&format!("task_queue.{companion}"), count);
    }
    until("four of them run", || (broker.counts("task_queue") == Some((120, 4))).then_some(()));
    place.console();
}

fn sets_permissions(place: &Place) {
    let users: Vec<&str> = place.text().lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(users, ["sender", "monitor"]);
    for user in &users {
        place.sh(&format!("rabbitmqctl add_user {user} secret")).run().exits(0);
    }
    place.sh(place.text()).run().exits(0);
    let as_user = |user: &str, command: &str| {
        let url = place.sandbox.url().replace("guest:guest", &format!("{user}:secret"));
        place.sh(command).env("TASKQ_URL", url).run()
    };
    place.one_dead("backup");
    as_user("sender", "taskq send --no-declare --queue backup hello").exits(0);
    as_user("sender", "taskq work --no-declare --queue backup --dots").exits(77);
    as_user("monitor", "taskq send --no-declare --queue backup hello").exits(77);
    let told = as_user("monitor", "taskq status --queue backup --max-ready 1 --max-dead 1").exits(0);
    assert_eq!(told.stderr, "");
}

fn keeps_the_password_in_a_file(place: &Place) {
    let broker = "amqps://alice:secret@rabbit.example";
    assert!(place.text().contains(broker));
    let script = place.text().replace(broker, place.sandbox.url());
    place.sh(&script).without_env("TASKQ_URL").run().exits(0).never_says("warning");
    assert_eq!(place.sandbox.broker().bodies("task_queue"), ["hello"]);
}

/// All of them are the one node that is here.
fn names_several_brokers(place: &Place) {
    place.program("back-up", place.back_up);
    let url = place.sandbox.url();
    let script = ["amqp://rabbit1", "amqp://rabbit2", "amqp://rabbit3"].iter().fold(
        place.text().to_owned(),
        |script, broker| {
            assert!(script.contains(broker));
            script.replace(broker, url)
        },
    );
    let worker = place.sh(&script.replace("taskq work", "exec taskq work")).start();
    worker.says("no such file: hello").says("kept in task_queue.dead").signal(SIGTERM);
    worker.end().exits(0);
}

fn is_what_make_cluster_has(place: &Place) {
    let setting = place.text().trim().strip_prefix("[{rabbit, [{").unwrap().strip_suffix("}]}].").unwrap();
    let setting = setting.replace(", ", " ");
    let cluster = fs::read_to_string(format!("{REPOSITORY}/scripts/rabbitmq-cluster")).unwrap();
    assert!(cluster.contains(&format!("--rabbit '{setting}'")), "{setting}");
}

fn starts_as_a_service(place: &Place) {
    place.program("bin/back-up", place.back_up);
    let start = place.text().lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let worker = place.worker(start);
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

fn runs_under_cron(place: &Place) {
    fs::create_dir(place.path("home/bin")).unwrap();
    place.program("home/bin/back-up", place.back_up);
    place.write("home/.taskq-url", &format!("{}\n", place.sandbox.url()));
    fs::set_permissions(place.path("home/.taskq-url"), fs::Permissions::from_mode(0o600)).unwrap();
    place.databases();
    place.send("--queue backup /srv/shop.db", "");
    let line = place.text().strip_prefix("0 3 * * *").unwrap().trim();
    place.write("line", &line.replace("/usr/local/bin/", &format!("{}/bin/", place.dir.display())));
    let cron = || {
        place.sh("exec env -i PATH=/usr/bin:/bin HOME=\"$HOME\" SHELL=/bin/sh sh -c \"$(cat line)\"").run()
    };

    let mut earlier = place.sh("exec flock home/.backup.lock sh -c 'echo locked; read -r _'").start();
    earlier.prints_lines(1);
    cron().exits(0);
    assert_eq!(place.sandbox.broker().ready("backup"), 1, "an earlier run still works");
    earlier.close_stdin();
    earlier.end();

    let ran = cron().exits(0);
    assert_eq!((ran.stdout_text().matches(" is saved\n").count(), ran.stderr.as_str()), (1, ""));
    assert_eq!(files(&place.path("home/backup")), ["shop.db"]);
}

fn counts_unacknowledged_tasks(place: &Place) {
    place.send("--lines", &format!("{}\n", ".".repeat(1000)).repeat(5));
    let _worker = place.worker("taskq work --prefetch 3");
    place.console();
}

#[test]
fn its_blocks_are_known() {
    let blocks = blocks();
    for check in CHECKS {
        let found = blocks.iter().filter(|block| block.is(check)).count();
        assert_eq!(found, 1, "blocks of README.md in {:?} that begin with {:?}", check.0, check.1);
    }
    for block in &blocks {
        let checks = CHECKS.iter().filter(|check| block.is(check)).count();
        let fine = checks == 1 || checks == 0 && block.language == "console";
        assert!(fine, "README.md, line {}: {checks} checks for this block:\n{}", block.line, block.text);
    }
}

#[test]
fn its_blocks_do_what_it_says() {
    let sandbox = Sandbox::configured(&[]);
    let blocks = blocks();
    let back_up = &blocks.iter().find(|block| block.text.starts_with("#!/bin/sh")).unwrap().text;
    let mut wrong = Vec::new();
    for block in &blocks {
        let check = CHECKS.iter().find(|check| block.is(check)).map_or(Check::By(shows), |check| check.2);
        match check {
            Check::Not(why) => println!("line {}: not run: {why}", block.line),
            Check::By(run) => {
                // Each finds a broker without queues.
                for line in sandbox.node().queues().lines().skip(1) {
                    sandbox.broker().delete(line.split_whitespace().next().unwrap());
                }
                let place = Place::new(&sandbox, block, back_up);
                let started = Instant::now();
                if catch_unwind(AssertUnwindSafe(|| run(&place))).is_err() {
                    wrong.push(block.line);
                }
                println!("line {}: {:.1?}", block.line, started.elapsed());
            }
        }
    }
    assert!(wrong.is_empty(), "the blocks of README.md that begin at the lines {wrong:?}");
}
