//! A producer that sends exactly the bytes it is told to, to a real broker: what other clients may do and amiquip
//! cannot.

use super::amqp::{
    self, CHANNEL_OPEN, CONFIRM, Method, PROTOCOL_HEADER, PUBLISH, long, method, read_frame, short,
};
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

pub(crate) const HEADERS: u16 = 1 << 13;
pub(crate) const CONTENT_TYPE: u16 = 1 << 15;
pub(crate) const CORRELATION_ID: u16 = 1 << 10;
pub(crate) const MESSAGE_ID: u16 = 1 << 7;
/// Followed by one byte: 2 is on disk.
pub(crate) const DELIVERY_MODE: u16 = 1 << 12;

/// A header table's bytes, of the bytes of its entries.
pub(crate) fn table(entries: &[u8]) -> Vec<u8> {
    [&u32::try_from(entries.len()).unwrap().to_be_bytes()[..], entries].concat()
}

/// One entry.
pub(crate) fn entry(name: &[u8], kind: u8, value: &[u8]) -> Vec<u8> {
    [&[u8::try_from(name.len()).unwrap()][..], name, &[kind], value].concat()
}

/// So many arrays, each within the one before.
pub(crate) fn nested(depth: usize) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..depth {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        value = [&b"A"[..], &length, &value].concat();
    }
    value[1..].to_vec()
}

/// Publishes one message with these properties, in the order of their flags, and waits until the broker has it.
pub(crate) fn publish(port: u16, queue: &str, flags: u16, properties: &[&[u8]], body: &[u8]) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let expect = |stream: &mut TcpStream, expected: Method| {
        let got = read_frame(stream).unwrap().method();
        assert_eq!(got, Some(expected), "what the broker says to the tests' own producer");
    };
    stream.write_all(&PROTOCOL_HEADER).unwrap();
    expect(&mut stream, (10, 10));
    let start_ok = [&[0; 4][..], &short("PLAIN"), &long("\0guest\0guest"), &short("en_US")].concat();
    stream.write_all(&method(0, amqp::START_OK, &[&start_ok])).unwrap();
    // As many channels and as large a frame as the broker says, and no heartbeats.
    let tune = read_frame(&mut stream).unwrap();
    assert_eq!(tune.method(), Some((10, 30)), "what the broker says to the tests' own producer");
    stream.write_all(&method(0, amqp::TUNE_OK, &[&tune.payload[4..10], &[0, 0]])).unwrap();
    stream.write_all(&method(0, amqp::OPEN, &[&short("/"), &[0, 0]])).unwrap();
    expect(&mut stream, (10, 41));
    stream.write_all(&method(1, CHANNEL_OPEN, &[&[0]])).unwrap();
    expect(&mut stream, (20, 11));
    stream.write_all(&method(1, CONFIRM, &[&[0]])).unwrap();
    expect(&mut stream, (85, 11));
    stream.write_all(&method(1, PUBLISH, &[&[0, 0], &short(""), &short(queue), &[0]])).unwrap();
    stream.write_all(&amqp::content(1, body.len() as u64, flags, properties, body)).unwrap();
    expect(&mut stream, (60, 80));
}
