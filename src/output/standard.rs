//! This process's stdout and stderr.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::stream::Stream;
use crate::cancel::Never;
use crate::lock::lock;

/// At the end: how long a reader may take nothing before what waits for it is given up.
const STUCK_PATIENCE: Duration = Duration::from_secs(5);
/// How long the last messages have in any case, where the reader was stuck before.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long all of it may take after a signal.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The same where the process was forced to stop: what a reader takes that is there, on a busy machine.
const FORCED_PATIENCE: Duration = Duration::from_secs(1);

static STDOUT: Mutex<Option<Stream>> = Mutex::new(None);
static STDERR: Mutex<Option<Stream>> = Mutex::new(None);

/// How patiently the end of the process waits for the readers of its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as they read.
    Ordinary,
    /// A signal has told the process to stop.
    Stopping,
    /// The process was forced to stop.
    Forced,
}

/// This process's stdout: data, and what commands print.
pub fn stdout() -> io::Result<Stream> {
    of(&STDOUT, "stdout", io::stdout)
}

/// This process's stderr: messages for people, and what commands write to theirs.
pub fn stderr() -> io::Result<Stream> {
    of(&STDERR, "stderr", io::stderr)
}

fn of<W: Write + Send + 'static>(
    place: &Mutex<Option<Stream>>,
    name: &'static str,
    open: impl FnOnce() -> W,
) -> io::Result<Stream> {
    let mut place = lock(place);
    if let Some(stream) = &*place {
        return Ok(stream.clone());
    }
    let stream = Stream::start(name, open())?;
    Ok(place.insert(stream).clone())
}

/// At the end of the process: waits until everything that was handed over is written, or the readers are given up.
/// Another of `signals` leaves them hardly any time.
pub fn finish(patience: Patience, signals: &Receiver<i32>) {
    let streams: Vec<Stream> =
        [&STDOUT, &STDERR].into_iter().filter_map(|place| lock(place).clone()).collect();
    wait(&streams, patience, signals);
}

/// Waits until the messages so far are written, for something that is to be seen after them.
pub fn flush_stderr() {
    let stream = lock(&STDERR).clone();
    wait(&Vec::from_iter(stream), Patience::Ordinary, &never());
}

fn wait(streams: &[Stream], patience: Patience, signals: &Receiver<i32>) {
    let (mut patience, mut began) = (patience, Instant::now());
    let (mark, written): (Sender<Never>, _) = crossbeam_channel::bounded(0);
    for stream in streams {
        stream.mark(mark.clone());
    }
    drop(mark);
    loop {
        // One that is read does not wait for one that is not, nor is it given up for that.
        let stuck_since = streams.iter().filter_map(Stream::stuck_since).max();
        let until = given_up_at(patience, began, stuck_since.unwrap_or_else(Instant::now));
        if until <= Instant::now() {
            return;
        }
        select! {
            recv(written) -> _ => return,
            recv(signals) -> _ => {
                if patience == Patience::Forced {
                    return;
                }
                (patience, began) = (Patience::Forced, Instant::now());
            }
            recv(crossbeam_channel::at(until)) -> _ => {}
        }
    }
}

/// When to give up readers that have taken nothing since `stuck_since`, where waiting for them `began` then.
fn given_up_at(patience: Patience, began: Instant, stuck_since: Instant) -> Instant {
    match patience {
        Patience::Ordinary => (stuck_since + STUCK_PATIENCE).max(began + LAST_WORDS),
        Patience::Stopping => {
            (stuck_since + STUCK_PATIENCE).max(began + LAST_WORDS).min(began + STOP_PATIENCE)
        }
        Patience::Forced => began + FORCED_PATIENCE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_given_up_when_they_have_taken_nothing_for_long_enough() {
        let start = Instant::now();
        let began = start + Duration::from_mins(1);
        // `moved`: when the reader last took something, in seconds after the start.
        let after =
            |patience, moved| given_up_at(patience, began, start + Duration::from_secs(moved)) - began;
        let seconds = Duration::from_secs;
        assert_eq!(after(Patience::Ordinary, 60), seconds(5));
        assert_eq!(after(Patience::Ordinary, 57), seconds(2));
        assert_eq!(after(Patience::Ordinary, 0), seconds(1));
        assert_eq!(after(Patience::Ordinary, 160), seconds(105));
        assert_eq!(after(Patience::Stopping, 0), seconds(1));
        assert_eq!(after(Patience::Stopping, 160), seconds(5));
        assert_eq!(after(Patience::Forced, 160), seconds(1));
    }

    #[test]
    fn a_reader_that_reads_is_not_given_up_for_one_that_does_not() {
        use std::io::{Read, pipe};
        let ((mut reader, writer), (stuck, full)) = (pipe().unwrap(), pipe().unwrap());
        let streams = [Stream::start("one", writer).unwrap(), Stream::start("other", full).unwrap()];
        for stream in &streams {
            for _ in 0..100 {
                stream.say(vec![b'x'; 1024], true);
            }
        }
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            std::thread::sleep(Duration::from_millis(100));
            reader.read_to_end(&mut text).unwrap();
            text.len()
        });
        let began = Instant::now();
        wait(&streams, Patience::Ordinary, &never());
        assert!(began.elapsed() >= LAST_WORDS);
        let (sender, signals) = crossbeam_channel::bounded(2);
        for signal in [2, 15] {
            sender.send(signal).unwrap();
        }
        wait(&streams, Patience::Ordinary, &signals);
        assert!(signals.is_empty());
        drop((streams, stuck));
        assert_eq!(reading.join().unwrap(), 100 * 1024);
    }
}
