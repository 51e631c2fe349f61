//! A cluster of three nodes and quorum queues: one node at a time is lost under load, and comes back.

use crate::support::handler::{body, header};
use crate::support::{Cluster, Node, Process, Sandbox};
use nix::sys::signal::Signal::SIGTERM;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What becomes of task number n: every third one fails once, every tenth one always. Each run leaves a line, and so
/// does each success.
const SCRIPT: &str = r#"
    read -r n || [ -n "$n" ]
    echo "$n $TASKQ_ATTEMPT" >>"$1/runs"
    case $n in *0) echo "task $n is hopeless" >&2; exit 3;; esac
    if [ $((n % 3)) = 0 ] && [ "$TASKQ_ATTEMPT" = 1 ]; then exit 75; fi
    echo "$n" >>"$1/done""#;

fn is_hopeless(n: usize) -> bool {
    n.is_multiple_of(10)
}

/// A producer and two workers on a cluster, and what they have been given.
struct Load {
    sandbox: Sandbox,
    send: Process,
    workers: [Process; 2],
    sent: usize,
    /// Whether tasks are worked while a node is away.
    goes_on_without: bool,
}

/// Before this version who publishes first to a queue that has just lost its leader, be it a delay queue, may get no
/// further until the lost node is back (rabbitmq-server #9221).
const FINDS_NEW_LEADERS: [u32; 3] = [3, 12, 5];

/// For a loss to be noticed, a leader to be chosen and connections to be opened, by three nodes on a busy machine.
const RECOVERY: Duration = Duration::from_mins(2);

impl Load {
    fn start() -> Self {
        let sandbox = Sandbox::clustered();
        let patience = ["--heartbeat", "2s", "--queue-type", "quorum"];
        let send = ["send", "--lines", "--retry-for", "2m"];
        let send = sandbox.taskq(send.iter().chain(&patience)).start();
        let work = ["--quiet", "--threads", "2", "--attempts", "2", "--backoff", "300ms"];
        let work: Vec<&str> = work.into_iter().chain(patience).collect();
        let start = || sandbox.work_with(&work, SCRIPT).env("RUST_LOG", "info").start();
        let workers = [start(), start()];
        for worker in &workers {
            worker.says("Waiting for messages");
        }
        let goes_on_without = sandbox.broker().version() >= FINDS_NEW_LEADERS;
        Self { sandbox, send, workers, sent: 0, goes_on_without }
    }

    fn cluster(&self) -> &Cluster {
        self.sandbox.cluster()
    }

    fn send(&mut self, count: usize) {
        for n in self.sent..self.sent + count {
            self.send.write(format!("{n}\n"));
        }
        self.sent += count;
    }

    fn numbers(&self, file: &str, of: impl Fn(&str) -> Option<usize>) -> BTreeSet<usize> {
        self.sandbox.lines(file).iter().filter_map(|line| of(line)).collect()
    }

    fn done(&self) -> BTreeSet<usize> {
        self.numbers("done", |line| line.parse().ok())
    }

    /// All that was sent so far has been done, or has had its last attempt.
    fn wait_for_all(&self, when: &str) {
        self.wait_for(when, || {
            let done = self.done();
            let failed = self.numbers("runs", |line| line.strip_suffix(" 2")?.parse().ok());
            let ended = |n: &usize| if is_hopeless(*n) { failed.contains(n) } else { done.contains(n) };
            (0..self.sent).filter(|n| !ended(n)).collect()
        });
    }

    fn wait_for(&self, when: &str, missing: impl Fn() -> Vec<usize>) {
        let until = Instant::now() + RECOVERY;
        while !missing().is_empty() {
            let queues = || {
                self.sandbox.node().ctl(&[
                    "-q",
                    "list_queues",
                    "name",
                    "messages_ready",
                    "messages_unacknowledged",
                ])
            };
            assert!(Instant::now() < until, "{when}, not run or not ended: {:?}\n{}", missing(), queues());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Each node in turn goes away in the middle of the load, which goes on without it and when it is back.
    fn lose_each_node(mut self, lose: impl Fn(&Node)) {
        self.send(20);
        self.wait_for_all("before anything happened");
        for number in 0..self.cluster().nodes().len() {
            self.send(40);
            lose(&self.cluster().nodes()[number]);
            self.send(40);
            let without = format!("without node {}", number + 1);
            if self.goes_on_without {
                self.wait_for_all(&without);
            }
            self.send(20);
            self.cluster().mend();
            self.send(20);
            self.wait_for_all(&format!("with node {} back", number + 1));
        }
        self.finish();
    }

    fn finish(mut self) {
        self.send.close_stdin();
        self.send.end().exits(0);
        let sandbox = self.sandbox;
        let broker = sandbox.broker();
        for queue in [&sandbox.queue, &sandbox.delay_queue(300)] {
            broker.wait_ready(queue, 0);
        }
        for worker in self.workers {
            worker.signal(SIGTERM);
            worker.end().exits(0);
        }
        // A task that was not acknowledged would be ready again by now.
        assert_eq!([&sandbox.queue, &sandbox.delay_queue(300)].map(|queue| broker.ready(queue)), [0, 0]);
        let dead = broker.drain(&sandbox.dead_queue());
        assert!(dead.iter().all(|task| header(task, "x-taskq-exit").contains("exit status 3")));
        let dead: BTreeSet<usize> = dead.iter().map(|task| body(task).trim().parse().unwrap()).collect();
        assert_eq!(dead, (0..self.sent).filter(|n| is_hopeless(*n)).collect());
    }
}

#[test]
fn nodes_that_are_killed_in_turn_cost_no_task() {
    Load::start().lose_each_node(Node::kill);
}

#[test]
fn nodes_that_freeze_in_turn_cost_no_task() {
    Load::start().lose_each_node(Node::freeze);
}

#[test]
fn nodes_that_are_cut_off_in_turn_cost_no_task() {
    let mut load = Load::start();
    // From then on it keeps its clients, and a worker waits for it.
    load.goes_on_without &= load.sandbox.broker().version() < [4, 3, 0];
    load.lose_each_node(Node::cut_off);
}

/// A quorum queue whose leader does not answer counts no message and no consumer.
#[test]
fn a_queue_that_cannot_be_counted_is_not_empty() {
    let sandbox = Sandbox::clustered();
    let [leader, here, _] = sandbox.cluster().nodes() else { panic!("no three nodes") };
    let work = |node: &Node, script: &str| {
        let options = ["--queue-type", "quorum", "--until-empty", "--attempts", "1"];
        sandbox.work_with(&options, script).env("TASKQ_URL", node.url())
    };
    let send = |lines: &str| {
        let send = sandbox.taskq(["send", "--lines", "--queue-type", "quorum"]);
        send.env("TASKQ_URL", leader.url()).feed(lines).exits(0);
    };
    // All queues are declared on that node, so it has their leaders.
    send("hopeless\n");
    work(leader, "false").run().exits(1);
    send(&(0..20).fold(String::new(), |lines, n| lines + &n.to_string() + "\n"));
    // The first is running when the leaders freeze.
    let script = r#"read -r n; echo "$n" >>"$1/runs"; while [ ! -e "$1/go" ]; do sleep 0.1; done"#;
    let worker = work(here, script).start();
    worker.says("Received a message: 0");
    leader.freeze();
    // Whether it waits until there is another leader or not: it never says that there is nothing.
    let status = sandbox.taskq(["status", "--json", "--backoff", "1s"]).env("TASKQ_URL", here.url()).start();
    let status = status.end_within(RECOVERY).exits(0);
    let seen: serde_json::Value = serde_json::from_str(&status.stdout_lines()[0]).unwrap();
    for (member, least) in [("ready", 1), ("dead", 1)] {
        let told = seen[member].as_u64();
        assert!(told.is_none_or(|count| count >= least), "{member}: {seen}\n{}", status.stderr);
    }
    sandbox.file("go", "");
    let list = sandbox.taskq(["dead", "list"]).env("TASKQ_URL", here.url()).run();
    list.exits_with_one_of(&[0, 69, 75]).never_says("no dead tasks");
    // No leader takes its acknowledgement, and no delivery comes until there is another leader.
    worker.end_within(RECOVERY).exits(0);
    let runs: BTreeSet<String> = sandbox.lines("runs").into_iter().collect();
    assert_eq!(runs.len(), 20);
}

/// Nor is a delay queue, which has not even a consumer that is missed.
#[test]
fn a_delay_queue_that_cannot_be_counted_is_not_empty() {
    let sandbox = Sandbox::clustered();
    let [leader, here, _] = sandbox.cluster().nodes() else { panic!("no three nodes") };
    // A queue has its leader on the node on which it is declared.
    let send = ["send", "--queue-type", "quorum", "task"];
    sandbox.taskq(send).env("TASKQ_URL", here.url()).run().exits(0);
    let work = |node: &Node, until: &str| {
        let options = ["--queue-type", "quorum", until, "--backoff", "15s"];
        sandbox.work_with(&options, r#"[ "$TASKQ_ATTEMPT" = 2 ]"#).env("TASKQ_URL", node.url())
    };
    work(leader, "--until-empty").run().exits(0).says("the next one is in 15s");
    let worker = work(here, "--until-done").start();
    worker.says("Waiting for messages");
    leader.freeze();
    worker.end_within(RECOVERY).exits(0).says(", attempt 2, ").says("Done");
}

#[test]
fn all_queues_of_a_quorum_queue_are_quorum_queues() {
    let sandbox = Sandbox::clustered();
    sandbox.taskq(["send", "--queue-type", "quorum", "--delay", "1h", "later"]).run().exits(0);
    let options = ["--queue-type", "quorum", "--backoff", "1s,5s", "--until-empty"];
    sandbox.work_with(&options, "true").run().exits(0);
    let listed = sandbox.node().ctl(&["-q", "list_queues", "name", "type", "members"]);
    let kinds: Vec<&str> = listed.lines().filter(|line| line.starts_with(&sandbox.queue)).collect();
    let expected = ["", ".dead", ".delay.1000", ".delay.3600000", ".delay.5000"];
    assert_eq!(kinds.len(), expected.len(), "{listed}");
    for suffix in expected {
        // The name of that for a delay ends with the day.
        let start = format!("{}{suffix}", sandbox.queue);
        let of_the_day = suffix == ".delay.3600000";
        let queue = kinds.iter().find(|line| {
            let rest = line.strip_prefix(&start).unwrap_or_default();
            rest.starts_with("\tquorum\t") || of_the_day && rest.contains("\tquorum\t")
        });
        let members = queue.unwrap_or_else(|| panic!("no {start} in {listed}"));
        assert_eq!(members.matches("@localhost").count(), 3, "{members}");
    }
}

/// What a worker that waits for its classic queue says at last, and then `send`.
struct Words {
    worker: &'static str,
    send: &'static str,
}

/// A worker waits for the node that has its classic queue, and `send` for as long as it was told to.
fn a_classic_queue_is_waited_for(lose: impl Fn(&Node), words: impl Fn([u32; 3]) -> Words) {
    let sandbox = Sandbox::clustered();
    let [home, others @ ..] = sandbox.cluster().nodes() else { panic!("no nodes") };
    let words = words(sandbox.broker().version());
    // The node on which it is declared has it.
    sandbox.taskq(["send", "--url", &home.url(), "before"]).run().exits(0);
    let worker = sandbox.worker(["--heartbeat", "2s"]);
    worker.says("\nDone\n");
    lose(home);
    worker.says("lost the connection").says(words.worker);
    let others: Vec<String> = others.iter().map(Node::url).collect();
    let meanwhile = ["send", "--retry-for", "5s", "--url", &others.join(","), "meanwhile"];
    // The exit code depends on whether it was connected when `--retry-for` ended.
    sandbox.taskq(meanwhile).run().exits_with_one_of(&[69, 75]).says(words.send);
    // A worker that was never connected does not wait, and does not ask whether RabbitMQ is running.
    let late = sandbox.taskq(["work", "--url", &others.join(",")]).run();
    late.exits(69).in_one_line().never_says("Is RabbitMQ running");
    sandbox.cluster().mend();
    sandbox.taskq(["send", "after"]).run().exits(0);
    worker.says("Received a message: after\n").says_times("\nDone\n", 2);
    worker.signal(SIGTERM);
    worker.end().exits(0);
}

const AWAY: &str = "down or inaccessible";

#[test]
fn a_classic_queue_whose_node_was_killed_is_waited_for() {
    // RabbitMQ 4 does not answer while it waits for that node, and refuses what is published.
    a_classic_queue_is_waited_for(Node::kill, |version| {
        if version < [4, 0, 0] {
            Words { worker: AWAY, send: AWAY }
        } else {
            Words { worker: "no answer to queue.declare", send: "its node is away" }
        }
    });
}

#[test]
fn a_classic_queue_whose_node_was_stopped_is_waited_for() {
    // RabbitMQ 3.10 tells it from one that was killed only until the node is down.
    a_classic_queue_is_waited_for(Node::stop, |version| {
        let words = if version < [4, 0, 0] { AWAY } else { "stopped by supervisor" };
        Words { worker: words, send: words }
    });
}
