//! Messages of other producers with properties that no decent client sends and RabbitMQ passes on all the same: each is
//! one task, worked and acknowledged like any other, and the worker lives.

use crate::support::raw::{
    self, CONTENT_TYPE, CORRELATION_ID, DELIVERY_MODE, HEADERS, MESSAGE_ID, entry, nested, table,
};
use crate::support::{Sandbox, handler};

/// Far more levels than any stack has room for; they need a frame of their own.
const ABYSS: usize = 25_000;

/// A worker takes this message, and the next.
fn is_one_task(flags: u16, properties: &[&[u8]]) {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    raw::publish(sandbox.node().port(), &sandbox.queue, flags, properties, b"strange");
    broker.publish(&sandbox.queue, "the next");
    let worked = sandbox.taskq(["work", "--until-empty"]).run().exits(0);
    worked.says("Received a message: strange\n").says("Received a message: the next\n").never_says("lost");
    assert_eq!(broker.counts(&sandbox.queue), Some((0, 0)));
}

#[test]
fn headers_nested_without_end_do_not_end_the_worker() {
    is_one_task(HEADERS, &[&table(&entry(b"abyss", b'A', &nested(ABYSS)))]);
}

#[test]
fn names_that_are_not_utf8_do_not_end_the_connection() {
    is_one_task(MESSAGE_ID, &[b"\x04caf\xe9"]);
    is_one_task(CONTENT_TYPE | CORRELATION_ID, &[b"\x02\xff\xfe", b"\x01\x80"]);
    is_one_task(HEADERS, &[&table(&entry(b"\xff", b'S', &table(b"x")))]);
}

#[test]
fn what_follows_a_broken_name_is_kept() {
    let sandbox = Sandbox::new();
    sandbox.broker().declare(&sandbox.queue);
    let properties: [&[u8]; 3] = [b"\x04caf\xe9", b"\x05plain", b"\x01\xff"];
    let flags = CONTENT_TYPE | CORRELATION_ID | MESSAGE_ID;
    raw::publish(sandbox.node().port(), &sandbox.queue, flags, &properties, b"strange");
    let script = r#"echo "$TASKQ_CONTENT_TYPE $TASKQ_ID" >"$1/seen"; exit 65"#;
    sandbox.work_with(&["--until-empty"], script).run().exits(1);
    assert_eq!(sandbox.lines("seen"), ["caf? ?"]);
    let dead = sandbox.broker().take(&sandbox.dead_queue());
    assert_eq!(dead.properties.correlation_id().as_deref(), Some("plain"));
}

/// Another queue's, which a shovel brought along.
#[test]
fn a_count_of_deliveries_from_elsewhere_makes_no_poison() {
    is_one_task(HEADERS, &[&table(&entry(b"x-delivery-count", b'l', &25_u64.to_be_bytes()))]);
}

#[test]
fn an_id_of_more_than_text_is_one_line_for_a_terminal() {
    is_one_task(MESSAGE_ID, &[b"\x08\x1b[2J\r\n\0\x07"]);
}

#[test]
fn values_of_all_types_reach_the_handler_as_far_as_they_are_text() {
    let sandbox = Sandbox::new();
    let broker = sandbox.broker();
    broker.declare(&sandbox.queue);
    let entries = [
        entry(b"binary", b'S', &table(b"\xff\xfe")),
        entry(b"bytes", b'x', &table(b"\xff")),
        entry(b"deep", b'A', &nested(100)),
        entry(b"decimal", b'D', &[2, 0, 0, 1, 0]),
        entry(b"double", b'd', &1.5_f64.to_be_bytes()),
        entry(b"no", b't', &[0]),
        entry(b"nothing", b'V', &[]),
        entry(b"short", b's', &[0xff, 0xfe]),
        entry(b"x-taskq-attempt", b'S', &table(b"9")),
        entry(b"z-text", b'S', &table("größer".as_bytes())),
    ];
    let headers = table(&entries.concat());
    raw::publish(
        sandbox.node().port(),
        &sandbox.queue,
        HEADERS | DELIVERY_MODE,
        &[&headers, &[2]],
        b"strange",
    );
    let script = r#"env | grep '^TASKQ_HEADER\|^TASKQ_ATTEMPT' | sort >"$1/seen"; exit 1"#;
    let options = ["--until-empty", "--attempts", "2", "--backoff", "1h"];
    sandbox.work_with(&options, script).run().exits(0);
    let seen = sandbox.lines("seen").join("\n");
    let expected = "TASKQ_ATTEMPT=1\nTASKQ_ATTEMPTS=2\nTASKQ_HEADER_DOUBLE=1.5\nTASKQ_HEADER_NO=false\nTASKQ_HEADER_SHORT=-2\n\
                    TASKQ_HEADER_Z_TEXT=größer";
    assert_eq!(seen, expected);
    // The copy for the next attempt has them all, the unreadable ones byte by byte.
    let copy = broker.take(&sandbox.delay_queue(3_600_000));
    assert_eq!(handler::attempt(&copy), Some(2));
    let headers = copy.properties.headers().clone().unwrap();
    assert_eq!(headers.get("binary"), Some(&amiquip::AmqpValue::ByteArray(vec![0xff, 0xfe])));
    for name in ["bytes", "deep", "decimal", "double", "no", "nothing", "short", "z-text"] {
        assert!(headers.contains_key(name), "{name} is not in {headers:?}");
    }
}

#[test]
fn a_message_without_any_properties_is_a_task() {
    is_one_task(0, &[]);
}

#[test]
fn headers_that_fill_a_frame_leave_room_for_the_record_of_a_failure() {
    // The largest that a producer can send: 131,064 bytes, 14 before the table, 4 and 11 in it.
    for size in [125_000, 130_850, 131_000, 131_035] {
        let sandbox = Sandbox::new();
        let broker = sandbox.broker();
        broker.declare(&sandbox.queue);
        let headers = table(&entry(b"large", b'S', &table(&vec![b'x'; size])));
        raw::publish(sandbox.node().port(), &sandbox.queue, HEADERS, &[&headers], b"strange");
        let options = ["--attempts", "2", "--backoff", "200ms", "--max-tasks", "2"];
        sandbox.work_with(&options, "echo failed >&2; exit 1").run().exits(1);
        let dead = broker.take(&sandbox.dead_queue());
        assert_eq!(handler::attempt(&dead), Some(2));
        assert_eq!(handler::header(&dead, "large").len(), if size == 131_035 { 0 } else { size });
    }
}
