//! One connection to one of the brokers: found, opened and closed within deadlines.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpValue, Auth, Connection, ConnectionBlockedNotification, ConnectionOptions, ConnectionTuning,
};
use crossbeam_channel::Receiver;

use super::channel::Channel;
use super::fault::{Fault, Kind};
use super::frames::FRAME_MAX;
use super::socket::{Sightings, Socket};
use super::tls::TlsFiles;
use super::url::{BrokerUrl, Credentials};
use super::watchdog::{self, KillSwitch};
use crate::error::{Error, Result};

/// What one connection may have open at most; without a limit amiquip hangs at the 65,536th. RabbitMQ's own
/// default.
const CHANNEL_MAX: u16 = 2047;
/// How long any single question to the broker may stay unanswered. Far more than a busy broker takes, less than
/// a drain waits by default.
const RPC_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a goodbye may take before the socket is cut: nothing depends on it.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach a broker.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Tried in turn, from a random one on.
    pub urls: Vec<BrokerUrl>,
    /// For `amqps` URLs.
    pub tls: TlsFiles,
    /// Overall: names, TCP, TLS and the AMQP handshake, all URLs together.
    pub connect_timeout: Option<Duration>,
    /// In whole seconds; the broker may ask for less.
    pub heartbeat: Option<Duration>,
}

/// `--connect-timeout` and `--heartbeat` unless given there or in the URL.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);

impl SessionOptions {
    /// The overall deadline of one [`Session::open`].
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
            .or_else(|| self.urls.iter().filter_map(|url| url.connect_timeout).max())
            .unwrap_or(DEFAULT_CONNECT_TIMEOUT)
    }
}

/// What a connection is for. The two never share one: a memory alarm makes the broker stop reading from
/// publishing connections, and the acknowledgements on them with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Deliveries and acknowledgements.
    Consume,
    /// Confirmed publishes.
    Publish,
}

impl Purpose {
    /// Slots between a channel's thread and amiquip's: they are allocated up front for each channel, and they set
    /// how many publishes share one wake-up.
    fn channel_bound(self) -> usize {
        match self {
            Self::Consume => 16,
            Self::Publish => 128,
        }
    }

    fn name(self) -> &'static str {
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
    sightings: Sightings,
    blocked: Receiver<ConnectionBlockedNotification>,
    /// The URL it came from, without the password.
    label: String,
    server: String,
}

impl Session {
    /// Connects to the first broker that answers.
    ///
    /// # Errors
    /// Unavailable, refused or configuration, with what happened at each address. Returns within the connect
    /// timeout.
    pub fn open(options: &SessionOptions, purpose: Purpose) -> Result<Self> {
        watchdog::start()?;
        #[cfg(feature = "tls")]
        let tls = if options.urls.iter().any(|url| url.tls) {
            Some(super::tls::Connector::new(&options.tls)?)
        } else {
            None
        };
        let deadline = Instant::now() + options.connect_timeout();
        let mut failures: Vec<(String, Fault)> = Vec::new();
        let first = random_index(options.urls.len());
        let turns = options.urls.len();
        for turn in 0..turns {
            let url = &options.urls[(first + turn) % turns];
            // A broker that accepts and then says nothing must not use up the time of the others.
            let share = remaining(deadline) / u32::try_from(turns - turn).unwrap_or(u32::MAX);
            let dial = Dial {
                url,
                options,
                purpose,
                deadline: Instant::now() + share,
                #[cfg(feature = "tls")]
                tls: tls.as_ref(),
            };
            match dial.any_address() {
                Ok(session) => return Ok(session),
                Err(fault) => failures.push((url.to_string(), fault)),
            }
        }
        Err(combine(failures))
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// A fault of the connection's, which is then no longer usable.
    pub fn open_channel(&mut self) -> std::result::Result<Channel, Fault> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(Fault::lost("the connection is closed"));
        };
        let opened = {
            let _guard = self.kill.guard(RPC_TIMEOUT, "a channel open");
            connection.open_channel(None)
        };
        match opened {
            Ok(channel) => Ok(Channel::new(channel, self.kill.clone(), RPC_TIMEOUT)),
            Err(error) => Err(Fault::from(error).because(self.kill.fired())),
        }
    }

    /// The broker, for messages: its URL without the password.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Product and version as the broker told, such as `RabbitMQ 3.10.8`.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Tells when the broker blocks and unblocks publishing.
    pub(super) fn blocked(&self) -> &Receiver<ConnectionBlockedNotification> {
        &self.blocked
    }

    /// Says goodbye and returns why the connection ended, if it had ended before. Channels have to be closed
    /// first: what is queued on them is lost otherwise (AMIQUIP.md, H4).
    pub fn close(mut self) -> Option<Fault> {
        let connection = self.connection.take()?;
        let _guard = self.kill.guard(CLOSE_TIMEOUT, "the goodbye");
        let error = connection.close().err()?;
        Some(explain(error.into(), &self.kill, &self.sightings))
    }

    /// Cuts the connection without a goodbye: for one that is known to be stuck or blocked, where a goodbye would
    /// never be read.
    pub fn cut(self, why: &str) {
        self.kill.fire(why);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _guard = self.kill.guard(CLOSE_TIMEOUT, "the goodbye");
            drop(connection);
        }
    }
}

/// One URL's share of an attempt to connect.
struct Dial<'a> {
    url: &'a BrokerUrl,
    options: &'a SessionOptions,
    purpose: Purpose,
    deadline: Instant,
    #[cfg(feature = "tls")]
    tls: Option<&'a super::tls::Connector>,
}

impl Dial<'_> {
    fn any_address(&self) -> std::result::Result<Session, Fault> {
        let addresses = resolve(&self.url.host, self.url.port, self.deadline)?;
        let mut last = Fault::lost("its name has no address");
        for (tried, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match self.address(address, remaining(self.deadline) / left) {
                Ok(session) => return Ok(session),
                // "Connection refused" at ::1 says less than what happened at the address that accepted.
                Err(fault) if last.kind == Kind::Refused => drop(fault),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    fn address(&self, address: &SocketAddr, share: Duration) -> std::result::Result<Session, Fault> {
        let too_late = || Fault::lost("no answer within the connect timeout");
        if share.is_zero() {
            return Err(too_late());
        }
        let until = Instant::now() + share;
        let (tcp, kill) = Socket::connect(address, share).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => too_late(),
            std::io::ErrorKind::ConnectionRefused => {
                Fault::lost(format!("connection refused: nothing listens on {address}"))
            }
            _ => Fault::lost(format!("{error} ({address})")),
        })?;
        let _guard = kill.guard(remaining(until), "the connection attempt");
        let socket =
            self.socket(tcp).map_err(|fault| if kill.fired().is_some() { too_late() } else { fault })?;
        let sightings = socket.sightings();
        let tuning = ConnectionTuning::default().mem_channel_bound(self.purpose.channel_bound());
        let opened = match &self.url.credentials {
            Credentials::Plain { user, password } => {
                let auth = Auth::Plain { username: user.clone(), password: password.clone() };
                Connection::insecure_open_stream(socket, self.amqp_options(auth), tuning)
            }
            Credentials::External => {
                Connection::insecure_open_stream(socket, self.amqp_options(Auth::External), tuning)
            }
        };
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(_) if kill.fired().is_some() => return Err(too_late()),
            Err(amiquip::Error::InvalidCredentials) => return Err(refused_or_lost(&sightings)),
            Err(error) => return Err(explain(error.into(), &kill, &sightings)),
        };
        let blocked = connection
            .listen_for_connection_blocked()
            .map_err(|error| explain(error.into(), &kill, &sightings))?;
        let server = server_name(&connection);
        Ok(Session {
            connection: Some(connection),
            kill,
            sightings,
            blocked,
            label: self.url.to_string(),
            server,
        })
    }

    #[cfg(feature = "tls")]
    fn socket(&self, tcp: std::net::TcpStream) -> std::result::Result<Socket, Fault> {
        match self.tls {
            Some(connector) if self.url.tls => Socket::tls(tcp, connector.native(), &self.url.host)
                .map_err(|failure| super::tls::failure_fault(failure, &self.url.host)),
            _ => Socket::plain(tcp).map_err(|error| Fault::lost(error.to_string())),
        }
    }

    #[cfg(not(feature = "tls"))]
    fn socket(&self, tcp: std::net::TcpStream) -> std::result::Result<Socket, Fault> {
        if self.url.tls {
            return Err(Fault::connection(Kind::Configuration, "this taskq was built without TLS"));
        }
        Socket::plain(tcp).map_err(|error| Fault::lost(error.to_string()))
    }

    fn amqp_options(&self, auth: Auth) -> ConnectionOptions<Auth> {
        let heartbeat = self.options.heartbeat.or(self.url.heartbeat).unwrap_or(DEFAULT_HEARTBEAT);
        let channel_max = self.url.channel_max.filter(|max| *max > 0).unwrap_or(CHANNEL_MAX);
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(self.url.vhost.clone())
            .channel_max(channel_max)
            .frame_max(FRAME_MAX)
            .heartbeat(u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX))
            .information(Some(identity(self.purpose)))
    }
}

/// This machine's name; empty where it has none that is UTF-8.
#[must_use]
pub fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// What an operator sees among the broker's connections.
fn identity(purpose: Purpose) -> String {
    format!(
        "taskq {} {} on {}, process {}",
        env!("CARGO_PKG_VERSION"),
        purpose.name(),
        host_name(),
        std::process::id()
    )
}

/// `InvalidCredentials` is what amiquip makes of any end after the user name was sent; only a broker that closed
/// the connection in good order has refused it.
fn refused_or_lost(sightings: &Sightings) -> Fault {
    if let Some(violation) = sightings.violation() {
        return Fault::lost(violation.to_string());
    }
    if sightings.eof() {
        return Fault::connection(Kind::Refused, "user name or password refused");
    }
    Fault::lost(sightings.error().unwrap_or_else(|| "the connection broke during the login".to_owned()))
}

/// The cause behind amiquip's view of an end: our own deadline, what the socket saw, or amiquip's error.
fn explain(fault: Fault, kill: &KillSwitch, sightings: &Sightings) -> Fault {
    if fault.kind != Kind::Lost {
        return fault;
    }
    let violation = sightings.violation().map(|violation| violation.to_string());
    fault.because(kill.fired().or(violation))
}

fn server_name(connection: &Connection) -> String {
    let text = |key: &str| match connection.server_properties().get(key) {
        Some(AmqpValue::LongString(text)) => crate::output::escape(text),
        _ => "?".to_owned(),
    };
    format!("{} {}", text("product"), text("version"))
}

/// All addresses of a host. Names are looked up on a thread of their own: the system's resolver has no deadline.
fn resolve(host: &str, port: u16, deadline: Instant) -> std::result::Result<Vec<SocketAddr>, Fault> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let name = host.to_owned();
    thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
            // Nobody listens any more when it took too long.
            let _ = sender.send(found);
        })
        .map_err(|error| Fault::lost(format!("cannot start a thread: {error}")))?;
    match receiver.recv_deadline(deadline) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(Fault::lost("its name has no address")),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(Fault::lost(format!("cannot resolve its name: {error}"))),
        Err(_) => Err(Fault::lost("its name was not resolved within the connect timeout")),
    }
}

fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Where to begin, so that many workers spread over the brokers.
fn random_index(len: usize) -> usize {
    usize::try_from(crate::backoff::random() >> 32).unwrap_or_default().checked_rem(len).unwrap_or_default()
}

/// One error for all the brokers that were tried. Refusals are told apart only when there was nothing else: an
/// unreachable broker may come back.
fn combine(failures: Vec<(String, Fault)>) -> Error {
    let single = failures.len() == 1;
    let all = |kind| failures.iter().all(|(_, fault)| fault.kind == kind);
    let kind = [Kind::Refused, Kind::Configuration].into_iter().find(|kind| all(*kind)).unwrap_or(Kind::Lost);
    let told: Vec<String> = failures.into_iter().map(|(url, fault)| format!("{url}: {fault}")).collect();
    let told = told.join("; ");
    match kind {
        Kind::Refused => Error::refused(format!(
            "access to the broker was refused: {told}. Check the user, the password and the vhost in the URL"
        )),
        Kind::Configuration => Error::configuration(format!("cannot connect: {told}")),
        _ if single => Error::unavailable(format!(
            "cannot reach the broker: {told}. Is RabbitMQ running there, and is the URL right (--url, TASKQ_URL)?"
        )),
        _ => Error::unavailable(format!("cannot reach any of the brokers: {told}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: Kind) -> (String, Fault) {
        ("amqp://guest@h:1".to_owned(), Fault::connection(kind, "why"))
    }

    #[test]
    fn several_failures_make_one_error() {
        use crate::error::Exit;
        assert_eq!(combine(vec![failure(Kind::Lost)]).exit, Exit::Unavailable);
        assert_eq!(combine(vec![failure(Kind::Refused)]).exit, Exit::Refused);
        assert_eq!(combine(vec![failure(Kind::Refused), failure(Kind::Lost)]).exit, Exit::Unavailable);
        assert_eq!(combine(vec![failure(Kind::Refused), failure(Kind::Refused)]).exit, Exit::Refused);
        assert_eq!(combine(vec![failure(Kind::Configuration)]).exit, Exit::Configuration);
    }

    #[test]
    fn the_starting_point_is_within_the_list() {
        for len in 1..5 {
            for _ in 0..50 {
                assert!(random_index(len) < len);
            }
        }
        assert_eq!(random_index(0), 0);
    }
}
