//! One round: one setup, from the start of its nodes to the check of its history.

use super::brokers::{Brokers, Setup};
use super::checker::check::History;
use super::checker::report;
use super::checker::resources::Resources;
use super::recorder::Recorder;
use super::sampler;
use super::senders::Sender;
use super::shared::{Settings, Shared};
use super::workers::{ATTEMPTS, THREADS, WorkerSlot};
use super::{drain, inject};
use crate::support::Rng;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// No fault is injected into the first, in slot 0: its resources are sampled. The others connect through proxies.
const WORKERS: std::ops::Range<usize> = 0..4;
/// In a hostile round.
const HOSTILE_WORKERS: std::ops::Range<usize> = 1..2;
/// The last sends task by task, the others line by line.
const SENDERS: usize = 3;

/// How many violations are printed.
const SHOWN: usize = 10;

/// True when the check finds no violation. The path of the recorded history is printed.
pub(crate) fn run(setup: Setup, time: Duration, settings: Settings, abandoned: &Arc<AtomicBool>) -> bool {
    let Settings { seed, limit, handler } = settings;
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}-{seed}", setup.name()));
    println!("\n{}: {} s of faults; the history is in {}", setup.name(), time.as_secs(), dir.display());
    let began = Instant::now();
    let brokers = Brokers::start(setup);
    if let Some(limit) = limit.filter(|_| setup.has_quorum_queues()) {
        brokers.limit_deliveries(limit);
    }
    let shared = Shared::new(Recorder::create(&dir), setup, handler, Arc::clone(abandoned));
    let ports = brokers.ports();
    let (workers, senders) = match setup {
        Setup::Single | Setup::Cluster => (WORKERS, 0..SENDERS),
        Setup::Hostile => (HOSTILE_WORKERS, SENDERS - 1..SENDERS),
    };
    let slots: Vec<WorkerSlot> = workers.map(|number| WorkerSlot::new(number, &ports, number > 0)).collect();
    let senders: Vec<Sender> = senders.map(|number| Sender::new(number, &ports)).collect();
    let resources = run_processes(&shared, &brokers, &slots, &senders, time, seed);
    drain::kill_orphans(&shared);
    if shared.is_abandoned() {
        return false;
    }
    let (queued, dead) = drain::empty_queues(&shared, &brokers);
    for (number, log) in brokers.logs().into_iter().enumerate() {
        shared.recorder.write(&format!("rabbitmq-{number}.log"), [log]);
    }
    let history = History {
        sessions: senders.iter().flat_map(Sender::sessions).collect(),
        confirmed: shared.recorder.read_confirmed(),
        runs: shared.recorder.with_runs(<[_]>::to_vec),
        dead,
        queued,
        faults: shared.faults(),
        attempts: ATTEMPTS,
    };
    println!("{} s in all", began.elapsed().as_secs());
    report_result(&shared, &history, &resources)
}

fn run_processes(
    shared: &Shared,
    brokers: &Brokers,
    slots: &[WorkerSlot],
    senders: &[Sender],
    time: Duration,
    seed: u64,
) -> Resources {
    // Each thread has its own generator, so that its numbers do not depend on the progress of the others.
    let mut seeds = Rng::from(seed);
    let mut rng = || Rng::from(seeds.below(u64::from(u32::MAX)));
    std::thread::scope(|scope| {
        let resources = scope.spawn(|| sampler::sample(shared, slots));
        for slot in slots {
            scope.spawn(|| slot.keep_running(shared));
        }
        brokers.prepare(shared);
        let mut threads = Vec::new();
        for sender in senders {
            let mut rng = rng();
            threads.push(scope.spawn(move || {
                if sender.number + 1 < SENDERS {
                    sender.send_lines(shared, &mut rng);
                } else {
                    sender.send_singly(shared, &mut rng);
                }
            }));
        }
        let (mut for_clients, mut for_brokers) = (rng(), rng());
        if shared.setup == Setup::Hostile {
            threads.push(scope.spawn(move || inject::inject_repeatedly(shared, &slots[0], &mut for_clients)));
        } else {
            threads.push(
                scope.spawn(move || inject::inject_client_faults(shared, slots, senders, &mut for_clients)),
            );
            threads
                .push(scope.spawn(move || inject::inject_broker_faults(shared, brokers, &mut for_brokers)));
        }
        shared.sleep(time, Shared::is_abandoned);
        shared.phase.draining.store(true, Ordering::Relaxed);
        for thread in threads {
            // A thread that panicked has printed why, and ended the others.
            let _ = thread.join();
        }
        drain::wait_worked(shared, brokers);
        shared.phase.stopping.store(true, Ordering::Relaxed);
        resources.join().unwrap_or_default()
    })
}

fn report_result(shared: &Shared, history: &History, resources: &Resources) -> bool {
    let result = history.check();
    let extra_runs = result.extra_runs.iter().map(|extra| match &extra.explanation {
        Some(explanation) => format!("{}: {}: {}", extra.run, explanation.window.name(), explanation.fault),
        None => format!("{}: unexplained", extra.run),
    });
    shared.recorder.write("extra_runs", extra_runs);
    let table = report::fault_table(history, &result);
    let summary = report::summary(history, &result, resources);
    println!("\nMedians, and the worst:\n\n{table}\n{summary}");
    let mut violations = shared.violations();
    violations.extend(result.violations);
    violations.extend(resources.has_grown(THREADS));
    shared.recorder.write("result", [table, summary].into_iter().chain(violations.iter().cloned()));
    for what in violations.iter().take(SHOWN) {
        println!("VIOLATION: {what}");
    }
    if violations.is_empty() {
        println!("Every task is accounted for, and a fault explains every extra run.");
    }
    if violations.len() > SHOWN {
        println!("and {} more", violations.len() - SHOWN);
    }
    if !violations.is_empty() {
        println!("The history: {0}; the broker's log: {0}/rabbitmq-0.log", shared.recorder.dir().display());
    }
    violations.is_empty()
}
