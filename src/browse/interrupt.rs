//! Signals while tasks are held that wear out: what is held gets its copies before the command ends.

use std::cell::Cell;
use std::rc::Rc;

use crossbeam_channel::{Receiver, never};

use crate::error::{Error, Exit, Result};
use crate::events::Event;
use crate::report::tell;
use crate::shutdown;

/// Shared by all who wait meanwhile.
#[derive(Clone)]
pub struct Interrupt {
    signals: Receiver<i32>,
    first: Rc<Cell<Option<i32>>>,
}

impl Interrupt {
    /// Signals end the process at once, as they do where nobody listens.
    pub fn ignored() -> Self {
        Self { signals: never(), first: Rc::default() }
    }

    /// From now on signals are heard.
    pub fn heard() -> Result<Self> {
        Ok(Self { signals: shutdown::listen()?, first: Rc::default() })
    }

    /// Where they arrive; to be noted.
    pub fn signals(&self) -> &Receiver<i32> {
        &self.signals
    }

    /// A signal has arrived.
    ///
    /// # Errors
    /// It is the second one: whoever waits gives up.
    pub fn note(&self, signal: i32) -> Result<()> {
        if self.first.get().is_some() {
            return Err(Error::new(Exit::Signal(signal), "a second signal"));
        }
        self.first.set(Some(signal));
        tell(&Event::FinishingCopies { signal: shutdown::name(signal) });
        Ok(())
    }

    /// Whether nothing more is to be looked at.
    pub fn has_come(&self) -> Result<bool> {
        self.signals.try_iter().try_for_each(|signal| self.note(signal))?;
        Ok(self.first.get().is_some())
    }

    /// At the end.
    pub fn result(&self) -> Result<()> {
        match self.first.get() {
            None => Ok(()),
            Some(signal) => Err(Error::new(Exit::Signal(signal), "ended by a signal")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_ends_the_look_and_the_second_the_waiting() {
        let (sender, signals) = crossbeam_channel::bounded(2);
        let interrupt = Interrupt { signals, first: Rc::default() };
        assert!(!interrupt.has_come().unwrap() && interrupt.result().is_ok());
        sender.send(2).unwrap();
        assert!(interrupt.has_come().unwrap());
        assert_eq!(interrupt.result().unwrap_err().exit, Exit::Signal(2));
        sender.send(15).unwrap();
        assert_eq!(interrupt.clone().has_come().unwrap_err().exit, Exit::Signal(15));
    }
}
