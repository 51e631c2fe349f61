//! Where the output of one process goes, on one of its streams: on to the worker's own, into a file of its task, and its
//! end into the record of a failure.

use std::collections::VecDeque;

use super::files::{TaskFile, TaskFiles};
use super::relay::{Destination, Relay};
use super::sink::{OutputSink, READ_MAX};
use super::wake::Waker;

/// How much of the end of stderr is kept for a failed task.
const TAIL_MAX: usize = 2 * 1024;

/// What tells the output of one task from that of others. The default: nothing does.
#[derive(Default)]
pub(super) struct Label {
    /// Stands before each line.
    pub(super) tag: Option<Vec<u8>>,
    pub(super) files: Option<TaskFiles>,
}

/// One stream of a process. It has room where what it is passed on to has: without that, always.
pub(super) struct Tee {
    relay: Option<Relay>,
    file: Option<TaskFile>,
    /// The last bytes so far, at most one more than [`TAIL_MAX`]. None on stdout.
    tail: Option<VecDeque<u8>>,
}

impl Tee {
    /// Passes on data: exactly the bytes that the handler writes, unless messages go to the same place or a tag stands
    /// before its lines.
    pub(super) fn of_stdout(passed_on: Option<Destination>, waker: Waker, label: &Label) -> Self {
        let relay = passed_on.map(|to| Relay::new(to, waker, label.tag.as_deref()));
        Self { relay, file: label.files.as_ref().map(TaskFiles::out), tail: None }
    }

    /// Passes on messages. The last 2 KiB are kept for [`Tee::tail`].
    pub(super) fn of_stderr(passed_on: Option<Destination>, waker: Waker, label: &Label) -> Self {
        let relay = passed_on.map(|to| Relay::new(to, waker, label.tag.as_deref()));
        Self { relay, file: label.files.as_ref().map(TaskFiles::err), tail: Some(VecDeque::new()) }
    }

    /// What comes on stderr from now on is another task's, or no task's.
    pub(super) fn assign(&mut self, label: &Label) {
        if let (Some(relay), Some(tag)) = (&mut self.relay, &label.tag) {
            relay.tag(tag);
        }
        self.file = label.files.as_ref().map(TaskFiles::err);
    }

    /// The last bytes of stderr, at most 2 KiB, since the start or the last [`Tee::forget_tail`].
    pub(super) fn tail(&self) -> Vec<u8> {
        let mut tail: Vec<u8> = self.tail.iter().flatten().copied().collect();
        if tail.len() > TAIL_MAX {
            // It begins with a whole line, where one begins in it.
            let line = tail.iter().position(|byte| *byte == b'\n').map_or(1, |end| end + 1);
            tail.drain(..if line < tail.len() { line } else { 1 });
        }
        tail
    }

    pub(super) fn forget_tail(&mut self) {
        if let Some(tail) = &mut self.tail {
            tail.clear();
        }
    }
}

impl OutputSink for Tee {
    fn room(&self) -> usize {
        self.relay.as_ref().map_or(READ_MAX, Relay::room)
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some(tail) = &mut self.tail {
            // One more tells that something is missing.
            let last = &bytes[bytes.len().saturating_sub(TAIL_MAX + 1)..];
            tail.drain(..(tail.len() + last.len()).saturating_sub(TAIL_MAX + 1));
            tail.extend(last);
        }
        if let Some(relay) = &mut self.relay {
            relay.take(bytes);
        }
        if let Some(file) = &mut self.file {
            file.add(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.end();
        }
    }

    fn refresh(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.refresh();
        }
    }

    fn is_idle(&self) -> bool {
        self.relay.as_ref().is_none_or(Relay::is_idle)
    }

    fn successor(&self, waker: Waker) -> Box<dyn OutputSink + Send> {
        Box::new(Self {
            relay: self.relay.as_ref().map(|relay| relay.again(waker)),
            file: self.file.as_ref().map(TaskFile::again),
            tail: None,
        })
    }
}
