//! Frames in pieces of all sizes.

use super::*;

pub(super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 1];
    frame.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    frame
}

fn content_header(body_size: u64) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend(body_size.to_be_bytes());
    payload.extend([0, 0]);
    frame(HEADER, &payload)
}

/// What comes out, in reads of the same size.
pub(super) fn through(bytes: &[u8], size: usize) -> Result<Vec<u8>, Violation> {
    let (mut filter, mut accounts, mut out) = (FrameFilter::default(), Accounts::default(), Vec::new());
    for piece in bytes.chunks(size) {
        filter.put(piece, &mut accounts)?;
        let mut room = vec![0; size];
        while let count @ 1.. = filter.take(&mut room) {
            out.extend_from_slice(&room[..count]);
        }
    }
    Ok(out)
}

fn put(filter: &mut FrameFilter, bytes: &[u8]) -> Result<bool, Violation> {
    filter.put(bytes, &mut Accounts::default())
}

#[test]
fn sound_streams_pass_however_they_are_cut() {
    let mut stream = frame(METHOD, &[7; 300]);
    stream.extend(frame(HEARTBEAT, &[]));
    stream.extend(content_header(5));
    stream.extend(frame(BODY, b"HTTP/"));
    stream.extend(frame(METHOD, &[7; 5]));
    for size in 1..stream.len() {
        assert_eq!(through(&stream, size).as_ref(), Ok(&stream), "in pieces of {size}");
    }
}

#[test]
fn bodies_pass_as_they_come_and_headers_whole() {
    let mut filter = FrameFilter::default();
    let mut room = [0; 100];
    let body = frame(BODY, &[7; 20]);
    assert_eq!(put(&mut filter, &frame(METHOD, &[7; 4])), Ok(true));
    assert_eq!(filter.take(&mut room), 12);
    assert_eq!((put(&mut filter, &body[..9]), filter.take(&mut room)), (Ok(true), 9));
    assert_eq!((put(&mut filter, &body[9..]), filter.take(&mut room)), (Ok(true), 19));
    let header = content_header(5);
    assert_eq!((put(&mut filter, &header[..header.len() - 1]), filter.take(&mut room)), (Ok(true), 0));
    assert_eq!((put(&mut filter, &[0xce]), filter.take(&mut room)), (Ok(true), header.len()));
}

#[test]
fn the_smaller_frame_size_of_both_sides_holds() {
    let mut filter = FrameFilter::default();
    assert_eq!(filter.tuned(), None);
    for (wish, held) in [(0, FRAME_MAX), (8192, 8192), (u32::MAX, FRAME_MAX)] {
        let tune = [&[0, 10, 0, 30, 7, 255][..], &u32::to_be_bytes(wish), &[0, 60]].concat();
        assert_eq!(put(&mut filter, &frame(METHOD, &tune)), Ok(true));
        assert_eq!(put(&mut filter, &frame(BODY, &tune)), Ok(true));
        let tuned = Tuned { frame_max: held, channel_max: 2047 };
        assert_eq!(filter.tuned(), Some(tuned), "the broker wishes {wish}");
    }
}

/// All that can be taken now.
fn taken(filter: &mut FrameFilter) -> Vec<u8> {
    let (mut out, mut room) = (Vec::new(), [0; 4096]);
    while let count @ 1.. = filter.take(&mut room) {
        out.extend_from_slice(&room[..count]);
    }
    out
}

#[test]
fn a_large_content_waits_for_its_body_and_holds_up_nothing_else() {
    let mut filter = FrameFilter::default();
    let (start, body) = (frame(METHOD, &[7; 4]), frame(BODY, &vec![7; 100_000]));
    let header = content_header(8 << 20);
    let mut other = frame(METHOD, &[7; 9]);
    other[2] = 2;
    assert_eq!(put(&mut filter, &[&start[..], &header].concat()), Ok(true));
    assert_eq!(taken(&mut filter), start);
    // A sign of life for each piece that is held back.
    assert_eq!(put(&mut filter, &body), Ok(true));
    assert_eq!(taken(&mut filter), HEARTBEAT_FRAME);
    assert_eq!(put(&mut filter, &[&body[..], &other].concat()), Ok(true));
    assert_eq!(taken(&mut filter), other);
    let mut whole = [&header[..], &body, &body].concat();
    while taken(&mut filter).len() <= HEARTBEAT_FRAME.len() {
        assert_eq!(put(&mut filter, &body), Ok(true));
        whole.extend(&body);
    }
    assert_eq!(whole.len(), header.len() + 11 * body.len());
    assert_eq!(put(&mut filter, &body[..50]), Ok(true));
    assert_eq!(taken(&mut filter), body[..50]);
}

#[test]
fn a_large_content_comes_out_as_it_was() {
    let bodies = frame(BODY, &vec![7; 100_000]).repeat(20);
    let stream = [frame(METHOD, &[7; 4]), content_header(2_000_000), bodies, frame(METHOD, &[9; 4])];
    let heartbeat = |bytes: &[u8]| bytes.windows(8).filter(|bytes| *bytes == HEARTBEAT_FRAME).count();
    for size in [1_000, 99_999, 3_000_000] {
        let out = through(&stream.concat(), size).unwrap();
        assert_eq!(out.len(), stream.concat().len() + 8 * heartbeat(&out), "in pieces of {size}");
        assert!(out.ends_with(&frame(METHOD, &[9; 4])));
    }
}

#[test]
fn nothing_but_a_close_comes_in_the_middle_of_a_held_content() {
    let held = [frame(METHOD, &[7; 4]), content_header(8 << 20), frame(BODY, b"the beginning")].concat();
    let close = frame(METHOD, &CHANNEL_CLOSE);
    let after = |then: &[u8]| through(&[&held[..], then].concat(), 1_000_000);
    assert!(after(&close).is_ok_and(|out| out.ends_with(&close) && out.len() == 12 + close.len()));
    for then in [frame(METHOD, &[7; 4]), content_header(3)] {
        assert!(matches!(after(&then), Err(Violation::Malformed(_))));
    }
}

#[test]
fn heartbeats_say_nothing() {
    let mut filter = FrameFilter::default();
    assert_eq!(put(&mut filter, &frame(METHOD, &[7; 4])), Ok(true));
    for byte in frame(HEARTBEAT, &[]) {
        assert_eq!(put(&mut filter, &[byte]), Ok(false));
    }
    let beats = frame(HEARTBEAT, &[]).repeat(3);
    assert_eq!(put(&mut filter, &beats), Ok(false));
    assert_eq!(put(&mut filter, &[&beats[..], &frame(BODY, &[7])].concat()), Ok(true));
}

#[test]
fn frames_that_break_off_are_refused() {
    for broken in [frame(HEADER, &[1, 2]), frame(METHOD, &[]), frame(METHOD, &[0, 60, 0, 60, 9])] {
        let stream = [frame(METHOD, &[7; 10]), broken].concat();
        assert!(matches!(through(&stream, 7), Err(Violation::Malformed(_))));
    }
}

#[test]
fn what_is_too_large_is_refused_as_soon_as_it_is_announced() {
    let mut big_frame = frame(METHOD, &[0; 10]);
    big_frame.extend([BODY, 0, 1, 0x7f, 0xff, 0xff, 0xff]);
    let mut big_body = frame(METHOD, &[0; 10]);
    big_body.extend(content_header(u64::MAX));
    let mut unknown = frame(METHOD, &[0; 10]);
    unknown.extend([9, 0, 0, 0, 0, 0, 0]);
    for stream in [big_frame, big_body, unknown] {
        for size in 1..stream.len() {
            assert!(matches!(through(&stream, size), Err(Violation::Malformed(_))), "in pieces of {size}");
        }
    }
}

#[test]
fn other_protocols_are_named() {
    for (bytes, expected) in [
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], "HTTP"),
        (b"AMQP\x00\x01\x00\x00", "another version"),
        (b"\x15\x03\x03\x00\x02\x02\x50", "TLS"),
        (b"SSH-2.0-x", "not AMQP"),
    ] {
        for size in 1..bytes.len() {
            let violation = through(bytes, size);
            assert!(
                violation.as_ref().is_err_and(|violation| violation.to_string().contains(expected)),
                "{violation:?} in pieces of {size}"
            );
        }
    }
}
