//! A worker thread without a broker: a queue in memory that delivers as a broker does, a handler and a republisher that
//! do what the test says.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};

use super::context::Context;
use super::republisher::Republisher;
use super::republisher::testing::Copies;
use super::shared::Shared;
use super::stop::Stop;
use super::{EndRequest, Options};
pub(super) use crate::broker::testing::LONG;
use crate::broker::testing::{no_session, queue};
use crate::broker::{
    ConsumeOptions, Deliveries, Delivery, DeliveryChannel, Fault, Message, Next, Properties, QueueType,
    Record, Watch,
};
use crate::cancel::Never;
use crate::handler::{Failure, Handler, Outcome, Task};
use crate::lock::lock;
use crate::settlement::Policy;

/// How long to wait for what should not happen.
pub(super) const SHORT: Duration = Duration::from_millis(50);

/// A message in the queue.
#[derive(Clone)]
pub(super) struct Queued {
    properties: Properties,
    redelivered: bool,
}

impl Queued {
    /// It comes back to another thread.
    pub(super) fn message(&self) -> Message<'_> {
        Message { properties: &self.properties, body: b"", redelivered: true }
    }
}

/// A task with this id that was never delivered.
pub(super) fn new(id: &str) -> Queued {
    Queued { properties: Properties::new_task("").with_id(id), redelivered: false }
}

/// One that a quorum queue has taken back so often.
pub(super) fn returned(id: &str, count: u32) -> Queued {
    let properties = Properties::default().with_id(id).redelivered(count, &Record::default());
    Queued { properties, redelivered: true }
}

/// How a delivery was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    Acked,
    Requeued,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Queued>,
    /// What is unanswered, by tag, with the number of its consumer.
    out: Vec<(u64, u32, Queued)>,
    last_tag: u64,
    consumers: u32,
    consuming: bool,
    /// Answers in their order, by the ids of the tasks.
    answers: Vec<(String, Answered)>,
    /// The most that were unanswered at one time.
    most_out: usize,
    lost: Option<Fault>,
    cancelled_by_broker: bool,
    /// What the consumers asked for.
    holds: Vec<Option<Duration>>,
}

/// A queue, and the one channel that consumes from it. Clones are the same.
#[derive(Clone)]
pub(super) struct Broker {
    state: Arc<Mutex<State>>,
    changed: (Sender<()>, Receiver<()>),
}

impl Broker {
    pub(super) fn with(tasks: impl IntoIterator<Item = Queued>) -> Self {
        let broker = Self { state: Arc::default(), changed: bounded(1) };
        broker.lock().ready.extend(tasks);
        broker
    }

    /// The connection is gone: every call fails, and what is unanswered is ready again.
    pub(super) fn lose(&self) {
        self.change(|state| {
            state.lost = Some(Fault::unconfirmed());
            let back = std::mem::take(&mut state.out);
            state.ready.extend(back.into_iter().map(|(_, _, task)| Queued { redelivered: true, ..task }));
        });
    }

    /// Another channel, after [`Broker::lose`].
    pub(super) fn come_back(&self) {
        self.change(|state| {
            (state.lost, state.consuming, state.cancelled_by_broker) = (None, false, false);
        });
    }

    pub(super) fn cancel(&self) {
        self.change(|state| state.cancelled_by_broker = true);
    }

    pub(super) fn answers(&self) -> Vec<(String, Answered)> {
        self.lock().answers.clone()
    }

    pub(super) fn answered(&self, id: &str) -> Option<Answered> {
        self.lock().answers.iter().rev().find(|(other, _)| other == id).map(|(_, how)| *how)
    }

    pub(super) fn most_out(&self) -> usize {
        self.lock().most_out
    }

    pub(super) fn is_consuming(&self) -> bool {
        self.lock().consuming
    }

    pub(super) fn holds(&self) -> Vec<Option<Duration>> {
        self.lock().holds.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        let _ = self.changed.0.try_send(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn alive(&self) -> Result<MutexGuard<'_, State>, Fault> {
        let state = self.lock();
        match &state.lost {
            Some(fault) => Err(fault.clone()),
            None => Ok(state),
        }
    }

    fn answer(&self, tag: u64, how: Answered) -> Result<(), Fault> {
        let mut state = self.alive()?;
        let at = state.out.iter().position(|(out, ..)| *out == tag).expect("it is answered once");
        let (.., task) = state.out.remove(at);
        state.answers.push((task.properties.id().to_owned(), how));
        if how == Answered::Requeued {
            state.ready.push_front(Queued { redelivered: true, ..task });
        }
        Ok(())
    }
}

impl DeliveryChannel for Broker {
    fn consume<'c>(
        &'c self,
        _: &str,
        options: ConsumeOptions,
    ) -> Result<Box<dyn Deliveries<'c> + 'c>, Fault> {
        let mut state = self.alive()?;
        assert!(!std::mem::replace(&mut state.consuming, true), "one consumer at a time");
        state.consumers += 1;
        state.holds.push(options.hold);
        let ConsumeOptions { prefetch, watch, .. } = options;
        let arrived = Mutex::default();
        let (number, watch) = (state.consumers, Mutex::new(watch));
        Ok(Box::new(Consumer { broker: self, number, prefetch: prefetch.into(), arrived, watch }))
    }

    fn ack(&self, tag: u64) -> Result<(), Fault> {
        self.answer(tag, Answered::Acked)
    }

    fn requeue(&self, tag: u64) -> Result<(), Fault> {
        self.answer(tag, Answered::Requeued)
    }

    fn close(self: Box<Self>) -> Result<(), Fault> {
        self.alive().map(drop)
    }
}

struct Consumer<'c> {
    broker: &'c Broker,
    number: u32,
    prefetch: usize,
    arrived: Mutex<VecDeque<(u64, Queued)>>,
    watch: Mutex<Option<Watch>>,
}

impl<'c> Consumer<'c> {
    /// What the broker sends as long as there is room.
    fn receive(&self, state: &mut State) {
        while state.consuming && !state.cancelled_by_broker {
            let own = state.out.iter().filter(|(_, number, _)| *number == self.number).count();
            if own >= self.prefetch {
                break;
            }
            let Some(task) = state.ready.pop_front() else { break };
            state.last_tag += 1;
            let tag = state.last_tag;
            state.out.push((tag, self.number, task.clone()));
            state.most_out = state.most_out.max(state.out.len());
            if task.redelivered
                && let Some(watch) = &mut *lock(&self.watch)
            {
                let properties = &task.properties;
                watch(tag, &Message { properties, body: b"", redelivered: true });
            }
            lock(&self.arrived).push_back((tag, task));
        }
    }

    fn take(&self) -> Option<Delivery<'c>> {
        let (tag, Queued { properties, redelivered }) = lock(&self.arrived).pop_front()?;
        Some(Delivery { tag, redelivered, body: Vec::new(), properties, channel: self.broker })
    }
}

impl<'c> Deliveries<'c> for Consumer<'c> {
    fn next(&self, stop: &Receiver<Never>, wake: &Receiver<()>, deadline: Option<Instant>) -> Next<'c> {
        let timer = deadline.map_or_else(never, crossbeam_channel::at);
        loop {
            match self.broker.alive() {
                Ok(mut state) => self.receive(&mut state),
                Err(fault) => return Next::Ended(fault),
            }
            if let Some(delivery) = self.take() {
                return Next::Delivery(delivery);
            }
            if self.is_cancelled() {
                return Next::Ended(Fault::cancelled(None));
            }
            select! {
                recv(self.broker.changed.1) -> _ => {}
                recv(stop) -> _ => return Next::Stopped,
                recv(wake) -> _ => return Next::Woken,
                recv(timer) -> _ => return Next::TimedOut,
            }
        }
    }

    fn leftover(&self) -> Option<Delivery<'c>> {
        self.take()
    }

    fn is_cancelled(&self) -> bool {
        self.broker.lock().cancelled_by_broker
    }

    fn cancel(&self) -> Result<(), Fault> {
        let mut state = self.broker.alive()?;
        if state.consumers == self.number {
            state.consuming = false;
        }
        Ok(())
    }
}

impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        let _ = self.cancel();
    }
}

/// How the test sees the handler: the ids of the tasks that begin to run, and where to say how they end.
pub(super) struct Runs {
    started: Receiver<String>,
    outcomes: Sender<Outcome>,
}

impl Runs {
    /// The next task has begun to run.
    pub(super) fn begins(&self, id: &str) {
        assert_eq!(self.started.recv_timeout(LONG).as_deref(), Ok(id));
    }

    /// What runs ends.
    pub(super) fn ends(&self, outcome: Outcome) {
        self.outcomes.send(outcome).unwrap();
    }

    pub(super) fn begins_and_ends(&self, id: &str, outcome: Outcome) {
        self.begins(id);
        self.ends(outcome);
    }

    pub(super) fn nothing_begins(&self) {
        assert!(self.started.recv_timeout(SHORT).is_err());
    }

    /// Tasks that have begun since it was last asked.
    pub(super) fn begun(&self) -> BTreeSet<String> {
        self.started.try_iter().collect()
    }
}

/// Does what [`Runs`] says.
pub(super) struct Scripted {
    started: Sender<String>,
    outcomes: Receiver<Outcome>,
    closed: Arc<AtomicU32>,
}

impl Handler for Scripted {
    fn run(&mut self, task: &Task<'_>, abort: &Receiver<Never>) -> Outcome {
        self.started.send(task.id.to_owned()).unwrap();
        select! {
            recv(self.outcomes) -> outcome => outcome.unwrap_or(Outcome::GivenUp),
            recv(abort) -> _ => Outcome::GivenUp,
        }
    }

    fn close(&mut self, _: &Receiver<Never>) {
        self.closed.fetch_add(1, Ordering::SeqCst);
    }
}

pub(super) fn failed(exit: &str) -> Outcome {
    Outcome::Failed(Failure { exit: exit.to_owned(), stderr: Vec::new() })
}

/// What a worker thread works with, and the other ends of that.
pub(super) struct Bench {
    pub(super) shared: Arc<Shared>,
    pub(super) stop: Stop,
    pub(super) end_requests: Receiver<EndRequest>,
    pub(super) copies: Copies,
    pub(super) runs: Runs,
    pub(super) closed: Arc<AtomicU32>,
}

pub(super) fn options() -> Options {
    Options {
        session: no_session(),
        queue: queue(),
        threads: 1,
        prefetch: 1,
        until: None,
        max_tasks: None,
        idle_timeout: None,
        max_time: None,
        connect_retry: None,
        is_sleeper_by_default: false,
        timeout: None,
        grace: LONG,
        policy: Policy { attempts: 2, max_deliveries: 5, backoff: vec![Duration::from_secs(5)] },
        prepare_retries: true,
    }
}

impl Bench {
    pub(super) fn new(options: Options) -> (Self, Context, Scripted) {
        let shared = Arc::new(Shared::new(options));
        shared.set_queue_kind(Some(QueueType::Quorum));
        let (end_requests_in, end_requests) = unbounded();
        let (republisher, copies) = Republisher::scripted();
        let ((started_in, started), (outcomes, outcomes_out)) = (unbounded(), unbounded());
        let (stop, closed) = (Stop::default(), Arc::<AtomicU32>::default());
        let context = Context {
            shared: Arc::clone(&shared),
            end_requests: end_requests_in,
            republisher,
            stop: stop.clone(),
            wake: bounded(1),
        };
        let handler = Scripted { started: started_in, outcomes: outcomes_out, closed: Arc::clone(&closed) };
        let runs = Runs { started, outcomes };
        (Self { shared, stop, end_requests, copies, runs, closed }, context, handler)
    }

    /// Gives up what runs when it is dropped.
    pub(super) fn aborting(&self) -> impl Drop {
        Aborting(self)
    }

    /// The worker has asked to end with this error.
    pub(super) fn ends_with(&self, part: &str) {
        let Ok(EndRequest::Fatal(error)) = self.end_requests.recv_timeout(LONG) else { panic!("it goes on") };
        assert!(error.to_string().contains(part), "{error}");
    }
}

struct Aborting<'b>(&'b Bench);

impl Drop for Aborting<'_> {
    fn drop(&mut self) {
        self.0.stop.abort();
    }
}

/// Waits until something is true.
pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
