//! Records the history of a round in files outside of taskq: what senders printed, what handlers did, which faults
//! there were.

use super::checker::clock::Moment;
use super::checker::fault::Fault;
use super::checker::record::{Confirmed, Run};
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

pub(crate) struct Recorder {
    dir: PathBuf,
    confirmed: File,
    faults: File,
    events: File,
    reader: Mutex<Reader>,
}

/// The runs read so far. Handlers write whole lines; the last one may still be incomplete.
struct Reader {
    file: File,
    offset: u64,
    runs: Vec<Run>,
}

fn appending(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

impl Recorder {
    /// A new history in an empty directory.
    pub(crate) fn create(dir: &Path) -> Self {
        let _ = std::fs::remove_dir_all(dir);
        for part in ["workers", "senders"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        let runs = dir.join("runs");
        File::create(&runs).unwrap();
        let reader = Reader { file: File::open(runs).unwrap(), offset: 0, runs: Vec::new() };
        Self {
            confirmed: appending(&dir.join("confirmed")),
            faults: appending(&dir.join("faults")),
            events: appending(&dir.join("events")),
            dir: dir.to_owned(),
            reader: Mutex::new(reader),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file to which handlers append their runs.
    pub(crate) fn runs_path(&self) -> PathBuf {
        self.dir.join("runs")
    }

    /// The log file of a process, for its stdout and stderr.
    pub(crate) fn log(&self, part: &str, name: &str) -> File {
        appending(&self.dir.join(part).join(format!("{name}.log")))
    }

    /// Whether the process has logged this.
    pub(crate) fn has_logged(&self, part: &str, name: &str, text: &str) -> bool {
        // The process may not have started yet.
        let log = std::fs::read(self.dir.join(part).join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&log).contains(text)
    }

    pub(crate) fn path(&self, part: &str, name: &str) -> PathBuf {
        self.dir.join(part).join(name)
    }

    /// `taskq send` has printed an id.
    pub(crate) fn confirm(&self, session: &str, task: &str) {
        line(&self.confirmed, &format!("{} {session} {task}", Moment::now()));
    }

    pub(crate) fn fault(&self, fault: &Fault) {
        line(&self.faults, &fault.to_string());
    }

    /// Anything else that helps to debug a round: what was started, how it ended.
    pub(crate) fn event(&self, what: impl Display) {
        line(&self.events, &format!("{} {what}", Moment::now()));
    }

    /// Writes a file at once.
    pub(crate) fn write(&self, name: &str, lines: impl IntoIterator<Item = String>) {
        let lines: Vec<String> = lines.into_iter().map(|line| line + "\n").collect();
        std::fs::write(self.dir.join(name), lines.concat()).unwrap();
    }

    pub(crate) fn read_confirmed(&self) -> Vec<Confirmed> {
        let text = std::fs::read_to_string(self.dir.join("confirmed")).unwrap();
        text.lines()
            .map(|line| {
                let [at, session, task]: [&str; 3] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
                Confirmed {
                    at: Moment::parse(at).unwrap(),
                    session: session.to_owned(),
                    task: task.to_owned(),
                }
            })
            .collect()
    }

    /// Passes on the runs that have ended by now.
    pub(crate) fn with_runs<T>(&self, look: impl FnOnce(&[Run]) -> T) -> T {
        let mut reader = self.reader.lock().unwrap();
        reader.catch_up();
        look(&reader.runs)
    }
}

impl Reader {
    fn catch_up(&mut self) {
        self.file.seek(SeekFrom::Start(self.offset)).unwrap();
        let mut new = String::new();
        self.file.read_to_string(&mut new).unwrap();
        let whole = new.rfind('\n').map_or(0, |end| end + 1);
        for line in new[..whole].lines() {
            self.runs.push(Run::parse(line).unwrap_or_else(|| panic!("not a handler's line: {line:?}")));
        }
        self.offset += whole as u64;
    }
}

fn line(mut file: &File, text: &str) {
    // One write, so that lines of different threads do not mix.
    file.write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// Reads the ids that a sender prints, until it ends, and returns their number. An incomplete last line is no id.
pub(crate) fn read_ids(stdout: impl Read, mut record: impl FnMut(&str)) -> usize {
    let mut reader = BufReader::new(stdout);
    let (mut count, mut text) = (0, String::new());
    while reader.read_line(&mut text).is_ok_and(|n| n > 0) {
        if let Some(id) = text.strip_suffix('\n') {
            record(id);
            count += 1;
        }
        text.clear();
    }
    count
}
