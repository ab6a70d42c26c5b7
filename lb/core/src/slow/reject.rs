//! What nobody serves: resets and unreachables. Never answers what must not be answered (RFC 1122 3.2.2, RFC 4443
//! 2.4): no error brings about another, and nobody is made to shout at a crowd.
//!
//! Checksums of TCP and UDP are not looked at: on virtual links senders leave them to hardware that there is none of,
//! and who gets an answer to a damaged packet of his checks it against what he sent.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{IpNumber, TcpHeader};
use xdp_prog::wire::{PROTO_TCP, PROTO_UDP, UDP_LEN};

use super::{
    Kind, Outcome, Packet,
    answer::{Place, answer, v6},
    engine::{Context, Done},
    icmp::{Error, error, must_not_be_answered},
    packet::icmp_of,
};

/// The two ECN bits: an answer of its own has nothing to say of congestion (RFC 3168, 6.1.5).
const ECN: u8 = 3;

/// Whether a packet may have an answer of this kind at all (RFC 1122 3.2.2, RFC 4443 2.4 (e)).
pub(super) fn answerable(kind: Kind, packet: &Packet<'_>) -> Result<(), Outcome> {
    let is_icmp = packet.protocol == icmp_of(packet.destination);
    // In IPv6 a later fragment that is too big is told so (RFC 4443, 3.2): the first may have been smaller.
    let may_quote_any = kind == Kind::TooBig && packet.destination.is_ipv6();
    let is_later = !packet.has_transport() && !may_quote_any;
    if is_later || is_icmp && must_not_be_answered(packet) {
        return Err(Outcome::Unanswerable);
    }
    one_host(packet)
}

/// Whether a packet is from one host, and was sent to one, and its header is what that host wrote.
pub(super) fn one_host(packet: &Packet<'_>) -> Result<(), Outcome> {
    if !packet.is_header_whole() {
        return Err(Outcome::Malformed);
    }
    let link = &packet.link;
    let to_itself = packet.source == packet.destination;
    if is_group(link.destination_mac()) || is_group(link.source_mac()) || to_itself || !is_host(packet.source) {
        Err(Outcome::Unanswerable)
    } else {
        Ok(())
    }
}

/// Whether a MAC address is a multicast or the broadcast address (IEEE 802, 8.2.2).
pub(super) fn is_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0
}

/// Whether an address can be that of one host elsewhere.
pub(super) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_host_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            // Not on the wire (RFC 4291, 2.5.5.2).
            Some(_) => false,
            None => !(address.is_unspecified() || address.is_loopback() || address.is_multicast()),
        },
    }
}

/// Neither this network, nor loopback, nor class D or E (RFC 1122, 3.2.1.3).
fn is_host_v4(address: Ipv4Addr) -> bool {
    let [network, ..] = address.octets();
    network != 0 && network != 127 && network < 224
}

/// Nobody serves the port: a reset, or port unreachable.
pub(super) fn port(context: &mut Context<'_>, packet: &Packet<'_>) -> Done {
    let answered = match packet.protocol {
        PROTO_TCP => reset(context, packet),
        PROTO_UDP if packet.has_transport() && packet.payload().len() < UDP_LEN => Err(Outcome::Malformed),
        _ => unreachable(context, packet, Error::PortUnreachable),
    };
    answered.unwrap_or_else(|outcome| outcome).into()
}

/// Nobody serves the protocol.
pub(super) fn protocol(context: &mut Context<'_>, packet: &Packet<'_>) -> Done {
    let answered = unreachable(context, packet, Error::ProtocolUnreachable);
    answered.unwrap_or_else(|outcome| outcome).into()
}

/// The backend's next hop did not become known in time.
pub(super) fn host(context: &mut Context<'_>, packet: &Packet<'_>) -> Done {
    let answered = unreachable(context, packet, Error::HostUnreachable);
    // Where nobody is told, that is still why it is dropped.
    answered.unwrap_or(Outcome::HoldTimeout).into()
}

fn unreachable(context: &mut Context<'_>, packet: &Packet<'_>, what: Error) -> Result<Outcome, Outcome> {
    let kind = match what {
        Error::HostUnreachable => Kind::NextHop,
        Error::TooBig { .. } => Kind::TooBig,
        Error::PortUnreachable | Error::ProtocolUnreachable => Kind::Reject,
    };
    context.may_answer(kind, packet)?;
    context.answer(&packet.link, &error(packet, what));
    Ok(Outcome::Unreachable)
}

fn reset(context: &mut Context<'_>, packet: &Packet<'_>) -> Result<Outcome, Outcome> {
    if !packet.has_transport() {
        return Err(Outcome::Unanswerable);
    }
    let reset = reset_of(packet)?;
    context.may_answer(Kind::Reject, packet)?;
    let tos = packet.tos & !ECN;
    let network = answer(packet, IpNumber::TCP, tos, Place::ATOMIC, reset.to_bytes().as_slice());
    context.answer(&packet.link, &network);
    Ok(Outcome::Reset)
}

/// The reset that a segment to a closed port gets (RFC 9293, 3.10.7.1).
fn reset_of(packet: &Packet<'_>) -> Result<TcpHeader, Outcome> {
    let (segment, data) = TcpHeader::from_slice(packet.payload()).map_err(|_| Outcome::Malformed)?;
    if segment.rst {
        return Err(Outcome::Unanswerable);
    }
    let mut reset = TcpHeader::new(segment.destination_port, segment.source_port, 0, 0);
    reset.rst = true;
    if segment.ack {
        reset.sequence_number = segment.acknowledgment_number;
    } else if packet.fragment.is_some() {
        // How long it is in all, nobody knows here.
        return Err(Outcome::Unanswerable);
    } else {
        // At most 65,535 and two.
        let len = data.len() as u32 + u32::from(segment.syn) + u32::from(segment.fin);
        reset.ack = true;
        reset.acknowledgment_number = segment.sequence_number.wrapping_add(len);
    }
    let (source, destination) = (packet.destination, packet.source);
    let checksum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            reset.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &[])
        }
        (source, destination) => reset.calc_checksum_ipv6_raw(v6(source).octets(), v6(destination).octets(), &[]),
    };
    reset.checksum = checksum.map_err(|_| Outcome::Malformed)?;
    Ok(reset)
}

#[cfg(test)]
mod tests {
    use super::{Kind, Outcome, Packet, answerable};

    /// An IPv4 packet of protocol `protocol`, with this word of flags and fragment offset.
    fn ipv4(place: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = place.to_be_bytes();
        let header = [
            &[
                0x45,
                0,
                0,
                20 + payload.len() as u8,
                0,
                1,
                high,
                low,
                64,
                protocol,
                0,
                0,
            ],
            &[198, 51, 100, 7, 203, 0, 113, 10][..],
        ];
        let mut header = header.concat();
        let sum = etherparse::Ipv4HeaderSlice::from_slice(&header).unwrap();
        let sum = sum.to_header().calc_header_checksum().to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        [&[2; 12][..], &[8, 0], &header, payload].concat()
    }

    fn ipv6(kind: u8) -> Vec<u8> {
        let mut source = [0; 16];
        source[..3].copy_from_slice(&[0x20, 0x01, 7]);
        let mut destination = source;
        destination[2] = 10;
        let header = [&[0x60, 0, 0, 0, 0, 8, 58, 64], &source[..], &destination].concat();
        [&[2; 12][..], &[0x86, 0xdd], &header, &[kind, 0, 0, 0, 0, 0, 0, 0]].concat()
    }

    fn is_answerable(frame: &[u8]) -> bool {
        match answerable(Kind::Reject, &Packet::parse(frame).unwrap()) {
            Ok(()) => true,
            Err(outcome) => {
                assert_eq!(outcome, Outcome::Unanswerable);
                false
            }
        }
    }

    #[test]
    fn only_the_first_fragment_may_be_answered() {
        assert!(is_answerable(&ipv4(0, 17, &[0; 8])));
        assert!(is_answerable(&ipv4(0x2000, 17, &[0; 8])));
        assert!(!is_answerable(&ipv4(0x2001, 17, &[0; 8])));
        assert!(!is_answerable(&ipv4(0x0001, 17, &[0; 8])));
    }

    #[test]
    fn a_header_that_was_damaged_on_the_way_is_not_answered() {
        let mut frame = ipv4(0, 17, &[0; 8]);
        frame[29] ^= 1;
        let answerable = answerable(Kind::Reject, &Packet::parse(&frame).unwrap());
        assert_eq!(answerable, Err(Outcome::Malformed), "another source");
    }

    #[test]
    fn no_icmp_error_and_no_redirect_may_be_answered() {
        let kinds: Vec<_> = (0..=255)
            .filter(|kind| !is_answerable(&ipv4(0, 1, &[*kind, 0, 0, 0])))
            .collect();
        assert_eq!(kinds, [3, 4, 5, 11, 12]);
        let kinds: Vec<_> = (0..=255).filter(|kind| !is_answerable(&ipv6(*kind))).collect();
        let errors: Vec<_> = (0..128).chain([137]).collect();
        assert_eq!(kinds, errors);
        assert!(!is_answerable(&ipv4(0, 1, &[])), "too short to say");
    }
}
