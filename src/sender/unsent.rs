//! The file of `--unsent`: what was not confirmed, in the form in which it came in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{Uid, geteuid};

/// How tasks are written, and where they came from.
pub struct UnsentForm<'a> {
    /// What follows each task; nothing where the input was a single body.
    pub separator: Option<u8>,
    /// The file that the tasks are read from, if it is one.
    pub input: Option<&'a Path>,
}

/// Written beside its destination under another name, readable for the owner only, and put in place at the end.
///
/// What an earlier run has left there is kept, and comes first: it is not sent yet. Only where the tasks are read from
/// this very file is it replaced by what remains of them.
pub struct UnsentFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<File>,
    separator: Option<u8>,
    /// Put in place also if nothing is added.
    replaces_input: bool,
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

impl UnsentFile {
    /// Creates the file under its temporary name.
    ///
    /// # Errors
    /// Whatever the system says; and if a single body would have to be put after what is there.
    pub fn create(path: &Path, form: &UnsentForm<'_>) -> io::Result<Self> {
        let path = &place(path, geteuid())?;
        let name = path.file_name().ok_or_else(|| io::Error::other("it is no file name"))?;
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let replaces_input = form.input.is_some_and(|input| is_same_file(input, path));
        let earlier = read_earlier(path, geteuid())?;
        let earlier = if replaces_input { Vec::new() } else { earlier };
        if !earlier.is_empty() && form.separator.is_none() {
            return Err(io::Error::other(
                "it holds something already, perhaps an earlier task that was not sent",
            ));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:x}", crate::backoff::random()));
        let temporary = path.with_file_name(hidden);
        // create_new: neither follows a symbolic link nor takes over a file that somebody put there.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let mut this = Self {
            path: path.to_owned(),
            temporary,
            writer: BufWriter::new(file),
            separator: form.separator,
            replaces_input,
            added: false,
        };
        this.keep(earlier)?;
        Ok(this)
    }

    fn keep(&mut self, mut earlier: Vec<u8>) -> io::Result<()> {
        if let (Some(separator), Some(last)) = (self.separator, earlier.last())
            && *last != separator
        {
            earlier.push(separator);
        }
        self.writer.write_all(&earlier)
    }

    /// Where it is put.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one task.
    ///
    /// # Errors
    /// Whatever the system says; the task is not saved then.
    pub fn add(&mut self, body: &[u8]) -> io::Result<()> {
        self.added = true;
        self.writer.write_all(body)?;
        match self.separator {
            Some(separator) => self.writer.write_all(&[separator]),
            None => Ok(()),
        }
    }

    /// Whether it is to take the place of the input, which has to be read to its end before that.
    #[must_use]
    pub fn replaces_input(&self) -> bool {
        self.replaces_input
    }

    /// Puts the file in place, unless there is nothing new to say. An input is replaced only where `all_is_here` that
    /// remains of it, and otherwise left as it was.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn finish(mut self, all_is_here: bool) -> io::Result<Saved> {
        if self.replaces_input && !all_is_here {
            return Ok(Saved::InputLeft);
        }
        if self.added || self.replaces_input {
            self.writer.flush()?;
            self.writer.get_ref().sync_all()?;
            fs::rename(&self.temporary, &self.path)?;
        }
        Ok(Saved::InPlace)
    }
}

impl Drop for UnsentFile {
    fn drop(&mut self) {
        // Gone already where it was put in place.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Where the file is to be: where a symbolic link leads, if it can be trusted. Anybody may put one into a directory that
/// all write to.
fn place(path: &Path, me: Uid) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => {
            if there.uid() == me.as_raw() || there.uid() == 0 {
                fs::canonicalize(path)
            } else {
                Err(io::Error::other("it is a symbolic link of another user's"))
            }
        }
        _ => Ok(path.to_owned()),
    }
}

/// Also finds out what would only show when everything is sent: that it cannot be replaced.
fn read_earlier(path: &Path, me: Uid) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for ever; and it was a link, if at all, a moment ago.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let there = file.metadata()?;
    // Reading a device would wait for ever, and it could not be replaced.
    if !there.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if there.uid() != me.as_raw() && is_shared(path)? {
        return Err(io::Error::other("it belongs to another user, in a directory that others may write to"));
    }
    let mut earlier = Vec::new();
    file.read_to_end(&mut earlier)?;
    Ok(earlier)
}

/// Everybody may write to the file's directory, or what is in it is its owners' to replace (the sticky bit, as in /tmp).
fn is_shared(path: &Path) -> io::Result<bool> {
    const STICKY_OR_OPEN: u32 = 0o1002;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs::metadata(directory)?.mode() & STICKY_OR_OPEN != 0)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("taskq-unsent-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    const LINES: UnsentForm<'_> = UnsentForm { separator: Some(b'\n'), input: None };

    #[test]
    fn what_an_earlier_run_left_is_kept() {
        let folder = folder("kept");
        let path = folder.join("unsent");
        for round in ["one", "two"] {
            let mut file = UnsentFile::create(&path, &LINES).unwrap();
            file.add(round.as_bytes()).unwrap();
            file.finish(true).unwrap();
        }
        UnsentFile::create(&path, &LINES).unwrap().finish(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        let single = UnsentForm { separator: None, input: None };
        assert!(UnsentFile::create(&path, &single).is_err(), "a body would be put after others");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "a temporary file was left");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_input_is_replaced_by_what_remains_of_it() {
        let folder = folder("input");
        let path = folder.join("tasks");
        fs::write(&path, "one\ntwo\n").unwrap();
        let form = UnsentForm { input: Some(&path), ..LINES };
        let mut file = UnsentFile::create(&path, &form).unwrap();
        file.add(b"two").unwrap();
        file.finish(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two\n");
        let nothing = UnsentFile::create(&path, &form).unwrap();
        assert_eq!(nothing.finish(false).unwrap(), Saved::InputLeft);
        assert_eq!(fs::read(&path).unwrap(), b"two\n", "it was replaced by less than what remains");
        UnsentFile::create(&path, &form).unwrap().finish(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::remove_dir_all(folder).unwrap();
    }

    /// Somebody else.
    fn stranger() -> Uid {
        Uid::from_raw(geteuid().as_raw() + 1)
    }

    #[test]
    fn links_lead_only_where_their_owner_may_send_us() {
        let folder = folder("links");
        let (target, link) = (folder.join("target"), folder.join("link"));
        std::os::unix::fs::symlink("target", &link).unwrap();
        assert!(place(&link, geteuid()).is_err(), "it leads nowhere");
        fs::write(&target, "one\n").unwrap();
        let mut file = UnsentFile::create(&link, &LINES).unwrap();
        file.add(b"two").unwrap();
        file.finish(true).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"one\ntwo\n");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "the link was replaced");
        let trusted = geteuid().is_root();
        assert_eq!(place(&link, stranger()).is_ok(), trusted, "only the superuser's links are everybody's");
        assert!(read_earlier(&link, geteuid()).is_err(), "a link that appeared meanwhile");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_of_others_in_shared_directories_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder("shared");
        let path = folder.join("unsent");
        fs::write(&path, "planted\n").unwrap();
        for (mode, refused) in [(0o755, false), (0o775, false), (0o777, true), (0o1777, true), (0o1775, true)]
        {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_earlier(&path, stranger()).is_err(), refused, "{mode:o}");
            assert_eq!(read_earlier(&path, geteuid()).unwrap(), b"planted\n", "{mode:o}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_file_is_for_its_owner_only() {
        let folder = folder("mode");
        let path = folder.join("unsent");
        fs::write(&path, "open to all\n").unwrap();
        let mut file = UnsentFile::create(&path, &LINES).unwrap();
        let hidden = fs::read_dir(&folder).unwrap().map(Result::unwrap).find(|entry| entry.path() != path);
        assert_eq!(hidden.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        file.add(b"secret").unwrap();
        file.finish(true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let folder = folder("pipe");
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(UnsentFile::create(&pipe, &LINES).is_err());
        assert!(UnsentFile::create(Path::new("/dev/null"), &LINES).is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn nothing_is_left_where_nothing_was_added() {
        let folder = folder("nothing");
        UnsentFile::create(&folder.join("unsent"), &LINES).unwrap().finish(true).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(folder).unwrap();
    }
}
