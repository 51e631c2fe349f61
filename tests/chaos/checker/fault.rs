//! Faults: what kinds there are, what each affected, and when.

use super::clock::Moment;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FaultKind {
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

impl FaultKind {
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

/// What a fault is injected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The worker in this slot, whichever process has it.
    Worker(usize),
    /// The sender of this number.
    Sender(usize),
    /// A node, and so all workers and senders.
    Broker(usize),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(slot) => write!(f, "w{slot}"),
            Self::Sender(number) => write!(f, "s{number}"),
            Self::Broker(node) => write!(f, "node{node}"),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) target: Target,
    pub(crate) from: Moment,
    /// When it was certainly in force: kill and rabbitmqctl take a moment after `from`.
    pub(crate) in_force_at: Moment,
    /// When it was over: a node was back, a process thawed. `None` before that.
    pub(crate) until: Option<Moment>,
}

impl Fault {
    /// Whether it was in force at some time between the two, both included.
    pub(crate) fn overlaps(&self, from: Moment, until: Moment) -> bool {
        self.from <= until && self.until.is_none_or(|end| end >= from)
    }

    pub(crate) fn affects_worker(&self, slot: usize) -> bool {
        match self.target {
            Target::Worker(target) => target == slot,
            Target::Broker(_) => true,
            Target::Sender(_) => false,
        }
    }

    pub(crate) fn affects_sender(&self, number: usize) -> bool {
        match self.target {
            Target::Sender(target) => target == number,
            Target::Broker(_) => true,
            Target::Worker(_) => false,
        }
    }

    pub(crate) fn affects_broker(&self) -> bool {
        matches!(self.target, Target::Broker(_))
    }

    /// Whether it affects the node itself, not only its connections.
    pub(crate) fn affects_node(&self) -> bool {
        matches!(
            self.kind,
            FaultKind::NodeRestarted | FaultKind::NodeKilled | FaultKind::NodeFrozen | FaultKind::NodeCutOff
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.from, self.target, self.kind.name())?;
        match self.until {
            Some(until) => write!(f, "(until {until})"),
            None => write!(f, "(not over)"),
        }
    }
}
