//! `taskq send --unsent` when sending ends before the input does: what becomes of the rest of it.

use super::bulk_outage::{SLACK, bulk, lines, none_is_missing};
use crate::support::Sandbox;
use nix::sys::signal::Signal;

#[test]
fn giving_up_is_told_at_once_and_the_rest_is_saved_until_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut sandbox = Sandbox::new();
        let proxy = sandbox.through_proxy();
        let unsent = sandbox.path("unsent");
        let mut send = bulk(&sandbox, "1s", &unsent);
        send.write(lines(0..10));
        send.prints_lines(10);
        proxy.refuse();
        send.write_and_see_it_read(&lines(10..300));
        // The input stays open, as that of `tail -f` does.
        send.says("did not come back within 1s").says("saving the rest of the input");
        send.write_and_see_it_read(&lines(300..600));
        send.signal(signal);
        let sent = send.end_within(SLACK).exits(128 + signal as i32);
        none_is_missing(&sandbox, &sent, &unsent, 600);
        assert_eq!(std::fs::read_to_string(unsent).unwrap(), lines(10..600), "in the order they came");
        sent.says("10 tasks confirmed, 590 not");
    }
}

#[test]
fn after_giving_up_the_end_of_the_input_ends_it_with_the_reason() {
    let mut sandbox = Sandbox::new();
    let proxy = sandbox.through_proxy();
    let unsent = sandbox.path("unsent");
    let mut send = bulk(&sandbox, "1s", &unsent);
    send.write(lines(0..10));
    send.prints_lines(10);
    proxy.refuse();
    send.write(lines(10..20));
    send.says("saving the rest of the input");
    send.write(lines(20..30));
    send.close_stdin();
    let sent = send.end_within(SLACK).exits(69).says("10 tasks confirmed, 20 not");
    none_is_missing(&sandbox, &sent, &unsent, 30);
}
