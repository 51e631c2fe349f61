//! Tasks and replies of all kinds.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::handler::TaskProperties;

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for digit in group {
            let value = base64::DIGITS.iter().position(|other| other == digit).unwrap_or_default();
            bits = bits << 6 | u32::try_from(value).ok()?;
        }
        let padding = group.len() - group.iter().position(|digit| *digit == b'=').unwrap_or(group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

proptest! {
    #[test]
    fn a_task_is_one_line_that_says_it_all(
        id in any::<String>(),
        content_type in any::<String>(),
        headers in prop::collection::btree_map(any::<String>(), any::<String>(), 0..4),
        body in any::<Vec<u8>>(),
    ) {
        let headers: Vec<_> = headers.into_iter().collect();
        let (headers, body) = (&headers[..], &body[..]);
        let properties = TaskProperties { kind: Some(&id), ..TaskProperties::default() };
        let (id, content_type) = (&*id, &*content_type);
        let task = Task {
            id, attempt: 1, attempts: 1, queue: "q", redelivered: false, content_type, properties, headers, body,
        };
        let line = request(&task).unwrap_or_default();
        prop_assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        let value: Value = serde_json::from_slice(&line).unwrap_or_default();
        prop_assert_eq!((value["id"].as_str(), value["content_type"].as_str()), (Some(id), Some(content_type)));
        prop_assert_eq!(value["type"].as_str(), Some(id));
        for (name, text) in headers {
            prop_assert_eq!(value["headers"][name].as_str(), Some(&**text));
        }
        let sent = match value["body_base64"].as_str() {
            Some(base64) => decode(base64),
            None => value["body"].as_str().map(|body| body.as_bytes().to_vec()),
        };
        prop_assert_eq!(sent.as_deref(), Some(body));
    }

    #[test]
    fn no_reply_breaks_it(line in prop_oneof![any::<Vec<u8>>(), "(OK|RETRY|DEAD)\\PC*".prop_map(String::into_bytes)]) {
        let text = match Reply::parse(&line) {
            Ok(Reply::Ok) => String::new(),
            Ok(Reply::Retry(phrase) | Reply::Dead(phrase)) | Err(phrase) => phrase,
        };
        prop_assert!(!text.chars().any(char::is_control) && text.chars().count() <= PHRASE_MAX);
    }

    #[test]
    fn the_pieces_do_not_matter(bytes in "(OK\n|RETRY [a-z]{0,9}\n|[a-z]{0,9}\n|[a-z])*", size in 1..9_usize) {
        let mut whole = Replies::default();
        whole.take(bytes.as_bytes());
        let mut pieces = Replies::default();
        let mut replies = Vec::new();
        for piece in bytes.as_bytes().chunks(size) {
            pieces.take(piece);
            replies.extend(std::iter::from_fn(|| pieces.next()));
        }
        prop_assert_eq!(replies, std::iter::from_fn(|| whole.next()).collect::<Vec<_>>());
        prop_assert_eq!(pieces.unread(), whole.unread());
    }
}
