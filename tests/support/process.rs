//! The taskq binary as a child process whose output can be waited for, and which never outlives its test.

use super::poll::{self, DEADLINE};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How many bytes of a stream a failing test prints at most.
const SHOWN: usize = 8 * 1024;

/// One output stream, collected by a thread as it comes.
#[derive(Default)]
struct Stream {
    bytes: Mutex<Vec<u8>>,
    more: Condvar,
}

impl Stream {
    fn collect(self: &Arc<Self>, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let stream = Arc::clone(self);
        std::thread::spawn(move || {
            let mut chunk = [0; 16 * 1024];
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                stream.bytes.lock().unwrap().extend_from_slice(&chunk[..n]);
                stream.more.notify_all();
            }
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Waits until `enough` is true of all bytes so far; false when the deadline passes first.
    fn wait(&self, mut enough: impl FnMut(&[u8]) -> bool) -> bool {
        let bytes = self.bytes.lock().unwrap();
        let (_bytes, timeout) =
            self.more.wait_timeout_while(bytes, DEADLINE, |bytes| !enough(bytes)).unwrap();
        !timeout.timed_out()
    }
}

/// What a failing test shows of a process.
pub(crate) struct Transcript {
    command: String,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
    status: Mutex<Option<ExitStatus>>,
}

impl Transcript {
    pub(crate) fn show(&self) -> String {
        let mut shown = format!("$ {}\n", self.command);
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let text = stream.text();
            let cut = text.len().saturating_sub(SHOWN);
            let tail: String = text.chars().rev().take(SHOWN).collect::<Vec<_>>().into_iter().rev().collect();
            let omitted =
                if cut > 0 { format!(" (the last of {} bytes)", text.len()) } else { String::new() };
            let _ = writeln!(shown, "--- {name}{omitted}\n{tail}");
        }
        let _ = match *self.status.lock().unwrap() {
            Some(status) => writeln!(shown, "--- {status}"),
            None => writeln!(shown, "--- still running"),
        };
        shown
    }
}

/// A command line to be run.
pub(crate) struct Invocation {
    command: Command,
    shown: String,
}

impl Invocation {
    pub(crate) fn new<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Self {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let mut command = Command::new(program);
        // The caller's environment must not change a result; programs have to be found, though.
        command.env_clear().args(&args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for kept in ["PATH", "HOME", "LANG"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        let name = program.rsplit('/').next().unwrap_or(program);
        let shown = args.iter().fold(name.to_owned(), |line, arg| line + " " + &quoted(arg));
        Self { command, shown }
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref();
        self.shown = format!("{name}={} {}", quoted(value), self.shown);
        self.command.env(name, value);
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sends its stdout there instead of collecting it.
    pub(crate) fn stdout_to(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self
    }

    /// Sends its stderr there instead of collecting it.
    pub(crate) fn stderr_to(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stderr(to);
        self
    }

    /// Starts it with a pipe to its stdin.
    pub(crate) fn start(mut self) -> Process {
        self.command.stdin(Stdio::piped());
        self.spawn()
    }

    /// Starts it with this as its stdin.
    pub(crate) fn start_on(mut self, stdin: impl Into<Stdio>) -> Process {
        self.command.stdin(stdin);
        self.spawn()
    }

    /// Runs it to its end with nothing on stdin.
    pub(crate) fn run(self) -> Finished {
        self.spawn().end()
    }

    /// Runs it to its end with this on stdin.
    pub(crate) fn feed(self, input: impl AsRef<[u8]>) -> Finished {
        let mut process = self.start();
        // A process that fails early closes its stdin: its exit code says why.
        let _ = process.try_write(input.as_ref());
        process.close_stdin();
        process.end()
    }

    fn spawn(mut self) -> Process {
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("cannot run {}: {error}", self.shown));
        let (stdout, stderr) = (Arc::<Stream>::default(), Arc::<Stream>::default());
        let readers = [
            child.stdout.take().map(|from| stdout.collect(from)),
            child.stderr.take().map(|from| stderr.collect(from)),
        ];
        let readers = readers.into_iter().flatten().collect();
        let transcript = Transcript { command: self.shown, stdout, stderr, status: Mutex::new(None) };
        let transcript = Arc::new(transcript);
        super::sandbox::remember(&transcript);
        Process { stdin: child.stdin.take(), child, readers, transcript }
    }
}

/// An argument as a failing test shows it.
fn quoted(arg: &OsStr) -> String {
    arg.to_string_lossy().escape_debug().take(200).fold(String::from("'"), |shown, c| shown + &c.to_string())
        + "'"
}

/// A running child process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    readers: Vec<JoinHandle<()>>,
    transcript: Arc<Transcript>,
}

impl Process {
    pub(crate) fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_write(bytes.as_ref()).unwrap();
    }

    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes)
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Writes this and waits until the process has read all of it.
    pub(crate) fn write_and_see_it_read(&mut self, bytes: &str) {
        self.write(bytes);
        let stdin = self.stdin.as_ref().unwrap();
        // Not what the process has read in all: the loader reads libraries as it starts.
        poll::until("the input read", || (rustix::io::ioctl_fionread(stdin).unwrap() == 0).then_some(()));
    }

    pub(crate) fn stderr(&self) -> String {
        self.transcript.stderr.text()
    }

    pub(crate) fn stdout(&self) -> String {
        self.transcript.stdout.text()
    }

    /// Waits for a line on stderr that contains `text`.
    pub(crate) fn says(&self, text: &str) -> &Self {
        self.says_times(text, 1)
    }

    /// Waits until `text` came `times` times on stderr.
    pub(crate) fn says_times(&self, text: &str, times: usize) -> &Self {
        let came = self.transcript.stderr.wait(|bytes| count(&String::from_utf8_lossy(bytes), text) >= times);
        assert!(came, "{text:?} did not come {times} times on stderr");
        self
    }

    /// Waits until that many lines came on stdout.
    pub(crate) fn prints_lines(&self, lines: usize) -> &Self {
        // Counted from where the last poll ended, so that thousands of polls stay cheap.
        let (mut seen, mut counted) = (0, 0);
        let came = self.transcript.stdout.wait(|bytes| {
            counted += bytes[seen..].split(|byte| *byte == b'\n').count() - 1;
            seen = bytes.len();
            counted >= lines
        });
        assert!(came, "fewer than {lines} lines on stdout");
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) -> &Self {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        signal::kill(pid, signal).unwrap();
        self
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The names of its threads.
    pub(crate) fn threads(&self) -> Vec<String> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        // Some end while we look.
        let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).ok();
        let names = threads.filter_map(|thread| name(thread.ok()?));
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// The largest resident size so far, in KiB.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.try_peak_memory().unwrap()
    }

    /// The most addresses that it has had, in use or not, in KiB.
    pub(crate) fn peak_addresses(&self) -> u64 {
        self.status_kib("VmPeak:").unwrap()
    }

    /// As [`Process::peak_memory`], where the process may have ended.
    pub(crate) fn try_peak_memory(&self) -> Option<u64> {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, field: &str) -> Option<u64> {
        // For a moment after the start it still looks like us, with our memory.
        let program = std::fs::read_link(format!("/proc/{}/exe", self.pid())).ok()?;
        if program == std::env::current_exe().ok()? {
            return None;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// Waits for its end.
    pub(crate) fn end(self) -> Finished {
        self.end_within(DEADLINE)
    }

    /// Waits for its end, with a deadline of the caller's own: a bound that the contract promises, plus slack.
    pub(crate) fn end_within(mut self, deadline: Duration) -> Finished {
        let status = poll::within(deadline, &format!("the end of {}", self.transcript.command), || {
            self.child.try_wait().unwrap()
        });
        *self.transcript.status.lock().unwrap() = Some(status);
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Finished {
            // As a shell shows it.
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: self.transcript.stdout.bytes(),
            stderr: self.transcript.stderr.text(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How often this is said, whether it is quoted as taskq or as the worker of the tutorial says it.
fn count(stderr: &str, text: &str) -> usize {
    let said = stderr.matches(text).count();
    if text.contains('\n') { said.max(as_the_tutorial(stderr).matches(text).count()) } else { said }
}

/// Without what taskq adds to the lines of the tutorial's worker, in the last parenthesis of each.
pub(crate) fn as_the_tutorial(stderr: &str) -> String {
    let plain = |line: &str| match line.rsplit_once(" (") {
        Some((said, tail)) if is_tutorial(line) && tail.trim_end().ends_with(')') => {
            format!("{said}{}", if line.ends_with('\n') { "\n" } else { "" })
        }
        _ => line.to_owned(),
    };
    stderr.split_inclusive('\n').map(plain).collect()
}

fn is_tutorial(line: &str) -> bool {
    line.starts_with("Received a message: ") || line.starts_with("Done (")
}

/// A process that has ended.
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Finished {
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code");
        self
    }

    #[track_caller]
    pub(crate) fn exits_with_one_of(self, codes: &[i32]) -> Self {
        assert!(codes.contains(&self.code), "exit code {}, not one of {codes:?}", self.code);
        self
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(count(&self.stderr, text) > 0, "{text:?} is not on stderr");
        self
    }

    #[track_caller]
    pub(crate) fn never_says(self, text: &str) -> Self {
        assert!(count(&self.stderr, text) == 0, "{text:?} is on stderr");
        assert!(!self.stdout_text().contains(text), "{text:?} is on stdout");
        self
    }

    /// One clear line for a person: no second line, no panic, no control characters.
    #[track_caller]
    pub(crate) fn in_one_line(self) -> Self {
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "one line on stderr");
        assert!(!self.stderr.contains("panicked"), "a panic");
        assert!(!lines[0].chars().any(char::is_control), "control characters on stderr");
        self
    }

    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn stdout_lines(&self) -> Vec<String> {
        self.stdout_text().lines().map(str::to_owned).collect()
    }
}
