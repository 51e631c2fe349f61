//! The broker closes the channel of a task that takes longer than its delivery acknowledgement timeout.

use crate::support::Sandbox;
use nix::sys::signal::Signal::SIGTERM;

#[test]
fn it_is_explained_and_the_worker_goes_on_with_a_new_channel() {
    let sandbox = Sandbox::configured(&["consumer_timeout = 2000"]);
    // How often a channel looks at its deliveries: once a minute unless told otherwise before it is opened.
    sandbox.node().ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]);
    let worker = sandbox.worker(["--threads", "2"]);
    sandbox.taskq(["send", "too long ........"]).run().exits(0);
    worker.says("Received a message: too long");
    worker.says("acknowledgement").says("consumer_timeout");
    worker.says("Done");
    let broker = sandbox.broker();
    broker.wait_consumers(&sandbox.queue, 2);
    broker.publish(&sandbox.queue, "short");
    worker.says("Received a message: short\nDone\n");
    worker.signal(SIGTERM);
    worker.end().exits(0);
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)), "the long task was acknowledged in the end");
}
