//! What goes with a route, beside where it leads.

use std::{collections::BTreeSet, fmt, str::FromStr};

use thiserror::Error;

/// Communities of each kind that a route may carry: what a UPDATE has room for, and more than anyone uses.
pub const MAX_COMMUNITIES: usize = 64;
/// [`Attributes::prepend`].
pub const MAX_PREPEND: u8 = 16;
/// `GRACEFUL_SHUTDOWN` (RFC 8326): who gets it prefers any other way.
pub const GRACEFUL_SHUTDOWN: Community = Community(0xffff_0000);

/// Attributes of a route that its user chooses. Routes with equal ones share messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attributes {
    /// `LOCAL_PREF`: for iBGP peers, which get 100 without it (RFC 4271 5.1.5). Never sent to others.
    pub local_pref: Option<u32>,
    /// `MULTI_EXIT_DISC`.
    pub med: Option<u32>,
    /// How many times more than once our ASN stands in the path of an eBGP peer; at most [`MAX_PREPEND`].
    pub prepend: u8,
    /// RFC 1997; at most [`MAX_COMMUNITIES`].
    pub communities: BTreeSet<Community>,
    /// RFC 8092; at most [`MAX_COMMUNITIES`].
    pub large_communities: BTreeSet<LargeCommunity>,
}

impl Attributes {
    /// As they are while this node drains (RFC 8326): the last way that anyone takes.
    #[must_use]
    pub fn draining(&self) -> Self {
        let mut draining = self.clone();
        draining.communities.insert(GRACEFUL_SHUTDOWN);
        draining.local_pref = Some(0);
        draining
    }
}

/// A community of RFC 1997. Displays as `65000:100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Community(pub u32);

/// A community of RFC 8092. Displays as `65000:1:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LargeCommunity(pub [u32; 3]);

/// A text that is no community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a community")]
pub struct NotACommunity;

/// Numbers between colons: digits only, so that nothing else parses.
fn numbers<const N: usize>(text: &str, most: u32) -> Result<[u32; N], NotACommunity> {
    let mut parts = text.split(':');
    let mut numbers = [0; N];
    for number in &mut numbers {
        let part = parts
            .next()
            .filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let value: u32 = part.and_then(|part| part.parse().ok()).ok_or(NotACommunity)?;
        *number = if value <= most {
            value
        } else {
            return Err(NotACommunity);
        };
    }
    parts.next().map_or(Ok(numbers), |_| Err(NotACommunity))
}

impl FromStr for Community {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        let [high, low] = match text {
            "graceful-shutdown" => return Ok(GRACEFUL_SHUTDOWN),
            "no-export" => [0xffff, 0xff01],
            "no-advertise" => [0xffff, 0xff02],
            numeric => numbers(numeric, 0xffff)?,
        };
        Ok(Self(high << 16 | low))
    }
}

impl FromStr for LargeCommunity {
    type Err = NotACommunity;

    fn from_str(text: &str) -> Result<Self, NotACommunity> {
        numbers(text, u32::MAX).map(Self)
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a}:{b}:{c}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communities_are_read_as_they_are_written() {
        for text in ["0:0", "65000:100", "65535:0"] {
            assert_eq!(text.parse::<Community>().unwrap().to_string(), text);
        }
        assert_eq!("no-export".parse::<Community>().unwrap().to_string(), "65535:65281");
        assert_eq!(
            "4200000000:1:2".parse::<LargeCommunity>().unwrap().to_string(),
            "4200000000:1:2"
        );
        for text in ["", "1", "1:", ":1", "1:65536", "65536:1", "1:2:3", "+1:2", " 1:2"] {
            assert_eq!(text.parse::<Community>(), Err(NotACommunity), "{text}");
        }
        for text in ["1:2", "1:2:3:4", "1:2:4294967296", "1:-2:3"] {
            assert_eq!(text.parse::<LargeCommunity>(), Err(NotACommunity), "{text}");
        }
    }
}
