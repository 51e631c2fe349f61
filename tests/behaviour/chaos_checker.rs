//! The checker of `make chaos`: it reports a history that breaks one rule, and accepts the same history once it contains
//! the fault that explains it.

use crate::checker::check::History;
use crate::checker::clock::Moment;
use crate::checker::explain::{Explanation, Window};
use crate::checker::fault::{Fault, FaultKind, Target};
use crate::checker::record::{Action, Body, Confirmed, Outcome, Remaining, Run, Session};
use crate::checker::report::{all_senders, median, recovery, seconds, table};
use crate::checker::resources::{Resources, Sample};
use std::time::Duration;

const ATTEMPTS: u32 = 3;

fn at(seconds: u64) -> Moment {
    Moment(seconds * 100)
}

fn body(action: &str) -> Body {
    Body { session: "s0.1".to_owned(), number: 1, action: action.to_owned(), submitted: at(1000) }
}

/// By the worker in slot 1, for a second.
fn run(outcome: Outcome, action: &str, attempt: u32, start: u64) -> Run {
    Run {
        outcome,
        task: "id".to_owned(),
        body: body(action),
        attempt,
        redelivered: false,
        worker: "w1.1".to_owned(),
        pid: 1,
        start: at(start),
        end: at(start + 1),
    }
}

/// The same task, delivered for the second time.
fn again(start: u64) -> Run {
    Run { redelivered: true, ..run(Outcome::Done, "quick", 1, start) }
}

fn remaining(action: &str, attempt: u32) -> Remaining {
    Remaining { task: "id".to_owned(), body: body(action), attempt }
}

/// Of one task, confirmed a second after it was submitted.
fn history(runs: Vec<Run>) -> History {
    History {
        sessions: vec![Session { name: "s0.1".to_owned(), succeeded: true, delayed: false }],
        confirmed: vec![Confirmed { at: at(1001), session: "s0.1".to_owned(), task: "id".to_owned() }],
        runs,
        attempts: ATTEMPTS,
        ..History::default()
    }
}

fn fault(kind: FaultKind, target: Target, from: u64, until: u64) -> Fault {
    Fault { kind, target, from: at(from), in_force_at: at(from), until: Some(at(until)) }
}

fn violations(history: &History) -> String {
    history.check().violations.join("\n")
}

fn is_valid(history: &History) {
    assert_eq!(violations(history), "");
}

/// A violation without the fault, and none with it, as it explains the run by this window.
fn is_explained_by(mut history: History, fault: Fault, window: Window) {
    assert!(violations(&history).contains("no fault explains"), "{}", violations(&history));
    history.faults.push(fault.clone());
    let result = history.check();
    assert_eq!(result.violations.join("\n"), "");
    assert_eq!(result.explained().collect::<Vec<_>>(), [&Explanation { window, fault }]);
}

fn is_not_explained_by(mut history: History, fault: Fault) {
    history.faults.push(fault);
    assert!(violations(&history).contains("no fault explains"), "{}", violations(&history));
}

#[test]
fn tasks_that_end_as_they_should_are_no_violation() {
    use Outcome::{Done, Failed, Refused};
    is_valid(&history(vec![run(Done, "quick", 1, 1002)]));
    is_valid(&history(vec![run(Failed, "once", 1, 1002), run(Done, "once", 2, 1004)]));
    let failures = (1..=3).map(|n| run(Failed, "hopeless", n, 1000 + 2 * u64::from(n))).collect();
    is_valid(&History { dead: vec![remaining("hopeless", 3)], ..history(failures) });
    is_valid(&History { dead: vec![remaining("data", 1)], ..history(vec![run(Refused, "data", 1, 1002)]) });
    is_valid(&History { queued: vec![remaining("quick", 1)], ..history(Vec::new()) });
    let result = history(vec![run(Done, "quick", 1, 1002)]).check();
    assert_eq!((result.confirmed, result.done, result.dead, result.queued), (1, 1, 0, 0));
}

#[test]
fn a_confirmed_task_that_is_nowhere_is_lost() {
    assert!(violations(&history(Vec::new())).starts_with("id: lost"));
    assert!(violations(&history(vec![run(Outcome::Failed, "once", 1, 1002)])).starts_with("id: lost"));
    // A truncated run does not know its task.
    assert!(violations(&history(vec![run(Outcome::Truncated, "quick", 1, 1002)])).starts_with("id: lost"));
}

#[test]
fn a_task_whose_id_was_not_printed_needs_a_sender_that_failed() {
    let mut history = history(vec![run(Outcome::Done, "quick", 1, 1002)]);
    history.confirmed.clear();
    assert!(violations(&history).contains("its id was not printed"));
    history.sessions[0].succeeded = false;
    is_valid(&history);
    assert_eq!(history.check().unconfirmed, 1);
}

#[test]
fn only_what_used_up_its_attempts_may_be_dead() {
    use Outcome::{Done, Failed};
    let two = || (1..=2).map(|n| run(Failed, "hopeless", n, 1000 + 2 * u64::from(n))).collect();
    let early = History { dead: vec![remaining("hopeless", 3)], ..history(two()) };
    assert!(violations(&early).contains("dead 1 times after 0 last attempts"), "{}", violations(&early));
    let quick = History { dead: vec![remaining("quick", 1)], ..history(Vec::new()) };
    assert!(violations(&quick).contains("should not be"));
    let both = History { dead: vec![remaining("hopeless", 3)], ..history(vec![run(Done, "quick", 1, 1002)]) };
    assert!(!violations(&both).is_empty());
}

#[test]
fn a_dead_task_may_be_there_twice_only_if_a_fault_came_after_its_last_attempt() {
    // The last attempt ends at 1007.
    let dead = |copies, fault: Option<Fault>| {
        let runs = (1..=3).map(|n| run(Outcome::Failed, "hopeless", n, 1000 + 2 * u64::from(n))).collect();
        let dead = (0..copies).map(|_| remaining("hopeless", 3)).collect();
        violations(&History { dead, faults: fault.into_iter().collect(), ..history(runs) })
    };
    let kill = |slot, from| fault(FaultKind::WorkerKilled, Target::Worker(slot), from, from);
    let node = |from, until| fault(FaultKind::NodeKilled, Target::Broker(0), from, until);
    assert_eq!(dead(1, None), "");
    let twice = "dead 2 times after 1 last attempts, 0 of them with a later fault";
    assert!(dead(2, None).contains(twice), "{}", dead(2, None));
    let not_over = Fault { until: None, ..fault(FaultKind::WorkerStalled, Target::Worker(1), 1000, 1000) };
    for explaining in [kill(1, 1008), kill(1, 1300), node(1010, 1020), node(990, 1000), not_over] {
        assert_eq!(dead(2, Some(explaining.clone())), "", "{explaining}");
        let thrice = "dead 3 times after 1 last attempts, 1 of them with a later fault";
        assert!(dead(3, Some(explaining)).contains(thrice));
    }
    // Before the end of the attempt; another worker; a sender; a node that was back long before.
    let sender = fault(FaultKind::SenderCut, Target::Sender(0), 1010, 1010);
    for unrelated in [kill(1, 1005), kill(2, 1010), sender, node(980, 996)] {
        assert!(dead(2, Some(unrelated.clone())).contains(twice), "{unrelated}");
    }
}

#[test]
fn an_attempt_without_a_failure_before_it_is_an_extra_run() {
    let skipped = history(vec![run(Outcome::Done, "once", 2, 1004)]);
    assert!(violations(&skipped).contains("no fault explains"));
}

#[test]
fn a_second_run_is_explained_by_a_fault_of_its_worker_before_the_acknowledgement() {
    let twice = || history(vec![run(Outcome::Done, "quick", 1, 1100), again(1110)]);
    assert_eq!(twice().check().done_twice, 1);
    let kill = |slot, from| fault(FaultKind::WorkerKilled, Target::Worker(slot), from, from);
    is_explained_by(twice(), kill(1, 1101), Window::Unacknowledged);
    is_explained_by(
        twice(),
        fault(FaultKind::WorkerFrozen, Target::Worker(1), 1050, 1105),
        Window::Unacknowledged,
    );
    // Another worker; long before; long after the acknowledgement; after the second run.
    for unrelated in [kill(2, 1101), kill(1, 1090), kill(1, 1107), kill(1, 1120)] {
        is_not_explained_by(twice(), unrelated);
    }
    is_not_explained_by(twice(), fault(FaultKind::SenderKilled, Target::Sender(0), 1101, 1101));
}

#[test]
fn a_killed_node_affects_all_workers_and_for_a_while_longer() {
    let twice = || history(vec![run(Outcome::Done, "quick", 1, 1100), again(1130)]);
    let node = |from, until| fault(FaultKind::NodeKilled, Target::Broker(0), from, until);
    is_explained_by(twice(), node(1080, 1095), Window::Unacknowledged);
    is_explained_by(twice(), node(1103, 1120), Window::Unacknowledged);
    is_not_explained_by(twice(), node(1070, 1085));
    is_not_explained_by(twice(), node(1108, 1120));
}

#[test]
fn a_second_run_may_come_from_a_task_that_was_published_twice() {
    let twice = || history(vec![run(Outcome::Done, "quick", 1, 1100), run(Outcome::Done, "quick", 1, 1200)]);
    let cut = |number, from| fault(FaultKind::SenderCut, Target::Sender(number), from, from);
    is_explained_by(twice(), cut(0, 1001), Window::PublishedTwice);
    is_not_explained_by(twice(), cut(1, 1001));
    is_not_explained_by(twice(), cut(0, 1010));
    // Confirmed at once, so not on a second connection.
    let at_once = || {
        let confirmed = Confirmed { at: at(1000), session: "s0.1".to_owned(), task: "id".to_owned() };
        History { confirmed: vec![confirmed], ..twice() }
    };
    is_not_explained_by(at_once(), cut(0, 1000));
}

#[test]
fn a_second_run_may_come_from_a_delay_queue_whose_broker_died() {
    use Outcome::{Done, Failed};
    let twice = || {
        history(vec![run(Failed, "once", 1, 1100), run(Done, "once", 2, 1110), run(Done, "once", 2, 1150)])
    };
    let node = |from, until| fault(FaultKind::NodeKilled, Target::Broker(0), from, until);
    is_explained_by(twice(), node(1130, 1140), Window::HandedOver);
    is_not_explained_by(twice(), node(1160, 1170));
    let delayed = || {
        let twice = vec![run(Done, "quick", 1, 1100), run(Done, "quick", 1, 1150)];
        let sessions = vec![Session { name: "s0.1".to_owned(), succeeded: true, delayed: true }];
        History { sessions, ..history(twice) }
    };
    is_explained_by(delayed(), node(1050, 1060), Window::HandedOver);
}

#[test]
fn a_redelivered_task_may_be_there_twice_after_a_fault_while_it_was_counted() {
    let twice = || {
        let first = again(1100);
        history(vec![first, again(1150)])
    };
    is_explained_by(twice(), fault(FaultKind::WorkerKilled, Target::Worker(7), 1050, 1050), Window::Counted);
    is_not_explained_by(twice(), fault(FaultKind::SenderKilled, Target::Sender(0), 1050, 1050));
}

#[test]
fn moments_are_read_as_they_are_written() {
    for text in ["0.00", "12.34", "98765.09"] {
        assert_eq!(Moment::parse(text).unwrap().to_string(), text);
    }
    for text in ["", "12", "12.3", "12.345", "x.00"] {
        assert_eq!(Moment::parse(text), None, "{text}");
    }
    assert!(Moment::now() > Moment(0));
}

#[test]
fn differences_do_not_go_below_zero() {
    let (early, late) = (Moment(100), Moment(250));
    assert_eq!(late.since(early), Duration::from_millis(1500));
    assert_eq!(early.since(late), Duration::ZERO);
    assert_eq!(early.plus(Duration::from_secs(1)).minus(Duration::from_secs(9)), Moment(0));
}

#[test]
fn a_run_is_read_from_the_handlers_line() {
    let line = "done id-1 s0.3/17 slow1.5 12.30 2 1 w4.11 4711 13.00 14.50";
    let run = Run::parse(line).unwrap();
    assert_eq!((run.outcome, run.attempt, run.redelivered, run.pid), (Outcome::Done, 2, true, 4711));
    assert_eq!((run.slot(), run.body.sender()), (Some(4), Some(0)));
    assert_eq!((run.body.number, run.body.action()), (17, Action::Succeed));
    assert_eq!((run.start, run.end), (Moment(1300), Moment(1450)));
    for broken in ["", "done id-1", &line.replace("done", "doing"), &line.replace("13.00", "x")] {
        assert_eq!(Run::parse(broken), None, "{broken}");
    }
}

fn resources(sample: impl Fn(u64) -> (u64, usize)) -> Resources {
    let sample = |n| {
        let (kib, descriptors) = sample(n);
        Sample { after: Duration::from_secs(n), kib, descriptors, threads: 9 }
    };
    Resources { long_lived: (0..30).map(sample).collect(), peak_kib: 0 }
}

#[test]
fn a_leak_is_distinguished_from_noise() {
    let has_grown = |resources: Resources| resources.has_grown(3).is_some();
    assert!(!has_grown(resources(|n| (8_000 + n % 5 * 100, 20))));
    assert!(!has_grown(resources(|n| (if n == 25 { 90_000 } else { 8_000 }, 20))));
    assert!(has_grown(resources(|n| (8_000 + n * 500, 20))));
    // Idle first, and then three tasks and the connection for copies.
    assert!(!has_grown(resources(|n| (8_000, if n < 15 { 13 } else { 35 }))));
    assert!(has_grown(resources(|n| (8_000, if n < 15 { 13 } else { 36 }))));
}

#[test]
fn no_samples_are_no_violation() {
    assert_eq!(Resources::default().has_grown(3), None);
}

#[test]
fn tables_are_as_wide_as_their_cells() {
    let rows = [["fault", "n"], ["frozen", "10"]].map(|row| row.map(str::to_owned).to_vec());
    assert_eq!(table(&rows), "| fault  |  n |\n| ------ | -: |\n| frozen | 10 |\n");
}

#[test]
fn a_median_of_nothing_is_a_dash() {
    assert_eq!(seconds(median(Vec::new())), "-");
    let three = [3, 1, 2].map(Duration::from_secs).to_vec();
    assert_eq!(seconds(median(three)), "2.0 s");
}

#[test]
fn a_second_run_that_is_no_redelivery_is_explained_by_a_lost_acknowledgement_or_a_second_publish() {
    let twice = || history(vec![run(Outcome::Done, "quick", 1, 1100), run(Outcome::Done, "quick", 1, 1130)]);
    is_explained_by(
        twice(),
        fault(FaultKind::NodeKilled, Target::Broker(0), 1103, 1120),
        Window::LostAcknowledgement,
    );
    is_not_explained_by(twice(), fault(FaultKind::WorkerKilled, Target::Worker(1), 1101, 1101));
    is_not_explained_by(twice(), fault(FaultKind::ConnectionsClosed, Target::Broker(0), 1103, 1120));
}

#[test]
fn an_alarm_does_not_explain_a_second_run_of_a_task_that_was_done() {
    let twice = history(vec![run(Outcome::Done, "quick", 1, 1100), again(1130)]);
    is_not_explained_by(twice, fault(FaultKind::MemoryAlarm, Target::Broker(0), 1095, 1125));
}

#[test]
fn a_failed_task_is_set_aside_during_an_alarm_and_runs_again_if_its_worker_is_killed_meanwhile() {
    let twice = || {
        let again = Run { redelivered: true, ..run(Outcome::Failed, "hopeless", 1, 1130) };
        let mut history = history(vec![run(Outcome::Failed, "hopeless", 1, 1100), again]);
        history.dead.push(remaining("hopeless", 3));
        history
            .runs
            .extend([run(Outcome::Failed, "hopeless", 2, 1140), run(Outcome::Failed, "hopeless", 3, 1150)]);
        history
    };
    let kill = || fault(FaultKind::WorkerKilled, Target::Worker(1), 1120, 1120);
    is_not_explained_by(twice(), kill());
    let mut in_an_alarm = twice();
    in_an_alarm.faults = vec![fault(FaultKind::MemoryAlarm, Target::Broker(0), 1095, 1125), kill()];
    let result = in_an_alarm.check();
    assert_eq!(result.violations.join("\n"), "");
    assert_eq!(
        result.explained().next().map(|explanation| explanation.fault.kind),
        Some(FaultKind::WorkerKilled)
    );
}

#[test]
fn recovery_is_the_end_of_the_next_task_that_was_begun_after_the_fault() {
    let history = history(vec![run(Outcome::Done, "quick", 1, 1099), run(Outcome::Done, "quick", 1, 1110)]);
    let recovered = |target| recovery(&history, &fault(FaultKind::WorkerKilled, target, 1100, 1100));
    assert_eq!(recovered(Target::Worker(1)), Some(Duration::from_secs(11)));
    assert_eq!(recovered(Target::Broker(0)), Some(Duration::from_secs(11)));
    assert_eq!(recovered(Target::Worker(2)), None);
    assert_eq!(recovered(Target::Sender(0)), None);
}

#[test]
fn all_senders_are_back_when_the_last_one_is() {
    let confirmed = |seconds, session: &str| Confirmed {
        at: at(seconds),
        session: session.to_owned(),
        task: "id".to_owned(),
    };
    let confirmed = vec![
        confirmed(1090, "s2.1"),
        confirmed(1105, "s0.1"),
        confirmed(1107, "s1.4"),
        confirmed(1120, "s0.2"),
    ];
    let history = History { confirmed, ..history(Vec::new()) };
    let node = fault(FaultKind::NodeKilled, Target::Broker(0), 1100, 1110);
    assert_eq!(all_senders(&history, &node), Some(Duration::from_secs(7)));
    assert_eq!(all_senders(&history, &fault(FaultKind::SenderCut, Target::Sender(0), 1100, 1100)), None);
}

#[test]
fn a_delivery_that_was_held_up_may_arrive_after_another_worker_has_run_the_task() {
    let twice = || {
        let elsewhere = Run { worker: "w2.1".to_owned(), ..again(1100) };
        history(vec![elsewhere, run(Outcome::Done, "quick", 1, 1110)])
    };
    let stall = |slot, until| fault(FaultKind::WorkerStalled, Target::Worker(slot), 1090, until);
    is_explained_by(twice(), stall(1, 1109), Window::LateDelivery);
    is_not_explained_by(twice(), stall(3, 1109));
    is_not_explained_by(twice(), stall(1, 1100));
}
