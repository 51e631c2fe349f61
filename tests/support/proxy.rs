//! A TCP proxy in front of a node: what a network does to a connection, without the cost of a node's restart.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    /// New connections are closed at once, as by a port where nobody listens.
    Refuse,
    /// Connections stay open and nothing moves, as with a frozen broker.
    Stall,
}

struct State {
    mode: Mutex<Mode>,
    changed: Condvar,
    streams: Mutex<Vec<TcpStream>>,
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
        let state = Arc::new(State {
            mode: Mutex::new(Mode::Forward),
            changed: Condvar::new(),
            streams: Mutex::default(),
            accepted: Mutex::default(),
        });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                *accepting.accepted.lock().unwrap() += 1;
                if *accepting.mode.lock().unwrap() == Mode::Refuse {
                    continue;
                }
                let target = SocketAddr::from((Ipv4Addr::LOCALHOST, target));
                let Ok(server) = TcpStream::connect(target) else { continue };
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let state = Arc::clone(&accepting);
                    std::thread::spawn(move || forward(from, to, &state));
                }
                accepting.streams.lock().unwrap().extend([client, server]);
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
        for stream in self.state.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Cuts all connections and accepts no new ones.
    pub(crate) fn refuse(&self) {
        self.set(Mode::Refuse);
        self.cut();
    }

    /// Nothing moves any more, and nobody is told.
    pub(crate) fn stall(&self) {
        self.set(Mode::Stall);
    }

    /// Back to forwarding.
    pub(crate) fn resume(&self) {
        self.set(Mode::Forward);
    }

    fn set(&self, mode: Mode) {
        *self.state.mode.lock().unwrap() = mode;
        self.state.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        let mode = state.mode.lock().unwrap();
        drop(state.changed.wait_while(mode, |mode| *mode == Mode::Stall).unwrap());
        if to.write_all(&chunk[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
