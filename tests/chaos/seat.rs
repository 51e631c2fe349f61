//! A place for a process that others may signal while one thread waits for its end.

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard};

/// Ends the process with the thread that started it, so that nothing outlives a run that is itself killed.
const DIE_WITH_PARENT: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// A command that dies with the thread that starts it, and does not hear the terminal's Ctrl-C.
pub(crate) fn command(program: &str) -> Command {
    let [setpriv, flags @ ..] = DIE_WITH_PARENT;
    let mut command = Command::new(setpriv);
    command.args(flags).arg(program).process_group(0);
    command
}

#[derive(Default)]
struct Occupant {
    child: Option<Child>,
    /// The signals that were sent to it.
    signals: Vec<Signal>,
}

#[derive(Default)]
pub(crate) struct Seat(Mutex<Occupant>);

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// As a shell shows it.
    pub(crate) code: i32,
    pub(crate) signals: Vec<Signal>,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Occupant> {
        self.0.lock().unwrap()
    }

    pub(crate) fn take(&self, child: Child) {
        *self.lock() = Occupant { child: Some(child), signals: Vec::new() };
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().child.as_ref().map(Child::id)
    }

    /// Its end, once it has come; the place is empty then.
    pub(crate) fn ended(&self) -> Option<Ended> {
        let mut occupant = self.lock();
        let status = occupant.child.as_mut()?.try_wait().unwrap()?;
        occupant.child = None;
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Some(Ended { code, signals: std::mem::take(&mut occupant.signals) })
    }

    /// False when nobody is there.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let mut occupant = self.lock();
        let Some(child) = &occupant.child else { return false };
        // Not yet reaped, as that happens under the same lock: the pid is nobody else's.
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        signal::kill(pid, signal).unwrap();
        occupant.signals.push(signal);
        true
    }

    /// The signals that were sent to it so far.
    pub(crate) fn orders(&self) -> Vec<Signal> {
        self.lock().signals.clone()
    }

    /// It is there and nobody has told it to end yet.
    pub(crate) fn is_undisturbed(&self) -> bool {
        let occupant = self.lock();
        let to_end = |signal: &Signal| matches!(signal, Signal::SIGKILL | Signal::SIGTERM);
        occupant.child.is_some() && !occupant.signals.iter().any(to_end)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(child) = &mut self.lock().child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
