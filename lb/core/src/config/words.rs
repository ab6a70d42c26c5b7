//! The words of errors: kinds of values, why an address will not do, quoted values.
//!
//! Never prints a control character of the file, and never more than [`QUOTED_CHARS`] characters of it.

use std::fmt;

/// Characters of a value that an error quotes.
pub const QUOTED_CHARS: usize = 64;

/// A value as the file has it, shortened and with control characters escaped, so that an error stays one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    /// Quotes a value.
    pub fn new(value: &str) -> Self {
        let mut quoted: String = value.chars().take(QUOTED_CHARS).flat_map(char::escape_debug).collect();
        if value.chars().nth(QUOTED_CHARS).is_some() {
            quoted.push('…');
        }
        Self(quoted)
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

/// A list of words in a sentence.
pub(super) struct Words<'a>(pub(super) &'a [&'static str]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// What a value is, in the words of YAML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing after the colon, `~` or `null`.
    Empty,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// Any other number.
    Float,
    /// Text.
    Text,
    /// `[…]` or lines with dashes.
    List,
    /// `{…}` or lines with keys.
    Map,
    /// Something with a `!tag`.
    Tagged,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Bool => "true or false",
            Self::Integer => "a whole number",
            Self::Float => "a fraction or a huge number",
            Self::Text => "text",
            Self::List => "a list",
            Self::Map => "a map of keys to values",
            Self::Tagged => "a tagged value, which is not supported",
        })
    }
}

/// Why an address cannot be a VIP, a backend or an outer source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotUnicast {
    /// `0.0.0.0/8` or `::` (RFC 1122 3.2.1.3, RFC 4291 2.5.2).
    Unspecified,
    /// `127.0.0.0/8` or `::1`.
    Loopback,
    /// `224.0.0.0/4` or `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// `169.254.0.0/16` or `fe80::/10`: not routable.
    LinkLocal,
    /// `::ffff:0:0/96` (RFC 4291 2.5.5.2).
    V4Mapped,
}

impl fmt::Display for NotUnicast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "the unspecified address or its network",
            Self::Loopback => "a loopback address",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::LinkLocal => "a link-local address",
            Self::V4Mapped => "an IPv4-mapped IPv6 address",
        })
    }
}

/// A way of forwarding that has its place in the design and not in this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaterMode {
    /// Generic UDP encapsulation.
    DsrGue,
    /// MAC rewrite on the same segment.
    DsrL2,
    /// Rewrite to a node port.
    NodePortNat,
}

impl LaterMode {
    /// As configuration writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DsrGue => "DsrGue",
            Self::DsrL2 => "DsrL2",
            Self::NodePortNat => "NodePortNat",
        }
    }
}
