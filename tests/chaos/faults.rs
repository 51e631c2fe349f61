//! What is done to workers, senders and nodes, and when: by the seed.

use super::books::strike::{Kind, Target};
use super::brokers::Brokers;
use super::run::{Alarm, PAUSE, Shared};
use super::senders::Sender;
use super::workers::Place;
use crate::support::{Node, Rng};
use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use std::time::Duration;

/// Between two faults that hit one worker or sender.
const CLIENTS_MS: u64 = 3_000;
/// The least between two where one worker is hit again and again, whose tasks take longer.
const HOSTILE_MS: u64 = 400;
/// Between two faults of the broker: what they cost is made up for meanwhile.
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

/// Hits workers and senders until the run settles. The worker in place 0 is spared: its memory is watched.
pub(crate) fn hit_clients(shared: &Shared, places: &[Place], senders: &[Sender], rng: &mut Rng) {
    let _alarm = Alarm(shared);
    loop {
        shared.rest(Duration::from_millis(500 + rng.below(CLIENTS_MS)), Shared::is_settling);
        if shared.is_settling() {
            return;
        }
        if rng.below(3) == 0 {
            hit_sender(shared, pick(rng, senders), rng);
        } else {
            hit_worker(shared, pick(rng, &places[1..]), rng);
        }
    }
}

/// Hits one worker until the run settles, each time half a second after it has begun to take tasks. Earlier than that no
/// fault is of use, and with every delivery cut short before it can be counted nobody could keep a task.
pub(crate) fn hit_again_and_again(shared: &Shared, place: &Place, rng: &mut Rng) {
    let _alarm = Alarm(shared);
    loop {
        while !(shared.is_settling() || place.takes_tasks(shared)) {
            std::thread::sleep(PAUSE);
        }
        shared.rest(Duration::from_millis(HOSTILE_MS + rng.below(HOSTILE_MS / 2)), Shared::is_settling);
        if shared.is_settling() {
            return;
        }
        // One that is told to stop may be killed before it has.
        let kinds = [Kind::WorkerKilled, Kind::WorkerKilled, Kind::WorkerStopped, Kind::WorkerCut];
        let kind = *pick(rng, &kinds);
        let number = shared.begin(kind, Target::Worker(place.number));
        let hit = match kind {
            Kind::WorkerCut => {
                place.proxies.iter().for_each(crate::support::Proxy::cut);
                true
            }
            Kind::WorkerStopped => place.seat.signal(SIGTERM),
            _ => place.seat.signal(SIGKILL),
        };
        if hit { shared.over(number) } else { shared.missed(number) }
    }
}

fn hit_worker(shared: &Shared, place: &Place, rng: &mut Rng) {
    let kinds = [
        Kind::WorkerKilled,
        Kind::WorkerKilled,
        Kind::WorkerStopped,
        Kind::WorkerForced,
        Kind::WorkerFrozen,
        Kind::WorkerCut,
        Kind::WorkerCut,
        Kind::WorkerStalled,
    ];
    let kind = *pick(rng, &kinds);
    let outage = outage(rng);
    if !place.seat.is_undisturbed() {
        return;
    }
    let number = shared.begin(kind, Target::Worker(place.number));
    let hit = match kind {
        Kind::WorkerStopped => place.seat.signal(SIGTERM),
        Kind::WorkerForced => {
            let first = place.seat.signal(SIGTERM);
            shared.rest(Duration::from_millis(rng.below(1_500)), Shared::is_abandoned);
            // It may have drained by now.
            place.seat.signal(SIGTERM);
            first
        }
        Kind::WorkerFrozen => {
            let hit = place.seat.signal(SIGSTOP);
            shared.rest(outage, Shared::is_abandoned);
            place.seat.signal(SIGCONT);
            hit
        }
        Kind::WorkerCut => {
            place.proxies.iter().for_each(crate::support::Proxy::cut);
            true
        }
        Kind::WorkerStalled => {
            place.proxies.iter().for_each(crate::support::Proxy::stall);
            shared.rest(outage, Shared::is_abandoned);
            place.proxies.iter().for_each(crate::support::Proxy::resume);
            true
        }
        _ => place.seat.signal(SIGKILL),
    };
    if hit { shared.over(number) } else { shared.missed(number) }
}

fn hit_sender(shared: &Shared, sender: &Sender, rng: &mut Rng) {
    let kinds =
        [Kind::SenderKilled, Kind::SenderStopped, Kind::SenderCut, Kind::SenderCut, Kind::SenderStalled];
    let kind = *pick(rng, &kinds);
    let outage = outage(rng);
    let number = shared.begin(kind, Target::Sender(sender.number));
    let hit = match kind {
        Kind::SenderStopped => sender.seat.signal(SIGTERM),
        Kind::SenderCut => {
            sender.proxies.iter().for_each(crate::support::Proxy::cut);
            true
        }
        Kind::SenderStalled => {
            sender.proxies.iter().for_each(crate::support::Proxy::stall);
            shared.rest(outage, Shared::is_abandoned);
            sender.proxies.iter().for_each(crate::support::Proxy::resume);
            true
        }
        _ => sender.seat.signal(SIGKILL),
    };
    if hit { shared.over(number) } else { shared.missed(number) }
}

/// Hits nodes until the run settles, one at a time, each whole again before the next.
pub(crate) fn hit_brokers(shared: &Shared, brokers: &Brokers, rng: &mut Rng) {
    let _alarm = Alarm(shared);
    loop {
        shared.rest(Duration::from_millis(3_000 + rng.below(BROKER_MS)), Shared::is_settling);
        if shared.is_settling() {
            return;
        }
        let mut kinds = vec![
            Kind::NodeKilled,
            Kind::NodeKilled,
            Kind::NodeFrozen,
            Kind::NodeRestarted,
            Kind::ConnectionClosed,
            Kind::ConnectionsClosed,
            Kind::MemoryAlarm,
        ];
        if brokers.nodes().len() > 1 {
            kinds.extend([Kind::NodeCutOff, Kind::NodeCutOff]);
        }
        let kind = *pick(rng, &kinds);
        let at = usize::try_from(rng.below(brokers.nodes().len() as u64)).unwrap();
        let number = shared.begin(kind, Target::Broker(at));
        hit_node(shared, &brokers.nodes()[at], kind, outage(rng), number);
        brokers.mend();
        shared.over(number);
    }
}

fn hit_node(shared: &Shared, node: &Node, kind: Kind, outage: Duration, number: usize) {
    // The longer a node is away, the fewer faults a run has time for.
    let last = |outage| {
        shared.struck(number);
        shared.rest(outage, Shared::is_abandoned);
    };
    match kind {
        Kind::NodeFrozen => {
            node.freeze();
            last(outage);
            node.thaw();
        }
        Kind::NodeRestarted => {
            node.stop();
            last(Duration::ZERO);
            node.start();
        }
        Kind::ConnectionClosed => {
            close_one_connection(node, outage);
            last(Duration::ZERO);
        }
        Kind::ConnectionsClosed => {
            node.ctl(&["close_all_connections", "chaos"]);
            last(Duration::ZERO);
        }
        Kind::MemoryAlarm => {
            node.memory_alarm(true);
            last(outage);
            node.memory_alarm(false);
        }
        Kind::NodeCutOff => {
            node.cut_off();
            last(outage);
        }
        _ => {
            node.kill();
            last(outage / 4);
            node.start();
        }
    }
}

/// Any of them: which one is as good as chance.
fn close_one_connection(node: &Node, chance: Duration) {
    let listed = node.ctl(&["-q", "list_connections", "pid"]);
    let pids: Vec<&str> = listed.lines().filter(|line| line.starts_with('<')).collect();
    if let Some(pid) = pids.get(usize::try_from(chance.as_millis()).unwrap() % pids.len().max(1)) {
        // It may have gone by itself meanwhile.
        let _ = node.try_ctl(&["close_connection", pid, "chaos"]);
    }
}
