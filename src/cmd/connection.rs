//! The flags that say which broker and how, common to all commands.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::{environment, positive_duration};
use crate::broker::{BrokerUrl, SessionOptions, TlsFiles, UrlList};
use crate::error::{Error, Result};
use crate::output;

/// Where nothing else is given.
const DEFAULT_URL: &str = "amqp://guest:guest@localhost:5672";
const URL_HELP: &str = "\
Broker URL, amqp[s]://user:password@host:port/vhost; several (repeated, or separated by commas) are tried in turn \
[env: TASKQ_URL] [default: amqp://guest:guest@localhost:5672]";
/// The credential that systemd's `LoadCredential=taskq-url:...` provides.
const CREDENTIAL: &str = "taskq-url";
/// A URL is not longer; something else was named by mistake.
const MAX_URL_FILE_BYTES: u64 = 64 * 1024;
/// In the mode of a file.
const READABLE_BY_ALL: u32 = 0o004;

/// Which broker, and how.
#[derive(Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ConnectionArgs {
    // Not a doc comment: rustdoc would take the brackets for links.
    #[arg(short, long, value_name = "URL", conflicts_with = "url_file", help = URL_HELP)]
    url: Vec<String>,
    /// Read the URL from this file, which keeps the password out of the process list
    #[arg(long, value_name = "PATH")]
    url_file: Option<PathBuf>,
    /// Give up connecting after this long: looking up the name, TCP, TLS and AMQP together [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = positive_duration)]
    connect_timeout: Option<Duration>,
    /// Notice a dead broker within twice this long; whole seconds [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = heartbeat)]
    heartbeat: Option<Duration>,
    /// Trust the certificate authorities in this PEM file (amqps)
    #[arg(long, value_name = "PATH")]
    tls_ca: Option<PathBuf>,
    /// Identify with the certificate in this PEM file (amqps)
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM in PKCS#8 form
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl ConnectionArgs {
    pub(super) fn into_options(self) -> Result<SessionOptions> {
        let urls = self.urls()?;
        for url in &urls.current() {
            if url.tls && !cfg!(feature = "tls") {
                return Err(Error::configuration(format!(
                    "{url} needs TLS, and this taskq was built without it"
                )));
            }
            if url.exposes_password() {
                log::warn!(
                    "the password for {url} crosses the network in clear; use amqps:// if the broker offers it"
                );
            }
        }
        Ok(SessionOptions {
            urls,
            tls: TlsFiles { ca: self.tls_ca, certificate: self.tls_cert, key: self.tls_key },
            connect_timeout: self.connect_timeout,
            heartbeat: self.heartbeat,
        })
    }

    /// The flags, else the environment, else the service manager's credential, else the default.
    fn urls(&self) -> Result<UrlList> {
        if !self.url.is_empty() {
            let lists: Result<Vec<_>> = self.url.iter().map(|list| parse(list)).collect();
            return Ok(UrlList::fixed(lists?.into_iter().flatten().collect()));
        }
        if let Some(path) = self.url_file.clone() {
            return UrlList::reading(move || from_file(&path));
        }
        if let Some(list) = environment("TASKQ_URL")? {
            return parse(&list).map(UrlList::fixed).map_err(|error| error.context("TASKQ_URL"));
        }
        match credential()? {
            Some(path) => UrlList::reading(move || from_file(&path)),
            None => parse(DEFAULT_URL).map(UrlList::fixed),
        }
    }
}

/// Whatever ends the program before the URL is read: what it says may hold the password.
pub(super) fn hide_passwords_in_files(arguments: &[String]) {
    let after = arguments.windows(2).filter(|pair| pair[0] == "--url-file").map(|pair| pair[1].as_str());
    let joined = arguments.iter().filter_map(|argument| argument.strip_prefix("--url-file="));
    let credential = std::env::var_os(CREDENTIALS).map(|directory| Path::new(&directory).join(CREDENTIAL));
    for path in after.chain(joined).map(PathBuf::from).chain(credential) {
        // A pipe can be read only once.
        if path.metadata().is_ok_and(|file| file.is_file())
            && let Ok(file) = File::open(&path)
        {
            let mut text = Vec::new();
            let _ = file.take(MAX_URL_FILE_BYTES).read_to_end(&mut text);
            output::hide_urls_of(&String::from_utf8_lossy(&text));
        }
    }
}

/// Whatever is wrong with them, from here on no message holds a password of theirs.
fn parse(list: &str) -> Result<Vec<BrokerUrl>> {
    output::hide_urls_of(list);
    let urls = BrokerUrl::parse_list(list)?;
    urls.iter().for_each(BrokerUrl::hide_password);
    Ok(urls)
}

/// Where the service manager keeps credentials.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// The service manager's credential; `None` where it provides none. What cannot be looked at is an error: without it the
/// tasks would go to another broker.
fn credential() -> Result<Option<PathBuf>> {
    let Some(directory) = std::env::var_os(CREDENTIALS) else { return Ok(None) };
    if directory.is_empty() {
        return Err(Error::usage(format!("{CREDENTIALS} is set but empty; unset it or give a value")));
    }
    let directory = PathBuf::from(directory);
    let cannot_read = |error: io::Error| {
        Error::configuration(format!("cannot read {CREDENTIALS} {}: {error}", output::path(&directory)))
    };
    let mut entries = std::fs::read_dir(&directory).map_err(cannot_read)?;
    let is_there = entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() == CREDENTIAL));
    Ok(is_there.then(|| directory.join(CREDENTIAL)))
}

fn from_file(path: &PathBuf) -> Result<Vec<BrokerUrl>> {
    let cannot_read = |why: &dyn fmt::Display| {
        Error::configuration(format!("cannot read the URL file {}: {why}", output::path(path)))
    };
    let file = File::open(path).map_err(|error| cannot_read(&error))?;
    let open_to_all =
        file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & READABLE_BY_ALL != 0);
    let mut text = String::new();
    file.take(MAX_URL_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| cannot_read(&error))?;
    if text.len() as u64 > MAX_URL_FILE_BYTES {
        return Err(cannot_read(&"it is over 64 KiB, which no list of URLs is"));
    }
    // One URL a line reads as well as commas.
    let list = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(",");
    let urls = parse(&list).map_err(|error| error.context(&output::path(path)))?;
    if open_to_all && urls.iter().any(BrokerUrl::holds_secret) {
        let path = output::path(path);
        log::warn!("everybody on this machine can read the password in {path}; chmod 600 it");
    }
    Ok(urls)
}

/// For clap: AMQP counts heartbeats in whole seconds, 16 bits of them.
fn heartbeat(text: &str) -> std::result::Result<Duration, String> {
    let duration = positive_duration(text)?;
    if duration.subsec_nanos() != 0 {
        return Err("heartbeats are counted in whole seconds".to_owned());
    }
    if duration.as_secs() > u64::from(u16::MAX) {
        return Err("heartbeats are 65535s apart at most".to_owned());
    }
    Ok(duration)
}
