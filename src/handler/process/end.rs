//! How a process ends: by itself, or by TERM and KILL.

use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::super::limits::{ABORT_GRACE, Limits};
use super::super::poll::readable;
use super::super::sink::{Discard, OutputSink};
use super::{LEFT_IN_PIPES, Process, ProcessIo};

/// After the exit of a process, how long its task waits for the end of its pipes, which background processes may hold
/// open: long enough for the last lines of `| tee log &`, short enough where a daemon never closes them. After that
/// `BackgroundPipes` reads on.
const LINGER: Duration = Duration::from_millis(250);

/// After the exit of a process, the least time in which the worker's stdout and stderr may still take its output. It is
/// granted even if the deadline has passed or the worker was told to stop at once.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// How often to look whether the whole session has ended: no event tells of it.
const SESSION_CHECK: Duration = Duration::from_millis(50);

/// How long to wait for the kernel to end what was killed. A process that waits for a dead disk may never end.
const KILL_WAIT: Duration = Duration::from_secs(5);

impl<O: OutputSink> Process<O> {
    /// Ends the session (TERM now, KILL at the deadline), passes on the last output and reaps the process.
    pub(in super::super) fn stop(&mut self, io: &mut ProcessIo, limits: &mut Limits) -> io::Result<()> {
        if self.terminate(io, limits)? {
            // The grace period is for the process: what is left of it is not spent on passing on its output.
            self.finish(io, limits.by(Instant::now()))?;
        }
        Ok(())
    }

    /// Sends TERM to the whole session, and KILL at the deadline. Returns when nobody is left in it; false if the
    /// process still runs, because it hangs in the kernel.
    fn terminate(&mut self, io: &mut ProcessIo, limits: &mut Limits) -> io::Result<bool> {
        self.sessions.terminate(self.leader);
        loop {
            // The leader may exit before the rest of its session, which then has what is left of the grace period.
            let leader_exited = self.exited();
            if limits.deadline_passed() || leader_exited && !self.sessions.has_members(self.leader) {
                break;
            }
            let step = if leader_exited { limits.by(Instant::now() + SESSION_CHECK) } else { limits.clone() };
            if self.wait(io, &mut &[][..], &step)?.aborted {
                limits.shorten(ABORT_GRACE);
            }
        }
        self.sessions.kill(self.leader);
        let kill_limits = Limits { deadline: Some(Instant::now() + KILL_WAIT), abort: None };
        while !self.exited() || self.sessions.has_members(self.leader) {
            if kill_limits.deadline_passed() {
                log::error!("a handler (session {}) cannot be killed: it is left behind", self.leader);
                break;
            }
            self.wait(io, &mut &[][..], &kill_limits.by(Instant::now() + SESSION_CHECK))?;
            // The session may have started processes while it was being killed.
            self.sessions.kill_again(self.leader);
        }
        Ok(self.exited())
    }

    /// To be called after the exit: passes on what is left in the pipes, waits until the worker's stdout and stderr
    /// have taken it, and reaps the process.
    ///
    /// Without a deadline this waits as long as whoever reads the worker's output does not read: without a worker in
    /// between the process would wait as well.
    pub(in super::super) fn finish(
        &mut self,
        io: &mut ProcessIo,
        mut limits: Limits,
    ) -> io::Result<ExitStatus> {
        // From here on nobody signals the session: what a finished task left in the background may go on.
        self.ended = true;
        self.sessions.leader_ended(self.leader);
        self.stdin = None;
        self.write_ends = None;
        let (mut out_left, mut err_left) = (None, None);
        let least = Instant::now() + LAST_OUTPUT;
        limits.deadline = limits.deadline.map(|deadline| deadline.max(least));
        let linger = Instant::now() + LINGER;
        let mut enough = None;
        loop {
            if Instant::now() >= linger {
                // A pipe that is open and empty, or still not empty after so many bytes, is held by a background
                // process.
                let all = self.read >= *enough.get_or_insert(self.read + LEFT_IN_PIPES);
                if all || self.out.room() > 0 && !readable(self.stdout.as_ref())? {
                    out_left = out_left.or(self.stdout.take());
                }
                if all || self.err.room() > 0 && !readable(self.stderr.as_ref())? {
                    err_left = err_left.or(self.stderr.take());
                }
            }
            if self.stdout.is_none() {
                self.out.end();
            }
            if self.stderr.is_none() {
                self.err.end();
            }
            self.out.refresh();
            self.err.refresh();
            let pipes_open = self.stdout.is_some() || self.stderr.is_some();
            if !pipes_open && self.out.is_idle() && self.err.is_idle() {
                break;
            }
            let step = if pipes_open && Instant::now() < linger { limits.by(linger) } else { limits.clone() };
            if self.wait(io, &mut &[][..], &step)?.aborted {
                limits.shorten(LAST_OUTPUT);
            }
            // The sinks count as lost what has not been taken by then.
            if limits.deadline_passed() {
                break;
            }
        }
        // Not before the loop has ended: output of background processes must follow what was read before it.
        if let Some(pipe) = out_left {
            io.background.take_over(pipe, |waker| self.out.successor(waker));
        }
        if let Some(pipe) = err_left {
            io.background.take_over(pipe, |waker| self.err.successor(waker));
        }
        // At the deadline a pipe may still be open. Its output is lost, but it is read on: closing it would kill by
        // SIGPIPE whoever writes to it.
        for pipe in [self.stdout.take(), self.stderr.take()].into_iter().flatten() {
            io.background.take_over(pipe, |_| Box::new(Discard));
        }
        self.reaped = true;
        self.sessions.reap(self.leader)
    }
}
