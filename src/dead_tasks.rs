//! The tasks in `<queue>.dead`: looked at without taking them out, and sent again without losing them.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crossbeam_channel::never;

use self::walk::{Channels, Manner, Walk};
use crate::broker::{
    Body, CopyForm, Count, Delivery, Fault, Kind, Properties, Publisher, Purpose, QueueSpec, Record, Session,
    SessionOptions, Settlement, Wake, count_messages, is_empty_for_certain, kind_of, purge,
};
use crate::error::{Error, Result};

mod walk;

/// Copies under way at a time when dead tasks are sent again.
const WINDOW: u16 = 100;
/// How long to wait for what was only looked at to be back in its queue, and the pause between two looks: a quorum queue
/// takes a moment. Whoever comes next finds all of it then.
const BACK_WITHIN: Duration = Duration::from_secs(3);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// Dead tasks that are taken together when they are deleted one by one: only they are in memory, without their bodies.
const PURGED_AT_ONCE: u32 = 1000;
/// How long a copy may take to be confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// To look at a task counts as a delivery of it, and a quorum queue may drop a task after so many: RabbitMQ 4 after 20.
/// Well before that the task is replaced by a copy that was never delivered, at the price of its place in the row. In a
/// queue of taskq's own too: a policy may lower the limit that it was declared with, and AMQP does not tell of policies.
const WORN: u64 = 10;

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
    pub count: u32,
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
    let channels = Channels::open(&mut place.session, place.ready, Manner::Held)?;
    browse_on(&channels, options, &mut place, look)?;
    channels.close()?;
    place.see_them_back(place.ready);
    place.session.close();
    Ok(())
}

fn browse_on(
    channels: &Channels,
    options: &SessionOptions,
    place: &mut Place,
    look: &mut dyn FnMut(&DeadTask<'_>) -> bool,
) -> Result<()> {
    let Place { session, dead, ready } = place;
    let mut refresher = Refresher { options, dead, mover: None, failed: false };
    let mut walk = Walk::new(channels, session, &dead.name, *ready, Manner::Held);
    let mut looking = true;
    while let Some(delivery) = walk.next()? {
        let properties = delivery.properties();
        let task = DeadTask { properties, record: properties.record(), body: delivery.body() };
        looking = looking && look(&task);
        // What is worn is at the front. Everything else is never answered: it goes back to its place when its channel
        // closes.
        if is_worn(&delivery) {
            refresher.refresh(delivery);
        } else if !looking {
            break;
        }
    }
    refresher.close();
    walk.stop()
}

fn is_worn(delivery: &Delivery<'_>) -> bool {
    delivery.properties().delivery_count().is_some_and(|count| count >= WORN)
}

/// Sends the selected tasks to their queue again, as if they were new. Each is taken out only after the broker has
/// confirmed its copy: whatever dies meanwhile leaves a task twice, never not at all.
///
/// # Errors
/// The broker's; what was not moved is still there.
pub fn requeue(options: &SessionOptions, queue: &QueueSpec, selection: &Selection) -> Result<Requeued> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(Requeued::default()) };
    // Nothing would ever be taken out of a stream.
    kind_of(&mut place.session, &queue.name).map_err(Fault::into_error)?;
    let publisher = Publisher::open_carefully(options, queue)?;
    let manner = match selection {
        Selection::All => Manner::Answered(WINDOW),
        // What is not wanted must not keep the broker from sending what is.
        Selection::Ids(_) => Manner::Held,
    };
    let channels = Channels::open(&mut place.session, place.ready, manner)?;
    let mut mover = Mover::new(publisher);
    let result = mover.run(&channels, &mut place, queue, selection, manner);
    let Mover { publisher, done, .. } = mover;
    // The close is what makes sure that the last acknowledgements arrived.
    let closed = channels.close();
    publisher.close();
    place.see_them_back(place.ready.saturating_sub(done.count));
    place.session.close();
    result.and(closed).map_err(|error| {
        error.context(&format!("{} sent again, the others are still in {}", done.count, place.dead.name))
    })?;
    Ok(done)
}

/// Replaces tasks by copies, some of them at a time.
struct Mover<'c> {
    publisher: Publisher,
    under_way: HashMap<u64, Moving<'c>>,
    done: Requeued,
}

/// A task whose copy is published and not confirmed.
struct Moving<'c> {
    original: Delivery<'c>,
    /// The copy is what was asked for.
    counts: bool,
}

impl<'c> Mover<'c> {
    fn new(publisher: Publisher) -> Self {
        Self { publisher, under_way: HashMap::new(), done: Requeued::default() }
    }

    fn run(
        &mut self,
        channels: &'c Channels,
        place: &mut Place,
        queue: &QueueSpec,
        selection: &Selection,
        manner: Manner,
    ) -> Result<()> {
        let Place { session, dead, ready } = place;
        let mut walk = Walk::new(channels, session, &dead.name, *ready, manner);
        while let Some(delivery) = walk.next()? {
            let wanted = match selection {
                Selection::All => true,
                Selection::Ids(ids) => ids.contains(delivery.properties().id()),
            };
            if wanted {
                let copy = self.copy_of(&delivery, &Record::default());
                self.replace(Moving { original: delivery, counts: true }, &queue.name, &copy)?;
            } else if is_worn(&delivery) {
                self.refresh(delivery, &dead.name)?;
            }
        }
        self.finish()?;
        walk.stop()
    }

    fn copy_of(&self, original: &Delivery<'_>, record: &Record) -> Properties {
        original.properties().copy(record, CopyForm::Full, self.publisher.frame_max())
    }

    /// Puts a copy into the same queue. It is the same in everything but how often it was delivered, and its place.
    fn refresh(&mut self, original: Delivery<'c>, name: &str) -> Result<()> {
        let copy = self.copy_of(&original, &original.properties().record());
        self.replace(Moving { original, counts: false }, name, &copy)
    }

    fn replace(&mut self, mut moving: Moving<'c>, to: &str, copy: &Properties) -> Result<()> {
        let body = Body::new(moving.original.take_body());
        match self.publisher.publish(to, &body, copy) {
            Ok(tag) => self.under_way.insert(tag, moving),
            Err(fault) => {
                self.take_out_settled()?;
                return Err(fault.into_error());
            }
        };
        // The broker sends nothing more while so many are unanswered.
        while self.publisher.is_busy() || self.under_way.len() >= usize::from(WINDOW) {
            self.settle()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits for confirms, and takes out what they confirm.
    fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        match self.publisher.wait::<(), ()>(None, &never(), Some(deadline)) {
            Wake::Settled => {}
            Wake::Blocked(reason) => {
                log::warn!("the broker has blocked publishing ({reason}); waiting for it to go on");
                return Ok(());
            }
            Wake::Unblocked | Wake::Input(_) | Wake::Interrupted(()) => return Ok(()),
            Wake::Lost(fault) => {
                self.take_out_settled()?;
                return Err(fault.into_error());
            }
            Wake::TimedOut => return Err(Error::try_again("the broker did not confirm in time")),
        }
        self.take_out_settled()
    }

    fn take_out_settled(&mut self) -> Result<()> {
        for (tag, settlement) in self.publisher.take_settled() {
            let Some(Moving { original, counts }) = self.under_way.remove(&tag) else { continue };
            match settlement {
                Settlement::Confirmed => {
                    if counts {
                        self.done.count += 1;
                        self.done.ids.insert(original.properties().id().to_owned());
                    }
                    original.ack().map_err(Fault::into_error)?;
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

/// Refreshes worn tasks for somebody who only wants to look: connects when there are any, and failing is no error.
struct Refresher<'o, 'c> {
    options: &'o SessionOptions,
    dead: &'o QueueSpec,
    mover: Option<Mover<'c>>,
    failed: bool,
}

impl<'c> Refresher<'_, 'c> {
    fn refresh(&mut self, original: Delivery<'c>) {
        if !self.failed {
            let refreshed = self.try_refresh(original);
            self.note(refreshed);
        }
    }

    fn try_refresh(&mut self, original: Delivery<'c>) -> Result<()> {
        let mover = match &mut self.mover {
            Some(mover) => mover,
            none => none.insert(Mover::new(Publisher::open_carefully(self.options, self.dead)?)),
        };
        mover.refresh(original, &self.dead.name)
    }

    fn note(&mut self, refreshed: Result<()>) {
        if let Err(error) = refreshed {
            self.failed = true;
            log::warn!(
                "tasks in {} were looked at more than {WORN} times, and could not be replaced by copies ({error}); a \
                 quorum queue drops what was delivered too often, by default 20 times on RabbitMQ 4",
                self.dead.name
            );
        }
    }

    fn close(mut self) {
        let Some(mut mover) = self.mover.take() else { return };
        let finished = mover.finish();
        mover.publisher.close();
        self.note(finished);
    }
}

/// Deletes the oldest dead tasks, so many of them, one by one, and returns how many there were. Any that die meanwhile
/// stay.
///
/// # Errors
/// The broker's; what was not deleted is still there.
pub fn purge_oldest(options: &SessionOptions, queue: &QueueSpec, count: u32) -> Result<u32> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(0) };
    let mut deleted = 0;
    while deleted < count {
        let part = (count - deleted).min(PURGED_AT_ONCE);
        let purged = place.purge_part(part).map_err(|error| {
            error.context(&format!(
                "{deleted} deleted, perhaps some more; the others are still in {}",
                place.dead.name
            ))
        })?;
        deleted += purged;
        // Others have taken the rest.
        if purged < part {
            break;
        }
    }
    place.session.close();
    Ok(deleted)
}

/// Deletes all dead tasks and returns how many.
///
/// # Errors
/// The broker's.
pub fn purge_all(options: &SessionOptions, queue: &QueueSpec) -> Result<u32> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(0) };
    let count = purge(&mut place.session, &place.dead.name).map_err(Fault::into_error)?;
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

/// There was something in the queue after all: it has only just come, or the queue has only now begun to answer.
fn count_again(session: &mut Session, name: &str) -> Result<u32> {
    match count_messages(session, name).map_err(Fault::into_error)? {
        Count { ready: 0, .. } => {
            Err(Error::try_again(format!("what is in {name} could not be counted just now")))
        }
        Count { ready, .. } => Ok(ready),
    }
}

/// A connection, and what was in the queue of dead tasks when it was opened.
struct Place {
    session: Session,
    /// The queue, as it is.
    dead: QueueSpec,
    ready: u32,
}

impl Place {
    /// `None` where no task ever died.
    fn open(options: &SessionOptions, queue: &QueueSpec) -> Result<Option<Self>> {
        let mut session = Session::open(options, Purpose::Consume).map_err(Error::on_first_connect)?;
        let dead = QueueSpec { declare: false, ..queue.dead() };
        match kind_of(&mut session, &dead.name) {
            Err(fault) if fault.kind == Kind::NotFound => return Ok(None),
            known => drop(known.map_err(Fault::into_error)?),
        }
        match count_messages(&mut session, &dead.name) {
            Ok(Count { ready: 0, .. }) => {
                let empty = is_empty_for_certain(&mut session, &dead.name).map_err(Fault::into_error)?;
                let ready = if empty { 0 } else { count_again(&mut session, &dead.name)? };
                Ok(Some(Self { session, dead, ready }))
            }
            Ok(Count { ready, .. }) => Ok(Some(Self { session, dead, ready })),
            Err(fault) if fault.kind == Kind::NotFound => Ok(None),
            // Who may read a queue, and not configure it, is refused a look at one that is missing.
            Err(fault) if fault.kind == Kind::Refused => match is_empty_for_certain(&mut session, &dead.name)
            {
                Err(missing) if missing.kind == Kind::NotFound => Ok(None),
                _ => Err(fault.into_error()),
            },
            Err(fault) => Err(fault.into_error()),
        }
    }

    /// Nothing is acknowledged before all have come: each answer would have the broker hand out one more.
    fn purge_part(&mut self, count: u32) -> Result<u32> {
        let channels = Channels::open(&mut self.session, count, Manner::Held)?;
        let mut walk = Walk::new(&channels, &mut self.session, &self.dead.name, count, Manner::Held);
        let mut taken = Vec::new();
        while let Some(mut delivery) = walk.next()? {
            drop(delivery.take_body());
            taken.push(delivery);
        }
        walk.stop()?;
        drop(walk);
        let deleted = u32::try_from(taken.len()).unwrap_or(u32::MAX);
        taken.into_iter().try_for_each(Delivery::ack).map_err(Fault::into_error)?;
        channels.close()?;
        Ok(deleted)
    }

    /// Waits until so many are ready again. Not for ever: others may have taken some.
    fn see_them_back(&mut self, wanted: u32) {
        let deadline = Instant::now() + BACK_WITHIN;
        while count_messages(&mut self.session, &self.dead.name).is_ok_and(|counted| counted.ready < wanted)
            && Instant::now() < deadline
        {
            std::thread::sleep(LOOK_AGAIN_AFTER);
        }
    }
}
