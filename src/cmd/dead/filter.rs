//! The flags that say which dead tasks are meant by what they are.

use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use crate::calendar::unix_time;
use crate::cmd::positive_duration;
use crate::dead_tasks::{ExitIs, Filter};

/// A heading of `--help`.
pub(super) const WHICH: &str = "Which tasks";

/// All that are given must hold.
#[derive(Args)]
pub(super) struct FilterArgs {
    /// Whose id contains TEXT
    #[arg(help_heading = WHICH, long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    id: Option<String>,
    /// Whose error contains TEXT
    #[arg(help_heading = WHICH, long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    error: Option<String>,
    /// Whose body contains TEXT
    #[arg(help_heading = WHICH, long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    body: Option<String>,
    /// Whose last attempt ended so: a number is that exit status, other text a part of what the list shows
    #[arg(help_heading = WHICH, long, value_name = "EXIT", allow_hyphen_values = true, value_parser = exit)]
    exit: Option<ExitIs>,
    /// Whose last attempt failed longer ago than this
    #[arg(help_heading = WHICH, long, value_name = "DUR", value_parser = positive_duration)]
    older: Option<Duration>,
    /// Whose last attempt failed within this time
    #[arg(help_heading = WHICH, long, value_name = "DUR", value_parser = positive_duration)]
    newer: Option<Duration>,
}

impl FilterArgs {
    /// None is given.
    pub(super) fn is_empty(&self) -> bool {
        let Self { id, error, body, exit, older, newer } = self;
        let texts = [id, error, body].into_iter().all(Option::is_none);
        texts && exit.is_none() && older.is_none() && newer.is_none()
    }

    pub(super) fn into_filter(self) -> Filter {
        let now = unix_time();
        let before = |duration: Duration| now.saturating_sub(duration.as_secs());
        let Self { id, error, body, exit, older, newer } = self;
        Filter { id, error, body, exit, older_than: older.map(before), newer_than: newer.map(before) }
    }
}

fn exit(text: &str) -> Result<ExitIs, String> {
    match text.parse() {
        Ok(status) => Ok(ExitIs::Status(status)),
        Err(_) if text.is_empty() => Err("it is empty".to_owned()),
        Err(_) => Ok(ExitIs::Like(text.to_owned())),
    }
}
