//! What a peer sends that is not, or not any more, the conversation that was asked for.

use std::fmt;

/// Why the peer's bytes are not read further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Violation {
    /// The first bytes belong to something else.
    NotAmqp(&'static str),
    /// A frame or body beyond all limits, or of an unknown type.
    Malformed(String),
    /// Sound frames, but beyond what was asked for.
    Unasked(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAmqp(what) => f.write_str(what),
            Self::Malformed(what) => write!(f, "it sent malformed AMQP ({what})"),
            Self::Unasked(what) => write!(f, "it sent more than it was asked for ({what})"),
        }
    }
}
