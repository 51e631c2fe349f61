//! The socket under a connection: TCP with a deadline and `TCP_NODELAY`, TLS on top where the URL asks for it,
//! and a look at every incoming byte before amiquip sees it, and at every frame before it goes out.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amiquip::IoStream;
use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use super::accounts::Accounts;
use super::frames::{FrameFilter, Tuned};
use super::outgoing::Outgoing;
use super::violation::Violation;
use super::watchdog::KillSwitch;
use crate::lock::lock;

/// A half-open connection is found by heartbeats. Should there be none, then by the kernel after this long without
/// traffic.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// What the socket saw that amiquip does not tell.
#[derive(Debug, Clone, Default)]
pub(super) struct SocketReport(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    closed_by_peer: bool,
    violation: Option<Violation>,
    error: Option<String>,
    tuned: Option<Tuned>,
}

impl SocketReport {
    /// The peer ended the connection, in good order or by a reset.
    pub(super) fn closed_by_peer(&self) -> bool {
        self.with(|seen| seen.closed_by_peer)
    }

    /// What the peer sent that is no acceptable AMQP.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.with(|seen| seen.violation.clone())
    }

    /// The errors of the socket itself, the first one first.
    pub(super) fn error(&self) -> Option<String> {
        self.with(|seen| seen.error.clone())
    }

    /// None before connection.tune.
    pub(super) fn tuned(&self) -> Option<Tuned> {
        self.with(|seen| seen.tuned)
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut lock(&self.0))
    }
}

/// What amiquip reads from and writes to.
pub(super) struct Socket {
    stream: Stream,
    filter: FrameFilter,
    outgoing: Outgoing,
    accounts: Accounts,
    report: SocketReport,
    kill: KillSwitch,
}

enum Stream {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<native_tls::TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.get_ref(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buf),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(buf),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(),
        }
    }
}

impl Socket {
    /// Opens a TCP connection; also returns what cuts it. The stream blocks until [`Socket::plain`] or
    /// [`Socket::tls`] takes it.
    pub(super) fn connect(address: &SocketAddr, timeout: Duration) -> io::Result<(StdStream, KillSwitch)> {
        let tcp = StdStream::connect_timeout(address, timeout)?;
        // Without it every small publish waits for the kernel's delayed acknowledgement: 43 ms instead of 0.5.
        tcp.set_nodelay(true)?;
        let kill = KillSwitch::new(tcp.try_clone()?);
        Ok((tcp, kill))
    }

    /// AMQP in clear.
    pub(super) fn plain(tcp: StdStream, kill: KillSwitch) -> io::Result<Self> {
        let tcp = TcpStream::from_stream(tcp)?;
        tcp.set_keepalive(Some(KEEPALIVE))?;
        Ok(Self::over(Stream::Plain(tcp), kill))
    }

    /// AMQP over TLS: performs the handshake, which blocks until the peer answers or the kill switch fires.
    #[cfg(feature = "tls")]
    pub(super) fn tls(
        tcp: StdStream,
        kill: KillSwitch,
        connector: &native_tls::TlsConnector,
        host: &str,
    ) -> std::result::Result<Self, TlsFailure> {
        // O_NONBLOCK belongs to the open file, which this clone shares: amiquip needs it set, the handshake not.
        let mode = tcp.try_clone()?;
        let tcp = TcpStream::from_stream(tcp)?;
        tcp.set_keepalive(Some(KEEPALIVE))?;
        mode.set_nonblocking(false)?;
        let tls = match connector.connect(host, tcp) {
            Ok(tls) => tls,
            Err(native_tls::HandshakeError::Failure(error)) => return Err(TlsFailure::Handshake(error)),
            Err(native_tls::HandshakeError::WouldBlock(_)) => {
                return Err(TlsFailure::Io(io::ErrorKind::TimedOut.into()));
            }
        };
        mode.set_nonblocking(true)?;
        Ok(Self::over(Stream::Tls(Box::new(tls)), kill))
    }

    fn over(stream: Stream, kill: KillSwitch) -> Self {
        Self {
            stream,
            filter: FrameFilter::default(),
            outgoing: Outgoing::default(),
            accounts: Accounts::default(),
            report: SocketReport::default(),
            kill,
        }
    }

    /// Stays readable after amiquip has taken the socket.
    pub(super) fn report(&self) -> SocketReport {
        self.report.clone()
    }

    /// TLS 1.3 refuses a client certificate after the handshake, with words that lie unread when the next write fails.
    fn hear_last_words(&mut self) {
        if let Err(error) = self.stream.read(&mut [0]) {
            self.note_error(&error);
        }
    }

    fn note_error(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted {
            let reset = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
            self.report.with(|seen| {
                seen.closed_by_peer |= reset;
                match &mut seen.error {
                    None => seen.error = Some(error.to_string()),
                    Some(first) => *first = format!("{first}; {error}"),
                }
            });
        }
    }
}

/// Why a TLS handshake did not succeed.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub(super) enum TlsFailure {
    /// TLS itself: certificates, versions, or a peer that speaks something else.
    Handshake(native_tls::Error),
    /// The connection under it.
    Io(io::Error),
}

#[cfg(feature = "tls")]
impl From<io::Error> for TlsFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.filter.take(buf);
            if count > 0 || buf.is_empty() {
                return Ok(count);
            }
            // The caller's buffer is used for reading; the caller gets of it what has been checked.
            let count = self.stream.read(buf).inspect_err(|error| self.note_error(error))?;
            if count == 0 {
                self.report.with(|seen| seen.closed_by_peer = true);
                return Ok(0);
            }
            let before = self.filter.tuned();
            let looked = self.filter.put(&buf[..count], &mut self.accounts);
            if self.filter.tuned() != before {
                self.report.with(|seen| seen.tuned = self.filter.tuned());
            }
            match looked {
                Ok(true) => self.kill.note_arrival(count),
                Ok(false) => {}
                Err(violation) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, violation.to_string());
                    // So that whatever call meets the end of the connection can tell why.
                    self.kill.fire(&violation.to_string());
                    self.report.with(|seen| seen.violation = Some(violation));
                    return Err(error);
                }
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let result = self.outgoing.write(&mut self.stream, buf, &mut self.accounts);
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::WouldBlock
        {
            self.note_error(error);
            self.hear_last_words();
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Evented for Socket {
    fn register(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.tcp().register(poll, token, interest, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.tcp().reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.stream.tcp().deregister(poll)
    }
}

impl IoStream for Socket {}
