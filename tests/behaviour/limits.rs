//! Limits of the broker on connections and channels: they pass when others leave, and are no refusals.

use crate::support::{Sandbox, User};

fn limit_connections(sandbox: &Sandbox, limit: &str) {
    sandbox.node().ctl(&["set_vhost_limits", "-p", "/", &format!("{{\"max-connections\":{limit}}}")]);
}

#[test]
fn a_vhost_without_room_for_a_connection_is_tried_again() {
    let sandbox = Sandbox::exclusive();
    sandbox.broker().declare(&sandbox.queue);
    limit_connections(&sandbox, "0");
    let failed = sandbox.taskq(["send", "--retry-for", "1s", "hello"]).run().exits(75);
    failed.says("connection limit").says("--retry-for");
    let send = sandbox.taskq(["send", "--retry-for", "5m", "hello"]).start();
    send.says("connection limit");
    let worker = sandbox.taskq(["work", "--max-tasks", "1"]).start();
    worker.says("connection limit");
    limit_connections(&sandbox, "-1");
    send.end().exits(0);
    worker.end().exits(0).says("Received a message: hello");
}

#[test]
fn a_user_with_too_few_channels_for_the_threads_is_a_matter_of_configuration() {
    let sandbox = Sandbox::exclusive();
    let user = User::add(&sandbox, "few", "secret", [".*"; 3]);
    sandbox.node().ctl(&["set_user_limits", &user.name, "{\"max-channels\":1}"]);
    let worker = sandbox.taskq(["work", "--threads", "4", "--url", &user.url("secret")]).run().exits(78);
    worker.says("channels").says("maximum allowed user limit").never_says("--no-declare");
}

#[test]
fn a_vhost_without_room_for_a_queue_is_a_matter_of_configuration_whatever_the_queue_is_for() {
    let sandbox = Sandbox::exclusive();
    let vhost = format!("full-{}", std::process::id());
    let node = sandbox.node();
    node.ctl(&["add_vhost", &vhost]);
    node.ctl(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let url = format!("{}/{vhost}", sandbox.url());
    let run = |args: &[&str]| sandbox.taskq(args).env("TASKQ_URL", &url).run();
    run(&["send", "hello"]).exits(0);
    node.ctl(&["set_vhost_limits", "-p", &vhost, "{\"max-queues\":1}"]);
    for args in [
        &["send", "--queue", "other", "hello"][..],
        &["send", "--delay", "5s", "--retry-for", "10m", "hello"],
        &["send", "--delay", "5s", "--retry-for", "10m", "--lines", "--file", "/dev/stdin"],
        &["work", "--queue", "other"],
        &["work", "--", "true"],
    ] {
        println!("{args:?}");
        let refused = sandbox.taskq(args).env("TASKQ_URL", &url).feed("hello\n").exits(78);
        refused.says("queue limit").never_says("there is no queue");
    }
    node.ctl(&["delete_vhost", &vhost]);
}

#[test]
fn as_many_channels_as_threads_are_not_enough_and_no_lost_connection() {
    let sandbox = Sandbox::new();
    let url = format!("{}?channel_max=2", sandbox.url());
    let args = ["work", "--threads", "2", "--until-empty"];
    let worker = sandbox.taskq(args).env("TASKQ_URL", url).run().exits(78);
    worker.says("may have 2 channels (channel_max").never_says("lost the connection");
}
