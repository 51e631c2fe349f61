//! The line protocol of persistent commands: a task is one line of JSON on stdin, a reply one line on stdout.

use std::io;

use super::sink::OutputSink;
use super::task::Task;
use crate::base64;

/// The longest reply line, in bytes with its end.
const REPLY_MAX: usize = 64 * 1024;

/// How many bytes of a reply are kept: `Failure::exit` is a short phrase.
const PHRASE_MAX: usize = 200;

/// Bytes that a task's line is expected to have beside its body.
const ENVELOPE: usize = 1024;

/// The line for a task, with its end. The body comes last, after the headers, so that a shell script can cut it out. What
/// the task does not have is not there.
pub(super) fn request(task: &Task<'_>) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(ENVELOPE + task.body.len());
    let Task { attempt, attempts, redelivered, .. } = task;
    let numbers =
        format!(r#","attempt":{attempt},"attempts":{attempts},"redelivered":{redelivered},"queue":"#);
    line.extend_from_slice(br#"{"id":"#);
    serde_json::to_writer(&mut line, task.id)?;
    line.extend_from_slice(numbers.as_bytes());
    serde_json::to_writer(&mut line, task.queue)?;
    line.extend_from_slice(br#","content_type":"#);
    serde_json::to_writer(&mut line, task.content_type)?;
    let properties = &task.properties;
    let timestamp = properties.timestamp.map(|moment| moment.to_string());
    let words = [
        ("reply_to", properties.reply_to),
        ("correlation_id", properties.correlation_id),
        ("content_encoding", properties.content_encoding),
        ("type", properties.kind),
        ("timestamp", timestamp.as_deref()),
        ("traceparent", task.header("traceparent")),
        ("tracestate", task.header("tracestate")),
    ];
    for (name, value) in words {
        let Some(value) = value else { continue };
        line.extend_from_slice(format!(r#","{name}":"#).as_bytes());
        serde_json::to_writer(&mut line, value)?;
    }
    if let Some(priority) = properties.priority {
        line.extend_from_slice(format!(r#","priority":{priority}"#).as_bytes());
    }
    line.extend_from_slice(br#","headers":{"#);
    for (nth, (name, value)) in task.headers.iter().enumerate() {
        if nth > 0 {
            line.push(b',');
        }
        serde_json::to_writer(&mut line, name)?;
        line.push(b':');
        serde_json::to_writer(&mut line, value)?;
    }
    if let Ok(body) = str::from_utf8(task.body) {
        line.extend_from_slice(br#"},"body":"#);
        serde_json::to_writer(&mut line, body)?;
    } else {
        line.extend_from_slice(br#"},"body_base64":""#);
        base64::encode(task.body, &mut line);
        line.push(b'"');
    }
    line.extend_from_slice(b"}\n");
    Ok(line)
}

/// What a persistent command says about its task.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Ok,
    /// With the whole reply as a phrase: `RETRY disk full`.
    Retry(String),
    /// With the whole reply as well.
    Dead(String),
}

impl Reply {
    /// Parses a line, with or without its end. A line that is no reply is the error, as a phrase.
    fn parse(line: &[u8]) -> Result<Self, String> {
        let line = line.trim_ascii_end();
        let word = line.split(|byte| *byte == b' ').next();
        match word {
            Some(b"OK") if line == b"OK" => Ok(Self::Ok),
            Some(b"RETRY") => Ok(Self::Retry(phrase(line))),
            Some(b"DEAD") => Ok(Self::Dead(phrase(line))),
            _ => Err(phrase(line)),
        }
    }
}

/// Makes any bytes a short text without control characters, which fits a header.
fn phrase(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(PHRASE_MAX)]);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Takes what a persistent command writes to stdout, and finds the replies in it.
#[derive(Default)]
pub(super) struct Replies {
    unread: Vec<u8>,
}

impl Replies {
    /// Takes the next reply out. None if there is no whole line yet. A line that is too long is an error, as one that
    /// is no reply.
    pub(super) fn next(&mut self) -> Option<Result<Reply, String>> {
        let end = self.unread.iter().position(|byte| *byte == b'\n');
        if end.is_none() && self.unread.len() < REPLY_MAX {
            return None;
        }
        let line: Vec<u8> = self.unread.drain(..end.map_or(REPLY_MAX, |end| end + 1)).collect();
        Some(if end.is_some() { Reply::parse(&line) } else { Err(phrase(&line)) })
    }

    /// The beginning of what was not taken out, as a phrase. None if there is nothing.
    pub(super) fn unread(&self) -> Option<String> {
        (!self.unread.is_empty()).then(|| phrase(self.unread.trim_ascii()))
    }
}

impl OutputSink for Replies {
    fn room(&self) -> usize {
        REPLY_MAX.saturating_sub(self.unread.len())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    fn end(&mut self) {}
}

#[cfg(test)]
mod proptests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::Moment;
    use crate::handler::TaskProperties;
    use serde_json::{Value, from_slice, json};

    fn task<'a>(headers: &'a [(String, String)], body: &'a [u8]) -> Task<'a> {
        let (id, queue, content_type) = ("i\"d\n\u{2028}", "q", "text/plain");
        let properties = TaskProperties::default();
        Task {
            id,
            attempt: 3,
            attempts: 5,
            queue,
            redelivered: true,
            content_type,
            properties,
            headers,
            body,
        }
    }

    #[test]
    fn a_request_is_one_line_of_json() {
        let headers = [("a\"b".into(), "\0\n".into()), ("body".into(), "}".into())];
        let body = (0..0x80).chain([0x2028, 0x1F600]).filter_map(char::from_u32).collect::<String>();
        let line = request(&task(&headers, body.as_bytes())).unwrap();
        assert_eq!(
            line.split(|byte| *byte == b'\n').map(<[u8]>::len).collect::<Vec<_>>(),
            [line.len() - 1, 0]
        );
        let expected = json!({
            "id": "i\"d\n\u{2028}", "attempt": 3, "attempts": 5, "queue": "q", "redelivered": true, "content_type": "text/plain",
            "headers": {"a\"b": "\0\n", "body": "}"}, "body": body,
        });
        assert_eq!(from_slice::<Value>(&line).unwrap(), expected);
    }

    #[test]
    fn what_a_task_has_is_in_the_line() {
        let headers = [("Traceparent".into(), "00-1-2-01".into()), ("tracestate".into(), "a=\"1\"".into())];
        let properties = TaskProperties {
            reply_to: Some("a\"b"),
            correlation_id: Some(""),
            content_encoding: Some("gzip"),
            kind: Some("t\n"),
            priority: Some(7),
            timestamp: Moment::from_unix(0),
        };
        let line = request(&Task { properties, ..task(&headers, b"x") }).unwrap();
        let value = from_slice::<Value>(&line).unwrap();
        for (name, expected) in [
            ("reply_to", json!("a\"b")),
            ("correlation_id", json!("")),
            ("content_encoding", json!("gzip")),
            ("type", json!("t\n")),
            ("priority", json!(7)),
            ("timestamp", json!("1970-01-01T00:00:00Z")),
            ("traceparent", json!("00-1-2-01")),
            ("tracestate", json!("a=\"1\"")),
            ("body", json!("x")),
        ] {
            assert_eq!(value[name], expected, "{name}");
        }
        assert!(line.ends_with(b"},\"body\":\"x\"}\n"));
    }

    #[test]
    fn other_bytes_are_base64() {
        let line = request(&task(&[], b"\xff\0")).unwrap();
        let value = from_slice::<Value>(&line).unwrap();
        assert_eq!((&value["body_base64"], &value["body"]), (&json!("/wA="), &Value::Null));
        assert_eq!(from_slice::<Value>(&request(&task(&[], b"")).unwrap()).unwrap()["body"], "");
    }

    #[test]
    fn replies_are_parsed_strictly() {
        assert_eq!(Reply::parse(b"OK"), Ok(Reply::Ok));
        assert_eq!(Reply::parse(b"OK \r\n"), Ok(Reply::Ok));
        assert_eq!(Reply::parse(b"RETRY\n"), Ok(Reply::Retry("RETRY".into())));
        assert_eq!(Reply::parse(b"RETRY disk full"), Ok(Reply::Retry("RETRY disk full".into())));
        assert_eq!(Reply::parse(b"DEAD a\x1b[0m\xff"), Ok(Reply::Dead("DEAD a [0m\u{fffd}".into())));
        for line in [&b""[..], b"ok", b"OK done", b"OKAY", b" OK", b"RETRYING", b"DEADLINE", b"\xff"] {
            assert!(Reply::parse(line).is_err(), "{line:?}");
        }
        assert_eq!(Reply::parse(&[b'x'; 9999]).unwrap_err().len(), PHRASE_MAX);
    }

    #[test]
    fn replies_come_in_pieces() {
        let mut replies = Replies::default();
        for byte in b"RETRY a" {
            replies.take(&[*byte]);
            assert_eq!(replies.next(), None);
        }
        replies.take(b"\nOK");
        assert_eq!(replies.next(), Some(Ok(Reply::Retry("RETRY a".into()))));
        assert_eq!((replies.next(), replies.unread()), (None, Some("OK".into())));
    }

    #[test]
    fn a_reply_without_an_end_is_cut() {
        let mut replies = Replies::default();
        replies.take(&vec![b'O'; REPLY_MAX]);
        assert_eq!(replies.room(), 0);
        assert!(replies.next().is_some_and(|reply| reply.is_err()));
    }
}
