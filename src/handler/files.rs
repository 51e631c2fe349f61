//! The files of `--output-dir`: for each attempt at a task what its command has written.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use super::capped_file::CappedFile;
use super::file_name::stem;
use super::loss::Loss;
use super::task::Task;
use crate::output::{self, counted};

/// The most that each file has, in bytes.
const FILE_MAX: u64 = 10 * 1024 * 1024;

/// A directory in which tasks have files. Clones share what is known of its troubles.
#[derive(Clone)]
pub struct OutputFiles(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    most: u64,
    loss: Loss,
}

impl OutputFiles {
    /// Makes the directory, for this user alone, if it is not there and what it is to be in is. Makes sure that files can
    /// be put into it.
    ///
    /// # Errors
    /// One line for a person that names the directory and says what is wrong with it.
    pub fn in_directory(directory: &Path) -> Result<Self, String> {
        let cannot = |what: &str, error: &io::Error| {
            format!("{what} the directory {} (--output-dir): {error}", output::path(directory))
        };
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(cannot("cannot make", &error));
            }
            _ => {}
        }
        probe(directory).map_err(|error| cannot("cannot write to", &error))?;
        Ok(Self::new(directory, FILE_MAX))
    }

    pub(super) fn new(directory: &Path, most: u64) -> Self {
        let loss = Loss::of_files(output::path(directory));
        Self(Arc::new(Inner { directory: directory.to_owned(), most, loss }))
    }

    /// See [`super::Output::lost`].
    pub(super) fn lost(&self) -> Option<String> {
        self.0.loss.summary()
    }

    /// Those of this attempt at the task. Nothing is made yet.
    pub(super) fn of(&self, task: &Task<'_>) -> TaskFiles {
        let name = format!("{}.{}", stem(task.id, task.body), task.attempt);
        TaskFiles { files: self.clone(), name }
    }
}

/// Puts a file there, and takes it away again: what permissions say is not all that may be in the way. A disk that is full
/// may have room again.
fn probe(directory: &Path) -> io::Result<()> {
    // No task's file begins with a dot.
    let path = directory.join(format!(".taskq-{}", process::id()));
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(_) => fs::remove_file(&path),
        Err(error) => match error.kind() {
            // What a worker that was killed here has left.
            io::ErrorKind::AlreadyExists => fs::remove_file(&path),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Ok(()),
            _ => Err(error),
        },
    }
}

/// The files of one attempt at one task.
#[derive(Clone)]
pub(super) struct TaskFiles {
    files: OutputFiles,
    /// Without what tells them apart.
    name: String,
}

impl TaskFiles {
    pub(super) fn out(&self) -> TaskFile {
        self.file("out")
    }

    pub(super) fn err(&self) -> TaskFile {
        self.file("err")
    }

    fn file(&self, suffix: &str) -> TaskFile {
        TaskFile {
            path: self.files.0.directory.join(format!("{}.{suffix}", self.name)),
            files: self.files.clone(),
            file: CappedFile::default(),
            missing: 0,
        }
    }
}

/// One of them. It is made, or opened, with the first bytes.
pub(super) struct TaskFile {
    files: OutputFiles,
    path: PathBuf,
    file: CappedFile,
    /// How many bytes are missing at its end.
    missing: u64,
}

impl TaskFile {
    /// Adds bytes, at most [`super::sink::READ_MAX`]. What cannot be written is counted, and told of.
    ///
    /// This waits for the disk, and no deadline ends that: hence a local one.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let most = self.files.0.most;
        if self.missing > 0 {
            let missing = counted(self.missing, "byte is", "bytes are");
            let note = format!("\n[taskq: {missing} missing here]\n");
            if self.file.add(&self.path, most, note.as_bytes()).is_ok() {
                self.missing = 0;
            }
        }
        if let Err((added, error)) = self.file.add(&self.path, most, bytes) {
            let missing = bytes.len() - added;
            self.missing += missing as u64;
            self.files.0.loss.note_file(&self.path, missing, &error);
        }
    }

    /// The same file for somebody else who writes to it.
    pub(super) fn again(&self) -> Self {
        Self { files: self.files.clone(), path: self.path.clone(), file: CappedFile::default(), missing: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::super::testing::task;
    use super::*;

    #[test]
    fn a_directory_is_made_where_its_parent_is_and_nothing_is_left_in_it() {
        let folder = TempDir::new().unwrap();
        let directory = folder.path().join("output");
        for _ in 0..2 {
            assert!(OutputFiles::in_directory(&directory).is_ok());
        }
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }

    #[test]
    fn one_that_cannot_be_is_refused() {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for directory in [folder.path().join("no/such"), file, "/proc".into()] {
            let why = OutputFiles::in_directory(&directory).err().unwrap();
            assert!(why.contains(directory.to_str().unwrap()) && why.contains("--output-dir"), "{why}");
        }
    }

    #[test]
    fn there_is_no_file_before_there_is_anything_in_it() {
        let folder = TempDir::new().unwrap();
        let files = OutputFiles::new(folder.path(), FILE_MAX).of(&task(b""));
        let (mut out, err) = (files.out(), files.err());
        out.add(b"hello\n");
        drop(err);
        let there: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(there, ["id-1.1.out"]);
    }

    #[test]
    fn what_could_not_be_written_is_counted_and_the_gap_is_marked() {
        let folder = TempDir::new().unwrap();
        let files = OutputFiles::new(folder.path(), FILE_MAX);
        let mut out = files.of(&task(b"")).out();
        let path = folder.path().join("id-1.1.out");
        out.add(b"one\n");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        out.add(b"two\n");
        out.add(b"three\n");
        fs::remove_dir(&path).unwrap();
        out.add(b"four\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "\n[taskq: 10 bytes are missing here]\nfour\n");
        let lost = files.lost().unwrap();
        assert!(lost.starts_with("10 bytes for the files in ") && lost.contains("directory"), "{lost}");
    }
}
