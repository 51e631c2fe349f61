//! Rewrites what a broker may rightly send and amiquip cannot read, in place, before amiquip sees it.
//!
//! RabbitMQ hands on what any producer sent. amiquip ends the connection over a message id that is not UTF-8, drops
//! every header after a value that is not, and descends into nested headers until its stack is full, which ends the
//! process. Such a message would come back at once, and do it again.

use super::methods::{DELIVER, RETURN, START, TUNE};

/// How deep headers may nest. RabbitMQ's own (`x-death`) are three deep.
const MAX_DEPTH: usize = 16;

/// The payload does not have the form that its beginning announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Misshapen;

/// A method frame's payload. Only what producers and configurations can put into a method is looked at.
pub(super) fn method(payload: &mut [u8]) -> Result<(), Misshapen> {
    let Some((id, arguments)) = payload.split_first_chunk_mut::<4>() else { return Err(Misshapen) };
    let mut cursor = Cursor { bytes: arguments, at: 0 };
    match *id {
        START => {
            cursor.skip(2)?;
            cursor.table(0)
        }
        TUNE => {
            // Channels, frame size. No wish for heartbeats is no reason to go without: amiquip takes the smaller of
            // both sides' wishes, and the broker what the client answers.
            cursor.skip(6)?;
            let heartbeat = cursor.take(2)?;
            if heartbeat == [0, 0] {
                heartbeat.fill(u8::MAX);
            }
            Ok(())
        }
        DELIVER => {
            cursor.text()?;
            // Delivery tag, redelivered.
            cursor.skip(9)?;
            cursor.text()?;
            cursor.text()
        }
        RETURN => {
            cursor.skip(2)?;
            cursor.text()?;
            cursor.text()?;
            cursor.text()
        }
        _ => Ok(()),
    }
}

/// How many channels, and what largest frame, the broker wishes for, if this method is its connection.tune. Zero is no
/// limit.
pub(super) fn tuned(payload: &[u8]) -> Option<(u16, u32)> {
    let wishes = payload.strip_prefix(&TUNE)?;
    let (channels, rest) = wishes.split_first_chunk()?;
    Some((u16::from_be_bytes(*channels), u32::from_be_bytes(*rest.first_chunk()?)))
}

/// A content header's properties, from their flags on.
pub(super) fn properties(payload: &mut [u8]) -> Result<(), Misshapen> {
    let mut cursor = Cursor { bytes: payload, at: 0 };
    let flags = cursor.take(2)?;
    let flags = u16::from_be_bytes([flags[0], flags[1]]);
    for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
        match bit {
            13 => cursor.table(0)?,
            // Delivery mode, priority.
            11 | 12 => cursor.skip(1)?,
            // The time of sending.
            6 => cursor.skip(8)?,
            _ => cursor.text()?,
        }
    }
    Ok(())
}

/// Bytes that are read, and changed, from the front.
struct Cursor<'b> {
    bytes: &'b mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> Result<&mut [u8], Misshapen> {
        let end = self.at.checked_add(count).ok_or(Misshapen)?;
        let taken = self.bytes.get_mut(self.at..end).ok_or(Misshapen)?;
        self.at = end;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), Misshapen> {
        self.take(count).map(drop)
    }

    /// What a length of four bytes announces.
    fn long(&mut self) -> Result<&mut [u8], Misshapen> {
        let length = self.take(4)?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        self.take(usize::try_from(length).map_err(|_| Misshapen)?)
    }

    /// A short string, which has to be UTF-8.
    fn text(&mut self) -> Result<(), Misshapen> {
        let length = usize::from(self.take(1)?[0]);
        replace_broken(self.take(length)?);
        Ok(())
    }

    fn table(&mut self, depth: usize) -> Result<(), Misshapen> {
        let mut inner = Cursor { bytes: self.long()?, at: 0 };
        while inner.at < inner.bytes.len() {
            inner.text()?;
            inner.value(depth)?;
        }
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), Misshapen> {
        let mut inner = Cursor { bytes: self.long()?, at: 0 };
        while inner.at < inner.bytes.len() {
            inner.value(depth)?;
        }
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<(), Misshapen> {
        let kind_at = self.at;
        match self.take(1)?[0] {
            b'V' => Ok(()),
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'U' | b'u' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            b'x' => self.long().map(drop),
            b'S' => {
                if str::from_utf8(self.long()?).is_err() {
                    self.call_bytes(kind_at);
                }
                Ok(())
            }
            b'F' | b'A' if depth == MAX_DEPTH => {
                self.long()?;
                self.call_bytes(kind_at);
                Ok(())
            }
            b'F' => self.table(depth + 1),
            b'A' => self.array(depth + 1),
            _ => Err(Misshapen),
        }
    }

    /// Bytes look like any other value with a length of four bytes, and nobody looks into them: a copy of the message
    /// keeps them as they are.
    fn call_bytes(&mut self, kind_at: usize) {
        self.bytes[kind_at] = b'x';
    }
}

fn replace_broken(text: &mut [u8]) {
    let mut sound = 0;
    while let Err(error) = str::from_utf8(&text[sound..]) {
        let from = sound + error.valid_up_to();
        let to = error.error_len().map_or(text.len(), |length| from + length);
        text[from..to].fill(b'?');
        sound = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT_TYPE: u16 = 1 << 15;
    const HEADERS: u16 = 1 << 13;
    const MESSAGE_ID: u16 = 1 << 7;

    fn long(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        [&[kind][..], &length.to_be_bytes(), bytes].concat()
    }

    fn with(flags: u16, rest: &[&[u8]]) -> Vec<u8> {
        [&flags.to_be_bytes()[..], &rest.concat()].concat()
    }

    fn table(entries: &[u8]) -> Vec<u8> {
        long(0, entries)[1..].to_vec()
    }

    fn rewritten(payload: &[u8]) -> Vec<u8> {
        let mut payload = payload.to_vec();
        assert_eq!(properties(&mut payload), Ok(()));
        payload
    }

    #[test]
    fn sound_properties_stay_as_they_are() {
        let mut entries = [b"\x01a", &long(b'S', "text é".as_bytes())[..]].concat();
        for (kind, size) in
            (*b"VtbBsUuIifDLldT").into_iter().zip([0, 1, 1, 1, 2, 2, 2, 4, 4, 4, 5, 8, 8, 8, 8])
        {
            entries.extend([2, b'k', kind, kind]);
            entries.extend(vec![0xff; size]);
        }
        let inner = [b"\x01n", &long(b'A', &long(b'x', b"\xff\xfe"))[..]].concat();
        entries.extend([b"\x01t", &long(b'F', &inner)[..]].concat());
        let all = with(
            0xfffc,
            &[
                b"\x01a\x01b",
                &table(&entries),
                &[2, 9],
                b"\x01c\x01d\x01e\x01f",
                &[7; 8],
                b"\x01g\x01h\x01i\x00",
            ],
        );
        assert_eq!(rewritten(&all), all);
        for cut in 0..all.len() {
            assert_eq!(properties(&mut all[..cut].to_vec()), Err(Misshapen), "cut at {cut}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_keep_their_length() {
        let broken = with(CONTENT_TYPE | MESSAGE_ID, &[b"\x04caf\xe9", b"\x05\xffa\xc3\xa9\xc3"]);
        let whole = with(CONTENT_TYPE | MESSAGE_ID, &[b"\x04caf?", "\x05?aé?".as_bytes()]);
        assert_eq!(rewritten(&broken), whole);
        let mut deliver = [&DELIVER[..], b"\x01t", &[0; 9], b"\x01\xff", b"\x02a\xff"].concat();
        assert_eq!(method(&mut deliver), Ok(()));
        assert!(deliver.ends_with(b"\x01?\x02a?"));
    }

    #[test]
    fn values_that_are_not_utf8_are_bytes() {
        let headers =
            |kind| table(&[b"\x01a", &long(kind, b"\xff")[..], b"\x01b", &long(b'S', b"x")].concat());
        assert_eq!(
            rewritten(&with(HEADERS, &[&headers(b'S')])),
            with(HEADERS, &[&headers(b'x')]),
            "what follows is not touched"
        );
    }

    #[test]
    fn what_nests_too_deep_is_bytes() {
        let nested = |depth: usize| {
            let value = (0..depth).fold(vec![b'V'], |inner, _| long(b'A', &inner));
            with(HEADERS, &[&table(&[b"\x01a", &value[..]].concat())])
        };
        assert_eq!(rewritten(&nested(MAX_DEPTH)), nested(MAX_DEPTH));
        let deep = nested(20_000);
        let shallow = rewritten(&deep);
        let changes: Vec<_> = deep.iter().zip(&shallow).filter(|(before, after)| before != after).collect();
        assert_eq!(changes, [(&b'A', &b'x')]);
    }

    #[test]
    fn a_broker_without_heartbeats_gets_ours() {
        let mut tune = [&TUNE[..], &[7, 255, 0, 2, 0, 0, 0, 0]].concat();
        assert_eq!(method(&mut tune), Ok(()));
        assert_eq!(tune[10..], [255, 255]);
        tune[11] = 60;
        let before = tune.clone();
        assert_eq!((method(&mut tune), tune), (Ok(()), before));
    }
}
