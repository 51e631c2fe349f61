//! A TCP proxy in front of a node: what a network does to a connection, without the cost of a node's restart.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

/// The direction in which bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    ToBroker,
    ToClient,
}

pub(crate) const WAYS: [Way; 2] = [Way::ToBroker, Way::ToClient];

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Forward,
    /// Nothing moves, and nobody is told: as with a frozen broker.
    Stall,
    /// Bytes are taken and never arrive.
    Vanish,
}

/// How one way is.
#[derive(Clone, Copy, Default)]
struct Road {
    flow: Flow,
    /// What each piece waits before it goes on.
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
    roads: [Road; 2],
}

/// How a connection ends that does not end by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// The broker's side is gone, and the client's was never told.
    HalfOpen,
    Reset,
}

/// Both halves of one connection; closed when both its threads have ended.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    fate: Mutex<Fate>,
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
                let pair = Arc::new(Pair { client, server, fate: Mutex::new(Fate::Open) });
                accepting.pairs.lock().unwrap().push(Arc::downgrade(&pair));
                for way in WAYS {
                    let (pair, state) = (Arc::clone(&pair), Arc::clone(&accepting));
                    std::thread::spawn(move || forward(&pair, way, &state));
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

    /// The broker loses all connections, and the clients are not told; new ones go through.
    pub(crate) fn half_open(&self) {
        self.each(|pair| {
            *pair.fate.lock().unwrap() = Fate::HalfOpen;
            let _ = pair.server.shutdown(Shutdown::Both);
        });
    }

    /// Cuts all connections and accepts no new ones.
    pub(crate) fn refuse(&self) {
        self.change(|network| network.refuses = true);
        self.cut();
    }

    /// Nothing moves any more, and nobody is told.
    pub(crate) fn stall(&self) {
        self.change(|network| network.roads.iter_mut().for_each(|road| road.flow = Flow::Stall));
    }

    /// What is sent this way never arrives, and nobody is told. A connection that lost something is lost itself.
    pub(crate) fn vanish(&self, way: Way) {
        self.change(|network| network.roads[way as usize].flow = Flow::Vanish);
    }

    /// Each piece takes so much longer, both ways.
    pub(crate) fn delay(&self, delay: Duration) {
        self.change(|network| network.roads.iter_mut().for_each(|road| road.delay = delay));
    }

    /// So many bytes per second go this way.
    pub(crate) fn slow_down(&self, way: Way, speed: usize) {
        self.change(|network| network.roads[way as usize].speed = Some(speed));
    }

    /// The connection of the byte that follows so many others this way is reset; later ones are not.
    pub(crate) fn reset_after(&self, way: Way, bytes: usize) {
        self.change(|network| network.roads[way as usize].reset_after = Some(bytes));
    }

    /// Ends a stall, and nothing else.
    pub(crate) fn flow(&self) {
        self.change(|network| network.roads.iter_mut().for_each(|road| road.flow = Flow::Forward));
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

/// How many pieces a slow way takes in a second.
const PIECES: u32 = 20;

fn forward(pair: &Pair, way: Way, state: &State) {
    let (mut from, mut to) = match way {
        Way::ToBroker => (&pair.client, &pair.server),
        Way::ToClient => (&pair.server, &pair.client),
    };
    let mut room = vec![0; 64 * 1024];
    // TCP delivers nothing beyond a gap, so the road stays empty for this connection even when the weather is fine.
    let mut gap = false;
    loop {
        let speed = state.network.lock().unwrap().roads[way as usize].speed;
        let piece = speed.map_or(room.len(), |speed| (speed / PIECES as usize).max(1));
        let Ok(count @ 1..) = from.read(&mut room[..piece]) else { break };
        let network = state.network.lock().unwrap();
        let stalled = |network: &mut Network| network.roads[way as usize].flow == Flow::Stall;
        let mut network = state.changed.wait_while(network, stalled).unwrap();
        let road = &mut network.roads[way as usize];
        let reset = road.reset_after.is_some_and(|left| left < count);
        let count = road.reset_after.filter(|_| reset).unwrap_or(count);
        road.reset_after = road.reset_after.filter(|_| !reset).map(|left| left - count);
        let road = *road;
        drop(network);
        gap = gap || road.flow == Flow::Vanish;
        if gap || *pair.fate.lock().unwrap() == Fate::HalfOpen {
            continue;
        }
        std::thread::sleep(
            road.delay + road.speed.map_or(Duration::ZERO, |_| Duration::from_secs(1) / PIECES),
        );
        if to.write_all(&room[..count]).is_err() && *pair.fate.lock().unwrap() != Fate::HalfOpen {
            break;
        }
        if reset {
            prepare_reset(pair);
            return;
        }
    }
    if *pair.fate.lock().unwrap() == Fate::Open {
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Whoever closes the sockets resets them: no goodbye, and what is still on its way is lost.
fn prepare_reset(pair: &Pair) {
    *pair.fate.lock().unwrap() = Fate::Reset;
    for stream in [&pair.client, &pair.server] {
        let same = mio::net::TcpStream::from_stream(stream.try_clone().unwrap()).unwrap();
        same.set_linger(Some(Duration::ZERO)).unwrap();
        // Wakes the other thread, and sends nothing.
        let _ = stream.shutdown(Shutdown::Read);
    }
}
