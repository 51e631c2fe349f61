//! Signals become messages on a channel. What they mean is up to the command that listens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, never};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};

/// More than anyone sends before the process ends; further ones say nothing new.
const PENDING_SIGNALS: usize = 16;

/// Where the numbers arrive, once they are listened to.
static SIGNALS: OnceLock<Receiver<i32>> = OnceLock::new();
/// One has arrived.
static TOLD: AtomicBool = AtomicBool::new(false);

/// Catches SIGINT, SIGTERM and SIGHUP from now on and returns where their numbers arrive. To be called on the
/// main thread: whoever started taskq may have blocked them, and one thread that has not is enough.
///
/// A SIGHUP that was ignored when taskq was started (`nohup`) stays ignored. `ctrlc` is asked for SIGINT only: with
/// its `termination` feature it catches all three, but neither tells which it was, which the exit code needs, nor
/// leaves an ignored one alone.
pub fn listen() -> Result<Receiver<i32>> {
    let failed = |error: &dyn std::fmt::Display| Error::internal(format!("cannot catch signals: {error}"));
    let wanted = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    wanted.thread_unblock().map_err(|errno| failed(&errno))?;
    let (sender, receiver) = crossbeam_channel::bounded(PENDING_SIGNALS);
    let interrupts = sender.clone();
    ctrlc::set_handler(move || report(&interrupts, SIGINT)).map_err(|error| failed(&error))?;
    let mut caught = vec![SIGTERM];
    if !is_ignored(SIGHUP) {
        caught.push(SIGHUP);
    }
    let mut signals = Signals::new(caught).map_err(|error| failed(&error))?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                report(&sender, signal);
            }
        })
        .map_err(|error| failed(&error))?;
    let _ = SIGNALS.set(receiver.clone());
    Ok(receiver)
}

/// Makes a write beyond the limit on the size of files (`ulimit -f`) fail, which is told. The signal that comes with it
/// would end the process without a word. Commands that are run have it as it is by default.
pub fn survive_file_limits() -> Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default())
        .map(drop)
        .map_err(|error| Error::internal(format!("cannot catch signals: {error}")))
}

/// Makes sure that the exit statuses of children can be learned: where whoever started taskq ignores SIGCHLD, the kernel
/// throws them away. Children do not inherit this.
pub fn keep_exit_statuses() -> Result<()> {
    if is_ignored(SIGCHLD) {
        // To catch it is not to ignore it; nobody looks at the flag.
        signal_hook::flag::register(SIGCHLD, Arc::default())
            .map_err(|error| Error::internal(format!("cannot catch signals: {error}")))?;
    }
    Ok(())
}

/// Where further signals arrive when the command that listened to them is over.
#[must_use]
pub fn further() -> Receiver<i32> {
    SIGNALS.get().cloned().unwrap_or_else(never)
}

/// Whether any has arrived.
#[must_use]
pub fn was_told_to_stop() -> bool {
    TOLD.load(Ordering::SeqCst)
}

fn report(sender: &Sender<i32>, signal: i32) {
    TOLD.store(true, Ordering::SeqCst);
    // Full: the process has been told often enough.
    let _ = sender.try_send(signal);
}

/// How signals are called in messages.
#[must_use]
pub fn name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        SIGTERM => "SIGTERM",
        SIGHUP => "SIGHUP",
        _ => "a signal",
    }
}

/// Asked of the kernel through `/proc`: the system call would need unsafe code. Where there is no `/proc`, SIGHUP
/// is left as it is, which keeps `nohup` working, and SIGCHLD is caught, which does no harm.
fn is_ignored(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").map_or(true, |status| ignores(&status, signal))
}

/// Reads the `SigIgn` mask of `/proc/PID/status`.
fn ignores(status: &str, signal: i32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        assert!(ignores("Name:\tx\nSigIgn:\t0000000000001001\n", SIGHUP));
        assert!(!ignores("SigIgn:\t0000000000001000\n", SIGHUP));
        assert!(ignores("nothing of the kind", SIGHUP));
    }
}
