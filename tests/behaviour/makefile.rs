//! What the Makefile promises to whoever only wants to use taskq.

use crate::support::{Finished, Invocation, Sandbox};
use std::path::{Path, PathBuf};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

fn make(args: &[&str]) -> Invocation {
    Invocation::new("make", ["-s", "-C", REPOSITORY].iter().chain(args))
}

#[test]
fn what_is_built_is_installed_without_cargo() {
    let sandbox = Sandbox::new();
    let directory = format!("DESTDIR={}", sandbox.path("").display());
    let built = format!("TASKQ={}", env!("CARGO_BIN_EXE_taskq"));
    make(&["install", "CARGO=false", "PREFIX=/usr", &directory, &built]).run().exits(0);
    let installed = sandbox.path("usr/bin/taskq");
    Invocation::new(installed.to_str().unwrap(), ["--version"]).run().exits(0);
    let missing = make(&["install", "CARGO=false", &directory, "TASKQ=not/built"]).run().exits(2);
    missing.says("there is no not/built to install yet: run `make` first");
}

#[test]
fn a_rust_that_is_missing_or_too_old_is_told_in_one_line() {
    let sandbox = Sandbox::new();
    let stand_in = |name: &str, says: &str| {
        let program = sandbox.file(name, format!("#!/bin/sh\necho '{says}'\n"));
        Invocation::new("chmod", ["+x", program.to_str().unwrap()]).run().exits(0);
        program.to_str().unwrap().to_owned()
    };
    let check = |cargo: &str, rustc: &str| {
        let script = format!("{REPOSITORY}/scripts/check-rust");
        Invocation::new(&script, [""; 0]).env("CARGO", cargo).env("RUSTC", rustc).run()
    };
    let cargo = stand_in("cargo", "cargo 1.65.0");
    for (version, code) in [("1.63.0", 1), ("1.94.9", 1), ("1.95.0", 0), ("1.100.0-nightly", 0), ("2.0.0", 0)]
    {
        let checked = check(&cargo, &stand_in("rustc", &format!("rustc {version} (0123abcd 2026-01-01)")));
        let checked = checked.exits(code);
        if code != 0 {
            checked.in_one_line().says("taskq needs Rust 1.95 or newer").says(version);
        }
    }
    check("not-here", "rustc").exits(1).in_one_line().says("there is no not-here");
}

/// Removed when the test ends, however it does.
struct Kept(PathBuf);

impl Kept {
    fn node(args: &[&str]) -> Finished {
        let script = format!("{REPOSITORY}/scripts/rabbitmq-node");
        let mut node = Invocation::new(&script, args);
        if let Ok(directory) = std::env::var("RABBITMQ_BIN") {
            node = node.env("RABBITMQ_BIN", directory);
        }
        node.run()
    }

    fn with(&self, program: &[&str]) -> Finished {
        let with = ["with", "--keep", "--dir", self.0.to_str().unwrap(), "--", env!("CARGO_BIN_EXE_taskq")];
        Self::node(&[&with, program].concat())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        Self::node(&["remove", self.0.to_str().unwrap()]);
    }
}

/// Processes of the node in this directory, by what all of them have in their environment.
fn processes(directory: &Path) -> usize {
    let mark = format!("TASKQ_NODE_MEMBER={}", directory.display()).into_bytes();
    let environments = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        // Some end while we look, others are not ours.
        std::fs::read(entry.ok()?.path().join("environ")).ok()
    });
    environments.filter(|environment| environment.split(|byte| *byte == 0).any(|one| one == mark)).count()
}

/// As `make broker` does it.
#[test]
fn a_broker_that_is_kept_has_its_tasks_the_next_time() {
    let kept = Kept(std::env::temp_dir().join(format!("taskq-kept.{}", std::process::id())));
    kept.with(&["send", "kept"]).exits(0);
    assert_eq!(processes(&kept.0), 0, "something of the node still runs");
    kept.with(&["work", "--until-empty"]).exits(0).says("Received a message: kept");
}
