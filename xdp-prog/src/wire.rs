//! Offsets, lengths and constants of the headers that the programs read and write. Values of 16-bit fields are as loaded from a
//! packet (`…_BE`), so that nothing is swapped to compare.

/// Ethernet header without tags.
pub const ETH_LEN: usize = 14;
/// Offset of the ethertype.
pub const ETH_TYPE: usize = 12;
/// One VLAN tag (IEEE 802.1Q).
pub const VLAN_LEN: usize = 4;
/// IPv4.
pub const TYPE_IPV4_BE: u16 = 0x0800_u16.to_be();
/// IPv6.
pub const TYPE_IPV6_BE: u16 = 0x86dd_u16.to_be();
/// ARP (RFC 826).
pub const TYPE_ARP_BE: u16 = 0x0806_u16.to_be();
/// 802.1Q tag.
pub const TYPE_8021Q_BE: u16 = 0x8100_u16.to_be();
/// 802.1ad service tag.
pub const TYPE_8021AD_BE: u16 = 0x88a8_u16.to_be();

/// IPv4 header without options (RFC 791, 3.1).
pub const IPV4_LEN: usize = 20;
/// Offset of version and IHL.
pub const IPV4_VERSION: usize = 0;
/// Offset of type of service (DSCP and ECN).
pub const IPV4_TOS: usize = 1;
/// Offset of the total length.
pub const IPV4_TOTAL_LEN: usize = 2;
/// Offset of flags and fragment offset.
pub const IPV4_FRAGMENT: usize = 6;
/// More-fragments flag and fragment offset.
pub const IPV4_FRAGMENT_MASK_BE: u16 = 0x3fff_u16.to_be();
/// Offset of time to live.
pub const IPV4_TTL: usize = 8;
/// Offset of the protocol.
pub const IPV4_PROTOCOL: usize = 9;
/// Offset of the header checksum.
pub const IPV4_CHECKSUM: usize = 10;
/// Offset of the source address; the destination follows it.
pub const IPV4_SOURCE: usize = 12;
/// Offset of the destination address.
pub const IPV4_DESTINATION: usize = 16;

/// IPv6 header (RFC 8200, 3).
pub const IPV6_LEN: usize = 40;
/// Offset of the payload length.
pub const IPV6_PAYLOAD_LEN: usize = 4;
/// Offset of next header.
pub const IPV6_NEXT_HEADER: usize = 6;
/// Offset of the hop limit.
pub const IPV6_HOP_LIMIT: usize = 7;
/// Offset of the source address.
pub const IPV6_SOURCE: usize = 8;
/// Offset of the destination address.
pub const IPV6_DESTINATION: usize = 24;

/// ARP for IPv4 over Ethernet (RFC 826).
pub const ARP_LEN: usize = 28;
/// The first eight bytes of such a request: Ethernet, IPv4, address lengths 6 and 4, operation 1.
pub const ARP_REQUEST_BE: u64 = 0x0001_0800_0604_0001_u64.to_be();
/// Offset of the target's protocol address.
pub const ARP_TARGET: usize = 24;

/// ICMPv6 neighbour solicitation without options (RFC 4861, 4.3).
pub const SOLICITATION_LEN: usize = 24;
/// Its ICMPv6 type.
pub const ICMPV6_SOLICITATION: u8 = 135;
/// Offset of its target address.
pub const SOLICITATION_TARGET: usize = 8;
/// Hop limit that only a host on the same link can send with (RFC 4861, 7.1).
pub const ON_LINK_HOP_LIMIT: u8 = 255;
/// First word of a solicited-node multicast address, ff02:0:0:0 (RFC 4291, 2.7.1).
pub const SOLICITED_NODE_HIGH_BE: u64 = 0xff02_0000_0000_0000_u64.to_be();
/// Second word of it, 0:1:ff00:0, under [`SOLICITED_NODE_MASK_BE`].
pub const SOLICITED_NODE_LOW_BE: u64 = 0x0000_0001_ff00_0000_u64.to_be();
/// The bits that all solicited-node multicast addresses share in their second word.
pub const SOLICITED_NODE_MASK_BE: u64 = 0xffff_ffff_ff00_0000_u64.to_be();

/// What every transport header we read has: the two ports.
pub const PORTS_LEN: usize = 4;
/// UDP header, and the part of a TCP header that ICMP errors must quote.
pub const UDP_LEN: usize = 8;
/// TCP header without options (RFC 9293, 3.1).
pub const TCP_LEN: usize = 20;
/// Offset of the sequence number.
pub const TCP_SEQUENCE: usize = 4;
/// Offset of the flags in a TCP header.
pub const TCP_FLAGS: usize = 13;
/// Offset of the data offset: the header's length in 32-bit words, in the upper four bits.
pub const TCP_DATA_OFFSET: usize = 12;
/// Offset of the checksum.
pub const TCP_CHECKSUM: usize = 16;
/// FIN.
pub const TCP_FIN: u8 = 0x01;
/// RST.
pub const TCP_RST: u8 = 0x04;
/// SYN.
pub const TCP_SYN: u8 = 0x02;
/// ACK.
pub const TCP_ACK: u8 = 0x10;

/// IPv4 in IP (RFC 2003).
pub const PROTO_IPIP: u8 = 4;
/// TCP.
pub const PROTO_TCP: u8 = 6;
/// UDP.
pub const PROTO_UDP: u8 = 17;
/// IPv6 in IP (RFC 2473, RFC 4213).
pub const PROTO_IPV6: u8 = 41;
/// ICMP.
pub const PROTO_ICMP: u8 = 1;
/// ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// TTL and hop limit of the outer header.
pub const OUTER_HOP_LIMIT: u8 = 64;

/// Whether an IPv6 next header is an extension header (RFC 8200, 4; RFC 4302, 4303, 6275, 5533, 7401), No Next Header included.
#[inline(always)]
pub const fn is_extension_header(next_header: u8) -> bool {
    // As bits: the compiler would make of a list of numbers three times the code.
    let bits = match next_header >> 6 {
        0 => 1 | 1 << 43 | 1 << 50 | 1 << 51 | 1 << 59 | 1 << 60,
        2 => 1 << (135 - 128) | 1 << (139 - 128) | 1 << (140 - 128),
        _ => 0_u64,
    };
    bits >> (next_header & 63) & 1 != 0
}

/// IPv6 fragment header (RFC 8200, 4.5).
pub const IPV6_FRAGMENT_HEADER: u8 = 44;

#[cfg(test)]
mod tests {
    use super::is_extension_header;

    #[test]
    fn extension_headers_are_those_of_the_registry_and_no_next_header() {
        let found: Vec<u8> = (0..=u8::MAX).filter(|&number| is_extension_header(number)).collect();
        assert_eq!(found, [0, 43, 50, 51, 59, 60, 135, 139, 140]);
    }
}
