//! The tasks of a queue one after the other, however many there are.

use std::time::{Duration, Instant};

use crossbeam_channel::never;

use crate::broker::{Channel, Consumer, Count, Delivery, Fault, Next, Session, count_messages};
use crate::error::{Error, Result};

/// The most unanswered tasks that AMQP lets a consumer have. A quorum queue takes "no limit" for 2,000.
const MOST: u16 = u16::MAX;
/// The broker sends what it has at once: when nothing comes for so long, it is asked.
const SILENCE: Duration = Duration::from_secs(3);

/// What becomes of the tasks meanwhile.
#[derive(Clone, Copy)]
pub(super) enum Manner {
    /// Nearly all go back in the end. One consumer gets only so many, and then it is the next one's turn.
    Held,
    /// Each is answered; so many may be unanswered at a time.
    Answered(u16),
}

impl Manner {
    /// No more than `left` tasks are wanted: each that is handed out counts.
    fn prefetch(self, left: u32) -> u16 {
        let most = match self {
            Self::Held => MOST,
            Self::Answered(at_a_time) => at_a_time,
        };
        u16::try_from(left).map_or(most, |left| left.min(most))
    }

    /// How many tasks one consumer brings.
    fn room(self) -> u32 {
        match self {
            Self::Held => u32::from(MOST),
            Self::Answered(_) => u32::MAX,
        }
    }
}

/// The channels of one walk, one for each consumer that it needs: a quorum queue takes back what a channel leaves behind
/// in its order, and what several consumers of one channel leave in any.
pub(super) struct Channels(Vec<Channel>);

impl Channels {
    pub(super) fn open(session: &mut Session, count: u32, manner: Manner) -> Result<Self> {
        let needed = count.div_ceil(manner.room()).max(1);
        let opened: std::result::Result<_, _> = (0..needed).map(|_| session.open_channel()).collect();
        opened.map(Self).map_err(Fault::into_error)
    }

    /// Gives back what was not answered, the oldest first. When it returns, the answers have arrived too.
    pub(super) fn close(self) -> Result<()> {
        self.0.into_iter().try_for_each(Channel::close).map_err(Fault::into_error)
    }
}

/// A walk through the first tasks of a queue, oldest first.
pub(super) struct Walk<'c, 'p> {
    channels: std::slice::Iter<'c, Channel>,
    /// To count on.
    session: &'p mut Session,
    queue: &'p str,
    manner: Manner,
    /// Tasks still to come.
    left: u32,
    /// None before the first step.
    window: Option<Window<'c>>,
}

impl<'c, 'p> Walk<'c, 'p> {
    /// Through `count` tasks of `queue`, on channels that were opened for as many.
    pub(super) fn new(
        channels: &'c Channels,
        session: &'p mut Session,
        queue: &'p str,
        count: u32,
        manner: Manner,
    ) -> Self {
        Self { channels: channels.0.iter(), session, queue, manner, left: count, window: None }
    }

    /// The next task; `None` after the last one, and when others have taken the rest.
    ///
    /// # Errors
    /// Try again: there are more, and the broker does not hand them out. Or the broker's.
    pub(super) fn next(&mut self) -> Result<Option<Delivery<'c>>> {
        let mut silences = 0;
        while self.left > 0 {
            let Some(window) = self.window.as_mut().filter(|window| !window.used_up) else {
                if !self.relieve()? {
                    break;
                }
                continue;
            };
            if let Some(delivery) = window.next().map_err(Fault::into_error)? {
                self.left -= 1;
                return Ok(Some(delivery));
            }
            if window.open {
                silences += 1;
                self.ask(silences)?;
            }
        }
        Ok(None)
    }

    /// The next channel's consumer takes over, where there is one.
    fn relieve(&mut self) -> Result<bool> {
        let Some(channel) = self.channels.next() else { return Ok(false) };
        let prefetch = self.manner.prefetch(self.left);
        let consumer = Consumer::start(channel, self.queue, prefetch, None).map_err(Fault::into_error)?;
        self.window = Some(Window { consumer, room: self.manner.room(), open: true, used_up: false });
        Ok(true)
    }

    /// Nothing comes: either there is nothing more, or the broker has a reason of its own.
    fn ask(&mut self, silences: u32) -> Result<()> {
        let Count { ready, consumers } =
            count_messages(self.session, self.queue).map_err(Fault::into_error)?;
        // Where not even this consumer is counted, nobody answers for the queue.
        if ready == 0 && consumers > 0 {
            return self.stop();
        }
        if silences < 2 {
            return Ok(());
        }
        let what = if consumers == 0 {
            "nobody answers for it".to_owned()
        } else {
            format!("more tasks are ready there: {ready}")
        };
        Err(Error::try_again(format!("the broker does not hand out what is in {}; {what}", self.queue)))
    }

    /// Takes nothing more. What came and is not answered stays with its channel.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.window.as_mut().map_or(Ok(()), Window::close).map_err(Fault::into_error)
    }
}

/// One consumer, and how much it may still bring.
struct Window<'c> {
    consumer: Consumer<'c>,
    room: u32,
    open: bool,
    /// It is closed, and what was on its way has been taken as well.
    used_up: bool,
}

impl<'c> Window<'c> {
    /// `None` when it is used up, and when nothing comes for a time.
    fn next(&mut self) -> std::result::Result<Option<Delivery<'c>>, Fault> {
        if self.room == 0 {
            self.close()?;
        }
        if !self.open {
            // Answers have made room for some more.
            let delivery = self.consumer.leftover();
            self.used_up = delivery.is_none();
            return Ok(delivery);
        }
        match self.consumer.next(&never(), &never(), Some(Instant::now() + SILENCE)) {
            Next::Delivery(delivery) => {
                self.room -= 1;
                Ok(Some(delivery))
            }
            Next::Stopped | Next::Woken | Next::TimedOut => Ok(None),
            Next::Ended(fault) => Err(fault),
        }
    }

    /// Nothing more is sent; what is on its way has arrived.
    fn close(&mut self) -> std::result::Result<(), Fault> {
        if std::mem::take(&mut self.open) { self.consumer.cancel() } else { Ok(()) }
    }
}
