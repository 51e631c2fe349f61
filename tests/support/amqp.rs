//! As much of AMQP 0-9-1 as a scripted server needs: frames, and the broker's half of the methods taskq uses.

use std::io::{self, Read, Write};

/// A method's class and number.
pub(crate) type Method = (u16, u16);

pub(crate) const START_OK: Method = (10, 11);
pub(crate) const TUNE_OK: Method = (10, 31);
pub(crate) const OPEN: Method = (10, 40);
pub(crate) const CLOSE: Method = (10, 50);
pub(crate) const CLOSE_OK: Method = (10, 51);
pub(crate) const CHANNEL_OPEN: Method = (20, 10);
pub(crate) const CHANNEL_CLOSE: Method = (20, 40);
pub(crate) const CHANNEL_CLOSE_OK: Method = (20, 41);
pub(crate) const DECLARE: Method = (50, 10);
pub(crate) const QOS: Method = (60, 10);
pub(crate) const CONSUME: Method = (60, 20);
pub(crate) const CANCEL: Method = (60, 30);
pub(crate) const PUBLISH: Method = (60, 40);
pub(crate) const ACK: Method = (60, 80);
pub(crate) const CONFIRM: Method = (85, 10);

/// The first bytes of a client.
pub(crate) const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\0\0\x09\x01";

const FRAME_METHOD: u8 = 1;
pub(crate) const FRAME_HEADER: u8 = 2;
pub(crate) const FRAME_BODY: u8 = 3;
const FRAME_HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn method(&self) -> Option<Method> {
        let [a, b, c, d, ..] = *self.payload.as_slice() else { return None };
        (self.kind == FRAME_METHOD).then(|| (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }
}

pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0; 7];
    from.read_exact(&mut head)?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut payload = vec![0; usize::try_from(size).unwrap()];
    from.read_exact(&mut payload)?;
    from.read_exact(&mut [0])?;
    Ok(Frame { kind: head[0], channel: u16::from_be_bytes([head[1], head[2]]), payload })
}

pub(crate) fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame_announcing(kind, channel, u32::try_from(payload.len()).unwrap());
    bytes.extend(payload);
    bytes.push(FRAME_END);
    bytes
}

/// The head of a frame of any size.
pub(crate) fn frame_announcing(kind: u8, channel: u16, size: u32) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes
}

pub(crate) fn method(channel: u16, (class, number): Method, arguments: &[&[u8]]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(class.to_be_bytes());
    payload.extend(number.to_be_bytes());
    payload.extend(arguments.concat());
    frame(FRAME_METHOD, channel, &payload)
}

pub(crate) fn short(text: &str) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(text.len()).unwrap()];
    bytes.extend(text.as_bytes());
    bytes
}

pub(crate) fn long(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub(crate) fn heartbeat() -> Vec<u8> {
    frame(FRAME_HEARTBEAT, 0, &[])
}

/// Connection.Start, with which a broker answers the protocol header.
pub(crate) fn start() -> Vec<u8> {
    method(0, (10, 10), &[&[0, 9], &long(""), &long("PLAIN AMQPLAIN"), &long("en_US")])
}

pub(crate) fn connection_close(code: u16, text: &str) -> Vec<u8> {
    method(0, CLOSE, &[&code.to_be_bytes(), &short(text), &[0; 4]])
}

pub(crate) fn channel_close(channel: u16, code: u16, text: &str) -> Vec<u8> {
    method(channel, CHANNEL_CLOSE, &[&code.to_be_bytes(), &short(text), &[0; 4]])
}

/// Connection.Tune: how many channels, how large a frame, how many seconds between heartbeats.
pub(crate) fn tune(channels: u16, frame: u32, heartbeat: u16) -> Vec<u8> {
    method(0, (10, 30), &[&channels.to_be_bytes(), &frame.to_be_bytes(), &heartbeat.to_be_bytes()])
}

/// Basic.Ack of a publish.
pub(crate) fn confirm(channel: u16, tag: u64, multiple: bool) -> Vec<u8> {
    method(channel, (60, 80), &[&tag.to_be_bytes(), &[u8::from(multiple)]])
}

/// Basic.Return of a message with these properties and the body `returned`.
pub(crate) fn return_with(channel: u16, queue: &str, flags: u16, properties: &[&[u8]]) -> Vec<u8> {
    let mut bytes =
        method(channel, (60, 50), &[&312_u16.to_be_bytes(), &short("NO_ROUTE"), &short(""), &short(queue)]);
    bytes.extend(content(channel, 8, flags, properties, b"returned"));
    bytes
}

/// What a broker that has nothing against it answers.
pub(crate) fn answer(channel: u16, to: Method) -> Option<Vec<u8>> {
    let arguments: Vec<u8> = match to {
        START_OK => return Some(tune(2047, 128 * 1024, 60)),
        OPEN => short(""),
        CHANNEL_OPEN => long(""),
        DECLARE => [short("queue"), vec![0; 8]].concat(),
        CONSUME | CANCEL => short(TAG),
        CLOSE | CHANNEL_CLOSE | QOS | CONFIRM => Vec::new(),
        _ => return None,
    };
    Some(method(channel, (to.0, to.1 + 1), &[&arguments]))
}

/// The consumer tag of every consumer.
const TAG: &str = "tag";

/// Basic.Deliver and a content header that announces a body of that size; `body` is what really follows.
pub(crate) fn deliver(channel: u16, tag: u64, announced: u64, body: &[u8]) -> Vec<u8> {
    deliver_with(channel, tag, announced, 0, &[], body)
}

/// The same with properties.
pub(crate) fn deliver_with(
    channel: u16,
    tag: u64,
    announced: u64,
    flags: u16,
    properties: &[&[u8]],
    body: &[u8],
) -> Vec<u8> {
    let mut bytes =
        method(channel, (60, 60), &[&short(TAG), &tag.to_be_bytes(), &[0], &short(""), &short("queue")]);
    bytes.extend(content(channel, announced, flags, properties, body));
    bytes
}

/// A content header and, where there is one, a body in one frame.
pub(crate) fn content(
    channel: u16,
    announced: u64,
    flags: u16,
    properties: &[&[u8]],
    body: &[u8],
) -> Vec<u8> {
    let header =
        [&60_u16.to_be_bytes()[..], &[0; 2], &announced.to_be_bytes(), &flags.to_be_bytes()].concat();
    let mut bytes = frame(FRAME_HEADER, channel, &[&header[..], &properties.concat()].concat());
    if !body.is_empty() {
        bytes.extend(frame(FRAME_BODY, channel, body));
    }
    bytes
}

/// Whether the client wants no answer, of the methods of which taskq does not.
fn is_nowait(frame: &Frame) -> bool {
    match frame.method() {
        // After a reserved number and the queue's name.
        Some(DECLARE) => frame.payload[7 + usize::from(frame.payload[6])] & 16 != 0,
        Some(CONFIRM) => frame.payload[4] & 1 != 0,
        _ => false,
    }
}

/// Whether the client looks for a queue of dead tasks: there is none.
fn looks_for_dead_tasks(frame: &Frame) -> bool {
    let is_passive = |name: usize| frame.payload.get(7 + name).is_some_and(|bits| bits & 1 != 0);
    frame.method() == Some(DECLARE) && {
        let name = usize::from(frame.payload[6]);
        is_passive(name) && frame.payload[7..7 + name].ends_with(b".dead")
    }
}

/// What a faultless broker answers, if anything.
fn usual(frame: &Frame) -> Option<Vec<u8>> {
    if looks_for_dead_tasks(frame) {
        return Some(channel_close(frame.channel, 404, "NOT_FOUND - no queue"));
    }
    frame.method().filter(|_| !is_nowait(frame)).and_then(|to| answer(frame.channel, to))
}

/// Plays a faultless broker that confirms and delivers nothing, until the client closes.
pub(crate) fn play<S: Read + Write>(stream: &mut S) -> io::Result<()> {
    serve_until(stream, CLOSE)?;
    stream.write_all(&answer(0, CLOSE).unwrap())?;
    stream.read(&mut [0]).map(drop)
}

/// Plays a faultless broker up to and including `last`: returns the frame of that method, not yet answered.
pub(crate) fn play_until<S: Read + Write>(stream: &mut S, last: Method) -> io::Result<Frame> {
    stream.read_exact(&mut [0; PROTOCOL_HEADER.len()])?;
    stream.write_all(&start())?;
    serve_until(stream, last)
}

/// Goes on playing until the client closes; what `own` has an answer of its own for, it answers in its stead.
pub(crate) fn serve_with<S: Read + Write>(
    stream: &mut S,
    mut own: impl FnMut(&Frame) -> Option<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let frame = read_frame(stream)?;
        if let Some(answer) = own(&frame).or_else(|| usual(&frame)) {
            stream.write_all(&answer)?;
        }
        if frame.method() == Some(CLOSE) {
            return Ok(());
        }
    }
}

/// Goes on playing up to and including `last`.
pub(crate) fn serve_until<S: Read + Write>(stream: &mut S, last: Method) -> io::Result<Frame> {
    loop {
        let frame = read_frame(stream)?;
        let Some(method) = frame.method() else { continue };
        if method == last {
            return Ok(frame);
        }
        if let Some(answer) = usual(&frame) {
            stream.write_all(&answer)?;
        }
    }
}
