//! What the tests of handlers share: writers, tasks, and deadlines.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::exit::ExitMap;
use super::{Failure, Handler, Options, Outcome, Output, Spec, Task, TaskProperties};
use crate::cancel::Never;

/// Far more than anything here takes, far less than a person would wait.
pub(super) const LONG: Duration = Duration::from_secs(30);
/// How long to wait for what should not happen; also the time-out of tasks that should be timed out.
pub(super) const SHORT: Duration = Duration::from_millis(200);

/// What [`Captured`] keeps: far more than a test looks at, and `yes` writes gigabytes a second.
const CAPTURED_MAX: usize = 16 << 20;

/// Keeps the beginning of what is written to it.
#[derive(Clone, Default)]
pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// The process id that a script has printed as its first word.
    pub(super) fn pid(&self) -> Pid {
        wait_until("a process id is printed", || self.text().contains('\n'));
        Pid::from_raw(self.text().split_whitespace().next().unwrap().parse().unwrap())
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap();
        let room = CAPTURED_MAX - kept.len();
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts what is written; remembers the longest piece.
#[derive(Clone, Default)]
pub(super) struct Counted {
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) longest: Arc<AtomicU64>,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.longest.fetch_max(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks until the sender is dropped, as a pager does that nobody scrolls.
pub(super) struct Stuck(pub(super) Receiver<Never>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same, and then it keeps what is written.
pub(super) struct StuckAtFirst(pub(super) Option<Receiver<Never>>, pub(super) Captured);

impl Write for StuckAtFirst {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(stuck) = self.0.take() {
            let _ = stuck.recv();
        }
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fails as a pipe does that nobody reads any more.
pub(super) struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(ErrorKind::BrokenPipe.into())
    }
}

pub(super) fn sh(script: &str) -> Options {
    options("/bin/sh", &["-c", script])
}

pub(super) fn options(program: &str, arguments: &[&str]) -> Options {
    Options {
        program: program.into(),
        arguments: arguments.iter().map(Into::into).collect(),
        timeout: None,
        grace: LONG,
        body_as_argument: false,
        on_exit: ExitMap::default(),
    }
}

/// A spec whose output is captured.
pub(super) fn captured(options: Options) -> (Spec, Captured, Captured) {
    let (out, err) = (Captured::default(), Captured::default());
    (Spec::new(options, Output::new(out.clone(), err.clone()).unwrap()), out, err)
}

pub(super) fn task(body: &[u8]) -> Task<'_> {
    let (id, queue, content_type) = ("id-1", "q", "text/plain");
    let properties = TaskProperties::default();
    Task {
        id,
        attempt: 1,
        attempts: 5,
        queue,
        redelivered: false,
        content_type,
        properties,
        headers: &[],
        body,
    }
}

/// An abort channel. The sender has to be kept: dropping it is the abort.
pub(super) fn abort_channel() -> (Sender<Never>, Receiver<Never>) {
    bounded(0)
}

pub(super) fn run(handler: &mut impl Handler, body: &[u8]) -> Outcome {
    let (_keep, abort) = abort_channel();
    within(LONG, || handler.run(&task(body), &abort))
}

/// Runs `what`, and fails if that took longer than `limit`.
pub(super) fn within<T>(limit: Duration, what: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = what();
    assert!(start.elapsed() < limit, "took {:?}", start.elapsed());
    result
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "still not: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn is_gone(pid: Pid) -> bool {
    kill(pid, None) == Err(Errno::ESRCH)
}

/// Waits until the process is reaped: a zombie is not gone.
pub(super) fn wait_until_gone(pid: Pid) {
    wait_until("the process is gone", || is_gone(pid));
}

pub(super) fn failed(exit: &str, stderr: &str) -> Outcome {
    Outcome::Failed(Failure { exit: exit.into(), stderr: stderr.into() })
}
