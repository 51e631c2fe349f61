//! Errors by what the person who reads them must do, and the exit codes that scripts see.

use std::fmt;

/// How taskq ends. The numbers follow `sysexits.h`; the README and `taskq --help` list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything was confirmed, or the worker drained cleanly.
    Success,
    /// A bounded `work` run finished, but at least one task ended dead.
    TasksDead,
    /// `status` found a queue beyond a limit that it was given.
    BeyondLimit,
    /// A wrong flag, or a malformed URL, duration or number, from a flag or the environment.
    Usage,
    /// The data cannot be sent as it is: a body too large, a name over 255 bytes.
    BadData,
    /// The broker cannot be reached, or was lost for good.
    Unavailable,
    /// A fault of taskq's own or of the machine it runs on.
    Internal,
    /// Not confirmed in time, broker blocked, publish refused: safe to try again.
    TryAgain,
    /// The broker refused access.
    Refused,
    /// A queue exists with other properties, a file is missing, a command cannot run.
    Configuration,
    /// Forced to stop by this signal.
    Signal(i32),
}

impl Exit {
    /// The process's exit status.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::TasksDead | Self::BeyondLimit => 1,
            Self::Usage => 2,
            Self::BadData => 65,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::TryAgain => 75,
            Self::Refused => 77,
            Self::Configuration => 78,
            Self::Signal(number) => 128_u8.saturating_add(u8::try_from(number).unwrap_or(u8::MAX)),
        }
    }
}

/// One line for a person, and the exit code that goes with it. Never holds a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What the process ends with if nothing else happens.
    pub exit: Exit,
    message: String,
    at: Stage,
}

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There was no broker to talk to.
    Unreached,
    /// The broker did not let us in.
    TurnedAway,
    /// The broker had no room for another connection.
    NoRoom,
    /// This machine had no descriptor or thread left for a connection.
    NoDescriptor,
    /// Beyond that, or nothing of the kind.
    Other,
}

/// The result of anything that can end a command.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its exit code; `message` says what happened, to what, and what to do.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), at: Stage::Other }
    }

    /// See [`Exit::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// See [`Exit::BadData`].
    pub fn bad_data(message: impl Into<String>) -> Self {
        Self::new(Exit::BadData, message)
    }

    /// See [`Exit::Unavailable`]: no broker was reached.
    pub fn unreached(message: impl Into<String>) -> Self {
        Self { at: Stage::Unreached, ..Self::new(Exit::Unavailable, message) }
    }

    /// See [`Exit::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    /// See [`Exit::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Internal, message)
    }

    /// See [`Exit::TryAgain`].
    pub fn try_again(message: impl Into<String>) -> Self {
        Self::new(Exit::TryAgain, message)
    }

    /// See [`Exit::Refused`]: the broker did not let us in.
    pub fn turned_away(message: impl Into<String>) -> Self {
        Self { at: Stage::TurnedAway, ..Self::new(Exit::Refused, message) }
    }

    /// See [`Exit::TryAgain`]: the broker allows no more connections now.
    pub fn no_room(message: impl Into<String>) -> Self {
        Self { at: Stage::NoRoom, ..Self::new(Exit::TryAgain, message) }
    }

    /// See [`Exit::Unavailable`]: what this machine lacks for a connection may be there again in a moment.
    pub fn no_descriptor(message: impl Into<String>) -> Self {
        Self { at: Stage::NoDescriptor, ..Self::new(Exit::Unavailable, message) }
    }

    /// See [`Exit::Configuration`].
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(Exit::Configuration, message)
    }

    /// Whether trying again may help, where the broker has let this user in before: one that dies during the login looks
    /// the same as one that refuses it (docs/amiquip.md, H8).
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self.at, Stage::TurnedAway | Stage::NoRoom) || self.exit == Exit::Unavailable
    }

    /// Whether a limit of the broker is reached, which passes when others leave: also for whoever was never let in.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        self.at == Stage::NoRoom
    }

    /// What to look at when the broker could not be reached at all; of a broker that was there before it says nothing
    /// new.
    #[must_use]
    pub fn on_first_connect(mut self) -> Self {
        match self.at {
            Stage::Unreached => {
                self.message
                    .push_str(". Is RabbitMQ running there, and is the URL right (--url, TASKQ_URL)?");
            }
            Stage::NoDescriptor => self.exit = Exit::Internal,
            Stage::TurnedAway | Stage::NoRoom | Stage::Other => {}
        }
        self
    }

    /// The same exit code with words around the message: where it happened, or what it stopped.
    #[must_use]
    pub fn context(mut self, before: &str) -> Self {
        self.message = format!("{before}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documented numbers: scripts depend on them.
    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [
            (Exit::Success, 0),
            (Exit::TasksDead, 1),
            (Exit::BeyondLimit, 1),
            (Exit::Usage, 2),
            (Exit::BadData, 65),
            (Exit::Unavailable, 69),
            (Exit::Internal, 70),
            (Exit::TryAgain, 75),
            (Exit::Refused, 77),
            (Exit::Configuration, 78),
            (Exit::Signal(2), 130),
            (Exit::Signal(15), 143),
            (Exit::Signal(1000), 255),
        ];
        for (exit, code) in codes {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }
}
