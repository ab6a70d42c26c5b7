//! The checksum against the definition (RFC 1071) and against etherparse.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use etherparse::Ipv4Header;
use proptest::prelude::*;
use xdp_prog::{
    abi::OuterHeader,
    checksum::{finish, sum64, update},
};

/// RFC 1071, section 1, as it is written: 16-bit words in network order, carries added back.
fn by_definition(bytes: &[u8]) -> u16 {
    let mut sum = bytes.chunks(2).fold(0_u32, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    });
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn of_words(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
    u16::from_be(finish(words.map(sum64).sum()))
}

proptest! {
    #[test]
    fn a_sum_of_words_is_the_sum_of_the_rfc(words in proptest::collection::vec(any::<[u8; 8]>(), 0..=8)) {
        prop_assert_eq!(of_words(&words.concat()), by_definition(&words.concat()));
    }

    #[test]
    fn an_updated_checksum_is_the_one_computed_anew(mut header in any::<[u8; 20]>(), at in 0_usize..9, new in any::<u16>()) {
        // Any 16-bit field but the checksum itself, which stands at 10.
        let at = if at < 5 { at * 2 } else { at * 2 + 2 };
        header[10..12].fill(0);
        let before = by_definition(&header);
        let old = u16::from_ne_bytes([header[at], header[at + 1]]);
        header[at..at + 2].copy_from_slice(&new.to_ne_bytes());
        let after = by_definition(&header);
        let updated = u16::from_be(update(before.to_be(), old, new));
        // One's complement has two zeroes; a header that is not all zero has 0 where the update may say 0xffff (RFC 1624, 3).
        prop_assert!(updated == after || (updated == 0xffff && after == 0), "{updated:#06x} is not {after:#06x}");
    }

    #[test]
    fn the_outer_template_has_its_own_sum_beside_it(source in any::<u32>(), destination in any::<u32>()) {
        let (source, destination) = (source.into(), destination.into());
        let OuterHeader(words) = OuterHeader::v4(source, destination);
        let bytes: Vec<u8> = words[..3].iter().flat_map(|word| word.to_ne_bytes()).take(20).collect();
        let (header, _) = Ipv4Header::from_slice(&with_length(&bytes)).unwrap();
        prop_assert_eq!(header.source, source.octets());
        prop_assert_eq!(header.destination, destination.octets());
        prop_assert!(header.dont_fragment && header.time_to_live == 64 && header.identification == 0);
        prop_assert_eq!(u16::from_be(finish(words[2] >> 32)), by_definition(&bytes));
    }

    #[test]
    fn a_header_checksum_is_etherparses(header in any::<[u8; 20]>()) {
        let mut header = header;
        (header[0], header[10], header[11]) = (0x45, 0, 0);
        header[6] &= 0x7f; // etherparse does not keep the reserved flag.
        header[2..4].copy_from_slice(&20_u16.to_be_bytes());
        let mut padded = header.to_vec();
        padded.resize(24, 0);
        let (parsed, _) = Ipv4Header::from_slice(&header).unwrap();
        prop_assert_eq!(of_words(&padded), parsed.calc_header_checksum());
    }
}

/// The template's length is 0 until a packet is there; etherparse wants one.
fn with_length(header: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header[2..4].copy_from_slice(&20_u16.to_be_bytes());
    header
}

#[test]
fn the_carries_of_the_largest_sum_are_all_added_back() {
    // A template's sum and the three fields that a packet adds stay far below what two folds bring down.
    let most = sum64(u64::MAX) * 3 + 0xffff * 4;
    assert!(most < 1 << 32);
    assert_eq!(finish(most), 0);
    assert_eq!(finish(0), 0xffff);
    assert_eq!(finish(0x1_0000), !1);
    assert_eq!(finish(0xffff_ffff), 0);
}
