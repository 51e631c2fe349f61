//! Where the tasks are: a connection to their queue, and whether it may be looked at.

use super::counted::{Counted, count_surely};
use super::interrupt::Interrupt;
use super::refresher::Refresher;
use super::walk::refuse_a_stream;
use crate::broker::{
    ConnectionPurpose, Count, Fault, FaultKind, Publisher, Publishing, QueueSpec, QueueType, Session,
    SessionOptions, kind_of,
};
use crate::error::{Error, Exit, Result};

/// A connection, and what was in the queue when it was opened.
pub struct Place {
    /// For the look.
    pub session: Session,
    /// The queue, as it is.
    pub queue: QueueSpec,
    /// How many tasks were ready in it.
    pub ready: u32,
    /// What it is; `None` where nobody told.
    pub kind: Option<QueueType>,
}

/// What came of [`Place::open`].
pub enum Opened {
    /// The queue is there.
    There(Place),
    /// There is no such queue; on this connection others can be looked for.
    Missing(Session),
}

impl Place {
    /// Connects, and counts what is in the queue.
    ///
    /// # Errors
    /// Configuration: it is a stream, or unfit. Try again: it could not be counted. Those of a first connection.
    pub fn open(options: &SessionOptions, queue: &QueueSpec) -> Result<Opened> {
        let mut session =
            Session::open(options, ConnectionPurpose::Consume).map_err(Error::on_first_connect)?;
        let queue = QueueSpec { declare: false, ..queue.clone() };
        let kind = match kind_of(&mut session, &queue.name) {
            Err(fault) if fault.kind == FaultKind::NotFound => return Ok(Opened::Missing(session)),
            known => known.map_err(Fault::into_error)?,
        };
        let ready = match count_surely(&mut session, options, &queue)? {
            Counted::Known(Count { ready, .. }) => ready,
            Counted::Missing => return Ok(Opened::Missing(session)),
            Counted::Unusable(fault) | Counted::Unsure(fault) => return Err(fault.into_error()),
            Counted::Unanswered => {
                refuse_a_stream(&mut session, &queue.name)?;
                let name = &queue.name;
                return Err(Error::try_again(format!("what is in {name} could not be counted just now")));
            }
        };
        Ok(Opened::There(Self { session, queue, ready, kind }))
    }

    /// A task that is looked at and goes back too often may be dropped for it.
    #[must_use]
    pub fn wears_out(&self) -> bool {
        self.kind != Some(QueueType::Classic) && self.session.counts_nacks()
    }

    /// Where to look is to wear tasks out, nobody looks while the broker takes no copies that could take their place.
    pub fn refresher<'c>(&self, options: &SessionOptions, interrupt: &Interrupt) -> Result<Refresher<'c>> {
        if self.wears_out() && self.ready > 0 {
            match open_publisher(options, &self.queue) {
                Ok(publisher) => return Ok(Refresher::with(publisher, options, &self.queue, interrupt)),
                // It is told where a copy is needed.
                Err(error) if error.exit == Exit::Refused => log::debug!("no copies: {error}"),
                Err(error) if error.exit == Exit::Configuration => return Err(error),
                Err(error) => {
                    return Err(Error::try_again(format!(
                        "{error}, and {} cannot be looked at meanwhile: each look counts as a delivery, and what was \
                         delivered too often could not be replaced by a copy",
                        self.queue.name
                    )));
                }
            }
        }
        Ok(Refresher::new(options, &self.queue, interrupt))
    }

    /// Where tasks wear out, a signal must not end the process while it holds some: they would go back once more.
    pub fn interrupt(&self) -> Result<Interrupt> {
        if self.wears_out() { Interrupt::heard() } else { Ok(Interrupt::ignored()) }
    }
}

/// A publisher that the broker takes copies from.
///
/// # Errors
/// Try again: the broker takes none now, with the reason. Those of the connection, and of a permission that is missing.
pub fn open_publisher<T>(options: &SessionOptions, queue: &QueueSpec) -> Result<Publisher<T>> {
    let mut publisher = Publisher::open_verified(options, queue)?;
    // During an alarm a broker may take one message on a connection before it blocks it.
    let probed = publisher.probe().and_then(|first| match first {
        Publishing::Works => publisher.probe(),
        no => Ok(no),
    });
    let why = match probed {
        Ok(Publishing::Works) => return Ok(publisher),
        Ok(Publishing::Blocked(reason)) => format!("the broker has blocked publishing ({reason})"),
        Ok(Publishing::Unknown) => "the broker does not answer what is published".to_owned(),
        Err(fault) => {
            publisher.cut();
            return Err(fault.into_error());
        }
    };
    publisher.cut();
    Err(Error::try_again(why))
}
