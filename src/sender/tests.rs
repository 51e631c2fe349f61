//! Sending, beside a broker that the test plays.

use std::collections::HashSet;
use std::thread::{self, JoinHandle};

use crossbeam_channel::Sender;

use super::*;
use crate::broker::testing::{self, FakeBroker, LONG, Reply, fault};
use crate::broker::{Body, Properties, QueueSpec, Scope};

const SIGTERM: i32 = 15;

/// What was reported of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Confirmed(u64),
    Failed(u64, Exit),
    Abandoned(u64),
}
use Told::{Abandoned, Confirmed, Failed};

struct Recorder(Sender<Told>);

impl Report for Recorder {
    fn confirmed(&mut self, item: &Item, _id: &str) {
        self.0.send(Confirmed(item.number)).unwrap();
    }

    fn failed(&mut self, item: &Item, why: &Error) {
        self.0.send(Failed(item.number, why.exit)).unwrap();
    }

    fn abandoned(&mut self, item: &Item) {
        self.0.send(Abandoned(item.number)).unwrap();
    }
}

/// What is to be sent, and with how much patience.
struct Given {
    broker: FakeBroker,
    opener: Option<Opener<u64>>,
    job: Job,
    settling: Duration,
    stopping: Duration,
}

fn given() -> Given {
    Given {
        broker: FakeBroker::new(),
        opener: None,
        job: Job {
            session: testing::no_session(),
            queue: testing::queue(),
            delay: None,
            properties: Properties::new_task("text/plain"),
            single: false,
            id: None,
            retry_for: LONG,
        },
        settling: LONG,
        stopping: LONG,
    }
}

/// A sender at work.
struct Run {
    broker: FakeBroker,
    input: Sender<Batch>,
    signal: Sender<i32>,
    told: Receiver<Told>,
    thread: JoinHandle<Summary>,
}

impl Given {
    fn start(self) -> Run {
        let Self { broker, opener, job, settling, stopping } = self;
        let opener = opener.unwrap_or_else(|| {
            let broker = broker.clone();
            Arc::new(move || if job.single { broker.open_optimistic() } else { broker.open() })
        });
        // What was sent has been read.
        let (input, batches) = crossbeam_channel::bounded(0);
        let (signal, signals) = crossbeam_channel::bounded(2);
        let (tell, told) = crossbeam_channel::unbounded();
        let millisecond = Duration::from_millis(1);
        let times = Times { pauses: Backoff::new(millisecond, millisecond), settling, stopping };
        let thread = thread::spawn(move || {
            Sending::new(&job, opener, times, &mut Recorder(tell)).run(&batches, &signals)
        });
        Run { broker, input, signal, told, thread }
    }
}

impl Run {
    fn send(&self, numbers: impl IntoIterator<Item = u64>) {
        let items = numbers.into_iter().map(|number| item(number, number.to_string()));
        self.input.send(Ok(items.collect())).unwrap();
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(LONG).unwrap()
    }

    fn log(&self) -> Vec<(usize, String)> {
        self.broker.log()
    }

    fn signal(&self) {
        self.signal.send(SIGTERM).unwrap();
    }

    /// To the end of its input. Nothing was published twice on one connection.
    fn finish(self) -> (Summary, Vec<Told>, Vec<(usize, String)>) {
        drop(self.input);
        let summary = self.thread.join().unwrap();
        let (told, log): (Vec<_>, _) = (self.told.try_iter().collect(), self.broker.log());
        assert_eq!(log.iter().collect::<HashSet<_>>().len(), log.len(), "{log:?}");
        (summary, told, log)
    }
}

fn item(number: u64, body: impl Into<Vec<u8>>) -> Item {
    Item { number, body: Ok(Body::new(body.into())) }
}

fn entries<const N: usize>(entries: [(usize, u64); N]) -> Vec<(usize, String)> {
    entries.map(|(connection, number)| (connection, number.to_string())).to_vec()
}

fn lost() -> Fault {
    fault(Scope::Connection, FaultKind::Lost, "cut")
}

fn refused() -> Fault {
    fault(Scope::Channel, FaultKind::Refused, "you may not")
}

#[test]
fn each_task_is_reported_once_in_order_when_it_is_confirmed() {
    let run = given().start();
    run.broker.answer(|_| Reply::Nothing);
    run.send([1]);
    run.broker.wait_for(1);
    run.send([2, 3]);
    run.broker.wait_for(3);
    assert!(run.told.is_empty());
    for tag in [3, 2, 1] {
        run.broker.confirm(tag);
    }
    for number in 1..=3 {
        assert_eq!(run.next(), Confirmed(number));
    }
    let ids: HashSet<_> = run.broker.published().iter().map(|one| one.properties.id().to_owned()).collect();
    assert_eq!(ids.len(), 3, "each has an id of its own");
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, summary.failed, summary.ended, summary.worst), (3, 0, None, None));
    assert_eq!((told, log), (vec![], entries([(1, 1), (1, 2), (1, 3)])));
}

#[test]
fn what_a_lost_connection_leaves_unknown_is_published_again_in_order() {
    let run = given().start();
    run.broker.answer(|published| match (published.connection, published.text().as_str()) {
        (1, "1" | "3") | (2, _) => Reply::Confirm,
        (1, "5") => Reply::End(lost()),
        _ => Reply::Nothing,
    });
    run.send(1..=5);
    for number in 1..=5 {
        assert_eq!(run.next(), Confirmed(number));
    }
    let ids = run.broker.published();
    let id_of = |connection, text: &str| {
        let found = ids.iter().find(|one| one.connection == connection && one.text() == text);
        found.unwrap().properties.id().to_owned()
    };
    assert_eq!(id_of(1, "2"), id_of(2, "2"));
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, summary.failed, summary.ended), (5, 0, None));
    let first = entries([(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]);
    assert_eq!((told, log), (vec![], [first, entries([(2, 2), (2, 4), (2, 5)])].concat()));
}

#[test]
fn what_the_call_did_not_publish_is_published_on_the_next_connection() {
    let run = given().start();
    run.broker.answer(|published| match (published.connection, published.text().as_str()) {
        (1, "2") => Reply::Fail(lost()),
        _ => Reply::Confirm,
    });
    run.send(1..=3);
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, told), (3, vec![Confirmed(1), Confirmed(2), Confirmed(3)]));
    assert_eq!(log, entries([(1, 1), (1, 2), (2, 2), (2, 3)]));
}

#[test]
fn a_confirm_that_never_comes_leaves_the_connection_for_another() {
    let given = given();
    given.broker.patience(Duration::from_millis(20), LONG);
    let run = given.start();
    run.broker.answer(|published| match (published.connection, published.text().as_str()) {
        (1, "2") => Reply::Nothing,
        _ => Reply::Confirm,
    });
    run.send(1..=3);
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, told), (3, vec![Confirmed(1), Confirmed(2), Confirmed(3)]));
    assert_eq!(log, entries([(1, 1), (1, 2), (1, 3), (2, 2)]));
}

#[test]
fn nothing_more_is_published_during_an_alarm() {
    let run = given().start();
    run.send([1]);
    assert_eq!(run.next(), Confirmed(1));
    run.broker.block("memory");
    // Tasks that come before the sender has heard of it are published into it. When one is read, those before it were
    // looked at.
    let mut count = 1;
    while run.log().len() + 1 >= count {
        count += 1;
        assert!(count < 100, "it publishes on");
        run.send([count as u64]);
    }
    let before = run.log().len();
    for _ in 0..3 {
        count += 1;
        run.send([count as u64]);
    }
    assert!(run.log().len() == before && run.told.is_empty());
    run.broker.unblock();
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, summary.failed), (count as u64, 0));
    assert_eq!(told, (2..=count as u64).map(Confirmed).collect::<Vec<_>>());
    assert_eq!(log.len(), count);
}

#[test]
fn what_the_broker_closes_two_connections_over_is_given_up_with_its_words() {
    for scope in [Scope::Channel, Scope::Connection] {
        let run = given().start();
        let end = move || Reply::End(fault(scope, FaultKind::Unacceptable, "invalid CC header"));
        run.broker.answer(move |_| end());
        run.send([1]);
        let (summary, told, log) = run.finish();
        let ended = summary.ended.unwrap();
        assert_eq!((ended.exit, ended.to_string().as_str()), (Exit::BadData, "invalid CC header"));
        assert_eq!((told, log), (vec![Abandoned(1)], entries([(1, 1), (2, 1)])));
    }
}

#[test]
fn a_connection_that_is_closed_over_a_task_once_costs_nothing() {
    let run = given().start();
    run.broker.answer(|published| match (published.connection, published.text().as_str()) {
        (1, "1") | (2, "2") => {
            Reply::End(fault(Scope::Connection, FaultKind::Unacceptable, "unexpected frame"))
        }
        _ => Reply::Confirm,
    });
    run.send([1]);
    assert_eq!(run.next(), Confirmed(1));
    run.send([2]);
    let (summary, ..) = run.finish();
    assert_eq!((summary.confirmed, summary.ended), (2, None));
}

#[test]
fn a_refused_task_is_published_on_another_connection_and_the_others_are_not() {
    let run = given().start();
    run.broker.answer(|published| match (published.connection, published.text().as_str()) {
        (1..=3, "2") => Reply::Nack,
        _ => Reply::Confirm,
    });
    run.send(1..=3);
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, told), (3, vec![Confirmed(1), Confirmed(2), Confirmed(3)]));
    assert_eq!(log, entries([(1, 1), (1, 2), (1, 3), (2, 2), (3, 2), (4, 2)]));
}

#[test]
fn what_is_never_settled_beside_a_refused_task_is_published_again_after_a_while() {
    let run = Given { settling: Duration::from_millis(10), ..given() }.start();
    run.broker.answer(|published| match (published.connection, published.text().as_str()) {
        (1, "2") => Reply::Nack,
        (1, "3") => Reply::Nothing,
        _ => Reply::Confirm,
    });
    run.send(1..=3);
    let (summary, _, log) = run.finish();
    assert_eq!(summary.confirmed, 3);
    assert_eq!(log, entries([(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)]));
}

#[test]
fn who_may_not_publish_is_told_so_once_the_queue_was_looked_at() {
    for (single, looks) in [(true, 1), (false, 0)] {
        let mut given = given();
        given.job.single = single;
        let run = given.start();
        run.broker.answer(|_| Reply::End(refused()));
        run.send([1]);
        let told = run.next();
        let broker = run.broker.clone();
        // The second publish is on another channel of the same connection.
        let summary = run.thread.join().unwrap();
        assert_eq!((told, summary.confirmed, summary.failed), (Abandoned(1), 0, 1));
        assert_eq!(summary.ended.unwrap().exit, Exit::Refused);
        assert_eq!((broker.connections(), broker.declared().len()), (1, looks));
        assert_eq!(broker.published().len(), 1 + looks);
    }
}

#[test]
fn bodies_over_a_limit_fail_and_hold_up_no_others() {
    let run = given().start();
    run.broker.answer(|published| match published.body.len() {
        0..=5 => Reply::Confirm,
        _ => Reply::End(fault(Scope::Channel, FaultKind::TooLarge(Some(5)), "too large")),
    });
    let unread = Item { number: 3, body: Err(1 << 40) };
    run.input.send(Ok(vec![item(1, "a"), item(2, "larger"), unread, item(4, "b")])).unwrap();
    run.send([5]);
    let (summary, told, _) = run.finish();
    let too_large = |number| Failed(number, Exit::BadData);
    assert_eq!(told, [Confirmed(1), too_large(2), too_large(3), Confirmed(4), Confirmed(5)]);
    assert_eq!((summary.confirmed, summary.failed, summary.ended), (3, 2, None));
    assert_eq!(summary.worst.unwrap().exit, Exit::BadData);
}

#[test]
fn a_queue_that_is_gone_is_declared_again_a_few_times() {
    let mut left = 2;
    let run = given().start();
    run.broker.answer(move |_| {
        left -= 1;
        if left < 0 { Reply::Confirm } else { Reply::Return }
    });
    run.send([1]);
    let told = run.next();
    assert_eq!((told, run.broker.declared()), (Confirmed(1), vec!["q".to_owned(); 2]));
    drop(run);

    for (declare, told, exit) in
        [(true, Failed(1, Exit::TryAgain), Exit::TryAgain), (false, Abandoned(1), Exit::Configuration)]
    {
        let mut given = given();
        given.job.queue = QueueSpec { declare, ..testing::queue() };
        let run = given.start();
        run.broker.answer(|_| Reply::Return);
        run.send([1]);
        assert_eq!(run.next(), told);
        drop(run.input);
        let summary = run.thread.join().unwrap();
        assert_eq!(summary.ended.or(summary.worst).unwrap().exit, exit);
        assert_eq!(run.broker.published().len(), 3);
    }
}

#[test]
fn delayed_tasks_wait_for_their_queue_and_for_another_connection_if_need_be() {
    let mut given = given();
    given.job.delay = Some(Duration::from_secs(1));
    let mut count = 0;
    given.broker.prepare(move |_| {
        count += 1;
        if count == 1 { Err(lost()) } else { Ok(true) }
    });
    let run = given.start();
    run.send(1..=2);
    let broker = run.broker.clone();
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, told), (2, vec![Confirmed(1), Confirmed(2)]));
    assert_eq!(log, entries([(2, 1), (2, 2)]));
    assert!(broker.published().iter().all(|one| one.queue.starts_with("q.delay.1000.")));
    assert_eq!(broker.declared().len(), 2);
}

#[test]
fn no_more_tasks_are_under_way_than_there_may_be() {
    let run = given().start();
    run.broker.answer(|_| Reply::Nothing);
    run.send(1..=3000);
    run.broker.wait_for(1000);
    run.broker.confirm(1);
    run.broker.wait_for(1001);
    // What has no room is not read.
    assert!(run.input.try_send(Ok(Vec::new())).is_err());
    run.signal();
    run.signal();
    let (summary, told, log) = run.finish();
    assert_eq!((summary.confirmed, summary.failed, told.len(), log.len()), (1, 2999, 3000, 1001));
}

#[test]
fn nothing_is_published_beside_a_body_that_the_broker_does_not_read() {
    let run = given().start();
    run.broker.answer(|published| match published.connection {
        1 => Reply::NotRead,
        _ => Reply::Confirm,
    });
    run.input.send(Ok(vec![item(1, vec![b'x'; 13 << 20]), item(2, "2")])).unwrap();
    run.broker.wait_for(1);
    run.broker.end(&lost());
    let broker = run.broker.clone();
    drop(run.input);
    assert_eq!(run.thread.join().unwrap().confirmed, 2);
    let sizes: Vec<_> = broker.published().iter().map(|one| (one.connection, one.body.len())).collect();
    assert_eq!(sizes, [(1, 13 << 20), (2, 13 << 20), (2, 1)]);
}

#[test]
fn input_that_cannot_be_read_ends_it_and_what_came_before_is_sent() {
    let run = given().start();
    run.send(1..=2);
    run.input.send(Err(std::io::Error::other("broken"))).unwrap();
    let (summary, told, _) = run.finish();
    assert_eq!(told, [Confirmed(1), Confirmed(2)]);
    assert_eq!(summary.worst.unwrap().exit, Exit::BadData);
}

/// Something that keeps tasks from being confirmed. Of three tasks, the first one is confirmed where `confirmed` says so.
struct Trouble {
    why: &'static str,
    exit: Exit,
    confirmed: u64,
    make: fn(&mut Given),
    /// It is there.
    wait: fn(&FakeBroker),
}

/// A connection, an answer, anything: it does not come.
fn never_returns<T>() -> T {
    loop {
        thread::park();
    }
}

const TROUBLES: [Trouble; 7] = [
    Trouble {
        why: "did not answer within",
        exit: Exit::Unavailable,
        confirmed: 0,
        make: |given| given.opener = Some(Arc::new(never_returns)),
        wait: |_| {},
    },
    Trouble {
        why: "went away and did not come back within",
        exit: Exit::Unavailable,
        confirmed: 1,
        make: |given| {
            let broker = given.broker.clone();
            given.broker.answer(move |published| match published.tag {
                1 => Reply::Confirm,
                2 => Reply::Nothing,
                _ => Reply::End(lost()),
            });
            given.opener = Some(Arc::new(move || {
                if broker.connections() > 0 {
                    broker.refuse(Some(Error::unavailable("nobody is there")));
                }
                broker.open()
            }));
        },
        wait: |broker| broker.wait_for_connections(3),
    },
    Trouble {
        why: "did not let us in again within",
        exit: Exit::Refused,
        confirmed: 1,
        make: |given| {
            let broker = given.broker.clone();
            given.broker.answer(move |published| match published.tag {
                1 => Reply::Confirm,
                2 => Reply::Nothing,
                _ => Reply::End(lost()),
            });
            given.opener = Some(Arc::new(move || {
                if broker.connections() > 0 {
                    broker.refuse(Some(Error::turned_away("not you")));
                }
                broker.open()
            }));
        },
        wait: |broker| broker.wait_for_connections(3),
    },
    Trouble {
        why: "confirmed nothing within",
        exit: Exit::TryAgain,
        confirmed: 1,
        make: |given| {
            given.broker.answer(|published| if published.tag == 1 { Reply::Confirm } else { Reply::Nothing });
        },
        wait: |broker| broker.wait_for(3),
    },
    Trouble {
        why: "has blocked publishing",
        exit: Exit::TryAgain,
        confirmed: 0,
        make: |given| given.broker.block("memory"),
        wait: |broker| broker.wait_for(3),
    },
    Trouble {
        why: "the queue is full",
        exit: Exit::TryAgain,
        confirmed: 1,
        make: |given| {
            given
                .broker
                .answer(|published| if published.text() == "1" { Reply::Confirm } else { Reply::Nack });
        },
        wait: |broker| broker.wait_for(6),
    },
    Trouble {
        why: "did not say within",
        exit: Exit::TryAgain,
        confirmed: 0,
        make: |given| {
            given.job.delay = Some(LONG);
            given.broker.prepare(|_| never_returns());
        },
        wait: |broker| broker.wait_for_declarations(1),
    },
];

fn abandoned_after(confirmed: u64) -> Vec<Told> {
    (1..=3).map(|number| if number <= confirmed { Confirmed(number) } else { Abandoned(number) }).collect()
}

#[test]
fn whatever_the_trouble_is_patience_has_an_end_and_the_counts_are_exact() {
    let runs = TROUBLES.map(|trouble| {
        let mut given = given();
        (trouble.make)(&mut given);
        given.job.retry_for = Duration::from_millis(300);
        let run = given.start();
        run.send(1..=3);
        (trouble, run)
    });
    for (trouble, run) in runs {
        let (summary, told, _) = run.finish();
        let error = summary.ended.unwrap();
        assert!(error.to_string().contains(trouble.why), "{error}, and not: {}", trouble.why);
        assert_eq!(error.exit, trouble.exit, "{error}");
        let counts = (summary.confirmed, summary.failed, summary.worst);
        assert_eq!(counts, (trouble.confirmed, 3 - trouble.confirmed, None), "{error}");
        assert_eq!(told, abandoned_after(trouble.confirmed), "{error}");
    }
}

#[test]
fn whatever_the_trouble_is_signals_end_it_and_the_counts_are_exact() {
    for (signals, stopping) in [(1, Duration::from_millis(20)), (2, LONG)] {
        for trouble in TROUBLES {
            let mut given = Given { stopping, ..given() };
            (trouble.make)(&mut given);
            let run = given.start();
            run.send(1..=3);
            (trouble.wait)(&run.broker);
            if trouble.confirmed > 0 {
                assert_eq!(run.next(), Confirmed(1));
            }
            for _ in 0..signals {
                run.signal();
            }
            let (summary, told, _) = run.finish();
            assert_eq!(summary.ended.unwrap().exit, Exit::Signal(SIGTERM), "{}", trouble.why);
            let counts = (summary.confirmed, summary.failed);
            assert_eq!(counts, (trouble.confirmed, 3 - trouble.confirmed), "{}", trouble.why);
            let confirmed = usize::try_from(trouble.confirmed).unwrap();
            assert_eq!(told, abandoned_after(trouble.confirmed)[confirmed..], "{}", trouble.why);
        }
    }
}

#[test]
fn what_is_confirmed_after_a_signal_counts_and_nothing_more_is_read() {
    let run = given().start();
    run.broker.answer(|_| Reply::Nothing);
    run.send(1..=2);
    run.broker.wait_for(2);
    run.signal();
    while run.input.send_timeout(Ok(Vec::new()), Duration::from_millis(1)).is_ok() {}
    run.broker.confirm(1);
    assert_eq!(run.next(), Confirmed(1));
    run.broker.confirm(2);
    assert_eq!(run.next(), Confirmed(2));
    let (summary, told, _) = run.finish();
    assert_eq!((summary.confirmed, summary.failed, told.len()), (2, 0, 0));
    assert_eq!(summary.ended.unwrap().exit, Exit::Signal(SIGTERM));
}

#[test]
fn the_first_attempt_to_connect_is_the_last_one_where_it_fails() {
    let given = given();
    given.broker.refuse(Some(Error::unreached("nobody is there")));
    let run = given.start();
    let summary = run.thread.join().unwrap();
    let error = summary.ended.unwrap();
    assert!(error.to_string().contains("Is RabbitMQ running there"), "{error}");
    assert_eq!(run.broker.connections(), 1);
}
