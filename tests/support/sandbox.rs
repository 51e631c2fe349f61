//! One test's surroundings: a broker, a queue and a directory of its own, and a dump of everything when it fails.

use super::cluster::{Cluster, Leased};
use super::node::{Exclusive, Node};
use super::process::{Invocation, Process, Transcript};
use super::{Broker, Proxy};
use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// The size of a body that amiquip does not buffer as a whole: handing it over waits for the broker to read.
pub(crate) const LARGE: usize = 40 * 1024 * 1024;

thread_local! {
    /// The processes that this test's thread has started.
    static TRANSCRIPTS: RefCell<Vec<Arc<Transcript>>> = const { RefCell::new(Vec::new()) };
    /// How many sandboxes this test has had so far.
    static SANDBOXES: Cell<u32> = const { Cell::new(0) };
}

pub(crate) fn remember(transcript: &Arc<Transcript>) {
    TRANSCRIPTS.with(|list| list.borrow_mut().push(Arc::clone(transcript)));
}

/// The node of a test: the one all share, one of its own, or the first of a cluster.
enum Lease {
    Shared(&'static Node),
    Own(Exclusive),
    Cluster(Leased),
}

impl Deref for Lease {
    type Target = Node;

    fn deref(&self) -> &Node {
        match self {
            Self::Shared(node) => node,
            Self::Own(node) => node,
            Self::Cluster(cluster) => &cluster.nodes()[0],
        }
    }
}

pub(crate) struct Sandbox {
    /// Named after the test, and new to the broker.
    pub(crate) queue: String,
    /// What `TASKQ_URL` says.
    url: String,
    dir: TempDir,
    node: Lease,
}

impl Sandbox {
    /// On the node that all tests share.
    pub(crate) fn new() -> Self {
        Self::with(Lease::Shared(Node::shared()))
    }

    /// On a node of the caller's that several tests share.
    #[cfg(feature = "tls")]
    pub(crate) fn on(node: &'static Node) -> Self {
        Self::with(Lease::Shared(node))
    }

    /// On a node that no other test uses meanwhile, which may be killed, frozen and alarmed.
    pub(crate) fn exclusive() -> Self {
        Self::with(Lease::Own(Node::exclusive()))
    }

    /// On a new node with these lines in its configuration.
    pub(crate) fn configured(settings: &[&str]) -> Self {
        Self::with(Lease::Own(Node::configured(settings)))
    }

    /// On a new node that takes bodies of [`LARGE`]; RabbitMQ 4 takes 16 MiB unless told otherwise.
    pub(crate) fn for_large_bodies() -> Self {
        Self::configured(&["max_message_size = 134217728"])
    }

    /// On a cluster that no other test uses meanwhile; `TASKQ_URL` lists all its nodes.
    pub(crate) fn clustered() -> Self {
        let mut sandbox = Self::with(Lease::Cluster(Cluster::exclusive()));
        sandbox.url = sandbox.cluster().url();
        sandbox
    }

    fn with(node: Lease) -> Self {
        let test = std::thread::current().name().unwrap_or("main").replace("::", ".");
        let number = SANDBOXES.replace(SANDBOXES.get() + 1);
        let queue = format!("{test}.{}.{number}", std::process::id());
        Self { queue, url: node.url(), dir: TempDir::new().unwrap(), node }
    }

    /// Sends taskq to the broker by way of a proxy.
    pub(crate) fn through_proxy(&mut self) -> Proxy {
        let proxy = Proxy::to(self.node.port());
        self.url = Node::url_at(proxy.port());
        proxy
    }

    /// taskq with this queue and broker in its environment.
    pub(crate) fn taskq<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Invocation {
        Invocation::new(env!("CARGO_BIN_EXE_taskq"), args)
            .env("TASKQ_URL", &self.url)
            .env("TASKQ_QUEUE", &self.queue)
    }

    /// A worker that has said that it waits for messages.
    pub(crate) fn worker<S: AsRef<OsStr>>(&self, options: impl IntoIterator<Item = S>) -> Process {
        let options = options.into_iter().map(|option| option.as_ref().to_owned());
        let worker = self.taskq(std::iter::once(OsString::from("work")).chain(options)).start();
        worker.says(" [*] Waiting for messages\n");
        worker
    }

    /// Any other program, with the same environment.
    pub(crate) fn program<S: AsRef<OsStr>>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Invocation {
        Invocation::new(name, args).env("TASKQ_URL", &self.url).env("TASKQ_QUEUE", &self.queue)
    }

    /// A new connection of the tests' own client, straight to the node.
    pub(crate) fn broker(&self) -> Broker {
        Broker::connect(self.node.port())
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The cluster of a clustered sandbox.
    pub(crate) fn cluster(&self) -> &Cluster {
        match &self.node {
            Lease::Cluster(cluster) => cluster,
            Lease::Shared(_) | Lease::Own(_) => panic!("a test without a cluster"),
        }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A path in this test's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file in this test's own directory.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let transcripts = TRANSCRIPTS.with(RefCell::take);
        if !std::thread::panicking() {
            return;
        }
        for transcript in transcripts {
            eprintln!("{}", transcript.show());
        }
        let nodes = match &self.node {
            Lease::Cluster(cluster) => cluster.nodes(),
            Lease::Shared(_) | Lease::Own(_) => std::slice::from_ref(&*self.node),
        };
        for node in nodes {
            eprintln!("--- the end of the broker's log\n{}", node.log_tail());
        }
    }
}
