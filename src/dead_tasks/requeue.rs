//! Sends dead tasks again, all at once or so many a second.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::rate::Pace;
use super::{Chosen, Names, Rate, Selection, open};
use crate::backoff::{Backoff, Reminder};
use crate::broker::{Delivery, Fault, QueueSpec, Record, SessionOptions, ack_all, kind_of};
use crate::browse::{
    Channels, Interrupt, Key, Moved, Mover, Moving, Place, QueuedTask, Refresher, WINDOW, Walk, WalkMode,
    Walked, open_publisher,
};
use crate::calendar::unix_time;
use crate::error::{Error, Exit, Result};
use crate::events::Event;
use crate::report::tell;

/// With a rate: the pauses between attempts to go on after the connection was lost.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// With a rate: for how long nothing may be sent although something is due, before the command gives up.
const PATIENCE: Duration = Duration::from_mins(10);
/// How much longer than two heartbeats a broker may take to notice a lost connection and to give back what it held.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);
/// The usual one.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The pause between two looks meanwhile.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// What is confirmed is taken out before a pause of this length, so that it is not held for no reason.
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// What [`requeue`] did.
#[derive(Debug, Default)]
pub struct Requeued {
    /// Tasks that were sent again.
    pub count: u32,
    /// Of a [`Selection::Named`]. Nothing was sent for names that are not clear.
    pub names: Names,
}

/// Sends the selected tasks to their queue again, as if they were new. Each is taken out only after the broker has
/// confirmed its copy: whatever dies meanwhile leaves a task twice, never not at all. With a rate it goes on when the
/// connection is lost. `progress` is told how many are sent so far, and how many there are at most.
///
/// # Errors
/// The text says how many were sent. A signal: the others stay.
pub fn requeue(
    options: &SessionOptions,
    queue: &QueueSpec,
    selection: &Selection,
    rate: Option<Rate>,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<Requeued> {
    let Some(mut place) = open(options, queue)? else {
        return Ok(Requeued { names: selection.of_none(), ..Requeued::default() });
    };
    // Nothing would ever be taken out of a stream.
    kind_of(&mut place.session, &queue.name).map_err(Fault::into_error)?;
    let nothing_yet = format!("0 sent again, all are still in {}", place.queue.name);
    if let Selection::Named(_) = selection {
        // Nothing is looked at in vain.
        open_publisher::<()>(options, queue).map_err(|error| error.context(&nothing_yet))?.close();
    }
    // Copies that are confirmed are there beside their originals until those are acknowledged.
    let interrupt = Interrupt::heard()?;
    let (chosen, mut names) =
        selection.resolve(&mut place, options, &interrupt).map_err(|error| error.context(&nothing_yet))?;
    if chosen.is_nothing() {
        place.session.close();
        return Ok(Requeued { names, ..Requeued::default() });
    }
    let mut requeue = Requeue {
        options,
        queue,
        left: selection.most().min(place.ready),
        chosen,
        rate,
        pace: rate.map(|rate| Pace::new(rate, Instant::now())),
        begun_at: unix_time(),
        interrupt,
        has_begun: false,
        done: Moved::default(),
        in_doubt: HashSet::new(),
        progress,
    };
    let outcome = requeue.all(place);
    let Requeue { done, chosen, interrupt, .. } = requeue;
    outcome.and(interrupt.result()).map_err(|error| {
        error.context(&format!("{} sent again, the others are still in {}", done.count, queue.dead().name))
    })?;
    if let Chosen::Keys(meant) = chosen {
        // Somebody else has taken them meanwhile.
        let gone = meant.into_iter().filter(|(key, _)| !done.keys.contains(key));
        names.unclear.missing.extend(gone.flat_map(|(_, names)| names));
        names.unclear.missing.sort();
    }
    Ok(Requeued { count: done.count, names })
}

struct Requeue<'r> {
    options: &'r SessionOptions,
    queue: &'r QueueSpec,
    chosen: Chosen,
    /// How many may still be sent.
    left: u32,
    rate: Option<Rate>,
    pace: Option<Pace>,
    /// With a rate: tasks that died after this (unix time) stay, though they were sent again by this very command.
    begun_at: u64,
    interrupt: Interrupt,
    /// The broker has taken copies: what it refuses later may pass.
    has_begun: bool,
    done: Moved,
    /// Tasks with an id whose copies are confirmed, and of which it is not known whether they were taken out: the
    /// connection was lost. They are when they come again.
    in_doubt: HashSet<Key>,
    progress: &'r mut dyn FnMut(u32, u32),
}

impl Requeue<'_> {
    /// In one part, or with a rate in several.
    fn all(&mut self, place: Place) -> Result<()> {
        let (mut place, mut trouble) = (Some(place), Trouble::default());
        while self.left > 0 && !self.is_interrupted_before_the_next()? {
            let part = self.rate.map_or(self.left, Rate::at_a_time).min(self.left);
            let done = self.done.count;
            let outcome = self.part(place.take(), part);
            if self.done.count > done {
                trouble.is_over();
            }
            let pause = match outcome {
                Ok(_) if self.rate.is_none() => break,
                Ok(taken) if taken < part => {
                    match trouble.may_have_left_some(self.options.heartbeat.unwrap_or(HEARTBEAT)) {
                        Some(pause) => pause,
                        // All were looked at.
                        None => break,
                    }
                }
                Ok(_) => continue,
                Err(error) if self.rate.is_none() || !self.has_begun => return Err(error),
                Err(error) => trouble.may_pass(error)?,
            };
            self.is_interrupted_within(pause)?;
        }
        Ok(())
    }

    /// Sends at most so many, and returns how many were taken for that.
    fn part(&mut self, place: Option<Place>, most: u32) -> Result<u32> {
        let mut place = match place {
            Some(place) => place,
            None => match open(self.options, self.queue)? {
                Some(place) => place,
                None => return Ok(0),
            },
        };
        let publisher = open_publisher(self.options, self.queue)?;
        self.has_begun = true;
        let answers_each = self.rate.is_none() && self.chosen.is_everything() && most >= place.ready;
        let mode = if answers_each {
            WalkMode::Answered(WINDOW)
        } else {
            // What is not wanted must not keep the broker from sending what is.
            WalkMode::Held
        };
        let count = if self.chosen.is_everything() { place.ready.min(most) } else { place.ready };
        let channels = Channels::open(&mut place.session, count, mode)?;
        let mut part = Part {
            mover: Mover::new(publisher, &self.interrupt),
            refresher: Refresher::new(self.options, &place.queue, &self.interrupt),
            wanted: VecDeque::new(),
            already_sent: Vec::new(),
            taken: 0,
        };
        let walked = self.walk(&channels, &mut place, (count, mode, most), &mut part);
        let Part { mover, mut refresher, wanted, taken, .. } = part;
        let (moved, left) = mover.close();
        for task in left.into_iter().chain(wanted) {
            refresher.consider(task);
        }
        let refreshed = refresher.close();
        // The close is what makes sure that the last acknowledgements arrived.
        let closed = channels.close(&mut place.session, &place.queue.name);
        place.session.close();
        let outcome = walked.and(refreshed).and(closed);
        self.left = self.left.saturating_sub(moved.count);
        self.done.count += moved.count;
        if outcome.is_err() {
            self.in_doubt.extend(&moved.keys);
        }
        if let Chosen::Keys(_) = self.chosen {
            self.done.keys.extend(moved.keys);
        }
        outcome.map(|()| taken)
    }

    fn walk<'c>(
        &mut self,
        channels: &'c Channels,
        place: &mut Place,
        (count, mode, most): (u32, WalkMode, u32),
        part: &mut Part<'c>,
    ) -> Result<()> {
        let Place { session, queue, .. } = place;
        let mut walk = Walk::new(channels, session, &queue.name, count, mode);
        walk.each(|event| {
            match event {
                Walked::Task(delivery) => {
                    let task = QueuedTask::of(&delivery, &queue.role);
                    let key = task.key;
                    let has_id = !task.properties.id().is_empty();
                    if has_id && task.redelivered && self.in_doubt.remove(&key) {
                        part.already_sent.push(delivery);
                    } else if part.taken < most && self.includes(&task) {
                        part.taken += 1;
                        let told = matches!(self.chosen, Chosen::Keys(_)) || self.rate.is_some() && has_id;
                        part.wanted.push_back(Moving { key: told.then_some(key), ..delivery.into() });
                        if let WalkMode::Answered(_) = mode {
                            self.send_wanted(part)?;
                        }
                    } else {
                        part.refresher.consider(delivery);
                    }
                }
                Walked::Extra(delivery) => part.refresher.consider(delivery),
                Walked::Pause => {
                    ack_all(std::mem::take(&mut part.already_sent)).map_err(Fault::into_error)?;
                    self.send_wanted(part)?;
                    part.mover.finish()?;
                    self.tell_progress(part);
                    part.refresher.refresh();
                }
            }
            Ok(part.taken < most && !self.interrupt.has_come()?)
        })
    }

    fn includes(&self, task: &QueuedTask<'_>) -> bool {
        let was_there = self.rate.is_none() || task.record.failed_at.is_none_or(|at| at <= self.begun_at);
        was_there && self.chosen.includes(task)
    }

    fn send_wanted(&mut self, part: &mut Part<'_>) -> Result<()> {
        while let Some(task) = part.wanted.pop_front() {
            if self.pause_is_long() {
                part.mover.finish()?;
                self.tell_progress(part);
            }
            if self.is_interrupted_before_the_next()? {
                part.wanted.push_front(task);
                return Ok(());
            }
            // As if new, but for what is missing of it.
            let dropped = task.original.properties.record().dropped;
            part.mover.replace(task, &self.queue.name, &Record { dropped, ..Record::default() })?;
            if let Some(pace) = &mut self.pace {
                pace.sent(Instant::now());
            }
            self.tell_progress(part);
        }
        Ok(())
    }

    fn tell_progress(&mut self, part: &Part<'_>) {
        let sent = part.mover.count();
        (self.progress)(self.done.count + sent, self.done.count + self.left);
    }

    fn pause_is_long(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.due() > Instant::now() + LONG_PAUSE)
    }

    /// Waits until the next one is due.
    fn is_interrupted_before_the_next(&self) -> Result<bool> {
        let pause = self.pace.as_ref().map(|pace| pace.due().saturating_duration_since(Instant::now()));
        self.is_interrupted_within(pause.unwrap_or_default())
    }

    fn is_interrupted_within(&self, pause: Duration) -> Result<bool> {
        if !pause.is_zero()
            && !self.interrupt.has_come()?
            && let Ok(signal) = self.interrupt.signals().recv_timeout(pause)
        {
            self.interrupt.note(signal)?;
        }
        self.interrupt.has_come()
    }
}

/// What is under way in one part.
struct Part<'c> {
    mover: Mover<'c>,
    refresher: Refresher<'c>,
    wanted: VecDeque<Moving<'c>>,
    /// Their copies were confirmed before, on a connection that was lost.
    already_sent: Vec<Delivery<'c>>,
    /// How many were wanted so far.
    taken: u32,
}

/// The broker is away, or takes nothing.
struct Trouble {
    since: Option<Instant>,
    /// When a part last ended so.
    last: Option<Instant>,
    backoff: Backoff,
    reminder: Reminder,
}

impl Default for Trouble {
    fn default() -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { since: None, last: None, backoff, reminder: Reminder::default() }
    }
}

impl Trouble {
    /// Something was sent.
    fn is_over(&mut self) {
        self.since = None;
        self.backoff.reset();
    }

    /// What a lost connection held is back in the queue when the broker has noticed the loss, after two heartbeats at the
    /// latest. How long to wait until another look, if that may still come.
    fn may_have_left_some(&self, heartbeat: Duration) -> Option<Duration> {
        self.last.filter(|last| last.elapsed() < 2 * heartbeat + NOTICED_WITHIN).map(|_| LOOK_AGAIN_AFTER)
    }

    /// How long to wait before another attempt.
    ///
    /// # Errors
    /// It does not pass by itself, or has lasted too long.
    fn may_pass(&mut self, error: Error) -> Result<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.last = Some(Instant::now());
        // A broker that starts refuses logins until its users are loaded.
        let passes = matches!(error.exit, Exit::Unavailable | Exit::TryAgain | Exit::Refused);
        if !passes || since.elapsed() >= PATIENCE {
            return Err(error);
        }
        let why = error.to_string();
        if self.reminder.is_due(&why) {
            tell(&Event::CannotConnect { why: &why });
        }
        Ok(self.backoff.pause())
    }
}
