//! Output of commands that could not be passed on: warns when the loss begins, and counts the bytes.

use std::io;
use std::sync::Mutex;

use crate::lock::lock;

/// What one stream has lost.
pub(super) struct Loss {
    stream: &'static str,
    lost: Mutex<Option<Lost>>,
}

struct Lost {
    bytes: u64,
    /// Why the first of them were lost.
    why: String,
}

impl Loss {
    pub(super) fn of(stream: &'static str) -> Self {
        Self { stream, lost: Mutex::new(None) }
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
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let begins = match &mut *lock(&self.lost) {
            Some(lost) => {
                lost.bytes = lost.bytes.saturating_add(bytes);
                None
            }
            nothing => Some(nothing.insert(Lost { bytes, why: why() }).why.clone()),
        };
        if let Some(why) = begins {
            log::warn!(
                "cannot pass on what commands write to {}: {why}; their tasks go on, and what is lost is counted",
                self.stream
            );
        }
    }

    /// How much was lost and why, in words; None if nothing was.
    pub(super) fn summary(&self) -> Option<String> {
        let lost = lock(&self.lost);
        let Lost { bytes, why } = lost.as_ref()?;
        let (what, are) = if *bytes == 1 { ("byte", "is") } else { ("bytes", "are") };
        Some(format!("{bytes} {what} that commands wrote to {} {are} lost: {why}", self.stream))
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
}
