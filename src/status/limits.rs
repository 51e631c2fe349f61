//! What a queue should keep to, for monitoring.

use super::{Reason, Status, Told};
use crate::error::Exit;

/// Bounds that hold also where they are just reached; none: anything is right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// At most so many tasks that wait for a worker.
    pub max_ready: Option<u32>,
    /// At most so many dead ones.
    pub max_dead: Option<u32>,
    /// At least so many consumers.
    pub min_consumers: Option<u32>,
}

/// What a limit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Tasks that wait for a worker.
    Ready,
    /// Dead tasks.
    Dead,
    /// Consumers.
    Consumers,
}

/// A limit that does not hold, or of which nobody can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// Which one.
    pub measure: Measure,
    /// The limit.
    pub limit: u32,
    /// What there is.
    pub found: Told,
}

impl Broken {
    /// How a command that was given the limit ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.found {
            Ok(_) => Exit::BeyondLimit,
            Err(Reason::Unanswered) => Exit::TryAgain,
            Err(Reason::NotAllowed) => Exit::Refused,
        }
    }
}

impl Limits {
    /// Whether there are any.
    #[must_use]
    pub fn are_given(&self) -> bool {
        *self != Self::default()
    }

    /// Those that this queue does not hold to.
    #[must_use]
    pub fn broken_by(&self, status: &Status) -> Vec<Broken> {
        let check = |measure, limit: Option<u32>, found: Told, holds: fn(u32, u32) -> bool| {
            let limit = limit?;
            (!found.is_ok_and(|found| holds(found, limit))).then_some(Broken { measure, limit, found })
        };
        let at_most = |found, limit| found <= limit;
        let at_least = |found, limit| found >= limit;
        [
            check(Measure::Ready, self.max_ready, status.ready, at_most),
            check(Measure::Dead, self.max_dead, status.dead, at_most),
            check(Measure::Consumers, self.min_consumers, status.consumers, at_least),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ready: Told, dead: Told, consumers: Told) -> Status {
        let (queue, waiting, unknown) = ("q".to_owned(), Vec::new(), Vec::new());
        Status { queue, ready, consumers, waiting, dead, unknown }
    }

    #[test]
    fn limits_are_broken_by_what_is_beyond_them_and_by_what_is_unknown() {
        let limits = Limits { max_ready: Some(10), max_dead: Some(0), min_consumers: Some(2) };
        let exits = |status: Status| -> Vec<(Measure, Exit)> {
            limits.broken_by(&status).iter().map(|broken| (broken.measure, broken.exit())).collect()
        };
        assert_eq!(exits(status(Ok(10), Ok(0), Ok(2))), []);
        let beyond = [Measure::Ready, Measure::Dead, Measure::Consumers].map(|one| (one, Exit::BeyondLimit));
        assert_eq!(exits(status(Ok(11), Ok(1), Ok(1))), beyond);
        let unknown = exits(status(Err(Reason::Unanswered), Err(Reason::NotAllowed), Ok(9)));
        assert_eq!(unknown, [(Measure::Ready, Exit::TryAgain), (Measure::Dead, Exit::Refused)]);
    }

    #[test]
    fn what_has_no_limit_may_be_anything() {
        let none = Limits::default();
        assert!(!none.are_given());
        assert_eq!(none.broken_by(&status(Ok(u32::MAX), Err(Reason::Unanswered), Ok(0))), []);
        let zero = Limits { min_consumers: Some(0), ..none };
        assert!(zero.are_given() && zero.broken_by(&status(Ok(1), Ok(1), Ok(0))).is_empty());
    }
}
