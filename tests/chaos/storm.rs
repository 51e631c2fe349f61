//! One run on one kind of ground, from the start of its nodes to its verdict.

use super::books::account::Books;
use super::books::memory::Memory;
use super::books::report;
use super::brokers::{Brokers, Ground};
use super::ledger::Ledger;
use super::run::{Settings, Shared};
use super::senders::Sender;
use super::watch;
use super::workers::{ATTEMPTS, Place, THREADS};
use super::{faults, settle};
use crate::support::Rng;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The first, in place 0, is never hit itself: its memory is watched. The others are reached through proxies.
const WORKERS: std::ops::Range<usize> = 0..4;
/// Where one is hit all the time.
const HIT_WORKERS: std::ops::Range<usize> = 1..2;
/// The last sends task by task, the others line by line.
const SENDERS: usize = 3;

/// What is printed of all that is wrong.
const SHOWN: usize = 10;

/// True when every task is accounted for. All that happened is in the ledger, whose path is printed.
pub(crate) fn weather(
    ground: Ground,
    time: Duration,
    settings: Settings,
    abandoned: &Arc<AtomicBool>,
) -> bool {
    let Settings { seed, limit, handler } = settings;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}-{seed}", ground.name()));
    println!("\n{}: {} s of faults; the ledger is {}", ground.name(), time.as_secs(), dir.display());
    let began = Instant::now();
    let brokers = Brokers::start(ground);
    if let Some(limit) = limit.filter(|_| ground.has_quorum_queues()) {
        brokers.limit_deliveries(limit);
    }
    let shared = Shared::new(Ledger::create(&dir), ground, handler, Arc::clone(abandoned));
    let ports = brokers.ports();
    let (workers, senders) = match ground {
        Ground::Single | Ground::Cluster => (WORKERS, 0..SENDERS),
        Ground::Hostile => (HIT_WORKERS, SENDERS - 1..SENDERS),
    };
    let places: Vec<Place> = workers.map(|number| Place::new(number, &ports, number > 0)).collect();
    let senders: Vec<Sender> = senders.map(|number| Sender::new(number, &ports)).collect();
    let memory = work(&shared, &brokers, &places, &senders, time, seed);
    settle::end_strays(&shared);
    if shared.is_abandoned() {
        return false;
    }
    let (queued, dead) = settle::empty_queues(&shared, &brokers);
    for (number, log) in brokers.logs().into_iter().enumerate() {
        shared.ledger.write(&format!("rabbitmq-{number}.log"), [log]);
    }
    let books = Books {
        sessions: senders.iter().flat_map(Sender::sessions).collect(),
        confirmed: shared.ledger.read_confirmed(),
        runs: shared.ledger.with_runs(<[_]>::to_vec),
        dead,
        queued,
        strikes: shared.strikes(),
        attempts: ATTEMPTS,
    };
    println!("{} s in all", began.elapsed().as_secs());
    conclude(&shared, &books, &memory)
}

fn work(
    shared: &Shared,
    brokers: &Brokers,
    places: &[Place],
    senders: &[Sender],
    time: Duration,
    seed: u64,
) -> Memory {
    // Each thread throws rng of its own: its luck does not depend on how the others get on.
    let mut seeds = Rng::from(seed);
    let mut rng = || Rng::from(seeds.below(u64::from(u32::MAX)));
    std::thread::scope(|scope| {
        let memory = scope.spawn(|| watch::sample(shared, places));
        for place in places {
            scope.spawn(|| place.keep(shared));
        }
        brokers.prepare(shared);
        let mut busy = Vec::new();
        for sender in senders {
            let mut rng = rng();
            busy.push(scope.spawn(move || {
                if sender.number + 1 < SENDERS {
                    sender.send_lines(shared, &mut rng);
                } else {
                    sender.send_singly(shared, &mut rng);
                }
            }));
        }
        let (mut for_clients, mut for_brokers) = (rng(), rng());
        if shared.ground == Ground::Hostile {
            busy.push(scope.spawn(move || faults::hit_again_and_again(shared, &places[0], &mut for_clients)));
        } else {
            busy.push(scope.spawn(move || faults::hit_clients(shared, places, senders, &mut for_clients)));
            busy.push(scope.spawn(move || faults::hit_brokers(shared, brokers, &mut for_brokers)));
        }
        shared.rest(time, Shared::is_abandoned);
        shared.phase.settling.store(true, Ordering::Relaxed);
        for thread in busy {
            // A thread that broke down has said so, and ended the others.
            let _ = thread.join();
        }
        settle::wait_worked(shared, brokers);
        shared.phase.closing.store(true, Ordering::Relaxed);
        memory.join().unwrap_or_default()
    })
}

fn conclude(shared: &Shared, books: &Books, memory: &Memory) -> bool {
    let account = books.settle();
    let repeats = account.repeats.iter().map(|repeat| match &repeat.cause {
        Some(cause) => format!("{}: {}: {}", repeat.run, cause.way.name(), cause.strike),
        None => format!("{}: unexplained", repeat.run),
    });
    shared.ledger.write("repeats", repeats);
    let table = report::faults(books, &account);
    let summary = report::summary(books, &account, memory);
    println!("\nMedians, and the worst:\n\n{table}\n{summary}");
    let mut wrong = shared.all_wrong();
    wrong.extend(account.wrong);
    wrong.extend(memory.has_grown(THREADS));
    shared.ledger.write("verdict", [table, summary].into_iter().chain(wrong.iter().cloned()));
    for what in wrong.iter().take(SHOWN) {
        println!("WRONG: {what}");
    }
    if wrong.is_empty() {
        println!("Every task is accounted for, and every run too many has a fault that explains it.");
    }
    if wrong.len() > SHOWN {
        println!("and {} more", wrong.len() - SHOWN);
    }
    if !wrong.is_empty() {
        println!("The ledger: {0}; the broker's log: {0}/rabbitmq-0.log", shared.ledger.dir().display());
    }
    wrong.is_empty()
}
