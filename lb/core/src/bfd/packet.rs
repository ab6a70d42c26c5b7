//! The BFD control packet (RFC 5880 §4.1), 24 bytes in network order.
//!
//! Never with an authentication section: none is sent, and a packet that has one is discarded.

use super::Discard;

/// Length of a control packet without authentication.
pub const PACKET_BYTES: usize = 24;

const VERSION: u8 = 1;
/// Of the second byte, below the state.
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// The state of a session (RFC 5880 §6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Switched off by an administrator: says nothing about the path.
    AdminDown,
    /// The peer is not heard.
    Down,
    /// The peer is heard; whether it hears us is not known.
    Init,
    /// Both hear one another.
    Up,
}

impl State {
    const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    /// In output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AdminDown => "admin_down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        }
    }
}

/// Why the sender's session last left the state Up (RFC 5880 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Diagnostic {
    /// It has not.
    None,
    /// Nothing was heard for the detection time.
    DetectionTimeExpired,
    /// The echo function failed.
    EchoFailed,
    /// The other side said that it is down.
    NeighbourSignaledDown,
    /// The forwarding plane was reset.
    ForwardingPlaneReset,
    /// The path is down.
    PathDown,
    /// A path in front of it is down.
    ConcatenatedPathDown,
    /// Switched off by an administrator.
    AdministrativelyDown,
    /// A path behind it is down.
    ReverseConcatenatedPathDown,
    /// One that later RFCs define, 9 to 31.
    Other(u8),
}

impl Diagnostic {
    /// Of the low five bits.
    pub const fn of(number: u8) -> Self {
        match number & 0x1f {
            0 => Self::None,
            1 => Self::DetectionTimeExpired,
            2 => Self::EchoFailed,
            3 => Self::NeighbourSignaledDown,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            other => Self::Other(other),
        }
    }

    /// On the wire, in five bits.
    pub const fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::DetectionTimeExpired => 1,
            Self::EchoFailed => 2,
            Self::NeighbourSignaledDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Other(other) => other & 0x1f,
        }
    }

    /// In output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::DetectionTimeExpired => "detection_time_expired",
            Self::EchoFailed => "echo_failed",
            Self::NeighbourSignaledDown => "neighbour_signaled_down",
            Self::ForwardingPlaneReset => "forwarding_plane_reset",
            Self::PathDown => "path_down",
            Self::ConcatenatedPathDown => "concatenated_path_down",
            Self::AdministrativelyDown => "administratively_down",
            Self::ReverseConcatenatedPathDown => "reverse_concatenated_path_down",
            Self::Other(_) => "other",
        }
    }
}

/// A control packet. Intervals are in microseconds, as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender last left Up.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// Asks for an answer with `is_final`, at once.
    pub poll: bool,
    /// The answer to a poll.
    pub is_final: bool,
    /// The sender's BFD goes on when its control plane does not.
    pub control_plane_independent: bool,
    /// The sender wants no periodic packets while both are up.
    pub demand: bool,
    /// How many packets in a row the sender may lose before it is taken for dead. Never 0.
    pub multiplier: u8,
    /// The sender's number for the session. Never 0.
    pub my_discriminator: u32,
    /// The receiver's number for it; 0: not known yet.
    pub your_discriminator: u32,
    /// The sender would like to send this often.
    pub min_tx_us: u32,
    /// The sender can receive this often; 0: wants nothing.
    pub min_rx_us: u32,
    /// The sender can return echoes this often; 0: none.
    pub min_echo_rx_us: u32,
}

impl Packet {
    /// Reads what a datagram carries, with those rules of RFC 5880 §6.8.6 that need no session.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks.
    pub fn parse(payload: &[u8]) -> Result<Self, Discard> {
        let bytes: &[u8; PACKET_BYTES] = payload.first_chunk().ok_or(Discard::Short)?;
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let has = |flag: u8| bytes[1] & flag != 0;
        if bytes[0] >> 5 != VERSION {
            return Err(Discard::Version);
        }
        // An authentication section has at least two bytes.
        let least = PACKET_BYTES + if has(AUTHENTICATION) { 2 } else { 0 };
        let length = usize::from(bytes[3]);
        if length < least || length > payload.len() {
            return Err(Discard::Length);
        }
        if bytes[2] == 0 {
            return Err(Discard::Multiplier);
        }
        if has(MULTIPOINT) {
            return Err(Discard::Multipoint);
        }
        if word(4) == 0 {
            return Err(Discard::NoDiscriminator);
        }
        let packet = Self {
            diagnostic: Diagnostic::of(bytes[0]),
            state: State::ALL[usize::from(bytes[1] >> 6)],
            poll: has(POLL),
            is_final: has(FINAL),
            control_plane_independent: has(CONTROL_PLANE_INDEPENDENT),
            demand: has(DEMAND),
            multiplier: bytes[2],
            my_discriminator: word(4),
            your_discriminator: word(8),
            min_tx_us: word(12),
            min_rx_us: word(16),
            min_echo_rx_us: word(20),
        };
        if packet.your_discriminator == 0 && matches!(packet.state, State::Init | State::Up) {
            return Err(Discard::StateWithoutDiscriminator);
        }
        if has(AUTHENTICATION) {
            return Err(Discard::Authentication);
        }
        Ok(packet)
    }

    /// As it stands on the wire.
    pub fn bytes(&self) -> [u8; PACKET_BYTES] {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let mut bytes = [0; PACKET_BYTES];
        bytes[0] = VERSION << 5 | self.diagnostic.number();
        bytes[1] = (self.state as u8) << 6
            | flag(self.poll, POLL)
            | flag(self.is_final, FINAL)
            | flag(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | flag(self.demand, DEMAND);
        bytes[2] = self.multiplier;
        bytes[3] = PACKET_BYTES as u8;
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            self.min_tx_us,
            self.min_rx_us,
            self.min_echo_rx_us,
        ];
        for (place, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of FRR 8.4's, captured: up, poll, 50 ms both ways.
    const GOLDEN: [u8; PACKET_BYTES] = [
        0x20, 0xe0, 0x03, 0x18, 0x0a, 0xd4, 0x6b, 0x47, 0x29, 0x8a, 0x9a, 0x21, 0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50, 0,
        0, 0xc3, 0x50,
    ];

    fn with(at: usize, value: u8) -> Result<Packet, Discard> {
        let mut bytes = GOLDEN;
        bytes[at] = value;
        Packet::parse(&bytes)
    }

    #[test]
    fn a_packet_from_the_wire_is_read_and_written_alike() {
        let packet = Packet::parse(&GOLDEN).unwrap();
        assert_eq!(
            packet,
            Packet {
                diagnostic: Diagnostic::None,
                state: State::Up,
                poll: true,
                is_final: false,
                control_plane_independent: false,
                demand: false,
                multiplier: 3,
                my_discriminator: 0x0ad4_6b47,
                your_discriminator: 0x298a_9a21,
                min_tx_us: 50_000,
                min_rx_us: 50_000,
                min_echo_rx_us: 50_000,
            }
        );
        assert_eq!(packet.bytes(), GOLDEN);
    }

    #[test]
    fn every_rule_that_a_packet_breaks_has_its_reason() {
        for length in 0..PACKET_BYTES {
            assert_eq!(Packet::parse(&GOLDEN[..length]), Err(Discard::Short));
        }
        assert_eq!(with(0, 0x00), Err(Discard::Version));
        assert_eq!(with(0, 0x40), Err(Discard::Version));
        assert_eq!(with(3, 23), Err(Discard::Length));
        assert_eq!(with(3, 25), Err(Discard::Length), "longer than the datagram");
        assert_eq!(with(1, 0xc4), Err(Discard::Length), "no room for authentication");
        assert_eq!(with(2, 0), Err(Discard::Multiplier));
        assert_eq!(with(1, 0xc1), Err(Discard::Multipoint));
        let mut bytes = GOLDEN;
        bytes[4..8].fill(0);
        assert_eq!(Packet::parse(&bytes), Err(Discard::NoDiscriminator));
        for (state, verdict) in [(0, true), (1, true), (2, false), (3, false)] {
            let mut bytes = GOLDEN;
            bytes[1] = state << 6;
            bytes[8..12].fill(0);
            let parsed = Packet::parse(&bytes).map(|_| true);
            assert_eq!(
                parsed,
                if verdict {
                    Ok(true)
                } else {
                    Err(Discard::StateWithoutDiscriminator)
                }
            );
        }
        let mut longer = [GOLDEN.as_slice(), &[1, 2]].concat();
        longer[1] |= AUTHENTICATION;
        longer[3] = 26;
        assert_eq!(Packet::parse(&longer), Err(Discard::Authentication));
        // What follows the packet in the datagram is nobody's business.
        longer[1] &= !AUTHENTICATION;
        longer[3] = 24;
        assert!(Packet::parse(&longer).is_ok());
    }

    #[test]
    fn diagnostics_keep_their_numbers() {
        for number in 0..=31 {
            assert_eq!(Diagnostic::of(number).number(), number);
            assert_eq!(with(0, 0x20 | number).unwrap().diagnostic, Diagnostic::of(number));
        }
    }
}
