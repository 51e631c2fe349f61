//! The tasks in `<queue>.dead`: looked at without taking them out, and sent again without losing them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crossbeam_channel::never;

use crate::broker::{
    Channel, Consumer, Delivery, Fault, Kind, Next, Properties, Publisher, Purpose, QueueSpec, Record,
    Session, SessionOptions, Settlement, Wake, count_ready, purge,
};
use crate::error::{Error, Result};

/// No limit: everything is delivered at once, held only until it was looked at, and goes back in its order.
const UNLIMITED: u16 = 0;
/// Copies under way at a time when dead tasks are sent again.
const WINDOW: u16 = 100;
/// The broker sends what it has at once; when nothing comes for so long, somebody else has taken the rest.
const NOTHING_MORE: Duration = Duration::from_secs(3);
/// How long a copy may take to be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// One dead task, as a person looks at it.
pub struct DeadTask<'a> {
    /// Its properties.
    pub properties: &'a Properties,
    /// What taskq wrote about it.
    pub record: Record,
    /// Any bytes.
    pub body: &'a [u8],
}

/// Which ones to send again.
pub enum Selection {
    /// All that are there now; not those that die while this runs.
    All,
    /// Those with one of these ids.
    Ids(HashSet<String>),
}

/// What [`requeue`] did.
#[derive(Debug, Default)]
pub struct Requeued {
    /// Tasks that were sent again.
    pub count: u64,
    /// The ids of those of a [`Selection::Ids`].
    pub ids: HashSet<String>,
}

/// Shows every dead task to `look`, oldest first, until it returns false. They stay where they are.
///
/// # Errors
/// The broker's, as far as it went.
pub fn browse(
    options: &SessionOptions,
    queue: &QueueSpec,
    look: &mut dyn FnMut(&DeadTask<'_>) -> bool,
) -> Result<()> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(()) };
    let channel = place.session.open_channel().map_err(Fault::into_error)?;
    browse_on(&channel, &place, look).and_then(|()| channel.close()).map_err(Fault::into_error)?;
    place.session.close();
    Ok(())
}

fn browse_on(
    channel: &Channel,
    place: &Place,
    look: &mut dyn FnMut(&DeadTask<'_>) -> bool,
) -> std::result::Result<(), Fault> {
    let consumer = Consumer::start(channel, &place.name, UNLIMITED)?;
    for _ in 0..place.ready {
        let Some(delivery) = next(&consumer)? else { break };
        let properties = delivery.properties();
        let task = DeadTask { properties, record: properties.record(), body: delivery.body() };
        // Never answered: it goes back to its place when the channel closes.
        if !look(&task) {
            break;
        }
    }
    consumer.cancel()
}

/// Sends the selected tasks to their queue again, as if they were new. Each is taken out only after the broker has
/// confirmed its copy: whatever dies meanwhile leaves a task twice, never not at all.
///
/// # Errors
/// The broker's; what was not moved is still there.
pub fn requeue(options: &SessionOptions, queue: &QueueSpec, selection: &Selection) -> Result<Requeued> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(Requeued::default()) };
    let publisher = Publisher::open(options, queue)?;
    let channel = place.session.open_channel().map_err(Fault::into_error)?;
    let mut mover = Mover { publisher, under_way: HashMap::new(), done: Requeued::default() };
    let result = mover.run(&channel, &place, queue, selection);
    let Mover { publisher, done, .. } = mover;
    // The close is what makes sure that the last acknowledgements arrived.
    let closed = channel.close().map_err(Fault::into_error);
    publisher.close();
    place.session.close();
    result.and(closed).map_err(|error| {
        error.context(&format!("{} sent again, the others are still in {}", done.count, place.name))
    })?;
    Ok(done)
}

struct Mover<'c> {
    publisher: Publisher,
    /// Originals by the tag of their copy.
    under_way: HashMap<u64, Delivery<'c>>,
    done: Requeued,
}

impl<'c> Mover<'c> {
    fn run(
        &mut self,
        channel: &'c Channel,
        place: &Place,
        queue: &QueueSpec,
        selection: &Selection,
    ) -> Result<()> {
        let prefetch = match selection {
            Selection::All => WINDOW,
            // What is not wanted must not keep the broker from sending what is.
            Selection::Ids(_) => UNLIMITED,
        };
        let consumer = Consumer::start(channel, &place.name, prefetch).map_err(Fault::into_error)?;
        for _ in 0..place.ready {
            while self.under_way.len() >= usize::from(WINDOW) {
                self.settle(&consumer)?;
            }
            let Some(delivery) = next(&consumer).map_err(Fault::into_error)? else { break };
            let wanted = match selection {
                Selection::All => true,
                Selection::Ids(ids) => ids.contains(delivery.properties().id()),
            };
            if wanted {
                let copy = delivery.properties().copy(&Record::default());
                let published = self.publisher.publish(&queue.name, delivery.body(), &copy, CONFIRM_TIMEOUT);
                self.under_way.insert(published.map_err(Fault::into_error)?, delivery);
            }
        }
        while !self.under_way.is_empty() {
            self.settle(&consumer)?;
        }
        consumer.cancel().map_err(Fault::into_error)
    }

    /// Waits for confirms, and takes out what they confirm.
    fn settle(&mut self, consumer: &Consumer<'c>) -> Result<()> {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        match self.publisher.wait::<(), ()>(None, &never(), Some(deadline)) {
            Wake::Settled => {}
            Wake::Blocked(reason) => {
                log::warn!("the broker has blocked publishing ({reason}); waiting for it to go on");
                return Ok(());
            }
            Wake::Unblocked | Wake::Input(_) | Wake::Interrupted(()) => return Ok(()),
            Wake::Lost(fault) => return Err(fault.into_error()),
            Wake::TimedOut => return Err(Error::try_again("the broker did not confirm in time")),
        }
        for (tag, settlement) in self.publisher.take_settled() {
            let Some(original) = self.under_way.remove(&tag) else { continue };
            match settlement {
                Settlement::Confirmed => {
                    self.done.count += 1;
                    self.done.ids.insert(original.properties().id().to_owned());
                    consumer.ack(original).map_err(Fault::into_error)?;
                }
                Settlement::Unroutable => {
                    return Err(Error::configuration("the queue to send them to is gone"));
                }
                Settlement::Nacked => {
                    return Err(Error::try_again("the broker refused a copy; is the queue full?"));
                }
            }
        }
        Ok(())
    }
}

/// Deletes all dead tasks and returns how many.
///
/// # Errors
/// The broker's.
pub fn purge_all(options: &SessionOptions, queue: &QueueSpec) -> Result<u32> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(0) };
    let count = purge(&mut place.session, &place.name).map_err(Fault::into_error)?;
    place.session.close();
    Ok(count)
}

/// How many dead tasks there are.
///
/// # Errors
/// The broker's.
pub fn count(options: &SessionOptions, queue: &QueueSpec) -> Result<u32> {
    let Some(place) = Place::open(options, queue)? else { return Ok(0) };
    place.session.close();
    Ok(place.ready)
}

/// A connection, and what was in the queue of dead tasks when it was opened.
struct Place {
    session: Session,
    name: String,
    ready: u32,
}

impl Place {
    /// `None` where no task ever died.
    fn open(options: &SessionOptions, queue: &QueueSpec) -> Result<Option<Self>> {
        let mut session = Session::open(options, Purpose::Consume)?;
        let name = queue.dead().name;
        match count_ready(&mut session, &name) {
            Ok(ready) => Ok(Some(Self { session, name, ready })),
            Err(fault) if fault.kind == Kind::NotFound => Ok(None),
            Err(fault) => Err(fault.into_error()),
        }
    }
}

fn next<'c>(consumer: &Consumer<'c>) -> std::result::Result<Option<Delivery<'c>>, Fault> {
    match consumer.next(&never(), Some(Instant::now() + NOTHING_MORE)) {
        Next::Delivery(delivery) => Ok(Some(delivery)),
        Next::Stopped | Next::TimedOut => Ok(None),
        Next::Ended(fault) => Err(fault),
    }
}
