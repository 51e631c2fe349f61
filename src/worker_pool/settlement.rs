//! The rules of what becomes of a delivery before its task runs and while a copy of it is waited for, from plain data.
//! What becomes of it after an attempt is [`Policy::after`].
//!
//! That a task was delivered before and nobody answered is counted before it runs, so that it neither takes down one
//! worker after the other nor is dropped by the broker. A queue may drop a task that was returned to it too often: RabbitMQ 4 after 20 times, and a policy sets any other
//! limit, which AMQP does not tell. A task is therefore replaced by a copy that carries the count when it comes back for
//! the second time, so that limits of 2 and more are never reached. The first time it runs as it is: a restart of its
//! worker does not cost it its place in the queue.

use crate::broker::QueueType;
use crate::retry::Policy;

/// A quorum queue has taken a task back so often when a copy has to take its place.
const COUNT_AT: u64 = 2;

/// What is known of the earlier deliveries of a task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Earlier {
    /// The broker's flag: it was delivered before.
    pub(super) redelivered: bool,
    /// The header `x-delivery-count`. A quorum queue writes it; on any other queue it is what the task brought along.
    pub(super) header: Option<u64>,
    /// What taskq counted, up to the copy that this delivery is of.
    pub(super) recorded: u32,
    /// The queue's type, where it is known.
    pub(super) queue: Option<QueueType>,
}

/// What to do with a delivery whose task this process does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BeforeRun {
    /// Run the task.
    Run,
    /// Run it although its deliveries should be counted first: there are no copies now, and tasks have to go on, for it
    /// may be this queue that fills the broker.
    RunUncounted,
    /// Do not run it: a copy that carries this count of deliveries has to take its place first. Should the copy take the
    /// worker down, the count is there.
    Count(u32),
    /// Do not run it: it is dead, for this reason.
    DeadLetter(String),
}

/// What a copy waits for that is not kept yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// The broker's confirm, as always.
    #[default]
    Confirm,
    /// Room in its queue, which is full. To work on what is in there makes some.
    Room,
    /// The end of an alarm, a broker that is away, a permission: nothing that can be done here.
    Change,
}

/// The copy that is to take the place of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeldCopy {
    /// It only counts a delivery of a task that may run: it goes to the queue that the task came from.
    pub(super) counts: bool,
    /// The task must neither run nor go back before it is kept.
    pub(super) comes_first: bool,
    pub(super) waits_for: WaitsFor,
}

/// What is known of a delivery that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// `None` where there will be no copy.
    pub(super) copy: Option<HeldCopy>,
    /// The broker may drop the task when it goes back.
    pub(super) must_not_go_back: bool,
}

/// What to do with a delivery that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Hold it.
    Wait,
    /// Give it back to the queue.
    GiveBack,
    /// Run its task, uncounted.
    Run,
}

impl HeldCopy {
    /// No other task may run that could end this process before the copy is kept. Where the copy waits for room, others
    /// have to.
    pub(super) fn holds_up(self) -> bool {
        self.comes_first && !self.waits_for_room()
    }

    fn waits_for_room(self) -> bool {
        self.counts && self.waits_for == WaitsFor::Room
    }
}

impl Held {
    /// While the worker takes tasks. `overdue`: it was held for so long that the broker would soon take it back and close
    /// the channel; `crowded`: so many are held that nothing more is taken.
    pub(super) fn while_working(self, overdue: bool, crowded: bool) -> Next {
        match self.copy {
            // It is left to the broker.
            Some(copy) if copy.comes_first && overdue => Next::Wait,
            _ if overdue => Next::GiveBack,
            // Nothing else makes room any more.
            Some(copy) if copy.waits_for_room() && crowded => Next::Run,
            _ => Next::Wait,
        }
    }

    /// When nothing more is taken. `stops`: the worker was told to stop, and waits no longer than it has to; `aborted`: it
    /// gives up what runs, too.
    pub(super) fn at_the_end(self, stops: bool, aborted: bool) -> Next {
        match self.copy {
            Some(copy) if !stops || copy.waits_for == WaitsFor::Confirm => Next::Wait,
            // To go back may be the end of it, and to run cannot be worse.
            Some(copy) if copy.counts && self.must_not_go_back && !aborted => Next::Run,
            _ => Next::GiveBack,
        }
    }
}

impl Earlier {
    /// `copies_possible`: publishing is neither blocked nor forbidden.
    pub(super) fn before_run(&self, policy: &Policy, copies_possible: bool) -> BeforeRun {
        let unanswered = self.unanswered();
        if let Some(why) = policy.poisoned(unanswered) {
            return BeforeRun::DeadLetter(why);
        }
        if !self.must_be_counted() {
            return BeforeRun::Run;
        }
        if copies_possible || self.next_return_may_be_the_last() {
            BeforeRun::Count(u32::try_from(unanswered).unwrap_or(u32::MAX))
        } else {
            BeforeRun::RunUncounted
        }
    }

    /// How many deliveries of the task ended without an answer.
    fn unanswered(&self) -> u64 {
        let since = match (self.redelivered, self.queue) {
            (false, _) => 0,
            (true, Some(QueueType::Quorum)) => self.returns(),
            // The flag tells of at least one, and taskq makes a copy at each.
            (true, Some(QueueType::Classic) | None) => 1,
        };
        u64::from(self.recorded).saturating_add(since)
    }

    /// The count has to be written into a copy before the task may run.
    fn must_be_counted(&self) -> bool {
        match self.queue {
            Some(QueueType::Quorum) => self.redelivered && self.returns() >= COUNT_AT,
            Some(QueueType::Classic) | None => self.redelivered,
        }
    }

    /// The broker may drop the task the next time it takes it back.
    pub(super) fn next_return_may_be_the_last(&self) -> bool {
        self.queue != Some(QueueType::Classic) && self.redelivered && self.returns() >= COUNT_AT
    }

    fn returns(&self) -> u64 {
        self.header.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSIC: Option<QueueType> = Some(QueueType::Classic);
    const QUORUM: Option<QueueType> = Some(QueueType::Quorum);

    /// Unanswered deliveries; whether they have to be counted; whether the next return may be the last.
    fn rules(queue: Option<QueueType>, redelivered: bool, header: Option<u64>) -> (u64, bool, bool) {
        let earlier = Earlier { redelivered, header, recorded: 4, queue };
        (earlier.unanswered(), earlier.must_be_counted(), earlier.next_return_may_be_the_last())
    }

    #[test]
    fn a_quorum_queue_counts_and_a_task_is_replaced_when_it_comes_back_for_the_second_time() {
        assert_eq!(rules(QUORUM, false, None), (4, false, false));
        assert_eq!(rules(QUORUM, false, Some(0)), (4, false, false));
        assert_eq!(rules(QUORUM, true, Some(1)), (5, false, false));
        assert_eq!(rules(QUORUM, true, Some(2)), (6, true, true));
        assert_eq!(rules(QUORUM, true, Some(9)), (13, true, true));
        // RabbitMQ 4.3 does not count what a worker gives back in good order.
        assert_eq!(rules(QUORUM, true, None), (4, false, false));
    }

    #[test]
    fn elsewhere_each_redelivery_is_counted_by_a_copy() {
        for queue in [CLASSIC, None] {
            assert_eq!(rules(queue, false, None), (4, false, false));
            assert_eq!(rules(queue, true, None), (5, true, false));
        }
    }

    const POLICY: Policy = Policy { attempts: 5, max_deliveries: 6, backoff: Vec::new() };

    #[test]
    fn a_task_runs_is_counted_first_or_is_dead() {
        let before = |queue, redelivered, header, recorded, copies_possible| {
            Earlier { redelivered, header, recorded, queue }.before_run(&POLICY, copies_possible)
        };
        for copies_possible in [true, false] {
            assert_eq!(before(QUORUM, false, None, 0, copies_possible), BeforeRun::Run);
            assert_eq!(before(QUORUM, true, Some(1), 0, copies_possible), BeforeRun::Run);
            // Whatever stands in the way of a copy: the next return may be the last.
            assert_eq!(before(QUORUM, true, Some(2), 1, copies_possible), BeforeRun::Count(3));
            assert_eq!(before(None, true, Some(2), 1, copies_possible), BeforeRun::Count(2));
            let dead = BeforeRun::DeadLetter("6 deliveries ended without an answer".to_owned());
            assert_eq!(before(QUORUM, true, Some(2), 4, copies_possible), dead);
            assert_eq!(before(CLASSIC, true, None, 5, copies_possible), dead);
        }
        assert_eq!(before(CLASSIC, true, None, 1, true), BeforeRun::Count(2));
        assert_eq!(before(CLASSIC, true, None, 1, false), BeforeRun::RunUncounted);
    }

    /// A retried or dead task, one that is counted before it runs again, and one that must be.
    const OUTCOME: HeldCopy = HeldCopy { counts: false, comes_first: false, waits_for: WaitsFor::Confirm };
    const COUNT: HeldCopy = HeldCopy { counts: true, ..OUTCOME };
    const COUNT_FIRST: HeldCopy = HeldCopy { comes_first: true, ..COUNT };

    fn held(copy: HeldCopy, waits_for: WaitsFor) -> Held {
        let must_not_go_back = copy.comes_first;
        Held { copy: Some(HeldCopy { waits_for, ..copy }), must_not_go_back }
    }

    #[test]
    fn while_the_worker_goes_on_tasks_are_held_until_their_copies_are_kept() {
        use WaitsFor::{Change, Confirm, Room};
        let next = |copy, waits_for, overdue, crowded| held(copy, waits_for).while_working(overdue, crowded);
        for waits_for in [Confirm, Room, Change] {
            for copy in [OUTCOME, COUNT, COUNT_FIRST] {
                assert_eq!(next(copy, waits_for, false, false), Next::Wait);
            }
            assert_eq!(next(OUTCOME, waits_for, true, true), Next::GiveBack);
            assert_eq!(next(COUNT_FIRST, waits_for, true, true), Next::Wait);
            assert_eq!(next(OUTCOME, waits_for, false, true), Next::Wait);
        }
        assert_eq!(next(COUNT_FIRST, Room, false, true), Next::Run);
        assert_eq!(next(COUNT_FIRST, Change, false, true), Next::Wait);
        let without_a_copy = Held { copy: None, must_not_go_back: false };
        assert_eq!(without_a_copy.while_working(false, true), Next::Wait);
        assert_eq!(without_a_copy.while_working(true, false), Next::GiveBack);
    }

    #[test]
    fn a_task_that_must_be_counted_first_holds_up_the_others_unless_they_make_room_for_its_copy() {
        let holds_up = |copy, waits_for| HeldCopy { waits_for, ..copy }.holds_up();
        assert!(holds_up(COUNT_FIRST, WaitsFor::Confirm) && holds_up(COUNT_FIRST, WaitsFor::Change));
        assert!(!holds_up(COUNT_FIRST, WaitsFor::Room));
        // The queue of dead tasks is full: nothing that runs here makes room in it.
        assert!(holds_up(HeldCopy { counts: false, ..COUNT_FIRST }, WaitsFor::Room));
        for waits_for in [WaitsFor::Confirm, WaitsFor::Room, WaitsFor::Change] {
            assert!(!holds_up(OUTCOME, waits_for) && !holds_up(COUNT, waits_for));
        }
    }

    #[test]
    fn at_the_end_copies_under_way_are_waited_for_and_what_must_not_go_back_runs() {
        use WaitsFor::{Change, Confirm, Room};
        let next = |copy, waits_for, stops| held(copy, waits_for).at_the_end(stops, false);
        for copy in [OUTCOME, COUNT, COUNT_FIRST] {
            assert_eq!(next(copy, Confirm, true), Next::Wait);
            for waits_for in [Confirm, Room, Change] {
                // The run is bounded, and somebody waits for its outcome.
                assert_eq!(next(copy, waits_for, false), Next::Wait);
            }
        }
        for waits_for in [Room, Change] {
            assert_eq!(next(OUTCOME, waits_for, true), Next::GiveBack);
            assert_eq!(next(COUNT_FIRST, waits_for, true), Next::Run);
            assert_eq!(held(COUNT_FIRST, waits_for).at_the_end(true, true), Next::GiveBack);
            // It is dead, and might take this process down.
            assert_eq!(next(HeldCopy { counts: false, ..COUNT_FIRST }, waits_for, true), Next::GiveBack);
            // RabbitMQ 4.3 does not count what is given back in good order.
            let safe = Held { must_not_go_back: false, ..held(COUNT_FIRST, waits_for) };
            assert_eq!(safe.at_the_end(true, false), Next::GiveBack);
        }
        assert_eq!(Held { copy: None, must_not_go_back: false }.at_the_end(false, false), Next::GiveBack);
    }

    #[test]
    fn a_count_that_the_task_brought_along_says_nothing() {
        for header in [0, 1, 2, 25, u64::MAX] {
            assert_eq!(rules(CLASSIC, false, Some(header)), (4, false, false));
            assert_eq!(rules(CLASSIC, true, Some(header)), (5, true, false));
            assert_eq!(rules(QUORUM, false, Some(header)), (4, false, false));
            assert_eq!(rules(None, false, Some(header)), (4, false, false));
            // It may be a quorum queue.
            assert_eq!(rules(None, true, Some(header)), (5, true, header >= 2));
        }
    }
}
