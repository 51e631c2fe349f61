//! A connection that is opened, lost, and opened again, whatever it is for.

use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, at, never};

use crate::error::{Error, Result};
use crate::shortage;

/// The connection as it is now. `T` is what is used of it: a session, or a publisher. `O` is what a thread brings that has
/// opened it, or has asked the broker something on it.
pub enum Link<T, O = T> {
    /// In use.
    Up(Box<T>),
    /// Being opened on a thread of its own; how that ends is told here.
    Opening(Receiver<Result<O>>),
    /// Not connected, and not to be before then.
    Resting {
        /// When it may be opened.
        until: Instant,
    },
}

impl<T, O: Send + 'static> Link<T, O> {
    /// Runs `open` on a thread of its own, so that its owner hears signals and requests meanwhile.
    pub fn open(open: impl FnOnce() -> Result<O> + Send + 'static) -> Self {
        Self::Opening(on_a_thread(open))
    }
}

impl<T, O> Link<T, O> {
    /// Not to be opened before `until`.
    #[must_use]
    pub fn resting(until: Instant) -> Self {
        Self::Resting { until }
    }

    /// What is in use, to look at.
    pub fn get(&self) -> Option<&T> {
        if let Self::Up(up) = self { Some(up) } else { None }
    }

    /// What is in use.
    pub fn up(&mut self) -> Option<&mut T> {
        if let Self::Up(up) = self { Some(up) } else { None }
    }

    /// Where the end of an attempt to open it is told, and when one may be made; silent where there is nothing to tell.
    pub fn waits_for(&self) -> (Receiver<Result<O>>, Receiver<Instant>) {
        match self {
            Self::Up(_) => (never(), never()),
            Self::Opening(opened) => (opened.clone(), never()),
            Self::Resting { until } => (never(), at(*until)),
        }
    }

    /// Takes out what is in use; it may be opened again from `until` on. What is being opened is forgotten.
    pub fn take(&mut self, until: Instant) -> Option<T> {
        if let Self::Up(up) = std::mem::replace(self, Self::resting(until)) { Some(*up) } else { None }
    }
}

/// Runs `ask`, which waits for the broker, on a thread of its own. What it returns arrives on the channel; so does the
/// error where there is no thread.
pub fn on_a_thread<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T> + Send + 'static,
) -> Receiver<Result<T>> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let spawned = thread::Builder::new().name("connect".into()).spawn({
        let sender = sender.clone();
        // Nobody listens any more when its owner has ended meanwhile.
        move || drop(sender.send(ask()))
    });
    if let Err(error) = spawned {
        // It passes.
        let why = format!("cannot connect: {}", shortage::reason(&error));
        let _ = sender.send(Err(Error::unavailable(why)));
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_used_until_it_is_taken_out() {
        let mut link = <Link<_>>::open(|| Ok("connected"));
        let Link::Opening(opened) = &link else { panic!("it is not being opened") };
        let opened = opened.recv().unwrap().unwrap();
        assert!(link.up().is_none());
        link = Link::Up(Box::new(opened));
        assert_eq!(link.up().copied(), Some("connected"));
        let until = Instant::now();
        assert_eq!(link.take(until), Some("connected"));
        assert!(matches!(link, Link::Resting { until: at } if at == until) && link.take(until).is_none());
    }
}
