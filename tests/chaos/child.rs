//! A child process that several threads may signal while one waits for its end; the next one takes its place.

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard};

/// Kills the process when the thread that started it ends, so that nothing outlives a chaos run that is itself killed.
const DIE_WITH_PARENT: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// A command that is killed with the thread that starts it, and does not get the terminal's Ctrl-C.
pub(crate) fn command(program: &str) -> Command {
    let [setpriv, flags @ ..] = DIE_WITH_PARENT;
    let mut command = Command::new(setpriv);
    command.args(flags).arg(program).process_group(0);
    command
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    /// The signals that were sent to it.
    signals: Vec<Signal>,
}

#[derive(Default)]
pub(crate) struct SharedChild(Mutex<State>);

/// How a process ended.
#[derive(Debug)]
pub(crate) struct ChildExit {
    /// The exit status as a shell reports it: 128 + N after signal N.
    pub(crate) code: i32,
    pub(crate) signals: Vec<Signal>,
}

impl SharedChild {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn set(&self, child: Child) {
        *self.lock() = State { child: Some(child), signals: Vec::new() };
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().child.as_ref().map(Child::id)
    }

    /// How it has ended; `None` while it runs. After its end there is no child until the next [`Self::set`].
    pub(crate) fn try_wait(&self) -> Option<ChildExit> {
        let mut state = self.lock();
        let status = state.child.as_mut()?.try_wait().unwrap()?;
        state.child = None;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Some(ChildExit { code, signals: std::mem::take(&mut state.signals) })
    }

    /// False when there is no child.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let mut state = self.lock();
        let Some(child) = &state.child else { return false };
        // It is reaped under the same lock, so the pid cannot be another process's yet.
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        signal::kill(pid, signal).unwrap();
        state.signals.push(signal);
        true
    }

    /// The signals that were sent to it so far.
    pub(crate) fn signals(&self) -> Vec<Signal> {
        self.lock().signals.clone()
    }

    /// It runs, and was sent neither SIGTERM nor SIGKILL.
    pub(crate) fn is_not_stopping(&self) -> bool {
        let state = self.lock();
        let to_end = |signal: &Signal| matches!(signal, Signal::SIGKILL | Signal::SIGTERM);
        state.child.is_some() && !state.signals.iter().any(to_end)
    }
}

impl Drop for SharedChild {
    fn drop(&mut self) {
        if let Some(child) = &mut self.lock().child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
