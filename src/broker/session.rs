//! One connection to one of the brokers: found, opened and closed within deadlines.

use std::time::Duration;

use amiquip::{Connection, ConnectionBlockedNotification};
use crossbeam_channel::Receiver;

use super::channel::{CLOSE_TIMEOUT, Channel};
use super::fault::{Fault, FaultKind};
use super::frames::FRAME_MAX;
#[cfg(doc)]
use super::frames::FRAME_OVERHEAD;
use super::server::{AckTimeout, Server};
use super::socket::SocketReport;
use super::tls::TlsFiles;
use super::url_list::UrlList;
use super::watchdog::KillSwitch;

/// How long any single question to the broker may stay unanswered while nothing else comes either, or next to nothing. Far more than a busy
/// broker takes, less than a drain waits by default. Answers come in their turn: on a slow line behind a large body.
const RPC_TIMEOUT: Duration = Duration::from_secs(15);

/// How to reach a broker.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Which brokers.
    pub urls: UrlList,
    /// For `amqps` URLs.
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    pub tls: TlsFiles,
    /// Overall: names, TCP, TLS and the AMQP handshake, all URLs together.
    pub connect_timeout: Option<Duration>,
    /// In whole seconds; the broker may ask for less.
    pub heartbeat: Option<Duration>,
}

/// `--connect-timeout` unless given there or in the URL.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl SessionOptions {
    /// The overall deadline of one [`Session::open`].
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
            .or_else(|| self.urls.current().iter().filter_map(|url| url.connect_timeout).max())
            .unwrap_or(DEFAULT_CONNECT_TIMEOUT)
    }
}

/// What a connection is for. The two never share one: a memory alarm makes the broker stop reading from
/// publishing connections, and the acknowledgements on them with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionPurpose {
    /// Deliveries and acknowledgements.
    Consume,
    /// Confirmed publishes.
    Publish,
}

impl ConnectionPurpose {
    /// Slots between a channel's thread and amiquip's: they are allocated up front for each channel, and they set
    /// how many publishes share one wake-up.
    pub(super) fn channel_bound(self) -> usize {
        match self {
            Self::Consume => 16,
            Self::Publish => 128,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Consume => "consuming",
            Self::Publish => "publishing",
        }
    }
}

/// An open connection.
pub struct Session {
    connection: Option<Connection>,
    kill: KillSwitch,
    report: SocketReport,
    blocked: Receiver<ConnectionBlockedNotification>,
    /// The URL it came from, without the password.
    label: String,
    server: Server,
    purpose: ConnectionPurpose,
    /// How many channels were asked for.
    channel_max: u16,
}

impl Session {
    pub(super) fn new(
        connection: Connection,
        socket: (KillSwitch, SocketReport),
        blocked: Receiver<ConnectionBlockedNotification>,
        label: String,
        (server, purpose, channel_max): (Server, ConnectionPurpose, u16),
    ) -> Self {
        let (kill, report) = socket;
        Self { connection: Some(connection), kill, report, blocked, label, server, purpose, channel_max }
    }

    pub(super) fn purpose(&self) -> ConnectionPurpose {
        self.purpose
    }

    /// Opens a channel.
    pub fn open_channel(&mut self) -> std::result::Result<Channel, Fault> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(Fault::lost("the connection is closed"));
        };
        let opened = {
            let _guard = self.kill.patient_guard(RPC_TIMEOUT, "a channel open");
            connection.open_channel(None)
        };
        match opened {
            Ok(channel) => Ok(Channel::new(channel, self.kill.clone(), RPC_TIMEOUT)),
            Err(amiquip::Error::ExhaustedChannelIds) => {
                let broker = self.report.tuned().map_or(u16::MAX, |tuned| tuned.channel_max);
                Err(Fault::too_few_channels(broker.min(self.channel_max)))
            }
            Err(error) => Err(Fault::from(error).because(self.kill.fired())),
        }
    }

    /// The broker, for messages: its URL without the password.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The same, with product and version as the broker told: `amqp://guest@localhost:5672 (RabbitMQ 4.0.5)`.
    #[must_use]
    pub fn introduction(&self) -> String {
        format!("{} ({})", self.label, self.server.name)
    }

    /// How this broker takes back what is not acknowledged in time.
    #[must_use]
    pub fn ack_timeout(&self) -> AckTimeout {
        self.server.ack_timeout
    }

    /// The largest frame that this connection may carry, in bytes, [`FRAME_OVERHEAD`] included: the smaller one of the
    /// broker's wish and taskq's. What cannot be split, a message's properties and headers, has to fit one.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        self.report.tuned().map_or(FRAME_MAX, |tuned| tuned.frame_max) as usize
    }

    /// Whether a quorum queue takes back in their order what is given back together. RabbitMQ before 4.0 does so where
    /// they are left behind by a channel that ends, and not where they are nacked.
    #[must_use]
    pub fn keeps_order_of_nacks(&self) -> bool {
        keeps_order_of_nacks(&self.server.name)
    }

    /// Whether a quorum queue counts towards its delivery limit what is given back by a nack. RabbitMQ does not from 4.3
    /// on.
    #[must_use]
    pub fn counts_nacks(&self) -> bool {
        self.server.ack_timeout != AckTimeout::PerConsumer
    }

    /// Tells when the broker blocks and unblocks publishing.
    pub(super) fn blocked(&self) -> &Receiver<ConnectionBlockedNotification> {
        &self.blocked
    }

    /// Closes the connection and returns why it ended, if it had ended before. Channels have to be closed
    /// first: what is queued on them is lost otherwise (docs/amiquip.md, H4).
    pub fn close(mut self) -> Option<Fault> {
        let connection = self.connection.take()?;
        let _guard = self.kill.guard(CLOSE_TIMEOUT, "connection.close");
        let error = connection.close().err()?;
        Some(explain(error.into(), &self.kill))
    }

    /// Cuts the connection: for one that is known to be stuck or blocked, where closing it would
    /// never be read.
    pub fn cut(self, why: &str) {
        self.kill.fire(why);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _guard = self.kill.guard(CLOSE_TIMEOUT, "connection.close");
            drop(connection);
        }
    }
}

fn keeps_order_of_nacks(server: &str) -> bool {
    let major =
        server.strip_prefix("RabbitMQ ").and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= 4)
}

/// The cause behind amiquip's view of an end, where it is known here: a deadline that passed, or what the peer sent.
pub(super) fn explain(fault: Fault, kill: &KillSwitch) -> Fault {
    if fault.kind == FaultKind::Lost { fault.because(kill.fired()) } else { fault }
}

/// This machine's name; empty where it has none that is UTF-8.
#[must_use]
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rabbitmq_4_is_trusted_with_nacks() {
        for (server, trusted) in [
            ("RabbitMQ 3.10.8", false),
            ("RabbitMQ 4.0.5", true),
            ("RabbitMQ 10.0", true),
            ("RabbitMQ", false),
            ("LavinMQ 4.0", false),
        ] {
            assert_eq!(keeps_order_of_nacks(server), trusted, "{server}");
        }
    }
}
