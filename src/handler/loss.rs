//! Output of commands that could not be passed on or kept: warns when the loss begins, and counts the bytes.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use crate::backoff::Reminder;
use crate::lock::lock;
use crate::output;

/// What one stream, or the files in one directory, have lost.
pub(super) struct Loss {
    /// Which bytes it is about: `that commands wrote to`, and then the name.
    which: &'static str,
    name: String,
    lost: Mutex<Option<Lost>>,
    /// For what may pass, and come back.
    reminder: Mutex<Reminder>,
}

struct Lost {
    bytes: u64,
    /// Why the first of them were lost.
    why: String,
}

impl Loss {
    pub(super) fn of(stream: &'static str) -> Self {
        Self::new("that commands wrote to", stream.to_owned())
    }

    /// Of the files in the directory that is shown so.
    pub(super) fn of_files(directory: String) -> Self {
        Self::new("for the files in", directory)
    }

    fn new(which: &'static str, name: String) -> Self {
        Self { which, name, lost: Mutex::default(), reminder: Mutex::default() }
    }

    /// Counts bytes that could not be written to a file. That may concern this file alone, or pass: it is told again each
    /// minute.
    pub(super) fn note_file(&self, path: &Path, bytes: usize, error: &io::Error) {
        let why = error.to_string();
        if lock(&self.reminder).is_due(&why) {
            log::warn!(
                "cannot write to {} what a command prints: {why}; its task goes on, and what is lost is counted",
                output::path(path)
            );
        }
        self.count(bytes, || why);
    }

    /// Counts bytes that could not be written to the stream.
    pub(super) fn note(&self, bytes: usize, error: &io::Error) {
        self.add(bytes, || reason(error));
    }

    /// Counts bytes that nobody has read in the time there was after the end of their process.
    pub(super) fn note_given_up(&self, bytes: usize) {
        self.add(bytes, || "its reader does not read".to_owned());
    }

    fn add(&self, bytes: usize, why: impl FnOnce() -> String) {
        if let Some(why) = self.count(bytes, why) {
            log::warn!(
                "cannot pass on what commands write to {}: {why}; their tasks go on, and what is lost is counted",
                self.name
            );
        }
    }

    /// Returns why, if these are the first ones.
    fn count(&self, bytes: usize, why: impl FnOnce() -> String) -> Option<String> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        match &mut *lock(&self.lost) {
            Some(lost) => {
                lost.bytes = lost.bytes.saturating_add(bytes);
                None
            }
            nothing => Some(nothing.insert(Lost { bytes, why: why() }).why.clone()),
        }
    }

    /// How much was lost and why, in words; None if nothing was.
    pub(super) fn summary(&self) -> Option<String> {
        let lost = lock(&self.lost);
        let Lost { bytes, why } = lost.as_ref()?;
        let (what, are) = if *bytes == 1 { ("byte", "is") } else { ("bytes", "are") };
        Some(format!("{bytes} {what} {} {} {are} lost: {why}", self.which, self.name))
    }
}

fn reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::BrokenPipe {
        "nobody reads it any more".to_owned()
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_counted_and_the_first_reason_kept() {
        let loss = Loss::of("stdout");
        assert_eq!(loss.summary(), None);
        loss.note(1, &io::ErrorKind::BrokenPipe.into());
        let summary = "1 byte that commands wrote to stdout is lost: nobody reads it any more";
        assert_eq!(loss.summary().as_deref(), Some(summary));
        loss.note(2, &io::ErrorKind::BrokenPipe.into());
        loss.note_given_up(4);
        let summary = "7 bytes that commands wrote to stdout are lost: nobody reads it any more";
        assert_eq!(loss.summary().as_deref(), Some(summary));
    }

    #[test]
    fn what_is_missing_in_files_is_told_with_their_directory() {
        let loss = Loss::of_files("/var/lib/x".to_owned());
        loss.note_file(Path::new("/var/lib/x/a.1.out"), 3, &io::ErrorKind::StorageFull.into());
        let summary = "3 bytes for the files in /var/lib/x are lost: no storage space";
        assert_eq!(loss.summary().as_deref(), Some(summary));
    }
}
