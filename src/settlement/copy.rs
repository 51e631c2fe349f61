//! What becomes of a delivery when something is known of its copy, and while nothing is.

use super::{Disposition, Purpose, Uncounted};
use crate::error::Error;

/// How asking for a copy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyResult {
    /// The broker has it.
    Kept,
    /// The broker takes no body of more than `limit` bytes.
    TooLarge {
        /// Of this one, in bytes.
        length: usize,
        /// In bytes.
        limit: u64,
    },
    /// There will be none: the broker does not allow it, or the queue is unfit.
    NotAllowed(Error),
    /// The worker was told to give up.
    Aborted,
}

/// After a copy for `purpose` was asked for.
#[must_use]
pub fn after_copy(purpose: &Purpose, result: CopyResult) -> Disposition {
    let counts = matches!(purpose, Purpose::Count(_));
    match result {
        CopyResult::Kept => Disposition::Acknowledge,
        CopyResult::Aborted => Disposition::GiveBack,
        CopyResult::TooLarge { length, limit } if counts => {
            Disposition::RunUncounted(Uncounted::TooLarge { length, limit })
        }
        CopyResult::TooLarge { .. } => Disposition::Hold,
        CopyResult::NotAllowed(error) if counts => Disposition::RunUncounted(Uncounted::NotAllowed(error)),
        CopyResult::NotAllowed(error) => Disposition::GiveBackAndStop(error),
    }
}

/// What a copy waits for that is not kept yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitsFor {
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
pub struct HeldCopy {
    /// It only counts a delivery of a task that may run: it goes to the queue that the task came from.
    pub counts: bool,
    /// The task must neither run nor go back before it is kept.
    pub comes_first: bool,
    pub waits_for: WaitsFor,
}

/// What is known of a delivery that is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// `None` where there will be no copy.
    pub copy: Option<HeldCopy>,
    /// The broker may drop the task when it goes back.
    pub must_not_go_back: bool,
}

impl HeldCopy {
    /// No other task may run that could end this process before the copy is kept. Where the copy waits for room, others
    /// have to.
    #[must_use]
    pub fn holds_up(self) -> bool {
        self.comes_first && !self.waits_for_room()
    }

    fn waits_for_room(self) -> bool {
        self.counts && self.waits_for == WaitsFor::Room
    }
}

impl Held {
    /// While the worker takes tasks. `overdue`: it was held for so long that the broker would soon take it back and close
    /// the channel; `crowded`: so many are held that nothing more is taken.
    #[must_use]
    pub fn while_working(self, overdue: bool, crowded: bool) -> Disposition {
        match self.copy {
            // It is left to the broker.
            Some(copy) if copy.comes_first && overdue => Disposition::Wait,
            _ if overdue => Disposition::GiveBack,
            // Nothing else makes room any more.
            Some(copy) if copy.waits_for_room() && crowded => Disposition::RunUncounted(Uncounted::QueueFull),
            _ => Disposition::Wait,
        }
    }

    /// When nothing more is taken. `stops`: the worker was told to stop, and waits no longer than it has to; `aborted`: it
    /// gives up what runs, too.
    #[must_use]
    pub fn at_the_end(self, stops: bool, aborted: bool) -> Disposition {
        match self.copy {
            Some(copy) if !stops || copy.waits_for == WaitsFor::Confirm => Disposition::Wait,
            // To go back may be the end of it, and to run cannot be worse.
            Some(copy) if copy.counts && self.must_not_go_back && !aborted => {
                Disposition::RunUncounted(Uncounted::LastChance)
            }
            _ => Disposition::GiveBack,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::Death;
    use std::time::Duration;

    #[test]
    fn a_delivery_is_acknowledged_only_when_its_copy_is_kept() {
        let retry = Purpose::Retry { delay: Duration::from_secs(5), attempt: 2 };
        let dead = Purpose::DeadLetter(Death { exit: "exit status 3".to_owned(), of_attempts: Some(5) });
        let too_large = CopyResult::TooLarge { length: 10, limit: 9 };
        let refused = Error::configuration("no");
        for purpose in [&retry, &dead, &Purpose::Count(3)] {
            assert_eq!(after_copy(purpose, CopyResult::Kept), Disposition::Acknowledge);
            assert_eq!(after_copy(purpose, CopyResult::Aborted), Disposition::GiveBack);
        }
        for purpose in [&retry, &dead] {
            assert_eq!(after_copy(purpose, too_large.clone()), Disposition::Hold);
            let refusal = CopyResult::NotAllowed(refused.clone());
            assert_eq!(after_copy(purpose, refusal), Disposition::GiveBackAndStop(refused.clone()));
        }
        // It only counts: the task can run without.
        let uncounted = Uncounted::TooLarge { length: 10, limit: 9 };
        assert_eq!(after_copy(&Purpose::Count(3), too_large), Disposition::RunUncounted(uncounted));
        let uncounted = Uncounted::NotAllowed(refused.clone());
        let refusal = CopyResult::NotAllowed(refused);
        assert_eq!(after_copy(&Purpose::Count(3), refusal), Disposition::RunUncounted(uncounted));
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
                assert_eq!(next(copy, waits_for, false, false), Disposition::Wait);
            }
            assert_eq!(next(OUTCOME, waits_for, true, true), Disposition::GiveBack);
            assert_eq!(next(COUNT_FIRST, waits_for, true, true), Disposition::Wait);
            assert_eq!(next(OUTCOME, waits_for, false, true), Disposition::Wait);
        }
        assert_eq!(next(COUNT_FIRST, Room, false, true), Disposition::RunUncounted(Uncounted::QueueFull));
        assert_eq!(next(COUNT_FIRST, Change, false, true), Disposition::Wait);
        let without_a_copy = Held { copy: None, must_not_go_back: false };
        assert_eq!(without_a_copy.while_working(false, true), Disposition::Wait);
        assert_eq!(without_a_copy.while_working(true, false), Disposition::GiveBack);
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
            assert_eq!(next(copy, Confirm, true), Disposition::Wait);
            for waits_for in [Confirm, Room, Change] {
                // The run is bounded, and somebody waits for its outcome.
                assert_eq!(next(copy, waits_for, false), Disposition::Wait);
            }
        }
        for waits_for in [Room, Change] {
            assert_eq!(next(OUTCOME, waits_for, true), Disposition::GiveBack);
            assert_eq!(next(COUNT_FIRST, waits_for, true), Disposition::RunUncounted(Uncounted::LastChance));
            assert_eq!(held(COUNT_FIRST, waits_for).at_the_end(true, true), Disposition::GiveBack);
            // It is dead, and might take this process down.
            assert_eq!(
                next(HeldCopy { counts: false, ..COUNT_FIRST }, waits_for, true),
                Disposition::GiveBack
            );
            // RabbitMQ 4.3 does not count what is given back in good order.
            let safe = Held { must_not_go_back: false, ..held(COUNT_FIRST, waits_for) };
            assert_eq!(safe.at_the_end(true, false), Disposition::GiveBack);
        }
        assert_eq!(
            Held { copy: None, must_not_go_back: false }.at_the_end(false, false),
            Disposition::GiveBack
        );
    }
}
