//! Whether a bounded run has nothing left to do (`--until-empty`, `--until-done`): counts what waits, and what of that may
//! be believed.
//!
//! A task leaves a delay queue for the queue without being counted in either for a moment, and one that was handed on and
//! not confirmed is counted nowhere. So everything has to be seen empty twice, with some time in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::{Options, Until};
use crate::broker::{Count, Fault, FaultKind, Scope, Session, count_answered, count_messages, is_a_stream};
use crate::error::Error;
use crate::events::Event;
use crate::report::tell;

/// How often an idle pool asks whether the queue is empty.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The same where tasks wait for a retry: pauses grow to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long nothing is seen anywhere before it is believed: far more than a task takes from one queue to the other.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// How many times in a row a queue is not counted before that is told.
const UNCOUNTED_TOLD: u32 = 10;

/// See the module.
pub(super) struct Probe {
    shared: Arc<Shared>,
    /// The delay queues of this worker. The one that had a task in it the last time is the first to be asked.
    ladder: Vec<String>,
    pause: Duration,
    quiet: Quiet,
    /// How many times in a row nobody has answered for the queue, or one of the ladder's.
    uncounted: u32,
}

/// What there is to do for the supervisor.
#[derive(Debug)]
pub(super) enum Finding {
    /// There may be something left to do.
    NotYet,
    /// There is nothing: neither here nor at the broker.
    Empty,
    /// The worker cannot go on.
    Fatal(Error),
    /// The connection is gone.
    Lost(Fault),
}

/// Since when nothing was seen, neither in the ladder nor in the queue, and how much was settled here until then.
#[derive(Debug, Default)]
struct Quiet {
    since: Option<(Instant, u64)>,
}

impl Quiet {
    /// One more look, at `now`, after so much was `settled`: whether there was nothing for long enough.
    fn lasts(&mut self, is_empty: bool, settled: u64, now: Instant) -> bool {
        self.since = match self.since {
            _ if !is_empty => None,
            Some((since, before)) if before == settled => Some((since, before)),
            _ => Some((now, settled)),
        };
        self.since.is_some_and(|(since, _)| now.duration_since(since) >= SETTLED_AFTER)
    }

    /// Whether that is so, and nothing was settled since.
    fn holds(&self, settled: u64) -> bool {
        self.since.is_some_and(|(_, before)| before == settled)
    }
}

/// What a count of the queue that is worked on says.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Tasks,
    Nothing,
    /// Not even this worker's own consumers are counted: nobody answers for the queue. Or it is a stream, which counts no
    /// such consumers: where its kind is known it is none.
    Nobody,
}

impl Seen {
    fn of(count: Count, kind_is_known: bool) -> Self {
        match count {
            Count { ready, consumers: 0 } if ready == 0 || !kind_is_known => Self::Nobody,
            Count { ready: 0, .. } => Self::Nothing,
            _ => Self::Tasks,
        }
    }
}

impl Probe {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let ladder = ladder(&shared.options);
        let (shared, quiet) = (Arc::clone(shared), Quiet::default());
        Self { shared, ladder, pause: FIRST_PAUSE, quiet, uncounted: 0 }
    }

    /// How long to wait before the next look; `None` where nobody wants to know.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.shared.options.until.map(|_| self.pause)
    }

    /// Looks whether nothing runs here and nothing waits. What is on its way to a consumer at this moment is still run,
    /// since finishing looks at what arrived before its consumers were cancelled.
    pub(super) fn look(&mut self, session: &mut Session) -> Finding {
        let finding = self.count_all(session);
        finding.unwrap_or_else(|(queue, fault)| self.cannot_count(&queue, fault))
    }

    fn count_all(&mut self, session: &mut Session) -> Result<Finding, (String, Fault)> {
        if self.shared.busy() > 0 {
            return Ok(self.not_empty(FIRST_PAUSE));
        }
        let waits_for_retries = self.shared.options.until == Some(Until::Done);
        // First the ladder: what leaves it goes to the queue.
        if waits_for_retries && self.delayed(session)? > 0 {
            return Ok(self.not_empty(LONGEST_PAUSE.min(self.pause * 2)));
        }
        let queue = &self.shared.options.queue.name;
        let count = count_messages(session, queue).map_err(|fault| (queue.clone(), fault))?;
        match Seen::of(count, self.shared.queue_kind().is_some()) {
            Seen::Nobody => return Ok(self.note_silent(session, count.ready)),
            Seen::Nothing if self.shared.busy() == 0 => {}
            Seen::Nothing | Seen::Tasks => {
                self.uncounted = 0;
                return Ok(self.not_empty(FIRST_PAUSE));
            }
        }
        if !waits_for_retries {
            return Ok(Finding::Empty);
        }
        self.pause = FIRST_PAUSE;
        if !self.quiet.lasts(true, self.shared.settled(), Instant::now()) {
            return Ok(Finding::NotYet);
        }
        self.confirm_ladder(session)
    }

    fn not_empty(&mut self, pause: Duration) -> Finding {
        self.pause = pause;
        self.quiet.lasts(false, 0, Instant::now());
        Finding::NotYet
    }

    /// How many tasks wait in the first delay queue that has some.
    fn delayed(&mut self, session: &mut Session) -> Result<u32, (String, Fault)> {
        for nth in 0..self.ladder.len() {
            let queue = &self.ladder[nth];
            let count = if_there(count_messages(session, queue).map(|count| count.ready), 0);
            match count.map_err(|fault| (queue.clone(), fault))? {
                0 => {}
                some => {
                    self.ladder.swap(0, nth);
                    return Ok(some);
                }
            }
        }
        Ok(0)
    }

    /// The delay queues count nothing. They have no consumers by which to tell whether somebody answers for them, so each
    /// gets one for a moment.
    fn confirm_ladder(&mut self, session: &mut Session) -> Result<Finding, (String, Fault)> {
        for nth in 0..self.ladder.len() {
            let queue = self.ladder[nth].clone();
            let count = if_there(count_answered(session, &queue), Some(0));
            match count.map_err(|fault| (queue.clone(), fault))? {
                Some(0) => {}
                Some(_) => return Ok(self.not_empty(FIRST_PAUSE)),
                None => {
                    self.uncounted += 1;
                    if self.uncounted == UNCOUNTED_TOLD {
                        tell(&Event::QueueSilent { queue: &queue });
                    }
                    self.pause = LONGEST_PAUSE;
                    return Ok(Finding::NotYet);
                }
            }
        }
        self.uncounted = 0;
        let nothing_came = self.shared.busy() == 0 && self.quiet.holds(self.shared.settled());
        Ok(if nothing_came { Finding::Empty } else { self.not_empty(FIRST_PAUSE) })
    }

    /// It is told when it goes on: a consumer that has only just begun may not be counted yet.
    fn note_silent(&mut self, session: &mut Session, ready: u32) -> Finding {
        self.uncounted += 1;
        if self.uncounted == UNCOUNTED_TOLD {
            let queue = &self.shared.options.queue.name;
            if self.shared.queue_kind().is_none()
                && let Ok(true) = is_a_stream(session, queue)
            {
                return Finding::Fatal(Fault::a_stream(queue).into_error());
            }
            if ready == 0 {
                tell(&Event::QueueSilent { queue });
            }
        }
        self.not_empty(FIRST_PAUSE)
    }

    fn cannot_count(&mut self, queue: &str, fault: Fault) -> Finding {
        if fault.scope == Scope::Connection {
            return Finding::Lost(fault);
        }
        if fault.kind == FaultKind::Refused {
            let flag = self.shared.options.until.map_or("", Until::flag);
            let what = if *queue == *self.shared.options.queue.name {
                format!("{flag} has to count what is in the queue")
            } else {
                format!("{flag} has to look into {queue}, where tasks wait for their retry")
            };
            return Finding::Fatal(fault.into_error().context(&what));
        }
        // The consumers are told of it as well, or the copies are.
        log::debug!("cannot count what is in {queue}: {fault}");
        self.not_empty(LONGEST_PAUSE.min(self.pause * 2))
    }

    /// Now that nobody consumes: how much is left in the queue, and in the ladder where that counts. `None` if that is
    /// unknown, or may have changed since it was seen to be empty.
    pub(super) fn left(&mut self, session: &mut Session) -> Left {
        let waits_for_retries = self.shared.options.until == Some(Until::Done);
        let delayed = match waits_for_retries {
            false => Some(0),
            // What ran meanwhile may be on its way.
            true if !self.quiet.holds(self.shared.settled()) => None,
            true => self.delayed(session).ok(),
        };
        let ready = count_messages(session, &self.shared.options.queue.name).ok().map(|count| count.ready);
        Left { ready, delayed }
    }
}

/// What is left to do at the end of a round; `None` where that is unknown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Left {
    ready: Option<u32>,
    delayed: Option<u32>,
}

impl Left {
    /// Whether there is nothing, beside so many tasks that went back because there can be no copy of them.
    pub(super) fn is_nothing_beside(self, held_back: u32) -> bool {
        self.ready.is_some_and(|ready| ready <= held_back) && self.delayed == Some(0)
    }
}

/// The delay queues into which this worker puts tasks.
fn ladder(options: &Options) -> Vec<String> {
    let mut ladder: Vec<_> =
        options.policy.pauses().iter().map(|pause| options.queue.delay(*pause).name).collect();
    ladder.sort_unstable();
    ladder.dedup();
    ladder
}

/// Nothing waits in a queue that does not exist.
fn if_there<T>(counted: Result<T, Fault>, nothing: T) -> Result<T, Fault> {
    match counted {
        Err(fault) if fault.scope == Scope::Channel && fault.kind == FaultKind::NotFound => Ok(nothing),
        counted => counted,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::options;
    use super::*;
    use crate::broker::testing::fault;

    const MOMENT: Duration = Duration::from_millis(10);
    const ALMOST: Duration = Duration::from_millis(990);

    #[test]
    fn a_count_without_consumers_says_nothing() {
        for (ready, consumers, kind_is_known, seen) in [
            (0, 1, true, Seen::Nothing),
            (0, 1, false, Seen::Nothing),
            (3, 1, false, Seen::Tasks),
            (3, 0, true, Seen::Tasks),
            (3, 0, false, Seen::Nobody),
            (0, 0, true, Seen::Nobody),
            (0, 0, false, Seen::Nobody),
        ] {
            let what = format!("{ready} ready, {consumers} consumers, known: {kind_is_known}");
            assert_eq!(Seen::of(Count { ready, consumers }, kind_is_known), seen, "{what}");
        }
    }

    #[test]
    fn all_has_to_be_empty_twice_with_nothing_settled_in_between() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        assert!(!quiet.lasts(true, 7, start) && !quiet.lasts(true, 7, start + ALMOST));
        assert!(quiet.lasts(true, 7, start + SETTLED_AFTER));
        assert!(quiet.holds(7) && !quiet.holds(8), "something was settled after the last look");
        // It was seen in the queue, or in the ladder.
        let later = start + 2 * SETTLED_AFTER;
        assert!(!quiet.lasts(false, 7, later) && !quiet.holds(7));
        assert!(!quiet.lasts(true, 7, later + MOMENT));
        // Or it came here between two looks, and is on its way to the ladder or through it.
        assert!(!quiet.lasts(true, 8, later + MOMENT + SETTLED_AFTER));
        assert!(quiet.lasts(true, 8, later + MOMENT + 2 * SETTLED_AFTER));
    }

    #[test]
    fn a_round_is_the_last_one_if_nothing_is_left_but_what_was_held_back() {
        for (ready, delayed, held_back, is_last) in [
            (Some(0), Some(0), 0, true),
            (Some(2), Some(0), 2, true),
            (Some(3), Some(0), 2, false),
            (Some(0), Some(1), 2, false),
            (None, Some(0), 0, false),
            (Some(0), None, 0, false),
        ] {
            let left = Left { ready, delayed };
            assert_eq!(left.is_nothing_beside(held_back), is_last, "{left:?}, {held_back} held back");
        }
        assert!(!Left::default().is_nothing_beside(9));
    }

    #[test]
    fn the_ladder_is_that_of_the_retries_that_can_come() {
        let mut options = options();
        options.queue.name = "q".to_owned();
        options.policy.backoff = [5, 1, 5, 9].map(Duration::from_secs).to_vec();
        options.policy.attempts = 4;
        assert_eq!(ladder(&options), ["q.delay.1000", "q.delay.5000"]);
        options.policy.attempts = 1;
        assert!(ladder(&options).is_empty());
    }

    #[test]
    fn only_a_queue_that_does_not_exist_is_empty_without_being_counted() {
        let counted = |scope, kind| if_there(Err(fault(scope, kind, "")), 0).is_ok();
        assert!(counted(Scope::Channel, FaultKind::NotFound));
        // Its node may be away.
        assert!(!counted(Scope::Channel, FaultKind::Lost) && !counted(Scope::Connection, FaultKind::Lost));
        assert!(!counted(Scope::Channel, FaultKind::Refused));
    }
}
