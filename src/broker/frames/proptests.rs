//! Bytes of all kinds from the peer, in pieces of all sizes.

use proptest::prelude::*;

use super::tests::{frame, through};
use super::*;

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(METHOD), Just(HEADER), Just(BODY), Just(HEARTBEAT), any::<u8>()];
    let payload = prop_oneof![any::<Vec<u8>>(), headers()];
    let one = (kind, payload).prop_map(|(kind, payload)| frame(kind, &payload));
    prop::collection::vec(one, 0..6).prop_map(|frames| [frame(METHOD, &[0; 4]), frames.concat()].concat())
}

/// Content headers whose tables are nearly right.
fn headers() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        any::<[u8; 4]>().prop_map(|bytes| [b"I", &bytes[..]].concat()),
        any::<Vec<u8>>().prop_map(|bytes| long(b'S', &bytes)),
        Just(b"V".to_vec()),
        any::<u8>().prop_map(|kind| vec![kind]),
    ];
    let value = value.prop_recursive(20, 200, 4, |inner| {
        let inner = prop::collection::vec(inner, 0..4);
        let entry = |value: &Vec<u8>| [b"\x01k", &value[..]].concat();
        prop_oneof![
            inner.clone().prop_map(|values| long(b'A', &values.concat())),
            inner.prop_map(move |values| long(b'F', &values.iter().map(entry).collect::<Vec<_>>().concat())),
        ]
    });
    (any::<Vec<u8>>(), value).prop_map(|(name, value)| {
        let name = &name[..name.len().min(255)];
        let length = u8::try_from(name.len()).unwrap_or_default();
        let table = long(0, &[&[length], name, &value].concat());
        [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0x20, 0][..], &table[1..]].concat()
    })
}

fn long(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind][..], &u32::try_from(bytes.len()).unwrap_or_default().to_be_bytes(), bytes].concat()
}

proptest! {
    #[test]
    fn nothing_that_is_sent_breaks_it(bytes in any::<Vec<u8>>(), size in 1..100_usize) {
        let _ = through(&bytes, size);
    }

    #[test]
    fn the_pieces_do_not_matter(stream in frames(), size in 1..60_usize) {
        prop_assert_eq!(through(&stream, size), through(&stream, stream.len()));
    }

    /// What was made readable stays as it is.
    #[test]
    fn once_is_enough(stream in frames()) {
        if let Ok(once) = through(&stream, 64) {
            prop_assert!(once.len() <= stream.len());
            prop_assert_eq!(through(&once, 64), Ok(once));
        }
    }

    #[test]
    fn content_headers_are_refused_or_readable(mut payload in headers()) {
        if sanitize::properties(&mut payload[12..]).is_ok() {
            let once = payload.clone();
            prop_assert_eq!(sanitize::properties(&mut payload[12..]), Ok(()));
            prop_assert_eq!(payload, once);
        }
    }
}
