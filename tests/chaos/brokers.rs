//! The broker of a round: one node, or three of a cluster, with a delivery limit or without.

use super::shared::Shared;
use super::workers::DELAYS_MS;
use crate::support::broker::{arguments, durable, number, text};
use crate::support::cluster::Leased;
use crate::support::{Broker, Cluster, Node, until};
use std::process::Command;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// One node and a classic queue.
    Single,
    /// Three nodes and quorum queues.
    Cluster,
    /// One node, a quorum queue, and one worker that gets a fault every half second, so that each task meets many
    /// faults.
    Hostile,
}

impl Setup {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Cluster => "cluster",
            Self::Hostile => "hostile",
        }
    }

    pub(crate) fn has_quorum_queues(self) -> bool {
        self != Self::Single
    }

    /// Its share of the time, beside the other rounds. A hostile round can be shorter, as each task meets many faults;
    /// and its long tasks take time after the faults.
    pub(crate) fn weight(self) -> u32 {
        match self {
            Self::Single | Self::Cluster => 2,
            Self::Hostile => 1,
        }
    }
}

pub(crate) enum Brokers {
    Single(Node),
    Cluster(Leased),
}

impl Brokers {
    pub(crate) fn start(setup: Setup) -> Self {
        match setup {
            Setup::Single | Setup::Hostile => Self::Single(Node::serve(&[])),
            Setup::Cluster => Self::Cluster(Cluster::exclusive()),
        }
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        match self {
            Self::Single(node) => std::slice::from_ref(node),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.nodes().iter().map(Node::port).collect()
    }

    /// What an operator may have set for all quorum queues, those for delays and for the dead too.
    pub(crate) fn limit_deliveries(&self, limit: u32) {
        let definition = format!(r#"{{"delivery-limit":{limit}}}"#);
        self.nodes()[0].ctl(&["set_policy", "--apply-to", "queues", "chaos", ".*", &definition]);
    }

    /// Waits until workers have declared all queues, and until that is on disk: RabbitMQ 3.10 forgets what it was told
    /// of only a moment before it is killed.
    pub(crate) fn prepare(&self, shared: &Shared) {
        let client = self.client();
        until("consumers", || (shared.is_abandoned() || client.consumers(&shared.queue) > 0).then_some(()));
        // A round may last beyond midnight.
        for day in ["today", "tomorrow"] {
            for milliseconds in DELAYS_MS {
                declare_delay_queue(&client, &shared.queue, milliseconds, &date(day));
            }
        }
        for node in self.nodes() {
            node.sync();
        }
    }

    /// Waits until a node that was away works together with the others: the next fault may then hit another one.
    pub(crate) fn mend(&self) {
        match self {
            Self::Single(_) => {}
            Self::Cluster(cluster) => cluster.mend(),
        }
    }

    /// How many tasks are in the queue, delivered or not, and how many in the delay queues.
    pub(crate) fn count(&self, queue: &str) -> (u64, u64) {
        let (mut queued, mut waiting) = (0, 0);
        for line in self.nodes()[0].queues().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, ready, unacknowledged, ..] = words[..] else { continue };
            let (Ok(ready), Ok(unacknowledged)) = (ready.parse::<u64>(), unacknowledged.parse::<u64>())
            else {
                continue;
            };
            if name == queue {
                queued += ready + unacknowledged;
            } else if name.starts_with(&format!("{queue}.delay.")) {
                waiting += ready + unacknowledged;
            }
        }
        (queued, waiting)
    }

    /// The queues in which tasks wait for their time.
    pub(crate) fn delay_queues(&self, queue: &str) -> Vec<String> {
        let prefix = format!("{queue}.delay.");
        let listed = self.nodes()[0].queues();
        let names = listed.lines().filter_map(|line| line.split_whitespace().next());
        names.filter(|name| name.starts_with(&prefix)).map(str::to_owned).collect()
    }

    /// The AMQP client of the tests.
    pub(crate) fn client(&self) -> Broker {
        Broker::connect(self.nodes()[0].port())
    }

    pub(crate) fn logs(&self) -> Vec<String> {
        self.nodes().iter().map(Node::log).collect()
    }
}

/// The queue for what is sent with `--delay` on that day, as `send` declares it.
fn declare_delay_queue(client: &Broker, queue: &str, milliseconds: i32, date: &str) {
    const LIFE_MS: i32 = 64 * 3_600_000;
    let arguments = arguments(&[
        ("x-queue-type", text("quorum")),
        ("x-message-ttl", number(milliseconds)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(queue)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-expires", number(LIFE_MS + milliseconds)),
    ]);
    client.declare_with(&format!("{queue}.delay.{milliseconds}.{date}"), durable(arguments));
}

fn date(day: &str) -> String {
    let date = Command::new("date").args(["-u", "-d", day, "+%F"]).output().unwrap().stdout;
    String::from_utf8(date).unwrap().trim().to_owned()
}
