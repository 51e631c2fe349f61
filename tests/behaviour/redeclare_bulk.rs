//! A bulk send to a queue that exists with other, harmless settings: each time, not only mostly.

use crate::support::Sandbox;

#[test]
fn it_is_sent_without_losing_the_connection() {
    const ROUNDS: usize = 60;
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    for _ in 0..ROUNDS {
        let args = ["send", "--queue-type", "quorum", "--lines"];
        let sent = sandbox.taskq(args).feed("a\nb\nc\n").exits(0).never_says("down");
        assert!(sent.stderr.contains("Sent 3 tasks"), "{}", sent.stderr);
    }
    assert_eq!(broker.ready(&sandbox.queue), u32::try_from(3 * ROUNDS).unwrap());
}
