//! The tasks in `<queue>.dead`: looked at without taking them out, and sent again without losing them.

use std::collections::{HashMap, HashSet, VecDeque};

use self::interrupt::Interrupt;
use self::mover::{Moved, Mover, Moving, WINDOW};
use self::names::Found;
use self::place::{Place, why_not};
use self::refresher::Refresher;
use self::walk::{Channels, Walk, WalkMode, Walked};
use crate::broker::{
    Count, DeadLettering, Delivery, Fault, Properties, Publisher, QueueSpec, Record, SessionOptions, ack_all,
    count_messages, kind_of, purge,
};
use crate::error::{Error, Result};

mod interrupt;
mod key;
mod mover;
mod names;
mod place;
mod refresher;
mod walk;

pub use key::Key;
pub use names::{Candidate, Search, Unclear};

/// Dead tasks that are taken together when they are deleted one by one: only they are in memory, without their bodies.
const PURGED_AT_ONCE: u32 = 1000;

/// One dead task, as a person looks at it.
pub struct DeadTask<'a> {
    /// By which it can be named.
    pub key: Key,
    /// Its properties.
    pub properties: &'a Properties,
    /// What taskq wrote about it, and where the broker itself moved it here, what that says.
    pub record: Record,
    /// Any bytes.
    pub body: &'a [u8],
}

/// Which ones to send again.
pub enum Selection {
    /// All that are there now; not those that die while this runs.
    All,
    /// Those that these names mean, each of them one: see [`Search`].
    Named(HashSet<String>),
}

/// What [`requeue`] did.
#[derive(Debug, Default)]
pub struct Requeued {
    /// Tasks that were sent again.
    pub count: u32,
    /// Names of a [`Selection::Named`] that only begin an id or a key, and what they were taken for.
    pub taken_for: Vec<(String, Candidate)>,
    /// Names that mean no task, or no single one. Of those nothing was sent.
    pub unclear: Unclear,
}

/// Shows every dead task to `look`, oldest first, until it returns false. They stay where they are.
pub fn browse(
    options: &SessionOptions,
    queue: &QueueSpec,
    look: &mut dyn FnMut(&DeadTask<'_>) -> bool,
) -> Result<()> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(()) };
    let interrupt = place.interrupt()?;
    browse_in(&mut place, options, &interrupt, look)?;
    place.session.close();
    Ok(())
}

fn browse_in(
    place: &mut Place,
    options: &SessionOptions,
    interrupt: &Interrupt,
    look: &mut dyn FnMut(&DeadTask<'_>) -> bool,
) -> Result<()> {
    let refresher = place.refresher(options, interrupt)?;
    let channels = Channels::open(&mut place.session, place.ready, WalkMode::Held)?;
    let looked = browse_on(&channels, refresher, place, interrupt, look);
    let closed = channels.close(&mut place.session, &place.dead.name);
    looked.and(closed).and(interrupt.result())
}

fn browse_on<'c>(
    channels: &'c Channels,
    mut refresher: Refresher<'c>,
    place: &mut Place,
    interrupt: &Interrupt,
    look: &mut dyn FnMut(&DeadTask<'_>) -> bool,
) -> Result<()> {
    let Place { session, dead, ready, .. } = place;
    let mut walk = Walk::new(channels, session, &dead.name, *ready, WalkMode::Held);
    let walked = walk.each(|event| {
        let mut looking = true;
        match event {
            Walked::Task(delivery) => {
                let properties = &delivery.properties;
                let (key, record) = (key_of(&delivery), record_of(properties));
                let task = DeadTask { key, properties, record, body: &delivery.body };
                looking = look(&task);
                refresher.consider(delivery);
            }
            Walked::Extra(delivery) => refresher.consider(delivery),
            Walked::Pause => refresher.refresh(),
        }
        Ok(looking && !interrupt.has_come()?)
    });
    refresher.close();
    walked
}

fn key_of(delivery: &Delivery<'_>) -> Key {
    let properties = &delivery.properties;
    Key::of(properties.id(), &record_of(properties), &delivery.body)
}

/// What is known of how the task ended. The broker's own word is the latest: what taskq copies comes without it.
fn record_of(properties: &Properties) -> Record {
    let record = properties.record();
    let Some(DeadLettering { reason, queue, at }) = properties.dead_lettering() else { return record };
    let from = queue.as_deref().unwrap_or("its queue");
    let exit = match reason.as_str() {
        "delivery_limit" => "the broker gave up on it: delivery limit".to_owned(),
        "expired" => format!("it expired in {from}"),
        "maxlen" => format!("dropped, {from} was full"),
        "rejected" => "a consumer rejected it".to_owned(),
        other => format!("moved by the broker: {other}"),
    };
    Record {
        exit: Some(exit),
        first_failed_at: record.first_failed_at.or(at),
        failed_at: at.or(record.failed_at),
        queue: queue.or(record.queue),
        ..record
    }
}

/// Sends the selected tasks to their queue again, as if they were new. Each is taken out only after the broker has
/// confirmed its copy: whatever dies meanwhile leaves a task twice, never not at all.
pub fn requeue(options: &SessionOptions, queue: &QueueSpec, selection: &Selection) -> Result<Requeued> {
    let names = match selection {
        Selection::All => None,
        Selection::Named(names) => Some(Search::new(names.iter().cloned())),
    };
    let Some(mut place) = Place::open(options, queue)? else {
        let unclear = names.map(Search::unclear).unwrap_or_default();
        return Ok(Requeued { unclear, ..Requeued::default() });
    };
    // Nothing would ever be taken out of a stream.
    kind_of(&mut place.session, &queue.name).map_err(Fault::into_error)?;
    let mut publisher = Publisher::open_verified(options, queue)?;
    if let Some(why) = why_not(&mut publisher) {
        return Err(Error::try_again(format!("{why}; 0 sent again, all are still in {}", place.dead.name)));
    }
    // Copies that are confirmed are there beside their originals until those are acknowledged.
    let interrupt = Interrupt::heard()?;
    let found = match names.map(|search| find(search, &mut place, options, &interrupt)).transpose() {
        Ok(found) => found,
        Err(error) => {
            publisher.cut();
            return Err(error.context(&format!("0 sent again, all are still in {}", place.dead.name)));
        }
    };
    let (meant, taken_for, unclear) = match found {
        None => (None, Vec::new(), Unclear::default()),
        Some(Found { meant, taken_for, unclear }) => (Some(meant), taken_for, unclear),
    };
    let mut requeued = Requeued { taken_for, unclear, ..Requeued::default() };
    if meant.as_ref().is_some_and(HashMap::is_empty) {
        publisher.close();
        place.session.close();
        return Ok(requeued);
    }
    let mode = match meant {
        None => WalkMode::Answered(WINDOW),
        // What is not wanted must not keep the broker from sending what is.
        Some(_) => WalkMode::Held,
    };
    let refresher = Refresher::new(options, &place.dead, &interrupt);
    let mover = Mover::new(publisher, &interrupt);
    let channels = Channels::open(&mut place.session, place.ready, mode)?;
    let (sent, outcome) =
        move_on(&channels, mover, refresher, &mut place, &interrupt, (queue, meant.as_ref(), mode));
    // The close is what makes sure that the last acknowledgements arrived.
    let closed = channels.close(&mut place.session, &place.dead.name);
    place.session.close();
    outcome.and(closed).and(interrupt.result()).map_err(|error| {
        error.context(&format!("{} sent again, the others are still in {}", sent.count, place.dead.name))
    })?;
    requeued.count = sent.count;
    // Somebody else has taken them meanwhile.
    let gone = meant.into_iter().flatten().filter(|(key, _)| !sent.keys.contains(key));
    requeued.unclear.missing.extend(gone.flat_map(|(_, names)| names));
    requeued.unclear.missing.sort();
    Ok(requeued)
}

/// Looks at all tasks for those that the names mean: whether a name is clear is known only when all were seen, and so many
/// bodies cannot be kept until then.
fn find(
    mut search: Search,
    place: &mut Place,
    options: &SessionOptions,
    interrupt: &Interrupt,
) -> Result<Found> {
    browse_in(place, options, interrupt, &mut |task| {
        search.meet(task.properties.id(), task.key);
        true
    })?;
    // Others may have died since; the ones that were looked at may take a moment to be counted again.
    let Count { ready, .. } =
        count_messages(&mut place.session, &place.dead.name).map_err(Fault::into_error)?;
    place.ready = place.ready.max(ready);
    Ok(search.found())
}

fn move_on<'c>(
    channels: &'c Channels,
    mut mover: Mover<'c>,
    mut refresher: Refresher<'c>,
    place: &mut Place,
    interrupt: &Interrupt,
    (queue, meant, mode): (&QueueSpec, Option<&HashMap<Key, Vec<String>>>, WalkMode),
) -> (Moved, Result<()>) {
    let Place { session, dead, ready, .. } = place;
    let mut wanted = VecDeque::new();
    let mut walk = Walk::new(channels, session, &dead.name, *ready, mode);
    let move_one = |mover: &mut Mover<'c>, task: Moving<'c>| {
        // As if new, but for what is missing of it.
        let dropped = task.original.properties.record().dropped;
        mover.replace(task, &queue.name, &Record { dropped, ..Record::default() })
    };
    let walked = walk.each(|event| {
        match event {
            Walked::Task(delivery) => match meant {
                None => move_one(&mut mover, delivery.into())?,
                Some(meant) => {
                    let key = key_of(&delivery);
                    if meant.contains_key(&key) {
                        wanted.push_back(Moving { key: Some(key), ..delivery.into() });
                    } else {
                        refresher.consider(delivery);
                    }
                }
            },
            Walked::Extra(delivery) => refresher.consider(delivery),
            Walked::Pause => {
                while let Some(task) = wanted.pop_front() {
                    move_one(&mut mover, task)?;
                }
                mover.finish()?;
                refresher.refresh();
            }
        }
        Ok(!interrupt.has_come()?)
    });
    let (done, left) = mover.close();
    for task in left.into_iter().chain(wanted) {
        refresher.consider(task);
    }
    refresher.close();
    (done, walked)
}

/// Deletes the oldest dead tasks, at most so many of them, one by one, and returns how many there were. Any that died
/// after `until` (unix time) stay: others may have taken some of those that were meant.
pub fn purge_oldest(options: &SessionOptions, queue: &QueueSpec, count: u32, until: u64) -> Result<u32> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(0) };
    let mut deleted = 0;
    while deleted < count {
        let part = (count - deleted).min(PURGED_AT_ONCE);
        let purged = purge_part(&mut place, options, part, until).map_err(|error| {
            error.context(&format!(
                "{deleted} deleted, perhaps some more; the others are still in {}",
                place.dead.name
            ))
        })?;
        deleted += purged;
        // Others have taken the rest, or what is left is younger.
        if purged < part {
            break;
        }
    }
    place.session.close();
    Ok(deleted)
}

/// Nothing is acknowledged before all have come: each answer would have the broker hand out one more.
fn purge_part(place: &mut Place, options: &SessionOptions, count: u32, until: u64) -> Result<u32> {
    let channels = Channels::open(&mut place.session, count, WalkMode::Held)?;
    let mut refresher = Refresher::new(options, &place.dead, &Interrupt::ignored());
    let mut walk = Walk::new(&channels, &mut place.session, &place.dead.name, count, WalkMode::Held);
    let mut taken = Vec::new();
    walk.each(|event| {
        match event {
            Walked::Task(mut delivery)
                if record_of(&delivery.properties).failed_at.is_none_or(|at| at <= until) =>
            {
                drop(delivery.take_body());
                taken.push(delivery);
            }
            Walked::Task(delivery) | Walked::Extra(delivery) => refresher.consider(delivery),
            Walked::Pause => {}
        }
        Ok(true)
    })?;
    refresher.close();
    let deleted = u32::try_from(taken.len()).unwrap_or(u32::MAX);
    ack_all(taken).map_err(Fault::into_error)?;
    channels.close(&mut place.session, &place.dead.name)?;
    Ok(deleted)
}

/// Deletes all dead tasks and returns how many.
pub fn purge_all(options: &SessionOptions, queue: &QueueSpec) -> Result<u32> {
    let Some(mut place) = Place::open(options, queue)? else { return Ok(0) };
    let count = purge(&mut place.session, &place.dead.name).map_err(Fault::into_error)?;
    place.session.close();
    Ok(count)
}

/// How many dead tasks there are.
pub fn count(options: &SessionOptions, queue: &QueueSpec) -> Result<u32> {
    let Some(place) = Place::open(options, queue)? else { return Ok(0) };
    place.session.close();
    Ok(place.ready)
}
