//! The tasks of a queue, looked at without taking them out: those of `<queue>.dead`, or those that wait for a worker.

mod counted;
mod interrupt;
mod key;
mod mover;
mod place;
mod refresher;
mod task;
mod walk;

pub use counted::{Counted, count_surely, count_unsurely};
pub use interrupt::Interrupt;
pub use key::Key;
pub use mover::{Moved, Mover, Moving, WINDOW};
pub use place::{Opened, Place, open_publisher};
pub use refresher::Refresher;
pub use task::QueuedTask;
pub use walk::{Channels, Walk, WalkMode, Walked};

use crate::broker::SessionOptions;
use crate::error::Result;

/// Looks at one task; false: at no more. Whoever waits in it has to hear signals.
pub type Look<'l> = dyn FnMut(&QueuedTask<'_>, &Interrupt) -> Result<bool> + 'l;

/// Shows the first `most` tasks to `look`, oldest first, until it returns false. They stay where they are.
///
/// # Errors
/// Try again: the broker does not hand them out, or takes no copies and they would wear out without. The broker's, and
/// those of `look`. A signal, where tasks wear out.
pub fn browse(
    place: &mut Place,
    options: &SessionOptions,
    most: u32,
    interrupt: &Interrupt,
    look: &mut Look<'_>,
) -> Result<()> {
    let refresher = place.refresher(options, interrupt)?;
    let count = most.min(place.ready);
    let channels = Channels::open(&mut place.session, count, WalkMode::Held)?;
    let looked = browse_on(&channels, refresher, place, count, interrupt, look);
    let closed = channels.close(&mut place.session, &place.queue.name);
    looked.and(closed).and(interrupt.result())
}

fn browse_on<'c>(
    channels: &'c Channels,
    mut refresher: Refresher<'c>,
    place: &mut Place,
    count: u32,
    interrupt: &Interrupt,
    look: &mut Look<'_>,
) -> Result<()> {
    let Place { session, queue, .. } = place;
    let mut walk = Walk::new(channels, session, &queue.name, count, WalkMode::Held);
    let walked = walk.each(|event| {
        let mut looking = true;
        match event {
            Walked::Task(delivery) => {
                let looked = look(&QueuedTask::of(&delivery, &queue.role), interrupt);
                refresher.consider(delivery);
                looking = looked?;
            }
            Walked::Extra(delivery) => refresher.consider(delivery),
            Walked::Pause => refresher.refresh(),
        }
        Ok(looking && !interrupt.has_come()?)
    });
    let replaced = refresher.close();
    walked.and(replaced)
}
