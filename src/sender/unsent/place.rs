//! Where an `--unsent` file is, and whether what is there already can be trusted: anybody may put files and links into a
//! directory that all write to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;

/// As many as the kernel follows.
const MOST_LINKS: u32 = 40;

/// Where the file is to be: where a symbolic link leads, if each on the way can be trusted.
pub(super) fn resolve(path: &Path, me: Uid) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(there) if there.is_symlink() => {
                if there.uid() != me.as_raw() && there.uid() != 0 {
                    return Err(io::Error::other("it is a symbolic link of another user's"));
                }
                path = directory_of(&path).join(fs::read_link(&path)?);
                // A link that leads nowhere is a mistake more often than a wish.
                fs::symlink_metadata(&path)?;
            }
            _ => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// The directory that the file is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What is there, to be read; `None` where nothing is.
///
/// # Errors
/// It cannot be read, or could not be replaced, or is another user's where others may write.
pub(super) fn open_there(path: &Path, me: Uid) -> io::Result<Option<File>> {
    // Opening a pipe would wait for ever; and it was a link, if at all, a moment ago.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let there = file.metadata()?;
    if there.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // Reading a device would wait for ever, and it could not be replaced.
    if !there.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let directory = fs::metadata(directory_of(path))?;
    if there.uid() != me.as_raw() && is_shared(directory.mode(), directory.uid(), me) {
        return Err(io::Error::other("it belongs to another user, in a directory that others may write to"));
    }
    Ok(Some(file))
}

/// Others than the superuser may put files into the directory: by its mode, or because it is theirs. Where it is sticky,
/// as /tmp is, what is in it is its owners' to replace.
fn is_shared(mode: u32, owner: u32, me: Uid) -> bool {
    const STICKY_OR_OPEN: u32 = 0o1022;
    mode & STICKY_OR_OPEN != 0 || (owner != me.as_raw() && owner != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::unistd::geteuid;

    use super::super::tests::folder;
    use super::*;

    /// Somebody else.
    fn stranger() -> Uid {
        Uid::from_raw(geteuid().as_raw() + 1)
    }

    #[test]
    fn a_directory_is_shared_where_somebody_else_may_write_to_it() {
        let me = Uid::from_raw(1000);
        for (mode, owner, shared) in [
            (0o755, 1000, false),
            (0o700, 0, false),
            (0o775, 1000, true),
            (0o757, 1000, true),
            (0o1777, 0, true),
            (0o1755, 1000, true),
            (0o755, 1001, true),
        ] {
            assert_eq!(is_shared(mode, owner, me), shared, "{mode:o} of {owner}");
        }
        assert!(is_shared(0o755, 1000, Uid::from_raw(0)), "the superuser in a user's directory");
    }

    #[test]
    fn files_of_others_in_shared_directories_are_refused() {
        let folder = folder("shared");
        let path = folder.join("unsent");
        fs::write(&path, "planted\n").unwrap();
        // A directory of the superuser's is not shared by being so.
        let owned = !geteuid().is_root();
        for (mode, refused) in [(0o755, owned), (0o775, true), (0o777, true), (0o1777, true), (0o1775, true)]
        {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(open_there(&path, stranger()).is_err(), refused, "{mode:o}");
            assert!(open_there(&path, geteuid()).unwrap().is_some(), "{mode:o}");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn links_lead_only_where_their_owner_may_send_us() {
        let folder = folder("places");
        let (target, link, chain) = (folder.join("target"), folder.join("link"), folder.join("chain"));
        symlink("target", &link).unwrap();
        assert!(resolve(&link, geteuid()).is_err(), "it leads nowhere");
        fs::write(&target, "one\n").unwrap();
        symlink(&link, &chain).unwrap();
        assert_eq!(resolve(&chain, geteuid()).unwrap(), target);
        let trusted = geteuid().is_root();
        assert_eq!(
            resolve(&chain, stranger()).is_ok(),
            trusted,
            "only the superuser's links are everybody's"
        );
        assert!(open_there(&link, geteuid()).is_err(), "a link that appeared meanwhile");
        symlink("round", folder.join("round")).unwrap();
        assert!(resolve(&folder.join("round"), geteuid()).is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let folder = folder("pipe");
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/null"), &folder] {
            assert!(open_there(path, geteuid()).is_err(), "{path:?}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
