//! Why a datagram on a BFD port was discarded.

/// A reason; each is counted, and `name` is its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Discard {
    /// Fewer bytes than a packet has.
    Short,
    /// Another version than 1.
    Version,
    /// A length that is less than its parts', or more than the datagram's.
    Length,
    /// A detection multiplier of 0.
    Multiplier,
    /// A multipoint packet (RFC 8562).
    Multipoint,
    /// The sender gives its session no number.
    NoDiscriminator,
    /// It is beyond Down and does not name the receiver's session.
    StateWithoutDiscriminator,
    /// It is authenticated, and no session here is.
    Authentication,
    /// It came through a router, to a session on one link: a forged one, usually (RFC 5881 §5).
    Hops,
    /// It names a session that is not there.
    UnknownDiscriminator,
    /// It names a session with somebody else.
    OtherPeer,
    /// No session with its sender.
    UnknownPeer,
}

impl Discard {
    /// All reasons, by their number.
    pub const ALL: [Self; 12] = [
        Self::Short,
        Self::Version,
        Self::Length,
        Self::Multiplier,
        Self::Multipoint,
        Self::NoDiscriminator,
        Self::StateWithoutDiscriminator,
        Self::Authentication,
        Self::Hops,
        Self::UnknownDiscriminator,
        Self::OtherPeer,
        Self::UnknownPeer,
    ];

    /// In output and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Version => "version",
            Self::Length => "length",
            Self::Multiplier => "multiplier",
            Self::Multipoint => "multipoint",
            Self::NoDiscriminator => "no_discriminator",
            Self::StateWithoutDiscriminator => "state_without_discriminator",
            Self::Authentication => "authentication",
            Self::Hops => "hops",
            Self::UnknownDiscriminator => "unknown_discriminator",
            Self::OtherPeer => "other_peer",
            Self::UnknownPeer => "unknown_peer",
        }
    }
}
