//! The tasks of a queue one after the other, however many there are.

use std::time::{Duration, Instant};

use crossbeam_channel::never;

use crate::broker::{
    Channel, ConsumeOptions, Consumer, Count, Deliveries, Delivery, Fault, Next, Session, count_messages,
    is_a_stream,
};
use crate::error::{Error, Result};

/// Tasks that one consumer brings where nearly all go back. What is to be done about some of them is done when it has
/// brought all, so that so many bodies may be in memory.
const ROOM: u32 = 1000;
/// A connection has some two thousand channels, and each consumer needs one: where there are more tasks than that brings,
/// each brings more.
const MOST_CHANNELS: u32 = 1000;
/// The broker sends what it has at once: when nothing comes for so long, it is asked.
const SILENCE: Duration = Duration::from_secs(3);

/// How long to wait for what a channel gives back to be in its queue again, and the pause between two looks: a quorum
/// queue takes a moment.
const BACK_WITHIN: Duration = Duration::from_secs(3);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What becomes of the tasks meanwhile.
#[derive(Clone, Copy)]
pub enum WalkMode {
    /// Nearly all go back in the end. One consumer gets only so many, and then it is the next one's turn.
    Held,
    /// Each is answered; so many may be unanswered at a time.
    Answered(u16),
}

impl WalkMode {
    /// How many tasks one consumer brings, of so many.
    fn room(self, count: u32) -> u32 {
        match self {
            Self::Held => ROOM.max(count.div_ceil(MOST_CHANNELS)).min(u32::from(u16::MAX)),
            Self::Answered(_) => u32::MAX,
        }
    }

    /// How many of these it may have unanswered. No more than are wanted: to be handed out counts.
    fn prefetch(self, wanted: u32) -> u16 {
        let most = match self {
            Self::Held => u16::MAX,
            Self::Answered(at_a_time) => at_a_time,
        };
        u16::try_from(wanted).map_or(most, |wanted| wanted.min(most))
    }
}

/// The channels of one walk, one for each consumer that it needs: a quorum queue puts back what one channel leaves behind
/// in its order, and what several consumers of one channel leave behind in any order.
pub struct Channels(Vec<Channel>);

impl Channels {
    pub fn open(session: &mut Session, count: u32, mode: WalkMode) -> Result<Self> {
        let needed = count.div_ceil(mode.room(count)).max(1);
        let opened: std::result::Result<_, _> = (0..needed).map(|_| session.open_channel()).collect();
        opened.map(Self).map_err(Fault::into_error)
    }

    /// Gives back to the queue what was not answered, the oldest first, and waits for each part to be there: what two
    /// channels give back at the same time would come in any order, and whoever looks next should find all of it. When it
    /// returns, the answers have arrived too.
    pub fn close(self, session: &mut Session, queue: &str) -> Result<()> {
        let mut back = BackInPlace::begin(session, queue);
        for channel in self.0 {
            let unanswered = channel.unanswered();
            if unanswered > 0 && session.keeps_order_of_nacks() {
                channel.give_all_back().map_err(Fault::into_error)?;
            }
            channel.close().map_err(Fault::into_error)?;
            back.wait_for(unanswered, session, queue);
        }
        Ok(())
    }

    pub fn first(&self) -> Result<&Channel> {
        self.0.first().ok_or_else(|| Error::internal("no channel was opened"))
    }
}

/// How many are ready again.
struct BackInPlace {
    ready: u32,
    /// Others have taken some, or the queue does not answer: nothing more is waited for.
    given_up: bool,
}

impl BackInPlace {
    fn begin(session: &mut Session, queue: &str) -> Self {
        let counted = count_messages(session, queue);
        Self { ready: counted.as_ref().map_or(0, |count| count.ready), given_up: counted.is_err() }
    }

    /// Waits until so many more are.
    fn wait_for(&mut self, more: u32, session: &mut Session, queue: &str) {
        self.ready += more;
        let deadline = Instant::now() + BACK_WITHIN;
        while more > 0 && !self.given_up {
            match count_messages(session, queue) {
                Ok(Count { ready, .. }) if ready >= self.ready => return,
                Ok(_) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN_AFTER),
                Ok(_) | Err(_) => self.given_up = true,
            }
        }
    }
}

/// What a walk meets.
pub enum Walked<'c> {
    /// The next task.
    Task(Delivery<'c>),
    /// One that was handed out and is not asked for.
    Extra(Delivery<'c>),
    /// The consumer is cancelled. Tasks can be answered now: before, each answer would have the broker hand out one more.
    Pause,
}

/// Where a queue says nothing of what is in it. A stream does so: it hands out what comes after, and counts neither such
/// consumers nor what has just come.
pub fn refuse_a_stream(session: &mut Session, queue: &str) -> Result<()> {
    match is_a_stream(session, queue) {
        Ok(true) => Err(Fault::a_stream(queue).into_error()),
        Ok(false) => Ok(()),
        Err(fault) => Err(fault.into_error()),
    }
}

/// A walk through the first tasks of a queue, oldest first.
pub struct Walk<'c, 'p> {
    channels: std::slice::Iter<'c, Channel>,
    /// To count on.
    session: &'p mut Session,
    queue: &'p str,
    mode: WalkMode,
    /// How many tasks a consumer brings.
    room: u32,
    /// Tasks still to come.
    left: u32,
}

impl<'c, 'p> Walk<'c, 'p> {
    /// Through `count` tasks of `queue`, on channels that were opened for as many.
    pub fn new(
        channels: &'c Channels,
        session: &'p mut Session,
        queue: &'p str,
        count: u32,
        mode: WalkMode,
    ) -> Self {
        let room = mode.room(count);
        Self { channels: channels.0.iter(), session, queue, mode, room, left: count }
    }

    /// Hands on one task after the other, until `take` returns false or an error, or others have taken the rest.
    ///
    /// # Errors
    /// Try again: there are more, and the broker does not hand them out. Or the broker's, or that of `take`.
    pub fn each(&mut self, mut take: impl FnMut(Walked<'c>) -> Result<bool>) -> Result<()> {
        let mut going_on = true;
        while going_on && self.left > 0 {
            let Some(channel) = self.channels.next() else { break };
            let room = self.room.min(self.left);
            let consumer =
                Consumer::start(channel, self.queue, ConsumeOptions::prefetching(self.mode.prefetch(room)))
                    .map_err(Fault::into_error)?;
            let walked = self.through(&consumer, room, &mut take);
            let cancelled = consumer.cancel().map_err(Fault::into_error);
            while let Some(delivery) = consumer.leftover() {
                take(Walked::Extra(delivery))?;
            }
            going_on = walked.and_then(|going_on| cancelled.map(|()| going_on))?;
            take(Walked::Pause)?;
        }
        Ok(())
    }

    /// Returns whether to go on with another consumer.
    fn through(
        &mut self,
        consumer: &Consumer<'c>,
        mut room: u32,
        take: &mut impl FnMut(Walked<'c>) -> Result<bool>,
    ) -> Result<bool> {
        let mut silences = 0;
        while room > 0 {
            match consumer.next(&never(), &never(), Some(Instant::now() + SILENCE)) {
                Next::Delivery(delivery) => {
                    silences = 0;
                    room -= 1;
                    self.left -= 1;
                    if !take(Walked::Task(delivery))? {
                        return Ok(false);
                    }
                }
                Next::Stopped | Next::Woken | Next::TimedOut => {
                    silences += 1;
                    if !self.has_more(silences)? {
                        // What was on its way has arrived when this returns.
                        consumer.cancel().map_err(Fault::into_error)?;
                        while let Some(delivery) = consumer.leftover() {
                            take(Walked::Task(delivery))?;
                        }
                        return Ok(false);
                    }
                }
                Next::Ended(fault) => return Err(fault.into_error()),
            }
        }
        Ok(true)
    }

    /// Nothing comes: either there is nothing more, or the broker has a reason of its own.
    fn has_more(&mut self, silences: u32) -> Result<bool> {
        let Count { ready, consumers } =
            count_messages(self.session, self.queue).map_err(Fault::into_error)?;
        // Where not even this consumer is counted, nobody answers for the queue.
        if ready == 0 && consumers > 0 {
            return Ok(false);
        }
        if silences < 2 {
            return Ok(true);
        }
        let what = if consumers == 0 {
            refuse_a_stream(self.session, self.queue)?;
            "nobody answers for it".to_owned()
        } else {
            format!("more tasks are ready there: {ready}")
        };
        Err(Error::try_again(format!("the broker does not hand out what is in {}; {what}", self.queue)))
    }
}
