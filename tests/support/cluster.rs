//! Three RabbitMQ nodes that are one cluster, through `scripts/rabbitmq-cluster`. One for all tests, a test at a time.

use super::node::{self, Node};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

fn script() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq-cluster"))
}

pub(crate) struct Cluster {
    dir: PathBuf,
    nodes: Vec<Node>,
    /// Keeps the nodes until its stdin closes, which it does however this process ends.
    _keeper: Child,
}

/// Started by the first test that needs it, and gone with this process.
static CLUSTER: Mutex<Option<Cluster>> = Mutex::new(None);

impl Cluster {
    /// For one test, which may do anything to its nodes.
    pub(crate) fn exclusive() -> Leased {
        // A test that failed while it had it.
        let mut cluster = CLUSTER.lock().unwrap_or_else(PoisonError::into_inner);
        cluster.get_or_insert_with(Self::start).mend();
        Leased(cluster)
    }

    fn start() -> Self {
        let (dir, keeper) = node::serve(script(), &[]);
        let nodes = (1..=3).map(|number| Node::at(dir.join(number.to_string()), None)).collect();
        Self { dir, nodes, _keeper: keeper }
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes, as `TASKQ_URL` lists them.
    pub(crate) fn url(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    /// Brings back what was killed, frozen or cut off, and waits until the nodes work together.
    pub(crate) fn mend(&self) {
        let output = script().arg("mend").arg(&self.dir).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "rabbitmq-cluster mend: {output:?}");
    }
}

pub(crate) struct Leased(MutexGuard<'static, Option<Cluster>>);

impl Deref for Leased {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.0.as_ref().unwrap()
    }
}
