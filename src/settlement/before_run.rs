//! What becomes of a delivery before its task runs.
//!
//! That a task was delivered before and nobody answered is counted before it runs, so that it neither takes down one
//! worker after the other nor is dropped by the broker. A queue may drop a task that was returned to it too often:
//! RabbitMQ 4 after 20 times, and a policy sets any other limit, which AMQP does not tell. A task is therefore replaced
//! by a copy that carries the count when it comes back for the second time, so that limits of 2 and more are never
//! reached. The first time it runs as it is: a restart of its worker does not cost it its place in the queue.

use super::{Disposition, Policy, Purpose, Uncounted};
use crate::broker::QueueType;

/// A quorum queue has taken a task back so often when a copy has to take its place.
const COUNT_AT: u64 = 2;

/// What is known of the earlier deliveries of a task.
#[derive(Debug, Clone, Copy)]
pub struct Earlier {
    /// The broker's flag: it was delivered before.
    pub redelivered: bool,
    /// The header `x-delivery-count`. A quorum queue writes it; on any other queue it is what the task brought along.
    pub header: Option<u64>,
    /// What taskq counted, up to the copy that this delivery is of.
    pub recorded: u32,
    /// The queue's type, where it is known.
    pub queue: Option<QueueType>,
}

impl Earlier {
    /// For a delivery whose task this process does not know. `copies_possible`: publishing is neither blocked nor
    /// forbidden. Where it is, tasks go on uncounted, for it may be this queue that fills the broker.
    #[must_use]
    pub fn before_run(&self, policy: &Policy, copies_possible: bool) -> Disposition {
        let unanswered = self.unanswered();
        if let Some(why) = policy.poisoned(unanswered) {
            return Disposition::Republish(Purpose::DeadLetter(why));
        }
        if !self.must_be_counted() {
            return Disposition::Run;
        }
        if copies_possible || self.next_return_may_be_the_last() {
            Disposition::Republish(Purpose::Count(u32::try_from(unanswered).unwrap_or(u32::MAX)))
        } else {
            Disposition::RunUncounted(Uncounted::NoCopies)
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
    #[must_use]
    pub fn next_return_may_be_the_last(&self) -> bool {
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

    fn count(deliveries: u32) -> Disposition {
        Disposition::Republish(Purpose::Count(deliveries))
    }

    const POLICY: Policy = Policy { attempts: 5, max_deliveries: 6, backoff: Vec::new() };

    #[test]
    fn a_task_runs_is_counted_first_or_is_dead() {
        let before = |queue, redelivered, header, recorded, copies_possible| {
            Earlier { redelivered, header, recorded, queue }.before_run(&POLICY, copies_possible)
        };
        for copies_possible in [true, false] {
            assert_eq!(before(QUORUM, false, None, 0, copies_possible), Disposition::Run);
            assert_eq!(before(QUORUM, true, Some(1), 0, copies_possible), Disposition::Run);
            // Whatever stands in the way of a copy: the next return may be the last.
            assert_eq!(before(QUORUM, true, Some(2), 1, copies_possible), count(3));
            assert_eq!(before(None, true, Some(2), 1, copies_possible), count(2));
            let dead = "6 deliveries ended without an answer".to_owned();
            let dead = Disposition::Republish(Purpose::DeadLetter(dead));
            assert_eq!(before(QUORUM, true, Some(2), 4, copies_possible), dead);
            assert_eq!(before(CLASSIC, true, None, 5, copies_possible), dead);
        }
        assert_eq!(before(CLASSIC, true, None, 1, true), count(2));
        assert_eq!(before(CLASSIC, true, None, 1, false), Disposition::RunUncounted(Uncounted::NoCopies));
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
