//! A file that is added to and stays below a size: what is too much goes from its beginning.
//!
//! Each writer takes the file's lock for each addition, so that writers in this process and in others do no more than
//! write in turns.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::geteuid;

/// How long another writer may have the lock. It needs milliseconds, if it runs at all.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// The pause between two attempts: there is no lock with a deadline.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(1);
/// What is copied at once.
const PIECE: usize = 64 * 1024;
/// The first line of a file whose beginning is gone.
const CUT: &[u8] = b"[taskq: the beginning is missing]\n";

/// One that may not be there yet, and may go at any time.
#[derive(Default)]
pub(super) struct CappedFile {
    file: Option<File>,
}

impl CappedFile {
    /// Adds `bytes` to the file at `path`, readable for this user alone where it has to be made. It has at most `most`
    /// bytes then: where that would be too little, the last half of what there is stays.
    ///
    /// # Errors
    /// With how many of the bytes were added all the same.
    pub(super) fn add(&mut self, path: &Path, most: u64, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let (file, size) = self.open(path).map_err(|error| (0, error))?;
        let added = make_room(file, size, bytes.len() as u64, most).map_err(|error| (0, error));
        let added = added.and_then(|()| write(file, bytes));
        let _ = file.unlock();
        added
    }

    /// The file that is there now, locked, and its size.
    fn open(&mut self, path: &Path) -> io::Result<(&File, u64)> {
        let kept = match self.file.take() {
            // Somebody may have deleted it.
            Some(file) => locked(file)?.filter(|(_, there)| there.nlink() > 0),
            None => None,
        };
        let opened = match kept {
            Some(kept) => Some(kept),
            None => locked(open(path)?)?,
        };
        let Some((file, there)) = opened else {
            return Err(io::Error::other("another program has locked it"));
        };
        Ok((self.file.insert(file), there.len()))
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Whoever may write to the directory may have put something else there: a link to another place, a pipe that nobody
    // reads, a file that others can read.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ELOOP) => io::Error::other("it is a symbolic link"),
            _ => error,
        })?;
    let there = opened.metadata()?;
    if !there.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if there.uid() != geteuid().as_raw() || there.nlink() > 1 {
        return Err(io::Error::other("it is another user's, or has another name as well"));
    }
    Ok(opened)
}

/// `None` where another writer keeps the lock. Where there are no locks, it does without.
fn locked(file: File) -> io::Result<Option<(File, std::fs::Metadata)>> {
    let began = Instant::now();
    while let Err(TryLockError::WouldBlock) = file.try_lock() {
        if began.elapsed() >= LOCK_PATIENCE {
            return Ok(None);
        }
        thread::sleep(TRY_AGAIN_AFTER);
    }
    let there = file.metadata()?;
    Ok(Some((file, there)))
}

/// Cuts the file at its beginning where `more` bytes would make it longer than `most`.
///
/// It is done in the file itself, which takes no room: a full disk may be the next thing that happens. Whoever is killed
/// meanwhile leaves the end as it was, and a part of it before that.
fn make_room(file: &File, size: u64, more: u64, most: u64) -> io::Result<()> {
    if size + more <= most {
        return Ok(());
    }
    let keep = (most / 2).min(most.saturating_sub(more + CUT.len() as u64));
    let mut buffer = vec![0; PIECE];
    let mut from = size.saturating_sub(keep);
    // From the beginning of a line on, where there is one.
    let read = read_at(file, &mut buffer, from)?;
    if let Some(end) = buffer[..read].iter().position(|byte| *byte == b'\n') {
        from += end as u64 + 1;
    }
    // Where a file is opened to be added to, Linux adds whatever the offset is.
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_APPEND))?;
    let moved = move_down(file, &mut buffer, from);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_APPEND))?;
    file.set_len(moved?)
}

/// Moves what stands at `from` and behind to the beginning, below [`CUT`]. Returns where it ends.
fn move_down(file: &File, buffer: &mut [u8], mut from: u64) -> io::Result<u64> {
    let mut to = 0;
    // The line that stands at the beginning must not go over what is still to be moved.
    let mut piece = CUT.to_vec();
    loop {
        let read = read_at(file, buffer, from)?;
        file.write_all_at(&piece, to)?;
        to += piece.len() as u64;
        if read == 0 {
            return Ok(to);
        }
        from += read as u64;
        piece.clear();
        piece.extend_from_slice(&buffer[..read]);
    }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn write(mut file: &File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match io::Write::write(&mut file, &bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    const MOST: u64 = 4096;

    fn add(path: &Path, bytes: &[u8]) {
        CappedFile::default().add(path, MOST, bytes).unwrap();
    }

    #[test]
    fn it_is_made_for_its_owner_alone_and_added_to() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a");
        add(&path, b"one\n");
        add(&path, b"two");
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn it_stays_below_its_size_and_keeps_its_end_in_whole_lines() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a");
        let mut file = CappedFile::default();
        let mut all = String::new();
        for nth in 0..2000 {
            let line = format!("line {nth}\n");
            all.push_str(&line);
            // As another run of the same attempt, now and then.
            if nth % 100 == 0 {
                file = CappedFile::default();
            }
            file.add(&path, MOST, line.as_bytes()).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.len() as u64 <= MOST, "{} bytes", text.len());
            let end = text.strip_prefix("[taskq: the beginning is missing]\n").unwrap_or(&text);
            assert_eq!(end.len() < text.len(), all.len() as u64 > MOST, "after {nth}");
            assert!(all.ends_with(end) && end.starts_with("line "), "after {nth}: {text}");
            assert!(all.len() == end.len() || end.len() as u64 >= MOST / 2 - 64, "{} bytes", end.len());
        }
    }

    #[test]
    fn what_has_no_lines_is_cut_and_so_is_what_was_too_long_before() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a");
        // More than one piece is moved.
        let most = 4 * PIECE as u64;
        let old: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1] | 0x80).collect();
        fs::write(&path, &old).unwrap();
        let more = vec![b'x'; PIECE];
        CappedFile::default().add(&path, most, &more).unwrap();
        let new = fs::read(&path).unwrap();
        let kept = new.strip_prefix(CUT).unwrap().strip_suffix(more.as_slice()).unwrap();
        assert!(kept.len() as u64 == most / 2 && old.ends_with(kept));
    }

    #[test]
    fn writers_write_in_turns() {
        const LINES: usize = 300;
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a");
        thread::scope(|scope| {
            for writer in ["a", "b", "c"] {
                let path = &path;
                scope.spawn(move || {
                    let mut file = CappedFile::default();
                    for _ in 0..LINES {
                        file.add(path, MOST, format!("{}\n", writer.repeat(60)).as_bytes()).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= MOST && text.len() as u64 > MOST / 3);
        for line in text.strip_prefix("[taskq: the beginning is missing]\n").unwrap().lines() {
            assert!(["a", "b", "c"].iter().any(|writer| line == writer.repeat(60)), "{line:?}");
        }
    }

    #[test]
    fn one_that_is_deleted_is_made_again() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a");
        let mut file = CappedFile::default();
        file.add(&path, MOST, b"one\n").unwrap();
        fs::remove_file(&path).unwrap();
        file.add(&path, MOST, b"two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
    }

    #[test]
    fn what_somebody_put_in_its_place_is_not_written_to() {
        let folder = TempDir::new().unwrap();
        let (path, elsewhere) = (folder.path().join("a"), folder.path().join("elsewhere"));
        let refused = |why: &str| {
            let (added, error) = CappedFile::default().add(&path, MOST, b"x").unwrap_err();
            assert!(added == 0 && error.to_string().contains(why), "{error}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        };
        for content in [None, Some("")] {
            if let Some(content) = content {
                fs::write(&elsewhere, content).unwrap();
            }
            symlink(&elsewhere, &path).unwrap();
            refused("symbolic link");
        }
        fs::hard_link(&elsewhere, &path).unwrap();
        refused("another name");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("no regular file");
        fs::create_dir(&path).unwrap();
        refused("directory");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"");
    }

    #[test]
    fn a_lock_that_is_kept_is_not_waited_for_without_an_end() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a");
        add(&path, b"one\n");
        let other = File::open(&path).unwrap();
        other.lock().unwrap();
        let (added, error) = CappedFile::default().add(&path, MOST, b"two\n").unwrap_err();
        assert!(added == 0 && error.to_string().contains("locked"), "{error}");
        other.unlock().unwrap();
        add(&path, b"three\n");
        assert_eq!(fs::read(&path).unwrap(), b"one\nthree\n");
    }
}
