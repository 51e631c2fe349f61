//! What is printed of tasks while they are looked at. They are held meanwhile, so a reader that stops reading is waited for
//! only so long.

use std::time::{Duration, Instant};

use crossbeam_channel::never;
use serde_json::Value;

use super::cannot_print;
use super::table::{Column, Table};
use crate::browse::Interrupt;
use crate::error::{Error, Result};
use crate::output::{self, Lines, Printed};
use crate::shortage;

/// So much is kept for a slow reader, such as a pager, without holding the tasks for it: some 50,000 of them.
const ROOM: usize = 16 * 1024 * 1024;
/// How long a reader may take nothing while there is no more room: well below the 30 minutes that brokers wait for an
/// answer.
const PATIENCE: Duration = Duration::from_mins(10);
/// How often a signal is looked for meanwhile.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);
/// How long the first rows may wait for others, with which they decide on the width of the columns.
const FIRST_ROWS: Duration = Duration::from_millis(200);

/// Lines on stdout, one for each task.
pub(super) struct Listing {
    lines: Lines,
    /// `None`: JSON.
    table: Option<Table>,
    rows: u64,
    first_row: Option<Instant>,
}

impl Listing {
    /// A table of these columns, or JSON.
    pub(super) fn new(columns: Option<&[Column]>) -> Result<Self> {
        let stdout = output::stdout().map_err(|error| {
            Error::internal(format!("cannot start a thread: {}", shortage::reason(&error)))
        })?;
        let width = output::terminal_width(std::io::stdout());
        let table = columns.map(|columns| Table::new(columns, width));
        Ok(Self { lines: Lines::to(stdout, ROOM), table, rows: 0, first_row: None })
    }

    /// One more task, as a row of the table or as an object.
    pub(super) fn add(&mut self, row: impl FnOnce() -> Vec<String>, object: impl FnOnce() -> Value) {
        self.rows += 1;
        self.first_row.get_or_insert_with(Instant::now);
        match &mut self.table {
            Some(table) => table.row(row()).iter().for_each(|line| self.lines.print(line)),
            None => self.lines.print(&output::line_of_json(&object())),
        }
    }

    /// To be called for each task that is looked at, also where it is not shown. False: the reader has read enough.
    ///
    /// # Errors
    /// Try again: nobody reads. The second signal.
    pub(super) fn goes_on(&mut self, interrupt: &Interrupt) -> Result<bool> {
        if let Some(table) = self.table.as_mut().filter(|table| table.waits())
            && self.first_row.is_some_and(|at| at.elapsed() >= FIRST_ROWS)
        {
            table.flush().iter().for_each(|line| self.lines.print(line));
        }
        let since = Instant::now();
        while !self.lines.has_room_within(SIGNALS_EVERY) {
            if interrupt.has_come()? {
                return Ok(false);
            }
            if since.elapsed() >= PATIENCE {
                return Err(Error::try_again("nobody reads the output; the tasks were given back meanwhile"));
            }
        }
        Ok(!self.lines.have_failed())
    }

    /// Waits for the reader, as long as it likes: nothing is held any more. How many tasks there were.
    pub(super) fn finish(mut self) -> Result<u64> {
        if let Some(table) = &mut self.table {
            table.flush().iter().for_each(|line| self.lines.print(line));
        }
        match self.lines.finish(&never()) {
            Printed::Failed(error) => Err(cannot_print(&error)),
            Printed::All | Printed::Enough | Printed::Interrupted(_) => Ok(self.rows),
        }
    }
}
