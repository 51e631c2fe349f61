//! The tasks in `<queue>.dead`: looked at without taking them out, sent again without losing them, deleted.

use std::collections::{HashMap, HashSet};

use self::names::Found;
use crate::broker::{Count, Fault, FaultKind, QueueSpec, SessionOptions, ack_all, count_messages, purge};
use crate::browse::{Channels, Interrupt, Key, Opened, Place, QueuedTask, Walk, WalkMode, Walked, browse};
use crate::error::{Error, Exit, Result};

mod filter;
mod names;
mod rate;
mod requeue;

pub use filter::{ExitIs, Filter};
pub use names::{Candidate, Search, Unclear};
pub use rate::Rate;
pub use requeue::requeue;

/// Which dead tasks are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Those that these names mean, each of them one: see [`Search`].
    Named(HashSet<String>),
    /// Those that are there now, and not those that die while this runs.
    Matching {
        /// What they must be like.
        filter: Filter,
        /// The oldest ones, and no more than these.
        most: Option<u32>,
    },
}

/// Names that were given, and what became of them.
#[derive(Debug, Default)]
pub struct Names {
    /// Those that only begin an id or a key, and what they were taken for.
    pub taken_for: Vec<(String, Candidate)>,
    /// Those that mean no task, or no single one.
    pub unclear: Unclear,
}

/// A selection after all tasks were looked at for the names in it.
enum Chosen {
    Keys(HashMap<Key, Vec<String>>),
    Matching(Filter),
}

impl Chosen {
    fn includes(&self, task: &QueuedTask<'_>) -> bool {
        match self {
            Self::Keys(meant) => meant.contains_key(&task.key),
            Self::Matching(filter) => filter.matches(task),
        }
    }

    fn is_everything(&self) -> bool {
        matches!(self, Self::Matching(filter) if *filter == Filter::default())
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Keys(meant) if meant.is_empty())
    }
}

impl Selection {
    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self::Matching { filter: Filter::default(), most: None }
    }

    fn most(&self) -> u32 {
        match self {
            Self::Matching { most: Some(most), .. } => *most,
            Self::Matching { most: None, .. } | Self::Named(_) => u32::MAX,
        }
    }

    /// What becomes of the names where there are no tasks.
    fn of_none(&self) -> Names {
        match self {
            Self::Named(names) => {
                Names { unclear: Search::new(names.iter().cloned()).unclear(), ..Names::default() }
            }
            Self::Matching { .. } => Names::default(),
        }
    }

    /// Looks at all tasks for those that names mean: whether a name is clear is known only when all were seen, and so many
    /// bodies cannot be kept until then.
    fn resolve(
        &self,
        place: &mut Place,
        options: &SessionOptions,
        interrupt: &Interrupt,
    ) -> Result<(Chosen, Names)> {
        let names = match self {
            Self::Matching { filter, .. } => return Ok((Chosen::Matching(filter.clone()), Names::default())),
            Self::Named(names) => names,
        };
        let mut search = Search::new(names.iter().cloned());
        browse(place, options, u32::MAX, interrupt, &mut |task, _| {
            search.meet(task.properties.id(), task.key);
            Ok(true)
        })?;
        // Others may have died since; the ones that were looked at may take a moment to be counted again.
        let Count { ready, .. } =
            count_messages(&mut place.session, &place.queue.name).map_err(Fault::into_error)?;
        place.ready = place.ready.max(ready);
        let Found { meant, taken_for, unclear } = search.found();
        Ok((Chosen::Keys(meant), Names { taken_for, unclear }))
    }
}

/// `None` where no task ever died.
fn open(options: &SessionOptions, queue: &QueueSpec) -> Result<Option<Place>> {
    let mut session = match Place::open(options, &queue.dead())? {
        Opened::There(place) => return Ok(Some(place)),
        Opened::Missing(session) => session,
    };
    // Where there is no queue of tasks either, its name is wrong.
    match count_messages(&mut session, &queue.name) {
        Err(fault) if fault.kind == FaultKind::NotFound => Err(Error::configuration(format!(
            "there is no queue {}, and none for its dead tasks; is the name right (--queue, TASKQ_QUEUE)?",
            queue.name
        ))),
        // It is there, or nobody tells.
        _ => Ok(None),
    }
}

/// Looks at one dead task; `None`: at one that is not meant. False: at no more.
pub type LookAtDead<'l> = dyn FnMut(Option<&QueuedTask<'_>>, &Interrupt) -> Result<bool> + 'l;

/// Shows the selected dead tasks to `look`, oldest first, until it returns false. They stay where they are.
pub fn list(
    options: &SessionOptions,
    queue: &QueueSpec,
    selection: &Selection,
    look: &mut LookAtDead<'_>,
) -> Result<Names> {
    let Some(mut place) = open(options, queue)? else { return Ok(selection.of_none()) };
    let interrupt = place.interrupt()?;
    let (chosen, names) = selection.resolve(&mut place, options, &interrupt)?;
    let mut left = selection.most();
    // Without a filter no more are taken than are shown.
    let at_most = if chosen.is_everything() { left } else { u32::MAX };
    if left > 0 && !chosen.is_nothing() {
        browse(&mut place, options, at_most, &interrupt, &mut |task, interrupt| {
            let meant = chosen.includes(task);
            left -= u32::from(meant);
            Ok(look(meant.then_some(task), interrupt)? && left > 0)
        })?;
    }
    place.session.close();
    Ok(names)
}

/// How many of the selected ones there are.
pub fn count(options: &SessionOptions, queue: &QueueSpec, selection: &Selection) -> Result<(u32, Names)> {
    if *selection == Selection::all() {
        let Some(place) = open(options, queue)? else { return Ok((0, Names::default())) };
        place.session.close();
        return Ok((place.ready, Names::default()));
    }
    let mut count = 0;
    let names = list(options, queue, selection, &mut |task, _| {
        count += u32::from(task.is_some());
        Ok(true)
    })?;
    Ok((count, names))
}

/// Deletes the selected tasks, the oldest first and at most so many, and returns how many there were. Any that died after
/// `until` (unix time) stay: others may have taken some of those that were meant.
///
/// # Errors
/// As [`list`]; the text says how many were deleted. A signal: what was not deleted by then stays.
pub fn purge_some(
    options: &SessionOptions,
    queue: &QueueSpec,
    selection: &Selection,
    most: u32,
    until: u64,
) -> Result<(u32, Names)> {
    let Some(mut place) = open(options, queue)? else { return Ok((0, selection.of_none())) };
    let interrupt = Interrupt::heard()?;
    let (chosen, names) = selection.resolve(&mut place, options, &interrupt)?;
    let most = most.min(selection.most());
    // No more are handed out than are meant.
    let count = if chosen.is_everything() { most.min(place.ready) } else { place.ready };
    let wanted =
        |task: &QueuedTask<'_>| task.record.failed_at.is_none_or(|at| at <= until) && chosen.includes(task);
    let (deleted, outcome) = if chosen.is_nothing() {
        (0, Ok(()))
    } else {
        purge_from(&mut place, options, &interrupt, (count, most), &wanted)
    };
    place.session.close();
    outcome.and(interrupt.result()).map_err(|error| {
        let perhaps = if matches!(error.exit, Exit::Signal(_)) { "" } else { ", perhaps some more" };
        error.context(&format!("{deleted} deleted{perhaps}; the others are still in {}", queue.dead().name))
    })?;
    Ok((deleted, names))
}

fn purge_from(
    place: &mut Place,
    options: &SessionOptions,
    interrupt: &Interrupt,
    (count, most): (u32, u32),
    wanted: &dyn Fn(&QueuedTask<'_>) -> bool,
) -> (u32, Result<()>) {
    let mut deleted = 0;
    let mut purge = || {
        let mut refresher = place.refresher(options, interrupt)?;
        let channels = Channels::open(&mut place.session, count, WalkMode::Held)?;
        let Place { session, queue, .. } = &mut *place;
        let mut walk = Walk::new(&channels, session, &queue.name, count, WalkMode::Held);
        let mut taken = Vec::new();
        let walked = walk.each(|event| {
            let held = u32::try_from(taken.len()).unwrap_or(u32::MAX);
            match event {
                Walked::Task(mut delivery)
                    if deleted + held < most && wanted(&QueuedTask::of(&delivery, &queue.role)) =>
                {
                    drop(delivery.take_body());
                    taken.push(delivery);
                }
                Walked::Task(delivery) | Walked::Extra(delivery) => refresher.consider(delivery),
                // Not earlier: each answer would have the broker hand out one more.
                Walked::Pause => {
                    ack_all(std::mem::take(&mut taken)).map_err(Fault::into_error)?;
                    deleted += held;
                    refresher.refresh();
                }
            }
            Ok(deleted + u32::try_from(taken.len()).unwrap_or(u32::MAX) < most && !interrupt.has_come()?)
        });
        let replaced = refresher.close();
        let closed = channels.close(session, &queue.name);
        walked.and(replaced).and(closed)
    };
    let outcome = purge();
    (deleted, outcome)
}

/// Deletes all dead tasks and returns how many.
pub fn purge_all(options: &SessionOptions, queue: &QueueSpec) -> Result<u32> {
    let Some(mut place) = open(options, queue)? else { return Ok(0) };
    let count = purge(&mut place.session, &place.queue.name).map_err(Fault::into_error)?;
    place.session.close();
    Ok(count)
}
