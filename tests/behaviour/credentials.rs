//! Where the broker's URL comes from, and that its password never comes out again.

use crate::support::script::Script;
use crate::support::{Finished, Sandbox, User, amqp};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

const NOWHERE: &str = "amqp://guest:guest@127.0.0.1:1";

#[test]
fn the_url_is_read_from_a_file() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("url", format!("{}\n", sandbox.url()));
    let args = ["send", "--url-file", file.to_str().unwrap(), "hello"];
    sandbox.taskq(args).without_env("TASKQ_URL").run().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["hello"]);
}

#[test]
fn the_url_is_read_from_the_credentials_directory_of_systemd() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("taskq-url", sandbox.url());
    let send = sandbox.taskq(["send", "hello"]).without_env("TASKQ_URL");
    send.env("CREDENTIALS_DIRECTORY", file.parent().unwrap()).run().exits(0);
    assert_eq!(sandbox.broker().bodies(&sandbox.queue), ["hello"]);
}

/// Or the tasks would go to the broker that is the default.
#[test]
fn a_credential_that_cannot_be_read_is_told() {
    let sandbox = Sandbox::new();
    let send = |directory: &Path| {
        sandbox
            .taskq(["send", "hello"])
            .without_env("TASKQ_URL")
            .env("CREDENTIALS_DIRECTORY", directory)
            .run()
    };
    send(Path::new("")).exits(2).in_one_line().says("CREDENTIALS_DIRECTORY");
    send(&sandbox.path("missing")).exits(78).in_one_line().says("missing");
    let dangling = sandbox.path("dangling");
    std::fs::create_dir(&dangling).unwrap();
    symlink("nowhere", dangling.join("taskq-url")).unwrap();
    send(&dangling).exits(78).in_one_line().says("dangling/taskq-url");
    // A directory that provides other credentials only: the default, where perhaps nobody listens here.
    let others = sandbox.path("others");
    std::fs::create_dir(&others).unwrap();
    send(&others).exits_with_one_of(&[0, 69, 77]);
}

#[test]
fn a_password_that_everybody_can_read_is_told() {
    let sandbox = Sandbox::new();
    let secret = sandbox.file("secret", "amqp://user:opensesame@127.0.0.1:1\n");
    let known = sandbox.file("known", format!("{NOWHERE}\n"));
    let send = |file: &Path, mode| {
        std::fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
        sandbox.taskq(["send", "--url-file", file.to_str().unwrap(), "hello"]).without_env("TASKQ_URL").run()
    };
    send(&secret, 0o644).exits(69).says("chmod 600").never_says("opensesame");
    send(&secret, 0o640).exits(69).never_says("chmod");
    // Everybody knows the password of guest.
    send(&known, 0o644).exits(69).never_says("chmod");
}

#[test]
fn a_password_that_changes_in_the_broker_and_in_the_file_is_read_again() {
    let sandbox = Sandbox::exclusive();
    sandbox.broker().declare(&sandbox.queue);
    let node = sandbox.node();
    let user = User::add(&sandbox, "tester", "before", [".*"; 3]);
    let file = sandbox.file("url", user.url("before"));
    let args = ["work", "--url-file", file.to_str().unwrap()];
    let worker = sandbox.taskq(args).without_env("TASKQ_URL").start();
    worker.says("Waiting");
    node.ctl(&["change_password", &user.name, "after"]);
    std::fs::write(&file, user.url("after")).unwrap();
    node.ctl(&["close_all_connections", "--vhost", "/", "rotation"]);
    worker.says("lost the connection");
    sandbox.broker().publish(&sandbox.queue, "task");
    worker.says("Received a message: task");
}

#[test]
fn a_url_file_that_is_too_long_is_not_cut() {
    let sandbox = Sandbox::new();
    let url = format!("{}\n", sandbox.url());
    let file = sandbox.file("url", url.repeat(70_000 / url.len()));
    let args = ["send", "--url-file", file.to_str().unwrap(), "hello"];
    sandbox.taskq(args).without_env("TASKQ_URL").run().exits(78).in_one_line().says("64 KiB");
}

#[test]
fn the_environment_beats_the_credentials_directory() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("taskq-url", NOWHERE);
    let send = sandbox.taskq(["send", "hello"]);
    send.env("CREDENTIALS_DIRECTORY", file.parent().unwrap()).run().exits(0);
}

#[test]
fn a_flag_beats_the_environment() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("url", sandbox.url());
    let args = ["send", "--url-file", file.to_str().unwrap(), "hello"];
    sandbox.taskq(args).env("TASKQ_URL", NOWHERE).run().exits(0);
    sandbox.taskq(["send", "--url", sandbox.url(), "hello"]).env("TASKQ_URL", NOWHERE).run().exits(0);
}

#[test]
fn several_urls_in_a_file_are_tried_in_turn() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("url", format!("{NOWHERE},{}\n", sandbox.url()));
    let args = ["send", "--url-file", file.to_str().unwrap(), "hello"];
    sandbox.taskq(args).without_env("TASKQ_URL").run().exits(0);
}

#[test]
fn bad_url_files_are_told_in_one_line_without_their_content() {
    let sandbox = Sandbox::new();
    let missing = sandbox.path("missing");
    let directory = sandbox.path("");
    let secret = sandbox.file("secret", "http://user:opensesame@host\n");
    let not_text = sandbox.file("binary", b"amqp://user:opensesame\xff@host");
    let empty = sandbox.file("empty", "\n");
    for (file, codes) in
        [(missing, [78, 78]), (directory, [78, 78]), (secret, [2, 78]), (not_text, [2, 78]), (empty, [2, 78])]
    {
        let args = ["send", "--url-file", file.to_str().unwrap(), "hello"];
        let failed = sandbox.taskq(args).without_env("TASKQ_URL").run().in_one_line();
        failed.exits_with_one_of(&codes).says(file.to_str().unwrap()).never_says("opensesame");
    }
}

/// Everything that can be turned on, turned on.
fn loudest(sandbox: &Sandbox, url: &str, args: &[&str]) -> Finished {
    let command = sandbox.taskq(args.iter().chain(&["-v"])).without_env("TASKQ_URL");
    command.env("TASKQ_URL", url).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").run()
}

#[test]
fn the_password_is_in_no_output_at_any_log_level() {
    let sandbox = Sandbox::exclusive();
    let user = User::add(&sandbox, "tester", "opensesame/+", [".*"; 3]);
    // AMQP carries it as it is, a URL escaped; logs like to print bytes as a list of numbers.
    let secrets = ["opensesame", "opensesame%2F%2B", "111, 112, 101, 110, 115"];
    let good = user.url("opensesame%2F%2B");
    let wrong = user.url("opensesame%2F%2Bx");
    let closed = user.url_at(1, "opensesame%2F%2B");
    let queue = format!("{good}/missing");
    for (url, args, code) in [
        (&*good, ["send", "hello"], 0),
        (&good, ["work", "--until-empty"], 0),
        (&wrong, ["send", "hello"], 77),
        (&wrong, ["work", "--until-empty"], 77),
        (&closed, ["send", "hello"], 69),
        (&queue, ["send", "hello"], 77),
    ] {
        let mut finished = loudest(&sandbox, url, &args).exits(code);
        for secret in secrets {
            finished = finished.never_says(secret);
        }
    }
}

#[test]
fn a_server_that_plays_the_password_back_does_not_get_it_printed() {
    let sandbox = Sandbox::new();
    let echo = Script::run(|stream| {
        let start_ok = amqp::play_until(stream, amqp::START_OK)?;
        let text = String::from_utf8_lossy(&start_ok.payload).replace('\0', " ");
        let said =
            text.split_whitespace().find(|word| word.starts_with("opensesame")).unwrap_or("?").to_owned();
        stream.write_all(&amqp::connection_close(403, &format!("ACCESS_REFUSED for {said}")))?;
        crate::support::script::hold(stream)
    });
    let url = echo.url().replace("guest:guest", "guest:opensesame");
    loudest(&sandbox, &url, &["send", "hello"]).exits_with_one_of(&[69, 77]).never_says("opensesame");
}
