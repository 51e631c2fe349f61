//! Looks after a persistent process between two tasks: passes on what it writes to stderr as it comes,
//! and reaps it when it ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::exit::describe;
use super::process::{Limits, Process, Slot};
use super::protocol::Replies;
use super::wake::Waker;

/// There is one seat, so nothing ever waits in a channel for longer than it takes to take it out.
const SEATS: usize = 1;

/// A place for a process, and the process.
pub(super) struct Seat {
    pub(super) slot: Slot,
    pub(super) process: Option<Process<Replies>>,
    /// The process has answered a task: its command can be executed.
    pub(super) proven: bool,
}

/// Has the seat while no task is running; whoever has it may use it.
pub(super) struct Tender {
    park: Sender<Seat>,
    back: Receiver<Seat>,
    wanted: Arc<AtomicBool>,
    /// Of the seat that is parked.
    waker: Option<Waker>,
}

impl Seat {
    pub(super) fn new(slot: Slot) -> Self {
        Self { slot, process: None, proven: false }
    }

    fn look_after(&mut self, wanted: &AtomicBool) {
        let until_rung = Limits { deadline: None, abort: None };
        while !wanted.load(Ordering::Acquire) {
            let Some(process) = &mut self.process else { return };
            // It may have been told of already, together with a reply.
            let exited = if process.exited() {
                Ok(true)
            } else {
                process.wait(&mut self.slot, &mut &[][..], &until_rung).map(|seen| seen.exited)
            };
            let ended = match exited {
                Ok(false) => continue,
                // Whoever wants the seat does not have to wait until a stuck stdout takes the last words.
                Ok(true) => process.finish(&mut self.slot, until_rung.by(Instant::now())),
                Err(error) => Err(error),
            };
            match ended {
                // It recycles itself.
                Ok(status) if status.success() => log::debug!("a handler ended between two tasks"),
                Ok(status) => log::warn!("a handler ended between two tasks: {}", describe(status)),
                Err(error) => log::warn!("a handler was killed, as it cannot be waited for: {error}"),
            }
            self.process = None;
        }
    }
}

impl Tender {
    pub(super) fn start(seat: Seat) -> io::Result<Self> {
        let (park, parked) = bounded::<Seat>(SEATS);
        let (give_back, back) = bounded(SEATS);
        let wanted = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&wanted);
        thread::Builder::new().name("tender".into()).spawn(move || {
            for mut seat in parked {
                seat.look_after(&asked);
                if give_back.send(seat).is_err() {
                    return;
                }
            }
        })?;
        let mut tender = Self { park, back, wanted, waker: None };
        tender.park(seat);
        Ok(tender)
    }

    pub(super) fn park(&mut self, seat: Seat) {
        self.wanted.store(false, Ordering::Release);
        self.waker = Some(seat.slot.waker());
        // The thread lives as long as `self.park`.
        let _ = self.park.send(seat);
    }

    /// None if the seat was not parked.
    pub(super) fn fetch(&mut self) -> Option<Seat> {
        let waker = self.waker.take()?;
        self.wanted.store(true, Ordering::Release);
        waker.wake();
        self.back.recv().ok()
    }
}

impl Drop for Tender {
    /// The thread would wait for as long as the process lives; without anybody to give the seat back to it ends both.
    fn drop(&mut self) {
        drop(self.fetch());
    }
}
