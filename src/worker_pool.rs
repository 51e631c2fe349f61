//! The worker: a pool of threads, each with a channel of its own, that works through one queue until it is told to
//! stop.
//!
//! This thread hears the signals and keeps the deadlines; it never calls the broker, so nothing the broker does can
//! keep it from ending the process. The supervisor owns the connection, the worker threads run the tasks.

mod ack_timeout;
mod attempt;
mod consume;
mod context;
mod dedup;
mod intake;
mod planned_copy;
mod probe;
mod process;
mod republisher;
mod shared;
mod stop;
mod supervisor;
mod surroundings;
#[cfg(test)]
mod testing;
mod worker_thread;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, never, select};

use crate::broker::{QueueSpec, SessionOptions};
use crate::cancel::Never;
use crate::error::{Error, Exit, Result};
use crate::events::Event;
use crate::handler::Handler;
use crate::output;
use crate::report::tell;
use crate::settlement::Policy;
use crate::shortage;
use crate::shutdown;
use context::Context;
use probe::Left;
use republisher::Republisher;
use shared::Shared;
use stop::Stop;
use supervisor::Supervisor;
use worker_thread::WorkerThread;

/// After tasks were given up: how long their threads have to end before the process does without them.
const ABORT_WAIT: Duration = Duration::from_secs(5);

/// Why running tasks are given up.
const GRACE_OVER: &str = "the grace period is over";

/// How long copies are refused, publishing is blocked, or the machine cannot run a task before a bounded run ends: whoever
/// waits for it has to do something.
const BOUNDED_PATIENCE: Duration = Duration::from_secs(30);

/// What to work on, and how.
pub struct Options {
    /// How to reach the broker.
    pub session: SessionOptions,
    /// How long to try again to connect for the first time; one attempt where there is none.
    pub connect_retry: Option<Duration>,
    /// What to consume.
    pub queue: QueueSpec,
    /// Worker threads, at least 1.
    pub threads: u16,
    /// Unacknowledged deliveries for each thread, at least 1.
    pub prefetch: u16,
    /// Exit once there is nothing left to do.
    pub until: Option<Until>,
    /// Exit after exactly so many tasks.
    pub max_tasks: Option<u64>,
    /// Exit after so long without a delivery.
    pub idle_timeout: Option<Duration>,
    /// Take nothing new after so long, and exit.
    pub max_time: Option<Duration>,
    /// How long an attempt may take.
    pub timeout: Option<Duration>,
    /// How long a drain waits for running tasks, and an attempt for its end when its time is over.
    pub grace: Duration,
    /// What becomes of tasks that fail.
    pub policy: Policy,
    /// Make sure at the start that failed tasks can be retried and kept.
    pub prepare_retries: bool,
    /// Tasks are only slept through, as nobody has asked for by name. A queue that has one of dead tasks is refused then.
    pub is_sleeper_by_default: bool,
}

/// When there is nothing left to do for a worker that ends then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Nothing is ready in the queue, and nothing runs here.
    Empty,
    /// And nothing waits in the delay queues of this worker's retries.
    Done,
}

impl Until {
    /// What asks for it, for messages.
    fn flag(self) -> &'static str {
        match self {
            Self::Empty => "--until-empty",
            Self::Done => "--until-done",
        }
    }
}

impl Options {
    /// Whether the worker ends by itself, so that somebody waits for its end.
    fn is_bounded(&self) -> bool {
        self.tells_of_dead_tasks() || self.idle_timeout.is_some()
    }

    /// Whether it ends with an amount of work, so that whoever waits for it asks how that went.
    #[must_use]
    pub fn tells_of_dead_tasks(&self) -> bool {
        self.until.is_some() || self.max_tasks.is_some() || self.max_time.is_some()
    }
}

/// Makes a handler for each worker thread.
pub type HandlerFactory = dyn Fn() -> std::io::Result<Box<dyn Handler>> + Send + Sync;

/// A thread asks for the end of the pool.
enum EndRequest {
    /// The worker cannot go on.
    Fatal(Error),
    /// There is nothing left to do: see [`Until`].
    Empty,
}

/// Works until told to stop. `signals` carries signal numbers.
pub fn run(options: Options, handlers: &Arc<HandlerFactory>, signals: &Receiver<i32>) -> Result<Exit> {
    let time_over = options.max_time.map(|max_time| Instant::now() + max_time);
    let shared = Arc::new(Shared::new(options));
    loop {
        shared.begin_round();
        let mut pool = Pool::start(&shared, handlers, time_over)?;
        let end = pool.wait(signals);
        match end {
            End::Drained => {}
            End::Forced(exit) => return Ok(exit),
        }
        let left = pool.join()?;
        match (pool.fatal, shared.last_returns()) {
            (None, None) => {}
            (Some(error), None) | (None, Some(error)) => return Err(error),
            (Some(error), Some(last_returns)) => {
                return Err(Error::new(error.exit, format!("{error}; {last_returns}")));
            }
        }
        log::debug!("{} done", output::counted(shared.count_finished(), "task", "tasks"));
        // Somebody sent more while the pool finished, or the connection was lost before that could be seen.
        let is_empty = left.is_nothing_beside(shared.held_back());
        let again = pool.why == Some(Why::Empty) && !is_empty;
        if !again {
            return Ok(shared.exit());
        }
    }
}

/// Why the pool drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Signal(i32),
    Empty,
    Idle,
    /// That of `--max-time` is over.
    Time,
    Fatal,
}

enum End {
    Drained,
    Forced(Exit),
}

/// The running threads.
struct Pool {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<Left>>,
    workers: Vec<JoinHandle<()>>,
    end_requests: Receiver<EndRequest>,
    /// Closes when all threads have ended.
    ended: Receiver<Never>,
    stop: Stop,
    why: Option<Why>,
    /// When nothing new is taken, until that is so.
    time_over: Option<Instant>,
    /// There was a signal: the next one forces the end, whatever has happened in between.
    signalled: bool,
    fatal: Option<Error>,
}

impl Pool {
    fn start(
        shared: &Arc<Shared>,
        handlers: &Arc<HandlerFactory>,
        time_over: Option<Instant>,
    ) -> Result<Self> {
        let stop = Stop::default();
        let (alive, ended) = crossbeam_channel::bounded(0);
        let (end_requests_in, end_requests) = crossbeam_channel::unbounded();
        let (requests_in, requests) = crossbeam_channel::unbounded();
        let cannot = |error: std::io::Error| {
            Error::internal(format!("cannot start the threads: {}", shortage::reason(&error)))
        };

        let republisher =
            Republisher::start(shared, end_requests_in.clone(), Sender::clone(&alive)).map_err(cannot)?;
        let mut workers = Vec::new();
        for number in 1..=shared.options.threads {
            let context = Context {
                shared: Arc::clone(shared),
                end_requests: end_requests_in.clone(),
                republisher: republisher.clone(),
                stop: stop.clone(),
                wake: crossbeam_channel::bounded(1),
            };
            let worker = WorkerThread { context, requests: requests_in.clone() };
            let panic_reporter =
                PanicReporter { end_requests: end_requests_in.clone(), _alive: Sender::clone(&alive) };
            let handlers = Arc::clone(handlers);
            let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let _last_words = panic_reporter;
                match handlers() {
                    Ok(mut handler) => worker.run(&mut *handler),
                    Err(error) => worker.cannot_start(&error),
                }
            });
            workers.push(thread.map_err(cannot)?);
        }
        drop((requests_in, republisher));
        let supervisor = Supervisor::new(Arc::clone(shared), requests, end_requests_in.clone());
        let panic_reporter = PanicReporter { end_requests: end_requests_in, _alive: alive };
        let supervisor = thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || {
                let _last_words = panic_reporter;
                supervisor.run()
            })
            .map_err(cannot)?;
        Ok(Self {
            shared: Arc::clone(shared),
            supervisor: Some(supervisor),
            workers,
            end_requests,
            ended,
            stop,
            why: None,
            time_over,
            signalled: false,
            fatal: None,
        })
    }

    /// Waits for the end of all threads, begins the drain when there is a reason to, and loses patience when it is
    /// time.
    fn wait(&mut self, signals: &Receiver<i32>) -> End {
        let mut grace_over: Option<Instant> = None;
        loop {
            let next = grace_over.or_else(|| self.idle_at()).into_iter().chain(self.time_over).min();
            let timer = next.map_or_else(never, crossbeam_channel::at);
            select! {
                recv(self.ended) -> _ => {
                    self.hear_last_requests();
                    return End::Drained;
                }
                recv(signals) -> signal => {
                    let signal = signal.unwrap_or_default();
                    if std::mem::replace(&mut self.signalled, true) {
                        return self.force(signal, "a second signal");
                    }
                    self.begin_drain(Why::Signal(signal));
                    grace_over = Some(Instant::now() + self.shared.options.grace);
                }
                recv(self.end_requests) -> request => match request {
                    Ok(EndRequest::Fatal(error)) => {
                        if self.fatal.is_none() {
                            self.fatal = Some(error);
                            self.begin_drain(Why::Fatal);
                            grace_over.get_or_insert_with(|| Instant::now() + self.shared.options.grace);
                        }
                    }
                    Ok(EndRequest::Empty) => {
                        if !self.stop.is_draining() {
                            self.shared.begin_finishing();
                            self.begin_drain(Why::Empty);
                        }
                    }
                    // The last thread has gone.
                    Err(_) => return End::Drained,
                },
                recv(timer) -> _ => match (grace_over, self.why) {
                    _ if self.time_is_over() => {
                        grace_over.get_or_insert_with(|| Instant::now() + self.shared.options.grace);
                    }
                    (Some(_), Some(Why::Signal(signal))) => return self.force(signal, GRACE_OVER),
                    (Some(_), Some(Why::Time)) => return self.end_in_time(),
                    (Some(_), _) => return self.force_fatal(),
                    (None, _) => self.drain_if_idle(),
                },
            }
        }
    }

    /// A thread that cannot go on begins the drain for all, which may have ended by now.
    fn hear_last_requests(&mut self) {
        for request in self.end_requests.try_iter() {
            if let EndRequest::Fatal(error) = request {
                self.fatal.get_or_insert(error);
            }
        }
    }

    fn begin_drain(&mut self, why: Why) {
        if let Why::Signal(signal) = why {
            let (running, grace) = (self.shared.running(), self.shared.options.grace);
            tell(&Event::Stopping { signal: shutdown::name(signal), running, grace });
        }
        self.why = Some(why);
        match why {
            Why::Signal(_) => self.stop.drain_by_signal(),
            Why::Empty | Why::Idle | Why::Time | Why::Fatal => self.stop.drain(),
        }
    }

    /// Whether the time of `--max-time` ends now. A drain that has begun for another reason has from now on its grace
    /// period too, and no further round follows it.
    fn time_is_over(&mut self) -> bool {
        if self.time_over.is_none_or(|at| at > Instant::now()) {
            return false;
        }
        self.time_over = None;
        if matches!(self.why, None | Some(Why::Empty | Why::Idle)) {
            self.begin_drain(Why::Time);
            // Whoever waits for this run must not take the queue for worked on.
            if !self.shared.is_connected() {
                let why = "the time of --max-time is over, and there is no connection to a broker";
                self.fatal.get_or_insert_with(|| Error::unavailable(why));
            }
        }
        true
    }

    /// Gives up what runs: the broker will deliver it again, to a later run. That ends in order, since it was asked to end
    /// by now.
    fn end_in_time(&mut self) -> End {
        let (running, last_chances) = (self.shared.running(), self.shared.last_chances());
        if running > 0 {
            tell(&Event::GivingUp { why: GRACE_OVER, running, last_chances });
        }
        self.stop.abort();
        if matches!(self.ended.recv_timeout(ABORT_WAIT), Err(RecvTimeoutError::Disconnected)) {
            self.hear_last_requests();
            return End::Drained;
        }
        if self.fatal.is_some() { self.force_fatal() } else { End::Forced(self.shared.exit()) }
    }

    /// Gives up what runs and ends, whatever the threads do: the broker will deliver it again.
    fn force(&mut self, signal: i32, why: &str) -> End {
        let (running, last_chances) = (self.shared.running(), self.shared.last_chances());
        if running > 0 {
            tell(&Event::GivingUp { why, running, last_chances });
        }
        if let Some(error) = self.fatal.take() {
            tell(&Event::Failed { error: &error });
        }
        self.abandon();
        End::Forced(Exit::Signal(signal))
    }

    fn force_fatal(&mut self) -> End {
        self.abandon();
        match self.fatal.take() {
            Some(error) => {
                tell(&Event::Failed { error: &error });
                End::Forced(error.exit)
            }
            None => End::Forced(Exit::Internal),
        }
    }

    fn abandon(&mut self) {
        self.stop.abort();
        // Closes when they have ended; a thread that is stuck in a call to the broker is left behind.
        let _ = self.ended.recv_timeout(ABORT_WAIT);
    }

    /// When the pool will have been idle for long enough, as far as is known now.
    fn idle_at(&self) -> Option<Instant> {
        let idle_timeout = self.shared.options.idle_timeout?;
        if self.stop.is_draining() {
            return None;
        }
        let now = Instant::now();
        // Waiting for the broker is not idling, and neither is working.
        let waiting = self.shared.is_connected() && self.shared.busy() == 0;
        Some(if waiting { self.shared.last_activity() + idle_timeout } else { now + idle_timeout })
    }

    fn drain_if_idle(&mut self) {
        if self.idle_at().is_some_and(|at| at <= Instant::now()) {
            self.begin_drain(Why::Idle);
        }
    }

    fn join(&mut self) -> Result<Left> {
        let fault = || Error::internal("a thread broke down; see above");
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| fault())?;
        }
        let supervisor = self.supervisor.take().map(JoinHandle::join);
        supervisor.unwrap_or(Ok(Left::default())).map_err(|_| fault())
    }
}

/// Held by each thread of the pool: tells when it breaks down, so that the worker never goes quiet, and keeps
/// `ended` open until it ends.
struct PanicReporter {
    end_requests: Sender<EndRequest>,
    _alive: Sender<Never>,
}

impl Drop for PanicReporter {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.end_requests.send(EndRequest::Fatal(Error::internal("a worker thread broke down")));
        }
    }
}
