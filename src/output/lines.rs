//! Lines of data on their way to stdout. Nothing of them is dropped: whoever hands them over waits for whoever reads them,
//! as long as it likes, on a thread of its choice.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::stream::{Parcel, Stream, Unwritten};
use crate::cancel::Never;
use crate::lock::lock;

/// The lines; clones are of the same ones.
#[derive(Clone)]
pub struct Lines(Arc<Inner>);

struct Inner {
    stdout: Stream,
    /// How many bytes may wait for the reader.
    room: usize,
    state: Mutex<State>,
    taken: Condvar,
}

#[derive(Default)]
struct State {
    /// Whole lines that are not being written yet.
    waiting: Vec<u8>,
    /// Their turn will come.
    queued: bool,
    /// Why no more are written.
    failed: Option<io::Error>,
    /// No more lines come, so nobody has to wait.
    over: bool,
}

/// What became of all lines.
#[derive(Debug)]
pub enum Printed {
    /// They are written.
    All,
    /// The reader has closed its end: it has read enough.
    Enough,
    /// They could not be written.
    Failed(io::Error),
    /// A signal came first.
    Interrupted(i32),
}

impl Lines {
    /// `room`: how many bytes may wait for the reader until [`Lines::wait_for_room`] waits.
    pub fn to(stdout: Stream, room: usize) -> Self {
        Self(Arc::new(Inner { stdout, room, state: Mutex::default(), taken: Condvar::new() }))
    }

    /// One more line, without its end. It is not waited for.
    pub fn print(&self, line: &str) {
        let mut state = lock(&self.0.state);
        if state.failed.is_some() {
            return;
        }
        state.waiting.extend_from_slice(line.as_bytes());
        state.waiting.push(b'\n');
        if !std::mem::replace(&mut state.queued, true) {
            drop(state);
            self.0.stdout.pass(Box::new(self.clone()));
        }
    }

    /// No more are written, as the reader has gone or because of an error.
    #[must_use]
    pub fn have_failed(&self) -> bool {
        lock(&self.0.state).failed.is_some()
    }

    /// Waits until there is room for more lines.
    pub fn wait_for_room(&self) {
        let mut state = lock(&self.0.state);
        while !state.has_room(self.0.room) {
            state = self.0.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same for at most so long. Whether there is room.
    #[must_use]
    pub fn has_room_within(&self, time: Duration) -> bool {
        let state = lock(&self.0.state);
        let is_full = |state: &mut State| !state.has_room(self.0.room);
        let waited = self.0.taken.wait_timeout_while(state, time, is_full);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_room(self.0.room)
    }

    /// No more lines come: nobody is waited with any longer.
    pub fn end_waiting(&self) {
        lock(&self.0.state).over = true;
        self.0.taken.notify_all();
    }

    /// Waits until their reader has them all, or a signal comes.
    #[must_use]
    pub fn finish(&self, signals: &Receiver<i32>) -> Printed {
        let (mark, written): (Sender<Never>, _) = crossbeam_channel::bounded(0);
        self.0.stdout.mark(mark);
        select! {
            recv(written) -> _ => {}
            recv(signals) -> signal => return Printed::Interrupted(signal.unwrap_or_default()),
        }
        match lock(&self.0.state).failed.take() {
            None => Printed::All,
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Printed::Enough,
            Some(error) => Printed::Failed(error),
        }
    }
}

impl State {
    fn has_room(&self, room: usize) -> bool {
        self.waiting.len() < room || self.over || self.failed.is_some()
    }
}

impl Parcel for Lines {
    fn open(&mut self) -> Vec<u8> {
        let mut state = lock(&self.0.state);
        state.queued = false;
        let lines = std::mem::take(&mut state.waiting);
        drop(state);
        self.0.taken.notify_all();
        lines
    }

    fn written(self: Box<Self>, _: Vec<u8>, result: Result<(), Unwritten>) {
        if let Err(Unwritten { error, .. }) = result {
            let mut state = lock(&self.0.state);
            state.waiting.clear();
            state.failed.get_or_insert(error);
            drop(state);
            self.0.taken.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Takes nothing until the other end is dropped.
    struct Stuck(Receiver<Never>);

    impl Write for Stuck {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Its reader has gone.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn there_is_room_again_when_the_reader_goes_on() {
        let (release, stuck) = crossbeam_channel::bounded(0);
        let lines = Lines::to(Stream::start("stdout", Stuck(stuck)).unwrap(), 8);
        let mut printed = 0;
        while lines.has_room_within(Duration::from_millis(1)) {
            lines.print("four");
            printed += 1;
            assert!(printed < 100, "what waits has no bounds");
        }
        drop(release);
        lines.wait_for_room();
        assert!(matches!(lines.finish(&crossbeam_channel::never()), Printed::All));
    }

    #[test]
    fn a_reader_that_has_gone_is_waited_for_no_more() {
        let lines = Lines::to(Stream::start("stdout", Closed).unwrap(), 1);
        lines.print("first");
        assert!(matches!(lines.finish(&crossbeam_channel::never()), Printed::Enough));
    }

    #[test]
    fn a_signal_ends_the_waiting() {
        let (_release, stuck) = crossbeam_channel::bounded(0);
        let lines = Lines::to(Stream::start("stdout", Stuck(stuck)).unwrap(), 1);
        lines.print("first");
        let (signal, signals) = crossbeam_channel::bounded(1);
        signal.send(15).unwrap();
        assert!(matches!(lines.finish(&signals), Printed::Interrupted(15)));
    }
}
