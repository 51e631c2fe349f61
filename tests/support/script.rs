//! A server that does what a test's closure says, such as what no broker would do.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct Script {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Script {
    /// Runs `script` for each connection, on a thread of its own; the connection is closed when it returns.
    pub(crate) fn run<F>(script: F) -> Self
    where
        F: Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, counted) = (Arc::new(script), Arc::clone(&connections));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
                let script = Arc::clone(&script);
                // The client going away in the middle is no failure of the server.
                std::thread::spawn(move || drop(script(&mut stream)));
            }
        });
        Self { port, connections }
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Reads and drops what comes until the client closes, and so keeps the connection open.
pub(crate) fn hold(stream: &mut TcpStream) -> io::Result<()> {
    let mut chunk = [0; 4096];
    while stream.read(&mut chunk)? > 0 {}
    Ok(())
}
