//! Which queues a worker has put tasks into, and until when some of them may wait there. Such a queue can vanish with what
//! is in it: a policy may let it expire, whoever uses it. Nobody is told of that who does not look.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::topology::{QueueSpec, Role};

/// How often a queue is looked at while tasks may wait in it.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// See the module.
#[derive(Default)]
pub struct DelayWatch {
    /// The queues that were there once.
    known: HashSet<String>,
    waiting: HashMap<String, WatchedQueue>,
}

/// A queue in which tasks may wait.
struct WatchedQueue {
    queue: QueueSpec,
    /// When the last of them leaves it.
    until: Instant,
    /// When to look at it: in the end, too, for what is gone just before has taken tasks with it.
    look: Instant,
}

impl DelayWatch {
    /// Whether the queue was there before.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.known.contains(name)
    }

    /// It is there.
    pub fn note(&mut self, name: &str) {
        if !self.knows(name) {
            self.known.insert(name.to_owned());
        }
    }

    /// A task was put into it.
    pub fn put(&mut self, queue: &QueueSpec, now: Instant) {
        let Role::Delay { after, .. } = queue.role else { return };
        let until = now + after;
        let look = until.min(now + LOOK_EVERY);
        let waiting = self.waiting.entry(queue.name.clone());
        let waiting = waiting.or_insert_with(|| WatchedQueue { queue: queue.clone(), until, look });
        waiting.until = until;
    }

    /// When to look next.
    #[must_use]
    pub fn next_look(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.look).min()
    }

    /// The queues to look at now. Those from which the last task has gone are looked at for the last time.
    pub fn take_due(&mut self, now: Instant) -> Vec<QueueSpec> {
        let due: Vec<_> = self.waiting.values().filter(|waiting| waiting.look <= now).collect();
        let due = due.into_iter().map(|waiting| waiting.queue.clone()).collect();
        self.waiting.retain(|_, waiting| waiting.until > now);
        for waiting in self.waiting.values_mut().filter(|waiting| waiting.look <= now) {
            waiting.look = waiting.until.min(now + LOOK_EVERY);
        }
        due
    }

    /// Nobody can look now.
    pub fn put_off(&mut self, now: Instant) {
        for waiting in self.waiting.values_mut() {
            waiting.look = waiting.look.max(now + LOOK_EVERY);
        }
    }

    /// What was in it is lost, and has been told.
    pub fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.waiting.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::QueueType;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn queue() -> QueueSpec {
        QueueSpec { name: "q".to_owned(), role: Role::Tasks, kind: QueueType::Classic, declare: true }
    }

    fn names(queues: &[QueueSpec]) -> Vec<&str> {
        queues.iter().map(|queue| queue.name.as_str()).collect()
    }

    #[test]
    fn a_queue_is_looked_at_every_minute_and_when_the_last_task_has_left_it() {
        let (start, mut watch) = (Instant::now(), DelayWatch::default());
        assert_eq!(watch.next_look(), None);
        watch.put(&queue().delay(100 * SECOND), start);
        watch.put(&queue().delay(10 * SECOND), start);
        assert_eq!(watch.next_look(), Some(start + 10 * SECOND));
        assert!(watch.take_due(start + 9 * SECOND).is_empty());
        assert_eq!(names(&watch.take_due(start + 10 * SECOND)), ["q.delay.10000"]);
        assert_eq!(watch.next_look(), Some(start + 60 * SECOND));
        assert_eq!(names(&watch.take_due(start + 61 * SECOND)), ["q.delay.100000"]);
        assert_eq!(watch.next_look(), Some(start + 100 * SECOND));
        assert_eq!(names(&watch.take_due(start + 100 * SECOND)), ["q.delay.100000"]);
        assert_eq!(watch.next_look(), None);
    }

    #[test]
    fn each_task_prolongs_it_and_puts_no_look_off() {
        let (start, mut watch) = (Instant::now(), DelayWatch::default());
        for second in 0..100 {
            watch.put(&queue().delay(10 * SECOND), start + second * SECOND);
        }
        assert_eq!(watch.next_look(), Some(start + 10 * SECOND));
        assert_eq!(watch.take_due(start + 100 * SECOND).len(), 1);
        assert_eq!(watch.next_look(), Some(start + 109 * SECOND));
    }

    #[test]
    fn tasks_that_stay_are_not_waited_for() {
        let mut watch = DelayWatch::default();
        watch.put(&queue().dead(), Instant::now());
        assert_eq!(watch.next_look(), None);
    }

    #[test]
    fn what_cannot_be_looked_at_is_tried_later() {
        let (start, mut watch) = (Instant::now(), DelayWatch::default());
        watch.put(&queue().delay(10 * SECOND), start);
        watch.put_off(start + 10 * SECOND);
        assert_eq!(watch.next_look(), Some(start + 70 * SECOND));
        assert_eq!(watch.take_due(start + 70 * SECOND).len(), 1);
    }

    #[test]
    fn what_is_lost_is_told_once() {
        let mut watch = DelayWatch::default();
        watch.note("q.delay.10000");
        watch.put(&queue().delay(10 * SECOND), Instant::now());
        assert!(watch.knows("q.delay.10000") && !watch.knows("q.delay.1"));
        watch.forget("q.delay.10000");
        assert!(!watch.knows("q.delay.10000") && watch.next_look().is_none());
    }
}
