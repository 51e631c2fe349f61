//! A TCP proxy in front of a node: what a network does to a connection, without the cost of a node's restart.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

/// The direction in which bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    ToBroker,
    ToClient,
}

pub(crate) const DIRECTIONS: [Direction; 2] = [Direction::ToBroker, Direction::ToClient];

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Forward,
    /// No byte is forwarded and no connection is closed: as with a frozen broker.
    Stall,
    /// Bytes are read and dropped.
    Vanish,
}

/// What the network does to the bytes of one direction.
#[derive(Clone, Copy, Default)]
struct Link {
    flow: Flow,
    /// How long each piece is held before it is forwarded.
    delay: Duration,
    /// In bytes per second.
    speed: Option<usize>,
    /// After so many further bytes, whatever connection they belong to, that connection is reset.
    reset_after: Option<usize>,
}

#[derive(Default)]
struct Network {
    /// New connections are closed at once, as by a port where nobody listens.
    refuses: bool,
    links: [Link; 2],
}

/// What the proxy has done to a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    Open,
    /// The broker's side is closed, and the client's is left open.
    HalfOpen,
    Reset,
}

/// Both halves of one connection; closed when both its threads have ended.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    state: Mutex<ConnectionState>,
}

#[derive(Default)]
struct State {
    network: Mutex<Network>,
    changed: Condvar,
    pairs: Mutex<Vec<Weak<Pair>>>,
    accepted: Mutex<usize>,
}

pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
}

impl Proxy {
    pub(crate) fn to(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self::forwarding(listener, target)
    }

    /// Listens on `::1`, in front of a node that listens on 127.0.0.1.
    pub(crate) fn on_ipv6_to(target: u16) -> Self {
        let listener = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).unwrap();
        Self::forwarding(listener, target)
    }

    fn forwarding(listener: TcpListener, target: u16) -> Self {
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<State>::default();
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                *accepting.accepted.lock().unwrap() += 1;
                if accepting.network.lock().unwrap().refuses {
                    continue;
                }
                let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
                let Ok(server) = TcpStream::connect(target) else { continue };
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                let pair = Arc::new(Pair { client, server, state: Mutex::new(ConnectionState::Open) });
                accepting.pairs.lock().unwrap().push(Arc::downgrade(&pair));
                for direction in DIRECTIONS {
                    let (pair, state) = (Arc::clone(&pair), Arc::clone(&accepting));
                    std::thread::spawn(move || forward(&pair, direction, &state));
                }
            }
        });
        Self { port, state }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many connections have come in so far.
    pub(crate) fn accepted(&self) -> usize {
        *self.state.accepted.lock().unwrap()
    }

    /// Cuts all connections; new ones go through.
    pub(crate) fn cut(&self) {
        self.each(|pair| {
            let _ = pair.client.shutdown(Shutdown::Both);
            let _ = pair.server.shutdown(Shutdown::Both);
        });
    }

    /// Closes the broker's side of all connections and leaves the clients' open; new connections go through.
    pub(crate) fn half_open(&self) {
        self.each(|pair| {
            *pair.state.lock().unwrap() = ConnectionState::HalfOpen;
            let _ = pair.server.shutdown(Shutdown::Both);
        });
    }

    /// Cuts all connections and accepts no new ones.
    pub(crate) fn refuse(&self) {
        self.change(|network| network.refuses = true);
        self.cut();
    }

    /// Forwards nothing any more, and closes no connection.
    pub(crate) fn stall(&self) {
        self.change(|network| network.links.iter_mut().for_each(|link| link.flow = Flow::Stall));
    }

    /// Drops what is sent in this direction, without closing a connection. One that lost bytes never works again.
    pub(crate) fn vanish(&self, direction: Direction) {
        self.change(|network| network.links[direction as usize].flow = Flow::Vanish);
    }

    /// Holds each piece that long, in both directions.
    pub(crate) fn delay(&self, delay: Duration) {
        self.change(|network| network.links.iter_mut().for_each(|link| link.delay = delay));
    }

    /// Forwards so many bytes per second in this direction.
    pub(crate) fn slow_down(&self, direction: Direction, speed: usize) {
        self.change(|network| network.links[direction as usize].speed = Some(speed));
    }

    /// Resets one connection: that whose byte follows so many others in this direction.
    pub(crate) fn reset_after(&self, direction: Direction, bytes: usize) {
        self.change(|network| network.links[direction as usize].reset_after = Some(bytes));
    }

    /// Ends a stall, and nothing else.
    pub(crate) fn flow(&self) {
        self.change(|network| network.links.iter_mut().for_each(|link| link.flow = Flow::Forward));
    }

    /// Back to forwarding.
    pub(crate) fn resume(&self) {
        self.change(|network| *network = Network::default());
    }

    fn each(&self, act: impl Fn(&Pair)) {
        self.state
            .pairs
            .lock()
            .unwrap()
            .drain(..)
            .filter_map(|pair| pair.upgrade())
            .for_each(|pair| act(&pair));
    }

    fn change(&self, change: impl FnOnce(&mut Network)) {
        change(&mut self.state.network.lock().unwrap());
        self.state.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.resume();
        self.refuse();
    }
}

/// How many pieces are forwarded per second where the speed is limited.
const PIECES: u32 = 20;

fn forward(pair: &Pair, direction: Direction, state: &State) {
    let (mut from, mut to) = match direction {
        Direction::ToBroker => (&pair.client, &pair.server),
        Direction::ToClient => (&pair.server, &pair.client),
    };
    let mut buffer = vec![0; 64 * 1024];
    // TCP delivers nothing beyond a gap, so a connection that lost bytes gets no more, even once the network works
    // again.
    let mut gap = false;
    loop {
        let speed = state.network.lock().unwrap().links[direction as usize].speed;
        let piece = speed.map_or(buffer.len(), |speed| (speed / PIECES as usize).max(1));
        let Ok(count @ 1..) = from.read(&mut buffer[..piece]) else { break };
        let network = state.network.lock().unwrap();
        let stalled = |network: &mut Network| network.links[direction as usize].flow == Flow::Stall;
        let mut network = state.changed.wait_while(network, stalled).unwrap();
        let link = &mut network.links[direction as usize];
        let reset = link.reset_after.is_some_and(|left| left < count);
        let count = link.reset_after.filter(|_| reset).unwrap_or(count);
        link.reset_after = link.reset_after.filter(|_| !reset).map(|left| left - count);
        let link = *link;
        drop(network);
        gap = gap || link.flow == Flow::Vanish;
        if gap || *pair.state.lock().unwrap() == ConnectionState::HalfOpen {
            continue;
        }
        std::thread::sleep(
            link.delay + link.speed.map_or(Duration::ZERO, |_| Duration::from_secs(1) / PIECES),
        );
        if to.write_all(&buffer[..count]).is_err() && *pair.state.lock().unwrap() != ConnectionState::HalfOpen
        {
            break;
        }
        if reset {
            prepare_reset(pair);
            return;
        }
    }
    if *pair.state.lock().unwrap() == ConnectionState::Open {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Makes the later close of both sockets a reset: no FIN, and what is still in their buffers is lost.
fn prepare_reset(pair: &Pair) {
    *pair.state.lock().unwrap() = ConnectionState::Reset;
    for stream in [&pair.client, &pair.server] {
        let same = mio::net::TcpStream::from_stream(stream.try_clone().unwrap()).unwrap();
        same.set_linger(Some(Duration::ZERO)).unwrap();
        // Wakes the other thread, and sends nothing.
        let _ = stream.shutdown(Shutdown::Read);
    }
}
