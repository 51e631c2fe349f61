//! `taskq send`: the properties of the message, as another client sees them.

use crate::support::Sandbox;
use amiquip::AmqpValue;
use std::time::{SystemTime, UNIX_EPOCH};

#[test]
fn a_message_is_persistent_text_with_an_id_a_time_and_its_sender() {
    let sandbox = Sandbox::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    sandbox.taskq(["send", "hello"]).run().exits(0);
    let message = sandbox.broker().take(&sandbox.queue);
    let properties = &message.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.content_type().as_deref(), Some("text/plain"));
    assert_eq!(properties.app_id().as_deref(), Some("taskq"));
    let sent = properties.timestamp().unwrap();
    assert!((before..=now()).contains(&sent), "{sent} is not the time of sending");
    assert_eq!(*properties.priority(), None);
    assert_eq!(*properties.expiration(), None);
    assert!(properties.headers().as_ref().is_none_or(std::collections::BTreeMap::is_empty));
    assert!(!message.redelivered);
}

#[test]
fn ids_are_uuids_of_version_7_that_sort_by_time() {
    let sandbox = Sandbox::new();
    let sent = sandbox.taskq(["send", "--lines", "--print-ids"]).feed("a\n".repeat(50)).exits(0);
    let ids = sent.stdout_lines();
    assert_eq!(ids.len(), 50);
    for id in &ids {
        let fields: Vec<&str> = id.split('-').collect();
        assert_eq!(fields.iter().map(|field| field.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{id}");
        assert!(id.chars().all(|c| c == '-' || c.is_ascii_hexdigit()), "{id}");
        assert!(fields[2].starts_with('7'), "the version of {id}");
        assert!(fields[3].starts_with(['8', '9', 'a', 'b']), "the variant of {id}");
    }
    assert!(ids.is_sorted(), "{ids:?}");
}

#[test]
fn id_content_type_and_priority_are_set_as_asked() {
    let sandbox = Sandbox::new();
    let options = ["--id", "order-17", "--content-type", "application/json", "--priority", "7"];
    sandbox.taskq(["send", "{}"].iter().chain(&options)).run().exits(0);
    let message = sandbox.broker().take(&sandbox.queue);
    assert_eq!(message.properties.message_id().as_deref(), Some("order-17"));
    assert_eq!(message.properties.content_type().as_deref(), Some("application/json"));
    assert_eq!(*message.properties.priority(), Some(7));
}

#[test]
fn what_is_said_for_the_handler_is_set_as_asked() {
    let sandbox = Sandbox::new();
    let options = ["--reply-to", "answers", "--correlation-id", "c 1", "--type", "invoice"];
    sandbox.taskq(["send", "hello"].iter().chain(&options)).run().exits(0);
    let properties = sandbox.broker().take(&sandbox.queue).properties;
    assert_eq!(properties.reply_to().as_deref(), Some("answers"));
    assert_eq!(properties.correlation_id().as_deref(), Some("c 1"));
    assert_eq!(properties.type_().as_deref(), Some("invoice"));
}

/// RabbitMQ takes it from the connection alone that waits there for the answer.
#[test]
fn a_reply_address_that_the_broker_refuses_is_bad_data() {
    let sandbox = Sandbox::new();
    let send = ["send", "--reply-to", "amq.rabbitmq.reply-to", "hello"];
    sandbox.taskq(send).run().exits(65).in_one_line().says("reply");
}

#[test]
fn the_trace_of_the_environment_travels_in_the_headers() {
    let sandbox = Sandbox::new();
    let sent = |args: &[&str], state: &str| {
        let send = sandbox.taskq(["send", "hello"].iter().chain(args));
        let said = send.env("TRACEPARENT", "00-a-b-01").env("TRACESTATE", state).run().exits(0).stderr;
        let table = sandbox.broker().take(&sandbox.queue).properties.headers().clone().unwrap_or_default();
        let headers = table.into_iter().map(|(name, value)| match value {
            AmqpValue::LongString(value) => format!("{name}={value}"),
            other => panic!("{other:?}"),
        });
        (headers.collect::<Vec<_>>(), said)
    };
    assert_eq!(sent(&[], "k=v").0, ["traceparent=00-a-b-01", "tracestate=k=v"]);
    assert_eq!(sent(&["--header", "Traceparent=other"], "k=v").0, ["Traceparent=other"]);
    let (headers, said) = sent(&[], "two\nlines");
    assert_eq!(headers, ["traceparent=00-a-b-01"]);
    assert!(said.contains("warning: TRACESTATE is not sent"), "{said}");
}

#[test]
fn expires_is_sent_in_milliseconds() {
    let sandbox = Sandbox::new();
    sandbox.taskq(["send", "--expires", "2h", "hello"]).run().exits(0);
    let message = sandbox.broker().take(&sandbox.queue);
    assert_eq!(message.properties.expiration().as_deref(), Some("7200000"));
}

#[test]
fn headers_are_text_and_keep_what_follows_the_first_equals_sign() {
    let sandbox = Sandbox::new();
    let headers = ["--header", "customer=17", "--header", "query=a=b", "--header", "empty="];
    sandbox.taskq(["send", "hello"].iter().chain(&headers)).run().exits(0);
    let message = sandbox.broker().take(&sandbox.queue);
    let headers = message.properties.headers().clone().unwrap();
    let text = |text: &str| Some(AmqpValue::LongString(text.to_owned()));
    assert_eq!(headers.get("customer").cloned(), text("17"));
    assert_eq!(headers.get("query").cloned(), text("a=b"));
    assert_eq!(headers.get("empty").cloned(), text(""));
}

#[test]
fn each_task_of_a_bulk_send_has_the_same_properties_and_an_id_of_its_own() {
    let sandbox = Sandbox::new();
    let options = ["--lines", "--header", "batch=1", "--content-type", "text/csv", "--priority", "3"];
    sandbox.taskq(["send"].iter().chain(&options)).feed("a\nb\n").exits(0);
    let messages = sandbox.broker().drain(&sandbox.queue);
    assert_eq!(messages.len(), 2);
    for message in &messages {
        assert_eq!(message.properties.content_type().as_deref(), Some("text/csv"));
        assert_eq!(*message.properties.priority(), Some(3));
        assert_eq!(*message.properties.delivery_mode(), Some(2));
        let headers = message.properties.headers().clone().unwrap();
        assert_eq!(headers.get("batch"), Some(&AmqpValue::LongString("1".into())));
    }
    assert_ne!(messages[0].properties.message_id(), messages[1].properties.message_id());
}
