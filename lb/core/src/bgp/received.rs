//! A peer's UPDATE: how many routes it is about, and whether it is right (RFC 4271 6.3, RFC 7606).
//!
//! Never keeps a route: what is malformed and can be passed over is counted, and that is all that treat-as-withdraw comes to here.

use netgauze_bgp_pkt::{path_attribute::PathAttribute, wire::deserializer::BgpParsingContext};
use netgauze_parse_utils::{error::ParseError, reader::SliceReader, traits::ParseFromWithOneInput as _};

use super::Notification;

const EXTENDED_LENGTH: u8 = 0x10;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;
/// Attributes that an announcement of IPv4 routes cannot do without: ORIGIN, AS_PATH, NEXT_HOP.
const MANDATORY: [u8; 3] = [1, 2, 3];

/// What an UPDATE comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// Routes that it announces.
    pub(super) announced: u64,
    /// Routes that it withdraws.
    pub(super) withdrawn: u64,
    /// Whether something is wrong with it that does not end the session.
    pub(super) malformed: bool,
}

/// Reads a message's body.
///
/// # Errors
///
/// What to tell the peer, whose routes cannot even be told apart (RFC 7606 3 (b), (j), 5.3).
pub(super) fn read(body: &[u8], asn4: bool) -> Result<Received, Notification> {
    // A length beyond the message's.
    sections(body, asn4).unwrap_or_else(|_| Err(Notification::bare(3, 1)))
}

fn sections(body: &[u8], asn4: bool) -> Result<Result<Received, Notification>, ParseError> {
    let mut body = SliceReader::new(body);
    let length = body.read_u16_be()?;
    let withdrawn = body.take_slice(usize::from(length))?;
    let length = body.read_u16_be()?;
    let attributes = body.take_slice(usize::from(length))?;
    Ok(routes(withdrawn, attributes, body, asn4))
}

fn routes(
    withdrawn: SliceReader<'_>,
    attributes: SliceReader<'_>,
    announced: SliceReader<'_>,
    asn4: bool,
) -> Result<Received, Notification> {
    let bad_network = || Notification::bare(3, 10);
    let mut received = Received {
        withdrawn: count(withdrawn, 32).ok_or_else(bad_network)?,
        announced: count(announced, 32).ok_or_else(bad_network)?,
        malformed: false,
    };
    let has_announced = received.announced > 0;
    let seen = walk(attributes, asn4, &mut received)?;
    received.malformed |= has_announced && MANDATORY.iter().any(|code| !seen.contains(code));
    Ok(received)
}

/// Goes through the attributes; returns the codes of those that are there.
fn walk(attributes: SliceReader<'_>, asn4: bool, received: &mut Received) -> Result<Vec<u8>, Notification> {
    let mut rest = attributes;
    let mut seen = Vec::new();
    let mut context = BgpParsingContext::asn2_default();
    context.set_asn4(asn4);
    while !rest.is_empty() {
        let whole = rest.as_slice();
        // One that is longer than what is left: what follows cannot be read, and the routes are known (RFC 7606 4).
        let Some((code, value)) = attribute(&mut rest) else {
            received.malformed = true;
            break;
        };
        let repeated = seen.contains(&code);
        seen.push(code);
        match (code, repeated) {
            (MP_REACH | MP_UNREACH, true) => return Err(Notification::bare(3, 1)),
            (MP_REACH, false) => received.announced += reached(value).ok_or_else(|| Notification::bare(3, 9))?,
            (MP_UNREACH, false) => received.withdrawn += unreached(value).ok_or_else(|| Notification::bare(3, 9))?,
            // The first one counts (RFC 7606 3 (g)).
            (_, true) => received.malformed = true,
            (_, false) => {
                let length = whole.len() - rest.remaining();
                let mut alone = SliceReader::new(whole.get(..length).unwrap_or_default());
                let is_right = PathAttribute::parse(&mut alone, &mut context).is_ok() && alone.is_empty();
                received.malformed |= !is_right;
            }
        }
    }
    Ok(seen)
}

/// The next attribute's code and value.
fn attribute<'a>(rest: &mut SliceReader<'a>) -> Option<(u8, SliceReader<'a>)> {
    let flags = rest.read_u8().ok()?;
    let code = rest.read_u8().ok()?;
    let length = if flags & EXTENDED_LENGTH == 0 {
        usize::from(rest.read_u8().ok()?)
    } else {
        usize::from(rest.read_u16_be().ok()?)
    };
    Some((code, rest.take_slice(length).ok()?))
}

/// Routes of an `MP_REACH_NLRI`; those of families that nobody agreed on are none.
fn reached(mut value: SliceReader<'_>) -> Option<u64> {
    let family = family(&mut value)?;
    let length = value.read_u8().ok()?;
    value.take_slice(usize::from(length)).ok()?;
    let _reserved = value.read_u8().ok()?;
    family.map_or(Some(0), |bits| count(value, bits))
}

/// As [`reached`], of an `MP_UNREACH_NLRI`.
fn unreached(mut value: SliceReader<'_>) -> Option<u64> {
    family(&mut value)?.map_or(Some(0), |bits| count(value, bits))
}

/// Bits of an address, of the families that are known here.
fn family(value: &mut SliceReader<'_>) -> Option<Option<u8>> {
    let afi = value.read_u16_be().ok()?;
    let safi = value.read_u8().ok()?;
    Some(match (afi, safi) {
        (1, 1) => Some(32),
        (2, 1) => Some(128),
        _ => None,
    })
}

/// Networks in a list, if it is one.
fn count(mut list: SliceReader<'_>, bits: u8) -> Option<u64> {
    let mut networks = 0;
    while !list.is_empty() {
        let length = list.read_u8().ok().filter(|length| *length <= bits)?;
        list.read_bytes(usize::from(length.div_ceil(8))).ok()?;
        networks += 1;
    }
    Some(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
    const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9];
    const NEXT_HOP: &[u8] = &[0x40, 3, 4, 10, 0, 0, 2];
    const NETWORK: &[u8] = &[24, 203, 0, 113];

    fn update(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Vec<u8> {
        let attributes = attributes.concat();
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length(withdrawn), withdrawn, &length(&attributes), &attributes, nlri].concat()
    }

    fn read_it(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Result<(u64, u64, bool), Notification> {
        let received = read(&update(withdrawn, attributes, nlri), true)?;
        Ok((received.announced, received.withdrawn, received.malformed))
    }

    #[test]
    fn routes_are_counted() {
        let path = [ORIGIN, AS_PATH, NEXT_HOP];
        assert_eq!(read_it(&[0, 32, 1, 2, 3, 4], &path, NETWORK), Ok((1, 2, false)));
        assert_eq!(read_it(&[], &[], &[]), Ok((0, 0, false)));
        let reach = [&[0x80, 14, 38, 0, 2, 1, 16][..], &[0x20; 16], &[0, 128], &[1; 16]].concat();
        assert_eq!(read_it(&[], &[ORIGIN, AS_PATH, &reach], &[]), Ok((1, 0, false)));
        let unreach = [0x80, 15, 9, 0, 2, 1, 32, 1, 2, 3, 4, 0];
        assert_eq!(read_it(&[], &[&unreach], &[]), Ok((0, 2, false)));
        // L2VPN: nothing that was asked for.
        assert_eq!(read_it(&[], &[&[0x80, 15, 5, 0, 25, 70, 9, 9]], &[]), Ok((0, 0, false)));
    }

    #[test]
    fn what_can_be_passed_over_keeps_the_session() {
        let nothing = (1, 0, true);
        let bad: [&[&[u8]]; 7] = [
            &[ORIGIN, AS_PATH],                               // no NEXT_HOP
            &[&[0x40, 1, 1, 9], AS_PATH, NEXT_HOP],           // no such ORIGIN
            &[&[0x40, 1, 2, 0, 0], AS_PATH, NEXT_HOP],        // of another length
            &[&[0xc0, 1, 1, 0], AS_PATH, NEXT_HOP],           // of other flags
            &[ORIGIN, ORIGIN, AS_PATH, NEXT_HOP],             // twice
            &[ORIGIN, &[0x40, 2, 3, 2, 9, 0], NEXT_HOP],      // a segment longer than the path
            &[ORIGIN, AS_PATH, NEXT_HOP, &[0xc0, 8, 200, 1]], // longer than all attributes
        ];
        for attributes in bad {
            assert_eq!(read_it(&[], attributes, NETWORK), Ok(nothing), "{attributes:?}");
        }
    }

    #[test]
    fn what_cannot_be_told_apart_ends_the_session() {
        let code = |result: Result<(u64, u64, bool), Notification>| {
            let notification = result.unwrap_err();
            (notification.code, notification.subcode)
        };
        let path = [ORIGIN, AS_PATH, NEXT_HOP];
        assert_eq!(code(read_it(&[], &path, &[33, 1, 2, 3, 4, 5])), (3, 10));
        assert_eq!(code(read_it(&[24, 1], &[], &[])), (3, 10));
        let unreach = [0x80, 15, 3, 0, 2, 1];
        assert_eq!(code(read_it(&[], &[&unreach, &unreach], &[])), (3, 1));
        assert_eq!(code(read_it(&[], &[&[0x80, 15, 5, 0, 2, 1, 129, 0]], &[])), (3, 9));
        assert_eq!(read(&[0, 9, 0, 0], true), Err(Notification::bare(3, 1)));
        assert_eq!(read(&[0, 0, 0, 9, 1], true), Err(Notification::bare(3, 1)));
    }
}
