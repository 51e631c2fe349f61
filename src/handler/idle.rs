//! Watches a persistent process between two tasks: a thread passes on at once what the process writes to stderr, and
//! reaps it when it ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::exit::describe;
use super::limits::Limits;
use super::process::{Process, ProcessIo};
use super::protocol::Replies;
use super::wake::Waker;

/// Of both channels. There is one [`PersistentProcess`] to send to and fro, so a send never blocks.
const CAPACITY: usize = 1;

/// The one process of a persistent handler, and what is needed to run it. Whoever owns this may use it: the worker
/// thread during a task, the watching thread between tasks.
pub(super) struct PersistentProcess {
    pub(super) io: ProcessIo,
    /// None before the first task, and after a process has ended.
    pub(super) running: Option<Process<Replies>>,
    /// The process has replied to a task, so its command can be executed.
    pub(super) has_replied: bool,
}

/// The watching thread, as the worker thread sees it.
pub(super) struct IdleWatcher {
    to_thread: Sender<PersistentProcess>,
    from_thread: Receiver<PersistentProcess>,
    /// The worker thread wants the process back.
    wanted: Arc<AtomicBool>,
    /// Ends the wait of the watching thread. None while the worker thread has the process.
    waker: Option<Waker>,
}

impl PersistentProcess {
    pub(super) fn new(io: ProcessIo) -> Self {
        Self { io, running: None, has_replied: false }
    }

    /// Returns when the worker thread wants the process back, or when the process has ended.
    fn watch_until(&mut self, wanted: &AtomicBool) {
        let until_woken = Limits { deadline: None, abort: None };
        while !wanted.load(Ordering::Acquire) {
            let Some(process) = &mut self.running else { return };
            // An exit that was told of before, together with the last reply say, ends no further wait: so ask first.
            let exited = if process.exited() {
                Ok(true)
            } else {
                process.wait(&mut self.io, &mut &[][..], &until_woken).map(|events| events.exited)
            };
            let ended = match exited {
                Ok(false) => continue,
                // A worker stdout or stderr that takes nothing must not delay a worker thread that wants the process
                // back: hence the deadline.
                Ok(true) => process.finish(&mut self.io, until_woken.by(Instant::now())),
                Err(error) => Err(error),
            };
            match ended {
                // Handlers may end now and then, to free memory say.
                Ok(status) if status.success() => log::debug!("a handler ended between two tasks"),
                Ok(status) => log::warn!("a handler ended between two tasks: {}", describe(status)),
                Err(error) => log::warn!("a handler was killed, as it cannot be waited for: {error}"),
            }
            self.running = None;
        }
    }
}

impl IdleWatcher {
    /// Starts the thread, and gives `kept` to it.
    pub(super) fn start(kept: PersistentProcess) -> io::Result<Self> {
        let (to_thread, incoming) = bounded::<PersistentProcess>(CAPACITY);
        let (outgoing, from_thread) = bounded(CAPACITY);
        let wanted = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&wanted);
        thread::Builder::new().name("idle-watch".into()).spawn(move || {
            for mut kept in incoming {
                kept.watch_until(&asked);
                if outgoing.send(kept).is_err() {
                    return;
                }
            }
        })?;
        let mut watcher = Self { to_thread, from_thread, wanted, waker: None };
        watcher.watch(kept);
        Ok(watcher)
    }

    /// Gives `kept` to the watching thread.
    pub(super) fn watch(&mut self, kept: PersistentProcess) {
        self.wanted.store(false, Ordering::Release);
        self.waker = Some(kept.io.waker());
        // This cannot fail: the thread ends only after `self.to_thread` is dropped.
        let _ = self.to_thread.send(kept);
    }

    /// None if the watching thread does not have it, or has panicked.
    pub(super) fn take_back(&mut self) -> Option<PersistentProcess> {
        let waker = self.waker.take()?;
        self.wanted.store(true, Ordering::Release);
        waker.wake();
        self.from_thread.recv().ok()
    }
}

impl Drop for IdleWatcher {
    /// Ends the process, and with it the thread, which would wait for as long as the process lives.
    fn drop(&mut self) {
        drop(self.take_back());
    }
}
