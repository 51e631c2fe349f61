//! The connection for copies: there while it is needed, and opened on a thread of its own.

use std::thread;
use std::time::Instant;

use crossbeam_channel::Receiver;

use crate::broker::{Publisher, QueueSpec, SessionOptions};
use crate::error::{Error, Result};
use crate::shortage;

pub(super) enum Link {
    /// Not connected, and not to be before then.
    Down {
        until: Instant,
    },
    Opening(Receiver<Result<Publisher>>),
    Up(Box<Up>),
}

pub(super) struct Up {
    pub(super) publisher: Publisher,
    /// The broker has refused a copy on this connection.
    pub(super) refused: bool,
}

impl Link {
    /// Connects on a thread of its own: what comes, and the end of the worker, is heard meanwhile.
    pub(super) fn open(session: &SessionOptions, queue: &QueueSpec) -> Self {
        let (sender, opened) = crossbeam_channel::bounded(1);
        let spawned = thread::Builder::new().name("connect".into()).spawn({
            let (sender, session, queue) = (sender.clone(), session.clone(), queue.clone());
            move || {
                // Nobody listens any more when the worker has ended meanwhile.
                let _ = sender.send(Publisher::open_verified(&session, &queue));
            }
        });
        if let Err(error) = spawned {
            // It passes.
            let why = format!("cannot connect: {}", shortage::reason(&error));
            let _ = sender.send(Err(Error::unavailable(why)));
        }
        Self::Opening(opened)
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(self, Self::Up(up) if up.publisher.is_blocked())
    }
}
