//! Bytes to messages: marker, length and kind are right before anything else looks at them (RFC 4271 4.1, 6.1).
//!
//! Never holds more than [`MAX_MESSAGE_BYTES`] and what one read brought.

use super::{
    Notification,
    message::{HEADER_BYTES, Kind, MAX_MESSAGE_BYTES},
};

/// One message: its kind, and what follows the header.
pub(super) type Framed = (Kind, Vec<u8>);

/// The bytes of a connection that make no whole message yet.
#[derive(Debug, Default)]
pub(super) struct Framer {
    bytes: Vec<u8>,
    /// How many of them have been given out.
    taken: usize,
}

impl Framer {
    /// More bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message; `None`: more bytes are needed.
    ///
    /// # Errors
    ///
    /// What to tell the peer, before the connection closes.
    pub(super) fn next(&mut self) -> Result<Option<Framed>, Notification> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((header, rest)) = rest.split_at_checked(HEADER_BYTES) else {
            return Ok(None);
        };
        let &[ref marker @ .., high, low, kind] = header else {
            return Ok(None);
        };
        if marker.iter().any(|byte| *byte != 0xff) {
            return Err(Notification::NOT_SYNCHRONIZED);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let bad_length = || Notification::new(1, 2, [high, low]);
        if !(HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&length) {
            return Err(bad_length());
        }
        let kind = Kind::from_octet(kind).ok_or_else(|| Notification::new(1, 3, [kind]))?;
        if !kind.may_have(length) {
            return Err(bad_length());
        }
        let Some(body) = rest.get(..length - HEADER_BYTES) else {
            return Ok(None);
        };
        let framed = (kind, body.to_vec());
        self.taken += length;
        Ok(Some(framed))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::message, *};

    fn next(bytes: &[u8]) -> Result<Option<Framed>, Notification> {
        let mut framer = Framer::default();
        framer.push(bytes);
        framer.next()
    }

    #[test]
    fn messages_come_out_whole_however_they_arrive() {
        let bytes = [message::keepalive(), message::refresh(1, 0), message::keepalive()].concat();
        let mut framer = Framer::default();
        let mut kinds = Vec::new();
        for byte in bytes {
            framer.push(&[byte]);
            while let Some((kind, body)) = framer.next().unwrap() {
                kinds.push((kind, body.len()));
            }
        }
        assert_eq!(
            kinds,
            [(Kind::Keepalive, 0), (Kind::RouteRefresh, 4), (Kind::Keepalive, 0)]
        );
        assert_eq!(framer.bytes.len(), framer.taken);
    }

    #[test]
    fn what_is_no_message_is_told_so() {
        let with = |at: usize, value: u8| {
            let mut bytes = message::keepalive();
            bytes[at] = value;
            next(&bytes).unwrap_err()
        };
        assert_eq!(with(3, 0), Notification::NOT_SYNCHRONIZED);
        assert_eq!(with(17, 18), Notification::new(1, 2, [0, 18]));
        assert_eq!(with(17, 20), Notification::new(1, 2, [0, 20]));
        assert_eq!(with(16, 0xff), Notification::new(1, 2, [0xff, 19]));
        assert_eq!(with(18, 9), Notification::new(1, 3, [9]));
        // An OPEN as short as a KEEPALIVE.
        assert_eq!(with(18, 1), Notification::new(1, 2, [0, 19]));
    }
}
