//! What was told, for unit tests: those of all threads of the test program, so a test knows its own by a word that only
//! it has.

use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use log::{LevelFilter, Metadata, Record};

use crate::lock::lock;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LISTENS: Once = Once::new();

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        lock(&LINES).push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// From now on what is told is kept.
pub fn listen() {
    LISTENS.call_once(|| {
        log::set_boxed_logger(Box::new(Listener)).unwrap();
        log::set_max_level(LevelFilter::Info);
    });
}

/// The lines so far that have this word in them.
pub fn told(word: &str) -> Vec<String> {
    lock(&LINES).iter().filter(|line| line.contains(word)).cloned().collect()
}

/// Waits for so many of them.
pub fn wait_until_told(word: &str, count: usize, patience: Duration) -> Vec<String> {
    let deadline = Instant::now() + patience;
    loop {
        let told = told(word);
        if told.len() >= count {
            return told;
        }
        assert!(Instant::now() < deadline, "{count} lines with {word:?} were not told, but {told:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
