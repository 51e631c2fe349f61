//! The file of `--unsent`: what was not confirmed, in the form in which it came in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Written beside its destination under another name, readable for the owner only, and put in place at the end.
pub struct UnsentFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    /// What follows each record; nothing where the input was a single body.
    separator: Option<u8>,
}

impl UnsentFile {
    /// Creates the file under its temporary name.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn create(path: &Path, separator: Option<u8>) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it is no file name"))?;
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:x}", crate::backoff::random()));
        let temporary = path.with_file_name(hidden);
        // create_new: neither follows a symbolic link nor takes over a file that somebody put there.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        Ok(Self { path: path.to_owned(), temporary, writer: BufWriter::new(file), separator })
    }

    /// Adds one task.
    ///
    /// # Errors
    /// Whatever the system says; the task is not saved then.
    pub fn add(&mut self, body: &[u8]) -> io::Result<()> {
        self.writer.write_all(body)?;
        match self.separator {
            Some(separator) => self.writer.write_all(&[separator]),
            None => Ok(()),
        }
    }

    /// Puts the file in place, empty if nothing was added: what an earlier run left there would be sent twice.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn finish(mut self) -> io::Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        Ok(())
    }
}

impl Drop for UnsentFile {
    fn drop(&mut self) {
        // Gone already after `finish`.
        let _ = fs::remove_file(&self.temporary);
    }
}
