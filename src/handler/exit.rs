//! What the exit status of a command means for its task.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::str::FromStr;

use super::task::{Failure, Outcome};
use crate::output;

/// `EX_DATAERR` of sysexits.h: no attempt at this task can succeed.
const DATA_ERROR: i32 = 65;
/// Shells, `env` and the like exit with these if the command they should run is not executable or not found.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// SIGHUP, SIGINT and SIGTERM: signals that end all processes of a service or of a terminal.
const STOPPED_BY: [i32; 3] = [1, 2, 15];
/// Shells, and programs that stop in order when they get a signal, exit with this plus its number.
const SIGNAL_BASE: i32 = 128;

/// What an exit status means, by the choice of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitMeaning {
    /// The task is done.
    Done,
    /// The attempt failed.
    Retry,
    /// No attempt can succeed.
    Dead,
}

/// One `CODE=done|retry|dead`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRule {
    /// 0 to 255.
    pub code: u8,
    /// What it means.
    pub meaning: ExitMeaning,
}

/// The rules of a person, which go before the built-in ones. If several are for one code, the last one holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitMap(BTreeMap<i32, ExitMeaning>);

impl FromStr for ExitRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("{text:?} is not CODE=done, CODE=retry or CODE=dead with a code from 0 to 255");
        let (code, meaning) = text.split_once('=').ok_or_else(expected)?;
        let meaning = match meaning {
            "done" => ExitMeaning::Done,
            "retry" => ExitMeaning::Retry,
            "dead" => ExitMeaning::Dead,
            _ => return Err(expected()),
        };
        // `parse` alone would accept a sign.
        if !code.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(expected());
        }
        Ok(Self { code: code.parse().map_err(|_| expected())?, meaning })
    }
}

impl FromIterator<ExitRule> for ExitMap {
    fn from_iter<I: IntoIterator<Item = ExitRule>>(rules: I) -> Self {
        Self(rules.into_iter().map(|rule| (i32::from(rule.code), rule.meaning)).collect())
    }
}

impl ExitMap {
    /// The outcome of a task whose command ended by itself.
    #[must_use]
    pub fn outcome(&self, status: ExitStatus, stderr: Vec<u8>) -> Outcome {
        let failure = Failure { exit: describe(status), stderr };
        let rule = status.code().and_then(|code| self.0.get(&code));
        match (rule, status.code()) {
            (Some(ExitMeaning::Done), _) | (None, Some(0)) => Outcome::Done,
            (Some(ExitMeaning::Dead), _) | (None, Some(DATA_ERROR)) => Outcome::Dead(failure),
            (None, Some(code @ (NOT_EXECUTABLE | NOT_FOUND))) => {
                let why = cannot_run(code, &failure);
                Outcome::CommandMissing { failure, why }
            }
            (None, _) if was_stopped(status) => Outcome::Terminated(failure),
            (Some(ExitMeaning::Retry) | None, _) => Outcome::Failed(failure),
        }
    }
}

fn was_stopped(status: ExitStatus) -> bool {
    let signal = status.signal().or(status.code().map(|code| code - SIGNAL_BASE));
    signal.is_some_and(|signal| STOPPED_BY.contains(&signal))
}

/// One phrase: `exit status 3`, `killed by signal 9`.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn cannot_run(code: i32, failure: &Failure) -> String {
    let meaning = if code == NOT_FOUND { "a command was not found" } else { "a command is not executable" };
    let stderr = String::from_utf8_lossy(&failure.stderr);
    let said = match stderr.trim().lines().next_back() {
        Some(line) => format!(": {}", output::foreign(line)),
        None => String::new(),
    };
    format!("{}, which says that {meaning}{said}", failure.exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn failure(exit: &str) -> Failure {
        Failure { exit: exit.into(), stderr: b"why".to_vec() }
    }

    #[test]
    fn the_built_in_meanings() {
        let map = ExitMap::default();
        let of = |status| map.outcome(status, b"why".to_vec());
        assert_eq!(of(exit(0)), Outcome::Done);
        assert_eq!(of(exit(65)), Outcome::Dead(failure("exit status 65")));
        for code in (1..=255).filter(|code| ![65, 126, 127, 129, 130, 143].contains(code)) {
            assert_eq!(of(exit(code)), Outcome::Failed(failure(&format!("exit status {code}"))));
        }
        for code in [126, 127] {
            let expected = failure(&format!("exit status {code}"));
            assert!(matches!(of(exit(code)), Outcome::CommandMissing { failure, why }
                    if failure == expected && why.ends_with(": why")));
        }
        for signal in [1, 2, 15] {
            let ended = Outcome::Terminated(failure(&format!("killed by signal {signal}")));
            assert_eq!(of(ExitStatus::from_raw(signal)), ended);
            let code = 128 + signal;
            assert_eq!(of(exit(code)), Outcome::Terminated(failure(&format!("exit status {code}"))));
        }
        assert_eq!(of(ExitStatus::from_raw(9)), Outcome::Failed(failure("killed by signal 9")));
        // Dumped core; a real-time signal.
        assert_eq!(of(ExitStatus::from_raw(0x80 + 11)), Outcome::Failed(failure("killed by signal 11")));
        assert_eq!(of(ExitStatus::from_raw(40)), Outcome::Failed(failure("killed by signal 40")));
    }

    #[test]
    fn rules_go_first() {
        let map: ExitMap = [
            "0=retry",
            "143=retry",
            "3=dead",
            "65=retry",
            "75=done",
            "127=retry",
            "4=done",
            "4=dead",
            "9=done",
        ]
        .iter()
        .map(|rule| rule.parse::<ExitRule>().unwrap())
        .collect();
        let of = |status| map.outcome(status, b"why".to_vec());
        assert_eq!(of(exit(0)), Outcome::Failed(failure("exit status 0")));
        assert_eq!(of(exit(3)), Outcome::Dead(failure("exit status 3")));
        assert_eq!(of(exit(65)), Outcome::Failed(failure("exit status 65")));
        assert_eq!(of(exit(75)), Outcome::Done);
        assert_eq!(of(exit(127)), Outcome::Failed(failure("exit status 127")));
        assert_eq!(of(exit(143)), Outcome::Failed(failure("exit status 143")));
        assert_eq!(of(exit(4)), Outcome::Dead(failure("exit status 4")));
        // A signal is no exit status.
        assert_eq!(of(ExitStatus::from_raw(9)), Outcome::Failed(failure("killed by signal 9")));
    }

    #[test]
    fn rules_are_parsed_strictly() {
        assert_eq!("255=dead".parse(), Ok(ExitRule { code: 255, meaning: ExitMeaning::Dead }));
        for text in
            ["", "3", "=done", "3=", "3=Done", "256=done", "-1=done", "+1=done", " 1=done", "1=done=dead"]
        {
            assert!(text.parse::<ExitRule>().is_err(), "{text:?}");
        }
    }
}
