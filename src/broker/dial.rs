//! How a session is opened: names looked up, addresses tried in turn, TCP, TLS and AMQP handshakes, all of it within
//! one deadline.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning};

use super::fault::{Fault, FaultKind};
use super::frames::FRAME_MAX;
use super::server::Server;
use super::session::{ConnectionPurpose, Session, SessionOptions, explain, host_name};
use super::socket::{Socket, SocketReport};
use super::url::{BrokerUrl, Credentials};
use super::watchdog::{self, KillSwitch};
use crate::error::{Error, Exit, Result};
use crate::output::counted;
use crate::shortage;

/// The channels of one connection, unless the URL says otherwise: RabbitMQ's own default.
const CHANNEL_MAX: u16 = 2047;
/// amiquip hangs when it looks for one more than 65,535 (docs/amiquip.md, H17).
const LARGEST_CHANNEL_MAX: u16 = u16::MAX - 1;
/// What opening a connection takes for itself: its socket thrice, a poll and what wakes it; amiquip's two threads and
/// the one that looks a name up.
const DESCRIPTORS: usize = 8;
const THREADS: usize = 3;
/// `--heartbeat` unless given there or in the URL.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);
/// How many of a name's addresses an error tells of: as many as the largest clusters have nodes. Their texts are short.
const MAX_TOLD: usize = 7;

/// How many channels to ask the broker for. 0 means no limit.
fn channel_max(url: &BrokerUrl) -> u16 {
    url.channel_max.filter(|max| *max > 0).unwrap_or(CHANNEL_MAX).min(LARGEST_CHANNEL_MAX)
}

impl Session {
    /// Connects to the first broker that answers.
    ///
    /// # Errors
    /// Unavailable, refused or configuration, with what happened at each address. Returns within the connect
    /// timeout.
    pub fn open(options: &SessionOptions, purpose: ConnectionPurpose) -> Result<Self> {
        watchdog::start()?;
        match dial(options, purpose) {
            // A password is changed in the broker and in the file, one after the other.
            Err(error) if error.exit == Exit::Refused && options.urls.read_again() => dial(options, purpose),
            opened => opened,
        }
    }
}

fn dial(options: &SessionOptions, purpose: ConnectionPurpose) -> Result<Session> {
    // In time, because amiquip panics where it cannot start a thread, and a name that cannot be looked up for want of
    // descriptors looks like one that does not exist.
    if let Err(error) = shortage::probe(DESCRIPTORS, THREADS) {
        return Err(Error::no_descriptor(format!("cannot connect: {}", shortage::reason(&error))));
    }
    let urls = options.urls.current();
    #[cfg(feature = "tls")]
    let tls =
        if urls.iter().any(|url| url.tls) { Some(super::tls::Connector::new(&options.tls)?) } else { None };
    let deadline = Instant::now() + options.connect_timeout();
    let mut failures: Vec<(String, Fault)> = Vec::new();
    let first = random_index(urls.len());
    let turns = urls.len();
    for turn in 0..turns {
        let url = &urls[(first + turn) % turns];
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

/// One URL's share of an attempt to connect.
struct Dial<'a> {
    url: &'a BrokerUrl,
    options: &'a SessionOptions,
    purpose: ConnectionPurpose,
    deadline: Instant,
    #[cfg(feature = "tls")]
    tls: Option<&'a super::tls::Connector>,
}

impl Dial<'_> {
    fn any_address(&self) -> std::result::Result<Session, Fault> {
        if let Ok(address) = self.url.host.parse::<IpAddr>() {
            // The URL tells which address it was.
            return self.address(&SocketAddr::new(address, self.url.port), remaining(self.deadline));
        }
        let mut addresses = resolve(&self.url.host, self.url.port, self.deadline)?;
        // The resolver begins with the same one for all workers of a machine.
        let first = random_index(addresses.len());
        addresses.rotate_left(first);
        self.any_of(&addresses)
    }

    fn any_of(&self, addresses: &[SocketAddr]) -> std::result::Result<Session, Fault> {
        let mut failures = Vec::new();
        for (tried, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match self.address(address, remaining(self.deadline) / left) {
                Ok(session) => return Ok(session),
                Err(fault) => failures.push((*address, fault)),
            }
        }
        Err(together(failures))
    }

    fn address(&self, address: &SocketAddr, share: Duration) -> std::result::Result<Session, Fault> {
        let too_late = || Fault::lost("no answer within the connect timeout");
        if share.is_zero() {
            return Err(too_late());
        }
        let until = Instant::now() + share;
        let (tcp, kill) = Socket::connect(address, share).map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => too_late(),
            std::io::ErrorKind::ConnectionRefused => Fault::lost("connection refused: nothing listens there"),
            _ => Fault::of_this_machine(&error),
        })?;
        let _guard = kill.guard(remaining(until), "the connection attempt");
        let socket = self
            .socket(tcp, kill.clone())
            .map_err(|fault| if kill.fired().is_some() { too_late() } else { fault })?;
        let report = socket.report();
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
        if let (Err(_), Some(violation)) = (&opened, report.violation()) {
            return Err(Fault::lost(violation.to_string()));
        }
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(_) if kill.fired().is_some() => return Err(too_late()),
            Err(amiquip::Error::InvalidCredentials) => {
                return Err(refused_or_lost(&report, &self.url.credentials));
            }
            Err(error) => {
                // TLS 1.3 refuses a missing client certificate only after the handshake.
                #[cfg(feature = "tls")]
                if let Some(fault) = report.error().and_then(|error| super::tls::alert_fault(&error)) {
                    return Err(fault);
                }
                return Err(explain(error.into(), &kill));
            }
        };
        let blocked = match self.purpose {
            ConnectionPurpose::Publish => {
                connection.listen_for_connection_blocked().map_err(|error| explain(error.into(), &kill))?
            }
            // Nobody would listen, and amiquip would keep them.
            ConnectionPurpose::Consume => crossbeam_channel::never(),
        };
        let server = Server::told_by(connection.server_properties());
        let about = (server, self.purpose, channel_max(self.url));
        Ok(Session::new(connection, (kill, report), blocked, self.url.to_string(), about))
    }

    #[cfg(feature = "tls")]
    fn socket(&self, tcp: std::net::TcpStream, kill: KillSwitch) -> std::result::Result<Socket, Fault> {
        match self.tls {
            Some(connector) if self.url.tls => Socket::tls(tcp, kill, connector.native(), &self.url.host)
                .map_err(|failure| super::tls::failure_fault(failure, &self.url.host)),
            _ => Socket::plain(tcp, kill).map_err(|error| Fault::of_this_machine(&error)),
        }
    }

    #[cfg(not(feature = "tls"))]
    fn socket(&self, tcp: std::net::TcpStream, kill: KillSwitch) -> std::result::Result<Socket, Fault> {
        if self.url.tls {
            return Err(Fault::connection(FaultKind::Configuration, "this taskq was built without TLS"));
        }
        Socket::plain(tcp, kill).map_err(|error| Fault::of_this_machine(&error))
    }

    fn amqp_options(&self, auth: Auth) -> ConnectionOptions<Auth> {
        let heartbeat = self.options.heartbeat.or(self.url.heartbeat).unwrap_or(DEFAULT_HEARTBEAT);
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(self.url.vhost.clone())
            .channel_max(channel_max(self.url))
            .frame_max(FRAME_MAX)
            .heartbeat(u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX))
            .information(Some(identity(self.purpose)))
    }
}

/// What an operator sees among the broker's connections.
fn identity(purpose: ConnectionPurpose) -> String {
    format!(
        "taskq {} {} on {}, process {}",
        env!("CARGO_PKG_VERSION"),
        purpose.name(),
        host_name(),
        std::process::id()
    )
}

/// `InvalidCredentials` is what amiquip makes of any end after the user name was sent. A broker that refuses it closes
/// the connection without a word, or (with what we sent last unread) resets it. One that dies at that very moment looks
/// the same; that is why a refusal is believed at once only on the first connect.
fn refused_or_lost(report: &SocketReport, credentials: &Credentials) -> Fault {
    if report.closed_by_peer() {
        let words = match credentials {
            Credentials::Plain { .. } => {
                "user name or password refused (check them in the URL; guest may log in from the broker's machine only)"
            }
            Credentials::External => {
                "no user stands behind the client certificate, or there is none (--tls-cert, auth_mechanism=external)"
            }
        };
        return Fault::connection(FaultKind::Refused, words);
    }
    Fault::lost(report.error().unwrap_or_else(|| "the connection broke during the login".to_owned()))
}

/// All addresses of a name. It is looked up on a thread of its own: the system's resolver has no deadline.
fn resolve(host: &str, port: u16, deadline: Instant) -> std::result::Result<Vec<SocketAddr>, Fault> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let name = host.to_owned();
    thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
            // Nobody listens any more when it took too long.
            let _ = sender.send(found);
        })
        .map_err(|error| Fault::of_this_machine(&error))?;
    match receiver.recv_deadline(deadline) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err(Fault::lost("its name has no address")),
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) if shortage::explain(&error).is_some() => Err(Fault::of_this_machine(&error)),
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

/// One fault for all the addresses of a name. They are told in the same order wherever the attempts began, so that the
/// same trouble reads the same each time and is not told as a new one; those that refused come first.
fn together(mut failures: Vec<(SocketAddr, Fault)>) -> Fault {
    // "Connection refused" at ::1 says less than what happened at the address that accepted.
    failures.sort_by_key(|(address, fault)| (fault.kind != FaultKind::Refused, *address));
    let first = failures.first().map_or(FaultKind::Lost, |(_, fault)| fault.kind);
    let short = failures.iter().any(|(_, fault)| fault.kind == FaultKind::NoResources);
    let kind = if short && first != FaultKind::Refused { FaultKind::NoResources } else { first };
    let mut told: Vec<String> =
        failures.iter().take(MAX_TOLD).map(|(address, fault)| format!("{address}: {fault}")).collect();
    if let Some(others @ 1..) = failures.len().checked_sub(MAX_TOLD) {
        let others = counted(others as u64, "other address", "other addresses");
        told.push(format!("{others} failed as well"));
    }
    Fault::connection(kind, told.join("; "))
}

/// One error for all the brokers that were tried. Refusals are told apart only when there was nothing else: an
/// unreachable broker may come back.
fn combine(mut failures: Vec<(String, Fault)>) -> Error {
    // In the same order each time, so that the same trouble reads the same: the first one tried is a random one.
    failures.sort_by(|(one, _), (other, _)| one.cmp(other));
    let single = failures.len() == 1;
    let all = |kind| failures.iter().all(|(_, fault)| fault.kind == kind);
    let short = failures.iter().any(|(_, fault)| fault.kind == FaultKind::NoResources);
    let no_room = failures.iter().any(|(_, fault)| fault.kind == FaultKind::NoRoom);
    let kind = [FaultKind::Refused, FaultKind::Configuration]
        .into_iter()
        .find(|kind| all(*kind))
        .unwrap_or(if no_room { FaultKind::NoRoom } else { FaultKind::Lost });
    let told: Vec<String> = failures.into_iter().map(|(url, fault)| format!("{url}: {fault}")).collect();
    let told = told.join("; ");
    match kind {
        FaultKind::Refused => Error::turned_away(format!("access to the broker was refused: {told}")),
        FaultKind::Configuration => Error::configuration(format!("cannot connect: {told}")),
        FaultKind::NoRoom => Error::no_room(format!("cannot connect: {told}")),
        _ if short => Error::no_descriptor(format!("cannot connect: {told}")),
        _ if single => Error::unreached(format!("cannot reach the broker: {told}")),
        _ => Error::unreached(format!("cannot reach any of the brokers: {told}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FaultKind) -> (String, Fault) {
        ("amqp://guest@h:1".to_owned(), Fault::connection(kind, "why"))
    }

    #[test]
    fn amiquip_is_never_asked_for_the_channel_that_hangs_it() {
        let asked = |url| channel_max(&BrokerUrl::parse(url).unwrap());
        assert_eq!(asked("amqp://h"), CHANNEL_MAX);
        assert_eq!(asked("amqp://h?channel_max=0"), CHANNEL_MAX);
        assert_eq!(asked("amqp://h?channel_max=10"), 10);
        assert_eq!(asked("amqp://h?channel_max=65535"), 65_534);
    }

    #[test]
    fn the_order_of_attempts_does_not_change_what_is_said() {
        let lost = |url: &str| (url.to_owned(), Fault::connection(FaultKind::Lost, "why"));
        let (one, other) = (combine(vec![lost("a"), lost("b")]), combine(vec![lost("b"), lost("a")]));
        assert_eq!(one, other);
    }

    #[test]
    fn several_failures_make_one_error() {
        assert_eq!(combine(vec![failure(FaultKind::Lost)]).exit, Exit::Unavailable);
        assert_eq!(combine(vec![failure(FaultKind::Refused)]).exit, Exit::Refused);
        assert_eq!(
            combine(vec![failure(FaultKind::Refused), failure(FaultKind::Lost)]).exit,
            Exit::Unavailable
        );
        assert_eq!(
            combine(vec![failure(FaultKind::Refused), failure(FaultKind::Refused)]).exit,
            Exit::Refused
        );
        assert_eq!(combine(vec![failure(FaultKind::Configuration)]).exit, Exit::Configuration);
        let hint = |kind| {
            combine(vec![failure(kind), failure(FaultKind::Lost)])
                .on_first_connect()
                .to_string()
                .contains("RabbitMQ")
        };
        assert!(hint(FaultKind::Lost) && !hint(FaultKind::NoResources));
    }

    #[test]
    fn all_addresses_of_a_name_are_tried_and_none_takes_the_time_of_the_others() {
        use std::net::TcpListener;
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (silent, closed, last) = (listen(), listen(), listen());
        let addresses = [&silent, &closed, &last].map(|listener| listener.local_addr().unwrap());
        let [first, second, third] = addresses;
        drop(closed);
        let url = BrokerUrl::parse("amqp://several.example").unwrap();
        let options = SessionOptions {
            urls: super::super::url_list::UrlList::fixed(vec![url.clone()]),
            tls: super::super::tls::TlsFiles::default(),
            connect_timeout: None,
            heartbeat: None,
        };
        super::super::watchdog::start().unwrap();
        let dial = Dial {
            url: &url,
            options: &options,
            purpose: ConnectionPurpose::Publish,
            deadline: Instant::now() + Duration::from_millis(600),
            #[cfg(feature = "tls")]
            tls: None,
        };
        let Err(fault) = dial.any_of(&addresses) else { panic!("nobody answers there") };
        assert_eq!(fault.kind, FaultKind::Lost);
        let text = fault.to_string();
        let mut told: Vec<&str> = text.split("; ").collect();
        told.sort_unstable();
        let mut expected = [
            format!("{first}: no answer within the connect timeout"),
            format!("{second}: connection refused: nothing listens there"),
            format!("{third}: no answer within the connect timeout"),
        ];
        expected.sort_unstable();
        assert_eq!(told, expected);
        for listener in [silent, last] {
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_ok(), "not tried");
        }
    }

    #[test]
    fn the_failures_of_a_names_addresses_make_one_short_fault() {
        let address = |number: u8| SocketAddr::from(([192, 0, 2, number], 5672));
        let lost = |number| (address(number), Fault::lost("no answer"));
        let refused = |number| (address(number), Fault::connection(FaultKind::Refused, "password refused"));
        let fault = together(vec![lost(2), lost(1), refused(3)]);
        assert_eq!(fault.kind, FaultKind::Refused);
        let told = "192.0.2.3:5672: password refused; 192.0.2.1:5672: no answer; 192.0.2.2:5672: no answer";
        assert_eq!(fault.to_string(), told);
        // The same wherever it began.
        assert_eq!(together(vec![refused(3), lost(2), lost(1)]), fault);
        assert_eq!(together(vec![lost(1)]).to_string(), "192.0.2.1:5672: no answer");
        let many = together((1..=100).map(lost).collect()).to_string();
        assert_eq!(many.matches("no answer").count(), MAX_TOLD);
        assert!(many.ends_with("; 93 other addresses failed as well"), "{many}");
        let eight = together((1..=8).map(lost).collect()).to_string();
        assert!(eight.ends_with("; 1 other address failed as well"), "{eight}");
        assert!(!together((1..=7).map(lost).collect()).to_string().contains("other"));
    }

    #[test]
    fn the_starting_point_is_any_of_the_list() {
        for len in 1..5 {
            let seen: std::collections::BTreeSet<_> = (0..200).map(|_| random_index(len)).collect();
            assert!(seen.into_iter().eq(0..len));
        }
        assert_eq!(random_index(0), 0);
    }
}
