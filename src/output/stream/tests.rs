use std::io::{Read, pipe};

use super::*;

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// Takes nothing until the sender is dropped; then everything.
struct Stuck(crossbeam_channel::Receiver<Never>, Arc<Mutex<Vec<u8>>>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        lock(&self.1).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn stuck() -> (Sender<Never>, Stream, Arc<Mutex<Vec<u8>>>) {
    let (go_on, waits) = crossbeam_channel::bounded(0);
    let taken = Arc::default();
    (go_on, Stream::start("stderr", Stuck(waits, Arc::clone(&taken))).unwrap(), taken)
}

fn settle(stream: &Stream) {
    let (mark, written) = crossbeam_channel::bounded(0);
    stream.mark(mark);
    assert!(written.recv_timeout(LONG) != Err(crossbeam_channel::RecvTimeoutError::Timeout));
}

fn text(taken: &Arc<Mutex<Vec<u8>>>) -> String {
    String::from_utf8(lock(taken).clone()).unwrap()
}

#[test]
fn messages_wait_in_a_bounded_place_and_are_dropped_and_counted_beyond() {
    let (go_on, stream, taken) = stuck();
    let line = format!("{}\n", "x".repeat(1023));
    let began = Instant::now();
    stream.say(line.clone().into_bytes(), false);
    while lock(&stream.0.0.state).waiting > 0 {
        thread::yield_now();
        assert!(began.elapsed() < LONG);
    }
    let began = Instant::now();
    for _ in 1..1000 {
        stream.say(line.clone().into_bytes(), false);
    }
    // Once it is known that nobody reads, nobody waits.
    assert!(began.elapsed() < PATIENCE * 5);
    stream.say(b"an error\n".to_vec(), true);
    stream.say(b"no error\n".to_vec(), false);
    drop(go_on);
    settle(&stream);
    let text = text(&taken);
    let whole = text.lines().filter(|line| line.len() == 1023).count();
    // One was being written, and does not count as waiting.
    assert_eq!(whole, MESSAGES_BYTES / 1024 + 1);
    let rest: Vec<&str> = text.lines().filter(|line| line.len() != 1023).collect();
    let missing =
        format!("taskq: warning: {} messages are missing here: nobody took them from stderr", 1000 - whole);
    let last = "taskq: warning: 1 message is missing here: nobody took them from stderr";
    assert_eq!(rest, [&missing, "an error", last]);
    stream.say(b"more\n".to_vec(), false);
    settle(&stream);
    assert!(self::text(&taken).ends_with("\nmore\n"));
}

#[test]
fn a_slow_reader_gets_everything() {
    let (mut reader, writer) = pipe().unwrap();
    let stream = Stream::start("stderr", writer).unwrap();
    let reading = thread::spawn(move || {
        let (mut text, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        while let n @ 1.. = reader.read(&mut chunk).unwrap() {
            text.extend_from_slice(&chunk[..n]);
            thread::sleep(Duration::from_millis(5));
        }
        text
    });
    let lines: Vec<String> = (0..50_000).map(|number| format!("line number {number}\n")).collect();
    for line in &lines {
        stream.say(line.clone().into_bytes(), false);
    }
    drop(stream);
    assert!(reading.join().unwrap() == lines.concat().into_bytes());
}

#[test]
fn a_thread_that_hears_signals_never_waits_for_room() {
    let (_go_on, stream, _) = stuck();
    thread::spawn(move || {
        never_wait_here();
        let began = Instant::now();
        for _ in 0..1000 {
            stream.say(vec![b'x'; 1024], false);
        }
        assert!(began.elapsed() < PATIENCE);
    })
    .join()
    .unwrap();
}

#[test]
fn what_is_of_interest_only_now_does_not_wait_behind_anything() {
    let (go_on, stream, taken) = stuck();
    for number in 0..1000 {
        stream.draw(&format!("{number} "));
    }
    drop(go_on);
    settle(&stream);
    // One that was being written, and one that waited.
    assert!(text(&taken).split_whitespace().count() <= 2);
}

#[test]
fn a_parcel_is_told_what_became_of_it_and_keeps_its_place() {
    struct Bytes(Sender<Result<(), Unwritten>>);
    impl Parcel for Bytes {
        fn open(&mut self) -> Vec<u8> {
            b"parcel\n".to_vec()
        }

        fn written(self: Box<Self>, buffer: Vec<u8>, result: Result<(), Unwritten>) {
            assert!(buffer.is_empty());
            self.0.send(result).unwrap();
        }
    }
    let (sender, results) = crossbeam_channel::unbounded();
    let (mut reader, writer) = pipe().unwrap();
    let stream = Stream::start("stdout", writer).unwrap();
    stream.say(b"before\n".to_vec(), false);
    stream.pass(Box::new(Bytes(sender.clone())));
    stream.say(b"after\n".to_vec(), false);
    settle(&stream);
    assert!(results.recv_timeout(LONG).unwrap().is_ok());
    let mut text = [0; 20];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"before\nparcel\nafter\n");
    drop(reader);
    stream.pass(Box::new(Bytes(sender)));
    let Err(Unwritten { bytes: 7, error }) = results.recv_timeout(LONG).unwrap() else {
        panic!("it was lost")
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_message_takes_the_place_of_the_line_that_is_drawn() {
    let (go_on, stream, taken) = stuck();
    drop(go_on);
    for draw in [true, false] {
        if draw {
            stream.draw("1 of 2");
            settle(&stream);
        }
        stream.say(b"a message\n".to_vec(), false);
        stream.clear();
        settle(&stream);
    }
    assert_eq!(text(&taken), "\r\u{1b}[K1 of 2\r\u{1b}[Ka message\na message\n");
    stream.draw("2 of 2");
    settle(&stream);
    stream.clear();
    stream.clear();
    settle(&stream);
    assert!(text(&taken).ends_with("message\n\r\u{1b}[K2 of 2\r\u{1b}[K"));
}
