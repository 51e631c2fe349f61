//! RabbitMQ nodes, all through `scripts/rabbitmq-node`: the one that the tests share, and those that a test may kill or
//! freeze.

use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};

/// How many nodes beside the shared one are in use at the same time: a node that boots takes a core for 3 s.
const EXCLUSIVE_NODES: usize = 2;

/// What a failing test prints of a node's log.
const LOG_LINES: usize = 40;

fn script() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq-node"))
}

/// Nodes that a script of this project has started, and their directory. They stay until its stdin closes.
pub(super) fn serve(mut script: Command, settings: &[&str]) -> (PathBuf, Child) {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    let number = STARTED.fetch_add(1, Ordering::Relaxed);
    // Removed by the script, whose path must be short and without spaces.
    let dir = std::env::temp_dir().join(format!("taskq-tests.{}.{number}", std::process::id()));
    script.arg("serve").arg(&dir);
    for setting in settings {
        script.args(["--set", setting]);
    }
    let mut keeper = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut answer = String::new();
    BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.starts_with("ready "), "no RabbitMQ: {script:?} said {answer:?}");
    (dir, keeper)
}

pub(crate) struct Node {
    dir: PathBuf,
    port: u16,
    /// Keeps the node until its stdin closes; none for a node that somebody else keeps. A process that ends closes
    /// its pipes however it ends, so no node outlives the tests.
    keeper: Option<Child>,
}

impl Node {
    /// The node for all tests that leave a node as it is: that of `make test`, or else one started here.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Node> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var_os("TASKQ_NODE_DIR") {
            Some(dir) => Self::at(PathBuf::from(dir), None),
            None => Self::serve(&[]),
        })
    }

    /// A node for one test, which may kill it; used again, restarted where necessary, by a later test.
    pub(crate) fn exclusive() -> Exclusive {
        let mut leased = Exclusive { node: lease(), reusable: true };
        match &leased.node {
            Some(node) => {
                let _ = node.script("thaw").output();
                node.start();
            }
            None => leased.node = Some(Self::serve(&[])),
        }
        leased
    }

    /// A new node with these lines in its `rabbitmq.conf`; `@spare_port@` stands for a free port of its own.
    pub(crate) fn configured(settings: &[&str]) -> Exclusive {
        if let Some(idle) = lease() {
            IDLE.lock().unwrap().nodes.push(idle);
        }
        let mut leased = Exclusive { node: None, reusable: false };
        leased.node = Some(Self::serve(settings));
        leased
    }

    /// A new node, outside the count of exclusive ones.
    pub(crate) fn serve(settings: &[&str]) -> Self {
        let (dir, keeper) = serve(script(), settings);
        Self::at(dir, Some(keeper))
    }

    /// A node that somebody else has started.
    pub(super) fn at(dir: PathBuf, keeper: Option<Child>) -> Self {
        let port = setting(&dir, "PORT").parse().unwrap();
        Self { dir, port, keeper }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where it lives, as `scripts/rabbitmq-node` calls it.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    #[cfg(feature = "tls")]
    /// A second port that no other node has, for a listener of one's own.
    pub(crate) fn spare_port(&self) -> u16 {
        setting(&self.dir, "SPARE_PORT").parse().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        Self::url_at(self.port)
    }

    /// The same credentials at another port, where a proxy listens.
    pub(crate) fn url_at(port: u16) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}")
    }

    pub(crate) fn start(&self) {
        self.run("start", &[]);
    }

    /// Kills it with -9, as a crash would end it. What was declared is on disk by then: RabbitMQ forgets a queue that
    /// it was told of only a moment before, and its tasks with it, whoever declared it.
    pub(crate) fn kill(&self) {
        self.run("sync", &[]);
        self.run("kill", &[]);
    }

    /// Stops it as an operator would.
    pub(crate) fn stop(&self) {
        self.run("stop", &[]);
    }

    pub(crate) fn freeze(&self) {
        self.run("freeze", &[]);
    }

    pub(crate) fn thaw(&self) {
        self.run("thaw", &[]);
    }

    /// The other nodes of its cluster neither hear nor see it any more; its clients do.
    pub(crate) fn cut_off(&self) {
        self.run("cut", &[]);
    }

    /// rabbitmqctl, which takes some two seconds.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        self.run("ctl", args)
    }

    /// Raises or ends the alarm of a broker that is low on memory, and returns when it is in force or over.
    pub(crate) fn memory_alarm(&self, on: bool) {
        let (watermark, awaited) = if on { ("0.000001", "[_ | _]") } else { ("0.4", "[]") };
        self.ctl(&[
            "eval",
            &format!(
                "ok = vm_memory_monitor:set_vm_memory_high_watermark({watermark}), \
                 Wait = fun(_, 0) -> exit(timeout); \
                           (Again, N) -> case rabbit_alarm:get_alarms() of \
                               {awaited} -> ok; \
                               _ -> timer:sleep(10), Again(Again, N - 1) end end, \
                 Wait(Wait, 2000)."
            ),
        ]);
    }

    fn script(&self, command: &str) -> Command {
        let mut script = script();
        script.arg(command).arg(&self.dir);
        script
    }

    /// What it printed.
    fn run(&self, command: &str, args: &[&str]) -> String {
        let output = self.script(command).args(args).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "rabbitmq-node {command} {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(setting(&self.dir, "LOG")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// For the chaos run, which is a program of its own.
#[allow(dead_code)]
impl Node {
    /// Writes to disk what was declared in the last seconds.
    pub(crate) fn sync(&self) {
        self.run("sync", &[]);
    }

    /// rabbitmqctl, where it may fail.
    pub(crate) fn try_ctl(&self, args: &[&str]) -> bool {
        self.script("ctl").args(args).stdin(Stdio::null()).output().unwrap().status.success()
    }

    /// One line per queue: name, ready, unacknowledged, consumers.
    pub(crate) fn queues(&self) -> String {
        self.run("queues", &[])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

/// One line of the node's `env` file, which quotes nothing but unusual paths.
fn setting(dir: &Path, name: &str) -> String {
    let env = std::fs::read_to_string(dir.join("env")).unwrap();
    let line = env.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name} in {env}")).to_owned()
}

/// The nodes that wait for their next test, and how many are in use.
struct Idle {
    nodes: Vec<Node>,
    in_use: usize,
}

static IDLE: Mutex<Idle> = Mutex::new(Idle { nodes: Vec::new(), in_use: 0 });
static RETURNED: Condvar = Condvar::new();

/// Waits for its turn; an idle node if there is one.
fn lease() -> Option<Node> {
    let idle = IDLE.lock().unwrap();
    let mut idle = RETURNED.wait_while(idle, |idle| idle.in_use >= EXCLUSIVE_NODES).unwrap();
    idle.in_use += 1;
    idle.nodes.pop()
}

/// A node of one test's own.
pub(crate) struct Exclusive {
    node: Option<Node>,
    reusable: bool,
}

impl Deref for Exclusive {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node.as_ref().unwrap()
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        // A failed test may have left the node in any state: no later test gets it.
        let node = self.node.take().filter(|_| self.reusable && !std::thread::panicking());
        let mut idle = IDLE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        idle.nodes.extend(node);
        idle.in_use -= 1;
        RETURNED.notify_all();
    }
}
