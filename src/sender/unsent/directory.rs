//! One run at a time brings a file up to date: the lock is on its directory, because the file itself is replaced each
//! time, and a lock on it would be one on what is gone.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::output;

/// How long others may take; they copy what is in the file, which may be gigabytes.
const PATIENCE: Duration = Duration::from_mins(1);
/// The pause between two attempts: there is no lock with a deadline.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// After which somebody is told why nothing happens.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// A directory that nobody else who locks it has; until it is dropped.
pub(super) struct Locked(File);

/// Finds out whether it can be locked at all.
pub(super) fn check(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.try_lock() {
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Why there is no lock.
pub(super) enum LockRefusal {
    Signal(i32),
    Error(io::Error),
}

impl From<io::Error> for LockRefusal {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}

impl Locked {
    pub(super) fn take(directory: &Path, signals: &Receiver<i32>) -> Result<Self, LockRefusal> {
        let file = File::open(directory)?;
        let began = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(error)) => return Err(error.into()),
                Err(TryLockError::WouldBlock) if began.elapsed() >= PATIENCE => {
                    return Err(io::Error::other("another program has locked its directory").into());
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if !told && began.elapsed() >= TELL_AFTER {
                told = true;
                log::warn!(
                    "waiting for another program that has locked the directory {}",
                    output::path(directory)
                );
            }
            match signals.recv_timeout(TRY_AGAIN_AFTER) {
                Ok(signal) => return Err(LockRefusal::Signal(signal)),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody listens to signals.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TRY_AGAIN_AFTER),
            }
        }
    }

    /// Brings to disk what was renamed in it. Where that cannot be asked for, it is on its way all the same.
    pub(super) fn sync(&self) {
        let _ = self.0.sync_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::folder;
    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_a_signal_ends_the_wait() {
        let folder = folder("locked");
        let (signal, signals) = crossbeam_channel::bounded(1);
        let first = Locked::take(&folder, &signals).ok().unwrap();
        check(&folder).unwrap();
        signal.send(15).unwrap();
        assert!(matches!(Locked::take(&folder, &signals), Err(LockRefusal::Signal(15))));
        let second = std::thread::spawn({
            let folder = folder.clone();
            move || drop(Locked::take(&folder, &signals).ok().unwrap())
        });
        drop(first);
        second.join().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
