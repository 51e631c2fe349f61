//! The judge of `make chaos` is judged: books with one thing wrong, and the same books with its fault.

use crate::books::account::Books;
use crate::books::clock::Moment;
use crate::books::explain::{Cause, Way};
use crate::books::memory::{Memory, Sample};
use crate::books::record::{Body, Confirmed, Errand, Left, Outcome, Run, Session};
use crate::books::report::{all_senders, median, recovery, seconds, table};
use crate::books::strike::{Kind, Strike, Target};
use std::time::Duration;

const ATTEMPTS: u32 = 3;

fn at(seconds: u64) -> Moment {
    Moment(seconds * 100)
}

fn body(errand: &str) -> Body {
    Body { session: "s0.1".to_owned(), number: 1, errand: errand.to_owned(), fed: at(1000) }
}

/// On the worker in place 1, for a second.
fn run(outcome: Outcome, errand: &str, attempt: u32, start: u64) -> Run {
    Run {
        outcome,
        task: "id".to_owned(),
        body: body(errand),
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

fn left(errand: &str, attempt: u32) -> Left {
    Left { task: "id".to_owned(), body: body(errand), attempt }
}

/// One task, confirmed a second after it was fed.
fn books(runs: Vec<Run>) -> Books {
    Books {
        sessions: vec![Session { name: "s0.1".to_owned(), succeeded: true, delayed: false }],
        confirmed: vec![Confirmed { at: at(1001), session: "s0.1".to_owned(), task: "id".to_owned() }],
        runs,
        attempts: ATTEMPTS,
        ..Books::default()
    }
}

fn strike(kind: Kind, target: Target, from: u64, until: u64) -> Strike {
    Strike { kind, target, from: at(from), struck: at(from), until: Some(at(until)) }
}

fn wrong(books: &Books) -> String {
    books.settle().wrong.join("\n")
}

fn is_right(books: &Books) {
    assert_eq!(wrong(books), "");
}

/// Wrong without the fault, and right with it, for this reason.
fn is_explained_by(mut books: Books, strike: Strike, way: Way) {
    assert!(wrong(&books).contains("no fault explains"), "{}", wrong(&books));
    books.strikes.push(strike.clone());
    let account = books.settle();
    assert_eq!(account.wrong.join("\n"), "");
    assert_eq!(account.explained().collect::<Vec<_>>(), [&Cause { way, strike }]);
}

fn is_not_explained_by(mut books: Books, strike: Strike) {
    books.strikes.push(strike);
    assert!(wrong(&books).contains("no fault explains"), "{}", wrong(&books));
}

#[test]
fn tasks_that_end_as_they_should_balance() {
    use Outcome::{Done, Failed, Refused};
    is_right(&books(vec![run(Done, "quick", 1, 1002)]));
    is_right(&books(vec![run(Failed, "once", 1, 1002), run(Done, "once", 2, 1004)]));
    let failures = (1..=3).map(|n| run(Failed, "hopeless", n, 1000 + 2 * u64::from(n))).collect();
    is_right(&Books { dead: vec![left("hopeless", 3)], ..books(failures) });
    is_right(&Books { dead: vec![left("data", 1)], ..books(vec![run(Refused, "data", 1, 1002)]) });
    is_right(&Books { queued: vec![left("quick", 1)], ..books(Vec::new()) });
    let account = books(vec![run(Done, "quick", 1, 1002)]).settle();
    assert_eq!((account.confirmed, account.done, account.dead, account.queued), (1, 1, 0, 0));
}

#[test]
fn a_confirmed_task_that_is_nowhere_is_lost() {
    assert!(wrong(&books(Vec::new())).starts_with("id: lost"));
    assert!(wrong(&books(vec![run(Outcome::Failed, "once", 1, 1002)])).starts_with("id: lost"));
    // Nobody knows what a truncated run was about.
    assert!(wrong(&books(vec![run(Outcome::Truncated, "quick", 1, 1002)])).starts_with("id: lost"));
}

#[test]
fn a_task_without_an_id_in_the_ledger_needs_a_sender_that_failed() {
    let mut books = books(vec![run(Outcome::Done, "quick", 1, 1002)]);
    books.confirmed.clear();
    assert!(wrong(&books).contains("its id was not printed"));
    books.sessions[0].succeeded = false;
    is_right(&books);
    assert_eq!(books.settle().unconfirmed, 1);
}

#[test]
fn only_what_used_up_its_attempts_may_be_dead() {
    use Outcome::{Done, Failed};
    let two = || (1..=2).map(|n| run(Failed, "hopeless", n, 1000 + 2 * u64::from(n))).collect();
    let early = Books { dead: vec![left("hopeless", 3)], ..books(two()) };
    assert!(wrong(&early).contains("dead 1 times after 0 last attempts"), "{}", wrong(&early));
    // Its last attempt once, and the copy of that twice, but not three times.
    let all = || (1..=3).map(|n| run(Failed, "hopeless", n, 1000 + 2 * u64::from(n))).collect();
    let copies = |count| Books { dead: (0..count).map(|_| left("hopeless", 3)).collect(), ..books(all()) };
    assert_eq!(wrong(&copies(2)), "");
    assert!(wrong(&copies(3)).contains("dead 3 times after 1 last attempts"), "{}", wrong(&copies(3)));
    let unjust = Books { dead: vec![left("quick", 1)], ..books(Vec::new()) };
    assert!(wrong(&unjust).contains("should not be"));
    let both = Books { dead: vec![left("hopeless", 3)], ..books(vec![run(Done, "quick", 1, 1002)]) };
    assert!(!wrong(&both).is_empty());
}

#[test]
fn an_attempt_without_a_failure_before_it_is_one_too_many() {
    let skipped = books(vec![run(Outcome::Done, "once", 2, 1004)]);
    assert!(wrong(&skipped).contains("no fault explains"));
}

#[test]
fn a_second_run_is_put_down_to_what_hit_the_worker_before_the_acknowledgement() {
    let twice = || books(vec![run(Outcome::Done, "quick", 1, 1100), again(1110)]);
    assert_eq!(twice().settle().done_twice, 1);
    let kill = |place, from| strike(Kind::WorkerKilled, Target::Worker(place), from, from);
    is_explained_by(twice(), kill(1, 1101), Way::Unacknowledged);
    is_explained_by(twice(), strike(Kind::WorkerFrozen, Target::Worker(1), 1050, 1105), Way::Unacknowledged);
    // Another worker; long before; long after the acknowledgement; after the second run.
    for stranger in [kill(2, 1101), kill(1, 1090), kill(1, 1107), kill(1, 1120)] {
        is_not_explained_by(twice(), stranger);
    }
    is_not_explained_by(twice(), strike(Kind::SenderKilled, Target::Sender(0), 1101, 1101));
}

#[test]
fn a_node_that_dies_hits_all_workers_and_for_a_while_longer() {
    let twice = || books(vec![run(Outcome::Done, "quick", 1, 1100), again(1130)]);
    let node = |from, until| strike(Kind::NodeKilled, Target::Broker(0), from, until);
    is_explained_by(twice(), node(1080, 1095), Way::Unacknowledged);
    is_explained_by(twice(), node(1103, 1120), Way::Unacknowledged);
    is_not_explained_by(twice(), node(1070, 1085));
    is_not_explained_by(twice(), node(1108, 1120));
}

#[test]
fn a_second_run_may_come_from_a_task_that_was_published_twice() {
    let twice = || books(vec![run(Outcome::Done, "quick", 1, 1100), run(Outcome::Done, "quick", 1, 1200)]);
    let cut = |place, from| strike(Kind::SenderCut, Target::Sender(place), from, from);
    is_explained_by(twice(), cut(0, 1001), Way::SentAgain);
    is_not_explained_by(twice(), cut(1, 1001));
    is_not_explained_by(twice(), cut(0, 1010));
    // Confirmed at once, so not on a second connection.
    let at_once = || {
        let confirmed = Confirmed { at: at(1000), session: "s0.1".to_owned(), task: "id".to_owned() };
        Books { confirmed: vec![confirmed], ..twice() }
    };
    is_not_explained_by(at_once(), cut(0, 1000));
}

#[test]
fn a_second_run_may_come_from_a_delay_queue_whose_broker_died() {
    use Outcome::{Done, Failed};
    let twice =
        || books(vec![run(Failed, "once", 1, 1100), run(Done, "once", 2, 1110), run(Done, "once", 2, 1150)]);
    let node = |from, until| strike(Kind::NodeKilled, Target::Broker(0), from, until);
    is_explained_by(twice(), node(1130, 1140), Way::HandedOver);
    is_not_explained_by(twice(), node(1160, 1170));
    let delayed = || {
        let twice = vec![run(Done, "quick", 1, 1100), run(Done, "quick", 1, 1150)];
        let sessions = vec![Session { name: "s0.1".to_owned(), succeeded: true, delayed: true }];
        Books { sessions, ..books(twice) }
    };
    is_explained_by(delayed(), node(1050, 1060), Way::HandedOver);
}

#[test]
fn a_redelivered_task_may_be_there_twice_after_a_fault_while_it_was_counted() {
    let twice = || {
        let first = again(1100);
        books(vec![first, again(1150)])
    };
    is_explained_by(twice(), strike(Kind::WorkerKilled, Target::Worker(7), 1050, 1050), Way::Counted);
    is_not_explained_by(twice(), strike(Kind::SenderKilled, Target::Sender(0), 1050, 1050));
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
fn differences_do_not_go_below_nothing() {
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
    assert_eq!((run.place(), run.body.sender()), (Some(4), Some(0)));
    assert_eq!((run.body.number, run.body.errand()), (17, Errand::Succeed));
    assert_eq!((run.start, run.end), (Moment(1300), Moment(1450)));
    for broken in ["", "done id-1", &line.replace("done", "doing"), &line.replace("13.00", "x")] {
        assert_eq!(Run::parse(broken), None, "{broken}");
    }
}

fn memory(sample: impl Fn(u64) -> (u64, usize)) -> Memory {
    let sample = |n| {
        let (kib, descriptors) = sample(n);
        Sample { after: Duration::from_secs(n), kib, descriptors, threads: 9 }
    };
    Memory { veteran: (0..30).map(sample).collect(), peak_kib: 0 }
}

#[test]
fn growth_is_told_from_noise() {
    let has_grown = |memory: Memory| memory.has_grown(3).is_some();
    assert!(!has_grown(memory(|n| (8_000 + n % 5 * 100, 20))));
    assert!(!has_grown(memory(|n| (if n == 25 { 90_000 } else { 8_000 }, 20))));
    assert!(has_grown(memory(|n| (8_000 + n * 500, 20))));
    // Idle first, and then three tasks and the connection for copies.
    assert!(!has_grown(memory(|n| (8_000, if n < 15 { 13 } else { 35 }))));
    assert!(has_grown(memory(|n| (8_000, if n < 15 { 13 } else { 36 }))));
}

#[test]
fn no_samples_say_nothing() {
    assert_eq!(Memory::default().has_grown(3), None);
}

#[test]
fn tables_are_as_wide_as_their_cells() {
    let rows = [["fault", "n"], ["frozen", "10"]].map(|row| row.map(str::to_owned).to_vec());
    assert_eq!(table(&rows), "| fault  |  n |\n| ------ | -: |\n| frozen | 10 |\n");
}

#[test]
fn a_median_of_nothing_is_nothing() {
    assert_eq!(seconds(median(Vec::new())), "-");
    let three = [3, 1, 2].map(Duration::from_secs).to_vec();
    assert_eq!(seconds(median(three)), "2.0 s");
}

#[test]
fn a_second_run_that_is_no_redelivery_was_not_kept_by_the_broker_or_sent_twice() {
    let twice = || books(vec![run(Outcome::Done, "quick", 1, 1100), run(Outcome::Done, "quick", 1, 1130)]);
    is_explained_by(twice(), strike(Kind::NodeKilled, Target::Broker(0), 1103, 1120), Way::Forgotten);
    is_not_explained_by(twice(), strike(Kind::WorkerKilled, Target::Worker(1), 1101, 1101));
    is_not_explained_by(twice(), strike(Kind::ConnectionsClosed, Target::Broker(0), 1103, 1120));
}

#[test]
fn an_alarm_keeps_back_no_task_that_was_done() {
    let twice = books(vec![run(Outcome::Done, "quick", 1, 1100), again(1130)]);
    is_not_explained_by(twice, strike(Kind::MemoryAlarm, Target::Broker(0), 1095, 1125));
}

#[test]
fn a_failed_task_is_set_aside_while_an_alarm_lasts_and_its_worker_may_die_meanwhile() {
    let twice = || {
        let again = Run { redelivered: true, ..run(Outcome::Failed, "hopeless", 1, 1130) };
        let mut books = books(vec![run(Outcome::Failed, "hopeless", 1, 1100), again]);
        books.dead.push(left("hopeless", 3));
        books
            .runs
            .extend([run(Outcome::Failed, "hopeless", 2, 1140), run(Outcome::Failed, "hopeless", 3, 1150)]);
        books
    };
    let kill = || strike(Kind::WorkerKilled, Target::Worker(1), 1120, 1120);
    is_not_explained_by(twice(), kill());
    let mut in_an_alarm = twice();
    in_an_alarm.strikes = vec![strike(Kind::MemoryAlarm, Target::Broker(0), 1095, 1125), kill()];
    let account = in_an_alarm.settle();
    assert_eq!(account.wrong.join("\n"), "");
    assert_eq!(account.explained().next().map(|cause| cause.strike.kind), Some(Kind::WorkerKilled));
}

#[test]
fn recovery_is_the_end_of_the_next_task_that_was_begun_after_the_fault() {
    let books = books(vec![run(Outcome::Done, "quick", 1, 1099), run(Outcome::Done, "quick", 1, 1110)]);
    let hit = |target| recovery(&books, &strike(Kind::WorkerKilled, target, 1100, 1100));
    assert_eq!(hit(Target::Worker(1)), Some(Duration::from_secs(11)));
    assert_eq!(hit(Target::Broker(0)), Some(Duration::from_secs(11)));
    assert_eq!(hit(Target::Worker(2)), None);
    assert_eq!(hit(Target::Sender(0)), None);
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
    let books = Books { confirmed, ..books(Vec::new()) };
    let node = strike(Kind::NodeKilled, Target::Broker(0), 1100, 1110);
    assert_eq!(all_senders(&books, &node), Some(Duration::from_secs(7)));
    assert_eq!(all_senders(&books, &strike(Kind::SenderCut, Target::Sender(0), 1100, 1100)), None);
}

#[test]
fn a_delivery_that_was_held_up_may_arrive_after_another_worker_has_run_the_task() {
    let twice = || {
        let elsewhere = Run { worker: "w2.1".to_owned(), ..again(1100) };
        books(vec![elsewhere, run(Outcome::Done, "quick", 1, 1110)])
    };
    let stall = |place, until| strike(Kind::WorkerStalled, Target::Worker(place), 1090, until);
    is_explained_by(twice(), stall(1, 1109), Way::Overtaken);
    is_not_explained_by(twice(), stall(3, 1109));
    is_not_explained_by(twice(), stall(1, 1100));
}
