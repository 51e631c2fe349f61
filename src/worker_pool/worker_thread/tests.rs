//! A worker thread and whoever gives it channels, without a broker.

use std::thread;

use crossbeam_channel::{Receiver, unbounded};

use super::*;
use crate::handler::Outcome;
use crate::worker_pool::Options;
use crate::worker_pool::testing::{Answered, Bench, Broker, LONG, Queued, new, options, until};

/// Runs a worker thread beside the test, which gives it channels.
fn working(
    options: Options,
    tasks: impl IntoIterator<Item = Queued>,
    test: impl FnOnce(&Bench, &Broker, &Receiver<Request>),
) {
    let (bench, context, mut handler) = Bench::new(options);
    let (requests_in, requests) = unbounded();
    let broker = Broker::with(tasks);
    thread::scope(|scope| {
        let worker = WorkerThread { context, requests: requests_in };
        let started = scope.spawn(move || worker.run(&mut handler));
        {
            // Also when the test fails: the thread is waited for.
            let _aborting = bench.aborting();
            test(&bench, &broker, &requests);
        }
        started.join().unwrap();
    });
    assert_eq!(bench.closed.load(Ordering::SeqCst), 1, "its handler is closed");
}

/// Gives it the next channel; what became of the one before.
fn grant(requests: &Receiver<Request>, broker: &Broker, generation: u64) -> Option<(u64, Fault)> {
    let request = requests.recv_timeout(LONG).unwrap();
    let (channel, ack_timeout) = (Box::new(broker.clone()), AckTimeout::PerConsumer);
    request.reply.send(Grant { channel, generation, ack_timeout }).unwrap();
    request.lost
}

#[test]
fn it_asks_for_another_channel_and_says_what_became_of_the_last_one() {
    working(options(), [new("a"), new("b")], |bench, broker, requests| {
        assert_eq!(grant(requests, broker, 7), None);
        bench.runs.begins_and_ends("a", Outcome::Done);
        bench.runs.begins("b");
        broker.lose();
        bench.runs.ends(Outcome::Done);
        // The loss is seen when the task is to be acknowledged.
        let request = requests.recv_timeout(LONG).unwrap();
        assert_eq!(request.lost, Some((7, Fault::unconfirmed())));
        broker.come_back();
        let (channel, ack_timeout) = (Box::new(broker.clone()), AckTimeout::Configured);
        request.reply.send(Grant { channel, generation: 8, ack_timeout }).unwrap();
        until("b is acknowledged there", || broker.answered("b") == Some(Answered::Acked));
        bench.runs.nothing_begins();
    });
}

#[test]
fn a_drain_is_heard_while_there_is_no_channel() {
    working(options(), [], |bench, _, requests| {
        let request = requests.recv_timeout(LONG).unwrap();
        bench.stop.drain();
        until("it listens no more", || {
            let channel = Box::new(Broker::with([]));
            let grant = Grant { channel, generation: 1, ack_timeout: AckTimeout::Configured };
            request.reply.try_send(grant).is_err_and(|error| error.is_disconnected())
        });
    });
}

#[test]
fn the_broker_is_asked_to_wait_where_a_consumer_has_a_say() {
    let timeout = Some(Duration::from_hours(2));
    working(Options { timeout, ..options() }, [new("a")], |bench, broker, requests| {
        grant(requests, broker, 1);
        bench.runs.begins_and_ends("a", Outcome::Done);
        until("a is acknowledged", || broker.answered("a") == Some(Answered::Acked));
        assert!(broker.holds()[0].is_some_and(|hold| hold > Duration::from_hours(2)));
    });
}

#[test]
fn a_thread_without_a_handler_ends_the_worker() {
    let (bench, context, _) = Bench::new(options());
    let (requests, _) = unbounded();
    let error = std::io::Error::other("no room");
    WorkerThread { context, requests }.cannot_start(&error);
    bench.ends_with("cannot prepare to run commands: no room");
}
