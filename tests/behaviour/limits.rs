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
