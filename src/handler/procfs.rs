//! What `/proc` of Linux says about processes.

use std::fs;

use nix::unistd::Pid;

/// The part of `/proc/PID/stat` that is used here. The line is `pid (name) state ppid pgrp session ...`, and the name
/// may contain any characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) is_zombie: bool,
    pub(super) parent: Pid,
    pub(super) group: Pid,
    pub(super) session: Pid,
}

impl Stat {
    /// None if the process is gone.
    pub(super) fn of(process: Pid) -> Option<Self> {
        Self::read(&fs::read(format!("/proc/{process}/stat")).ok()?)
    }

    fn read(stat: &[u8]) -> Option<Self> {
        let stat = String::from_utf8_lossy(stat);
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        let is_zombie = matches!(fields.next()?, "Z" | "X");
        let mut number = || fields.next()?.parse().ok().map(Pid::from_raw);
        Some(Self { is_zombie, parent: number()?, group: number()?, session: number()? })
    }
}

/// All processes that this one can see; none if there is no `/proc` of Linux with our numbers.
pub(super) fn processes() -> impl Iterator<Item = (Pid, Stat)> {
    let entries = has_our_numbers().then(|| fs::read_dir("/proc").into_iter().flatten().flatten());
    entries.into_iter().flatten().filter_map(|entry| {
        let process = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?);
        Some((process, Stat::of(process)?))
    })
}

/// Whether `/proc` uses the process numbers that this process uses. A container may have the `/proc` of its host, which
/// has others.
fn has_our_numbers() -> bool {
    cfg!(target_os = "linux")
        && fs::read_link("/proc/self").is_ok_and(|own| own.to_str() == Some(&Pid::this().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read() {
        let [parent, group, session] = [1, 42, 7].map(Pid::from_raw);
        let stat = |is_zombie| Some(Stat { is_zombie, parent, group, session });
        assert_eq!(Stat::read(b"43 (sleep) S 1 42 7 0 -1"), stat(false));
        assert_eq!(Stat::read(b"43 (a) Z 9 9) S 1 42 7 0 -1"), stat(false));
        assert_eq!(Stat::read(b"42 (sh) Z 1 42 7 0 -1"), stat(true));
        assert_eq!(Stat::read(b"42 (sh) S 1 42"), None);
        assert_eq!(Stat::read(b""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_among_them() {
        let own = processes().find(|(process, _)| *process == Pid::this()).unwrap().1;
        let expected = (false, Pid::parent(), nix::unistd::getpgrp(), nix::unistd::getsid(None).unwrap());
        assert_eq!((own.is_zombie, own.parent, own.group, own.session), expected);
    }
}
