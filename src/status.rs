//! `status`: how much is in queues and in their companions, as far as AMQP tells.

mod limits;

use std::time::{Duration, Instant};

use crate::broker::{ConnectionPurpose, Fault, FaultKind, QueueSpec, Session, SessionOptions};
use crate::browse::{Counted, count_surely, count_unsurely};
use crate::error::{Error, Result};

pub use limits::{Broken, Limits, Measure};

/// How long all that nobody answers may take, each of which costs the connection: after it, a queue that counts nothing is
/// not asked any more whether that is so, and another lost connection is an error.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is in one queue and in its companions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub queue: String,
    /// Tasks that wait for a worker.
    pub ready: Told,
    /// Consumers, of whatever connection.
    pub consumers: Told,
    /// Tasks that wait for their next attempt, for each length of pause.
    pub waiting: Vec<(Duration, Told)>,
    /// Dead tasks.
    pub dead: Told,
    /// Why numbers are not known, where some are not.
    pub unknown: Vec<Unknown>,
}

/// A number, or that it is not known.
pub type Told = std::result::Result<u32, Reason>;

/// Why a number is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody answers for the queue.
    Unanswered,
    /// This user may not look at it, or not read it to make sure that it is empty.
    NotAllowed,
}

/// A queue that could not be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Its name.
    pub queue: String,
    /// What kind of reason that is.
    pub kind: Reason,
    /// The reason, for a person.
    pub why: String,
}

/// Looks at each of these queues, and at those that keep its failed tasks for pauses of these lengths. One that was not
/// declared yet is empty, but for the queue itself.
///
/// # Errors
/// Those of a first connection. In the list, in place of a queue: it does not exist (configuration), the user may not look
/// at it, or the broker is lost; then it is the last of the list.
pub fn look(
    options: &SessionOptions,
    queues: &[QueueSpec],
    pauses: &[Duration],
) -> Result<Vec<Result<Status>>> {
    let session = connect(options).map_err(Error::on_first_connect)?;
    let mut observer = Observer { options, session: Some(session), waited: Duration::ZERO };
    let mut looks = Vec::with_capacity(queues.len());
    for queue in queues {
        let status = observer.look_at(queue, pauses);
        let ends = status.as_ref().is_err_and(|_| observer.session.is_none());
        looks.push(status);
        if ends {
            break;
        }
    }
    if let Some(fault) = observer.session.and_then(Session::close) {
        log::debug!("the connection did not end in good order: {fault}");
    }
    Ok(looks)
}

fn connect(options: &SessionOptions) -> Result<Session> {
    Session::open(options, ConnectionPurpose::Consume)
}

/// How one queue was counted.
enum Seen {
    Count {
        ready: u32,
        consumers: u32,
    },
    Missing,
    /// This user may not look at it.
    Refused(Fault),
    Unknown(Reason, String),
}

struct Observer<'o> {
    options: &'o SessionOptions,
    /// None: the broker is gone.
    session: Option<Session>,
    /// For answers that did not come.
    waited: Duration,
}

impl Observer<'_> {
    fn look_at(&mut self, queue: &QueueSpec, pauses: &[Duration]) -> Result<Status> {
        let mut unknown = Vec::new();
        let (ready, consumers) = match self.count(queue)? {
            Seen::Count { ready, consumers } => (Ok(ready), Ok(consumers)),
            Seen::Missing => {
                return Err(Error::configuration(format!(
                    "there is no queue {}; is the name right (--queue, TASKQ_QUEUE)?",
                    queue.name
                )));
            }
            Seen::Refused(fault) => {
                let error = fault.into_error();
                return Err(error.context(&format!("the queue {} cannot be looked at", queue.name)));
            }
            Seen::Unknown(kind, why) => {
                unknown.push(Unknown { queue: queue.name.clone(), kind, why });
                (Err(kind), Err(kind))
            }
        };
        let dead = self.count_companion(&queue.dead(), &mut unknown)?;
        let mut waiting: Vec<(Duration, Told)> = Vec::with_capacity(pauses.len());
        for pause in pauses {
            if waiting.iter().all(|(other, _)| other != pause) {
                waiting.push((*pause, self.count_companion(&queue.delay(*pause), &mut unknown)?));
            }
        }
        Ok(Status { queue: queue.name.clone(), ready, consumers, waiting, dead, unknown })
    }

    fn count_companion(&mut self, companion: &QueueSpec, unknown: &mut Vec<Unknown>) -> Result<Told> {
        let (kind, why) = match self.count(companion)? {
            Seen::Count { ready, .. } => return Ok(Ok(ready)),
            Seen::Missing => return Ok(Ok(0)),
            Seen::Refused(fault) => (Reason::NotAllowed, fault.to_string()),
            Seen::Unknown(kind, why) => (kind, why),
        };
        unknown.push(Unknown { queue: companion.name.clone(), kind, why });
        Ok(Err(kind))
    }

    /// A question that nobody answers costs the connection, and then there is another one for the next.
    fn count(&mut self, queue: &QueueSpec) -> Result<Seen> {
        let Some(session) = &mut self.session else {
            return Err(Error::unavailable("the connection is gone"));
        };
        let (began, asking) = (Instant::now(), self.waited < PATIENCE);
        let counted =
            if asking { count_surely(session, self.options, queue) } else { count_unsurely(session, queue) };
        let error = match counted {
            Ok(counted) => return Ok(seen(counted)),
            Err(error) => error,
        };
        if session.open_channel().is_err() {
            self.waited += began.elapsed();
            self.session = None;
            if !asking {
                return Err(error);
            }
            self.session = Some(connect(self.options).map_err(|_| error.clone())?);
        }
        Ok(Seen::Unknown(Reason::Unanswered, error.to_string()))
    }
}

fn seen(counted: Counted) -> Seen {
    match counted {
        Counted::Known(count) => Seen::Count { ready: count.ready, consumers: count.consumers },
        Counted::Missing => Seen::Missing,
        Counted::Unanswered => Seen::Unknown(Reason::Unanswered, "nobody answers for it".to_owned()),
        Counted::Unsure(fault) => Seen::Unknown(Reason::NotAllowed, fault.to_string()),
        Counted::Unusable(fault) if fault.kind == FaultKind::Lost => {
            Seen::Unknown(Reason::Unanswered, fault.to_string())
        }
        Counted::Unusable(fault) => Seen::Refused(fault),
    }
}
