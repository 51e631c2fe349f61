//! What `taskq send` tells while it sends, and what it keeps of what could not be sent.

use std::fs::{File, Metadata};
use std::io::{IsTerminal, Seek};

use crossbeam_channel::{Receiver, select};

use crate::cmd::progress::{HowFar, Progress};
use crate::error::{Error, Exit};
use crate::output::{self, Lines};
use crate::sender::{self, Input, Item, Report, Saved, Summary, Unsaved, UnsentFile};

/// Failures told one by one; the rest is counted.
const TOLD_FAILURES: u64 = 20;

/// An input of many tasks.
#[derive(Debug, Clone, Copy)]
pub(super) struct BulkInput {
    /// Somebody types it.
    is_typed: bool,
    /// How much there is to read of it, if it is a regular file.
    bytes: Option<u64>,
}

impl BulkInput {
    pub(super) fn of(file: &File) -> Self {
        let size = file.metadata().ok().filter(Metadata::is_file).map(|there| there.len());
        let mut at = file;
        let read = at.stream_position().ok();
        let bytes = size.zip(read).map(|(size, read)| size.saturating_sub(read));
        Self { is_typed: file.is_terminal(), bytes }
    }
}

/// Tells the user, and keeps what could not be sent.
pub(super) struct Reporter {
    bulk: bool,
    ids: Option<Lines>,
    told: u64,
    unsent: Option<UnsentFile>,
    save_error: Option<std::io::Error>,
    /// A body over the limit was skipped when it was read, and cannot be saved.
    skipped: bool,
    progress: Option<Progress>,
    confirmed: u64,
    /// Of the input: what became of them is known.
    bytes_done: u64,
    input_bytes: Option<u64>,
}

impl Reporter {
    /// `bulk`: the input, where it is one of many tasks. `ids`: where each id goes. `unsent`: where to save what was not
    /// confirmed.
    pub(super) fn new(bulk: Option<BulkInput>, ids: Option<Lines>, unsent: Option<UnsentFile>) -> Self {
        // It would be in the way of what somebody types.
        let shows = bulk.is_some_and(|input| !input.is_typed);
        Self {
            bulk: bulk.is_some(),
            ids,
            told: 0,
            unsent,
            save_error: None,
            skipped: false,
            progress: if shows { Progress::on_a_terminal("sent") } else { None },
            confirmed: 0,
            bytes_done: 0,
            input_bytes: bulk.and_then(|input| input.bytes),
        }
    }

    fn is_done(&mut self, item: &Item) {
        let length = item.body.as_ref().map_or_else(|length| *length, |body| body.len() as u64);
        // And its separator.
        self.bytes_done += length + 1;
    }

    fn show_progress(&mut self) {
        let Some(progress) = &mut self.progress else { return };
        progress.show(match self.input_bytes {
            Some(all) => HowFar::OfBytes { tasks: self.confirmed, done: self.bytes_done, all },
            None => HowFar::Tasks(self.confirmed),
        });
    }

    fn save(&mut self, item: &Item) {
        self.skipped |= item.body.is_err();
        if let (Some(unsent), Ok(body), None) = (&mut self.unsent, &item.body, &self.save_error) {
            self.save_error = unsent.add(item.number, body).err();
        }
    }

    /// Before more is read.
    fn write_saved(&mut self) {
        if let (Some(unsent), None) = (&mut self.unsent, &self.save_error) {
            self.save_error = unsent.flush().err();
        }
    }

    /// What sending did not get to is not confirmed either: what is read already, and with --unsent what is still to be
    /// read. After a signal only the former, as the input may never end; but a file that is to be replaced does.
    pub(super) fn take_rest(&mut self, input: &Input, signals: &Receiver<i32>, summary: &mut Summary) {
        self.progress = None;
        let Some(why) = &summary.ended else { return };
        let stopped = matches!(why.exit, Exit::Signal(_));
        self.write_saved();
        if let Some(unsent) = self.unsent.as_ref().filter(|unsent| !stopped || unsent.replaces_input()) {
            if !input.is_at_its_end() && self.save_error.is_none() {
                let path = output::path(unsent.path());
                log::warn!("{why}; saving the rest of the input in {path}, until it ends or you stop it");
            }
            self.read_on(input, signals, summary);
        }
        while let Some(items) = input.next_at_hand() {
            self.keep(&items, summary);
        }
    }

    /// To the end of the input, or a signal, which then is what has ended it all.
    fn read_on(&mut self, input: &Input, signals: &Receiver<i32>, summary: &mut Summary) {
        while self.save_error.is_none() {
            select! {
                recv(signals) -> signal => {
                    summary.ended = Some(sender::interrupted(signal.unwrap_or_default()));
                    return;
                }
                recv(input.batches) -> parcel => match parcel {
                    Ok(Ok(items)) => {
                        self.keep(&items, summary);
                        self.write_saved();
                    }
                    Ok(Err(error)) => log::warn!("cannot read the input: {error}"),
                    Err(_) => return,
                },
            }
        }
    }

    fn keep(&mut self, items: &[Item], summary: &mut Summary) {
        summary.failed += items.len() as u64;
        for item in items {
            self.save(item);
            if self.unsent.is_some() && item.body.is_err() {
                self.tell(item, &"it is too large to be saved");
            }
        }
    }

    /// Puts what was not confirmed in its place, where that is asked for.
    pub(super) fn finish_saving(
        &mut self,
        input: &Input,
        signals: &Receiver<i32>,
    ) -> std::result::Result<Saved, Unsaved> {
        match (self.unsent.take(), self.save_error.take()) {
            (None, _) => Ok(Saved::InPlace),
            (Some(unsent), Some(error)) => Err(unsent.give_up(&error)),
            (Some(unsent), None) => unsent.finish(input.all_of_it().filter(|_| !self.skipped), signals),
        }
    }

    fn tell(&mut self, item: &Item, why: &dyn std::fmt::Display) {
        self.told += 1;
        if self.told > TOLD_FAILURES + 1 {
            return;
        }
        if self.told <= TOLD_FAILURES {
            log::warn!("line {}: {why}", item.number);
        } else {
            log::warn!("further failures are only counted");
        }
    }
}

impl Report for Reporter {
    fn confirmed(&mut self, item: &Item, id: &str) {
        if self.bulk {
            self.confirmed += 1;
            self.is_done(item);
            self.show_progress();
        } else if let Ok(body) = &item.body {
            log::info!(" [x] Sent {}", output::excerpt(body));
        }
        if let Some(ids) = &self.ids {
            ids.print(id);
        }
    }

    fn abandoned(&mut self, item: &Item) {
        self.save(item);
    }

    fn failed(&mut self, item: &Item, why: &Error) {
        self.save(item);
        self.is_done(item);
        if self.bulk {
            self.tell(item, why);
        }
    }
}
