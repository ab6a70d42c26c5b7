//! NOTIFICATION: why a session ends, in numbers and in words (RFC 4271 4.5).

use std::fmt;

/// Characters of a peer's message that are shown.
const SHOWN_CHARS: usize = 128;

/// A NOTIFICATION's code, subcode and data. Displays as `Cease/Administrative Shutdown: "upgrade of the switch"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode, 0 where the code has none.
    pub subcode: u8,
    /// What the code says it is; bytes of the peer's choice.
    pub data: Vec<u8>,
}

const HEADER: [&str; 4] = [
    "Unspecific",
    "Connection Not Synchronized",
    "Bad Message Length",
    "Bad Message Type",
];
const OPEN: [&str; 12] = [
    "Unspecific",
    "Unsupported Version Number",
    "Bad Peer AS",
    "Bad BGP Identifier",
    "Unsupported Optional Parameter",
    "Authentication Failure",
    "Unacceptable Hold Time",
    "Unsupported Capability",
    "Unspecific",
    "Unspecific",
    "Unspecific",
    "Role Mismatch",
];
const UPDATE: [&str; 12] = [
    "Unspecific",
    "Malformed Attribute List",
    "Unrecognized Well-known Attribute",
    "Missing Well-known Attribute",
    "Attribute Flags Error",
    "Attribute Length Error",
    "Invalid ORIGIN Attribute",
    "AS Routing Loop",
    "Invalid NEXT_HOP Attribute",
    "Optional Attribute Error",
    "Invalid Network Field",
    "Malformed AS_PATH",
];
const STATE: [&str; 4] = [
    "Unspecific",
    "Unexpected Message in OpenSent",
    "Unexpected Message in OpenConfirm",
    "Unexpected Message in Established",
];
/// RFC 4486, RFC 8538, RFC 9384.
const CEASE: [&str; 11] = [
    "Unspecific",
    "Maximum Number of Prefixes Reached",
    "Administrative Shutdown",
    "Peer De-configured",
    "Administrative Reset",
    "Connection Rejected",
    "Other Configuration Change",
    "Connection Collision Resolution",
    "Out of Resources",
    "Hard Reset",
    "BFD Down",
];
const REFRESH: [&str; 2] = ["Unspecific", "Invalid Message Length"];

impl Notification {
    /// Cease/Connection Collision Resolution.
    pub(super) const COLLISION: Self = Self::bare(6, 7);
    /// Cease/BFD Down (RFC 9384).
    pub(super) const BFD_DOWN: Self = Self::bare(6, 10);
    /// Hold Timer Expired.
    pub(super) const HOLD: Self = Self::bare(4, 0);
    /// Message Header Error/Connection Not Synchronized.
    pub(super) const NOT_SYNCHRONIZED: Self = Self::bare(1, 1);

    /// Without data.
    pub(super) const fn bare(code: u8, subcode: u8) -> Self {
        Self {
            code,
            subcode,
            data: Vec::new(),
        }
    }

    /// With data.
    pub fn new(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Self {
        Self {
            code,
            subcode,
            data: data.into(),
        }
    }

    /// Cease with a subcode and, of a shutdown or a reset, a message for the peer's operator (RFC 9003): what fits of it.
    pub fn cease(subcode: u8, message: &str) -> Self {
        let mut end = message.len().min(usize::from(u8::MAX));
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let message = message.get(..end).unwrap_or_default();
        if message.is_empty() || !matches!(subcode, 2 | 4) {
            return Self::bare(6, subcode);
        }
        let length = u8::try_from(message.len()).unwrap_or(u8::MAX);
        Self::new(6, subcode, [&[length], message.as_bytes()].concat())
    }

    /// A message's body.
    ///
    /// The framer has seen to its length.
    pub(super) fn read(body: &[u8]) -> Self {
        match body {
            [code, subcode, data @ ..] => Self::new(*code, *subcode, data),
            [] | [_] => Self::bare(0, 0),
        }
    }

    /// A message's body.
    pub(super) fn body(&self) -> Vec<u8> {
        [&[self.code, self.subcode], &self.data[..]].concat()
    }

    /// What the peer's operator had to say (RFC 9003), one line of it.
    pub fn message(&self) -> Option<String> {
        let (&length, text) = self.data.split_first()?;
        if self.code != 6 || !matches!(self.subcode, 2 | 4) {
            return None;
        }
        let text = str::from_utf8(text.get(..usize::from(length))?).ok()?;
        let mut shown: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
        if text.chars().nth(SHOWN_CHARS).is_some() {
            shown.push('…');
        }
        (!shown.is_empty()).then_some(shown)
    }

    fn names(&self) -> (&'static str, &'static [&'static str]) {
        match self.code {
            1 => ("Message Header Error", &HEADER),
            2 => ("OPEN Message Error", &OPEN),
            3 => ("UPDATE Message Error", &UPDATE),
            4 => ("Hold Timer Expired", &[]),
            5 => ("Finite State Machine Error", &STATE),
            6 => ("Cease", &CEASE),
            7 => ("ROUTE-REFRESH Message Error", &REFRESH),
            8 => ("Send Hold Timer Expired", &[]),
            _ => ("Unknown Error", &[]),
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, subcodes) = self.names();
        f.write_str(name)?;
        match subcodes.get(usize::from(self.subcode)) {
            Some(subcode) => write!(f, "/{subcode}")?,
            None if self.subcode == 0 && (1..=8).contains(&self.code) => {}
            None => write!(f, " ({}/{})", self.code, self.subcode)?,
        }
        self.message().map_or(Ok(()), |message| write!(f, ": \"{message}\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_says_why() {
        let sent = Notification::cease(2, "upgrade\nof the switch");
        let read = Notification::read(&sent.body());
        assert_eq!(read, sent);
        assert_eq!(
            read.to_string(),
            "Cease/Administrative Shutdown: \"upgrade\\nof the switch\""
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let sent = Notification::cease(4, &"ü".repeat(200));
        assert_eq!(sent.data.len(), 1 + 254);
        assert_eq!(sent.message().unwrap(), "ü".repeat(127));
        let sent = Notification::cease(2, &"x".repeat(300));
        assert_eq!(sent.data.len(), 1 + 255);
        assert_eq!(sent.message().unwrap(), format!("{}…", "x".repeat(SHOWN_CHARS)));
    }

    #[test]
    fn numbers_nobody_knows_are_shown() {
        assert_eq!(Notification::bare(9, 3).to_string(), "Unknown Error (9/3)");
        assert_eq!(Notification::bare(6, 99).to_string(), "Cease (6/99)");
        assert_eq!(Notification::bare(4, 0).to_string(), "Hold Timer Expired");
        // A length that lies.
        assert_eq!(
            Notification::new(6, 2, [200, b'x']).to_string(),
            "Cease/Administrative Shutdown"
        );
    }
}
