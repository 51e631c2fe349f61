//! Injects faults into workers, senders and nodes. The seed decides which, and when.

use super::brokers::Brokers;
use super::checker::fault::{FaultKind, Target};
use super::senders::Sender;
use super::shared::{AbandonOnPanic, PAUSE, Shared};
use super::workers::WorkerSlot;
use crate::support::{Node, Rng};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use std::time::Duration;

/// Between two faults of workers or senders, at most, after the least of 0.5 s.
const CLIENTS_MS: u64 = 3_000;
/// Between two faults of the worker of a hostile round, whose tasks take longer, at least.
const HOSTILE_MS: u64 = 400;
/// Between two faults of the broker, at most, after the least of 3 s: tasks are worked in between.
const BROKER_MS: u64 = 12_000;
/// How long something is frozen, stalled or away. More than twice the heartbeat, so that some are noticed and some
/// are not.
const OUTAGE_MS: u64 = 16_000;

fn pick<'t, T>(rng: &mut Rng, from: &'t [T]) -> &'t T {
    &from[usize::try_from(rng.below(from.len() as u64)).unwrap()]
}

fn outage(rng: &mut Rng) -> Duration {
    Duration::from_millis(200 + rng.below(OUTAGE_MS))
}

/// Injects faults into workers and senders until the round drains. The worker in slot 0 gets none: its resources are
/// sampled.
pub(crate) fn inject_client_faults(shared: &Shared, slots: &[WorkerSlot], senders: &[Sender], rng: &mut Rng) {
    let _guard = AbandonOnPanic(shared);
    loop {
        shared.sleep(Duration::from_millis(500 + rng.below(CLIENTS_MS)), Shared::is_draining);
        if shared.is_draining() {
            return;
        }
        if rng.below(3) == 0 {
            inject_sender_fault(shared, pick(rng, senders), rng);
        } else {
            inject_worker_fault(shared, pick(rng, &slots[1..]), rng);
        }
    }
}

/// Injects faults into one worker until the round drains, each half a second after it has begun to take tasks. If they
/// came sooner, no delivery would last long enough to be counted, and no task would ever be done.
pub(crate) fn inject_repeatedly(shared: &Shared, slot: &WorkerSlot, rng: &mut Rng) {
    let _guard = AbandonOnPanic(shared);
    loop {
        while !(shared.is_draining() || slot.takes_tasks(shared)) {
            std::thread::sleep(PAUSE);
        }
        shared.sleep(Duration::from_millis(HOSTILE_MS + rng.below(HOSTILE_MS / 2)), Shared::is_draining);
        if shared.is_draining() {
            return;
        }
        // A worker that was sent SIGTERM may be killed before it has stopped.
        let kinds = [
            FaultKind::WorkerKilled,
            FaultKind::WorkerKilled,
            FaultKind::WorkerStopped,
            FaultKind::WorkerCut,
        ];
        let kind = *pick(rng, &kinds);
        let number = shared.begin_fault(kind, Target::Worker(slot.number));
        let applied = match kind {
            FaultKind::WorkerCut => {
                slot.proxies.iter().for_each(crate::support::Proxy::cut);
                true
            }
            FaultKind::WorkerStopped => slot.child.signal(SIGTERM),
            _ => slot.child.signal(SIGKILL),
        };
        if applied { shared.end_fault(number) } else { shared.fault_not_applied(number) }
    }
}

fn inject_worker_fault(shared: &Shared, slot: &WorkerSlot, rng: &mut Rng) {
    let kinds = [
        FaultKind::WorkerKilled,
        FaultKind::WorkerKilled,
        FaultKind::WorkerStopped,
        FaultKind::WorkerForced,
        FaultKind::WorkerFrozen,
        FaultKind::WorkerCut,
        FaultKind::WorkerCut,
        FaultKind::WorkerStalled,
    ];
    let kind = *pick(rng, &kinds);
    let outage = outage(rng);
    if !slot.child.is_not_stopping() {
        return;
    }
    let number = shared.begin_fault(kind, Target::Worker(slot.number));
    let applied = match kind {
        FaultKind::WorkerStopped => slot.child.signal(SIGTERM),
        FaultKind::WorkerForced => {
            let first = slot.child.signal(SIGTERM);
            shared.sleep(Duration::from_millis(rng.below(1_500)), Shared::is_abandoned);
            // It may have ended by now.
            slot.child.signal(SIGTERM);
            first
        }
        FaultKind::WorkerFrozen => {
            let applied = slot.child.signal(SIGSTOP);
            shared.sleep(outage, Shared::is_abandoned);
            slot.child.signal(SIGCONT);
            applied
        }
        FaultKind::WorkerCut => {
            slot.proxies.iter().for_each(crate::support::Proxy::cut);
            true
        }
        FaultKind::WorkerStalled => {
            slot.proxies.iter().for_each(crate::support::Proxy::stall);
            shared.sleep(outage, Shared::is_abandoned);
            slot.proxies.iter().for_each(crate::support::Proxy::resume);
            true
        }
        _ => slot.child.signal(SIGKILL),
    };
    if applied { shared.end_fault(number) } else { shared.fault_not_applied(number) }
}

fn inject_sender_fault(shared: &Shared, sender: &Sender, rng: &mut Rng) {
    let kinds = [
        FaultKind::SenderKilled,
        FaultKind::SenderStopped,
        FaultKind::SenderCut,
        FaultKind::SenderCut,
        FaultKind::SenderStalled,
    ];
    let kind = *pick(rng, &kinds);
    let outage = outage(rng);
    let number = shared.begin_fault(kind, Target::Sender(sender.number));
    let applied = match kind {
        FaultKind::SenderStopped => sender.child.signal(SIGTERM),
        FaultKind::SenderCut => {
            sender.proxies.iter().for_each(crate::support::Proxy::cut);
            true
        }
        FaultKind::SenderStalled => {
            sender.proxies.iter().for_each(crate::support::Proxy::stall);
            shared.sleep(outage, Shared::is_abandoned);
            sender.proxies.iter().for_each(crate::support::Proxy::resume);
            true
        }
        _ => sender.child.signal(SIGKILL),
    };
    if applied { shared.end_fault(number) } else { shared.fault_not_applied(number) }
}

/// Injects faults into nodes until the round drains, one at a time. The cluster is whole again before the next.
pub(crate) fn inject_broker_faults(shared: &Shared, brokers: &Brokers, rng: &mut Rng) {
    let _guard = AbandonOnPanic(shared);
    loop {
        shared.sleep(Duration::from_millis(3_000 + rng.below(BROKER_MS)), Shared::is_draining);
        if shared.is_draining() {
            return;
        }
        let mut kinds = vec![
            FaultKind::NodeKilled,
            FaultKind::NodeKilled,
            FaultKind::NodeFrozen,
            FaultKind::NodeRestarted,
            FaultKind::ConnectionClosed,
            FaultKind::ConnectionsClosed,
            FaultKind::MemoryAlarm,
        ];
        if brokers.nodes().len() > 1 {
            kinds.extend([FaultKind::NodeCutOff, FaultKind::NodeCutOff]);
        }
        let kind = *pick(rng, &kinds);
        let at = usize::try_from(rng.below(brokers.nodes().len() as u64)).unwrap();
        let number = shared.begin_fault(kind, Target::Broker(at));
        inject_node_fault(shared, &brokers.nodes()[at], kind, outage(rng), number);
        brokers.mend();
        shared.end_fault(number);
    }
}

fn inject_node_fault(shared: &Shared, node: &Node, kind: FaultKind, outage: Duration, number: usize) {
    // A fault lasts from here on.
    let last = |outage| {
        shared.fault_in_force(number);
        shared.sleep(outage, Shared::is_abandoned);
    };
    match kind {
        FaultKind::NodeFrozen => {
            node.freeze();
            last(outage);
            node.thaw();
        }
        FaultKind::NodeRestarted => {
            node.stop();
            last(Duration::ZERO);
            node.start();
        }
        FaultKind::ConnectionClosed => {
            close_one_connection(node, outage);
            last(Duration::ZERO);
        }
        FaultKind::ConnectionsClosed => {
            node.ctl(&["close_all_connections", "chaos"]);
            last(Duration::ZERO);
        }
        FaultKind::MemoryAlarm => {
            node.memory_alarm(true);
            last(outage);
            node.memory_alarm(false);
        }
        FaultKind::NodeCutOff => {
            node.cut_off();
            last(outage);
        }
        _ => {
            node.kill();
            // The start takes seconds more, and the longer a node is away, the fewer faults a round has time for.
            last(outage / 4);
            node.start();
        }
    }
}

/// Closes one connection of the node, chosen by a random number.
fn close_one_connection(node: &Node, random: Duration) {
    let listed = node.ctl(&["-q", "list_connections", "pid"]);
    let pids: Vec<&str> = listed.lines().filter(|line| line.starts_with('<')).collect();
    if let Some(pid) = pids.get(usize::try_from(random.as_millis()).unwrap() % pids.len().max(1)) {
        // It may have been closed meanwhile.
        let _ = node.try_ctl(&["close_connection", pid, "chaos"]);
    }
}
