//! A worker thread at work on a channel, without a broker.

use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use super::*;
use crate::handler::Outcome;
use crate::settlement::{CopyResult, Purpose, WaitsFor};
use crate::worker_pool::dedup::Claim;
use crate::worker_pool::testing::{Answered, Bench, Broker, Queued, failed, new, options, returned, until};
use crate::worker_pool::{Options, Until};
use Answered::{Acked, Requeued};

type Ended = Result<(), Fault>;

/// Consumes on a thread of its own while the test runs, and returns how that ended. The test has to end it.
fn consuming(
    options: Options,
    tasks: impl IntoIterator<Item = Queued>,
    test: impl FnOnce(&Bench, &Broker, &Finishing<'_, '_>),
) -> Bench {
    let (bench, context, mut handler) = Bench::new(options);
    let broker = Broker::with(tasks);
    thread::scope(|scope| {
        let (consuming, bench) = (broker.clone(), &bench);
        let started = scope.spawn(move || {
            let mut unproven = UnprovenAcks::new(&context.shared.dedup, context.shared.options.prefetch);
            // One channel after the other, as a worker thread does.
            let mut ends = Vec::new();
            while !context.stop.is_draining() {
                let mut pauses = Pauses::new();
                let ended = consume(&context, &consuming, None, &mut unproven, &mut pauses, &mut handler);
                let is_over = ended.is_ok();
                ends.push(ended);
                if is_over {
                    break;
                }
                unproven = UnprovenAcks::new(&context.shared.dedup, context.shared.options.prefetch);
                consuming.come_back();
            }
            ends
        });
        {
            // Also when the test fails: the thread is waited for.
            let _aborting = bench.aborting();
            test(bench, &broker, &Finishing(&started));
        }
        let ends = started.join().unwrap();
        assert!(ends.last().is_some_and(Result::is_ok), "{:?}", ends.last());
    });
    bench
}

/// The thread that consumes.
struct Finishing<'t, 's>(&'t ScopedJoinHandle<'s, Vec<Ended>>);

impl Finishing<'_, '_> {
    /// It has ended by itself.
    fn waits(&self) {
        until("the thread has ended", || self.0.is_finished());
    }

    fn goes_on(&self) {
        assert!(!self.0.is_finished());
    }
}

fn with(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = options();
    change(&mut options);
    options
}

#[test]
fn a_task_is_acknowledged_after_it_is_done_and_not_before() {
    consuming(options(), [new("a"), new("b")], |bench, broker, _| {
        bench.runs.begins("a");
        assert_eq!(broker.answers(), []);
        bench.runs.ends(Outcome::Done);
        bench.runs.begins("b");
        assert_eq!(broker.answers(), [("a".to_owned(), Acked)]);
        bench.runs.ends(Outcome::Done);
        until("b is acknowledged", || broker.answered("b") == Some(Acked));
        assert_eq!(broker.most_out(), 1, "a prefetch of 1");
    });
}

#[test]
fn a_failed_task_is_acknowledged_when_its_copy_is_kept_and_others_run_meanwhile() {
    consuming(options(), [new("a"), new("b")], |bench, broker, _| {
        bench.runs.begins_and_ends("a", failed("exit status 3"));
        let copy = bench.copies.next();
        let purpose = Purpose::Retry { delay: Duration::from_secs(5), attempt: 2 };
        assert_eq!((&copy.copy().purpose, &*copy.copy().to.name), (&purpose, "q.delay.5000"));
        // Something that may last stands in its way.
        copy.waits_for(WaitsFor::Change);
        bench.runs.begins_and_ends("b", Outcome::Done);
        until("b is acknowledged", || broker.answered("b") == Some(Acked));
        assert_eq!(broker.answered("a"), None);
        copy.kept();
        until("a is acknowledged", || broker.answered("a") == Some(Acked));
    });
}

#[test]
fn the_last_attempt_is_kept_with_the_dead_tasks() {
    let one_attempt = with(|options| {
        options.policy.attempts = 1;
        options.max_tasks = Some(1);
    });
    let bench = consuming(one_attempt, [new("a")], |bench, broker, finishing| {
        bench.runs.begins_and_ends("a", failed("exit status 3"));
        let copy = bench.copies.next();
        assert_eq!(copy.copy().to.name, "q.dead");
        assert_eq!(broker.answers(), []);
        copy.kept();
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Acked)]);
    });
    assert_eq!(bench.shared.exit(), crate::error::Exit::TasksDead);
}

#[test]
fn a_task_whose_acknowledgement_was_lost_does_not_run_again() {
    consuming(options(), [new("a")], |bench, broker, _| {
        bench.runs.begins("a");
        broker.lose();
        bench.runs.ends(Outcome::Done);
        // It comes back on the next channel.
        until("it is acknowledged there", || broker.answered("a") == Some(Acked));
        bench.runs.nothing_begins();
    });
}

#[test]
fn a_connection_lost_between_copy_and_acknowledgement_costs_no_second_copy_and_no_run() {
    consuming(options(), [new("a")], |bench, broker, _| {
        bench.runs.begins("a");
        broker.lose();
        bench.runs.ends(failed("exit status 3"));
        bench.copies.next().kept();
        until("it is acknowledged on the next channel", || broker.answered("a") == Some(Acked));
        bench.runs.nothing_begins();
        bench.copies.none();
    });
}

#[test]
fn a_connection_lost_before_the_copy_is_kept_costs_another_copy_and_no_run() {
    consuming(options(), [new("a")], |bench, broker, _| {
        bench.runs.begins_and_ends("a", failed("exit status 3"));
        let copy = bench.copies.next();
        copy.waits_for(WaitsFor::Change);
        broker.lose();
        let again = bench.copies.next();
        assert!(copy.is_withdrawn());
        assert_eq!((again.copy().record.attempt, &*again.copy().to.name), (2, "q.delay.5000"));
        again.kept();
        until("it is acknowledged on the next channel", || broker.answered("a") == Some(Acked));
        bench.runs.nothing_begins();
    });
}

#[test]
fn another_thread_that_gets_a_task_whose_copy_is_under_way_does_not_run_it() {
    let task = new("a");
    consuming(options(), [task.clone(), new("b")], |bench, broker, _| {
        bench.runs.begins_and_ends("a", failed("exit status 3"));
        let copy = bench.copies.next();
        copy.waits_for(WaitsFor::Change);
        // This thread is busy, and does not see that its connection is lost.
        bench.runs.begins("b");
        let consumers = broker.holds().len();
        broker.lose();
        let dedup = &bench.shared.dedup;
        let message = task.message();
        let fingerprint = dedup.fingerprint(&message, &message.properties.record());
        assert!(matches!(dedup.claim(fingerprint, true), Claim::Failed(..)));
        bench.runs.ends(Outcome::Done);
        until("it consumes on another channel", || broker.holds().len() > consumers);
    });
}

#[test]
fn a_task_that_is_too_large_to_be_copied_runs_again_when_it_comes_again() {
    let task = new("a");
    consuming(options(), [task.clone()], |bench, broker, finishing| {
        bench.runs.begins_and_ends("a", failed("exit status 3"));
        let copy = bench.copies.next();
        copy.waits_for(WaitsFor::Change);
        copy.answer(CopyResult::TooLarge { length: 9, limit: 8 });
        bench.runs.nothing_begins();
        assert_eq!(broker.answers(), []);
        let message = task.message();
        let fingerprint = bench.shared.dedup.fingerprint(&message, &message.properties.record());
        assert!(!bench.shared.dedup.knows(fingerprint));
        bench.stop.drain();
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Requeued)]);
    });
}

#[test]
fn a_drain_lets_a_running_task_end_and_takes_no_other() {
    consuming(options(), [new("a"), new("b")], |bench, broker, finishing| {
        bench.runs.begins("a");
        bench.stop.drain_by_signal();
        finishing.goes_on();
        bench.runs.ends(Outcome::Done);
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Acked)]);
        assert!(bench.runs.begun().is_empty());
    });
}

#[test]
fn a_drain_waits_for_a_copy_under_way_and_gives_back_what_may_get_none() {
    for (waits_for, answer) in [(WaitsFor::Confirm, Acked), (WaitsFor::Change, Requeued)] {
        consuming(options(), [new("a")], |bench, broker, finishing| {
            bench.runs.begins_and_ends("a", failed("exit status 3"));
            let copy = bench.copies.next();
            // The thread does not wait for it any more.
            copy.waits_for(WaitsFor::Change);
            copy.waits_for(waits_for);
            bench.stop.drain_by_signal();
            if waits_for == WaitsFor::Confirm {
                until("it has cancelled its consumer", || !broker.is_consuming());
                assert_eq!(broker.answers(), []);
                copy.kept();
                finishing.waits();
            } else {
                finishing.waits();
                assert!(copy.is_withdrawn());
            }
            assert_eq!(broker.answers(), [("a".to_owned(), answer)]);
        });
    }
}

#[test]
fn a_drain_gives_back_what_was_only_prefetched() {
    let prefetch = with(|options| options.prefetch = 3);
    consuming(prefetch, [new("a"), new("b"), new("c"), new("d")], |bench, broker, finishing| {
        bench.runs.begins("a");
        bench.stop.drain_by_signal();
        bench.runs.ends(Outcome::Done);
        finishing.waits();
        let expected = [("a", Acked), ("b", Requeued), ("c", Requeued)];
        assert_eq!(broker.answers(), expected.map(|(id, how)| (id.to_owned(), how)));
        assert_eq!(broker.most_out(), 3);
    });
}

#[test]
fn a_bounded_run_takes_exactly_its_tasks() {
    let two = with(|options| options.max_tasks = Some(2));
    consuming(two, ["a", "b", "c"].map(new), |bench, broker, finishing| {
        // Given up: that was no task of the two.
        bench.runs.begins_and_ends("a", Outcome::GivenUp);
        bench.runs.begins_and_ends("a", Outcome::Done);
        bench.runs.begins("b");
        bench.runs.ends(Outcome::Done);
        finishing.waits();
        let expected = [("a", Requeued), ("a", Acked), ("b", Acked)];
        assert_eq!(broker.answers(), expected.map(|(id, how)| (id.to_owned(), how)));
        bench.runs.nothing_begins();
    });
}

#[test]
fn a_task_that_a_quorum_queue_may_drop_is_counted_by_a_copy_before_it_runs() {
    consuming(options(), [returned("a", 2), new("b")], |bench, broker, _| {
        let copy = bench.copies.next();
        assert_eq!(copy.copy().purpose, Purpose::Count(2));
        assert_eq!(copy.copy().to.name, "q");
        // Nothing else runs that could take the process down before the copy is kept.
        copy.waits_for(WaitsFor::Change);
        bench.runs.nothing_begins();
        assert_eq!(broker.answers(), []);
        copy.kept();
        until("its place is taken", || broker.answered("a") == Some(Acked));
        bench.runs.begins_and_ends("b", Outcome::Done);
    });
}

#[test]
fn prefetched_tasks_are_counted_when_they_arrive() {
    let prefetch = with(|options| options.prefetch = 2);
    consuming(prefetch, [new("a"), returned("b", 2)], |bench, broker, _| {
        bench.runs.begins("a");
        // While the one before it runs.
        bench.copies.next().kept();
        bench.runs.ends(Outcome::Done);
        until("its place is taken", || broker.answered("b") == Some(Acked));
        bench.runs.nothing_begins();
        bench.copies.none();
    });
}

#[test]
fn a_prefetched_task_whose_copy_is_under_way_does_not_go_back_in_a_drain() {
    let prefetch = with(|options| options.prefetch = 2);
    consuming(prefetch, [new("a"), returned("b", 2)], |bench, broker, finishing| {
        bench.runs.begins("a");
        let copy = bench.copies.next();
        bench.stop.drain_by_signal();
        bench.runs.ends(Outcome::Done);
        until("a is acknowledged", || broker.answered("a") == Some(Acked));
        finishing.goes_on();
        copy.kept();
        finishing.waits();
        assert_eq!(broker.answers(), ["a", "b"].map(|id| (id.to_owned(), Acked)));
        bench.copies.none();
    });
}

#[test]
fn a_task_that_was_delivered_too_often_is_dead_without_running() {
    consuming(options(), [returned("a", 5)], |bench, broker, _| {
        let copy = bench.copies.next();
        assert_eq!(copy.copy().to.name, "q.dead");
        copy.kept();
        until("it is acknowledged", || broker.answered("a") == Some(Acked));
        bench.runs.nothing_begins();
    });
}

#[test]
fn a_count_that_cannot_be_kept_does_not_keep_a_task_from_running() {
    consuming(options(), [returned("a", 2)], |bench, broker, _| {
        bench.copies.next().answer(CopyResult::TooLarge { length: 9, limit: 8 });
        bench.runs.begins_and_ends("a", Outcome::Done);
        until("it is acknowledged", || broker.answered("a") == Some(Acked));
    });
}

#[test]
fn what_may_be_dropped_when_it_goes_back_runs_before_the_worker_ends() {
    consuming(options(), [returned("a", 2)], |bench, broker, finishing| {
        let copy = bench.copies.next();
        bench.copies.block();
        copy.waits_for(WaitsFor::Change);
        bench.stop.drain_by_signal();
        bench.runs.begins_and_ends("a", Outcome::Done);
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Acked)]);
        assert!(copy.is_withdrawn());
    });
}

#[test]
fn what_may_be_dropped_and_goes_back_after_all_is_told() {
    let bench = consuming(options(), [returned("a", 2)], |bench, broker, finishing| {
        let copy = bench.copies.next();
        copy.waits_for(WaitsFor::Change);
        // There is no time to run it.
        bench.stop.abort();
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Requeued)]);
    });
    assert!(bench.shared.last_returns().is_some());
}

#[test]
fn without_a_command_the_worker_stops_and_the_task_goes_back() {
    consuming(options(), [new("a"), new("b")], |bench, broker, finishing| {
        let obstacle = crate::handler::Obstacle::lasting("no such command".into());
        bench.runs.begins_and_ends("a", Outcome::CannotRun(obstacle));
        bench.ends_with("no such command");
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Requeued)]);
    });
}

#[test]
fn where_copies_are_not_allowed_the_worker_stops_and_the_task_goes_back() {
    consuming(options(), [new("a")], |bench, broker, finishing| {
        bench.runs.begins_and_ends("a", failed("exit status 3"));
        bench.copies.next().answer(CopyResult::NotAllowed(Error::turned_away("not allowed")));
        bench.ends_with("cannot keep a copy of a task in q.delay.5000");
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Requeued)]);
    });
}

#[test]
fn what_runs_is_given_up_with_the_abort() {
    consuming(options(), [new("a")], |bench, broker, finishing| {
        bench.runs.begins("a");
        bench.stop.abort();
        finishing.waits();
        assert_eq!(broker.answers(), [("a".to_owned(), Requeued)]);
        bench.copies.none();
    });
}

#[test]
fn an_empty_queue_ends_a_run_only_with_what_had_arrived() {
    let prefetch = with(|options| (options.prefetch, options.until) = (3, Some(Until::Empty)));
    consuming(prefetch, [new("a"), new("b")], |bench, broker, finishing| {
        bench.runs.begins("a");
        bench.shared.begin_finishing();
        bench.stop.drain();
        bench.runs.ends(Outcome::Done);
        bench.runs.begins_and_ends("b", Outcome::Done);
        finishing.waits();
        assert_eq!(broker.answers(), ["a", "b"].map(|id| (id.to_owned(), Acked)));
    });
}

#[test]
fn what_a_bounded_run_may_not_take_any_more_goes_back() {
    let bounds = with(|options| {
        (options.prefetch, options.until, options.max_tasks) = (3, Some(Until::Empty), Some(2));
    });
    consuming(bounds, ["a", "b", "c"].map(new), |bench, broker, finishing| {
        bench.runs.begins("a");
        bench.shared.begin_finishing();
        bench.stop.drain();
        bench.runs.ends(Outcome::Done);
        bench.runs.begins_and_ends("b", Outcome::Done);
        finishing.waits();
        let expected = [("a", Acked), ("b", Acked), ("c", Requeued)];
        assert_eq!(broker.answers(), expected.map(|(id, how)| (id.to_owned(), how)));
    });
}

#[test]
fn a_consumer_that_the_broker_cancelled_ends_its_channel_after_the_answer() {
    consuming(options(), [new("a")], |bench, broker, _| {
        bench.runs.begins("a");
        broker.cancel();
        bench.runs.ends(Outcome::Done);
        until("it consumes on another channel", || broker.holds().len() == 2);
        assert_eq!(broker.answers(), [("a".to_owned(), Acked)]);
    });
}
