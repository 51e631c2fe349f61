//! The file of `--unsent`: what was not confirmed, in the form in which it came in.

mod directory;
mod merge;
mod place;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crossbeam_channel::Receiver;
use nix::unistd::geteuid;

use self::directory::{LockRefusal, Locked};
use self::merge::Kept;
use self::place::{directory_of, open_there, resolve};
use super::FileFingerprint;
use crate::output::{self, counted};

/// Tasks that are written at once.
const BUFFER: usize = 64 * 1024;

/// How tasks are written, and where they came from.
pub struct UnsentForm {
    /// What follows each task; nothing where the input was a single body.
    pub separator: Option<u8>,
    /// The file that the tasks are read from, if it is one.
    pub input: Option<InputFile>,
}

/// A regular file that is read, and from where on.
#[derive(Debug, Clone, Copy)]
pub struct InputFile {
    device: u64,
    inode: u64,
    start: u64,
}

impl InputFile {
    /// `None` for what is no regular file: a pipe, a terminal.
    #[must_use]
    pub fn of(file: &File) -> Option<Self> {
        let there = file.metadata().ok().filter(fs::Metadata::is_file)?;
        let mut file = file;
        Some(Self { device: there.dev(), inode: there.ino(), start: file.stream_position().ok()? })
    }

    fn is(&self, other: &File) -> bool {
        other.metadata().is_ok_and(|other| other.dev() == self.device && other.ino() == self.inode)
    }
}

/// Written beside its destination under another name, readable for the owner only, and put in place at the end.
///
/// What is there then, of an earlier run or of one at the same time, is kept: it is not sent yet. Only where the tasks
/// are read from this very file is that part replaced by what remains of it.
pub struct UnsentFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    /// Bytes in the temporary file: whole tasks.
    length: u64,
    /// How many those are.
    kept: u64,
    /// Whole tasks that follow.
    buffer: Vec<u8>,
    /// Their numbers in the input.
    waiting: Vec<u64>,
    /// The first one that had no room.
    without_room: Option<u64>,
    separator: Option<u8>,
    /// The input is a file, and not this one.
    input_remains: bool,
    /// The input, where it is this file.
    input: Option<InputFile>,
    added: bool,
}

/// How saving has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// What was added is in the file.
    InPlace,
    /// The file is the input, as it was before.
    InputLeft,
}

/// Why what was added is not in the file, and where it is.
#[derive(Debug)]
pub struct Unsaved {
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    why: String,
    remains: Remains,
}

/// What there is of the tasks that were not confirmed.
#[derive(Debug, PartialEq, Eq)]
enum Remains {
    /// So many of them are in this file, and the rest could not be saved at all.
    Beside { path: PathBuf, kept: u64 },
    /// As `Beside`, but the disk has not said that it has them.
    NotForCertain { path: PathBuf },
    /// Those before this one, numbered as in the input, and no more had room.
    Until { line: u64, beside: Option<(PathBuf, u64)>, input_remains: bool },
    /// The file is the input, as it was before.
    InputLeft,
    /// Nothing was to be saved.
    Nothing,
}

impl Unsaved {
    /// Where so many were not confirmed.
    #[must_use]
    pub fn told(&self, unconfirmed: u64) -> String {
        let Self { why, remains, .. } = self;
        let are = |count| counted(count, "is", "are");
        match remains {
            Remains::Beside { path, kept } if *kept == unconfirmed => {
                format!(
                    "{why}; {} kept in {}",
                    if *kept == 1 { "it is" } else { "they are" },
                    output::path(path)
                )
            }
            Remains::Beside { path, kept } => {
                let of_them = counted(*kept, "of them is", "of them are");
                format!("{why}; {of_them} kept in {}", output::path(path))
            }
            Remains::NotForCertain { path } => {
                format!("{why}; what could be written of them is in {}", output::path(path))
            }
            Remains::Until { line, beside, input_remains } => {
                let kept = beside.as_ref().map_or(0, |(_, kept)| *kept);
                let what = if *input_remains { "in the input only" } else { "lost" };
                let rest = are(unconfirmed.saturating_sub(kept));
                match beside {
                    Some((path, _)) => format!(
                        "{why}; {} kept in {}, {rest} {what}: nothing is kept from line {line} on",
                        counted(kept, "of them is", "of them are"),
                        output::path(path)
                    ),
                    None => format!("{why}; nothing is kept, {rest} {what}"),
                }
            }
            Remains::InputLeft => format!("{why}; it was left as it was, the confirmed ones included"),
            Remains::Nothing => why.clone(),
        }
    }
}

impl UnsentFile {
    /// Creates the file under its temporary name.
    ///
    /// # Errors
    /// Whatever would only show when everything is sent: that it cannot be written or replaced, or holds something
    /// already that a single body cannot be put after.
    pub fn create(path: &Path, form: &UnsentForm) -> io::Result<Self> {
        let path = resolve(path, geteuid())?;
        let there = open_there(&path, geteuid())?;
        let input = form.input.filter(|input| there.as_ref().is_some_and(|there| input.is(there)));
        if input.is_none() && form.separator.is_none() && there.is_some_and(|there| !is_empty(&there)) {
            return Err(holds_something());
        }
        directory::check(directory_of(&path))?;
        let (temporary, file) = create_beside(&path)?;
        Ok(Self {
            path,
            temporary,
            file,
            length: 0,
            kept: 0,
            buffer: Vec::new(),
            waiting: Vec::new(),
            without_room: None,
            separator: form.separator,
            input_remains: form.input.is_some() && input.is_none(),
            input,
            added: false,
        })
    }

    /// Where it is put.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one task, which has this number in the input.
    pub fn add(&mut self, number: u64, body: &[u8]) -> io::Result<()> {
        self.added = true;
        self.buffer.extend_from_slice(body);
        self.buffer.extend(self.separator);
        self.waiting.push(number);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what was added, so that a lack of room is known before more is read that would need some. A part of a
    /// task must not pass for a task: where not all can be written, the file ends with a whole one.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.buffer.len() {
            match self.file.write(&self.buffer[written..]) {
                Ok(0) => return self.cut(written, io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.cut(written, error),
            }
        }
        self.length += written as u64;
        self.kept += self.waiting.len() as u64;
        self.buffer.clear();
        self.waiting.clear();
        Ok(())
    }

    fn cut(&mut self, written: usize, error: io::Error) -> io::Result<()> {
        let (tasks, bytes) = whole_tasks(&self.buffer[..written], self.separator);
        self.length += bytes as u64;
        self.kept += tasks as u64;
        self.without_room = self.waiting.get(tasks).copied();
        self.buffer.clear();
        self.waiting.clear();
        match self.file.set_len(self.length) {
            Ok(()) => Err(error),
            Err(cut) => {
                Err(io::Error::other(format!("{error}, and its last line is a part of a task ({cut})")))
            }
        }
    }

    /// Whether it is to take the place of the input, which has to be read to its end before that.
    #[must_use]
    pub fn replaces_input(&self) -> bool {
        self.input.is_some()
    }

    /// Brings the file up to date, unless there is nothing new to say. An input is replaced only where all that remains
    /// of it is here, and `read` says what that was; otherwise it is left as it was. A signal ends it.
    ///
    /// # Errors
    /// What went wrong, and where the tasks are.
    pub fn finish(
        mut self,
        read: Option<FileFingerprint>,
        signals: &Receiver<i32>,
    ) -> Result<Saved, Unsaved> {
        let replaces = self.input.is_some() && read.is_some();
        if !self.added && !replaces {
            return Ok(if self.input.is_some() { Saved::InputLeft } else { Saved::InPlace });
        }
        if let Err(error) = self.flush() {
            return Err(self.give_up(&error));
        }
        if let Err(error) = self.file.sync_all() {
            let remains = Remains::NotForCertain { path: self.temporary.clone() };
            return Err(Unsaved { signal: None, why: error.to_string(), remains });
        }
        match self.put_in_place(read, signals) {
            Ok(saved) => {
                // Everything is in the file, or was in the input before.
                self.length = 0;
                Ok(saved)
            }
            Err(LockRefusal::Error(error)) => Err(self.beside(None, error.to_string())),
            Err(LockRefusal::Signal(signal)) => {
                let why = format!("{} came before that was done", crate::shutdown::name(signal));
                Err(self.beside(Some(signal), why))
            }
        }
    }

    /// All that was added is under the temporary name, and stays there.
    fn beside(&self, signal: Option<i32>, why: String) -> Unsaved {
        let remains = match self.kept {
            0 => Remains::Nothing,
            kept => Remains::Beside { path: self.temporary.clone(), kept },
        };
        Unsaved { signal, why, remains }
    }

    /// After [`UnsentFile::add`] or [`UnsentFile::flush`] has failed.
    #[must_use]
    pub fn give_up(mut self, error: &io::Error) -> Unsaved {
        let remains = if self.input_is_in_place() {
            // A part of the tasks beside all of them would be sent twice.
            self.length = 0;
            Remains::InputLeft
        } else {
            Remains::Until {
                line: self.without_room.unwrap_or_default(),
                beside: (self.kept > 0).then(|| (self.temporary.clone(), self.kept)),
                input_remains: self.input_remains,
            }
        };
        Unsaved { signal: None, why: error.to_string(), remains }
    }

    fn input_is_in_place(&self) -> bool {
        let there = || open_there(&self.path, geteuid()).ok().flatten();
        self.input.is_some_and(|input| there().is_some_and(|there| input.is(&there)))
    }

    fn put_in_place(
        &self,
        read: Option<FileFingerprint>,
        signals: &Receiver<i32>,
    ) -> Result<Saved, LockRefusal> {
        let directory = Locked::take(directory_of(&self.path), signals)?;
        if let Some(there) = open_there(&self.path, geteuid())? {
            let kept = match (&self.input, &read) {
                (Some(input), None) if input.is(&there) => return Ok(Saved::InputLeft),
                (Some(input), Some(read)) => {
                    Kept::beside(&there, input.start, read, self.separator, signals)?
                }
                (Some(_), None) | (None, _) => Kept::all(&there)?,
            };
            if !kept.is_nothing() {
                self.replace_by_merged((&there, kept), signals)?;
                directory.sync();
                return Ok(Saved::InPlace);
            }
        }
        fs::rename(&self.temporary, &self.path)?;
        directory.sync();
        Ok(Saved::InPlace)
    }

    fn replace_by_merged(&self, there: (&File, Kept), signals: &Receiver<i32>) -> Result<(), LockRefusal> {
        if self.separator.is_none() && self.added {
            return Err(holds_something().into());
        }
        let (path, merged) = create_beside(&self.path)?;
        let added = (&self.file, self.length);
        let written = merge::write(&merged, there, added, self.separator, signals)
            .and_then(|()| Ok(merged.sync_all()?))
            .and_then(|()| Ok(fs::rename(&path, &self.path)?));
        if written.is_err() {
            let _ = fs::remove_file(path);
        }
        written
    }
}

impl Drop for UnsentFile {
    fn drop(&mut self) {
        // Gone already where it was put in place. Tasks in it that are nowhere else are not to go.
        if self.length == 0 {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A hidden file in the same directory. It neither follows a symbolic link nor takes over a file that somebody put there.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it is no file name"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{:x}", crate::backoff::random()));
    let path = path.with_file_name(hidden);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((path, file))
}

fn is_empty(file: &File) -> bool {
    file.metadata().is_ok_and(|file| file.len() == 0)
}

fn holds_something() -> io::Error {
    io::Error::other("it holds something already, perhaps an earlier task that was not sent")
}

/// How many whole tasks the bytes begin with, and how many bytes those are. A single body is whole or not there.
fn whole_tasks(bytes: &[u8], separator: Option<u8>) -> (usize, usize) {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| Some(**byte) == separator);
    ends.fold((0, 0), |(tasks, _), (at, _)| (tasks + 1, at + 1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
