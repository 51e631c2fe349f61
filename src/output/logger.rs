//! Messages for people, on stderr.

use std::io;
use std::time::SystemTime;

use log::{Level, LevelFilter, Metadata, Record};

use super::format::LogFormat;
use super::standard::stderr;
use super::stream::{Stream, never_wait_here};
use super::text::foreign;

/// Makes a panic one line on stderr. One in amiquip's threads is a lost connection, which is dealt with and told as
/// such.
pub fn install_panic_message() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        if name.starts_with("amiquip") {
            log::debug!("the client library panicked: {panic}");
        } else {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let what = panic.payload_as_str().unwrap_or("panic");
            log::error!("a fault of taskq's own in thread {name}, at {place}: {what}");
        }
    }));
}

/// How much taskq says, from `-v` and `--quiet`; `RUST_LOG` overrides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and errors only.
    Quiet,
    /// What a person wants to see.
    Normal,
    /// And what happens underneath.
    Verbose,
}

/// Installs the logger: lines on stderr. The calling thread will not wait for who reads them.
pub fn install_logger(verbosity: Verbosity, format: LogFormat) -> io::Result<()> {
    format.choose();
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Normal => LevelFilter::Info,
        Verbosity::Verbose => LevelFilter::Debug,
    };
    let mut builder = env_logger::Builder::new();
    let wanted = std::env::var_os(env_logger::DEFAULT_FILTER_ENV);
    let wanted = wanted.map(|filters| filters.to_string_lossy().into_owned());
    let (understood, other) = wanted.as_deref().map(understood).unwrap_or_default();
    if wanted.is_some() {
        builder.parse_filters(&understood);
    } else {
        builder.filter_module("taskq", level).filter_level(LevelFilter::Warn);
    }
    let logger = Logger { filter: builder.build(), stderr: stderr()? };
    never_wait_here();
    // With warnings there may be the ends of what they warned of.
    let max = match logger.filter.filter() {
        LevelFilter::Warn => LevelFilter::Info,
        level => level.max(LevelFilter::Error),
    };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(max);
    }
    if let Some(other) = other {
        log::warn!("RUST_LOG has a part that is no filter: {}", foreign(other));
    }
    Ok(())
}

/// The filters that `env_logger` understands, and the first one that it would complain about in words of its own.
fn understood(filters: &str) -> (String, Option<&str>) {
    let (directives, pattern) =
        filters.split_once('/').map_or((filters, ""), |(before, after)| (before, after));
    let is_sound = |directive: &&str| {
        let (target, level) =
            directive.split_once('=').map_or((*directive, None), |(target, level)| (target, Some(level)));
        target.chars().all(|c| c.is_ascii_alphanumeric() || "_:.-".contains(c))
            && level.is_none_or(|level| level.is_empty() || level.trim().parse::<LevelFilter>().is_ok())
    };
    let (sound, other): (Vec<_>, Vec<_>) = directives.split(',').map(str::trim).partition(is_sound);
    let mut understood = sound.join(",");
    if !pattern.is_empty() && pattern.chars().all(|c| !c.is_control()) {
        understood = format!("{understood}/{pattern}");
    }
    (understood, other.first().copied())
}

/// amiquip logs the password of the handshake at debug level and message bodies at warn level, so nothing of it
/// or of what lies beneath it is ever logged, whatever `RUST_LOG` says. Its errors arrive as values anyway.
const SECRETIVE: [&str; 4] = ["amiquip", "amq_protocol", "mio", "mio_extras"];

/// The target of messages that tell the end of a trouble. They are said wherever the trouble was: also where only
/// warnings and errors are.
pub const RECOVERY: &str = "taskq::recovery";

struct Logger {
    filter: env_logger::Logger,
    stderr: Stream,
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let root = metadata.target().split("::").next().unwrap_or_default();
        is_own_error(metadata)
            || metadata.target() == RECOVERY && self.filter.enabled(&warning_of(metadata))
            || !SECRETIVE.contains(&root) && self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let told = is_own_error(record.metadata()) || record.target() == RECOVERY;
        let wanted = told || self.filter.matches(record);
        if self.enabled(record.metadata()) && wanted {
            self.stderr.say(
                LogFormat::current().line(record, SystemTime::now()).into_bytes(),
                record.level() == Level::Error,
            );
        }
    }

    /// Everything is handed over at once; [`super::finish`] waits for it to be written.
    fn flush(&self) {}
}

/// An error ends the program, or a part of it: it is said whatever `RUST_LOG` asks for.
fn is_own_error(metadata: &Metadata<'_>) -> bool {
    metadata.level() == Level::Error && metadata.target().split("::").next() == Some("taskq")
}

fn warning_of<'m>(metadata: &Metadata<'m>) -> Metadata<'m> {
    Metadata::builder().level(Level::Warn).target(metadata.target()).build()
}
