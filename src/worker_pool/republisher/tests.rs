//! Copies, beside a broker that the test plays.

use std::time::Instant;

use super::super::testing::options;
use super::super::{BOUNDED_PATIENCE, Options};
use super::*;
use crate::backoff::Backoff;
use crate::broker::testing::{self, FakeBroker, LONG, Published, Reply, fault};
use crate::broker::{Fault, FaultKind, Record, Scope};
use crate::error::Exit;
use crate::report::testing as report;
use crate::settlement::Purpose;
use crate::worker_pool::planned_copy::Named;

const SHORT: Duration = Duration::from_millis(2);

/// The republisher of a worker, and those around it.
struct Worker {
    broker: FakeBroker,
    republisher: Republisher,
    end_requests: Receiver<EndRequest>,
    wake: (Sender<()>, Receiver<()>),
    ended: Receiver<Never>,
}

fn worker() -> Worker {
    start(None, BOUNDED_PATIENCE, SHORT)
}

fn start(max_tasks: Option<u64>, bounded: Duration, refused: Duration) -> Worker {
    let connecting = Backoff::new(SHORT, SHORT);
    let refused = Backoff::new(refused, refused);
    start_with(max_tasks, Times { connecting, refused, bounded, telling: LONG })
}

fn start_with(max_tasks: Option<u64>, times: Times) -> Worker {
    let options = Options { max_tasks, prepare_retries: false, ..options() };
    let broker = FakeBroker::new();
    let opener = Arc::new({
        let broker = broker.clone();
        move || broker.open()
    });
    let (end_requests_in, end_requests) = crossbeam_channel::unbounded();
    let (alive, ended) = crossbeam_channel::bounded(0);
    let shared = Arc::new(Shared::new(options));
    let republisher = Republisher::start_with(opener, times, &shared, end_requests_in, alive).unwrap();
    Worker { broker, republisher, end_requests, wake: crossbeam_channel::bounded(1), ended }
}

fn retry() -> Purpose {
    Purpose::Retry { delay: LONG, attempt: 2 }
}

impl Worker {
    fn request(&self, body: &str) -> Pending {
        self.request_copy(body, false)
    }

    fn request_copy(&self, body: &str, comes_first: bool) -> Pending {
        let to = testing::queue().dead();
        let copy = PlannedCopy {
            to,
            record: Record::default(),
            purpose: retry(),
            named: Named::default(),
            comes_first,
        };
        self.republisher.request(copy, body.as_bytes().to_vec(), &testing::task(body), &self.wake.0)
    }

    /// Copies that are published in one go, once an alarm is over.
    fn request_together<const N: usize>(&self, bodies: [&str; N]) -> [Pending; N] {
        self.broker.block("an alarm before");
        let pending = bodies.map(|body| self.request(body));
        for pending in &pending {
            self.until_waits_for(pending, WaitsFor::Change);
        }
        self.broker.unblock();
        pending
    }

    fn until_waits_for(&self, pending: &Pending, what: WaitsFor) {
        let deadline = Instant::now() + LONG;
        while pending.waits_for() != what {
            assert!(self.wake.1.recv_deadline(deadline).is_ok(), "it waits for {:?}", pending.waits_for());
        }
    }

    fn log(&self) -> Vec<(usize, String)> {
        self.broker.log()
    }
}

fn answer(pending: &Pending) -> CopyResult {
    let deadline = Instant::now() + LONG;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no answer");
        if let Some(answer) = pending.wait(left, &crossbeam_channel::never()) {
            return answer;
        }
    }
}

fn is_kept(pending: &Pending) -> bool {
    matches!(answer(pending), CopyResult::Kept)
}

/// Nothing was said so far.
fn is_open(pending: &Pending) -> bool {
    pending.replies.is_empty()
}

fn lost() -> Fault {
    fault(Scope::Connection, FaultKind::Lost, "cut")
}

fn unacceptable(words: &str) -> Fault {
    fault(Scope::Channel, FaultKind::Unacceptable, words)
}

fn refused() -> Fault {
    fault(Scope::Channel, FaultKind::Refused, "you may not")
}

/// On which connection each body came.
fn entries<const N: usize>(entries: [(usize, &str); N]) -> Vec<(usize, String)> {
    entries.map(|(connection, body)| (connection, body.to_owned())).to_vec()
}

#[test]
fn a_copy_that_is_kept_counts_although_the_worker_gives_up_at_the_same_time() {
    let worker = worker();
    let (abort, aborting) = crossbeam_channel::bounded(0);
    drop::<Sender<Never>>(abort);
    for number in 0..20 {
        let pending = worker.request(&number.to_string());
        let deadline = Instant::now() + LONG;
        while is_open(&pending) {
            assert!(worker.wake.1.recv_deadline(deadline).is_ok(), "no answer");
        }
        assert!(matches!(pending.wait(LONG, &aborting), Some(CopyResult::Kept)));
    }
}

#[test]
fn a_copy_is_kept_when_it_is_confirmed_and_not_before() {
    let worker = worker();
    worker.broker.answer(|_| Reply::Nothing);
    let first = worker.request("a");
    worker.broker.wait_for(1);
    let second = worker.request("b");
    worker.broker.wait_for(2);
    assert!(is_open(&first) && is_open(&second));
    let published = worker.broker.published();
    assert_eq!(published[0].queue, "q.dead");
    assert_eq!(published[0].properties.record(), Record::default());
    worker.broker.confirm(published[1].tag);
    assert!(is_kept(&second) && is_open(&first));
    worker.broker.confirm(published[0].tag);
    assert!(is_kept(&first));
    assert_eq!(
        (worker.log(), worker.broker.declared()),
        (entries([(1, "a"), (1, "b")]), vec!["q.dead".into()])
    );
}

#[test]
fn what_is_lost_before_its_confirm_is_published_again_and_not_kept_before() {
    let worker = worker();
    worker.broker.answer(|published| match published.connection {
        1 => Reply::End(lost()),
        _ => Reply::Nothing,
    });
    let pending = worker.request("a");
    worker.broker.wait_for(2);
    assert!(is_open(&pending));
    worker.broker.confirm(worker.broker.published()[1].tag);
    assert!(is_kept(&pending));
    assert_eq!(worker.log(), entries([(1, "a"), (2, "a")]));
}

#[test]
fn what_was_confirmed_before_the_loss_is_kept_and_the_rest_published_again_in_order() {
    let worker = worker();
    worker.broker.answer(|published| match (published.connection, published.text().as_str()) {
        (1, "a") | (2, _) => Reply::Confirm,
        (1, "d") => Reply::Fail(lost()),
        _ => Reply::Nothing,
    });
    for pending in worker.request_together(["a", "b", "c", "d"]) {
        assert!(is_kept(&pending));
    }
    let first = [(1, "a"), (1, "b"), (1, "c"), (1, "d")];
    assert_eq!(worker.log(), [entries(first), entries([(2, "b"), (2, "c"), (2, "d")])].concat());
}

#[test]
fn a_confirm_that_never_comes_leaves_the_connection_for_another() {
    let worker = worker();
    worker.broker.patience(Duration::from_millis(20), LONG);
    worker.broker.answer(|published| if published.connection == 1 { Reply::Nothing } else { Reply::Confirm });
    assert!(is_kept(&worker.request("a")));
    assert_eq!(worker.log(), entries([(1, "a"), (2, "a")]));
}

#[test]
fn a_full_queue_is_asked_by_one_copy_after_each_pause_until_there_is_room() {
    let pause = Duration::from_millis(20);
    let worker = start(None, BOUNDED_PATIENCE, pause);
    worker.broker.answer(|_| Reply::Nack);
    let first = worker.request("a");
    worker.until_waits_for(&first, WaitsFor::Room);
    let second = worker.request("b");
    worker.until_waits_for(&second, WaitsFor::Room);
    worker.broker.wait_for(3);
    assert!(is_open(&first) && is_open(&second));
    worker.broker.answer(|_| Reply::Confirm);
    assert!(is_kept(&first) && is_kept(&second));
    let published = worker.broker.published();
    let (last, tries) = published.split_last().unwrap();
    assert!(tries.iter().all(|one| one.text() == "a") && last.text() == "b", "{:?}", worker.log());
    // Pauses are between half of the step and all of it. And another connection may be of use.
    for pair in tries.windows(2) {
        assert!(pair[1].at - pair[0].at >= pause / 2 && pair[0].connection < pair[1].connection);
    }
}

#[test]
fn nothing_is_published_into_an_alarm_and_what_is_withdrawn_meanwhile_never() {
    let worker = worker();
    worker.broker.block("memory");
    let (withdrawn, wanted) = (worker.request("withdrawn"), worker.request("wanted"));
    worker.until_waits_for(&withdrawn, WaitsFor::Change);
    worker.until_waits_for(&wanted, WaitsFor::Change);
    assert!(worker.republisher.is_blocked() && worker.log().is_empty());
    drop(withdrawn);
    worker.broker.unblock();
    assert!(is_kept(&wanted));
    assert!(!worker.republisher.is_blocked());
    assert_eq!(worker.log(), entries([(1, "wanted")]));
}

#[test]
fn an_alarm_in_the_middle_holds_what_is_not_published() {
    let worker = worker();
    worker.broker.answer(|_| Reply::Nothing);
    let before = worker.request("before");
    worker.broker.wait_for(1);
    worker.broker.block("disk");
    worker.until_waits_for(&before, WaitsFor::Change);
    let (withdrawn, wanted) = (worker.request("withdrawn"), worker.request("wanted"));
    worker.until_waits_for(&withdrawn, WaitsFor::Change);
    worker.until_waits_for(&wanted, WaitsFor::Change);
    drop(withdrawn);
    worker.broker.answer(|_| Reply::ConfirmAll);
    worker.broker.unblock();
    assert!(is_kept(&wanted) && is_kept(&before));
    assert_eq!(worker.log(), entries([(1, "before"), (1, "wanted")]));
}

#[test]
fn an_alarm_is_told_with_how_many_tasks_it_holds_at_once_and_again_and_again() {
    const ALARM: &str = "an alarm that is told";
    report::listen();
    let short = || Backoff::new(SHORT, SHORT);
    let times = Times { connecting: short(), refused: short(), bounded: LONG, telling: 5 * SHORT };
    let worker = start_with(None, times);
    let lines = |held: &str| report::told(&format!("({ALARM}): {held} here, unacknowledged, until it takes"));
    let until_told =
        |held: &str, count| report::wait_until_told(&format!("({ALARM}): {held} here,"), count, LONG);
    assert!(is_kept(&worker.request("before")));
    worker.broker.block(ALARM);
    // As nothing is held yet, there is nothing to tell again.
    until_told("failed tasks wait", 1);
    let one = worker.request("one");
    until_told("1 task waits", 3);
    let two = worker.request("two");
    until_told("2 tasks wait", 2);
    drop(one);
    let before = lines("1 task waits").len();
    until_told("1 task waits", before + 2);
    assert_eq!(lines("failed tasks wait").len(), 1);
    worker.broker.unblock();
    assert!(is_kept(&two));
    let all = report::told(ALARM).len();
    assert!(is_kept(&worker.request("after")));
    std::thread::sleep(20 * SHORT);
    assert_eq!(report::told(ALARM).len(), all, "it is over");
}

#[test]
fn what_is_under_way_when_an_alarm_comes_is_held_as_well_and_told_once() {
    const ALARM: &str = "an alarm in the middle of it";
    report::listen();
    let worker = worker();
    worker.broker.answer(|_| Reply::Nothing);
    let before = worker.request("before");
    worker.broker.wait_for(1);
    worker.broker.block(ALARM);
    worker.until_waits_for(&before, WaitsFor::Change);
    let told = report::wait_until_told(ALARM, 1, LONG);
    let after = worker.request("after");
    worker.until_waits_for(&after, WaitsFor::Change);
    assert!(told[0].contains(": 1 task waits here"), "{told:?}");
    assert_eq!(report::told(ALARM), told, "not again within the pause");
}

#[test]
fn the_copy_that_the_broker_does_not_take_is_found_and_tried_in_barer_forms() {
    let worker = worker();
    worker.broker.answer(|published| match published.text().as_str() {
        "bad" if published.properties.record().dropped.is_none() => {
            Reply::End(unacceptable("fast reply consumer does not exist"))
        }
        "bad" if !published.properties.user_headers().is_empty() => Reply::End(unacceptable("not this")),
        "bad" => Reply::Confirm,
        _ => Reply::Nothing,
    });
    let [good, bad, other] = worker.request_together(["good", "bad", "other"]);
    // Alone, until its confirm has come.
    worker.broker.wait_for(3);
    worker.broker.confirm(worker.broker.published()[2].tag);
    assert!(is_kept(&good) && is_kept(&bad));
    worker.broker.wait_for(7);
    assert!(is_open(&other));
    worker.broker.confirm(worker.broker.published()[6].tag);
    assert!(is_kept(&other));
    let alone = entries([(2, "good"), (2, "bad"), (3, "bad"), (4, "bad"), (4, "other")]);
    assert_eq!(worker.log(), [entries([(1, "good"), (1, "bad")]), alone].concat());
    let dropped: Vec<_> =
        worker.broker.published().iter().map(|one| one.properties.record().dropped).collect();
    let of_bad = [None, Some("reply_to"), Some("reply_to, Colour")].map(|names| names.map(str::to_owned));
    assert_eq!(dropped[3..6], of_bad);
    assert_eq!((&dropped[2], &dropped[6]), (&None, &None));
}

#[test]
fn a_copy_that_is_taken_in_no_form_waits_and_holds_up_no_other() {
    let worker = worker();
    let takes_it = Arc::new(AtomicBool::new(false));
    worker.broker.answer({
        let takes_it = Arc::clone(&takes_it);
        move |published| match published.text().as_str() {
            "bad" if !takes_it.load(Ordering::SeqCst) => Reply::End(unacceptable("not this")),
            "bad" => Reply::Confirm,
            _ => Reply::Nothing,
        }
    });
    let bad = worker.request("bad");
    worker.broker.wait_for(4);
    worker.until_waits_for(&bad, WaitsFor::Change);
    let other = worker.request("other");
    let tag = worker.broker.wait_for_body("other");
    // It is not tried beside others, which it could take down.
    assert!(other.wait(10 * SHORT, &crossbeam_channel::never()).is_none());
    let log = worker.log();
    assert_eq!(log.iter().filter(|(_, body)| body == "other").count(), 1, "{log:?}");
    assert_eq!(log.last().unwrap().1, "other");
    worker.broker.confirm(tag);
    assert!(is_kept(&other) && is_open(&bad));
    takes_it.store(true, Ordering::SeqCst);
    assert!(is_kept(&bad));
}

#[test]
fn what_is_not_allowed_is_answered_so_unless_the_copy_has_to_come_first() {
    let prepare: fn(&FakeBroker) = |broker| broker.prepare(|_| Err(refused()));
    let publish: fn(&FakeBroker) = |broker| broker.answer(|_| Reply::End(refused()));
    let connect: fn(&FakeBroker) = |broker| broker.refuse(Some(Error::configuration("you may not")));
    for forbid in [prepare, publish, connect] {
        let worker = worker();
        forbid(&worker.broker);
        let CopyResult::NotAllowed(error) = answer(&worker.request("a")) else { panic!("it is not allowed") };
        assert!(error.to_string().contains("you may not"), "{error}");
        let first = worker.request_copy("first", true);
        let connections = worker.broker.connections();
        worker.until_waits_for(&first, WaitsFor::Change);
        worker.broker.prepare(|_| Ok(false));
        worker.broker.answer(|_| Reply::Confirm);
        worker.broker.refuse(None);
        assert!(is_kept(&first), "after {connections} connections");
    }
}

#[test]
fn a_user_who_is_turned_away_now_may_be_let_in_later() {
    let worker = worker();
    worker.broker.refuse(Some(Error::turned_away("not now")));
    let pending = worker.request("a");
    worker.broker.wait_for_connections(3);
    worker.until_waits_for(&pending, WaitsFor::Change);
    worker.broker.refuse(None);
    assert!(is_kept(&pending));
}

#[test]
fn what_is_too_large_is_answered_so_and_the_limit_is_remembered() {
    let worker = worker();
    worker.broker.answer(|published| match published.body.len() {
        0..=5 => Reply::Confirm,
        _ => Reply::End(fault(Scope::Channel, FaultKind::TooLarge(Some(5)), "too large")),
    });
    let [small, large] = worker.request_together(["small", "larger"]);
    assert!(is_kept(&small));
    assert!(matches!(answer(&large), CopyResult::TooLarge { length: 6, limit: 5 }));
    let published = worker.log();
    assert!(matches!(answer(&worker.request("larger still")), CopyResult::TooLarge { length: 12, limit: 5 }));
    assert_eq!(worker.log(), published);
}

#[test]
fn a_copy_that_comes_back_has_its_queue_declared_again_and_then_waits() {
    let worker = worker();
    worker.broker.answer(|published| match published.text().as_str() {
        "once" if published.tag == 2 => Reply::Return,
        "once" => Reply::Confirm,
        _ => Reply::Return,
    });
    assert!(is_kept(&worker.request("once")));
    assert_eq!(worker.broker.declared().len(), 2);
    let missing = worker.request("always");
    worker.until_waits_for(&missing, WaitsFor::Change);
    assert!(is_open(&missing));
    worker.broker.answer(|_| Reply::Confirm);
    assert!(is_kept(&missing));
}

#[test]
fn a_queue_that_cannot_be_declared_now_is_tried_again() {
    let worker = worker();
    worker.broker.prepare(|_| Err(fault(Scope::Channel, FaultKind::Lost, "its node is away")));
    let pending = worker.request("a");
    worker.until_waits_for(&pending, WaitsFor::Change);
    assert!(worker.log().is_empty());
    worker.broker.prepare(|_| Ok(false));
    assert!(is_kept(&pending));
    // On the same connection.
    assert_eq!(worker.log(), entries([(1, "a")]));
}

#[test]
fn the_connection_may_be_lost_while_a_queue_is_declared() {
    let worker = worker();
    let mut count = 0;
    worker.broker.prepare(move |_| {
        count += 1;
        if count == 1 { Err(lost()) } else { Ok(false) }
    });
    assert!(is_kept(&worker.request("a")));
    assert_eq!(worker.log(), entries([(2, "a")]));
}

#[test]
fn nothing_is_published_beside_a_body_that_the_broker_does_not_read() {
    let worker = worker();
    worker.broker.answer(|published| match published.connection {
        1 => Reply::NotRead,
        _ => Reply::Confirm,
    });
    let large = "x".repeat(13 << 20);
    let (large, small) = (worker.request(&large), worker.request("small"));
    worker.broker.wait_for(1);
    worker.broker.end(&lost());
    assert!(is_kept(&large) && is_kept(&small));
    let sizes = worker.broker.published();
    let sizes: Vec<_> =
        sizes.iter().map(|Published { connection, body, .. }| (*connection, body.len())).collect();
    assert_eq!(sizes, [(1, 13 << 20), (2, 13 << 20), (2, 5)]);
}

#[test]
fn a_bounded_run_gives_up_on_copies_that_are_not_kept_and_others_do_not() {
    let nack: fn(&FakeBroker) = |broker| broker.answer(|_| Reply::Nack);
    let block: fn(&FakeBroker) = |broker| broker.block("memory");
    for (cause, why) in [(nack, "is the queue full?"), (block, "it has blocked publishing")] {
        let worker = start(Some(1), Duration::from_millis(20), SHORT);
        cause(&worker.broker);
        let _pending = worker.request("a");
        let Ok(EndRequest::Fatal(error)) = worker.end_requests.recv_timeout(LONG) else {
            panic!("it goes on")
        };
        assert_eq!(error.exit, Exit::TryAgain);
        assert!(error.to_string().contains(why), "{error}");
    }
    let worker = start(None, Duration::ZERO, SHORT);
    nack(&worker.broker);
    let _pending = worker.request("a");
    worker.broker.wait_for(10);
    assert!(worker.end_requests.is_empty());
}

#[test]
fn the_thread_ends_with_the_last_who_could_ask() {
    let worker = worker();
    assert!(is_kept(&worker.request("a")));
    drop(worker.republisher);
    assert!(worker.ended.recv_timeout(LONG).is_err_and(|error| error.is_disconnected()));
}
