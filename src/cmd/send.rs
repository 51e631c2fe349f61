//! `taskq send`: enqueue tasks, and say so only when the broker has confirmed them.

mod reporter;
mod trace;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crossbeam_channel::Receiver;

use super::connection::ConnectionArgs;
use super::positive_duration;
use super::queue::{QueueArgs, check_name, delay};
use crate::blocking::Blocking;
use crate::broker::{Fault, Properties};
use crate::calendar::Day;
use crate::error::{Error, Exit, Result};
use crate::output::{self, Lines, Printed};
use crate::sender::{
    self, InputFile, Job, MAX_BODY_BYTES, Saved, Source, Summary, Unsaved, UnsentFile, UnsentForm,
};
use crate::shortage;
use crate::shutdown;
use reporter::{BulkInput, Reporter};
use trace::Trace;

/// A heading of `--help`.
const TASK: &str = "What the task has";

/// Enqueue one task, or one for each line
///
/// The words of BODY, joined by spaces, are the task's body; `hello` when there are none. The exit code is 0 only if
/// the broker has confirmed every task and routed it to the queue.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The task's body; words are joined by spaces [default: hello]
    #[arg(value_name = "BODY")]
    body: Vec<OsString>,
    /// Take the body, or with --lines the lines, from this file; `-` is stdin
    #[arg(short, long, value_name = "PATH", conflicts_with = "body")]
    file: Option<PathBuf>,
    /// One task for each line of stdin, or of --file
    #[arg(short, long, conflicts_with = "body")]
    lines: bool,
    /// As --lines, but separated by NUL bytes
    #[arg(short = '0', long, conflicts_with = "body")]
    null: bool,
    /// The task's id, for handlers that must not do a thing twice [default: a new UUID]
    #[arg(help_heading = TASK, long, value_name = "ID", conflicts_with_all = ["lines", "null"])]
    id: Option<String>,
    /// A header for the handler; may be repeated
    #[arg(help_heading = TASK, long = "header", value_name = "K=V")]
    headers: Vec<String>,
    /// What the body is
    #[arg(help_heading = TASK, long, value_name = "TYPE", default_value = "text/plain")]
    content_type: String,
    /// Where an answer is to go; the handler gets it as TASKQ_REPLY_TO
    #[arg(help_heading = TASK, long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// What an answer is to be known by; TASKQ_CORRELATION_ID
    #[arg(help_heading = TASK, long, value_name = "ID")]
    correlation_id: Option<String>,
    /// What kind of task it is, in a word for the handler; TASKQ_TYPE
    #[arg(help_heading = TASK, long = "type", value_name = "WORD")]
    kind: Option<String>,
    /// 0 to 255, the highest goes first; for queues declared with x-max-priority, and quorum queues of RabbitMQ 4
    #[arg(help_heading = TASK, long, value_name = "N")]
    priority: Option<u8>,
    /// Drop the task if it is still waiting after this long
    #[arg(help_heading = TASK, long, value_name = "DUR", value_parser = positive_duration)]
    expires: Option<Duration>,
    /// Deliver the task this long from now, or up to half a second later; at most 47 days
    // The shorter of the two times would end the wait in the delay queue, and the other be forgotten.
    #[arg(help_heading = TASK, long, value_name = "DUR", value_parser = delay, conflicts_with = "expires")]
    delay: Option<Duration>,
    /// Print the id of each task on stdout, in order, once it is confirmed
    #[arg(long)]
    print_ids: bool,
    /// Add the tasks that were not confirmed to this file, in the form in which they came in
    #[arg(long, value_name = "PATH")]
    unsent: Option<PathBuf>,
    /// Give up when the broker has been away, or has confirmed nothing, for this long
    #[arg(long, value_name = "DUR", value_parser = positive_duration, default_value = "30s")]
    retry_for: Duration,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// What `--file` calls it.
const STDIN: &str = "-";
/// While so many bytes of ids wait for their reader, nothing more is read that could be sent.
const WAITING_IDS: usize = 64 * 1024;

pub(super) fn run(args: Args) -> Result<Exit> {
    if args.unsent.as_deref() == Some(Path::new("-")) {
        return Err(Error::usage(
            "--unsent takes a file, not `-`: what is printed is not put in place whole",
        ));
    }
    let properties = properties(&args)?;
    let bulk = args.lines || args.null;
    let separator = if args.null { b'\0' } else { b'\n' };
    given("--id", args.id.as_deref())?;
    let queue = args.queue.into_spec()?;
    if let Some(delay) = args.delay {
        // Whoever knew what to declare today would not know it tomorrow.
        if !queue.declare {
            return Err(Error::usage(
                "--delay cannot be used with --no-declare: the queue in which tasks wait is another one each day, and \
                 has to be declared",
            ));
        }
        let waits_in = queue.delay_of(Day::of(SystemTime::now()), delay);
        check_name("the name of the queue for delayed tasks, made from the queue's,", &waits_in.name)?;
    }
    let job = Job {
        session: args.connection.into_options()?,
        queue,
        delay: args.delay,
        properties,
        single: !bulk,
        id: args.id,
        retry_for: args.retry_for,
    };
    let file = if bulk || args.file.is_some() { Some(open_input(args.file.as_deref())?) } else { None };
    let form =
        UnsentForm { separator: bulk.then_some(separator), input: file.as_ref().and_then(InputFile::of) };
    let bulk_input = file.as_ref().filter(|_| bulk).map(BulkInput::of);
    let source = match file {
        Some(file) if bulk => Source::Records { input: Box::new(Blocking(file)), separator },
        Some(file) => Source::Single(read_body(file, args.file.as_deref())?),
        None => Source::Single(join_words(args.body)),
    };
    let unsent = match &args.unsent {
        None => None,
        Some(path) => Some(UnsentFile::create(path, &form).map_err(|error| {
            Error::configuration(format!(
                "cannot save what is not confirmed in {}: {error}",
                output::path(path)
            ))
        })?),
    };

    let ids = if args.print_ids {
        Some(Lines::to(output::stdout().map_err(|error| no_thread(&error))?, WAITING_IDS))
    } else {
        None
    };
    let signals = shutdown::listen()?;
    let input = source.start({
        let ids = ids.clone();
        move || ids.iter().for_each(Lines::wait_for_room)
    })?;
    let mut reporter = Reporter::new(bulk_input, ids.clone(), unsent);
    let mut summary = sender::send(&job, &input.batches, &signals, &mut reporter);
    ids.iter().for_each(Lines::end_waiting);
    reporter.take_rest(&input, &signals, &mut summary);
    let saved = reporter.finish_saving(&input, &signals);
    let unsent = args.unsent.as_deref().map(|path| (path, saved));
    let exit = conclude(summary, bulk, input.is_at_its_end(), unsent)?;
    if let Some(ids) = ids {
        finish(&ids, &signals)?;
    }
    Ok(exit)
}

/// Waits for whoever reads the ids.
fn finish(ids: &Lines, signals: &Receiver<i32>) -> Result<()> {
    match ids.finish(signals) {
        Printed::All | Printed::Enough => Ok(()),
        Printed::Failed(error) => {
            Err(Error::internal(format!("everything was sent, but the ids could not be printed: {error}")))
        }
        Printed::Interrupted(signal) => {
            Err(sender::interrupted(signal).context("everything was sent, but nobody reads the ids"))
        }
    }
}

fn no_thread(error: &std::io::Error) -> Error {
    Error::internal(format!("cannot start a thread: {}", shortage::reason(error)))
}

fn conclude(
    summary: Summary,
    bulk: bool,
    all_was_read: bool,
    unsent: Option<(&Path, std::result::Result<Saved, Unsaved>)>,
) -> Result<Exit> {
    let Summary { confirmed, failed, ended, worst } = summary;
    let why = ended.or(worst);
    let saved_in = match &unsent {
        Some((path, Ok(Saved::InPlace))) if failed > 0 => Some(output::path(path)),
        _ => None,
    };
    let mut counts = format!("{} confirmed, {failed} not", tasks(confirmed));
    if let Some(path) = &saved_in {
        let _ = write!(counts, " (saved in {path})");
    }
    if why.is_some() && !all_was_read {
        let _ =
            write!(counts, ", and nothing was taken of the input from line {} on", confirmed + failed + 1);
    }
    match unsent {
        Some((path, Err(unsaved))) => return Err(cannot_save(&counts, path, &unsaved, failed, why)),
        Some((path, Ok(Saved::InputLeft))) => {
            let _ =
                write!(counts, " ({} was left as it was, the confirmed ones included)", output::path(path));
        }
        Some((_, Ok(Saved::InPlace))) | None => {}
    }
    match why {
        Some(error) if bulk => Err(error.context(&counts)),
        Some(error) => Err(match saved_in {
            Some(path) => error.context(&format!("the task is saved in {path}")),
            None => error,
        }),
        None => {
            if bulk {
                log::info!(" [x] Sent {}", tasks(confirmed));
            }
            Ok(Exit::Success)
        }
    }
}

/// Whatever sending has ended with, this needs a person.
fn cannot_save(counts: &str, path: &Path, unsaved: &Unsaved, failed: u64, why: Option<Error>) -> Error {
    let exit = unsaved.signal.map_or(Exit::Internal, Exit::Signal);
    let (path, unsaved) = (output::path(path), unsaved.told(failed));
    let text = format!("{counts}; cannot save what was not confirmed in {path}: {unsaved}");
    Error::new(exit, why.map_or(text.clone(), |why| format!("{text} ({why})")))
}

fn tasks(count: u64) -> String {
    output::counted(count, "task", "tasks")
}

fn properties(args: &Args) -> Result<Properties> {
    check_name("--content-type", &args.content_type)?;
    let mut properties = Properties::new_task(&args.content_type);
    if let Some(priority) = args.priority {
        properties = properties.with_priority(priority);
    }
    if let Some(expires) = args.expires {
        properties = properties.with_expiration(expires);
    }
    if let Some(reply_to) = given("--reply-to", args.reply_to.as_deref())? {
        properties = properties.with_reply_to(reply_to);
    }
    if let Some(correlation_id) = given("--correlation-id", args.correlation_id.as_deref())? {
        properties = properties.with_correlation_id(correlation_id);
    }
    if let Some(kind) = given("--type", args.kind.as_deref())? {
        properties = properties.with_kind(kind);
    }
    let mut headers = parse_headers(&args.headers)?;
    let trace = Trace::of_the_environment();
    trace.complaints.iter().for_each(|complaint| log::warn!("{complaint}"));
    trace.add_to(&mut headers);
    if !headers.is_empty() {
        properties = properties.with_headers(&headers);
    }
    properties.fit_the_largest_frame().map_err(Fault::into_error)?;
    Ok(properties)
}

/// A property that is a short string, where it is given. An empty one is more often a variable that is not set than
/// meant.
fn given<'a>(flag: &str, value: Option<&'a str>) -> Result<Option<&'a str>> {
    if value == Some("") {
        return Err(Error::usage(format!("{flag} is empty")));
    }
    value.map_or(Ok(()), |value| check_name(flag, value))?;
    Ok(value)
}

fn parse_headers(headers: &[String]) -> Result<Vec<(String, String)>> {
    headers
        .iter()
        .map(|header| {
            let (name, value) =
                header.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
                    Error::usage(format!("--header {}: expected NAME=VALUE", output::foreign(header)))
                })?;
            check_name("a header's name", name)?;
            if name.starts_with("x-taskq-") {
                return Err(Error::usage(format!(
                    "--header {}: x-taskq- is taskq's own",
                    output::foreign(name)
                )));
            }
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Words joined by spaces; the tutorial's `hello` when there are none, or one that is empty.
fn join_words(words: Vec<OsString>) -> Vec<u8> {
    if words.iter().all(|word| word.is_empty()) && words.len() < 2 {
        return b"hello".to_vec();
    }
    words.into_iter().map(OsStringExt::into_vec).collect::<Vec<_>>().join(&b' ')
}

fn open_input(path: Option<&Path>) -> Result<File> {
    let path = path.unwrap_or(Path::new(STDIN));
    let opened = if path == Path::new(STDIN) {
        // The same open file, so that what others have read of it counts.
        std::io::stdin().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::open(path)
    };
    let file = opened.map_err(|error| cannot_read(path, &error))?;
    // Opening a directory succeeds, and reading it would fail only after the first connection.
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(cannot_read(path, &std::io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

fn read_body(file: File, path: Option<&Path>) -> Result<Vec<u8>> {
    let path = path.unwrap_or(Path::new(STDIN));
    let mut body = Vec::new();
    let mut input = Blocking(file).take(MAX_BODY_BYTES as u64 + 1);
    input.read_to_end(&mut body).map_err(|error| cannot_read(path, &error))?;
    if body.len() > MAX_BODY_BYTES {
        return Err(Error::bad_data(format!(
            "{} is larger than the {MAX_BODY_BYTES} bytes a task may have",
            output::path(path)
        )));
    }
    Ok(body)
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::bad_data(format!("cannot read {}: {error}", output::path(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::io::{Write as _, pipe};
    use std::os::fd::OwnedFd;

    #[test]
    fn a_body_from_a_pipe_that_does_not_block_is_waited_for() {
        const BYTES: usize = 10_000;
        let (reader, mut writer) = pipe().unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let body = std::thread::scope(|scope| {
            // Byte by byte: now and then there is none for the reader.
            scope.spawn(move || (0..BYTES).try_for_each(|_| writer.write_all(b"x")));
            read_body(File::from(OwnedFd::from(reader)), None)
        });
        assert_eq!(body.map(|body| body.len()), Ok(BYTES));
    }

    #[test]
    fn words_become_one_body() {
        let words = |words: &[&str]| join_words(words.iter().map(OsString::from).collect());
        assert_eq!(words(&[]), b"hello");
        assert_eq!(words(&[""]), b"hello");
        assert_eq!(words(&["", "x"]), b" x");
        assert_eq!(words(&["", ""]), b" ");
        assert_eq!(words(&["a", "", "b..."]), b"a  b...");
    }

    #[test]
    fn headers_are_taken_apart_at_the_first_equals_sign() {
        let parsed = parse_headers(&["a=b=c".to_owned(), "d=".to_owned()]);
        let expected = [("a", "b=c"), ("d", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(parsed, Ok(expected.to_vec()));
        for wrong in ["", "a", "=b", "x-taskq-attempt=7"] {
            assert!(parse_headers(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        let exit = |header: String| parse_headers(&[header]).map_err(|error| error.exit);
        assert_eq!(exit(format!("{}=x", "a".repeat(256))), Err(Exit::BadData));
    }
}
