//! What an `--unsent` file becomes: what is there already, without what this run has read of it, and what this run has to
//! add.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crossbeam_channel::Receiver;

use super::directory::LockRefusal;
use crate::sender::FileFingerprint;

/// How much is copied at a time, between two looks for a signal.
const CHUNK: usize = 64 * 1024;

/// Which bytes of a file stay: those before `until`, and those from `from` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    until: u64,
    from: u64,
    end: u64,
}

impl Kept {
    pub(super) fn is_nothing(self) -> bool {
        self.until == 0 && self.from == self.end
    }

    /// All of them.
    pub(super) fn all(there: &File) -> io::Result<Self> {
        let end = there.metadata()?.len();
        Ok(Self { until: end, from: end, end })
    }

    /// All but what was read from `start` on, where that is still there: others may have put their tasks after it, or
    /// have written the file anew.
    pub(super) fn beside(
        there: &File,
        start: u64,
        read: &FileFingerprint,
        separator: Option<u8>,
        signals: &Receiver<i32>,
    ) -> Result<Self, LockRefusal> {
        let all = Self::all(there)?;
        let Some(after) = start.checked_add(read.bytes()).filter(|after| *after <= all.end) else {
            return Ok(all);
        };
        let mut found = FileFingerprint::default();
        each_chunk(there, start..after, signals, |chunk| {
            found.add(chunk);
            Ok(())
        })?;
        if found != *read {
            return Ok(all);
        }
        // Who adds to a file whose last line has no end writes that first. It is no task.
        let ends_late = after > start
            && after < all.end
            && separator.is_some_and(|separator| {
                byte_at(there, after - 1) != Some(separator) && byte_at(there, after) == Some(separator)
            });
        Ok(Self { until: start, from: after + u64::from(ends_late), end: all.end })
    }
}

fn byte_at(file: &File, at: u64) -> Option<u8> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).ok().map(|()| byte[0])
}

/// Writes what is kept, with the first `length` bytes of `added` in their place: after what was there before this run,
/// and before what has come since.
pub(super) fn write(
    to: &File,
    (there, kept): (&File, Kept),
    (added, length): (&File, u64),
    separator: Option<u8>,
    signals: &Receiver<i32>,
) -> Result<(), LockRefusal> {
    let copy = |from: &File, range: Range<u64>| {
        each_chunk(from, range, signals, |chunk| {
            let mut to = to;
            to.write_all(chunk)
        })
    };
    copy(there, 0..kept.until)?;
    if let (Some(separator), Some(last)) = (separator, kept.until.checked_sub(1))
        && byte_at(there, last) != Some(separator)
    {
        let mut to = to;
        to.write_all(&[separator])?;
    }
    copy(added, 0..length)?;
    copy(there, kept.from..kept.end)
}

/// Reads a part of the file, which may get shorter meanwhile.
fn each_chunk(
    file: &File,
    range: Range<u64>,
    signals: &Receiver<i32>,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), LockRefusal> {
    let mut chunk = vec![0; CHUNK];
    let mut at = range.start;
    while at < range.end {
        if let Ok(signal) = signals.try_recv() {
            return Err(LockRefusal::Signal(signal));
        }
        let most = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
        let read = match file.read_at(&mut chunk[..most], at) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        take(&chunk[..read])?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use crossbeam_channel::never;

    use super::super::tests::folder;
    use super::*;

    /// What a file of `now` becomes after a run that has read `read` from `start` on and has to add `added`.
    fn merged(now: &str, start: u64, read: &str, added: &str) -> String {
        let folder = folder("merge");
        let [there, ours, new] = ["there", "ours", "new"].map(|name| folder.join(name));
        fs::write(&there, now).unwrap();
        fs::write(&ours, added).unwrap();
        let mut fingerprint = FileFingerprint::default();
        fingerprint.add(read.as_bytes());
        let there = File::open(there).unwrap();
        let kept = Kept::beside(&there, start, &fingerprint, Some(b'\n'), &never()).ok().unwrap();
        let to = File::create(&new).unwrap();
        let added = (&File::open(ours).unwrap(), added.len() as u64);
        write(&to, (&there, kept), added, Some(b'\n'), &never()).ok().unwrap();
        let text = fs::read_to_string(new).unwrap();
        assert_eq!(text.is_empty(), kept.is_nothing() && added.1 == 0);
        fs::remove_dir_all(folder).unwrap();
        text
    }

    #[test]
    fn what_was_read_is_replaced_and_nothing_else() {
        for (now, start, read, added, expected) in [
            ("a\nb\n", 0, "a\nb\n", "b\n", "b\n"),
            ("a\nb\n", 0, "a\nb\n", "", ""),
            ("a\nb\nnew\n", 0, "a\nb\n", "b\n", "b\nnew\n"),
            ("a\nb\nnew\n", 0, "a\nb", "b\n", "b\nnew\n"),
            ("first\na\n", 6, "a\n", "a\n", "first\na\n"),
            ("first\na\nnew\n", 6, "a\n", "", "first\nnew\n"),
            // Written anew: longer, shorter, just as long.
            ("x\ny\nz\n", 0, "a\nb\n", "b\n", "x\ny\nz\nb\n"),
            ("x", 0, "a\nb\n", "b\n", "x\nb\n"),
            ("x\ny\n", 0, "a\nb\n", "", "x\ny\n"),
            ("", 0, "a\nb\n", "b\n", "b\n"),
            ("new", 0, "", "", "new"),
        ] {
            assert_eq!(merged(now, start, read, added), expected, "{now:?} after {read:?}");
        }
    }

    #[test]
    fn a_signal_ends_it() {
        let (signal, signals) = crossbeam_channel::bounded(1);
        signal.send(15).unwrap();
        let stopped = each_chunk(&File::open("/dev/zero").unwrap(), 0..u64::MAX, &signals, |_| Ok(()));
        assert!(matches!(stopped, Err(LockRefusal::Signal(15))));
    }
}
