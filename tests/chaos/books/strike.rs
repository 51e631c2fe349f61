//! Faults: what kinds there are, whom one hit, and when.

use super::clock::Moment;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    WorkerKilled,
    WorkerStopped,
    WorkerForced,
    WorkerFrozen,
    WorkerCut,
    WorkerStalled,
    SenderKilled,
    SenderStopped,
    SenderCut,
    SenderStalled,
    ConnectionClosed,
    ConnectionsClosed,
    MemoryAlarm,
    NodeRestarted,
    NodeKilled,
    NodeFrozen,
    NodeCutOff,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WorkerKilled => "worker killed (-9)",
            Self::WorkerStopped => "worker stopped (SIGTERM)",
            Self::WorkerForced => "worker stopped (SIGTERM twice)",
            Self::WorkerFrozen => "worker frozen (SIGSTOP), thawed",
            Self::WorkerCut => "worker's sockets cut",
            Self::WorkerStalled => "worker's network stalls",
            Self::SenderKilled => "sender killed (-9)",
            Self::SenderStopped => "sender stopped (SIGTERM)",
            Self::SenderCut => "sender's sockets cut",
            Self::SenderStalled => "sender's network stalls",
            Self::ConnectionClosed => "one connection closed by rabbitmqctl",
            Self::ConnectionsClosed => "all connections closed by rabbitmqctl",
            Self::MemoryAlarm => "memory alarm, over again",
            Self::NodeRestarted => "node stopped and started",
            Self::NodeKilled => "node killed (-9), started",
            Self::NodeFrozen => "node frozen (SIGSTOP), thawed",
            Self::NodeCutOff => "node cut off from the others, healed",
        }
    }
}

/// Who feels a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The worker in this place, whichever process has it.
    Worker(usize),
    /// The sender in this place.
    Sender(usize),
    /// A node, and so everybody.
    Broker(usize),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(place) => write!(f, "w{place}"),
            Self::Sender(place) => write!(f, "s{place}"),
            Self::Broker(node) => write!(f, "node{node}"),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) kind: Kind,
    pub(crate) target: Target,
    pub(crate) from: Moment,
    /// When it was in force for certain: a kill or a rabbitmqctl takes a moment.
    pub(crate) struck: Moment,
    /// When what was done was undone: a node was back, a process thawed. `None` while that is not so.
    pub(crate) until: Option<Moment>,
}

impl Strike {
    /// Whether it was in force at some time between the two, both included.
    pub(crate) fn touches(&self, from: Moment, until: Moment) -> bool {
        self.from <= until && self.until.is_none_or(|end| end >= from)
    }

    pub(crate) fn hits_worker(&self, place: usize) -> bool {
        match self.target {
            Target::Worker(hit) => hit == place,
            Target::Broker(_) => true,
            Target::Sender(_) => false,
        }
    }

    pub(crate) fn hits_sender(&self, place: usize) -> bool {
        match self.target {
            Target::Sender(hit) => hit == place,
            Target::Broker(_) => true,
            Target::Worker(_) => false,
        }
    }

    pub(crate) fn hits_broker(&self) -> bool {
        matches!(self.target, Target::Broker(_))
    }

    /// The broker itself, not only its connections.
    pub(crate) fn hits_node(&self) -> bool {
        matches!(self.kind, Kind::NodeRestarted | Kind::NodeKilled | Kind::NodeFrozen | Kind::NodeCutOff)
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.from, self.target, self.kind.name())?;
        match self.until {
            Some(until) => write!(f, "(until {until})"),
            None => write!(f, "(not over)"),
        }
    }
}
